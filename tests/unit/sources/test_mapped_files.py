"""sources/mapped_files.py: what /proc and the linker's cache say, whatever they say."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netprofiler.sources import mapped_files
from netprofiler.sources.mapped_files import (
    ChangeWatch,
    Mapping,
    RealInode,
    file_stamp,
    find_users,
    key_of,
    linked_tls_libraries,
    parse_linker_cache,
    parse_maps,
    read_content,
    read_maps,
    real_inode,
)

MAPS = b"""\
55b8f0d4d000-55b8f0d4f000 r--p 00000000 fe:00 247766                     /usr/bin/sleep
55b8f0d4f000-55b8f0d54000 r-xp 00002000 fe:00 247766                     /usr/bin/sleep
7f0000000000-7f0000001000 rwxp 00000000 00:00 0
7f0000002000-7f0000003000 r-xs 00000000 00:01 1029                       /memfd:code of mine (deleted)
7f0000004000-7f0000005000 r-xp 00000000 103:00002 18446744073709551615   /a file\\012with lines
7ffd1d7f2000-7ffd1d7f4000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def test_executable_mappings_of_files() -> None:
    assert list(parse_maps(MAPS)) == [
        Mapping(0x55B8F0D4F000, 0x55B8F0D54000, (0xFE << 20, 247766), "/usr/bin/sleep"),
        Mapping(0x7F0000002000, 0x7F0000003000, (1, 1029), "/memfd:code of mine (deleted)"),
        Mapping(0x7F0000004000, 0x7F0000005000, (0x103 << 20 | 2, 2**64 - 1), "/a file\\012with lines"),
    ]


def test_own_mappings() -> None:
    libraries = [mapping for mapping in parse_maps(read_maps(os.getpid())) if "/libc." in mapping.path]
    assert libraries
    assert os.stat(libraries[0].path).st_ino == libraries[0].key[1]


def test_a_process_that_is_not_there() -> None:
    assert read_maps(2**22 + 1) == b""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program"
    path.write_bytes(Path("/bin/sleep").read_bytes())
    path.chmod(0o755)
    return path


