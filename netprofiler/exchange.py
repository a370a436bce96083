"""What the pipeline makes and the sinks write: a `Message` is one request or response as one process sent or received it.

Contract: nothing here does work. A `Head` is shared by all messages that began with the same bytes and is never changed
after parsing, but for `rendered`, where a sink may keep what it made of it. A `Message` is handed to the sinks once, when it has ended (or, with completeness `open`, once before), and
belongs to nobody else from then on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any


class Direction(IntEnum):
    """As the process does it."""

    SEND = 0
    RECV = 1


class Role(StrEnum):
    """What the process is on a connection."""

    CLIENT = "client"
    SERVER = "server"


class Completeness(StrEnum):
    """How much of a message is known."""

    COMPLETE = "complete"
    TRUNCATED = "truncated"
    """The body was kept only in part, by a limit of ours."""
    GAP = "gap"
    """Bytes of it were never seen: see `Message.missing_bytes`."""
    PARTIAL = "partial"
    """Joined, or ended, in the middle."""
    OPEN = "open"
    """An interim picture of a message that is not over."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container, as far as it is known; an empty text: not known, or there is none."""

    container_id: str
    """Whole: 64 hexadecimal digits."""
    container_name: str = ""
    service: str = ""
    """Of its compose project, its swarm, or its pod."""
    image: str = ""
    project: str = ""
    """Its compose project."""
    pod: str = ""
    namespace: str = ""
    """Of the pod."""


class PlaceType(StrEnum):
    """Where an end of a connection is."""

    CONTAINER = "container"
    HOST = "host"
    EXTERNAL = "external"


@dataclass(frozen=True, slots=True)
class Place:
    """The same, with which container it is."""

    type: PlaceType
    container: Container | None = None
    """None: a container that is not known, or none."""


@dataclass(slots=True)
class Process:
    """A process as the kernel described it when it first spoke HTTP."""

    pid: int
    start_ns: int
    """Boot-time clock; with pid it names the process for good."""
    comm: str
    cmdline: str
    """Arguments joined by one space."""
    place: Place | None = None
    """None: not known, or not asked for (containers/places.py)."""
    placed: int = 0
    """The state of knowledge in which that was found out."""


@dataclass(slots=True, eq=False)
class Fields:
    """Header fields, shared by all heads that have the same block of them."""

    headers: tuple[tuple[str, str], ...]
    """Name as sent, value; in order."""
    content_length: int | None
    """None: absent, not a number, or overridden by a transfer coding."""
    unframed: bool
    """Where the body ends cannot be told."""
    chunked: bool
    """The last transfer coding is chunked."""
    content_encoding: tuple[str, ...]
    """Codings in the order in which they were applied, lower case."""
    upgrade: bool
    raw: str
    """The block as text, with the empty line that ends it; bytes that are not UTF-8 as U+FFFD. Empty: none of HTTP/1."""
    rendered: Any = None
    unknown: int = 0
    """HTTP/2: fields that were there and could not be known, because they refer to what was said before we came."""


@dataclass(slots=True, eq=False)
class Head:
    """Start line and header fields."""

    is_request: bool
    version: str
    """`HTTP/1.0` or `HTTP/1.1`, as sent; `HTTP/2`; `websocket`."""
    method: str
    """Requests; empty on a response, and where it is not known."""
    target: str
    """Requests: the request target as sent; empty on a response, and where it is not known."""
    status: int
    """Responses; 0 on a request, and where it is not known."""
    reason: str
    fields: Fields
    start_line: str
    """As it was on the stream, with the line end; bytes that are not UTF-8 as U+FFFD. Empty: none of HTTP/1."""
    size: int
    """Bytes on the stream, with the empty line that ends it; HTTP/2: of the frames that it came in."""
    plain_length: int
    """Bytes of body when that follows from the head alone, whatever the other side said; -1 when it does not."""
    rendered: Any = None


@dataclass(slots=True)
class Tls:
    """What is known of the TLS around a connection; None: not known."""

    library: str
    """Whose plaintext it is: ``go``, ``openssl``, ``boringssl``, ``gnutls``, ``nss``."""
    version: str | None = None
    cipher: str | None = None
    sni: str | None = None
    alpn_selected: str | None = None
    alpn_offered: tuple[str, ...] = ()
    """By the client: what was selected is one of them, where the server's answer is not visible (TLS 1.3)."""


@dataclass(slots=True, eq=False)
class Link:
    """One socket: what every message on it shares. Slots that sinks use to keep rendered text are theirs."""

    name: str
    """Stable for the life of the socket and unique on the host: ``sock:[inode]``."""
    role: Role | None = None
    local_ip: str | None = None
    local_port: int = 0
    remote_ip: str | None = None
    remote_port: int = 0
    unix_path: str | None = None
    positions_are_sequence_numbers: bool = False
    """TCP: positions name bytes at both ends, so `hop` can be made of them."""
    passive: bool = False
    """From a packet capture: nobody's send or receive."""
    tls: Tls | None = None
    rendered: dict[int, Any] = field(default_factory=dict)
    network_namespace: int = 0
    """Its inode; 0: not known."""
    beginning: tuple[int, int] | None = None
    """Positions of the first byte sent and received, where both are sequence numbers and the connection was seen from its
    first byte on: at the other end they are the same, the other way round, whatever NAT made of the addresses."""
    process: Process | None = None
    """That uses it."""
    remote: Place | None = None
    """The other end's, where that is known."""
    placed: int = 0
    """As `Process.placed`."""
    share: int = 0
    """Of the log, as budget.py divides it."""
    left_out: bool = False
    """Of the log."""


@dataclass(slots=True, eq=False)
class Grpc:
    """What makes a gRPC message of an HTTP/2 message. Filled until the message ends."""

    service: str
    """With its package, as in the path."""
    method: str
    messages: int = 0
    """Length-prefixed messages that began in this direction."""
    message_bytes: int = 0
    """Their sizes together, without the 5 bytes before each, as they are on the stream (compressed or not)."""
    status: int | None = None
    """Responses: grpc-status, of the trailers or of a head that has them."""
    message: str | None = None
    """Responses: grpc-message, percent-decoded."""
    encoding: str = ""
    """grpc-encoding; empty: none was named."""


@dataclass(slots=True, eq=False)
class WebSocket:
    """What makes a record of a WebSocket message."""

    opcode: str
    """`text`, `binary`, `close`, `ping`, `pong`."""
    close_code: int | None = None
    close_reason: str | None = None
    inflated: bool = False
    """It was sent compressed (permessage-deflate): `Message.body` is what came out of it."""


@dataclass(slots=True, eq=False)
class Message:
    """One request or response. Not frozen: it is filled while its body arrives, on the hot path."""

    link: Link
    direction: Direction | int
    head: Head
    process: Process | None
    pid: int
    tid: int
    time_ns: int
    """Monotonic clock at the first byte."""
    end_ns: int
    """The same at the last byte so far."""
    number: int
    """Of the exchange on its connection, from 1."""
    position: int
    """Of the first byte."""
    stream_bytes: int
    """Head and body as they were on the stream."""
    body: bytes
    """What was kept of the body: without chunk framing, still content-coded."""
    body_bytes: int
    """Size of the body, kept or not, without chunk framing."""
    request: Message | None = None
    """Responses: the request that it answers, when that is known."""
    raw_body: bytes | None = None
    """What was kept of the body as it was on the stream; None: the same as `body`."""
    trailers: tuple[tuple[str, str], ...] = ()
    completeness: Completeness = Completeness.COMPLETE
    missing_bytes: int = 0
    missing_reason: str = ""
    extra: Grpc | WebSocket | None = None
