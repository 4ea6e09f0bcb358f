"""relgan-eval: a run scored again, pictures against pictures, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relgan.cli import evaluate
from relgan.cli.command import Line
from relgan.cli.compose import compose
from relgan.cli.evaluate import Run, check_comparable
from relgan.metrics import compare
from relgan.metrics.evaluator import Evaluator
from relgan.options import ConfigError

TINY = [
    "dataset.num_images=200",
    "dataset.image_size=32",
    "model.width=4",
    "model.latent_dim=8",
    "train.iterations=3",
    "train.batch_size=8",
    "tracker=none",
    "metrics.num_images=40",
    "metrics.modes_images=60",
    "metrics.reference_images=100",
    "metrics.batch_size=20",
]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["relgan-eval", *arguments])
    evaluate.main()


def train_in(path: Path, cache: Path, *words: str) -> Path:
    """A run of three updates."""
    from relgan.build import build_run
    from relgan.training.loop import train

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RELGAN_CACHE", str(cache))
        train(build_run(compose(Line([*TINY, *words])), path))
    return path


@pytest.fixture(scope="module")
def run_dir(shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_in(tmp_path_factory.mktemp("run"), shared_cache)


@pytest.fixture(scope="module")
def conditional_run(shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Updates so large that the classifier sees a difference between classes."""
    words = ("dataset=digits", "dataset.labels=true", "optimizer.lr_g=0.05", "metrics.generator=raw")
    return train_in(tmp_path_factory.mktemp("conditional"), shared_cache, *words)


def evaluations(run_dir: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "eval"]


