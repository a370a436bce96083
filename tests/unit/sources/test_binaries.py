"""sources/binaries.py: word size, Go, TLS libraries; nothing raises, whatever the file is."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netprofiler.sources.binaries import UNREADABLE, Program, mapped_tls_libraries, read_program


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


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"crypto/tls.(*Conn).Write", "Go crypto/tls"),
        (b"SSL_read_ex", "OpenSSL"),
        (b"/home/x/.cargo/registry/src/rustls-0.23.5/src/conn.rs", "rustls"),
    ],
)
def test_libraries_linked_in(tmp_path: Path, text: bytes, name: str) -> None:
    assert read_program(write(tmp_path, WHOLE + text)).static_tls == (name,)


def test_our_own_map() -> None:
    with Path(f"/proc/{os.getpid()}/maps").open() as maps:
        libraries = mapped_tls_libraries(maps)
    assert all("ssl" in name or "tls" in name or "nspr" in name for name in libraries)


def test_map_lines_without_a_path() -> None:
    assert mapped_tls_libraries(["", "7f0-7f1 rw-p 0 00:00 0", "7f0-7f1 rw-p 0 00:00 0  [heap]"]) == []
