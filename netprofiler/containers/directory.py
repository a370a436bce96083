"""Which container a process is in, and what its engine says of that container.

Contract: whoever asks (`identity_of`, `facts_of`, `at_address`, …) gets what is known now, from tables and one read of
/proc; nobody waits for an engine. A thread for each engine's socket follows its events, so that a container that is gone
by the time somebody asks is known all the same; another one reads files for containers that no engine has told of.
`version` changes whenever more is known: what was found out before it may be asked again. What fails is counted and tried
again; nothing here raises because of what an engine, a process or a file does. Everything is bounded.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netprofiler.containers.cgroups import TEXT_MAX, container_id
from netprofiler.containers.facts import EngineError, Event, Facts
from netprofiler.containers.state_files import read_facts, socket_paths
from netprofiler.exchange import Container
from netprofiler.sources.processes import PROC

if TYPE_CHECKING:
    from netprofiler.containers.engine import Engine  # takes 30 ms to import, and is of use where there is an engine

CONTAINERS_MAX: Final = 4096
"""Remembered, those that are gone included; over it, the one that was told of first goes. Some 4 KB each."""
PIDS_MAX: Final = 32_768
"""Processes whose container is remembered."""
WANTED_MAX: Final = 256
"""Containers that wait to be looked for in files."""
ENGINES_MAX: Final = 8
START_SECONDS: Final = 1.0
"""The start waits so long for the engines' lists; an engine that takes longer is told of when it has answered."""
RETRY_SECONDS: Final = (0.1, 5.0)
"""An engine that cannot be asked is tried again after the first, twice that, and so on to the second."""
SEARCH_SECONDS: Final = 5.0
"""Sockets that were not there are looked for this often."""
CLOCK_TICK_NS: Final = 10_000_000
"""proc_pid_stat(5), starttime: USER_HZ is 100 wherever Linux runs."""
TOLD_AGAIN_SECONDS: Final = 60.0
"""A container of which nobody knew anything is asked for again after this."""


