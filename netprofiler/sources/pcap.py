"""A packet capture as a source: packets -> the raw records that the kernel side would have sent, seen from outside.

Contract: `PacketCapture` gives the frames of sources/base.py. A TCP connection is one socket of nobody (`wire.KIND_PASSIVE`):
what its client (who sent the SYN; not known where no SYN was seen) sends is SEND, what it gets is RECV. Positions are
sequence numbers, so `hop` is what the kernel side's is. Order, retransmissions, overlaps and holes are streams.py's, as
for every source. Times are the packets' own (wall clock; the offset is 0).

As on the kernel side, the first bytes decide what is passed on at all (`looks_like` is bpf/detect.h's), and rows are
counted here, independently of what the pipeline makes of it: a call is a packet with payload, bytes are payload bytes on
the wire. Of a packet that a snap length cut, the rest is `over_limit`. IP fragments are counted, not put together.

Whatever the bytes are, nothing raises: what dpkt makes of damage (ValueError, TypeError, struct.error and more) stops at
`_take_apart`.
"""

from __future__ import annotations

import re
import struct
from collections import Counter, OrderedDict
from collections.abc import Iterator
from enum import Enum, auto
from ipaddress import ip_address
from typing import BinaryIO, Final, NamedTuple

import dpkt

from netprofiler import wire
from netprofiler.counters import KERNEL_ROWS, Row
from netprofiler.errors import CommandError, ExitCode
from netprofiler.protocols.http2 import looks_like_frames
from netprofiler.sources.base import Batch, DamagedCaptureError, End, Frame, Rounds
from netprofiler.sources.packets import Packet, PacketFile

CONNECTIONS_MAX: Final = 65_536
"""As the pipeline's; over it, the longest silent is forgotten."""
HELD_BYTES_MAX: Final = 16 * 1024 * 1024
HELD_SEGMENTS_MAX: Final = 64
"""Of one connection whose first bytes have not been seen yet; the bytes are of all together."""
BATCH_BYTES: Final = 256 * 1024
ROUND_NS: Final = 25_000_000
"""Packets of this time are one round, as the live capture reads its ring."""
LATE_NS: Final = 250_000_000
"""What is this late after the end of its connection belongs to nothing any more; the pipeline keeps it twice as long."""
WAIT_NS: Final = 300_000_000
"""More than any wait of connection.py: in a silence of the capture, one round at this time ends them."""

_MASK: Final = 0xFFFFFFFF
_FIN: Final = 1
_SYN: Final = 2
_RST: Final = 4
_ACK: Final = 16
_TCP: Final = 6

# https://www.tcpdump.org/linktypes.html
_ETHERNET: Final = 1
_NULL: Final = 0
_LOOP: Final = 108
_LINUX_SLL: Final = 113
_LINUX_SLL2: Final = 276
_RAW: Final = (12, 14, 101, 228, 229)
LINK_TYPES: Final = (_NULL, _ETHERNET, _LOOP, _LINUX_SLL, _LINUX_SLL2, *_RAW)
_VLAN: Final = (0x8100, 0x88A8, 0x9100)
_VERSIONS: Final = {0x0800: 4, 0x86DD: 6}

