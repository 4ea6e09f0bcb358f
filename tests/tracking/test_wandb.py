"""W&B offline, read back from its own file; and W&B failing in every way it can."""

from __future__ import annotations

import json
import logging
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto import wandb_internal_pb2 as pb

import tiny
from relgan.config import TrackerConfig
from relgan.tracking import wandb as tracking
from relgan.training.loop import Outcome

OFFLINE = ("tracker.name=wandb", "tracker.project=proj", "tracker.tags=[extra]", "name=group")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No account, no settings of whoever runs the tests, and nothing left in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


def records(path: Path) -> Iterator[Any]:
    """Protocol buffers of a .wandb file (a LevelDB log; checksums ignored)."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, collected = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        position += 7
        if kind == 0 and length == 0:
            break
        collected += data[position : position + length]
        position += length
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(collected)
            collected = b""
            yield record


def history(path: Path) -> list[dict[str, Any]]:
    rows = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return rows


def wandb_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("wandb/*run-*/*.wandb"))


def test_an_offline_run_holds_a_copy_of_the_local_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "run"
    with caplog.at_level(logging.INFO, "relgan"):
        tiny.run(directory, *OFFLINE, "train.log_every=2", "train.iterations=4")
    (path,) = wandb_files(directory)
    said = [message for message in caplog.messages if "wandb sync" in message]
    assert said == [f"W&B: offline; send it later with `wandb sync {path.parent}`"]

    (run,) = [record.run for record in records(path) if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.run_group, run.job_type) == ("proj", "group", "train")
    assert set(run.tags) == {"ragan", "average", "digits", "extra"}
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert config["loss"] == {"name": "ragan", "generator_terms": "both"}
    assert config["model"]["width"] == 2
    assert config["seed"] == 1
    assert tiny.summary(directory)["tracker_run_id"] == run.run_id == tiny.last(directory)["tracker_run_id"]

    logged = {row["step"]: row for row in history(path)}
    for line in tiny.records(directory):
        for key, value in line.items():
            if key.startswith("train/"):
                assert logged[line["step"]][key] == pytest.approx(value), key
    assert sorted(logged) == [0, 1, 2, 3, 4]
    for step, row in logged.items():
        assert row["samples/fixed_noise/_type"] == "image-file"
        assert row["samples/fixed_noise/caption"] == f"ragan, {step} updates, fixed noise"
        stored = path.parent / "files" / row["samples/fixed_noise/path"]
        assert stored.read_bytes()[:4] == b"\x89PNG"
    (exit_record,) = [record.exit for record in records(path) if record.WhichOneof("record_type") == "exit"]
    assert exit_record.exit_code == 0
    assert wandb.run is None


def test_a_continued_run_keeps_its_id(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    tiny.run(directory, *OFFLINE, "train.iterations=2")
    tiny.run(directory, *OFFLINE, "train.iterations=3", "resume=auto")
    files = wandb_files(directory)
    ids = {r.run.run_id for path in files for r in records(path) if r.WhichOneof("record_type") == "run"}
    assert ids == {tiny.summary(directory)["tracker_run_id"]}
    tiny.run(tmp_path / "new", *OFFLINE, "train.iterations=3", f"resume={directory}")
    assert tiny.summary(tmp_path / "new")["tracker_run_id"] not in ids


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("nobody may be asked anything")


@pytest.mark.parametrize("method", ["init", "login", "log", "finish", "define_metric"])
def test_nothing_that_breaks_in_wandb_stops_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("boom\nsecond line")

    owner = wandb if method in ("init", "login") else wandb.Run
    monkeypatch.setattr(owner, method, broken)
    monkeypatch.setattr("builtins.input", never)
    with caplog.at_level(logging.WARNING, "relgan"):
        assert tiny.run(tmp_path / "run", *OFFLINE, "train.log_every=1") == Outcome("finished", 0)
    about = [message for message in caplog.messages if "boom" in message]
    assert 1 <= len(about) <= 2
    assert len({record.name for record in caplog.records if "boom" in record.getMessage()}) == 1
    assert all("\n" not in message for message in about)
    assert len(tiny.records(tmp_path / "run")) == 4
    monkeypatch.undo()
    wandb.finish()


def start(config: TrackerConfig, directory: Path) -> tracking.WandbTracker | None:
    directory.mkdir(exist_ok=True)
    return tracking.start(config, run_dir=directory, group="g", tags=[], options={}, run_id=None)


def test_without_an_account_nothing_asks_and_nothing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", never)
    monkeypatch.setattr("getpass.getpass", never)
    began = time.perf_counter()
    tracker = start(TrackerConfig(), tmp_path / "run")
    assert time.perf_counter() - began < 15
    assert tracker is not None
    assert wandb.run is not None
    assert wandb.run.offline
    tracker.close(0)


@pytest.mark.parametrize("key", ["short", pytest.param("x" * 40, marks=pytest.mark.slow)], ids=["short", "unconfirmed"])
def test_a_key_that_does_not_help_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    """A malformed key, or one that nobody answers to."""
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()  # it reads its environment once
    monkeypatch.setattr("builtins.input", never)
    began = time.perf_counter()
    with caplog.at_level(logging.INFO, "relgan"):
        tracker = start(TrackerConfig(), tmp_path / "run")
    assert time.perf_counter() - began < 40
    assert tracker is not None
    tracker.close(0)
    ours = [record.getMessage() for record in caplog.records if record.name == "relgan"]
    assert any("recording offline" in message for message in ours)
    assert all("\n" not in message for message in ours)


def test_the_users_wandb_mode_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb.teardown()  # it reads its environment once
    assert tiny.run(tmp_path / "run", *OFFLINE) == Outcome("finished", 0)
    assert not wandb_files(tmp_path / "run")
