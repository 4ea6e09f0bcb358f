"""W&B offline, read back from its own file; and W&B failing in every way it can."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import wandb

import tiny
from relgan.builtin import WandbOptions
from relgan.tracking import wandb as tracking
from relgan.tracking.base import Context
from relgan.tracking.console import ConsoleHandler
from relgan.training.loop import Outcome
from relgan.training.update import Update
from wandb_file import artifacts, history, records, summary, wandb_files

OFFLINE = ("tracker.name=wandb", "tracker.project=proj", "tracker.tags=[extra]", "name=group")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No account, no settings of whoever runs the tests, and nothing left in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_an_offline_run_holds_a_copy_of_the_local_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "run"
    with caplog.at_level(logging.INFO, "relgan"):
        tiny.run(directory, *OFFLINE, "train.log_every=2", "train.iterations=4")
    (path,) = wandb_files(directory)
    said = [message for message in caplog.messages if "wandb sync" in message]
    assert said == [f"W&B: offline; send it later with `wandb sync {path.parent.relative_to(Path.cwd())}`"]

    (run,) = [record.run for record in records(path) if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.run_group, run.job_type) == ("proj", "group", "train")
    assert set(run.tags) == {"ragan", "average", "digits", "extra"}
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert config["loss"] == {"name": "ragan", "centring": 0, "lecam": 0, "generator_terms": "both"}
    assert config["model"]["width"] == 2
    assert config["seed"] == 1
    ids = {"wandb": run.run_id}
    assert tiny.summary(directory)["tracker_runs"] == ids == tiny.last(directory)["tracker_runs"]
    assert run.display_name == "ragan · digits · seed 1"
    assert re.fullmatch(r"run-[0-9a-f]{8}", run.run_id)

    logged = {row["step"]: row for row in history(path)}
    for line in tiny.records(directory):
        for key, value in line.items():
            if key.startswith("train/"):
                assert logged[line["step"]][key] == pytest.approx(value), key
    assert sorted(logged) == [0, 1, 2, 3, 4]
    for step, row in logged.items():
        assert row["samples/fixed_noise/_type"] == "image-file"
        assert row["samples/fixed_noise/caption"] == f"ragan, {step} updates, fixed noise"
        stored = path.parent / "files" / row["samples/fixed_noise/path"]
        assert stored.read_bytes()[:4] == b"\x89PNG"
    real = [row["samples/real/caption"] for row in logged.values() if "samples/real/caption" in row]
    assert real == ["4 real images"]
    (exit_record,) = [record.exit for record in records(path) if record.WhichOneof("record_type") == "exit"]
    assert exit_record.exit_code == 0
    assert wandb.run is None


def test_what_users_of_wandb_expect_is_recorded_and_can_be_turned_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    repository(tmp_path)
    monkeypatch.setattr(logging.getLogger("relgan"), "handlers", [ConsoleHandler()])

    def recorded(name: str, *options: str) -> tuple[bool, ...]:
        with caplog.at_level(logging.INFO, "relgan"):
            tiny.run(tmp_path / name, *OFFLINE, *options)
        (path,) = wandb_files(tmp_path / name)
        found = records(path)
        kinds = {record.WhichOneof("record_type") for record in found}
        commits = [record.environment.git.commit for record in found if record.environment.git.commit]
        code = list((path.parent / "files").rglob("*.py"))
        return "stats" in kinds, bool(commits), "output_raw" in kinds, bool(code)

    off = [f"tracker.{option}=false" for option in ("system_metrics", "git", "console")]
    assert recorded("as it is") == (True, True, True, False)
    assert recorded("off", *off) == (False, False, False, False)


def repository(path: Path) -> None:
    """A git repository with one commit."""
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for words in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *words], cwd=path, check=True)


def test_charts_have_the_step_on_x_and_summaries_keep_the_best_of_each_score(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    tracker = start(WandbOptions(), directory)
    assert tracker is not None
    for step, fid in ((0, 90.0), (5, 30.0), (10, 40.0)):
        tracker.log("train", step, 1.0, {"train/loss_d": 0.5})
        tracker.log("eval", step, 1.0, {"eval/fid": fid, "eval/modes": fid, "eval/is_std": 1.0})
    tracker.close(0)
    (path,) = wandb_files(directory)
    defined = {
        r.metric.glob_name or r.metric.name: r.metric for r in records(path) if r.WhichOneof("record_type") == "metric"
    }
    assert defined["*"].step_metric == defined["eval/fid"].step_metric == defined["eval/modes"].step_metric == "step"
    kept = {
        key: (m.summary.min, m.summary.max, m.summary.last) for key, m in defined.items() if key.startswith("eval/")
    }
    assert kept == {"eval/fid": (True, False, True), "eval/modes": (False, True, True)}
    assert summary(path)["eval/fid"] == {"min": 30, "last": 40}
    assert summary(path)["eval/modes"] == {"max": 90, "last": 40}
    assert summary(path)["step"] == 10


def test_a_run_that_stopped_goes_on_where_its_curves_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files of one run, which W&B puts one after the other: every update once, whatever ended the first start."""
    directory = tmp_path / "run"
    often = ("train.log_every=1", "train.checkpoint_every=2")
    original, calls = Update.update_generator, [0]

    def crashing(self: Update, *arguments: Any, **given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:
            raise RuntimeError("boom")
        return original(self, *arguments, **given)

    # The checkpoint is of the fourth update; W&B and metrics.jsonl have the fifth as well.
    with monkeypatch.context() as patched:
        patched.setattr(Update, "update_generator", crashing)
        with pytest.raises(RuntimeError, match="boom"):
            tiny.run(directory, *OFFLINE, *often, "train.iterations=8")
    assert tiny.last(directory)["step"] == 4
    tiny.run(directory, *OFFLINE, *often, "train.iterations=8", "resume=auto")
    first, second = (history(path) for path in wandb_files(directory))
    steps = [[row["step"] for row in rows if "train/loss_d" in row] for rows in (first, second)]
    assert steps == [[1, 2, 3, 4, 5], [6, 7, 8]]
    assert min(row["step"] for row in second) >= max(row["step"] for row in first)
    local = {line["step"]: line["train/loss_d"] for line in tiny.records(directory)}
    sent = {row["step"]: row["train/loss_d"] for row in first + second if "train/loss_d" in row}
    assert sent == local
    ids = {
        r.run.run_id for path in wandb_files(directory) for r in records(path) if r.WhichOneof("record_type") == "run"
    }
    assert [tiny.summary(directory)["tracker_runs"]] == [{"wandb": each} for each in ids]


def test_the_best_checkpoint_is_sent_when_asked_from_where_it_lies(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    tiny.run(directory, *OFFLINE, "tracker.artifacts=true")
    (path,) = wandb_files(directory)
    (artifact,) = artifacts(path)
    assert artifact.type == "model"
    (entry,) = artifact.manifest.contents
    assert entry.path == "last.pt"
    assert Path(entry.local_path) == directory / "checkpoints" / "last.pt"
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and "wandb-" in str(p) and p.stat().st_size > 10_000]
    tiny.run(tmp_path / "plain", *OFFLINE)
    (path,) = wandb_files(tmp_path / "plain")
    assert not artifacts(path)


def test_a_continued_run_keeps_its_id(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    tiny.run(directory, *OFFLINE, "train.iterations=2")
    tiny.run(directory, *OFFLINE, "train.iterations=3", "resume=auto")
    files = wandb_files(directory)
    ids = {r.run.run_id for path in files for r in records(path) if r.WhichOneof("record_type") == "run"}
    assert [tiny.summary(directory)["tracker_runs"]] == [{"wandb": each} for each in ids]
    tiny.run(tmp_path / "new", *OFFLINE, "train.iterations=3", f"resume={directory}")
    assert tiny.summary(tmp_path / "new")["tracker_runs"]["wandb"] not in ids


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("nobody may be asked anything")


@pytest.mark.parametrize("method", ["init", "login", "log", "finish", "define_metric"])
def test_nothing_that_breaks_in_wandb_stops_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("boom\nsecond line")

    owner = wandb if method in ("init", "login") else wandb.Run
    monkeypatch.setattr(owner, method, broken)
    monkeypatch.setattr("builtins.input", never)
    with caplog.at_level(logging.WARNING, "relgan"):
        assert tiny.run(tmp_path / "run", *OFFLINE, "train.log_every=1") == Outcome("finished", 0)
    about = [message for message in caplog.messages if "boom" in message]
    assert 1 <= len(about) <= 2
    assert len({record.name for record in caplog.records if "boom" in record.getMessage()}) == 1
    assert all("\n" not in message for message in about)
    assert len(tiny.records(tmp_path / "run")) == 4
    monkeypatch.undo()
    wandb.finish()


def start(options: WandbOptions, directory: Path) -> tracking.WandbTracker | None:
    directory.mkdir(exist_ok=True)
    return tracking.start(options, Context(run_dir=directory, group="g", job_type="train"))


def test_without_an_account_nothing_asks_and_nothing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", never)
    monkeypatch.setattr("getpass.getpass", never)
    began = time.perf_counter()
    tracker = start(WandbOptions(), tmp_path / "run")
    assert time.perf_counter() - began < 15
    assert tracker is not None
    assert wandb.run is not None
    assert wandb.run.offline
    tracker.close(0)


@pytest.mark.parametrize("key", ["short", pytest.param("x" * 40, marks=pytest.mark.slow)], ids=["short", "unconfirmed"])
def test_a_key_that_does_not_help_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    """A malformed key, or one that nobody answers to."""
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()  # it reads its environment once
    monkeypatch.setattr("builtins.input", never)
    began = time.perf_counter()
    with caplog.at_level(logging.INFO, "relgan"):
        tracker = start(WandbOptions(), tmp_path / "run")
    assert time.perf_counter() - began < 40
    assert tracker is not None
    tracker.close(0)
    ours = [record.getMessage() for record in caplog.records if record.name == "relgan"]
    assert any("recording offline" in message for message in ours)
    assert all("\n" not in message for message in ours)


def test_the_users_wandb_mode_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb.teardown()  # it reads its environment once
    assert tiny.run(tmp_path / "run", *OFFLINE) == Outcome("finished", 0)
    assert not (tmp_path / "run" / "wandb").exists()


def begun(tmp_path: Path, options: WandbOptions, context: Context) -> Any:
    """What W&B recorded of a run when it began; its file lies below ``tmp_path``."""
    wandb.teardown()  # it reads its environment once
    tracker = tracking.start(options, context)
    assert tracker is not None
    tracker.close(0)
    (path,) = [path for path in tmp_path.rglob("*.wandb") if tracker.run_id in path.name]
    (run,) = [record.run for record in records(path) if record.WhichOneof("record_type") == "run"]
    return run


def test_what_no_option_says_the_environment_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"PROJECT": "thesis", "ENTITY": "lab", "NAME": "night", "RUN_GROUP": "all", "JOB_TYPE": "try"}
    said |= {
        "TAGS": "x,y",
        "NOTES": "slowly",
        "RUN_ID": "chosen",
        "MODE": "offline",
        "DIR": str(tmp_path / "elsewhere"),
    }
    for name, value in said.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    context = Context(tmp_path / "run", "digits-ragan", "train", ["ragan"], {"name": None})
    run = begun(tmp_path / "elsewhere", WandbOptions(), context)
    assert (run.project, run.entity, run.display_name, run.run_group) == ("thesis", "lab", "night", "all")
    assert (run.job_type, list(run.tags), run.notes, run.run_id) == ("try", ["ragan", "x", "y"], "slowly", "chosen")
    assert not (tmp_path / "run").exists()

    # Options come first.
    monkeypatch.delenv("WANDB_DIR")
    context = Context(tmp_path / "run", "named", "train", ["ragan"], {"name": "named"})
    run = begun(tmp_path / "run", WandbOptions(project="p", entity="e", tags=["z"]), context)
    assert (run.project, run.entity, run.run_group, list(run.tags)) == ("p", "e", "named", ["ragan", "z"])


def test_the_jobs_of_a_sweep_are_runs_of_their_own_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent of W&B sets the first two for what it starts, and lets them overrule what a program says."""
    said = {"RUN_ID": "shared", "NAME": "one", "SWEEP_ID": "s", "RESUME": "auto", "MODE": "offline"}
    for name, value in said.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    contexts = [Context(tmp_path / job, "group", "sweep", alone=False) for job in ("a", "b")]
    first, second = (begun(tmp_path, WandbOptions(), context) for context in contexts)
    assert len({first.run_id, second.run_id, "shared"}) == 3
    assert "one" not in {first.display_name, second.display_name}
