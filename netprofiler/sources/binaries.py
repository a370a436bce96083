"""What a program is made of, as far as it decides what can be read of its traffic: word size, Go, files with TLS in them.

Contract: facts from the files that a process has mapped; nothing is run, nothing is attached. A process that ends
meanwhile gives less, a file that cannot be read or is no ELF gives what is empty or a reason, never an exception. Reading
is bounded by the size of the file; what is analysed, by the analysis.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from netprofiler.sources.discovery import FileFacts, State
from netprofiler.sources.mapped_files import (
    FILE_MAX_BYTES,
    Key,
    Mapping,
    parse_maps,
    read_content,
    read_maps,
)
from netprofiler.sources.probes import Analysis
from netprofiler.sources.processes import PROC

_MAGIC: Final = b"\x7fELF"
_GO_BUILD_INFO: Final = b"\xff Go buildinf:"
_GO_INLINE_STRINGS: Final = 2  # since Go 1.18: cmd/go's debug/buildinfo, the flags byte
_SECTIONS_MAX: Final = 4096
"""More section headers than this are in no program that was linked to be run."""


@dataclass(frozen=True, slots=True)
class Program:
    """An executable."""

    bits: int
    """32 or 64; 0 when it could not be read, or is no ELF file."""
    go_version: str = ""
    """As the linker wrote it (``go1.22.10``); ``go`` where it is Go older than 1.18; empty where it is not Go."""


UNREADABLE: Final = Program(0)


# --- files with TLS in them ----------------------------------------------------------------------------------------------


def mapped_files(pid: int, analyse: Callable[[str], Analysis], proc: Path = PROC) -> list[FileFacts]:
    """Every file that the process has mapped to be executed, and what a capture would make of it."""
    found: dict[Key, FileFacts] = {}
    for mapping in mappings(pid, proc):
        if mapping.key not in found:
            found[mapping.key] = look_into(pid, mapping, analyse, proc)
    return list(found.values())


def mappings(pid: int, proc: Path = PROC) -> list[Mapping]:
    """Empty when the process is gone, or is a kernel thread."""
    return list(parse_maps(read_maps(pid, proc)))


def look_into(pid: int, mapping: Mapping, analyse: Callable[[str], Analysis], proc: Path = PROC) -> FileFacts:
    """By way of the mapping: the file may be removed, replaced, or in a mount namespace of its own."""
    # O_PATH first: to open what is no file (a device) may have an effect.
    descriptors: list[int] = []
    try:
        link = proc / str(pid) / "map_files" / f"{mapping.start:x}-{mapping.end:x}"
        descriptors.append(os.open(link, os.O_PATH | os.O_CLOEXEC))
        status = os.fstat(descriptors[0])
        if not stat.S_ISREG(status.st_mode):
            return FileFacts(mapping.path, State.NOTHING)
        if status.st_size > FILE_MAX_BYTES:
            return FileFacts(mapping.path, State.FAILED, f"the file has more than {FILE_MAX_BYTES} bytes")
        descriptors.append(os.open(f"/proc/self/fd/{descriptors[0]}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        if not read_content(descriptors[1]):
            return FileFacts(mapping.path, State.NOTHING)
        analysis = analyse(f"/proc/{os.getpid()}/fd/{descriptors[1]}")
    except FileNotFoundError:  # the process has ended, or has unmapped it
        return FileFacts(mapping.path, None)
    except OSError as error:
        return FileFacts(
            mapping.path, State.FAILED, f"it cannot be read: {errno.errorcode.get(error.errno or 0, 'unreadable')}"
        )
    except Exception as error:  # noqa: BLE001 - hostile input: whatever it breaks, the other files are shown
        return FileFacts(mapping.path, State.FAILED, f"the analysis broke: {type(error).__name__}: {error}")
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    if any(finding.probes for finding in analysis.findings):
        state = State.READY
    else:
        state = State.FAILED if analysis.problem else State.NOTHING
    return FileFacts(mapping.path, state, analysis.problem, analysis)


# --- the executable ------------------------------------------------------------------------------------------------------


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
    return Program(bits, _go_version(image, bits))


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
