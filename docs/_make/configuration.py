"""Writes docs/configuration.md from the options' own declarations: python docs/_make/configuration.py."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from relgan.cli.compose import choices
from relgan.config import every_option
from relgan.options import Option, text_of
from relgan.registry import GROUPS

PAGE = Path(__file__).resolve().parents[1] / "configuration.md"

HEAD = """# Configuration

Every group and every option of a run, made from the declarations in the code by `make docs`. `relgan-train --help`
prints the same; with `--cfg job` it prints what a line composes to. `null` means not set.

## Groups

`GROUP=CHOICE` picks a part; its options follow below.

| group | choices |
|---|---|
"""

# The options of no group, under a heading of their own.
ROOT = "run"


def page() -> str:
    """The whole page."""
    rows = [f"| `{group}` | {_codes(names)} |" for group, names in sorted(choices(None).items())]
    sections: dict[str, list[str]] = {}
    chosen = {f"{group}.name" for group in GROUPS}
    for name, (each, having) in every_option().items():
        if name not in chosen:
            group = name.partition(".")[0] if "." in name else ROOT
            sections.setdefault(group, []).append(_row(each, having))
    return HEAD + "\n".join(rows) + "\n" + "".join(_section(group, lines) for group, lines in sections.items())


def _section(group: str, rows: list[str]) -> str:
    return "\n".join(
        ["", f"## {group}", "", "| option | type | default | accepted | meaning |", "|---|" + "---|" * 4, *rows, ""]
    )


def _row(each: Option, having: dict[str, Any]) -> str:
    group = each.name.partition(".")[0]
    others = [f"`{text_of(value)}` with `{choice}`" for choice, value in having.items() if value != each.value]
    default = "; ".join([f"`{text_of(each.value)}`", *others])
    partial = having and len(having) < len(GROUPS[group])
    meaning = [each.meta.get("doc", ""), f"only {_codes(having)}" if partial else ""]
    accepted = _codes(map(text_of, each.choices or ())) or each.range
    cells = (f"`{each.name}`", _type(each.type), default, accepted, "; ".join(filter(None, meaning)))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _type(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type(part) for part in get_args(kind))
    if origin in (list, tuple):
        return f"list of {_type(get_args(kind)[0])}"
    name: str = kind.__name__
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}.get(name, name)


def _codes(names: Iterator[str] | Any) -> str:
    return " ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
