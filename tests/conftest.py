"""Fixtures shared by all tests: a cache of their own, no network, no W&B account."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from relgan import registry


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory for the whole session, for what is costly to make (the digits classifier)."""
    base = tmp_path_factory.getbasetemp()
    # One for all workers of pytest-xdist.
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-cache"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(autouse=True)
def _environment(shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELGAN_CACHE", str(shared_cache))
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """What a test answers is answered no more after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A script that starts the tests in the background has Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def terminal() -> Iterator[None]:
    """A terminal whose closing is answered, under nohup too; nothing where the system has none."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL) if hasattr(signal, "SIGHUP") else None
    yield
    if before is not None:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory for one test."""
    path = tmp_path / "cache"
    monkeypatch.setenv("RELGAN_CACHE", str(path))
    return path


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Real images; skipped where RELGAN_TEST_DATA is not set."""
    folder = os.environ.get("RELGAN_TEST_DATA")
    if not folder:
        pytest.skip("RELGAN_TEST_DATA is not set to the folder of sample images")
    return Path(folder)


@pytest.fixture(autouse=True)
def _registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    for each in vars(registry).values():
        if isinstance(each, registry.Registry):
            monkeypatch.setattr(each, "_entries", dict(each))
