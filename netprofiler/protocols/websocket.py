"""WebSocket (RFC 6455) behind its upgrade, with permessage-deflate (RFC 7692), as a passive observer of both directions.

Contract: that of `base.Conversation`. One `Message` a WebSocket message, its fragments joined; a ping, pong or close frame
is one too, also between fragments. All have the number of the upgrade exchange and the same head, which says nothing but
`websocket`; what there is to know is in `Message.extra`. `body_bytes` is payload as it was on the stream (still compressed,
without frame headers), `stream_bytes` has the headers too; `body` is unmasked and inflated.

Frame headers, and which may follow which, are checked as an endpoint would: behind anything else the framing of that
direction is lost, as it is when joined late or when bytes are missing at a frame's header. It is found again where frames
fill segments exactly (`_search`); until then bytes are `unparsed`. A message that is not certain is not there.

Held for each direction: at most `body_limit` bytes of a message, 125 of a control frame, a header of 14, HELD_BYTES_MAX
while the framing is searched for, and zlib's window of 32 KiB.

wsproto has the constants and the masking. Its decoder ends at the first error and inflates without bound: framing and
inflation are our own.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate, product
from typing import Final

from wsproto.frame_protocol import (
    FIN_MASK,
    MASK_MASK,
    MAX_PAYLOAD_NORMAL,
    MAX_PAYLOAD_TWO_BYTE,
    OPCODE_MASK,
    PAYLOAD_LEN_MASK,
    PAYLOAD_LENGTH_TWO_BYTE,
    RSV1_MASK,
    RSV2_MASK,
    RSV3_MASK,
    Opcode,
    XorMaskerSimple,
)

from netprofiler.exchange import Completeness, Fields, Head, Link, Message, WebSocket
from netprofiler.protocols.base import BUDGET, SENT_FROM_FILES, Surroundings, note_missing
from netprofiler.streams import POSITION_MASK, Segment

HEADER_MAX_BYTES: Final = 14
"""Two bytes, a length of eight, a masking key of four."""

INFLATED_MAX_BYTES: Final = 16 * 1024 * 1024
"""What is inflated of one message, kept or not: with context takeover all of it has to be, for the window of the next.
A direction that has more in one message is not inflated any more. Deflate makes 1,032 bytes of one at most: 16 KiB on the
stream can be so much, for 30 ms."""
FINAL_BLOCKS_MAX: Final = 64
"""Final blocks in one message (RFC 7692, section 7.2.3.4, has one): each takes a new inflater, for two bytes on the stream."""
_INFLATE_IN: Final = 16 * 1024
_INFLATE_OUT: Final = 64 * 1024
"""Bytes into and out of zlib at once."""
_WINDOW_BITS: Final = -15
"""Without zlib's header; the largest window inflates what was made for any smaller one."""
_TAIL: Final = b"\x00\x00\xff\xff"
"""RFC 7692, section 7.2.2: what the sender has cut off each message."""

HELD_BYTES_MAX: Final = 64 * 1024
HELD_SEGMENTS_MAX: Final = 64
"""While the framing is searched for: what may turn out to be frames. Longer ones are not found."""
_TELLING_BYTES: Final = 8
"""Text of this length is text: random bytes are UTF-8 so far once in 200 times, where a frame fits once in 1,000."""
CHAIN_FRAMES_MAX: Final = 64
"""So many frames in a row are frames, wherever the last one ends."""

STRANGE_SEGMENTS_MAX: Final = 64
"""Running, before the first that could be read: it is no WebSocket."""
LOST_SEGMENTS_MAX: Final = 4096
"""The same, on a connection of which something was read: the rest of one long message may take that many."""

_SHORT_PAYLOAD_BYTES: Final = 1024
"""Up to here one number is faster unmasked than four slices are: 0.5 µs and 1.7 µs for 50 bytes."""

