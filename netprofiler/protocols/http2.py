"""HTTP/2 (RFC 9113): the frames of both directions of one connection → messages.

Contract: protocols/base.py's `Conversation`. An observer between the two ends, or beside one of them: it answers nothing,
so flow control and settings are no matter to it (a frame says its own size; the size of a header table follows from the
header blocks, see header_compression.py). What it holds: the streams that are open, STREAMS_MAX at most, each with two
bodies of `body_limit`; of each direction a header block, BLOCK_BYTES_MAX, or bytes that may be frames, DOUBTFUL_BYTES_MAX.

- Pairs are right whatever was missed, because a stream has one exchange. A response whose request may be on its way to
  us (a send is seen when it has returned) waits for it, LATE_NS.
- Joined in the middle, or behind a gap, a direction goes on at a segment with which a chain of frames begins. Of its
  header fields those are known that the blocks say by themselves, or that were inserted into the table since. Whether
  a block that ends a stream is a head or trailers is told by its pseudo fields, which come first; where these are unknown
  as well, it is a head only if nothing of the stream was missed, else it is no message (row `unparsed`).
- A message that was under way when bytes were missed outside of its own DATA ends there.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, auto
from struct import Struct
from typing import Final, NamedTuple

from netprofiler import wire
from netprofiler.exchange import Completeness, Direction, Fields, Grpc, Head, Link, Message, Role
from netprofiler.protocols import grpc
from netprofiler.protocols.base import BUDGET, SENT_FROM_FILES, Surroundings, note_missing
from netprofiler.protocols.header_compression import Block, Decoder, HeaderField
from netprofiler.protocols.http1 import content_length, list_items
from netprofiler.streams import POSITION_MASK, Segment

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""RFC 9113, section 3.4: what a client says first."""

STREAMS_MAX: Final = 4096
"""Open streams of one connection: servers allow 100 to 1,000 at a time. Over it the oldest end as `partial`."""
RESETS_MAX: Final = 1024
"""Streams that were reset are remembered: frames that were under way still come, and are of no message."""
BLOCK_BYTES_MAX: Final = 256 * 1024
"""Of one header block as it is sent, or of a frame that is collected; servers stop at 8 to 64 KiB."""
DOUBTFUL_BYTES_MAX: Final = 64 * 1024
DOUBTFUL_SEGMENTS_MAX: Final = 64
"""Bytes, and segments, of a direction in which it is not clear yet whether frames begin: a frame of the usual largest size
(16 KiB) and the header behind it decide."""
STRANGE_SEGMENTS_MAX: Final = 64
"""So many in a row do not look like HTTP/2: it is something else."""
LATE_NS: Final = 250_000_000
"""How long a response waits for its request: two threads' calls reach the ring some microseconds out of order."""
LATE_MESSAGES_MAX: Final = 16
"""Of one stream: interim responses and the final one."""
HOT_BLOCKS: Final = 64
HOT_BLOCK_BYTES: Final = 4096
"""Header blocks of one direction whose meaning is remembered, while the table does not change."""
CACHED_FIELDS: Final = 64
"""Of one connection: `Fields` that came before, whichever way the block said them."""

_FRAME: Final = Struct(">BHBBI")
"""Section 4.1: length (24 bits), type, flags, stream."""
_FRAME_BYTES: Final = _FRAME.size
_STREAM_MASK: Final = 0x7FFFFFFF

# Section 6.
_DATA: Final = 0
_HEADERS: Final = 1
_PRIORITY: Final = 2
_RST_STREAM: Final = 3
_SETTINGS: Final = 4
_PUSH_PROMISE: Final = 5
_PING: Final = 6
_GOAWAY: Final = 7
_WINDOW_UPDATE: Final = 8
_CONTINUATION: Final = 9

_END_STREAM: Final = 0x1
_ACK: Final = 0x1
_END_HEADERS: Final = 0x4
_PADDED: Final = 0x8
_WITH_PRIORITY: Final = 0x20

_PRIORITY_BYTES: Final = 5
_PROMISED_BYTES: Final = 4
_FLAGS: Final = (
    _END_STREAM | _PADDED,
    _END_STREAM | _END_HEADERS | _PADDED | _WITH_PRIORITY,
    0,
    0,
    _ACK,
    _END_HEADERS | _PADDED,
    _ACK,
    0,
    0,
    _END_HEADERS,
)
"""That are defined, by type."""
_FIXED_BYTES: Final = {_PRIORITY: 5, _RST_STREAM: 4, _PING: 8, _WINDOW_UPDATE: 4}
_LEAST_BYTES: Final = {_HEADERS: 1, _PUSH_PROMISE: 5, _GOAWAY: 8}
_OF_CONNECTION: Final = frozenset((_SETTINGS, _PING, _GOAWAY))
"""Their stream is 0."""
_OF_STREAM: Final = frozenset((_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _PUSH_PROMISE, _CONTINUATION))
"""Theirs is not."""
_COLLECTED: Final = frozenset((_HEADERS, _RST_STREAM, _PUSH_PROMISE, _GOAWAY, _CONTINUATION))
"""Their payload is looked at, whole."""

