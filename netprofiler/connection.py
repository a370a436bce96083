"""One socket: two directions, what each is in the middle of, and how they pair.

Contract: `Connection.receive` takes a piece of one direction and appends what has ended to `Shared.out`; it never
raises. A message that begins at the beginning of a piece and ends at its end, the usual case, takes the short way:
one look-up of its head, one object. Everything else takes the long way, through `streams` (order), `_Reader` (framing)
and `pairing`. Both give the same messages; tests/property holds them equal. What is no HTTP/1, from the first byte on
(HTTP/2) or after an upgrade (h2c, WebSocket), is a `Conversation` (protocols/base.py), which gets the bytes in order.

Time is what the records say; `tick` is told the time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Final, NamedTuple

from netprofiler import wire
from netprofiler.counters import Counters, Row
from netprofiler.exchange import Completeness, Direction, Head, Link, Message, Process, Role
from netprofiler.pairing import Pairing
from netprofiler.protocols.base import BUDGET, SENT_FROM_FILES, Conversation, note_missing
from netprofiler.protocols.http1 import (
    CHUNKED,
    MAX_HEAD_BYTES,
    METHODS,
    START_MAX_BYTES,
    UNFRAMED,
    UNTIL_CLOSE,
    HeadParser,
    begins_with_method,
    body_length,
    head_end,
    looks_like_request,
    looks_like_response,
)
from netprofiler.protocols.http2 import Http2, looks_like_frames
from netprofiler.protocols.websocket import WebSocketConversation
from netprofiler.streams import POSITION_MASK, Gap, Holding, Segment, distance

HOLD_NS: Final = 250_000_000
"""How long a direction waits for bytes that are missing in it, and a response for its request: system calls of two
threads reach the ring some microseconds out of order, a packet capture may be reordered by a retransmission (200 ms)."""

LINGER_NS: Final = 60_000_000_000
"""The peer has ended, and the last bytes have arrived but are not read: a slow reader gets this long."""

SKIP_WORTH_BYTES: Final = 256 * 1024
"""A body with at least this much still to come is skipped in the kernel. Less is copied before we could say so."""
SKIP_MAX_BYTES: Final = 1 << 30
"""Positions are compared modulo 2**32: skip less than half of it at once."""

LINE_MAX_BYTES: Final = 16 * 1024
"""A chunk-size line with extensions; h11 and servers stop at less."""
TRAILERS_MAX_BYTES: Final = 64 * 1024
BLOCKED_BYTES_MAX: Final = 1024 * 1024
BLOCKED_SEGMENTS_MAX: Final = 4096
"""Bytes, and pieces, of responses that wait for their request to show up."""

_VERSION: Final = b"HTTP/1."
_HTTP2_STARTS: Final = b"P\0"
"""First bytes of HTTP/2: of the preface, and of the length of any frame that is not huge."""
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")


class Skip(NamedTuple):
    """To the kernel side: bytes of this direction before `until` need not come."""

    socket: int
    direction: int
    until: int


class Ignore(NamedTuple):
    """To the kernel side: this connection speaks HTTP no longer."""

    socket: int


class GiveBack(NamedTuple):
    """To the kernel side: at these positions (of what was sent, and received) two exchanges meet; what comes next may be added
    up there.
    """

    socket: int
    positions: tuple[int, int]


class Keep(NamedTuple):
    """To the kernel side: connections of these shares (budget.py) are logged, from 0 on."""

    shares: int


Command = Skip | Ignore | GiveBack | Keep


@dataclass(slots=True)
class Shared:
    """What all connections of a pipeline have in common."""

    heads: HeadParser = field(default_factory=HeadParser)
    counters: Counters = field(default_factory=Counters)
    processes: dict[int, Process] = field(default_factory=dict)
    out: list[Message] = field(default_factory=list)
    """Messages that have ended; whoever runs the pipeline takes them."""
    commands: list[Command] = field(default_factory=list)
    """For the kernel side; whoever runs the pipeline takes them, or not (a replay)."""
    body_limit: int = 4096
    stream_interval_ns: int = 5_000_000_000
    gives_back: bool = False
    """Nobody wants the messages, but their number: the kernel side may add up what is simple."""
    has_budget: bool = False
    """There is a log, of which connections may be left out."""
    kept_shares: int = 0
    """Those with a share below this are not."""
    boundaries: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Where two exchanges of a connection (its socket) met lately, for `GiveBack`."""
    busy: set[Connection] = field(default_factory=set)
    """Connections that wait for something: `tick` looks at these."""


class _State(Enum):
    START = auto()
    HEAD = auto()
    LENGTH = auto()
    CHUNK_SIZE = auto()
    CHUNK_DATA = auto()
    CHUNK_END = auto()
    TRAILERS = auto()
    UNTIL_CLOSE = auto()
    DOUBT = auto()
    """Behind the head of a response whose request we do not know: if that was a HEAD, the next response comes now."""
    LOST = auto()
    """Somewhere in a stream: the next message that begins with a piece is where we go on."""
    TUNNEL = auto()
    CONVERSATION = auto()
    """Another protocol frames and pairs."""


