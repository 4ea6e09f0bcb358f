"""What all commands share: their options, ``--help``, one-line errors and exit statuses."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn, TypeVar

from relgan import __version__
from relgan.config import every_option, unknown
from relgan.options import ConfigError, RelganError, explain, is_loose, option, read, suggest, text_of, user_path, walk
from relgan.registry import GROUPS, load_plugins
from relgan.streams import lossy
from relgan.training.signals import leaving

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
        """Read it; RelganError for what no file of ours could hold, and for a ``--config-dir`` that is none."""
        rest, folder = [], None
        given = iter(arguments)
        for word in given:
            if any("\ud800" <= letter <= "\udfff" for letter in word):
                raise RelganError(f"{word}: is not UTF-8; rename that file, or give a link to it of another name")
            flag, sign, value = word.partition("=")
            if flag in CONFIG_DIR:
                place = value if sign else next(given, "")
                folder = user_path(place)
                if not (place and folder.is_dir()):
                    raise ConfigError(flag, f"{place} is not a directory" if place else "needs a directory")
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
    """Turn what the user can mend into one line and exit status 2; a stack trace is left for bugs.

    Output that nobody can read ends nothing, and a signal leaves nothing half-written.
    """
    with lossy(), leaving():
        try:
            with user_errors():
                _check_working_directory()
                yield
        except RelganError as error:
            fail(str(error))
        except KeyboardInterrupt:
            raise SystemExit(130) from None


def _check_working_directory() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise RelganError(f"the working directory cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn what Hydra and OmegaConf refuse, and a path that no system takes, into a RelganError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise RelganError(one_line(error)) from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise RelganError(f"{error.filename}: {error.strerror}") from error


def is_rank() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def again(**options: str) -> str:
    """The line of relgan-train that was given, quoted for the shell, with other values of these ``options``."""
    program = ["relgan-train"]
    if is_rank():
        program = ["torchrun", "--standalone", f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}"]
        program += ["-m", "relgan.cli.train"]
    kept = [word for word in sys.argv[1:] if word.lstrip("+").partition("=")[0] not in options]
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join
    return join([*program, *kept, *(f"{name}={value}" for name, value in options.items())])


def fail(message: str, status: int = EXIT_BAD_INPUT) -> NoReturn:
    """Say what is wrong on standard error and leave."""
    rank = f" (rank {os.environ['RANK']})" if is_rank() else ""
    print(f"{Path(sys.argv[0]).name}{rank}: {message}", file=sys.stderr)
    raise SystemExit(status)


def one_line(error: BaseException) -> str:
    """Hydra's and OmegaConf's several lines as one that names the option."""
    from hydra.errors import OverrideParseException

    from relgan.cli.words import in_quotes

    causes = list(_causes(error))
    if mine := next((cause for cause in causes if isinstance(cause, RelganError)), None):
        return str(mine)
    if word := next((cause.override for cause in causes if isinstance(cause, OverrideParseException)), None):
        key, sign, value = word.partition("=")
        if not sign:
            return f"{word}: options are KEY=VALUE"
        return f"{word}: cannot be read; in quotes it can: {shlex.quote(f'{key}={in_quotes(value)}')}"
    texts = [str(cause) for cause in causes]
    text = "\n".join(texts)
    if found := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        return f"{found[1]}: several values need -m; a list is [{found[2]}]"
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
        if "is not a ListConfig" in reason:
            return f"{name}: must be a list, [A,B]"
        if "is not Optional" in reason:
            return f"{name}: null is not accepted"
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
