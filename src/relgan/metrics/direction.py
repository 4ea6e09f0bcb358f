"""Which way a score improves, by its key alone. No torch: pages and tables ask too."""

from __future__ import annotations

import re
from typing import Literal

_SMALLER = re.compile(r"fid|kid|mode_kl|(fd|kd)_\w+")
_LARGER = re.compile(r"is|modes|mode_confidence|lpips_diversity|score_\w+|(precision|recall)(_\w+)?")


def direction(key: str) -> Literal["min", "max"] | None:
    """Whether a smaller or a larger value of ``key`` ("eval/fid", …) is better; None for what is not ranked."""
    name = key.removeprefix("eval/")
    if name.endswith(("_std", "_se")):
        return None
    if _SMALLER.fullmatch(name):
        return "min"
    return "max" if _LARGER.fullmatch(name) else None
