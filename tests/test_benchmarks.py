"""The benchmarks compare like with like, and their timing is fair."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
import torch
from rich.table import Table
from torch import nn

from relgan.data.batches import Batch
from relgan.networks.blocks import advance, spectral_norms


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    with torch.no_grad():
        for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
            ours.copy_(theirs)
        for ours, theirs in zip(target.buffers(), source.buffers(), strict=True):
            ours.copy_(theirs)


@pytest.mark.parametrize(
    "loss", ["wgan_gp", *(pytest.param(x, marks=pytest.mark.slow) for x in ("sgan", "rasgan", "rpgan_r1r2"))]
)
@pytest.mark.parametrize("network", ["cnn32", "dcgan64"])
def test_relgans_update_is_the_textbook_update(network: str, loss: str) -> None:
    """From the same weights, images, latents and random numbers to the same weights."""
    from benchmarks.step import LOSSES, NETWORKS, build_update
    from benchmarks.textbook import Textbook

    torch.manual_seed(0)
    size = NETWORKS[network].image_size
    textbook = Textbook(network, loss, [], 2)
    mine = build_update(network, loss, LOSSES[loss], "fp32", torch.device("cpu"))
    # relgan's takes one step of each power iteration in an update, the textbook's one in each pass.
    for norm, weight in spectral_norms([textbook.critic]):
        for _ in range(500):
            advance(norm, weight)
    copy_weights(textbook.generator, mine.generator)
    copy_weights(textbook.critic, mine.critic)
    # Double precision: batch norm over two images makes much of a processor's last digit.
    for network in (textbook.generator, textbook.critic, mine.generator, mine.critic):
        network.double()
    # Adam's first steps have the size of lr however small the gradient: plain descent compares better.
    for contestant in (textbook, mine):
        contestant.optimizer_g = torch.optim.SGD(contestant.generator.parameters(), lr=0.1)
        contestant.optimizer_d = torch.optim.SGD(contestant.critic.parameters(), lr=0.1)
    networks = [(mine.generator, textbook.generator), (mine.critic, textbook.critic)]
    started = [[p.detach().clone() for p in theirs.parameters()] for _, theirs in networks]
    for update in ("update_critic", "update_generator"):
        real = 2 * torch.rand(2, 3, size, size, dtype=torch.float64) - 1
        z = torch.randn(2, 128, dtype=torch.float64)
        torch.manual_seed(1)
        getattr(textbook, update)(real, z)
        torch.manual_seed(1)
        getattr(mine, update)(Batch(real.to(memory_format=torch.channels_last)), z)
    for (ours, theirs), before in zip(networks, started, strict=True):
        for p, q, start in zip(ours.parameters(), theirs.parameters(), before, strict=True):
            assert (p - q).norm() <= 1e-3 * (q - start).norm() + 1e-6
        moved = [(q.detach() - start).norm().item() for q, start in zip(theirs.parameters(), before, strict=True)]
        assert max(moved) > 1e-3


def test_penalties_are_compared_with_none_of_the_same_round() -> None:
    from benchmarks.step import add_penalties
    from benchmarks.timing import Measured

    table = Table("", "iteration", "times without", "arithmetic", "peak memory")
    measured = {"none": Measured([1.0, 2.0, 9.0], 1e9), "ar1r2, share 0.25": Measured([2.0, 5.0, 9.0], 2e9)}
    add_penalties(table, "cnn32", ("fp32", "eager"), measured, torch.device("cpu"))
    _, milliseconds, times, arithmetic, memory = (list(column.cells) for column in table.columns)
    assert milliseconds == ["2000.0 ms", "5000.0 ms"]
    assert times == ["1.00×", "2.00×"]
    assert arithmetic == ["1.00×", "1.23×"]
    assert memory == ["1.00 GB", "2.00 GB"]


def test_a_gpus_textbooks_are_one_in_each_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch starts with TF32 in convolutions; a ratio to that is another one than to float32."""
    from benchmarks import step
    from benchmarks.timing import Measured

    cpu = torch.device("cpu")
    monkeypatch.setattr(step, "has_tf32_units", lambda device: True)
    monkeypatch.setattr(step, "has_bf16_units", lambda device: True)
    found = step.contestants("cnn32", "sgan", ["eager"], cpu)
    ours = [f"relgan, {precision}, eager" for precision in ("fp32", "tf32", "bf16")]
    assert list(found) == ["textbook, fp32", "textbook, tf32", *ours]
    seconds = dict(zip(found, (4.0, 2.0, 2.0, 1.0, 0.5), strict=True))
    monkeypatch.setattr(step, "matmul_rate", lambda device: 1e12)
    table = Table("", "images/s", "times the textbook", "… in TF32", "peak memory", "share of matmul rate")
    step.add_rows(table, "cnn32", "sgan", {name: Measured([second] * 3) for name, second in seconds.items()}, cpu)
    assert list(table.columns[2].cells) == ["1.00×", "2.00×", "2.00×", "4.00×", "8.00×"]
    assert list(table.columns[3].cells) == ["0.50×", "1.00×", "1.00×", "2.00×", "4.00×"]
    before = torch.backends.cudnn.allow_tf32
    for name, tf32 in (("textbook, fp32", False), ("textbook, tf32", True)):
        found[name]()
        assert torch.backends.cudnn.allow_tf32 is tf32
    torch.backends.cudnn.allow_tf32 = before


def test_contestants_take_turns_and_are_compared_round_by_round() -> None:
    from benchmarks.timing import interleave, peak_memory, speedup

    contestants = {"slow": partial(partial, time.sleep, 0.03), "fast": partial(partial, time.sleep, 0.01)}
    contestants["broken"] = partial(partial, time.sleep, -1)
    measured = interleave(contestants, rounds=5, warmup=1, facts=peak_memory)
    assert {name: len(one.seconds) for name, one in measured.items()} == {"slow": 5, "fast": 5}
    assert speedup(measured["slow"].seconds, measured["fast"].seconds) == pytest.approx(3, rel=0.4)
    assert 1e7 < measured["fast"].fact < 1e10
    # A machine that slows down by 10 in the last rounds changes no ratio.
    assert speedup([4.0, 4.0, 40.0, 40.0], [1.0, 2.0, 20.0, 10.0]) == 3


@pytest.mark.parametrize(
    ("grows", "opens", "slows", "expected"),
    [
        (0.0, 0, 1.0, []),
        (0.002, 0, 0.9, []),
        (0.02, 0, 1.0, ["memory grows"]),
        (0.0, 1, 1.0, ["files stay open"]),
        (0.0, 0, 0.5, ["updates slow down"]),
    ],
)
def test_a_soak_notices_what_grows(grows: float, opens: int, slows: float, expected: list[str]) -> None:
    """A run of 200 seconds with 50 updates a second, an evaluation's memory coming and going."""
    from benchmarks.soak import Samples, judge

    seconds = [float(second) for second in range(200)]
    samples = Samples(
        seconds=[1000 + second for second in seconds],
        memory_mb=[500 + grows * 50 * second + 30 * (second % 10 == 0) for second in seconds],
        files=[7 + opens * int(second // 60) for second in seconds],
    )
    records: list[dict[str, Any]] = [
        {
            "kind": "train",
            "step": 50 * second,
            "time_s": second,
            "train/images_per_second": 100 * (1 + (slows - 1) * second / 200),
        }
        for second in seconds[1:]
    ]
    scored: dict[str, Any] = {"kind": "eval", "step": 100, "time_s": 2.0}
    assert judge(samples, [*records, scored], 1000.0) == expected
    (short,) = judge(samples, records, 1000.0)
    assert "too short" in short
