"""Sweeps: names of jobs, failures, going on, stopping, launchers, search; and nothing of one job in the next."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import tiny
from relgan.cli import train, workers
from relgan.cli.command import Line
from relgan.cli.compose import conf_dir, open_line
from relgan.cli.sweep import SWEEP, SweepCallback, _print_table, job_name, search_direction, swept, told_by, worst
from relgan.options import ConfigError
from relgan.rundir import RunDir
from relgan.training.update import Update
from wandb_file import artifacts, history, records, wandb_files

COMMAND = [sys.executable, "-m", "relgan.cli.train"]
FEW = "64 images are few: enough to prove the pipeline, not to train a model"
SCORED = ("metrics=quick", "metrics.scores=[fid]", "metrics.num_images=16", "metrics.reference_images=32")


class Result(NamedTuple):
    code: int
    out: str
    err: str


Sweep = Callable[..., Result]


@pytest.fixture(autouse=True)
def _aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hydra_undone: None) -> None:
    """A working directory of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sweep:
    """relgan-train -m name=t of tiny runs, in this process."""

    def call(*arguments: str) -> Result:
        torch.set_num_threads(1)
        monkeypatch.setattr(sys, "argv", ["relgan-train", "-m", "name=t", *tiny.ARGUMENTS, *arguments])
        code: Any = 0
        try:
            train.main()
        except SystemExit as leaving:
            code = leaving.code
        return Result(code or 0, *capsys.readouterr())

    return call


def jobs(name: str = "t") -> dict[int, Path]:
    """Directories of a sweep over seeds by their seed, from what is written in them."""
    found = {}
    for path in Path("multirun", name).glob("*/summary.json"):
        (word,) = (word for word in json.loads(path.read_text())["command"] if word.startswith("seed="))
        found[int(word.removeprefix("seed="))] = path.parent
    return found


def statuses(name: str = "t") -> dict[int, str]:
    return {seed: tiny.summary(path)["status"] for seed, path in sorted(jobs(name).items())}


def threads(name: str) -> set[int]:
    """Of the jobs that finished."""
    summaries = [tiny.summary(path) for path in jobs(name).values()]
    return {summary["hardware"]["threads"] for summary in summaries if summary["status"] == "finished"}


def test_a_job_is_named_after_its_own_options_in_any_order() -> None:
    name = job_name(["seed=1", "loss=ragan", "train.iterations=5"])
    assert name == job_name(["train.iterations=5", "loss=ragan", "seed=1"])
    assert name.startswith("loss=ragan_seed=1_train.iterations=5-")


@pytest.mark.parametrize("other", ["name=elsewhere", "fail_fast=true", "tracker=none", "device=cpu"])
def test_where_and_how_a_sweep_runs_is_not_in_the_name(other: str) -> None:
    assert job_name(["loss=ragan", other]) == job_name(["loss=ragan"])


@pytest.mark.parametrize("value", ["a/b/../c", "[0.5,0.999]", "x" * 500, "é ü", ""])
def test_any_value_gives_a_safe_name_of_its_own(value: str) -> None:
    name = job_name([f"dataset.path={value}"])
    assert "/" not in name
    assert len(name.encode()) < 200
    assert name != job_name([f"dataset.path={value}1"])


def test_a_finished_job_of_another_default_is_kept_and_named(sweep: Sweep) -> None:
    sweep("seed=1")
    config = jobs()[1] / "config.yaml"
    config.write_text(config.read_text().replace("pack: 1", "pack: 2"))
    result = sweep("seed=1,2")
    assert f"{jobs()[1].name} has ended with model.pack=2, now 1: kept; name= makes a new sweep" in result.out
    assert result.out.count("has ended with") == 1
    assert statuses() == {1: "finished", 2: "finished"}


