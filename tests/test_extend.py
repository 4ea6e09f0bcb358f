"""Parts from outside: every example of docs/extend.md, from an installed wheel, in an empty directory."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import installed
from installed import ROOT

EXAMPLES = dict(
    re.findall(r'```(?:python|yaml) title="([^"]+)"\n(.*?)```', (ROOT / "docs" / "extend.md").read_text("utf-8"), re.S)
)
MODULES = sorted(Path(name).stem for name in EXAMPLES if name.endswith(".py"))
PLUGINS = f"plugins=[{','.join(MODULES)}]"
# One of each kind.
OWN = (
    *(PLUGINS, "model=mlp", "model.hidden=8", "penalty=drift", "augment=fade", "augment.keep=0.5"),
    *("dataset=stripes", "dataset.num_images=64"),
    *("tracker=csv", "metrics.scores=[fid,variety]", "metrics.extractor=random", "metrics.random.features=4"),
)
SMALL = (
    *("model.latent_dim=4", "train.batch_size=4", "train.iterations=2", "train.log_every=1", "train.sample_count=4"),
    *("metrics.num_images=16", "metrics.reference_images=32", "metrics.batch_size=16", "device=cpu", "precision=fp32"),
)

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheel = installed.build_wheel(tmp_path_factory.mktemp("dist"))
    return installed.install(wheel, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files of docs/extend.md and nothing else."""
    folder = tmp_path_factory.mktemp("here")
    for name, text in EXAMPLES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def relgan(site: Path, here: Path) -> Command:
    return lambda command, *arguments, **more: installed.run(site, here, command, *arguments, **more)