_MORE: Final = 0
_NO_FRAME: Final = -1
_CONTROL: Final = 0x08
"""The bit that opcodes of control frames have."""
_NAMES: Final[dict[int, str]] = {
    Opcode.TEXT: "text",
    Opcode.BINARY: "binary",
    Opcode.CLOSE: "close",
    Opcode.PING: "ping",
    Opcode.PONG: "pong",
}
_RESERVED: Final = RSV1_MASK | RSV2_MASK | RSV3_MASK


def unmask(payload: bytes, key: bytes, offset: int = 0) -> bytes:
    """`payload`, which is `offset` bytes behind the beginning of its frame's, with the masking key of four bytes
    (RFC 6455, section 5.3). An empty key: it is not masked.
    """
    if not key:
        return payload
    turn = offset & 3
    if turn:
        key = key[turn:] + key[:turn]
    size = len(payload)
    if size > _SHORT_PAYLOAD_BYTES:
        return bytes(XorMaskerSimple(key).process(bytearray(payload)))
    mask = int.from_bytes((key * ((size + 3) // 4))[:size], "little")
    return (int.from_bytes(payload, "little") ^ mask).to_bytes(size, "little")


def frame_header(data: bytes, at: int, masked: bool, firsts: frozenset[int]) -> tuple[int, int]:
    """The frame header at `data[at:]` (RFC 6455, section 5.2) → its size, with the masking key, and its payload's.
    Size 0: more bytes are needed; -1: it is none. `firsts`: the first bytes that may be.
    """
    left = len(data) - at
    if not left:
        return _MORE, 0
    first = data[at]
    if first not in firsts:
        return _NO_FRAME, 0
    if left < 2:
        return _MORE, 0
    second = data[at + 1]
    if (second >= MASK_MASK) is not masked:
        return _NO_FRAME, 0
    size = 2
    length = second & PAYLOAD_LEN_MASK
    if length > MAX_PAYLOAD_NORMAL:
        if first & _CONTROL:
            return _NO_FRAME, 0
        two = length == PAYLOAD_LENGTH_TWO_BYTE
        size = 4 if two else 10
        if left < size:
            return _MORE, 0
        length = int.from_bytes(data[at + 2 : at + size], "big")
        # The shortest way to say it is the only one, and the highest bit is 0.
        if length <= (MAX_PAYLOAD_NORMAL if two else MAX_PAYLOAD_TWO_BYTE) or length >> 63:
            return _NO_FRAME, 0
    if masked:
        size += 4
        if left < size:
            return _MORE, 0
    return size, length


class _Extensions:
    """What the response has agreed to (RFC 6455, section 9.1; RFC 7692, section 7.1)."""

    __slots__ = ("client_takes_over", "deflate", "firsts", "server_takes_over")

    def __init__(self, response: Head | None) -> None:
        self.client_takes_over = self.server_takes_over = True
        others = False
        if response is None or response.fields.unknown:
            # Inflating with context takeover is right without it too.
            self.deflate = True
        else:
            self.deflate = False
            for name, parameters in _agreed(response.fields):
                if name == "permessage-deflate":
                    self.deflate = True
                    self.client_takes_over = "client_no_context_takeover" not in parameters
                    self.server_takes_over = "server_no_context_takeover" not in parameters
                else:
                    others = True
        opcodes = [FIN_MASK | opcode for opcode in Opcode] + [o for o in Opcode if not o.iscontrol()]
        if others:
            # Reserved bits mean what we do not know, to permessage-deflate's data too.
            self.deflate = False
            reserved = [sum(bits) for bits in product((0, RSV1_MASK), (0, RSV2_MASK), (0, RSV3_MASK))]
            self.firsts = frozenset(opcode | bits for opcode in opcodes for bits in reserved)
        elif self.deflate:
            compressed = [o | RSV1_MASK for o in opcodes if o & OPCODE_MASK in (Opcode.TEXT, Opcode.BINARY)]
            self.firsts = frozenset(opcodes + compressed)
        else:
            self.firsts = frozenset(opcodes)
        """The first bytes that a frame may have."""


def _agreed(fields: Fields) -> Iterator[tuple[str, list[str]]]:
    """Names of extensions, and of the parameters of each, in lower case."""
    for name, value in fields.headers:
        if name.lower() == "sec-websocket-extensions":
            for extension in value.lower().split(","):
                first, *parameters = extension.split(";")
                if first.strip():
                    yield first.strip(), [parameter.partition("=")[0].strip() for parameter in parameters]


class _Inflater:
    """The compressed messages of one direction, in their order.

    Never a wrong byte: it begins at the beginning of a message with an empty window, and zlib refuses what refers to
    bytes that it has not seen. Then, and where the sender's data is wrong, it begins anew with the next message.
    """

    __slots__ = ("_final_blocks", "_stream", "given_up", "produced", "readable", "takes_over")

    def __init__(self, takes_over: bool) -> None:
        self.takes_over = takes_over
        self.given_up = False
        self.readable = False
        """What comes of this message can still be inflated."""
        self.produced = 0
        """Bytes that came out of this message so far."""
        self._stream: zlib._Decompress | None = None
        self._final_blocks = 0

    def begin(self) -> None:
        """A message begins."""
        self.readable = not self.given_up
        self.produced = self._final_blocks = 0
        if not self.takes_over:
            self.forget()

    def cut(self, limit: int) -> bool:
        """Is there more in the message than its first `limit` bytes that were kept?"""
        return not self.readable or self.produced > limit

    def forget(self) -> None:
        """What comes next is not known to follow what was seen."""
        self._stream = None

    def inflate(self, data: bytes, kept: bytearray, limit: int) -> None:
        """`kept` grows to at most `limit` bytes of the message; it is emptied when the message cannot be known."""
        try:
            for at in range(0, len(data), _INFLATE_IN):
                piece = data[at : at + _INFLATE_IN]
                more = self.readable
                while more:
                    stream = self._stream
                    if stream is None:
                        stream = self._stream = zlib.decompressobj(_WINDOW_BITS)
                    out = stream.decompress(piece, _INFLATE_OUT)
                    self.produced += len(out)
                    if len(kept) < limit:
                        kept += out[: limit - len(kept)]
                    if stream.eof:
                        self._final_blocks += 1
                        self.forget()
                        piece = stream.unused_data
                        more = bool(piece)
                    else:
                        piece = stream.unconsumed_tail
                        more = bool(piece) or len(out) == _INFLATE_OUT
                    if self.produced > INFLATED_MAX_BYTES or self._final_blocks > FINAL_BLOCKS_MAX:
                        self.given_up = self.takes_over
                        self.readable = more = False
                        self.forget()
                    elif not self.takes_over and self.produced > limit:
                        self.readable = more = False
        except zlib.error:
            self.readable = False
            self.forget()
            kept.clear()


class _UnderWay:
    """A message that is not over."""

    __slots__ = ("compressed", "interim", "keeping", "kept", "message", "seen")

    def __init__(self, message: Message, compressed: bool, keeping: bool) -> None:
        self.message = message
        self.compressed = compressed
        self.keeping = keeping
        """What comes of it is still the body's."""
        self.kept = bytearray()
        self.seen = 0
        """Bytes of it that came, frame headers among them: for the ledger."""
        self.interim = False


class _Side:
    """One direction."""

    __slots__ = (
        "control",
        "data",
        "direction",
        "final",
        "held",
        "held_bytes",
        "inflater",
        "joined",
        "key",
        "lost",
        "masked",
        "offset",
        "remaining",
        "stash",
        "stash_start",
        "target",
    )

    def __init__(self, direction: int, masked: bool, takes_over: bool, fresh: bool) -> None:
        self.direction = direction
        self.masked = masked
        self.inflater = _Inflater(takes_over)
        self.lost = not fresh
        self.joined = not fresh
        """A continuation may be that of a message whose beginning was not seen."""
        self.held: list[Segment] = []
        """Lost: what may be the beginning of frames."""
        self.held_bytes = 0
        self.stash = b""
        """The beginning of a frame header."""
        self.stash_start: Segment | None = None
        self.data: _UnderWay | None = None
        self.control: _UnderWay | None = None
        # The frame at hand.
        self.target: _UnderWay | None = None
        """Whose it is; None: of a message whose beginning was not seen."""
        self.remaining = 0
        self.offset = 0
        self.key = b""
        self.final = False


class WebSocketConversation:
    """See above. `request_direction` is the one of the client, whose frames are masked."""

    def __init__(
        self,
        surroundings: Surroundings,
        link: Link,
        *,
        request_direction: int,
        number: int,
        response: Head | None,
        fresh: bool = True,
    ) -> None:
        self._surroundings = surroundings
        self._link = link
        self._number = number
        self._head = Head(
            is_request=False,
            version="websocket",
            method="",
            target="",
            status=0,
            reason="",
            fields=Fields((), None, unframed=False, chunked=False, content_encoding=(), upgrade=False, raw=""),
            start_line="",
            size=0,
            plain_length=-1,
        )
        extensions = _Extensions(response)
        self._firsts = extensions.firsts
        self._deflate = extensions.deflate
        self._sides = [
            _Side(
                direction,
                direction == request_direction,
                extensions.client_takes_over if direction == request_direction else extensions.server_takes_over,
                fresh,
            )
            for direction in (0, 1)
        ]
        self._unread_running = 0
        self._read_some = False

    # --- bytes in ----------------------------------------------------------------------------------------------------

    def feed(self, direction: int, segment: Segment) -> str:
        side = self._sides[direction]
        read = self._search(side, segment) if side.lost else self._frames(side, segment)
        if read:
            self._unread_running = 0
            self._read_some = True
            return "recorded"
        self._unread_running += 1
        return "unparsed"

    def _frames(self, side: _Side, segment: Segment) -> bool:
        """In order. Was any of it a frame's?"""
        data = segment.payload
        size = len(data)
        at = 0
        masked = side.masked
        while at < size:
            if side.remaining:
                taken = min(size - at, side.remaining)
                self._payload(side, data[at : at + taken], segment.time_ns)
                at += taken
                if not side.remaining:
                    self._end_frame(side)
                continue
            start, block, before, base = segment, data, 0, at
            if side.stash:
                before, base = len(side.stash), 0
                block = side.stash + data[at : at + HEADER_MAX_BYTES - before]
                start = side.stash_start or segment
            header, length = frame_header(block, base, masked, self._firsts)
            if header == _MORE:
                if not before:
                    side.stash_start = segment.without_start(at)
                side.stash = block[base:]
                return True
            if header == _NO_FRAME or not self._may_follow(side, block[base]):
                self._lose(side, size - at, Completeness.PARTIAL, "partial")
                return at > 0
            first = block[base]
            key = block[base + header - 4 : base + header] if masked else b""
            side.stash = b""
            side.stash_start = None
            at += header - before
            position = (start.position + (0 if before else at - header)) & POSITION_MASK
            if first >= FIN_MASK and first & OPCODE_MASK and at + length <= size:
                self._whole(side, first, key, data, at, length, header, start, position, segment.time_ns)
                at += length
            else:
                self._begin_frame(side, first, key, length, header, start, position)
                if not length:
                    self._end_frame(side)
        return True

    @staticmethod
    def _may_follow(side: _Side, first: int) -> bool:
        """RFC 6455, section 5.4: fragments of one message only, but for control frames between them."""
        opcode = first & OPCODE_MASK
        if opcode & _CONTROL:
            return True
        if opcode:
            return side.data is None
        return side.data is not None or side.joined

    def _whole(
        self,
        side: _Side,
        first: int,
        key: bytes,
        data: bytes,
        at: int,
        length: int,
        header: int,
        start: Segment,
        position: int,
        time_ns: int,
    ) -> None:
        """A message of one frame, whose payload is `data[at : at + length]`: the usual case."""
        opcode = first & OPCODE_MASK
        surroundings = self._surroundings
        limit = surroundings.body_limit
        compressed, cut = False, length > limit
        if not opcode & _CONTROL:
            side.joined = False
        if first & _RESERVED:
            compressed = self._deflate
            body, cut = b"", True
            if compressed:
                kept = bytearray()
                inflater = side.inflater
                inflater.begin()
                inflater.inflate(unmask(data[at : at + length], key) + _TAIL, kept, limit)
                body = bytes(kept)
                cut = inflater.cut(limit)
            extra = WebSocket(_NAMES[opcode], inflated=compressed)
        elif opcode == Opcode.CLOSE:
            body = unmask(data[at : at + length], key)
            extra = _closing(body, whole=True)
            body = body[:limit]
        else:
            body = unmask(data[at : at + min(length, limit)], key)
            extra = WebSocket(_NAMES[opcode])
        surroundings.counters.recorded.bytes += header + length
        message = self._make(side, start, position, extra)
        message.end_ns = time_ns
        message.stream_bytes = header + length
        message.body = body
        message.body_bytes = length
        if cut:
            message.completeness = Completeness.TRUNCATED
        surroundings.out.append(message)

    def _make(self, side: _Side, start: Segment, position: int, extra: WebSocket) -> Message:
        """A message that begins with a frame at `position`, in `start`; nothing of it is counted yet."""
        return Message(
            self._link,
            side.direction,
            self._head,
            self._surroundings.processes.get(start.pid),
            start.pid,
            start.tid,
            start.time_ns,
            start.time_ns,
            self._number,
            position,
            0,
            b"",
            0,
            extra=extra,
        )

    def _begin_frame(
        self, side: _Side, first: int, key: bytes, length: int, header: int, start: Segment, position: int
    ) -> None:
        side.key = key
        side.offset = 0
        side.remaining = length
        side.final = first >= FIN_MASK
        opcode = first & OPCODE_MASK
        if not opcode:
            side.target = side.data
        else:
            compressed = self._deflate and bool(first & _RESERVED)
            message = self._make(side, start, position, WebSocket(_NAMES[opcode], inflated=compressed))
            side.target = _UnderWay(message, compressed, keeping=compressed or not first & _RESERVED)
            if opcode & _CONTROL:
                side.control = side.target
            else:
                side.data = side.target
                side.joined = False
                if compressed:
                    side.inflater.begin()
        if side.target is None:
            self._surroundings.counters.rows["unparsed"].bytes += header
        else:
            side.target.message.stream_bytes += header
            side.target.seen += header

    def _payload(self, side: _Side, piece: bytes, time_ns: int) -> None:
        """The next bytes of the frame at hand."""
        size = len(piece)
        target = side.target
        if target is None:
            self._surroundings.counters.rows["unparsed"].bytes += size
        else:
            message = target.message
            message.stream_bytes += size
            message.body_bytes += size
            message.end_ns = time_ns
            target.seen += size
            limit = self._surroundings.body_limit
            if not target.keeping:
                pass
            elif target.compressed:
                if side.inflater.readable:
                    side.inflater.inflate(unmask(piece, side.key, side.offset), target.kept, limit)
            else:
                # Of a close frame the code and reason are read, whatever is kept.
                room = (MAX_PAYLOAD_NORMAL if target is side.control else limit) - len(target.kept)
                if room > 0:
                    target.kept += unmask(piece[:room], side.key, side.offset)
        side.offset += size
        side.remaining -= size

    def _end_frame(self, side: _Side) -> None:
        target = side.target
        side.target = None
        if target is None:
            side.joined = side.joined and not side.final
        elif side.final:
            if target.compressed and target.keeping:
                side.inflater.inflate(_TAIL, target.kept, self._surroundings.body_limit)
            self._emit(side, target, Completeness.COMPLETE, "recorded")

    # --- messages out ------------------------------------------------------------------------------------------------

    def _emit(self, side: _Side, under_way: _UnderWay, completeness: Completeness, row: str) -> None:
        """It is over, or nothing more of it will be known."""
        if under_way is side.control:
            side.control = None
        else:
            side.data = None
        message = under_way.message
        limit = self._surroundings.body_limit
        message.body = bytes(under_way.kept[:limit])
        if isinstance(message.extra, WebSocket) and message.extra.opcode == "close":
            whole = completeness is Completeness.COMPLETE and under_way.keeping
            message.extra = _closing(bytes(under_way.kept), whole=whole)
        if message.missing_bytes:
            completeness = Completeness.GAP
            if row == "recorded" and message.missing_reason not in SENT_FROM_FILES:
                row = "gap"
        elif completeness is Completeness.COMPLETE:
            cut = side.inflater.cut(limit) if under_way.compressed else message.body_bytes > limit
            if cut or not under_way.keeping:
                completeness = Completeness.TRUNCATED
        message.completeness = completeness
        self._surroundings.counters.rows[row].bytes += under_way.seen
        self._surroundings.out.append(message)

    # --- what was not seen -------------------------------------------------------------------------------------------

    def missing(self, direction: int, length: int, reason: str, time_ns: int, start: bytes = b"") -> None:  # noqa: ARG002 - nobody sends frames of WebSocket from a file
        side = self._sides[direction]
        if side.lost:
            self._drop_held(side)
            return
        target = side.target
        across = length <= side.remaining
        if side.remaining and target is not None and (across or side.final):
            # It is known how much of this frame is missing.
            amount = min(length, side.remaining)
            target.message.stream_bytes += amount
            target.message.body_bytes += amount
            target.message.end_ns = time_ns
            self._miss(side, target, 0 if reason == BUDGET else amount, reason)
        if across:
            side.remaining -= length
            if not side.remaining:
                self._end_frame(side)
            return
        if side.remaining and target is not None and side.final:
            side.remaining = 0
            self._end_frame(side)
        if side.data is not None:
            # How much of it belonged to this message nobody knows: its sizes stay at what was seen.
            self._miss(side, side.data, length, reason)
        self._lose(side, 0, Completeness.GAP, "gap")

    @staticmethod
    def _miss(side: _Side, under_way: _UnderWay, length: int, reason: str) -> None:
        if length:
            note_missing(under_way.message, length, reason)
        under_way.keeping = False
        if under_way.compressed:
            side.inflater.forget()

    def _lose(self, side: _Side, unread: int, completeness: Completeness, row: str) -> None:
        """Where the next frame begins is not known; `unread` bytes of the segment at hand are nothing's."""
        self._surroundings.counters.rows["unparsed"].bytes += len(side.stash) + unread
        side.stash = b""
        side.stash_start = None
        for under_way in (side.control, side.data):
            if under_way is not None:
                self._emit(side, under_way, completeness, row)
        side.target = None
        side.remaining = 0
        side.inflater.forget()
        side.lost = side.joined = True

    def _search(self, side: _Side, segment: Segment) -> bool:
        """Framing is lost: is it found with this segment? Frames begin where a segment begins, and end where one ends."""
        side.held.append(segment)
        side.held_bytes += segment.length
        while side.held:
            ends = frozenset(accumulate(held.length for held in side.held))
            verdict, doubtful = self._chain(side.masked, b"".join(held.payload for held in side.held), ends)
            if verdict > _MORE:
                held, side.held, side.held_bytes = side.held, [], 0
                side.lost = False
                self._surroundings.counters.rows["unparsed"].bytes += doubtful
                for each in held:
                    if doubtful >= each.length:
                        doubtful -= each.length
                        continue
                    each = each.without_start(doubtful) if doubtful else each
                    doubtful = 0
                    if side.lost:
                        self._search(side, each)
                    else:
                        self._frames(side, each)
                return True
            full = side.held_bytes > HELD_BYTES_MAX or len(side.held) > HELD_SEGMENTS_MAX
            if verdict == _MORE and not full:
                break
            first = side.held.pop(0)
            side.held_bytes -= first.length
            self._surroundings.counters.rows["unparsed"].bytes += first.length
        return False

    def _chain(self, masked: bool, data: bytes, ends: frozenset[int]) -> tuple[int, int]:
        """Is this frames, to its end? > 0: yes; 0: more bytes are needed to tell; -1: no. And how much of its beginning may
        be none all the same: what looks like a frame in the middle of another one may end where that one ends, if it ends
        inside of a segment. `ends`: of the segments.

        One frame alone is believed only as text that is UTF-8, and an empty one not at all: two bytes are right by chance
        too often.
        """
        at = frames = walked = 0
        doubtful = -1
        fragments: bool | None = None
        """Is a fragmented message under way; None: not known, behind control frames."""
        sure = False
        while at < len(data):
            header, length = frame_header(data, at, masked, self._firsts)
            if header <= _MORE:
                return header, 0
            first = data[at]
            opcode = first & OPCODE_MASK
            if not opcode & _CONTROL:
                begins = opcode != Opcode.CONTINUATION
                # What begins with a continuation is no message that we could show, and zeros look like many of them.
                if fragments is begins or not (begins or at) or not (length or first >= FIN_MASK):
                    return _NO_FRAME, 0
                fragments = first < FIN_MASK
            end = at + header + length
            if end > len(data):
                return _MORE, 0
            if length and first in (FIN_MASK | Opcode.TEXT, FIN_MASK | Opcode.CLOSE):
                key = data[at + header - 4 : at + header] if masked else b""
                payload = unmask(data[at + header : end], key)
                closing = opcode == Opcode.CLOSE
                if _text(payload[2:] if closing else payload) is None or (closing and not _may_close(payload)):
                    return _NO_FRAME, 0
                sure = sure or not closing
                if not at and not closing and length >= _TELLING_BYTES:
                    doubtful = 0
            at = end
            if doubtful < 0 and not fragments:
                doubtful = 0 if at in ends else at
            frames += length > 0
            walked += 1
            if walked > CHAIN_FRAMES_MAX:
                break
        return (1 if sure or frames > 1 else _MORE), (at if doubtful < 0 else doubtful)

    def _drop_held(self, side: _Side) -> None:
        self._surroundings.counters.rows["unparsed"].bytes += side.held_bytes
        side.held.clear()
        side.held_bytes = 0

    # --- time and ends -----------------------------------------------------------------------------------------------

    def end(self, direction: int, time_ns: int, *, finished: bool) -> None:  # noqa: ARG002 - no frame lasts until the end
        side = self._sides[direction]
        self._drop_held(side)
        self._lose(side, 0, Completeness.PARTIAL, "partial")

    def tick(self, now_ns: int) -> None:
        interval = self._surroundings.stream_interval_ns
        for under_way in self._not_shown():
            message = under_way.message
            if interval and now_ns - message.time_ns > interval:
                under_way.interim = True
                body = bytes(under_way.kept[: self._surroundings.body_limit])
                self._surroundings.out.append(replace(message, completeness=Completeness.OPEN, body=body))

    def _not_shown(self) -> list[_UnderWay]:
        both = (each for side in self._sides for each in (side.data, side.control))
        return [each for each in both if each is not None and not each.interim]

    @property
    def waits(self) -> bool:
        return self._surroundings.stream_interval_ns > 0 and bool(self._not_shown())

    @property
    def is_lost(self) -> bool:
        return self._unread_running >= (LOST_SEGMENTS_MAX if self._read_some else STRANGE_SEGMENTS_MAX)


def _text(data: bytes) -> str | None:
    """None: it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _may_close(payload: bytes) -> bool:
    """RFC 6455, section 7.4.2: codes that may be sent."""
    return 1000 <= int.from_bytes(payload[:2], "big") < 5000


def _closing(payload: bytes, *, whole: bool) -> WebSocket:
    """What a close frame says (RFC 6455, section 5.5.1): a code of two bytes and a text, or nothing."""
    if len(payload) < 2:
        return WebSocket("close")
    return WebSocket("close", int.from_bytes(payload[:2], "big"), (_text(payload[2:]) or None) if whole else None)