class Containers:
    """`sockets`: of engines; none: those that are found. `namespaces`: of containerd's; none: all."""

    def __init__(
        self,
        sockets: tuple[str, ...] = (),
        namespaces: tuple[str, ...] = (),
        *,
        proc: Path = PROC,
        find_sockets: Callable[[], list[str]] = socket_paths,
        read_files: Callable[[str, tuple[str, ...]], Facts | None] = read_facts,
    ) -> None:
        self._sockets = sockets
        self._namespaces = namespaces
        self._proc = proc
        self._find_sockets = find_sockets
        self._read_files = read_files
        self.version = 1
        self.failures: Counter[str] = Counter()
        """Of engines, by ``SOCKET: reason``."""
        self._lock = threading.Lock()
        self._facts: dict[str, Facts] = {}
        self._ended: dict[str, int] = {}
        """Containers that have ended → monotonic time."""
        self._by_address: dict[str, tuple[str, ...]] = {}
        self._by_port: dict[int, tuple[str, ...]] = {}
        self._by_namespace: dict[int, str] = {}
        self._pids: dict[int, str] = {}
        self._sought: dict[str, float] = {}
        self._wanted: queue.Queue[str | None] = queue.Queue(WANTED_MAX)
        self._engines: dict[str, Engine] = {}
        self._listed: dict[str, threading.Event] = {}
        self._stop = threading.Event()
        self._seen = False
        """A process in a container was."""

    # --- beginning and end -------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._find_engines()
        threading.Thread(target=self._search, name="containers", daemon=True).start()
        threading.Thread(target=self._read_wanted, name="container-files", daemon=True).start()

    def settle(self) -> None:
        """Waits START_SECONDS for what the engines know already, no longer."""
        until = time.monotonic() + START_SECONDS
        for listed in list(self._listed.values()):
            listed.wait(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        self._stop.set()
        with contextlib.suppress(queue.Full):
            self._wanted.put_nowait(None)
        for engine in list(self._engines.values()):
            engine.close()

    @property
    def active(self) -> bool:
        """There is an engine, or a container was seen: places are worth telling."""
        return self._seen or bool(self._engines)

    # --- questions ---------------------------------------------------------------------------------------------------

    def identity_of(self, pid: int, start_ns: int = 0) -> str | None:
        """The id of its container; empty: it is in none; None: the process is gone, or another one has its pid by now.
        `start_ns`: when it began (boot-time clock); 0: whoever has the pid now.
        """
        identity = self._pids.get(pid)
        if identity is None:
            identity = self._read_process(pid)
            if identity is None:
                return None
            self._remember_pid(pid, identity)
        if start_ns and not self._began(pid, start_ns):
            return None
        return identity

    def facts_of(self, identity: str) -> Facts | None:
        """None: nobody has told of it yet. Then it is looked for."""
        facts = self._facts.get(identity)
        if facts is None:
            self._seek(identity)
        return facts

    def container(self, identity: str) -> Container:
        """With its id at least."""
        facts = self.facts_of(identity)
        return Container(identity) if facts is None else facts.container

    def at_address(self, address: str) -> list[Facts]:
        """Those that run and have it, in whichever network."""
        found = (self._facts.get(identity) for identity in self._by_address.get(address, ()))
        return [facts for facts in found if facts is not None]

    def at_port(self, port: int) -> list[Facts]:
        """Those to which this port of the host leads."""
        found = (self._facts.get(identity) for identity in self._by_port.get(port, ()))
        return [facts for facts in found if facts is not None]

    def in_namespace(self, namespace: int, time_ns: int) -> str:
        """The container that had this network namespace, and no other one with it, at that (monotonic) time."""
        identity = self._by_namespace.get(namespace, "")
        return identity if time_ns <= self._ended.get(identity, 1 << 62) else ""

    @property
    def on_host_network(self) -> bool:
        """A container runs that has the host's network."""
        return any(facts.host_network and identity not in self._ended for identity, facts in list(self._facts.items()))

    def name_of(self, pid: int) -> str | None:
        """What to call the container of a process: its service, else its name; None: it is in none, or not known."""
        identity = self.identity_of(pid)
        if not identity:
            return None
        container = self.container(identity)
        return container.service or container.container_name or None

    # --- what happens to processes -----------------------------------------------------------------------------------

    def executed(self, pid: int) -> None:
        """It may be gone when somebody asks."""
        identity = self._read_process(pid)
        if identity is not None:
            self._remember_pid(pid, identity)

    def exited(self, pid: int) -> None:
        self._pids.pop(pid, None)

    def learn_namespace(self, namespace: int, identity: str) -> None:
        """A process of this container has a socket in this network namespace."""
        facts = self._facts.get(identity)
        if facts is not None and not facts.shares_network:
            self._by_namespace[namespace] = identity

    def _read_process(self, pid: int) -> str | None:
        try:
            with open(self._proc / str(pid) / "cgroup", "rb") as file:
                text = file.read(TEXT_MAX).decode("utf-8", "replace")
        except OSError:
            return None
        identity = container_id(text)
        if identity:
            self._seen = True
        return identity

    def _remember_pid(self, pid: int, identity: str) -> None:
        self._pids[pid] = identity
        if len(self._pids) > PIDS_MAX:
            with contextlib.suppress(KeyError, StopIteration, RuntimeError):
                del self._pids[next(iter(self._pids))]

    def _began(self, pid: int, start_ns: int) -> bool:
        """The process that has this pid, if it lives, is the one that began then."""
        try:
            text = (self._proc / str(pid) / "stat").read_bytes()
            ticks = int(text[text.rindex(b")") + 1 :].split()[19])
        except (OSError, ValueError, IndexError):
            return True  # gone: the pid was remembered when it lived
        return ticks == start_ns // CLOCK_TICK_NS

    # --- engines -----------------------------------------------------------------------------------------------------

    def _search(self) -> None:
        while not self._stop.wait(SEARCH_SECONDS):
            self._find_engines()

    def _find_engines(self) -> None:
        for path in (self._sockets or self._find_sockets())[:ENGINES_MAX]:
            if path not in self._engines and len(self._engines) < ENGINES_MAX:
                from netprofiler.containers.engine import Engine  # noqa: PLC0415

                engine = self._engines[path] = Engine(path)
                self._listed[path] = threading.Event()
                self.version += 1
                threading.Thread(target=self._follow, args=(engine,), name=f"engine {path}", daemon=True).start()

    def _follow(self, engine: Engine) -> None:
        delay = RETRY_SECONDS[0]
        while not self._stop.is_set():
            try:
                for event in engine.events():
                    if event is None:
                        self._take_list(engine)
                        delay = RETRY_SECONDS[0]
                    else:
                        self._happened(engine, event)
            except EngineError as error:
                self.failures[f"{engine.path}: {error}"] += 1
                self._listed[engine.path].set()  # nobody needs to wait for it
            self._stop.wait(delay)
            delay = min(2 * delay, RETRY_SECONDS[1])

    def _take_list(self, engine: Engine) -> None:
        """All that runs: at the start, and when the engine has begun again."""
        for identity in engine.list():
            self._inspect(engine, identity)
        self._listed[engine.path].set()

    def _happened(self, engine: Engine, event: Event) -> None:
        if event.action in ("die", "destroy"):
            self._end(event.identity)
        elif event.action in ("start", "rename", "connect", "disconnect"):
            if event.facts is not None:
                self._put(event.facts, anew=event.action == "start", names_alone=True)
            self._inspect(engine, event.identity)
        elif event.action == "create" and event.facts is not None:
            self._put(event.facts, anew=True, names_alone=True)

    def _inspect(self, engine: Engine, identity: str) -> None:
        """One container that cannot be told must not keep us from the others."""
        try:
            facts = engine.inspect(identity)
        except EngineError as error:
            self.failures[f"{engine.path}: {error}"] += 1
            return
        namespace = self._namespace_of(facts)
        self._put(facts, anew=facts.pid > 0)
        if namespace:
            self._by_namespace[namespace] = identity
            while len(self._by_namespace) > CONTAINERS_MAX:
                with contextlib.suppress(KeyError, StopIteration, RuntimeError):
                    del self._by_namespace[next(iter(self._by_namespace))]

    def _namespace_of(self, facts: Facts) -> int:
        """Its network namespace, where it is its own, and the engine's pid is a process of it; 0: not known."""
        if facts.shares_network or not facts.pid or self._read_process(facts.pid) != facts.container.container_id:
            return 0
        try:
            namespace = os.stat(self._proc / str(facts.pid) / "ns/net").st_ino
            return namespace if namespace != os.stat(self._proc / "1/ns/net").st_ino else 0
        except OSError:
            return 0

    def _put(self, facts: Facts, *, anew: bool, names_alone: bool = False) -> None:
        """`anew`: it has begun to run. `names_alone`: what else is known of it holds."""
        identity = facts.container.container_id
        with self._lock:
            before = self._facts.get(identity)
            if anew:
                self._ended.pop(identity, None)
            if names_alone and before is not None:
                facts = replace(before, container=facts.container, labels=facts.labels)
            if before == facts:
                return
            if before is not None:
                self._unlink(before)
            self._facts.pop(identity, None)
            self._facts[identity] = facts
            for _, address in facts.addresses:
                self._by_address[address] = (*self._by_address.get(address, ()), identity)
            for port in facts.ports:
                self._by_port[port] = (*self._by_port.get(port, ()), identity)
            while len(self._facts) > CONTAINERS_MAX:
                oldest = next(iter(self._facts))
                self._unlink(self._facts.pop(oldest))
                self._ended.pop(oldest, None)
            self.version += 1

    def _unlink(self, facts: Facts) -> None:
        """Out of the tables by address and port."""
        identity = facts.container.container_id
        for _, address in facts.addresses:
            left = tuple(other for other in self._by_address.get(address, ()) if other != identity)
            if left:
                self._by_address[address] = left
            else:
                self._by_address.pop(address, None)
        for port in facts.ports:
            left = tuple(other for other in self._by_port.get(port, ()) if other != identity)
            if left:
                self._by_port[port] = left
            else:
                self._by_port.pop(port, None)

    def _end(self, identity: str) -> None:
        """Its name is remembered; its addresses may soon be another's."""
        with self._lock:
            facts = self._facts.get(identity)
            if facts is not None:
                self._unlink(facts)
                self._facts[identity] = replace(facts, addresses=(), ports=(), pid=0)
                self._ended.setdefault(identity, time.monotonic_ns())

    # --- files -------------------------------------------------------------------------------------------------------

    def _seek(self, identity: str) -> None:
        now = time.monotonic()
        if now - self._sought.get(identity, -TOLD_AGAIN_SECONDS) < TOLD_AGAIN_SECONDS:
            return
        while len(self._sought) >= CONTAINERS_MAX:
            del self._sought[next(iter(self._sought))]
        self._sought[identity] = now
        with contextlib.suppress(queue.Full):
            self._wanted.put_nowait(identity)

    def _read_wanted(self) -> None:
        while (identity := self._wanted.get()) is not None and not self._stop.is_set():
            facts = self._read_files(identity, self._namespaces)
            if facts is not None and identity not in self._facts:
                self._put(facts, anew=False)
