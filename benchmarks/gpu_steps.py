"""The steps of ``benchmarks.gpu_check``: each finds figures and failures in a process of its own."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.gpu_check import ROOT, Found, Setting
from benchmarks.scores import random_inception
from benchmarks.step import LOSSES, NETWORKS, build_iterate, contestants, flops, matmul_rate, seconds_each
from benchmarks.timing import PLAIN, interleave, peak_memory, speedup
from relgan.build import build_run
from relgan.cli.command import Line
from relgan.cli.compose import compose
from relgan.config import MetricsConfig
from relgan.device import Precision, has_bf16_units, has_tf32_units, prepare_device
from relgan.environment import git_commit, hardware, peak_memory_bytes, versions
from relgan.metrics.extractors import inception as inception_2015
from relgan.registry import DatasetOptions
from relgan.training.loop import Loop
from relgan.training.run import PACKAGES, Run
from relgan.training.signals import StopSignals
from relgan.training.strength import Strength
from relgan.training.update import Update

RUNS = {
    "ragan, batch norm": ("loss=ragan", "model=dcgan", "model.spectral_norm=false"),
    "wgan_gp, n_critic 5": ("loss=wgan_gp", "optimizer.n_critic=5", "model.spectral_norm=false"),
    "rpgan_r1r2": ("loss=rpgan_r1r2",),
    "ar1r2": ("loss=rsgan", "penalty=ar1r2"),
    "wgan, RMSprop": ("loss=wgan", "optimizer=rmsprop", "model.spectral_norm=false"),
    "cnn32": ("loss=rasgan", "model=cnn32"),
    "r3gan, beta2 moves": (
        *("loss=rpgan_r1r2", "model=r3gan", "model.width=64", "schedule.burn_in=10000", "schedule.beta2=0.95"),
    ),
    "pack 2, images in host memory": ("loss=sgan", "model.pack=2", "dataset.residence=host", "dataset.hflip=true"),
    "ada": ("loss=rasgan", "augment=ada"),
    "nothing redrawn": ("loss=ragan", "train.redraw_real=false", "train.redraw_fake=false"),
    "lazy r1, accumulate 2, labels": (
        *("loss=sgan", "penalty=r1", "penalty.interval=4", "train.accumulate=2", "dataset.labels=true"),
    ),
}
NEAR = 0.02  # relative; what the order of rounding may make of a loss after some updates


class Trained(NamedTuple):
    """A run that has ended, with the losses it has logged: key -> step -> value."""

    run: Run
    images_per_second: float | None
    logged: dict[str, dict[int, float]]

    @property
    def finite(self) -> bool:
        return all(math.isfinite(value) for steps in self.logged.values() for value in steps.values())


def _words(here: Setting, iterations: int, *words: str) -> list[str]:
    """The command line of a training in this setting."""
    # The digits' own rates are for critics with spectral norm.
    size = ["dataset.image_size=32", "train.batch_size=64", "optimizer=adam"]
    size += ["train.redraw_real=true", "train.redraw_fake=true"]
    if here.small:
        size += ["dataset.num_images=64", "train.batch_size=4", "train.sample_count=4", "model.width=2"]
        size += ["model.width=8", "model.group_width=4"] if "model=r3gan" in words else []
    given = {word.partition("=")[0]: word for word in (*PLAIN, *size, *words)}
    log_every = f"train.log_every={max(1, iterations // 4)}"
    return [
        f"device={here.device}",
        "dataset=stacked_digits",
        f"train.iterations={iterations}",
        log_every,
        *given.values(),
    ]


def _fresh(here: Setting, name: str) -> Path:
    """A run directory of that name which is not there yet."""
    folder = here.out / "runs" / name.replace(", ", "-").replace(" ", "_")
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _logged(directory: Path) -> dict[str, dict[int, float]]:
    logged: dict[str, dict[int, float]] = {}
    for line in (directory / "metrics.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        for key in ("train/loss_d", "train/loss_g", "train/grad_norm_d"):
            if key in record:
                logged.setdefault(key, {})[record["step"]] = record[key]
    return logged


def _train(here: Setting, name: str, words: Sequence[str], *, strict: bool = False) -> Trained:
    """Train in this process; with ``strict`` an iteration that waits for the GPU is an error."""
    run = build_run(compose(Line(list(words))), _fresh(here, name), words)
    loop = Loop(run, StopSignals(), show=False)
    iterate = loop.iterate

    def watched() -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            iterate()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    if strict and here.device == "cuda":
        loop.iterate = watched  # type: ignore[method-assign]
    try:
        loop.run_until_done()
    finally:
        run.close(0)
    return Trained(run, loop.speed.images_per_second, _logged(run.dir.path))


def _command(module: str, *words: str) -> list[str]:
    return [sys.executable, "-m", module, *words]


def _relative(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), abs(b), 1e-9)


def _best_engine(here: Setting) -> str:
    return "cudagraph" if here.device == "cuda" else "eager"


def _wait(here: Setting) -> None:
    if here.device == "cuda":
        torch.cuda.synchronize()


def machine(here: Setting, found: Found) -> None:
    device = prepare_device(here.device)
    for name, value in {**hardware(device), **versions(PACKAGES)}.items():
        found.figure(name, value)
    found.figure("commit", git_commit())
    if here.device == "cuda":
        about = torch.cuda.get_device_properties(device)
        found.figure("CUDA, capability", f"{torch.version.cuda}, {about.major}.{about.minor}")
        found.figure("GPU memory, GB", about.total_memory / 1e9)
        found.figure("GPUs", torch.cuda.device_count())
        with found.part("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
            found.figure("driver, power limit, clock", subprocess.check_output(query, text=True).splitlines()[0])
    for precision in ("fp32", *["tf32"] * has_tf32_units(device), *["bf16"] * has_bf16_units(device)):
        found.figure(f"large matrix products in {precision}, TFLOP/s", matmul_rate(device, precision) / 1e12)


def tests(here: Setting, found: Found) -> None:
    """The tests for a GPU, with torch's deterministic kernels."""
    report = here.out / "tests.xml"
    chosen = ["tests/training/test_gpu.py", "-k", "masked"] if here.small else ["-m", "gpu"]
    chosen += ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", f"--junit-xml={report}"]
    subprocess.run(_command("pytest", *chosen), cwd=ROOT, check=False)
    cases = list(ET.parse(report).getroot().iter("testcase"))
    broken = {
        case.attrib["name"]: child.attrib for case in cases for child in case if child.tag in ("failure", "error")
    }
    found.figure("tests", len(cases))
    found.figure("skipped", sum(child.tag == "skipped" for case in cases for child in case))
    found.expect(bool(cases), "no tests were found")
    for name, about in broken.items():
        found.expect(False, f"{name}: {about.get('message', '').splitlines()[0]}")


