"""The pipeline alone: raw records made here, in this process, through Pipeline.feed and the JSON Lines sink.

No kernel, no ring, no disk (the sink writes to /dev/null): what remains is Python's share of a message. An exchange on
loopback is seen at both ends, so it gives four records of the ring and four lines.
"""

from __future__ import annotations

import cProfile
import gc
import pstats
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hpack
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame

from benchmarks.noise import Spread, spread, text
from benchmarks.report import Section
from netprofiler import wire
from netprofiler.pipeline import Pipeline
from netprofiler.protocols.http2 import PREFACE
from netprofiler.redaction import Redactor
from netprofiler.sinks.jsonlines import JsonLines, RecordWriter

CONNECTIONS = 16
BATCH_RECORDS = 200
"""What a drain every 25 ms finds at 2,000 exchanges/s."""
SECOND_NS = 1_000_000_000
SERVER_PID, CLIENT_PID = 4001, 4002

Exchange = tuple[list[bytes], list[bytes]]
"""The calls that write the request, and those that write the response."""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    make: Callable[[int], Exchange]
    fresh_connections: bool = False


def _request(target: str, *fields: str, method: str = "GET", body: bytes = b"") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1:8080", "User-Agent: Go-http-client/1.1", *fields]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += ["Accept-Encoding: gzip", "", ""]
    return "\r\n".join(lines).encode() + body


def _response(body: bytes, *fields: str, length: bool = True) -> bytes:
    lines = ["HTTP/1.1 200 OK", "Content-Type: application/json", *fields, "Date: Mon, 06 Jan 2025 10:00:00 GMT"]
    lines.append(f"Content-Length: {len(body)}" if length else "Transfer-Encoding: chunked")
    return "\r\n".join([*lines, "", ""]).encode() + body


_OK = b'{"status":"ok"}\n'
_BODY_1K = (b'{"name":"value","list":[1,2,3],"text":"some words"}' * 20)[:1023] + b"\n"
_BODY_16K = (b'{"name":"value","list":[1,2,3],"text":"some words"}' * 400)[: 16 * 1024 - 400]
_REPEATED_REQUEST = _request("/healthz")
_REPEATED_RESPONSE = _response(_OK)
_CHUNKED_BODY = b"10\r\n" + _OK + b"\r\n0\r\n\r\n"
assert len(_OK) == 0x10


def _split_response(_: int) -> Exchange:
    whole = _response(_BODY_1K)
    return [_REPEATED_REQUEST], [whole[: -len(_BODY_1K)], _BODY_1K]


