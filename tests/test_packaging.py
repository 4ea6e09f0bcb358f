"""An installed wheel is all that is needed: conf/ travels inside, an empty directory is enough to run from."""

from __future__ import annotations

import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

import installed
import tiny
from installed import ROOT


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
    return installed.build_wheel(tmp_path_factory.mktemp("dist"))


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
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed.install(wheel, tmp_path_factory.mktemp("site"))


@pytest.mark.slow
def test_the_wheel_prints_its_configuration(site: Path, tmp_path: Path) -> None:
    done = installed.run(site, tmp_path, "train", "--cfg", "job", "loss=wgan_gp")
    assert "name: wgan_gp" in done.stdout, done.stderr
    assert (site / "bin" / "relgan-train").is_file()


@pytest.mark.slow
def test_the_wheel_trains_from_an_empty_directory(site: Path, tmp_path: Path) -> None:
    done = installed.run(site, tmp_path, "train", *tiny.ARGUMENTS, "train.iterations=2", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert tiny.summary(tmp_path / "run")["status"] == "finished"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
