"""relgan-export: the file gives the network's own images, wherever it is read, or there is no file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import processes
import relgan
import tiny
from relgan.builtin import ConvOptions
from relgan.cli import export
from relgan.cli.export import FORMATS
from relgan.generator import TrainedGenerator
from relgan.registry import MODELS

NETWORKS = {
    "batch_norm": ("model.name=dcgan",),
    "spectral_norm": ("model.name=dcgan", "model.generator_spectral_norm=true"),
    "resize": ("model.name=dcgan", "model.upsample=resize", "model.activation=selu"),
    "cnn32": ("model.name=cnn32", "model.sync_batch_norm=true"),
    "signs": ("model.name=dcgan", "model.latent=bernoulli"),
    "conditional": ("model.name=dcgan", "dataset.labels=true"),
}


class Mlp(nn.Module):
    """Somebody else's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 32 * 32)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.linear(z).tanh().unflatten(1, (1, 32, 32))
        return images


class Untraceable(Mlp):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z if z.sum() > 0 else -z)


class Noisy(Mlp):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z + torch.randn_like(z))


def train_in(path: Path, cache: Path, *words: str) -> Path:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RELGAN_CACHE", str(cache))
        tiny.run(path, *words)
    return path


QUICK = ("batch_norm", "spectral_norm", "conditional")  # to trace and to write


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in NETWORKS]
)
def run_dir(request: pytest.FixtureRequest, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four updates so large that images differ."""
    words = (*NETWORKS[request.param], "optimizer.lr_g=0.02")
    return train_in(tmp_path_factory.mktemp("export") / "run", shared_cache, *words)


@pytest.fixture(scope="module")
def one_run(shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_in(tmp_path_factory.mktemp("export") / "run", shared_cache)


@pytest.fixture(autouse=True)
def _work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of another's code, known to relgan until the end of the test."""
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS))
    for generator in (Untraceable, Noisy):

        def build(options: ConvOptions, image_size: int, channels: int, kind: type[Mlp] = generator) -> object:
            return kind(), nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 1))

        MODELS.register(generator.__name__.lower(), ConvOptions, build)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["relgan-export", *arguments])
    export.main()


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error."""
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, *arguments)
    assert caught.value.code == 2
    shown, errors = capsys.readouterr()
    assert not shown
    (line,) = errors.strip().splitlines()
    return line


def inputs_of(generator: TrainedGenerator, count: int) -> tuple[Tensor, ...]:
    """Latents, and labels if it takes them."""
    z = 5 * torch.randn(count, 4, generator=torch.Generator().manual_seed(count))
    return (z, torch.arange(count) % 10) if generator.conditional else (z,)


@pytest.mark.parametrize("name", FORMATS)
def test_the_file_gives_the_networks_own_images(
    run_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, str(run_dir), f"format={name}")
    shown, errors = capsys.readouterr()
    assert shown.startswith(f"generator.{name}: largest difference from the network's own images ")
    assert len(shown.splitlines()) == 1
    assert not errors
    network = FORMATS[name].read(Path(f"generator.{name}"))
    own = relgan.load(run_dir)
    for count in (1, 3, 16):
        inputs = inputs_of(own, count)
        torch.testing.assert_close(network(*inputs), own.module(*inputs), rtol=0, atol=FORMATS[name].tolerance)
    assert [path.name for path in Path().iterdir()] == [f"generator.{name}"]


def test_safetensors_give_the_same_samples_bit_for_bit(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of(relgan.load(run_dir), 20)
    for weights in ("ema", "raw"):
        out = f"{weights}.safetensors"
        call(monkeypatch, str(run_dir), f"weights={weights}", f"out={out}")
        theirs, own = relgan.load(out), relgan.load(run_dir, weights=weights)
        assert torch.equal(theirs.sample(20, seed=5), own.sample(20, seed=5))
        assert torch.equal(theirs.module(*inputs), own.module(*inputs))
        assert (theirs.config, theirs.channels, theirs.step, theirs.weights) == (own.config, 1, 4, weights)
        assert (theirs.classes, theirs.class_counts) == (own.classes, own.class_counts)
    assert not torch.equal(relgan.load("ema.safetensors").sample(20), theirs.sample(20))
    with pytest.raises(relgan.RelganError, match=r"weights: ema\.safetensors holds the moving average only"):
        relgan.load("ema.safetensors", weights="raw")


def test_an_exported_file_can_be_exported_again(one_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, str(one_run), "out=first.safetensors")
    call(monkeypatch, "first.safetensors", "out=second.safetensors")
    assert Path("first.safetensors").read_bytes() == Path("second.safetensors").read_bytes()


@pytest.mark.slow
def test_traced_files_need_no_relgan(one_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, str(one_run), "out=generator.pt2")
    call(monkeypatch, str(one_run), "out=generator.onnx")
    (latents,) = onnxruntime.InferenceSession("generator.onnx").get_inputs()
    assert (latents.name, latents.shape, latents.type) == ("z", ["batch", 4], "tensor(float)")
    code = (
        "import sys; sys.modules['relgan'] = None; import torch\n"
        "images = torch.export.load('generator.pt2').module()(torch.randn(7, 4))\n"
        "assert images.shape == (7, 1, 32, 32) and images.abs().max() <= 1"
    )
    done = processes.run(code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_traced_conditional_network_takes_labels(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train_in(Path("run"), shared_cache, "dataset.labels=true")
    call(monkeypatch, str(run), "format=onnx")
    z, labels = onnxruntime.InferenceSession("generator.onnx").get_inputs()
    assert (z.name, z.shape, z.type) == ("z", ["batch", 4], "tensor(float)")
    assert (labels.name, labels.shape, labels.type) == ("labels", ["batch"], "tensor(int64)")


def edit(path: str, **changes: object) -> None:
    """Change what the file says of itself."""
    with safetensors.safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["relgan"])
    weights = safetensors.torch.load_file(path)
    safetensors.torch.save_file(weights, path, {"relgan": json.dumps({**about, **changes})})


def test_the_metadata_is_one_entry_that_rebuilds_the_network(one_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, str(one_run))
    with safetensors.safe_open("generator.safetensors", framework="pt") as file:
        assert list(file.metadata()) == ["relgan"]
        about = json.loads(file.metadata()["relgan"])
    config = about.pop("config")
    assert config == tiny.last(one_run)["config"]
    nothing = {"foreign": {}, "classes": [], "class_counts": []}
    assert about == {"format": 1, "channels": 1, "step": 4, "weights": "ema", **nothing}


def test_a_file_that_names_anothers_code_runs_none(one_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, str(one_run))
    config = tiny.last(one_run)["config"]
    theirs = {**config, "model": {**config["model"], "name": "evil"}, "plugins": ["evil"]}
    edit("generator.safetensors", config=theirs, foreign={"model=evil": "evil"})
    Path("evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(relgan.RelganError, match=r"generator.safetensors needs model=evil from evil.*plugins=\[evil\]"):
        relgan.load("generator.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {}}, "damaged, or not a generator"),
        ({"config": []}, "damaged, or not a generator"),
        ({"channels": None}, "damaged, or not a generator"),
        ({"class_counts": ["many"]}, "damaged, or not a generator"),
        ({"format": 2}, "written by another relgan"),
        ({"channels": 3}, "the weights are of another network"),
    ],
)
def test_damaged_metadata_is_one_line(
    one_run: Path, changes: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(monkeypatch, str(one_run))
    edit("generator.safetensors", **changes)
    with pytest.raises(relgan.RelganError, match=message) as caught:
        relgan.load("generator.safetensors")
    assert "\n" not in str(caught.value)


def test_damaged_and_other_files_are_one_line(one_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, str(one_run), "out=whole.safetensors")
    whole = Path("whole.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[:-10])
    Path("text.safetensors").write_text("not what it seems")
    Path("empty.safetensors").touch()
    safetensors.torch.save_file({"weight": torch.zeros(2)}, "other.safetensors")
    for name in ("cut", "text", "empty", "other"):
        with pytest.raises(relgan.RelganError, match=f"{name}.safetensors: damaged, or not a generator"):
            relgan.load(f"{name}.safetensors")
    with pytest.raises(relgan.RelganError, match=r"nowhere\.safetensors: no such file"):
        relgan.load("nowhere.safetensors")


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize("name", ["pt2", "onnx"])
def test_a_network_that_cannot_be_traced_is_one_line(
    shared_cache: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = train_in(Path("run"), shared_cache, "model.name=untraceable")
    capfd.readouterr()
    shown = refused(monkeypatch, capfd, str(run), f"format={name}")
    assert "model=untraceable: torch.export cannot trace its generator (Could not guard on data-dependent" in shown
    assert not list(Path().glob("*generator*"))
    call(monkeypatch, str(run), "format=safetensors")


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_with_other_images_is_not_kept(
    shared_cache: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A generator that draws noise of its own gives no image twice."""
    run = train_in(Path("run"), shared_cache, "model.name=noisy")
    Path(f"generator.{name}").write_text("older")
    capsys.readouterr()
    shown = refused(monkeypatch, capsys, str(run), f"format={name}")
    assert f"generator.{name}: not written, its images differ from the network's own by " in shown
    assert Path(f"generator.{name}").read_text() == "older"
    assert len(list(Path().glob("*generator*"))) + len(list(Path().glob(".*"))) == 1


