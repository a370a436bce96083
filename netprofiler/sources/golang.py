"""Where to probe crypto/tls in a Go program, stripped or not, and how its connections lead to their sockets.

Contract: `analyse_go` takes the bytes of an ELF file that may be anything, and never raises. Nothing is guessed: functions
are found by the table that the Go runtime itself walks its stacks with (pclntab), types by those that reflection reads, and
each site is disassembled. A site is an instruction that the kernel emulates, on which the values are still where the calling
convention has them (ABIInternal, since Go 1.17), and which runs once a call, whatever the stack does:

1. (*Conn).Write, and readHandshake, which reads a message of the handshake: the `push %rbp` behind the check of the stack's
   size, after which a function begins anew. Before Go 1.21 there is none: there it is the first jump.
2. The plaintext of a record, in readRecordOrCCS: the jump on the error that (*halfConn).decrypt returned. Type and data are the
   inner ones, without padding (RFC 8446, section 5.4), because decrypt strips both; a record that is dropped is read anew by a
   call of readRecordOrCCS of its own, so each record passes here once. The conn is no longer in a register there, but on the
   stack: the function has put its first argument into the place that its caller keeps for it (`spilled_argument`).

Where a function does not look like that, the next best instruction is taken, and a note says so. Never a uretprobe: Go
moves its stacks. Time and memory are bounded by the constants below, however large the file says that its tables are.
"""

from __future__ import annotations

import bisect
import itertools
import mmap
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import capstone

from netprofiler.sources.instructions import decode, is_emulated
from netprofiler.sources.probes import Finding, Layout, Library, Probe, Purpose

Image: TypeAlias = mmap.mmap | bytes

SCANNED_BYTES_MAX: Final = 512 << 20
"""Of one file, over all searches: they come to a quarter of the file."""
SEARCHES_MAX: Final = 16_384
"""In one file: a few hundred are made, but 4 bytes may recur anywhere."""
FUNCTION_BYTES_MAX: Final = 65_536
"""Disassembled of one function: the largest of ours has 6 KiB, built without optimisation."""
_SECTIONS_MAX: Final = 4096
_SEGMENTS_MAX: Final = 256
_TABLES_MAX: Final = 16
"""Function tables that look right up to their module's data; there is one in a program, so the rest is made up."""
_LOOKED_AT: Final = 32
"""Instructions behind a place where a site is looked for: the farthest found is the 11th, in Go 1.17 to 1.20."""
_SITES_MAX: Final = 64
"""Of one kind in a function: there is one call of decrypt, and Read returns in a dozen places."""
_ADDRESS_MAX: Final = 1 << 47
"""Of user space."""
_DYNAMIC_MAX: Final = 256
_DISPLACEMENT_MAX: Final = 32_767
"""From SP, as a probe's cookie holds it; the frame of readRecordOrCCS has less than 1 KiB."""
_FIELDS_MAX: Final = 64
"""Of a struct; net.netFD and poll.FD have a dozen."""
_VERSION_MAX: Final = 64

_WRITE: Final = "crypto/tls.(*Conn).Write"
_READ: Final = "crypto/tls.(*Conn).Read"
_READ_RECORD: Final = "crypto/tls.(*Conn).readRecordOrCCS"
_READ_HANDSHAKE: Final = "crypto/tls.(*Conn).readHandshake"
_DECRYPT: Final = "crypto/tls.(*halfConn).decrypt"

_BUILD_INFO: Final = b"\xff Go buildinf:"
_GO_SECTIONS: Final = frozenset({".go.buildinfo", ".gopclntab", ".data.rel.ro.gopclntab", ".note.go.buildid"})
_TABLE_SECTIONS: Final = (".gopclntab", ".data.rel.ro.gopclntab", ".data.rel.ro")
"""The last is where the external linker puts the table of a PIE (up to Go 1.25), among other things."""
_MAGIC_117: Final = 0xFFFFFFFA
_MAGIC_118: Final = 0xFFFFFFF0
_MAGIC_120: Final = 0xFFFFFFF1
_MAGIC_REST: Final = b"\0\0\x01\x08"
"""Behind the magic: padding, the least size of an instruction, the size of a pointer (runtime.pcHeader)."""

# runtime.moduledata, in words.
_NAMES: Final = 1
_TEXT: Final = 22
_TYPES: Final = 37
_TYPES_117: Final = 35
"""1.17 to 1.19: without covctrs and ecovctrs."""

