"""relgan-sample: what the pictures hold, what repeats them, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from torch import Tensor, nn

import tiny
from relgan.cli import sample
from relgan.generator import load
from relgan.images import save_each
from relgan.networks.sampling import generate, latents, sample_images, spherical


@pytest.fixture(scope="module")
def run_dir(shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four updates on grey digits, best.pt absent."""
    path = tmp_path_factory.mktemp("sample") / "run"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RELGAN_CACHE", str(shared_cache))
        tiny.run(path)
    return path


@pytest.fixture(scope="module")
def conditional_run(shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four updates, so large that classes differ, on digits with their labels."""
    path = tmp_path_factory.mktemp("sample") / "conditional"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RELGAN_CACHE", str(shared_cache))
        tiny.run(path, "dataset.labels=true", "optimizer.lr_g=0.02")
    return path


@pytest.fixture(autouse=True)
def _work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["relgan-sample", *arguments])
    sample.main()


def frames(path: Path) -> list[NDArray[np.uint8]]:
    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


def pixels(path: Path) -> NDArray[np.uint8]:
    return frames(path)[0]


def test_the_grid_is_that_of_training_for_its_seed(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, str(run_dir), "n=4", "seed=1")
    np.testing.assert_array_equal(pixels(Path("sample.png")), pixels(run_dir / "samples" / "step_00000004.png"))


def test_the_grid_of_classes_is_that_of_training_for_its_seed(
    conditional_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(monkeypatch, str(conditional_run), "n=4", "seed=1")
    np.testing.assert_array_equal(pixels(Path("sample.png")), pixels(conditional_run / "samples" / "step_00000004.png"))


def cells(path: Path) -> NDArray[np.uint8]:
    """The images of a grid of grey 32×32 ones: [rows, columns, 32, 32]."""
    grey = pixels(path)[..., 0]
    windows = np.lib.stride_tricks.sliding_window_view(grey, (32, 32))
    return windows[2::34, 2::34]


@pytest.mark.parametrize(
    ("words", "rows", "columns"),
    [
        (["labels=[3,5]", "n=3"], [[3, 3, 3], [5, 5, 5]], 3),
        (["labels=[3, 5]"], [[3] * 8, [5] * 8], 8),
        (["labels=3", "n=3"], [[3, 3], [3, None]], 3),
        (["labels=[3]", "n=3"], [[3, 3], [3, None]], 3),
    ],
)
def test_classes_asked_for_have_a_row_each(
    conditional_run: Path,
    words: list[str],
    rows: list[list[int | None]],
    columns: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call(monkeypatch, str(conditional_run), "seed=7", *words)
    shown = cells(Path("sample.png"))
    assert shown.shape[:2] == (len(rows), len(rows[0]))
    generator = load(conditional_run)
    of = {label: iter(generator.sample(columns, seed=7, labels=label)[:, 0].numpy()) for label in (3, 5)}
    asked = [label for row in rows for label in row]
    for label, image in zip(asked, shown.reshape(-1, 32, 32), strict=True):
        np.testing.assert_array_equal(image, 255 if label is None else next(of[label]))


def test_files_hold_one_class_after_another_or_random_ones(
    conditional_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load(conditional_run)
    call(monkeypatch, str(conditional_run), "labels=[3,5]", "n=2", "out=asked")
    call(monkeypatch, str(conditional_run), "n=4", "out=random")
    asked = torch.cat([generator.sample(2, labels=label) for label in (3, 5)])
    for folder, expected in (("asked", asked), ("random", generator.sample(4))):
        files = sorted(Path(folder).iterdir())
        assert len(files) == 4
        for file, image in zip(files, expected, strict=True):
            np.testing.assert_array_equal(pixels(file)[..., 0], image[0])


def test_a_walk_keeps_its_class(conditional_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, str(conditional_run), "labels=[3,5]", "interpolate=3", "n=2")
    shown = cells(Path("sample.png"))
    assert shown.shape[:2] == (4, 3)
    z = latents(4, 4, torch.Generator().manual_seed(0), torch.device("cpu"))
    ends = torch.stack([z[:2], z[2:]], dim=1).repeat(2, 1, 1)  # (row, end, D)
    labels = torch.tensor([3, 3, 5, 5])
    for column, end in ((0, 0), (2, 1)):
        (expected,) = generate(load(conditional_run).module, [(ends[:, end], labels)])
        np.testing.assert_array_equal(shown[:, column], expected[:, 0])
    call(monkeypatch, str(conditional_run), "interpolate=3", "n=2", "out=any.png")
    assert cells(Path("any.png")).shape[:2] == (2, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["labels=cat"], "labels: 'cat' is not one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        (["labels=[3,10]", "out=folder"], "labels: '10' is not one of"),
        (["labels=[0,1,2]", "n=400"], "n: a grid holds at most 1024"),
        (["labels=3", "timelapse=true"], "labels: has no effect with timelapse=true"),
    ],
)
def test_an_impossible_class_is_one_line_and_leaves_nothing(
    conditional_run: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, str(conditional_run), *words)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not list(Path().iterdir())


def test_seed_weights_and_truncation_change_the_images(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for extra in ("seed=0", "seed=0", "seed=2", "weights=raw", "truncation=0.5"):
        call(monkeypatch, f"run={run_dir / 'checkpoints' / 'last.pt'}", "n=4", extra)
        results.append(pixels(Path("sample.png")))
    np.testing.assert_array_equal(results[0], results[1])
    for other in results[2:]:
        assert (other != results[0]).any()


@pytest.mark.parametrize("extra", ["n=4", "interpolate=4", "out=images"])
def test_truncating_latents_of_which_only_signs_count_is_refused(
    extra: str,
    shared_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RELGAN_CACHE", str(shared_cache))
    run = Path("signs")
    tiny.run(run, "model.latent=bernoulli")
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, f"run={run}", extra, "truncation=0.5")
    assert caught.value.code == 2
    assert capsys.readouterr().err.strip().startswith("relgan-sample: truncation: has no effect")
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("out", ["images", "images.zip"])
def test_a_folder_and_a_zip_hold_every_image(run_dir: Path, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, f"run={run_dir}", "n=230", "seed=1", f"out={out}")
    if out.endswith(".zip"):
        with zipfile.ZipFile(out) as archive:
            archive.extractall("images")
    names = sorted(path.name for path in Path("images").iterdir())
    assert names == [f"{i:06d}.png" for i in range(230)]
    call(monkeypatch, f"run={run_dir}", "n=230", "seed=1", "out=grid.png")
    with Image.open("images/000000.png") as first:
        assert first.mode == "L"  # grey, as it was trained
    np.testing.assert_array_equal(pixels(Path("images/000000.png")), pixels(Path("grid.png"))[2:34, 2:34])


def test_images_are_written_as_they_come(tmp_path: Path) -> None:
    """Thousands of images must not be held: each batch is on disk before the next one is drawn."""
    written = []

    def batches() -> Iterator[Tensor]:
        for _ in range(5):
            written.append(len(list(tmp_path.glob("out/*.png"))))
            yield torch.zeros(10, 3, 4, 4, dtype=torch.uint8)

    assert save_each(batches(), tmp_path / "out") == 50
    assert written == [0, 10, 20, 30, 40]


def test_an_interpolation_is_a_strip_or_a_film(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, f"run={run_dir}", "interpolate=5", "n=3", "out=strip.png")
    assert pixels(Path("strip.png")).shape == (3 * 34 + 2, 5 * 34 + 2, 3)
    call(monkeypatch, f"run={run_dir}", "interpolate=5", "n=3", "out=strip.gif")
    assert len(frames(Path("strip.gif"))) == 8  # there and back without showing the ends twice


def test_an_interpolation_starts_and_ends_at_samples() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 64).double()
    walk = spherical(a, b, 9)
    assert walk.shape == (9, 6, 64)
    torch.testing.assert_close(walk[0], a)
    torch.testing.assert_close(walk[-1], b)
    for row in range(6):
        # A straight line would be at about 0.7 of the length half way.
        assert float(walk[4, row].norm()) > 0.9 * min(float(a[row].norm()), float(b[row].norm()))
    unit = spherical(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 3)[1, 0]
    torch.testing.assert_close(unit, torch.full((2,), 0.5**0.5))
    same = spherical(a[:1], a[:1], 3)
    torch.testing.assert_close(same[1], a[:1])


def test_generating_touches_neither_buffers_nor_mode() -> None:
    network = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Unflatten(1, (3, 2, 2)))
    network.train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    z = latents(10, 4, torch.Generator().manual_seed(3), torch.device("cpu"))
    together = torch.cat(list(generate(network, z.split(5))))
    torch.testing.assert_close(together, torch.cat(list(sample_images(network, 10, latent_dim=4, seed=3))))
    assert network.training
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())


def test_timelapse_shows_every_grid_of_training_in_order(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, f"run={run_dir}", "timelapse=true")
    grids = sorted((run_dir / "samples").glob("step_*.png"))
    film = frames(Path("timelapse.gif"))
    assert len(film) == len(grids) == 5
    for frame, path in zip(film, grids, strict=True):
        assert np.abs(frame.astype(int) - pixels(path)).mean() < 8  # a GIF has 256 colours


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["n=3"], "run: give a run directory"),
        (["run=RUN", "number=3"], "number: no such option"),
        (["run=RUN", "n=many"], "n: 'many' is not a whole number"),
        (["run=RUN", "n=0"], "n: must be ≥ 1"),
        (["run=RUN", "n=5000"], "n: a grid holds at most 1024"),
        (["run=RUN", "interpolate=1"], "interpolate: must be ≥ 2"),
        (["run=RUN", "truncation=0"], "truncation: must be > 0"),
        (["run=RUN", "weights=best"], "weights: 'best' is not one of ema, raw"),
        (["run=RUN", "checkpoint=newest"], "checkpoint: 'newest' is not one of best, last"),
        (["run=RUN", "checkpoint=best"], "best.pt: no such checkpoint"),
        (["run=RUN", "out=a.jpg"], "out: a.jpg does not end in .png or .zip"),
        (["run=RUN", "interpolate=4", "out=a.zip"], "out: a.zip does not end in .png or .gif"),
        (["run=RUN", "out=/nowhere/a.png"], "out: /nowhere is not a directory"),
        (["run=RUN", "out=RUN"], "exists and is not an empty folder"),
        (["run=RUN", "timelapse=maybe"], "timelapse: 'maybe' is not true or false"),
        (["run=RUN", "labels=3"], "labels: this generator was trained without labels"),
        (["run=RUN", "timelapse=true", "n=3"], "n: has no effect with timelapse=true"),
        (["run=.", "timelapse=true"], "run: . holds no samples"),
        (["run=RUN", "device=tpu"], "device: 'tpu' is not one of"),
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
    code = "import sys; sys.argv = ['relgan-sample', '--help']; from relgan.cli import sample; sample.main()"
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("relgan-sample RUN")
