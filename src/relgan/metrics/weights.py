"""Finding published weight files: the user's path, the torch hub cache, or a verified download."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from relgan.cache import Refused
from relgan.data.download import DownloadError, fetch
from relgan.options import ConfigError, user_path

log = logging.getLogger("relgan")


@dataclass(frozen=True)
class WeightFile:
    """A published file.

    Attributes:
        option: that may name a file instead.
        sha256: the start of its hash.
        cached: its name in the torch hub cache, if that is not the last part of ``url``.
    """

    option: str
    url: str
    sha256: str
    cached: str = ""

    @property
    def name(self) -> str:
        return self.cached or self.url.rsplit("/", 1)[1]

    def find(self, given: str | None) -> Path:
        """The file on this machine, downloaded where it is missing or damaged.

        Raises:
            ConfigError: ``given`` does not exist, or the download failed.
        """
        if given is not None:
            path = user_path(given)
            if not path.is_file():
                raise ConfigError(self.option, f"{given} is not a file")
            return path
        path = Path(torch.hub.get_dir()) / "checkpoints" / self.name
        try:
            return fetch(path, [self.url], f"sha256:{self.sha256}")
        except (Refused, DownloadError) as error:
            raise ConfigError(
                self.option,
                f"{self.name} could not be downloaded ({error}); get it from {self.url} and put it into "
                f"{path.parent}, or give its path here",
            ) from error

    def is_published(self, sha256: str) -> bool:
        """Whether a file with this hash is the published one; a warning says so where it is not."""
        published = sha256.startswith(self.sha256)
        if not published:
            log.warning("%s: this is not the published %s; the scores are not comparable", self.option, self.name)
        return published


def load_state(path: Path, option: str) -> dict[str, torch.Tensor]:
    """A plain state dict; nothing else that a file could hold is executed.

    Raises:
        ConfigError: the file is damaged or is no state dict.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        raise ConfigError(option, f"{path} is damaged or not a PyTorch state dict") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConfigError(option, f"{path} is not a PyTorch state dict")
    return state
