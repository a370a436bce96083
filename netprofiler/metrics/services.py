"""What a process is called: its container, its systemd unit, what its environment says, its executable; in that order.

Contract: `ServiceNames.owner(pid, process)` never blocks: it returns an `Owner`, whose `service` is None until a thread has looked.
Who cannot wait any longer asks `without_looking`. Bounded: OWNERS_MAX processes, QUEUE_MAX look-ups under way. Whatever
vanishes meanwhile is an empty answer. All that comes from processes is cut to what fits a label.
"""

from __future__ import annotations

import os
import queue
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from netprofiler.exchange import Process
from netprofiler.sources.processes import PROC

OWNERS_MAX: Final = 16_384
"""As many processes as the pipeline knows (pipeline.PROCESSES_MAX)."""
QUEUE_MAX: Final = 1024
"""Look-ups that wait: at 0.2 ms each, a fifth of a second's work. Who comes then is called by what is known of it already."""
LOOK_AGAIN_SECONDS: Final = 3.0
"""Who was not found in a container is looked at once more: what the engine says of one that has just begun takes a moment."""
ENVIRONMENT_MAX_BYTES: Final = 256 * 1024
"""Of /proc/PID/environ: more than the shells and managers of this world set."""
NAME_MAX_CHARACTERS: Final = 128
CONTAINER: Final = "container"
UNKNOWN: Final = "unknown"
"""A process of which neither name nor arguments could be had before it was gone."""

_UNIT: Final = re.compile(r"([^/]+)\.service(?=/|$)")
_NOT_PRINTABLE: Final = re.compile(r"[^\x20-\x7e\u00a0-\uffff]")

Names = Callable[[int], str | None]
"""The name of the container that a process (pid) runs in, or None. Called by a thread of ours; it must not take long."""


@dataclass(frozen=True, slots=True)
class Service:
    """Whose metrics these are."""

    name: str
    namespace: str = ""
    source: str = field(default="", compare=False)
    """How the name was found: ``container``, ``systemd``, ``environment``, ``executable``."""


@dataclass(slots=True, eq=False)
class Owner:
    """One process, and what it is called."""

    pid: int
    process: Process | None
    service: Service | None = None
    """May become another one, once: see LOOK_AGAIN_SECONDS."""
    since_ns: int = 0
    """The sink's: when it began to wait for the name."""
    backlog: list[Callable[[], None]] = field(default_factory=list)
    """The sink's: what is to be counted once the name is known."""


def clean(name: str) -> str:
    """What can be a label's value: printable, of a length that people read."""
    return _NOT_PRINTABLE.sub("", name)[:NAME_MAX_CHARACTERS].strip()


def unit_of(cgroup: str) -> str:
    """The text of /proc/PID/cgroup → the systemd service that the process belongs to, without `.service`; or empty.

    A user's services are below that user's manager (`user@1000.service`), which is nobody's name.
    """
    found = ""
    for line in cgroup.splitlines():
        _, _, controllers_and_path = line.partition(":")
        controllers, _, path = controllers_and_path.partition(":")
        if controllers not in ("", "name=systemd"):
            continue
        units = [unit for unit in _UNIT.findall(path) if not unit.startswith("user@")]
        if units:
            found = units[-1]
            break
    # systemd.unit(5): what is no letter, digit, or :_. is escaped as \xNN.
    return clean(re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), found))


def environment_names(environment: bytes) -> tuple[str, str]:
    """The content of /proc/PID/environ → service name and namespace, each empty where it says none.

    OTEL_SERVICE_NAME goes before service.name of OTEL_RESOURCE_ATTRIBUTES (OpenTelemetry specification, SDK configuration).
    """
    name = namespace = ""
    attributes = ""
    for variable in environment.split(b"\0"):
        key, _, value = variable.partition(b"=")
        if key == b"OTEL_SERVICE_NAME":
            name = value.decode("utf-8", "replace")
        elif key == b"OTEL_RESOURCE_ATTRIBUTES":
            attributes = value.decode("utf-8", "replace")
    for attribute in attributes.split(","):
        key_text, _, text = attribute.partition("=")
        if key_text.strip() == "service.name":
            name = name or unquote(text.strip())
        elif key_text.strip() == "service.namespace":
            namespace = unquote(text.strip())
    return clean(name), clean(namespace)


def find_service(pid: int, process: Process | None, names: Names | None = None, proc: Path = PROC) -> Service:
    """Looks. Takes some 0.1 ms, and as long as the process holds its own memory's lock."""
    if names is not None:
        container = clean(names(pid) or "")
        if container:
            return Service(container, source=CONTAINER)
    directory = proc / str(pid)
    unit = unit_of(_read(directory / "cgroup", 4096).decode("utf-8", "replace"))
    if unit:
        return Service(unit, source="systemd")
    name, namespace = environment_names(_read(directory / "environ", ENVIRONMENT_MAX_BYTES))
    if name:
        return Service(name, namespace, source="environment")
    try:
        executable = os.path.basename(os.readlink(directory / "exe")).removesuffix(" (deleted)")
    except OSError:
        executable = ""
    executable = clean(executable)
    return Service(executable, source="executable") if executable else without_looking(process)


def without_looking(process: Process | None) -> Service:
    """By what the kernel said when the process first spoke."""
    if process is None:
        return Service(UNKNOWN)
    words = process.cmdline.split(" ", 1)
    name = clean(os.path.basename(words[0])) or clean(process.comm)
    return Service(name or UNKNOWN, source="executable")


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError:
        return b""


class ServiceNames:
    """See above. `names`: of containers; None where nobody knows any."""

    def __init__(self, names: Names | None = None, proc: Path = PROC) -> None:
        self.instance = clean(socket.gethostname())
        self._names = names
        self._proc = proc
        self._owners: dict[tuple[int, int, str], Owner] = {}
        self._queue: queue.Queue[Owner | None] = queue.Queue(QUEUE_MAX)
        self._again: deque[tuple[float, Owner]] = deque(maxlen=OWNERS_MAX)
        self._thread = threading.Thread(target=self._run, name="service names", daemon=True)
        self._thread.start()

    def owner(self, pid: int, process: Process | None) -> Owner:
        key = (pid, 0, "") if process is None else (pid, process.start_ns, process.cmdline)
        owner = self._owners.get(key)
        if owner is None:
            if len(self._owners) >= OWNERS_MAX:
                del self._owners[next(iter(self._owners))]
            owner = self._owners[key] = Owner(pid, process)
            if pid <= 0:
                owner.service = without_looking(process)
            else:
                try:
                    self._queue.put_nowait(owner)
                except queue.Full:
                    owner.service = without_looking(process)
        return owner

    def _run(self) -> None:
        while True:
            again = self._again
            try:
                owner = self._queue.get(timeout=max(0.0, again[0][0] - time.monotonic()) if again else None)
            except queue.Empty:
                _, owner = again.popleft()
                service = find_service(owner.pid, owner.process, self._names, self._proc)
                if service.source == CONTAINER:
                    owner.service = service
                continue
            if owner is None:
                return
            service = find_service(owner.pid, owner.process, self._names, self._proc)
            if owner.service is None:  # nobody has given up waiting
                owner.service = service
            if self._names is not None and service.source != CONTAINER:
                again.append((time.monotonic() + LOOK_AGAIN_SECONDS, owner))

    def close(self) -> None:
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return  # the thread is stuck in a look-up, and ends with the process
        self._thread.join(1.0)
