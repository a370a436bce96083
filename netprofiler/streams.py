"""One direction's bytes in order of their positions.

Contract: positions are 32-bit and wrap. What comes in order passes straight through; what comes early waits; what
comes twice is cut away; what does not come within a while is a gap, reported with its size and never filled.
`Stream.next` is the position that the next byte should have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

HELD_BYTES_MAX: Final = 4 * 1024 * 1024
"""Early bytes held for one direction: more than a packet capture's reordering or two threads' race brings about."""
HELD_SEGMENTS_MAX: Final = 4096

POSITION_MASK: Final = 0xFFFFFFFF
_HALF: Final = 1 << 31


def distance(later: int, earlier: int) -> int:
    """Signed distance of two positions: right while they are less than 2 GiB apart."""
    delta = (later - earlier) & POSITION_MASK
    return delta - (1 << 32) if delta >= _HALF else delta


@dataclass(slots=True)
class Segment:
    """Bytes of the stream from one system call (or a part of it)."""

    position: int
    length: int
    payload: bytes
    """`length` bytes, or none (or the start of a file that was sent) where `reason` says why."""
    reason: int
    time_ns: int
    pid: int
    tid: int
    after_loss: bool = False
    """What is missing before it found the ring full."""

    def without_start(self, count: int) -> Segment:
        """What is left behind the first `count` bytes."""
        return Segment(
            (self.position + count) & POSITION_MASK,
            self.length - count,
            self.payload[count:],
            self.reason,
            self.time_ns,
            self.pid,
            self.tid,
        )


@dataclass(slots=True)
class Gap:
    """`length` bytes that nobody saw, at the time of what came after them."""

    length: int
    time_ns: int
    ring_full: bool
    """They found the ring full; else it is not known why they are missing."""


class Holding:
    """What came early. Made only when something does."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.bytes = 0
        """Of payload."""
        self.since_ns = 0

    def add(self, segment: Segment) -> None:
        if not self.segments:
            self.since_ns = segment.time_ns
        self.segments.append(segment)
        self.bytes += len(segment.payload)

    @property
    def full(self) -> bool:
        return self.bytes > HELD_BYTES_MAX or len(self.segments) > HELD_SEGMENTS_MAX

    def release(self, next_position: int, force: bool) -> tuple[list[Segment | Gap], int]:
        """What can go on now, in order; with `force` everything, with the gaps between. And how many bytes came twice
        and were cut away.
        """
        out: list[Segment | Gap] = []
        seen_twice = 0
        self.segments.sort(key=lambda segment: distance(segment.position, next_position))
        taken = 0
        for segment in self.segments:
            ahead = distance(segment.position, next_position)
            if ahead > 0:
                if not force:
                    break
                out.append(Gap(ahead, segment.time_ns, segment.after_loss))
            elif ahead < 0:
                seen_twice += min(-ahead, segment.length)
                if -ahead >= segment.length:
                    taken += 1
                    continue
                segment = segment.without_start(-ahead)
            out.append(segment)
            next_position = (segment.position + segment.length) & POSITION_MASK
            taken += 1
        del self.segments[:taken]
        self.bytes = sum(len(segment.payload) for segment in self.segments)
        if self.segments:
            self.since_ns = min(segment.time_ns for segment in self.segments)
        return out, seen_twice
