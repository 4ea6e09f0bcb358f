"""Reading what W&B wrote offline, without W&B's server."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb


def records(path: Path) -> list[Any]:
    """Protocol buffers of a finished run's .wandb file, waiting for its end: W&B writes on after ``finish``."""
    deadline = time.monotonic() + 20
    while True:
        found = list(_read(path.read_bytes()))
        if any(record.WhichOneof("record_type") == "exit" for record in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def _read(data: bytes) -> Iterator[Any]:
    """A LevelDB log; checksums ignored."""
    assert data[:4] in (b":W&B", b"")
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


def artifacts(path: Path) -> list[Any]:
    """What was sent with ``log_artifact``."""
    return [record.artifact for record in records(path) if record.WhichOneof("record_type") == "artifact"]


def history(path: Path) -> list[dict[str, Any]]:
    """Rows as they were logged; nested keys joined with a slash."""
    rows = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return rows


def summary(path: Path) -> dict[str, Any]:
    """The last summary of the run, nested where the keys are."""
    found: dict[str, Any] = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                *above, key = item.nested_key or [item.key]
                place = found
                for name in above:
                    place = place.setdefault(name, {})
                place[key] = json.loads(item.value_json)
    return found


def wandb_files(directory: Path) -> list[Path]:
    """Of one run directory, in the order they were begun."""
    return sorted(directory.glob("wandb/*run-*/*.wandb"))
