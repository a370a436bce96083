"""netprofiler.connection: what comes of one socket's bytes. Scripts; each situation at both ends of the connection."""

from __future__ import annotations

import gzip

import pytest

from netprofiler import wire
from netprofiler.connection import SKIP_MAX_BYTES, SKIP_WORTH_BYTES, Ignore, Skip
from netprofiler.exchange import Completeness, Message, Role
from netprofiler.testing import Peer, Script, Tick

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
roles = pytest.mark.parametrize("role", [wire.ROLE_CLIENT, wire.ROLE_SERVER], ids=["client", "server"])


def asked(messages: list[Message]) -> list[tuple[str, str, bytes]]:
    return [(m.head.method, m.head.target, m.body) for m in messages]


def answered(messages: list[Message]) -> list[tuple[int, bytes, str | None]]:
    """Status, body, and what it answers."""
    return [(m.head.status, m.body, m.request.head.target if m.request else None) for m in messages]


def one_by_one(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


# --- requests and responses in all their ways ---------------------------------------------------------------------


@roles
def test_the_short_way_and_all_that_it_fills_in(role: int) -> None:
    script = Script()
    script.process()
    peer = script.open(role, positions=(1000, 5000))
    peer.request(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
    peer.response(OK)
    played = script.play()
    request, response = played.messages
    assert (request.direction, response.direction) == ((0, 1) if role == wire.ROLE_CLIENT else (1, 0))
    assert request.position == (1000 if role == wire.ROLE_CLIENT else 5000)
    assert response.position == (5000 if role == wire.ROLE_CLIENT else 1000)
    assert (request.stream_bytes, request.body_bytes, request.body) == (56, 5, b"hello")
    assert (request.number, response.number, response.request) == (1, 1, request)
    assert request.process is not None and request.process.comm == "traffic"
    assert (request.pid, request.tid) == (1234, 1236)
    assert response.time_ns - request.time_ns == 100_000
    assert request.link.role == (Role.CLIENT if role == wire.ROLE_CLIENT else Role.SERVER)
    assert played.rows() == {"recorded": 56 + len(OK)}
    assert played.rows("calls") == {"recorded": 2}


@roles
@pytest.mark.parametrize("cut", [lambda data: [data], one_by_one], ids=["one write", "one byte a write"])
def test_seven_requests_in_a_row(role: int, cut: object) -> None:
    script = Script()
    peer = script.open(role)
    assert callable(cut)
    peer.request(*cut(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(7))))
    peer.response(*cut(b"".join(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % n for n in range(7))))
    played = script.play()
    assert answered(played.responses) == [(200, b"%d" % n, f"/{n}") for n in range(7)]
    assert [m.number for m in played.messages] == [1, 2, 3, 4, 5, 6, 7] * 2
    assert {m.completeness for m in played.messages} == {Completeness.COMPLETE}
    assert set(played.rows()) == {"recorded"}


@roles
@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n"),
        (GET, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
def test_responses_without_a_body(role: int, ask: bytes, answer: bytes) -> None:
    script = Script()
    peer = script.open(role)
    for _ in range(2):
        peer.request(ask)
        peer.response(answer)
    played = script.play()
    assert [m.completeness for m in played.responses] == [Completeness.COMPLETE] * 2
    assert [(m.body_bytes, m.stream_bytes) for m in played.responses] == [(0, len(answer))] * 2
    assert [m.number for m in played.responses] == [1, 2]


@roles
def test_interim_responses(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    peer.response(b"HTTP/1.1 100 Continue\r\n\r\n")
    peer.request(b"hi")
    peer.response(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 103\r\n\r\n" + OK)
    peer.request(GET)
    peer.response(OK)
    played = script.play()
    assert [m.head.status for m in played.responses] == [100, 103, 103, 200, 200]
    assert [m.number for m in played.responses] == [1, 1, 1, 1, 2]
    assert [m.request for m in played.responses] == [played.requests[0]] * 4 + [played.requests[1]]
    assert played.requests[0].body == b"hi"


@roles
def test_chunks_with_extensions_and_trailers(role: int) -> None:
    body = b'5;name="v"\r\nhello\r\n00A\r\n0123456789\r\nb ; x\r\nabcdefghijk\r\n0;last\r\nX-Sum: 1\r\nX-Sum:2\r\n\r\n'
    ask = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    for cut in (lambda data: [data], one_by_one):
        script = Script()
        peer = script.open(role)
        peer.request(*cut(ask + body + GET))
        peer.response(OK, OK)
        played = script.play()
        message = played.requests[0]
        assert message.body == b"hello0123456789abcdefghijk"
        assert (message.body_bytes, message.stream_bytes) == (26, len(ask + body))
        assert message.raw_body == body
        assert message.trailers == (("X-Sum", "1"), ("X-Sum", "2"))
        assert message.completeness is Completeness.COMPLETE
        assert asked(played.requests)[1] == ("GET", "/", b"")


@roles
@pytest.mark.parametrize("end", ["end", "close"])
def test_a_body_that_ends_with_the_connection(role: int, end: str) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"GET / HTTP/1.0\r\n\r\n")
    peer.response(b"HTTP/1.0 200 OK\r\n\r\n", b"some ", b"body")
    if role == wire.ROLE_CLIENT and end == "end":
        peer.end()
    peer.close()
    message = script.play().responses[0]
    assert (message.body, message.body_bytes, message.stream_bytes) == (b"some body", 9, 28)
    # A client that goes away before it has seen the end does not know either whether that was all.
    whole = role == wire.ROLE_SERVER or end == "end"
    assert message.completeness is (Completeness.COMPLETE if whole else Completeness.PARTIAL)
    # The last byte came before the end.
    assert message.end_ns - message.time_ns == 200_000


@roles
@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 Connection established\r\n\r\n"),
        (
            b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"HTTP/1.1 101 S\r\n\r\n",
        ),
    ],
)
def test_what_comes_behind_connect_or_an_upgrade_is_no_http(role: int, ask: bytes, answer: bytes) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(ask)
    peer.response(answer + b"\x00first")
    peer.request(GET)  # inside of the tunnel it may well be HTTP: somebody else's
    peer.response(OK)
    peer.close()
    played = script.play()
    assert len(played.messages) == 2
    assert played.responses[0].request is played.requests[0]
    assert played.rows() == {"recorded": len(ask + answer), "tunnel": 6 + len(GET + OK)}
    assert played.commands == [Ignore(peer.socket)]


@roles
def test_bytes_behind_connect_before_it_is_granted(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" * 10)
    peer.response(b"HTTP/1.1 200 OK\r\n\r\n")
    peer.request(b"\x16\x03")
    played = script.play()
    assert answered(played.responses) == [(200, b"", "a:443")]
    assert played.requests[0].completeness is Completeness.COMPLETE
    assert played.rows()["tunnel"] == 62


@roles
def test_connect_refused(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n")
    peer.response(b"HTTP/1.1 407 Authenticate\r\nContent-Length: 2\r\n\r\nno")
    peer.request(GET)
    peer.response(OK)
    played = script.play()
    assert answered(played.responses) == [(407, b"no", "a:443"), (200, b"ok", "/")]
    assert played.commands == []


@roles
def test_an_upgrade_that_is_refused(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"GET /1 HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
    peer.response(OK)
    peer.request(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    peer.response(OK)
    assert answered(script.play().responses) == [(200, b"ok", "/1"), (200, b"ok", "/2")]


@roles
def test_twenty_kilobytes_of_headers(role: int) -> None:
    fields = b"".join(b"X-Field-%d: %s\r\n" % (n, b"v" * 80) for n in range(215))
    ask = b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n"
    assert len(ask) > 20_000
    for pieces in ([ask], [ask[:4096], ask[4096:16384], ask[16384:]]):
        script = Script()
        peer = script.open(role)
        peer.request(*pieces)
        peer.response(OK)
        played = script.play()
        assert played.requests[0].stream_bytes == len(ask)
        assert len(played.requests[0].head.fields.headers) == 216
        assert played.responses[0].request is played.requests[0]


@roles
def test_bare_lf_and_empty_lines_before_a_request(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"\r\n\r\nGET /1 HTTP/1.1\nHost: a\n\n\nGET /2 HTTP/1.1\r\nHost: a\n\r\n")
    peer.response(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok" + OK)
    played = script.play()
    assert answered(played.responses) == [(200, b"ok", "/1"), (200, b"ok", "/2")]
    assert [m.stream_bytes for m in played.requests] == [25, 27]
    assert played.requests[0].position == (1004 if role == wire.ROLE_CLIENT else 5_000_004)
    assert set(played.rows()) == {"recorded"}


@roles
@pytest.mark.parametrize("fields", [b"Content-Length: 2\r\nContent-Length: 3\r\n", b"Transfer-Encoding: gzip\r\n"])
def test_a_request_that_cannot_be_framed(role: int, fields: bytes) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\nabc")
    peer.response(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    peer.close()
    played = script.play()
    assert played.requests[0].completeness is Completeness.PARTIAL
    assert played.requests[0].body == b""
    assert answered(played.responses) == [(400, b"", "/")]
    assert played.rows()["unparsed"] == 3


@roles
def test_transfer_coding_and_length(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
        + GET
    )
    peer.response(OK, OK)
    assert asked(script.play().requests) == [("POST", "/", b"hi"), ("GET", "/", b"")]


@roles
def test_a_response_before_the_body_of_its_request_is_over(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n", b"1234")
    peer.response(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    peer.request(b"567890")
    peer.request(GET)
    peer.response(OK)
    played = script.play()
    assert answered(played.responses) == [(413, b"", "/up"), (200, b"ok", "/")]
    assert played.requests[0].body == b"1234567890"


@roles
def test_a_request_whose_body_never_ends(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n", b"1234")
    peer.response(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    peer.close()
    played = script.play()
    assert answered(played.responses) == [(413, b"", "/up")]
    assert (played.requests[0].body, played.requests[0].completeness) == (b"1234", Completeness.PARTIAL)
    assert played.rows()["partial"] == 54


@roles
def test_half_closed(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(GET)
    (peer.shutdown if role == wire.ROLE_CLIENT else peer.end)()
    peer.response(b"HTTP/1.1 200 OK\r\n\r\n", b"late")
    (peer.end if role == wire.ROLE_CLIENT else peer.shutdown)()
    peer.close()
    played = script.play()
    assert answered(played.responses) == [(200, b"late", "/")]
    assert played.responses[0].completeness is Completeness.COMPLETE


def test_a_server_that_speaks_first() -> None:
    """408 on an idle connection answers nothing, not even the request that comes just then."""
    script = Script()
    peer = script.server()
    peer.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    peer.recv(GET)
    peer.close()
    played = script.play()
    assert answered(played.responses) == [(408, b"", None)]
    assert played.requests[0].number != played.responses[0].number
    assert played.pipeline.counters.unpaired == 1


@roles
def test_a_tunnel_whose_answer_has_a_length(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n")
    peer.response(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    peer.request(GET)
    played = script.play()
    assert asked(played.requests) == [("CONNECT", "a:443", b"")]
    assert played.rows()["tunnel"] == len(GET)


@roles
def test_an_answer_to_head_of_the_length_of_what_follows(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"HEAD /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    peer.response(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(OK) + OK)
    assert answered(script.play().responses) == [(200, b"", "/1"), (200, b"ok", "/2")]


# --- limits -------------------------------------------------------------------------------------------------------


@roles
@pytest.mark.parametrize("limit", [0, 1, 4, 5, 6])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_body_limit(role: int, limit: int, chunked: bool) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\n" + (
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" if chunked else b"Content-Length: 5\r\n\r\nhello"
    )
    results = []
    for pieces in ([head], one_by_one(head)):
        script = Script()
        script.open(role).request(*pieces)
        message = script.play(body_limit=limit).requests[0]
        assert (message.body, message.body_bytes) == (b"hello"[:limit], 5)
        assert message.completeness is (Completeness.COMPLETE if limit >= 5 else Completeness.TRUNCATED)
        assert message.stream_bytes == len(head)
        results.append(message.raw_body)
    assert results[0] == results[1] == (b"5\r\nhello\r\n0\r\n\r\n"[:limit] if chunked else None)


def big(size: int) -> bytes:
    return b"POST /big HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size


@roles
def test_what_would_not_be_kept_is_skipped_in_the_kernel(role: int) -> None:
    size = 64 * 1024 * 1024
    script = Script()
    peer = script.open(role, positions=(0xFFFFFF00, 0xFFFFFF00))
    peer.request(big(size))
    start = peer.positions[peer.request_direction]
    peer.request(b"a" * 3000)
    assert script.play(drain=False).commands == []  # the limit is not reached
    peer.request(b"b" * 3000)
    [skip] = script.play(drain=False).commands
    assert skip == Skip(peer.socket, peer.request_direction, (start + size - 1) & 0xFFFFFFFF)
    # The kernel side was told; the next to come is the call with the last byte. The jump is no gap.
    peer.lose(peer.request_direction, size - 6000 - 10)
    peer.request(b"c" * 10)
    peer.response(OK)
    played = script.play()
    message = played.requests[0]
    assert (message.body_bytes, message.stream_bytes) == (size, size + len(big(size)))
    assert message.body == b"a" * 3000 + b"b" * 1096
    assert (message.completeness, message.missing_bytes) == (Completeness.TRUNCATED, 0)
    assert answered(played.responses) == [(200, b"ok", "/big")]
    assert played.commands == [skip]
    assert "pending" not in played.rows()


@roles
def test_pieces_that_came_before_the_kernel_heard_of_it(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(big(1_000_000), b"a" * 5000, b"b" * 5000, b"c" * 990_000)
    peer.request(GET)
    played = script.play()
    assert len(played.commands) == 1
    assert asked(played.requests)[1] == ("GET", "/", b"")
    assert played.requests[0].body_bytes == 1_000_000
    assert set(played.rows()) == {"recorded"}


def test_a_body_below_the_limit_is_not_skipped() -> None:
    script = Script()
    peer = script.server()
    peer.recv(big(2_000_000), b"a" * 100_000, b"b" * 1_900_000)
    played = script.play(body_limit=4_000_000)
    assert played.commands == []
    assert played.requests[0].body_bytes == len(played.requests[0].body) == 2_000_000


def test_a_body_that_is_soon_over_is_not_skipped() -> None:
    script = Script()
    peer = script.server()
    peer.recv(big(SKIP_WORTH_BYTES + 6000), b"a" * 6000)
    assert script.play().commands == []


def test_more_than_can_be_skipped_at_once() -> None:
    script = Script()
    peer = script.server()
    peer.recv(big(3 * SKIP_MAX_BYTES), b"a" * 5000)
    first = peer.positions[wire.RECV]
    peer.lose(wire.RECV, SKIP_MAX_BYTES - 10)
    peer.recv(b"b" * 20)
    second = peer.positions[wire.RECV]
    commands = script.play(drain=False).commands
    assert commands == [
        Skip(peer.socket, wire.RECV, (first + SKIP_MAX_BYTES - 1) & 0xFFFFFFFF),
        Skip(peer.socket, wire.RECV, (second + SKIP_MAX_BYTES - 1) & 0xFFFFFFFF),
    ]


def test_a_jump_that_nobody_asked_for_is_a_gap() -> None:
    script = Script()
    peer = script.server()
    peer.recv(big(100_000), b"a" * 10)
    peer.lose(wire.RECV, 99_980)
    peer.recv(b"b" * 10)
    script.wait(1)
    played = script.play()
    message = played.requests[0]
    assert (message.completeness, message.missing_bytes, message.missing_reason) == (
        Completeness.GAP,
        99_980,
        "unknown",
    )
    assert (message.body, message.body_bytes) == (b"a" * 10, 100_000)
    assert played.rows() == {"gap": len(big(100_000)) + 20}


# --- bytes that nobody saw ----------------------------------------------------------------------------------------


def test_a_sent_file_in_the_middle() -> None:
    script = Script()
    peer = script.server()
    peer.recv(GET)
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 64000000\r\n\r\n")
    peer.sendfile(63_000_000, b"start of the file")
    peer.sendfile(1_000_000)
    peer.recv(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    peer.send(OK)
    played = script.play()
    message = played.responses[0]
    assert (message.body, message.body_bytes) == (b"start of the file", 64_000_000)
    assert message.stream_bytes == 64_000_045
    assert message.completeness is Completeness.GAP
    assert (message.missing_bytes, message.missing_reason) == (64_000_000, "sendfile")
    assert answered(played.responses)[1] == (200, b"ok", "/2")
    assert played.rows() == {"recorded": 45 + len(GET) + 28 + len(OK), "sendfile": 64_000_000}
    assert played.rows("calls") == {"recorded": 6}


def test_no_more_is_shown_of_a_file_than_the_body_holds() -> None:
    script = Script()
    peer = script.server()
    peer.recv(GET)
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")
    peer.sendfile(10, b"0123456789")
    message = script.play().responses[0]
    assert (message.body, message.body_bytes, message.completeness) == (b"012", 3, Completeness.GAP)


@roles
def test_chunks_that_go_wrong_behind_a_hole(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\na\r\n01")
    peer.piece(peer.request_direction, b"", length=8, reason=wire.REASON_UNREADABLE)
    peer.request(b"\r\nno chunk\r\n")
    message = script.play().requests[0]
    assert (message.completeness, message.missing_bytes, message.body_bytes) == (Completeness.GAP, 8, 10)


@roles
def test_an_empty_line_at_the_end_of_a_piece_belongs_to_what_follows(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(GET + b"\r\n", GET)
    played = script.play()
    assert len(played.requests) == 2
    assert played.rows() == {"recorded": 2 * len(GET) + 2}


@roles
@pytest.mark.parametrize(
    ("reason", "row", "completeness", "name"),
    [
        (wire.REASON_OVER_LIMIT, "over_limit", Completeness.TRUNCATED, ""),
        (wire.REASON_SPLICE, "splice", Completeness.GAP, "splice"),
        (wire.REASON_UNREADABLE, "unreadable", Completeness.GAP, "unknown"),
    ],
)
def test_a_piece_without_its_bytes(role: int, reason: int, row: str, completeness: Completeness, name: str) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nab")
    peer.piece(peer.request_direction, b"", length=90, reason=reason)
    peer.request(b"12345678")
    played = script.play()
    message = played.requests[0]
    assert (message.completeness, message.missing_reason, message.body) == (completeness, name, b"ab")
    assert (message.body_bytes, message.stream_bytes) == (100, 149)
    assert played.rows()[row] == 90


@roles
def test_over_the_limit_in_the_framing_of_chunks(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    peer.piece(peer.request_direction, b"", length=1000, reason=wire.REASON_OVER_LIMIT)
    peer.request(b"5\r\nhello\r\n0\r\n\r\n")
    message = script.play().requests[0]
    assert message.completeness is Completeness.GAP
    assert (message.missing_bytes, message.missing_reason) == (1000, "budget")
    # How much of it was this body nobody knows.
    assert (message.body, message.body_bytes) == (b"hello", 5)


@roles
def test_a_gap_ends_what_it_falls_into_and_the_next_message_is_right(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    peer.lose(peer.request_direction, 50)
    peer.request(b"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
    script.wait(0.3)
    peer.response(OK, OK)
    script.wait(1.1)
    peer.request(b"GET /3 HTTP/1.1\r\nHost: a\r\n\r\n")
    peer.response(OK)
    played = script.play()
    assert [(m.head.target, m.completeness.value) for m in played.requests] == [
        ("/1", "gap"),
        ("/2", "complete"),
        ("/3", "complete"),
    ]
    # The first was asked before the hole. Whether the second answer is that of /2, or of one in the hole, is not known.
    assert [m.request.head.target if m.request else None for m in played.responses] == ["/1", None, "/3"]
    assert len({m.number for m in played.messages}) == 4


@roles
def test_back_in_step_after_answers_that_could_not_be_read(role: int) -> None:
    script = Script()
    peer = script.open(role)
    for number in range(1, 4):
        peer.request(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
        if number == 1:
            peer.response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n")
        elif number == 2:
            peer.response(b"0\r\n\r\n" + OK)  # begins inside of a piece: not found
        else:
            peer.response(OK)
    script.wait(1.1)
    peer.request(b"GET /4 HTTP/1.1\r\nHost: a\r\n\r\n")
    peer.response(OK)
    played = script.play()
    assert [m.request.head.target if m.request else None for m in played.responses] == ["/1", None, "/4"]
    assert [m.completeness.value for m in played.responses] == ["partial", "complete", "complete"]


def test_a_hole_behind_answers_that_wait_for_their_requests() -> None:
    """Too much of what comes early forces the hole open before anybody's time is over."""
    script = Script()
    peer = script.client()
    peer.recv(OK)
    peer.lose(wire.RECV, 10)
    peer.recv(*one_by_one(b"x" * 5000))
    played = script.play()
    assert answered(played.responses) == [(200, b"ok", None)]
    assert played.rows() == {"recorded": len(OK), "unparsed": 5000}
    assert sum(played.rows("calls").values()) == 5001


def test_the_end_of_a_body_that_was_lost_is_missed() -> None:
    """The position at which a socket was closed tells."""
    script = Script()
    peer = script.server()
    peer.recv(GET)
    peer.send(b"HTTP/1.1 200 OK\r\n\r\nbeginning")
    peer.lose(wire.SEND, 500)
    peer.close()
    script.wait(1)
    message = script.play().responses[0]
    assert (message.completeness, message.missing_bytes) == (Completeness.GAP, 500)
    assert (message.body, message.body_bytes) == (b"beginning", 509)


# --- order --------------------------------------------------------------------------------------------------------


def test_a_response_that_overtook_its_request_waits_for_it() -> None:
    script = Script()
    peer = script.client()
    peer.send(GET)
    peer.recv(OK)
    opened, request, response = script.steps
    played = script.play([opened, response, request])
    assert answered(played.responses) == [(200, b"ok", "/")]
    assert [m.number for m in played.messages] == [1, 1]
    assert played.rows() == {"recorded": len(GET + OK)}


def test_a_response_that_overtook_its_request_in_pieces_and_with_the_end() -> None:
    script = Script()
    peer = script.client()
    peer.send(GET)
    peer.recv(b"HTTP/1.1 200 OK\r\n", b"\r\nbo", b"dy")
    peer.end()
    opened, request, *rest = script.steps
    played = script.play([opened, *rest, request])
    assert answered(played.responses) == [(200, b"body", "/")]
    assert played.responses[0].completeness is Completeness.COMPLETE
    assert played.rows() == {"recorded": len(GET) + 23}


def test_a_response_whose_request_never_comes_waits_no_longer_than_a_quarter_of_a_second() -> None:
    script = Script()
    peer = script.client()
    peer.lose(wire.SEND, len(GET))
    peer.recv(OK)
    script.wait(0.2)
    assert script.play(drain=False).messages == []
    script.wait(0.1)
    assert answered(script.play(drain=False).messages) == [(200, b"ok", None)]


def test_a_servers_answer_never_overtakes_and_so_never_waits() -> None:
    """Else the answer to a request from before would be given to the next."""
    script = Script()
    peer = script.server()
    peer.lose(wire.RECV, len(GET))
    peer.send(OK)
    peer.recv(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answered(script.play().responses) == [(200, b"ok", None)]


@roles
def test_pieces_in_disorder_and_twice(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n", b"ab", b"cd", b"ef")
    opened, head, ab, cd, ef = script.steps
    played = script.play([opened, head, cd, cd, ef, ab, ab, head])
    assert asked(played.requests) == [("POST", "/", b"abcdef")]
    assert played.rows() == {"recorded": 47 + 6, "unparsed": 47 + 4}
    assert played.rows("calls")["recorded"] + played.rows("calls").get("unparsed", 0) == 7


@roles
def test_positions_wrap(role: int) -> None:
    script = Script()
    peer = script.open(role, positions=(0xFFFFFFF0, 0xFFFFFFFF))
    for _ in range(3):
        peer.request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n", b"hi")
        peer.response(OK)
    played = script.play()
    assert asked(played.requests) == [("POST", "/", b"hi")] * 3
    assert all(0 <= m.position <= 0xFFFFFFFF for m in played.messages)
    assert all(m.request for m in played.responses)


@roles
def test_an_end_that_is_seen_too_early(role: int) -> None:
    """Another thread closed while the last call was on its way to the ring."""
    script = Script()
    peer = script.open(role)
    peer.request(GET)
    peer.response(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", b"body")
    peer.close()
    opened, ask, head, body, gone = script.steps
    played = script.play([opened, ask, head, gone, body])
    assert answered(played.responses) == [(200, b"body", "/")]
    assert played.responses[0].completeness is Completeness.COMPLETE


# --- joined -------------------------------------------------------------------------------------------------------


@roles
def test_joined_when_an_answer_is_under_way(role: int) -> None:
    script = Script()
    peer = script.open(role, fresh=False)
    peer.response(OK)
    peer.request(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    peer.response(OK)
    assert answered(script.play().responses) == [(200, b"ok", None), (200, b"ok", "/next")]


@roles
def test_joined_when_a_request_is_half_sent(role: int) -> None:
    script = Script()
    peer = script.open(role, fresh=False)
    peer.request(b"the rest of a body\r\n\r\n")
    peer.response(OK)
    peer.request(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    peer.response(OK)
    played = script.play()
    assert asked(played.requests) == [("GET", "/next", b"")]
    assert answered(played.responses) == [(200, b"ok", None), (200, b"ok", "/next")]
    assert played.rows()["unparsed"] == 22


@roles
@pytest.mark.parametrize("rest", [b"OST /a HTTP/1.1\r\nHost: a\r\n\r\n", b"T /a HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_joined_in_the_middle_of_a_method(role: int, rest: bytes) -> None:
    script = Script()
    peer = script.open(role, fresh=False)
    peer.request(rest)
    peer.response(OK)
    peer.request(GET)
    played = script.play()
    assert asked(played.requests) == [("GET", "/", b"")]
    assert answered(played.responses) == [(200, b"ok", None)]


@roles
def test_a_server_that_reads_one_byte_by_itself(role: int) -> None:
    """Go's does, to notice that the client goes away; after a loss we must find back into that, too."""
    script = Script()
    peer = script.open(role)
    peer.request(GET)
    peer.response(OK)
    peer.lose(peer.request_direction, 10)
    peer.request(b"tail of what was lost", b"G", b"ET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    script.wait(0.3)
    played = script.play()
    assert asked(played.requests) == [("GET", "/", b""), ("GET", "/2", b"")]


def test_joined_with_no_announcement_roles_show_themselves() -> None:
    script = Script()
    peer = script.client(fresh=False, announced=False)
    peer.send(GET)
    peer.recv(OK)
    played = script.play()
    assert [m.link.role for m in played.messages] == [Role.CLIENT] * 2
    assert answered(played.responses) == [(200, b"ok", "/")]


def test_an_answer_to_something_unseen_of_which_nothing_more_is_seen() -> None:
    """A HEAD may have been asked: no size is claimed. A file that is sent tells that it was none."""
    script = Script()
    lost = script.server(fresh=False)
    lost.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
    lost.lose(wire.SEND, 500)
    lost.send(OK)
    sent = script.server(fresh=False, local=("127.0.0.1", 1))
    sent.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
    sent.sendfile(500)
    script.wait(1)
    played = script.play()
    shown = {m.link.local_port: m for m in reversed(played.responses)}
    assert (shown[54321].body_bytes, shown[54321].completeness) == (0, Completeness.PARTIAL)
    assert (shown[1].body_bytes, shown[1].completeness) == (500, Completeness.GAP)


@roles
def test_an_answer_to_an_unseen_head_has_no_body(role: int) -> None:
    script = Script()
    peer = script.open(role, fresh=False)
    peer.response(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
    peer.response(*one_by_one(b"HTTP/1.1 204 No Content\r\n\r\n"))
    played = script.play()
    assert [(m.head.status, m.body_bytes) for m in played.responses] == [(200, 0), (204, 0)]


# --- time ---------------------------------------------------------------------------------------------------------


def stream(script: Script) -> Peer:
    peer = script.client()
    peer.send(b"GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n")
    peer.recv(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    return peer


def test_server_sent_events_give_one_interim_record_and_a_final_one() -> None:
    script = Script()
    peer = stream(script)
    for number in range(10):
        peer.recv(b"9\r\ndata: %d\n\n\r\n" % number)
        script.wait(1)
    peer.recv(b"0\r\n\r\n")
    played = script.play()
    request, interim, final = played.messages
    assert interim.completeness is Completeness.OPEN
    assert interim.body == b"".join(b"data: %d\n\n" % number for number in range(5))
    assert interim.raw_body is not None and interim.raw_body.startswith(b"9\r\ndata: 0")
    assert final.completeness is Completeness.COMPLETE
    assert final.body == b"".join(b"data: %d\n\n" % number for number in range(10))
    assert interim.number == final.number == request.number
    assert interim.request is final.request is request
    assert final.end_ns - final.time_ns > 9_000_000_000


def test_no_interim_record_with_an_interval_of_nothing() -> None:
    script = Script()
    peer = stream(script)
    script.wait(60)
    peer.recv(b"0\r\n\r\n")
    assert [m.completeness.value for m in script.play(stream_interval_ns=0).messages] == ["complete"] * 2


@roles
def test_what_is_in_hand_at_the_end_comes_out(role: int) -> None:
    script = Script()
    peer = script.open(role)
    peer.request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf", GET[:5])
    other = script.open(role, local=("127.0.0.1", 1))
    other.request(b"GET / HT")
    played = script.play()
    assert [(m.body, m.completeness.value) for m in played.messages] == [(b"half" + GET[:5], "complete")]
    assert played.rows() == {"recorded": 56, "unparsed": 8}


@roles
def test_coded_bodies_are_kept_as_they_were(role: int) -> None:
    coded = gzip.compress(b"text")
    script = Script()
    peer = script.open(role)
    peer.request(GET)
    peer.response(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(coded) + coded)
    message = script.play().responses[0]
    assert message.body == coded
    assert message.head.fields.content_encoding == ("gzip",)


def test_a_tick_changes_nothing_where_nobody_waits() -> None:
    script = Script()
    peer = script.client()
    for _ in range(3):
        peer.send(GET)
        script.steps.append(Tick(script.time_ns + 10**12))
        peer.recv(OK)
    assert [m.number for m in script.play().messages] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("after_loss", "name"), [(True, "ring_full"), (False, "unknown")])
def test_why_bytes_are_missing_is_told_by_what_comes_after_them(after_loss: bool, name: str) -> None:
    script = Script()
    peer = script.server()
    peer.request(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\n0123456789")
    peer.lose(peer.request_direction, 10)
    peer.piece(peer.request_direction, b"0123456789", after_loss=after_loss)
    message = script.play().requests[0]
    assert (message.completeness, message.missing_bytes, message.missing_reason) == (Completeness.GAP, 10, name)
    assert message.body == b"0123456789"


def test_what_is_known_to_be_lost_is_not_waited_for() -> None:
    script = Script()
    peer = script.server()
    peer.request(GET)
    peer.response(b"HTTP/1.1 204 No Content\r\n\r\n")
    peer.lose(peer.request_direction, 100)
    peer.piece(peer.request_direction, GET, after_loss=True)
    played = script.play(drain=False)
    assert [message.head.target for message in played.requests] == ["/", "/"]
    assert not played.pipeline.shared.busy