# Reasons of missing bytes beside wire.py's.
_UNKNOWN: Final = -1
_BUDGET: Final = -2
"""Over the limit of what is copied, where the framing needed them."""
_RING_FULL: Final = -3
_REASON_NAMES: Final = {
    _UNKNOWN: "unknown",
    _BUDGET: BUDGET,
    _RING_FULL: "ring_full",
    wire.REASON_SENDFILE: "sendfile",
    wire.REASON_SPLICE: "splice",
    wire.REASON_UNREADABLE: "unknown",
    wire.REASON_IO_URING: "io_uring",
}

_UNREADABLE: Final = (wire.REASON_UNREADABLE, wire.REASON_IO_URING)

_LEFT_OVER: Final = {_State.TUNNEL: "tunnel", _State.CONVERSATION: "recorded"}
"""Rows of what is in hand when a direction ends; of a conversation that can only be calls whose bytes were not seen."""
_BODY_STATES: Final = frozenset(
    (
        _State.LENGTH,
        _State.CHUNK_SIZE,
        _State.CHUNK_DATA,
        _State.CHUNK_END,
        _State.TRAILERS,
        _State.UNTIL_CLOSE,
    )
)


class _Reader:
    """One direction. The attributes that the short way touches come first."""

    __slots__ = (
        "base",
        "blocked",
        "blocked_bytes",
        "calls",
        "direction",
        "doubtful",
        "end",
        "finished",
        "holding",
        "idle",
        "interim",
        "keeping",
        "kept",
        "message",
        "next",
        "raw",
        "remaining",
        "skipping",
        "stash",
        "stash_start",
        "state",
        "unattributed",
    )

    def __init__(self, direction: int, position: int, fresh: bool) -> None:
        self.direction = direction
        self.idle = fresh
        """At the beginning of a message, with nothing in hand."""
        self.doubtful = not fresh
        """What comes next may have been cut at its beginning."""
        self.next = position
        """Position of the byte that comes next."""
        self.base = position
        """Position of the first byte."""
        self.state = _State.START
        self.message: Message | None = None
        self.stash = bytearray()
        self.stash_start: Segment | None = None
        self.remaining = 0
        self.kept = bytearray()
        self.raw: bytearray | None = None
        self.keeping = True
        self.skipping = False
        self.interim = False
        self.holding: Holding | None = None
        self.blocked: list[Segment] | None = None
        self.blocked_bytes = 0
        self.unattributed = 0
        """Bytes of what was fed here that no row of the ledger has yet; what is held or blocked is not among them."""
        self.calls = 0
        self.end: int | None = None
        """Position at which the direction is known to end."""
        self.finished = False


