"""A number and how sure it is."""

from __future__ import annotations

from typing import NamedTuple


class Interval(NamedTuple):
    """A number, and the ends of its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, reach: float) -> Interval:
        return cls(value, value - reach, value + reach)

    @property
    def leaves_out_zero(self) -> bool:
        return not self.low <= 0 <= self.high
