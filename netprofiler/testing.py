r"""Fakes for tests: what the kernel side would have sent, written as a script.

    script = Script()
    client = script.client()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    client.recv(b"HTTP/1.1 204 No Content\r\n\r\n")
    client.close()
    played = script.play()
    assert [message.head.status for message in played.responses] == [204]

Contract: a `Script` is a list of `wire.Event`s (and `Tick`s, which let time pass) with a clock of its own; each piece
given to `send` or `recv` is one system call. Positions go on by themselves. `play()` makes raw records of them, feeds
these to a fresh `Pipeline` and drains it; `play(events)` does so with any other list of events: with some left out, in
another order, twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from netprofiler import wire
from netprofiler.connection import Command
from netprofiler.counters import make_ledger
from netprofiler.exchange import Completeness, Message
from netprofiler.pipeline import Pipeline
from netprofiler.streams import POSITION_MASK

STEP_NS: Final = 100_000
"""From one event of a script to the next."""
START_NS: Final = 1_000_000_000_000
PID: Final = 1234
TID: Final = 1236


@dataclass(frozen=True, slots=True)
class Tick:
    """The pipeline is told the time, as the agent does between two looks at the ring."""

    time_ns: int


Step = wire.Event | Tick


@dataclass(slots=True)
class Played:
    """What came of a script."""

    pipeline: Pipeline
    messages: list[Message]
    """In the order in which they came out, interim ones too."""
    commands: list[Command]

    @property
    def requests(self) -> list[Message]:
        """Requests that are over."""
        return [m for m in self.messages if m.head.is_request and m.completeness is not Completeness.OPEN]

    @property
    def responses(self) -> list[Message]:
        """Responses that are over."""
        return [m for m in self.messages if not m.head.is_request and m.completeness is not Completeness.OPEN]

    def rows(self, unit: str = "bytes") -> dict[str, int]:
        """The rows of the ledger that are not 0; `unit`: ``bytes`` or ``calls``."""
        table = make_ledger(self.pipeline.counters, None)[unit]
        assert isinstance(table, dict)
        assert sum(table["rows"].values()) == table["total"]
        return {name: count for name, count in table["rows"].items() if count}


@dataclass(slots=True)
class Peer:
    """One socket of a script: `send` and `recv` as its process does them."""

    script: Script
    socket: int
    role: int
    pid: int
    tid: int
    positions: list[int]
    """Of the next byte, sent and received."""

    def send(self, *pieces: bytes) -> None:
        """Each piece is one system call."""
        for piece in pieces:
            self.piece(wire.SEND, piece)

    def recv(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.piece(wire.RECV, piece)

    def request(self, *pieces: bytes) -> None:
        """Sent by a client, received by a server."""
        for piece in pieces:
            self.piece(self.request_direction, piece)

    def response(self, *pieces: bytes) -> None:
        """Received by a client, sent by a server."""
        for piece in pieces:
            self.piece(1 - self.request_direction, piece)

    @property
    def request_direction(self) -> int:
        return wire.RECV if self.role == wire.ROLE_SERVER else wire.SEND

    def piece(
        self,
        direction: int,
        payload: bytes,
        *,
        length: int | None = None,
        reason: int = wire.REASON_NONE,
        first: bool = True,
        after_loss: bool = False,
    ) -> wire.DataCaptured:
        """One data record; `length` and `reason` where fewer bytes are known than went by."""
        length = len(payload) if length is None else length
        event = wire.DataCaptured(
            time_ns=self.script.now(),
            socket=self.socket,
            pid=self.pid,
            tid=self.tid,
            direction=direction,
            position=self.positions[direction],
            length=length,
            flags=(wire.DATA_FIRST if first else 0) | (wire.DATA_AFTER_LOSS if after_loss else 0),
            reason=reason,
            payload=payload,
        )
        self.script.steps.append(event)
        self.lose(direction, length)
        return event

    def sendfile(self, length: int, start: bytes = b"") -> None:
        """`start`: what could still be read of the file."""
        self.piece(wire.SEND, start, length=length, reason=wire.REASON_SENDFILE)

    def lose(self, direction: int, length: int) -> None:
        """Bytes go by that nobody sees."""
        self.positions[direction] = (self.positions[direction] + length) & POSITION_MASK

    def shutdown(self) -> None:
        """No more is sent."""
        self._closed(wire.SEND, gone=False)

    def end(self) -> None:
        """The end of what the other side sends is read."""
        self._closed(wire.RECV, gone=False)

    def close(self) -> None:
        """The socket is gone."""
        self._closed(wire.BOTH, gone=True)

    def _closed(self, direction: int, *, gone: bool) -> None:
        position = self.positions[wire.RECV if direction == wire.RECV else wire.SEND]
        self.script.steps.append(wire.ConnectionClosed(self.script.now(), self.socket, direction, gone, position))


@dataclass(slots=True)
class Script:
    """Events of one run, in the order in which they would be in the ring."""

    steps: list[Step] = field(default_factory=list)
    time_ns: int = START_NS
    _sockets: int = 48_212

    def now(self) -> int:
        """The time of the next event."""
        self.time_ns += STEP_NS
        return self.time_ns

    def wait(self, seconds: float) -> None:
        """Time passes, and the pipeline is told."""
        self.time_ns += int(seconds * 1_000_000_000)
        self.steps.append(Tick(self.time_ns))

    def process(self, pid: int = PID, comm: str = "traffic", cmdline: str = "/bin/traffic --requests 10") -> None:
        self.steps.append(wire.ProcessSeen(self.now(), pid, 77, 1000, comm, cmdline))

    def client(self, **facts: object) -> Peer:
        """A connection that connected; `facts` as of `open`."""
        return self.open(wire.ROLE_CLIENT, **facts)  # type: ignore[arg-type]

    def server(self, **facts: object) -> Peer:
        """A connection that was accepted."""
        return self.open(wire.ROLE_SERVER, **facts)  # type: ignore[arg-type]

    def open(
        self,
        role: int,
        *,
        fresh: bool = True,
        announced: bool = True,
        family: int = wire.FAMILY_IPV4,
        local: tuple[str, int] = ("127.0.0.1", 54321),
        remote: tuple[str, int] = ("127.0.0.1", 8080),
        unix_path: str = "",
        passive: bool = False,
        positions: tuple[int, int] = (1000, 5_000_000),
        pid: int = PID,
        tid: int = TID,
    ) -> Peer:
        """`announced=False`: the record that says so was lost. A UNIX socket counts from 0."""
        is_unix = family == wire.FAMILY_UNIX
        self._sockets += 1
        peer = Peer(self, self._sockets, role, pid, tid, [0, 0] if is_unix else list(positions))
        opened = wire.ConnectionOpened(
            time_ns=self.now(),
            socket=peer.socket,
            pid=pid,
            role=role,
            fresh=fresh,
            family=family,
            network_namespace=4026531840,
            local_ip="" if is_unix else local[0],
            local_port=0 if is_unix else local[1],
            remote_ip="" if is_unix else remote[0],
            remote_port=0 if is_unix else remote[1],
            unix_path=unix_path,
            send_position=peer.positions[wire.SEND],
            recv_position=peer.positions[wire.RECV],
            counted=is_unix,
            passive=passive,
        )
        if announced:
            self.steps.append(opened)
        return peer

    def play(
        self,
        steps: Sequence[Step] | None = None,
        *,
        body_limit: int = 4096,
        stream_interval_ns: int = 5_000_000_000,
        drain: bool = True,
    ) -> Played:
        """Through a pipeline of its own."""
        pipeline = Pipeline(body_limit=body_limit, stream_interval_ns=stream_interval_ns)
        played = Played(pipeline, [], [])
        last_ns = 0
        for step in self.steps if steps is None else steps:
            last_ns = max(last_ns, step.time_ns)
            if isinstance(step, Tick):
                pipeline.tick(step.time_ns)
            else:
                batch = wire.frame(build(step))
                assert pipeline.feed(batch) == len(batch)
            played.messages += pipeline.take_messages()
            played.commands += pipeline.take_commands()
        if drain:
            pipeline.drain(last_ns)
            played.messages += pipeline.take_messages()
        return played


def build(event: wire.Event) -> bytes:
    """An event → the raw record, as the kernel side writes it."""
    match event:
        case wire.ConnectionOpened():
            return wire.build_opened(event)
        case wire.DataCaptured():
            return wire.build_data(event)
        case wire.HandshakeCaptured():
            return wire.build_handshake(event)
        case wire.ConnectionClosed():
            return wire.build_closed(event)
        case wire.ProcessSeen():
            return wire.build_process(event)


def batch(events: Iterable[wire.Event]) -> bytes:
    """Events → one batch."""
    return b"".join(wire.frame(build(event)) for event in events)


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The bytes cut at these offsets; nothing empty."""
    marks = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    return [data[start:end] for start, end in pairwise(marks) if start < end]
