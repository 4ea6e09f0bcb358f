"""The cache: built once, by one process, and never seen half-built."""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from relgan.data import PackedStore, pack, prepare
from relgan.data.pack import store_path
from relgan.options import ConfigError, RelganError
from relgan.registry import DatasetOptions

from .conftest import encode, make_folder, options, picture


@pytest.fixture
def config(tmp_path: Path, cache: Path) -> DatasetOptions:
    members = {f"{seed:02}.jpg": encode(picture(seed, (40, 50)), "JPEG") for seed in range(30)}
    return options("folder", path=str(make_folder(tmp_path / "pictures", members)))


def forbid_building(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(pack, "StoreWriter", refuse)


@pytest.mark.parametrize("size", [16, 32])
def test_digits_are_the_ones_of_scikit_learn(cache: Path, size: int) -> None:
    from sklearn.datasets import load_digits

    store = prepare(options("digits", image_size=size))
    assert store.images.shape == (1797, size, size, 1)
    np.testing.assert_array_equal(store.labels, load_digits().target)
    # Averages over blocks are the original 8×8 pixels, up to the smoothing of the enlargement.
    blocks = store.images[..., 0].reshape(-1, 8, size // 8, 8, size // 8).mean((2, 4))
    original = load_digits().images * 255 / 16
    assert np.corrcoef(blocks.ravel(), original.ravel())[0, 1] > 0.97


def test_stacked_digits_hold_the_digits_their_labels_name(cache: Path) -> None:
    digits = prepare(options("digits", image_size=16))
    stacked = prepare(options("stacked_digits", image_size=16, num_images=500))
    assert stacked.images.shape == (500, 16, 16, 3)
    labels_of = {image.tobytes(): label for image, label in zip(digits.images, digits.labels, strict=True)}
    for image, label in zip(stacked.images, stacked.labels, strict=True):
        red, green, blue = (labels_of[np.ascontiguousarray(image[..., c]).tobytes()] for c in range(3))
        assert label == 100 * red + 10 * green + blue


def test_stacked_digits_are_always_the_same(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(options("stacked_digits", num_images=300))
    monkeypatch.setenv("RELGAN_CACHE", str(tmp_path / "another"))
    assert prepare(options("stacked_digits", num_images=300)).fingerprint == first.fingerprint
    assert len(prepare(options("stacked_digits"))) == 30_000


def test_the_second_use_opens_what_is_there(config: DatasetOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(config)
    forbid_building(monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in first.path.parent.rglob("*")}
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        assert prepare(config).fingerprint == first.fingerprint
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05
    # So that a cache that cannot be written still works once it is filled.
    assert {path: path.stat().st_mtime_ns for path in first.path.parent.rglob("*")} == before


@pytest.mark.parametrize(
    "change", [{"image_size": 64}, {"crop": 20}, {"num_images": 7}], ids=["image_size", "crop", "num_images"]
)
def test_options_that_change_the_images_make_another_store(config: DatasetOptions, change: dict[str, int]) -> None:
    assert prepare(config).path != prepare(dataclasses.replace(config, **change)).path


def test_options_that_do_not_change_the_images_use_the_same_store(config: DatasetOptions) -> None:
    other = dataclasses.replace(config, hflip=True, sampling="independent", min_images=3, residence="host")
    assert prepare(config).path == prepare(other).path


def test_a_changed_folder_is_prepared_again(config: DatasetOptions) -> None:
    assert len(prepare(config)) == 30
    (Path(str(config.path)) / "new.png").write_bytes(encode(picture(99)))
    assert len(prepare(config)) == 31


def test_num_images_takes_a_fixed_part_from_everywhere(config: DatasetOptions) -> None:
    whole = prepare(config).images
    part = prepare(dataclasses.replace(config, num_images=10)).images
    places = [next(i for i, image in enumerate(whole) if (image == wanted).all()) for wanted in part]
    assert places == sorted(set(places))
    assert len(places) == 10
    assert max(places) >= 20


def test_too_few_images_are_refused_or_warned_about(config: DatasetOptions, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.min_images: only 30 images after preparing, fewer than 31"):
        prepare(dataclasses.replace(config, min_images=31))
    prepare(dataclasses.replace(config, min_images=30))
    assert "30 images are few" in caplog.text


def test_a_split_that_does_not_exist_is_refused(config: DatasetOptions) -> None:
    prepare(config)
    with pytest.raises(ConfigError, match=r"dataset\.split: folder has no test split"):
        prepare(dataclasses.replace(config, split="test"))


def test_a_damaged_store_is_built_again(config: DatasetOptions, caplog: pytest.LogCaptureFixture) -> None:
    store = prepare(config)
    (store.path / "images.npy").write_bytes(b"")
    assert prepare(config).fingerprint == store.fingerprint
    assert "is damaged: making it again" in caplog.text


def test_several_processes_read_what_one_reads(config: DatasetOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(str(config.path)) / "05x.jpg").write_bytes(b"damaged")
    alone = prepare(config)
    monkeypatch.setattr(pack, "_MIN_IMAGES_PER_WORKER", 10)
    monkeypatch.setattr(pack, "_cores", lambda: 3)
    monkeypatch.setattr(pack, "_CHUNK_BYTES", 4 * 32 * 32 * 3)
    monkeypatch.setenv("RELGAN_CACHE", str(store_path(config).parents[2] / "another"))
    together = prepare(config)
    assert together.path != alone.path
    assert together.fingerprint == alone.fingerprint
    assert together.meta["skipped"] == {"damaged": 1}


@pytest.fixture
def little_space() -> Iterator[None]:
    """Files cannot grow beyond 20 kB: the write itself fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("little_space")
def test_no_space_left_anywhere_is_one_line_and_leaves_nothing(config: DatasetOptions, cache: Path) -> None:
    with pytest.raises(RelganError, match=r"cannot write prepared data to .* RELGAN_CACHE "):
        prepare(config)
    assert [path for path in (cache / "datasets").iterdir() if path.is_dir()] == []


SCRIPT = """
import logging, sys, time
import numpy as np
from dataclasses import replace
from relgan.registry import DATASETS
from relgan.data import prepare
from relgan.data.sources import FolderSource

logging.basicConfig(level=logging.INFO, format="%(message)s")
read = FolderSource.read
def slowly(self, index):
    time.sleep(float(sys.argv[2]))
    return read(self, index)
FolderSource.read = slowly
print(prepare(replace(DATASETS["folder"].options, path=sys.argv[1])).fingerprint)
"""


def start(config: DatasetOptions, seconds_per_image: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(config.path), str(seconds_per_image)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_of_two_processes_one_builds_and_the_other_waits(config: DatasetOptions) -> None:
    both = [start(config, 0.03), start(config, 0.03)]
    answers = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert {out.strip() for out, _ in answers} == {prepare(config).fingerprint}
    assert sum("30 images kept" in err for _, err in answers) == 1


def test_a_process_killed_half_way_leaves_nothing_that_is_used(config: DatasetOptions, cache: Path) -> None:
    process = start(config, 0.2)
    deadline = time.monotonic() + 60
    while not list(cache.glob("datasets/.*partial*/images.npy")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not store_path(config).exists()
    store = prepare(config)
    assert len(store) == 30
    assert not list(cache.glob("datasets/.*partial*"))


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_data(sample_data: Path, cache: Path, tmp_path: Path) -> None:
    import shutil
    import zipfile

    once, twice = sample_data / "celeba-10k-89x109.zip", tmp_path / "twice.zip"
    shutil.copyfile(once, twice)
    twice.chmod(0o600)
    with zipfile.ZipFile(once) as source, zipfile.ZipFile(twice, "a") as target:
        for info in source.infolist():
            if not info.is_dir():
                target.writestr(f"again/{info.filename}", source.read(info))
    script = (
        "import resource, sys; from dataclasses import replace\n"
        "from relgan.registry import DATASETS; from relgan.data import prepare\n"
        "prepare(replace(DATASETS['folder'].options, path=sys.argv[1], image_size=64))\n"
        "print(*(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))"
    )
    peaks = []
    for path in (once, twice):
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        peaks.append([int(kib) / 1024 for kib in done.stdout.split()])
    logging.getLogger("relgan").info("peak MiB of parent and workers: %s", peaks)
    # 10,000 more images are 117 MiB of pixels; their names alone may cost a little.
    assert peaks[1][0] < peaks[0][0] + 15
    assert peaks[1][1] < peaks[0][1] + 15


SLOW_SOURCE = """
import time
import numpy as np
from relgan.data.sources import Source

class Slow(Source):
    def __len__(self):
        return 100
    def read(self, index):
        time.sleep(0.1)
        return np.zeros((4, 4, 3), np.uint8)
"""

SLOW_SCRIPT = """
import numpy as np
from pathlib import Path
from relgan.data import pack
from slow_source import Slow

if __name__ == "__main__":
    pack._MIN_IMAGES_PER_WORKER = 1
    pack._cores = lambda: 2
    pack._CHUNK_BYTES = 1
    pack.pack(Slow(), Path("made").absolute(), 4, None, {"name": "slow"}, False)
"""


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """Or else the workers would run it again, and wait for workers of their own."""
    (tmp_path / "slow_source.py").write_text(SLOW_SOURCE.replace("0.1", "0"))
    (tmp_path / "bare.py").write_text(SLOW_SCRIPT.replace('if __name__ == "__main__":', "print('once')\nif True:"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "bare.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "once\n"), done.stderr
    assert len(PackedStore.open(tmp_path / "made")) == 100


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    def workers() -> list[Path]:
        spawned = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if str(tmp_path) in str((process / "cwd").readlink()) and int(process.name) != parent.pid:
                    spawned.append(process)
            except OSError:
                continue
        return spawned

    (tmp_path / "slow_source.py").write_text(SLOW_SOURCE)
    (tmp_path / "slow.py").write_text(SLOW_SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, "slow.py"], cwd=tmp_path, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 60
    while not any(tmp_path.glob(".made.partial*")) or len(workers()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.0)
    parent.kill()
    parent.wait(timeout=60)
    while workers():
        assert time.monotonic() < deadline
        time.sleep(0.05)
