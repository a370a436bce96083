"""What is fuzzed: one function of bytes each, which returns whatever the bytes are, and raises when a promise is broken.

The promises: nothing raises but what the contract names (`MalformedRecord` for a batch, `CommandError` for a file of the user's);
each record is one line of JSON; the ledger sums; what is told does not depend on how the bytes were split. Time and memory are
libFuzzer's to watch (`run.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Callable, Iterator
from typing import Final

import orjson

from netprofiler import wire
from netprofiler.config import make_config
from netprofiler.content import decode
from netprofiler.counters import Counters, make_ledger
from netprofiler.errors import CommandError
from netprofiler.exchange import Message
from netprofiler.pipeline import Pipeline
from netprofiler.protocols.grpc import uncompress
from netprofiler.protocols.http2 import PREFACE
from netprofiler.protocols.tls_handshake import Handshake
from netprofiler.redaction import Redactor
from netprofiler.sinks.jsonlines import RecordWriter
from netprofiler.sinks.terminal import Terminal
from netprofiler.sources.analysis import analyse
from netprofiler.sources.base import Batch, ClockSet, End, Rounds
from netprofiler.sources.files import open_capture
from netprofiler.testing import Peer, Played, Script, build

BODY_LIMIT: Final = 256
"""Small, so that it is reached."""
PIECES_MAX: Final = 64
"""System calls of one run: what more of them do, fewer have done."""
TURN: Final = b"\xff\xfe"
"""Between what one side sends and what the other does."""
REDACTOR: Final = Redactor(["pin-code"])
_UPGRADE: Final = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%b\r\n"
)
_SWITCH: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n%b\r\n"
)
_EXTENSION: Final = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"


def _check(messages: list[Message]) -> None:
    """They can be shown."""
    writer = RecordWriter(REDACTOR, wall_offset_ns=0, body_limit=BODY_LIMIT, raw_payload=True)
    for message in messages:
        line = writer.render(message)
        assert "\n" not in line
        record = orjson.loads(line.encode("utf-8", "backslashreplace"))
        assert record["body_bytes"] >= 0 and record["bytes"] >= 0
    Terminal(io.StringIO(), REDACTOR, Counters(), wall_offset_ns=0, colour=False).emit(messages)


def _sums(pipeline: Pipeline) -> None:
    for unit in ("bytes", "calls"):
        table = make_ledger(pipeline.counters, None)[unit]
        assert isinstance(table, dict)
        assert sum(table["rows"].values()) == table["total"]
        assert min(table["rows"].values()) >= 0


def _play(script: Script) -> Played:
    played = script.play(body_limit=BODY_LIMIT)
    _check(played.messages)
    _sums(played.pipeline)
    return played


def wire_batch(data: bytes) -> None:
    """A batch, as it is in a damaged recording."""
    pipeline = Pipeline(body_limit=BODY_LIMIT)
    try:
        used = pipeline.feed(data)
        assert 0 <= used <= len(data)
        wire.survey(data)
        wire.resolve_files(data[: wire.whole_length(data)], lambda _file, length, _time: b"x" * min(length, 64))
    except wire.MalformedRecord:
        pass
    pipeline.drain(1 << 40)
    _check(pipeline.take_messages())


def wire_records(data: bytes) -> None:
    """Records with lengths that fit: each is kind, length, and so many bytes."""
    pipeline = Pipeline(body_limit=BODY_LIMIT)
    at = 0
    while at + 2 <= len(data) and at < 16 * 1024:
        end = at + 2 + data[at + 1]
        record = bytes([data[at] & 0x87]) + data[at + 2 : end]
        with contextlib.suppress(wire.MalformedRecord):
            pipeline.feed(wire.frame(record))
        at = end
    pipeline.tick(1 << 40)
    pipeline.drain(1 << 41)
    _check(pipeline.take_messages())


def connection(data: bytes) -> None:
    """One socket: what is sent, received, lost, cut and closed, in an order that the bytes choose."""
    script = Script()
    script.process()
    peer = script.open(data[0] & 3 if data else 0, fresh=not data or data[0] & 4 == 0)
    for number, (operation, argument, payload) in enumerate(_operations(data[1:])):
        if number == PIECES_MAX:
            break
        _do(script, peer, operation, argument, payload)
    _play(script)


def _operations(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + 2 < len(data):
        end = at + 3 + data[at + 2]
        yield data[at], data[at + 1], data[at + 3 : end]
        at = end


def _do(script: Script, peer: Peer, operation: int, argument: int, payload: bytes) -> None:
    direction = operation & 1
    match operation >> 1 & 7:
        case 0 | 1 | 2:
            peer.piece(direction, payload)
        case 3:
            peer.piece(direction, payload, length=len(payload) + argument * 100, reason=1 + argument % 4)
        case 4:
            peer.lose(direction, argument)
            peer.piece(direction, payload, after_loss=True)
        case 5:
            script.wait(argument / 10)
        case 6:
            peer.positions[direction] = (peer.positions[direction] - argument) & 0xFFFFFFFF
        case _:
            (peer.shutdown, peer.end, peer.close)[argument % 3]()


def _conversation(data: bytes, up: bytes = b"", down: bytes = b"") -> None:
    """The first byte says how it is split; then both sides by turns."""
    script = Script()
    peer = script.client() if not data or data[0] & 1 else script.server()
    size = 1 << (data[0] >> 1 & 7) if data and data[0] & 0x80 else 1 << 16
    for piece in (up, down):
        if piece:
            (peer.request if piece is up else peer.response)(piece)
    pieces = 0
    for turn, said in enumerate(data[1:].split(TURN)):
        speak = peer.response if turn & 1 else peer.request
        for at in range(0, len(said), size):
            pieces += 1
            if pieces > PIECES_MAX:
                speak(said[at:])
                break
            speak(said[at : at + size])
    peer.close()
    _play(script)


def http1(data: bytes) -> None:
    """From the first byte on."""
    _conversation(data)


def http2(data: bytes) -> None:
    """Behind the preface."""
    settings = b"\0\0\0\4\0\0\0\0\0"
    _conversation(data, PREFACE + settings, settings)


def websocket(data: bytes) -> None:
    """Behind the upgrade, compressed or not."""
    extension = _EXTENSION if data and data[0] & 0x40 else b""
    _conversation(data, _UPGRADE % extension, _SWITCH % extension)


def hello(data: bytes) -> None:
    """The facts do not depend on how the bytes were split."""
    cut = data[0] if data else 0
    up, _, down = data[1:].partition(TURN)
    whole, split = Handshake(), Handshake()
    whole.feed(True, up)
    whole.feed(False, down)
    for is_up, said in ((True, up), (False, down)):
        for part in (said[:cut], said[cut : 2 * cut], said[2 * cut :]):
            split.feed(is_up, part)
    assert whole.facts == split.facts


def elf(data: bytes) -> None:
    """A program, or a library: its symbols, its code, Go's tables."""
    descriptor = _file(data)
    try:
        analyse(descriptor)
    finally:
        os.close(descriptor)


