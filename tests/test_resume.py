"""Going on with a run: which one, whether it may be, and what of its records stays."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from relgan.cli.compose import run_directory
from relgan.config import as_values, overlay, with_defaults
from relgan.generator import load
from relgan.losses import AdversarialLoss, combined
from relgan.options import ConfigError, RelganError
from relgan.registry import LOSSES, Combination, register_loss
from relgan.resume import Origin, differences, find, last_logged, newest, truncate
from relgan.rundir import RunDir, previous
from relgan.training import checkpoint
from relgan.training.loop import Outcome
from relgan.training.state import History, TrainState


def values(*overrides: str) -> dict[str, Any]:
    return as_values(tiny.config(*overrides))


@pytest.mark.parametrize(
    "change",
    [
        ("train.iterations=9",),
        ("train.iterations=null", "train.epochs=9"),
        ("train.log_every=9",),
        ("train.sample_every=9",),
        ("train.checkpoint_every=9",),
        ("train.keep_checkpoints=9",),
        ("train.keep_best=9",),
        ("metrics.every=9",),
        ("tracker.name=wandb", "tracker.tags=[a]"),
        ("device=cuda",),
        ("resume=auto",),
        ("name=other",),
        ("plugins=[mine]",),
        ("fail_fast=true",),
        ("dataset.path=elsewhere",),
        ("dataset.url=[https://mirror]", "dataset.residence=host", "dataset.min_images=2"),
    ],
    ids=str,
)
def test_what_a_continued_run_may_change(change: tuple[str, ...]) -> None:
    assert list(differences(values(), values(*change))) == []


def test_anything_else_is_named() -> None:
    changed = values("seed=2", "model.width=3", "optimizer.betas=[0.0,0.9]", "train.batch_size=8")
    assert [(option, new) for option, _, new in differences(values(), changed)] == [
        ("model.width", 3),
        ("optimizer.betas", [0.0, 0.9]),
        ("seed", 2),
        ("train.batch_size", 8),
    ]


@pytest.mark.parametrize(
    ("section", "name", "change", "default"),
    [
        ("model", "pack", "model.pack=2", 1),
        ("optimizer", "n_critic", "optimizer.n_critic=2", 1),
        ("metrics", "splits", "metrics.splits=3", 10),
        (None, "engine", "engine=eager", "auto"),
    ],
    ids=str,
)
def test_an_option_younger_than_the_run_had_its_default(
    section: str | None, name: str, change: str, default: object
) -> None:
    older = values()
    del (older if section is None else older[section])[name]
    assert list(differences(older, values())) == []
    option, _, new = change.partition("=")
    ((changed, before, _),) = differences(older, values(change))
    assert (changed, before) == (option, default)
    assert new


def test_a_group_younger_than_the_run_had_its_default_choice() -> None:
    older = values()
    del older["augment"]
    assert list(differences(older, values())) == []


def test_of_a_part_that_is_not_registered_nothing_is_made_up() -> None:
    foreign = {**values(), "model": {"name": "theirs", "depth": 3}}
    of_model = {key: value for key, value in with_defaults(foreign).items() if key.startswith("model.")}
    assert of_model == {"model.name": "theirs", "model.depth": 3}


# --- resume=auto: which run ---


def make(base: Path, name: str, status: str, *overrides: str, step: int = 2, saved: bool = True) -> RunDir:
    """A run directory of the tiny configuration, with a checkpoint unless told otherwise."""
    run, config = RunDir(base / name), tiny.config(*overrides)
    run.path.mkdir(parents=True)
    run.write_config(as_values(config))
    run.write_summary({"status": status, "step": step})
    if saved:
        content: dict[str, Any] = dict.fromkeys(checkpoint.KEYS[1:])
        checkpoint.save({**content, "config": as_values(config), "foreign": {}, "step": step}, run.last)
    return run


def test_the_newest_unfinished_run_of_the_same_configuration(tmp_path: Path) -> None:
    config = tiny.config()
    assert newest(tmp_path / "nothing", config) is None
    make(tmp_path, "2026-01-01", "interrupted")
    expected = make(tmp_path, "2026-01-02", "failed", "train.iterations=7")
    make(tmp_path, "2026-01-03", "finished", step=4)
    make(tmp_path, "2026-01-04", "diverged")
    make(tmp_path, "2026-01-05", "interrupted", "seed=2")
    make(tmp_path, "2026-01-06", "interrupted", saved=False)
    (tmp_path / "2026-01-07").mkdir()
    make(tmp_path, "2026-01-08", "interrupted").config.write_text("a: [", encoding="utf-8")
    assert newest(tmp_path, config) == expected.path


def test_a_run_that_was_killed_while_running_is_unfinished(tmp_path: Path) -> None:
    assert newest(tmp_path, tiny.config()) is None
    run = make(tmp_path, "2026-01-01", "running")
    assert newest(tmp_path, tiny.config()) == run.path


def test_a_finished_run_is_extended_when_more_is_asked_for_and_a_diverged_one_never(tmp_path: Path) -> None:
    run = make(tmp_path, "2026-01-01", "finished", step=4)
    make(tmp_path, "2026-01-02", "diverged", step=3)
    for iterations, expected in ((3, None), (4, None), (5, run.path)):
        assert newest(tmp_path, tiny.config(f"train.iterations={iterations}")) == expected
    assert newest(tmp_path, tiny.config("train.iterations=null", "train.epochs=9")) is None
    run = make(tmp_path, "2026-01-03", "finished", "train.iterations=null", "train.epochs=2", step=32)
    for epochs, longer in ((2, None), (3, run.path)):
        assert newest(tmp_path, tiny.config("train.iterations=null", f"train.epochs={epochs}")) == longer


@pytest.mark.parametrize(
    ("status", "overrides", "reason"),
    [
        ("interrupted", ("seed=2", "train.batch_size=8"), "seed was 2, now 1"),
        ("diverged", (), "it diverged"),
        ("finished", (), "it has finished as long a training as is now asked for"),
    ],
)
def test_a_start_from_zero_says_which_run_it_leaves_and_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, status: str, overrides: tuple[str, ...], reason: str
) -> None:
    config = tiny.config("resume=auto")
    home = tmp_path / "outputs" / "digits-ragan"
    make(home, "2026-01-01", "diverged")
    left = make(home, "2026-01-02", status, *overrides, step=4)
    make(home, "2026-01-03", "running", saved=False)
    assert find(config, RunDir(home / "2026-01-04"), ()) is None
    (said,) = caplog.records
    assert said.levelname == "WARNING"
    assert said.getMessage() == f"resume=auto: starting anew, not going on with {left.path}: {reason}"


def test_of_several_ranks_one_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "outputs" / "digits-ragan"
    make(home, "2026-01-01", "diverged")
    monkeypatch.setattr("relgan.distributed.is_main", lambda: False)
    assert find(tiny.config("resume=auto"), RunDir(home / "2026-01-02"), ()) is None
    assert not caplog.records


def test_the_first_start_of_a_run_warns_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The other jobs of a sweep, and what lies beside a directory that was chosen, are not meant by auto."""
    make(tmp_path / "multirun" / "s", "seed=2", "diverged", "seed=2")
    with caplog.at_level("INFO", "relgan"):
        assert find(tiny.config("resume=auto"), RunDir(tmp_path / "multirun" / "s" / "seed=1"), ()) is None
    assert caplog.messages == ["resume=auto: nothing to continue, starting anew"]
    assert caplog.records[0].levelname == "INFO"


