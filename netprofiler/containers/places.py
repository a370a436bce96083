"""Where the two ends of each message are: container, host or external.

Contract: `Places.take(messages, now_ns)` gives messages whose `Process.place` and `Link.remote` are set as far as they are
known, in the order in which they came; `drain()` the rest. What is not known yet but may be soon is held for HOLD_NS, in
all HELD_MAX messages. What is not known then is not told: an address that several containers have tells none of them.

The other end, in this order:

1. The process that has the other socket, where we see it, too. It is the socket whose positions begin where ours do, the
   other way round: two 32-bit numbers that both ends have, whatever NAT made of the addresses. Where a connection was
   joined late, it is the one with our addresses the other way round, if there is only one.
2. The address, as seen from the network namespace of this end: one of its own; one of a container that is in a network
   with this container; one of the host's, which a published port may lead on from; a neighbour that nobody knows, of
   which nothing is said; anything else is external.
"""

from __future__ import annotations

import ipaddress
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from netprofiler.containers.directory import Containers
from netprofiler.containers.facts import HEADER, TOKEN
from netprofiler.counters import Counters
from netprofiler.exchange import Direction, Link, Message, Place, PlaceType, Process
from netprofiler.sources.processes import PROC

HOLD_NS: Final = 150_000_000
"""The other end of a new connection is seen in the same round of the agent, or in the next ones, if it is seen at all."""
HELD_MAX: Final = 8192
ENDS_MAX: Final = 16_384
"""Connections whose other end may still be asked for: some 1 KB each. Each is asked for when it speaks first."""
VIEWS_MAX: Final = 1024
"""Network namespaces whose addresses are remembered."""
VIEW_NS: Final = 5_000_000_000
"""Addresses and routes are looked at again after this."""

_HOST: Final = Place(PlaceType.HOST)
_EXTERNAL: Final = Place(PlaceType.EXTERNAL)
_BRIDGES: Final = ("docker", "br-", "cni", "podman", "nerdctl", "lxcbr", "virbr")
"""Devices of the host behind which containers are."""

_Ends = tuple[str | None, int, str | None, int]


@dataclass(frozen=True, slots=True)
class View:
    """What a network namespace can reach without a router."""

    taken_ns: int
    own: frozenset[str]
    neighbours: tuple[tuple[ipaddress.IPv4Network, str], ...]
    """Networks of its devices, with the device's name."""

    def is_own(self, address: str) -> bool:
        return address in self.own or ipaddress.ip_address(address).is_loopback

    def device_to(self, address: str) -> str:
        """Of a neighbour; nothing: it is behind a router."""
        parsed = ipaddress.ip_address(address)
        return next((device for network, device in self.neighbours if parsed in network), "")


def read_view(pid: int | str, now_ns: int, proc: Path = PROC) -> View | None:
    """As the process has it; None: it is gone."""
    directory = proc / str(pid) / "net"
    try:
        trie = (directory / "fib_trie").read_text()
        routes = (directory / "route").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    own = set()
    last = ""
    for line in trie.splitlines():  # "|-- ADDRESS", then a line for each route of it
        text = line.strip()
        if text.startswith("|-- "):
            last = text[4:]
        elif text == "/32 host LOCAL":
            own.add(last)
    try:
        for line in (directory / "if_inet6").read_text().splitlines():
            own.add(str(ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))))
    except (OSError, ValueError, IndexError):
        pass  # no IPv6 here
    return View(now_ns, frozenset(own), tuple(_connected(routes)))


def _connected(routes: str) -> list[tuple[ipaddress.IPv4Network, str]]:
    """/proc/net/route: numbers in the byte order of the machine; a gateway of 0 is none."""
    found = []
    for line in routes.splitlines()[1:]:
        fields = line.split()
        try:
            destination, gateway, mask = (int(fields[at], 16).to_bytes(4, "little") for at in (1, 2, 7))
            if not any(gateway) and any(mask):
                prefix = int.from_bytes(mask, "big").bit_count()
                found.append((ipaddress.IPv4Network((destination, prefix)), fields[0]))
        except (ValueError, IndexError, OverflowError):
            continue
    return found


