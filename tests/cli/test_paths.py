"""Paths as people have them, in every command; and the words of a command line in whatever order they stand."""

from __future__ import annotations

import shlex
import sys
import types
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from rich.table import Table

import tiny
from relgan.cache import cache_dir
from relgan.cli import data, evaluate, export, report, sample, train
from relgan.cli.command import Line, user_errors
from relgan.cli.compose import compose
from relgan.cli.words import as_typed, split_flags, sweeps
from relgan.config import Config, absolute_paths
from relgan.data import PackedStore
from relgan.options import ConfigError, RelganError, is_there, user_path, walk
from relgan.resume import find
from relgan.rundir import RunDir
from relgan.tracking.console import console

ODD = (
    *("~/photos", "a=b", "my photos (1)", "a,b", "it's", 'say "cheese"', "'", "#1", "50%", "a:b", "a;b&c|d!", "[raw]"),
    *("{a:1}", "fotos/größe", "写真", "trailing/", " leading", "trailing ", "two\nlines", "back\\", "100$", "*?"),
    *("2024_10_05", "1e3", "1.50", "007", "True", "choice(a)", "glob(*)", "${name", "C:\\a\\b", "\\\\server\\share"),
    *("C:\\(x)\\y,z", "multirun/s/dataset=digits_seed=1-0123abcd/"),
)
TEXTS = ("dataset.path", "resume", "metrics.weights", "metrics.lpips_weights", "name", "tracker.project")


def read(word: str) -> object:
    """The value that Hydra reads."""
    return OverridesParser.create().parse_override(word).value()


# --- one word ---


@pytest.mark.parametrize("text", ODD)
def test_text_reaches_hydra_as_it_was_typed(text: str) -> None:
    for word in as_typed([f"{name}={text}" for name in (*TEXTS, "+name")], sweep=False):
        assert read(word) == text
    for name in ("hydra.run.dir", "hydra.sweep.dir"):
        (word,) = as_typed([f"{name}={text}"], sweep=True)
        assert read(word) == str(user_path(text))


@pytest.mark.parametrize(
    "word", ["name=a", "name=null", "name='a b'", 'name="(1)"', "name=${seed}", "name=", "seed=007"]
)
def test_what_hydra_reads_rightly_is_left_alone(word: str) -> None:
    assert as_typed([word], sweep=False) == as_typed([word], sweep=True) == [word]


def test_the_options_that_name_files_are_known() -> None:
    assert {each.name for each in walk(Config()) if each.is_path} == set(TEXTS) - {"name", "tracker.project"}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("metrics.scores=fid", ["fid"]),
        ("metrics.scores=fid,kid", ["fid", "kid"]),
        ("metrics.scores=[]", []),
        ("optimizer.betas=0.5,0.9", [0.5, 0.9]),
        ("plugins=my_gan", ["my_gan"]),
        ("plugins=~/my gan (1)/p=1.py", ["~/my gan (1)/p=1.py"]),
        ("plugins=[it's.py, 'a,b.py',\"c\"]", ["it's.py", "a,b.py", "c"]),
        ("tracker.tags=[2024_10_05,x=1]", ["2024_10_05", "x=1"]),
    ],
)
def test_a_list_holds_what_was_typed_and_one_word_is_a_list_of_one(word: str, value: list[object]) -> None:
    (quoted,) = as_typed([word], sweep=False)
    assert read(quoted) == value


# --- a sweep ---


def swept(word: str) -> list[str]:
    """What Hydra would give each job."""
    (quoted,) = as_typed([word], sweep=True)
    override = OverridesParser.create().parse_override(quoted)
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(override.value())]


@pytest.mark.parametrize(
    ("word", "jobs"),
    [
        ("dataset.path=~/a (1),b=2,'c,d'", ['"~/a (1)"', '"b=2"', "'c,d'"]),
        ("dataset.path=choice(a,b)", ["a", "b"]),
        ("name=a,b", ["a", "b"]),
        ("metrics.scores=fid,kid", ["[fid]", "[kid]"]),
        ("metrics.scores=[fid,kid],[is]", ["[fid,kid]", "[is]"]),
        ("loss=sgan,ragan", ["sgan", "ragan"]),
        ("seed=range(1,3)", ["1", "2"]),
    ],
)
def test_under_m_a_comma_separates_values_each_as_typed(word: str, jobs: list[str]) -> None:
    assert swept(word) == jobs


