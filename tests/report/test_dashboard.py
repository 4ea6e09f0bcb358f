"""The saved view of the W&B dashboard, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from relgan.metrics.catalogue import direction
from relgan.report.dashboard import shown_scores

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:pydantic"),
]


@pytest.fixture
def spec() -> dict[str, Any]:
    """The view as W&B stores it."""
    pytest.importorskip("wandb_workspaces", reason="the dashboard extra is not installed")
    from relgan.report.dashboard import build_workspace

    model = json.loads(build_workspace("someone", "gans")._to_model().model_dump_json())
    assert (model["entity"], model["project"]) == ("someone", "gans")
    found: dict[str, Any] = model["spec"]["section"]
    return found


def panels(spec: dict[str, Any], *, of: str | None = None) -> list[dict[str, Any]]:
    """What the panels of a section, or of all, are told."""
    sections = spec["panel_bank_config"]["sections"]
    return [panel["config"] for each in sections if of in (None, each["name"]) for panel in each["panels"]]


def test_scores_are_compared_by_dataset_and_loss_with_bands(spec: dict[str, Any]) -> None:
    bars = panels(spec, of="Scores by dataset and loss")
    assert [panel["metrics"] for panel in bars] == [[f"{key}.{direction(key)}"] for key in shown_scores()]
    assert {(panel["group_agg"], panel["group_area"]) for panel in bars} == {("mean", "stddev")}
    curves = panels(spec, of="Score curves")
    assert [panel["metrics"] for panel in curves] == [[key] for key in shown_scores()]
    assert {(panel["x_axis"], panel["group_agg"], panel["group_area"]) for panel in curves} == {
        ("step", "mean", "minmax")
    }
    grouping = json.dumps(spec["run_sets"])
    assert grouping.index("choices.value.dataset") < grouping.index("choices.value.loss")


def test_every_chart_of_training_shows_a_value_that_training_logs(spec: dict[str, Any], tmp_path: Path) -> None:
    """And a probability from 0 to 1."""
    tiny.run(
        *(tmp_path, "penalty.name=r1r2", "augment.name=diffaugment", "schedule.burn_in=4", "train.log_every=1"),
        *("schedule.lr_g=1e-4", "schedule.lr_d=1e-4", "schedule.gamma=0.5", "schedule.augment_p=0.3"),
    )
    logged = {key for record in tiny.records(tmp_path) for key in record}
    curves = [panel for panel in panels(spec) if str(panel.get("metrics")).startswith("['train/")]
    charted = {panel["metrics"][0]: panel for panel in curves}
    assert len(charted) == len(curves)
    assert charted.keys() - logged == set()
    expected = "loss_d loss_g prob_real prob_fake pull_real pull_fake gamma augment_p"
    assert charted.keys() >= {f"train/{name}" for name in expected.split()}
    shares = {key for key, panel in charted.items() if (panel.get("y_axis_min"), panel.get("y_axis_max")) == (0, 1)}
    assert shares == {"train/prob_real", "train/prob_fake", "train/augment_p"}


def test_grids_are_shown_over_steps(spec: dict[str, Any]) -> None:
    pictures = panels(spec, of="Samples")
    assert [panel["media_keys"] for panel in pictures] == [["samples/fixed_noise"], ["samples/real"]]
    assert {panel["gallery_settings"]["axis"] for panel in pictures} == {"step"}


def test_every_score_shown_is_one_that_is_ranked() -> None:
    assert all(direction(key) is not None for key in shown_scores())
