"""DINOv2 and CLIP against torch-fidelity, with seeded random weights in the published files' formats."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from in_memory import InMemory, pictures
from relgan.config import MetricsConfig
from relgan.metrics.evaluator import Evaluator
from relgan.metrics.extractors import Extractor, Extractors, dinov2
from relgan.options import ConfigError
from relgan.registry import EXTRACTORS, DatasetOptions

CPU = torch.device("cpu")
DEPTH, WIDTH, HEADS = 2, 64, 2
SMALL = dinov2.Size("s", width=WIDTH, depth=DEPTH, heads=HEADS, sha256="f00d")


class Block(nn.Module):
    """The authors' block, written plainly."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 4 * WIDTH), "fc2": nn.Linear(4 * WIDTH, WIDTH)})
        for name in ("ls1", "ls2"):
            scale = nn.Module()
            scale.gamma = nn.Parameter(torch.rand(WIDTH))
            self.add_module(name, scale)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * (WIDTH // HEADS) ** -0.5).softmax(dim=-1)
        x = x + self.ls1.gamma * self.attn["proj"]((weights @ v).transpose(1, 2).flatten(2))
        return x + self.ls2.gamma * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Published(nn.Module):
    """A small DINOv2 under the authors' names; positions are interpolated in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + 37 * 37, WIDTH))
        self.mask_token = nn.Parameter(torch.zeros(1, WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, 14, stride=14)})
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.cat(
            [self.cls_token.expand(len(images), -1, -1), self.patch_embed["proj"](images).flatten(2).mT], dim=1
        )
        square = self.pos_embed[:, 1:].reshape(1, 37, 37, WIDTH).permute(0, 3, 1, 2)
        scale = (images.shape[-1] // 14 + 0.1) / 37
        resized = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic").permute(0, 2, 3, 1)
        x = x + torch.cat([self.pos_embed[:, :1], resized.reshape(1, -1, WIDTH)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dinov2, "small", partial(dinov2.build, SMALL))


@pytest.fixture(scope="module")
def published() -> Published:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Published().eval()


@pytest.fixture(scope="module")
def dinov2_weights(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "dinov2.pth"
    torch.save(published.state_dict(), path)
    return path


def clip_file(path: Path, patch: int) -> Path:
    """A small CLIP as OpenAI publishes them: TorchScript, with the parameters of the half that reads texts."""
    from torch_fidelity.feature_extractor_clip import CLIPVisual

    class Whole(CLIPVisual):  # type: ignore[misc]
        def forward(self, images: Tensor) -> Tensor:
            return self.visual(images) @ self.text_projection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = Whole(48, 96, 2, 128, patch)
        whole.text_projection = nn.Parameter(torch.randn(48, 48))
        # The published numbers are half precision ones.
        whole.half().float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(whole.eval(), torch.zeros(1, 3, 96, 96)).save(str(path))
    return path


@pytest.fixture(scope="module")
def clip_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_file(tmp_path_factory.mktemp("weights") / "clip.pt", 32)


def extractor(name: str, weights: Path) -> Extractor:
    return Extractors(MetricsConfig(extractor=name, weights=str(weights)), DatasetOptions(name="folder"), CPU).chosen


MADE, REAL = pictures(12, 1), pictures(11, 2)


def check(name: str, weights: Path, theirs: dict[str, float]) -> None:
    """Our scores are theirs, under our names, and the comparison is not trivial."""
    config = MetricsConfig(scores=["fid", "precision"], extractor=name, weights=str(weights), num_images=len(MADE))
    judge = Evaluator(config, DatasetOptions(name="folder"), InMemory(REAL), latent_dim=0, seed=0, device=CPU)
    scores = judge.score([(0, MADE)])
    assert list(scores) == [f"eval/fd_{name}", f"eval/precision_{name}"]
    assert scores[f"eval/fd_{name}"] > 1e-3
    assert scores[f"eval/fd_{name}"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert 0 < scores[f"eval/precision_{name}"] == pytest.approx(theirs["precision"], rel=1e-6)


def fidelity(name: str, **options: str) -> dict[str, float]:
    from torch_fidelity import calculate_metrics

    scores: dict[str, float] = calculate_metrics(
        input1=InMemory(MADE),
        input2=InMemory(REAL),
        feature_extractor=name,
        fid=True,
        prc=True,
        samples_shuffle=False,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        **options,
    )
    return scores


@pytest.mark.usefixtures("cache", "_small")
def test_dinov2_equals_torch_fidelity(
    published: Published, dinov2_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "load", lambda repository, name: {"dinov2_vits14": published}[name])
    check("dinov2_s", dinov2_weights, fidelity("dinov2-vit-s-14"))


@pytest.mark.usefixtures("cache")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_clip_equals_torch_fidelity(clip_weights: Path) -> None:
    check("clip_b32", clip_weights, fidelity("clip-vit-b-32", feature_extractor_weights_path=str(clip_weights)))


@pytest.mark.usefixtures("_small")
def test_the_protocol_knows_the_file(
    dinov2_weights: Path, clip_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import hashlib

    for name, weights in (("dinov2_s", dinov2_weights), ("clip_b32", clip_weights)):
        made = extractor(name, weights)
        assert made.identity["weights"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert made.identity["weights_known"] is False
        assert made.identity["input_size"] == {"dinov2_s": 224, "clip_b32": 96}[name]
        assert made.num_classes == 0
    assert caplog.text.count("this is not the published") == 2


def test_a_network_without_classes_has_no_inception_score(clip_weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    def keys(*scores: str) -> list[str]:
        config = MetricsConfig(scores=list(scores), extractor="clip_b32", weights=str(clip_weights))
        made = Evaluator(config, folder, InMemory(pictures(4, 1)), latent_dim=0, seed=0, device=CPU)
        return [score.options.name for score in made.scores]

    folder = DatasetOptions(name="folder")
    with caplog.at_level("INFO", "relgan"):
        assert keys("fid", "is", "precision", "is_infinity") == ["fid", "precision"]
    assert "left out: an extractor with classes is needed for is and is_infinity; clip_b32 has none" in caplog.messages
    complaint = r"^metrics\.scores: an extractor with classes is needed for is; clip_b32 has none$"
    with pytest.raises(ConfigError, match=complaint):
        keys("is")


@pytest.mark.usefixtures("_small")
def test_another_size_of_the_same_network_is_refused(
    dinov2_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dinov2, "base", partial(dinov2.build, replace(SMALL, letter="b", width=128)))
    with pytest.raises(ConfigError, match="does not hold dinov2_vitb14"):
        extractor("dinov2_b", dinov2_weights)
    with pytest.raises(ConfigError, match="another CLIP network than ViT-B/32"):
        extractor("clip_b32", clip_file(tmp_path / "clip.pt", 16))


@pytest.mark.parametrize(("name", "millions"), [("small", 22), ("base", 86), ("large", 304)])
def test_the_published_sizes(name: str, millions: int) -> None:
    """By the number of parameters that the authors give."""
    size = getattr(dinov2, name).args[0]
    with torch.device("meta"):
        block = nn.TransformerEncoderLayer(size.width, size.heads, 4 * size.width)
        patches = nn.Conv2d(3, size.width, 14)
    count = sum(p.numel() for p in patches.parameters()) + size.depth * sum(p.numel() for p in block.parameters())
    assert (count + 37 * 37 * size.width) / 1e6 == pytest.approx(millions, abs=1)
    assert size.width == 64 * size.heads


def test_each_has_a_name_and_a_line_of_its_own() -> None:
    names = ("dinov2_s", "dinov2_b", "dinov2_l", "clip_b32")
    assert len({EXTRACTORS[name].about for name in names}) == len(names)
