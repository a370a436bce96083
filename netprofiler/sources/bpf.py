"""bpf(2) by number: maps, programs, links, and an `Object` of these as a compiler leaves it, loaded.

Contract: thin. What the kernel refuses is an `OSError` with its errno; for a program, `ProgramRefused` with what the
verifier said last. Descriptors are closed with this process, however it ends, and by `close()`. Nothing here knows what the
maps hold or what the programs do; nothing here needs BCC, a compiler, or libbpf.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import platform
import re
import resource
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_BPF_CALLS: Final = {"x86_64": 321, "aarch64": 280}
_PERF_EVENT_OPEN_CALLS: Final = {"x86_64": 298, "aarch64": 241}

# enum bpf_cmd, bpf_map_type, bpf_prog_type, bpf_attach_type of <linux/bpf.h>
MAP_CREATE: Final = 0
MAP_LOOKUP_ELEM: Final = 1
MAP_UPDATE_ELEM: Final = 2
MAP_DELETE_ELEM: Final = 3
MAP_LOOKUP_BATCH: Final = 24
PROG_LOAD: Final = 5
RAW_TRACEPOINT_OPEN: Final = 17
LINK_CREATE: Final = 28

MAP_TYPE_HASH: Final = 1
MAP_TYPE_ARRAY: Final = 2
MAP_TYPE_PERCPU_HASH: Final = 5
MAP_TYPE_PERCPU_ARRAY: Final = 6
MAP_TYPE_LRU_PERCPU_HASH: Final = 10
MAP_TYPE_RINGBUF: Final = 27
_PER_CPU: Final = (MAP_TYPE_PERCPU_HASH, MAP_TYPE_PERCPU_ARRAY, MAP_TYPE_LRU_PERCPU_HASH)

PROG_TYPE_KPROBE: Final = 2
PROG_TYPE_RAW_TRACEPOINT: Final = 17

TRACE_UPROBE_MULTI: Final = 48
"""What programs behind probes, and those that they tail-call, have to be loaded with."""
_UPROBE_MULTI_RETURN: Final = 1  # BPF_F_UPROBE_MULTI_RETURN
_PERF_EVENT: Final = 41  # enum bpf_attach_type: BPF_PERF_EVENT

UPROBE_EVENTS: Final = Path("/sys/bus/event_source/devices/uprobe/type")
"""The number of this kind of perf event."""
_UPROBE_RETURN: Final = 1  # the file format/retprobe beside it: config:0
_PERF_ATTRIBUTES_BYTES: Final = 112  # PERF_ATTR_SIZE_VER5: which Linux 4.11 has
_PERF_CLOEXEC: Final = 8  # PERF_FLAG_FD_CLOEXEC
_SET_BPF: Final = 0x40042408  # PERF_EVENT_IOC_SET_BPF

_LICENSE: Final = b"GPL"
"""Of every program: most helpers are for such programs only."""

_ATTRIBUTES_BYTES: Final = 128
_BATCH: Final = 512
"""Entries read at once; more than a bucket of a hash map holds."""
"""Of union bpf_attr: the kernel takes a longer one than it knows, as long as the rest is zero."""
_NAME_BYTES: Final = 16
"""BPF_OBJ_NAME_LEN, with its NUL: for bpftool and the like."""
_LOG_BYTES: Final = 16 * 1024 * 1024
"""What the verifier says of a program that it refuses after a long way, its last line last; kernels before 6.4 say nothing where
it does not fit. Allocated only then."""

LOADERS: Final = 4
"""Threads that wait for the verifier, which looks at programs side by side: for all of bpf/ it takes 0.3 s on one CPU, 0.2 s on two."""

INSTRUCTION: Final = struct.Struct("<BBhi")
"""struct bpf_insn: operation, registers (destination, and from bit 4 on source), offset, immediate."""
LOAD_IMM64: Final = 0x18
"""BPF_LD | BPF_IMM | BPF_DW: the one operation of two instructions; the second one has the number's upper half."""
CALL: Final = 0x85
"""BPF_JMP | BPF_CALL: of a helper; with PSEUDO_KFUNC_CALL as its source, of a function of the kernel."""
PSEUDO_KFUNC_CALL: Final = 2
PSEUDO_MAP_FD: Final = 1
"""As the source of LOAD_IMM64: the immediate is a map's descriptor, in the code of an `Object` its place in `maps`."""


class ProgramRefused(OSError):
    """`errno`, and as `strerror` a sentence with what the verifier said."""


# --- system calls -----------------------------------------------------------------------------------------------------


@functools.cache
def _libc() -> ctypes.CDLL:
    # CDLL lets other threads run meanwhile: the verifier and the attaching of probes take long.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def system_call(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> tuple[int, int]:
    """Result (-1 where it failed) and errno."""
    converted = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = _libc().syscall(ctypes.c_long(number), *converted)
    return result, ctypes.get_errno()