def test_a_failing_job_stops_no_other_and_the_same_line_again_skips_what_is_finished(sweep: Sweep) -> None:
    result = sweep("seed=-3,1")
    assert result.code == 1
    assert statuses() == {-3: "failed", 1: "finished"}
    assert "seed: must be ≥ 0, got -3" in tiny.summary(jobs()[-3])["error"]
    assert "seed: must be ≥ 0, got -3" in (jobs()[-3] / "train.log").read_text()
    assert Path("multirun/t/report.html").exists()
    # Each job has one line; what it logged is in its own directory.
    first, *shown = result.out.partition(" job ")[0].splitlines()
    assert first == "2 jobs over seed in multirun/t"
    assert shown[:3] == ["failed: seed: must be ≥ 0, got -3", "1/2  failed  seed=-3", FEW]
    assert re.fullmatch(r"2/2  finished  seed=1  \d+ s", shown[3])
    assert len(shown) == 4
    assert "finished after 4 updates" in (jobs()[1] / "train.log").read_text()
    table = [line.split() for line in result.out.splitlines() if line.startswith(" seed=")]
    assert [line[:3] for line in table] == [["seed=-3", "failed", "0"], ["seed=1", "finished", "4"]]
    assert max(map(len, (line for line in result.out.splitlines() if line.startswith(" ")))) <= 80
    for seed, line in zip((-3, 1), table, strict=True):
        assert jobs()[seed].match(f"*/{line[-1]}")

    before = (jobs()[1] / "metrics.jsonl").stat()
    result = sweep("seed=1,2")
    assert result.code == 0  # of this line no job has failed
    assert "1/2  already finished  seed=1\n" in result.out
    assert statuses() == {-3: "failed", 1: "finished", 2: "finished"}
    assert (jobs()[1] / "metrics.jsonl").stat() == before


