"""How options are declared, checked, read from a command line and explained. No torch, no Hydra.

An option is a field of a dataclass, made by :func:`option`: its type, default, range, accepted values and meaning
stand in one place. The run's configuration, each command and each registered part declare theirs this way.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

HELP_WIDTH = 118
_HELP_INDENT = 34

# What people call a choice by another name, where no likeness of letters would find it.
SYNONYMS = {"gpu": "cuda", "float32": "fp32", "full": "fp32", "float16": "bf16", "fp16": "bf16", "half": "bf16"}

Choices = Sequence[Any] | Callable[[], Sequence[Any]]
T = TypeVar("T")


class RelganError(Exception):
    """Something the user can mend: shown as one line, exit status 2, never with a stack trace."""


class ConfigError(RelganError):
    """An option has a value it does not accept."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(f"{option}: {message}")
        self.option, self._message = option, message

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, str]]:
        # Worker processes send it back pickled.
        return ConfigError, (self.option, self._message)


def option(
    default: Any,
    doc: str,
    *,
    choices: Choices | None = None,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    path: bool = False,
) -> Any:
    """Declare one option as a dataclass field.

    Args:
        default: a plain value; None where the option may be left out; a list for an option of several values.
        doc: its meaning, with the unit.
        choices: the accepted values, or a function that lists them when they are asked for.
        ge, gt, le, lt: bounds of a number.
        path: whether it names a file or folder.
    """
    metadata = {"doc": doc, "choices": choices, "ge": ge, "gt": gt, "le": le, "lt": lt, "path": path}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Options:
    """Options of one registered part (a loss, a network pair, a data set …); subclasses add their own.

    Attributes:
        name: the part's, set when it is registered.
    """

    name: str = ""

    def check(self, config: Any) -> None:
        """Raise :class:`ConfigError` if these options do not go with the rest of the run's configuration."""


@dataclass(frozen=True)
class Option:
    """One option of a dataclass instance, by its dotted name."""

    name: str
    value: Any
    type: Any
    meta: Mapping[str, Any]

    @property
    def is_text(self) -> bool:
        """Whether any text is accepted: a path, a name."""
        return self.type in _TEXT and self.meta.get("choices") is None

    @property
    def is_path(self) -> bool:
        return bool(self.meta.get("path"))

    @property
    def is_list(self) -> bool:
        return get_origin(self.type) is list

    @property
    def choices(self) -> tuple[Any, ...] | None:
        choices = self.meta.get("choices")
        return None if choices is None else tuple(choices() if callable(choices) else choices)

    @property
    def range(self) -> str:
        """≥ 0 and < 1, for example; empty without bounds."""
        signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
        return " and ".join(
            f"{sign} {self.meta[key]:g}" for key, sign in signs.items() if self.meta.get(key) is not None
        )

    def check(self) -> None:
        """Raise :class:`ConfigError` if the value is outside its choices or range, or an empty text."""
        if self.value == "" and self.type == str | None:
            raise ConfigError(self.name, "is empty; null: not set")
        for value in self.value if isinstance(self.value, list) else [self.value]:
            self._check_one(value)

    def _check_one(self, value: Any) -> None:
        if value is None:
            return
        if (choices := self.choices) is not None and value not in choices:
            raise ConfigError(
                self.name, f"{value!r} is not one of {', '.join(map(str, choices))}{suggest(value, choices)}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        inside = all(holds(value, self.meta[key]) for key, holds in _BOUNDS.items() if self.meta.get(key) is not None)
        if not (inside and math.isfinite(value)):
            raise ConfigError(self.name, f"must be {self.range or 'finite'}, got {value:g}")


_TEXT = (str, str | None)
_BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
}


def walk(options: Any, prefix: str = "") -> Iterator[Option]:
    """Every option of a dataclass instance, those of nested dataclasses too."""
    types = get_type_hints(type(options))
    for f in dataclasses.fields(options):
        value = getattr(options, f.name)
        if dataclasses.is_dataclass(value):
            yield from walk(value, f"{prefix}{f.name}.")
        else:
            yield Option(f"{prefix}{f.name}", value, types[f.name], f.metadata)


def check(options: Any, prefix: str = "") -> None:
    """Raise :class:`ConfigError` for the first option outside its choices or range."""
    for each in walk(options, prefix):
        each.check()


