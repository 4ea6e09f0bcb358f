"""The comparison page: run directories in, one self-contained HTML file and a table of numbers out. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relgan.files import atomic_write
from relgan.report.collect import find_runs, read_run
from relgan.report.compare import Comparison
from relgan.report.page import render
from relgan.report.tables import as_csv, csv_of

__all__ = ["csv_of", "write_report"]


def write_report(paths: Sequence[Path], out_dir: Path, name: str = "report.html", jobs: int = 0) -> Path:
    """Compare every run at or below ``paths``; writes the page and, beside it, its numbers.

    Args:
        jobs: how many a sweep that goes on will have; the page says how many are to come.

    Returns:
        the page.

    Raises:
        RelganError: a path does not exist, or holds no run directory.
        OSError: the files cannot be written.
    """
    comparison = Comparison([read_run(path) for path in find_runs(paths)])
    title = " · ".join(dict.fromkeys(path.resolve().name for path in paths))
    page = out_dir / name
    out_dir.mkdir(parents=True, exist_ok=True)
    for file, content in ((page, render(comparison, title, page, jobs)), (csv_of(page), as_csv(comparison))):
        with atomic_write(file) as opened:
            opened.write(content.encode())
    return page
