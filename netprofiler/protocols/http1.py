"""HTTP/1: the bytes of a head -> `Head`, by h11, remembered; and the framing of what follows.

Contract: `HeadParser.request(bytes)` and `.response(bytes)` take everything up to and including the empty line and give
a `Head`, or None where the bytes are no head at all. Nothing raises for any input. What h11 rejects but a reader would
still call a head (no Host, a space before a colon) is parsed leniently: it was on the wire, so it is data.

Keep-alive traffic repeats itself, so three caches stand before h11: whole heads; blocks of header fields (a new target
with known fields costs one regular expression); h11 itself runs only for a block never seen. Whether a block is valid
does not depend on the start line, but for HTTP/1.1's Host, which is why the version is in the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import h11

from netprofiler.exchange import Fields, Head

MAX_HEAD_BYTES: Final = 256 * 1024
"""A head larger than this is not waited for: servers stop at 8 to 64 KiB, and a connection must not hold more of us."""

CACHED_HEADS: Final = 4096
CACHED_HEAD_BYTES: Final = 4096
"""With both, the caches stay under about 4096 * (4 KiB of key + 8 KiB of rendered text) = 48 MiB, in practice 1 MiB."""

UNTIL_CLOSE: Final = -2
"""`body_length()`: the body ends with the connection (RFC 9112, section 6.3, rule 8)."""
CHUNKED: Final = -1
UNFRAMED: Final = -3
"""The length is no number, or two numbers (RFC 9112, section 6.3, rules 4 and 5): nobody can tell where the body ends."""

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+"
# RFC 9112, section 3: method SP request-target SP HTTP-version. The target is what was sent, and may be any visible
# bytes (browsers and scanners send raw UTF-8 too).
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e\x80-\xff]+) (HTTP/1\.[0-9])")
# RFC 9112, section 4; a server may leave the reason and the space before it out.
_STATUS_LINE: Final = re.compile(rb"(HTTP/1\.[0-9]) ([0-9]{3})(?: ([\x09\x20-\x7e\x80-\xff]*))?")

START_MAX_BYTES: Final = 33
"""Of a head's beginning: with more than this in hand, it shows whether it can be one (a method, a space, a target)."""
_REQUEST_START: Final = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]{1,32} [\x21-\x7e\x80-\xff]")


def head_end(data: bytes | bytearray, start: int = 0) -> int:
    """Offset after the empty line that ends a head, or -1. A bare LF counts (RFC 9112, section 2.2)."""
    at = data.find(b"\n\r\n", start)
    if at < 0:
        at = data.find(b"\n\n", start)
        return at + 2 if at >= 0 else -1
    bare = data.find(b"\n\n", start, at + 1)
    return bare + 2 if bare >= 0 else at + 3


def looks_like_request(data: bytes) -> bool:
    """Could a request begin here? For finding the way back into a stream."""
    line = data[:4096].split(b"\n", 1)
    if len(line) == 2:
        return _REQUEST_LINE.fullmatch(line[0].rstrip(b"\r")) is not None
    return _REQUEST_START.match(line[0]) is not None


METHODS: Final = frozenset(
    b"GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH ACL BASELINE-CONTROL CHECKIN COPY LABEL MERGE "
    b"MKACTIVITY MKCALENDAR MKCOL MKWORKSPACE MOVE PROPFIND PROPPATCH REBIND REPORT SEARCH UNBIND UNCHECKOUT "
    b"UNLINK UNLOCK UPDATE UPDATEREDIRECTREF VERSION-CONTROL QUERY PURGE NOTIFY UNSUBSCRIBE M-SEARCH".split()
)
"""Methods by which a request is known where it may have been cut at its beginning: of ``POST`` may be left ``OST``. Not
here: rare ones that are left of another (``LOCK``, ``LINK``, ``BIND``, ``CHECKOUT``, ``SUBSCRIBE``)."""
_LONGEST_METHOD: Final = max(map(len, METHODS))


def begins_with_method(data: bytes) -> bool:
    """Does a request begin here for certain, or (a server may have read one byte by itself) may it, as far as it goes?"""
    method, space, _ = data[: _LONGEST_METHOD + 1].partition(b" ")
    if space:
        return method in METHODS and looks_like_request(data)
    return any(known.startswith(method) for known in METHODS)


