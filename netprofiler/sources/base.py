"""What a stored capture is: the same rounds that a live capture goes through, read from a file.

Contract: `frames()` yields, in order, what the pipeline was (or would have been) given: batches of raw records, the
times at which rounds ended (`Pipeline.tick`), changes of the wall clock, and at last the `End`, with the rows of
whoever took the capture. The same file gives the same frames each time. A file that breaks off or is damaged yields
what is whole, then raises `DamagedCaptureError`; one that is no capture at all raises `CommandError` when it is opened.
Whoever reads frames holds one at a time: a file's size does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from netprofiler.counters import Row
from netprofiler.errors import CommandError, ExitCode


@dataclass(frozen=True, slots=True)
class Batch:
    """Raw records, as wire.py describes them; all whole."""

    time_ns: int
    """When they were taken from the ring."""
    data: bytes


@dataclass(frozen=True, slots=True)
class Rounds:
    """Rounds that ended at these times, one after the other, with nothing new between them."""

    times_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClockSet:
    """From here on, this is what makes wall clock of the records' times."""

    time_ns: int
    wall_offset_ns: int


@dataclass(frozen=True, slots=True)
class End:
    """Nothing follows. A recording has it only when it was ended as it should be; a packet capture, which has no end of its
    own, even where it breaks off.
    """

    time_ns: int
    rows: dict[str, Row]
    """The ledger's rows of whoever took the capture; `total` and `delivered` among them."""
    announcements_lost: int


Frame = Batch | Rounds | ClockSet | End


class StoredCapture(Protocol):
    """A file that can be replayed."""

    path: str
    description: str
    """One line: what wrote it, where and when."""
    wall_offset_ns: int
    """At its beginning."""
    knows_processes: bool

    def frames(self) -> Iterator[Frame]: ...

    def notes(self) -> list[str]:
        """After the last frame: what the file holds that could not be shown, one line each."""

    def close(self) -> None: ...


class DamagedCaptureError(CommandError):
    """Ends the frames of a file that is truncated or damaged: all before it was whole."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message, ExitCode.FAILED, remedy=remedy)