def test_under_m_a_path_with_a_comma_is_refused_with_the_line_that_means_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a, b").mkdir()
    with pytest.raises(
        ConfigError, match=r"^dataset\.path: under -m a comma separates values, and a, b is one path"
    ) as e:
        as_typed(["dataset.path=a, b"], sweep=True)
    assert "\n" not in str(e.value)
    (word,) = shlex.split(str(e.value).rpartition("give ")[2])
    assert swept(word) == ["a, b"]


# --- the order of words ---


@pytest.mark.parametrize(
    "line",
    [
        "-m seed=1,2 loss=ragan",
        "seed=1,2 -m loss=ragan",
        "seed=1,2 loss=ragan --multirun",
        "--seed=1,2 -m --loss=ragan",
        "-m -- seed=1,2 loss=ragan",
    ],
)
def test_flags_stand_where_they_like(line: str) -> None:
    words, flags = split_flags(line.split())
    assert (words, flags) == (["seed=1,2", "loss=ragan"], ["--multirun"])
    assert sweeps(words, flags)


def test_flags_keep_their_values() -> None:
    assert split_flags(["seed=1", "-c", "job", "model=cnn32", "--resolve", "-i"]) == (
        ["seed=1", "model=cnn32"],
        ["--cfg", "job", "--resolve", "--info", "all"],
    )


def test_the_default_command_of_a_wandb_agent_is_understood() -> None:
    line = ["--optimizer.lr_g=1e-3", "--loss=ragan", "--optimizer.betas=[0, 0.99]", "--dataset.path=my photos"]
    assert split_flags(line) == ([word.removeprefix("--") for word in line], [])
    assert not sweeps(*split_flags(line))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--multirn seed=1", r"^--multirn: no such flag; did you mean --multirun\?$"),
        ("seed=1 -x", r"^-x: no such flag; options are KEY=VALUE$"),
        ("seed=1,2 --multi", r"^--multi: no such flag; did you mean --multirun\?$"),
        ("--loss ragan", r"^--loss: no such flag; options are KEY=VALUE$"),
        ("--cfg", r"^argument --cfg/-c: expected one argument$"),
        ("--cfg jb", r"^argument --cfg/-c: invalid choice: 'jb'"),
    ],
)
def test_an_unknown_flag_is_one_line(line: str, message: str) -> None:
    with pytest.raises(RelganError, match=message):
        split_flags(line.split())


# --- what cannot be read ---


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=(1", "seed=(1: cannot be read; in quotes it can: 'seed=\"(1\"'"),
        ("loss=sgan,ragan", "loss: several values need -m; a list is [sgan,ragan]"),
        ("dataset=~/photos", "dataset: ~/photos is a path; for a folder or archive of images give"),
        ("metrics=listless", "metrics.scores: must be a list, [A,B]"),
        ("name=a\nb", "name: 'a\\nb' holds a control character"),
        ("dataset.path=\udce9", "dataset.path=\udce9: is not UTF-8"),
        ("--config-dir=", "--config-dir: needs a directory"),
    ],
)
def test_a_word_that_cannot_be_read_is_one_line_that_says_what_can(tmp_path: Path, word: str, message: str) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "listless.yaml").write_text("scores: fid\n", "utf-8")
    with pytest.raises(RelganError) as caught, user_errors():
        compose(Line.of(["--config-dir", str(tmp_path), word]))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_name_too_long_for_any_system_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    with pytest.raises(RelganError, match=rf"^{path}: File name too long$"), user_errors():
        find(tiny.config(f"resume={path}"), RunDir(tmp_path / "run"), ())


def test_what_cannot_be_a_path_is_none(tmp_path: Path) -> None:
    assert is_there(str(tmp_path))
    assert not is_there("x" * 300)
    assert not is_there("a\0b")
    assert user_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


def test_relative_paths_start_where_the_command_was_given(tmp_path: Path) -> None:
    config = tiny.config("dataset.path=photos", "metrics.weights=/w.pth", "resume=auto")
    moved = absolute_paths(config, tmp_path)
    assert (moved.dataset.path, moved.metrics.weights, moved.resume) == (str(tmp_path / "photos"), "/w.pth", "auto")
    assert absolute_paths(tiny.config("resume=old run"), tmp_path).resume == str(tmp_path / "old run")
    assert config.dataset.path == "photos"


# --- the environment ---


def test_a_user_without_a_home_has_a_cache_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(*_: object, **__: object) -> str:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("RELGAN_CACHE")
    monkeypatch.setattr(platformdirs, "user_cache_dir", homeless)
    assert cache_dir().is_dir()
    monkeypatch.setenv("RELGAN_CACHE", "")
    assert cache_dir().is_dir()


@pytest.mark.parametrize("columns", ["0", "-5", "wide"])
def test_tables_are_shown_whatever_columns_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    table = Table("a" * 60)
    console().print(table)
    assert "a" * 60 in capsys.readouterr().out


