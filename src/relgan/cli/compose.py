"""The configuration out of conf/, the registered parts and the command line, by Hydra."""

from __future__ import annotations

import contextlib
import os
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from relgan.cli import workers
from relgan.cli.command import CommandOptions, Line, explain_options, is_rank
from relgan.cli.sweep import job_name, search_direction
from relgan.cli.words import as_typed, in_quotes
from relgan.config import Config, absolute_paths, check_name, home_of, metrics_class, resolve
from relgan.options import HELP_WIDTH, ConfigError, RelganError, first_line, is_there, read, user_path
from relgan.registry import GROUPS, Entry, load_plugins
from relgan.rundir import RunDir

STARTED = "RELGAN_STARTED"


def conf_dir() -> Path:
    """conf/ inside the installed package, else beside src/ in a checkout."""
    here = Path(__file__).resolve()
    candidates = (here.parents[1] / "conf", here.parents[3] / "conf")
    for candidate in candidates:
        if (candidate / "config.yaml").is_file():
            return candidate
    raise RelganError(f"the configuration directory is missing; looked in {candidates[0]} and {candidates[1]}")


def _folders(config_dir: Path | None) -> list[Path]:
    """Where configuration files lie: relgan's own, and the user's."""
    return [conf_dir(), *([config_dir] if config_dir is not None else [])]


def open_line(line: Line, *, sweep: bool = False) -> list[str]:
    """Load the plugins that a command line names, and make every part known to Hydra; safe to call twice.

    Args:
        sweep: commas separate values.

    Returns:
        the words as Hydra reads them.
    """
    load_plugins(_plugins(line.words), line.places)
    for word in line.words:
        group, _, rest = word.lstrip("+").partition(".")
        if group in GROUPS and rest.startswith("name="):
            raise ConfigError(f"{group}.name", f"choose it with {group}={rest.partition('=')[2]}")
        _refuse_path(word, line.config_dir)
    bases: dict[str, Any] = {group: registry.base() for group, registry in GROUPS.items()}
    ConfigStore.instance().store(name="relgan_schema", node=Config(**bases, metrics=metrics_class()()))
    for group in GROUPS:
        _store_choices(group, _folders(line.config_dir))
    OmegaConf.register_new_resolver("relgan_sweep", _sweep_name, replace=True)
    OmegaConf.register_new_resolver("relgan_job", lambda overrides: job_name(overrides), replace=True)
    OmegaConf.register_new_resolver("relgan_workers", workers.at_once, replace=True)
    OmegaConf.register_new_resolver("relgan_direction", _direction, replace=True)
    OmegaConf.register_new_resolver("relgan_run_dir", lambda time, *, _root_: _run_dir(time, _root_), replace=True)
    OmegaConf.register_new_resolver("relgan_refuse", _refuse, replace=True)
    OmegaConf.register_new_resolver("relgan_console", _console_level, replace=True)
    OmegaConf.register_new_resolver("relgan_log", lambda what: _logging()[what], replace=True)
    return as_typed(line.words, sweep=sweep)


def _refuse_path(word: str, config_dir: Path | None) -> None:
    """Say how a path is given where a data set's name was expected."""
    group, _, choice = word.partition("=")
    if group != "dataset" or choice in choices(config_dir)[group]:
        return
    if choice.startswith(("/", "~", ".")) or is_there(choice):
        line = shlex.join(["dataset=folder", f"dataset.path={choice}"])
        raise ConfigError(group, f"{choice} is a path; for a folder or archive of images give {line}")


def _store_choices(group: str, folders: Sequence[Path]) -> None:
    """Give Hydra the options of each part, and a choice of its name where no file is called like it.

    config.yaml puts ``options/GROUP/CHOICE`` below what the choice itself says.
    """
    store, registry = ConfigStore.instance(), GROUPS[group]
    for name, entry in registry.items():
        node = _structured(entry)
        store.store(group=f"options/{group}", name=name, package=group, node=node)
        if not any((folder / group / f"{name}.yaml").is_file() for folder in folders):
            store.store(group=group, name=name, node=node)
    for choice, name in _named_in(folders, group).items():
        if choice not in registry and name in registry:
            store.store(group=f"options/{group}", name=choice, package=group, node=_structured(registry[name]))


@cache
def _structured(entry: Entry[Any]) -> DictConfig:
    """A part's options as Hydra takes them; other people may have declared what it does not take."""
    try:
        node: DictConfig = OmegaConf.structured(replace(entry.options))
    except OmegaConfBaseException as error:
        raise ConfigError("plugins", f"options of {entry.name} of {entry.origin}: {first_line(error)}") from error
    return node


