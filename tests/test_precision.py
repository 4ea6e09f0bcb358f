"""One arithmetic for training, another for scores, each by its name, whatever torch was told before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import processes
import relgan.device
import tiny
from relgan import load
from relgan.build import build_run
from relgan.cli.command import Line
from relgan.cli.evaluate import Run
from relgan.config import Config, MetricsConfig
from relgan.data import prepare
from relgan.data.batches import Batch
from relgan.device import Precision, choose_precision, prepare_device
from relgan.metrics.extractors import Extractor, arithmetic
from relgan.metrics.reference import StoreImages, real_statistics
from relgan.options import ConfigError
from relgan.registry import DatasetOptions
from relgan.training.engine import Eager

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def tf32() -> tuple[bool, bool]:
    """Whether convolutions, and matrix products, may be made in TF32."""
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture(autouse=True)
def _as_torch_starts() -> Iterator[None]:
    """Convolutions in TF32, and what a test sets is forgotten."""
    before = tf32(), torch.backends.cudnn.benchmark
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
    yield
    (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32), torch.backends.cudnn.benchmark = before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    tiny.run(directory)
    return directory


@pytest.mark.parametrize("command", ["train", "eval", "sample"])
def test_every_command_prepares_its_device_in_the_same_way(command: str, finished: Path, tmp_path: Path) -> None:
    torch.backends.cudnn.benchmark = True
    if command == "train":
        run = build_run(tiny.config(), tmp_path)
        run.trackers.close(0)
        run.lock.release()
    elif command == "eval":
        Run.open(str(finished), None, Config(), Line([]))
    else:
        load(finished)
    assert tf32() == (False, False)
    # On the CPU; on CUDA it is true for all of them.
    assert torch.backends.cudnn.benchmark is False


@pytest.mark.parametrize(("name", "allowed"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_an_iteration_computes_in_its_precision_and_what_comes_after_does_not(name: str, allowed: bool) -> None:
    """Backward passes too, which autocast does not reach."""
    seen: dict[str, set[tuple[bool, bool]]] = {"forward": set(), "backward": set()}
    update = tiny.update(tiny.model(width=2, latent_dim=4), "rsgan", penalty="r1r2", precision=name)
    for network in (update.generator, update.critic):
        network.register_forward_hook(lambda *_: seen["forward"].add(tf32()))
        for parameter in network.parameters():
            parameter.register_hook(lambda gradient: seen["backward"].add(tf32()))
    Eager(update, lambda: torch.randn(4, 4))([Batch(torch.zeros(4, 1, 32, 32))] * 2)
    assert seen == {"forward": {(allowed, allowed)}, "backward": {(allowed, allowed)}}
    assert tf32() == (True, False)


class Watched(nn.Module):
    """Features of pictures, and the arithmetic they were computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[bool, bool]] = set()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.add(tf32())
        features = images.float().mean((1, 2, 3))[:, None] * self.weight
        return features, features


@pytest.mark.parametrize(("name", "allowed"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_an_extractor_computes_in_the_arithmetic_of_its_identity(name: str, allowed: bool) -> None:
    network = Watched()
    extractor = Extractor(network, CPU, num_features=2, num_classes=2, precision=name)
    extractor(torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    assert network.seen == {(allowed, allowed)}
    assert extractor.identity["precision"] == name
    assert tf32() == (True, False)


def test_scores_in_training_keep_their_own_arithmetic() -> None:
    """An extractor in fp32 that looks at images in the middle of an iteration in TF32."""
    network = Watched()
    extractor = Extractor(network, CPU, num_features=2)
    with Precision(CPU, "tf32").in_force():
        extractor(torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
        assert tf32() == (True, True)
    assert network.seen == {(False, False)}


def test_a_program_that_has_set_its_arithmetic_by_torchs_newer_names_goes_on() -> None:
    """In a process of its own, because torch cannot be brought back to where it started."""
    code = """
import torch
from relgan.device import Precision, prepare_device
if hasattr(torch.backends, "fp32_precision"):
    torch.backends.fp32_precision = "tf32"
with Precision(prepare_device("cpu"), "fp32").in_force():
    print("computes")
"""
    done = processes.run(code)
    assert done.stdout == "computes\n", done.stderr


def test_statistics_of_real_images_are_kept_for_each_arithmetic(cache: Path) -> None:
    images = StoreImages(prepare(DatasetOptions(name="digits", num_images=64), progress=False))
    for name, kept in (("fp32", 1), ("tf32", 2), ("bf16", 3), ("fp32", 3)):
        extractor = Extractor(Watched(), CPU, num_features=2, precision=name)
        real_statistics(images, extractor, count=20, keep_features=False, batch_size=10)
        assert len(list(cache.rglob("reference/**/*.npz"))) == kept


@pytest.mark.parametrize("option", ["precision", "metrics.precision"])
def test_tf32_is_refused_where_it_would_be_another_name_for_fp32(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def named(device: torch.device) -> str:
        if option == "precision":
            return choose_precision("tf32", device).name
        return arithmetic(MetricsConfig(precision="tf32"), device)

    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    assert named(CUDA) == "tf32"
    with pytest.raises(ConfigError, match=rf"^{option}: tf32 needs an NVIDIA GPU .*accepted here: auto, fp32, bf16"):
        named(CPU)
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    with pytest.raises(ConfigError, match="tf32 needs"):
        named(CUDA)


def test_deterministic_asks_a_gpu_for_kernels_that_add_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the run that is prepared with it, and of no later one; what only looks leaves it alone."""
    monkeypatch.setattr(relgan.device, "_choose_device", lambda _: CUDA)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")

    def found() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, not cudnn.benchmark

    try:
        for deterministic, expected in ((None, False), (True, True), (None, True), (False, False)):
            prepare_device("cuda", deterministic=deterministic)
            assert found() == (expected,) * 3
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        prepare_device("cuda", deterministic=False)
