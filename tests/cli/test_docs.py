"""The README and the documents: commands work, links lead somewhere, lists are those of the program."""

from __future__ import annotations

import argparse
import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from torch import nn

import tiny
from relgan.cli import evaluate, report, sample, train
from relgan.cli.command import Line
from relgan.cli.compose import choices, compose, conf_dir
from relgan.cli.words import as_typed
from relgan.metrics.catalogue import card_of
from relgan.registry import DATASETS, LOSSES, MODELS, PENALTIES, SCORES

ROOT = Path(__file__).resolve().parents[2]
# The examples of these are run one after the other: tests/test_extend.py, tests/test_python.py.
RUN_ELSEWHERE = ("extend.md", "python.md")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ABOUT = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def lines() -> Iterator[str]:
    """Every line of the documents that can be typed: of blocks of bash, and between backticks."""
    for page in PAGES:
        if page.name in RUN_ELSEWHERE:
            continue
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            yield from block.replace("\\\n", " ").splitlines()
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        # With … it is an outline, and alone a name.
        yield from (span.partition(" | ")[0] for span in re.findall(r"`([^`…]+ [^`…]+)`", prose))


def commands(*programs: str) -> list[list[str]]:
    """The words of every line that calls one of the programs, without it."""
    found: dict[frozenset[str], list[str]] = {}  # options may stand in any order
    for line in lines():
        if not any(program in line for program in programs):
            continue
        words = shlex.split(line, comments=True)
        for called in programs:
            # Their parts are placeholders: tests/test_extend.py has real ones.
            if called in words and "plugins=[" not in line:
                after = words[words.index(called) + 1 :]
                found.setdefault(frozenset(after), after)
    assert found
    return list(found.values())


def shown(words: list[str]) -> str:
    return " ".join(words) or "alone"


# --- commands ---


def jobs(words: list[str]) -> Iterator[list[str]]:
    """What a line composes: its words, or with -m those of jobs that together hold every value of every option."""
    if "-m" not in words:
        yield words
        return
    own = [word for word in words if word != "-m"]
    overrides = OverridesParser.create().parse_overrides(as_typed(own, sweep=True))
    values = [
        [f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()]
        if each.is_choice_sweep()
        else [word]
        for each, word in zip(overrides, own, strict=True)
    ]
    for number in range(max(map(len, values))):
        yield [options[min(number, len(options) - 1)] for options in values]


@pytest.mark.parametrize("words", commands("relgan-train", "relgan.cli.train"), ids=shown)
def test_a_training_composes(words: list[str]) -> None:
    # A search draws its own values.
    left_out = ("--help", "--cfg", "job", "--info", "all")
    for job in jobs([word for word in words if word not in left_out and "tag(" not in word]):
        compose(Line.of(job))