def key_of_path(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        key = key_of(file.fileno())
    assert key is not None
    return key


@contextmanager
def running(program: Path, count: int) -> Iterator[list[int]]:
    processes = [subprocess.Popen([program, "30"]) for _ in range(count)]
    try:
        # Popen returns a little before the kernel has mapped the program.
        deadline = time.monotonic() + 10
        while not all(bytes(program) in read_maps(process.pid) for process in processes):
            assert time.monotonic() < deadline
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            with process:
                process.kill()


def test_the_key_is_what_maps_says(program: Path) -> None:
    with running(program, 1) as (pid,):
        mapped = {mapping.key for mapping in parse_maps(read_maps(pid)) if mapping.path == str(program)}
        assert mapped == {key_of_path(program)}


def test_no_key_of_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with path.open("rb") as file:
        assert key_of(file.fileno()) is None


def test_users_of_a_file(program: Path) -> None:
    key = key_of_path(program)
    assert find_users([key]) == {key: set()}
    with running(program, 2) as pids:
        other = (key[0], key[1] + 1_000_000_007)
        assert find_users([key, other]) == {key: set(pids), other: set()}


def test_a_stamp_tells_another_content(program: Path) -> None:
    before = file_stamp(str(program))
    status = program.stat()
    assert before == (status.st_ino, status.st_size, status.st_mtime_ns)
    os.utime(program, ns=(0, 12_345_678_901_234_567))
    assert file_stamp(str(program)) == (status.st_ino, status.st_size, 12_345_678_901_234_567)
    assert file_stamp(str(program.parent / "missing")) is None


# --- inodes below overlays ---


def overlay_handle(uuid: bytes, kind: int, handle: bytes) -> bytes:
    """struct ovl_fh."""
    return bytes(3) + struct.pack("<BBBBB", 0, 0xFB, 21 + len(handle), 0, kind) + uuid + handle


UUID = bytes(range(16))


def test_an_overlay_names_the_inode_below() -> None:
    plain = mapped_files._below_overlays(1, b"12345678", (5, 9))
    above = mapped_files._below_overlays(0xF8, overlay_handle(UUID, 1, b"12345678") + bytes(3), (40, 9))
    twice = overlay_handle(UUID, 0xF8, overlay_handle(UUID, 1, b"12345678"))
    nested = mapped_files._below_overlays(0xF8, twice, (41, 9))
    elsewhere = mapped_files._below_overlays(0xF8, overlay_handle(UUID[::-1], 1, b"12345678"), (42, 9))
    other = mapped_files._below_overlays(0xF8, overlay_handle(UUID, 1, b"12345679"), (40, 10))
    assert plain.same(above)
    assert above.same(plain)
    assert above.same(nested)
    assert not above.same(elsewhere)
    assert not above.same(other)
    assert not plain.same(other)


def test_without_overlays_stat_tells() -> None:
    handle = b"\1\0\0\0the same"
    assert RealInode(handle, None, (1, 2)).same(RealInode(handle, None, (1, 2)))
    assert not RealInode(handle, None, (1, 2)).same(
        RealInode(handle, None, (3, 2))
    )  # a copy of an image, mounted twice
    assert not RealInode(b"", None, (1, 2)).same(RealInode(b"", UUID, (3, 2)))  # no handles there


def test_hard_links_are_one_inode(program: Path) -> None:
    link = program.with_name("link")
    link.hardlink_to(program)
    copy = program.with_name("copy")
    copy.write_bytes(program.read_bytes())
    with program.open("rb") as one, link.open("rb") as two, copy.open("rb") as three:
        assert real_inode(one.fileno()).same(real_inode(two.fileno()))
        assert not real_inode(one.fileno()).same(real_inode(three.fileno()))


# --- files that are written to ---


@pytest.fixture
def changes() -> Iterator[ChangeWatch]:
    changes = ChangeWatch()
    yield changes
    changes.close()


def test_a_file_that_is_written_to(tmp_path: Path, changes: ChangeWatch) -> None:
    watches = []
    for name in ("one", "two"):
        path = tmp_path / name
        path.write_bytes(b"x")
        watches.append(changes.add(str(path)))
    assert changes.changed() == set()
    (tmp_path / "two").read_bytes()
    (tmp_path / "one").rename(tmp_path / "three")
    assert changes.changed() == set()
    with (tmp_path / "three").open("r+b") as file:
        file.write(b"y")
    assert changes.changed() == {watches[0]}
    assert changes.changed() == set()
    (tmp_path / "two").write_bytes(b"")
    assert changes.changed() == {watches[1]}
    changes.remove(watches[1])
    (tmp_path / "two").write_bytes(b"z")
    assert changes.changed() == set()


def test_a_file_that_cannot_be_watched(tmp_path: Path, changes: ChangeWatch) -> None:
    assert changes.add(str(tmp_path / "missing")) == -1
    assert changes.changed() == set()


# --- the linker's cache ---


def make_cache(entries: list[tuple[str, str]], before: bytes = b"") -> bytes:
    """As glibc's ldconfig writes it; texts follow the table."""
    texts = b""
    table = b""
    start = 48 + 24 * len(entries)
    for name, path in entries:
        positions = []
        for text in (name, path):
            positions.append(start + len(texts))
            texts += os.fsencode(text) + b"\0"
        table += struct.pack("<iIIIQ", 0x303, *positions, 0, 0)
    header = b"glibc-ld.so.cache1.1" + struct.pack("<IIB3xI12x", len(entries), len(texts), 2, 0)
    return before + header + table + texts


ENTRIES = [
    ("libssl.so.3", "/lib/libssl.so.3"),
    ("libc.so.6", "/lib/libc.so.6"),
    ("libgnutls.so.30", "/lib/libgnutls.so.30"),
]


def test_the_linker_cache() -> None:
    assert parse_linker_cache(make_cache(ENTRIES)) == ENTRIES
    assert parse_linker_cache(make_cache(ENTRIES, before=b"ld.so-1.7.0\0" + bytes(28))) == ENTRIES


def test_a_damaged_linker_cache() -> None:
    cache = make_cache(ENTRIES)
    assert parse_linker_cache(b"") == []
    assert parse_linker_cache(cache[:40]) == []
    assert parse_linker_cache(cache[:100]) == []
    assert parse_linker_cache(cache.replace(struct.pack("<I", 3), b"\xff\xff\xff\xff", 1)) == []
    # Texts cut off: what is left is right.
    assert parse_linker_cache(cache[:-10])[:2] == ENTRIES[:2]


def test_linked_libraries_of_a_root(tmp_path: Path) -> None:
    for directory in ("etc", "lib"):
        (tmp_path / directory).mkdir()
    for name in ("libssl.so.3.0.1", "libc.so.6", "libgnutls.so.30"):
        (tmp_path / "lib" / name).touch()
    for link in ("libssl.so.3", "libssl.so"):
        (tmp_path / "lib" / link).symlink_to("libssl.so.3.0.1")
    entries = [
        *ENTRIES,
        ("libssl.so", "/lib/libssl.so"),
        ("libnspr4.so", "/lib/libnspr4.so"),
        ("libssl.so", "libssl.so"),
    ]
    (tmp_path / "etc/ld.so.cache").write_bytes(make_cache(entries))
    found = [f"{tmp_path}/lib/libssl.so.3", f"{tmp_path}/lib/libgnutls.so.30"]
    assert linked_tls_libraries(tmp_path) == found
    # By way of the link in /proc, which os.path.realpath would lose.
    assert linked_tls_libraries(Path("/proc/self/root") / str(tmp_path).lstrip("/")) == [
        f"/proc/self/root{path}" for path in found
    ]
    (tmp_path / "etc/ld.so.cache").unlink()
    assert linked_tls_libraries(tmp_path) == [f"{tmp_path}/lib/libgnutls.so.30", f"{tmp_path}/lib/libssl.so"]


# --- content ---


def digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return read_content(file.fileno())


@pytest.mark.parametrize(
    "position", [4, mapped_files.CHUNK_BYTES - 3, mapped_files.CHUNK_BYTES, 2 * mapped_files.CHUNK_BYTES - 1]
)
@pytest.mark.parametrize("mark", mapped_files.MARKS)
def test_a_mark_anywhere(tmp_path: Path, mark: bytes, position: int) -> None:
    path = tmp_path / "marked"
    path.write_bytes(b"\x7fELF" + bytes(position - 4) + mark + bytes(mapped_files.CHUNK_BYTES))
    digest = digest_of(path)
    assert len(digest) == 32
    with path.open("ab") as file:
        file.write(b"x")
    assert digest_of(path) not in (digest, b"")


def test_no_mark_or_no_elf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    for content in (b"", b"\x7fELF" + bytes(100), b"#!/bin/sh\n# SSL_write", b"\x7fELF SSL"):
        path.write_bytes(content)
        assert digest_of(path) == b""
    path.write_bytes(b"\x7fELF SSL_" + bytes(2 * mapped_files.CHUNK_BYTES))
    assert digest_of(path)
    monkeypatch.setattr(mapped_files, "FILE_MAX_BYTES", mapped_files.CHUNK_BYTES)
    assert digest_of(path) == b""


def test_the_host_is_readable() -> None:
    """What this very host has, not only what we made."""
    cache = Path("/etc/ld.so.cache")
    if not cache.exists():
        pytest.skip("no glibc")
    entries = parse_linker_cache(cache.read_bytes())
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    expected = [line.split(" => ")[1] for line in listed.splitlines() if " => " in line]
    assert [path for _, path in entries] == expected
