"""What a protocol that is spoken after HTTP/1, or instead of it, has in common with the others.

Contract: a `Conversation` takes both directions' bytes in order and makes messages of them. Whoever holds the connection
(connection.py) orders the bytes, finds the gaps and decides what is spoken; a conversation frames, decodes and pairs. It
never raises for any bytes, holds no more than its module states, and does no I/O; time is what it is told.

Every byte that it is given ends in exactly one row of the ledger (`Surroundings.counters`), at the latest in `end`.
"""

from __future__ import annotations

from typing import Final, Protocol

from netprofiler.counters import Counters
from netprofiler.exchange import Message, Process
from netprofiler.streams import Segment

BUDGET: Final = "budget"
"""A reason of missing bytes: they were over what is copied. A message whose size is known all the same is `truncated`."""
SENT_FROM_FILES: Final = ("sendfile", "splice")
"""Reasons for which bytes have a row of the ledger to themselves, and the rest of the message is recorded."""


def note_missing(message: Message, length: int, reason: str) -> None:
    """`length` bytes of the message passed unseen; of several reasons none is the one."""
    message.missing_bytes += length
    message.missing_reason = reason if message.missing_reason in ("", reason) else "unknown"


class Surroundings(Protocol):
    """What the connection offers a conversation: connection.py's `Shared`."""

    counters: Counters
    processes: dict[int, Process]
    out: list[Message]
    """Messages that have ended go here; it is another list each time: do not keep it."""
    body_limit: int
    """Bytes of a body that are kept."""
    stream_interval_ns: int
    """A message that takes longer gives one picture of itself (completeness `open`) meanwhile; 0: none."""


class Conversation(Protocol):
    """One connection, from the byte on where it began to speak this."""

    def feed(self, direction: int, segment: Segment) -> str:
        """The next bytes of a direction, `segment.payload` all of them. Returns the row of the ledger to which their system
        call belongs; their bytes it has put into their rows itself, or holds until it can.
        """

    def missing(self, direction: int, length: int, reason: str, time_ns: int, start: bytes = b"") -> None:
        """`length` bytes of a direction that nobody saw, and why (`missing_reason` of the record); `start`: their first ones,
        where they could be had otherwise (a file that was sent). They are in the ledger.
        """

    def end(self, direction: int, time_ns: int, *, finished: bool) -> None:
        """No byte of this direction will come: its end was seen (`finished`), or the capture is over."""

    def tick(self, now_ns: int) -> None:
        """Time has passed: interim records."""

    @property
    def waits(self) -> bool:
        """Is there something that `tick` may bring about?"""

    @property
    def is_lost(self) -> bool:
        """It does not speak this after all: nothing more need come."""
