"""Which processes are watched, where that depends on their container or on their environment.

Contract: `Selection` is told of each process that begins a program (`executed`), and has the kernel side watch it, or not
any more, by `watch(pid, flags)`, with what it has forked until then; later children the kernel side watches itself. Where a container is not
known yet, the decision waits for `refresh()`. Kinds are AND, several of one kind OR; exclusion wins. Called from several
threads; never raises because of what a process does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from netprofiler.containers.directory import Containers
from netprofiler.containers.facts import Facts
from netprofiler.environment import Environments, OptIn
from netprofiler.sources.kernel import EXCLUDE, INCLUDE
from netprofiler.sources.processes import PROC, forked

LEAVE: Final = 0
"""Beside INCLUDE and EXCLUDE: as if it were not there."""
UNDECIDED_MAX: Final = 4096
"""Processes whose container nobody has told of yet."""
ANCESTORS_MAX: Final = 64
SHORT_ID: Final = 12
"""Digits of an id by which it can be named."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of each kind, what was asked for."""

    names: tuple[str, ...] = ()
    """Of containers, or their ids, from SHORT_ID digits on."""
    exclude_names: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    """Of a compose project."""
    labels: tuple[str, ...] = ()
    """``KEY`` or ``KEY=VALUE``."""
    opt_in: OptIn | None = None
    pids: tuple[int, ...] = ()
    """They, and their descendants, and nobody else; none: everybody."""
    exclude_pids: tuple[int, ...] = ()

    @property
    def by_container(self) -> bool:
        return bool(self.names or self.exclude_names or self.projects or self.services or self.labels)

    @property
    def excludes_only(self) -> bool:
        """All are watched but those that are found."""
        return bool(self.exclude_names) and not (
            self.names or self.projects or self.services or self.labels or self.opt_in or self.pids
        )

    def __bool__(self) -> bool:
        return self.by_container or self.opt_in is not None


def is_named(facts: Facts, name: str) -> bool:
    """By its name, or by at least SHORT_ID digits of its id."""
    container = facts.container
    return name == container.container_name or (len(name) >= SHORT_ID and container.container_id.startswith(name))


def has_label(facts: Facts, label: str) -> bool:
    """``KEY`` with any value, or ``KEY=VALUE``."""
    key, equals, value = label.partition("=")
    return key in facts.labels and (not equals or facts.labels[key] == value)


def fits(facts: Facts, wanted: Wanted) -> bool:
    """The container is one of those that were asked for."""
    container = facts.container
    return (
        (not wanted.names or any(is_named(facts, name) for name in wanted.names))
        and not any(is_named(facts, name) for name in wanted.exclude_names)
        and (not wanted.projects or container.project in wanted.projects)
        and (
            not wanted.services or facts.labels.get("com.docker.compose.service", container.service) in wanted.services
        )
        and (not wanted.labels or any(has_label(facts, label) for label in wanted.labels))
    )


class Selection:
    """See above. `environments` is kept up to date as well."""

    def __init__(
        self,
        wanted: Wanted,
        containers: Containers,
        environments: Environments,
        watch: Callable[[int, int], None],
        proc: Path = PROC,
    ) -> None:
        self._wanted = wanted
        self._containers = containers
        self._environments = environments
        self._watch = watch
        self._proc = proc
        self._lock = threading.Lock()
        self._watched: set[int] = set()
        self._undecided: dict[int, None] = {}
        self._version = 0
        self.failed = 0
        """Processes that the kernel side could not be told of: its table is full."""

    def scan(self) -> None:
        """All that run now; those whose parent is known first, so that nothing is taken back."""
        for pid in sorted(int(entry) for entry in os.listdir(self._proc) if entry.isdigit()):
            self.executed(pid)

    def executed(self, pid: int) -> None:
        self._containers.executed(pid)
        if self._wanted.opt_in is not None:
            self._environments.executed(pid)
        self._apply(pid, self.decide(pid))

    def exited(self, pid: int) -> None:
        with self._lock:
            self._watched.discard(pid)
            self._undecided.pop(pid, None)

    def refresh(self) -> None:
        """More may be known of containers."""
        if self._undecided and self._version != self._containers.version:
            self._version = self._containers.version
            for pid in list(self._undecided):
                self._apply(pid, self.decide(pid))

    def decide(self, pid: int) -> bool | None:
        """Whether it is to be watched; None: nobody has told of its container yet."""
        wanted = self._wanted
        if wanted.pids or wanted.exclude_pids:
            family = {pid, *self._ancestors(pid)}
            if (wanted.pids and family.isdisjoint(wanted.pids)) or not family.isdisjoint(wanted.exclude_pids):
                return False
        if wanted.opt_in is not None:
            try:
                environ = self._environments.of(pid)
            except OSError:
                return False
            if not wanted.opt_in.judge(environ).wanted:
                return False
        if wanted.by_container:
            identity = self._containers.identity_of(pid)
            if not identity:
                return wanted.excludes_only or not (wanted.names or wanted.projects or wanted.services or wanted.labels)
            facts = self._containers.facts_of(identity)
            if facts is None:
                return None
            return fits(facts, wanted)
        return True

    def _apply(self, pid: int, decision: bool | None) -> None:
        with self._lock:
            if decision is None:
                self._undecided[pid] = None
                if len(self._undecided) > UNDECIDED_MAX:
                    del self._undecided[next(iter(self._undecided))]
                return
            self._undecided.pop(pid, None)
            excludes = self._wanted.excludes_only
            if decision is not excludes:
                self._watched.add(pid)
                flags = EXCLUDE if excludes else INCLUDE
            elif pid in self._watched or any(parent in self._watched for parent in self._ancestors(pid)):
                self._watched.discard(pid)
                flags = LEAVE  # it has inherited what it should not
            else:
                return
        # What it has forked before it was decided (nginx's workers) has inherited nothing. The kernel links a child
        # before it passes on what the parent has (kernel/fork.c), so that none is missed in between.
        self._tell(pid, flags)
        for child in forked(pid, self._proc):
            self._tell(child, flags)

    def _tell(self, pid: int, flags: int) -> None:
        try:
            self._watch(pid, flags)
        except OSError:
            self.failed += 1

    def _ancestors(self, pid: int) -> list[int]:
        found: list[int] = []
        while len(found) < ANCESTORS_MAX:
            try:
                text = (self._proc / str(pid) / "stat").read_bytes()
                pid = int(text[text.rindex(b")") + 1 :].split()[1])
            except (OSError, ValueError, IndexError):
                break
            if pid <= 1:
                break
            found.append(pid)
        return found
