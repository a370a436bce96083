"""An ELF file as the analysis of TLS libraries needs it: symbols by name, code by address, relocations, extents.

Contract: a view of bytes that may be anything. Nothing is run, nothing is copied but what is asked for, every table is
bounded by a named constant, and a damaged table is an empty one; only `Image` itself refuses, with `Damaged`, what is no
64-bit little-endian ELF file for x86-64. Addresses are virtual, as in the file; `offset_of` turns them into file offsets.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

Bytes = bytes | mmap.mmap

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_RELOCATION: Final = struct.Struct("<QQq")
_SYMBOL: Final = struct.Struct("<IBBHQQ")

SECONDS_MAX: Final = 4.0
"""Of CPU time: tables that were made to be slow end here. Node.js with 100 MB takes a third of a second."""
SECTIONS_MAX: Final = 4096
"""More section headers than this are in no program that was linked to be run."""
SEGMENTS_MAX: Final = 256
SYMBOLS_MAX: Final = 6_000_000
"""144 MB of table, looked through in a third of a second. Node.js has 300,000, Cloudflare's workerd 4.5 million."""
STRINGS_BYTES_MAX: Final = 128 << 20
RELOCATIONS_MAX: Final = 1_000_000
RELOCATION_TABLES_MAX: Final = 4
TEXT_BYTES_MAX: Final = 256 << 20
"""What is looked through for text: a quarter of a second where the needle's first byte is rare."""
OCCURRENCES_MAX: Final = 64
"""A name may also be the tail of others' (`SSL_read` of `xSSL_read`): linkers merge them."""
CHUNK_BYTES: Final = 4 << 20
"""Text is looked for in pieces of this size: `bytes.find` is ten times as fast as `mmap.find`."""

_SYMBOLS_CHUNK: Final = 65_536 * _SYMBOL.size
_EM_X86_64: Final = 62
_PT_LOAD: Final = 1
_PT_NOTE: Final = 4
_PT_GNU_EH_FRAME: Final = 0x6474E550
_SHF_EXECINSTR: Final = 4
_PF_X: Final = 1
_SHT_SYMTAB: Final = 2
_SHT_RELA: Final = 4
_SHT_DYNAMIC: Final = 6
_SHT_NOTE: Final = 7
_SHT_DYNSYM: Final = 11
_STT_FUNC: Final = 2
_STT_IFUNC: Final = 10
_BY_SYMBOL: Final = frozenset({1, 6, 7})
"""R_X86_64_64, GLOB_DAT, JUMP_SLOT."""
_R_RELATIVE: Final = 8
_DT_NEEDED: Final = 1
_DT_SONAME: Final = 14


class Damaged(Exception):
    """The reason why the file cannot be looked into, for the user."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What is loaded, or tells about what is."""

    kind: int
    flags: int
    offset: int
    address: int
    size: int
    """In the file."""