def looks_like_response(data: bytes) -> bool:
    """The same for a response."""
    return data.startswith((b"HTTP/1.1 ", b"HTTP/1.0 "))


def field_text(raw: bytes) -> str:
    """Header text: UTF-8 where it is that, else as RFC 9110 has it (opaque bytes, shown as Latin-1)."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


_CHANGED_BY_H11: Final = (b"content-length", b"transfer-encoding")
"""h11 drops a repeated length and writes codings in lower case; a record shows what was sent."""


def _h11_headers(block: bytes, is_request: bool, version: bytes) -> list[tuple[bytes, bytes]] | None:
    """The fields as h11 reads them, names as sent; None where it refuses."""
    if is_request:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES + 64)
        start = b"GET / " + version + b"\r\n"
    else:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES + 64)
        connection.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
        start = version + b" 200 OK\r\n"
    try:
        connection.receive_data(start + block)
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, (h11.Request, h11.Response)):
        return None
    return list(event.headers.raw_items())


_TOKEN_BYTES: Final = (
    b"-!#$%&'*+.^_`|~" + bytes(range(0x30, 0x3A)) + bytes(range(0x41, 0x5B)) + bytes(range(0x61, 0x7B))
)
_TEXT_BYTES: Final = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))


def _ordinary_headers(block: bytes) -> list[tuple[bytes, bytes]] | None:
    """The fields of a block that RFC 9112 leaves no doubt about, which is nearly all; None for h11 to look at.

    A tenth of h11's time, and the same answer (tests/property/test_h11_agrees.py): blocks that differ in every message
    (a trace id, a cookie) are common.
    """
    lines = block.split(b"\r\n")
    if len(lines) < 2 or lines[-1] or lines[-2]:
        return None
    headers = []
    for line in lines[:-2]:
        name, colon, value = line.partition(b":")
        # A folded line begins with white space, which is in no name.
        if not colon or not name or name.translate(None, _TOKEN_BYTES) or value.translate(None, _TEXT_BYTES):
            return None
        headers.append((name, value.strip(b" \t")))
    return headers


def _lenient_headers(block: bytes) -> list[tuple[bytes, bytes]]:
    headers: list[tuple[bytes, bytes]] = []
    for line in block.split(b"\n"):
        line = line.strip(b"\r")
        if line[:1] in (b" ", b"\t") and headers:
            # RFC 9112, section 5.2: a folded line
            name, value = headers[-1]
            headers[-1] = (name, value + b" " + line.strip(b" \t"))
            continue
        name, colon, value = line.partition(b":")
        if colon and name.strip():
            headers.append((name.strip(), value))
    return [(name, value.strip(b" \t")) for name, value in headers]


def list_items(values: Iterable[str]) -> list[str]:
    """What the values of a field list (RFC 9110, section 5.6.1), in lower case; an empty one may be among them."""
    return [part.strip().lower() for value in values for part in value.split(",")]


def content_length(values: Iterable[str]) -> int | None:
    """RFC 9112, section 6.3: a list of the same number is that number; anything else is no length."""
    numbers = set(list_items(values))
    if len(numbers) != 1:
        return None
    number = numbers.pop()
    return int(number) if number.isascii() and number.isdigit() and len(number) <= 18 else None


def _make_fields(block: bytes, is_request: bool, version: bytes) -> Fields:
    raw = _ordinary_headers(block)
    if raw is None:
        raw = _h11_headers(block, is_request, version)
        if raw is None or any(name.lower() in _CHANGED_BY_H11 for name, _ in raw):
            raw = _lenient_headers(block)
    headers = tuple((field_text(name), field_text(value)) for name, value in raw)
    by_name: dict[str, list[str]] = {}
    for name, value in headers:
        by_name.setdefault(name.lower(), []).append(value)
    codings = list_items(by_name.get("transfer-encoding", ()))
    lengths = by_name.get("content-length", [])
    encodings = list_items(by_name.get("content-encoding", ()))
    return Fields(
        headers=headers,
        content_length=None if codings else content_length(lengths),
        unframed=_is_unframed(is_request, lengths, codings),
        chunked=bool(codings) and codings[-1] == "chunked",
        content_encoding=tuple(
            coding for coding in encodings + codings if coding and coding not in ("identity", "chunked")
        ),
        upgrade="upgrade" in by_name,
        raw=block.decode("utf-8", "replace"),
    )


def _is_unframed(is_request: bool, lengths: list[str], codings: list[str]) -> bool:
    if codings:
        return is_request and codings[-1] != "chunked"
    return bool(lengths) and content_length(lengths) is None


def body_length(head: Head, request_method: str | None) -> int:
    """How the body of this message is framed (RFC 9112, section 6.3): its length, or CHUNKED, UNTIL_CLOSE, UNFRAMED."""
    fields = head.fields
    if head.is_request:
        if fields.chunked:
            return CHUNKED
        return UNFRAMED if fields.unframed else fields.content_length or 0
    status = head.status
    if request_method == "HEAD" or status < 200 or status in (204, 304):
        return 0
    if request_method == "CONNECT" and status < 300:
        return 0
    if fields.chunked:
        return CHUNKED
    if fields.content_length is not None:
        return fields.content_length
    return UNFRAMED if fields.unframed else UNTIL_CLOSE


class HeadParser:
    """Parses heads and remembers them. One for the whole agent: heads are alike across connections."""

    def __init__(self) -> None:
        self.requests: dict[bytes, Head] = {}
        """Whole heads; public for the hot path's own look-up. Look, do not add."""
        self.responses: dict[bytes, Head] = {}
        self._fields: dict[tuple[bool, bytes, bytes], Fields] = {}

    def request(self, data: bytes) -> Head | None:
        head = self.requests.get(data)
        if head is not None:
            return head
        line_end = data.find(b"\n") + 1
        match = _REQUEST_LINE.fullmatch(data[:line_end].rstrip(b"\r\n"))
        if match is None:
            return None
        method, target, version = match.groups()
        fields = self._find_fields(True, version, data[line_end:])
        head = Head(
            is_request=True,
            version=version.decode(),
            method=method.decode(),
            target=field_text(target),
            status=0,
            reason="",
            fields=fields,
            start_line=data[:line_end].decode("utf-8", "replace"),
            size=len(data),
            plain_length=-1,
        )
        # CONNECT and Upgrade may end HTTP on this connection: they take the long way.
        if not fields.chunked and not fields.unframed and not fields.upgrade and head.method != "CONNECT":
            head.plain_length = fields.content_length or 0
        self._remember(self.requests, data, head)
        return head

    def response(self, data: bytes) -> Head | None:
        head = self.responses.get(data)
        if head is not None:
            return head
        line_end = data.find(b"\n") + 1
        match = _STATUS_LINE.fullmatch(data[:line_end].rstrip(b"\r\n"))
        if match is None:
            return None
        version, status, reason = match.groups()
        fields = self._find_fields(False, version, data[line_end:])
        head = Head(
            is_request=False,
            version=version.decode(),
            method="",
            target="",
            status=int(status),
            reason=field_text(reason or b""),
            fields=fields,
            start_line=data[:line_end].decode("utf-8", "replace"),
            size=len(data),
            plain_length=-1,
        )
        # The length holds for any request but HEAD and CONNECT; the caller looks at those.
        if head.status >= 200 and not fields.chunked:
            if head.status in (204, 304):
                head.plain_length = 0
            elif fields.content_length is not None:
                head.plain_length = fields.content_length
        self._remember(self.responses, data, head)
        return head

    def _find_fields(self, is_request: bool, version: bytes, block: bytes) -> Fields:
        key = (is_request, version, block)
        fields = self._fields.get(key)
        if fields is None:
            fields = _make_fields(block, is_request, version)
            if len(block) <= CACHED_HEAD_BYTES:
                _make_room(self._fields)
                self._fields[key] = fields
        return fields

    @staticmethod
    def _remember(cache: dict[bytes, Head], data: bytes, head: Head) -> None:
        if len(data) <= CACHED_HEAD_BYTES:
            _make_room(cache)
            cache[data] = head


def _make_room(cache: dict[Any, Any]) -> None:
    """Forget the oldest eighth of a full cache: heads of long ago go, and what is still in use comes back at once."""
    if len(cache) >= CACHED_HEADS:
        for key in list(cache)[: CACHED_HEADS // 8]:
            del cache[key]
