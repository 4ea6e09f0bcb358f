"""A valid checkpoint is always there, and reading one runs nothing."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from relgan.options import RelganError
from relgan.rundir import previous
from relgan.training import checkpoint

CONTENT: dict[str, Any] = {
    "step": 3,
    "config": {"seed": 1},
    "generator": {"w": torch.arange(1000.0)},
    "ema": {},
    "critic": {},
    "optimizers": [],
    "side_terms": {},
    "strength": {},
    "rng": {"cpu": torch.get_rng_state()},
    "batches": {"drawn": 12},
    "seconds": 1.5,
    "channels": 3,
    "classes": [],
    "class_counts": [],
    "data_fingerprint": "0123",
    "protocol": {},
    "tracker_runs": {},
    "foreign": {},
    "history": {"final": {}, "best": {}, "ranking": {}, "visited": True},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "last.pt"


def save(path: Path, step: int) -> None:
    checkpoint.save({**CONTENT, "step": step}, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def refusal(path: Path) -> str:
    with pytest.raises(RelganError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_what_is_written_is_read_and_the_one_before_is_kept(path: Path) -> None:
    save(path, 3)
    assert not previous(path).exists()
    save(path, 6)
    assert checkpoint.load(path)["step"] == 6
    assert checkpoint.load(previous(path))["step"] == 3
    assert torch.equal(checkpoint.load(path)["generator"]["w"], torch.arange(1000.0))
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.previous.pt", "last.pt"]


def test_every_key_is_needed(path: Path) -> None:
    assert {"format", *CONTENT} == set(checkpoint.KEYS)
    for key in CONTENT:
        checkpoint.save({name: value for name, value in CONTENT.items() if name != key}, path)
        assert f"not a relgan checkpoint (no {key})" in refusal(path)


def test_nothing_is_kept_beside_a_best(path: Path) -> None:
    for step in (1, 2):
        checkpoint.save({**CONTENT, "step": step}, path, keep_previous=False)
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("where", ["fsync", "write"])
def test_a_full_disk_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    save(path, 3)
    save(path, 6)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def torn(_: object, file: Any) -> None:
        file.write(b"half")
        # torch's archive writer reports a short write like this
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe #0 …")

    if where == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        save(path, 9)
    assert "\n" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_half_a_checkpoint_is_refused_or_replaced_by_the_one_before(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(path, 3)
    cut(path)
    assert "damaged" in refusal(path)
    with pytest.raises(RelganError, match="damaged"):
        checkpoint.load_newest(path)
    save(path, 6)  # the damaged one becomes the previous
    save(path, 9)
    cut(path)
    with caplog.at_level(logging.WARNING, "relgan"):
        assert checkpoint.load_newest(path)["step"] == 6
    (record,) = caplog.records
    assert "last.previous.pt" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_killed_between_the_two_renames(path: Path) -> None:
    save(path, 3)
    path.rename(previous(path))
    assert checkpoint.load_newest(path)["step"] == 3


def test_a_bit_flipped_inside(path: Path) -> None:
    save(path, 3)
    data = bytearray(path.read_bytes())
    middle = data.index(torch.arange(1000.0).numpy().tobytes()[400:500])
    data[middle] ^= 0xFF
    path.write_bytes(data)
    assert "damaged" in refusal(path)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["RELGAN_TEST_EVIL"],)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_foreign_pickle_runs_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    target = tmp_path / "evil"
    monkeypatch.setenv("RELGAN_TEST_EVIL", str(target))
    path.parent.mkdir()
    if legacy:
        path.write_bytes(pickle.dumps({**CONTENT, "format": checkpoint.FORMAT, "step": Evil()}))
    else:
        torch.save({**CONTENT, "format": checkpoint.FORMAT, "step": Evil()}, path)
    refusal(path)
    assert not target.exists()
    # The file is as dangerous as it should be.
    if legacy:
        pickle.loads(path.read_bytes())
        assert target.exists()


def test_other_files(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    assert "no such checkpoint" in refusal(path)
    path.write_bytes(b"")
    assert "damaged or not a checkpoint" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat.jpg", b"meow")
    assert "damaged or not a checkpoint" in refusal(path)
    torch.save([1, 2], path)
    assert "not a relgan checkpoint" in refusal(path)
    torch.save({"state_dict": {}}, path)
    assert "not a relgan checkpoint" in refusal(path)
    torch.save({"format": checkpoint.FORMAT, "step": 3}, path)
    assert "not a relgan checkpoint (no config, channels" in refusal(path)
    for other in (1, checkpoint.FORMAT + 1):
        torch.save({**CONTENT, "format": other}, path)
        assert f"written by another relgan (format {other}; this one reads {checkpoint.FORMAT})" in refusal(path)
    torch.save({**CONTENT, "format": "x"}, path)
    assert "not a relgan checkpoint" in refusal(path)
