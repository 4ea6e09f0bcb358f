"""The comparison page: run directories in, one self-contained HTML file and a table of numbers out. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relgan.report.collect import find_runs, read_run


def write_report(paths: Sequence[Path], out_dir: Path, name: str = "report.html") -> Path:
    """Compare every run at or below ``paths``; writes the page and, beside it, results.csv.

    Returns:
        the page.

    Raises:
        RelganError: a path does not exist, or holds no run directory.
        OSError: the files cannot be written.
    """
    from relgan.files import atomic_write
    from relgan.report.compare import Comparison
    from relgan.report.page import render
    from relgan.report.table import as_csv

    comparison = Comparison([read_run(path) for path in find_runs(paths)])
    title = " · ".join(dict.fromkeys(path.resolve().name for path in paths))
    out_dir.mkdir(parents=True, exist_ok=True)
    for file_name, content in ((name, render(comparison, title)), ("results.csv", as_csv(comparison))):
        with atomic_write(out_dir / file_name) as file:
            file.write(content.encode())
    return out_dir / name
