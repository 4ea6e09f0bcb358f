"""The saved view of the W&B dashboard, without a network."""

from __future__ import annotations

import json

import pytest

from relgan.metrics.catalogue import direction
from relgan.report.dashboard import shown_scores

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:pydantic"),
]


def test_the_view_has_scores_by_loss_and_dataset_curves_critic_and_samples() -> None:
    pytest.importorskip("wandb_workspaces", reason="the dashboard extra is not installed")
    from relgan.report.dashboard import build_workspace

    model = json.loads(build_workspace("someone", "gans")._to_model().model_dump_json())
    assert (model["entity"], model["project"]) == ("someone", "gans")
    spec = model["spec"]["section"]
    sections = {s["name"]: s["panels"] for s in spec["panel_bank_config"]["sections"]}
    bars = sections["Scores by dataset and loss"]
    assert [panel["config"]["metrics"] for panel in bars] == [[f"{key}.{direction(key)}"] for key in shown_scores()]
    assert {panel["config"]["group_area"] for panel in bars} == {"stddev"}
    curves = sections["Score curves"]
    assert {panel["config"]["x_axis"] for panel in curves} == {"step"}
    critic = [panel["config"]["metrics"] for panel in sections["Critic"]]
    assert ["train/prob_real", "train/prob_fake"] in critic
    assert ["train/logit_real", "train/logit_fake"] in critic
    assert sections["Samples"][0]["config"]["media_keys"] == ["samples/fixed_noise"]
    grouping = json.dumps(spec["run_sets"])
    assert grouping.index("dataset.value.name") < grouping.index("loss.value.name")


def test_every_score_shown_is_one_that_is_ranked() -> None:
    assert all(direction(key) is not None for key in shown_scores())
