"""Ten updates are five, a stop and five more, bitwise; and looking at a run does not change it."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from relgan.build import build_run
from relgan.options import RelganError
from relgan.rundir import previous
from relgan.training.loop import train

# 64 images in batches of 4, drawn twice per update by ragan: an epoch ends between two updates of ten.
SETTINGS = {
    "ragan": ["loss.name=ragan", "model.spectral_norm=true"],
    "sgan with gp, five critic updates in two, decay": [
        "loss.name=sgan",
        "penalty.name=gp",
        "optimizer.n_critic=3",
        "optimizer.decay=0.1",
        "dataset.num_images=50",
    ],
    "wgan_gp, five critic updates, ending inside an epoch": [
        "loss.name=wgan_gp",
        "penalty.name=gp",
        "optimizer.n_critic=5",
        "dataset.num_images=57",
    ],
    "paired with r1 and r2, slow average": [
        "loss.name=rpgan_r1r2",
        "penalty.name=r1r2",
        "train.ema_decay=0.9999",
        "dataset.sampling=independent",
    ],
    "all pairs, dragan, decay, nothing redrawn": [
        "loss.name=rlsgan_allpairs",
        "penalty.name=dragan",
        "optimizer.decay=0.2",
        "train.redraw_real=false",
        "train.redraw_fake=false",
        "dataset.num_images=37",
    ],
    "centered, clipped, cnn32 with spectral norm in the generator": [
        "loss.name=rclsgan",
        "penalty.name=clip",
        "model.name=cnn32",
        "model.generator_spectral_norm=true",
    ],
    "rmsprop, packed, independent, mirrored, raw": [
        "loss.name=rsgan",
        "optimizer.name=rmsprop",
        "model.pack=2",
        "dataset.sampling=independent",
        "dataset.hflip=true",
        "train.ema_decay=0",
    ],
    "labels, steered augmentation, lazy penalty, terms of the logits": [
        "loss.name=rsgan",
        "loss.lecam=0.3",
        "loss.centring=0.01",
        "penalty.name=r1",
        "penalty.interval=2",
        "dataset.labels=true",
        "augment.name=diffaugment",
        "augment.p=0.3",
        "augment.target=0.5",
        "augment.ramp=100",
        "train.accumulate=2",
    ],
    "r3gan with labels, approximate penalties, everything scheduled": [
        "model.name=r3gan",
        "loss.name=rsgan",
        "penalty.name=ar1r2",
        "dataset.labels=true",
        "schedule.burn_in=24",
        "schedule.lr_g=1e-5",
        "schedule.beta2=0.9",
        "schedule.gamma=0.5",
        "schedule.ema_half_life=40",
    ],
}
# What says when and where, not what was learnt.
NOT_TRAINED = ("config", "protocol", "seconds", "tracker_runs", "history")


def trained(directory: Path, name: str = "last") -> dict[str, Any]:
    return {key: value for key, value in tiny.last(directory, name).items() if key not in NOT_TRAINED}


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS.keys())
def test_ten_updates_are_five_a_stop_and_five_more(tmp_path: Path, options: list[str]) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    tiny.run(whole, *options, "train.iterations=10", "train.log_every=1")
    tiny.run(half, *options, "train.iterations=5", "train.log_every=1")
    torch.manual_seed(99)
    tiny.run(half, *options, "train.iterations=10", "train.log_every=1", "resume=auto")
    expected = trained(whole)
    assert expected["step"] == 10
    assert len(expected["optimizers"][0]) > 0
    assert tiny.differing(trained(half), expected) == []
    assert tiny.differing(trained(half), trained(half, "last.previous")) != []

    def losses(directory: Path) -> list[dict[str, Any]]:
        timed = ("time_s", "train/images_per_second")
        return [{k: v for k, v in line.items() if k not in timed} for line in tiny.records(directory)]

    assert losses(half) == losses(whole)
    assert [line["step"] for line in losses(half)] == list(range(1, 11))
    final = "samples/step_00000010.png"
    assert (half / final).read_bytes() == (whole / final).read_bytes()
    assert (half / "samples/real.png").read_bytes() == (whole / "samples/real.png").read_bytes()


def test_a_new_run_can_start_from_an_old_one(tmp_path: Path) -> None:
    whole, first, second = tmp_path / "whole", tmp_path / "first", tmp_path / "second"
    tiny.run(whole, "train.iterations=6")
    tiny.run(first, "train.iterations=3")
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    tiny.run(second, "train.iterations=6", f"resume={first}")
    assert tiny.differing(trained(second), trained(whole)) == []
    assert tiny.summary(second)["resumed_from"] == str(first / "checkpoints" / "last.pt")
    assert {line["step"] for line in tiny.records(second)} == {6}
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before


def test_resuming_from_half_a_checkpoint_goes_on_from_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.run(tmp_path / "whole", "train.iterations=6", "train.log_every=1")
    directory = tmp_path / "run"
    tiny.run(directory, "train.iterations=4", "train.checkpoint_every=2", "train.log_every=1")
    last = directory / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    with caplog.at_level(logging.WARNING, "relgan"):
        tiny.run(directory, "train.iterations=6", "train.log_every=1", "resume=auto")
    assert any("last.previous.pt" in record.getMessage() for record in caplog.records)
    assert tiny.differing(trained(directory), trained(tmp_path / "whole")) == []
    assert [line["step"] for line in tiny.records(directory)] == [1, 2, 3, 4, 5, 6]


def test_half_a_checkpoint_and_no_other_is_one_line_and_nothing_is_touched(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    tiny.run(directory)
    last = directory / "checkpoints" / "last.pt"
    previous(last).unlink(missing_ok=True)
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(RelganError, match="damaged") as caught:
        tiny.run(directory, "train.iterations=6", "resume=auto")
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ("loss.name=rsgan", "loss.name was ragan"),
        ("model.width=3", "model.width was 2"),
        ("optimizer.lr_g=0.1", "optimizer.lr_g was 0.0002"),
        ("train.batch_size=8", "train.batch_size was 4"),
        ("seed=2", "seed was 1"),
        ("dataset.hflip=true", "dataset.hflip was False"),
    ],
)
def test_what_a_continued_run_may_not_change_is_named(finished: Path, change: str, option: str) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(RelganError) as caught:
        tiny.run(finished, change, "train.iterations=6", "resume=auto")
    assert option in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_another_model_under_the_same_options_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    tiny.run(directory)
    path = directory / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    name = next(iter(content["generator"]))
    content["generator"]["other"] = content["generator"].pop(name)
    torch.save(content, path)
    with pytest.raises(RelganError, match="another model") as caught:
        tiny.run(directory, "train.iterations=6", "resume=auto")
    assert "\n" not in str(caught.value)


def test_other_images_under_the_same_options_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr("relgan.data.store.PackedStore.fingerprint", "0123")
        with pytest.raises(RelganError, match=r"^dataset\.path: the checkpoint was trained on other images") as caught:
            tiny.run(finished, "train.iterations=6", "resume=auto")
    assert "0123" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    tiny.run(finished, "train.iterations=6", "resume=auto")


def test_a_checkpoint_beyond_the_end_is_refused(finished: Path) -> None:
    with pytest.raises(RelganError, match=r"train\.iterations: the checkpoint is at 4 updates already"):
        tiny.run(finished, "train.iterations=3", "resume=auto")


def test_a_run_is_never_overwritten(finished: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(RelganError, match="already holds a run"):
        tiny.run(finished)
    other = tmp_path / "other"
    tiny.run(other, "train.iterations=2")
    with pytest.raises(RelganError, match="already holds a run"):
        tiny.run(finished, f"resume={other}")
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_path_to_the_own_directory_continues_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "run"
    tiny.run(directory, "train.iterations=2", "train.log_every=1")
    tiny.run(directory, "train.iterations=3", "train.log_every=1", "resume=run")
    assert [line["step"] for line in tiny.records(directory)] == [1, 2, 3]


def test_a_start_that_never_reached_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    tiny.run(directory)
    for path in (directory / "checkpoints").iterdir():
        path.unlink()
    tiny.run(directory, "resume=auto")
    assert [line["step"] for line in tiny.records(directory)] == [4]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    directory = tmp_path / "finished"
    tiny.run(directory)
    return directory


SCORED = (
    "metrics.scores=[fid]",
    "metrics.extractor=efficientnet_lite0",
    "metrics.input_size=32",
    "metrics.num_images=4",
    "metrics.reference_images=8",
    "metrics.batch_size=4",
)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_scores_and_pictures_leave_training_alone(tmp_path: Path, mode: str) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    options = ("dataset.name=stacked_digits", "train.iterations=4")
    tiny.run(tmp_path / "plain", *options)
    scored = ("metrics.every=1", "metrics.generator=raw", f"metrics.generator_mode={mode}", "train.sample_every=1")
    tiny.run(tmp_path / "scored", *options, *SCORED, *scored)
    assert tiny.differing(trained(tmp_path / "scored"), trained(tmp_path / "plain")) == []
    lines = [line for line in tiny.records(tmp_path / "scored") if line["kind"] == "eval"]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[0].keys() - {"protocol"} == {"kind", "step", "time_s", "eval/fd_efficientnet_lite0"}
    best = min(lines[1:], key=lambda line: line["eval/fd_efficientnet_lite0"])
    summary = tiny.summary(tmp_path / "scored")
    assert summary["best"]["eval/fd_efficientnet_lite0"] == {
        "value": best["eval/fd_efficientnet_lite0"],
        "step": best["step"],
    }
    assert tiny.last(tmp_path / "scored", "best")["step"] == best["step"]


def test_scores_are_not_doubled_when_a_run_continues(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    directory = tmp_path / "run"
    for iterations in (0, 0, 2, 2):
        tiny.run(directory, *SCORED, f"train.iterations={iterations}", "metrics.every=0", "resume=auto")
    lines = [line["step"] for line in tiny.records(directory) if line["kind"] == "eval"]
    assert lines == [0, 2]


def test_the_checkpoint_holds_what_the_contract_says(finished: Path) -> None:
    content = tiny.last(finished)
    assert {"generator", "ema", "critic", "optimizers", "side_terms", "strength", "rng", "batches"} < content.keys()
    assert {"step", "format", "config", "tracker_runs", "history"} < content.keys()
    assert content["history"].keys() == {"best", "final", "ranking", "visited"}
    assert content["config"]["model"]["width"] == 2
    assert content["rng"].keys() >= {"cpu"}


def test_networks_and_state_survive_without_a_file(tmp_path: Path) -> None:
    """state_dict gives everything that load_state_dict needs to repeat the same future."""
    first = build_run(tiny.config("train.iterations=2"), tmp_path / "a")
    train(first)
    state = first.state.state_dict()
    second = build_run(dataclasses.replace(tiny.config("train.iterations=2")), tmp_path / "b")
    second.state.load_state_dict(state)
    assert tiny.differing(second.state.state_dict(), state) == []
    second.trackers.close(0)
