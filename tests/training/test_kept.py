"""Which checkpoints stay, by age and by score; and that best.pt is always the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from torch import nn

import tiny
from relgan.build import build_run
from relgan.generator import read_checkpoint
from relgan.options import ConfigError
from relgan.training.loop import train
from relgan.training.run import Run
from relgan.training.state import History

VALUES = {0: 9.0, 2: 5.0, 4: 7.0, 6: 3.0, 8: 5.0, 10: 4.0}
SCORED = ("metrics.every=2", "train.iterations=10", "train.checkpoint_every=2")


def names(directory: Path) -> list[str]:
    return sorted(path.stem for path in (directory / "checkpoints").iterdir())


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> type:
    """eval/fid falls and rises; the class of the evaluator."""

    class Evaluator:
        protocol: ClassVar[dict[str, Any]] = {}

    monkeypatch.setattr("relgan.build._build_evaluator", lambda *_: Evaluator())
    monkeypatch.setattr(Run, "evaluate", lambda self: {"eval/fid": VALUES[self.state.step]})
    return Evaluator


def test_the_newest_stay(tmp_path: Path) -> None:
    tiny.run(tmp_path, "train.iterations=7", "train.checkpoint_every=2", "train.keep_checkpoints=3")
    assert names(tmp_path) == ["last", "last.previous", "step_00000004", "step_00000006", "step_00000007"]
    for step in (4, 6, 7):
        assert tiny.last(tmp_path, f"step_{step:08d}")["step"] == step
    assert read_checkpoint(tmp_path, "step_00000004")["step"] == 4
    with pytest.raises(ConfigError, match="'step_00000002' is not one of best, last, step_00000004"):
        read_checkpoint(tmp_path, "step_00000002")
    # None is deleted where none is asked for: a later start may have given the option up.
    tiny.run(tmp_path, "train.iterations=8", "resume=auto")
    assert "step_00000004" in names(tmp_path)


@pytest.mark.usefixtures("scored")
def test_the_best_stay(tmp_path: Path) -> None:
    tiny.run(tmp_path, *SCORED, "train.keep_best=3")
    assert names(tmp_path) == ["best", "best_00000002", "best_00000006", "best_00000010", "last", "last.previous"]
    assert tiny.last(tmp_path, "best")["step"] == 6
    for step in (2, 6, 10):
        assert tiny.last(tmp_path, f"best_{step:08d}")["step"] == step
    assert read_checkpoint(tmp_path, "best_00000002")["step"] == 2


@pytest.mark.usefixtures("scored")
def test_the_best_of_a_run_in_two_parts(tmp_path: Path) -> None:
    for iterations in (4, 10):
        tiny.run(tmp_path, *SCORED, "train.keep_best=2", f"train.iterations={iterations}", "resume=auto")
    assert names(tmp_path) == ["best", "best_00000006", "best_00000010", "last", "last.previous"]


def test_scores_made_in_another_way_are_not_ranked_with_those_before(
    scored: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Step 6, with 3.0 the best of all, is scored by other weights than the steps after it."""
    for versions, weights, iterations in (("1", "a", 6), ("2", "a", 8), ("2", "b", 10)):
        protocol = {"weights": weights, "versions": {"torch": versions}}
        monkeypatch.setattr(scored, "protocol", protocol)
        tiny.run(tmp_path, *SCORED, f"train.iterations={iterations}", "resume=auto")
        assert tiny.last(tmp_path, "best")["step"] == {"a": 6, "b": 10}[weights]
    assert [line.getMessage() for line in caplog.records if "anew" in line.getMessage()] == [
        "weights of the scores was a, now b: best.pt is chosen anew, because scores made in different ways are not "
        "ranked together; the earlier ones are earlier_best*.pt"
    ]
    assert tiny.last(tmp_path, "earlier_best")["step"] == 6


@pytest.mark.usefixtures("scored")
def test_by_default_only_one_of_each(tmp_path: Path) -> None:
    tiny.run(tmp_path, *SCORED)
    assert names(tmp_path) == ["best", "last", "last.previous"]
    assert tiny.last(tmp_path, "best")["step"] == 6


@pytest.mark.usefixtures("scored")
def test_nothing_that_the_last_checkpoint_counts_on_is_deleted_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a better score and before the next checkpoint, the displaced one must still be there."""
    run = build_run(tiny.config(*SCORED, "train.keep_best=2", "train.checkpoint_every=4"), tmp_path)
    monkeypatch.setitem(VALUES, 6, float("1.0"))

    def killed(self: Run) -> dict[str, float]:
        if self.state.step == 8:
            raise KeyboardInterrupt
        return {"eval/fid": VALUES[self.state.step]}

    monkeypatch.setattr(Run, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        train(run)
    assert names(tmp_path) == ["best", "best_00000002", "best_00000004", "best_00000006", "last"]
    assert tiny.last(tmp_path)["history"]["ranking"] == {2: 5.0, 4: 7.0}


@pytest.mark.parametrize(
    ("key", "keep", "expected"),
    # Step 0, whose value is the highest, is not ranked.
    [("eval/fid", 3, [6, 10, 2]), ("eval/modes", 2, [4, 2]), ("eval/fid", 1, [6])],
)
def test_ranking(key: str, keep: int, expected: list[int]) -> None:
    history = History()
    for step, value in VALUES.items():
        history.remember({key: value}, step, keep)
    assert list(history.ranking) == expected


def test_the_ranking_is_by_one_score_also_where_it_is_missing_once() -> None:
    history = History()
    assert history.remember({"eval/fid": 5.0, "eval/is": 2.0}, 2, keep=3)
    assert not history.remember({"eval/is": 3.0}, 4, keep=3)
    assert history.remember({"eval/is": 1.0, "eval/fid": 4.0}, 6, keep=3)
    assert history.ranking == {6: 4.0, 2: 5.0}
    assert history.best["eval/is"] == {"value": 3.0, "step": 4}


def test_a_picture_of_neighbours_that_fails_on_every_rank_costs_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Evaluator:
        def evaluate(self, generator: nn.Module) -> dict[str, float]:
            return {"eval/fid": 3.0}

        def neighbours(self, generator: nn.Module) -> None:
            raise ValueError("digits computes features that are not finite")

    run = build_run(tiny.config(), tmp_path)
    run.evaluator = cast("Any", Evaluator())
    for main in (True, False):
        monkeypatch.setattr("relgan.training.run.is_main", lambda main=main: main)
        assert run.evaluate() == {"eval/fid": 3.0}
    run.close(0)
    expected = "no picture of neighbours at update 0 (digits computes features that are not finite)"
    assert caplog.messages.count(expected) == 2


def test_of_equal_scores_the_earlier_is_better() -> None:
    history = History()
    assert [history.remember({"eval/fid": 5.0}, step, keep=1) for step in (2, 4)] == [True, False]
    assert history.ranking == {2: 5.0}
