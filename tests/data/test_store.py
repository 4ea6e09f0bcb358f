from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from relgan.data.store import PackedStore, StoreWriter
from relgan.options import RelganError

IMAGES = np.arange(5 * 4 * 6 * 3, dtype=np.uint8).reshape(5, 4, 6, 3)
LABELS = np.array([3, 1, 4, 1, 5])


def write(path: Path, images: np.ndarray = IMAGES, labels: np.ndarray | None = LABELS) -> PackedStore:
    with StoreWriter(path, 4, 6, 3) as writer:
        writer.append(images[:2], None if labels is None else labels[:2])
        writer.append(images[2:], None if labels is None else labels[2:])
        return writer.finish(name="made", skipped={})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "made")
    store = PackedStore.open(tmp_path / "made")
    assert isinstance(store.images, np.memmap)
    np.testing.assert_array_equal(store.images, IMAGES)
    assert store.labels is not None
    np.testing.assert_array_equal(store.labels, LABELS)
    assert (len(store), store.channels, store.meta["width"]) == (5, 3, 6)


def test_images_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        write(tmp_path / "made").images[0] = 0


def test_fingerprint_is_of_pixels_and_labels_only(tmp_path: Path) -> None:
    first, again = write(tmp_path / "a"), write(tmp_path / "b")
    other_pixel = IMAGES.copy()
    other_pixel[3, 2, 1, 0] ^= 1
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != write(tmp_path / "c", other_pixel).fingerprint
    assert first.fingerprint != write(tmp_path / "d", labels=LABELS[::-1]).fingerprint
    assert first.fingerprint != write(tmp_path / "e", labels=None).fingerprint


def test_an_abandoned_store_leaves_nothing(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "made", 4, 6, 3) as writer:
        writer.append(IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    leftover = tmp_path / ".made.partial-99999"
    leftover.mkdir()
    (leftover / "images.npy").write_bytes(b"half")
    write(tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_verify_sees_one_changed_bit(tmp_path: Path) -> None:
    store = write(tmp_path / "made")
    store.verify()
    data = bytearray((store.path / "images.npy").read_bytes())
    data[-7] ^= 1
    (store.path / "images.npy").write_bytes(data)
    with pytest.raises(RelganError, match="has changed on disk"):
        PackedStore.open(store.path).verify()


def _cut_images(path: Path) -> None:
    file = path / "images.npy"
    file.write_bytes(file.read_bytes()[:-1])


def _lie(path: Path) -> None:
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "num_images": 6}))


def _cut_meta(path: Path) -> None:
    (path / "meta.json").write_text((path / "meta.json").read_text()[:20])


@pytest.mark.parametrize("harm", [_cut_images, _lie, _cut_meta])
def test_a_damaged_store_is_refused_in_one_line(tmp_path: Path, harm: object) -> None:
    path = write(tmp_path / "made").path
    harm(path)  # type: ignore[operator]
    with pytest.raises(RelganError, match="is damaged") as caught:
        PackedStore.open(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
