"""/proc: what the kernel side cannot or need not tell.

Contract: whatever a process does while it is looked at (it ends, its files go away) gives an empty answer, never an
exception.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
PF_FORKNOEXEC = 0x40
"""Of a process that was forked, and has executed nothing since (linux/include/linux/sched.h)."""


def process_name(pid: int, proc: Path = PROC) -> str:
    """Its comm; ``?`` where it is gone, or has none."""
    return _text_of(proc / str(pid) / "comm").rstrip("\n") or "?"


def descendants(pid: int) -> list[int]:
    """The children of a process, theirs, and so on."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir(PROC):
        if entry.isdigit():
            try:
                text = (PROC / entry / "stat").read_bytes()
            except OSError:
                continue
            # The name in parentheses may hold anything; the parent is the second field behind it.
            parent = int(text[text.rindex(b")") + 1 :].split()[1])
            children.setdefault(parent, []).append(int(entry))
    found: list[int] = []
    queue = [pid]
    while queue:
        for child in children.get(queue.pop(), ()):
            found.append(child)
            queue.append(child)
    return found


def forked(pid: int, proc: Path = PROC) -> list[int]:
    """The children of a process that run its program still, theirs, and so on; CONFIG_PROC_CHILDREN tells."""
    found: list[int] = []
    queue = [pid]
    while queue:
        for task in _entries_of(proc / str(queue.pop()) / "task"):
            for child in map(int, _text_of(task / "children").split()):
                # proc_pid_stat(5): behind the name in parentheses, which may hold anything, `flags` is the seventh.
                fields = _text_of(proc / str(child) / "stat").rpartition(")")[2].split()
                if len(fields) > 6 and int(fields[6]) & PF_FORKNOEXEC:
                    found.append(child)
                    queue.append(child)
    return found


def _unix_inodes(pid: int | str) -> set[int]:
    """Inodes of all UNIX sockets in the network namespace of a process."""
    try:
        lines = (PROC / str(pid) / "net/unix").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    return {int(fields[6]) for line in lines[1:] if len(fields := line.split()) > 6 and fields[6].isdigit()}


def gone_unix_sockets(owners: dict[int, int]) -> list[int]:
    """Of these sockets (inode → a process that used it), those that exist no more."""
    alive: set[int] = set()
    namespaces: set[str] = set()
    pids: tuple[int | str, ...] = ("self", *set(owners.values()))
    for pid in pids:
        try:
            namespace = os.readlink(PROC / str(pid) / "ns/net")
        except OSError:
            continue
        if namespace not in namespaces:
            namespaces.add(namespace)
            alive |= _unix_inodes(pid)
    return [inode for inode in owners if inode not in alive]


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What /proc says of a process; what could not be read is empty."""

    pid: int
    comm: str
    cmdline: str
    """Arguments joined by one space."""
    executable: str
    """As the process sees it; ends in `` (deleted)`` where it was replaced."""
    threads: int
    parent: int
    user: int
    pid_namespace: str
    network_namespace: str
    cgroup: str
    """Of the unified hierarchy, else the first."""


def process_facts(pid: int, proc: Path = PROC) -> ProcessFacts | None:
    """None: there is no such process (a thread that leads none is not one)."""
    directory = proc / str(pid)
    status = _fields_of(directory / "status")
    if not status or status.get("Tgid", str(pid)) != str(pid):
        return None
    return ProcessFacts(
        pid=pid,
        comm=_text_of(directory / "comm").rstrip("\n"),
        cmdline=_text_of(directory / "cmdline").rstrip("\0").replace("\0", " "),
        executable=_link_of(directory / "exe"),
        threads=int(status.get("Threads", "0")),
        parent=int(status.get("PPid", "0")),
        user=int(status.get("Uid", "0").split()[0]),
        pid_namespace=_link_of(directory / "ns/pid"),
        network_namespace=_link_of(directory / "ns/net"),
        cgroup=_cgroup(_text_of(directory / "cgroup")),
    )


def count_io_urings(pid: int, proc: Path = PROC) -> int:
    """Descriptors that are an io_uring: I/O through these is no system call."""
    return sum(_link_of(descriptor) == "anon_inode:[io_uring]" for descriptor in _entries_of(proc / str(pid) / "fd"))


def _entries_of(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="backslashreplace")
    except OSError:
        return ""


def _link_of(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def _fields_of(path: Path) -> dict[str, str]:
    """Lines of ``Name:<tab>value``."""
    pairs = (line.partition(":") for line in _text_of(path).splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _cgroup(text: str) -> str:
    """proc_pid_cgroup(5): ``0::/path`` is the unified hierarchy's."""
    paths = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
    return next((path for number, _, path in paths if number == "0"), paths[0][2] if paths else "")