# --- which checkpoint ---


def test_what_resume_means(tmp_path: Path) -> None:
    run, empty = make(tmp_path, "run", "interrupted"), make(tmp_path, "empty", "interrupted", saved=False)

    def found(resume: str, directory: RunDir) -> tuple[Path, bool] | None:
        origin = find(tiny.config(f"resume={resume}"), directory, [f"resume={resume}"])
        return None if origin is None else (origin.path, origin.in_place)

    assert find(tiny.config(), empty, ()) is None
    assert found("auto", run) == (run.last, True)
    assert found("auto", empty) is None
    assert found(str(run.path), run) == (run.last, True)
    assert found(str(run.path), empty) == (run.last, False)
    assert found(str(run.last), empty) == (run.last, False)
    run.last.rename(previous(run.last))
    assert found("auto", run) == (run.last, True)  # its reader falls back to the one before
    for missing in (str(tmp_path / "nothing"), str(empty.path)):
        with pytest.raises(RelganError, match=r"^resume: ") as caught:
            found(missing, run)
        assert missing in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_path_brings_its_configuration_and_the_command_line_comes_on_top(tmp_path: Path) -> None:
    old = make(tmp_path, "old", "finished", "loss.name=rsgan", "penalty.name=r1", "penalty.weight=3", "seed=7")
    new = RunDir(tmp_path / "new")
    words = ("train.iterations=9", "train.log_every=1", f"resume={old.path}")
    origin = find(tiny.config(*words), new, words)
    assert origin is not None
    assert origin.config == tiny.config(*words, "loss.name=rsgan", "penalty.name=r1", "penalty.weight=3", "seed=7")
    for word, said in (
        ("seed=8", "seed was 7"),
        ("loss.name=ragan", "loss.name was rsgan"),
        ("penalty.name=none", "penalty.name was r1"),
    ):
        with pytest.raises(RelganError, match=rf"^resume: {said} in .*old.*; only a new run may change it$"):
            find(tiny.config(*words, word), new, (*words, word))