def stored_capture(data: bytes) -> None:
    """A recording, or a packet capture."""
    descriptor = _file(data)
    pipeline = Pipeline(body_limit=BODY_LIMIT)
    try:
        capture = open_capture(f"/proc/self/fd/{descriptor}")
        try:
            for frame in capture.frames():
                match frame:
                    case Batch():
                        pipeline.feed(frame.data)
                    case Rounds():
                        for time_ns in frame.times_ns:
                            pipeline.tick(time_ns)
                    case ClockSet() | End():
                        pass
        finally:
            capture.close()
    except (CommandError, wire.MalformedRecord):
        pass
    finally:
        os.close(descriptor)
    pipeline.drain(1 << 62)
    _check(pipeline.take_messages())


def configuration(data: bytes) -> None:
    """The file of --config, and behind TURN the environment, one variable a line."""
    text, _, environment = data.partition(TURN)
    variables = dict(
        line.split("=", 1) for line in environment.decode("utf-8", "surrogateescape").split("\n") if "=" in line
    )
    variables.pop("NETPROFILER_CONFIG", None)
    descriptor = _file(text)
    try:
        make_config(argparse.Namespace(config=f"/proc/self/fd/{descriptor}"), variables)
    except CommandError as error:
        assert "\n" not in str(error)
    finally:
        os.close(descriptor)


def redaction(data: bytes) -> None:
    """Whatever the text: redacting what is redacted changes nothing more, and nothing suspicious is nothing found."""
    text = data.decode("utf-8", "replace")
    for cut in (False, True):
        shown, names = REDACTOR.text(text, cut=cut)
        assert bool(names) == (shown != text) or "[redacted]" in text
        if not REDACTOR.suspicious(text.encode(), cut=cut):
            assert not names
    REDACTOR.octets(data, cut=True)
    REDACTOR.target(text)
    REDACTOR.block(text)
    REDACTOR.command_line(text)
    REDACTOR.field("x-note", text)


def content(data: bytes) -> None:
    """Content codings, one inside of another, and those of gRPC's messages: never more than the limit."""
    codings = [name for bit, name in enumerate(("gzip", "deflate", "br", "zstd")) if data[:1] and data[0] >> bit & 1]
    decoded = decode(data[1:], tuple(codings), 1000)
    assert decoded is None or len(decoded[0]) <= 1000 or not codings
    undone = uncompress(data[1:], codings[0] if codings else "identity", 1000, b"")
    assert len(undone.body) <= 1000 + len(data)


def _file(data: bytes) -> int:
    descriptor = os.memfd_create("fuzz")
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def steps_of(events: list[wire.Event]) -> bytes:
    """Seeds: events → records as `wire_records` takes them."""
    records = [build(event) for event in events]
    return b"".join(bytes([record[0], min(255, len(record) - 1)]) + record[1:256] for record in records)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    each.__name__: each
    for each in (
        wire_batch,
        wire_records,
        connection,
        http1,
        http2,
        websocket,
        hello,
        elf,
        stored_capture,
        configuration,
        redaction,
        content,
    )
}
