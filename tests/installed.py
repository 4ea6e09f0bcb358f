"""relgan as pip installs it from a wheel, and its commands run there from any directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import processes

ROOT = Path(__file__).resolve().parents[1]


def build_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


def install(wheel: Path, target: Path) -> Path:
    """A directory with relgan and nothing else."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def run(
    installed: Path, here: Path, command: str, *arguments: str, also: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``relgan-COMMAND`` in the directory ``here``.

    Args:
        also: one more directory of installed packages.
    """
    return _python(installed, here, processes.command(command), *arguments, also=also)


def run_each(installed: Path, here: Path, lines: Sequence[Sequence[str]]) -> list[tuple[int, str, str]]:
    """Run several command lines (relgan-COMMAND as COMMAND, then its arguments) in one process.

    Returns:
        exit status, standard output and standard error of each.
    """
    code = f"""
import contextlib, importlib, io, json, sys
ended = []
for command, *words in json.loads(sys.argv[1]):
    main = importlib.import_module('relgan.cli.' + {processes.MODULES!r}.get(command, command)).main
    sys.argv = ['relgan-' + command, *words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    ended.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(ended))
"""
    done = _python(installed, here, code, json.dumps(lines))
    assert done.returncode == 0, done.stderr
    return [tuple(each) for each in json.loads(done.stdout)]  # type: ignore[misc]


def _python(
    installed: Path, here: Path, code: str, *arguments: str, also: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run code with the installed relgan; the editable checkout is not in sys.path."""
    places = [str(installed), *([str(also)] if also else []), sysconfig.get_paths()["purelib"]]
    place = f"assert pathlib.Path(relgan.__file__).is_relative_to({str(installed)!r}), relgan.__file__"
    code = f"import pathlib, relgan\n{place}\n{code}"
    return processes.run(code, *arguments, here=here, environment={**os.environ, "COLUMNS": "200"}, path=places)