def flatten(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def suggest(given: object, known: Iterable[object]) -> str:
    """``; did you mean X?``, or nothing where no known name is close."""
    names = [str(name) for name in known]
    meant = SYNONYMS.get(str(given).lower())
    close = [meant] if meant in names else difflib.get_close_matches(str(given), names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def user_path(text: str | Path) -> Path:
    """A path as people give it: ``~`` and ``~NAME`` are home directories, where there are such."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def near(path: Path, base: Path | None = None) -> str:
    """The path as one types it in the directory ``base``; None: where one stands."""
    try:
        base = base or Path.cwd()
    except OSError:  # it was deleted
        return str(path)
    return str(path.relative_to(base) if path != base and path.is_relative_to(base) else path)


def is_there(text: str) -> bool:
    """Whether a text, which may be anything, is the path of a file or folder."""
    try:
        return bool(text) and user_path(text).exists()
    except (OSError, ValueError):  # too long, or no path at all
        return False


def split_values(text: str) -> list[str]:
    """``A,B`` at the commas that are in no quotes; the quotes stay."""
    return [match[1].strip() for match in _BETWEEN_COMMAS.finditer(text)] if text.strip() else []


_BETWEEN_COMMAS = re.compile(r"""(?:^|,)\s*("[^"]*"\s*(?=,|\Z)|'[^']*'\s*(?=,|\Z)|[^,]*)""")


def without_brackets(text: str) -> str:
    """What stands in ``[…]``, or the text itself: a word may stand for a list of one."""
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def split_list(text: str) -> list[str]:
    """The values of ``[A,B]`` or ``A,B``, with their quotes; the path of something that exists is one value."""
    return [text] if is_there(text) else split_values(without_brackets(text))


def unquoted(text: str) -> str:
    """Without the quotes that enclose it, if any do."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def read(kind: type[T], words: Iterable[str], *, positional: str = "") -> T:
    """The options of a command from its words ``KEY=VALUE``, typed and checked.

    Args:
        kind: the dataclass of the command's options.
        words: of the command line.
        positional: the option that a word without ``KEY=`` gives; a list takes several such words.

    Raises:
        ConfigError: an unknown option, or a value of the wrong type or outside its range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    types = get_type_hints(kind)
    node = OmegaConf.structured(kind)
    loose: list[str] = []
    given: set[str] = set()
    for word in words:
        key, sign, text = word.partition("=")
        if positional and is_loose(word):
            loose.append(word)
            continue
        if not (sign and key in types):
            raise ConfigError(key, f"no such option{suggest(key, types) or '; there are ' + ', '.join(types)}")
        given.add(key)
        try:
            node[key] = _value(types[key], text)
        except (OmegaConfBaseException, ValueError) as error:
            raise ConfigError(key, f"{text!r} is not {_kind_of(types[key])}") from error
        except Exception as error:  # what yaml makes of an odd value
            raise ConfigError(key, f"{text!r} cannot be read: {str(error).splitlines()[0]}") from error
    if loose and types[positional] in _TEXT:
        if len(loose) > 1 or positional in given:
            raise ConfigError(positional, f"only one is accepted; {loose[-1]} is extra")
        node[positional] = loose[0]
    elif loose:
        node[positional] = [*node[positional], *loose]
    options = OmegaConf.to_object(node)
    assert isinstance(options, kind)
    check(options)
    return options


def is_loose(word: str) -> bool:
    """Whether a word of a command line is a value without its option's name: a path, which may hold = as well."""
    key, sign, _ = word.partition("=")
    return not sign or "/" in key.removeprefix("hydra/") or is_there(word)


def _value(declared: Any, text: str) -> Any:
    """What a word gives an option of this type; text is taken as it was typed."""
    from omegaconf import OmegaConf

    if declared == str | None and text == "null":
        return None
    if declared in _TEXT:
        return unquoted(text)
    if declared == list[str]:
        return [unquoted(each) for each in split_list(text)]
    return OmegaConf.create(f"value: {text}").value


def _kind_of(declared: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", list[str]: "a list such as [a,b]"}
    return next((name for kind, name in names.items() if declared in (kind, kind | None)), f"a {declared}")


def explain(options: Iterable[Option], notes: Mapping[str, str] | None = None) -> str:
    """A paragraph for each option, ``key=default`` and what it means, for ``--help``.

    Args:
        notes: more to say of some, by name.
    """
    indent = " " * _HELP_INDENT
    lines = []
    for each in options:
        left = f"  {each.name}={text_of(each.value)}  "
        accepted = " | ".join(map(text_of, each.choices or ()))
        parts = (each.meta.get("doc", ""), each.range, accepted, (notes or {}).get(each.name))
        said = textwrap.fill(
            "; ".join(filter(None, parts)), HELP_WIDTH, initial_indent=indent, subsequent_indent=indent
        )
        fits = len(left) <= _HELP_INDENT
        lines.append(left + said[len(left) :] if fits else f"{left.rstrip()}\n{said}")
    return "\n".join(lines)


def text_of(value: Any) -> str:
    """A value as it is typed on a command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(text_of, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
