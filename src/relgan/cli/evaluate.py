"""relgan-eval: score a checkpoint again, or any folder or archive of pictures."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relgan.cli import app
from relgan.config import DATASET_NAMES, Config, ConfigError, DatasetConfig, RelganError

if TYPE_CHECKING:
    from relgan.rescore import Result

HELP = """relgan-eval run=RUN_DIRECTORY [checkpoint=best|last] [metrics=…] [out=FILE.json]
relgan-eval images=FOLDER_OR_ZIP reference=FOLDER_OR_ZIP_OR_DATASET [metrics=…] [out=FILE.json]

  run=PATH            a run directory or a checkpoint; scored as in training unless metrics say otherwise
  checkpoint=NAME     also one of train.keep_checkpoints or train.keep_best: step_00000500, best_00000500
  images=PATH         pictures of any size, scored at that size
  reference=…         what they are compared with: pictures, or a dataset name (dataset.path=… where it needs one)
  out=FILE.json       also write {"scores": …, "protocol": …}

  metrics=default|quick|paper_cifar10   metrics.scores=[fid,is,kid,precision,recall,lpips_diversity]
  metrics.extractor=auto|inception|efficientnet_lite0|digits   metrics.weights=FILE   metrics.num_images=N
  seed=N   device=auto|cpu|cuda|mps
"""
_OWN = ("run", "checkpoint", "images", "reference", "out")
_RUN_MAY_CHANGE = ("metrics", "device", "seed", "dataset.path")


def main() -> None:
    with app.guard():
        _main(sys.argv[1:])


def _main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    own = {key: value for key, _, value in (argument.partition("=") for argument in arguments) if key in _OWN}
    overrides = [argument for argument in arguments if argument.partition("=")[0] not in _OWN]
    if ("run" in own) == ("images" in own):
        raise RelganError("give either run=RUN_DIRECTORY or images=FOLDER_OR_ZIP")
    out = Path(own["out"]) if "out" in own else None
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError("out", f"{out.parent} is not a directory")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    result = _run(own, overrides) if "run" in own else _pictures(own, overrides)
    _print_table(result)
    if out is not None:
        out.write_text(json.dumps(result._asdict(), indent=2) + "\n", "utf-8")


def _names(overrides: list[str]) -> list[str]:
    return sorted({override.partition("=")[0].lstrip("+") for override in overrides})


def _run(own: dict[str, str], overrides: list[str]) -> Result:
    from omegaconf import OmegaConf

    from relgan.rescore import score_run
    from relgan.training.generator import load_checkpoint

    composed = app.compose(overrides)
    saved = load_checkpoint(own["run"], own.get("checkpoint", "best"))
    config = app.to_config(OmegaConf.create(saved["config"]))
    return score_run(saved, _changed(config, composed, overrides))


def _changed(saved: Config, composed: Config, overrides: list[str]) -> Config:
    """The run's configuration with what the command line names; metrics=NAME replaces all of the run's own."""
    config = copy.deepcopy(saved)
    for name in _names(overrides):
        if not any(name == known or name.startswith(f"{known}.") for known in _RUN_MAY_CHANGE):
            raise ConfigError(name, f"with run=, only {', '.join(_RUN_MAY_CHANGE)} can be given")
        *groups, option = name.split(".")
        source: Any = composed
        target: Any = config
        for group in groups:
            source, target = getattr(source, group), getattr(target, group)
        setattr(target, option, getattr(source, option))
    return config


def _pictures(own: dict[str, str], overrides: list[str]) -> Result:
    from relgan.data import prepare
    from relgan.metrics.pictures import Pictures
    from relgan.metrics.reference import StoreImages
    from relgan.rescore import score_pictures

    reference = own.get("reference")
    if reference is None:
        raise ConfigError("reference", f"give a folder, a zip archive or one of {', '.join(DATASET_NAMES)}")
    known = reference in DATASET_NAMES
    config = app.compose([*overrides, *([f"dataset={reference}"] if known else [])])
    names = _names(overrides)
    if "metrics.reference_images" not in names:
        config.metrics = dataclasses.replace(config.metrics, reference_images=None)
    limit = config.metrics.num_images if "metrics.num_images" in names else None
    pictures = Pictures(own["images"], "images")
    if known:
        return score_pictures(pictures, StoreImages(prepare(config.dataset)), config, config.dataset, limit)
    return score_pictures(pictures, Pictures(reference, "reference"), config, DatasetConfig(name="folder"), limit)


def _print_table(result: Result) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("score", "value")
    for key, value in result.scores.items():
        table.add_row(key, f"{value:.6g}")
    console = Console()
    console.print(table)
    protocol = result.protocol
    known = "" if protocol.get("weights_known", True) else " with unpublished weights"
    console.print(
        f"{protocol.get('extractor', 'no feature network')}{known}, {protocol['num_images']} images against "
        f"{protocol['reference_images']} of {protocol['reference']['name']}",
        highlight=False,
    )


if __name__ == "__main__":
    main()
