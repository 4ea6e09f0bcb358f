"""The numbers of a comparison as text that other programs read: CSV, and Markdown and LaTeX tables to paste."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from relgan.metrics import catalogue
from relgan.report.compare import Board, Column, Comparison
from relgan.report.verdict import judge

_FIRST = ("dataset", "variant", "seed", "status", "counted", "step", "seconds", "images_per_second")
_LAST = ("path", "command", "error")
_PROTOCOL = ("extractor", "num_images", "reference_images", "modes_images", "generator", "weights_known")
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "·": r"$\cdot$",
    "∞": r"$\infty$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
}
NOTE = "Mean ± standard deviation over the seeds that finished; bold: told apart from every other variant."


def csv_of(page: Path) -> Path:
    """The numbers beside a page: they have its name, so that a folder holds several pages."""
    return page.with_suffix(".csv")


def as_csv(comparison: Comparison) -> str:
    """A line for each run with its last, lowest and highest score after the start, and its settings."""
    superseded = set(comparison.superseded)
    runs = comparison.listed()
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


def as_markdown(boards: Sequence[Board], variants: Sequence[str]) -> str:
    """Final scores, a line for each variant and a column for each score and data set."""
    head, *rows = _rows(boards, variants, "**{}**", _markdown)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{NOTE}\n"


def as_latex(boards: Sequence[Board], variants: Sequence[str]) -> str:
    """The same for LaTeX with the package booktabs."""
    head, *rows = _rows(boards, variants, r"\textbf{{{}}}", _latex)
    lines = [" & ".join(line) + r" \\" for line in (head, *rows)]
    return "\n".join(
        [
            f"% {NOTE}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _rows(
    boards: Sequence[Board], variants: Sequence[str], bold: str, escaped: Callable[[str], str]
) -> list[list[str]]:
    columns = [(board, column) for board in boards for column in board.columns]
    winners = {column: judge(board, column).winner for board, column in columns}
    several = len({column.dataset for _, column in columns}) > 1
    rows = [[escaped("Variant"), *(escaped(_heading(*place, several)) for place in columns)]]
    for variant in variants:
        row = [escaped(variant)]
        for board, column in columns:
            text = escaped(board.score(variant, column))
            row.append(bold.format(text) if winners[column] == variant else text)
        rows.append(row)
    return rows


def _heading(board: Board, column: Column, several: bool) -> str:
    arrow = "↓" if board.smaller else "↑"
    return f"{catalogue.title(column.key)} {arrow}" + (f" {column.dataset}" if several else "")


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", text)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
