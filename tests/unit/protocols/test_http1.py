"""netprofiler.protocols.http1: heads and how their bodies are framed."""

from __future__ import annotations

import pytest

from netprofiler.protocols import http1
from netprofiler.protocols.http1 import (
    CHUNKED,
    METHODS,
    UNFRAMED,
    UNTIL_CLOSE,
    HeadParser,
    begins_with_method,
    body_length,
    head_end,
    looks_like_request,
)


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 18),
        (b"GET / HTTP/1.1\n\n", 16),
        (b"GET / HTTP/1.1\r\nA: b\n\r\nbody\r\n\r\n", 23),
        (b"GET / HTTP/1.1\r\nA: b\n\nbody\r\n\r\n", 22),
        (b"a\n\n\r\n", 3),
        (b"a\r\n\r\nbody\n\n", 5),
        (b"GET / HTTP/1.1\r\n\r", -1),
        (b"GET / HTTP/1.1\r\nA: b\r\n", -1),
        (b"", -1),
    ],
)
def test_head_end(data: bytes, end: int) -> None:
    assert head_end(data) == end
    assert head_end(bytearray(data)) == end
    # However much of it was looked at before.
    for before in range(len(data)):
        if head_end(data[:before]) < 0:
            assert head_end(data, max(0, before - 3)) == end


def request(data: bytes) -> tuple[str, str, str, tuple[tuple[str, str], ...]]:
    head = HeadParser().request(data)
    assert head is not None
    assert head.size == len(data)
    return head.method, head.target, head.version, head.fields.headers


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", ("GET", "/", "HTTP/1.1", (("Host", "a"),))),
        (b"GET / HTTP/1.0\r\n\r\n", ("GET", "/", "HTTP/1.0", ())),
        # No Host: h11 refuses it.
        (b"GET / HTTP/1.1\r\nA: b\r\n\r\n", ("GET", "/", "HTTP/1.1", (("A", "b"),))),
        (
            b"PATCH /x HTTP/1.1\nHost: a\nset-cookie: 1\nSet-Cookie:2\n\n",
            ("PATCH", "/x", "HTTP/1.1", (("Host", "a"), ("set-cookie", "1"), ("Set-Cookie", "2"))),
        ),
        (
            b"GET / HTTP/1.1\r\nhOST: a\r\nX-Long: one\r\n\ttwo\r\n  three \r\n\r\n",
            ("GET", "/", "HTTP/1.1", (("hOST", "a"), ("X-Long", "one two three"))),
        ),
        (
            b"GET /caf\xc3\xa9 HTTP/1.1\r\nHost: a\r\nA: \xc3\xa9\r\nB: \xff\r\n\r\n",
            ("GET", "/café", "HTTP/1.1", (("Host", "a"), ("A", "é"), ("B", "ÿ"))),
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\nTransfer-Encoding : Chunked\r\n\r\n",
            (
                "POST",
                "/",
                "HTTP/1.1",
                (("Host", "a"), ("Content-Length", "5"), ("Content-Length", "5"), ("Transfer-Encoding", "Chunked")),
            ),
        ),
        (b"OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n", ("OPTIONS", "*", "HTTP/1.1", (("Host", ""),))),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", ("CONNECT", "a:443", "HTTP/1.1", (("Host", "a:443"),))),
        (b"M-SEARCH * HTTP/1.1\r\nHost: a\r\n\r\n", ("M-SEARCH", "*", "HTTP/1.1", (("Host", "a"),))),
    ],
)
def test_requests(data: bytes, expected: object) -> None:
    assert request(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"G(T / HTTP/1.1\r\n\r\n",
        b"\r\n",
        b"",
        b"x",
    ],
)
def test_no_requests(data: bytes) -> None:
    assert HeadParser().request(data) is None


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        (b"HTTP/1.1 200 OK", 200, "OK"),
        (b"HTTP/1.1 404 Not Found At All", 404, "Not Found At All"),
        (b"HTTP/1.1 204 ", 204, ""),
        (b"HTTP/1.0 204", 204, ""),
        (b"HTTP/1.1 599 caf\xe9", 599, "café"),
    ],
)
def test_responses(line: bytes, status: int, reason: str) -> None:
    head = HeadParser().response(line + b"\r\nA: b\r\n\r\n")
    assert head is not None
    assert (head.status, head.reason, head.fields.headers) == (status, reason, (("A", "b"),))


