"""The framing of `.pcap` and `.pcapng` files: bytes in, packets out, each with its exact time.

Contract: `read_packets(path, file)` yields a `Packet` at a time, whatever the file's size. dpkt takes the packets
themselves apart (pcap.py); of the files it would give seconds as floating point numbers, and the first interface's link
type for all of them, and it reads as many bytes at once as a damaged file says. A file that is no capture raises
`CommandError`; one that breaks off yields what is whole, then raises `DamagedCaptureError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import BinaryIO, Final, NamedTuple

from netprofiler.errors import CommandError, ExitCode
from netprofiler.sources.base import DamagedCaptureError

# https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-03.html: magic → byte order, nanoseconds per unit
_PCAP_MAGICS: Final = {
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
}
_PCAPNG_MAGIC: Final = b"\x0a\x0d\x0d\x0a"
MAGICS: Final = (*_PCAP_MAGICS, _PCAPNG_MAGIC)

PACKET_BYTES_MAX: Final = 1024 * 1024
"""libpcap's own limit is 256 KiB; segments put together by the network card are at most 512 KiB (BIG TCP)."""
BLOCK_BYTES_MAX: Final = PACKET_BYTES_MAX + 64 * 1024
"""With options. Blocks that we do not read may be larger."""
SKIP_BYTES: Final = 64 * 1024
INTERFACES_MAX: Final = 4096
TIME_MAX_NS: Final = 1 << 63
"""The year 2262: what is later is damage."""

# https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-02.html
_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_OLD_PACKET: Final = 2
_SIMPLE_PACKET: Final = 3
_PACKET: Final = 6
_OPTION_RESOLUTION: Final = 9
_OPTION_OFFSET: Final = 14


class Packet(NamedTuple):
    """One packet as it was captured."""

    time_ns: int
    """Wall clock."""
    link_type: int
    data: bytes
    length: int
    """On the wire; more than was captured where a snap length cut it."""


@dataclass(frozen=True, slots=True)
class _Interface:
    link_type: int
    units_per_second: int
    offset_ns: int


