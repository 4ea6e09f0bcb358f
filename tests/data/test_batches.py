from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from relgan.data.batches import AHEAD, Batches, Ring, Sampler
from relgan.data.store import PackedStore, StoreWriter
from relgan.options import ConfigError


@pytest.fixture
def store(tmp_path: Path) -> PackedStore:
    generator = np.random.default_rng(0)
    with StoreWriter(tmp_path / "made", 4, 4, 3) as writer:
        writer.append(generator.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8))
        return writer.finish(name="made", skipped={})


def draw(sampler: Sampler, calls: int) -> np.ndarray:
    return np.concatenate([sampler.next() for _ in range(calls)])


def test_an_epoch_holds_every_image_once_though_batches_straddle() -> None:
    order = draw(Sampler(10, 4, "epoch", seed=3), 15)
    for epoch in order.reshape(6, 10):
        assert sorted(epoch) == list(range(10))
    assert list(order[:10]) != list(order[10:20])


def test_independent_batches_have_no_repeats_and_cover_all_images_evenly() -> None:
    batches = draw(Sampler(10, 4, "independent", seed=3), 2000).reshape(2000, 4)
    assert all(len(set(batch)) == 4 for batch in batches.tolist())
    counts = np.bincount(batches.ravel(), minlength=10)
    # 2,000 draws with probability 0.4 each: mean 800, standard deviation 22.
    assert np.abs(counts - 800).max() < 110


@pytest.mark.parametrize("sampling", ["epoch", "independent"])
def test_the_order_depends_on_the_seed_and_resumes_exactly(sampling: str) -> None:
    whole = draw(Sampler(50, 7, sampling, seed=1), 30)
    first = Sampler(50, 7, sampling, seed=1)
    start = draw(first, 13)
    second = Sampler(50, 7, sampling, seed=1)
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(np.concatenate([start, draw(second, 17)]), whole)
    assert (draw(Sampler(50, 7, sampling, seed=2), 30) != whole).any()


@pytest.mark.parametrize("sampling", ["epoch", "independent"])
def test_ranks_share_out_the_batch_of_a_single_process(sampling: str) -> None:
    alone = Sampler(50, 12, sampling, seed=1)
    ranks = [Sampler(50, 4, sampling, seed=1, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(9):
        together = np.concatenate([rank.next() for rank in ranks])
        np.testing.assert_array_equal(together, alone.next())


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size: 12 is more than the 10 images of the data set"):
        Sampler(10, 6, "epoch", seed=0, world_size=2)


@pytest.mark.parametrize("residence", ["auto", "host", "device"])
def test_batches_are_the_sampled_images_scaled(store: PackedStore, residence: str) -> None:
    indices = Sampler(40, 8, "epoch", seed=5).next()
    batches = Batches(store, Sampler(40, 8, "epoch", seed=5), torch.device("cpu"), False, residence=residence)
    images = batches.next().images
    expected = store.images[indices].transpose(0, 3, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-6)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_hflip_mirrors_about_half_of_the_images_and_only_mirrors(store: PackedStore) -> None:
    device = torch.device("cpu")
    plain = Batches(store, Sampler(40, 40, "epoch", seed=5), device, False)
    flipped = Batches(store, Sampler(40, 40, "epoch", seed=5), device, True)
    mirrored = 0
    for _ in range(20):
        for original, seen in zip(plain.next().images, flipped.next().images, strict=True):
            is_mirrored = torch.equal(seen, original.flip(2))
            assert is_mirrored or torch.equal(seen, original)
            mirrored += is_mirrored
    # 800 fair coins: standard deviation 14.
    assert abs(mirrored - 400) < 70


def test_batches_resume_exactly_mirrors_included(store: PackedStore) -> None:
    device = torch.device("cpu")
    first = Batches(store, Sampler(40, 8, "epoch", seed=5), device, True)
    for _ in range(3):
        first.next()
    second = Batches(store, Sampler(40, 8, "epoch", seed=5), device, True)
    second.load_state_dict(first.state_dict())
    for _ in range(4):
        assert torch.equal(first.next().images, second.next().images)


class Copied:
    """An event of a device that makes a copy only when somebody waits for it, and keeps what it copied from."""

    def __init__(self) -> None:
        self.recorded, self.waited = 0, 0

    def record(self) -> None:
        self.recorded += 1

    def synchronize(self) -> None:
        self.waited = self.recorded


def test_a_buffer_is_used_again_only_after_its_copy_and_there_are_no_more() -> None:
    events: list[Copied] = []

    def event() -> Copied:
        assert all(each.recorded == 0 for each in events), "made once"
        events.append(Copied())
        return events[-1]

    ring = Ring(np.zeros((4, 2), np.uint8), torch.device("cpu"), event)
    sent = []
    for number in range(3 * AHEAD):
        waited = [each.waited for each in events]
        sent.append(ring.send(np.full((4 - number % 2, 2), number, np.uint8)))
        used = number % AHEAD
        assert events[used].waited == events[used].recorded - 1
        assert [each.waited for k, each in enumerate(events) if k != used] == waited[:used] + waited[used + 1 :]
    assert len(events) == AHEAD
    for number, values in enumerate(sent):
        assert values.tolist() == [[number, number]] * (4 - number % 2)


@pytest.mark.gpu
@pytest.mark.parametrize("residence", ["auto", "host"])
def test_batches_arrive_on_the_gpu(store: PackedStore, residence: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    sampler = Sampler(40, 8, "epoch", seed=5)
    images = Batches(store, sampler, torch.device("cuda"), True, residence=residence).next().images
    reference = Batches(store, Sampler(40, 8, "epoch", seed=5), torch.device("cpu"), True).next().images
    assert torch.allclose(images.cpu(), reference, atol=1e-6)
    assert images.is_contiguous(memory_format=torch.channels_last)
