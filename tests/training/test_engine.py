"""An iteration that is recorded once and replayed makes the updates of the eager one."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import processes
import tiny
from on_the_device import capturable_on_the_cpu, stand_in
from relgan.config import Config, OptimizerConfig
from relgan.data.batches import Batch
from relgan.networks import build_networks
from relgan.options import ConfigError
from relgan.penalties import Penalty, ZeroCenteredPenalty
from relgan.training.engine import (
    Capture,
    Captured,
    Eager,
    NotRecorded,
    Results,
    Snapshot,
    agree,
    build_iteration,
    choose_engine,
    cuda_graph,
)
from relgan.training.optimizers import build_optimizers
from relgan.training.state import load_optimizer_state, optimizer_state
from relgan.training.update import Update

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
SETTINGS = [
    ("sgan", "none", "adam", 1),
    ("ragan", "none", "adam", 2),
    ("wgan_gp", "gp", "rmsprop", 1),
    ("rsgan", "r1r2", "adam", 2),
]

ON_RANKS = SETTINGS[1:3]


def eager(loss: str, penalty: str, optimizer: str, parts: int = 1) -> Eager:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = tiny.model(width=2, latent_dim=4, spectral_norm=loss == "ragan")
    options = OptimizerConfig(name=optimizer, lr_g=2e-4, lr_d=2e-4)
    update = tiny.update(model, loss, penalty=penalty, optimizer=options, accumulate=parts)
    return Eager(update, lambda: torch.randn(6, 4))


def batches(seed: int, count: int = 3) -> list[Batch]:
    random = torch.Generator().manual_seed(seed)
    return [Batch(torch.rand(6, 1, 32, 32, generator=random) * 2 - 1) for _ in range(count)]


def everything(update: Update) -> list[Tensor]:
    return [*update.generator.state_dict().values(), *update.critic.state_dict().values(), update.diverged]


@pytest.mark.parametrize("setting", SETTINGS)
def test_replays_are_bitwise_the_eager_updates(setting: tuple[str, str, str, int]) -> None:
    plain, recorded = eager(*setting), eager(*setting)
    captured = Captured(recorded, batches(0), capture=stand_in)
    last = []
    for iteration in (captured, plain):
        torch.manual_seed(3)
        for seed in range(4):
            critic, generator = iteration(batches(seed))
        last.append((critic.loss, critic.grad_norm, generator.loss, generator.images.sum()))
    assert last[0] == last[1]
    assert all(torch.equal(a, b) for a, b in zip(everything(plain.update), everything(recorded.update), strict=True))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("loss", ["sgan", "ragan"])
def test_fakes_that_are_not_redrawn_are_the_same_in_both_updates(loss: str, parts: int) -> None:
    kept, by_hand = (eager(loss, "none", "adam", parts) for _ in range(2))
    passes: list[int] = []
    kept.update.generator.register_forward_hook(lambda *_: passes.append(1))
    for network in kept.update.networks + by_hand.update.networks:
        network.double()
    first = torch.zeros(6, 4, dtype=torch.float64)
    for seed in range(3):
        reals = [batch._replace(images=batch.images.double()) for batch in batches(seed)]
        z = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)).double()
        dataclasses.replace(kept, redraw_fake=False, latents=iter([first, z]).__next__)(reals)
        by_hand.update.update_critic(reals[0], first)
        by_hand.update.update_critic(reals[1], z)
        by_hand.update.update_generator(reals[2], z)
    # One for the first critic update; then one for both, or one and twice each part.
    assert len(passes) == 3 * (1 + (1 if parts == 1 else 1 + 2 * parts))
    got, want = ([*each.update.generator.parameters(), *each.update.critic.parameters()] for each in (kept, by_hand))
    torch.testing.assert_close(got, want)


def test_fakes_that_are_not_redrawn_do_not_depend_on_parts_under_spectral_norm() -> None:
    ends = []
    for parts in (1, 2):
        torch.manual_seed(0)
        model = tiny.model(width=2, latent_dim=4, spectral_norm=True, generator_spectral_norm=True, norm="none")
        update = tiny.update(model, "ragan", accumulate=parts, dtype=torch.float64)
        iteration = Eager(update, lambda: torch.randn(6, 4, dtype=torch.float64), redraw_fake=False)
        for seed in range(3):
            iteration([batch._replace(images=batch.images.double()) for batch in batches(seed, 2)])
        ends.append(everything(update))
    torch.testing.assert_close(ends[0], ends[1])


def test_recording_changes_neither_the_update_nor_the_random_numbers() -> None:
    made = eager("ragan", "gp", "adam")
    made(batches(1))
    torch.manual_seed(5)
    before, moments = [t.clone() for t in everything(made.update)], made.update.optimizer_d.state_dict()["state"]
    kept = {k: {name: v.clone() for name, v in state.items()} for k, state in moments.items()}
    Captured(made, batches(0), capture=stand_in)
    assert torch.equal(torch.randn(3), torch.randn(3, generator=torch.Generator().manual_seed(5)))
    assert all(torch.equal(a, b) for a, b in zip(everything(made.update), before, strict=True))
    for k, state in made.update.optimizer_d.state_dict()["state"].items():
        assert all(torch.equal(v, kept[k][name]) for name, v in state.items())


def test_a_snapshot_puts_back_into_the_same_memory() -> None:
    update = eager("sgan", "none", "adam").update
    addresses = [p.data_ptr() for p in update.critic.parameters()]
    before = [p.detach().clone() for p in update.critic.parameters()]
    snapshot = Snapshot(update)
    update.update_critic(batches(0)[0], torch.randn(6, 4))
    assert not all(torch.equal(a, b) for a, b in zip(before, update.critic.parameters(), strict=True))
    snapshot.restore()
    assert all(torch.equal(a, b) for a, b in zip(before, update.critic.parameters(), strict=True))
    assert addresses == [p.data_ptr() for p in update.critic.parameters()]
    assert all(not v.any() for state in update.optimizer_d.state.values() for v in state.values())


def test_a_recording_that_computes_something_else_is_noticed() -> None:
    made = eager("ragan", "none", "adam")

    def wrong(reals: Any, **how: Any) -> Results:
        return eager("ralsgan", "none", "adam")(reals)

    reals = batches(0)
    assert agree(made, made, made.update, reals)
    assert not agree(made, wrong, made.update, reals)


def config(accumulate: int = 1, beta2: float | None = None, optimizer: str = "adam") -> Config:
    made = Config()
    made.train.accumulate, made.schedule.beta2, made.optimizer.name = accumulate, beta2, optimizer
    return made


@pytest.mark.parametrize(
    ("name", "device", "config", "want"),
    [
        ("auto", CPU, config(), "eager"),
        ("auto", CUDA, config(), "cudagraph"),
        ("auto", CUDA, config(accumulate=2), "cudagraph"),
        ("auto", CUDA, config(beta2=0.99), "cudagraph"),
        ("auto", CUDA, config(beta2=0.99, optimizer="rmsprop"), "eager"),
        ("eager", CUDA, config(), "eager"),
        ("compiled", CPU, config(), "compiled"),
        ("cudagraph", CUDA, config(), "cudagraph"),
    ],
)
def test_the_choice_of_engine(name: str, device: torch.device, config: Config, want: str) -> None:
    assert choose_engine(name, device, config) == want


@pytest.mark.parametrize(("device", "beta2"), [(CPU, None), (CUDA, 0.99)])
def test_a_graph_that_cannot_be_is_refused(device: torch.device, beta2: float | None) -> None:
    with pytest.raises(ConfigError, match=r"^engine: cudagraph .* \(accepted here: auto, eager, compiled\)$"):
        choose_engine("cudagraph", device, config(beta2=beta2, optimizer="rmsprop"))


def fail(work: Callable[[], Results], undo: Callable[[], None]) -> tuple[Callable[[], None], Results]:
    """As often as the stand-in, as ranks that record do the same."""
    for _ in range(4):
        work()
    raise NotRecorded("operation not permitted when stream is capturing")


def test_a_failing_capture_falls_back_only_where_the_engine_was_not_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    made = eager("sgan", "none", "adam")
    found = build_iteration("cudagraph", made, lambda: batches(0), chosen_by_user=False, capture=fail)
    assert found == ("eager", made)
    assert "operation not permitted" in caplog.text
    with pytest.raises(ConfigError, match="engine: cudagraph cannot be used here: operation not permitted"):
        build_iteration("cudagraph", made, lambda: batches(0), chosen_by_user=True, capture=fail)


def test_what_fails_without_a_graph_too_is_no_reason_for_another_engine() -> None:
    made = eager("sgan", "none", "adam")
    wrong = [Batch(torch.zeros(6, 2, 32, 32))] * 3
    with pytest.raises(RuntimeError, match="channels"):
        build_iteration("cudagraph", made, lambda: wrong, chosen_by_user=False, capture=stand_in)


def test_a_failing_capture_leaves_everything_as_it_was() -> None:
    made = eager("ragan", "gp", "adam")
    torch.manual_seed(5)
    before = [t.clone() for t in everything(made.update)]
    with pytest.raises(NotRecorded):
        Captured(made, batches(0), capture=fail)
    assert all(torch.equal(a, b) for a, b in zip(everything(made.update), before, strict=True))
    assert torch.equal(torch.randn(3), torch.randn(3, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("kept", ["lr", "nothing"])
def test_a_graph_that_keeps_a_learning_rate_is_noticed(kept: str, caplog: pytest.LogCaptureFixture) -> None:
    with capturable_on_the_cpu():
        made = eager("ragan", "r1r2", "adam")
        made.update.optimizer_g, made.update.optimizer_d = build_optimizers(
            OptimizerConfig(lr_g=2e-4, lr_d=2e-4), *made.update.networks, captured=True
        )
        (rate,) = (group["lr"] for group in made.update.optimizer_d.param_groups)

        def baked(work: Callable[[], Results], undo: Callable[[], None]) -> tuple[Callable[[], None], Results]:
            recorded = rate.clone()
            replay, results = stand_in(work, undo)

            def again() -> None:
                now = rate.clone()
                rate.copy_(recorded if kept == "lr" else now)
                replay()
                rate.copy_(now)

            return again, results

        name, _ = build_iteration("cudagraph", made, lambda: batches(0), chosen_by_user=False, capture=baked)
    assert name == ("eager" if kept == "lr" else "cudagraph")
    assert ("its first iteration differs from eager's" in caplog.text) == (kept == "lr")


@pytest.mark.parametrize("loss", ["sgan", "ragan", "wgan_gp"])
def test_a_graph_that_keeps_its_images_is_noticed(loss: str, caplog: pytest.LogCaptureFixture) -> None:
    """As one does that was recorded with a copy of them; they are black, as those that a run is built with."""
    made = eager(loss, "none", "adam")
    black = [Batch(torch.full_like(each.images, -1.0)) for each in batches(0)]

    def baked(work: Any, undo: Callable[[], None]) -> tuple[Callable[[], None], Results]:
        (images,) = work.args
        copies = [Batch(batch.images.clone()) for batch in images]
        return stand_in(partial(work.func, copies, **work.keywords), undo)

    found = build_iteration("cudagraph", made, lambda: black, chosen_by_user=False, capture=baked)
    assert found == ("eager", made)
    assert "its first iteration differs from eager's" in caplog.text


def without_memory(after: int) -> Capture[Results]:
    """A recording whose replays run out of memory."""

    def capture(work: Callable[[], Results], undo: Callable[[], None]) -> tuple[Callable[[], None], Results]:
        replay, results = stand_in(work, undo)
        replays = iter(range(after))

        def again() -> None:
            if next(replays, None) is None:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it")
            replay()

        again() if not after else None
        return again, results

    return capture


@pytest.mark.parametrize("when", ["recorded", "compared"])
def test_where_a_graph_has_no_memory_eager_trains(when: str, caplog: pytest.LogCaptureFixture) -> None:
    made = eager("ragan", "none", "adam")
    before = [t.clone() for t in everything(made.update)]
    capture = without_memory(0 if when == "recorded" else 1)
    found = build_iteration("cudagraph", made, lambda: batches(0), chosen_by_user=False, capture=capture)
    assert found == ("eager", made)
    assert "used here: CUDA out of memory. Tried to allocate 2.00 GiB." in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(everything(made.update), before, strict=True))


def rank_1_has_no_memory(rank: int, folder: str, after: int) -> None:
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.distributed.barrier()  # both have joined before one leaves
    capture = without_memory(after) if rank == 1 else stand_in
    made = eager("ragan", "none", "adam")
    try:
        build_iteration("cudagraph", made, lambda: batches(rank), chosen_by_user=False, capture=capture)
        found = "trains"
    except (ConfigError, RuntimeError) as error:
        found = str(error)
    Path(folder, str(rank)).write_text(found)


@pytest.mark.parametrize("after", [0, 1], ids=["recorded", "compared"])
def test_a_rank_without_memory_ends_and_frees_the_other(after: int, tmp_path: Path) -> None:
    processes.ranks(2, rank_1_has_no_memory, str(tmp_path), after)
    ends = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    assert ends[0] != "trains"
    no_memory = "CUDA out of memory. Tried to allocate 2.00 GiB."
    assert ends[1] == f"engine: cudagraph has no memory here ({no_memory}); give engine=eager"


def test_nothing_of_the_recording_stays_in_memory() -> None:
    made = eager("ragan", "gp", "adam")
    build_iteration("cudagraph", made, lambda: batches(0), chosen_by_user=True, capture=stand_in)
    assert all(p.grad is None for network in made.update.networks for p in network.parameters())


def capture_on_two_ranks(rank: int, folder: str) -> None:
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for setting in ON_RANKS:
        ends = []
        for name in ("cudagraph", "eager"):
            made = eager(*setting)
            name, iteration = build_iteration(name, made, lambda: batches(rank), chosen_by_user=True, capture=stand_in)
            torch.manual_seed(3)
            for seed in range(3):
                iteration(batches(10 * seed + rank))
            ends.append([name, *everything(made.update)])
        found[str(setting)] = ends
    failing = fail if rank == 1 else stand_in
    made = eager("ragan", "none", "adam")
    # Two kinds of iteration, of which the second is begun by none.
    made.update.penalty = ZeroCenteredPenalty(1.0, interval=2)
    found["failed"], _ = build_iteration(
        "cudagraph", made, lambda: batches(rank), chosen_by_user=False, capture=failing
    )
    try:
        build_iteration("cudagraph", made, lambda: batches(rank), chosen_by_user=True, capture=failing)
    except ConfigError as error:
        found["refused"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    processes.ranks(2, capture_on_two_ranks, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("setting", ON_RANKS)
def test_ranks_record_what_they_run_eagerly(setting: tuple[Any, ...], ranks: list[dict[str, Any]]) -> None:
    first = ranks[0][str(setting)][0][1:]
    for rank in ranks:
        (engine, *recorded), (_, *plain) = rank[str(setting)]
        assert engine == "cudagraph"
        assert all(torch.equal(a, b) for a, b in zip(recorded, plain, strict=True))
        moved = zip(recorded, first, strict=True)
        assert all(torch.equal(a, b) for a, b in moved if a.dtype != torch.int64 and a.ndim == 4)


def test_a_rank_that_cannot_record_makes_all_eager(ranks: list[dict[str, Any]]) -> None:
    assert [rank["failed"] for rank in ranks] == ["eager", "eager"]
    assert "it could not be recorded on another rank" in ranks[0]["refused"]
    assert "operation not permitted" in ranks[1]["refused"]


class Cuda:
    """As much of torch.cuda as a recording needs: one that a synchronisation breaks, as torch 2.6 to 2.11 have it."""

    class Stream:
        device_index, device = 0, torch.device("cpu")

        def wait_stream(self, other: Cuda.Stream) -> None: ...

    class Rng:
        def __init__(self) -> None:
            self.states: list[torch.Generator] = []

        def graphsafe_set_state(self, state: torch.Generator) -> None:
            self.states.append(state)

    def __init__(self) -> None:
        self.outside = self.current = self.Stream()
        self.default_generators = (self.Rng(),)
        self.mode = self.pool = ""

    def current_stream(self) -> Cuda.Stream:
        return self.current

    def set_stream(self, stream: Cuda.Stream) -> None:
        self.current = stream

    @contextlib.contextmanager
    def stream(self, stream: Cuda.Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def CUDAGraph(self) -> None: ...

    def graph_pool_handle(self) -> str:
        return "pool"

    @contextlib.contextmanager
    def graph(self, graph: None, pool: str, capture_error_mode: str) -> Iterator[None]:
        self.current, self.mode = self.Stream(), capture_error_mode
        try:
            yield
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.mark.parametrize("tidy", [False, True], ids=["until 2.11", "later"])
def test_after_a_broken_recording_torch_is_as_it_was_and_the_reason_is_the_first(
    tidy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later torches have ended the allocation themselves, say so, and must not be made to release it twice."""
    cuda, ended, calls = Cuda(), [], []
    for name in ("Stream", "current_stream", "set_stream", "stream", "CUDAGraph", "graph_pool_handle", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "default_generators", cuda.default_generators)

    def end(call: str, *pool: Any) -> None:
        if tidy and call == "_cuda_endAllocateToPool":
            raise RuntimeError("no allocation to this pool has begun")
        ended.append((call, *pool))

    for call in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, call, partial(end, call))

    def work() -> None:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("operation not permitted when stream is capturing\nMore of it")

    with pytest.raises(NotRecorded, match=r"^operation not permitted when stream is capturing$"):
        cuda_graph(work, lambda: None)
    assert cuda.mode == "thread_local"
    assert cuda.current is cuda.outside
    assert len(cuda.default_generators[0].states) == 1
    both = [("_cuda_endAllocateToPool", 0, "pool"), ("_cuda_releasePool", 0, "pool")]
    assert ended == ([] if tidy else both)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself
