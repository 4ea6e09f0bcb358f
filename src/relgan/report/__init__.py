"""The comparison page: run directories in, one self-contained HTML file and a table of numbers out. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from relgan.files import atomic_write
from relgan.report.collect import find_runs, read_run
from relgan.report.compare import Comparison
from relgan.report.page import render

_FIRST = ("dataset", "variant", "seed", "status", "counted", "step", "seconds", "images_per_second")
_LAST = ("path", "command", "error")
_PROTOCOL = ("extractor", "num_images", "reference_images", "modes_images", "generator", "weights_known")


def write_report(paths: Sequence[Path], out_dir: Path, name: str = "report.html") -> Path:
    """Compare every run at or below ``paths``; writes the page and, beside it, results.csv.

    Returns:
        the page.

    Raises:
        RelganError: a path does not exist, or holds no run directory.
        OSError: the files cannot be written.
    """
    comparison = Comparison([read_run(path) for path in find_runs(paths)])
    title = " · ".join(dict.fromkeys(path.resolve().name for path in paths))
    out_dir.mkdir(parents=True, exist_ok=True)
    for file_name, content in ((name, render(comparison, title)), ("results.csv", as_csv(comparison))):
        with atomic_write(out_dir / file_name) as file:
            file.write(content.encode())
    return out_dir / name


def as_csv(comparison: Comparison) -> str:
    """results.csv: a line for each run with its last, lowest and highest score after the start, and its settings."""
    superseded = set(comparison.superseded)
    runs = sorted(
        comparison.every,
        key=lambda run: (comparison.dataset(run), comparison.variants.index(comparison.variant(run)), run.seed),
    )
    keys = list(dict.fromkeys(key for run in runs for key in run.score_keys))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    extremes = [f"{end}:{key}" for key in keys for end in ("min", "max")]
    writer.writerow([*_FIRST[:2], *comparison.differing, *_FIRST[2:], *keys, *extremes, *_PROTOCOL, *_LAST])
    for run in runs:
        last = run.evals[-1].values if run.evals else {}
        later = {key: [row.values[key] for row in run.evals if row.step > 0 and key in row.values] for key in keys}
        writer.writerow(
            _safe(value)
            for value in [
                *(comparison.dataset(run), comparison.variant(run)),
                *(comparison.value(run, option) for option in comparison.differing),
                *(run.seed, run.status, run not in superseded, run.step),
                *(run.summary.get(key) for key in ("seconds", "images_per_second")),
                *(last.get(key) for key in keys),
                *(end(later[key], default=None) for key in keys for end in (min, max)),
                *(run.protocol.get(fact) for fact in _PROTOCOL),
                *(comparison.place(run), " ".join(run.command), run.error),
            ]
        )
    return text.getvalue()


def _safe(value: object) -> object:
    """Text that a spreadsheet would run as a formula gets an apostrophe in front."""
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
