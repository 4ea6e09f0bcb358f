"""Tables to paste."""

from __future__ import annotations

from pathlib import Path

import pytest

from made_runs import make_run
from relgan.report.collect import find_runs, read_run
from relgan.report.compare import Board, Comparison
from relgan.report.tables import as_latex, as_markdown


@pytest.fixture
def board(tmp_path: Path) -> Board:
    for loss in ("ragan", "sgan"):
        for seed in (1, 2, 3):
            make_run(tmp_path / f"{loss}{seed}", loss, "stacked_digits", seed)
    make_run(tmp_path / "d", "sgan", "digits_50%", 1)
    return Comparison([read_run(path) for path in find_runs([tmp_path])]).board("eval/fd_digits")


def test_markdown(board: Board) -> None:
    head, rule, first, second, *_ = as_markdown([board], board.variants).splitlines()
    name = "Fréchet distance (digits) ↓"
    assert head == rf"| Variant | {name} digits\_50% | {name} stacked\_digits |"
    assert rule == "| --- | ---: | ---: |"
    assert {line.split(" | ")[0] for line in (first, second)} == {"| sgan", "| ragan"}
    ragan = next(line for line in (first, second) if "ragan" in line)
    assert ragan.split(" | ")[1:] == ["–", f"**{board.score('ragan', board.columns[1])}** |"]  # it is told apart


def test_latex(board: Board) -> None:
    text = as_latex([board], board.variants)
    assert r"Variant & Fréchet distance (digits) $\downarrow$ digits\_50\% &" in text
    assert r"\begin{tabular}{lrr}" in text
    assert r"ragan & – & \textbf{" in text
    assert r" $\pm$ " in text
    assert text.count(r"\\") == 3
