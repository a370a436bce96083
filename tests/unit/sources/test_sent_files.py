"""Reading back what a sendfile sent: found by descriptor or by names, and only while it is what was sent."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from netprofiler.sources import sent_files
from netprofiler.sources.sent_files import SentFiles
from netprofiler.wire import FileSource

LATER_NS = 1_000_000_000


@pytest.fixture
def files() -> Iterator[SentFiles]:
    files = SentFiles()
    yield files
    files.close()


def describe(path: Path, offset: int = 0, descriptor: int = 0x7FFFFFFF) -> FileSource:
    """As the kernel side would: the device of the file system and the names below it."""
    status = path.stat()
    point = path.parent
    while not os.path.ismount(point):
        point = point.parent
    names = tuple(part.encode() for part in reversed(path.relative_to(point).parts))
    device = os.major(status.st_dev) << 20 | os.minor(status.st_dev)
    return FileSource(offset, status.st_ino, device, descriptor, os.getpid(), names)


def test_by_descriptor(tmp_path: Path, files: SentFiles) -> None:
    path = tmp_path / "sent"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        source = replace(describe(path, 3, file.fileno()), names=())
        assert files.read(source, 4, time.time_ns() + LATER_NS) == b"3456"


def test_by_name_when_the_descriptor_is_gone(tmp_path: Path, files: SentFiles) -> None:
    path = tmp_path / "sent"
    path.write_bytes(b"0123456789")
    assert files.read(describe(path), 100, time.time_ns() + LATER_NS) == b"0123456789"


def test_a_known_file_needs_no_names(tmp_path: Path, files: SentFiles) -> None:
    path = tmp_path / "sent"
    path.write_bytes(b"0123456789")
    now = time.time_ns() + LATER_NS
    assert files.read(describe(path), 2, now) == b"01"
    assert files.read(replace(describe(path, 5), names=()), 2, now) == b"56"
    assert SentFiles().read(replace(describe(path, 5), names=()), 2, now) == b""


def test_what_was_written_later_was_not_sent(tmp_path: Path, files: SentFiles) -> None:
    path = tmp_path / "sent"
    path.write_bytes(b"0123456789")
    sent_ns = time.time_ns() + 50_000_000
    assert files.read(describe(path), 10, sent_ns) == b"0123456789"
    time.sleep(0.06)
    path.write_bytes(b"XXXXXXXXXX")
    assert files.read(describe(path), 10, sent_ns) == b""


def test_another_file_of_the_same_name_is_not_it(tmp_path: Path, files: SentFiles) -> None:
    path = tmp_path / "sent"
    path.write_bytes(b"old")
    source = describe(path)
    path.rename(tmp_path / "kept")  # so that its inode is not given away again
    path.write_bytes(b"new")
    assert files.read(source, 3, time.time_ns() + LATER_NS) == b""


def test_a_pipe_of_that_name_is_not_opened(tmp_path: Path, files: SentFiles) -> None:
    path = tmp_path / "sent"
    os.mkfifo(path)
    assert files.read(describe(path), 3, time.time_ns() + LATER_NS) == b""


def test_open_files_are_few_and_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: SentFiles) -> None:
    monkeypatch.setattr(sent_files, "FILES_MAX", 3)
    before = len(os.listdir("/proc/self/fd"))
    now = time.time_ns() + LATER_NS
    for index in range(10):
        path = tmp_path / str(index)
        path.write_bytes(b"x")
        assert files.read(describe(path), 1, now) == b"x"
    assert len(os.listdir("/proc/self/fd")) - before == 3
    files.expire(now + sent_files.KEEP_NS + 1)
    assert len(os.listdir("/proc/self/fd")) == before
