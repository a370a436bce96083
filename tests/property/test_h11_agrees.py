"""h11 as the oracle: where it takes a head or a body, ours is the same."""

from __future__ import annotations

import h11
from hypothesis import given
from hypothesis import strategies as st

from netprofiler.exchange import Completeness, Head, Message
from netprofiler.protocols.http1 import CHUNKED, UNTIL_CLOSE, HeadParser, body_length, head_end
from netprofiler.testing import Script, split

NAMES = st.sampled_from([b"x-a", b"x-a", b"X-A", b"Cookie", b"!#$%&'*+-.^_`|~0aZ", b"Content-Length", b"Upgrade"])
VALUES = st.sampled_from(
    [
        b"a",
        b"",
        b" a",
        b"a\t",
        b" two  words ",
        b"5",
        b"0",
        b"5, 5",
        b"5,6",
        b"-1",
        b"caf\xc3\xa9",
        b"\xff",
        b"a:b",
        b'"q"',
    ]
)
LINES = st.lists(st.tuples(NAMES, st.sampled_from([b":", b": "]), VALUES).map(b"".join), max_size=6)
CODINGS = st.sampled_from(
    [
        b"",
        b"",
        b"Transfer-Encoding: chunked",
        b"transfer-encoding:CHUNKED",
        b"Transfer-Encoding: gzip",
        b" folded",
        b"\tx",
    ]
)
EOLS = st.sampled_from([b"\r\n", b"\r\n", b"\n"])
REQUEST_LINES = st.sampled_from(
    [b"GET / HTTP/1.1", b"POST /a?b=c HTTP/1.1", b"M-SEARCH * HTTP/1.1", b"GET http://a/b HTTP/1.0", b"GET /a HTTP/1.1"]
)
STATUS_LINES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 404 Not Found",
        b"HTTP/1.0 200 ",
        b"HTTP/1.1 204",
        b"HTTP/1.1 304 x",
        b"HTTP/1.1 500 a\xe9",
    ]
)


@st.composite
def blocks(draw: st.DrawFn, lines: st.SearchStrategy[bytes], mutated: bool = True) -> bytes:
    eol = draw(EOLS)
    fields = draw(LINES)
    if draw(st.integers(0, 5)):
        fields.insert(0, draw(st.sampled_from([b"Host: a", b"hOST:a"])))
    coding = draw(CODINGS)
    if coding:
        fields.insert(draw(st.integers(min(1, len(fields)), len(fields))), coding)
    head = eol.join([draw(lines), *fields]) + eol + eol
    if mutated and draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(head)))
        head = head[:at] + draw(st.sampled_from([b" ", b"\r", b"\n", b"\0", b":", b"x", b""])) + head[at + 1 :]
    return head


def _h11_request(data: bytes) -> h11.Connection:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    return connection


def _h11_response(data: bytes, method: str) -> h11.Connection:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method=method, target="/" if method != "CONNECT" else "a:1", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    return connection


def _check_fields(head: Head, event: h11.Request | h11.Response) -> None:
    """Names as sent and values; but for what h11 changes: repeated lengths are one, codings are lower case."""
    theirs = [(name.lower().decode(), _text(value)) for name, value in event.headers.raw_items()]
    ours = [(name.lower(), value) for name, value in head.fields.headers]
    changed = ("content-length", "transfer-encoding")
    assert [item for item in ours if item[0] not in changed] == [item for item in theirs if item[0] not in changed]
    exactly = {name for name, _ in event.headers.raw_items()} - {b"Content-Length"}
    assert exactly <= {name.encode("latin-1") for name, _ in head.fields.headers}
    for name in changed:
        assert {v.lower().split(",")[0].strip() for k, v in ours if k == name} == {
            v.split(",")[0].strip() for k, v in theirs if k == name
        }


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


