"""sources/analysis.py: whatever the file is, an answer, soon."""

from __future__ import annotations

import gc
import os
import struct
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netprofiler.sources.analysis import FILE_BYTES_MAX, analyse
from netprofiler.sources.probes import Analysis, Library

LIBSSL = Path("/usr/lib/x86_64-linux-gnu/libssl.so.3")
GNUTLS = Path("/usr/lib/x86_64-linux-gnu/libgnutls.so.30")
SECONDS = 5.0
"""Allowed for a file that was made to be slow, on a busy machine; the files of this test take 0.1 s when it is not."""


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(data)
    return path


def test_a_library() -> None:
    analysis = analyse(LIBSSL)
    assert analysis.problem == ""
    assert len(analysis.build_id) == 40
    (finding,) = analysis.findings
    assert finding.library is Library.OPENSSL
    assert finding.version.startswith("3.")  # libcrypto's, which lies beside it
    assert finding.layout is not None


@pytest.mark.parametrize("path", [LIBSSL, GNUTLS])
def test_nothing_is_left_for_the_garbage_collector(path: Path) -> None:
    """It comes late to an agent: what an analysis has decoded would stay for as long as the agent runs."""
    gc.collect()
    gc.disable()
    try:
        analyse(path)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_by_descriptor_and_by_path_is_the_same() -> None:
    descriptor = os.open(LIBSSL, os.O_RDONLY)
    try:
        assert analyse(descriptor) == analyse(str(LIBSSL)) == analyse(f"/proc/self/fd/{descriptor}")
        os.fstat(descriptor)  # still open
    finally:
        os.close(descriptor)


def test_another_libcrypto_beside_it(tmp_path: Path) -> None:
    (tmp_path / "libssl.so.3").write_bytes(LIBSSL.read_bytes())
    (tmp_path / "libcrypto.so.3").write_bytes(b"\x7fELF not at all")
    alone = analyse(tmp_path / "libssl.so.3").findings[0]
    assert alone.version == ""
    assert alone.layout == analyse(LIBSSL).findings[0].layout  # by the name of libcrypto


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert analyse(tmp_path / "fifo").problem == "not a file"
    assert analyse(tmp_path).problem == "not a file"
    assert analyse(tmp_path / "absent").problem == "cannot be read: No such file or directory"
    assert analyse(write(tmp_path, b"")).problem == "empty"
    assert analyse(write(tmp_path, b"#!/bin/sh\n")).problem == "not an ELF file"
    assert analyse(-1).problem == "cannot be read: Bad file descriptor"


def test_other_machines(tmp_path: Path) -> None:
    data = bytearray(LIBSSL.read_bytes())
    data[4] = 1
    assert analyse(write(tmp_path, bytes(data))).problem == "not a 64-bit little-endian program"
    data[4], data[18] = 2, 183
    assert analyse(write(tmp_path, bytes(data))).problem == "a program for another architecture than x86-64"


def sparse(tmp_path: Path, head: bytes, size: int) -> Path:
    path = write(tmp_path, head)
    os.truncate(path, size)
    return path


def test_sparse_files(tmp_path: Path) -> None:
    started = time.thread_time()
    assert (
        analyse(sparse(tmp_path, LIBSSL.read_bytes()[:4096], 2 << 30)).problem == f"larger than {FILE_BYTES_MAX} bytes"
    )
    header = bytearray(LIBSSL.read_bytes()[:4096])
    analysis = analyse(sparse(tmp_path, bytes(header), FILE_BYTES_MAX))
    assert analysis.findings == ()
    # A table of symbols and one of names that are all of the file.
    struct.pack_into("<Q", header, 40, 2048)
    struct.pack_into("<HHH", header, 58, 64, 2, 0)
    struct.pack_into("<IIQQQQIIQQ", header, 2048, 0, 11, 0, 0, 4096, FILE_BYTES_MAX, 1, 0, 8, 24)
    struct.pack_into("<IIQQQQIIQQ", header, 2112, 0, 3, 0, 0, 4096, FILE_BYTES_MAX, 0, 0, 1, 0)
    assert analyse(sparse(tmp_path, bytes(header), FILE_BYTES_MAX)).findings == ()
    assert time.thread_time() - started < 3 * SECONDS


@pytest.mark.parametrize("keep", [0.02, 0.1, 0.5, 0.9, 0.99])
def test_truncated(tmp_path: Path, keep: float) -> None:
    data = LIBSSL.read_bytes()
    analysis = analyse(write(tmp_path, data[: int(len(data) * keep)]))
    assert isinstance(analysis, Analysis)
    for finding in analysis.findings:  # the names lie at the beginning, the sections' table at the end
        assert finding.probes == ()


def test_code_that_loops(tmp_path: Path) -> None:
    """Each function's code becomes a jump to itself, and jumps to each other."""
    data = bytearray(LIBSSL.read_bytes())
    for position in range(0x24000, 0x70000, 2):
        data[position : position + 2] = b"\x75\xfa" if position % 3 else b"\xeb\xfe"
    started = time.thread_time()
    analysis = analyse(write(tmp_path, bytes(data)))
    assert time.thread_time() - started < SECONDS
    (finding,) = analysis.findings
    assert finding.probes == () or not finding.problem


def test_blind(tmp_path: Path) -> None:
    data = LIBSSL.read_bytes()
    at = data.index(b"SSL_CTX_use_PrivateKey_file\0")
    assert analyse(write(tmp_path, data[:at] + b"/rustls-0.23.10/src\0" + data[at + 20 :])).blind == ("rustls",)
    assert analyse(LIBSSL).blind == ()


HEADS = {path: path.read_bytes() for path in (LIBSSL, GNUTLS)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(sorted(HEADS)),
    changes=st.lists(st.tuples(st.integers(0, 1 << 30), st.binary(min_size=1, max_size=16)), max_size=8),
    near=st.sampled_from(["header", "sections", "anywhere"]),
)
def test_mutated_files(tmp_path: Path, path: Path, changes: list[tuple[int, bytes]], near: str) -> None:
    data = bytearray(HEADS[path])
    sections = int.from_bytes(data[40:48], "little")
    start, length = {"header": (4, 1024), "sections": (sections, 2048), "anywhere": (0, len(data))}[near]
    for position, text in changes:
        at = start + position % length
        data[at : at + len(text)] = text[: len(data) - at]
    started = time.thread_time()
    analysis = analyse(write(tmp_path, bytes(data)))
    assert time.thread_time() - started < SECONDS
    for finding in analysis.findings:
        assert all(0 <= probe.offset < len(data) for probe in finding.probes)
        if finding.layout is not None:
            finding.layout.pack()
