"""Run directories made up for tests: the files of a run, with curves that look like one."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

STEPS = 2000
PROTOCOL = {
    "metrics": "default",
    "num_images": 2000,
    "reference_images": 5000,
    "reference": {"name": "stacked_digits", "fingerprint": "f00d"},
    "generator": "ema",
    "generator_mode": "eval",
    "batch_size": 100,
    "seed": 1,
    "versions": {"numpy": "2.0"},
    "extractor": "digits",
    "weights": "abc",
    "weights_known": True,
    "modes_images": 10000,
    "modes_weights": "abc",
}


def options(loss: str, dataset: str, seed: int, **changed: Any) -> dict[str, Any]:
    """A configuration; ``changed`` has double underscores for dots (optimizer__n_critic=2)."""
    config: dict[str, Any] = {
        "name": "made",
        "seed": seed,
        "loss": {"name": loss, "generator_terms": "both"},
        "penalty": {"name": "none", "weight": 0.0},
        "dataset": {"name": dataset, "image_size": 32, "split": "all"},
        "optimizer": {"lr_g": 0.0002, "n_critic": 1, "betas": [0.5, 0.999]},
        "train": {"iterations": STEPS, "batch_size": 64, "log_every": 25},
        "metrics": {"num_images": 2000},
    }
    for key, value in changed.items():
        group, _, option = key.partition("__")
        config.setdefault(group, {})[option] = value
    return config


def scores(loss: str, seed: int, progress: float) -> dict[str, float]:
    """Scores that improve; relativistic losses do better, each seed a little differently."""
    rng = random.Random(f"{loss}{seed}")
    skill = (0.9 if loss.startswith("r") else 0.6) + rng.uniform(-0.05, 0.05)
    modes = round(1000 * skill * (1 - math.exp(-4 * progress)))
    return {
        "eval/fd_digits": 20 + 1500 * math.exp(-5 * skill * progress) / (1 + progress),
        "eval/modes": float(max(modes, 1)),
        "eval/mode_kl": 6.9 * math.exp(-3 * skill * progress),
        "eval/seconds": 3.0,
    }


def losses(loss: str, seed: int, progress: float) -> dict[str, float]:
    """What training logs."""
    rng = random.Random(f"{loss}{seed}{progress}")
    relativistic = loss.startswith("r")
    real = 0.55 + 0.4 * math.exp(-progress if relativistic else -0.2 * progress) + rng.uniform(-0.03, 0.03)
    fake = 1 - real if relativistic else 0.08 + rng.uniform(0, 0.05)
    pull = 0.5 * math.exp(-3 * progress) + 0.01
    return {
        "train/loss_d": real,
        "train/loss_g": 1 - real,
        "train/penalty": 0.0 if loss == "sgan" else 0.2 * real,
        "train/logit_real": 4 * progress if relativistic else real,
        "train/logit_fake": 4 * progress - real if relativistic else -real,
        "train/prob_real": real,
        "train/prob_fake": fake,
        "train/pull_real": pull * rng.uniform(0.9, 1.1) * (1 if relativistic else 0.1),
        "train/pull_fake": pull * rng.uniform(0.9, 1.1),
        "train/grad_norm_d": 3 * math.exp(-progress) * rng.uniform(0.8, 1.2),
        "train/grad_norm_g": 8 * (1 if relativistic else 3) * rng.uniform(0.6, 1.4),
        "train/images_per_second": 1000.0,
    }


def picture(path: Path, progress: float) -> Path:
    """A grid that changes with progress."""
    size = 264
    noise = Image.effect_noise((size, size), 80)
    shade = Image.linear_gradient("L").resize((size, size))
    Image.merge("RGB", [Image.blend(noise, shade, progress)] * 3).save(path)
    return path


def make_run(
    path: Path,
    loss: str = "ragan",
    dataset: str = "stacked_digits",
    seed: int = 1,
    *,
    status: str = "finished",
    ended: float = 1.0,
    log_every: int = 25,
    protocol: dict[str, Any] | None = None,
    pictures: list[Path] | None = None,
    error: str | None = None,
    **changed: Any,
) -> Path:
    """Write a run directory that got as far as the fraction ``ended``."""
    (path / "samples").mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(options(loss, dataset, seed, **changed)))
    last = int(STEPS * ended)
    rows: list[dict[str, Any]] = []
    for step in range(0, last + 1, log_every):
        time = {"step": step, "time_s": step / 10}
        if step:
            rows.append({"kind": "train", **time, **losses(loss, seed, step / STEPS)})
        if step % 250 == 0:
            rows.append({"kind": "eval", **time, **scores(loss, seed, step / STEPS)})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for quarter, source in enumerate(pictures or []):
        if quarter / 4 <= ended:
            os.link(source, path / "samples" / f"step_{STEPS * quarter // 4:08d}.png")
    if pictures:
        os.link(pictures[-1], path / "samples" / "real.png")
    reference = {**PROTOCOL["reference"], "name": dataset}  # type: ignore[dict-item]
    summary = {
        "status": status,
        "step": last,
        "seconds": last / 10,
        "images_per_second": 1000.0,
        "seed": seed,
        "protocol": {**PROTOCOL, "reference": reference, "seed": seed} if protocol is None else protocol,
        "command": [f"loss={loss}", f"dataset={dataset}", f"seed={seed}"],
        "versions": {"torch": "2.9"},
        "hardware": {"device": "cpu"},
        "error": error,
    }
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def make_sweep(root: Path, losses: list[str], datasets: list[str], seeds: int, log_every: int = 25) -> Path:
    """loss × dataset × seed, with one diverged and one failed job."""
    root.mkdir(parents=True)
    pictures = [picture(root / f"picture{quarter}.png", quarter / 4) for quarter in range(5)]
    for dataset in datasets:
        for loss in losses:
            for seed in range(1, seeds + 1):
                options: dict[str, Any] = {"log_every": log_every, "pictures": pictures}
                if (loss, dataset, seed) == (losses[0], datasets[0], seeds):
                    options |= {"status": "diverged", "ended": 0.5}
                if (loss, dataset, seed) == (losses[1], datasets[0], seeds):
                    trace = "Traceback (most recent call last):\nRuntimeError: out of memory"
                    options |= {"status": "failed", "ended": 0.25, "error": trace}
                make_run(root / f"{dataset}-{loss}-{seed}", loss, dataset, seed, **options)
    return root
