"""Messages made by hand, as what parses HTTP/2, gRPC and WebSocket makes them."""

from __future__ import annotations

from typing import Any

from netprofiler.exchange import Direction, Fields, Grpc, Head, Link, Message, Process, Role, Tls, WebSocket
from netprofiler.testing import START_NS

Pairs = tuple[tuple[str, str], ...]
PROCESS = Process(1234, 77, "traffic", "/bin/traffic")


def a_link(role: Role = Role.CLIENT, *, tls: Tls | None = None, passive: bool = False) -> Link:
    return Link("sock:[7]", role, "10.0.0.1", 5000, "10.0.0.2", 80, None, True, passive, tls)


def fields(headers: Pairs = (), *, unknown: int = 0, codings: tuple[str, ...] = ()) -> Fields:
    return Fields(headers, None, False, False, codings, False, raw="", unknown=unknown)


def h2_request(
    method: str = "POST", target: str = "/a", headers: Pairs = ((":scheme", "http"), (":authority", "a")), **more: Any
) -> Head:
    return Head(True, "HTTP/2", method, target, 0, "", fields(headers, **more), "", 20, -1)


def h2_response(status: int = 200, headers: Pairs = (), **more: Any) -> Head:
    return Head(False, "HTTP/2", "", "", status, "", fields(headers, **more), "", 10, -1)


def message(head: Head, body: bytes = b"", *, link: Link | None = None, **more: Any) -> Message:
    """What one process sent, but for what `more` says."""
    facts: dict[str, Any] = {
        "link": link or a_link(),
        "direction": Direction.SEND if head.is_request else Direction.RECV,
        "head": head,
        "process": PROCESS,
        "pid": 1234,
        "tid": 1235,
        "time_ns": START_NS,
        "end_ns": START_NS + 1_000_000,
        "number": 3,
        "position": 100,
        "stream_bytes": head.size + len(body),
        "body": body,
        "body_bytes": len(body),
    }
    return Message(**(facts | more))


def websocket(opcode: str, body: bytes = b"", *, sent: bool = True, link: Link | None = None, **more: Any) -> Message:
    """`more`: of `Message`, and close_code, close_reason, inflated."""
    about = {key: more.pop(key) for key in ("close_code", "close_reason", "inflated") if key in more}
    head = Head(sent, "websocket", "", "", 0, "", fields(), "", 2, -1)
    more = {"direction": Direction.SEND if sent else Direction.RECV, "extra": WebSocket(opcode, **about)} | more
    return message(head, body, link=link, **more)


def grpc(
    body: bytes = b"",
    *,
    request: bool = True,
    asked: Message | None = None,
    encoding: str = "",
    head: Head | None = None,
    **more: Any,
) -> Message:
    """A request, or the response to what was `asked`. `more`: of `Message`, and service, method, messages, message_bytes, status,
    message.
    """
    about: dict[str, Any] = {"service": "shop.Orders", "method": "Get", "encoding": encoding}
    for key in ("service", "method", "messages", "message_bytes", "status", "message"):
        if key in more:
            about[key] = more.pop(key)
    extra = Grpc(**about)
    if head is None:
        head = h2_request("POST", "/shop.Orders/Get") if request else h2_response()
    return message(head, body, extra=extra, request=asked, **more)