def test_the_missing_extra_is_named_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "installed", lambda package: None if package == "onnxscript" else "1.0")
    shown = refused(monkeypatch, capsys, "nowhere", "format=onnx")
    assert shown.endswith("format: onnx needs onnxscript: pip install 'relgan[export]'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format=pt2"], "run: give a run directory or a checkpoint"),
        (["RUN", "format=pickle"], "format: 'pickle' is not one of safetensors, pt2, onnx"),
        (["RUN", "out=model.pth"], "out: model.pth does not end in .safetensors or .pt2 or .onnx"),
        (["RUN", "format=onnx", "out=model.pt2"], "out: model.pt2 does not end in .onnx"),
        (["RUN", "out=nowhere/a.pt2"], "out: nowhere is not a directory"),
        (["RUN", "out=folder.safetensors"], "out: folder.safetensors cannot be written: Is a directory"),
        (["RUN", "checkpoint=best"], "best.pt: no such checkpoint"),
        (["RUN", "weights=best"], "weights: 'best' is not one of ema, raw"),
        (["RUN", "device=cpu"], "device: no such option"),
        (["nowhere"], "nowhere: no such checkpoint"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    one_run: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("folder.safetensors").mkdir()
    assert message in refused(monkeypatch, capsys, *(argument.replace("RUN", str(one_run)) for argument in arguments))


def test_help_needs_no_torch() -> None:
    code = "import sys; sys.argv = ['relgan-export', '--help']; from relgan.cli import export; export.main()"
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("relgan-export RUN")
