"""HTTP/2 as it is sent, for the tests: frames by hyperframe, blocks by hpack, and a conversation to feed them to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from netprofiler.connection import Shared
from netprofiler.exchange import Link, Message, Process, Role
from netprofiler.protocols.http2 import PREFACE, Http2
from netprofiler.streams import POSITION_MASK, Segment

SEND, RECV = 0, 1
Field = tuple[str, str]


def frame(made: Frame, *flags: str) -> bytes:
    for flag in flags:
        made.flags.add(flag)
    return bytes(made.serialize())


def settings(values: dict[int, int] | None = None) -> bytes:
    return frame(SettingsFrame(0, settings=values or {}))


def settings_ack() -> bytes:
    return frame(SettingsFrame(0), "ACK")


def ping() -> bytes:
    return frame(PingFrame(0, b"12345678"))


def window_update(stream: int = 0) -> bytes:
    return frame(WindowUpdateFrame(stream, 1000))


def priority(stream: int) -> bytes:
    return frame(PriorityFrame(stream, depends_on=0, stream_weight=15))


def reset(stream: int) -> bytes:
    return frame(RstStreamFrame(stream, error_code=8))


def go_away(last: int) -> bytes:
    return frame(GoAwayFrame(0, last_stream_id=last, additional_data=b"bye"))


def data(stream: int, body: bytes, *, ends: bool = False, padding: int | None = None) -> bytes:
    flags = ["END_STREAM"] if ends else []
    if padding is None:
        return frame(DataFrame(stream, body), *flags)
    return frame(DataFrame(stream, body, pad_length=padding), *flags, "PADDED")


def headers(
    stream: int,
    block: bytes,
    *,
    ends: bool = False,
    pieces: int = 1,
    padding: int | None = None,
    weight: int | None = None,
    promised: int = 0,
) -> bytes:
    """A header block in `pieces` frames: HEADERS, or PUSH_PROMISE, and CONTINUATIONs."""
    step = -(-len(block) // pieces) or 1
    parts = [block[at : at + step] for at in range(0, len(block), step)] or [b""]
    first: HeadersFrame | PushPromiseFrame
    flags = []
    if promised:
        first = PushPromiseFrame(stream, promised_stream_id=promised, data=parts[0])
    else:
        first = HeadersFrame(stream, parts[0])
        if ends:
            flags.append("END_STREAM")
        if weight is not None:
            first.stream_weight = weight
            flags.append("PRIORITY")
    if padding is not None:
        first.pad_length = padding
        flags.append("PADDED")
    if len(parts) == 1:
        flags.append("END_HEADERS")
    out = frame(first, *flags)
    for index, part in enumerate(parts[1:], 2):
        out += frame(ContinuationFrame(stream, part), *(["END_HEADERS"] if index == len(parts) else []))
    return out


def literal(fields: Iterable[Field]) -> bytes:
    """A block that says everything by itself: fixed fields by the static table, the rest as literals."""
    fixed = {(":method", "GET"): 2, (":method", "POST"): 3, (":scheme", "http"): 6, (":status", "200"): 8}
    out = b""
    for name, value in fields:
        if (name, value) in fixed:
            out += bytes((0x80 | fixed[name, value],))
        else:
            out += bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode()
    return out


def request(path: str = "/", method: str = "GET", *more: Field) -> list[Field]:
    return [(":method", method), (":scheme", "http"), (":path", path), (":authority", "a"), *more]


def response(status: int = 200, *more: Field) -> list[Field]:
    return [(":status", str(status)), *more]


class Talk:
    """One connection, observed: what each side says goes to the conversation at once, each call one segment."""

    def __init__(
        self,
        *,
        client: int | None = SEND,
        fresh: bool = True,
        preface: bool = True,
        number: int = 0,
        upgraded: Message | None = None,
        body_limit: int = 4096,
        interval_ns: int = 5_000_000_000,
        base: int = 1000,
    ) -> None:
        self.shared = Shared(body_limit=body_limit, stream_interval_ns=interval_ns)
        self.shared.processes[7] = Process(7, 1, "comm", "comm line")
        role = None if client is None else (Role.CLIENT if client == SEND else Role.SERVER)
        self.link = Link("sock:[1]", role=role)
        self.http2 = Http2(
            self.shared, self.link, client_direction=client, fresh=fresh, number=number, upgraded=upgraded
        )
        self.client = SEND if client is None else client
        self.encoders = (hpack.Encoder(), hpack.Encoder())
        self.positions = [base, base]
        self.fed = 0
        self.now_ns = 0
        if preface:
            self.say(self.client, PREFACE + settings())
            self.say(1 - self.client, settings())

    def say(self, direction: int, payload: bytes, *, tid: int = 70) -> str:
        self.now_ns += 1000
        segment = Segment(self.positions[direction], len(payload), payload, 0, self.now_ns, 7, tid)
        self.positions[direction] = (self.positions[direction] + len(payload)) & POSITION_MASK
        self.fed += len(payload)
        return self.http2.feed(direction, segment)

    def miss(self, direction: int, length: int, reason: str = "unknown", start: bytes = b"") -> None:
        self.now_ns += 1000
        self.positions[direction] = (self.positions[direction] + length) & POSITION_MASK
        self.http2.missing(direction, length, reason, self.now_ns, start)

    def ask(self, payload: bytes) -> str:
        return self.say(self.client, payload)

    def answer(self, payload: bytes) -> str:
        return self.say(1 - self.client, payload)

    def asking(self, fields: Sequence[Field]) -> bytes:
        """A block of the client, by its encoder."""
        return bytes(self.encoders[self.client].encode(fields))

    def answering(self, fields: Sequence[Field]) -> bytes:
        return bytes(self.encoders[1 - self.client].encode(fields))

    def end(self) -> list[Message]:
        for direction in (SEND, RECV):
            self.http2.end(direction, self.now_ns, finished=True)
        assert sum(row.bytes for row in self.shared.counters.rows.values()) == self.fed
        assert not self.http2.waits
        return self.take()

    def take(self) -> list[Message]:
        out = self.shared.out
        self.shared.out = []
        return out

    def row(self, name: str) -> int:
        return self.shared.counters.rows[name].bytes
