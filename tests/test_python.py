"""relgan from Python: silent, free of surprises in a notebook, and as docs/python.md says."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import processes
import relgan
import tiny
from relgan.api import TrainedRun
from relgan.cli import evaluate, sample
from relgan.penalties import Penalty
from relgan.registry import PENALTIES, PenaltyOptions
from relgan.report.collect import find_runs
from relgan.resume import last_logged
from relgan.rundir import RunDir

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "python.md"
# What a notebook is to relgan: cells that run in __main__, one after the other, and shell lines between them.
NOTEBOOK = """
import json, subprocess, sys
for kind, code in json.load(open("cells.json")):
    if kind == "python":
        exec(compile(code, "cell", "exec"))
    else:
        subprocess.run(["bash", "-ec", code], check=True)
"""
OWN_LOSS = """
import relgan
from relgan.losses import Loss

@relgan.register_loss("mean")
class MeanLoss(Loss):
    def __init__(self, options):
        pass

    def discriminator(self, real_logits, fake_logits):
        real, fake = self.compare(real_logits, fake_logits)
        return fake.mean() - real.mean()

    def generator(self, real_logits, fake_logits):
        return self.discriminator(fake_logits, real_logits)
"""


@pytest.fixture(autouse=True)
def _work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Four updates on grey digits, so large that seeds differ."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RELGAN_CACHE", str(shared_cache))
        words = [*tiny.ARGUMENTS, "optimizer.lr_g=0.02"]
        return relgan.train(words, directory=tmp_path_factory.mktemp("python") / "run")


def play(*cells: tuple[str, str]) -> subprocess.CompletedProcess[str]:
    """Run cells of kind python or bash in a process of their own."""
    Path("cells.json").write_text(json.dumps(cells))
    commands = Path(sys.executable).parent
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PATH", str(commands), prepend=":")
        done = processes.run(NOTEBOOK)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_every_block_of_the_document_runs_as_it_stands() -> None:
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert {kind for kind, _ in blocks} == {"python", "bash"}
    shown = play(*blocks).stdout
    assert "8 of 8 modes" in shown
    bicubic, ours = map(float, re.findall(r"([\d.]+) dB", shown))
    assert ours > bicubic + 1
    assert tiny.summary(Path("ragan"))["step"] == 80


def test_importing_relgan_imports_nothing_that_takes_long() -> None:
    code = "import sys, relgan; assert not {'torch', 'hydra', 'omegaconf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_notebook_shows_nothing_unasked_and_may_run_a_cell_again() -> None:
    train = f"run = relgan.train([*{tiny.ARGUMENTS}, 'loss=mean']); run.load().sample(2)"
    done = play(*[("python", OWN_LOSS), ("python", train)] * 2)
    assert done.stdout == done.stderr == ""
    runs = list(Path("outputs/digits-mean").iterdir())
    assert [tiny.summary(path)["foreign"] for path in runs] == [{"loss=mean": "__main__"}] * 2
    assert len(tiny.differing(tiny.last(runs[0])["generator"], tiny.last(runs[1])["generator"])) == 0


def test_log_lines_are_shown_on_request_and_always_kept(
    run: TrainedRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    relgan.train(tiny.ARGUMENTS, directory="silent")
    assert capfd.readouterr() == ("", "")
    relgan.train(tiny.ARGUMENTS, directory="shown", log=True)
    shown, errors = capfd.readouterr()
    assert "finished after 4 updates" in shown
    assert not errors
    for name in ("silent", "shown"):
        kept = Path(name, "train.log").read_text()
        assert re.search(rf"writing to {name};", kept, re.MULTILINE)
        assert re.search(r"finished after 4 updates, \d+ s$", kept, re.MULTILINE)
    relgan.train(tiny.ARGUMENTS, directory="silent again")
    assert capfd.readouterr() == ("", "")


def test_a_run_shows_itself_and_what_it_has_learnt(run: TrainedRun) -> None:
    assert run.summary == tiny.summary(run.directory)
    assert run.summary["status"] == "finished"
    assert "versions" not in repr(run)
    assert run._repr_png_() == (run.directory / "samples" / "step_00000004.png").read_bytes()
    generator = run.load()
    assert generator._repr_png_().startswith(b"\x89PNG")
    assert not generator.module.training
    images = generator.sample(5, seed=3)
    assert (images.dtype, images.shape) == (torch.uint8, (5, 1, 32, 32))
    assert torch.equal(images, relgan.load(run.directory / "checkpoints" / "last.pt").sample(5, seed=3))
    assert not torch.equal(images, generator.sample(5, seed=4))
    assert not torch.equal(images, run.load(weights="raw").sample(5, seed=3))
    assert generator.images(4).size == (70, 70)


def test_a_run_is_one_for_the_commands_too(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["relgan-sample", str(run.directory), "n=4", "seed=1"])
    sample.main()
    with Image.open("sample.png") as grid, Image.open(run.directory / "samples" / "step_00000004.png") as trained:
        assert grid.tobytes() == trained.tobytes()
    assert find_runs([run.directory.parent]) == [run.directory]
    few = ("metrics.num_images=16", "metrics.reference_images=16", "metrics.input_size=32")
    words = (
        str(run.directory),
        "checkpoint=last",
        "metrics.extractor=efficientnet_lite0",
        "metrics.scores=[fid]",
        *few,
    )
    monkeypatch.setattr(sys, "argv", ["relgan-eval", *words, "out=scores.json"])
    evaluate.main()
    assert json.loads(Path("scores.json").read_text())["scores"]["eval/fd_efficientnet_lite0"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss=raga"], r"loss=raga: not one of .*; did you mean ragan\?"),
        (["lossy=ragan"], r"lossy: no such option; did you mean loss\?"),
        (["train.iterations=many"], "train.iterations: Value 'many'"),
        (["train.iterations=1,2"], "train.iterations: several values need -m"),
        (["dataset.path=/nowhere"], "dataset.path: /nowhere does not exist"),
        (["resume=/nowhere"], "resume: /nowhere is neither"),
        (["plugins=[nowhere]"], "plugins: nowhere cannot be imported"),
        (["hydra.run.dir=here"], "hydra.run.dir=here: there is no Hydra job here; directory= names"),
        (["-m"], "-m: flags are for the command"),
        ("loss=ragan", "'loss=ragan': give a list of words"),
    ],
)
def test_bad_options_are_an_error_of_one_line_that_leaves_nothing(words: list[str] | str, message: str) -> None:
    with pytest.raises(relgan.RelganError, match=message) as caught:
        relgan.train(words if isinstance(words, str) else [*tiny.ARGUMENTS, *words])
    assert "\n" not in str(caught.value)
    assert not list(Path().glob("outputs/*/*"))


def test_a_directory_is_used_once_and_must_be_one(run: TrainedRun) -> None:
    with pytest.raises(relgan.RelganError, match="already holds a run"):
        relgan.train(tiny.ARGUMENTS, directory=run.directory)
    Path("file").touch()
    with pytest.raises(relgan.RelganError, match="directory: file: File exists"):
        relgan.train(tiny.ARGUMENTS, directory="file")
    with pytest.raises(relgan.RelganError, match="config_dir: nowhere is not a directory"):
        relgan.train(tiny.ARGUMENTS, config_dir="nowhere")


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A penalty that sends this process, after the critic's first update, the signals of a list."""
    signals: list[int] = []

    class Stopping(Penalty):
        def after_step(self, critic: nn.Module) -> None:
            if signals:
                signal.raise_signal(signals.pop())

    monkeypatch.setattr(PENALTIES, "_entries", dict(PENALTIES))
    PENALTIES.register("stopping", PenaltyOptions, lambda options: Stopping())
    return signals


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["ctrl-c", "term"]
)
def test_an_interrupted_run_is_saved_and_goes_on(stopping: list[int], number: int, raised: type[BaseException]) -> None:
    stopping.append(number)
    words = [*tiny.ARGUMENTS, "penalty=stopping"]
    with pytest.raises(raised):
        relgan.train(words, directory="run")
    assert (tiny.summary(Path("run"))["status"], tiny.last(Path("run"))["step"]) == ("interrupted", 1)
    resumed = relgan.train([*words, "resume=auto"], directory="run")
    assert resumed.summary["status"] == "finished"
    assert last_logged(RunDir(resumed.directory))["train"] == 4


def test_a_generator_refuses_what_it_cannot_do(run: TrainedRun) -> None:
    with pytest.raises(relgan.RelganError, match="labels: this generator was trained without labels"):
        run.load().sample(2, labels=[1, 2])
    with pytest.raises(relgan.RelganError, match="weights: 'best' is not one of ema, raw"):
        run.load(weights="best")
    with pytest.raises(relgan.RelganError, match=r"best\.pt: no such checkpoint"):
        run.load(checkpoint="best")
    with pytest.raises(relgan.RelganError, match="no such checkpoint"):
        relgan.load("nowhere")


def test_what_relgan_offers_is_there() -> None:
    for name in relgan.__all__:
        assert callable(getattr(relgan, name))
    assert set(relgan.__all__) <= set(dir(relgan))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        relgan.trian  # noqa: B018