@pytest.mark.parametrize("line", [b"HTTP/1.1 20 OK", b"HTTP/1.1 2000", b"HTTP/1.1  200", b"HTTP/2 200", b"OK"])
def test_no_responses(line: bytes) -> None:
    assert HeadParser().response(line + b"\r\n\r\n") is None


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        (b"", 0),
        (b"Content-Length: 5\r\n", 5),
        (b"Content-Length: 5, 5\r\n", 5),
        (b"Content-Length: 5\r\nContent-Length: 5\r\n", 5),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", UNFRAMED),
        (b"Content-Length: -5\r\n", UNFRAMED),
        (b"Content-Length: +5\r\n", UNFRAMED),
        (b"Content-Length: \r\n", UNFRAMED),
        (b"Content-Length: 0x5\r\n", UNFRAMED),
        (b"Content-Length: 99999999999999999999\r\n", UNFRAMED),
        (b"Transfer-Encoding: chunked\r\n", CHUNKED),
        (b"Transfer-Encoding: gzip, Chunked\r\n", CHUNKED),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", CHUNKED),
        (b"Content-Length: 5\r\nTransfer-Encoding: gzip\r\n", UNFRAMED),
    ],
)
def test_framing_of_requests(fields: bytes, length: int) -> None:
    head = HeadParser().request(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
    assert head is not None
    assert body_length(head, None) == length
    assert head.plain_length == (length if length >= 0 else -1)


@pytest.mark.parametrize(
    ("status", "fields", "method", "length"),
    [
        (200, b"", "GET", UNTIL_CLOSE),
        (200, b"Content-Length: 5\r\n", "GET", 5),
        (200, b"Content-Length: 5\r\n", None, 5),
        (200, b"Content-Length: 5\r\n", "HEAD", 0),
        (200, b"Transfer-Encoding: chunked\r\n", "HEAD", 0),
        (204, b"Content-Length: 5\r\n", "GET", 0),
        (304, b"Content-Length: 5\r\n", "GET", 0),
        (100, b"", "POST", 0),
        (103, b"Content-Length: 5\r\n", "POST", 0),
        (101, b"", "GET", 0),
        (200, b"Transfer-Encoding: chunked\r\n", "CONNECT", 0),
        (407, b"Content-Length: 5\r\n", "CONNECT", 5),
        (200, b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "GET", CHUNKED),
        (200, b"Transfer-Encoding: gzip\r\nContent-Length: 5\r\n", "GET", UNTIL_CLOSE),
        (200, b"Content-Length: 5\r\nContent-Length: 6\r\n", "GET", UNFRAMED),
    ],
)
def test_framing_of_responses(status: int, fields: bytes, method: str | None, length: int) -> None:
    head = HeadParser().response(f"HTTP/1.1 {status} X\r\n".encode() + fields + b"\r\n")
    assert head is not None
    assert body_length(head, method) == length


def test_codings_in_the_order_in_which_they_were_applied() -> None:
    data = b"HTTP/1.1 200 OK\r\nContent-Encoding: GZIP, identity\r\ncontent-encoding: br\r\nTransfer-Encoding: zstd, chunked\r\n\r\n"
    head = HeadParser().response(data)
    assert head is not None
    assert head.fields.content_encoding == ("gzip", "br", "zstd")


@pytest.mark.parametrize("start", ["CONNECT a:1 HTTP/1.1\r\n", "GET / HTTP/1.1\r\nUpgrade: h2c\r\n"])
def test_what_may_end_http_is_not_plain(start: str) -> None:
    head = HeadParser().request(f"{start}Host: a\r\n\r\n".encode())
    assert head is not None
    assert head.plain_length == -1


def test_a_head_is_parsed_once_and_its_fields_shared() -> None:
    parser = HeadParser()
    first = parser.request(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
    second = parser.request(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert first is parser.request(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert first is not None and second is not None
    assert first.fields is second.fields
    assert first.target != second.target


def test_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "CACHED_HEADS", 16)
    parser = HeadParser()
    for number in range(100):
        assert parser.request(f"GET /{number} HTTP/1.1\r\nHost: {number}\r\n\r\n".encode()) is not None
        assert len(parser.requests) <= 16
        assert len(parser._fields) <= 16
    assert b"GET /99 HTTP/1.1\r\nHost: 99\r\n\r\n" in parser.requests
    large = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * http1.CACHED_HEAD_BYTES + b"\r\n\r\n"
    assert parser.request(large) is not None
    assert large not in parser.requests


def test_a_cut_method_is_no_method() -> None:
    cut = {method[start:] for method in METHODS for start in range(1, len(method))}
    # PROPPATCH and M-SEARCH leave a method; both are rarer than what they leave.
    assert cut & METHODS <= {b"PATCH", b"SEARCH"}
    assert begins_with_method(b"POST /a HTTP/1.1\r\n")
    assert begins_with_method(b"POST /a HT")
    assert begins_with_method(b"G")
    assert not begins_with_method(b"OST /a HTTP/1.1\r\n")
    assert not begins_with_method(b"hello")
    assert not begins_with_method(b"GET a b c\r\n")


def test_looks_like_request_without_a_whole_line() -> None:
    assert looks_like_request(b"GET /" + b"a" * 8000)
    assert not looks_like_request(b"\x00\x01" * 50)