# internal/abi.Type (runtime._type), in bytes.
_TYPE_SIZE: Final = 48
_TYPE_FLAGS_AT: Final = 20
_TYPE_KIND_AT: Final = 23
_TYPE_NAME_AT: Final = 40
_UNCOMMON: Final = 1
_EXTRA_STAR: Final = 2
_KIND_MASK: Final = 31
_POINTER: Final = 22
_STRUCT: Final = 25

_RELATIVE: Final = 8  # R_X86_64_RELATIVE
_RELA: Final = struct.Struct("<QQQ")
"""r_offset, r_info, r_addend."""
_RELA_BYTES: Final = _RELA.size


_CONN: Final = ("rax", "r14")
"""What a probe of a method reads: its receiver, and the goroutine (ABIInternal)."""
_CONN_AND_BYTES: Final = (*_CONN, "rbx", "rcx")
_DECRYPTED: Final = ("rax", "rbx", "rdi", "rsi", "r14")
"""What decrypt returned: the plaintext's address and length, its type, whether there was an error; and the goroutine."""

_INLINE_MARK: Final = b"\x90"
"""A nop where a call was inlined. The kernel emulates it too; the site is the jump behind it, as where nothing was inlined."""

_ON_STACK: Final = re.compile(r"(?:(\w+) ptr )?\[rsp \+ (0x[0-9a-f]+|\d)\]")
"""An operand: how wide, and the distance from SP."""
_WIDTHS: Final = {"byte": 1, "word": 2, "dword": 4, "qword": 8, "xmmword": 16, "ymmword": 32, "zmmword": 64}
_NUMBER_TO_STACK_POINTER: Final = re.compile(r"rsp, (-?)(0x[0-9a-f]+|\d)")
_MOVES_STACK_POINTER: Final = frozenset({"push", "pop", "pushfq", "popfq", "enter", "leave"})


class _Damaged(Exception):
    """Why the file cannot be read; the text is for `explain`."""


@dataclass(frozen=True, slots=True)
class _Range:
    address: int
    start: int
    """Offset in the file."""
    size: int
    """Of what is in the file."""

    @property
    def end(self) -> int:
        return self.start + self.size


