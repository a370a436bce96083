"""Packets and files of packets, written by hand: what tcpdump would have written."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from ipaddress import ip_address

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
ETHERNET, SLL, SLL2, NULL, LOOP, RAW = 1, 113, 276, 0, 108, 101
START_NS = 1_795_233_504_000_000_000


def tcp(ports: tuple[int, int], sequence: int, acknowledged: int, flags: int, payload: bytes = b"") -> bytes:
    """With an option, so that the header is not the shortest."""
    mask = 0xFFFFFFFF
    head = struct.pack(">HHIIBBHHH", *ports, sequence & mask, acknowledged & mask, 8 << 4, flags, 65535, 0, 0)
    return head + b"\x01\x01\x08\x0a" + bytes(8) + payload


def ipv4(source: str, destination: str, data: bytes, *, fragment: int = 0, length: int | None = None) -> bytes:
    total = 20 + len(data) if length is None else length
    head = struct.pack(">BBHHHBBH", 0x45, 0, total, 1, fragment, 64, 6, 0)
    return head + ip_address(source).packed + ip_address(destination).packed + data


def ipv6(source: str, destination: str, data: bytes, *, extensions: bytes = b"", first: int = 6) -> bytes:
    head = struct.pack(">IHBB", 6 << 28, len(extensions) + len(data), first, 64)
    return head + ip_address(source).packed + ip_address(destination).packed + extensions + data


def link(kind: int, packet: bytes, *, vlans: tuple[int, ...] = ()) -> bytes:
    """The link layer's header before it."""
    version = packet[0] >> 4
    ether_type = 0x0800 if version == 4 else 0x86DD
    tags = b""
    for tag in reversed(vlans):
        tags = struct.pack(">HH", 7, ether_type) + tags
        ether_type = tag
    if kind == ETHERNET:
        return bytes(12) + struct.pack(">H", ether_type) + tags + packet + bytes(max(0, 46 - len(packet)))
    if kind == SLL:
        return struct.pack(">HHH8sH", 0, 772, 6, b"", ether_type) + tags + packet
    if kind == SLL2:
        return struct.pack(">HHiHBB8s", ether_type, 0, 1, 772, 0, 6, b"") + tags + packet
    if kind in (NULL, LOOP):
        return struct.pack("<I" if kind == NULL else ">I", 2 if version == 4 else 30) + packet
    return packet


@dataclass
class Packets:
    """Packets of one or more connections, each with its time."""

    kind: int = ETHERNET
    vlans: tuple[int, ...] = ()
    packets: list[tuple[int, bytes]] = field(default_factory=list)
    time_ns: int = START_NS

    def add(self, packet: bytes, *, after_ns: int = 100_000) -> None:
        self.time_ns += after_ns
        self.packets.append((self.time_ns, link(self.kind, packet, vlans=self.vlans)))

    def pcap(
        self, *, order: str = "<", nanoseconds: bool = False, snap_length: int = 262144, version: int = 2
    ) -> bytes:
        magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
        parts = [struct.pack(order + "IHHiIII", magic, version, 4, 0, 0, snap_length, self.kind)]
        for time_ns, packet in self.packets:
            fraction = time_ns % 1_000_000_000 // (1 if nanoseconds else 1000)
            captured = packet[:snap_length]
            times = struct.pack(order + "IIII", time_ns // 1_000_000_000, fraction, len(captured), len(packet))
            parts.append(times + captured)
        return b"".join(parts)

    def pcapng(self, *, order: str = "<") -> bytes:
        """Two interfaces: the second has nanoseconds and an offset; packets take turns. And a block of another kind."""

        def block(kind: int, body: bytes) -> bytes:
            size = len(body) + 12
            return struct.pack(order + "II", kind, size) + body + struct.pack(order + "I", size)

        options = struct.pack(order + "HHB3xHHqI", 9, 1, 9, 14, 8, 1_000_000_000, 0)
        parts = [
            block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1)),
            block(1, struct.pack(order + "HHI", self.kind, 0, 0)),
            block(1, struct.pack(order + "HHI", self.kind, 0, 0) + options),
            block(0x0BAD, b"whatever"),
        ]
        for number, (time_ns, packet) in enumerate(self.packets):
            units = time_ns // 1000 if number % 2 == 0 else time_ns - 1_000_000_000_000_000_000
            head = struct.pack(order + "IIIII", number % 2, units >> 32, units & 0xFFFFFFFF, len(packet), len(packet))
            parts.append(block(6, head + packet + bytes(-len(packet) % 4)))
        return b"".join(parts)


@dataclass
class Conversation:
    """One TCP connection in a capture."""

    packets: Packets
    client: tuple[str, int] = ("127.0.0.1", 54321)
    server: tuple[str, int] = ("127.0.0.1", 8080)
    sequences: list[int] = field(default_factory=lambda: [1000, 0xFFFFFFF0])
    """Of the next byte: the client's, the server's. The server's wraps soon."""

    def open(self) -> Conversation:
        self._segment(0, SYN, sequence=self.sequences[0] - 1, acknowledged=0)
        self._segment(1, SYN | ACK, sequence=self.sequences[1] - 1)
        self._segment(0, ACK)
        return self

    def send(self, payload: bytes) -> None:
        """From the client."""
        self.data(0, payload)

    def recv(self, payload: bytes) -> None:
        """To the client."""
        self.data(1, payload)

    def data(self, sender: int, payload: bytes, *, flags: int = PSH | ACK, after_ns: int = 100_000) -> None:
        self._segment(sender, flags, payload, after_ns=after_ns)
        self.sequences[sender] += len(payload)

    def again(self, sender: int, payload: bytes, *, back: int) -> None:
        """A retransmission of what began `back` bytes before."""
        self._segment(sender, PSH | ACK, payload, sequence=self.sequences[sender] - back)

    def close(self) -> None:
        for sender in (0, 1):
            self._segment(sender, FIN | ACK)
            self.sequences[sender] += 1
        self._segment(0, ACK)

    def reset(self, sender: int = 0) -> None:
        self._segment(sender, RST | ACK)

    def packet(self, sender: int, segment: bytes) -> bytes:
        source, destination = (self.client[0], self.server[0]) if sender == 0 else (self.server[0], self.client[0])
        return (ipv6 if ":" in source else ipv4)(source, destination, segment)

    def segment(self, sender: int, flags: int, payload: bytes, sequence: int, acknowledged: int) -> bytes:
        ports = (self.client[1], self.server[1]) if sender == 0 else (self.server[1], self.client[1])
        return tcp(ports, sequence, acknowledged, flags, payload)

    def _segment(
        self,
        sender: int,
        flags: int,
        payload: bytes = b"",
        *,
        sequence: int | None = None,
        acknowledged: int | None = None,
        after_ns: int = 100_000,
    ) -> None:
        sequence = self.sequences[sender] if sequence is None else sequence
        acknowledged = self.sequences[1 - sender] if acknowledged is None else acknowledged
        segment = self.segment(sender, flags, payload, sequence, acknowledged)
        self.packets.add(self.packet(sender, segment), after_ns=after_ns)
