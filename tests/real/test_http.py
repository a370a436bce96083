"""HTTP/1 as it is allowed to be, on connections of which this process holds both ends: the log has what was sent, to the byte."""

from __future__ import annotations

import base64
import gzip
import random
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard

from tests.real.harness.checks import BODY_LIMIT_BYTES, Exchange
from tests.real.harness.lab import Lab
from tests.real.harness.truth import pattern
from tests.real.harness.wire import pause

pytestmark = pytest.mark.real


def request(target: str, method: str = "GET", headers: str = "", body: bytes = b"") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body or method in ("POST", "PUT") else ""
    return f"{method} {target} HTTP/1.1\r\nHost: lab\r\n{headers}{length}\r\n".encode() + body


def response(status: str = "200 OK", headers: str = "", body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def chunked(*chunks: bytes, extension: str = "", trailers: str = "") -> bytes:
    out = b"".join(f"{len(chunk):x}{extension}\r\n".encode() + chunk + b"\r\n" for chunk in chunks)
    return out + f"0{extension}\r\n{trailers}\r\n".encode()


def told(found: list[Exchange]) -> list[tuple[str, str, int, int, str]]:
    return [
        (
            e.request["method"],
            e.request["url"],
            e.response["status_code"],
            e.response["body_bytes"],
            e.response.get("body", ""),
        )
        for e in found
    ]


@pytest.mark.parametrize("up_piece", [None, 1, 7], ids=["one-write", "byte-a-write", "7-a-write"])
@pytest.mark.parametrize("down_piece", [None, 1], ids=["one-response-write", "response-byte-a-write"])
def test_pipelining(lab: Lab, up_piece: int | None, down_piece: int | None) -> None:
    bodies = [pattern(size, f"r{size}") for size in (0, 1, 40, 3, 200, 0, 77)]
    with lab.wire() as wire:
        wire.up(
            b"".join(request(f"/{n}", *(("POST", "", f"body {n}".encode()) if n % 3 == 1 else ())) for n in range(7)),
            up_piece,
        )
        wire.down(b"".join(response(body=body) for body in bodies), down_piece)
    found = lab.exchanges(wire, 7)
    assert told(found) == [
        ("POST" if n % 3 == 1 else "GET", f"/{n}", 200, len(body), body.decode()) for n, body in enumerate(bodies)
    ]
    assert [e.request.get("body") for e in found] == [f"body {n}" if n % 3 == 1 else None for n in range(7)]


def test_pipelined_responses_may_come_while_requests_still_arrive(lab: Lab) -> None:
    with lab.wire() as wire:
        wire.up(request("/a") + request("/b") + request("/c")[:5])
        wire.down(response(body=b"A") + response(body=b"BB")[:20])
        wire.up(request("/c")[5:] + request("/d", "HEAD"))
        wire.down(response(body=b"BB")[20:] + response(body=b"CCC"))
        wire.down(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")
    assert told(lab.exchanges(wire, 4)) == [
        ("GET", "/a", 200, 1, "A"),
        ("GET", "/b", 200, 2, "BB"),
        ("GET", "/c", 200, 3, "CCC"),
        ("HEAD", "/d", 200, 0, ""),
    ]


def test_responses_without_a_body_whatever_their_headers_say(lab: Lab) -> None:
    """RFC 9112, 6.3: HEAD, 204 and 304 end with their head; a Content-Length there announces nothing."""
    with lab.wire() as wire:
        wire.exchange(request("/head", "HEAD"), b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        wire.exchange(request("/head2", "HEAD"), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        wire.exchange(request("/204"), b"HTTP/1.1 204 No Content\r\n\r\n")
        wire.exchange(request("/304"), b'HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\nETag: "x"\r\n\r\n')
        wire.exchange(request("/after"), response(body=b"a body"))
    # What validate_record says of Transfer-Encoding does not hold for HEAD: no chunks came.
    assert told(lab.exchanges(wire, 5)) == [
        ("HEAD", "/head", 200, 0, ""),
        ("HEAD", "/head2", 200, 0, ""),
        ("GET", "/204", 204, 0, ""),
        ("GET", "/304", 304, 0, ""),
        ("GET", "/after", 200, 6, "a body"),
    ]


def test_100_continue(lab: Lab) -> None:
    with lab.wire() as wire:
        body = pattern(600, "upload")
        whole = request("/upload", "PUT", "Expect: 100-continue\r\n", body)
        wire.up(whole[: -len(body)])
        wire.down(b"HTTP/1.1 100 Continue\r\n\r\n")
        wire.up(body)
        wire.down(response("201 Created", body=b"thanks"))
        wire.exchange(request("/after"), response(body=b"next"))
    first, second = lab.exchanges(wire, 2, interim=1)
    assert [r["status_code"] for r in first.interim] == [100]
    assert (first.request["body"], first.request["body_bytes"]) == (body.decode(), 600)
    assert (first.response["status_code"], first.response["body"]) == (201, "thanks")
    assert (second.request["url"], second.interim, second.response["body"]) == ("/after", (), "next")


def test_early_hints_belong_to_the_request_that_they_answer(lab: Lab) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
    with lab.wire() as wire:
        wire.up(request("/a") + request("/b"))
        wire.down(hints + hints)
        pause(0.05)
        wire.down(response(body=b"A") + hints + response(body=b"B"))
    a, b = lab.exchanges(wire, 2, interim=3)
    assert [r["status_code"] for r in a.interim] == [103, 103]
    assert [r["status_code"] for r in b.interim] == [103]
    assert a.interim[0]["headers"] == {"Link": "</style.css>; rel=preload"}
    assert (a.response["body"], b.response["body"]) == ("A", "B")
    assert a.response["ttfb_ms"] >= 50, "the times are those of the final response"


OPAQUE = random.Random(3).randbytes(5000)


def test_after_connect_the_bytes_are_the_tunnels(lab: Lab) -> None:
    with lab.wire() as wire:
        wire.exchange(
            b"CONNECT far.example:443 HTTP/1.1\r\nHost: far.example:443\r\n\r\n", b"HTTP/1.1 200 Connected\r\n\r\n"
        )
        wire.exchange(b"\x16\x03\x01" + OPAQUE, b"\x16\x03\x03" + OPAQUE)
        wire.exchange(OPAQUE, OPAQUE)
    [only] = lab.exchanges(wire, 1, tunnelled=True)
    assert told([only]) == [("CONNECT", "far.example:443", 200, 0, "")]
    assert only.response["reason"] == "Connected"


def test_after_a_refused_connect_it_is_http_still(lab: Lab) -> None:
    with lab.wire() as wire:
        wire.exchange(
            b"CONNECT far.example:443 HTTP/1.1\r\nHost: far.example:443\r\n\r\n", response("403 Forbidden", body=b"no")
        )
        wire.exchange(request("/after"), response(body=b"yes"))
    assert told(lab.exchanges(wire, 2)) == [
        ("CONNECT", "far.example:443", 403, 2, "no"),
        ("GET", "/after", 200, 3, "yes"),
    ]


UPGRADE = "Connection: Upgrade\r\nUpgrade: example\r\n"


@pytest.mark.parametrize("joined", [False, True], ids=["own-write", "same-write"])
def test_after_an_upgrade_the_bytes_are_the_other_protocols(lab: Lab, joined: bool) -> None:
    switching = f"HTTP/1.1 101 Switching Protocols\r\n{UPGRADE}\r\n".encode()
    with lab.wire() as wire:
        wire.up(request("/chat", headers=UPGRADE))
        if joined:
            wire.down(switching + OPAQUE)
        else:
            wire.down(switching)
            wire.down(OPAQUE)
        wire.exchange(OPAQUE, OPAQUE)
    [only] = lab.exchanges(wire, 1, tunnelled=True)
    assert told([only]) == [("GET", "/chat", 101, 0, "")]
    assert only.request["bytes"] == len(request("/chat", headers=UPGRADE))
    assert only.response["bytes"] == len(switching)


def test_an_upgrade_that_is_ignored_changes_nothing(lab: Lab) -> None:
    with lab.wire() as wire:
        wire.exchange(request("/chat", headers=UPGRADE), response(body=b"plain"))
        wire.exchange(request("/after"), response(body=b"next"))
    assert told(lab.exchanges(wire, 2)) == [("GET", "/chat", 200, 5, "plain"), ("GET", "/after", 200, 4, "next")]


@pytest.mark.parametrize("piece", [None, 1, 3])
def test_chunked_with_extensions_and_trailers(lab: Lab, piece: int | None) -> None:
    up = chunked(b"one ", b"two", extension=';name="a;b"', trailers="X-Sum: 12\r\nX-Sum: 13\r\n")
    down = chunked(b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", extension=";x", trailers="X-End: yes\r\n")
    head = "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n"
    with lab.wire() as wire:
        wire.up(f"POST /chunks HTTP/1.1\r\nHost: lab\r\n{head}\r\n".encode() + up, piece)
        wire.down(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + down, piece)
        wire.exchange(request("/after"), response(body=b"next"))
    first, second = lab.exchanges(wire, 2)
    assert (first.request["body"], first.request["body_bytes"]) == ("one two", 7)
    assert first.request["trailers"] == {"X-Sum": ["12", "13"]}
    assert (first.response["body"], first.response["body_bytes"]) == ("0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", 24)
    assert first.response["trailers"] == {"X-End": "yes"}
    assert "trailers" not in second.response
    assert (second.request["url"], second.response["body"]) == ("/after", "next")


def test_a_body_that_the_end_of_the_connection_ends(lab: Lab) -> None:
    body = pattern(3000, "close")
    with lab.wire() as wire:
        wire.exchange(request("/first"), response(body=b"kept alive"))
        wire.up(request("/second"))
        wire.down(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body[:1000])
        wire.down(body[1000:])
        wire.server_closes()
    _, second = lab.exchanges(wire, 2)
    assert told([second]) == [("GET", "/second", 200, 3000, body.decode())]
    assert second.response["completeness"] == "complete"


def test_http_1_0(lab: Lab) -> None:
    with lab.wire() as wire:
        wire.up(b"GET /old HTTP/1.0\r\n\r\n")
        wire.down(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nold times")
        wire.server_closes()
    [old] = lab.exchanges(wire, 1)
    assert told([old]) == [("GET", "/old", 200, 9, "old times")]
    assert old.request["protocol"] == old.response["protocol"] == "HTTP/1.0"
    assert old.request["headers"] == {}
    with lab.wire() as wire:
        for number in range(3):
            wire.exchange(
                f"GET /{number} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode(),
                b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
            )
    assert told(lab.exchanges(wire, 3)) == [("GET", f"/{number}", 200, 2, "ok") for number in range(3)]


def raw_deflate(data: bytes) -> bytes:
    """What some servers send for ``deflate``, without the zlib wrapper that RFC 9110, 8.4.1.2 asks for."""
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(data) + coder.flush()


CODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "raw deflate": raw_deflate,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("name", CODERS)
def test_coded_bodies_are_decoded(lab: Lab, name: str, framing: str) -> None:
    coding = name.removeprefix("raw ")
    texts = [pattern(1000, name), pattern(10_000, name)]
    with lab.wire() as wire:
        for text in texts:
            coded = CODERS[name](text)
            headers = f"Content-Encoding: {coding}\r\n"
            if framing == "length":
                wire.exchange(request("/up", "POST", headers, coded), response("200 OK", headers, coded))
            else:
                headers += "Transfer-Encoding: chunked\r\n"
                body = chunked(coded[:10], coded[10:])
                wire.exchange(
                    f"POST /up HTTP/1.1\r\nHost: lab\r\n{headers}\r\n".encode() + body,
                    f"HTTP/1.1 200 OK\r\n{headers}\r\n".encode() + body,
                )
    for e, text in zip(lab.exchanges(wire, 2), texts, strict=True):
        for record in (e.request, e.response):
            assert record["body"] == text[:BODY_LIMIT_BYTES].decode()
            assert record["body_bytes"] == len(CODERS[name](text))
            assert record["completeness"] == ("complete" if len(text) <= BODY_LIMIT_BYTES else "truncated")


def test_bodies_that_are_not_text(lab: Lab) -> None:
    binary = random.Random(4).randbytes(900)
    cut = ("\u00e9" * 3000).encode()  # 6000 bytes; the limit falls between characters
    odd = b"x" + cut  # and here inside one
    with lab.wire() as wire:
        wire.exchange(request("/b", "POST", "", binary), response(body=binary))
        wire.exchange(request("/cut"), response(body=cut))
        wire.exchange(request("/odd"), response(body=odd))
    first, second, third = lab.exchanges(wire, 3)
    for record in (first.request, first.response):
        assert record["body_encoding"] == "base64"
        assert base64.b64decode(record["body"]) == binary
    assert second.response["body"] == "\u00e9" * 2048
    assert third.response["body"] == "x" + "\u00e9" * 2047
    assert "body_encoding" not in third.response


def test_twenty_kilobytes_of_headers(lab: Lab) -> None:
    headers = {f"X-Number-{n}": str(n) * 10 for n in range(300)} | {"X-Long": "l" * 9000}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    assert len(lines) > 18_000
    with lab.wire() as wire:
        wire.exchange(request("/long?" + "q" * 2000, headers=lines), response("200 OK", lines, b"body"))
        wire.exchange(request("/after"), response(body=b"next"))
    first, second = lab.exchanges(wire, 2)
    assert first.request["headers"] == {"Host": "lab"} | headers
    assert first.response["headers"] == headers | {"Content-Length": "4"}
    assert first.request["url"] == "/long?" + "q" * 2000
    assert (first.response["body"], second.response["body"]) == ("body", "next")


def test_repeated_and_oddly_cased_headers(lab: Lab) -> None:
    up = "aCCept: a\r\nX-Twice: 1\r\nACCEPT: b\r\nX-Twice:2\r\nX-Twice:  \t 3  \r\nx-empty:\r\n"
    down = "x-lower: a\r\nX-UPPER: b\r\nVary: A\r\nvary: B\r\nVary: C\r\n"
    with lab.wire() as wire:
        wire.exchange(request("/odd", headers=up), response("200 Fine By Me", down, b"x"))
    [e] = lab.exchanges(wire, 1)
    assert list(e.request["headers"].items()) == [
        ("Host", "lab"),
        ("aCCept", "a"),
        ("X-Twice", ["1", "2", "3"]),
        ("ACCEPT", "b"),
        ("x-empty", ""),
    ]
    assert list(e.response["headers"].items()) == [
        ("x-lower", "a"),
        ("X-UPPER", "b"),
        ("Vary", ["A", "C"]),
        ("vary", "B"),
        ("Content-Length", "1"),
    ]
    assert e.response["reason"] == "Fine By Me"


def test_methods_and_targets_as_sent(lab: Lab) -> None:
    lines = [
        ("OPTIONS", "*"),
        ("PURGE", "/a%00b"),
        ("GET", "http://lab/absolute?x=%2F&y"),
        ("PATCH", "/;p?#not-sent-but-legal-here"),
    ]
    with lab.wire() as wire:
        for method, target in lines:
            wire.exchange(request(target, method), response("299 Odd", body=b""))
    assert told(lab.exchanges(wire, 4)) == [(method, target, 299, 0, "") for method, target in lines]


def test_server_sent_events(lab: Lab) -> None:
    events = [f'id: {n}\ndata: {{"n":{n}}}\n\n'.encode() for n in range(5)]
    with lab.wire() as wire:
        wire.up(request("/events", headers="Accept: text/event-stream\r\n"))
        wire.down(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in events:
            pause(0.04)
            wire.down(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        wire.down(b"0\r\n\r\n")
    [e] = lab.exchanges(wire, 1)
    assert e.response["body"] == b"".join(events).decode()
    assert e.response["duration_ms"] >= 200 > e.response["ttfb_ms"]


MIB = 1024 * 1024


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_one_mebibyte_up_and_down(lab: Lab, framing: str) -> None:
    up, down = pattern(MIB, "up"), pattern(MIB, "down")
    with lab.wire() as wire:
        if framing == "length":
            wire.exchange(request("/big", "PUT", "", up), response(body=down))
        else:
            coding = "Transfer-Encoding: chunked\r\n"
            parts = [slice(start, start + 50_000) for start in range(0, MIB, 50_000)]
            wire.exchange(
                f"PUT /big HTTP/1.1\r\nHost: lab\r\n{coding}\r\n".encode() + chunked(*(up[part] for part in parts)),
                f"HTTP/1.1 200 OK\r\n{coding}\r\n".encode() + chunked(*(down[part] for part in parts)),
            )
        wire.exchange(request("/after"), response(body=b"next"))
    first, second = lab.exchanges(wire, 2)
    for record, body in ((first.request, up), (first.response, down)):
        assert record["body_bytes"] == MIB
        assert record["body"] == body[:BODY_LIMIT_BYTES].decode()
        assert record["completeness"] == "truncated"
    assert (second.request["url"], second.response["body"]) == ("/after", "next")
