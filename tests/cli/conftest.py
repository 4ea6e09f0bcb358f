"""Fixtures of the commands' tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def hydra_undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What Hydra does to the logging and the environment of this process is undone."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    root, ours = logging.getLogger(), logging.getLogger("relgan")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