class _Elf:
    """An ELF file for x86-64 by address and by offset; whatever lies outside of it is `_Damaged`."""

    def __init__(self, image: Image) -> None:
        self.image: Final = image
        self.size: Final = len(image)
        self._scanned = 0
        self._searches = 0
        headers = list(self._program_headers())
        self.segments: Final = tuple(
            part for kind, part in headers if kind == 1 and part.size > 0 and part.address < _ADDRESS_MAX
        )  # PT_LOAD
        self.sections: Final = dict(self._read_sections())
        self._relocations: Final = self._find_relocations([part for kind, part in headers if kind == 2])  # PT_DYNAMIC

    def unpack(self, layout: struct.Struct, at: int) -> tuple[int, ...]:
        if not 0 <= at <= self.size - layout.size:
            raise _Damaged("a table reaches beyond the end of the file")
        return layout.unpack_from(self.image, at)

    def find(self, pattern: bytes, start: int, end: int) -> int:
        """Offset of the first occurrence between two offsets; -1: none."""
        start, end = max(start, 0), min(end, self.size)
        if start >= end:
            return -1
        bound = min(end, start + SCANNED_BYTES_MAX - self._scanned)
        at = self.image.find(pattern, start, bound)
        self._scanned += (bound if at < 0 else at) - start
        self._searches += 1
        if (at < 0 and bound < end) or self._searches > SEARCHES_MAX:
            raise _Damaged("it is too large, or repeats too much, to be searched")
        return at

    def find_all(self, pattern: bytes, start: int, end: int) -> Iterator[int]:
        while (start := self.find(pattern, start, end)) >= 0:
            yield start
            start += 1

    def offset(self, address: int) -> int:
        for segment in self.segments:
            if 0 <= address - segment.address < segment.size:
                return segment.start + address - segment.address
        raise _Damaged(f"no segment holds address {address:#x}")

    def address(self, offset: int) -> int:
        for segment in self.segments:
            if 0 <= offset - segment.start < segment.size:
                return segment.address + offset - segment.start
        raise _Damaged(f"no segment is loaded from offset {offset:#x}")

    def pointer(self, address: int) -> int:
        """What the pointer at `address` will be when the program is loaded at 0: in a PIE it is the relocation that says so."""
        if not 0 <= address < _ADDRESS_MAX:
            raise _Damaged(f"a pointer leads to {address:#x}")
        table = self._relocations
        places = range(table.start, table.end - _RELA_BYTES + 1, _RELA_BYTES)
        if places:
            index = bisect.bisect_left(places, address, key=lambda at: self.unpack(_U64, at)[0])
            wanted = struct.pack("<QQ", address, _RELATIVE)
            # Linkers sort them, but need not: then what was found is another one.
            for at in itertools.chain(places[index : index + 1], self.find_all(wanted, table.start, table.end)):
                offset, kind, addend = self.unpack(_RELA, at)
                if (at - table.start) % _RELA_BYTES == 0 and (offset, kind) == (address, _RELATIVE):
                    return addend
        return self.number(address)

    def number(self, address: int) -> int:
        """8 bytes that are no pointer."""
        return self.unpack(_U64, self.offset(address))[0]

    def pointers_to(self, address: int) -> Iterator[int]:
        """Addresses of words that hold `address`."""
        wanted = struct.pack("<QQ", _RELATIVE, address)
        for at in self.find_all(wanted, self._relocations.start, self._relocations.end):
            if (at - self._relocations.start) % _RELA_BYTES == 8:
                yield self.unpack(_U64, at - 8)[0]
        wanted = struct.pack("<Q", address)
        for segment in reversed(self.segments):  # what is written to comes last
            for at in self.find_all(wanted, segment.start, segment.end):
                yield segment.address + at - segment.start

    def _program_headers(self) -> Iterator[tuple[int, _Range]]:
        (table,) = self.unpack(_U64, 32)
        size, count = self.unpack(_U16_TWICE, 54)
        for index in range(min(count, _SEGMENTS_MAX)):
            kind, _, offset, address, _, in_file = self.unpack(_PROGRAM_HEADER, table + index * size)
            yield kind, _Range(address, offset, min(in_file, self.size - offset))

    def _find_relocations(self, dynamic: list[_Range]) -> _Range:
        tags: dict[int, int] = {}
        for part in dynamic[:1]:
            for at in range(part.start, part.end - 15, 16)[:_DYNAMIC_MAX]:
                tag, value = self.unpack(_U64_TWICE, at)
                if tag == 0:  # DT_NULL
                    break
                tags[tag] = value
        if not (table := tags.get(7)):  # DT_RELA
            return _Range(0, 0, 0)
        start = self.offset(table)
        return _Range(table, start, min(tags.get(8, 0), self.size - start))  # DT_RELASZ

    def _read_sections(self) -> Iterator[tuple[str, _Range]]:
        (table,) = self.unpack(_U64, 40)
        size, count, names = self.unpack(_U16_THRICE, 58)
        if table == 0 or not names < count <= _SECTIONS_MAX:
            return
        try:
            _, _, _, _, names_at, names_size = self.unpack(_SECTION_HEADER, table + names * size)
            for index in range(count):
                name, kind, _, address, offset, in_file = self.unpack(_SECTION_HEADER, table + index * size)
                if kind == 8 or name >= names_size or offset >= self.size:  # SHT_NOBITS
                    continue
                text = bytes(self.image[names_at + name : names_at + name + 64]).partition(b"\0")[0]
                yield text.decode("latin-1"), _Range(address, offset, min(in_file, self.size - offset))
        except _Damaged:  # programs run without it, so it need not be there in full
            return


_U16_TWICE: Final = struct.Struct("<HH")
_U16_THRICE: Final = struct.Struct("<HHH")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_U64_TWICE: Final = struct.Struct("<QQ")
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQ")
"""p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz."""
_SECTION_HEADER: Final = struct.Struct("<IIQQQQ")
"""sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size."""


def analyse_go(image: Image) -> Finding | None:
    """None: not Go, or without crypto/tls."""
    if image[:4] != b"\x7fELF" or len(image) < 64:
        return None
    if image[4:6] != b"\x02\x01" or image[18:20] != b"\x3e\x00":  # 64 bits, little-endian, EM_X86_64
        return _refused(image, "", "only Go for x86-64 is understood")
    version = ""
    try:
        elf = _Elf(image)
        info = _build_info(elf)
        if info < 0 and not _GO_SECTIONS & elf.sections.keys():
            return None
        version = _version(elf, info)
        tables = _Tables.find(elf)
        return None if tables is None else _analyse(elf, tables, version)
    except _Damaged as error:
        return _refused(image, version, str(error))