@dataclass(frozen=True, slots=True)
class Section:
    """What the linker keeps apart."""

    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function; `size` is 0 where it is not known."""

    address: int
    size: int


class Image:
    """`data` stays the caller's. Raises `Damaged`, also later: when `SECONDS_MAX` are spent."""

    def __init__(self, data: Bytes) -> None:
        self.data: Final = data
        self._deadline = time.thread_time() + SECONDS_MAX
        if len(data) < _HEADER.size or data[:4] != b"\x7fELF":
            raise Damaged("not an ELF file")
        if data[4] != 2 or data[5] != 1:
            raise Damaged("not a 64-bit little-endian program")
        header = _HEADER.unpack(data[: _HEADER.size])
        if header[2] != _EM_X86_64:
            raise Damaged("a program for another architecture than x86-64")
        self.segments: Final = tuple(self._read_segments(header[5], header[9], header[10]))
        if not any(segment.kind == _PT_LOAD for segment in self.segments):
            raise Damaged("the ELF file has no loadable segment")
        self.sections: Final = tuple(self._read_sections(header[6], header[11], header[12]))

    def check_time(self) -> None:
        """For whoever works on the file for long."""
        if time.thread_time() > self._deadline:
            raise Damaged(f"its analysis takes more than {SECONDS_MAX} s of CPU time")

    def is_code_in_file(self, offset: int) -> bool:
        """Of the file: is it part of an executable segment and, where there are sections, of one that is executable?"""
        sections = [section for section in self.sections if section.flags & _SHF_EXECINSTR]
        segments = [segment for segment in self.segments if segment.kind == _PT_LOAD and segment.flags & _PF_X]
        return any(part.offset <= offset < part.offset + part.size for part in segments) and (
            not sections or any(part.offset <= offset < part.offset + part.size for part in sections)
        )

    def _read_segments(self, table: int, size: int, count: int) -> Iterator[Segment]:
        if size != _SEGMENT.size:
            return
        for fields in _SEGMENT.iter_unpack(self._table(table, min(count, SEGMENTS_MAX) * size, size)):
            kind, flags, offset, address, _, in_file, _, _ = fields
            if offset < len(self.data):
                yield Segment(kind, flags, offset, address, min(in_file, len(self.data) - offset))

    def _read_sections(self, table: int, size: int, count: int) -> Iterator[Section]:
        if size != _SECTION.size:
            return
        for fields in _SECTION.iter_unpack(self._table(table, min(count, SECTIONS_MAX) * size, size)):
            _, kind, flags, address, offset, length, link, _, _, _ = fields
            yield Section(kind, flags, address, offset, length, link)

    def _table(self, offset: int, size: int, entry: int) -> bytes:
        """Whole entries of a table, as far as the file has them."""
        if offset >= len(self.data):
            return b""
        size = min(size, len(self.data) - offset)
        return self.data[offset : offset + size - size % entry]

    # Addresses

    def offset_of(self, address: int) -> int:
        """In the file, of something that is loaded at `address`; -1 where nothing is."""
        for segment in self.segments:
            if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        return -1

    def read(self, address: int, size: int) -> bytes:
        """May be shorter than asked for."""
        for segment in self.segments:
            if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
                offset = address - segment.address + segment.offset
                return self.data[offset : offset + min(size, segment.address + segment.size - address)]
        return b""

    def is_code(self, address: int) -> bool:
        return any(
            segment.kind == _PT_LOAD
            and segment.flags & _PF_X
            and segment.address <= address < segment.address + segment.size
            for segment in self.segments
        )

    def word(self, address: int) -> int:
        """The pointer at `address` as it will be when the program runs, less where it was loaded; 0 where not known."""
        relocation = self._relocation(address)
        if relocation is not None and relocation[0] == _R_RELATIVE:
            return relocation[2]
        data = self.read(address, 8)
        return int.from_bytes(data, "little") if len(data) == 8 else 0

    # Symbols

    def symbols(self, names: Iterable[str]) -> dict[str, Symbol]:
        """Functions by name, of .dynsym and .symtab; the first of several with the same name."""
        wanted = tuple(names)
        found: dict[str, Symbol] = {}
        for kind in (_SHT_DYNSYM, _SHT_SYMTAB):
            for section in self.sections:
                if section.kind == kind and section.link < len(self.sections):
                    self._find_symbols(section, self.sections[section.link], wanted, found)
        return found

    def _find_symbols(
        self, table: Section, strings: Section, wanted: tuple[str, ...], found: dict[str, Symbol]
    ) -> None:
        if strings.offset >= len(self.data) or table.offset >= len(self.data):
            return
        text = self.data[strings.offset : strings.offset + min(strings.size, STRINGS_BYTES_MAX)]
        names: dict[int, str] = {}
        for name in wanted:
            if name in found:
                continue
            self.check_time()
            needle = name.encode() + b"\0"
            position = text.find(needle)
            for _ in range(OCCURRENCES_MAX):
                if position < 0:
                    break
                names[position] = name
                position = text.find(needle, position + 1)
        if not names:
            return
        for chunk in range(table.offset, table.offset + min(table.size, SYMBOLS_MAX * _SYMBOL.size), _SYMBOLS_CHUNK):
            size = min(_SYMBOLS_CHUNK, table.offset + table.size - chunk)
            entries = self._table(chunk, size, _SYMBOL.size)
            if not entries:
                return
            self.check_time()
            starts = memoryview(entries).cast("I")[:: _SYMBOL.size // 4].tolist()
            if names.keys().isdisjoint(starts):
                continue
            for index in [index for index, start in enumerate(starts) if start in names]:
                start, info, _, section, address, size = _SYMBOL.unpack_from(entries, index * _SYMBOL.size)
                if section and info & 15 in (_STT_FUNC, _STT_IFUNC) and self.is_code(address):
                    found.setdefault(names[start], Symbol(address, size))

    # Relocations

    @cached_property
    def _relocations(self) -> tuple[bytes, ...]:
        """The tables, small ones first (the PLT's); looked through with `bytes.find`, because few of a million entries are
        asked for.
        """
        largest = RELOCATIONS_MAX * _RELOCATION.size
        found = [section for section in self.sections if section.kind == _SHT_RELA][:RELOCATION_TABLES_MAX]
        return tuple(
            sorted((self._table(table.offset, min(table.size, largest), _RELOCATION.size) for table in found), key=len)
        )

    def _relocation(self, address: int) -> tuple[int, int, int] | None:
        """Of the pointer at `address`: kind, index of the symbol, addend."""
        self.check_time()
        needle = address.to_bytes(8, "little", signed=False)
        for table in self._relocations:
            position = -1
            for _ in range(OCCURRENCES_MAX):
                position = table.find(needle, position + 1)
                if position < 0:
                    break
                if position % _RELOCATION.size == 0:
                    _, info, addend = _RELOCATION.unpack_from(table, position)
                    return info & 0xFFFFFFFF, info >> 32, addend
        return None

    def imported(self, address: int) -> str:
        """The name of the function whose PLT stub is at `address`; empty where there is none."""
        code = self.read(address, 16) if address >= 0 else b""
        if code.startswith(b"\xf3\x0f\x1e\xfa"):  # endbr64
            code, address = code[4:], address + 4
        if code.startswith(b"\xf2"):  # bnd
            code, address = code[1:], address + 1
        if len(code) < 6 or code[:2] != b"\xff\x25":  # jmp *displacement(%rip)
            return ""
        return self._slot_name(address + 6 + int.from_bytes(code[2:6], "little", signed=True))

    def _slot_name(self, slot: int) -> str:
        relocation = self._relocation(slot) if 0 <= slot < 1 << 64 else None
        if relocation is None or relocation[0] not in _BY_SYMBOL:
            return ""
        index = relocation[1]
        for table in self.sections:
            if table.kind == _SHT_DYNSYM and table.link < len(self.sections):
                entry = self._table(table.offset + index * _SYMBOL.size, _SYMBOL.size, _SYMBOL.size)
                if index * _SYMBOL.size < table.size and entry:
                    return self._string(self.sections[table.link], _SYMBOL.unpack(entry)[0])
        return ""

    def _string(self, strings: Section, start: int) -> str:
        if start >= strings.size or strings.offset + start >= len(self.data):
            return ""
        text = self.data[strings.offset + start : strings.offset + start + 256]
        return text.split(b"\0", 1)[0].decode("ascii", "replace")

    # What it is

    def _dynamic(self, tag: int) -> list[str]:
        for section in self.sections:
            if section.kind == _SHT_DYNAMIC and section.link < len(self.sections):
                entries = struct.iter_unpack("<QQ", self._table(section.offset, min(section.size, 16 * 4096), 16))
                return [self._string(self.sections[section.link], value) for key, value in entries if key == tag]
        return []

    @cached_property
    def needed(self) -> tuple[str, ...]:
        return tuple(self._dynamic(_DT_NEEDED))

    @cached_property
    def soname(self) -> str:
        return next(iter(self._dynamic(_DT_SONAME)), "")

    @cached_property
    def build_id(self) -> str:
        notes = [(s.offset, s.size) for s in self.segments if s.kind == _PT_NOTE]
        notes += [(s.offset, s.size) for s in self.sections if s.kind == _SHT_NOTE]
        for offset, size in notes:
            data = self._table(offset, min(size, 65536), 1)
            position = 0
            while position + 12 <= len(data):
                name_size, size, kind = struct.unpack_from("<III", data, position)
                start = position + 12 + (name_size + 3 & ~3)
                if kind == 3 and data[position + 12 : position + 16] == b"GNU\0" and 0 < size <= 64:
                    return data[start : start + size].hex()
                position = start + (size + 3 & ~3)
        return ""

    # Extents

    def extent(self, address: int) -> tuple[int, int]:
        """Start and end of the function, or the part of one, that `address` lies in, by .eh_frame; where that is missing,
        (0, 0).
        """
        table = self._frames
        low, high = 0, len(table) // 8
        while low < high:
            middle = (low + high) // 2
            if struct.unpack_from("<i", table, middle * 8)[0] + self._frames_base <= address:
                low = middle + 1
            else:
                high = middle
        if not low:
            return 0, 0
        start, frame = struct.unpack_from("<ii", table, (low - 1) * 8)
        entry = self.read(self._frames_base + frame, 16)
        if len(entry) < 16:
            return 0, 0
        size = int.from_bytes(entry[12:16], "little")  # FDE: length, CIE, start (4 bytes: pcrel|sdata4), range
        begin = self._frames_base + start
        return (begin, begin + size) if address < begin + size else (0, 0)

    @property
    def _frames_base(self) -> int:
        return next((s.address for s in self.segments if s.kind == _PT_GNU_EH_FRAME), 0)

    @cached_property
    def _frames(self) -> bytes:
        """The sorted table of .eh_frame_hdr, where it is encoded as every linker does: datarel|sdata4."""
        for segment in self.segments:
            if segment.kind == _PT_GNU_EH_FRAME:
                head = self._table(segment.offset, 12, 12)
                if head and head[:4] == b"\x01\x1b\x03\x3b":
                    return self._table(segment.offset + 12, int.from_bytes(head[8:12], "little") * 8, 8)
        return b""

    # Text

    def contains(self, needles: Iterable[bytes]) -> dict[bytes, int]:
        """Where each text is first found in what is loaded and cannot be executed: file offset."""
        wanted = list(needles)
        overlap = max(map(len, wanted), default=1) - 1
        found: dict[bytes, int] = {}
        budget = TEXT_BYTES_MAX
        for segment in self.segments:
            if segment.kind != _PT_LOAD or (segment.flags & _PF_X and self._has_plain_segments):
                continue
            end = segment.offset + min(segment.size, budget)
            budget -= end - segment.offset
            for start in range(segment.offset, end, CHUNK_BYTES):
                self.check_time()
                chunk = self.data[start : min(start + CHUNK_BYTES + overlap, end)]
                for needle in [needle for needle in wanted if needle not in found]:
                    position = chunk.find(needle)
                    if position >= 0:
                        found[needle] = start + position
                if len(found) == len(wanted):
                    return found
        return found

    @cached_property
    def _has_plain_segments(self) -> bool:
        """Older linkers put constants and code into one segment."""
        return any(s.kind == _PT_LOAD and not s.flags & (_PF_X | 2) and s.size > 65536 for s in self.segments)