def test_what_the_command_line_names_may_be_a_group_or_an_option() -> None:
    saved, composed = (
        tiny.config(),
        tiny.config("metrics.num_images=9", "metrics.splits=2", "train.log_every=3", "seed=5"),
    )
    assert overlay(saved, composed, ["+metrics.num_images=9"]) == tiny.config("metrics.num_images=9")
    assert overlay(saved, composed, ["metrics=quick"]) == tiny.config("metrics.num_images=9", "metrics.splits=2")
    assert overlay(saved, composed, ["train.log_every=3", "hydra.run.dir=x"]) == tiny.config("train.log_every=3")
    # An experiment changes several groups.
    assert overlay(saved, composed, ["experiment=stacked", "seed=5"]) == composed
    assert saved == tiny.config()


def test_auto_takes_the_whole_command_line(tmp_path: Path) -> None:
    run = make(tmp_path, "run", "interrupted", "seed=7")
    with pytest.raises(RelganError, match=r"^resume: seed was 7 in .*, now 1; only a new run may change it$"):
        find(tiny.config("resume=auto"), run, ["resume=auto"])


def test_a_directory_that_holds_a_run_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    run, other = make(tmp_path, "run", "finished"), make(tmp_path, "other", "finished")
    run.metrics.write_text("", encoding="utf-8")
    for words in ((), (f"resume={other.path}",)):
        with pytest.raises(
            ConfigError, match=r"^hydra\.run\.dir: .* already holds a run; continue it with resume=auto"
        ):
            find(tiny.config(*words), run, words)


