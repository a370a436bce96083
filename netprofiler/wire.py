"""Raw records <-> events: the only mirror of bpf/events.h.

Contract: a **batch** is `bytes` laid out as in the kernel's ring buffer: per record a u32 length (with the BUSY and
DISCARD bits), a u32 that we ignore, the record, padding to 8 bytes. Whatever makes batches (the kernel, a recording, a
packet capture, a test) makes them in this layout, and `records()` or `Pipeline.feed` walk it. A record that does not
fit its kind raises `MalformedRecord`; only a damaged recording can bring that about.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final, NamedTuple

from netprofiler.errors import NetprofilerError

ABI_VERSION: Final = 3

RING_HEADER_BYTES: Final = 8
RING_BUSY: Final = 1 << 31
RING_DISCARD: Final = 1 << 30
RING_LENGTH_MASK: Final = RING_DISCARD - 1

KIND_OPENED: Final = 1
KIND_DATA: Final = 2
KIND_CLOSED: Final = 3
KIND_PROCESS: Final = 4
KIND_HANDSHAKE: Final = 5
"""Laid out as KIND_DATA: what a TLS connection begins with, as it is on the socket. Not part of what was delivered."""
KIND_USER: Final = 128
"""From here on: made by the user side."""
KIND_PASSIVE: Final = 128
"""Laid out as KIND_OPENED: a connection seen from outside, in a packet capture; nobody's socket."""

SOCKET_TLS: Final = 1 << 63
"""In the number of a socket: the plaintext inside of it."""
SOCKET_UNKNOWN: Final = 1 << 62
"""With SOCKET_TLS: which socket it is on is not known."""

SEND: Final = 0
RECV: Final = 1
BOTH: Final = 2

DATA_FIRST: Final = 1
DATA_FILE: Final = 2
DATA_AFTER_LOSS: Final = 4

REASON_NONE: Final = 0
REASON_OVER_LIMIT: Final = 1
REASON_SENDFILE: Final = 2
REASON_SPLICE: Final = 3
REASON_UNREADABLE: Final = 4
REASON_IO_URING: Final = 5
REASONS: Final = ("", "over_limit", "sendfile", "splice", "unknown", "io_uring")

FRESH: Final = 1
RESUMED: Final = 2
ROLE_CLIENT: Final = 1
ROLE_SERVER: Final = 2
FAMILY_UNIX: Final = 1
FAMILY_IPV4: Final = 2
FAMILY_IPV6: Final = 10

UNIX_PATH_BYTES: Final = 108
COMM_BYTES: Final = 16
LIBRARIES: Final = ("", "go", "openssl", "boringssl", "gnutls", "nss")
"""By `opened_record.library`."""
FILE_NAME_BYTES: Final = 64
FILE_NAMES: Final = 12
FILE_MAGIC: Final = b"npfile\x01\x02"

OPENED: Final = Struct(f"<BBBBIQQIHH16s16sIIII{UNIX_PATH_BYTES}sI")
DATA: Final = Struct("<BBBBIQQIIII")
CLOSED: Final = Struct("<BBBBIQQ")
PROCESS: Final = Struct(f"<B3xIQQII{COMM_BYTES}s")
FILE_SOURCE: Final = Struct("<8sQQIIII")
"""Its names follow: all FILE_NAMES places, or none where they were told lately."""

RING_DATA: Final = Struct("<II" + DATA.format[1:])
"""A ring header and a data record in one read: for the hot path."""


NOTICE: Final = Struct("<IIQQI4x")
NOTICE_EXECUTED: Final = 1
NOTICE_MAPPED: Final = 2
NOTICE_EXITED: Final = 3
NOTICE_FORKED: Final = 4


class Notice(NamedTuple):
    """What happened to a process; comes in a ring of its own, and is in no recording."""

    kind: int
    pid: int
    inode: int
    """NOTICE_EXECUTED, NOTICE_MAPPED: of the file."""
    address: int
    """NOTICE_MAPPED: where it was mapped."""
    device: int
    """Of the file system, as the kernel numbers it: major << 20 | minor."""


class MalformedRecord(NetprofilerError):
    """A raw record that is not as bpf/events.h says."""


