"""The data path: decoding JPEGs of CelebA's size, preparing, opening and sampling. Run: python -m benchmarks.data

The pictures are CelebA's where RELGAN_TEST_DATA names a folder with its half-size sample (enlarged to 178×218 and
saved at quality 88), else smooth noise.
"""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from relgan.data import PackedStore, prepare
from relgan.data.decode import square
from relgan.registry import DATASETS

SIZE = (178, 218)
COUNT = 4000
ROUNDS = 15


def pictures(count: int) -> list[Image.Image]:
    sample = Path(os.environ.get("RELGAN_TEST_DATA", "")) / "celeba-10k-89x109.zip"
    if sample.is_file():
        with zipfile.ZipFile(sample) as archive:
            names = [name for name in archive.namelist() if name.endswith(".jpg")][:count]
            small = [Image.open(io.BytesIO(archive.read(name))) for name in names]
    else:
        noise = np.random.default_rng(0).integers(0, 256, (count, 27, 22, 3), dtype=np.uint8)
        small = [Image.fromarray(values) for values in noise]
    return [image.resize(SIZE, Image.Resampling.BICUBIC) for image in small]


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def plain(data: bytes) -> np.ndarray:
    """What one would write without thinking of speed."""
    image = Image.open(io.BytesIO(data)).convert("RGB").crop((0, 20, 178, 198))
    return np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC))


def rounds(*works: Callable[[], object], clock: Callable[[], float] = time.process_time) -> list[list[float]]:
    """Seconds of each work in each round, taking turns; processor time, since others may use the cores."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for work, record in zip(works, seconds, strict=True):
            start = clock()
            work()
            record.append(clock() - start)
    return seconds


def decoding(files: list[bytes]) -> None:
    few = files[:500]
    slow, fast = rounds(lambda: [plain(data) for data in few], lambda: [square(data, 64) for data in few])
    ratio = statistics.median(a / b for a, b in zip(slow, fast, strict=True))
    print("decode, crop, resize 178×218 → 64×64, one core, fastest round:")
    print(f"  {len(few) / min(fast):,.0f} images/s; plain Pillow {len(few) / min(slow):,.0f}; median ratio {ratio:.2f}")
    exact = np.stack([plain(data) for data in few]).astype(float)
    error = np.abs(np.stack([square(data, 64) for data in few]) - exact)
    rms = np.sqrt(np.square(error).mean())
    print(f"  against decoding whole: mean |error| {error.mean():.2f} of 255, RMS {rms:.2f}, largest {error.max():.0f}")


def preparing(files: list[bytes], folder: Path) -> PackedStore:
    with zipfile.ZipFile(folder / "faces.zip", "w") as archive:
        for number, data in enumerate(files):
            archive.writestr(f"{number:06}.jpg", data)
    config = replace(DATASETS["folder"].options, path=str(folder / "faces.zip"), image_size=64)
    start = time.perf_counter()
    store = prepare(config, progress=False)
    seconds = time.perf_counter() - start
    print(f"prepare {len(store):,} of them: {seconds:.1f} s on {os.cpu_count()} cores, start of processes included")
    (again,) = rounds(lambda: prepare(config), clock=time.perf_counter)
    print(f"open what is prepared: {1e3 * statistics.median(again):.1f} ms")
    return store


def sampling(store: PackedStore) -> None:
    # Here, so that the processes that prepare need not import torch.
    import torch

    from relgan.data.batches import Batches, Sampler
    from relgan.device import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()  # as training does
    for residence in ("host", "device"):
        for hflip in (False, True):
            batches = Batches(store, Sampler(len(store), 64, "epoch", 0), torch.device("cpu"), hflip, residence)
            (seconds,) = rounds(lambda b=batches: [b.next() for _ in range(100)])
            print(f"batch of 64 at 64×64 ({residence}, hflip={hflip}), one core: {10 * min(seconds):.2f} ms")


def main() -> None:
    files = [jpeg(image) for image in pictures(COUNT)]
    print(f"{len(files):,} JPEGs of {np.mean([len(data) for data in files]) / 1e3:.1f} kB on average")
    decoding(files)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RELGAN_CACHE"] = folder
        sampling(preparing(files, Path(folder)))


if __name__ == "__main__":
    main()