@pytest.fixture(scope="module")
def sweep(site: Path, here: Path, shared_cache: Path) -> Path:
    """A loss, and a loss made of a cost, from outside, swept beside ragan; everything else from outside too."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RELGAN_CACHE", str(shared_cache))
        done = installed.run(site, here, "train", "-m", "name=own", "loss=ragan,margin,raexp", *OWN, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    return here / "multirun" / "own"


def job(sweep: Path, loss: str) -> Path:
    (path,) = sweep.glob(f"*loss={loss}_*")
    return path


def summary(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "summary.json").read_text("utf-8"))
    return found


def test_the_document_has_an_example_of_each_kind() -> None:
    text = "".join(EXAMPLES.values())
    for kind in ("loss", "cost", "penalty", "augment", "model", "dataset", "score", "extractor", "tracker"):
        assert f"@register_{kind}(" in text


def test_they_are_swept_beside_a_built_in_loss_and_are_in_the_report(sweep: Path) -> None:
    for loss in ("ragan", "margin", "raexp"):
        found = summary(job(sweep, loss))
        assert (found["status"], found["step"]) == ("finished", 2)
        assert set(found["final"]) == {"eval/fd_random", "eval/variety_random"}
        assert found["protocol"]["extractor"] == "random"
        assert "variety_random" in (job(sweep, loss) / "scores.csv").read_text()
    assert summary(job(sweep, "margin"))["foreign"] == {
        "model=mlp": "mlp",
        "loss=margin": "margin",
        "penalty=drift": "drift",
        "augment=fade": "fade",
        "dataset=stripes": "stripes",
        "tracker=csv": "csv_tracker",
        "metrics.scores=variety": "variety",
        "metrics.extractor=random": "random_features",
    }
    assert summary(job(sweep, "raexp"))["foreign"]["loss=raexp"] == "exponential"
    page = (sweep / "report.html").read_text("utf-8")
    for text in ("margin", "raexp", "ragan", "Variety (random)", "Fréchet distance (random)"):
        assert text in page
    with (sweep / "report.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["loss.name"] for row in rows} == {"ragan", "margin", "raexp"}
    assert all(float(row["eval/variety_random"]) > 0 for row in rows)


def test_a_run_is_resumed_sampled_scored_again_and_reported(sweep: Path, here: Path, site: Path) -> None:
    run = job(sweep, "margin")
    lines = [
        ["train", f"resume='{run}'", PLUGINS, "train.iterations=4", "name=longer", "hydra.run.dir=longer"],
        ["sample", str(run), PLUGINS, "n=4", "out=own.png"],
        ["eval", str(run), "checkpoint=last", PLUGINS, "out=scores.json"],
        ["report", str(sweep), "longer", PLUGINS, "out=both.html"],
    ]
    for (code, _, err), line in zip(installed.run_each(site, here, lines), lines, strict=True):
        assert code == 0, (line, err)
    longer = summary(here / "longer")
    assert (longer["step"], longer["resumed_from"]) == (4, str(run / "checkpoints" / "last.pt"))
    assert (here / "own.png").exists()
    assert json.loads((here / "scores.json").read_text())["scores"] == summary(run)["final"]
    assert "Variety (random)" in (here / "both.html").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["parallel", "processes"])
def test_other_processes_of_a_sweep_import_them_too(site: Path, here: Path, launcher: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the launchers extra is not installed")
    words = (f"hydra/launcher={launcher}", f"name={launcher}", "loss=ragan,margin", "loss.margin=1")
    done = installed.run(site, here, "train", "-m", *words, *OWN, *SMALL)
    # Only one of the two losses has the option.
    assert done.returncode == 2, done.stderr
    assert "loss.margin: no such option with this loss" in done.stderr
    done = installed.run(site, here, "train", "-m", *words[:-1], *OWN, *SMALL)
    assert done.returncode == 0, done.stderr
    assert {summary(path.parent)["status"] for path in (here / "multirun" / launcher).glob("*/summary.json")} == {
        "finished"
    }


def test_what_names_foreign_code_is_refused_by_its_name(sweep: Path, here: Path, site: Path) -> None:
    run = job(sweep, "margin")
    lines = [["sample", str(run)], ["eval", str(run)], ["export", str(run)], ["train", f"resume='{run}'"]]
    for code, out, err in installed.run_each(site, here, lines):
        assert (code, err.count("\n")) == (2, 1), out + err
        assert "from mlp; relgan imports no code because a file names it" in err
        assert PLUGINS in err
    # A report shows numbers, and needs no code.
    assert installed.run(site, here, "report", str(sweep), "out=without.html").returncode == 0
    assert "variety" in (here / "without.html").read_text("utf-8")


@pytest.mark.slow
def test_a_plugin_that_is_not_used_changes_nothing(here: Path, site: Path) -> None:
    """Neither may a run need what it has not used, nor an installed package stop an older run from going on."""
    small = ("dataset=digits", "dataset.num_images=64", "model.width=2", *SMALL, "metrics=none", "tracker=none")
    first = ["train", *small, "plugins=[random_features,csv_tracker]", "hydra.run.dir=with", "tracker=csv"]
    without = [
        ["sample", "with", "n=4", "out=with.png"],
        ["train", "resume=with", "tracker=none", "train.iterations=3", "hydra.run.dir=without"],
        ["train", *small, "hydra.run.dir=plain"],
    ]
    last = ["train", *small, PLUGINS, "hydra.run.dir=plain", "resume=auto", "train.iterations=4"]
    for lines in ([first], without, [last]):  # each in a process that has imported nothing before
        for code, _, err in installed.run_each(site, here, lines):
            assert code == 0, err
    assert (summary(here / "without")["step"], summary(here / "plain")["step"]) == (3, 4)


def test_what_other_code_made_is_made_again(here: Path, site: Path) -> None:
    def real(name: str) -> bytes:
        line = ("plugins=[edited]", "dataset=edited", "dataset.num_images=16", "model.width=2", *SMALL)
        done = installed.run(site, here, "train", *line, "metrics=none", "tracker=none", f"hydra.run.dir={name}")
        assert done.returncode == 0, done.stderr
        return (here / name / "samples" / "real.png").read_bytes()

    text = edited("stripes", "edited")
    (here / "edited.py").write_text(text)
    first = real("first")
    (here / "edited.py").write_text(text.replace("width % 2", "width % 3 // 2"))
    assert real("second") != first
    # Under the same name from elsewhere it is another part.
    (here / "moved.py").write_text(text)
    done = installed.run(site, here, "train", "resume=first", "plugins=[moved]", "train.iterations=3")
    assert done.returncode == 2
    assert "needs dataset=edited from edited, and not the one from moved" in done.stderr


TYPOS = {
    ("loss=margin", "loss.margn=1"): "loss.margn: no such option; did you mean loss.margin?",
    ("loss=ragan", "loss.margin=1"): "loss.margin: no such option with this loss; these have it: margin",
    ("loss=margin", "loss.margin=-1"): "loss.margin: must be ≥ 0, got -1",
    ("loss=margin", "loss.margin=wide"): "loss.margin: ",
    ("metrics.random.featurs=1",): "metrics.random.featurs: no such option; did you mean metrics.random.features?",
}


def test_their_options_are_typed_and_suggested(site: Path, here: Path) -> None:
    ended = installed.run_each(site, here, [["train", PLUGINS, *words] for words in TYPOS])
    for (code, _, err), message in zip(ended, TYPOS.values(), strict=True):
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err


FILES = {
    "own/loss/mine.yaml": "depth: 3\n",
    "own/my_gan.py": EXAMPLES["margin.py"]
    .replace('"margin",', '"mine",')
    .replace("margin: float = option(1.0,", 'depth: int = option(1, "how deep")\n    margin: float = option(1.0,'),
    "only/loss/tight.yaml": "name: margin\nmargin: 0.1\n",
    "only/dataset/faces.yaml": "name: celeba\nhflip: true\n",
}
# Command lines that train nothing, and what they print.
PRINTED = {
    ("--help", PLUGINS): ("rexp_allpairs", "loss.margin=1", "model.hidden=256", "metrics.random.features=16"),
    ("--config-dir", "my", PLUGINS, "loss=wide_margin"): (
        "loss:\n  name: margin\n  centring: 0.0\n  lecam: 0.0\n  margin: 2.0\n",
    ),
    # A file may only name the part, of the same name it needs nothing, and a plugin may lie beside it.
    ("--config-dir", "only", PLUGINS, "loss=tight", "dataset=faces"): (
        "loss:\n  name: margin\n  centring: 0.0\n  lecam: 0.0\n  margin: 0.1\n",
        "image_size: 64",
    ),
    ("--config-dir", "own", "plugins=[my_gan]", "loss=mine", "loss.margin=0.5"): (
        "loss:\n  name: mine\n  centring: 0.0\n  lecam: 0.0\n  depth: 3\n  margin: 0.5\n",
    ),
    # What relgan's own choices ask of relgan's own networks goes with any other.
    (PLUGINS, "model=mlp", "loss=wgan", "scale=smoke"): ("name: mlp\n  latent_dim: 8\n  hidden: 256\n",),
}


def test_help_and_files_of_values(site: Path, here: Path) -> None:
    for name, text in FILES.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    lines = [["train", *words, *([] if "--help" in words else ["--cfg", "job"])] for words in PRINTED]
    for (code, out, err), expected in zip(installed.run_each(site, here, lines), PRINTED.values(), strict=True):
        assert code == 0, err
        for text in expected:
            assert text in out
    ((code, _, err),) = installed.run_each(site, here, [["train", "loss.name=sgan"]])
    assert (code, err) == (2, "relgan-train: loss.name: choose it with loss=sgan\n")


def test_an_installed_package_needs_no_option(relgan: Command, here: Path) -> None:
    package = here / "site"
    (package / "their_gan-1.0.dist-info").mkdir(parents=True)
    (package / "their_gan-1.0.dist-info" / "METADATA").write_text("Name: their-gan\nVersion: 1.0\n")
    (package / "their_gan-1.0.dist-info" / "entry_points.txt").write_text("[relgan.plugins]\nany = their_gan\n")
    (package / "their_gan.py").write_text(EXAMPLES["margin.py"].replace('"margin",', '"theirs",'))
    done = relgan("train", "loss=theirs", "--cfg", "job", also=package)
    assert "loss:\n  name: theirs\n" in done.stdout, done.stderr
    (package / "their_gan.py").write_text("1 / 0\n")
    done = relgan("train", "loss=ragan", "--cfg", "job", also=package)
    assert done.returncode == 2
    assert done.stderr == (
        "relgan-train: plugins: their_gan of the installed package their-gan cannot be imported "
        "(ZeroDivisionError: division by zero)\n"
    )


def edited(example: str, name: str, old: str = "", new: str = "") -> str:
    """An example of the document that registers another name, with one mistake in it."""
    text = re.sub(r'(@register_\w+\(")\w+"', rf'\g<1>{name}"', EXAMPLES[f"{example}.py"])
    assert old in text
    return text.replace(old, new)


# Plugins and what is said of them. The last makes every later command fail.
BAD = {
    "absent": (None, "absent cannot be imported (ModuleNotFoundError"),
    "raising": ("raise RuntimeError('two\\nlines')", "raising cannot be imported (RuntimeError: two)"),
    "exiting": ("import sys\nsys.exit(3)", "exiting cannot be imported (SystemExit: 3)"),
    "taken": (
        "from relgan import register_loss\nregister_loss('ragan', None, 'taken:x')",
        "taken: loss.name: ragan is registered twice, by relgan.losses and by taken",
    ),
    "twice": (
        "from relgan import register_cost\nfor _ in range(2): register_cost('c', 'twice:x')",
        "twice: loss.name: c is registered twice, by twice and by twice",
    ),
    "vector": (
        edited("margin", "vector", ").mean()", ")"),
        "loss.name: vector.discriminator must return a scalar with a graph, got shape (4,)",
    ),
    "no_loss": (edited("margin", "no_loss", "(Loss)", ""), "loss.name: no_loss builds a Margin, not a relgan.losses."),
    "failing_loss": (
        edited("margin", "failing_loss", "self.margin = ", "1 / 0  # "),
        "plugins: failing_loss of failing_loss fails (ZeroDivisionError: division by zero)",
    ),
    "vector_penalty": (
        edited("drift", "vector_penalty", ".square().mean()", ".square()"),
        "penalty.name: vector_penalty.term must return a scalar with a graph, got shape (4,)",
    ),
    "two_logits": (
        edited("mlp", "two_logits", "options.hidden, 1)", "options.hidden, 2)"),
        "model.name: two_logits: the critic's logits must have the shape (N,), (N, 1) or (N, 1, H, W) with N ≥ 1, got",
    ),
    "failing_data": (
        edited("stripes", "failing_data", "rng = np", "raise OSError('no server')  # "),
        "plugins: failing_data of failing_data fails (OSError: no server)",
    ),
    "nothing": (
        edited("stripes", "nothing", "return self.options.num_images", "return 0"),
        "dataset.path: dataset=nothing has no usable images",
    ),
    "odd_options": (
        edited("margin", "odd_options", "margin: float", "margin: set"),
        "plugins: options of odd_options of odd_options: Unexpected type annotation: set",
    ),
}
CHOSEN = {
    **dict.fromkeys(("vector", "no_loss", "failing_loss"), "loss"),
    **{"vector_penalty": "penalty", "two_logits": "model", "failing_data": "dataset", "nothing": "dataset"},
}


def test_a_bad_plugin_is_one_line_and_nothing_is_lost(site: Path, here: Path) -> None:
    lines = []
    for name, (text, _) in BAD.items():
        if text is not None:
            (here / f"{name}.py").write_text(text)
        chosen = CHOSEN.get(name)
        data = () if chosen == "dataset" else ("dataset=digits", "dataset.num_images=64")
        words = [f"{chosen}={name}"] if chosen else []
        lines.append(
            ["train", f"plugins=[{name}]", *words, *data, "tracker=none", "metrics=none", "train.iterations=2"]
        )
    before = {path for path in here.rglob("*") if "__pycache__" not in path.parts}
    ended = installed.run_each(site, here, lines)
    for (code, out, err), (_, message) in zip(ended, BAD.values(), strict=True):
        assert (code, err.count("\n")) == (2, 1), out + err
        assert message in err
    left = {path for path in here.rglob("*") if "__pycache__" not in path.parts} - before
    assert not [path for path in left if path.is_file() and path.name != "train.log"]