@dataclass(frozen=True, slots=True)
class ConnectionOpened:
    """A connection is about to send its first data up, or another process has taken it over."""

    time_ns: int
    socket: int
    pid: int
    role: int
    """ROLE_CLIENT, ROLE_SERVER or 0: not known (joined after connect or accept)."""
    fresh: bool
    """Seen from its first byte on; or, where it was `resumed`, from between two exchanges on."""
    family: int
    network_namespace: int
    local_ip: str
    local_port: int
    remote_ip: str
    remote_port: int
    unix_path: str
    """Empty: none, or not a UNIX socket. An abstract name begins with ``@``."""
    send_position: int
    recv_position: int
    counted: bool
    """Positions are a count of the kernel side's own, and do not name the same bytes at the other end."""
    library: int = 0
    """Whose plaintext it is (LIBRARIES); 0: the socket's own bytes."""
    resumed: bool = False
    """What came before was added up by the kernel side."""
    passive: bool = False
    """Seen from outside, in a packet capture: `pid` is 0, and "local" is who asked for the connection, or spoke first."""


@dataclass(frozen=True, slots=True)
class DataCaptured:
    """One piece of one system call: `length` bytes of the stream, `payload` of them (or none) known."""

    time_ns: int
    socket: int
    pid: int
    tid: int
    direction: int
    position: int
    length: int
    flags: int
    reason: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class HandshakeCaptured:
    """What was sent or received on a socket that speaks TLS, from its beginning; nothing: its plaintext is read."""

    time_ns: int
    socket: int
    pid: int
    direction: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """A direction (or BOTH) ended at `position`."""

    time_ns: int
    socket: int
    direction: int
    gone: bool
    position: int


@dataclass(frozen=True, slots=True)
class ProcessSeen:
    """A process, or what an exec made of it, before its first data."""

    time_ns: int
    pid: int
    start_ns: int
    user: int
    comm: str
    cmdline: str


@dataclass(frozen=True, slots=True)
class FileSource:
    """Which part of which file a sendfile sent."""

    offset: int
    inode: int
    device: int
    """The kernel's own dev_t: major << 20 | minor."""
    descriptor: int
    pid: int
    names: tuple[bytes, ...]
    """The file's name and its parents', innermost first, as far as they were read."""


Event = ConnectionOpened | DataCaptured | HandshakeCaptured | ConnectionClosed | ProcessSeen


def parse_address(raw: bytes) -> str:
    """16 bytes, IPv4 as IPv4-mapped."""
    address = ipaddress.IPv6Address(raw)
    return str(address.ipv4_mapped or address)


def _unix_path(raw: bytes) -> str:
    raw = b"@" + raw[1:] if raw.startswith(b"\0") else raw.split(b"\0", 1)[0]
    return raw.decode("utf-8", "backslashreplace")


def parse_opened(record: bytes) -> ConnectionOpened:
    """One raw record of KIND_OPENED (or KIND_PASSIVE) → the event."""
    try:
        (_, family, role, fresh, pid, time_ns, socket, namespace, local_port, remote_port, local, remote) = (
            unpacked := OPENED.unpack_from(record)
        )[:12]
    except Exception as error:
        raise MalformedRecord(f"a connection record of {len(record)} bytes") from error
    send_position, recv_position, counted, path_length, path, library = unpacked[12:]
    is_unix = family == FAMILY_UNIX
    has_addresses = family in (FAMILY_IPV4, FAMILY_IPV6)
    if library >= len(LIBRARIES):
        raise MalformedRecord(f"a connection of an unknown library {library}")
    return ConnectionOpened(
        time_ns=time_ns,
        socket=socket,
        pid=pid,
        role=role,
        fresh=fresh >= FRESH,
        family=family,
        network_namespace=namespace,
        local_ip=parse_address(local) if has_addresses else "",
        local_port=local_port,
        remote_ip=parse_address(remote) if has_addresses else "",
        remote_port=remote_port,
        unix_path=_unix_path(path[: min(path_length, UNIX_PATH_BYTES)]) if is_unix and path_length else "",
        send_position=send_position,
        recv_position=recv_position,
        counted=bool(counted),
        library=library,
        resumed=fresh == RESUMED,
        passive=record[0] == KIND_PASSIVE,
    )


def parse_closed(record: bytes) -> ConnectionClosed:
    """One raw record of KIND_CLOSED → the event."""
    if len(record) < CLOSED.size:
        raise MalformedRecord(f"a closing record of {len(record)} bytes")
    _, direction, gone, _, position, time_ns, socket = CLOSED.unpack_from(record)
    return ConnectionClosed(time_ns, socket, direction, bool(gone), position)


