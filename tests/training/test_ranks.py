"""Two or three processes with their parts of a batch make the update of one process with all of it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import processes
import tiny
from relgan import distributed
from relgan.builtin import ConvOptions
from relgan.cli import train
from relgan.cli.compose import STARTED
from relgan.config import Config, TrainConfig, check_batch_size
from relgan.data.batches import Batch
from relgan.distributed import broadcast, own_part
from relgan.options import ConfigError
from relgan.penalties import Penalty, ZeroCenteredPenalty
from relgan.training.engine import kinds

BATCH = 12
WORLDS = (3, 2)
SPECTRAL = tiny.model(width=2, latent_dim=4, norm="none", spectral_norm=True)
SYNCHRONISED = tiny.model(width=2, latent_dim=4, sync_batch_norm=True)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One update to compare."""

    loss: str
    penalty: str | Penalty = "none"
    model: ConvOptions = dataclasses.field(default_factory=lambda: SPECTRAL)
    accumulate: int = 1
    augment: str = "none"
    classes: int = 0
    lecam: float = 0.0
    channels: int = 1


SETTINGS = [
    *(
        Setting(loss, accumulate=parts)
        for loss in ("sgan", "rsgan", "rlsgan", "ragan", "ralsgan", "rahinge", "rchinge", "rsgan_allpairs")
        for parts in (1, 2)
    ),
    Setting("wgan_gp", "gp"),
    Setting("wgan_gp", "gp", accumulate=2),
    Setting("rsgan", "r1r2", accumulate=2),
    Setting("ragan", "dragan"),
    Setting("ragan", "clip"),
    Setting("sgan", model=SYNCHRONISED),
    Setting("ragan", model=SYNCHRONISED),
    Setting("ragan", "gp", model=SYNCHRONISED),
    Setting("rsgan_allpairs", "r1r2", model=SYNCHRONISED),
    Setting("ragan", classes=3, augment="diffaugment"),
    Setting("rsgan", "r1r2", classes=3, augment="diffaugment", accumulate=2),
    Setting("rsgan", "ar1r2", classes=3, lecam=0.3),
    Setting("rsgan", ZeroCenteredPenalty(1.0, interval=4)),
    Setting("rasgan", "gp", model=dataclasses.replace(SPECTRAL, pack=2)),
    Setting("rasgan", augment="ada", channels=3),
]


def updated(setting: Setting) -> dict[str, list[Tensor]]:
    """Gradients and buffers after one critic and one generator update of this process's part of the batch."""
    torch.manual_seed(0)
    update = tiny.update(
        setting.model,
        setting.loss,
        penalty=setting.penalty,
        dtype=torch.float64,
        accumulate=setting.accumulate,
        augment=setting.augment,
        classes=setting.classes,
        lecam=setting.lecam,
        centring=setting.lecam,
        pack=setting.model.pack,
        channels=setting.channels,
    )
    # ADA begins at 0, where it changes no image, and expects logits of float32, not of float64.
    update.strength.p.fill_(0.5)
    update.strength.sign = update.strength.sign.double()
    generator, critic = update.generator, update.critic
    real = 2 * torch.rand(BATCH, setting.channels, 32, 32, dtype=torch.float64) - 1
    z = torch.randn(BATCH, setting.model.latent_dim, dtype=torch.float64)
    labels = own_part(torch.arange(BATCH) % setting.classes) if setting.classes else None
    for penalised in reversed(kinds(update)):
        first = update.update_critic(Batch(own_part(real), labels), own_part(z), penalised=penalised)
    of_critic = gradients(critic)
    second = update.update_generator(Batch(own_part(real), labels), own_part(z))
    buffers = [b.clone() for network in (generator, critic) for b in network.buffers()]
    parameters = [p.detach().clone() for network in (generator, critic) for p in network.parameters()]
    return {
        "mean over ranks": [first.loss, first.penalty, second.loss],
        "same on all ranks": [
            *(first.grad_norm, second.grad_norm),
            *of_critic,
            *gradients(generator),
            *buffers,
            *parameters,
            *update.strength.state_dict().values(),
        ],
    }


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def rank_main(rank: int, folder: str) -> None:
    for world in WORLDS:
        if rank >= world:
            continue
        store = f"file://{folder}/store{world}"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
        results = [updated(setting) for setting in SETTINGS]
        buffers = [torch.full((2,), float(rank))]
        broadcast(buffers)
        torch.save({"updates": results, "broadcast": buffers}, f"{folder}/{rank} of {world}.pt")
        torch.distributed.destroy_process_group()