class PacketFile:
    """Reads a file from its beginning; `head` is what was read of it already."""

    def __init__(self, path: str, head: bytes, file: BinaryIO) -> None:
        self._path = path
        self._head = head
        self._file = file
        self._at = 0
        self._time_ns = 0
        self.link_type: int | None = None
        """Of a `.pcap`; a `.pcapng` has one for each interface."""
        self._order, self._unit_ns = "<", 1000
        if not head.startswith(_PCAPNG_MAGIC):
            self._read_pcap_header()

    def _read(self, size: int) -> bytes:
        taken, self._head = self._head[:size], self._head[size:]
        try:
            data = taken + self._file.read(size - len(taken)) if size > len(taken) else taken
        except OSError as error:
            raise DamagedCaptureError(f"{self._path}: at byte {self._at}: {error.strerror}") from error
        self._at += len(data)
        return data

    def _exactly(self, size: int) -> bytes:
        at = self._at
        data = self._read(size)
        if len(data) < size:
            raise DamagedCaptureError(
                f"{self._path}: the capture is truncated: nothing whole follows byte {at}",
                remedy="what was whole is shown; end tcpdump by SIGINT, and copy all of the file",
            )
        return data

    def _damaged(self) -> DamagedCaptureError:
        return DamagedCaptureError(
            f"{self._path}: the capture is damaged before byte {self._at}", remedy="what is before it is shown"
        )

    def packets(self) -> Iterator[Packet]:
        return self._pcapng() if self.link_type is None else self._pcap(self.link_type)

    # --- pcap --------------------------------------------------------------------------------------------------------

    def _read_pcap_header(self) -> None:
        start = self._read(24)
        if len(start) < 24:
            raise CommandError(f"{self._path}: a packet capture that is truncated in its header", ExitCode.USAGE)
        self._order, self._unit_ns = _PCAP_MAGICS[start[:4]]
        major, _, _, _, _, link_type = Struct(self._order + "HHiIII").unpack_from(start, 4)
        if major != 2:
            raise CommandError(
                f"{self._path}: a packet capture of version {major}; only version 2 is known", ExitCode.USAGE
            )
        self.link_type = link_type & 0x0FFFFFFF  # above: the length of a frame check sequence

    def _pcap(self, link_type: int) -> Iterator[Packet]:
        header = Struct(self._order + "IIII")
        unit_ns = self._unit_ns
        while True:
            start = self._read(1)
            if not start:
                return
            seconds, fraction, captured, length = header.unpack(start + self._exactly(header.size - 1))
            if captured > PACKET_BYTES_MAX or fraction * unit_ns >= 1_000_000_000:
                raise self._damaged()
            yield Packet(seconds * 1_000_000_000 + fraction * unit_ns, link_type, self._exactly(captured), length)

    # --- pcapng ------------------------------------------------------------------------------------------------------

    def _pcapng(self) -> Iterator[Packet]:
        interfaces: list[_Interface] = []
        order = "<"
        while True:
            start = self._read(1)
            if not start:
                return
            start += self._exactly(11)
            if start[:4] == _PCAPNG_MAGIC:
                order = "<" if start[8:12] == b"\x4d\x3c\x2b\x1a" else ">"
                if start[8:12] not in (b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d"):
                    raise self._damaged()
                interfaces = []
            kind, length = Struct(order + "II").unpack_from(start)
            if length < 12 or length % 4:
                raise self._damaged()
            if kind not in (_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _PACKET):
                self._skip(length - 12)
                continue
            if length > BLOCK_BYTES_MAX:
                raise self._damaged()
            block = start[8:] + self._exactly(length - 12)
            if Struct(order + "I").unpack(block[-4:])[0] != length:
                raise self._damaged()
            body = block[:-4]
            if kind == _INTERFACE:
                if len(interfaces) >= INTERFACES_MAX or len(body) < 8:
                    raise self._damaged()
                interfaces.append(self._interface(order, body))
            elif kind != _SECTION:
                yield self._packet(order, kind, body, interfaces)

    def _skip(self, size: int) -> None:
        while size:
            size -= len(self._exactly(min(size, SKIP_BYTES)))

    def _interface(self, order: str, body: bytes) -> _Interface:
        (link_type,) = Struct(order + "H").unpack_from(body)
        units_per_second, offset_ns = 1_000_000, 0
        at = 8
        while at + 4 <= len(body):
            code, length = Struct(order + "HH").unpack_from(body, at)
            value = body[at + 4 : at + 4 + length]
            at += 4 + (length + 3 & ~3)
            if not code:
                break
            if code == _OPTION_RESOLUTION and length == 1:
                exponent = value[0] & 0x7F
                units_per_second = 2**exponent if value[0] & 0x80 else 10**exponent
            elif code == _OPTION_OFFSET and length == 8 and len(value) == 8:
                offset_ns = Struct(order + "q").unpack(value)[0] * 1_000_000_000
        return _Interface(link_type, units_per_second, offset_ns)

    def _packet(self, order: str, kind: int, body: bytes, interfaces: list[_Interface]) -> Packet:
        if kind == _SIMPLE_PACKET:
            # It has no time: that of the packet before has to do.
            header = Struct(order + "I")
        else:
            header = Struct(order + ("IIIII" if kind == _PACKET else "HHIIII"))
        if len(body) < header.size:
            raise self._damaged()
        fields = header.unpack_from(body)
        length = fields[-1]
        captured = min(length, len(body) - header.size) if kind == _SIMPLE_PACKET else fields[-2]
        number = 0 if kind == _SIMPLE_PACKET else fields[0]
        if number >= len(interfaces) or captured > min(len(body) - header.size, PACKET_BYTES_MAX):
            raise self._damaged()
        interface = interfaces[number]
        if kind != _SIMPLE_PACKET:
            units = fields[-4] << 32 | fields[-3]
            time_ns = units * 1_000_000_000 // interface.units_per_second + interface.offset_ns
            if not 0 <= time_ns < TIME_MAX_NS:
                raise self._damaged()
            self._time_ns = time_ns
        return Packet(self._time_ns, interface.link_type, body[header.size : header.size + captured], length)