def parse_process(record: bytes) -> ProcessSeen:
    """One raw record of KIND_PROCESS → the event; arguments are joined by one space."""
    if len(record) < PROCESS.size:
        raise MalformedRecord(f"a process record of {len(record)} bytes")
    _, pid, time_ns, start_ns, user, length, comm = PROCESS.unpack_from(record)
    arguments = record[PROCESS.size : PROCESS.size + length].rstrip(b"\0").split(b"\0")
    return ProcessSeen(
        time_ns=time_ns,
        pid=pid,
        start_ns=start_ns,
        user=user,
        comm=comm.split(b"\0", 1)[0].decode("utf-8", "backslashreplace"),
        cmdline=b" ".join(arguments).decode("utf-8", "backslashreplace"),
    )


def parse_data(record: bytes) -> DataCaptured:
    """One raw record of KIND_DATA → the event."""
    if len(record) < DATA.size:
        raise MalformedRecord(f"a data record of {len(record)} bytes")
    _, direction, flags, reason, captured, time_ns, socket, pid, tid, position, length = DATA.unpack_from(record)
    payload = record[DATA.size : DATA.size + captured]
    if len(payload) != captured or direction > RECV or reason >= len(REASONS):
        raise MalformedRecord(f"a data record of {len(record)} bytes that promises {captured}")
    return DataCaptured(time_ns, socket, pid, tid, direction, position, length, flags, reason, payload)


def parse_handshake(record: bytes) -> HandshakeCaptured:
    """One raw record of KIND_HANDSHAKE → the event."""
    event = parse_data(record)
    return HandshakeCaptured(event.time_ns, event.socket, event.pid, event.direction, event.payload)


_PARSERS: Final[dict[int, Callable[[bytes], Event]]] = {
    KIND_OPENED: parse_opened,
    KIND_DATA: parse_data,
    KIND_CLOSED: parse_closed,
    KIND_PROCESS: parse_process,
    KIND_HANDSHAKE: parse_handshake,
    KIND_PASSIVE: parse_opened,
}


def parse(record: bytes) -> Event:
    """One raw record (without its ring header) → the event that it is."""
    if not record or record[0] not in _PARSERS:
        raise MalformedRecord(f"a record of unknown kind {record[0] if record else 'none'}")
    return _PARSERS[record[0]](record)


def parse_notice(record: bytes) -> Notice:
    """One raw record of the ring of notices."""
    return Notice._make(NOTICE.unpack_from(record))


def parse_file_source(payload: bytes) -> FileSource:
    """The payload of a DATA_FILE record → what it tells."""
    if len(payload) < FILE_SOURCE.size or not payload.startswith(FILE_MAGIC):
        raise MalformedRecord("a file source that is none")
    _, offset, inode, device, descriptor, pid, count = FILE_SOURCE.unpack_from(payload)
    raw = payload[FILE_SOURCE.size :]
    if len(raw) < min(count, FILE_NAMES) * FILE_NAME_BYTES:
        raise MalformedRecord("a file source that promises more names than it holds")
    names = tuple(
        raw[i * FILE_NAME_BYTES : (i + 1) * FILE_NAME_BYTES].split(b"\0", 1)[0] for i in range(min(count, FILE_NAMES))
    )
    return FileSource(offset, inode, device, descriptor, pid, names)


def records(batch: bytes) -> Iterator[bytes]:
    """The raw records of a batch, up to the first one that is still being written."""
    offset = 0
    end = len(batch)
    while offset + RING_HEADER_BYTES <= end:
        header = int.from_bytes(batch[offset : offset + 4], "little")
        if header & RING_BUSY:
            return
        length = header & RING_LENGTH_MASK
        start = offset + RING_HEADER_BYTES
        if start + length > end:
            raise MalformedRecord("a batch that ends inside a record")
        if not header & RING_DISCARD:
            yield batch[start : start + length]
        offset = start + (length + 7 & ~7)


def whole_length(batch: bytes) -> int:
    """Bytes of a batch before the first record that is still being written, or that the batch's end cuts."""
    offset = 0
    end = len(batch)
    while offset + RING_HEADER_BYTES <= end:
        header = int.from_bytes(batch[offset : offset + 4], "little")
        after = offset + RING_HEADER_BYTES + ((header & RING_LENGTH_MASK) + 7 & ~7)
        if header & RING_BUSY or after > end:
            break
        offset = after
    return offset


