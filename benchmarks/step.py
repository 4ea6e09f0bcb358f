"""relgan's iteration against the same iteration as textbooks write it (benchmarks/textbook.py).

One critic and one generator update, each with new real images and latents. ``python -m benchmarks.step`` prints
images per second, how many times faster than the textbook in the same rounds, peak memory, and the share of the
device's measured rate of float32 matrix products that the textbook's arithmetic in that time makes. On a GPU torch
makes convolutions in TF32 unless it is told not to, as a textbook does not: there are two textbooks then. With
``--penalties`` it compares what penalties cost relgan's iteration instead.
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
from relgan.augment import Augmentation
from relgan.builtin import ConvOptions
from relgan.config import OptimizerConfig
from relgan.data.batches import Batch, Batches, Sampler
from relgan.data.store import PackedStore
from relgan.device import Precision, choose_precision, has_bf16_units, has_tf32_units, prepare_device
from relgan.losses import get_loss
from relgan.networks import build_networks
from relgan.penalties import ApproximatePenalty, GradientPenalty, Penalty, ZeroCenteredPenalty
from relgan.registry import AugmentOptions
from relgan.side_terms import SideTerms
from relgan.training.engine import Eager, build_iteration
from relgan.training.optimizers import build_optimizers
from relgan.training.state import EMA
from relgan.training.strength import Strength
from relgan.training.update import Update

NUM_IMAGES = 1024
LOSSES = {
    "sgan": Penalty(),
    "rasgan": Penalty(),
    "wgan_gp": GradientPenalty(GP_WEIGHT),
    "rpgan_r1r2": ZeroCenteredPenalty(R1R2_WEIGHT),
}
"""The textbook's losses and their penalties."""

PENALTIES = {
    "none": Penalty(),
    "r1r2": ZeroCenteredPenalty(R1R2_WEIGHT),
    "r1r2, share 0.25": ZeroCenteredPenalty(R1R2_WEIGHT, share=0.25),
    "ar1r2": ApproximatePenalty(R1R2_WEIGHT),
    "ar1r2, share 0.25": ApproximatePenalty(R1R2_WEIGHT, share=0.25),
}
"""What can be added to R3GAN's loss."""


@dataclass(frozen=True)
class Network:
    """A pair of networks at its benchmark's size."""

    model: ConvOptions
    image_size: int
    batch: int


NETWORKS = {
    "cnn32": Network(ConvOptions("cnn32", LATENT, WIDTH, spectral_norm=True, upsample="transposed"), 32, 32),
    "dcgan64": Network(ConvOptions("dcgan", LATENT, WIDTH, spectral_norm=False, upsample="transposed"), 64, 64),
}


def build_update(
    network: str, loss: str, penalty: Penalty, precision: str, device: torch.device, *, captured: bool = False
) -> Update:
    """relgan's update as a run builds it."""
    found = NETWORKS[network]
    generator, critic = build_networks(found.model, found.image_size, channels=3)
    for made in (generator, critic):
        made.to(device, memory_format=torch.channels_last)
    options = OptimizerConfig(lr_g=2e-4, lr_d=2e-4, betas=[0.5, 0.999])
    optimizer_g, optimizer_d = build_optimizers(options, generator, critic, captured=captured)
    return Update(
        generator=generator,
        critic=critic,
        loss=get_loss(loss),
        penalty=penalty,
        optimizer_g=optimizer_g,
        optimizer_d=optimizer_d,
        precision=choose_precision(precision, device),
        side_terms=SideTerms(device=device),
        augmentation=Augmentation(),
        strength=Strength(AugmentOptions(), found.batch, device),
    )


def iterations(device: torch.device) -> int:
    """In one call of a contestant: training does not wait for a GPU after each."""
    return 10 if device.type == "cuda" else 1


def finished(iterate: Callable[[], object], device: torch.device) -> Callable[[], object]:
    def call() -> None:
        for _ in range(iterations(device)):
            iterate()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return call


def seconds_each(measured: Measured, device: torch.device) -> float:
    """Of one iteration: the median."""
    return statistics.median(measured.seconds) / iterations(device)


def prepare_textbook(network: str, loss: str, device_name: str, *, tf32: bool) -> Callable[[], object]:
    """With ``tf32`` as torch starts: convolutions in TF32, other products in float32."""
    device, found = torch.device(device_name), NETWORKS[network]
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32, False
    images = 2 * torch.rand(NUM_IMAGES, 3, found.image_size, found.image_size, device=device) - 1
    return finished(Textbook(network, loss, list(images), found.batch), device)


def prepare_relgan(
    network: str, loss: str, penalty: Penalty, precision: str, engine: str, device_name: str
) -> Callable[[], object]:
    iterate = build_iterate(network, loss, penalty, precision, engine, device_name)
    return finished(iterate, torch.device(device_name))


