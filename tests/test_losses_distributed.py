"""Two processes with half a batch each compute the loss, and the gradients, of one process with all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import processes
from relgan.losses import LOSSES, get_loss

WORLD = 2
REAL = torch.tensor([2.3, -0.7, 0.35, 4.1, -1.9, 0.8], dtype=torch.float64)
FAKE = torch.tensor([-3.2, 0.45, 1.7, -0.2, 0.9, -1.1], dtype=torch.float64)

Result = dict[str, list[list[float]]]


def losses_and_gradients(r: torch.Tensor, f: torch.Tensor) -> Result:
    """Per loss: [value], ∂/∂r and ∂/∂f for each side."""
    results: Result = {}
    for name in LOSSES:
        loss = get_loss(name)
        for side in ("discriminator", "generator"):
            real, fake = r.clone().requires_grad_(), f.clone().requires_grad_()
            value = getattr(loss, side)(real, fake)
            gradients = torch.autograd.grad(value, (real, fake), allow_unused=True)
            zeros = torch.zeros_like(r)
            by_r, by_f = (zeros if g is None else g for g in gradients)
            results[f"{name} {side}"] = [[value.item()], by_r.tolist(), by_f.tolist()]
        results[f"{name} pull"] = [[p.item() for p in loss.pull(r, f)], [], []]
    return results


def rank_main(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    part = slice(rank * 3, rank * 3 + 3)
    torch.save(losses_and_gradients(REAL[part], FAKE[part]), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    folder = tmp_path_factory.mktemp("ranks")
    processes.ranks(WORLD, rank_main, str(folder))
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("name", LOSSES)
def test_two_ranks_equal_one(name: str, halves: list[Result]) -> None:
    whole = losses_and_gradients(REAL, FAKE)
    for side in ("discriminator", "generator"):
        key = f"{name} {side}"
        (value,), by_r, by_f = whole[key]
        assert sum(half[key][0][0] for half in halves) / WORLD == pytest.approx(value, abs=1e-14)
        # Parameters receive the mean of the ranks' gradients.
        for got, want in ((1, by_r), (2, by_f)):
            assert [g / WORLD for half in halves for g in half[key][got]] == pytest.approx(want, abs=1e-14)
    pulls = [half[f"{name} pull"][0] for half in halves]
    assert [sum(p) / WORLD for p in zip(*pulls, strict=True)] == pytest.approx(whole[f"{name} pull"][0], abs=1e-13)