_NEVER: Final = 1 << 63


def looks_like_frames(data: bytes) -> bool | None:
    """Could HTTP/2 begin here? True: the preface, or a chain of frame headers that says so twice, or ends just where the
    data ends; None: too short to tell.
    """
    if data[:1] == PREFACE[:1]:
        if data.startswith(PREFACE):
            return True
        return None if PREFACE.startswith(data) else False
    at = 0
    size = len(data)
    headers = 0
    block_stream = 0
    while size - at >= _FRAME_BYTES:
        high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
        length = high << 16 | low
        if kind > _CONTINUATION or flags & ~_FLAGS[kind] or stream > _STREAM_MASK:
            return False
        if not _is_sound(kind, length, stream):
            return False
        if kind == _SETTINGS and (length % 6 or (flags and length)):
            return False
        # Section 6.10: nothing comes between the frames of a header block.
        if (kind == _CONTINUATION) != (block_stream != 0) or (block_stream and stream != block_stream):
            return False
        if kind in (_HEADERS, _PUSH_PROMISE, _CONTINUATION):
            block_stream = 0 if flags & _END_HEADERS else stream
        headers += 1
        at += _FRAME_BYTES + length
    if at == size:
        return True if headers else None
    if at < size and size - at > 3 and data[at + 3] > _CONTINUATION:
        return False
    return True if headers > 1 else None


def _is_sound(kind: int, length: int, stream: int) -> bool:
    """Does a frame of this type belong where it is, and have it a length that it may have (section 6)?"""
    if kind in (_OF_CONNECTION if stream else _OF_STREAM):
        return False
    return length == _FIXED_BYTES.get(kind, length) and length >= _LEAST_BYTES.get(kind, 0)


class _Kind(Enum):
    """What a header block can be, by the pseudo fields in it that are known (section 8.3: they come first)."""

    REQUEST = auto()
    RESPONSE = auto()
    TRAILERS = auto()
    """There are none."""
    ANY = auto()
    """All that there may be are unknown."""


class _Known(NamedTuple):
    """What a header block says: the same for the same bytes, while the table does not change."""

    kind: _Kind
    block: Block
    head: Head
    call: grpc.Call | None


class _Part:
    """A message that is under way."""

    __slots__ = ("counts", "interim", "keeping", "kept", "message", "prefixes", "seen")

    def __init__(self, message: Message, seen: int) -> None:
        self.message = message
        self.seen = seen
        """Bytes of it that no row of the ledger has yet."""
        self.kept = bytearray()
        self.keeping = True
        """No byte of the body was left out so far."""
        self.interim = False
        self.prefixes: grpc.Prefixes | None = None


class _Stream:
    """One exchange."""

    __slots__ = ("ended", "late", "number", "parts", "request", "since_ns", "whole")

    def __init__(self, number: int, since_ns: int) -> None:
        self.number = number
        self.since_ns = since_ns
        self.request: Message | None = None
        self.parts: list[_Part | None] = [None, None]
        """By direction."""
        self.ended = [False, False]
        """Nothing of this direction is a message any more."""
        self.whole = [True, True]
        """Nothing of this direction was missed since the stream began, so its first block is a head."""
        self.late: list[Message] | None = None
        """Responses that wait for the request; None: it is here, or is not waited for."""


class _Side:
    """One direction."""

    __slots__ = (
        "block",
        "block_bytes",
        "block_ends",
        "block_stream",
        "decoder",
        "direction",
        "doubtful",
        "doubtful_bytes",
        "ends",
        "framed",
        "hot",
        "needed",
        "overflow",
        "padding",
        "promised",
        "remaining",
        "start",
        "stash",
        "stash_start",
        "stream",
        "touched",
    )

    def __init__(self, direction: int, *, fresh: bool) -> None:
        self.direction = direction
        self.decoder = Decoder(fresh=fresh)
        self.hot: dict[bytes | tuple[int, bytes], _Known] = {}
        self.framed = False
        """Frames are in step with the bytes."""
        self.touched = False
        """Something of it came, or was missed."""
        # Segments of which it is not clear yet whether frames begin with them.
        self.doubtful: list[Segment] = []
        self.doubtful_bytes = 0
        # The beginning of a frame that is collected.
        self.stash = bytearray()
        self.stash_start: Segment | None = None
        self.needed = 0
        """Bytes of the frame that are needed before it is looked at."""
        # A frame whose payload passes through.
        self.remaining = 0
        self.padding = 0
        """The last of `remaining`."""
        self.stream = 0
        """Of DATA; 0: the payload is no matter."""
        self.ends = False
        # A header block that is not over.
        self.block = bytearray()
        self.block_stream = 0
        self.block_bytes = 0
        """With the headers of its frames."""
        self.block_ends = False
        self.promised = 0
        self.overflow = False
        self.start: Segment | None = None


