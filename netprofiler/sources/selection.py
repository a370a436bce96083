"""Filters for what was captured already: `replay --pid`, `--comm`, `--port`.

Contract: `Selection.apply(batch)` gives the batch without the data of what was not asked for, counted as `filtered`.
The same kind is OR, different kinds are AND, exclusion wins, as on the kernel side. What a recording does not hold
cannot be asked for: which processes were children of which, and executables.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, TypeVar

from netprofiler import wire
from netprofiler.config import Config
from netprofiler.counters import Counters

_T = TypeVar("_T")

SOCKETS_MAX: Final = 131_072
PROCESSES_MAX: Final = 32_768
"""Both twice what the pipeline keeps; the oldest go. What is not known passes no `--port` or `--comm`."""


class Selection:
    """The filters of one replay."""

    def __init__(self, config: Config, counters: Counters) -> None:
        self._counters = counters
        self._pids = frozenset(config.pid), frozenset(config.exclude_pid)
        self._comms = frozenset(config.comm), frozenset(config.exclude_comm)
        self._ports = frozenset(config.port), frozenset(config.exclude_port)
        self._sockets: OrderedDict[int, tuple[int, ...]] = OrderedDict()
        self._names: OrderedDict[int, str] = OrderedDict()

    @property
    def of_processes(self) -> bool:
        """Something is asked that a packet capture does not know."""
        return any((*self._pids, *self._comms))

    def __bool__(self) -> bool:
        return self.of_processes or any(self._ports)

    def apply(self, batch: bytes) -> bytes:
        kept = []
        for record in wire.records(batch):
            match wire.parse(record):
                case wire.DataCaptured() as event:
                    if not self._wanted(event.socket, event.pid):
                        for row in (self._counters.rows["filtered"], self._counters.delivered):
                            row.bytes += event.length
                            row.calls += event.flags & wire.DATA_FIRST
                        continue
                case wire.ConnectionOpened() as event:
                    if event.socket not in self._sockets and len(self._sockets) >= SOCKETS_MAX:
                        self._sockets.popitem(last=False)
                    is_unix = event.family == wire.FAMILY_UNIX
                    self._sockets[event.socket] = () if is_unix else (event.local_port, event.remote_port)
                case wire.ProcessSeen() as event:
                    if event.pid not in self._names and len(self._names) >= PROCESSES_MAX:
                        self._names.popitem(last=False)
                    self._names[event.pid] = event.comm
                case wire.ConnectionClosed():
                    pass
            kept.append(wire.frame(record))
        return b"".join(kept)

    def _wanted(self, socket: int, pid: int) -> bool:
        ports = self._sockets.get(socket, ())
        name = self._names.get(pid)
        return (
            _passes({pid}, self._pids)
            and _passes(set() if name is None else {name}, self._comms)
            and _passes(set(ports), self._ports)
        )


def _passes(values: set[_T], filters: tuple[frozenset[_T], frozenset[_T]]) -> bool:
    included, excluded = filters
    return not values & excluded and (not included or bool(values & included))