# --- what a checkpoint may not decide ---


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A run whose loss nobody knows any more."""

    def build(options: Any) -> AdversarialLoss:
        known = combined(LOSSES["rsgan"].options)
        return AdversarialLoss("mine", "paired", known.cost)

    register_loss("mine", builder=build, facts=Combination("sgan", "paired"), origin="my_gan")
    tiny.run(tmp_path / "run", "loss.name=mine", "train.iterations=2")
    assert tiny.last(tmp_path / "run")["foreign"] == {"loss=mine": "my_gan"}
    assert tiny.summary(tmp_path / "run")["foreign"] == {"loss=mine": "my_gan"}
    del LOSSES._entries["mine"]
    return tmp_path / "run"


def test_a_part_that_nobody_registered_is_refused_in_one_line_that_names_its_module(mine: Path, tmp_path: Path) -> None:
    refusal = (
        rf"^plugins: {mine}/checkpoints/last\.pt needs loss=mine from my_gan; relgan imports no code because a file "
        r"names it: allow it with plugins=\[my_gan\], or install the package that has it$"
    )
    before = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=refusal):
        tiny.run(tmp_path / "new", f"resume={mine}")
    with pytest.raises(ConfigError, match=refusal):
        load(mine)
    assert not (tmp_path / "new").exists()
    assert {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()} == before


# --- the images ---


def photos(path: Path, seed: int) -> Path:
    noise = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(8):
            with archive.open(f"{number}.png", "w") as file:
                Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "PNG")
    return path


def test_images_may_move_but_not_change(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    first, moved = photos(tmp_path / "first.zip", 1), tmp_path / "moved.zip"
    data = ("dataset.name=folder", "dataset.num_images=null")
    tiny.run(directory, *data, f"dataset.path={first}", "train.iterations=2")
    first.rename(moved)
    again = (*data, "resume=auto")
    assert tiny.run(directory, *again, f"dataset.path={moved}", "train.iterations=3") == Outcome("finished", 0)
    other = photos(tmp_path / "other.zip", 2)
    with pytest.raises(ConfigError, match=r"^dataset\.path: the checkpoint was trained on other images \("):
        tiny.run(directory, *again, f"dataset.path={other}", "train.iterations=4")


# --- the records ---


def line(step: int, kind: str = "train") -> str:
    return json.dumps({"kind": kind, "step": step}) + "\n"


def state(step: int, *, visited: bool = True) -> TrainState:
    made = TrainState.__new__(TrainState)
    made.step, made.history = step, History(visited=visited)
    return made


def origin(directory: RunDir, *, in_place: bool = True) -> Origin:
    return Origin(directory.last, {}, in_place, tiny.config())


def test_records_after_a_checkpoint_are_dropped(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    truncate(run, origin(run), state(3), 10)  # nothing there, nothing to do
    assert not run.metrics.exists()
    text = line(0, "eval") + line(2) + line(4) + line(4, "eval") + line(6)
    run.metrics.write_text(text + '{"kind": "train", "st', encoding="utf-8")
    truncate(run, origin(run), state(4), 10)
    assert run.metrics.read_text(encoding="utf-8") == line(0, "eval") + line(2) + line(4) + line(4, "eval")
    # A signal came before everything that was due had been done.
    truncate(run, origin(run), state(4, visited=False), 10)
    assert run.metrics.read_text(encoding="utf-8") == line(0, "eval") + line(2) + line(4)


@pytest.mark.parametrize(("step", "total"), [(0, 10), (4, 4)])
def test_the_first_and_the_last_scores_are_computed_anew(tmp_path: Path, step: int, total: int) -> None:
    run = RunDir(tmp_path)
    run.metrics.write_text(line(step) + line(step, "eval"), encoding="utf-8")
    truncate(run, origin(run), state(step), total)
    assert run.metrics.read_text(encoding="utf-8") == line(step)


@pytest.mark.parametrize("in_place", [None, False])
def test_a_start_that_never_reached_a_checkpoint_leaves_no_records(tmp_path: Path, in_place: bool | None) -> None:
    run = RunDir(tmp_path)
    run.metrics.write_text(line(0, "eval") + line(2), encoding="utf-8")
    truncate(run, None if in_place is None else origin(run, in_place=in_place), state(4), 10)
    assert run.metrics.read_text(encoding="utf-8") == ""


def test_the_last_step_of_each_kind(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert last_logged(run) == {}
    run.metrics.write_text(line(0, "eval") + line(2) + line(4, "eval") + line(6) + '{"kind', encoding="utf-8")
    assert last_logged(run) == {"train": 6, "eval": 4}


# --- its name ---


def test_a_new_run_has_the_name_of_the_one_it_starts_from(tmp_path: Path) -> None:
    started = tmp_path / "started"
    tiny.run(started, "name=faces", "train.iterations=1")
    elsewhere = tmp_path / "elsewhere.pt"
    elsewhere.write_bytes((started / "checkpoints" / "last.pt").read_bytes())
    places = {started: "faces", started / "checkpoints" / "last.pt": "faces", elsewhere: "faces"}
    for path, name in places.items():
        assert run_directory(tiny.config(f"resume={path}"), "now") == Path("outputs") / name / "now"
        assert run_directory(tiny.config(f"resume={path}", "name=own"), "now") == Path("outputs/own/now")


@pytest.mark.parametrize("content", ["train: [", "a: b", "- 1", ""])
def test_a_damaged_configuration_beside_a_good_checkpoint_stops_nothing(tmp_path: Path, content: str) -> None:
    started = tmp_path / "started"
    tiny.run(started, "train.iterations=1")
    (started / "config.yaml").write_text(content)
    config = tiny.config(f"resume={started}", "train.iterations=2")
    assert run_directory(config, "now") == Path("outputs/digits-ragan/now")
    assert tiny.run(tmp_path / "new", f"resume={started}", "train.iterations=2") == Outcome("finished", 0)
