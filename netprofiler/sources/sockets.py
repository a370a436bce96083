"""The sockets of a process, from /proc: what kind each is, where it leads, what state it is in.

Contract: `process_sockets(pid)` gives one `SocketFacts` a descriptor, in their order. A process that ends meanwhile, or
a socket that closes, gives less, never an exception. The tables in /proc/PID/net are those of the process' network
namespace; of a socket of another one (passed by SCM_RIGHTS, kept over setns) only its protocol is known.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from netprofiler.sources.processes import PROC

_TCP_STATES: Final = {
    0x01: "established",
    0x02: "syn-sent",
    0x03: "syn-received",
    0x04: "fin-wait-1",
    0x05: "fin-wait-2",
    0x06: "time-wait",
    0x07: "closed",
    0x08: "close-wait",
    0x09: "last-ack",
    0x0A: "listening",
    0x0B: "closing",
    0x0C: "syn-received",
}
"""include/net/tcp_states.h; RFC 9293, section 3.3.2."""

_UNIX_TYPES: Final = {1: "UNIX stream", 2: "UNIX datagram", 5: "UNIX seqpacket"}
_UNIX_LISTENS: Final = 0x10000  # __SO_ACCEPTCON of <linux/net.h>
_UNIX_STATES: Final = {1: "unconnected", 2: "connecting", 3: "established", 4: "disconnecting"}

_INET_TABLES: Final = (
    ("tcp", "TCP"),
    ("tcp6", "TCP"),
    ("udp", "UDP"),
    ("udp6", "UDP"),
    ("raw", "raw"),
    ("raw6", "raw"),
)

# What the kernel calls the protocols (struct proto.name), where a socket is in none of the tables.
_PROTOCOL_NAMES: Final = {
    "TCP": "TCP",
    "TCPv6": "TCP",
    "UDP": "UDP",
    "UDPv6": "UDP",
    "UNIX": "UNIX",
    "UNIX-STREAM": "UNIX stream",
    "MPTCP": "MPTCP",
    "MPTCPv6": "MPTCP",
}


@dataclass(frozen=True, slots=True)
class SocketFacts:
    """One descriptor of a process that is a socket."""

    descriptor: int
    inode: int
    kind: str
    """`TCP`, `MPTCP`, `UNIX stream`, `UDP`, …: as the kernel names it; `unknown` where it says nothing."""
    local: str = ""
    """``address:port`` or the path; empty where there is none, or it is not known."""
    remote: str = ""
    state: str = ""
    """`established`, `listening`, …; empty where it is not known."""


def _address(text: str) -> str:
    """``0100007F:1F90`` → ``127.0.0.1:8080``. Words are in the byte order of the machine."""
    host, port_text = text.split(":")
    raw = bytes.fromhex(host)
    if sys.byteorder == "little":
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    port = int(port_text, 16)
    if len(raw) == 4:
        return f"{ipaddress.IPv4Address(raw)}:{port}"
    address = ipaddress.IPv6Address(raw)
    return f"{address.ipv4_mapped}:{port}" if address.ipv4_mapped else f"[{address}]:{port}"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="backslashreplace").splitlines()[1:]
    except OSError:
        return []


def parse_inet(lines: list[str], kind: str) -> dict[int, tuple[str, str, str, str]]:
    """Lines of /proc/PID/net/tcp and its like (without the first) → inode → kind, local, remote, state."""
    found = {}
    for line in lines:
        fields = line.split()
        try:
            local, remote = _address(fields[1]), _address(fields[2])
            state = _TCP_STATES.get(int(fields[3], 16), "") if kind == "TCP" else ""
            inode = int(fields[9])
        except (IndexError, ValueError):
            continue
        if inode:
            unconnected = remote.endswith(":0")
            found[inode] = (kind, local, "" if unconnected else remote, state)
    return found


def parse_unix(lines: list[str]) -> dict[int, tuple[str, str, str, str]]:
    """Lines of /proc/PID/net/unix (without the first) → the same."""
    found = {}
    for line in lines:
        fields = line.split(maxsplit=7)
        try:
            flags, kind, state, inode = int(fields[3], 16), int(fields[4], 16), int(fields[5], 16), int(fields[6])
        except (IndexError, ValueError):
            continue
        path = fields[7] if len(fields) > 7 else ""
        listens = flags & _UNIX_LISTENS
        found[inode] = (
            _UNIX_TYPES.get(kind, f"UNIX type {kind}"),
            path,
            "",
            "listening" if listens else _UNIX_STATES.get(state, ""),
        )
    return found


def _descriptors(pid: int, proc: Path) -> Iterator[tuple[int, int]]:
    """Descriptor and inode of each socket."""
    directory = proc / str(pid) / "fd"
    try:
        numbers = sorted(int(entry.name) for entry in directory.iterdir())
    except OSError:
        return
    for number in numbers:
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", str((directory / str(number)).readlink()))
        except OSError:
            continue
        if match is not None:
            yield number, int(match[1])


def _protocol_name(path: Path) -> str:
    """What sockfs tells by an extended attribute of what a socket speaks."""
    try:
        name = os.getxattr(path, "system.sockprotoname").split(b"\0", 1)[0].decode("ascii", "replace")
    except OSError:
        return "unknown"
    return _PROTOCOL_NAMES.get(name, name)


def process_sockets(pid: int, proc: Path = PROC) -> list[SocketFacts]:
    """Every socket among the descriptors of a process."""
    descriptors = list(_descriptors(pid, proc))
    if not descriptors:
        return []
    net = proc / str(pid) / "net"
    tables: dict[int, tuple[str, str, str, str]] = {}
    for name, kind in _INET_TABLES:
        tables |= parse_inet(_lines(net / name), kind)
    tables |= parse_unix(_lines(net / "unix"))
    found = []
    for descriptor, inode in descriptors:
        entry = tables.get(inode)
        if entry is None:
            entry = (_protocol_name(proc / str(pid) / "fd" / str(descriptor)), "", "", "")
        found.append(SocketFacts(descriptor, inode, *entry))
    return found


IS_SEEN: Final = frozenset(("TCP", "MPTCP", "UNIX stream"))
"""Kinds whose bytes the kernel side looks at (bpf/socket.h: find_socket)."""

__all__ = ["IS_SEEN", "SocketFacts", "parse_inet", "parse_unix", "process_sockets"]