class Http2:
    """See above.

    `client_direction`: in which requests go, None: not known. `fresh`: both directions come from their first byte.
    `number`: exchanges so far on this connection. `upgraded`: the HTTP/1 request that stream 1 answers (`Upgrade: h2c`).
    """

    __slots__ = (
        "_client",
        "_due_ns",
        "_fields",
        "_fresh",
        "_highest",
        "_late",
        "_link",
        "_resets",
        "_sides",
        "_strange",
        "_streams",
        "_surroundings",
        "_young",
        "count",
    )

    def __init__(
        self,
        surroundings: Surroundings,
        link: Link,
        *,
        client_direction: int | None,
        fresh: bool,
        number: int,
        upgraded: Message | None,
    ) -> None:
        self._surroundings = surroundings
        self._link = link
        self._client = -1 if client_direction is None else client_direction
        self._fresh = fresh
        self._sides = (_Side(wire.SEND, fresh=fresh), _Side(wire.RECV, fresh=fresh))
        self._streams: dict[int, _Stream] = {}
        self._resets: dict[int, None] = {}
        self._late: dict[int, _Stream] = {}
        """Streams with responses that wait."""
        self._highest = 0
        """Stream of the latest request: the next one's is higher (section 5.1.1)."""
        self._strange = 0
        self._young = 0
        """Messages under way that have not given their interim record."""
        self._due_ns = _NEVER
        """No interim record is due before."""
        self._fields: dict[tuple[tuple[HeaderField, ...], int], Fields] = {}
        self.count = number
        """Exchanges so far."""
        if upgraded is not None:
            stream = self._streams[1] = _Stream(upgraded.number, upgraded.time_ns)
            stream.request = upgraded
            stream.ended[upgraded.direction] = True
            self._highest = 1

    # --- bytes in ----------------------------------------------------------------------------------------------------

    def feed(self, direction: int, segment: Segment) -> str:
        side = self._sides[direction]
        if side.framed:
            return self._frames(side, segment)
        return self._find_frames(side, segment)

    def _find_frames(self, side: _Side, segment: Segment) -> str:
        """Not in step: does HTTP/2 begin with what is in doubt?"""
        doubtful = side.doubtful
        doubtful.append(segment)
        side.doubtful_bytes += len(segment.payload)
        while True:
            data = b"".join(each.payload for each in doubtful)
            begins = self._begins(side, data)
            if begins:
                break
            crowded = side.doubtful_bytes > DOUBTFUL_BYTES_MAX or len(doubtful) > DOUBTFUL_SEGMENTS_MAX
            if begins is None and not crowded:
                return "unparsed"
            self._strange += 1
            side.touched = True
            self._give_up(side, 1)
            if not doubtful:
                return "unparsed"
        segments = list(doubtful)
        doubtful.clear()
        side.doubtful_bytes = 0
        if data[:1] == PREFACE[:1]:
            segments = self._take_preface(side, segments)
        side.framed = side.touched = True
        row = "control"
        for each in segments:
            row = self._frames(side, each) if side.framed else self._find_frames(side, each)
        return row

    def _begins(self, side: _Side, data: bytes) -> bool | None:
        """Do frames begin here? A frame that begins like the preface has 5 MiB: there is none."""
        if data[:1] == PREFACE[:1]:
            return looks_like_frames(data) if not side.touched else False
        if self._fresh and not side.touched:
            return side.direction != self._client  # a server begins with frames, a client does not
        return looks_like_frames(data)

    def _take_preface(self, side: _Side, segments: list[Segment]) -> list[Segment]:
        """A connection begins: no header block went before, in neither direction."""
        left = len(PREFACE)
        rest = []
        for segment in segments:
            used = min(left, segment.length)
            left -= used
            if used < segment.length:
                rest.append(segment.without_start(used))
        self._surroundings.counters.rows["control"].bytes += len(PREFACE)
        other = self._sides[1 - side.direction]
        side.decoder = Decoder(fresh=True)
        if not other.touched:
            other.decoder = Decoder(fresh=True)
        if self._client < 0:
            self._learn(side.direction)
        return rest

    def _give_up(self, side: _Side, count: int) -> None:
        """The first of the segments in doubt are nothing."""
        given_up = sum(len(segment.payload) for segment in side.doubtful[:count])
        del side.doubtful[:count]
        side.doubtful_bytes -= given_up
        self._unparsed(given_up)

    def _learn(self, client_direction: int) -> None:
        self._client = client_direction
        self._link.role = Role.CLIENT if client_direction == wire.SEND else Role.SERVER
        self._link.rendered.clear()

    # --- frames ------------------------------------------------------------------------------------------------------

    def _frames(self, side: _Side, segment: Segment) -> str:
        """Returns the row of the segment's system call: that of the weightiest frame in it."""
        data = segment.payload
        time_ns = segment.time_ns
        base = segment.position
        start = segment
        self._strange = 0
        row = "control"
        at = 0
        if side.remaining:
            at, row = self._pass_through(side, data, 0, time_ns)
        elif side.stash_start is not None:
            side.stash += data
            if len(side.stash) < side.needed:
                return "recorded"
            start = side.stash_start
            base = start.position
            data = bytes(side.stash)
            side.stash.clear()
            side.stash_start = None
        size = len(data)
        while at < size:
            left = size - at
            side.needed = _FRAME_BYTES
            if left < _FRAME_BYTES:
                break
            high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
            length = high << 16 | low
            stream &= _STREAM_MASK
            whole = _FRAME_BYTES + length
            if kind == _DATA and whole <= left and stream and not flags & _PADDED and not side.block_stream:
                payload = data[at + _FRAME_BYTES : at + whole] if length else b""
                became = self._data(side.direction, stream, payload, whole, flags & _END_STREAM > 0, time_ns)
                if row != "recorded":
                    row = became
                at += whole
                start = segment
                continue
            if not self._fits(side, kind, length, stream):
                self._lose(side, "", size - at)
                return "unparsed"
            if kind == _DATA:
                used = _FRAME_BYTES
                side.padding = 0
                if flags & _PADDED:
                    side.needed = used = _FRAME_BYTES + 1
                    if left < used and length:
                        break
                    if not length or data[at + _FRAME_BYTES] >= length:
                        self._lose(side, "", size - at)
                        return "unparsed"
                    side.padding = data[at + _FRAME_BYTES]
                side.remaining = whole - used
                side.stream = stream
                side.ends = flags & _END_STREAM > 0
                became = self._data(side.direction, stream, b"", used, side.ends and not side.remaining, time_ns)
                if row != "recorded":
                    row = became
                at += used
            elif kind in _COLLECTED:
                if whole > left:
                    side.needed = whole
                    break
                if not self._collected(side, kind, flags, stream, data, at, whole, base, start, time_ns):
                    self._lose(side, "", size - at)
                    return "unparsed"
                if kind not in (_RST_STREAM, _GOAWAY):
                    row = "recorded"
                at += whole
            else:
                self._surroundings.counters.rows["control"].bytes += _FRAME_BYTES
                side.remaining = length
                side.stream = 0
                at += _FRAME_BYTES
            if side.remaining and at < size:
                at, became = self._pass_through(side, data, at, time_ns)
                if row == "control":
                    row = became
            start = segment
        if at < size:
            side.stash += data[at:]
            side.stash_start = _without_payload(start if not at else segment, (base + at) & POSITION_MASK)
            row = "recorded" if row == "control" else row
        return row

    def _fits(self, side: _Side, kind: int, length: int, stream: int) -> bool:
        """Can this frame stand here? What RFC 9113 calls an error of the connection is no frame."""
        if side.block_stream:
            if kind != _CONTINUATION or stream != side.block_stream:
                return False
        elif kind == _CONTINUATION:
            return False
        if kind == _PRIORITY:
            return stream > 0  # section 6.3: a wrong size is an error of the stream only
        if not _is_sound(kind, length, stream):
            return False
        if kind in _COLLECTED and length > BLOCK_BYTES_MAX:
            if kind in (_HEADERS, _PUSH_PROMISE, _CONTINUATION):
                self._surroundings.counters.heads_cut += 1
            return False
        return True

    def _pass_through(self, side: _Side, data: bytes, at: int, time_ns: int) -> tuple[int, str]:
        """More of a payload that is not collected → offset behind it, row."""
        taken = min(len(data) - at, side.remaining)
        if not side.stream:
            side.remaining -= taken
            self._surroundings.counters.rows["control"].bytes += taken
            return at + taken, "control"
        of_body = max(0, min(taken, side.remaining - side.padding))
        side.remaining -= taken
        ends = side.ends and not side.remaining
        return at + taken, self._data(side.direction, side.stream, data[at : at + of_body], taken, ends, time_ns)

    def _collected(
        self,
        side: _Side,
        kind: int,
        flags: int,
        stream: int,
        data: bytes,
        at: int,
        whole: int,
        base: int,
        start: Segment,
        time_ns: int,
    ) -> bool:
        """A frame whose payload is looked at, all of it. False: it is malformed, and nobody goes on from here."""
        payload = at + _FRAME_BYTES
        end = at + whole
        if kind in (_HEADERS, _PUSH_PROMISE):
            promised = 0
            if flags & _PADDED:
                if payload >= end:
                    return False
                end -= data[payload]
                payload += 1
            if kind == _PUSH_PROMISE:
                promised = int.from_bytes(data[payload : payload + _PROMISED_BYTES], "big") & _STREAM_MASK
                payload += _PROMISED_BYTES
            elif flags & _WITH_PRIORITY:
                payload += _PRIORITY_BYTES
            if payload > end:
                return False
            ends = kind == _HEADERS and flags & _END_STREAM > 0
            position = (base + at) & POSITION_MASK
            if flags & _END_HEADERS:
                self._block(side, stream, promised, data[payload:end], whole, ends, False, start, position, time_ns)
                return True
            side.block += data[payload:end]
            side.block_stream = stream
            side.block_bytes = whole
            side.block_ends = ends
            side.promised = promised
            side.overflow = False
            side.start = _without_payload(start, position)
        elif kind == _CONTINUATION:
            side.block_bytes += whole
            side.overflow = side.overflow or len(side.block) + end - payload > BLOCK_BYTES_MAX
            if not side.overflow:
                side.block += data[payload:end]
            if flags & _END_HEADERS:
                block = bytes(side.block)
                side.block.clear()
                side.block_stream = 0
                assert side.start is not None
                self._block(
                    side,
                    stream,
                    side.promised,
                    block,
                    side.block_bytes,
                    side.block_ends,
                    side.overflow,
                    side.start,
                    side.start.position,
                    time_ns,
                )
        else:
            self._surroundings.counters.rows["control"].bytes += whole
            if kind == _RST_STREAM:
                self._reset(side.direction, stream)
            else:
                last = int.from_bytes(data[payload : payload + 4], "big") & _STREAM_MASK
                self._go_away(side.direction, last)
        return True

    # --- header blocks -----------------------------------------------------------------------------------------------

    def _block(
        self,
        side: _Side,
        sid: int,
        promised: int,
        block: bytes,
        size: int,
        ends: bool,
        overflow: bool,
        start: Segment,
        position: int,
        time_ns: int,
    ) -> None:
        """A whole header block: `size` bytes of frames, the first of them at `position` in `start`."""
        overhead = size - len(block)
        key = block if overhead == _FRAME_BYTES else (overhead, block)
        known = side.hot.get(key)
        if known is None or overflow:
            known = self._read_block(side, key, block, size, overflow)
        kind = known.kind
        direction = side.direction
        if self._client < 0:
            if promised or kind is _Kind.RESPONSE:
                self._learn(1 - direction)
            elif kind is _Kind.REQUEST:
                self._learn(direction)
            else:
                self._unparsed(size)
                return
        if promised:
            self._promise(side, promised, known, size, start, position, time_ns)
            return
        is_request = direction == self._client
        stream = self._streams.get(sid)
        if stream is not None:
            part = stream.parts[direction]
            if part is not None:
                if not _may_be_interim(part.message, kind):
                    self._more_fields(stream, sid, direction, part, known, size, ends)
                    part.message.end_ns = time_ns
                    return
                part.message.completeness = Completeness.PARTIAL
                self._hand_out(stream, direction, part, "recorded")
                if ends and kind is _Kind.ANY:  # its trailers, or the final head
                    self._unparsed(size)
                    self._end_direction(sid, stream, direction)
                    return
            if stream.ended[direction]:
                self._unparsed(size)
                return
        # A head?
        if kind is _Kind.ANY:
            begins = not ends or (not is_request and stream is not None and stream.whole[direction])
        else:
            begins = kind is (_Kind.REQUEST if is_request else _Kind.RESPONSE)
        if begins and is_request:
            begins = sid > self._highest and sid & 1 == 1
        elif begins and stream is None:
            begins = sid not in self._resets
        if not begins:
            self._row("control" if sid in self._resets else "unparsed", size)
            return
        if stream is None:
            stream = self._open(sid, time_ns)
            if not is_request:
                if self._may_come_late(sid):
                    stream.late = []
                    self._late[sid] = stream
                else:
                    stream.ended[self._client] = True
        head = known.head
        if kind is _Kind.ANY:
            head = replace(head, is_request=is_request)
        message = self._make(stream, direction, head, size, start, position)
        message.end_ns = time_ns
        if is_request:
            self._highest = sid
            stream.request = message
        facts = None
        if known.call is not None:
            request = stream.request
            facts = message.extra = grpc.begin(known.call, request.head.target if request is not None else "")
        if 100 <= head.status < 200 and not ends:
            self._row("recorded", size)
            if head.fields.unknown:
                message.completeness = Completeness.PARTIAL
            self._emit(stream, message)
        elif ends:
            self._row("recorded", size)
            if head.fields.unknown:
                message.completeness = Completeness.PARTIAL
            self._emit(stream, message)
            self._end_direction(sid, stream, direction)
        else:
            part = stream.parts[direction] = _Part(message, size)
            if facts is not None:
                part.prefixes = grpc.Prefixes(facts)
            self._young += 1
            due_ns = message.time_ns + self._surroundings.stream_interval_ns
            self._due_ns = min(self._due_ns, due_ns)
        if is_request and stream.late is not None:
            self._release(sid, stream)

    def _read_block(self, side: _Side, key: bytes | tuple[int, bytes], raw: bytes, size: int, overflow: bool) -> _Known:
        block = side.decoder.decode(raw, whole=not overflow)
        if overflow:
            block = block._replace(unknown=block.unknown + 1, was_cut=True)
        if block.was_cut:
            self._surroundings.counters.heads_cut += 1
        known = self._make_known(block, size)
        hot = side.hot
        if block.changed:
            hot.clear()
        elif len(raw) <= HOT_BLOCK_BYTES and not block.was_cut:
            if len(hot) >= HOT_BLOCKS:
                hot.clear()
            hot[key] = known
        return known

    def _make_known(self, block: Block, size: int) -> _Known:
        method = target = authority = ""
        status = 0
        kind = _Kind.ANY if block.unknown and not block.begins_known else _Kind.TRAILERS
        headers = []
        for field in block.fields:
            name, value = field
            if name[:1] == ":":
                if name == ":status":
                    kind = _Kind.RESPONSE
                    if len(value) == 3 and value.isascii() and value.isdigit():
                        status = int(value)
                    continue
                kind = _Kind.REQUEST
                if name == ":method":
                    method = value
                    continue
                if name == ":path":
                    target = value
                    continue
                if name == ":authority":
                    authority = value
            headers.append(field)
        if method == "CONNECT" and not target and not block.unknown:
            target = authority
        head = Head(
            is_request=kind is _Kind.REQUEST,
            version="HTTP/2",
            method=method,
            target=target,
            status=status,
            reason="",
            fields=self._find_fields(tuple(headers), block.unknown),
            start_line="",
            size=size,
            plain_length=-1,
        )
        return _Known(kind, block, head, grpc.read_head(headers))

    def _find_fields(self, headers: tuple[HeaderField, ...], unknown: int) -> Fields:
        key = (headers, unknown)
        fields = self._fields.get(key)
        if fields is None:
            fields = _make_fields(headers, unknown)
            if len(self._fields) >= CACHED_FIELDS:
                self._fields.clear()
            self._fields[key] = fields
        return fields

    def _more_fields(
        self, stream: _Stream, sid: int, direction: int, part: _Part, known: _Known, size: int, ends: bool
    ) -> None:
        """A header block on a message that is under way: trailers (section 8.1), which end the stream; one that does not is dropped."""
        message = part.message
        message.stream_bytes += size
        part.seen += size
        block = known.block
        unknown = block.unknown
        if ends:
            message.trailers = block.fields
            if isinstance(message.extra, Grpc) and not message.head.is_request:
                status, text = grpc.read_status(block.fields)
                message.extra.status = status if status is not None else message.extra.status
                message.extra.message = text if text is not None else message.extra.message
        else:
            unknown += len(block.fields)
        if unknown:
            fields = message.head.fields
            message.head = replace(
                message.head, fields=replace(fields, unknown=fields.unknown + unknown, rendered=None), rendered=None
            )
        if ends:
            self._finish(sid, stream, direction, part)

    # --- messages ----------------------------------------------------------------------------------------------------

    def _open(self, sid: int, now_ns: int) -> _Stream:
        streams = self._streams
        if len(streams) >= STREAMS_MAX:
            oldest = next(iter(streams))
            self._drop(oldest, streams[oldest])
        self.count += 1
        stream = streams[sid] = _Stream(self.count, now_ns)
        return stream

    def _make(self, stream: _Stream, direction: int, head: Head, size: int, start: Segment, position: int) -> Message:
        return Message(
            self._link,
            Direction.RECV if direction else Direction.SEND,
            head,
            self._surroundings.processes.get(start.pid),
            start.pid,
            start.tid,
            start.time_ns,
            start.time_ns,
            stream.number,
            position,
            size,
            b"",
            0,
            None if head.is_request else stream.request,
        )

    def _promise(
        self, side: _Side, sid: int, known: _Known, size: int, start: Segment, position: int, time_ns: int
    ) -> None:
        """Section 8.4: the server says what the client would have asked; the answer comes in the same direction."""
        expected = known.kind in (_Kind.REQUEST, _Kind.ANY) and side.direction != self._client
        if not expected or sid & 1 or sid in self._streams:
            self._unparsed(size)
            return
        stream = self._open(sid, time_ns)
        head = known.head if known.head.is_request else replace(known.head, is_request=True)
        message = self._make(stream, side.direction, head, size, start, position)
        message.end_ns = time_ns
        if head.fields.unknown:
            message.completeness = Completeness.PARTIAL
        stream.request = message
        stream.ended[self._client] = True
        self._row("recorded", size)
        self._surroundings.out.append(message)

    def _data(self, direction: int, sid: int, body: bytes, size: int, ends: bool, time_ns: int) -> str:
        """DATA, or a part of it: `size` bytes of frame, of which `body` is content. Returns the row."""
        stream = self._streams.get(sid)
        part = stream.parts[direction] if stream is not None else None
        if stream is None or part is None:
            row = "control" if sid in self._resets else "unparsed"
            self._row(row, size)
            return row
        message = part.message
        message.stream_bytes += size
        message.end_ns = time_ns
        part.seen += size
        if body:
            message.body_bytes += len(body)
            if part.keeping:
                kept = part.kept
                room = self._surroundings.body_limit - len(kept)
                if len(body) <= room:
                    kept += body
                else:
                    kept += body[:room]
                    part.keeping = False
            if part.prefixes is not None:
                part.prefixes.feed(body)
        if ends:
            self._finish(sid, stream, direction, part)
        return "recorded"

    def _finish(self, sid: int, stream: _Stream, direction: int, part: _Part) -> None:
        """The message is over."""
        self._complete(stream, direction, part)
        self._end_direction(sid, stream, direction)

    def _complete(self, stream: _Stream, direction: int, part: _Part) -> None:
        message = part.message
        if message.missing_bytes:
            message.completeness = Completeness.GAP
        elif message.head.fields.unknown:
            message.completeness = Completeness.PARTIAL
        elif not part.keeping:
            message.completeness = Completeness.TRUNCATED
        lost_some = message.missing_bytes and message.missing_reason not in SENT_FROM_FILES
        self._hand_out(stream, direction, part, "gap" if lost_some else "recorded")

    def _cut(self, stream: _Stream, direction: int) -> None:
        """The message in this direction, if there is one, ends here, though its end was not said. If it has all that its
        head promised, it is whole: curl resets streams that it has read to their length.
        """
        part = stream.parts[direction]
        stream.ended[direction] = True
        if part is None:
            return
        message = part.message
        if message.body_bytes and message.body_bytes == message.head.fields.content_length:
            self._complete(stream, direction, part)
        else:
            message.completeness = Completeness.GAP if message.missing_bytes else Completeness.PARTIAL
            self._hand_out(stream, direction, part, "gap" if message.missing_bytes else "partial")

    def _hand_out(self, stream: _Stream, direction: int, part: _Part, row: str) -> None:
        stream.parts[direction] = None
        if not part.interim:
            self._young -= 1
        part.message.body = bytes(part.kept)
        self._row(row, part.seen)
        self._emit(stream, part.message)

    def _emit(self, stream: _Stream, message: Message) -> None:
        if not message.head.is_request and stream.request is None:
            if stream.late is not None and len(stream.late) < LATE_MESSAGES_MAX:
                stream.late.append(message)
                return
            self._surroundings.counters.unpaired += 1
        self._surroundings.out.append(message)

    def _end_direction(self, sid: int, stream: _Stream, direction: int) -> None:
        stream.ended[direction] = True
        if stream.ended[1 - direction]:
            del self._streams[sid]

    def _drop(self, sid: int, stream: _Stream) -> None:
        """Nothing more of this stream is waited for."""
        for direction in (wire.SEND, wire.RECV):
            self._cut(stream, direction)
        if stream.late is not None:
            self._release(sid, stream)
        self._streams.pop(sid, None)

    # --- responses that wait for their request -----------------------------------------------------------------------

    def _may_come_late(self, sid: int) -> bool:
        """A response came first: may its request be on its way to us? What is received has been sent before, whoever
        looks; and of a client's requests, only those that come after the latest that we saw.
        """
        if self._client != wire.SEND and not self._link.passive:
            return False
        return sid > self._highest and sid & 1 == 1 and (self._fresh or self._highest > 0)

    def _release(self, sid: int, stream: _Stream) -> None:
        """The request is here, or is not waited for any longer."""
        late = stream.late or []
        stream.late = None
        self._late.pop(sid, None)
        for part in stream.parts:
            if part is not None and not part.message.head.is_request:
                part.message.request = stream.request
                self._name(part.message, stream)
        for message in late:
            message.request = stream.request
            self._name(message, stream)
            self._emit(stream, message)
        if stream.request is None:
            stream.ended[self._client] = True
            if all(stream.ended):
                self._streams.pop(sid, None)

    @staticmethod
    def _name(message: Message, stream: _Stream) -> None:
        """A gRPC response gets its name from the request."""
        if isinstance(message.extra, Grpc) and stream.request is not None:
            message.extra.service, message.extra.method = grpc.split_path(stream.request.head.target)

    # --- ends --------------------------------------------------------------------------------------------------------

    def _reset(self, direction: int, sid: int) -> None:
        """Section 6.4: both directions of the stream end."""
        if len(self._resets) >= RESETS_MAX:
            del self._resets[next(iter(self._resets))]
        self._resets[sid] = None
        stream = self._streams.get(sid)
        if stream is None:
            return
        if stream.late is not None and direction != self._client:
            self._cut(stream, direction)  # the request is still to come
            return
        self._drop(sid, stream)

    def _go_away(self, direction: int, last: int) -> None:
        """Section 6.8: of the streams that the other side opened, those after `last` will not be served."""
        if self._client < 0:
            return
        odd = 1 if direction != self._client else 0
        for sid in [sid for sid in self._streams if sid > last and sid & 1 == odd]:
            self._drop(sid, self._streams[sid])

    def end(self, direction: int, time_ns: int, *, finished: bool) -> None:  # noqa: ARG002 - the end of a connection ends no message of HTTP/2
        side = self._sides[direction]
        self._forget_frame(side)
        for sid, stream in list(self._streams.items()):
            self._cut(stream, direction)
            if stream.late is not None and direction == self._client:
                self._release(sid, stream)
            if all(stream.ended):
                self._streams.pop(sid, None)

    # --- what was not seen -------------------------------------------------------------------------------------------

    def missing(self, direction: int, length: int, reason: str, time_ns: int, start: bytes = b"") -> None:
        side = self._sides[direction]
        if side.framed and length <= side.remaining:
            in_body = min(length, max(0, side.remaining - side.padding))
            side.remaining -= length
            if side.stream:
                self._miss_body(side, length, start[:in_body], in_body, reason, time_ns)
            return
        self._lose(side, reason, 0)

    def _miss_body(self, side: _Side, length: int, start: bytes, in_body: int, reason: str, time_ns: int) -> None:
        """`length` bytes of a DATA frame, of which `in_body` are content, and `start` is its start."""
        direction = side.direction
        stream = self._streams.get(side.stream)
        part = stream.parts[direction] if stream is not None else None
        if stream is None or part is None:
            return
        message = part.message
        message.stream_bytes += length
        message.body_bytes += in_body
        message.end_ns = time_ns
        if in_body:
            if part.keeping:
                room = self._surroundings.body_limit - len(part.kept)
                part.kept += start[:room]
                part.keeping = len(start) == in_body <= room
            counted = True
            if part.prefixes is not None and not part.prefixes.skip(in_body):
                part.prefixes = None
                counted = False
            if reason != BUDGET or not counted:
                note_missing(message, in_body, reason)
        if side.ends and not side.remaining:
            self._finish(side.stream, stream, direction, part)

    def _forget_frame(self, side: _Side) -> None:
        """Give up what is in hand of a frame, and that frames are in step."""
        self._unparsed(len(side.stash) + (side.block_bytes if side.block_stream else 0))
        self._give_up(side, len(side.doubtful))
        side.stash.clear()
        side.stash_start = None
        side.block.clear()
        side.block_stream = 0
        side.remaining = 0
        side.framed = False
        side.touched = True
        side.decoder.forget()
        side.hot.clear()

    def _lose(self, side: _Side, reason: str, left: int) -> None:
        """Bytes were missed (`reason` says why) or are no frame: nothing is known of this direction from here on until a
        chain of frames begins with a segment. `left` bytes of the segment at hand are nothing.
        """
        direction = side.direction
        if reason and side.remaining and side.stream:
            stream = self._streams.get(side.stream)
            part = stream.parts[direction] if stream is not None else None
            in_body = side.remaining - side.padding
            if part is not None and in_body > 0:
                note_missing(part.message, in_body, reason)
        self._forget_frame(side)
        self._unparsed(left)
        for sid, stream in list(self._streams.items()):
            stream.whole[direction] = False
            part = stream.parts[direction]
            if part is None:
                continue
            self._cut(stream, direction)
            if all(stream.ended):
                self._streams.pop(sid, None)

    @property
    def is_lost(self) -> bool:
        return self._strange >= STRANGE_SEGMENTS_MAX

    # --- time --------------------------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> None:
        for sid, waiting in list(self._late.items()):
            if now_ns - waiting.since_ns > LATE_NS:
                self._release(sid, waiting)
        interval = self._surroundings.stream_interval_ns
        if not interval or now_ns <= self._due_ns:
            return
        self._due_ns = _NEVER
        for stream in self._streams.values():
            for part in stream.parts:
                if part is None or part.interim:
                    continue
                message = part.message
                if now_ns - message.time_ns <= interval:
                    self._due_ns = min(self._due_ns, message.time_ns + interval)
                    continue
                part.interim = True
                self._young -= 1
                extra = replace(message.extra) if message.extra is not None else None
                self._surroundings.out.append(
                    replace(message, completeness=Completeness.OPEN, body=bytes(part.kept), extra=extra)
                )

    @property
    def waits(self) -> bool:
        return (self._young > 0 and self._surroundings.stream_interval_ns > 0) or bool(self._late)

    # --- the ledger --------------------------------------------------------------------------------------------------

    def _row(self, row: str, size: int) -> None:
        self._surroundings.counters.rows[row].bytes += size

    def _unparsed(self, size: int) -> None:
        self._surroundings.counters.rows["unparsed"].bytes += size


def _may_be_interim(message: Message, kind: _Kind) -> bool:
    """A response is under way, and another block of this kind comes. Where the status is not known, and no content came, it
    may have been an interim one.
    """
    if message.head.is_request or message.head.status or message.body_bytes:
        return False
    return kind in (_Kind.RESPONSE, _Kind.ANY)


def _without_payload(segment: Segment, position: int) -> Segment:
    """When and by whom, and where: what is remembered of the first byte of something."""
    return Segment(position, 0, b"", 0, segment.time_ns, segment.pid, segment.tid)


def _make_fields(headers: tuple[HeaderField, ...], unknown: int) -> Fields:
    lengths = [value for name, value in headers if name == "content-length"]
    codings = list_items(value for name, value in headers if name == "content-encoding")
    return Fields(
        headers=headers,
        content_length=content_length(lengths),
        unframed=False,
        chunked=False,
        content_encoding=tuple(coding for coding in codings if coding and coding != "identity"),
        upgrade=False,
        raw="",
        unknown=unknown,
    )
