"""sources/binaries.py: word size, Go, files with TLS in them; nothing raises, whatever the file is."""

from __future__ import annotations

import mmap
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netprofiler.sources.binaries import UNREADABLE, Program, mapped_files, mappings, read_program
from netprofiler.sources.discovery import State
from netprofiler.sources.mapped_files import MARKS
from netprofiler.sources.probes import Analysis, Finding, Library, Probe, Purpose


def elf(build_info: bytes, bits: int = 64) -> bytes:
    """An ELF file with two sections: .go.buildinfo and the names."""
    names = b"\0.go.buildinfo\0.shstrtab\0"
    header = 64 if bits == 64 else 52
    info_at = header
    names_at = info_at + len(build_info)
    table = names_at + len(names)
    if bits == 64:
        start = (
            b"\x7fELF\x02\x01\x01"
            + bytes(9)
            + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 2, 1)
        )

        def section(name: int, at: int, size: int) -> bytes:
            return struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, at, size, 0, 0, 0, 0)

    else:
        start = (
            b"\x7fELF\x01\x01\x01"
            + bytes(9)
            + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0, 0, table, 0, 52, 0, 0, 40, 2, 1)
        )

        def section(name: int, at: int, size: int) -> bytes:
            return struct.pack("<IIIIIIIIII", name, 1, 0, 0, at, size, 0, 0, 0, 0)

    sections = section(1, info_at, len(build_info)) + section(15, names_at, len(names))
    return start + build_info + names + sections + bytes(16)


def build_info(version: bytes, flags: int = 2) -> bytes:
    return b"\xff Go buildinf:" + bytes([8, flags]) + bytes(16) + bytes([len(version)]) + version + b"\0mod"


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "program"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("bits", [32, 64])
def test_go(tmp_path: Path, bits: int) -> None:
    assert read_program(write(tmp_path, elf(build_info(b"go1.22.10"), bits))) == Program(bits, "go1.22.10")


def test_go_before_its_version_stood_there(tmp_path: Path) -> None:
    assert read_program(write(tmp_path, elf(build_info(b"", 0)))).go_version == "go"


def test_what_is_not_go(tmp_path: Path) -> None:
    assert read_program(Path(sys.executable)).go_version == ""
    assert read_program(Path(sys.executable)).bits == 64


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF" + bytes(70)])
def test_what_is_no_program(tmp_path: Path, data: bytes) -> None:
    assert read_program(write(tmp_path, data)).bits == 0


def test_what_cannot_be_read(tmp_path: Path) -> None:
    assert read_program(tmp_path / "none") == UNREADABLE
    assert read_program(tmp_path) == UNREADABLE


WHOLE = elf(build_info(b"go1.22.10"))


@example(at=47, value=255, end=len(WHOLE))  # the section table beyond ssize_t
@given(at=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255), end=st.integers(0, len(WHOLE)))
def test_damage_never_raises(tmp_path_factory: pytest.TempPathFactory, at: int, value: int, end: int) -> None:
    data = bytearray(WHOLE)
    data[at] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data[:end])
    read_program(path)


# --- files with TLS in them ----------------------------------------------------------------------------------------------

needs_map_files = pytest.mark.kernel  # root
MARKED = WHOLE.ljust(8192, b"\0") + MARKS[0]
FOUND = Analysis("", (Finding(Library.OPENSSL, "3.0.17", (Probe(16, Purpose.FREE),)),))


@contextmanager
def mapped(path: Path) -> Iterator[str]:
    """This process may execute the file; its path as the kernel names it."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE),
    ):
        yield str(path)


def facts_of(path: str, analyse: Callable[[str], Analysis]) -> tuple[State | None, str, Analysis]:
    [facts] = [facts for facts in mapped_files(os.getpid(), analyse) if facts.path == path]
    return facts.state, facts.reason, facts.analysis


@needs_map_files
def test_a_file_with_tls(tmp_path: Path) -> None:
    opened = []

    def analyse(path: str) -> Analysis:
        opened.append(Path(path).read_bytes())
        return FOUND if opened[-1] == MARKED else Analysis()

    with mapped(write(tmp_path, MARKED)) as path:
        assert facts_of(path, analyse) == (State.READY, "", FOUND)
        assert MARKED in opened
        Path(path).unlink()
        assert facts_of(f"{path} (deleted)", analyse) == (State.READY, "", FOUND)


@needs_map_files
def test_a_file_without_tls_is_not_analysed(tmp_path: Path) -> None:
    opened = []

    def analyse(path: str) -> Analysis:
        opened.append(Path(path).read_bytes())
        return Analysis()

    plain = WHOLE.ljust(8192, b"\0")
    with mapped(write(tmp_path, plain)) as path:
        assert facts_of(path, analyse) == (State.NOTHING, "", Analysis())
    assert opened and plain not in opened


@needs_map_files
def test_a_file_that_cannot_be_analysed(tmp_path: Path) -> None:
    problem = Analysis(problem="not a 64-bit little-endian program")

    def breaks(_: str) -> Analysis:
        raise RecursionError("deep")

    with mapped(write(tmp_path, MARKED)) as path:
        assert facts_of(path, lambda _: problem) == (State.FAILED, problem.problem, problem)
        assert facts_of(path, breaks) == (State.FAILED, "the analysis broke: RecursionError: deep", Analysis())


@needs_map_files
def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    with mapped(write(tmp_path, MARKED)) as path:
        before = len(os.listdir("/proc/self/fd"))
        for analysis in (FOUND, Analysis(problem="x")):
            facts_of(path, lambda _, analysis=analysis: analysis)  # type: ignore[misc]
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_that_is_gone(tmp_path: Path) -> None:
    assert mappings(4711, tmp_path) == []
    assert mapped_files(4711, lambda _: FOUND, tmp_path) == []
