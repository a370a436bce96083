"""netprofiler.sinks.terminal: one line an exchange."""

from __future__ import annotations

import io
import time

import pytest

from netprofiler.counters import Counters
from netprofiler.exchange import Completeness, Message, Role
from netprofiler.redaction import Redactor
from netprofiler.sinks.base import OutputClosed
from netprofiler.sinks.terminal import Terminal, grpc_status_text, size_text
from netprofiler.testing import START_NS, Script
from tests.unit.sinks.messages import a_link, grpc, h2_request, h2_response, message, websocket

WALL_NS = 1_795_234_704_000_000_000 - START_NS
GET = b"GET /slow?ms=200&token=s3cret HTTP/1.1\r\nHost: a:8080\r\n\r\n"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def lines(script: Script, *, colour: bool = False) -> list[str]:
    return shown(*script.play().messages, colour=colour)


def shown(*messages: Message, colour: bool = False) -> list[str]:
    stream, counters = io.StringIO(), Counters()
    Terminal(stream, Redactor(), counters, wall_offset_ns=WALL_NS, colour=colour).emit(list(messages))
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


def test_an_http2_exchange_has_its_host_from_the_authority() -> None:
    asked = message(h2_request("GET", "/a?token=s3cret", ((":scheme", "https"), (":authority", "shop:50051"))))
    assert shown(asked, message(h2_response(404), b"no", request=asked)) == [
        "04:18:24.000 traffic[1234] → GET shop:50051/a?token=[redacted]  404  1.0 ms  0 B ↑ 2 B ↓"
    ]


def test_what_an_http2_head_does_not_know_is_a_question_mark() -> None:
    asked = message(h2_request("", "", unknown=2))
    assert shown(message(h2_response(0, unknown=1), request=asked, completeness=Completeness.PARTIAL)) == [
        "04:18:24.000 traffic[1234] → ? ?  ?  1.0 ms  0 B ↑ 0 B ↓  partial"
    ]


def test_a_grpc_call_shows_its_status_by_name() -> None:
    server = a_link(Role.SERVER)
    asked = grpc(b"\0\0\0\0\0", link=server)
    [line] = shown(asked, grpc(request=False, status=5, asked=asked, link=server))
    assert line == "04:18:24.000 traffic[1234] ← POST a/shop.Orders/Get  200 NOT_FOUND  1.0 ms  5 B ↑ 0 B ↓"
    [line] = shown(grpc(request=False, status=None))
    assert "  200 0 B ↓" in line
    [fine, failed] = shown(grpc(request=False, status=0), grpc(request=False, status=13), colour=True)
    assert "\x1b[32mOK\x1b[0m" in fine
    assert "\x1b[33mINTERNAL\x1b[0m" in failed


def test_grpc_status_numbers() -> None:
    assert [grpc_status_text(status) for status in (0, 1, 16, 17, 99)] == [
        "OK",
        "CANCELLED",
        "UNAUTHENTICATED",
        "17",
        "99",
    ]


def test_a_websocket_message_is_a_line() -> None:
    assert shown(
        websocket("text", "grüß\x1b[2J".encode()),
        websocket("text", b"x" * 500, sent=False),
        websocket("binary", b"abc", sent=False),
        websocket("ping"),
        websocket("close", close_code=1001, close_reason="going\naway"),
        websocket("close", sent=False),
    ) == [
        "04:18:24.000 traffic[1234] → websocket text  10 B  grüß\\x1b[2J",
        f"04:18:24.000 traffic[1234] ← websocket text  500 B  {'x' * 59}…",
        "04:18:24.000 traffic[1234] ← websocket binary  3 B",
        "04:18:24.000 traffic[1234] → websocket ping  0 B",
        "04:18:24.000 traffic[1234] → websocket close  1001 going\\x0aaway",
        "04:18:24.000 traffic[1234] ← websocket close",
    ]


def test_a_websocket_message_of_a_packet_capture_and_one_cut_inside_of_a_character() -> None:
    [line] = shown(websocket("text", b"a\xc3", link=a_link(passive=True), completeness=Completeness.GAP))
    assert line == "04:18:24.000 10.0.0.1:5000 → websocket text  2 B  a\ufffd  gap"


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