def _named_in(folders: Iterable[Path], group: str) -> dict[str, str]:
    """The files of a group that say ``name: PART``, and the part whose options they therefore refine."""
    found: dict[str, str] = {}
    for path in (path for folder in folders for path in (folder / group).glob("*.yaml")):
        # A damaged file is Hydra's to report, where it is chosen.
        with contextlib.suppress(OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
            text = path.read_text(encoding="utf-8")
            content = OmegaConf.create(text) if "name" in text else None
            if isinstance(content, DictConfig) and isinstance(name := content.get("name"), str):
                found[path.stem] = name
    return found


def compose(line: Line) -> Config:
    """The configuration that relgan-train would use with these words, for commands that do not train."""
    words = open_line(line)
    if line.config_dir is not None:
        words.append(f"hydra.searchpath=[{in_quotes(f'file://{line.config_dir.resolve()}')}]")
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return resolve(hydra.compose("config", words))


def _plugins(words: Iterable[str]) -> list[str]:
    """What ``plugins=[…]`` among the words says."""
    own = (word.lstrip("+") for word in words)
    return read(CommandOptions, [word for word in own if word.startswith("plugins=")]).plugins


def _sweep_name(time: str, *, _root_: DictConfig) -> str:
    check_name(_root_.name)
    return _root_.name or time


def _run_dir(time: str, root: DictConfig) -> str:
    try:
        # Hydra asks several times, and checking a configuration takes longer than all the rest.
        return str(run_directory(to_config(root, Path.cwd()) if root.resume == "auto" else root, time))
    except (RelganError, OSError):
        return str(home_of(root) / time)  # the task refuses it


def run_directory(config: Any, time: str) -> Path:
    """outputs/NAME/TIME; with resume=auto the directory of the run that goes on, if there is one.

    With ``resume=PATH`` the name is that of the run there, if no other is given.

    Args:
        config: a Config or, unless ``resume=auto``, its OmegaConf twin.
    """
    base = None
    if config.resume == "auto":
        from relgan.resume import newest

        if found := newest(home_of(config), config):
            return found
    elif config.resume is not None and config.name is None:
        base = _home_of_run(user_path(str(config.resume)).absolute())
    # The ranks of one job agree on it.
    return (base or home_of(config)) / os.environ.get(STARTED, time)


def _home_of_run(path: Path) -> Path | None:
    """Where runs of the name lie that the run directory or checkpoint at ``path`` has; None where it is unreadable."""
    beside = RunDir(path if path.is_dir() else path.parent.parent).read_config()
    try:
        if not beside and not path.is_dir():
            from relgan.training import checkpoint

            beside = checkpoint.load_newest(path)["config"]
        return home_of(OmegaConf.create(beside))
    except (RelganError, OmegaConfBaseException):
        return None


def to_config(node: DictConfig, base: Path) -> Config:
    """Check a composed configuration; Hydra's own part of it is left out.

    Args:
        base: where relative paths start: the directory in which the command was given.
    """
    options: list[Any] = [key for key in node if key != "hydra"]
    return absolute_paths(resolve(OmegaConf.masked_copy(node, options)), base)


def _refuse(option: str, reason: str) -> NoReturn:
    """For a file of conf/ that is composed only where choices do not go together."""
    raise ConfigError(option, reason)


def _direction(*, _root_: DictConfig) -> str:
    try:
        return search_direction(_root_.metrics.objective, _root_.metrics.scores)
    except ConfigError:
        return "minimize"  # the sweep's callback refuses it before anything starts


def _console_level(mode: RunMode) -> str:
    """In a sweep, the log of each job is in its own directory; the console has a line for each (relgan.cli.sweep)."""
    return "WARNING" if mode == RunMode.MULTIRUN else "NOTSET"


def _logging() -> dict[str, Any]:
    """How this process logs: of torchrun's ranks, all but the first show only what went wrong."""
    if is_rank() and os.environ["RANK"] != "0":
        return {"format": f"rank {os.environ['RANK']}: %(message)s", "level": "WARNING", "handlers": ["console"]}
    return {"format": "%(message)s", "level": "INFO", "handlers": ["console", "file"]}


def choices(config_dir: Path | None) -> dict[str, list[str]]:
    """The groups of the configuration and what each accepts."""
    found = {group: list(registry) for group, registry in GROUPS.items()}
    for folder in _folders(config_dir):
        for path in sorted(folder.glob("*/*.yaml")) + sorted(folder.glob("hydra/[ls]*er/*.yaml")):
            names = found.setdefault(path.parent.relative_to(folder).as_posix(), [])
            if path.stem not in names:
                names.append(path.stem)
    return found


def explain_config(config_dir: Path | None) -> str:
    """Every group and every option, those of any choice too, for ``--help``."""
    groups = [
        textwrap.fill(" ".join(names), HELP_WIDTH, initial_indent=f"  {group:<16}", subsequent_indent=" " * 18)
        for group, names in sorted(choices(config_dir).items())
    ]
    return "\n\n".join(
        ["Groups, GROUP=CHOICE:", "\n".join(groups), "Options, KEY=VALUE (null: not set):", explain_options()]
    )
