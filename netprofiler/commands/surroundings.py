"""What `run` and `record` know of processes beside their traffic: containers, environments, and whether they are watched.

Contract: `begin()` starts to ask the engines; `attach(watch)` decides about what runs now and what begins from now on;
`attend(notices)` is told what the kernel side has seen of processes; `close()` ends it. `containers` may be asked at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from netprofiler import wire
from netprofiler.config import OPT_IN, Config
from netprofiler.containers.births import Births
from netprofiler.containers.directory import Containers
from netprofiler.containers.selection import Selection, Wanted
from netprofiler.environment import Environments, OptIn
from netprofiler.sources.kernel import Filters

NOBODY: Final = 0
"""The kernel's own pid, which makes no system calls: a filter by pid that is filled later."""

READS_MAX: Final = 1000
"""Processes a second that are looked at because they may be gone when they are asked for: 3 % of a core. More than begin on
a host that is not building software; those beyond are looked at when they speak HTTP."""

_GRPC_SOCKETS: Final = ("containerd.sock", "crio.sock")
"""These speak gRPC alone: what is wanted of these engines is in their files."""


class Surroundings:
    """See above."""

    def __init__(self, config: Config) -> None:
        opt_in = None if config.opt_in is None else OptIn(config.opt_in, config.opt_in_values)
        self._wanted = Wanted(
            names=config.container,
            exclude_names=config.exclude_container,
            projects=config.compose_project,
            services=config.compose_service,
            labels=config.container_label,
            opt_in=opt_in,
        )
        self.opt_in = opt_in or OptIn(OPT_IN)
        sockets = tuple(path for path in config.container_socket if Path(path).name not in _GRPC_SOCKETS)
        self.containers = Containers(sockets, config.container_namespace)
        self.environments = Environments()
        self._keeps_environments = opt_in is not None or config.env_output is not None
        self._selection: Selection | None = None
        self._births: Births | None = None
        self._told_at_once = False
        self._reads = (0, 0)
        """A second, and how many processes were looked at in it without being asked for."""
        self._ended: list[int] = []

    def begin(self) -> None:
        """Answers come while the kernel side is loaded."""
        self.containers.start()

    def filters(self, filters: Filters) -> Filters:
        """For the kernel side: with a selection of ours, what was asked for by pid is decided here, too."""
        if not self._wanted:
            return filters
        self._wanted = replace(self._wanted, pids=filters.pids, exclude_pids=filters.exclude_pids)
        if self._wanted.excludes_only:
            return replace(filters, exclude_pids=(*filters.exclude_pids, NOBODY))
        return replace(filters, pids=(NOBODY,))

    def attach(self, watch: Callable[[int, int], None]) -> None:
        self.containers.settle()
        if self._wanted:
            self._selection = Selection(self._wanted, self.containers, self.environments, watch)
        if self._selection is not None or self._keeps_environments or self.containers.active:
            self._begin_births()

    def _begin_births(self) -> None:
        # What began before we look is found by looking; what begins meanwhile is told twice.
        self._births = Births(self._executed, self._refresh, self._scan)
        self._told_at_once = self._births.start()
        self._scan()

    def attend(self, notices: Iterable[wire.Notice]) -> None:
        """Of one round, whose records have been read."""
        # What a process said last may still be on its way when its end is told: it is forgotten a round later.
        for pid in self._ended:
            self.containers.exited(pid)
            self.environments.exited(pid)
            if self._selection is not None:
                self._selection.exited(pid)
        self._ended = []
        if self._births is None and self.containers.active:
            self._begin_births()
        for notice in notices:
            if notice.kind == wire.NOTICE_EXITED:
                self._ended.append(notice.pid)
            elif notice.kind == wire.NOTICE_EXECUTED and not self._told_at_once:
                self._executed(notice.pid)

    def problems(self) -> list[str]:
        """What went wrong, for the end of the run."""
        found = [f"container engine {text} ({count} times)" for text, count in self.containers.failures.items()]
        if self._selection is not None and self._selection.failed:
            found.append(f"{self._selection.failed} processes could not be selected: too many at one time")
        return found

    def close(self) -> None:
        if self._births is not None:
            self._births.close()
        self.containers.close()

    def _executed(self, pid: int) -> None:
        if self._selection is not None:
            self._selection.executed(pid)
        elif self.containers.active and self._may_read():
            self.containers.executed(pid)
        if self._keeps_environments:
            self.environments.executed(pid)

    def _may_read(self) -> bool:
        second, count = self._reads
        now = int(time.monotonic())
        self._reads = (now, count + 1 if now == second else 1)
        return self._reads[1] <= READS_MAX

    def _refresh(self) -> None:
        if self._selection is not None:
            self._selection.refresh()

    def _scan(self) -> None:
        if self._selection is not None:
            self._selection.scan()