def _bpf(command: int, attributes: bytes) -> int:
    return _bpf_in_place(command, ctypes.create_string_buffer(attributes, _ATTRIBUTES_BYTES))


def _bpf_in_place(command: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """`buffer`: the attributes, where the kernel may put an answer."""
    number = _BPF_CALLS.get(platform.machine())
    if number is None:
        raise OSError(errno.EPERM, "bpf(2) is known for x86-64 and arm64 only")
    result, error = system_call(number, command, buffer, _ATTRIBUTES_BYTES)
    if result < 0:
        raise OSError(error, os.strerror(error))
    return result


def allow_locked_memory() -> None:
    """Before Linux 5.11 maps and programs count as locked memory, of which services may have 64 KiB."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@functools.cache
def possible_cpus() -> int:
    """Highest CPU number that this host can ever have, plus one."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(re.split(r"[-,]", text)[-1]) + 1


# --- maps -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MapFacts:
    """What a map is made of."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    """Of a ring buffer its bytes."""
    flags: int


def create_map(facts: MapFacts) -> int:
    """A descriptor of a new map."""
    # type, sizes, entries, flags; inner map, NUMA node; name
    return _bpf(
        MAP_CREATE,
        struct.pack(
            "<IIIIIII16s",
            *(facts.type, facts.key_size, facts.value_size, facts.max_entries, facts.flags),
            *(0, 0, _short_name(facts.name)),
        ),
    )


def _short_name(name: str) -> bytes:
    return name.encode()[: _NAME_BYTES - 1]


class Map:
    """One map. Keys and values are bytes, exactly as long as the map says: anything else is a `ValueError`."""

    def __init__(self, facts: MapFacts) -> None:
        self.facts = facts
        self._copies = possible_cpus() if facts.type in _PER_CPU else 1
        # Of each CPU a value; the kernel rounds these up to 8 bytes.
        self._stride = (facts.value_size + 7) & ~7 if facts.type in _PER_CPU else facts.value_size
        self.descriptor = create_map(facts)

    def lookup(self, key: bytes) -> bytes | None:
        """The value; of a per-CPU map the first CPU's. None: there is no such key."""
        values = self.lookup_all(key)
        return values[0] if values else None

    def lookup_all(self, key: bytes) -> list[bytes]:
        """Of a per-CPU map the value of each CPU; of another one its only value. Empty: there is no such key."""
        buffer = ctypes.create_string_buffer(self._stride * self._copies)
        try:
            self._element(MAP_LOOKUP_ELEM, key, buffer)
        except FileNotFoundError:
            return []
        return [buffer.raw[at : at + self.facts.value_size] for at in range(0, len(buffer), self._stride)]

    def update(self, key: bytes, value: bytes) -> None:
        """Not for per-CPU maps."""
        if len(value) != self.facts.value_size or self._copies != 1:
            raise ValueError(f"{len(value)} bytes are no value of {self.facts}")
        self._element(MAP_UPDATE_ELEM, key, ctypes.create_string_buffer(value, len(value)))

    def delete(self, key: bytes) -> bool:
        """Whether it was there."""
        try:
            self._element(MAP_DELETE_ELEM, key, None)
        except FileNotFoundError:
            return False
        return True

    def items(self) -> list[tuple[bytes, bytes]]:
        """All keys and values of a hash map (Linux 5.6). What is added meanwhile may be among them, or not."""
        keys = ctypes.create_string_buffer(self.facts.key_size * _BATCH)
        values = ctypes.create_string_buffer(self.facts.value_size * _BATCH)
        position = ctypes.create_string_buffer(8)
        found: list[tuple[bytes, bytes]] = []
        is_first = True
        while True:
            # where the last batch ended, where this one does; keys, values, how many; map
            before = 0 if is_first else ctypes.addressof(position)
            places = (before, ctypes.addressof(position), ctypes.addressof(keys), ctypes.addressof(values))
            attributes = ctypes.create_string_buffer(
                struct.pack("<QQQQII", *places, _BATCH, self.descriptor), _ATTRIBUTES_BYTES
            )
            is_last = False
            try:
                _bpf_in_place(MAP_LOOKUP_BATCH, attributes)
            except FileNotFoundError:
                is_last = True
            (count,) = struct.unpack_from("<I", attributes.raw, 32)
            found += zip(
                _pieces(keys.raw, self.facts.key_size, count),
                _pieces(values.raw, self.facts.value_size, count),
                strict=True,
            )
            if is_last:
                return found
            is_first = False

    def _element(self, command: int, key: bytes, value: ctypes.Array[ctypes.c_char] | None) -> None:
        if len(key) != self.facts.key_size:
            raise ValueError(f"{len(key)} bytes are no key of {self.facts}")
        key_buffer = ctypes.create_string_buffer(key, len(key))
        value_at = 0 if value is None else ctypes.addressof(value)
        # map, key, value, flags (BPF_ANY)
        _bpf(command, struct.pack("<I4xQQQ", self.descriptor, ctypes.addressof(key_buffer), value_at, 0))


def _pieces(data: bytes, size: int, count: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, size * count, size)]


