"""All connections: batches of raw records in, messages out.

Contract: `feed(batch)` takes what a source yields and returns how many bytes of it were used (a record that the kernel
is still writing ends a batch early); `tick(now)` lets time pass; `drain(now)` ends everything. What came of it lies in
`messages` (for the sinks) and `commands` (for the kernel side), which the caller takes with `take_messages()` and
`take_commands()`. Nothing here does I/O or reads a clock, and nothing raises for bad traffic; a damaged record raises
`wire.MalformedRecord`, which only a damaged recording can bring about.

Bounded: CONNECTIONS_MAX and PROCESSES_MAX entries, and per connection what connection.py and streams.py state.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from netprofiler import wire
from netprofiler.budget import SHARES, share_of
from netprofiler.connection import Command, Connection, GiveBack, Keep, Shared
from netprofiler.counters import Counters
from netprofiler.exchange import Link, Message, Process, Role, Tls
from netprofiler.protocols.tls_handshake import Handshake

CONNECTIONS_MAX: Final = 65_536
"""At about 5 KB each (docs/benchmarks.md) 330 MB; over it, the longest silent go."""
PROCESSES_MAX: Final = 16_384
TICK_NS: Final = 50_000_000
"""Waiting connections are looked at this often: a fifth of the shortest wait."""
GRACE_NS: Final = 500_000_000
"""A connection that is gone is kept this long: its last bytes may reach the ring after its end."""

HANDSHAKES_MAX: Final = 65_536
"""TLS connections whose beginning was seen; over it, the oldest go, and their records say less of the TLS."""
UNREAD_MAX: Final = 1024
"""Processes with TLS connections that could not be read, by pid."""

_ROLES: Final = {wire.ROLE_CLIENT: Role.CLIENT, wire.ROLE_SERVER: Role.SERVER}


class _Outside:
    """The ciphertext of one socket."""

    __slots__ = ("client_direction", "handshake", "is_read", "link", "pid")

    def __init__(self, pid: int, client_direction: int) -> None:
        self.pid = pid
        self.client_direction = client_direction
        """Whose bytes came first: a client speaks first."""
        self.handshake = Handshake()
        self.is_read = False
        """Plaintext of it was seen, whatever it speaks."""
        self.link: Link | None = None
        """Of the plaintext inside, once that was seen."""


class Pipeline:
    """See above."""

    def __init__(
        self,
        *,
        body_limit: int = 4096,
        stream_interval_ns: int = 5_000_000_000,
        gives_back: bool = False,
        has_budget: bool = False,
        counters: Counters | None = None,
    ) -> None:
        self.shared = Shared(
            body_limit=body_limit,
            stream_interval_ns=stream_interval_ns,
            gives_back=gives_back or has_budget,
            has_budget=has_budget,
            kept_shares=SHARES if has_budget else 0,
            counters=Counters() if counters is None else counters,
        )
        self.connections: dict[int, Connection] = {}
        self._gone: deque[tuple[int, int]] = deque()
        self._next_tick_ns = 0
        self._outsides: dict[int, _Outside] = {}
        self.opened: list[Link] | None = None
        """Where somebody wants to know of new connections, they are appended here, for him to take."""
        self.unread: dict[int, int] = {}
        """Processes (pid) → their TLS connections that have ended and of which no plaintext was seen."""
        self.unix_owners: dict[int, int] = {}
        """UNIX sockets (inode) that have an open connection here → the pid that used it last. The kernel side does not
        see these close: somebody has to look (sources/processes.py) and call `forget`."""

    @property
    def counters(self) -> Counters:
        return self.shared.counters

    def take_messages(self) -> list[Message]:
        messages = self.shared.out
        if messages:
            self.shared.out = []
            self.shared.counters.messages += len(messages)
        return messages

    def take_commands(self) -> list[Command]:
        commands = self.shared.commands
        if self.shared.boundaries:
            # First: what has become of the connection since goes before.
            commands[:0] = map(GiveBack, self.shared.boundaries.keys(), self.shared.boundaries.values())
            self.shared.boundaries.clear()
        if commands:
            self.shared.commands = []
        return commands

    def keep(self, shares: int) -> None:
        """Of connections that begin from now on, or are between two exchanges, those below this share are logged."""
        if shares != self.shared.kept_shares:
            self.shared.kept_shares = shares
            self.shared.commands.append(Keep(shares))

    def feed(self, batch: bytes) -> int:
        """Returns the number of bytes used."""
        unpack = wire.RING_DATA.unpack_from
        data_bytes = wire.RING_DATA.size
        record_bytes = wire.DATA.size
        data_kind, first, file = wire.KIND_DATA, wire.DATA_FIRST, wire.DATA_FILE
        discard = wire.RING_DISCARD
        reasons = len(wire.REASONS)
        connections = self.connections
        delivered = self.shared.counters.delivered
        offset = 0
        end = len(batch)
        last_whole = end - data_bytes
        while offset < end:
            if offset <= last_whole:
                (
                    size,
                    _,
                    kind,
                    direction,
                    flags,
                    reason,
                    captured,
                    time_ns,
                    socket,
                    pid,
                    tid,
                    position,
                    length,
                ) = unpack(batch, offset)
                if kind == data_kind and size < discard:
                    start = offset + data_bytes
                    offset += 8 + (size + 7 & ~7)
                    if captured > size - record_bytes or direction > 1 or offset > end:
                        raise wire.MalformedRecord("a data record that promises more than it holds")
                    delivered.bytes += length
                    delivered.calls += flags & first
                    connection = connections.get(socket)
                    if connection is None:
                        connection = self._add(socket, Link(_name(socket)), False, None, time_ns)
                    payload = b"" if flags & file else batch[start : start + captured]
                    if (len(payload) != length and not reason) or reason >= reasons:
                        raise wire.MalformedRecord("a data record whose length is not that of its payload")
                    connection.receive(direction, flags, reason, time_ns, pid, tid, position, length, payload)
                    continue
            else:
                size = int.from_bytes(batch[offset : offset + 4], "little")
            if size & wire.RING_BUSY:
                return offset
            start = offset + wire.RING_HEADER_BYTES
            length = size & wire.RING_LENGTH_MASK
            if start + length > end:
                raise wire.MalformedRecord("a batch that ends inside a record")
            offset = start + (length + 7 & ~7)
            if not size & wire.RING_DISCARD:
                self._handle(wire.parse(batch[start : start + length]))
        return end

    def _handle(self, event: wire.Event) -> None:
        match event:
            case wire.ConnectionOpened():
                self._opened(event)
            case wire.HandshakeCaptured():
                self._handshake(event)
            case wire.ConnectionClosed():
                self._end_outside(event.socket)
                connection = self.connections.get(event.socket)
                if connection is not None:
                    if event.gone and not connection.gone_ns:
                        self._gone.append((event.time_ns, event.socket))
                    connection.close(event.direction, event.gone, event.position, event.time_ns)
            case wire.ProcessSeen():
                self._process(event)
            case wire.DataCaptured():
                raise wire.MalformedRecord("a data record that ends early")

    def _process(self, event: wire.ProcessSeen) -> None:
        processes = self.shared.processes
        processes.pop(event.pid, None)
        if len(processes) >= PROCESSES_MAX:
            del processes[next(iter(processes))]
        processes[event.pid] = Process(event.pid, event.start_ns, event.comm, event.cmdline)

    def _opened(self, event: wire.ConnectionOpened) -> None:
        connection = self.connections.get(event.socket)
        is_unix = event.family == wire.FAMILY_UNIX
        if connection is not None:
            link = connection.link
            known = is_unix or (link.local_ip, link.local_port, link.remote_ip, link.remote_port) == (
                event.local_ip,
                event.local_port,
                event.remote_ip,
                event.remote_port,
            )
            if known and not connection.gone_ns and not event.resumed:
                if is_unix:
                    self.unix_owners[event.socket & ~wire.SOCKET_TLS] = event.pid
                link.process = self.shared.processes.get(event.pid)
                return  # another process has it now
            self._remove(event.socket, event.time_ns)
        if is_unix:
            self.unix_owners[event.socket & ~wire.SOCKET_TLS] = event.pid
        link = Link(
            f"tcp:[{event.socket}]" if event.passive else _name(event.socket),
            _ROLES.get(event.role),
            event.local_ip or None,
            event.local_port,
            event.remote_ip or None,
            event.remote_port,
            event.unix_path or None,
            positions_are_sequence_numbers=not event.counted,
            passive=event.passive,
            network_namespace=event.network_namespace,
            process=self.shared.processes.get(event.pid),
        )
        if self.shared.has_budget and link.local_ip and link.remote_ip:
            link.share = share_of(link.local_ip, link.local_port, link.remote_ip, link.remote_port)
            link.left_out = link.share >= self.shared.kept_shares
        positions = (event.send_position, event.recv_position)
        if event.fresh and not event.counted and not is_unix:
            link.beginning = positions
        if self.opened is not None:
            self.opened.append(link)
        before = None
        if event.socket & wire.SOCKET_TLS:
            link.tls = Tls(wire.LIBRARIES[event.library])
            socket = event.socket & ~wire.SOCKET_TLS
            before = self.connections.get(socket)
            outside = self._outsides.get(socket)
            if outside is not None:
                outside.link = link
                outside.is_read = True
                if link.role is None:
                    link.role = Role.CLIENT if outside.client_direction == wire.SEND else Role.SERVER
                _tell(outside)
        # The exchanges of a socket are numbered through: a proxy's CONNECT, then what is inside.
        numbered_from = 0 if before is None else before.pairing.count
        self._add(event.socket, link, event.fresh, positions, event.time_ns, numbered_from)

    def _handshake(self, event: wire.HandshakeCaptured) -> None:
        outside = self._outsides.get(event.socket)
        if not event.payload:
            if outside is not None:
                outside.is_read = True
            return
        if outside is None:
            if len(self._outsides) >= HANDSHAKES_MAX:
                self._end_outside(next(iter(self._outsides)))
            outside = self._outsides[event.socket] = _Outside(event.pid, event.direction)
            inside = self.connections.get(event.socket | wire.SOCKET_TLS)
            if inside is not None:  # early data is written before the hello is sent
                outside.link = inside.link
                outside.is_read = True
        outside.handshake.feed(event.direction == outside.client_direction, event.payload)
        if outside.link is not None:
            _tell(outside)

    def _end_outside(self, socket: int) -> None:
        outside = self._outsides.pop(socket, None)
        if outside is not None and not outside.is_read:
            self.shared.counters.tls_unread += 1
            if outside.pid in self.unread or len(self.unread) < UNREAD_MAX:
                self.unread[outside.pid] = self.unread.get(outside.pid, 0) + 1

    def _add(
        self,
        socket: int,
        link: Link,
        fresh: bool,
        positions: tuple[int, int] | None,
        now_ns: int,
        numbered_from: int = 0,
    ) -> Connection:
        if len(self.connections) >= CONNECTIONS_MAX:
            silent = sorted(self.connections.values(), key=lambda connection: connection.last_ns)
            for connection in silent[: max(1, CONNECTIONS_MAX // 16)]:
                self._remove(connection.socket, now_ns)
        connection = Connection(
            self.shared,
            socket,
            link,
            fresh=fresh,
            positions=positions,
            now_ns=now_ns,
            numbered_from=numbered_from,
        )
        self.connections[socket] = connection
        return connection

    def _remove(self, socket: int, now_ns: int) -> None:
        connection = self.connections.pop(socket, None)
        self.unix_owners.pop(socket, None)
        if connection is not None:
            connection.drain(now_ns)
            self.shared.busy.discard(connection)

    def forget(self, socket: int, now_ns: int) -> None:
        """A UNIX socket that is gone, and the TLS inside of it."""
        self._end_outside(socket)
        for key in (socket, socket | wire.SOCKET_TLS):
            connection = self.connections.get(key)
            if connection is not None:
                if not connection.gone_ns:
                    self._gone.append((now_ns, key))
                connection.close(wire.BOTH, True, max(0, connection.readers[wire.SEND].next), now_ns)
        self.unix_owners.pop(socket, None)

    def tick(self, now_ns: int) -> None:
        """`now_ns`: monotonic, as the records' times."""
        if now_ns < self._next_tick_ns:
            return
        self._next_tick_ns = now_ns + TICK_NS
        busy = self.shared.busy
        if busy:
            self.shared.busy = set()
            for connection in sorted(busy, key=lambda connection: connection.socket):
                if connection.tick(now_ns):
                    self.shared.busy.add(connection)
        gone = self._gone
        while gone and now_ns - gone[0][0] > GRACE_NS:
            _, socket = gone.popleft()
            left = self.connections.get(socket)
            if left is not None and left.gone_ns:
                self._remove(socket, now_ns)

    def drain(self, now_ns: int) -> None:
        """The capture is over: what is in hand comes out as it is."""
        for socket in list(self.connections):
            self._remove(socket, now_ns)
        for socket in list(self._outsides):
            self._end_outside(socket)


def _name(socket: int) -> str:
    """Of the connection, in a record: what is inside of a socket is on that socket."""
    if socket & wire.SOCKET_TLS and socket & wire.SOCKET_UNKNOWN:
        return f"tls:[{socket & wire.SOCKET_UNKNOWN - 1:x}]"
    return f"sock:[{socket & ~wire.SOCKET_TLS}]"


def _tell(outside: _Outside) -> None:
    """What the handshake said, to the connection inside."""
    link, facts = outside.link, outside.handshake.facts
    if link is None or link.tls is None:
        return
    link.tls = Tls(link.tls.library, facts.version, facts.cipher, facts.sni, facts.alpn_selected, facts.alpn_offered)
    link.rendered.clear()