def runs(here: Setting, found: Found) -> None:
    """Short trainings of every kind, as a graph, in which no iteration waits for the GPU."""
    iterations = 4 if here.small else 200
    for name, words in RUNS.items():
        with found.part(name):
            trained = _train(here, name, _words(here, iterations, *words), strict=True)
            found.figure(f"{name}: engine", trained.run.engine)
            found.figure(f"{name}: images/s", trained.images_per_second)
            found.expect(trained.run.engine == _best_engine(here), f"{name} ran as {trained.run.engine}")
            found.expect(trained.run.state.step == iterations and trained.finite, f"{name} has diverged or stopped")


def waiting(here: Setting, found: Found) -> None:
    """A step that waits for the device cannot be recorded; training goes on without a graph."""
    steer = Strength.steer

    def waits(strength: Strength, compared: Tensor) -> None:
        steer(strength, compared)
        compared.sum().item()

    with patch.object(Strength, "steer", waits):
        trained = _train(here, "waiting", _words(here, 20, "loss=ragan", "model.spectral_norm=false"))
    found.figure("engine", trained.run.engine)
    found.expect(trained.run.engine == "eager", f"an iteration that waits ran as {trained.run.engine}")
    plain = _train(here, "not_waiting", _words(here, 20, "loss=ragan", "model.spectral_norm=false", "engine=eager"))
    ends = [next(iter(each.logged["train/loss_d"].values())) for each in (trained, plain)]
    found.figure("loss_d after 5 updates, and without", f"{ends[0]:.6g}, {ends[1]:.6g}")
    found.expect(_relative(*ends) < NEAR, "after a failed recording it trains otherwise")
    if here.device == "cuda":
        torch.cuda.empty_cache()  # refused where the allocator still believes in a recording