# --- the commands ---


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hydra_undone: None) -> Path:
    """A home directory with pictures, plugins and configuration in a folder that only a person could name so."""
    monkeypatch.setenv("HOME", str(tmp_path))
    odd = tmp_path / "my data, 写真 (1)=#it's"
    photos = odd / "photos"
    photos.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(photos / f"{number}.png")
    (odd / "conf" / "scale").mkdir(parents=True)
    (odd / "conf" / "scale" / "least.yaml").write_text("# @package _global_\ntrain: {iterations: 2}\n", "utf-8")
    (odd / "a plug-in.py").write_text("", "utf-8")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def run(
    command: types.ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> str:
    """Run a command in this process; it must succeed. Returns what it printed."""
    torch.set_num_threads(1)
    monkeypatch.setattr(sys, "argv", [command.__name__, *words])
    capsys.readouterr()
    code: object = 0
    try:
        command.main()
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert not code, err
    return out


def test_every_command_takes_every_path(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = f"~/{next(path.name for path in home.iterdir() if path.name.startswith('my'))}"
    small = [word for word in tiny.ARGUMENTS if not word.startswith(("dataset=", "train.iterations="))]
    words = ["dataset=folder", f"dataset.path={odd}/photos/", "dataset.num_images=null", "dataset.min_images=1"]
    line = [*small, *words, "--config-dir", f"{odd}/conf", "scale=least", f"plugins={odd}/a plug-in.py"]
    run(train, monkeypatch, capsys, *line, f"hydra.run.dir={odd}/run=1")
    directory = user_path(odd) / "run=1"
    assert tiny.summary(directory)["step"] == 2

    # With chdir a job works in its own directory, and the cache and relative paths stay where they were.
    monkeypatch.setenv("RELGAN_CACHE", "cache")
    (home / "here" / "photos").symlink_to(user_path(odd) / "photos")
    again = ["hydra.job.chdir=true", "dataset.path=photos", "train.iterations=3", "hydra.run.dir=new run"]
    run(train, monkeypatch, capsys, *line[-1:], *again, f"resume={odd}/run=1/")
    new = home / "here" / "new run"
    assert tiny.summary(new)["resumed_from"] == str(directory / "checkpoints" / "last.pt")
    assert tiny.last(new)["config"]["dataset"]["path"] == str(home / "here" / "photos")
    assert (home / "here" / "cache" / "datasets").is_dir()

    allowed = f'plugins=["{odd}/a plug-in.py"]'
    run(sample, monkeypatch, capsys, f"{odd}/run=1/", "n=2", f"out={odd}/grid, 2.png", allowed)
    run(export, monkeypatch, capsys, f"run={odd}/run=1", f"out={odd}/g=1.safetensors", allowed)
    run(report, monkeypatch, capsys, f"{odd}/run=1", "new run/", f"out={odd}/page (1).html")
    scores = ["metrics=none", "device=cpu"]
    run(evaluate, monkeypatch, capsys, f"{odd}/run=1", *scores, f"out={odd}/scores.json", allowed)
    pictures = [f"images={odd}/photos", f"reference={odd}/photos/", f"--config-dir={odd}/conf"]
    run(evaluate, monkeypatch, capsys, *pictures, *scores, f"out={odd}/both.json")
    made = {path.name for path in user_path(odd).iterdir()}
    assert {"grid, 2.png", "g=1.safetensors", "page (1).html", "page (1).csv", "scores.json", "both.json"} < made
    shown = run(data, monkeypatch, capsys, "prepare", *words)
    assert len(PackedStore.open(Path(shown.splitlines()[-1].rpartition(": ")[0]))) == 8


def test_a_directory_that_a_sweep_made_can_be_named_everywhere(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also from inside the sweep's directory, where it looks like an option."""
    run(train, monkeypatch, capsys, *tiny.ARGUMENTS, "train.iterations=1", "name=s", "-m", "seed=1")
    (job,) = Path("multirun/s").glob("*/")  # its name begins with dataset=
    assert "=" in job.name
    run(train, monkeypatch, capsys, "tracker=none", f"resume={job}/", "hydra.run.dir=new")
    assert tiny.summary(Path("new"))["resumed_from"] == str(job.absolute() / "checkpoints" / "last.pt")
    monkeypatch.chdir(job.parent)
    job = Path(job.name).rename("seed=1-0123abcd")
    run(sample, monkeypatch, capsys, job.name, "n=1")
    run(evaluate, monkeypatch, capsys, f"{job.name}/", "metrics=none", "device=cpu")
