"""The words of a command line as Hydra reads them: flags apart from options, text and lists as they were typed.

Hydra's grammar refuses, or reads as something else, much of what a path may hold: ``~``, ``=``, commas, brackets,
quotes, ``#``, letters that are not ASCII, digits with underscores. Such values are put in quotes here.
"""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException

from relgan.config import every_option
from relgan.options import (
    ConfigError,
    Option,
    RelganError,
    is_there,
    split_list,
    split_values,
    suggest,
    user_path,
    without_brackets,
)

MULTIRUN = "--multirun"
# Hydra makes them, and never sweeps over them.
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options of a command line, and Hydra's flags by their long names, in whatever order they were typed.

    ``--KEY=VALUE``, as a W&B agent writes it, is the option ``KEY=VALUE``.

    Raises:
        RelganError: an unknown flag, or one without a value that it accepts.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    parser.allow_abbrev = False  # relgan's own flags are looked for by their whole names
    given, left = parser.parse_known_intermixed_args(arguments)
    words = sorted([*given.overrides, *left], key=arguments.index)
    words = [word.removeprefix("--") if "=" in word else word for word in words]
    if flag := next((word for word in words if word.startswith("-")), None):
        raise RelganError(f"{flag}: no such flag{suggest(flag, _names(vars(given))) or '; options are KEY=VALUE'}")
    return words, _flags(given)


def _refuse(message: str) -> NoReturn:
    raise RelganError(message)


def _names(flags: Iterable[str]) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in flags]


def _flags(given: Namespace) -> list[str]:
    """What the parser of Hydra's flags understood, as it would be typed."""
    chosen = {name: value for name, value in vars(given).items() if value and name != "overrides"}
    pairs = zip(_names(chosen), chosen.values(), strict=True)
    return [word for flag, value in pairs for word in ([flag] if value is True else [flag, value])]


def sweeps(words: Iterable[str], flags: Iterable[str]) -> bool:
    """Whether commas separate the values of a sweep."""
    return MULTIRUN in flags or "hydra.mode=MULTIRUN" in words


def as_typed(words: Iterable[str], *, sweep: bool) -> list[str]:
    """The words with quotes where Hydra would not read a path, another text or a list as it was typed.

    What is in quotes already, null and ``${…}`` keep the meaning that Hydra gives them. A list of one may be given as
    a word.

    Args:
        words: KEY=VALUE; parts of plugins are known by now.
        sweep: commas, and Hydra's choice(…), glob(…) and range(…), give several values.

    Raises:
        ConfigError: an existing path has a comma that would separate it.
    """
    options = {name: each for name, (each, _) in every_option().items()}
    return [_typed(word, options, sweep=sweep) for word in words]


def _typed(word: str, options: Mapping[str, Option], *, sweep: bool) -> str:
    key, sign, text = word.partition("=")
    name = key.lstrip("+")
    if text and name in FOLDERS:
        return f"{key}={_quoted(str(user_path(text)))}"
    option = options.get(name)
    if not sign or option is None or not (option.is_text or option.is_list):
        return word
    if not sweep:
        return f"{key}={_one(option, text)}"
    if _is_sweep_of_hydra(text, option):
        return word
    several = [text] if option.is_list and text.startswith("[") else split_values(text)
    if len(several) > 1 and is_there(text):
        line = shlex.quote(f"{key}={in_quotes(text)}")
        raise ConfigError(name, f"under -m a comma separates values, and {text} is one path; give {line}")
    return f"{key}={','.join(_one(option, each) for each in several)}"


def _one(option: Option, text: str) -> str:
    """One value of the option."""
    if not option.is_list:
        return _quoted(text)
    if text == "null" or text.startswith("${"):
        return text
    return f"[{','.join(map(_quoted, split_list(text))) if option.type == list[str] else without_brackets(text)}]"


def _quoted(text: str) -> str:
    """A text as it stands where Hydra reads it so, or finds null or quotes; otherwise in quotes."""
    read = _read(text)
    if read is not None and not read.is_sweep_override():
        value = read.value()
        if value is None or value == text or isinstance(read._value, QuotedString):
            return text
    return in_quotes(text)


def in_quotes(text: str) -> str:
    """A text as Hydra reads it back, whatever it holds."""
    return QuotedString(text, Quote.double).with_quotes()


def _is_sweep_of_hydra(text: str, option: Option) -> bool:
    """Whether Hydra reads choice(…) and the like, or several lists."""
    read = _read(text)
    if read is None or not read.is_sweep_override():
        return False
    values = read._value
    if isinstance(values, ChoiceSweep) and values.simple_form:
        return option.is_list and all(isinstance(each, list) for each in values.list)
    return True


def _read(text: str) -> Override | None:
    """A value as Hydra reads it; None where its grammar refuses it."""
    try:
        return _parser().parse_override(f"_={text}")
    except HydraException:
        return None


_parser = cache(OverridesParser.create)
