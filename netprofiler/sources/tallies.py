"""What the kernel side has added up (bpf/tally.h), as numbers since the last time.

Contract: `Tallies.read(now_ns)` gives what has come since it was last called, each exchange once; `exited(pid)` says that a
process is gone. Entries of processes that are gone are deleted at the second `read` from then on, when nothing can be added to
them any more. Where the table is filling, so are those to which nothing was added for IDLE_NS: the kernel side makes an entry
anew when it finishes an exchange. Bounded by the kernel's tables, of which this keeps a copy.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from netprofiler.sources.bpf import Map
from netprofiler.wire import parse_address

BUCKETS: Final = 24
"""BUCKETS_MAX of bpf/maps.h."""
IDLE_NS: Final = 60_000_000_000

_LINE_BYTES: Final = 128
_HOST_BYTES: Final = 64
_PLACE: Final = struct.Struct("<QIHBB16s")
_WHAT: Final = struct.Struct(f"<{_LINE_BYTES}s{_HOST_BYTES}sHB5x")
_NUMBERS: Final = struct.Struct(f"<{BUCKETS}QQQQ")
_SUM_BYTES: Final = _PLACE.size + _WHAT.size + 2 * _NUMBERS.size
_ASKER: Final = struct.Struct("<QII")
_COUNT: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Asker:
    """A process at one end of its connections."""

    pid: int
    start_ns: int
    """Boot time clock, as in `Process`."""
    is_server: bool


@dataclass(frozen=True, slots=True)
class Tally:
    """Exchanges that have all of this in common."""

    asker: Asker
    is_tls: bool
    address: str
    """The server's, as this end has it."""
    port: int
    method: str
    target: str
    """Up to its query."""
    host: str
    """The request's Host, at the client; as it was sent."""
    version: str
    """The request's."""
    status: int
    incomplete: bool
    """The response was cut short."""
    buckets: tuple[int, ...]
    """By duration, not cumulated: BUCKETS, of which the first are in use."""
    duration_ns: int
    request_bytes: int
    response_bytes: int
    """Of bodies."""


@dataclass(slots=True)
class _Entry:
    """What was read of a key."""

    value: bytes
    changed_ns: int


class Tallies:
    """See above."""

    def __init__(self, sums: Map, unanswered: Map) -> None:
        if sums.facts.value_size != _SUM_BYTES or unanswered.facts.key_size != _ASKER.size:
            raise ValueError("tables that are not those of bpf/maps.h")
        self._sums = sums
        self._unanswered = unanswered
        self._entries: dict[bytes, _Entry] = {}
        self._askers: dict[bytes, int] = {}
        self._exited: set[int] = set()
        self._leaving: set[int] = set()

    def exited(self, pid: int) -> None:
        self._exited.add(pid)

    def read(self, now_ns: int) -> tuple[list[Tally], list[tuple[Asker, int]]]:
        """Exchanges; and requests whose connection ended before a response."""
        tallies: list[Tally] = []
        entries = self._entries
        found = self._sums.items()
        for key, value in found:
            entry = entries.get(key)
            if entry is None:
                entry = entries[key] = _Entry(bytes(_SUM_BYTES), now_ns)
            if entry.value != value:
                tallies += _new_tallies(value, entry.value)
                entry.value = value
                entry.changed_ns = now_ns
        askers = []
        for key, value in self._unanswered.items():
            (count,) = _COUNT.unpack(value)
            more = count - self._askers.get(key, 0)
            if more:
                self._askers[key] = count
                start_ns, pid, is_server = _ASKER.unpack(key)
                askers.append((Asker(pid, start_ns, bool(is_server)), more))
        self._delete(now_ns, full=len(found) > self._sums.facts.max_entries * 3 // 4)
        return tallies, askers

    def _delete(self, now_ns: int, *, full: bool) -> None:
        gone, self._leaving, self._exited = self._leaving, self._exited, set()
        if gone or full:
            for key, entry in list(self._entries.items()):
                _, pid, *_ = _PLACE.unpack_from(entry.value)
                if pid in gone or (full and now_ns - entry.changed_ns > IDLE_NS):
                    self._sums.delete(key)
                    del self._entries[key]
        for key in [key for key in self._askers if _ASKER.unpack(key)[1] in gone]:
            self._unanswered.delete(key)
            del self._askers[key]


def _new_tallies(value: bytes, before: bytes) -> Iterator[Tally]:
    start_ns, pid, port, is_server, is_tls, address = _PLACE.unpack_from(value)
    line, host, status, version = _WHAT.unpack_from(value, _PLACE.size)
    method, _, target = line.rstrip(b"\0").decode("utf-8", "replace").partition(" ")
    at = _PLACE.size + _WHAT.size
    for incomplete in (False, True):
        now, then = _NUMBERS.unpack_from(value, at), _NUMBERS.unpack_from(before, at)
        at += _NUMBERS.size
        if now == then:
            continue
        *buckets, duration_ns, request_bytes, response_bytes = (new - old for new, old in zip(now, then, strict=True))
        yield Tally(
            Asker(pid, start_ns, bool(is_server)),
            bool(is_tls),
            parse_address(address),
            port,
            method,
            target,
            host.rstrip(b"\0").decode("utf-8", "replace").strip(" \t"),
            f"HTTP/1.{chr(version)}",
            status,
            incomplete,
            tuple(buckets),
            duration_ns,
            request_bytes,
            response_bytes,
        )
