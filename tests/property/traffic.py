"""Generated HTTP/1.1 traffic that knows the truth about itself: each exchange has a token in its request and response."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from netprofiler import wire
from netprofiler.exchange import Completeness, Message
from netprofiler.testing import Peer, Script, Step, split

Draw = st.DrawFn


@dataclass(frozen=True)
class Truth:
    """One exchange as it was."""

    token: str
    method: str
    status: int
    request: bytes
    request_head: int
    request_body: bytes
    response: bytes
    """Interim responses, and the final one."""
    response_body: bytes
    interim: int
    until_close: bool = False


def _chunked(draw: Draw, body: bytes) -> bytes:
    out = b""
    for piece in split(body, draw(st.lists(st.integers(1, max(1, len(body))), max_size=3))):
        size = f"{len(piece):x}" if draw(st.booleans()) else f"{len(piece):04X}"
        extension = draw(st.sampled_from([b"", b";a=b", b' ; q="x"']))
        out += size.encode() + extension + b"\r\n" + piece + b"\r\n"
    trailers = draw(st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: 1\r\nA: 2\r\n"]))
    return out + b"0\r\n" + trailers + b"\r\n"


def _body(draw: Draw, token: str, largest: int) -> bytes:
    """Letters and line ends, but nothing that looks like the beginning of a message."""
    return draw(
        st.one_of(
            st.just(b""),
            st.just(f"<{token}>".encode()),
            st.integers(1, largest).map(lambda size: (f"<{token}>\r\n\r\n".encode() * size)[:size]),
        )
    )


@st.composite
def exchanges(
    draw: Draw, at_most: int = 5, largest_body: int = 300, plain: bool = False, last_may_close: bool = True
) -> list[Truth]:
    """A conversation on one connection. `plain`: nothing that ends the connection."""
    count = draw(st.integers(1, at_most))
    out = []
    for index in range(count):
        token = f"t{index}x"
        last = index == count - 1 and last_may_close and not plain
        method = draw(st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"]))
        eol = draw(st.sampled_from([b"\r\n", b"\r\n", b"\n"]))
        line = f"{method} /{token}?a={index} HTTP/1.1".encode()
        extra = draw(st.sampled_from([b"", b"Cookie: s=1", b"Accept: */*", b"x-ODD: a\r\nX-Odd:  b "]))
        headers = [line, b"Host: a", f"X-Token: {token}".encode(), *([extra] if extra else [])]
        request_body = _body(draw, token, largest_body) if method in ("POST", "PUT") else b""
        on_stream = request_body
        if request_body or draw(st.booleans()):
            if draw(st.booleans()):
                headers.append(b"Transfer-Encoding: chunked")
                on_stream = _chunked(draw, request_body)
            else:
                headers.append(f"Content-Length: {len(request_body)}".encode())
        head = (b"\r\n" if draw(st.integers(0, 9)) == 0 else b"") + eol.join(headers) + eol + eol
        request = head + on_stream

        response, interim = b"", 0
        for status in draw(st.lists(st.sampled_from([100, 103]), max_size=2)) if draw(st.booleans()) else []:
            response += f"HTTP/1.1 {status} Wait\r\nX-Token: {token}\r\n\r\n".encode()
            interim += 1
        status = draw(st.sampled_from([200, 200, 201, 204, 304, 404]))
        body = _body(draw, token, largest_body)
        reply = [f"HTTP/1.1 {status} Some Reason".encode(), f"X-Token: {token}".encode()]
        framing = draw(st.sampled_from(["length", "length", "chunked", "close" if last else "length"]))
        close = False
        if method == "HEAD" or status in (204, 304):
            if draw(st.booleans()):
                reply.append(f"Content-Length: {len(body)}".encode())
            body, on_stream = b"", b""
        elif framing == "length":
            reply.append(f"Content-Length: {len(body)}".encode())
            on_stream = body
        elif framing == "chunked":
            reply.append(b"Transfer-Encoding: chunked")
            on_stream = _chunked(draw, body)
        else:
            reply.append(b"Connection: close")
            on_stream, close = body, True
        response += b"\r\n".join(reply) + b"\r\n\r\n" + on_stream
        out.append(
            Truth(token, method, status, request, len(head), request_body, response, body, interim, until_close=close)
        )
    return out


@dataclass
class Schedule:
    """What is ready to be sent at which moment: pieces of both directions, in an order that respects causality."""

    pieces: list[tuple[bool, bytes]] = field(default_factory=list)
    """Whether it is of the requests, and the bytes."""


@st.composite
def schedules(draw: Draw, truths: list[Truth], pipelined: bool = True, small: bool = True) -> Schedule:
    """Pieces of the conversation: a response begins when its request's head is there, and, without pipelining, a request
    when the response before it is over."""
    requests, responses = b"".join(t.request for t in truths), b"".join(t.response for t in truths)
    request_cuts = draw(st.lists(st.integers(0, len(requests)), max_size=12))
    response_cuts = draw(st.lists(st.integers(0, len(responses)), max_size=12))
    if small and draw(st.integers(0, 7)) == 0:
        request_cuts, response_cuts = list(range(len(requests))), list(range(len(responses)))
    at = 0
    heads, request_starts, response_starts, response_ends = [], [], [], []
    for truth in truths:
        request_starts.append(at)
        heads.append(at + truth.request_head)
        at += len(truth.request)
    at = 0
    for truth in truths:
        response_starts.append(at)
        at += len(truth.response)
        response_ends.append(at)
    if not pipelined:
        request_cuts = [*request_cuts, *request_starts]
        response_cuts = [*response_cuts, *response_starts]
    asking, answering = split(requests, request_cuts), split(responses, response_cuts)
    schedule = Schedule()
    asked = answered = 0
    choices = draw(st.lists(st.booleans(), max_size=24))
    while asking or answering:
        may_answer = bool(answering) and all(
            asked >= head
            for head, start in zip(heads, response_starts, strict=True)
            if answered <= start < answered + len(answering[0])
        )
        may_ask = bool(asking) and (
            pipelined or asked not in request_starts[1:] or answered >= response_ends[request_starts.index(asked) - 1]
        )
        ask = (choices.pop() if choices else True) if may_ask and may_answer else may_ask
        if ask:
            schedule.pieces.append((True, asking[0]))
            asked += len(asking.pop(0))
        else:
            assert may_answer
            schedule.pieces.append((False, answering[0]))
            answered += len(answering.pop(0))
    return schedule


def whole(truths: list[Truth]) -> Schedule:
    """Every message one piece, one after the other."""
    schedule = Schedule()
    for truth in truths:
        schedule.pieces += [(True, truth.request), (False, truth.response)]
    return schedule


def perform(schedule: Schedule, peer: Peer, *, close: bool = True) -> list[Step]:
    """The events of it."""
    for is_request, data in schedule.pieces:
        (peer.request if is_request else peer.response)(data)
    if close:
        peer.end()
        peer.close()
    return peer.script.steps


def peer_of(script: Script, role: int, family: int = wire.FAMILY_IPV4, *, fresh: bool = True) -> Peer:
    return script.open(role, family=family, fresh=fresh, positions=(0xFFFFFFFF - 200, 77))


def facts(message: Message) -> tuple[object, ...]:
    """All of a message but its times."""
    request = message.request
    return (
        int(message.direction),
        message.head.start_line,
        message.head.fields.headers,
        message.number,
        message.position,
        message.stream_bytes,
        message.body,
        message.body_bytes,
        message.raw_body,
        message.trailers,
        message.completeness,
        message.missing_bytes,
        message.missing_reason,
        None if request is None else (request.number, request.head.start_line),
    )


def by_direction(messages: list[Message]) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    sent = [facts(m) for m in messages if m.direction == wire.SEND]
    return sent, [facts(m) for m in messages if m.direction == wire.RECV]


def token_of(message: Message) -> str:
    for name, value in message.head.fields.headers:
        if name == "X-Token":
            return value
    return ""


def check_against(truths: list[Truth], messages: list[Message]) -> None:
    """Nothing in the messages contradicts what was; they may be fewer, and less."""
    known = {truth.token: truth for truth in truths}
    for message in messages:
        truth = known[token_of(message)]
        if message.head.is_request:
            assert message.head.method == truth.method
            assert message.head.target == f"/{truth.token}?a={truths.index(truth)}"
            body, size = truth.request_body, len(truth.request.removeprefix(b"\r\n"))
        elif message.head.status < 200:
            body, size = b"", message.head.size
        else:
            assert message.head.status == truth.status
            body = truth.response_body
            size = len(truth.response) - sum(
                len(f"HTTP/1.1 100 Wait\r\nX-Token: {truth.token}\r\n\r\n") for _ in range(truth.interim)
            )
        # A HEAD's answer whose request was lost may look as if it had a body that never came.
        assert body.startswith(message.body)
        assert message.body_bytes <= len(body)
        assert message.stream_bytes <= size
        if message.completeness in (Completeness.COMPLETE, Completeness.TRUNCATED):
            assert message.body_bytes == len(body)
            assert message.stream_bytes == size
        if message.completeness is Completeness.COMPLETE:
            assert message.body == body
        if message.request is not None:
            assert token_of(message.request) == truth.token
            assert message.request.number == message.number
    for first in messages:
        for second in messages:
            if first.number == second.number and first.completeness is not Completeness.OPEN:
                assert token_of(first) == token_of(second)