# --- programs and links -----------------------------------------------------------------------------------------------


def load_program(program_type: int, code: bytes, *, name: str = "", attach_type: int = 0) -> int:
    """A descriptor of a program, whose map references are descriptors. Raises `ProgramRefused`."""
    try:
        return _load_program(program_type, code, name, attach_type, None)
    except OSError as error:
        refused = error
    # Again, with a log: to have one at the first attempt costs the verifier time.
    log = ctypes.create_string_buffer(_LOG_BYTES)
    with contextlib.suppress(OSError):
        os.close(_load_program(program_type, code, name, attach_type, log))
    said = last_words(log.value.decode("utf-8", "replace"))
    text = f"{name}: {os.strerror(refused.errno or 0)}" + (f": {said}" if said else "")
    raise ProgramRefused(refused.errno, text) from refused


def _load_program(
    program_type: int, code: bytes, name: str, attach_type: int, log: ctypes.Array[ctypes.c_char] | None
) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    text = ctypes.create_string_buffer(_LICENSE)
    log_size, log_at = (0, 0) if log is None else (len(log), ctypes.addressof(log))
    # type, number of instructions, instructions, license; log level, size, buffer; version, flags; name; interface; at 68
    # the expected attach type
    return _bpf(
        PROG_LOAD,
        struct.pack(
            "<IIQQIIQII16sII",
            *(program_type, len(code) // INSTRUCTION.size),
            *(ctypes.addressof(instructions), ctypes.addressof(text)),
            *(int(log is not None), log_size, log_at),
            *(0, 0, _short_name(name), 0, attach_type),
        ),
    )


def last_words(log: str) -> str:
    """Of the verifier: the last line that is no statistics."""
    for line in reversed(log.splitlines()):
        if line.strip() and not line.startswith(("processed ", "verification time ", "stack depth ")):
            return line.strip()
    return ""


def open_raw_tracepoint(name: bytes, program: int) -> int:
    """A descriptor that holds the program to the tracepoint."""
    text = ctypes.create_string_buffer(name)
    return _bpf(RAW_TRACEPOINT_OPEN, struct.pack("<QI", ctypes.addressof(text), program))


def link_uprobes(
    program: int, path: str, offsets: Sequence[int], cookies: Sequence[int], *, on_return: bool = False
) -> int:
    """A descriptor that holds the program to instructions of the file, in every process."""
    count = len(offsets)
    if len(cookies) != count:
        raise ValueError("a cookie for each offset")
    path_text = ctypes.create_string_buffer(os.fsencode(path))
    offset_array = (ctypes.c_uint64 * count)(*offsets)
    cookie_array = (ctypes.c_uint64 * count)(*cookies)
    # program, target, attach type, flags; path, offsets, counters, cookies, how many, flags, pid (0: all)
    return _bpf(
        LINK_CREATE,
        struct.pack(
            "<IIIIQQQQIII4x",
            *(program, 0, TRACE_UPROBE_MULTI, 0),
            *(ctypes.addressof(path_text), ctypes.addressof(offset_array), 0, ctypes.addressof(cookie_array)),
            *(count, _UPROBE_MULTI_RETURN if on_return else 0, 0),
        ),
    )


def open_uprobe_event(path: str, offset: int, *, on_return: bool = False) -> int:
    """A descriptor of a perf event: an instruction of the file, in every process. As long as it, or what is held to it, is open the
    probe is there.
    """
    number = _PERF_EVENT_OPEN_CALLS.get(platform.machine())
    if number is None:
        raise OSError(errno.EPERM, "perf_event_open(2) is known for x86-64 and arm64 only")
    path_text = ctypes.create_string_buffer(os.fsencode(path))
    # type, size, config; period, samples, what is read, flags, wake-ups; path, offset
    attributes = struct.pack(
        "<IIQQQQQIIQQ",
        *(int(UPROBE_EVENTS.read_text()), _PERF_ATTRIBUTES_BYTES, _UPROBE_RETURN if on_return else 0),
        *(0, 0, 0, 0, 0, 0),
        *(ctypes.addressof(path_text), offset),
    )
    buffer = ctypes.create_string_buffer(attributes, _PERF_ATTRIBUTES_BYTES)
    # Of all processes; an event has to be on some CPU, but its program runs wherever the instruction does.
    result, error = system_call(number, buffer, -1, 0, -1, _PERF_CLOEXEC)
    if result < 0:
        raise OSError(error, os.strerror(error))
    return result


def link_event(program: int, event: int, cookie: int) -> int:
    """A descriptor that holds the program, and the perf event, which may be closed then. Linux 5.15."""
    # program, event, attach type, flags; cookie
    return _bpf(LINK_CREATE, struct.pack("<IIIIQ", program, event, _PERF_EVENT, 0, cookie))


def set_event_program(event: int, program: int) -> None:
    """As long as the event is open; the program's descriptor may be closed."""
    fcntl.ioctl(event, _SET_BPF, program)


# --- objects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Object:
    """What a compiler makes of one source; nothing in it is of one process or one load."""

    maps: tuple[MapFacts, ...]
    programs: Mapping[str, bytes]
    """Name → instructions, in which a reference to a map has that map's place in `maps` (PSEUDO_MAP_FD)."""
    variant: int = 0
    """Which one of several ways to compile it (sources/kernel.py)."""


def _instructions(code: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Where each is, its operation, registers, offset, immediate."""
    at = 0
    while at < len(code):
        operation, registers, offset, immediate = INSTRUCTION.unpack_from(code, at)
        yield at, operation, registers, offset, immediate
        at += INSTRUCTION.size * (2 if operation == LOAD_IMM64 else 1)


def relocate(code: bytes, places: Mapping[int, int]) -> bytes:
    """The code with each reference to a map replaced as `places` says. Raises `ValueError` where that does not know one, or
    where something else than a map is referred to.
    """
    out = bytearray(code)
    for at, operation, registers, offset, number in _instructions(code):
        source = registers >> 4
        if operation == LOAD_IMM64 and source:
            if source != PSEUDO_MAP_FD or number not in places:
                raise ValueError(f"a reference of kind {source} to {number}")
            INSTRUCTION.pack_into(out, at, operation, registers, offset, places[number])
    return bytes(out)


def replace_immediate(code: bytes, marker: int, number: int) -> tuple[bytes, int]:
    """The code with another number in the place of an immediate that stands for it, and in how many places it did."""
    out = bytearray(code)
    count = 0
    for at, operation, registers, offset, immediate in _instructions(code):
        is_map = operation == LOAD_IMM64 and registers >> 4
        if immediate == marker and not is_map:
            INSTRUCTION.pack_into(out, at, operation, registers, offset, number)
            count += 1
    return bytes(out), count


def replace_call(code: bytes, marker: int, function: int) -> bytes:
    """The code with calls of a function of the kernel (its BTF id) in place of calls of a helper of the marker's number."""
    out = bytearray(code)
    for at, operation, registers, offset, immediate in _instructions(code):
        if operation == CALL and not registers and immediate == marker:
            INSTRUCTION.pack_into(out, at, operation, PSEUDO_KFUNC_CALL << 4, offset, function)
    return bytes(out)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A program of an object that is to be loaded."""

    name: str
    type: int
    attach_type: int = 0
    instead: Mapping[str, str] = field(default_factory=dict)
    """Names of maps → of those that take their place."""


class Loaded:
    """The maps of an object, and those of its programs that are wanted, in the kernel until `close()`. Raises `OSError`; then
    nothing is left there.
    """

    def __init__(self, made: Object, wanted: Sequence[Wanted]) -> None:
        self.variant = made.variant
        self.maps: dict[str, Map] = {}
        self.programs: dict[tuple[int, str], int] = {}
        """Descriptors by type and name."""
        try:
            for facts in made.maps:
                self.maps[facts.name] = Map(facts)
            self._load(made, wanted)
        except BaseException:
            self.close()
            raise

    def _load(self, made: Object, wanted: Sequence[Wanted]) -> None:
        def load(program: Wanted) -> int:
            names = (program.instead.get(facts.name, facts.name) for facts in made.maps)
            code = relocate(
                made.programs[program.name], {place: self.maps[name].descriptor for place, name in enumerate(names)}
            )
            return load_program(program.type, code, name=program.name, attach_type=program.attach_type)

        with ThreadPoolExecutor(LOADERS, "verifier") as loaders:
            futures = [loaders.submit(load, program) for program in wanted]
        problems = []
        for program, future in zip(wanted, futures, strict=True):
            problem = future.exception()
            if problem is None:
                self.programs[program.type, program.name] = future.result()
            else:
                problems.append(problem)
        if problems:
            raise problems[0]

    def close(self) -> None:
        for descriptor in self.programs.values():
            os.close(descriptor)
        for each in self.maps.values():
            os.close(each.descriptor)
        self.programs.clear()
        self.maps.clear()