class Connection:
    """See above."""

    __slots__ = (
        "conversation",
        "fresh",
        "gone_ns",
        "last_ns",
        "link",
        "numbered_from",
        "pairing",
        "readers",
        "request_direction",
        "shared",
        "socket",
    )

    def __init__(
        self,
        shared: Shared,
        socket: int,
        link: Link,
        *,
        fresh: bool,
        positions: tuple[int, int] | None,
        now_ns: int,
        numbered_from: int = 0,
    ) -> None:
        self.shared = shared
        self.socket = socket
        self.link = link
        self.fresh = fresh
        self.conversation: Conversation | None = None
        self.numbered_from = numbered_from
        """Exchanges on this socket before, outside of what is inside."""
        self.pairing = Pairing(fresh)
        self.pairing.count = numbered_from
        send, recv = positions or (-1, -1)
        self.readers = (_Reader(wire.SEND, send, fresh), _Reader(wire.RECV, recv, fresh))
        self.request_direction = -1
        self.last_ns = now_ns
        self.gone_ns = 0
        if link.role is not None:
            self.request_direction = wire.SEND if link.role is Role.CLIENT else wire.RECV

    # --- bytes in ----------------------------------------------------------------------------------------------------

    def receive(
        self,
        direction: int,
        flags: int,
        reason: int,
        time_ns: int,
        pid: int,
        tid: int,
        position: int,
        length: int,
        payload: bytes,
    ) -> None:
        """A piece of a system call: `length` bytes of the stream at `position`, and `payload`, which is as long or
        (where `reason` says why) less.
        """
        reader = self.readers[direction]
        shared = self.shared
        if reader.idle and position == reader.next and not reason:
            end = payload.find(b"\r\n\r\n") + 4
            if end > 3:
                body_bytes = length - end
                block = payload[:end] if body_bytes else payload
                limit = shared.body_limit
                if direction == self.request_direction:
                    heads = shared.heads
                    head = heads.requests.get(block)
                    if head is None and head_end(payload) == end:
                        head = heads.request(block)
                    if head is not None and head.plain_length == body_bytes:
                        pairing = self.pairing
                        pairing.count += 1
                        message = Message(
                            self.link,
                            direction,
                            head,
                            shared.processes.get(pid),
                            pid,
                            tid,
                            time_ns,
                            time_ns,
                            pairing.count,
                            position,
                            length,
                            payload[end : end + limit] if body_bytes else b"",
                            body_bytes,
                        )
                        if body_bytes > limit:
                            message.completeness = Completeness.TRUNCATED
                        if pairing.certain and not pairing.waiting:
                            pairing.waiting.append(message)
                        else:
                            pairing.request(message, time_ns - self.last_ns, self._response_under_way())
                        reader.next = (position + length) & POSITION_MASK
                        self.last_ns = time_ns
                        shared.out.append(message)
                        row = shared.counters.recorded
                        row.bytes += length
                        row.calls += flags & 1
                        if pairing.waiting and self.readers[1 - direction].blocked is not None:
                            self._unblock(self.readers[1 - direction])
                        return
                elif self.pairing.waiting:
                    heads = shared.heads
                    head = heads.responses.get(block)
                    if head is None and head_end(payload) == end:
                        head = heads.response(block)
                    if head is not None and head.plain_length == body_bytes:
                        request = self.pairing.waiting[0]
                        if request.head.plain_length >= 0 and request.head.method != "HEAD":
                            self.pairing.waiting.popleft()
                            message = Message(
                                self.link,
                                direction,
                                head,
                                shared.processes.get(pid),
                                pid,
                                tid,
                                time_ns,
                                time_ns,
                                request.number,
                                position,
                                length,
                                payload[end : end + limit] if body_bytes else b"",
                                body_bytes,
                                request,
                            )
                            if body_bytes > limit:
                                message.completeness = Completeness.TRUNCATED
                            reader.next = (position + length) & POSITION_MASK
                            self.last_ns = time_ns
                            shared.out.append(message)
                            row = shared.counters.recorded
                            row.bytes += length
                            row.calls += flags & 1
                            if shared.gives_back:
                                self._give_back()
                            return
        self._receive_long(
            reader,
            flags & 1,
            Segment(position, length, payload, reason, time_ns, pid, tid, flags >= wire.DATA_AFTER_LOSS),
        )

    def _receive_long(self, reader: _Reader, calls: int, segment: Segment) -> None:
        reader.calls += calls
        if reader.next < 0:
            reader.next = reader.base = segment.position
        ahead = distance(segment.position, reader.next)
        if ahead == 0:
            self._in_order(reader, segment)
            if reader.holding is not None:
                self._release(reader, force=False)
        elif ahead > 0 and reader.skipping and reader.state is _State.LENGTH and ahead <= reader.remaining:
            # What we told the kernel side to skip: it is in its own ledger row.
            self._missing(reader, ahead, wire.REASON_OVER_LIMIT, segment.time_ns)
            reader.next = segment.position
            reader.skipping = False
            self._in_order(reader, segment)
        else:
            if reader.holding is None:
                reader.holding = Holding()
            reader.holding.add(segment)
            # What the kernel side says is lost need not be waited for.
            hopeless = segment.after_loss or reader.holding.full
            if ahead < 0 or hopeless:
                self._release(reader, force=hopeless)
        self._check_end(reader, segment.time_ns)
        self.last_ns = segment.time_ns
        self._mark(reader)
        if self.shared.gives_back and reader.direction != self.request_direction:
            self._give_back()

    def _give_back(self) -> None:
        """If this is between two exchanges, with nothing in doubt."""
        send, recv = self.readers
        pairing = self.pairing
        if (
            (send.idle and recv.idle and pairing.certain and not pairing.waiting)
            and (self.link.local_ip is not None and not self.link.passive and self.request_direction >= 0)
            and (self.link.share >= self.shared.kept_shares and send.end is None and recv.end is None)
        ):
            self.shared.boundaries[self.socket] = (send.next, recv.next)

    def _release(self, reader: _Reader, force: bool) -> None:
        holding = reader.holding
        if holding is None:
            return
        items, seen_twice = holding.release(reader.next, force)
        self.shared.counters.rows["unparsed"].bytes += seen_twice
        if not holding.segments:
            reader.holding = None
        for item in items:
            if isinstance(item, Gap):
                self._gap(reader, item)
            else:
                self._in_order(reader, item)

    def _mark(self, reader: _Reader) -> None:
        """Keep `idle` and the set of connections that wait for something true."""
        reader.idle = (
            reader.state is _State.START
            and reader.holding is None
            and reader.blocked is None
            and not reader.unattributed  # an empty line before the next message
        )
        if not reader.idle and self._waits(reader):
            self.shared.busy.add(self)

    def _waits(self, reader: _Reader) -> bool:
        """Is there something that time brings about? Not so in a tunnel, or in an answer that streams for hours."""
        return (
            reader.holding is not None
            or reader.blocked is not None
            or (reader.end is not None and not reader.finished)
            or (reader.message is not None and not reader.interim and self.shared.stream_interval_ns > 0)
            or (self.conversation is not None and self.conversation.waits)
        )

    def _in_order(self, reader: _Reader, segment: Segment) -> None:
        reader.next = (segment.position + segment.length) & POSITION_MASK
        if reader.blocked is not None:
            reader.blocked.append(segment)
            reader.blocked_bytes += len(segment.payload)
            if reader.blocked_bytes > BLOCKED_BYTES_MAX or len(reader.blocked) > BLOCKED_SEGMENTS_MAX:
                self._give_up_waiting(reader)
            return
        reader.unattributed += segment.length
        if segment.reason:
            if segment.payload and reader.keeping and reader.message is not None and reader.state is _State.LENGTH:
                self._keep(reader, segment.payload[: min(segment.length, reader.remaining)])
            row = "unreadable" if segment.reason in _UNREADABLE else wire.REASONS[segment.reason]
            # The call itself stays with the message.
            self.shared.counters.rows[row].bytes += segment.length
            reader.unattributed -= segment.length
            self._missing(reader, segment.length, segment.reason, segment.time_ns, segment.payload)
        else:
            self._feed(reader, segment)

    # --- framing -----------------------------------------------------------------------------------------------------

    def _feed(self, reader: _Reader, segment: Segment) -> None:
        data = segment.payload
        at = 0
        size = len(data)
        while at < size:
            state = reader.state
            if state is _State.START:
                if reader.direction == self.request_direction and self._may_change:
                    reader.blocked = [segment.without_start(at) if at else segment]
                    reader.blocked_bytes = size - at
                    reader.unattributed -= size - at
                    return
                if data[at] in b"\r\n":
                    at += 1  # RFC 9112, section 2.2: empty lines before a request line
                    continue
                reader.stash_start = segment.without_start(at) if at else segment
                reader.state = _State.HEAD
            elif state is _State.HEAD:
                at = self._feed_head(reader, data, at, segment)
                if at < 0:
                    return
            elif state is _State.LENGTH:
                taken = min(size - at, reader.remaining)
                self._take_body(reader, data[at : at + taken], segment.time_ns)
                reader.remaining -= taken
                at += taken
                if not reader.remaining:
                    self._end_message(reader, segment.time_ns, size - at)
                elif reader.remaining > SKIP_WORTH_BYTES and not reader.skipping:
                    self._ask_to_skip(reader)
            elif state is _State.CHUNK_DATA:
                taken = min(size - at, reader.remaining)
                self._take_body(reader, data[at : at + taken], segment.time_ns)
                reader.remaining -= taken
                at += taken
                if not reader.remaining:
                    reader.state = _State.CHUNK_END
            elif state is _State.UNTIL_CLOSE:
                self._take_body(reader, data[at:], segment.time_ns)
                at = size
            elif state is _State.DOUBT:
                at = self._feed_doubt(reader, data, at, segment)
            elif state is _State.CONVERSATION:
                self._converse(reader, segment.without_start(at) if at else segment)
                return
            elif state is _State.TUNNEL:
                self._attribute(reader, "tunnel", 0)
                return
            elif state is _State.LOST:
                if not self._resynchronise(reader, data, at):
                    self._attribute(reader, "unparsed", 0)
                    return
            else:
                at = self._feed_line(reader, data, at, segment)

    def _feed_doubt(self, reader: _Reader, data: bytes, at: int, segment: Segment) -> int:
        """Up to seven bytes tell whether there is a body."""
        before = len(reader.stash)
        if not before:
            reader.stash_start = segment.without_start(at) if at else segment
        start = bytes(reader.stash) + data[at : at + len(_VERSION) - before]
        if start == _VERSION:
            stash_start = reader.stash_start
            self._end_message(reader, segment.time_ns, before + len(data) - at)
            reader.stash_start = stash_start
            reader.state = _State.HEAD
            return at
        if _VERSION.startswith(start):
            reader.stash += data[at:]
            return len(data)
        reader.unattributed -= len(data) - at
        self._believe_body(reader)
        reader.unattributed += len(data) - at
        return at

    def _believe_body(self, reader: _Reader) -> None:
        """It is a body: what is in hand of it is its beginning."""
        start, stash = reader.stash_start, bytes(reader.stash)
        reader.stash.clear()
        reader.stash_start = None
        self._set_framing(reader, reader.remaining)
        if stash and start is not None:
            self._feed(reader, replace(start, length=len(stash), payload=stash))

    def _resynchronise(self, reader: _Reader, data: bytes, at: int) -> bool:
        """Lost in the stream: does a message begin with this piece?"""
        if at:
            return False
        if self._may_be_http2 and looks_like_frames(data):
            begins = True
        elif self.request_direction < 0:
            begins = begins_with_method(data) or looks_like_response(data)
        elif reader.direction == self.request_direction:
            begins = begins_with_method(data)
        else:
            begins = looks_like_response(data)
        if begins:
            # What went by since may have held messages.
            if self.request_direction >= 0 and reader.direction != self.request_direction:
                self.pairing.lost(requests=False)
            # What was in hand before belongs to nothing.
            self._attribute(reader, "unparsed", len(data))
            reader.state = _State.START
            reader.doubtful = True
        return begins

    def _feed_head(self, reader: _Reader, data: bytes, at: int, segment: Segment) -> int:
        """Returns the offset behind what it used, or -1 when all is used and nothing is left to do."""
        size = len(data)
        start = reader.stash_start
        assert start is not None
        before = len(reader.stash)
        if (reader.stash[0] if before else data[at]) in _HTTP2_STARTS and self._may_be_http2:
            looks = looks_like_frames(bytes(reader.stash) + data[at:])
            if looks:
                self._speak_http2(reader, segment.without_start(at))
                return -1
            if looks is None:
                reader.stash += data[at:]
                return -1
        if before:
            reader.stash += data[at:]
            end = head_end(reader.stash, max(0, before - 3))
            block = bytes(reader.stash[:end]) if end > 0 else b""
            if end > 0:
                reader.stash.clear()
        else:
            end = head_end(data, at) - at
            block = data[at : at + end] if end > 0 else b""
            if end <= 0:
                reader.stash += data[at:]
        if not block:
            if len(reader.stash) > MAX_HEAD_BYTES or not self._may_be_head(reader):
                self._lose(reader, "unparsed")
            return -1
        used = end - before
        is_request = self._is_request(reader, block)
        heads = self.shared.heads
        head = heads.request(block) if is_request else heads.response(block)
        if head is None or (reader.doubtful and is_request and head.method.encode() not in METHODS):
            self._lose(reader, "unparsed", keep=size - at - used)
            return at + used
        reader.doubtful = False
        if self.request_direction < 0:
            self._decide_role(reader.direction, is_request)
        if is_request:
            self._begin(reader, head, start, None)
            self._frame(reader, body_length(head, None), size - at - used)
            other = self.readers[1 - reader.direction]
            if other.blocked is not None and self.pairing.waiting:
                self._unblock(other)
            return at + used
        if self._may_come_late():
            # Its request may be on its way to us. All of it waits, from its first byte on.
            reader.state = _State.START
            reader.blocked = [replace(start, length=len(block), payload=block)]
            rest = segment.without_start(at + used)
            if rest.length:
                reader.blocked.append(rest)
            reader.blocked_bytes = len(block) + rest.length
            reader.unattributed -= reader.blocked_bytes
            return -1
        self._begin_response(reader, head, start, size - at - used)
        return at + used

    def _may_come_late(self) -> bool:
        """A response has begun and nobody waits: may its request be on its way to us? A send is seen when it returns,
        and another thread may have the answer before that. A receive is seen before anybody can act on it: a server's
        answer does not overtake its request.
        """
        if self.request_direction != wire.SEND and not self.link.passive:
            return False
        return not self.pairing.waiting and self.pairing.may_come_late

    def _may_be_head(self, reader: _Reader) -> bool:
        """So that a connection which speaks something else is not waited for until MAX_HEAD_BYTES."""
        stash = bytes(reader.stash[:4096])
        if b"\n" not in stash and len(stash) <= START_MAX_BYTES:
            return True
        return looks_like_request(stash) or looks_like_response(stash)

    def _is_request(self, reader: _Reader, block: bytes) -> bool:
        if self.request_direction < 0:
            return not looks_like_response(block)
        return reader.direction == self.request_direction

    def _decide_role(self, direction: int, is_request: bool) -> None:
        self.request_direction = direction if is_request else 1 - direction
        self.link.role = Role.CLIENT if self.request_direction == wire.SEND else Role.SERVER
        self.link.rendered.clear()

    def _response_under_way(self) -> bool:
        reader = self.readers[1 - self.request_direction]
        return reader.state is not _State.START or reader.holding is not None or reader.blocked is not None

    def _begin(self, reader: _Reader, head: Head, start: Segment, request: Message | None) -> Message:
        pairing = self.pairing
        if request is None:
            pairing.count += 1
            number = pairing.count
        else:
            number = request.number
        message = Message(
            self.link,
            Direction(reader.direction),
            head,
            self.shared.processes.get(start.pid),
            start.pid,
            start.tid,
            start.time_ns,
            start.time_ns,
            number,
            start.position,
            head.size,
            b"",
            0,
            request,
        )
        reader.message = message
        reader.stash_start = None
        reader.interim = False
        reader.keeping = True
        reader.kept.clear()
        reader.raw = None
        if head.is_request:
            pairing.request(message, start.time_ns - self.last_ns, self._response_under_way())
        return message

    def _begin_response(self, reader: _Reader, head: Head, start: Segment, left: int) -> None:
        final = head.status >= 200 or head.status == 101
        request = self.pairing.response(final)
        if request is None:
            self.shared.counters.unpaired += 1
            if self.pairing.certain:
                self.pairing.joined()
        self._begin(reader, head, start, request)
        method = request.head.method if request is not None else None
        length = body_length(head, method)
        if request is None and length and length != UNFRAMED:
            reader.state = _State.DOUBT
            reader.remaining = length
        else:
            self._frame(reader, length, left)
        if head.status == 101 or (method == "CONNECT" and 200 <= head.status < 300):
            self._change(self._upgraded(head, request) if head.status == 101 else None, start.time_ns)
        other = self.readers[1 - reader.direction]
        if other.blocked is not None and not self._may_change:
            self._unblock(other)

    @property
    def _may_change(self) -> bool:
        """What follows the last request may be no HTTP/1: that depends on its response. A server may have received the first
        of it before its own response, which is seen when it has been sent.
        """
        pairing = self.pairing
        if not pairing.waiting or not pairing.certain:
            return False
        head = pairing.waiting[-1].head
        return head.fields.upgrade or head.method == "CONNECT"

    @property
    def _may_be_http2(self) -> bool:
        """No request of HTTP/1 was seen here."""
        return self.pairing.count == self.numbered_from

    def _upgraded(self, head: Head, request: Message | None) -> Conversation | None:
        """What is spoken after this response of status 101, where we can follow it."""
        protocol = next((value.lower() for name, value in head.fields.headers if name.lower() == "upgrade"), "")
        if protocol == "websocket":
            return WebSocketConversation(
                self.shared,
                self.link,
                request_direction=self.request_direction,
                number=self.pairing.count if request is None else request.number,
                response=head,
            )
        if protocol == "h2c":
            return Http2(
                self.shared,
                self.link,
                client_direction=self.request_direction,
                fresh=True,
                number=self.pairing.count,
                upgraded=request,
            )
        return None

    def _speak_http2(self, reader: _Reader, segment: Segment) -> None:
        """From what this direction has in hand, and `segment`, on."""
        other = self.readers[1 - reader.direction]
        whole = (reader.stash_start or segment).position == reader.base and other.state in (_State.START, _State.HEAD)
        conversation = Http2(
            self.shared,
            self.link,
            client_direction=self.request_direction if self.request_direction >= 0 else None,
            fresh=self.fresh and whole,
            number=self.pairing.count,
            upgraded=None,
        )
        self._change(conversation, segment.time_ns)
        self._converse(reader, segment)

    def _change(self, conversation: Conversation | None, time_ns: int) -> None:
        """HTTP/1 is over in both directions: what comes is for `conversation`, or for nobody."""
        if self.conversation is not None:
            for each in self.readers:
                self.conversation.end(each.direction, time_ns, finished=False)
        self.conversation = conversation
        if conversation is None:
            self.shared.commands.append(Ignore(self.socket))
        for each in self.readers:
            if each.message is not None:
                self._cut_short(each, Completeness.PARTIAL, "partial")
            each.state = _State.TUNNEL if conversation is None else _State.CONVERSATION
            each.idle = False
            start, stash = each.stash_start, bytes(each.stash)
            each.stash_start = None
            each.stash.clear()
            if stash and start is not None and conversation is not None:
                self._converse(each, replace(start, length=len(stash), payload=stash))

    def _converse(self, reader: _Reader, segment: Segment) -> None:
        conversation = self.conversation
        assert conversation is not None
        row: Row = self.shared.counters.rows[conversation.feed(reader.direction, segment)]
        row.calls += reader.calls
        reader.calls = 0
        reader.unattributed -= segment.length
        if conversation.is_lost:
            self._change(None, segment.time_ns)

    def _frame(self, reader: _Reader, length: int, left: int) -> None:
        """The head is done; `left` bytes of the piece lie behind it."""
        message = reader.message
        assert message is not None
        if length == UNFRAMED:
            # RFC 9112, section 6.3, rule 5: nobody can go on from here; who gets it answers 400 and closes.
            self._cut_short(reader, Completeness.PARTIAL, "recorded", left)
            self.pairing.lost(requests=message.head.is_request)
        elif length:
            self._set_framing(reader, length)
        else:
            self._end_message(reader, message.end_ns, left)

    @staticmethod
    def _set_framing(reader: _Reader, length: int) -> None:
        if length == CHUNKED:
            reader.state = _State.CHUNK_SIZE
            reader.raw = bytearray()
        elif length == UNTIL_CLOSE:
            reader.state = _State.UNTIL_CLOSE
        else:
            reader.state = _State.LENGTH
            reader.remaining = length

    def _ask_to_skip(self, reader: _Reader) -> None:
        """A large body of known length: the kernel side need not copy what we would not keep. The piece at hand is
        used up, so reader.next is the position of the first of `remaining` bytes.
        """
        kept_all = not reader.keeping or len(reader.kept) >= self.shared.body_limit
        if kept_all and self.link.positions_are_sequence_numbers:
            reader.skipping = True
            # All but the last byte, so that the call that ends the body still tells us when.
            until = (reader.next + min(reader.remaining, SKIP_MAX_BYTES) - 1) & POSITION_MASK
            self.shared.commands.append(Skip(self.socket, reader.direction, until))

    def _feed_line(self, reader: _Reader, data: bytes, at: int, segment: Segment) -> int:
        """CHUNK_SIZE, CHUNK_END and TRAILERS go by lines (RFC 9112, section 7.1)."""
        end = data.find(b"\n", at) + 1
        used = (end or len(data)) - at
        reader.stash += data[at : at + used]
        if reader.state is not _State.TRAILERS:
            self._keep_raw(reader, data[at : at + used])
        message = reader.message
        assert message is not None
        message.stream_bytes += used
        message.end_ns = segment.time_ns
        left = len(data) - at - used
        limit = TRAILERS_MAX_BYTES if reader.state is _State.TRAILERS else LINE_MAX_BYTES
        if len(reader.stash) > limit:
            self._cut_short(reader, Completeness.PARTIAL, "unparsed", left)
            return at + used
        if not end:
            return at + used
        if reader.state is _State.TRAILERS:
            if reader.stash.endswith((b"\n\n", b"\n\r\n")) or not reader.stash.strip(b"\r\n"):
                trailers = bytes(reader.stash)
                reader.stash.clear()
                message.trailers = parse_trailers(trailers)
                # Only now, whole: what a sink has to redact it finds in `trailers`.
                self._keep_raw(reader, trailers)
                self._end_message(reader, segment.time_ns, left)
            return at + used
        line = bytes(reader.stash)
        reader.stash.clear()
        if reader.state is _State.CHUNK_END:
            if line in (b"\r\n", b"\n"):
                reader.state = _State.CHUNK_SIZE
                return at + used
        else:
            match = _CHUNK_SIZE.fullmatch(line)
            if match is not None:
                reader.remaining = int(match[1], 16)
                reader.state = _State.CHUNK_DATA if reader.remaining else _State.TRAILERS
                return at + used
        # No chunked coding: what follows cannot be framed.
        self._cut_short(reader, Completeness.PARTIAL, "unparsed", left)
        return at + used

    def _take_body(self, reader: _Reader, data: bytes, time_ns: int) -> None:
        message = reader.message
        assert message is not None
        size = len(data)
        message.stream_bytes += size
        message.body_bytes += size
        message.end_ns = time_ns
        self._keep_raw(reader, data)
        if reader.keeping:
            self._keep(reader, data)

    def _keep(self, reader: _Reader, data: bytes) -> None:
        room = self.shared.body_limit - len(reader.kept)
        if room > 0:
            reader.kept += data[:room]
        reader.keeping = len(data) <= room

    def _keep_raw(self, reader: _Reader, data: bytes) -> None:
        if reader.raw is not None:
            room = self.shared.body_limit - len(reader.raw)
            if room > 0 and reader.message is not None and not reader.message.missing_bytes:
                reader.raw += data[:room]

    # --- what was not seen -------------------------------------------------------------------------------------------

    def _gap(self, reader: _Reader, gap: Gap) -> None:
        if reader.blocked is not None:
            self._give_up_waiting(reader)
        reader.next = (reader.next + gap.length) & POSITION_MASK
        self._missing(reader, gap.length, _RING_FULL if gap.ring_full else _UNKNOWN, gap.time_ns)

    def _missing(self, reader: _Reader, length: int, reason: int, time_ns: int, start: bytes = b"") -> None:
        """`length` bytes go by unseen; `start` is what could be had of them otherwise. Where the framing is known across
        them, the message goes on.
        """
        if reader.state is _State.DOUBT:
            if reason in (wire.REASON_SENDFILE, wire.REASON_SPLICE):
                self._believe_body(reader)
            else:
                self._cut_short(reader, Completeness.PARTIAL, "partial")
        message = reader.message
        state = reader.state
        if state is _State.TUNNEL:
            return
        if state is _State.CONVERSATION and self.conversation is not None:
            why = BUDGET if reason == wire.REASON_OVER_LIMIT else _REASON_NAMES[reason]
            self.conversation.missing(reader.direction, length, why, time_ns, start[:length])
            return
        if state in (_State.LENGTH, _State.CHUNK_DATA) and message is not None and length <= reader.remaining:
            self._miss(reader, message, length, reason)
            message.end_ns = time_ns
            reader.remaining -= length
            if not reader.remaining:
                if state is _State.LENGTH:
                    self._end_message(reader, time_ns, 0)
                else:
                    reader.state = _State.CHUNK_END
            return
        if state is _State.UNTIL_CLOSE and message is not None:
            self._miss(reader, message, length, reason)
            message.end_ns = time_ns
            return
        # A message may have begun in there.
        if message is not None and state in _BODY_STATES:
            if reason == wire.REASON_OVER_LIMIT:
                reason = _BUDGET
            if state is _State.LENGTH:
                self._miss(reader, message, reader.remaining, reason)
            else:
                # How much of it belonged to this message nobody knows: its sizes stay at what was seen.
                seen, body = message.stream_bytes, message.body_bytes
                self._miss(reader, message, length, reason)
                message.stream_bytes, message.body_bytes = seen, body
            self._cut_short(reader, Completeness.GAP, "gap")
        else:
            self._lose(reader, "unparsed")
        self._uncertain(reader)

    def _miss(self, reader: _Reader, message: Message, length: int, reason: int) -> None:
        reader.keeping = False
        message.stream_bytes += length
        message.body_bytes += length
        if reason == wire.REASON_OVER_LIMIT:
            if message.completeness is Completeness.COMPLETE:
                message.completeness = Completeness.TRUNCATED
            return
        message.completeness = Completeness.GAP
        note_missing(message, length, _REASON_NAMES[reason])

    def _uncertain(self, reader: _Reader) -> None:
        if self.request_direction < 0:
            self.pairing.joined()
            return
        self.pairing.lost(requests=reader.direction == self.request_direction)
        other = self.readers[1 - reader.direction]
        if other.blocked is not None:
            self._give_up_waiting(other)

    def _lose(self, reader: _Reader, row: str, keep: int = 0) -> None:
        """Give up what is in hand; go on at the next message that begins with a piece."""
        start = reader.stash_start
        in_the_middle = start is not None and start.position == reader.base
        reader.stash.clear()
        reader.stash_start = None
        reader.message = None
        reader.skipping = False
        reader.state = _State.LOST
        self._attribute(reader, row, keep)
        if self.request_direction < 0 or in_the_middle:
            self.pairing.joined()
        else:
            self.pairing.lost(requests=reader.direction == self.request_direction)

    def _cut_short(self, reader: _Reader, completeness: Completeness, row: str, keep: int = 0) -> None:
        """The message ends here, though it was not over."""
        message = reader.message
        assert message is not None
        message.completeness = Completeness.GAP if message.missing_bytes else completeness
        self._emit(reader, message)
        reader.message = None
        reader.stash.clear()
        reader.skipping = False
        reader.state = _State.LOST
        self._attribute(reader, row, keep)
        if row == "unparsed":
            self.pairing.lost(requests=reader.direction == self.request_direction)

    # --- messages out ------------------------------------------------------------------------------------------------

    def _end_message(self, reader: _Reader, time_ns: int, left: int) -> None:
        """The message is over, `left` bytes before the end of the piece."""
        message = reader.message
        assert message is not None
        message.end_ns = time_ns
        if message.completeness is Completeness.COMPLETE and not reader.keeping:
            message.completeness = Completeness.TRUNCATED
        lost_some = message.completeness is Completeness.GAP and message.missing_reason not in SENT_FROM_FILES
        self._emit(reader, message)
        reader.message = None
        reader.skipping = False
        reader.state = _State.START
        self._attribute(reader, "gap" if lost_some else "recorded", left)

    def _emit(self, reader: _Reader, message: Message) -> None:
        message.body = bytes(reader.kept)
        if reader.raw is not None:
            message.raw_body = bytes(reader.raw)
        self.shared.out.append(message)

    def _attribute(self, reader: _Reader, row: str, keep: int) -> None:
        """Everything in hand but the last `keep` bytes goes to a row of the ledger."""
        entry: Row = self.shared.counters.rows[row]
        entry.bytes += reader.unattributed - keep
        entry.calls += reader.calls
        reader.unattributed = keep
        reader.calls = 0

    # --- responses that wait for their request -----------------------------------------------------------------------

    def _unblock(self, reader: _Reader) -> None:
        blocked = reader.blocked or []
        reader.blocked = None
        reader.blocked_bytes = 0
        for segment in blocked:
            self._in_order(reader, segment)  # which ends with `next` where it was
        self._check_end(reader, self.last_ns)
        self._mark(reader)

    def _give_up_waiting(self, reader: _Reader) -> None:
        self.pairing.joined()
        self._unblock(reader)

    # --- ends --------------------------------------------------------------------------------------------------------

    def close(self, direction: int, gone: bool, position: int, time_ns: int) -> None:
        """A direction, or both, will bring no more bytes."""
        if gone:
            self.gone_ns = time_ns
        for reader in self.readers:
            if direction in (reader.direction, wire.BOTH):
                # Of a socket that is gone the position is the sent side's. The other one got as far as it got: `drain`
                # ends it, when what is still on its way to us had its time.
                known = direction == reader.direction or (reader.direction == wire.SEND and not self.link.passive)
                if known and reader.end is None:
                    reader.end = position
                self._check_end(reader, time_ns)
                self._mark(reader)

    def _check_end(self, reader: _Reader, time_ns: int) -> None:
        if reader.end is None or reader.finished or reader.blocked is not None:
            return
        if reader.next < 0 or distance(reader.next, reader.end) >= 0:
            self._finish(reader, time_ns)

    def _finish(self, reader: _Reader, time_ns: int) -> None:
        """No byte of this direction will come."""
        if reader.blocked is not None:
            self._give_up_waiting(reader)
        self._release(reader, force=True)
        reader.finished = reader.end is not None
        if reader.end is not None and reader.next >= 0:
            behind = distance(reader.end, reader.next)
            if behind > 0 and reader.state is not _State.START:
                self._missing(reader, behind, wire.REASON_OVER_LIMIT if reader.skipping else _UNKNOWN, time_ns)
        message = reader.message
        if reader.state is _State.CONVERSATION and self.conversation is not None:
            self.conversation.end(reader.direction, time_ns, finished=reader.finished)
        if message is not None and reader.state is _State.UNTIL_CLOSE and reader.finished:
            self._end_message(reader, message.end_ns, 0)
        elif message is not None:
            self._cut_short(reader, Completeness.PARTIAL, "partial")
        elif reader.unattributed or reader.calls:
            self._attribute(reader, _LEFT_OVER.get(reader.state, "unparsed"), 0)
        reader.stash.clear()
        reader.stash_start = None
        if reader.state not in (_State.START, _State.TUNNEL, _State.CONVERSATION):
            # Should more come all the same, it is the rest of what we gave up.
            reader.state = _State.LOST
            if self.request_direction >= 0:
                self.pairing.lost(requests=reader.direction == self.request_direction)
        reader.idle = False

    def tick(self, now_ns: int) -> bool:
        """Time has passed. False when nothing here waits for anything."""
        waits = False
        if self.conversation is not None:
            self.conversation.tick(now_ns)
        for reader in self.readers:
            if reader.blocked is not None and now_ns - reader.blocked[0].time_ns > HOLD_NS:
                self._give_up_waiting(reader)
            if reader.holding is not None and now_ns - reader.holding.since_ns > HOLD_NS:
                self._release(reader, force=True)
                self._check_end(reader, now_ns)
            patience_ns = HOLD_NS if self.gone_ns else LINGER_NS
            if reader.end is not None and not reader.finished and now_ns - self.last_ns > patience_ns:
                self._finish(reader, now_ns)
            message = reader.message
            interval = self.shared.stream_interval_ns
            if message is not None and interval and not reader.interim and now_ns - message.time_ns > interval:
                reader.interim = True
                self.shared.out.append(
                    replace(
                        message,
                        completeness=Completeness.OPEN,
                        body=bytes(reader.kept),
                        raw_body=None if reader.raw is None else bytes(reader.raw),
                    )
                )
            self._mark(reader)
            waits = waits or self._waits(reader)
        return waits

    def drain(self, now_ns: int) -> None:
        """The end of everything: what is in hand comes out as it is."""
        for reader in self.readers:
            if not reader.finished or reader.message is not None or reader.unattributed or reader.calls:
                self._finish(reader, now_ns)


def parse_trailers(block: bytes) -> tuple[tuple[str, str], ...]:
    """The lines of a trailer section, with the empty line that ends it → names and values."""
    trailers = []
    for line in block.split(b"\n"):
        name, colon, value = line.strip(b"\r").partition(b":")
        if colon and name:
            trailers.append((name.decode("utf-8", "replace"), value.strip(b" \t").decode("utf-8", "replace")))
    return tuple(trailers)