def evaluation(here: Setting, found: Found) -> None:
    """relgan-eval gives the scores that training ended with."""
    scores = ["metrics=default", "metrics.num_images=500", "metrics.modes_images=500", "metrics.every=0"]
    trained = _train(here, "scored", _words(here, 20, "loss=ragan", "model.spectral_norm=false", *scores))
    run, file = trained.run, here.out / "scores.json"
    command = _command(
        "relgan.cli.evaluate", str(run.dir.path), "checkpoint=last", f"device={here.device}", f"out={file}"
    )
    subprocess.run(command, check=True)
    again = json.loads(file.read_text())
    found.expect(again["protocol"]["precision"] == run.protocol["precision"], "the arithmetic is another one")
    for key, value in run.state.history.final.items():
        found.figure(key, value)
        difference = _relative(value, again["scores"][key])
        found.figure(f"{key}: relative difference of relgan-eval", difference)
        found.expect(difference <= (0 if here.device == "cpu" else 1e-3), f"relgan-eval gives another {key}")


def inception(here: Setting, found: Found) -> None:
    """Images a second of the scores' network (random weights) in every layout, arithmetic and batch."""
    device = prepare_device(here.device)
    weights = str(random_inception(here.out / "inception-random.pth"))
    batches, repeats = ((4,), 1) if here.small else ((100, 500), 5)
    units = ["fp32", *["tf32"] * has_tf32_units(device), *["bf16"] * (has_bf16_units(device) and not here.small)]
    for precision, batch in product(units, batches):
        options = MetricsConfig(extractor="inception", weights=weights, precision=precision)
        extractor = inception_2015.build(options, DatasetOptions(name="cifar10"), device)
        images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, device=device)
        for name, layout in {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}.items():
            with found.part(f"{precision}, {name}, batch {batch}"):
                rate = _images_per_second(
                    here, extractor.network, images, layout, Precision(device, precision), repeats
                )
                found.figure(f"{precision}, {name}, batch {batch}: images/s", rate)
        with found.part(f"{precision}, batch {batch}: the choice"):
            extractor(images)
            found.figure(f"{precision}, batch {batch}: chosen", str(extractor._layout))


@torch.no_grad()
def _images_per_second(
    here: Setting, network: nn.Module, images: Tensor, layout: torch.memory_format, precision: Precision, repeats: int
) -> float:
    network.to(memory_format=layout)
    laid_out, seconds = images.contiguous(memory_format=layout), []
    with precision.in_force(), precision.autocast():
        for _ in range(repeats + 1):
            _wait(here)
            started = time.perf_counter()
            network(laid_out)
            _wait(here)
            seconds.append(time.perf_counter() - started)
    return len(images) / statistics.median(seconds[1:])


def memory(here: Setting, found: Found) -> None:
    """What a step at 128 pixels takes, and what of the GPU others cannot have meanwhile."""
    size = (
        ("dataset.image_size=32",)
        if here.small
        else ("dataset.image_size=128", "dataset.num_images=256", "train.batch_size=32")
    )
    for penalty in ((), ("penalty=r1", "penalty.interval=4")):
        held: dict[str, float] = {}
        for engine in dict.fromkeys(("eager", _best_engine(here))):
            name = f"{engine}, lazy penalty" if penalty else engine
            with found.part(name):
                words = ("loss=ragan", "model.spectral_norm=false", *penalty, *size, f"engine={engine}")
                trained = _train(here, f"memory_{name}", _words(here, 12, *words))
                most = (peak_memory_bytes(trained.run.device) or 0) / 1e9
                found.figure(f"{name}: most allocated, with what cuDNN tries out, GB", most)
                if here.device == "cuda":
                    held[engine] = torch.cuda.memory_reserved() / 1e9
                    found.figure(f"{name}: reserved at the end, GB", held[engine])
                del trained
                _forget(here)
        if len(held) == 2:
            found.expect(held["cudagraph"] < 2 * held["eager"], f"{name}: far more memory than the eager step")


