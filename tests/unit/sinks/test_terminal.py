"""netprofiler.sinks.terminal: one line an exchange."""

from __future__ import annotations

import io
import time

import pytest

from netprofiler.counters import Counters
from netprofiler.redaction import Redactor
from netprofiler.sinks.base import OutputClosed
from netprofiler.sinks.terminal import Terminal, size_text
from netprofiler.testing import START_NS, Script

WALL_NS = 1_795_234_704_000_000_000 - START_NS
GET = b"GET /slow?ms=200&token=s3cret HTTP/1.1\r\nHost: a:8080\r\n\r\n"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def lines(script: Script, *, colour: bool = False) -> list[str]:
    stream, counters = io.StringIO(), Counters()
    messages = script.play().messages
    Terminal(stream, Redactor(), counters, wall_offset_ns=WALL_NS, colour=colour).emit(messages)
    assert counters.written == len(messages)
    return stream.getvalue().splitlines()


def exchange(script: Script, answer: bytes, ask: bytes = GET) -> None:
    script.process(comm="traf\x1b[2Jfic")
    peer = script.client()
    peer.send(ask)
    peer.recv(answer)


def test_an_exchange() -> None:
    script = Script()
    exchange(script, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert lines(script) == [
        "04:18:24.000 traf\\x1b[2Jfic[1234] → GET a:8080/slow?ms=200&token=[redacted]  200  0.1 ms  0 B ↑ 2 B ↓"
    ]


def test_colours_go_by_the_status() -> None:
    script = Script()
    for status in (204, 304, 404, 500):
        exchange(script, b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)
    shown = lines(script, colour=True)
    for line, part in zip(shown, ["\x1b[32m204", "\x1b[36m304", "\x1b[33m404", "\x1b[31m500"], strict=True):
        assert f"{part}\x1b[0m" in line


def test_a_server_answers_what_was_not_seen_and_not_whole() -> None:
    script = Script()
    peer = script.server(pid=7, fresh=False)
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\nok")
    assert lines(script) == ["04:18:24.000 ?[7] ← (request not seen)  200 2 B ↓  partial"]


def test_long_targets_are_cut_and_what_drives_a_terminal_is_shown() -> None:
    script = Script()
    exchange(script, b"HTTP/1.1 204 No\r\n\r\n", b"GET /\xc2\x9b" + b"a" * 300 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    [line] = lines(script)
    assert "GET a/\\x9baaa" in line
    assert "\x9b" not in line
    assert "a…  204" in line
    assert len(line) < 200


def test_interim_records_and_requests_have_no_line() -> None:
    script = Script()
    peer = script.client()
    peer.send(GET)
    peer.recv(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    script.wait(6)
    peer.recv(b"0\r\n\r\n")
    assert len(lines(script)) == 1


def test_nobody_reads() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(text)

    script = Script()
    exchange(script, b"HTTP/1.1 204 No\r\n\r\n")
    counters = Counters()
    with pytest.raises(OutputClosed):
        Terminal(Closed(), Redactor(), counters, wall_offset_ns=0).emit(script.play().messages)
    assert (counters.written, counters.output_failed) == (0, 2)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1 << 20, "1.0 MiB"),
        (64 << 20, "64.0 MiB"),
        (5 << 30, "5.0 GiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size_text(count) == text
