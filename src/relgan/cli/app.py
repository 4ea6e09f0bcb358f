"""What the commands share: finding conf/, composing a checked Config, one-line errors and exit statuses."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from relgan.cli.sweep import job_name, search_direction
from relgan.config import Config, ConfigError, RelganError, run_name, validate, walk

Task = Callable[[Config, Path], Any]

EXIT_BAD_INPUT = 2
STARTED = "RELGAN_STARTED"

# Hydra's launchers and sweepers of others, and the extra that installs each.
PLUGINS = {
    **dict.fromkeys(("joblib", "submitit_local", "submitit_slurm"), "launchers"),
    **{"ray": "ray", "ray_aws": "ray", "optuna": "optuna"},
}


def is_rank() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def conf_dir() -> Path:
    """conf/ inside the installed package, else beside src/ in a checkout."""
    here = Path(__file__).resolve()
    candidates = (here.parents[1] / "conf", here.parents[3] / "conf")
    for candidate in candidates:
        if (candidate / "config.yaml").is_file():
            return candidate
    raise RelganError(f"the configuration directory is missing; looked in {candidates[0]} and {candidates[1]}")


def to_config(node: DictConfig) -> Config:
    """Check a composed (or stored) configuration against the schema; plain dataclass objects come back."""
    # As plain values, because an option added with + would keep its own place beside the schema.
    merged = OmegaConf.merge(OmegaConf.structured(Config), _plain(node))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    validate(config)
    return config


def _run_dir(time: str, root: DictConfig) -> str:
    """outputs/NAME/TIME; with resume=auto the newest unfinished run of the same configuration, if any."""
    time = os.environ.get(STARTED, time)
    base = Path("outputs") / run_name(root)
    if root.resume == "auto":
        from relgan.rundir import newest_unfinished

        options: list[Any] = [key for key in root if key != "hydra"]
        found = newest_unfinished(base, _plain(OmegaConf.masked_copy(root, options)))
        if found is not None:
            return str(found)
    return str(base / time)


def _direction(*, _root_: DictConfig) -> str:
    try:
        return search_direction(_root_.metrics.objective, _root_.metrics.scores)
    except ConfigError:
        return "minimize"  # the sweep's callback refuses it before anything starts


def _plain(node: DictConfig) -> dict[Any, Any]:
    container = OmegaConf.to_container(node, resolve=True)
    assert isinstance(container, dict)
    return container


def register() -> None:
    """Make the schema and the resolvers of conf/ known to Hydra; safe to call twice."""
    # Hydra copies the whole store for every group that --help lists, and once more whatever is loaded from it:
    # without the first, help takes a third of the time.
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    ConfigStore.instance().store(name="relgan_schema", node=Config)
    OmegaConf.register_new_resolver("relgan_sweep", lambda time, *, _root_: _root_.name or time, replace=True)
    OmegaConf.register_new_resolver("relgan_job", lambda overrides: job_name(overrides), replace=True)
    OmegaConf.register_new_resolver("relgan_direction", _direction, replace=True)
    OmegaConf.register_new_resolver("relgan_run_dir", lambda time, *, _root_: _run_dir(time, _root_), replace=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _suggest(option: str) -> str:
    options = [name for name, _, _ in walk(Config())]
    known = {name.partition(".")[0] for name in options} | set(options)
    close = difflib.get_close_matches(option, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else "; relgan-train --help lists the options"


def _choices(text: str) -> str:
    listed = text.partition("Available options in")[2].partition("Config search path")[0].splitlines()[1:]
    return ", ".join(line.strip() for line in listed if line.strip())


def one_line(error: BaseException) -> str:
    """Hydra's and OmegaConf's several lines as one that names the option."""
    texts = [str(cause) for cause in _causes(error)]
    text = "\n".join(texts)
    if found := re.search(r"Could not (?:find|load) '([^']+)'", text):
        group, _, value = found[1].rpartition("/")
        if value in PLUGINS:
            return f"{group}={value}: its plugin is not installed; pip install 'relgan[{PLUGINS[value]}]'"
        return f"{group or 'config'}={value}: not one of {_choices(text) or 'the known names'}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return f"{found[1]}: no such option{_suggest(found[1])}"
    if found := re.search(r"full_key: (\S+)", text):
        reason = next((t for t in texts if "full_key" in t), text).splitlines()[0]
        if "not in" in reason:
            return f"{found[1]}: no such option{_suggest(found[1])}"
        return f"{found[1]}: {reason}"
    return " ".join(texts[0].split())


def fail(message: str, status: int = EXIT_BAD_INPUT) -> NoReturn:
    rank = f" (rank {os.environ['RANK']})" if is_rank() else ""
    print(f"{Path(sys.argv[0]).name}{rank}: {message}", file=sys.stderr)
    raise SystemExit(status)


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """Turn what the user can mend into one line and exit status 2; a stack trace is left for bugs."""
    try:
        yield
    except RelganError as error:
        fail(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        fail(one_line(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def compose(overrides: list[str]) -> Config:
    """The configuration that relgan-train would use with these arguments, for commands that do not train."""
    register()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return to_config(hydra.compose("config", overrides))


@contextlib.contextmanager
def ranks() -> Iterator[None]:
    """Join torchrun's other ranks, if there are any: one run directory for all, and one that reports."""
    if not is_rank():
        yield
        return
    from relgan import distributed

    distributed.join()
    os.environ[STARTED] = distributed.from_main(f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    if not distributed.is_main():
        # Beside the other overrides, which argparse wants in one piece.
        place = next((i for i, word in enumerate(sys.argv) if i and "=" in word and word[0] != "-"), len(sys.argv))
        sys.argv.insert(place, "hydra/job_logging=rank")
    yield
    distributed.leave()


def run(task: Task) -> None:
    """Compose the configuration from the command line and call ``task(config, run_dir)``.

    Exit statuses: 0 finished, 2 bad input, 130/143 interrupted, 1 anything else (with a stack trace).
    """
    # Hydra would print its own several lines and exit with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register()

    started = False

    def compose_and_call(node: DictConfig) -> Any:
        nonlocal started
        started = True
        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.MULTIRUN and is_rank():
            fail("--multirun: torchrun trains one run on its ranks; start one per job, or sweep without torchrun")
        # In a single run, leaving here keeps Hydra from printing its own report first; a sweep goes on.
        with guard() if hydra_config.mode == RunMode.RUN else contextlib.nullcontext():
            run_dir = Path(hydra_config.runtime.output_dir)
            try:
                return task(to_config(node), run_dir)
            except (RelganError, OmegaConfBaseException):
                with contextlib.suppress(OSError):
                    run_dir.rmdir()  # only where nothing was written
                raise

    with guard(), ranks():
        try:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(compose_and_call)()
        except ValueError as error:
            if "Only one of --run" in str(error):
                raise RelganError("-m does not go with --cfg or --info") from error
            if "Config group override" not in str(error):
                raise
            given = ", ".join(argument for argument in sys.argv[1:] if argument.endswith("=null"))
            raise RelganError(f"{given}: a group takes one of its choices; relgan-train --help lists them") from error
        except OSError as error:
            if started or isinstance(error, HydraException):
                raise
            raise ConfigError("hydra.run.dir", f"{error.filename}: {error.strerror}") from error
