"""An installed wheel is all that is needed: conf/ travels inside, an empty directory is enough to run from."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_declared_commands_exist() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    for command, target in project["scripts"].items():
        module, _, function = target.partition(":")
        path = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
        assert path.is_file(), f"{command} = {target}"
        assert f"def {function}(" in path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_conf_and_data_files_are_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"relgan/conf/{path.relative_to(ROOT / 'conf')}" in names
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=False)
    for name in tracked.stdout.splitlines():
        assert name.removeprefix("src/") in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with relgan as pip installs it, and nothing else."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def relgan_train(installed: Path, tmp_path: Path, *arguments: str) -> str:
    """Run the installed command in an empty directory; -S keeps the editable checkout out of sys.path."""
    here = tmp_path / "empty"
    here.mkdir(exist_ok=True)
    packages = sysconfig.get_paths()["purelib"]
    environment = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{packages}", "OMP_NUM_THREADS": "1"}
    code = (
        "import sys, pathlib, relgan; sys.argv[0] = 'relgan-train'\n"
        f"assert pathlib.Path(relgan.__file__).is_relative_to({str(installed)!r}), relgan.__file__\n"
        "from relgan.cli.train import main; main()"
    )
    command = [sys.executable, "-S", "-c", code, *arguments]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_prints_its_configuration(installed: Path, tmp_path: Path) -> None:
    assert "name: wgan_gp" in relgan_train(installed, tmp_path, "--cfg", "job", "loss=wgan_gp")
    assert (installed / "bin" / "relgan-train").is_file()


@pytest.mark.slow
def test_the_wheel_trains_from_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    import tiny

    relgan_train(installed, tmp_path, *tiny.ARGUMENTS, "train.iterations=2", "hydra.run.dir=run")
    assert tiny.summary(tmp_path / "empty" / "run")["status"] == "finished"
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["run"]