@pytest.mark.parametrize(("loss", "penalty"), [("ragan", Penalty()), ("wgan_gp", tiny.penalty("gp", 1.0))])
def test_compiled_networks_make_the_eager_updates(loss: str, penalty: Penalty) -> None:
    """Plain descent, because Adam's first updates are signs, and float64: both would blow up float32's rounding."""

    def doubled(seed: int) -> list[Batch]:
        return [Batch(batch.images.double()) for batch in batches(seed)]

    last = []
    for name in ("eager", "compiled"):
        torch.manual_seed(0)
        update = tiny.update(tiny.model(width=2, latent_dim=4), loss, penalty=penalty, dtype=torch.float64)
        made = Eager(update, lambda: torch.randn(6, 4, dtype=torch.float64))
        for network, attribute in ((update.generator, "optimizer_g"), (update.critic, "optimizer_d")):
            setattr(update, attribute, torch.optim.SGD(network.parameters(), lr=0.1))
        torch.manual_seed(3)
        _, iteration = build_iteration(name, made, lambda: doubled(0), chosen_by_user=True)
        for seed in range(3):
            iteration(doubled(seed))
        last.append(everything(update))
    for got, want in zip(last[1], last[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_moments_cross_between_engines_and_rates_stay_each_ones_own() -> None:
    """A graph reads the rate from a tensor, so it must stay that tensor."""
    config = OptimizerConfig(lr_d=0.25, betas=[0.5, 0.999])
    networks = build_networks(tiny.model(width=2, latent_dim=4), 32, 1)
    plain = build_optimizers(config, *networks)[1]
    captured = build_optimizers(config, *networks, captured=True)[1]
    tensor = captured.param_groups[0]["lr"]
    for parameter in networks[1].parameters():
        parameter.grad = torch.ones_like(parameter)
    plain.step()
    for source, target in ((plain, captured), (captured, plain)):
        load_optimizer_state(target, optimizer_state(source))
        assert tiny.differing(optimizer_state(source), optimizer_state(target)) == []
    assert captured.param_groups[0]["lr"] is tensor
    assert captured.param_groups[0]["capturable"] is True
    assert plain.param_groups[0]["lr"] == 0.25
    assert plain.param_groups[0]["betas"] == (0.5, 0.999)
    assert plain.param_groups[0]["capturable"] is False
