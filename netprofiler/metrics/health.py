"""What the agent says of itself: what the main thread last saw, for the thread that serves metrics.

Contract: plain values; a `Health` is made by the main thread, of a capture that is attached, and never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

PEAK_NS: Final = 30_000_000_000
"""A peak is shown for this long at least, and twice as long at most: longer than between two scrapes."""


@dataclass(frozen=True, slots=True)
class Health:
    """A capture that is attached, as of some moment."""

    ledger: Mapping[str, Any]
    """As `counters.make_ledger` makes it."""
    announcements_lost: int = 0
    tls_unread: int = 0
    """TLS connections that ended and of which no plaintext was seen."""
    connections: int = 0
    """That the pipeline follows."""
    probes: Mapping[str, int] | None = None
    """Attached now, by kind: ``tracepoint``, ``uprobe``."""
    probed_files: int = 0
    attach_failures: Mapping[str, int] | None = None
    """Files that could not be opened, analysed or attached, by reason."""
    ring_size_bytes: int = 0
    ring_read_bytes: int = 0
    """Since the start."""
    ring_peak_bytes: int = 0
    """The most that waited in the ring when it was read, lately."""


class Peak:
    """The highest of the values of the last PEAK_NS, or of somewhat more."""

    __slots__ = ("_before", "_now", "_turn_ns")

    def __init__(self) -> None:
        self._before = 0
        self._now = 0
        self._turn_ns = 0

    def add(self, value: int, now_ns: int) -> None:
        if now_ns >= self._turn_ns:
            self._turn_ns = now_ns + PEAK_NS
            self._before, self._now = self._now, 0
        self._now = max(self._now, value)

    @property
    def value(self) -> int:
        return max(self._before, self._now)
