"""A run that is killed at any instant goes on and ends as if nothing had happened; and losing something is noticed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

import torture
from relgan import resume
from relgan.rundir import RunDir
from relgan.training import checkpoint
from torture import POINTS, SETTINGS, LostError, Starter, compare, die_in_save, finish, saved_step

SMALL = ("train.iterations=6", "train.checkpoint_every=2")


@pytest.fixture(scope="module")
def starter() -> Starter:
    return Starter()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_five_kills_at_random_instants(starter: Starter, home: Path) -> None:
    options = (*SETTINGS["ragan, saved at every update"], "train.iterations=25")
    assert torture.torture(starter, home, options, 5, random.Random(0)).phases.total() == 5


@pytest.mark.slow
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS.keys())
def test_ten_kills_of_each_kind_of_run(starter: Starter, home: Path, options: tuple[str, ...]) -> None:
    assert torture.torture(starter, home, options, 10, random.Random(1)).phases.total() == 10


@pytest.fixture
def whole(starter: Starter, tmp_path: Path) -> Path:
    finish(starter, tmp_path / "whole", SMALL)
    return tmp_path / "whole"


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_each_point_of_a_save(starter: Starter, tmp_path: Path, whole: Path, point: str) -> None:
    directory = tmp_path / "run"
    assert starter.live(directory, SMALL, prepare=die_in_save, given=(point, 4)) == (-9, "saving")
    # The kill fell where it should: only between the two renames is there no last.pt.
    assert RunDir(directory).last.exists() == (point != POINTS[3])
    assert saved_step(directory) == 2
    finish(starter, directory, SMALL)
    compare(directory, whole)


@contextlib.contextmanager
def overwrite(path: Path, *, keep: Path | None = None) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        yield file


def die_while_overwriting() -> None:
    checkpoint.atomic_write = overwrite  # type: ignore[attr-defined]
    die_in_save(POINTS[0], 4)


def test_a_save_that_overwrites_in_place_is_noticed(starter: Starter, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert starter.live(directory, SMALL, prepare=die_while_overwriting)[0] == -9
    with pytest.raises(LostError, match="no valid checkpoint"):
        saved_step(directory)
    with pytest.raises(LostError, match="damaged"):
        finish(starter, directory, SMALL)


def forget_to_truncate() -> None:
    resume.truncate = lambda *_: None


def test_doubled_lines_are_noticed(starter: Starter, tmp_path: Path, whole: Path) -> None:
    directory = tmp_path / "run"
    starter.live(directory, SMALL, prepare=die_in_save, given=(POINTS[1], 4))
    assert starter.live(directory, SMALL, prepare=forget_to_truncate)[0] == 0
    with pytest.raises(LostError, match=r"metrics\.jsonl differs"):
        compare(directory, whole)
