"""gRPC over HTTP/2: what a message says beside its bytes.

Contract: pure functions from header fields to facts, `uncompress`, which undoes what `grpc-encoding` says, and `Prefixes`,
which counts the length-prefixed messages of one direction across any split of its bytes. Nothing raises. After the gRPC over HTTP/2 protocol description
(grpc/grpc, doc/PROTOCOL-HTTP2.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import unquote

from netprofiler.content import decode
from netprofiler.exchange import Grpc

_CONTENT_TYPE: Final = "application/grpc"
PREFIX_BYTES: Final = 5
"""Before each message: whether it is compressed, and its length ("Length-Prefixed-Message" of gRPC over HTTP/2)."""
_STATUS_DIGITS_MAX: Final = 9
"""Statuses are 0 to 16."""


class Call(NamedTuple):
    """What a head says of a gRPC message."""

    encoding: str
    status: int | None
    """A response without body has these in its head (Trailers-Only)."""
    message: str | None


def is_grpc(content_type: str) -> bool:
    """``application/grpc``, ``application/grpc+proto``; not ``application/grpc-web``, whose framing is another."""
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == _CONTENT_TYPE or media_type.startswith(_CONTENT_TYPE + "+")


def read_head(fields: Iterable[tuple[str, str]]) -> Call | None:
    """The facts of a head, or None where it is none of gRPC."""
    found = False
    encoding = ""
    for name, value in fields:
        if name == "content-type":
            found = is_grpc(value)
        elif name == "grpc-encoding":
            encoding = value
    if not found:
        return None
    return Call(encoding, *read_status(fields))


def read_status(fields: Iterable[tuple[str, str]]) -> tuple[int | None, str | None]:
    """grpc-status and grpc-message of trailers."""
    status = message = None
    for name, value in fields:
        if name == "grpc-status" and value.isascii() and value.isdigit() and len(value) <= _STATUS_DIGITS_MAX:
            status = int(value)
        elif name == "grpc-message":
            message = unquote(value)
    return status, message


def split_path(path: str) -> tuple[str, str]:
    """The request target ``/package.Service/Method`` → service and method; both empty where it is none such."""
    service, _, method = path.rpartition("/")
    return (service[1:], method) if service.startswith("/") else ("", "")


def begin(call: Call, path: str) -> Grpc:
    """The facts of one message so far; `path` is the request's."""
    service, method = split_path(path)
    return Grpc(service, method, status=call.status, message=call.message, encoding=call.encoding)


class Undone(NamedTuple):
    """A body whose messages are not compressed any more."""

    body: bytes
    whole: bool
    """No limit of ours cut it."""
    unknown: bool
    """The compression of some could not be undone: `instead` stands in their place."""


def uncompress(body: bytes, encoding: str, limit: int, instead: bytes | None) -> Undone:
    """The compression of each message undone, as `encoding` (grpc-encoding) says, and its prefix changed to match. `limit`: bytes
    that it may become. `instead`: of a message whose compression is not known; None: as it is.
    """
    out = bytearray()
    at = 0
    whole, unknown = True, False
    while at + PREFIX_BYTES <= len(body) and body[at] <= 1:
        start = at + PREFIX_BYTES
        at = start + int.from_bytes(body[at + 1 : start], "big")
        if body[start - PREFIX_BYTES] == 0:
            out += body[start - PREFIX_BYTES : at]
            continue
        decoded = decode(body[start:at], (encoding,), max(0, limit - len(out) - PREFIX_BYTES))
        if decoded is not None:
            payload, fits = decoded
            whole = whole and fits
        elif instead is not None:
            payload, unknown = instead, True
        else:
            out += body[start - PREFIX_BYTES : at]
            continue
        out += b"\0" + len(payload).to_bytes(4, "big") + payload
    out += body[at:]
    return Undone(bytes(out), whole, unknown)


class Prefixes:
    """Finds the messages in the bytes of one direction, and counts them into `facts`."""

    __slots__ = ("_facts", "_prefix", "_remaining")

    def __init__(self, facts: Grpc) -> None:
        self._facts = facts
        self._prefix = b""
        """The beginning of a prefix that was split."""
        self._remaining = 0
        """Bytes of the message that is under way."""

    def feed(self, data: bytes) -> None:
        facts = self._facts
        at = self._remaining
        size = len(data)
        if self._prefix:
            missing = PREFIX_BYTES - len(self._prefix)
            self._prefix += data[:missing]
            if len(self._prefix) < PREFIX_BYTES:
                return
            at = missing + self._begin(facts, self._prefix, 0)
            self._prefix = b""
        while at + PREFIX_BYTES <= size:
            at += PREFIX_BYTES + self._begin(facts, data, at)
        if at < size:
            self._prefix = data[at:]
            at = size
        self._remaining = at - size

    @staticmethod
    def _begin(facts: Grpc, data: bytes, at: int) -> int:
        length = int.from_bytes(data[at + 1 : at + PREFIX_BYTES], "big")
        facts.messages += 1
        facts.message_bytes += length
        return length

    def skip(self, length: int) -> bool:
        """`length` bytes were not seen. False: a message may have begun in them, and nothing can be counted any more."""
        if self._prefix or length > self._remaining:
            return False
        self._remaining -= length
        return True