_DAMAGE: Final = (
    dpkt.Error,
    ArithmeticError,
    AttributeError,
    LookupError,
    NameError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
"""What dpkt raises for packets that are not what they say."""

PREFIX_BYTES: Final = 16
_VERSION: Final = b"HTTP/1."
_REQUEST: Final = re.compile(rb"CONNECT |[A-Z][A-Z-]{2,13} [/*hH]")
_SHORT: Final = re.compile(rb"[A-Z](?:[A-Z-]{0,14}|[A-Z-]{2,13} )")
_TLS: Final = re.compile(rb"\x16\x03[\x00-\x04]")
_SETTINGS: Final = re.compile(rb"\x00..\x04\x00\x00\x00\x00\x00", re.DOTALL)


class Looks(Enum):
    """What the first bytes of a direction speak."""

    OTHER = auto()
    SHORT = auto()
    """So far it could be HTTP/1."""
    HTTP1 = auto()
    HTTP2 = auto()
    TLS = auto()


_ROWS: Final = {Looks.OTHER: "not_http", Looks.SHORT: "not_http", Looks.TLS: "tls"}


def looks_like(text: bytes) -> Looks:
    """As bpf/detect.h."""
    text = text[:PREFIX_BYTES]
    if _TLS.match(text):
        return Looks.TLS
    if text.startswith(b"PRI *") or _SETTINGS.match(text):
        return Looks.HTTP2
    if text.startswith(b"HT"):
        if text.startswith(_VERSION):
            return Looks.HTTP1
        return Looks.SHORT if _VERSION.startswith(text) else Looks.OTHER
    if _REQUEST.match(text):
        return Looks.HTTP1
    return Looks.SHORT if _SHORT.fullmatch(text) else Looks.OTHER


Endpoint = tuple[bytes, int]


class _Segment(NamedTuple):
    time_ns: int
    source: Endpoint
    destination: Endpoint
    flags: int
    sequence: int
    acknowledged: int
    payload: bytes
    length: int


class _Held(NamedTuple):
    direction: int
    position: int
    segment: _Segment


class _Conversation:
    """One connection. `first` and `end` are by direction; SEND is what `client` sends."""

    __slots__ = (
        "client",
        "closed_ns",
        "end",
        "first",
        "fresh",
        "held",
        "known",
        "opened",
        "prefix",
        "server",
        "socket",
        "verdict",
    )

    def __init__(self, socket: int, client: Endpoint, server: Endpoint, *, fresh: bool) -> None:
        self.socket = socket
        self.client = client
        self.server = server
        self.fresh = fresh
        """Seen from its first byte on: the first bytes decide for good."""
        self.known = fresh
        """Who is the client."""
        self.verdict: Looks | None = None
        self.opened = False
        self.first: list[int | None] = [None, None]
        self.prefix = [b"", b""]
        self.held: list[_Held] = []
        self.end: list[int | None] = [None, None]
        self.closed_ns: int | None = None


class PacketCapture:
    """A `.pcap` or `.pcapng` to read; `head` is what was read of the file already."""

    knows_processes = False
    wall_offset_ns = 0

    def __init__(self, path: str, head: bytes, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._packets = PacketFile(path, head, file)
        link_type = self._packets.link_type
        if link_type is not None and link_type not in LINK_TYPES:
            raise CommandError(
                f"{path}: a packet capture with link type {link_type}, which is not known here",
                ExitCode.USAGE,
                remedy="capture on an interface with Ethernet, Linux cooked, raw IP or loopback packets",
            )
        self.description = "a packet capture"
        self._rows = {name: Row() for name in (*KERNEL_ROWS, "unparsed")}
        self._conversations: OrderedDict[tuple[Endpoint, Endpoint], _Conversation] = OrderedDict()
        self._sockets = 0
        self._held_bytes = 0
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._seen: Counter[str] = Counter()

    def close(self) -> None:
        self._file.close()

    def notes(self) -> list[str]:
        texts = {
            "fragments": "IP fragments, which are not put together",
            "damaged": "damaged, or cut before the end of their TCP header",
            "link": "of link types that are not known here",
        }
        return [f"{self.path}: {self._seen[key]} packets were {text}" for key, text in texts.items() if self._seen[key]]

    def frames(self) -> Iterator[Frame]:
        start_ns = last_ns = None
        damage: list[DamagedCaptureError] = []
        for packet in self._whole_packets(damage):
            time_ns = packet.time_ns if last_ns is None else max(last_ns, packet.time_ns)
            if start_ns is None or last_ns is None:
                start_ns = time_ns
            elif time_ns - start_ns >= ROUND_NS or self._batch_bytes > BATCH_BYTES:
                yield from self._round(last_ns)
                silence = tuple(each for each in (last_ns + WAIT_NS, time_ns - 1) if last_ns < each < time_ns)
                if silence and time_ns - last_ns > ROUND_NS:
                    yield Rounds(silence)
                start_ns = time_ns
            last_ns = time_ns
            self._take(packet)
        last_ns = last_ns or 0
        for conversation in self._conversations.values():
            self._decide_by_what_is_held(conversation)
            self._give_up(conversation)
        yield from self._round(last_ns)
        yield End(last_ns, self._rows, 0)
        for error in damage:
            raise error

    def _whole_packets(self, damage: list[DamagedCaptureError]) -> Iterator[Packet]:
        """Up to where the file breaks off: what was whole is to come out first."""
        try:
            yield from self._packets.packets()
        except DamagedCaptureError as error:
            damage.append(error)

    def _round(self, time_ns: int) -> Iterator[Frame]:
        if self._batch:
            yield Batch(time_ns, b"".join(self._batch))
            self._batch = []
            self._batch_bytes = 0
        yield Rounds((time_ns,))

    # --- packets -----------------------------------------------------------------------------------------------------

    def _take(self, packet: Packet) -> None:
        if packet.link_type not in LINK_TYPES:
            self._seen["link"] += 1
            return
        version, start = _network(packet.link_type, packet.data)
        if not version:
            return  # ARP and others
        try:
            segment = self._take_apart(packet, version, start)
        except _DAMAGE:
            self._seen["damaged"] += 1
            return
        if segment is not None:
            self._segment(segment)

    def _take_apart(self, packet: Packet, version: int, start: int) -> _Segment | None:
        """None: no TCP, or a fragment."""
        data = packet.data[start:]
        on_wire = max(packet.length, len(packet.data)) - start
        if version == 4:
            if data[9] != _TCP:
                return None
            ip = dpkt.ip.IP(data)
            fragment = bool(ip.mf or ip.offset)
            header_bytes = ip.hl * 4
            total = ip.len or on_wire  # 0: segmentation offload, RFC 2675 knows the same
        else:
            ip = dpkt.ip6.IP6(data)
            if getattr(ip, "p", None) != _TCP:
                return None
            fragment = any(
                isinstance(each, dpkt.ip6.IP6FragmentHeader) and (each.frag_off or each.m_flag)
                for each in ip.all_extension_headers
            )
            header_bytes = 40 + sum(each.length for each in ip.all_extension_headers)
            total = ip.plen + 40 if ip.plen else on_wire
        total = min(total, on_wire)
        if fragment:
            self._seen["fragments"] += 1
            self._count("total", total - header_bytes)
            self._count("unparsed", total - header_bytes)
            return None
        tcp = ip.data
        length = -1
        if isinstance(tcp, dpkt.tcp.TCP):
            length = total - header_bytes - tcp.off * 4
        if length < 0:
            raise ValueError
        return _Segment(
            packet.time_ns,
            (ip.src, tcp.sport),
            (ip.dst, tcp.dport),
            tcp.flags,
            tcp.seq,
            tcp.ack,
            bytes(tcp.data[:length]),
            length,
        )

    def _count(self, row: str, length: int) -> None:
        entry = self._rows[row]
        entry.calls += 1
        entry.bytes += length

    # --- connections -------------------------------------------------------------------------------------------------

    def _segment(self, segment: _Segment) -> None:
        flags, length = segment.flags, segment.length
        conversation = self._find(segment)
        if conversation is None:
            return
        direction = wire.SEND if segment.source == conversation.client else wire.RECV
        position = (segment.sequence + (1 if flags & _SYN else 0)) & _MASK
        if conversation.first[direction] is None:
            conversation.first[direction] = position
        if flags & _ACK and conversation.first[1 - direction] is None:
            conversation.first[1 - direction] = segment.acknowledged
        if length:
            self._count("total", length)
            closed_ns = conversation.closed_ns
            if closed_ns is not None and segment.time_ns - closed_ns > LATE_NS:
                self._count("unparsed" if conversation.opened else "not_http", length)
            else:
                self._payload(conversation, direction, position, segment)
        if flags & (_FIN | _RST):
            self._close(conversation, direction, (position + length) & _MASK, segment)

    def _find(self, segment: _Segment) -> _Conversation | None:
        """The conversation of a segment, a new one where one begins; None where nothing does."""
        source, destination, flags = segment.source, segment.destination, segment.flags
        key = (source, destination) if source <= destination else (destination, source)
        found = self._conversations.get(key)
        if flags & _SYN and not flags & _RST:
            client, server = (destination, source) if flags & _ACK else (source, destination)
            direction = wire.RECV if flags & _ACK else wire.SEND
            first = (segment.sequence + 1) & _MASK
            if (
                found is None
                or found.client != client
                or not found.known
                or found.first[direction] not in (None, first)
            ):
                if found is not None:
                    self._forget(key, segment.time_ns)
                found = self._add(key, client, server, fresh=True)
        elif found is None and segment.length:
            found = self._add(key, source, destination, fresh=False)
        elif found is not None:
            self._conversations.move_to_end(key)
        return found

    def _add(self, key: tuple[Endpoint, Endpoint], client: Endpoint, server: Endpoint, *, fresh: bool) -> _Conversation:
        if len(self._conversations) >= CONNECTIONS_MAX:
            self._forget(next(iter(self._conversations)), None)
        self._sockets += 1
        conversation = self._conversations[key] = _Conversation(self._sockets, client, server, fresh=fresh)
        return conversation

    def _forget(self, key: tuple[Endpoint, Endpoint], time_ns: int | None) -> None:
        """Its place is taken: by a connection with the same addresses, or for want of room (`time_ns` is None)."""
        conversation = self._conversations.pop(key)
        self._give_up(conversation)
        if conversation.opened and conversation.closed_ns is None:
            at_ns = time_ns if time_ns is not None else 0
            self._put(wire.build_closed(wire.ConnectionClosed(at_ns, conversation.socket, wire.BOTH, True, 0)))

    def _close(self, conversation: _Conversation, direction: int, end: int, segment: _Segment) -> None:
        if conversation.closed_ns is not None:
            return
        reset = bool(segment.flags & _RST)
        if not reset and conversation.end[direction] is not None:
            return  # a FIN again
        conversation.end[direction] = end
        gone = reset or conversation.end[1 - direction] is not None
        if gone:
            conversation.closed_ns = segment.time_ns
            if not conversation.opened:
                self._decide_by_what_is_held(conversation)
                self._give_up(conversation)
        if conversation.opened:
            self._put(
                wire.build_closed(
                    wire.ConnectionClosed(
                        segment.time_ns, conversation.socket, wire.BOTH if reset else direction, gone, end
                    )
                )
            )

    def _payload(self, conversation: _Conversation, direction: int, position: int, segment: _Segment) -> None:
        if conversation.opened:
            self._deliver(conversation, direction, position, segment)
        elif conversation.verdict is not None:
            self._count(_ROWS[conversation.verdict], segment.length)
        else:
            self._undecided(conversation, direction, position, segment)

    # --- what it speaks ----------------------------------------------------------------------------------------------

    def _undecided(self, conversation: _Conversation, direction: int, position: int, segment: _Segment) -> None:
        prefix = conversation.prefix[direction]
        first = conversation.first[direction]
        assert first is not None
        if conversation.fresh:
            if position != (first + len(prefix)) & _MASK:
                # Early, or again: the first bytes decide.
                self._hold(conversation, direction, position, segment)
                return
        elif prefix and position != (first + len(prefix)) & _MASK:
            self._give_up(conversation)
            prefix = b""
        if not conversation.fresh and not prefix:
            conversation.first[direction] = position
        text = prefix + segment.payload[: PREFIX_BYTES - len(prefix)]
        looks = looks_like(text)
        if looks is Looks.OTHER and not conversation.fresh and looks_like_frames(segment.payload):
            looks = Looks.HTTP2
        if looks is Looks.SHORT and len(segment.payload) == segment.length:
            conversation.prefix[direction] = text
            self._hold(conversation, direction, position, segment)
        elif looks in (Looks.HTTP1, Looks.HTTP2):
            if not conversation.fresh and not conversation.held:
                conversation.first[1 - direction] = segment.acknowledged
            if conversation.first[1 - direction] is None:
                # Data in a SYN (RFC 7413): where the answer begins, its SYN will tell.
                self._hold(conversation, direction, position, segment)
                return
            self._open(conversation, segment.time_ns)
            self._deliver(conversation, direction, position, segment)
        else:
            if conversation.fresh or looks is Looks.TLS:
                conversation.verdict = looks
            self._give_up(conversation)
            self._count(_ROWS[looks], segment.length)

    def _hold(self, conversation: _Conversation, direction: int, position: int, segment: _Segment) -> None:
        conversation.held.append(_Held(direction, position, segment))
        self._held_bytes += len(segment.payload)
        if len(conversation.held) > HELD_SEGMENTS_MAX or self._held_bytes > HELD_BYTES_MAX:
            if conversation.fresh:
                self._decide_by_what_is_held(conversation)
            else:
                self._give_up(conversation)

    def _decide_by_what_is_held(self, conversation: _Conversation) -> None:
        """Its first bytes do not come: from here on it is one that was joined after its beginning."""
        if conversation.opened or conversation.verdict is not None:
            return
        held, conversation.held = conversation.held, []
        self._held_bytes -= sum(len(each.segment.payload) for each in held)
        if not held and not conversation.fresh:
            return
        conversation.fresh = False
        conversation.prefix = [b"", b""]
        for each in held:
            self._payload(conversation, *each)

    def _give_up(self, conversation: _Conversation) -> None:
        """What is held turned out not to be HTTP."""
        row = _ROWS[conversation.verdict or Looks.OTHER] if not conversation.opened else "unparsed"
        for each in conversation.held:
            self._count(row, each.segment.length)
            self._held_bytes -= len(each.segment.payload)
        conversation.held = []
        conversation.prefix = [b"", b""]

    def _open(self, conversation: _Conversation, time_ns: int) -> None:
        conversation.verdict = Looks.HTTP1
        conversation.opened = True
        version4 = len(conversation.client[0]) == 4
        self._put(
            wire.build_opened(
                wire.ConnectionOpened(
                    time_ns=conversation.held[0].segment.time_ns if conversation.held else time_ns,
                    socket=conversation.socket,
                    pid=0,
                    role=wire.ROLE_CLIENT if conversation.known else 0,
                    fresh=conversation.fresh,
                    family=wire.FAMILY_IPV4 if version4 else wire.FAMILY_IPV6,
                    network_namespace=0,
                    local_ip=str(ip_address(conversation.client[0])),
                    local_port=conversation.client[1],
                    remote_ip=str(ip_address(conversation.server[0])),
                    remote_port=conversation.server[1],
                    unix_path="",
                    send_position=conversation.first[wire.SEND] or 0,
                    recv_position=conversation.first[wire.RECV] or 0,
                    counted=False,
                    passive=True,
                )
            )
        )
        held, conversation.held = conversation.held, []
        self._held_bytes -= sum(len(each.segment.payload) for each in held)
        for each in held:
            self._deliver(conversation, *each)

    # --- records -----------------------------------------------------------------------------------------------------

    def _deliver(self, conversation: _Conversation, direction: int, position: int, segment: _Segment) -> None:
        self._count("delivered", segment.length)
        captured = len(segment.payload)
        missing = segment.length - captured
        if captured:
            self._data(conversation, direction, position, segment, wire.DATA_FIRST, captured, segment.payload)
        if missing:
            flags = 0 if captured else wire.DATA_FIRST
            self._data(conversation, direction, position + captured, segment, flags, missing, b"")

    def _data(
        self,
        conversation: _Conversation,
        direction: int,
        position: int,
        segment: _Segment,
        flags: int,
        length: int,
        payload: bytes,
    ) -> None:
        self._put(
            wire.build_data(
                wire.DataCaptured(
                    time_ns=segment.time_ns,
                    socket=conversation.socket,
                    pid=0,
                    tid=0,
                    direction=direction,
                    position=position & _MASK,
                    length=length,
                    flags=flags,
                    reason=wire.REASON_NONE if payload else wire.REASON_OVER_LIMIT,
                    payload=payload,
                )
            )
        )

    def _put(self, record: bytes) -> None:
        framed = wire.frame(record)
        self._batch.append(framed)
        self._batch_bytes += len(framed)


def _network(link_type: int, data: bytes) -> tuple[int, int]:
    """IP version (0: something else) and where it begins."""
    if link_type in _RAW:
        return _by_first_byte(data, 0)
    if link_type in (_NULL, _LOOP):
        return _by_first_byte(data, 4)
    if link_type == _LINUX_SLL:
        at, start = 14, 16
    elif link_type == _LINUX_SLL2:
        at, start = 0, 20
    else:
        at, start = 12, 14
    ether_type = int.from_bytes(data[at : at + 2], "big")
    while ether_type in _VLAN and len(data) > start:
        ether_type = int.from_bytes(data[start + 2 : start + 4], "big")
        start += 4
    return _VERSIONS.get(ether_type, 0), start


def _by_first_byte(data: bytes, start: int) -> tuple[int, int]:
    version = data[start] >> 4 if len(data) > start else 0
    return (version if version in (4, 6) else 0), start