def _forget(here: Setting) -> None:
    import gc

    gc.collect()
    if here.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def speed(here: Setting, found: Found) -> None:
    """relgan's iteration against the textbook's, what of it is launching kernels, and how near the floor it is."""
    device = prepare_device(here.device)
    engines = list(dict.fromkeys(("eager", _best_engine(here))))
    rounds, loss = 1 if here.small else 9, "rasgan"
    rate = matmul_rate(device)
    for network in ("cnn32",) if here.small else NETWORKS:
        batch = NETWORKS[network].batch
        with found.part(network):
            ways = contestants(network, loss, engines, device)
            if here.small:
                ways = {name: ways[name] for name in ("textbook, fp32", "relgan, fp32, eager")}
            measured = interleave(ways, rounds=rounds, warmup=1 if here.small else 2, facts=peak_memory)
            for name in ways.keys() - measured.keys():
                found.expect(False, f"{network}: {name} has ended with an error")
            textbooks = [name for name in measured if name.startswith("textbook")]
            for name, one in measured.items():
                middle = seconds_each(one, device)
                what = f"{network}, {loss}, batch {batch}: {name}"
                found.figure(f"{what}: images/s", batch / middle)
                for textbook in textbooks:
                    found.figure(f"{what}: times {textbook}", speedup(measured[textbook].seconds, one.seconds))
                found.figure(f"{what}: share of the rate of float32 products", flops(network, loss) / middle / rate)
        for engine in engines:
            with found.part(f"{network}, {engine}: launching"):
                iterate = build_iterate(network, loss, LOSSES[loss], "fp32", engine, here.device)
                found.figure(f"{network}, {engine}: share of launching", _launching(here, iterate, rounds))
        # The weights of a critic with spectral norm are computed, and autocast keeps only casts of parameters.
        if network == "dcgan64" and has_bf16_units(device):
            with found.part(f"{network}: one autocast region"):
                found.figure(f"{network}: times as fast with one autocast region", _one_region(here, network, loss))


def _launching(here: Setting, iterate: Callable[[], None], rounds: int) -> float:
    """Share of an iteration's time until the host is free again."""
    shares = []
    for _ in range(rounds + 2):
        _wait(here)
        started = time.perf_counter()
        iterate()
        launched = time.perf_counter()
        _wait(here)
        shares.append((launched - started) / (time.perf_counter() - started))
    return statistics.median(shares[2:])


def _one_region(here: Setting, network: str, loss: str) -> float:
    """Weights cast to bfloat16 once for real and fake images, against anew in each forward pass."""
    seconds = []
    apart = Update.update_critic

    def together(update: Update, *arguments: Any, **how: Any) -> Any:
        with update.precision.autocast():
            return apart(update, *arguments, **how)

    for way in (apart, together):
        with patch.object(Update, "update_critic", way):
            iterate = build_iterate(network, loss, LOSSES[loss], "bf16", _best_engine(here), here.device)
            taken = []
            for _ in range(30):
                _wait(here)
                started = time.perf_counter()
                iterate()
                _wait(here)
                taken.append(time.perf_counter() - started)
        seconds.append(statistics.median(taken[5:]))
    return seconds[0] / seconds[1]


def stop(here: Setting, found: Found) -> None:
    """A run that SIGTERM stops and the same line continues ends as one that nothing stopped."""
    iterations = 60 if here.small else 3000
    words = _words(here, iterations, "loss=ragan", "model.spectral_norm=false", "precision=fp32")
    words += ["train.log_every=2" if here.small else "train.log_every=50", "deterministic=true"]
    directories = [_fresh(here, name) for name in ("whole", "stopped")]
    whole, stopped = (
        _command("relgan.cli.train", *words, f"hydra.run.dir={path}", "resume=auto") for path in directories
    )
    subprocess.run(whole, check=True)
    process = subprocess.Popen(stopped)
    while process.poll() is None and not _has_logged(directories[1], 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    found.figure("exit status after SIGTERM", process.wait())
    found.expect(process.returncode == 143, "SIGTERM did not stop it")
    at = json.loads((directories[1] / "summary.json").read_text())["step"]
    found.figure("stopped at update", f"{at} of {iterations}")
    subprocess.run(stopped, check=True)
    losses = [_logged(path)["train/loss_d"] for path in directories]
    found.expect(losses[0].keys() == losses[1].keys(), "the continued run has logged other updates")
    differences = {step: _relative(losses[0][step], losses[1][step]) for step in losses[0]}
    after = min(step for step in differences if step > at)
    found.figure("relative difference of loss_d after the stop", differences[after])
    found.figure("… at the end", differences[iterations])
    found.expect(not any(differences.values()), "the continued run differs")


def _has_logged(directory: Path, lines: int) -> bool:
    file = directory / "metrics.jsonl"
    return file.exists() and file.read_text("utf-8").count('"train"') >= lines


def ranks(here: Setting, found: Found) -> None:
    """Two ranks on one device by gloo compute what one does; on two GPUs by NCCL, as a graph."""
    words = _words(
        here, 20, "loss=rasgan", "model.norm=none", "model.spectral_norm=false", "engine=eager", "precision=fp32"
    )
    alone = _train(here, "one_rank", words).logged
    folder, store = _fresh(here, "two_ranks"), _fresh(here, "two_ranks_meet")
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=_rank, args=(number, str(store), words, str(folder))) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found.expect([process.exitcode for process in processes] == [0, 0], "a rank has failed")
    _compare(found, "two ranks by gloo", _logged(folder), alone)
    if here.device != "cuda" or torch.cuda.device_count() < 2:
        found.figure("two ranks by NCCL", "not tried: one GPU")
        return
    with found.part("NCCL"):
        folder = _fresh(here, "two_gpus")
        line = [word for word in words if not word.startswith("engine=")] + [f"hydra.run.dir={folder}"]
        launcher = ("--standalone", "--nproc-per-node=2", "-m", "relgan.cli.train")
        subprocess.run(_command("torch.distributed.run", *launcher, *line), check=True)
        log = (folder / "train.log").read_text()
        found.expect("engine: cudagraph" in log and "engine: eager" not in log, "two GPUs did not get a graph")
        _compare(found, "two ranks by NCCL", _logged(folder), alone)


