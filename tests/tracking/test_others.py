"""TensorBoard and MLflow, read back by their own libraries; several trackers at once."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import processes
import tiny
from relgan.options import ConfigError
from relgan.training.update import Update
from wandb_file import history, wandb_files

OFTEN = ("train.log_every=1", "train.sample_every=2")


@pytest.fixture(autouse=True)
def _aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory of its own, where MLflow's database lies, and no account."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def losses(directory: Path) -> dict[int, float]:
    """What metrics.jsonl has."""
    return {line["step"]: line["train/loss_d"] for line in tiny.records(directory) if line["kind"] == "train"}


def pictured(directory: Path) -> list[int]:
    """The steps of the grids in the run directory."""
    return sorted(int(path.stem.removeprefix("step_")) for path in directory.glob("samples/step_*.png"))


def events(directory: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(directory / "tensorboard"), {"images": 0, "scalars": 0, "tensors": 0})
    read.Reload()
    return read


def test_tensorboard_has_every_step_once_also_of_a_run_that_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for iterations in (3, 5):
        tiny.run(tmp_path / "run", "tracker.name=tensorboard", *OFTEN, f"train.iterations={iterations}", "resume=auto")
    read = events(tmp_path / "run")
    sent = [(event.step, event.value) for event in read.Scalars("train/loss_d")]
    assert sent == [(step, pytest.approx(value)) for step, value in losses(tmp_path / "run").items()]
    assert [event.step for event in read.Images("samples/fixed_noise")] == pictured(tmp_path / "run")
    assert len(read.Images("samples/real")) == 1
    (text, *_) = read.Tensors("config/text_summary")
    assert json.loads(text.tensor_proto.string_val[0].decode().strip("`json\n"))["loss"]["name"] == "ragan"


def mlflow_runs(name: str) -> tuple[Any, list[Any]]:
    client = pytest.importorskip("mlflow.tracking").MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")
    return client, client.search_runs([client.get_experiment_by_name(name).experiment_id])


@pytest.mark.slow
def test_mlflow_has_every_step_once_also_of_a_run_that_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    options = ("tracker.name=mlflow", "name=group", *OFTEN, "tracker.artifacts=true")
    for iterations in (3, 5):
        tiny.run(tmp_path / "run", *options, f"train.iterations={iterations}", "resume=auto")
    client, (run,) = mlflow_runs("group")
    assert tiny.summary(tmp_path / "run")["tracker_runs"] == {"mlflow": run.info.run_id}
    assert (run.info.run_name, run.info.status) == ("ragan · digits · seed 1", "FINISHED")
    assert run.data.params["loss.name"] == "ragan"
    sent = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss_d")}
    assert sent == pytest.approx(losses(tmp_path / "run"))
    pictures = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "samples/fixed_noise")}
    assert pictures == {f"step_{step:08d}.png" for step in pictured(tmp_path / "run")}
    assert [file.path for file in client.list_artifacts(run.info.run_id, "model")] == ["model/last.pt"]


@pytest.mark.slow
def test_several_at_once_each_go_on_with_their_own_run(tmp_path: Path) -> None:
    for package in ("tensorboard", "mlflow"):
        pytest.importorskip(package)
    options = ("tracker.name=wandb", "tracker.also=[tensorboard,mlflow]", "name=group", *OFTEN)
    for iterations in (2, 3):
        tiny.run(tmp_path / "run", *options, f"train.iterations={iterations}", "resume=auto")
    ids = tiny.summary(tmp_path / "run")["tracker_runs"]
    assert set(ids) == {"wandb", "mlflow"}
    expected = sorted(losses(tmp_path / "run"))
    rows = [row for path in wandb_files(tmp_path / "run") for row in history(path)]
    assert sorted(row["step"] for row in rows if "train/loss_d" in row) == expected
    assert [event.step for event in events(tmp_path / "run").Scalars("train/loss_d")] == expected
    client, (run,) = mlflow_runs("group")
    assert run.info.run_id == ids["mlflow"]
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss_d")] == expected


def test_a_start_without_a_tracker_loses_nothing_of_it(tmp_path: Path) -> None:
    names = {2: "wandb", 3: "none", 4: "wandb"}
    for iterations, name in names.items():
        options = (f"tracker.name={name}", f"train.iterations={iterations}", "resume=auto", *OFTEN)
        tiny.run(tmp_path / "run", *options)
    ids = {path.stem for path in wandb_files(tmp_path / "run")}
    assert ids == {f"run-{tiny.summary(tmp_path / 'run')['tracker_runs']['wandb']}"}


def test_after_a_second_kill_nothing_is_sent_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first start gets to update 7, its checkpoint to 4; the second to 5."""
    original = Update.update_generator

    def dying(at: int) -> Any:
        calls = [0]

        def update(self: Update, *arguments: Any, **given: Any) -> Any:
            calls[0] += 1
            if calls[0] > at:
                raise RuntimeError("killed")
            return original(self, *arguments, **given)

        return update

    options = ("tracker.name=tensorboard", *OFTEN, "train.checkpoint_every=4", "train.iterations=8", "resume=auto")
    pytest.importorskip("tensorboard")
    for updates in (7, 1):
        monkeypatch.setattr(Update, "update_generator", dying(updates))
        with pytest.raises(RuntimeError, match="killed"):
            tiny.run(tmp_path / "run", *options)
    monkeypatch.setattr(Update, "update_generator", original)
    tiny.run(tmp_path / "run", *options)
    assert [event.step for event in events(tmp_path / "run").Scalars("train/loss_d")] == list(range(1, 9))


def test_a_server_that_does_not_answer_holds_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.perf_counter()
    tiny.run(tmp_path / "run", "tracker.name=mlflow")
    assert time.perf_counter() - began < 40
    assert any(
        "tracker=mlflow: " in message and "recorded only in its directory" in message for message in caplog.messages
    )


@pytest.mark.slow
def test_jobs_that_start_together_make_one_database(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    words = [*tiny.ARGUMENTS, "tracker=mlflow", "name=group"]
    with contextlib.ExitStack() as together:
        jobs = [
            together.enter_context(
                processes.started(processes.command("train"), *words, f"seed={seed}", f"hydra.run.dir=run{seed}")
            )
            for seed in range(3)
        ]
        assert [job.wait() for job in jobs] == [0, 0, 0]
    _, runs = mlflow_runs("group")
    assert len(runs) == 3


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_library_that_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in [each for each in sys.modules if each.startswith((f"{name}.", f"torch.utils.{name}"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"^tracker: {name} is not installed; pip install 'relgan\[{name}\]'$"):
        tiny.run(tmp_path / "run", f"tracker.name={name}")


def test_an_unknown_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tracker\.also: 'tensorbord' is not one of .* did you mean tensorboard\?"):
        tiny.config("tracker.also=[tensorbord]")
