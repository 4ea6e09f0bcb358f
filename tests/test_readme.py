"""The lists in the README are those of the program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relgan.cli.compose import choices, conf_dir
from relgan.metrics.catalogue import card_of
from relgan.registry import DATASETS, SCORES

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def row(first: str) -> str:
    (line,) = [line for line in README.splitlines() if line.startswith(f"| `{first}` |")]
    return line.partition("|")[2].partition("|")[2]


@pytest.mark.parametrize("group", [group for group in choices(None) if not group.startswith("hydra/")])
def test_every_choice_of_a_group_is_listed_and_no_other(group: str) -> None:
    assert set(re.findall(r"`([a-z0-9_]+)`", row(group))) - {"-m"} == set(choices(None)[group])


def test_launchers_and_sweepers_are_described() -> None:
    for path in (conf_dir() / "hydra").glob("[ls]*er/*.yaml"):
        assert re.search(rf"`{path.stem}`|/sweeper={path.stem}", README), path.stem


def test_every_data_set_tells_how_to_get_it() -> None:
    for name in DATASETS:
        assert re.search(rf"^\| .*`{name}`.* \| .* \| `dataset=", README, re.M), name


def test_every_score_and_its_keys_are_listed() -> None:
    table = README.partition("| `metrics.scores` |")[2].partition("\n\n")[0]
    for score in SCORES:
        assert f"`{score}`" in table
        for key in card_of(score).keys:
            assert f"`eval/{key.name}`" in table, key.name
            if key.general:
                assert f"`eval/{key.general[0]}_NETWORK`" in table
