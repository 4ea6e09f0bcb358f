"""What counts as the same variant, what shares a column, and the statistics over seeds."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from made_runs import PROTOCOL, STEPS, make_run, make_sweep, scores
from relgan.metrics.catalogue import Key, ScoreCard
from relgan.options import RelganError
from relgan.registry import SCORES, register_score
from relgan.report.collect import find_runs, read_run
from relgan.report.compare import POINTS, Comparison, curve
from relgan.report.page import Page, render
from relgan.report.tables import as_csv
from relgan.report.verdict import judge


def compare(*paths: Path) -> Comparison:
    return Comparison([read_run(path) for path in find_runs(paths)])


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    made = [make_run(tmp_path / "a" / "b" / str(seed), seed=seed) for seed in (1, 2)]
    (tmp_path / "a" / "notes").mkdir()
    assert find_runs([tmp_path, made[0]]) == [path.resolve() for path in made]
    with pytest.raises(RelganError, match="notes holds no run directory"):
        find_runs([tmp_path / "a" / "notes"])
    with pytest.raises(RelganError, match="nowhere is not a directory"):
        find_runs([tmp_path / "nowhere"])


def test_seeds_are_one_variant(tmp_path: Path) -> None:
    comparison = compare(make_sweep(tmp_path / "s", ["ragan", "sgan"], ["digits", "cifar10"], 3))
    assert comparison.variants == ["sgan", "ragan"]  # in the order of the known losses
    assert comparison.datasets == ["cifar10", "digits"]
    assert [run.seed for run in comparison.of("ragan", "digits")] == [1, 2, 3]


def test_other_options_are_compared_too(tmp_path: Path) -> None:
    for n_critic in (1, 5):
        make_run(tmp_path / str(n_critic), optimizer__n_critic=n_critic)
    assert compare(tmp_path).variants == ["n_critic=1", "n_critic=5"]
    make_run(tmp_path / "sgan", "sgan")
    assert compare(tmp_path).variants == ["sgan · n_critic=1", "ragan · n_critic=1", "ragan · n_critic=5"]


def test_an_option_younger_than_a_run_had_its_default(tmp_path: Path) -> None:
    """Not the value that is usual now."""
    make_run(tmp_path / "older", model__name="dcgan")
    for seed in (1, 2):
        make_run(tmp_path / str(seed), seed=seed, model__name="dcgan", model__latent="bernoulli")
    assert compare(tmp_path).variants == ["latent=bernoulli", "latent=normal"]


def test_many_options_are_named_only_where_they_are_unusual(tmp_path: Path) -> None:
    for number, changed in enumerate(({}, {"lr_g": 0.1}, {"n_critic": 2}, {"betas": [0, 0.9]})):
        make_run(tmp_path / str(number), **{f"optimizer__{key}": value for key, value in changed.items()})
    assert compare(tmp_path).variants == ["betas=[0, 0.9]", "lr_g=0.1", "n_critic=2", "usual settings"]


def test_budgets_can_be_compared(tmp_path: Path) -> None:
    for iterations in (500, 1000):
        make_run(tmp_path / str(iterations), train__iterations=iterations)
    assert compare(tmp_path).variants == ["iterations=500", "iterations=1000"]


def test_options_are_compared_within_one_data_set(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(tmp_path / f"d{seed}", dataset="digits", seed=seed, dataset__num_images=None, model__width=16)
        make_run(tmp_path / f"s{seed}", dataset="stacked_digits", seed=seed, dataset__num_images=30000, model__width=8)
    for size in (64, 128):
        make_run(tmp_path / f"c{size}", dataset="celeba", dataset__image_size=size, dataset__min_images=1000)
    comparison = compare(tmp_path)
    assert comparison.datasets == ["celeba · image_size=64", "celeba · image_size=128", "digits", "stacked_digits"]
    assert comparison.variants == ["ragan"]
    assert comparison.differing == []


def test_one_score_of_several_extractors_is_one_board_of_separate_columns(tmp_path: Path) -> None:
    for dataset, extractor in (("celeba", "efficientnet_lite0"), ("stacked_digits", "digits")):
        for loss in ("ragan", "sgan"):
            path = make_run(tmp_path / f"{dataset}{loss}", loss, dataset, protocol={**PROTOCOL, "extractor": extractor})
            metrics = (path / "metrics.jsonl").read_text()
            (path / "metrics.jsonl").write_text(metrics.replace("fd_digits", f"fd_{extractor}"))
    board, *others = compare(tmp_path).boards()
    assert board.title == "Fréchet distance"
    assert [(column.dataset, column.key) for column in board.columns] == [
        ("celeba", "eval/fd_efficientnet_lite0"),
        ("stacked_digits", "eval/fd_digits"),
    ]
    assert [each.title for each in others] == ["Modes", "Mode KL"]


def test_a_folder_goes_by_its_own_name(tmp_path: Path) -> None:
    for name in ("cats", "dogs.zip"):
        make_run(tmp_path / name, dataset="folder", dataset__path=f"/somewhere/{name}")
    assert compare(tmp_path).datasets == ["cats", "dogs"]


def test_a_label_has_the_loss_first_then_what_the_sweep_varied(tmp_path: Path) -> None:
    for loss in ("ragan", "sgan"):
        for width, beta in ((8, 0.5), (16, 0.9)):
            words = [f"optimizer.beta={beta}", f"loss={loss}", f"model.width={width}"]
            path = make_run(tmp_path / f"{loss}{width}", loss, model__width=width, optimizer__beta=beta)
            summary = json.loads((path / "summary.json").read_text())
            (path / "summary.json").write_text(json.dumps({**summary, "command": words}))
    # The width follows from beta, which stands first in the commands; the model would be named before the optimizer.
    assert compare(tmp_path).variants == [
        "sgan · beta=0.5",
        "sgan · beta=0.9",
        "ragan · beta=0.5",
        "ragan · beta=0.9",
    ]


def test_an_option_that_follows_from_the_loss_stays_out_of_the_name_but_not_out_of_sight(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "ragan")
    make_run(tmp_path / "b", "wgan_gp", penalty__name="gp", penalty__weight=10.0)
    comparison = compare(tmp_path)
    assert comparison.variants == ["wgan_gp", "ragan"]
    assert comparison.differing == ["loss.name", "penalty.name", "penalty.weight"]
    assert any("penalty.name, penalty.weight" in line for line in Page(comparison, "", Path("report.html")).warnings())


def test_means_spread_and_extremes_are_those_of_the_finished_seeds(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        make_run(tmp_path / f"r{seed}", "ragan", seed=seed)
        make_run(tmp_path / f"s{seed}", "sgan", seed=seed)
    make_run(tmp_path / "r4", "ragan", seed=4, status="diverged", ended=0.5)
    board = compare(tmp_path).board("eval/fd_digits")
    (column,) = board.columns
    cell = board.cells["ragan", column]
    finals = [scores("ragan", seed, 1.0)["eval/fd_digits"] for seed in (1, 2, 3)]
    assert cell.mean == pytest.approx(statistics.fmean(finals))
    assert cell.sd == pytest.approx(statistics.stdev(finals))
    assert cell.finals == pytest.approx(dict(zip((1, 2, 3), finals, strict=True)))
    first = max(scores("ragan", seed, 250 / STEPS)["eval/fd_digits"] for seed in (1, 2, 3, 4))
    assert (cell.low, cell.high) == (pytest.approx(min(finals)), pytest.approx(first))
    assert board.variants == ["ragan", "sgan"]


def test_time_to_reach_is_the_first_evaluation_at_least_that_good(tmp_path: Path) -> None:
    for loss in ("ragan", "rsgan", "sgan"):
        make_run(tmp_path / loss, loss)
    board = compare(tmp_path).board("eval/modes")
    (column,) = board.columns
    finals = {loss: scores(loss, 1, 1.0)["eval/modes"] for loss in ("ragan", "rsgan", "sgan")}
    threshold = sorted(finals.values())[1]
    assert board.thresholds[column] == threshold
    for loss, final in finals.items():
        expected = [s for s in range(250, STEPS + 1, 250) if scores(loss, 1, s / STEPS)["eval/modes"] >= threshold]
        assert board.cells[loss, column].reached == ([(expected[0], expected[0] / 10)] if final >= threshold else [])


def test_a_run_whose_last_evaluation_failed_has_no_final_score(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(line for line in lines if f'"step": {STEPS}' not in line))
    board = compare(path).board("eval/modes")
    assert board.cells["ragan", board.columns[0]].mean is None


@pytest.mark.parametrize(
    "fact",
    [
        {"num_images": 50000},
        {"reference_images": 100},
        {"extractor": "inception"},
        {"weights": "def"},
        {"reference": {"name": "stacked_digits", "fingerprint": "beef"}},
        {"generator": "raw"},
        {"precision": "bf16"},
    ],
)
def test_scores_made_differently_never_share_a_column(tmp_path: Path, fact: dict[str, Any]) -> None:
    make_run(tmp_path / "a", "ragan")
    make_run(tmp_path / "b", "sgan", protocol={**PROTOCOL, **fact})
    comparison = compare(tmp_path)
    board = comparison.board("eval/fd_digits")
    assert len(board.columns) == 2
    assert [len(judge(board, column).ranking) for column in board.columns] == [1, 1]
    assert any(
        "separate columns" in line and next(iter(fact)) in line
        for line in Page(comparison, "", Path("report.html")).warnings()
    )


def test_what_does_not_change_a_score_does_not_split_it(tmp_path: Path) -> None:
    same = {"seed": 7, "batch_size": 50, "versions": {"numpy": "3"}, "metrics": "quick"}
    make_run(tmp_path / "a", "ragan")
    make_run(tmp_path / "b", "sgan", protocol={**PROTOCOL, **same})
    assert len(compare(tmp_path).board("eval/fd_digits").columns) == 1
    make_run(tmp_path / "c", "rsgan", protocol={**PROTOCOL, "num_images": 500})
    assert len(compare(tmp_path).board("eval/fd_digits").columns) == 2
    assert len(compare(tmp_path).board("eval/modes").columns) == 1  # counted on images of its own


def test_a_strangers_score_is_ranked_where_it_is_known_and_separated_by_its_own_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loss, value, distance in (("ragan", 0.5, 1), ("sgan", 0.7, 1), ("hinge", 0.9, 2)):
        protocol = {**PROTOCOL, "sharpness_images": 50, "options": {"sharpness": {"distance": distance}}}
        path = make_run(tmp_path / loss, loss, protocol=protocol)
        with (path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "eval", "step": STEPS, "eval/sharpness": value, "eval/modes": 5.0}) + "\n")
    assert "eval/sharpness" not in compare(tmp_path).score_keys()
    SCORES.names()
    monkeypatch.setattr(SCORES, "_entries", dict(SCORES._entries))
    card = ScoreCard((Key("sharpness", "Sharpness", "max"),), family="sharpness")
    register_score("sharpness", None, "strange:Sharpness", facts=card)
    comparison = compare(tmp_path)
    board = comparison.board("eval/sharpness")
    assert [judge(board, column).ranking for column in board.columns] == [["sgan", "ragan"], ["hinge"]]
    assert len(comparison.board("eval/modes").columns) == 1
    assert "Sharpness" in render(comparison, "", Path("report.html"))


@pytest.mark.parametrize("protocol", [{**PROTOCOL, "weights_known": False}, {}])
def test_unknown_weights_are_shown_but_never_ranked(tmp_path: Path, protocol: dict[str, Any]) -> None:
    for loss in ("ragan", "sgan"):
        make_run(tmp_path / loss, loss, protocol=protocol)
    comparison = compare(tmp_path)
    board = comparison.board("eval/fd_digits")
    assert board.cells["ragan", board.columns[0]].mean is not None
    assert "is not ranked here" in judge(board, board.columns[0]).sentences[0]
    assert board.variants == comparison.variants
    assert any("not ranked" in line for line in Page(comparison, "", Path("report.html")).warnings())


def test_a_repeated_seed_counts_once(tmp_path: Path) -> None:
    make_run(tmp_path / "1", status="interrupted", ended=0.5)
    make_run(tmp_path / "2")
    make_run(tmp_path / "3", status="interrupted", ended=0.25)
    comparison = compare(tmp_path)
    assert [run.path.name for run in comparison.runs] == ["2"]
    assert len(comparison.superseded) == 2
    assert any(
        line.startswith("2 more runs repeat a variant") for line in Page(comparison, "", Path("report.html")).warnings()
    )


def test_a_job_that_left_only_a_summary_is_still_counted(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "ragan")
    make_run(tmp_path / "b", "sgan")
    broken = tmp_path / "c"
    broken.mkdir()
    summary = {
        "status": "failed",
        "error": "ValueError: no",
        "command": ["loss=sgan", "dataset=stacked_digits", "seed=2"],
    }
    (broken / "summary.json").write_text(json.dumps(summary))
    comparison = compare(tmp_path)
    assert comparison.variants == ["sgan", "ragan"]
    assert Page(comparison, "", Path("report.html")).ended("sgan") == [("finished", 1), ("failed", 1)]
    (broken / "summary.json").write_text('{"status": "failed"}')
    assert compare(broken).variants == ["unknown"]
    assert compare(tmp_path).datasets == ["stacked_digits"]


def test_damaged_files_do_not_stop_the_page(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"kind": "eval", "step": 9999, "eval/fd_digits": NaN}\n{"kind": "train", "st')
    (path / "config.yaml").write_text("{ not yaml")
    run = read_run(path)
    assert run.options["loss.name"] == "ragan"  # from the command
    assert run.evals[-1].values == {}
    assert len(run.train) == STEPS // 25


def test_curves_are_means_and_ranges_over_seeds(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / str(seed), seed=seed)) for seed in (1, 2, 3)]
    points = curve(runs, "eval/modes", "eval")
    assert [point.x for point in points] == list(range(0, STEPS + 1, 250))
    last = [scores("ragan", seed, 1.0)["eval/modes"] for seed in (1, 2, 3)]
    assert (points[-1].y, points[-1].low, points[-1].high) == (statistics.fmean(last), min(last), max(last))
    long = curve([read_run(make_run(tmp_path / "long", log_every=1))], "train/prob_real")
    assert len(long) == POINTS
    assert long[0].x == pytest.approx(statistics.fmean(range(1, 17)))


def test_the_table_has_a_line_for_each_run(tmp_path: Path) -> None:
    make_sweep(tmp_path / "s", ["ragan", "sgan"], ["digits"], 2)
    make_run(tmp_path / "s" / "evil", "=cmd()", "digits", seed=9)
    rows = list(csv.DictReader(io.StringIO(as_csv(compare(tmp_path)))))
    assert len(rows) == 5
    assert {row["status"] for row in rows} == {"finished", "diverged", "failed"}
    assert rows[0]["path"].startswith(f"{tmp_path.name}/s/") or rows[0]["path"].startswith("s/")
    for row in rows:
        assert row["variant"] in ("ragan", "sgan", "'=cmd()")  # never a formula
        if row["status"] == "finished":
            assert float(row["eval/modes"]) == float(row["max:eval/modes"])
            assert row["extractor"] == "digits"
