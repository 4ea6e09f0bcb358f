"""Alone, the collectives are the identity; with two processes, gradients become their mean."""

from __future__ import annotations

from pathlib import Path

import torch

import processes
from relgan import distributed

WORLD = 2


def test_alone_everything_is_the_identity() -> None:
    values = torch.randn(5, requires_grad=True)
    assert not distributed.is_distributed()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert torch.equal(distributed.global_mean(values), values.mean())
    assert distributed.global_cat(values) is values
    values.grad = torch.ones(5)
    distributed.average_gradients([values])
    assert torch.equal(values.grad, torch.ones(5))


def rank_main(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    parameters = [torch.zeros(2, 3), torch.zeros(4), torch.zeros(1)]
    parameters[0].grad = torch.full((2, 3), float(rank))
    parameters[1].grad = torch.arange(4.0) * (rank + 1)
    distributed.average_gradients(parameters)
    facts = (distributed.rank(), distributed.world_size(), distributed.is_main())
    torch.save([facts, parameters[0].grad, parameters[1].grad, parameters[2].grad], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_gradients_become_their_mean_over_ranks(tmp_path: Path) -> None:
    processes.ranks(WORLD, rank_main, str(tmp_path))
    for rank in range(WORLD):
        facts, first, second, absent = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert facts == (rank, WORLD, rank == 0)
        assert torch.equal(first, torch.full((2, 3), 0.5))
        assert torch.equal(second, torch.arange(4.0) * 1.5)
        assert absent is None