class _Http2:
    """Exchanges of HTTP/2, one stream after the other; the first on a connection brings the preface along."""

    def __init__(
        self, request: list[tuple[str, str]], response: list[tuple[str, str]], body: bytes, grpc: bool
    ) -> None:
        self.fields = (request, response)
        self.body = body
        self.trailers = [("grpc-status", "0")] if grpc else []
        self.encoders: dict[tuple[int, int], hpack.Encoder] = {}

    def __call__(self, number: int) -> Exchange:
        connection, stream = number % CONNECTIONS, 2 * (number // CONNECTIONS) + 1
        if stream == 1:
            self.encoders[connection, 0] = hpack.Encoder()
            self.encoders[connection, 1] = hpack.Encoder()
        request = self._headers(connection, 0, stream, ends=not self.trailers)
        if self.trailers:
            request += self._data(stream, ends=True)
        response = self._headers(connection, 1, stream, ends=False) + self._data(stream, ends=not self.trailers)
        if self.trailers:
            block = self.encoders[connection, 1].encode(self.trailers)
            response += HeadersFrame(stream, block, flags=["END_HEADERS", "END_STREAM"]).serialize()
        if stream == 1:
            settings = SettingsFrame(0).serialize()
            return [PREFACE + settings + request], [settings + response]
        return [request], [response]

    def _headers(self, connection: int, side: int, stream: int, *, ends: bool) -> bytes:
        block = self.encoders[connection, side].encode(self.fields[side])
        flags = ["END_HEADERS", "END_STREAM"] if ends else ["END_HEADERS"]
        return HeadersFrame(stream, block, flags=flags).serialize()

    def _data(self, stream: int, *, ends: bool) -> bytes:
        return DataFrame(stream, self.body, flags=["END_STREAM"] if ends else []).serialize()


_HTTP2_REQUEST = [
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "127.0.0.1:8080"),
    (":path", "/healthz"),
    ("user-agent", "Go-http-client/2.0"),
    ("accept-encoding", "gzip"),
]
_HTTP2_RESPONSE = [
    (":status", "200"),
    ("content-type", "application/json"),
    ("content-length", "16"),
    ("date", "Mon, 06 Jan 2025 10:00:00 GMT"),
]
_GRPC_REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/shop.Orders/Get"),
    (":authority", "127.0.0.1:8080"),
    ("content-type", "application/grpc"),
    ("user-agent", "grpc-go/1.70.0"),
    ("te", "trailers"),
]
_GRPC_RESPONSE = [(":status", "200"), ("content-type", "application/grpc")]
_UPGRADE = (
    _request("/talk", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
)
_TEXT = b'{"kind":"tick","symbol":"ABCD","price":"123.45"}'
_UNMASKED = bytes((0x81, len(_TEXT))) + _TEXT
_MASKED = bytes((0x81, 0x80 | len(_TEXT))) + b"\x01\x02\x03\x04" + bytes(c ^ (i % 4 + 1) for i, c in enumerate(_TEXT))


def _websocket(number: int) -> Exchange:
    """Text there and back; the first exchange of a connection is the upgrade."""
    return ([_UPGRADE[0]], [_UPGRADE[1]]) if number < CONNECTIONS else ([_MASKED], [_UNMASKED])


CASES = (
    Case("repeated heads, 16-byte body", lambda _: ([_REPEATED_REQUEST], [_REPEATED_RESPONSE])),
    Case("a target of its own each", lambda n: ([_request(f"/items/{n}?page=2")], [_REPEATED_RESPONSE])),
    Case(
        "header fields of their own each",
        lambda n: ([_request("/healthz", f"X-Request-Id: {n:032x}")], [_response(_OK, f"X-Request-Id: {n:032x}")]),
    ),
    Case(
        "1 KiB JSON there and back",
        lambda _: ([_request("/echo", method="POST", body=_BODY_1K)], [_response(_BODY_1K)]),
    ),
    Case("head and body in two writes", _split_response),
    Case("chunked, one write", lambda _: ([_REPEATED_REQUEST], [_response(_CHUNKED_BODY, length=False)])),
    Case(
        "chunked, three writes",
        lambda _: ([_REPEATED_REQUEST], [_response(b"", length=False), b"10\r\n" + _OK + b"\r\n", b"0\r\n\r\n"]),
    ),
    Case(
        "16 KiB there and back", lambda _: ([_request("/echo", method="POST", body=_BODY_16K)], [_response(_BODY_16K)])
    ),
    Case("HTTP/2: repeated fields, 16-byte body", _Http2(_HTTP2_REQUEST, _HTTP2_RESPONSE, _OK, grpc=False)),
    Case("gRPC: a unary call", _Http2(_GRPC_REQUEST, _GRPC_RESPONSE, b"\0\0\0\0\x0c\x0a\x0aabcdefghij", grpc=True)),
    Case("WebSocket: 48 bytes of text there and back", _websocket),
    Case("a connection each", lambda _: ([_REPEATED_REQUEST], [_REPEATED_RESPONSE]), fresh_connections=True),
)


class _Side:
    """One socket and where its streams are."""

    def __init__(self, socket: int, pid: int, role: int) -> None:
        self.socket = socket
        self.pid = pid
        self.role = role
        self.position = [1000, 5000] if role == wire.ROLE_CLIENT else [5000, 1000]

    def opened(self, time_ns: int, port: int) -> bytes:
        client = self.role == wire.ROLE_CLIENT
        return wire.build_opened(
            wire.ConnectionOpened(
                time_ns=time_ns, socket=self.socket, pid=self.pid, role=self.role, fresh=True, family=wire.FAMILY_IPV4,
                network_namespace=1, local_ip="127.0.0.1", local_port=port if client else 8080, remote_ip="127.0.0.1",
                remote_port=8080 if client else port, unix_path="", send_position=self.position[0],
                recv_position=self.position[1], counted=False,
            )
        )  # fmt: skip

    def data(self, direction: int, time_ns: int, payload: bytes) -> Iterator[bytes]:
        """A call, in the pieces that the kernel side makes of it."""
        for at in range(0, len(payload), 16384):
            piece = payload[at : at + 16384]
            flags = wire.DATA_FIRST if not at else 0
            yield wire.build_data(
                wire.DataCaptured(
                    time_ns, self.socket, self.pid, self.pid, direction, self.position[direction], len(piece), flags, 0,
                    piece,
                )
            )  # fmt: skip
            self.position[direction] += len(piece)

    def closed(self, time_ns: int) -> bytes:
        return wire.build_closed(wire.ConnectionClosed(time_ns, self.socket, wire.BOTH, True, self.position[0]))


def batches(case: Case, exchanges: int) -> tuple[list[bytes], int]:
    """Batches of raw records, and the number of messages that they hold."""
    records: list[bytes] = []
    now = 10 * SECOND_NS
    for pid, comm in ((SERVER_PID, "server"), (CLIENT_PID, "client")):
        records.append(wire.build_process(wire.ProcessSeen(now, pid, 1, 0, comm, f"/usr/bin/{comm} --flag")))

    def pair(index: int) -> tuple[_Side, _Side]:
        client = _Side(2 * index + 100_000, CLIENT_PID, wire.ROLE_CLIENT)
        server = _Side(2 * index + 100_001, SERVER_PID, wire.ROLE_SERVER)
        port = 20_000 + index % 40_000
        records.extend((client.opened(now, port), server.opened(now, port)))
        return client, server

    pairs = [] if case.fresh_connections else [pair(index) for index in range(CONNECTIONS)]
    for number in range(exchanges):
        client, server = pair(number) if case.fresh_connections else pairs[number % CONNECTIONS]
        request, response = case.make(number)
        for sender, receiver, calls in ((client, server, request), (server, client, response)):
            for call in calls:
                now += 20_000
                records.extend(sender.data(wire.SEND, now, call))
                records.extend(receiver.data(wire.RECV, now + 8_000, call))
        if case.fresh_connections:
            records.extend((client.closed(now), server.closed(now)))
        now += 400_000
    framed = [wire.frame(record) for record in records]
    out = [b"".join(framed[at : at + BATCH_RECORDS]) for at in range(0, len(framed), BATCH_RECORDS)]
    return out, 4 * exchanges


class _Rig:
    def __init__(self) -> None:
        self.pipeline = Pipeline(body_limit=4096)
        writer = RecordWriter(Redactor(), wall_offset_ns=1_700_000_000 * SECOND_NS, body_limit=4096, raw_payload=True)
        self.sink = JsonLines("/dev/null", writer, self.pipeline.counters, print)

    def run(self, work: list[bytes]) -> tuple[int, int]:
        """CPU ns of parsing and of writing."""
        clock = time.process_time_ns
        pipeline = self.pipeline
        feed, take, emit = pipeline.feed, pipeline.take_messages, self.sink.emit
        parsing = writing = 0
        for batch in work:
            start = clock()
            feed(batch)
            messages = take()
            middle = clock()
            if messages:
                emit(messages)
            writing += clock() - middle
            parsing += middle - start
        return parsing, writing

    def close(self) -> None:
        self.sink.close()


@dataclass(frozen=True, slots=True)
class Result:
    case: str
    messages: int
    written: int
    parse_us: Spread
    write_us: Spread
    total_us: Spread
    no_gc_us: Spread
    """The same with the garbage collector off."""
    profile: list[tuple[str, float, float]]
    """Function, calls a message, own µs a message under cProfile (which adds to each call)."""


def measure(case: Case, exchanges: int, repeats: int, top: int = 12) -> Result:
    work, messages = batches(case, exchanges)
    parse: list[float] = []
    write: list[float] = []
    total: list[float] = []
    no_gc: list[float] = []
    written = 0
    for _ in range(repeats):
        for collect in (True, False):
            rig = _Rig()
            gc.collect()
            if not collect:
                gc.disable()
            try:
                parsing, writing = rig.run(work)
            finally:
                gc.enable()
            rig.close()
            written = rig.pipeline.counters.written
            if collect:
                parse.append(parsing / messages / 1e3)
                write.append(writing / messages / 1e3)
                total.append((parsing + writing) / messages / 1e3)
            else:
                no_gc.append((parsing + writing) / messages / 1e3)
    spreads = [spread(values) for values in (parse, write, total, no_gc)]
    known = [each for each in spreads if each is not None]
    return Result(case.name, messages, written, known[0], known[1], known[2], known[3], profile(work, messages, top))


def profile(work: list[bytes], messages: int, top: int) -> list[tuple[str, float, float]]:
    rig = _Rig()
    profiler = cProfile.Profile()
    profiler.enable()
    rig.run(work)
    profiler.disable()
    rig.close()
    rows = []
    table: dict[tuple[str, int, str], Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    for (file, line, name), (_, calls, own, _, _) in table.items():
        place = name if file == "~" else f"{Path(file).name}:{line} {name}"
        rows.append((place, calls / messages, own * 1e6 / messages))
    rows.sort(key=lambda row: -row[2])
    return rows[:top]


def section(*, quick: bool) -> Section:
    exchanges, repeats = (1500, 3) if quick else (5000, 7)
    results = [measure(case, exchanges, repeats) for case in CASES]
    out = Section(
        "The pipeline alone, in process",
        f"Canned batches of {BATCH_RECORDS} raw records, {4 * exchanges:,} messages a run, {repeats} runs, the sink on "
        "/dev/null; CPU time, µs a message. What a live agent spends besides: reading the ring, the file, waking up.",
        ("", "parse", "render and write", "together", "without garbage collector"),
        data=[
            {
                "case": result.case,
                "messages": result.messages,
                "written": result.written,
                "parse_us": result.parse_us.as_json(),
                "write_us": result.write_us.as_json(),
                "total_us": result.total_us.as_json(),
                "no_gc_us": result.no_gc_us.as_json(),
                "profile": result.profile,
            }
            for result in results
        ],
    )
    for result in results:
        out.rows.append(
            (
                result.case,
                text(result.parse_us),
                text(result.write_us),
                text(result.total_us),
                text(result.no_gc_us),
            )
        )
        if result.written != result.messages:
            out.notes.append(f"**Wrong**: {result.case}: {result.written} records of {result.messages} messages")
    shown = ", ".join(f"`{name}` {own:.2f}" for name, _, own in results[0].profile[:6])
    out.notes.append(f"Own time under cProfile, which weighs calls too heavily, first case: {shown}.")
    return out
