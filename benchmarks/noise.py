"""Values over rounds, and how far they lie apart. On a shared virtual machine a number without that says nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    low: float
    high: float
    quartile_low: float
    quartile_high: float
    values: tuple[float, ...]

    def text(self, digits: int = 2) -> str:
        """``median (min..max)``."""
        if len(self.values) == 1:
            return f"{self.median:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}..{self.high:,.{digits}f})"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def spread(values: Iterable[float | None]) -> Spread | None:
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    quartiles = statistics.quantiles(known, n=4, method="inclusive") if len(known) > 1 else known * 3
    return Spread(statistics.median(known), known[0], known[-1], quartiles[0], quartiles[2], tuple(known))


def text(value: Spread | None, digits: int = 2) -> str:
    return "-" if value is None else value.text(digits)


def ratios(on: Sequence[float | None], off: Sequence[float | None]) -> Spread | None:
    """Pairs of one round each."""
    pairs = zip(on, off, strict=False)
    return spread(a / b for a, b in pairs if a is not None and b)