class Places:
    """See above."""

    def __init__(self, containers: Containers, counters: Counters, proc: Path = PROC) -> None:
        self._containers = containers
        self._counters = counters
        self._proc = proc
        self._by_beginning: dict[tuple[int, int], Link] = {}
        self._by_addresses: dict[_Ends, list[Link]] = {}
        self._held: deque[tuple[int, Message]] = deque()
        self._views: dict[int, View] = {}
        self._now_ns = 0
        self._host_namespace = self._namespace_of(1)
        self.unknown = 0
        """Connections of which the other end could not be told."""

    @property
    def waiting(self) -> bool:
        return bool(self._held)

    def opened(self, links: list[Link]) -> None:
        """Connections that the pipeline has just seen."""
        for link in links:
            if link.beginning is not None:
                self._by_beginning[link.beginning] = link
                if len(self._by_beginning) > ENDS_MAX:
                    del self._by_beginning[next(iter(self._by_beginning))]
            if link.local_ip is not None:
                # The latest are last; of one socket's plaintext and ciphertext there is one.
                ends = (link.local_ip, link.local_port, link.remote_ip, link.remote_port)
                before = self._by_addresses.pop(ends, [])
                others = [other for other in before if other.network_namespace != link.network_namespace]
                self._by_addresses[ends] = [*others[-7:], link]
                if len(self._by_addresses) > ENDS_MAX:
                    del self._by_addresses[next(iter(self._by_addresses))]

    def take(self, messages: list[Message], now_ns: int) -> list[Message]:
        version = self._containers.version
        self._now_ns = now_ns
        held = self._held
        out: list[Message] = []
        while held:
            since_ns, message = held[0]
            if not self._place(message, version, final=now_ns - since_ns > HOLD_NS or len(held) > HELD_MAX):
                break
            out.append(held.popleft()[1])
        for message in messages:
            link, process = message.link, message.process
            if link.local_ip is None and _is_ours(message):
                self._counters.not_wanted += 1
                continue
            if (
                (link.placed == version and (process is None or process.placed == version))
                or self._place(message, version, final=False)
            ) and not held:
                out.append(message)
            else:
                held.append((now_ns, message))
        return out

    def drain(self) -> list[Message]:
        """The capture is over."""
        version = self._containers.version
        for _, message in self._held:
            self._place(message, version, final=True)
        out = [message for _, message in self._held]
        self._held.clear()
        return out

    # --- one message -------------------------------------------------------------------------------------------------

    def _place(self, message: Message, version: int, *, final: bool) -> bool:
        """False: more may be known soon."""
        link, process = message.link, message.process
        if process is not None and process.placed != version:
            place = self._of_process(process, link, message.time_ns)
            if place != process.place:
                process.place = place
                link.rendered.clear()
            process.placed = version
        if link.placed == version:
            return True
        remote = self._other_end(message)
        # Of a sender that is no container nothing is told; a client's connect is seen before its request.
        if remote is None and not final and link.local_ip is not None and message.direction == Direction.SEND:
            return False
        if remote is None and link.local_ip is not None:
            remote = self._by_address(link, process, message.pid)
            self.unknown += remote is None
        if remote != link.remote:
            link.remote = remote
        link.rendered.clear()  # the process' place may be new to this connection
        link.placed = version
        return True

    def _of_process(self, process: Process, link: Link, time_ns: int) -> Place | None:
        containers = self._containers
        identity = containers.identity_of(process.pid, process.start_ns)
        if identity is None:  # gone before we could look: a namespace that only one container has tells as well
            identity = containers.in_namespace(link.network_namespace, time_ns)
            if not identity:
                return process.place
        elif identity and link.network_namespace not in (0, self._host_namespace):
            containers.learn_namespace(link.network_namespace, identity)
        return Place(PlaceType.CONTAINER, containers.container(identity)) if identity else _HOST

    def _other_end(self, message: Message) -> Place | None:
        link = message.link
        other = None
        if link.beginning is not None:
            other = self._by_beginning.get((link.beginning[1], link.beginning[0]))
        if other is None and link.local_ip is not None:
            ends = (link.remote_ip, link.remote_port, link.local_ip, link.local_port)
            others = self._by_addresses.get(ends, [])
            if link.beginning is not None:  # those that were seen from their beginning are others' ends
                others = [each for each in others if each.beginning is None]
            if len(others) == 1:
                other = others[0]
        if other is None or other is link or other.process is None:
            return None
        process = other.process
        if process.placed != self._containers.version:
            process.place = self._of_process(process, other, message.time_ns)
            process.placed = self._containers.version
        return process.place

    # --- by address --------------------------------------------------------------------------------------------------

    def _by_address(self, link: Link, process: Process | None, pid: int) -> Place | None:
        address = link.remote_ip
        if address is None:
            return None
        containers = self._containers
        here = None if process is None else process.place
        view = self._view_of(link.network_namespace or self._host_namespace, pid)
        if view is None:
            return None
        if view.is_own(address):
            return self._on_own_address(link, here)
        identity = here.container.container_id if here is not None and here.container is not None else ""
        mine = containers.facts_of(identity) if identity else None
        found = containers.at_address(address)
        if identity:
            networks = {network for network, _ in mine.addresses} if mine is not None else set()
            found = [facts for facts in found if any(network in networks for network, _ in facts.addresses)]
        if len(found) == 1:
            return Place(PlaceType.CONTAINER, found[0].container)
        if found:
            return None
        host = self._view_of(self._host_namespace, 1)
        if host is not None and host.is_own(address):
            return self._behind_port(link)
        device = view.device_to(address)
        in_host = link.network_namespace in (0, self._host_namespace)
        if device and (not in_host or device.startswith(_BRIDGES)):
            return None
        return _EXTERNAL

    def _on_own_address(self, link: Link, here: Place | None) -> Place | None:
        """Sender and receiver are in one network namespace."""
        if here is None:
            return None
        if here.type is PlaceType.CONTAINER:
            # A pod's containers share theirs, and so do those with the host's.
            facts = self._containers.facts_of(here.container.container_id) if here.container is not None else None
            return here if facts is not None and not facts.shares_network else None
        if self._containers.on_host_network:
            return None
        return self._behind_port(link)

    def _behind_port(self, link: Link) -> Place:
        """An address of the host: a port of it that an engine leads on is the container's."""
        found = self._containers.at_port(link.remote_port) if link.role != "server" else []
        return Place(PlaceType.CONTAINER, found[0].container) if len(found) == 1 else _HOST

    def _view_of(self, namespace: int, pid: int) -> View | None:
        """As a process in it has it."""
        view = self._views.get(namespace)
        if view is None or self._now_ns - view.taken_ns > VIEW_NS:
            source = 1 if namespace == self._host_namespace else pid
            fresh = read_view(source, self._now_ns, self._proc) if self._namespace_of(source) == namespace else None
            if fresh is None:
                return view
            view = fresh
            self._views.pop(namespace, None)
            if len(self._views) >= VIEWS_MAX:
                del self._views[next(iter(self._views))]
            self._views[namespace] = view
        return view

    def _namespace_of(self, pid: int) -> int:
        try:
            return os.stat(self._proc / str(pid) / "ns/net").st_ino
        except OSError:
            return 0


def _is_ours(message: Message) -> bool:
    """A request of ours to an engine, as the engine received it, or what answers it."""
    head = message.head if message.head.is_request or message.request is None else message.request.head
    return (HEADER, TOKEN) in head.fields.headers