def survey(batch: bytes) -> tuple[int, list[tuple[int, int]]]:
    """`whole_length()`, and of each UNIX socket that is announced in it the inode and the pid: what a recorder needs to
    know of a batch, and no more.
    """
    offset = 0
    end = len(batch)
    unix = []
    while offset + RING_HEADER_BYTES < end:
        header = int.from_bytes(batch[offset : offset + 4], "little")
        if header & RING_BUSY:
            break
        start = offset + RING_HEADER_BYTES
        if batch[start] == KIND_OPENED and batch[start + 1] == FAMILY_UNIX and not header & RING_DISCARD:
            event = parse_opened(batch[start : start + OPENED.size])
            unix.append((event.socket, event.pid))
        offset = start + ((header & RING_LENGTH_MASK) + 7 & ~7)
    return offset, unix


def resolve_files(batch: bytes, read: Callable[[FileSource, int, int], bytes]) -> bytes:
    """The batch with what `read(source, length, time_ns)` gives in place of each description of a file that was sent.

    Done as early as possible, and before a recording is written: the file may be gone soon.
    """
    out = []
    copied = 0
    offset = 0
    end = len(batch)
    while offset + RING_DATA.size <= end:
        size, _, kind, _, flags, *_ = RING_DATA.unpack_from(batch, offset)
        start = offset
        offset += RING_HEADER_BYTES + ((size & RING_LENGTH_MASK) + 7 & ~7)
        if kind == KIND_DATA and flags & DATA_FILE and size < RING_DISCARD:
            event = parse_data(batch[start + RING_HEADER_BYTES : start + RING_HEADER_BYTES + size])
            content = read(parse_file_source(event.payload), event.length, event.time_ns)[: event.length]
            out.append(batch[copied:start])
            out.append(frame(build_data(replace(event, flags=event.flags & ~DATA_FILE, payload=content))))
            copied = offset
    out.append(batch[copied:])
    return b"".join(out)


def frame(record: bytes) -> bytes:
    """A raw record → the same with ring header and padding, to be joined into a batch."""
    return len(record).to_bytes(8, "little") + record + bytes(-len(record) % 8)


def build_data(event: DataCaptured) -> bytes:
    """The event → a raw record."""
    return (
        DATA.pack(
            KIND_DATA,
            event.direction,
            event.flags,
            event.reason,
            len(event.payload),
            event.time_ns,
            event.socket,
            event.pid,
            event.tid,
            event.position & 0xFFFFFFFF,
            event.length,
        )
        + event.payload
    )


def build_opened(event: ConnectionOpened) -> bytes:
    """The event → a raw record."""

    def packed(address: str) -> bytes:
        if not address:
            return bytes(16)
        parsed = ipaddress.ip_address(address)
        return bytes(10) + b"\xff\xff" + parsed.packed if parsed.version == 4 else parsed.packed

    path = event.unix_path.encode()
    if path.startswith(b"@"):
        path = b"\0" + path[1:]
    return OPENED.pack(
        KIND_PASSIVE if event.passive else KIND_OPENED,
        event.family,
        event.role,
        event.fresh,
        event.pid,
        event.time_ns,
        event.socket,
        event.network_namespace,
        event.local_port,
        event.remote_port,
        packed(event.local_ip),
        packed(event.remote_ip),
        event.send_position,
        event.recv_position,
        event.counted,
        len(path),
        path,
        event.library,
    )


def build_handshake(event: HandshakeCaptured) -> bytes:
    """The event → a raw record."""
    size = len(event.payload)
    data = DATA.pack(
        *(KIND_HANDSHAKE, event.direction, 0, 0, size, event.time_ns, event.socket, event.pid, event.pid, 0, size)
    )
    return data + event.payload


def build_closed(event: ConnectionClosed) -> bytes:
    """The event → a raw record."""
    return CLOSED.pack(
        KIND_CLOSED, event.direction, event.gone, 0, event.position & 0xFFFFFFFF, event.time_ns, event.socket
    )


def build_process(event: ProcessSeen) -> bytes:
    """The event → a raw record."""
    arguments = event.cmdline.replace(" ", "\0").encode() + b"\0"
    return (
        PROCESS.pack(
            KIND_PROCESS, event.pid, event.time_ns, event.start_ns, event.user, len(arguments), event.comm.encode()
        )
        + arguments
    )
