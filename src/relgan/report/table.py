"""results.csv: one line for each run, with everything a spreadsheet or a script needs."""

from __future__ import annotations

import csv
import io

from relgan.report.compare import Comparison

_FIRST = ("dataset", "variant", "seed", "status", "counted", "step", "seconds", "images_per_second")
_LAST = ("path", "command", "error")
_PROTOCOL = ("extractor", "num_images", "reference_images", "modes_images", "generator", "weights_known")


def as_csv(comparison: Comparison) -> str:
    """Final, lowest and highest value of every score after the start; empty where there is none."""
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