@given(blocks(REQUEST_LINES))
def test_request_heads(data: bytes) -> None:
    end = head_end(data)
    head = HeadParser().request(data[:end]) if end > 0 else None
    try:
        event = _h11_request(data).next_event()
    except h11.RemoteProtocolError:
        return  # ours may be more lenient; that nothing raised is the point
    if not isinstance(event, h11.Request):
        assert head is None
        return
    assert head is not None
    assert head.method.encode() == event.method
    assert head.target.encode() == event.target
    assert head.version.encode() == b"HTTP/" + event.http_version
    _check_fields(head, event)
    lengths = [int(value.split(b",")[0]) for name, value in event.headers if name == b"content-length"]
    coded = any(name == b"transfer-encoding" for name, _ in event.headers)
    assert body_length(head, None) == (CHUNKED if coded else lengths[0] if lengths else 0)


@given(blocks(STATUS_LINES), st.sampled_from(["GET", "HEAD", "POST"]))
def test_response_heads(data: bytes, method: str) -> None:
    end = head_end(data)
    head = HeadParser().response(data[:end]) if end > 0 else None
    try:
        event = _h11_response(data, method).next_event()
    except h11.RemoteProtocolError:
        return
    if not isinstance(event, h11.Response):
        assert head is None
        return
    assert head is not None
    assert head.status == event.status_code
    assert head.reason in (event.reason.decode("latin-1"), event.reason.decode("utf-8", "replace"))
    _check_fields(head, event)
    lengths = [int(value.split(b",")[0]) for name, value in event.headers if name == b"content-length"]
    coded = any(name == b"transfer-encoding" for name, _ in event.headers)
    bodiless = method == "HEAD" or event.status_code in (204, 304)
    expected = 0 if bodiless else CHUNKED if coded else lengths[0] if lengths else UNTIL_CLOSE
    assert body_length(head, method) == expected


BODIES = st.one_of(
    st.binary(max_size=12),
    st.lists(
        st.sampled_from(
            [b"5\r\nhello\r\n", b"A;x=y\r\n0123456789\r\n", b"0\r\n\r\n", b"0\r\nA: b\r\n\r\n", b"1\r\nx", b"\r\n"]
        ),
        max_size=4,
    ).map(b"".join),
)


def _read(connection: h11.Connection, closed: bool) -> tuple[bytes, bool, bytes]:
    """Body, whether it is over, and what lies behind it."""
    if closed:
        connection.receive_data(b"")
    body = b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return body, True, connection.trailing_data[0]
        elif not isinstance(event, (h11.Request, h11.Response)):
            return body, False, b""


def _check_body(message: Message, expected: tuple[bytes, bool, bytes], total: int) -> None:
    body, over, behind = expected
    assert message.body == body
    assert message.body_bytes == len(body)
    assert (message.completeness is Completeness.COMPLETE) == over
    if over:
        assert message.stream_bytes == total - len(behind)


@given(blocks(REQUEST_LINES, mutated=False), BODIES, st.lists(st.integers(0, 200), max_size=4))
def test_request_bodies(head: bytes, body: bytes, cuts: list[int]) -> None:
    data = head + body
    try:
        expected = _read(_h11_request(data), closed=False)
    except h11.RemoteProtocolError:
        return
    script = Script()
    script.server().recv(*split(data, cuts))
    message = script.play().requests[0]
    _check_body(message, expected, len(data))


@given(
    blocks(STATUS_LINES, mutated=False),
    BODIES,
    st.lists(st.integers(0, 200), max_size=4),
    st.sampled_from(["GET", "HEAD", "POST"]),
)
def test_response_bodies(head: bytes, body: bytes, cuts: list[int], method: str) -> None:
    data = head + body
    try:
        expected = _read(_h11_response(data, method), closed=True)
    except h11.RemoteProtocolError:
        return
    script = Script()
    client = script.client()
    client.send(f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    client.recv(*split(data, cuts))
    client.end()
    message = script.play().responses[0]
    _check_body(message, expected, len(data))