@pytest.mark.parametrize("words", commands("relgan-data"), ids=shown)
def test_a_data_set_composes(words: list[str]) -> None:
    compose(Line.of([word for word in words[1:] if not word.startswith("out=")]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything that the documents name."""
    path = tmp_path_factory.mktemp("documents")
    size = ["dataset.num_images=64", "train.iterations=2", "model.width=2", "train.batch_size=4"]
    seen = ["train.sample_every=1", "metrics.scores=[fid]", "metrics.num_images=8", "metrics.reference_images=16"]
    for name in (
        "outputs/NAME/TIME",
        "outputs/NAME/OTHER_TIME",
        "multirun/first/job",
        "multirun/stacked/job",
        "labelled",
    ):
        labels = ["dataset.labels=true"] if name == "labelled" else []
        tiny.run(path / name, *size, *seen, *labels)
    for name in ("photos", "samples"):
        (path / name).mkdir()
        for number in range(12):
            Image.effect_noise((32, 32), 40 + number).save(path / name / f"{number}.png")
    shutil.make_archive(str(path / "samples"), "zip", path / "samples")
    return path


Call = Callable[[Callable[[], None], str, list[str]], None]


@pytest.fixture
def call(place: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    def called(main: Callable[[], None], program: str, words: list[str]) -> None:
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", [program, *words])
        main()

    return called


QUICK = ["metrics.num_images=8", "metrics.batch_size=4", "metrics.kid_subset_size=8"]


# Of another machine: data and weights that are downloaded.
FAR = ("metrics.extractor=inception", "metrics.extractor=dinov2_s", "metrics=paper_cifar10", "reference=cifar10")


@pytest.mark.parametrize("words", commands("relgan-eval"), ids=shown)
def test_a_scoring_runs(words: list[str], call: Call, hydra_undone: None) -> None:
    if set(FAR) & set(words):
        compose(Line.of([word for word in words if word.startswith("metrics")]))
        return
    own = ["metrics.extractor=efficientnet_lite0", "metrics.input_size=32"] if "images=samples.zip" in words else []
    call(evaluate.main, "relgan-eval", [*words, *QUICK, *own])


@pytest.mark.parametrize("words", commands("relgan-sample"), ids=shown)
def test_a_sampling_runs(words: list[str], call: Call) -> None:
    if "labels=[cats,dogs]" in words:
        words = ["labelled", "labels=[3,5]", *words[2:]]
    call(sample.main, "relgan-sample", words)


@pytest.mark.parametrize("words", commands("relgan-report"), ids=shown)
def test_a_comparison_is_written(words: list[str], call: Call) -> None:
    call(report.main, "relgan-report", words)


def test_the_mistake_is_answered_as_shown(call: Call, hydra_undone: None, capsys: pytest.CaptureFixture[str]) -> None:
    line, answer = re.findall(r"^\$ relgan-train (.*)\n(relgan-train: .*)$", read("README.md"), re.MULTILINE)[0]
    with pytest.raises(SystemExit) as ended:
        call(train.main, "relgan-train", line.split())
    assert (ended.value.code, capsys.readouterr().err) == (2, f"{answer}\n")


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    named = re.findall(r"\bmake ([a-z-]+)", "\n".join(line for line in lines() if line.startswith("make ")))
    assert named
    assert set(named) <= targets


BENCHMARKS = [words[1:] for words in commands("python") if words[0] == "-m"]


@pytest.mark.parametrize("words", BENCHMARKS, ids=shown)
def test_a_benchmark_takes_its_options(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(words[0])
    monkeypatch.setattr(sys, "argv", words)
    if not words[1:]:
        assert callable(module.main)
        return
    read_line = argparse.ArgumentParser.parse_args

    class Understood(Exception):
        pass

    def parsed(parser: argparse.ArgumentParser) -> NoReturn:
        read_line(parser)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    with pytest.raises(Understood):
        module.main()


PYTHON = [
    (page.name, block)
    for page in PAGES
    if page.name not in RUN_ELSEWHERE
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[page for page, _ in PYTHON])
def test_a_block_of_python_runs(page: str, block: str) -> None:
    names: dict[str, Any] = {
        "critic": nn.Linear(3, 1),
        "real": torch.randn(4, 3),
        "fake": torch.randn(4, 3, requires_grad=True),
    }
    exec(block, names)
    assert {name: names[name].shape for name in ("loss_d", "loss_g")} == {"loss_d": (), "loss_g": ()}


def test_the_code_beside_a_formula_is_the_codes() -> None:
    source = read("src/relgan/losses.py") + read("src/relgan/penalties.py")
    cells = [row.rstrip(" |").rpartition("|")[2] for row in re.findall(r"^\|.*$", read("docs/losses.md"), re.MULTILINE)]
    shown = [code for cell in cells for code in re.findall(r"`([^`]*[(,.][^`]*)`", cell) if not code.endswith(".py")]
    assert len(shown) > 15
    for code in shown:
        assert code in source, code


# --- links and lists ---


@pytest.mark.parametrize("page", [*PAGES, *ABOUT], ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")):
        file = (page.parent / target) if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, (target, anchor)


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "losses" / "index.html").is_file()


def test_the_page_of_options_is_the_programs() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "_make" / "configuration.py"))
    assert made["page"]() == read("docs/configuration.md"), "python docs/_make/configuration.py writes it anew"


def test_the_readme_is_short_and_names_nothing_that_is_not_there() -> None:
    text = read("README.md")
    assert len(text.splitlines()) <= 150
    for group, listed in re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE):
        assert set(re.findall(r"`(\w+)`", listed)) <= set(choices(None)[group])


def test_the_readme_counts_right() -> None:
    counts = {
        "losses": len(LOSSES),
        "penalties": len(PENALTIES) - 1,  # none is one, too
        "pairs of networks": len(MODELS),
        "scores": sum(bool(card_of(score).keys) for score in SCORES),
    }
    words = {3: "three", 9: "nine", 14: "fourteen"}
    for what, count in counts.items():
        assert re.search(rf"\b{words.get(count, count)}\s{what}", read("README.md")), (what, count)


def test_launchers_and_sweepers_are_described() -> None:
    for path in (conf_dir() / "hydra").glob("[ls]*er/*.yaml"):
        assert re.search(rf"`{path.stem}`|/sweeper={path.stem}", read("docs/sweeps.md")), path.stem


def test_every_data_set_tells_how_to_get_it() -> None:
    for name in DATASETS:
        assert re.search(rf"^\| .*`{name}`.* \| .* \| `dataset=", read("docs/data.md"), re.M), name


def test_every_experiment_is_described() -> None:
    text = read("docs/experiments.md") + read("docs/r3gan.md")
    for name in choices(None)["experiment"]:
        assert f"`{name}`" in text, name


def test_every_score_and_its_keys_are_listed() -> None:
    table = read("docs/scores.md").partition("| score in `metrics.scores` |")[2].partition("\n\n")[0]
    for score in SCORES:
        assert f"`{score}`" in table
        for key in card_of(score).keys:
            assert f"`eval/{key.name}`" in table, key.name
            if key.general:
                assert f"`eval/{key.general[0]}_NETWORK`" in table