def _refused(image: Image, version: str, problem: str) -> Finding | None:
    """Of a file that cannot be read: is it Go with crypto/tls at all?"""
    end = min(len(image), SCANNED_BYTES_MAX // 2)
    if image.find(_BUILD_INFO, 0, end) < 0 or image.find(_WRITE.encode(), 0, end) < 0:
        return None
    return Finding(Library.GO, version, problem=problem)


def _build_info(elf: _Elf) -> int:
    """Offset of the build information; -1: none. A program without sections has it in a segment of data."""
    section = elf.sections.get(".go.buildinfo")
    ranges: Iterable[_Range] = (section,) if section else () if elf.sections else elf.segments
    return next((at for part in ranges if (at := elf.find(_BUILD_INFO, part.start, part.end)) >= 0), -1)


def _version(elf: _Elf, info: int) -> str:
    """debug/buildinfo: magic, size of a pointer, flags; since 1.18 the text is at 32, before at 16 is a pointer to a string."""
    try:
        if info < 0:
            return ""
        if elf.image[info + 15] & 2:
            size, at = elf.image[info + 32], info + 33
        else:
            string = elf.pointer(elf.address(info + 16))
            at, size = elf.offset(elf.pointer(string)), elf.number(string + 8)
        text = bytes(elf.image[at : at + min(size, _VERSION_MAX)]).decode("ascii")
    except (_Damaged, IndexError, UnicodeDecodeError):
        return ""
    return text.partition(" ")[0] if text.isprintable() else ""  # behind it: what it was built with, as X:boringcrypto


@dataclass(frozen=True, slots=True)
class _Function:
    name: str
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class _Tables:
    """The table of functions, and the module's data that says where everything is. All but `module` are offsets."""

    elf: _Elf
    old: bool
    """Go 1.17: an entry holds addresses, not distances from the text."""
    functions: int
    names: int
    names_end: int
    entries: int
    end: int
    module: int
    """Address of runtime.firstmoduledata."""
    types_word: int

    @classmethod
    def find(cls, elf: _Elf) -> _Tables | None:
        """None: a table was found, and there is no crypto/tls in it."""
        found = 0
        for part in _table_ranges(elf):
            for magic in (_MAGIC_120, _MAGIC_118, _MAGIC_117):
                for at in elf.find_all(struct.pack("<I", magic) + _MAGIC_REST, part.start, part.end):
                    tables = cls._read(elf, magic, at, part.end)
                    if tables is None:
                        continue
                    if tables.module:
                        return tables if tables.has_tls() else None
                    found += 1
                    if found == _TABLES_MAX:
                        raise _Damaged("its table of functions belongs to no module")
        raise _Damaged(
            "its table of functions belongs to no module" if found else "its table of functions was not found"
        )

    @classmethod
    def _read(cls, elf: _Elf, magic: int, at: int, end: int) -> _Tables | None:
        old = magic == _MAGIC_117
        count, _, *offsets = elf.unpack(_HEADER_117 if old else _HEADER, at + 8)
        names, units, _, _, entries = offsets if old else offsets[1:]
        if sorted(offsets[-5:]) != offsets[-5:] or not 0 < count <= (end - at - entries) // (16 if old else 8):
            return None
        module = cls._find_module(elf, elf.address(at), elf.address(at) + names)
        types = _TYPES if magic == _MAGIC_120 else _TYPES_117
        return cls(elf, old, count, at + names, at + units, at + entries, end, module, types)

    @staticmethod
    def _find_module(elf: _Elf, table: int, names: int) -> int:
        section = elf.sections.get(".go.module")
        places = (section.address,) if section else elf.pointers_to(table)
        return next((place for place in places if elf.pointer(place) == table and elf.pointer(place + 8) == names), 0)

    def has_tls(self) -> bool:
        return self._name(_WRITE) >= 0 or self._name(_READ) >= 0

    def _name(self, name: str) -> int:
        """Distance of a function's name from the first; -1: there is none."""
        at = self.elf.find(f"\0{name}\0".encode(), self.names, self.names_end)
        return at + 1 - self.names if at >= 0 else -1

    def function(self, name: str) -> _Function | None:
        """A runtime._func begins with its entry and the distance of its name; the index of functions leads back to it."""
        name_at = self._name(name)
        if name_at < 0:
            return None
        half = 8 if self.old else 4
        for at in self.elf.find_all(struct.pack("<I", name_at), self.entries, self.end):
            wanted = at - half - self.entries
            index = bisect.bisect_left(range(self.functions), wanted, key=self._place)
            if index < self.functions and self._place(index) == wanted:
                start, end = self._entry(index), self._entry(index + 1)
                if not 0 < end - start <= FUNCTION_BYTES_MAX:
                    raise _Damaged(f"{name} has an absurd size")
                return _Function(name, start, end - start)
        return None

    def _place(self, index: int) -> int:
        if self.old:
            return self.elf.unpack(_U64, self.entries + 16 * index + 8)[0]
        return self.elf.unpack(_U32, self.entries + 8 * index + 4)[0]

    def _entry(self, index: int) -> int:
        if self.old:
            return self.elf.pointer(self.elf.address(self.entries + 16 * index))
        return self.pointer(_TEXT) + self.elf.unpack(_U32, self.entries + 8 * index)[0]

    def pointer(self, word: int) -> int:
        """In the module's data."""
        return self.elf.pointer(self.module + 8 * word)


_HEADER: Final = struct.Struct("<8Q")
"""runtime.pcHeader behind its first 8 bytes: nfunc, nfiles, textStart (0 since 1.26), and the distances of its five parts."""
_HEADER_117: Final = struct.Struct("<7Q")


def _table_ranges(elf: _Elf) -> Iterator[_Range]:
    named = [elf.sections[name] for name in _TABLE_SECTIONS if name in elf.sections]
    yield from named or elf.segments


class _Types:
    """What reflection knows of types: internal/abi.Type and its relatives, by address."""

    def __init__(self, elf: _Elf, address: int) -> None:
        """`address` is that of moduledata.types, which names are counted from."""
        self._elf = elf
        self._address = address
        self._start = elf.offset(address)
        self._end = next(part.end for part in elf.segments if part.start <= self._start < part.end)

    def find_pointer(self, package: str, name: str) -> int:
        """Address of the type *package.name, where `package` is the whole path of an import."""
        text = f"*{package}.{name}".encode()
        for at in self._elf.find_all(bytes([len(text)]) + text, self._start, self._end):
            wanted = struct.pack("<I", at - 1 - self._start)
            for place in self._elf.find_all(wanted, self._start, self._end):
                address = self._address + place - self._start - _TYPE_NAME_AT
                if address % 8 == 0 and self._is_pointer_of(address, package):
                    return address
        raise _Damaged(f"type *{package}.{name} was not found")

    def _is_pointer_of(self, address: int, package: str) -> bool:
        """The name is that of the type pointed to, too, which says with a flag that the star is not its own."""
        flags, kind = self._bytes(address + _TYPE_FLAGS_AT, 4)[:: _TYPE_KIND_AT - _TYPE_FLAGS_AT]
        if kind & _KIND_MASK != _POINTER or flags & _EXTRA_STAR or not flags & _UNCOMMON:
            return False
        (path,) = self._elf.unpack(_U32, self._elf.offset(address + _TYPE_SIZE + 8))  # abi.UncommonType behind PtrType
        return self._name(self._address + path) == package.encode()

    def descriptor(self, connection: int) -> int:
        """Offset in net.netFD of the descriptor; `connection` is the type *net.TCPConn, which has a pointer to it at 0."""
        before, embedded = self._member(self._pointed_to(connection), b"conn")
        at, pointer = self._member(embedded, b"fd")
        if before + at != 0:
            raise _Damaged("net.TCPConn does not begin with its descriptor")
        outer, inner = self._member(self._pointed_to(pointer), b"pfd")
        inside, _ = self._member(inner, b"Sysfd")
        if outer + inside >= 4096:
            raise _Damaged("the descriptor in net.netFD has an absurd offset")
        return outer + inside

    def _pointed_to(self, pointer: int) -> int:
        return self._elf.pointer(pointer + _TYPE_SIZE)

    def _member(self, struct_type: int, wanted: bytes) -> tuple[int, int]:
        """Offset and type. Up to Go 1.18 a field's word is twice the offset, plus one where the field is embedded: then the
        first one is 1, or the last one beyond the size.
        """
        if self._bytes(struct_type + _TYPE_KIND_AT, 1)[0] & _KIND_MASK != _STRUCT:
            raise _Damaged("a type of net is not the struct that it was")
        size, count = (self._elf.number(struct_type + at) for at in (0, _TYPE_SIZE + 16))
        fields = self._elf.pointer(struct_type + _TYPE_SIZE + 8)
        if not 0 < count <= _FIELDS_MAX:
            raise _Damaged("a struct of net has an absurd number of fields")
        first, last = (self._elf.number(fields + 24 * index + 16) for index in (0, count - 1))
        twice = first == 1 or last >= size
        for field in range(fields, fields + 24 * count, 24):
            if self._name(self._elf.pointer(field)) == wanted:
                return self._elf.number(field + 16) >> twice, self._elf.pointer(field + 8)
        raise _Damaged(f"a struct of net has no {wanted.decode()}")

    def _name(self, address: int) -> bytes:
        """abi.Name: flags, length (varint; ours are short), text."""
        size = self._bytes(address + 1, 1)[0]
        return self._bytes(address + 2, size) if size < 0x80 else b""

    def _bytes(self, address: int, size: int) -> bytes:
        start = self._elf.offset(address)
        if start + size > self._elf.size:
            raise _Damaged("a type reaches beyond the end of the file")
        return bytes(self._elf.image[start : start + size])


def _analyse(elf: _Elf, tables: _Tables, version: str) -> Finding:
    notes: list[str] = []
    probes: list[Probe] = []
    write = tables.function(_WRITE)
    if write is not None:
        probes.append(_entry_probe(elf, write, Purpose.GO_WRITE, _CONN_AND_BYTES, notes))
    else:
        notes.append(f"what it writes is not seen: {_WRITE} was not found")
    probes += _read_probes(elf, tables, notes)
    if not probes:
        raise _Damaged("none of its functions that read and write were found")
    kind, descriptor = 0, Layout(Library.GO).descriptor
    try:
        types = _Types(elf, tables.pointer(tables.types_word))
        kind = types.find_pointer("net", "TCPConn")
        descriptor = types.descriptor(kind)
    except _Damaged as error:
        notes.append(f"sockets are found by the system calls inside reads and writes: {error}")

    def distance(*purposes: Purpose) -> int:
        site = next((probe for probe in probes if probe.purpose in purposes and _has_conn(probe)), None)
        return kind - elf.address(site.offset) if kind and site else 0

    layout = Layout(
        Library.GO,
        conn_type_from_write=distance(Purpose.GO_WRITE),
        conn_type_from_read=distance(Purpose.GO_DECRYPTED, Purpose.GO_READ, Purpose.GO_READ_CALL),
        conn_type_from_handshake=distance(Purpose.GO_HANDSHAKE),
        descriptor=descriptor,
    )
    return Finding(Library.GO, version, tuple(probes), layout, tuple(notes))


def _has_conn(probe: Probe) -> bool:
    return probe.purpose is not Purpose.GO_DECRYPTED or probe.displacement != 0


def _read_probes(elf: _Elf, tables: _Tables, notes: list[str]) -> Iterator[Probe]:
    record, decrypt = tables.function(_READ_RECORD), tables.function(_DECRYPT)
    if record is not None and decrypt is not None:
        decrypted = list(_decrypted_probes(elf, record, decrypt, notes))
        if decrypted:
            handshake = tables.function(_READ_HANDSHAKE)
            place = _Code(elf, record).spilled_argument(elf.address(decrypted[0].offset))
            if handshake is not None and 0 < place <= _DISPLACEMENT_MAX and len(decrypted) == 1:
                yield _entry_probe(elf, handshake, Purpose.GO_HANDSHAKE, _CONN, notes)
                yield replace(decrypted[0], displacement=place)
                return
            notes.append(
                f"{_READ_RECORD} is probed at its beginning too: it was not found where it keeps the connection"
            )
            yield _entry_probe(elf, record, Purpose.GO_READ, _CONN, notes)
            yield from decrypted
            return
    read = tables.function(_READ)
    if read is None:
        notes.append(
            f"what it reads is not seen: neither {_READ_RECORD} with its call of decrypt nor {_READ} was found"
        )
        return
    notes.append(
        f"{_READ} is probed at its entry and its returns, at ten times the cost: {_READ_RECORD} does not call decrypt"
    )
    yield _entry_probe(elf, read, Purpose.GO_READ_CALL, _CONN_AND_BYTES, notes)
    for address in _Code(elf, read).returns():
        yield Probe(elf.offset(address), Purpose.GO_READ_RETURN, emulated=False, function=read.name)


def _decrypted_probes(elf: _Elf, record: _Function, decrypt: _Function, notes: list[str]) -> Iterator[Probe]:
    code = _Code(elf, record)
    for behind in code.behind_calls(decrypt.address):
        jump = code.first_emulated(behind, _DECRYPTED)
        if jump < 0:
            notes.append(
                f"{_READ_RECORD} is probed right behind decrypt, single-stepped: its jump on the error was not found"
            )
        site = jump if jump >= 0 else behind
        yield Probe(elf.offset(site), Purpose.GO_DECRYPTED, emulated=jump >= 0, function=record.name)


def _entry_probe(elf: _Elf, function: _Function, purpose: Purpose, live: tuple[str, ...], notes: list[str]) -> Probe:
    code = _Code(elf, function)
    start = code.behind_stack_check()
    site = code.first_emulated(start, live)
    if site < 0:
        notes.append(f"{function.name} is probed on an instruction that is single-stepped: its beginning has no other")
    return Probe(elf.offset(start if site < 0 else site), purpose, emulated=site >= 0, function=function.name)


class _Code:
    """The instructions of one function."""

    def __init__(self, elf: _Elf, function: _Function) -> None:
        self._function = function
        start = elf.offset(function.address)
        self._bytes = bytes(elf.image[start : start + function.size])
        self._addresses: list[int] = []
        self._mnemonics: list[str] = []
        self._operands: list[str] = []
        self._ends: dict[int, int] = {}
        self._calls: list[tuple[int, int]] = []
        self._jumps: dict[int, int] = {}
        for address, size, mnemonic, operands in _DISASSEMBLER.disasm_lite(self._bytes, function.address):
            self._addresses.append(address)
            self._mnemonics.append(mnemonic)
            self._operands.append(operands)
            self._ends[address] = address + size
            if operands.startswith("0x"):
                if mnemonic == "call":
                    self._calls.append((address, int(operands, 16)))
                elif mnemonic[0] == "j":
                    self._jumps[address] = int(operands, 16)
        if not self._addresses or self._ends[self._addresses[-1]] < function.address + function.size:
            raise _Damaged(f"{function.name} cannot be disassembled")
        self._targets = sorted(set(self._jumps.values()))

    def behind_stack_check(self) -> int:
        """Address behind the jump to runtime.morestack, which leads to the entry again. The goroutine is in R14 since arguments
        are in registers.
        """
        for index, operands in enumerate(self._operands[:6]):
            if operands.endswith("[r14 + 0x10]") and self._mnemonics[index : index + 2] == ["cmp", "jbe"]:
                return self._ends[self._addresses[index + 1]]
        raise _Damaged(f"{self._function.name} does not take its arguments in registers: Go before 1.17, or unknown")

    def behind_calls(self, callee: int) -> list[int]:
        return self._few([self._ends[address] for address, target in self._calls if target == callee])

    def returns(self) -> list[int]:
        return self._few(
            [address for address, name in zip(self._addresses, self._mnemonics, strict=True) if name == "ret"]
        )

    def _few(self, sites: list[int]) -> list[int]:
        if len(sites) > _SITES_MAX:
            raise _Damaged(f"{self._function.name} has an absurd number of sites")
        return sites

    def first_emulated(self, start: int, live: tuple[str, ...]) -> int:
        """Address of the first emulated instruction from `start` on, if it is passed exactly when `start` is, with all
        of `live` as they were there; else -1.
        """
        for address, mnemonic in self._from(start):
            code = self._bytes_from(address, self._ends[address])
            if is_emulated(code) and code != _INLINE_MARK:
                # A jump from elsewhere to between the two would pass the site without the start, a loop more than once.
                return -1 if self._is_target(start, address) or self._writes(start, address, live) else address
            if mnemonic[0] == "j" or mnemonic in ("call", "ret"):
                break
        return -1

    def spilled_argument(self, site: int) -> int:
        """Distance from SP, at `site`, of the function's first argument; -1: not proven.

        The caller keeps a place for it above the return address (cmd/compile/abi-internal.md, "spill space"). It is there if
        `site` is reached only by way of an instruction that puts RAX there as it was at the entry, nothing else writes there,
        and SP is the same all over the function, but for where it returns.
        """
        start = self.behind_stack_check()
        frame = 0
        for address, mnemonic in self._from(start):
            operands = self._operands[bisect.bisect_left(self._addresses, address)]
            place = frame + 8
            if mnemonic == "mov" and operands == f"qword ptr [rsp + {place:#x}], rax":
                break
            if mnemonic == "push":
                frame += 8
            elif mnemonic in ("sub", "add") and (number := _NUMBER_TO_STACK_POINTER.fullmatch(operands)):
                frame += int(number[2], 16) * (1 if (mnemonic == "add") == (number[1] == "-") else -1)
            elif self._moves_stack_pointer(mnemonic, operands) or mnemonic in ("call", "jmp", "ret"):
                return -1
        else:
            return -1
        proven = (
            not self._is_target(start, address)
            and not self._writes(start, address, ("rax",))
            and self._is_fixed_behind(address, place)
            and not self._is_reached(site, without=address)
        )
        return place if proven else -1

    @staticmethod
    def _moves_stack_pointer(mnemonic: str, operands: str) -> bool:
        return (
            mnemonic in _MOVES_STACK_POINTER
            or operands.startswith(("rsp", "esp", "sp,"))
            or (mnemonic == "xchg" and operands.endswith(" rsp"))
        )

    def _is_fixed_behind(self, store: int, place: int) -> bool:
        """Behind `store`, does SP change only on the way to a `ret`, and is the word at `place` from it only read?"""
        first = bisect.bisect_right(self._addresses, store)
        returns = True  # what comes next may be behind the function
        for index in range(len(self._addresses) - 1, first - 1, -1):
            mnemonic, operands = self._mnemonics[index], self._operands[index]
            if self._moves_stack_pointer(mnemonic, operands):
                if not returns:
                    return False
            elif mnemonic != "nop":
                returns = mnemonic == "ret"
            if "[rbp" in operands:
                return False
            accessed = _ON_STACK.search(operands)
            if accessed is None:
                continue
            at = int(accessed[2], 16)
            if (
                at < place + 8
                and at + _WIDTHS.get(accessed[1] or "", 1) > place
                and (mnemonic != "mov" or accessed.end() < len(operands))
            ):
                return False
        return True

    def _is_reached(self, site: int, without: int) -> bool:
        """Is there a way from the entry to `site` that does not pass `without`? True as well where it cannot be told."""
        todo, seen = [self._function.address], {without}
        while todo:
            at = todo.pop()
            if at in seen or not 0 <= at - self._function.address < self._function.size:
                continue
            seen.add(at)
            if at == site or at not in self._ends:
                return True
            mnemonic = self._mnemonics[bisect.bisect_left(self._addresses, at)]
            if mnemonic[0] == "j":
                if at not in self._jumps:
                    return True
                todo.append(self._jumps[at])
            if mnemonic not in ("jmp", "ret", "ud2"):
                todo.append(self._ends[at])
        return False

    def _writes(self, start: int, end: int, live: tuple[str, ...]) -> bool:
        """Does an instruction between two addresses write one of the registers?"""
        code = self._bytes_from(start, end)
        return any(not instruction.writes().isdisjoint(live) for instruction in decode(code, start))

    def _bytes_from(self, start: int, end: int) -> bytes:
        first = self._function.address
        return self._bytes[start - first : end - first]

    def _from(self, start: int) -> Iterator[tuple[int, str]]:
        index = bisect.bisect_left(self._addresses, start)
        end = index + _LOOKED_AT
        return zip(self._addresses[index:end], self._mnemonics[index:end], strict=True)

    def _is_target(self, start: int, end: int) -> bool:
        """Does a jump of the function lead to `start`, to `end`, or to between them?"""
        return bisect.bisect_left(self._targets, start) != bisect.bisect_right(self._targets, end)


_DISASSEMBLER: Final = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
"""Without the details that `decode` has: a whole function in a tenth of the time."""
