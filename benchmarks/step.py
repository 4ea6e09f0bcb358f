"""relgan's iteration against the same iteration as textbooks write it (benchmarks/textbook.py).

One critic and one generator update, each with new real images and latents. ``python -m benchmarks.step`` prints
images per second, how many times faster than the textbook in the same rounds, peak memory, and the share of the
device's measured rate of float32 matrix products that the textbook's arithmetic in that time makes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.textbook import GP_WEIGHT, LATENT, R1R2_WEIGHT, WIDTH, Textbook
from benchmarks.timing import Measured, Prepare, interleave, peak_memory, speedup
from relgan.builtin import ConvOptions
from relgan.config import OptimizerConfig
from relgan.data.batches import Batches, Sampler
from relgan.data.store import PackedStore
from relgan.losses import get_loss
from relgan.networks import build_networks
from relgan.penalties import GradientPenalty, Penalty, ZeroCenteredPenalty
from relgan.training.engine import Eager, build_iteration, choose_precision, has_bf16_units, prepare_device
from relgan.training.optimizers import build_optimizers
from relgan.training.state import EMA
from relgan.training.update import Update

NUM_IMAGES = 1024
PENALTIES = {
    "sgan": Penalty(),
    "rasgan": Penalty(),
    "wgan_gp": GradientPenalty(GP_WEIGHT),
    "rpgan_r1r2": ZeroCenteredPenalty(R1R2_WEIGHT),
}


@dataclass(frozen=True)
class Network:
    """A pair of networks at its benchmark's size."""

    model: ConvOptions
    image_size: int
    batch: int


NETWORKS = {
    "cnn32": Network(ConvOptions("cnn32", LATENT, WIDTH, spectral_norm=True), 32, 32),
    "dcgan64": Network(ConvOptions("dcgan", LATENT, WIDTH, spectral_norm=False), 64, 64),
}


def build_update(network: str, loss: str, precision: str, device: torch.device, *, captured: bool = False) -> Update:
    """relgan's update as a run builds it."""
    found = NETWORKS[network]
    generator, critic = build_networks(found.model, found.image_size, channels=3)
    for made in (generator, critic):
        made.to(device, memory_format=torch.channels_last)
    optimizer_g, optimizer_d = build_optimizers(
        OptimizerConfig(lr_g=2e-4, lr_d=2e-4), generator, critic, captured=captured
    )
    return Update(
        generator=generator,
        critic=critic,
        loss=get_loss(loss),
        penalty=PENALTIES[loss],
        optimizer_g=optimizer_g,
        optimizer_d=optimizer_d,
        precision=choose_precision(precision, device),
    )


def finished(iterate: Callable[[], object], device: torch.device) -> Callable[[], object]:
    def call() -> None:
        iterate()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return call


def prepare_textbook(network: str, loss: str, device_name: str) -> Callable[[], object]:
    device, found = torch.device(device_name), NETWORKS[network]
    images = 2 * torch.rand(NUM_IMAGES, 3, found.image_size, found.image_size, device=device) - 1
    return finished(Textbook(network, loss, list(images), found.batch), device)


def prepare_relgan(network: str, loss: str, precision: str, engine: str, device_name: str) -> Callable[[], object]:
    device, found = prepare_device(device_name), NETWORKS[network]
    update = build_update(network, loss, precision, device, captured=engine == "cudagraph")
    size = found.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, size, size, 3), dtype=np.uint8)
    store = PackedStore(Path(), pixels, None, {})
    batches = Batches(store, Sampler(NUM_IMAGES, found.batch, "epoch", seed=0), device, hflip=False)
    ema = EMA(update.generator, 0.999)
    eager = Eager(update, lambda: torch.randn(found.batch, LATENT, device=device))
    _, iteration = build_iteration(engine, eager, lambda: [batches.next()] * 2, chosen_by_user=True)

    def iterate() -> None:
        iteration([batches.next(), batches.next()])
        ema.update(update.generator)

    return finished(iterate, device)


class FlopCounter(TorchDispatchMode):
    """torch's own counter follows modules, too, which fails inside autograd.grad."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def flops(network: str, loss: str) -> int:
    """Floating-point operations of the textbook's iteration."""
    textbook, found = Textbook(network, loss, [], 1), NETWORKS[network]
    real, z = torch.zeros(1, 3, found.image_size, found.image_size), torch.randn(1, LATENT)
    with FlopCounter() as counter:
        textbook.update_critic(real, z)
        textbook.update_generator(real, z)
    return counter.total * found.batch


def matmul_rate(device: torch.device) -> float:
    """Floating-point operations per second of float32 products of 2048 × 2048 matrices."""
    a, b = torch.randn(2, 2048, 2048, device=device)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        (a @ b)[0, 0].item()
        seconds.append(time.perf_counter() - started)
    return 2 * 2048**3 / statistics.median(seconds)


def contestants(network: str, loss: str, engines: list[str], device: torch.device) -> dict[str, Prepare]:
    precisions = ["fp32", *(["bf16"] if has_bf16_units(device) else [])]
    found: dict[str, Prepare] = {"textbook, fp32": partial(prepare_textbook, network, loss, device.type)}
    for precision in precisions:
        for engine in engines:
            name = f"relgan, {precision}, {engine}"
            found[name] = partial(prepare_relgan, network, loss, precision, engine, device.type)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="timed iterations of each (default: %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--losses", nargs="+", choices=PENALTIES, default=list(PENALTIES))
    device = prepare_device("auto")
    engines = ["eager", *(["cudagraph"] if device.type == "cuda" else [])]
    parser.add_argument("--engines", nargs="+", choices=("eager", "compiled", "cudagraph"), default=engines)
    arguments = parser.parse_args()
    if not has_bf16_units(device):
        print(f"This {device.type} has no bf16 units; comparing in fp32 only.")
    columns = ("", "images/s", "times the textbook", "peak memory", "share of matmul rate")
    table = Table(*columns, title=f"one iteration on {device.type}, {torch.get_num_threads()} threads")
    for network in arguments.networks:
        for loss in arguments.losses:
            chosen = contestants(network, loss, arguments.engines, device)
            measured = interleave(chosen, rounds=arguments.rounds, warmup=2, facts=peak_memory)
            add_rows(table, network, loss, measured, device)
    Console(width=120).print(table)


def add_rows(table: Table, network: str, loss: str, measured: dict[str, Measured], device: torch.device) -> None:
    rate, work, batch = matmul_rate(device), flops(network, loss), NETWORKS[network].batch
    textbook = next(iter(measured.values()))
    table.add_section()
    for name, one in measured.items():
        middle = statistics.median(one.seconds)
        table.add_row(
            f"{network}, {loss}, batch {batch}: {name}",
            f"{batch / middle:.1f}",
            f"{speedup(textbook.seconds, one.seconds):.2f}×",
            f"{one.fact / 1e9:.2f} GB",
            f"{work / middle / rate:.0%}",
        )


if __name__ == "__main__":
    main()