def test_the_page_grows_while_a_sweep_runs(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen, page = Update.update_generator, list[bool](), Path("multirun/t/report.html")

    def watching(self: Update, *arguments: Any, **given: Any) -> Any:
        seen.append(page.exists() and ", 1 to come." in page.read_text())
        return original(self, *arguments, **given)

    monkeypatch.setattr(Update, "update_generator", watching)
    assert sweep("seed=1,2", "train.iterations=1").code == 0
    assert seen == [False, True]
    assert "to come" not in page.read_text()
    assert len(Path("multirun/t/report.csv").read_text().splitlines()) == 1 + 2


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_the_table_tells_every_job_whole(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    own = ["dataset.path=/data/photographs/of/many/years.zip", "optimizer.betas=[0.5,0.999]", "loss=rasgan_allpairs"]
    runs = [RunDir(tmp_path / f"job-{seed}2345678") for seed in (1, 2)]
    for seed, run in enumerate(runs):
        run.path.mkdir()
        scores = {"eval/fd_efficientnet_lite0": 1234.5678}
        words = ["name=t", *own, f"seed={seed}"] if seed else ["name=t"]
        run.write_summary({"status": "interrupted", "step": 120000, "seconds": 7500, "final": scores, "command": words})
    _print_table(runs, None)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= columns
    for word in ("interrupted", "120000", "fd_efficientnet_lite0 1235", "2 h 5 min", "*22345678"):
        assert word in shown
    _print_table(runs[1:], None)
    assert "name=t" not in capsys.readouterr().out  # of the only one, too, no more than what tells it from others
    # The first column is as wide as the rest leaves it, and holds everything in several lines.
    width = shown.splitlines()[0].index("status")
    column = "".join(line[:width].strip() for line in shown.splitlines())
    assert "".join([*own, "seed=1"]) in column.replace(" ", "")


@pytest.mark.parametrize(
    ("line", "jobs", "over"),
    [
        ("seed=1,2,3 loss=sgan,ragan train.iterations=5", 6, ["seed", "loss"]),
        ("seed=range(0,4) optimizer.betas=[0,0.9],[0.5,0.9]", 8, ["seed", "optimizer.betas"]),
        ("loss=ragan", 1, []),
        ("experiment=stacked seed=1,2", 12, ["loss", "seed"]),
    ],
)
def test_a_sweep_knows_its_jobs_and_what_tells_them_apart(
    line: str, jobs: int, over: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_line(Line([]))
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        fixed = [word for word in line.split() if word.startswith("experiment=")]
        config = compose("config", fixed, return_hydra_config=True)
    config.hydra.overrides.task = line.split()
    assert swept(config) == (jobs, over)
    monkeypatch.setenv(SWEEP, json.dumps({"jobs": jobs, "over": over}))
    first = [f"{name}=first" for name in over]
    assert told_by(["name=t", *first, "model.width=4"]) == " ".join(first)
    monkeypatch.delenv(SWEEP)
    assert told_by(["name=t", "hydra.x=1", "seed=1"]) == "seed=1"


@pytest.mark.parametrize(
    ("words", "threads"),
    [
        (("seed=1,2,3,4",), 2),
        (("seed=1,2,3,4", "hydra.sweeper.max_batch_size=2"), 4),
        (("seed=1,2", "hydra.sweeper.max_batch_size=4"), 4),
        (("hydra/sweeper=search", "seed=range(1,20)"), 8),
        (("hydra/sweeper=search", "seed=range(1,20)", "hydra.sweeper.n_jobs=4"), 2),
    ],
)
def test_jobs_share_the_machine_with_those_that_run_at_the_same_time(
    words: tuple[str, ...], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the launchers extra is not installed")
    pytest.importorskip("optuna", reason="the optuna extra is not installed")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"})
    open_line(Line([]))
    of_sweeper = [word for word in words if not word.startswith("seed=")]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", ["hydra/launcher=processes", *of_sweeper], return_hydra_config=True)
    config.hydra.overrides.task = [word for word in words if word not in of_sweeper]
    callback = SweepCallback()
    callback.on_multirun_start(config)
    callback.report()
    assert os.environ["OMP_NUM_THREADS"] == str(threads)


def stop_at(update: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process SIGINT in the generator update of this number, counted from now."""
    original, calls = Update.update_generator, [0]

    def stopping(self: Update, *arguments: Any, **given: Any) -> Any:
        calls[0] += 1
        if calls[0] == update:
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments, **given)

    monkeypatch.setattr(Update, "update_generator", stopping)


def test_ctrl_c_ends_the_sweep_and_the_same_line_again_goes_on(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        stop_at(6, patched)
        result = sweep("seed=1,2,3", "train.log_every=1")
    assert result.code == 130
    assert statuses() == {1: "finished", 2: "interrupted"}
    assert [line.split()[:2] for line in result.out.splitlines() if line.startswith(" seed=")] == [
        ["seed=1", "finished"],
        ["seed=2", "interrupted"],
    ]
    assert Path("multirun/t/report.html").exists()
    assert f"continue with: relgan-train name=t {' '.join(tiny.ARGUMENTS)} seed=1,2,3" in result.out
    assert [line["step"] for line in tiny.records(jobs()[2])] == [1, 2]
    result = sweep("seed=1,2,3", "train.log_every=1")
    assert result.code == 0
    assert statuses() == {1: "finished", 2: "finished", 3: "finished"}
    assert "continuing from" in (jobs()[2] / "train.log").read_text()
    for path in jobs().values():
        assert [line["step"] for line in tiny.records(path)] == [1, 2, 3, 4]
    # As if it had never stopped.
    assert sweep("name=whole", "seed=2", "train.log_every=1").code == 0
    whole = tiny.last(jobs("whole")[2])
    assert not tiny.differing(whole["generator"], tiny.last(jobs()[2])["generator"])
    assert not tiny.differing(whole["optimizers"], tiny.last(jobs()[2])["optimizers"])


@pytest.mark.slow
def test_a_sweep_without_a_name_goes_on_in_its_own_directory(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        stop_at(2, patched)
        result = sweep("name=null", "seed=1,2")
    assert result.code == 130
    (line,) = (line for line in result.out.splitlines() if line.startswith("continue with: "))
    monkeypatch.setattr(sys, "argv", shlex.split(line.removeprefix("continue with: ")))
    train.main()
    (directory,) = Path("multirun").iterdir()
    assert statuses(directory.name) == {1: "finished", 2: "finished"}


def test_fail_fast_stops_at_the_first_failure(sweep: Sweep) -> None:
    result = sweep("seed=1,-1,2", "fail_fast=true")
    assert result.code == 1
    assert statuses() == {-1: "failed", 1: "finished"}
    assert [line.split()[:2] for line in result.out.splitlines() if line.startswith(" seed=")] == [
        ["seed=-1", "failed"],
        ["seed=1", "finished"],
    ]


@pytest.mark.parametrize("wrong", ["loss=ragan,nope", "train.iteratons=3,4"])
def test_what_cannot_be_composed_stops_everything_before_it_starts(sweep: Sweep, wrong: str) -> None:
    result = sweep("seed=1,2", wrong)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "continue with" not in result.out
    assert not list(Path().rglob("summary.json"))


@pytest.mark.slow
def test_nothing_of_one_job_is_in_the_next(sweep: Sweep) -> None:
    def values(path: Path) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in line.items() if key not in ("time_s", "train/images_per_second")}
            for line in tiny.records(path)
        ]

    def networks() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.nn.Module) for thing in gc.get_objects())

    before = networks()
    assert sweep("name=alone", "loss=ralsgan", "seed=2", "train.log_every=1").code == 0
    # The first job has another loss, with a penalty.
    assert sweep("loss=wgan_gp,ralsgan", "seed=2", "train.log_every=1").code == 0
    assert networks() == before
    (alone,) = jobs("alone").values()
    (found,) = Path("multirun/t").glob("*loss=ralsgan*")
    assert len(values(found)) == 4
    assert values(found) == values(alone)


@pytest.mark.slow
def test_a_sweep_of_four_is_four_wandb_runs_even_when_one_raises(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    original, calls = Update.update_generator, [0]

    def failing(self: Update, *arguments: Any, **given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:  # the second update of the second job
            raise RuntimeError("boom")
        return original(self, *arguments, **given)

    monkeypatch.setattr(Update, "update_generator", failing)
    line = ("tracker=wandb", "tracker.mode=offline", "tracker.artifacts=true", "loss=ragan,sgan", "seed=1,2")
    result = sweep(*line, "train.iterations=2", "train.log_every=1")
    assert result.code == 1
    assert wandb.run is None
    found = {}
    for directory in Path("multirun/t").glob("*loss=*"):
        (path,) = wandb_files(directory)
        (run,) = (record.run for record in records(path) if record.WhichOneof("record_type") == "run")
        (ended,) = (record.exit for record in records(path) if record.WhichOneof("record_type") == "exit")
        config = {update.key: json.loads(update.value_json) for update in run.config.update}
        assert (run.run_group, run.job_type) == ("t", "sweep")
        assert config["loss"]["name"] in run.tags
        steps = [row["step"] for row in history(path) if "train/loss_d" in row]
        found[config["loss"]["name"], config["seed"]] = (run.run_id, ended.exit_code, steps)
    assert len({run_id for run_id, _, _ in found.values()}) == 4
    good, bad = (0, [1, 2]), (1, [1])
    assert {job: rest for job, (_, *rest) in found.items()} == {
        job: list(bad if job == ("ragan", 2) else good) for job in found
    }
    # The page is a run of its own in the group.
    (page,) = wandb_files(Path("multirun/t"))
    (run,) = (record.run for record in records(page) if record.WhichOneof("record_type") == "run")
    assert (run.run_group, run.job_type) == ("t", "report")
    (sent,) = artifacts(page)
    assert {entry.path for entry in sent.manifest.contents} == {"report.html", "report.csv"}


PARALLEL = ("hydra/launcher=parallel", "hydra.launcher.n_jobs=2")


def in_subprocess(*arguments: str, **variables: str) -> Result:
    """Without a number of threads: the launchers see to it."""
    environment = {**os.environ, "COLUMNS": "80", **variables}
    environment.pop("OMP_NUM_THREADS", None)
    command = [*COMMAND, "-m", *tiny.ARGUMENTS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(("gpus", "cores", "want"), [(4, 16, 4), (0, 2, 2), (0, 64, 8)])
def test_as_many_jobs_run_at_once_as_do_best(gpus: int, cores: int, want: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    assert workers.at_once() == want


@pytest.mark.slow
def test_joblib_runs_jobs_side_by_side_each_worker_with_a_gpu_of_its_own() -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the launchers extra is not installed")
    result = in_subprocess("name=j", *PARALLEL, "seed=-1,1,2,3", CUDA_VISIBLE_DEVICES="5,7")
    assert result.code == 1, result.err
    assert "Warning" not in result.err
    assert statuses("j") == {-1: "failed", 1: "finished", 2: "finished", 3: "finished"}
    for seed in (-1, 1, 2, 3):
        assert f" seed={seed} " in result.out
    assert "comparison page: multirun/j/report.html" in result.out
    assert max(threads("j")) <= max(1, (os.cpu_count() or 1) // 2)
    logs = "".join(path.read_text() for path in Path("multirun/j").glob("*/train.log"))
    assert "worker 0 of the sweep has GPU 5" in logs
    # Another worker may come too late to get a job.
    assert logs.count("of the sweep has GPU") == len(list(Path("multirun/j").glob(".worker-*.lock"))) <= 2


@pytest.mark.slow
def test_submitit_runs_each_job_in_a_process_of_its_own() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the launchers extra is not installed")
    result = in_subprocess("name=s", "hydra/launcher=processes", "seed=-1,1,2", CUDA_VISIBLE_DEVICES="5,7")
    assert result.code == 1, result.err
    assert statuses("s") == {-1: "failed", 1: "finished", 2: "finished"}
    assert max(threads("s")) <= max(1, (os.cpu_count() or 1) // 3)
    logs = "".join(path.read_text() for path in Path("multirun/s").glob("*/train.log"))
    assert "worker 0 of the sweep has GPU 5" in logs
    assert logs.count("of the sweep has GPU") == 3
    for seed in (-1, 1, 2):
        assert f" seed={seed} " in result.out


def alive(group: int) -> list[str]:
    """Processes of a group that still run; those waiting to be forgotten by their parent do not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just gone
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(" ".join(fields))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/1/stat").exists(), reason="no /proc to look for processes in")
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_ctrl_c_reaches_every_worker(twice: bool) -> None:
    """Once: all save and stop. Twice: it is over within seconds. Either way no process stays."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the launchers extra is not installed")
    endless = ("train.iterations=1000000", "train.log_every=1")
    command = [*COMMAND, "-m", *tiny.ARGUMENTS, "name=k", *PARALLEL, "seed=1,2,3,4", *endless]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 150
        while len([p for p in Path("multirun/k").glob("*/metrics.jsonl") if p.stat().st_size]) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        began = time.monotonic()
        # As a terminal does: to the whole group.
        os.killpg(process.pid, signal.SIGINT)
        if twice:
            time.sleep(0.2)
            os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
        if twice:
            assert time.monotonic() - began < 10
        else:
            assert statuses("k") == {1: "interrupted", 2: "interrupted"}
        time.sleep(1)
        assert not alive(process.pid)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_worker_keeps_its_gpu_and_a_new_one_takes_the_free_slot(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\n"
        "from relgan.cli import workers\n"
        "workers.is_worker = lambda: True\n"
        "for _ in range(2): workers.enter(pathlib.Path(sys.argv[1]))\n"
        "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()\n"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "4, 6"}

    def worker() -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            **{"env": environment, "text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE},
        )
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    started = [worker() for _ in range(3)]
    assert [gpu for _, gpu in started] == ["4", "6", "4"]
    started[1][0].communicate()
    started.append(worker())
    assert started[-1][1] == "6"
    for process, _ in started:
        if process.poll() is None:
            process.communicate()
    assert not workers.is_worker()


@pytest.mark.parametrize(
    ("choice", "plugin", "target", "values"),
    [
        ("launcher=parallel", "joblib_launcher", "joblib_launcher.JoblibLauncher", {"n_jobs": 3}),
        ("launcher=processes", "submitit_launcher", "submitit_launcher.LocalLauncher", {"name": "relgan"}),
        (
            "launcher=slurm",
            "submitit_launcher",
            "submitit_launcher.SlurmLauncher",
            {"gpus_per_node": 1, "cpus_per_task": 4, "timeout_min": 1440, "max_num_timeout": 20, "partition": None},
        ),
        (
            "launcher=cluster",
            "ray_launcher",
            "ray_launcher.RayLauncher",
            {"ray": {"init": {"address": None}, "remote": {"num_cpus": 2, "num_gpus": 1}}},
        ),
        ("sweeper=search", "optuna_sweeper", "optuna_sweeper.OptunaSweeper", {"direction": "minimize", "n_jobs": 1}),
    ],
)
def test_a_launcher_composes_or_says_what_to_install(
    sweep: Sweep, choice: str, plugin: str, target: str, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"hydra_plugins.hydra_{plugin}"
    if importlib.util.find_spec(package) is None:
        result = sweep(f"hydra/{choice}", "seed=1")
        assert result.code == 2
        assert result.err.count("\n") == 1
        assert "pip install 'relgan[" in result.err
        return
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    open_line(Line([]))
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        node = compose("config", [f"hydra/{choice}", "metrics.objective=eval/fid"], return_hydra_config=True)
    composed = node.hydra[choice.partition("=")[0]]
    assert composed._target_ == f"{package}.{target}"
    assert {key: OmegaConf.to_container(OmegaConf.create({0: composed[key]}))[0] for key in values} == values


def test_a_plugin_that_is_not_installed_is_one_line() -> None:
    """Seen by a process that cannot import any plugin."""
    code = (
        "import sys; sys.modules['hydra_plugins'] = None; from relgan.cli import train\n"
        "sys.argv = ['relgan-train', '-m', 'hydra/launcher=slurm', 'seed=1,2']; train.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    expected = "relgan-train: hydra/launcher=submitit_slurm: its plugin is not installed; "
    assert done.stderr == f"{expected}pip install 'relgan[launchers]'\n"


def test_a_search_knows_its_direction() -> None:
    assert search_direction("eval/fid", ["modes"]) == "minimize"
    assert search_direction(None, ["modes", "fid"]) == "maximize"
    for objective, scores in ((None, []), ("eval/seconds", ["fid"]), (None, ["neighbours"])):
        with pytest.raises(ConfigError, match=r"metrics\.objective"):
            search_direction(objective, scores)
    for sweeper, value in (
        ({"direction": "maximize"}, -math.inf),
        ({"direction": "minimize"}, math.inf),
        ({}, math.inf),
    ):
        assert worst(OmegaConf.create({"sweeper": sweeper})) == value


def test_a_diverged_run_is_the_worst_result_of_a_search() -> None:
    config = tiny.config("metrics.objective=eval/modes")
    assert train.objective(config, {"status": "diverged", "final": {"eval/modes": 900.0}}, -math.inf) == -math.inf
    assert train.objective(config, {"status": "finished", "final": {"eval/fid": 1, "eval/modes": 9.0}}, -math.inf) == 9


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # optuna 2 with SQLAlchemy 2
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.slow
def test_a_search_finds_the_best_and_survives_a_failed_trial(sweep: Sweep) -> None:
    pytest.importorskip("optuna", reason="the optuna extra is not installed")
    line = (
        "hydra/sweeper=search",
        "hydra.sweeper.n_trials=4",
        "seed=choice(-1,1,2)",
        *SCORED,
        "metrics.generator=raw",
        # Until there is more to see than grey, which all seeds have in common.
        "train.iterations=40",
        "optimizer.lr_g=0.01",
    )
    result = sweep(*line)
    assert result.code == 1  # a trial failed
    assert "failed" in statuses().values()
    scores = {seed: tiny.summary(path)["final"].get("eval/fd_digits", math.inf) for seed, path in jobs().items()}
    assert len(set(scores.values())) == len(scores) >= 3
    found = yaml.safe_load(Path("multirun/t/optimization_results.yaml").read_text())
    best = min(scores, key=lambda seed: scores[seed])
    assert found["best_params"] == {"seed": best}
    assert found["best_value"] == pytest.approx(scores[best])


def test_a_search_for_nothing_is_refused_before_it_starts(sweep: Sweep) -> None:
    pytest.importorskip("optuna", reason="the optuna extra is not installed")
    for arguments, needed in (
        (("metrics=none",), "metrics.objective: a search needs a score"),
        ((*SCORED, "hydra.sweeper.direction=maximize"), "hydra.sweeper.direction: minimize it"),
    ):
        result = sweep("hydra/sweeper=search", "seed=1,2", *arguments)
        assert result.code == 2
        assert result.err.count("\n") == 1
        assert needed in result.err
    assert not list(Path().rglob("summary.json"))
