"""What a program is made of, as far as it decides what can be read of its traffic: word size, Go, TLS libraries.

Contract: raw facts from the ELF file and the memory map, nothing is run and nothing is guessed; a file that cannot be
read, or is no ELF, gives what is empty. Reading is bounded by the size of the file, mapped, not copied.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MAGIC: Final = b"\x7fELF"
_GO_BUILD_INFO: Final = b"\xff Go buildinf:"
_GO_INLINE_STRINGS: Final = 2  # since Go 1.18: cmd/go's debug/buildinfo, the flags byte
_SECTIONS_MAX: Final = 4096
"""More section headers than this are in no program that was linked to be run."""

_LIBRARIES: Final = re.compile(
    r"/(lib(?:ssl|gnutls|nspr4|ssl3|mbedtls|wolfssl|s2n|rustls)\b[^/]*\.so[^/ ]*)(?: \(deleted\))?$"
)
_STATIC: Final = (
    (b"crypto/tls.(*Conn).Write", "Go crypto/tls"),
    (b"BoringSSL", "BoringSSL"),
    (b"SSL_read_ex", "OpenSSL"),
    (b"GNUTLS_DEBUG_LEVEL", "GnuTLS"),
    (b"/rustls-", "rustls"),
)
"""What the text of a program with such a library linked into it contains."""


@dataclass(frozen=True, slots=True)
class Program:
    """An executable."""

    bits: int
    """32 or 64; 0 when it could not be read, or is no ELF file."""
    go_version: str = ""
    """As the linker wrote it (``go1.22.10``); ``go`` where it is Go older than 1.18; empty where it is not Go."""
    static_tls: tuple[str, ...] = ()
    """TLS libraries whose names stand in the executable itself."""


UNREADABLE: Final = Program(0)


def read_program(path: Path) -> Program:
    """`path` may be /proc/PID/exe."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
            return _read_image(image)
    except (OSError, ValueError):  # ValueError: an empty file
        return UNREADABLE


def _read_image(image: mmap.mmap) -> Program:
    if image[:4] != _MAGIC or len(image) < 64:
        return UNREADABLE
    bits = {1: 32, 2: 64}.get(image[4], 0)
    static = tuple(name for text, name in _STATIC if image.find(text) >= 0)
    return Program(bits, _go_version(image, bits), static)


def _sections(image: mmap.mmap, bits: int) -> Iterator[tuple[int, int, int]]:
    """Name's offset, position and size of each section; the section of names comes first."""
    order = "<" if image[5] == 1 else ">"
    try:
        if bits == 64:
            table, size, count, names = *struct.unpack_from(f"{order}Q", image, 40), *_counts(image, order, 58)
            layout, fields = f"{order}IIQQQQ", (0, 4, 5)
        else:
            table, size, count, names = *struct.unpack_from(f"{order}I", image, 32), *_counts(image, order, 46)
            layout, fields = f"{order}IIIIII", (0, 4, 5)
        for index in (names, *range(min(count, _SECTIONS_MAX))):
            header = struct.unpack_from(layout, image, table + index * size)
            yield header[fields[0]], header[fields[1]], header[fields[2]]
    except (struct.error, ValueError, OverflowError):  # OverflowError: an offset beyond ssize_t
        return


def _counts(image: mmap.mmap, order: str, at: int) -> tuple[int, int, int]:
    """e_shentsize, e_shnum, e_shstrndx."""
    size, count, names = struct.unpack_from(f"{order}HHH", image, at)
    return size, count, names


def _go_version(image: mmap.mmap, bits: int) -> str:
    names = -1
    for name, position, size in _sections(image, bits):
        if names < 0:
            names = position
            continue
        if image[names + name : names + name + 14] == b".go.buildinfo\0":
            return _build_info(image[position : position + min(size, 256)])
    return ""


def _build_info(data: bytes) -> str:
    """debug/buildinfo: 14 bytes of magic, pointer size, flags; at 32 a length (varint) and the version."""
    if not data.startswith(_GO_BUILD_INFO) or len(data) < 34 or not data[15] & _GO_INLINE_STRINGS:
        return "go"
    length = data[32]
    if length >= 0x80:  # a development version, longer than a release's name
        return "go"
    return data[33 : 33 + length].decode("ascii", "replace")


def mapped_tls_libraries(maps: Iterable[str]) -> list[str]:
    """Lines of /proc/PID/maps → paths of the TLS libraries among them, each once, in order."""
    found: dict[str, None] = {}
    for line in maps:
        fields = line.rstrip("\n").split(maxsplit=5)
        if len(fields) == 6 and _LIBRARIES.search(fields[5]):
            found[fields[5]] = None
    return list(found)