def test_a_run_scored_again_gives_the_same_numbers(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    call(monkeypatch, f"run={run_dir}", "checkpoint=last", f"out={out}")
    saved = json.loads(out.read_text())
    during = evaluations(run_dir)[-1]
    assert during["step"] == saved["protocol"]["step"] == 3
    for key, value in saved["scores"].items():
        assert value == during[key], key
    shown = capsys.readouterr().out
    assert "eval/fd_digits" in shown
    assert "digits, 40 images against 100 of stacked_digits" in shown


def test_a_run_without_scores_has_its_last_checkpoint_scored(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unscored, out = tmp_path / "run", tmp_path / "scores.json"
    shutil.copytree(run_dir, unscored)
    (unscored / "checkpoints" / "best.pt").unlink()
    call(monkeypatch, str(unscored), f"out={out}")
    assert json.loads(out.read_text())["protocol"]["step"] == 3


@pytest.mark.parametrize(
    ("words", "name"), [([], "neighbours.png"), (["out=scores.json"], "scores_neighbours.png")], ids=["alone", "out"]
)
def test_the_picture_of_neighbours_comes_after_the_scores(
    words: list[str],
    name: str,
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def scored() -> bool:
        out = tmp_path / "scores.json"
        written = json.loads(out.read_text()) if words else {"scores": {"eval/fd_digits": 0.0}}
        out.unlink(missing_ok=True)
        return "eval/fd_digits" in capsys.readouterr().out and written["scores"].keys() == {"eval/fd_digits"}

    monkeypatch.chdir(tmp_path)
    line = (str(run_dir), "checkpoint=last", "metrics.scores=[fid,neighbours]", *words)
    call(monkeypatch, *line)
    assert scored()
    with Image.open(name) as picture:
        assert 0 < picture.width < picture.height  # six columns, eight rows
    assert not list(run_dir.rglob("neighbours*"))
    Path(name).unlink()
    Path(name).mkdir()  # which no file can replace
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, *line)
    assert caught.value.code == 2
    assert scored()


def test_a_picture_of_neighbours_that_fails_costs_no_score(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("features that are not finite")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Evaluator, "neighbours", fails)
    call(monkeypatch, str(run_dir), "metrics.scores=[fid,neighbours]")
    assert "eval/fd_digits" in capsys.readouterr().out
    assert "no picture of neighbours (features that are not finite)" in caplog.messages
    assert not list(tmp_path.iterdir())


def test_a_group_of_metrics_asks_for_the_picture_too(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "mine.yaml").write_text("defaults: [default]\nscores: [neighbours]\n")
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, str(run_dir), "--config-dir", str(tmp_path), "metrics=mine")
    assert (tmp_path / "neighbours.png").is_file()


def test_a_run_that_drew_its_neighbours_is_scored_without_them(
    shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_in(tmp_path / "run", shared_cache, "metrics.scores=[fid,neighbours]")
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, str(run), "checkpoint=last")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_conditional_run_scored_again_is_asked_for_the_same_classes(
    conditional_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scores.json"
    call(monkeypatch, f"run={conditional_run}", "checkpoint=last", f"out={out}")
    saved = json.loads(out.read_text())
    during = evaluations(conditional_run)[-1]
    keys = ["fd_digits", "score_digits", "score_digits_std", "label_agreement", "label_agreement_real"]
    assert list(saved["scores"]) == [f"eval/{key}" for key in keys]
    assert saved["scores"] == {key: during[key] for key in saved["scores"]}
    assert saved["scores"]["eval/label_agreement_real"] > 0.9
    assert list(saved["by_class"]) == ["eval/label_agreement", "eval/label_agreement_real"]
    assert set(saved["by_class"]["eval/label_agreement_real"]) <= set("0123456789")


def test_metrics_can_be_changed_one_by_one_or_all_together(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scores.json"
    call(monkeypatch, f"run={run_dir}", "checkpoint=last", f"out={out}", "metrics.num_images=30")
    protocol = json.loads(out.read_text())["protocol"]
    assert (protocol["num_images"], protocol["reference_images"]) == (30, 100)
    call(
        monkeypatch, f"run={run_dir}", "checkpoint=last", f"out={out}", "metrics=quick", "metrics.scores=[is]", "seed=9"
    )
    saved = json.loads(out.read_text())
    assert saved["protocol"]["metrics"] == "quick"
    assert saved["protocol"]["num_images"] == 500
    assert saved["protocol"]["seed"] == 9
    assert list(saved["scores"]) == ["eval/score_digits", "eval/score_digits_std"]


@pytest.fixture
def _few_exchanges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "EXCHANGES", 4)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("_few_exchanges")
def test_a_run_compared_with_another(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, alone = tmp_path / "scores.json", tmp_path / "alone.json"
    start = run_dir / "checkpoints" / "best.pt"
    call(monkeypatch, str(run_dir), f"against={start}", "checkpoint=last", f"out={out}")
    shown = capsys.readouterr().out
    assert "difference, 95 %" in shown
    saved = json.loads(out.read_text())
    call(monkeypatch, str(run_dir), "checkpoint=last", f"out={alone}")
    numbers = json.loads(alone.read_text())["scores"]
    keys = [key for key in numbers if not key.endswith("_std")]
    assert list(saved["scores"]) == list(saved["comparison"]) == keys
    assert saved["scores"] == {key: numbers[key] for key in keys}
    assert saved["protocol"]["against"]["run"] == str(start)
    for key, each in saved["comparison"].items():
        (run, _, _), (against, _, _), (difference, low, high) = each["run"], each["against"], each["difference"]
        assert run == numbers[key]
        assert difference == run - against
        assert (each["better"] is None) == (low <= 0 <= high)
        assert f"{run:.4g}" in shown


@pytest.mark.usefixtures("_few_exchanges")
def test_a_run_and_itself_are_not_told_apart(
    conditional_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, str(conditional_run), f"against={conditional_run}", "metrics.scores=[label_agreement]")
    assert "not told apart" in capsys.readouterr().out


def opened(path: Path) -> Run:
    line = Line([])
    return Run.open(str(path), "last", compose(line), line)


def test_only_like_is_compared_with_like(run_dir: Path, conditional_run: Path) -> None:
    run, other = opened(run_dir), opened(conditional_run)
    few = replace(run.config, metrics=replace(run.config.metrics, num_images=39, every=7, scores=["kid"]))
    with pytest.raises(ConfigError, match=r"against: metrics\.num_images is 39 in that run and 40 in the other"):
        check_comparable(run, run._replace(config=few))
    judged = replace(run.config, metrics=replace(run.config.metrics, extractor="inception"))
    with pytest.raises(ConfigError, match=r"against: metrics\.extractor is inception in that run and auto"):
        check_comparable(run, run._replace(config=judged))
    same = replace(other.config, metrics=run.config.metrics)
    with pytest.raises(ConfigError, match="against: that run saw other images"):
        check_comparable(run, other._replace(config=same))
    with pytest.raises(ConfigError, match="against: only one of the two runs is conditional"):
        check_comparable(run, run._replace(trained=replace(run.trained, class_counts=[5, 5])))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of twelve small colour pictures."""
    rng = np.random.default_rng(0)
    paths = tmp_path / "made", tmp_path / "real"
    for path in paths:
        path.mkdir()
        for i in range(12):
            pixels = np.kron(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
            Image.fromarray(pixels).save(path / f"{i}.png")
    return paths


def test_pictures_against_pictures(folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    made, real = folders
    out = tmp_path / "scores.json"
    options = ["metrics.extractor=efficientnet_lite0", "metrics.scores=[fid,kid,precision,recall]", f"out={out}"]
    call(monkeypatch, f"images={made}", f"reference={real}", *options)
    saved = json.loads(out.read_text())
    assert saved["scores"]["eval/fd_efficientnet_lite0"] > 1
    assert saved["protocol"]["num_images"] == saved["protocol"]["reference_images"] == 12
    assert saved["protocol"]["images"]["name"] == "made"
    assert "seed" not in saved["protocol"]
    call(monkeypatch, f"images={real}", f"reference={real}", *options)
    same = json.loads(out.read_text())["scores"]
    assert same["eval/fd_efficientnet_lite0"] == pytest.approx(0, abs=1e-3)
    assert same["eval/precision_efficientnet_lite0"] == 1


def test_pictures_against_a_dataset(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(
        monkeypatch,
        f"images={folders[0]}",
        "reference=stacked_digits",
        "dataset.num_images=200",
        "metrics.scores=[fid]",
    )
    assert "eval/fd_digits" in capsys.readouterr().out


def test_pictures_are_not_scored_in_the_order_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pictures sorted by class each split would hold one class, and the score would be 1."""
    from sklearn.datasets import load_digits

    digits, made, out = load_digits(), tmp_path / "made", tmp_path / "scores.json"
    for number in (0, 1):
        (made / str(number)).mkdir(parents=True)
        pixels = 15.9 * digits.images[digits.target == number][:20]
        for name, image in enumerate(pixels.astype(np.uint8)):
            Image.fromarray(image).resize((32, 32)).convert("RGB").save(made / str(number) / f"{name}.png")
    options = ["dataset.num_images=200", "metrics.scores=[is]", "metrics.splits=2", f"out={out}"]
    call(monkeypatch, f"images={made}", "reference=stacked_digits", *options)
    assert json.loads(out.read_text())["scores"]["eval/score_digits"] > 1.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images=x", "run=y"], "give either run="),
        (["metrics=quick"], "give either run="),
        (["images=x", "against=y"], "against: compares two runs"),
        (["run=RUN", "against=/nowhere"], "/nowhere"),
        (
            ["run=RUN", "against=RUN", "metrics.scores=[]"],
            "metrics.scores: a comparison needs at least one score made from features",
        ),
        (
            ["run=RUN", "against=RUN", "metrics.scores=[fid,neighbours]"],
            "metrics.scores: neighbours is a picture of one run",
        ),
        (["run=/nowhere"], "no such checkpoint"),
        (["run=/nowhere", "checkpoint=newest"], "checkpoint: 'newest' is not one of best, last"),
        (["images=/nowhere", "reference=/nowhere"], "images: /nowhere does not exist"),
        (["images=/nowhere"], "reference: give a folder"),
        (
            ["images=x", "reference=y", "metrics.scores=[neighbours]"],
            "metrics.scores: neighbours is a picture of a run's images",
        ),
        (["run=RUN", "metrics.splits=0"], "metrics.splits: must be ≥ 1"),
        (["run=RUN", "metrics.scores=[fad]"], "metrics.scores: 'fad' is not one of"),
        (["run=RUN", "checkpoint=last", "loss=sgan"], "loss: with run=, only metrics"),
        (["run=RUN", "out=/nowhere/x.json"], "out: /nowhere is not a directory"),
        (["run=RUN", "metrics.scors=[fid]"], "metrics.scors"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    run_dir: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, *(argument.replace("RUN", str(run_dir)) for argument in arguments))
    assert caught.value.code == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 1
    assert message in shown[0]


def test_help_needs_no_torch() -> None:
    code = "import sys; sys.argv = ['relgan-eval', '--help']; from relgan.cli import evaluate; evaluate.main()"
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("relgan-eval RUN")
