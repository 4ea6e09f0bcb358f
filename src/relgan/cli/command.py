"""What all commands share: their options, ``--help``, one-line errors and exit statuses."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn, TypeVar

from relgan import __version__
from relgan.config import every_option, unknown
from relgan.options import ConfigError, RelganError, explain, is_loose, option, read, suggest, text_of, walk
from relgan.registry import GROUPS, load_plugins

EXIT_BAD_INPUT = 2
HELP, VERSION, CONFIG_DIR = ("-h", "--help"), "--version", ("--config-dir", "-cd")

# Hydra's launchers and sweepers of others, and the extra that installs each.
EXTRAS = {
    **dict.fromkeys(("joblib", "submitit_local", "submitit_slurm"), "launchers"),
    **{"ray": "ray", "ray_aws": "ray", "optuna": "optuna"},
}


@dataclass
class CommandOptions:
    """Options of every command."""

    plugins: list[str] = option([], "modules or .py files that register losses, networks … of your own")


T = TypeVar("T", bound=CommandOptions)


@dataclass(frozen=True)
class Line:
    """A command line.

    Attributes:
        words: without ``--config-dir``.
        config_dir: more configuration files, and plugins.
    """

    words: list[str]
    config_dir: Path | None = None

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Line:
        rest, folder = [], None
        given = iter(arguments)
        for word in given:
            flag, sign, value = word.partition("=")
            if flag in CONFIG_DIR:
                folder = Path(value if sign else next(given, ""))
                if not folder.is_dir():
                    raise ConfigError(flag, f"{folder} is not a directory")
            else:
                rest.append(word)
        return cls(rest, folder)

    @property
    def places(self) -> list[Path]:
        """Where plugins are looked for before the module path."""
        return [Path.cwd(), *([self.config_dir.resolve()] if self.config_dir is not None else [])]


def command(
    kind: type[T],
    usage: str,
    run: Callable[[T, Line], None],
    *,
    positional: str = "",
    composes: tuple[str, ...] = (),
) -> None:
    """Run a command: read its options, load its plugins, and turn what the user can mend into one line.

    Args:
        kind: dataclass of its own options.
        usage: how it is called, for ``--help``.
        run: does the work; of the line only the words that are no options of the command are left.
        positional: the option that may be given without its name.
        composes: groups of the run's configuration that it also takes, composed by Hydra; without any, words that
            are none of its own options are refused.
    """
    with guard():
        line = Line.of(sys.argv[1:])
        own = {f.name for f in fields(kind)}
        if answered(line.words, lambda: _help(kind, usage, composes, line), empty=True):
            return
        mine = [word for word in line.words if not composes or word.partition("=")[0] in own or is_loose(word)]
        options = read(kind, mine, positional=positional)
        load_plugins(options.plugins, line.places)
        others = [word for word in line.words if word not in mine or word.partition("=")[0] == "plugins"]
        run(options, Line(others if composes else [], line.config_dir))


def answered(words: Sequence[str], help_text: Callable[[], str], *, empty: bool = False) -> bool:
    """Answer ``--help`` and ``--version`` (and, if ``empty``, no words at all); whether there is nothing else to do."""
    if any(word in HELP for word in words) or (empty and not words):
        print(help_text())
        return True
    if VERSION in words:
        print(f"relgan {__version__}")
        return True
    return False


def _help(kind: type[CommandOptions], usage: str, composes: tuple[str, ...], line: Line) -> str:
    asked = read(CommandOptions, [word for word in line.words if word.startswith("plugins=")])
    load_plugins(asked.plugins, line.places)
    shared = {f.name for f in fields(CommandOptions)}
    own = sorted(walk(kind()), key=lambda each: each.name in shared)
    parts = [usage.rstrip(), "Options, KEY=VALUE (null: not set):", explain(own)]
    if composes:
        parts += ["Options of the run, as relgan-train has them:", explain_options(composes)]
    return "\n\n".join(parts)


def explain_options(groups: Collection[str] = ()) -> str:
    """Every option of the run (of these groups), those of any choice too, for ``--help``."""
    chosen = {f"{group}.name" for group in GROUPS}
    shown, notes = [], {}
    for name, (each, having) in every_option().items():
        group = name.partition(".")[0]
        if name in chosen or (groups and group not in groups):
            continue
        shown.append(each)
        others = [f"{choice} {text_of(value)}" for choice, value in having.items() if value != each.value]
        if having and len(having) < len(GROUPS[group]):
            notes[name] = f"of {', '.join(having)}"
        if others:
            notes[name] = "; ".join(filter(None, [notes.get(name), f"default of {', '.join(others)}"]))
    return explain(shown, notes)


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """Turn what the user can mend into one line and exit status 2; a stack trace is left for bugs."""
    try:
        with user_errors():
            yield
    except RelganError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn what Hydra and OmegaConf refuse into a RelganError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise RelganError(one_line(error)) from error


def is_rank() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def fail(message: str, status: int = EXIT_BAD_INPUT) -> NoReturn:
    """Say what is wrong on standard error and leave."""
    rank = f" (rank {os.environ['RANK']})" if is_rank() else ""
    print(f"{Path(sys.argv[0]).name}{rank}: {message}", file=sys.stderr)
    raise SystemExit(status)


def one_line(error: BaseException) -> str:
    """Hydra's and OmegaConf's several lines as one that names the option."""
    causes = list(_causes(error))
    if mine := next((cause for cause in causes if isinstance(cause, RelganError)), None):
        return str(mine)
    texts = [str(cause) for cause in causes]
    text = "\n".join(texts)
    if found := re.search(r"Could not (?:find|load) '([^']+)'", text):
        group, _, value = found[1].rpartition("/")
        if value in EXTRAS:
            return f"{group}={value}: its plugin is not installed; pip install 'relgan[{EXTRAS[value]}]'"
        return f"{group or 'config'}={value}: {_not_among(group, value, text)}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return f"{found[1]}: no such option{unknown(found[1])}"
    if found := re.search(r"(.*)\n\s*full_key: (\S+)", text):
        reason, name = found.groups()
        if re.match(r"Key '.*' (is )?not in ", reason):
            return f"{name}: no such option{unknown(name)}"
        return f"{name}: {reason}"
    return " ".join(texts[0].split())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _not_among(group: str, value: str, text: str) -> str:
    listed = text.partition("Available options in")[2].partition("Config search path")[0].splitlines()[1:]
    choices = [line.strip() for line in listed if line.strip()]
    hint = suggest(value, choices) or "; a part of your own needs plugins=[MODULE]"
    return f"not one of {', '.join(choices) or 'the known names'}{hint}"