def build_iterate(
    network: str, loss: str, penalty: Penalty, precision: str, engine: str, device_name: str
) -> Callable[[], None]:
    """relgan's iteration, which does not wait for the device."""
    device, found = prepare_device(device_name), NETWORKS[network]
    update = build_update(network, loss, penalty, precision, device, captured=engine == "cudagraph")
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

    return iterate


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


def penalty_flops(network: str, penalty: Penalty) -> int:
    """Floating-point operations of relgan's iteration with R3GAN's loss, for a few images."""
    update, size = build_update(network, "rsgan", penalty, "fp32", torch.device("cpu")), NETWORKS[network].image_size
    real, z = Batch(torch.zeros(4, 3, size, size)), torch.randn(4, LATENT)
    with FlopCounter() as counter:
        update.update_critic(real, z)
        update.update_generator(real, z)
    return counter.total


def matmul_rate(device: torch.device, precision: str = "fp32") -> float:
    """Floating-point operations per second of products of large matrices, 2048 × 2048 or on a GPU 8192 × 8192."""
    side, arithmetic = 8192 if device.type == "cuda" else 2048, Precision(device, precision)
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        with arithmetic.in_force():
            (a @ b)[0, 0].item()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(seconds)


def ways(engines: list[str], device: torch.device) -> list[tuple[str, str]]:
    """Every arithmetic that the device has units for, in every engine."""
    precisions = ["fp32"] + ["tf32"] * has_tf32_units(device) + ["bf16"] * has_bf16_units(device)
    return [(precision, engine) for precision in precisions for engine in engines]


def contestants(network: str, loss: str, engines: list[str], device: torch.device) -> dict[str, Prepare]:
    arithmetics = {"fp32": False, **({"tf32": True} if has_tf32_units(device) else {})}
    found: dict[str, Prepare] = {
        f"textbook, {name}": partial(prepare_textbook, network, loss, device.type, tf32=tf32)
        for name, tf32 in arithmetics.items()
    }
    for precision, engine in ways(engines, device):
        name = f"relgan, {precision}, {engine}"
        found[name] = partial(prepare_relgan, network, loss, LOSSES[loss], precision, engine, device.type)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=7, help="timed iterations of each, on a GPU tens of them (default: %(default)s)"
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--penalties", action="store_true", help="compare penalties of relgan's own iteration")
    device = prepare_device("auto")
    engines = ["eager", *(["cudagraph"] if device.type == "cuda" else [])]
    parser.add_argument("--engines", nargs="+", choices=("eager", "compiled", "cudagraph"), default=engines)
    arguments = parser.parse_args()
    if not has_bf16_units(device):
        print(f"This {device.type} has no bf16 units; comparing in fp32 only.")
    measure = partial(interleave, rounds=arguments.rounds, warmup=2, facts=peak_memory)
    title = f"one iteration on {device.type}, {torch.get_num_threads()} threads"
    if arguments.penalties:
        table = Table("", "iteration", "times without", "arithmetic", "peak memory", title=title)
        for network in arguments.networks:
            for way in ways(arguments.engines, device):
                penalised = {
                    name: partial(prepare_relgan, network, "rsgan", penalty, *way, device.type)
                    for name, penalty in PENALTIES.items()
                }
                add_penalties(table, network, way, measure(penalised), device)
    else:
        times = ["times the textbook"] + ["… in TF32"] * has_tf32_units(device)
        table = Table("", "images/s", *times, "peak memory", "share of matmul rate", title=title)
        for network in arguments.networks:
            for loss in arguments.losses:
                measured = measure(contestants(network, loss, arguments.engines, device))
                add_rows(table, network, loss, measured, device)
    Console(width=120).print(table)


def add_penalties(
    table: Table, network: str, way: tuple[str, str], measured: dict[str, Measured], device: torch.device
) -> None:
    work = {name: penalty_flops(network, PENALTIES[name]) for name in measured}
    table.add_section()
    for name, one in measured.items():
        table.add_row(
            f"{network}, {', '.join(way)}: {name}",
            f"{1000 * seconds_each(one, device):.1f} ms",
            f"{speedup(one.seconds, measured['none'].seconds):.2f}×",
            f"{work[name] / work['none']:.2f}×",
            f"{one.fact / 1e9:.2f} GB",
        )


def add_rows(table: Table, network: str, loss: str, measured: dict[str, Measured], device: torch.device) -> None:
    rate, work, batch = matmul_rate(device), flops(network, loss), NETWORKS[network].batch
    textbooks = [one for name, one in measured.items() if name.startswith("textbook")]
    table.add_section()
    for name, one in measured.items():
        middle = seconds_each(one, device)
        table.add_row(
            f"{network}, {loss}, batch {batch}: {name}",
            f"{batch / middle:.1f}",
            *(f"{speedup(textbook.seconds, one.seconds):.2f}×" for textbook in textbooks),
            f"{one.fact / 1e9:.2f} GB",
            f"{work / middle / rate:.0%}",
        )


if __name__ == "__main__":
    main()