Rank = dict[str, Any]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Rank]]:
    """What each rank of each world saved."""
    folder = tmp_path_factory.mktemp("ranks")
    processes.ranks(max(WORLDS), rank_main, str(folder))
    return {
        world: [torch.load(folder / f"{rank} of {world}.pt", weights_only=True) for rank in range(world)]
        for world in WORLDS
    }


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("number", range(len(SETTINGS)), ids=[str(dataclasses.astuple(s)) for s in SETTINGS])
def test_the_update_is_that_of_one_process(number: int, world: int, ranks: dict[int, list[Rank]]) -> None:
    whole = updated(SETTINGS[number])
    parts = [rank["updates"][number] for rank in ranks[world]]
    for part in parts:
        for got, want in zip(part["same on all ranks"], whole["same on all ranks"], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
    for index, want in enumerate(whole["mean over ranks"]):
        mean = torch.stack([part["mean over ranks"][index] for part in parts]).mean()
        torch.testing.assert_close(mean, want, rtol=1e-6, atol=1e-9)


def test_buffers_come_from_rank_0(ranks: dict[int, list[Rank]]) -> None:
    for rank in ranks[3]:
        assert rank["broadcast"][0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("batch", "accumulate", "world"), [(64, 1, 3), (64, 3, 1), (8, 2, 8)])
def test_a_batch_that_does_not_split_evenly_is_refused(batch: int, accumulate: int, world: int) -> None:
    config = Config(train=TrainConfig(batch_size=batch, accumulate=accumulate))
    with pytest.raises(ConfigError, match=r"^train.batch_size: \d+ is not a multiple of"):
        check_batch_size(config, world)


def torchrun(*arguments: str, ranks: int = 2) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    flags = [argument for argument in arguments if argument.startswith("-")]
    options = [argument for argument in arguments if argument not in flags]
    return [*launcher, "-m", "relgan.cli.train", *flags, *tiny.ARGUMENTS, *options]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# No batch norm, whose local statistics are those of a rank's part.
COMPARABLE = ("model.norm=none", "train.log_every=1")


@pytest.mark.slow
def test_torchrun_writes_one_run_like_that_of_one_process(tmp_path: Path) -> None:
    done = subprocess.run(
        torchrun(*COMPARABLE), cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.count("finished after 4 updates") == 1
    (directory,) = (path.parent for path in tmp_path.rglob("summary.json"))
    assert json.loads((directory / "summary.json").read_text())["status"] == "finished"
    alone = tmp_path / "alone"
    processes.run(processes.command("train"), *tiny.ARGUMENTS, *COMPARABLE, f"hydra.run.dir={alone}")
    for got, want in zip(tiny.records(directory), tiny.records(alone), strict=True):
        assert (got["kind"], got["step"]) == (want["kind"], want["step"])
        keys = [key for key in want if key.startswith(("train/", "eval/")) and "second" not in key]
        assert {key: got[key] for key in keys} == pytest.approx({key: want[key] for key in keys}, rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job(tmp_path: Path) -> None:
    with subprocess.Popen(
        torchrun("train.iterations=1000000"),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as job:
        assert job.stdout is not None
        while not list(tmp_path.rglob("step_00000000.png")) and job.poll() is None:
            time.sleep(0.1)
        os.kill(_children(job.pid)[-1], signal.SIGKILL)
        started = time.perf_counter()
        output = job.communicate(timeout=120)[0]
        assert time.perf_counter() - started < 60
        assert job.returncode != 0
        assert "SIGKILL" in output
    assert all(tiny.summary(path.parent)["status"] != "finished" for path in tmp_path.rglob("summary.json"))


@pytest.mark.slow
def test_a_node_that_dies_ends_the_others_and_the_same_lines_again_go_on(tmp_path: Path) -> None:
    """Two agents of torchrun, each a node of one rank; one is killed with all it has started."""
    options = ["train.iterations=1000", "train.checkpoint_every=50", "train.log_every=500"]
    options += ["hydra.run.dir=long", "resume=auto"]

    def start() -> list[subprocess.Popen[bytes]]:
        with socket.socket() as server:
            server.bind(("localhost", 0))
            place = f"localhost:{server.getsockname()[1]}"
        agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        agent += ["--rdzv-backend=c10d", f"--rdzv-endpoint={place}", "-m", "relgan.cli.train"]
        command = [*agent, *tiny.ARGUMENTS, *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        return [subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, **quiet) for _ in "ab"]  # type: ignore[call-overload]

    staying, dying = start()
    while not (tmp_path / "long" / "checkpoints" / "last.previous.pt").exists():
        assert staying.poll() is None
        time.sleep(0.1)
    # A worker is in a session of its own.
    for process in (dying.pid, *_children(dying.pid)):
        os.kill(process, signal.SIGKILL)
    assert (staying.wait(120), dying.wait(10)) == (1, -signal.SIGKILL)
    assert tiny.summary(tmp_path / "long")["status"] != "finished"
    assert [agent.wait(120) for agent in start()] == [0, 0]
    assert "continuing from" in (tmp_path / "long" / "train.log").read_text()
    assert tiny.summary(tmp_path / "long")["status"] == "finished"


@pytest.mark.parametrize(("status", "together"), [(143, True), (130, True), (2, False), (1, False)])
def test_ranks_leave_together_where_a_signal_ends_them(
    status: int, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []
    monkeypatch.setattr(train, "is_rank", lambda: True)
    monkeypatch.setenv(STARTED, "")
    for name, call in {"join": lambda: None, "from_main": str, "leave": lambda: left.append(1)}.items():
        monkeypatch.setattr(distributed, name, call)
    with pytest.raises(SystemExit), train._ranks():
        raise SystemExit(status)
    assert bool(left) is together


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.batch_size=5"], "train.batch_size: 5 is not a multiple of ranks 2"),
        (["-m", "loss=sgan,ragan"], "--multirun: torchrun trains one run on its ranks"),
    ],
)
def test_what_ranks_cannot_do_is_refused_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    command = torchrun(*arguments)
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert f"(rank 0): {message}" in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert not list(tmp_path.rglob("summary.json"))