def _rank(number: int, store: str, words: list[str], folder: str) -> None:
    torch.set_num_threads(1)
    # Both on the first GPU.
    os.environ["LOCAL_RANK"] = "0"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    run = build_run(compose(Line(words)), Path(folder), words)
    Loop(run, StopSignals(), show=False).run_until_done()
    run.close(0)
    torch.distributed.destroy_process_group()


def _compare(found: Found, name: str, losses: dict[str, dict[int, float]], alone: dict[str, dict[int, float]]) -> None:
    key = "train/loss_d"
    first, last = min(alone[key]), max(alone[key])
    for step in (first, last):
        difference = _relative(losses[key][step], alone[key][step])
        found.figure(f"{name}: relative difference of loss_d at update {step}", difference)
        found.expect(difference < NEAR, f"{name} differ from one at update {step}")


def cifar10(here: Setting, found: Found) -> None:
    """Three minutes on the real images, with the distance at their end."""
    if here.images is None and not here.small:
        found.skip("no images (--images cifar10.zip)")
        return
    data = ["dataset=folder", f"dataset.path={here.images}", "dataset.image_size=32"] if here.images else []
    words = ["model=cnn32", "loss=rasgan", *data]
    start = _train(here, "cifar10_start", _words(here, 8 if here.small else 400, *words))
    assert start.images_per_second is not None
    iterations = 8 if here.small else round(150 * start.images_per_second / 64)
    found.figure("images/s", start.images_per_second)
    found.figure("updates", iterations)
    scores = ["metrics=default", "metrics.every=0", "metrics.num_images=5000"]
    small = ["metrics.num_images=50", "metrics.modes_images=50"]
    trained = _train(here, "cifar10", _words(here, iterations, *words, *scores, *(small if here.small else [])))
    found.figure("engine", trained.run.engine)
    found.figure("seconds", trained.run.state.seconds)
    for key, value in trained.run.state.history.final.items():
        found.figure(key, value)
    found.expect(bool(trained.run.state.history.final), "there is no score")


def sharing(here: Setting, found: Found) -> None:
    """Small runs that share a device: what all together train on in a second."""
    words = _words(here, 8 if here.small else 2000, "loss=rasgan", "model.spectral_norm=false")
    for count in (1, 2) if here.small else (1, 2, 4):
        with found.part(f"{count} at once"):
            folders = [_fresh(here, f"sharing_{count}_{number}") for number in range(count)]
            started = [
                subprocess.Popen(_command("relgan.cli.train", *words, f"hydra.run.dir={each}")) for each in folders
            ]
            found.expect([process.wait() for process in started] == [0] * count, f"one of {count} at once has failed")
            rates = [json.loads((folder / "summary.json").read_text())["images_per_second"] for folder in folders]
            found.figure(f"{count} at once: images/s of all", sum(rates))
