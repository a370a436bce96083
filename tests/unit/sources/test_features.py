"""sources/features.py: asks, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from netprofiler.sources import bpf, features

QUESTIONS = (features.has_ring_buffer, features.has_uprobe_multi, features.has_io_uring)


@pytest.mark.parametrize("question", QUESTIONS)
def test_answers_and_leaves_nothing_behind(question: Callable[[], bool | None]) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert question() in (True, False, None)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("error", "answer"),
    [(errno.EPERM, None), (errno.EACCES, None), (errno.EINVAL, False), (errno.ENOSYS, False)],
)
def test_what_a_failure_means(monkeypatch: pytest.MonkeyPatch, error: int, answer: bool | None) -> None:
    monkeypatch.setattr(bpf, "system_call", lambda *_: (-1, error))
    assert features.has_ring_buffer() is answer
    assert features.has_uprobe_multi() is answer


@pytest.mark.parametrize(
    ("error", "answer"), [(errno.ENOSYS, False), (errno.EPERM, None), (errno.EFAULT, True), (errno.EINVAL, True)]
)
def test_io_uring(monkeypatch: pytest.MonkeyPatch, error: int, answer: bool | None) -> None:
    monkeypatch.setattr(bpf, "system_call", lambda *_: (-1, error))
    assert features.has_io_uring() is answer


@pytest.mark.parametrize(
    ("error", "answer"), [(0, True), (errno.EPERM, None), (errno.EINVAL, False), (errno.EOPNOTSUPP, False)]
)
def test_uprobe_multi_by_the_link(monkeypatch: pytest.MonkeyPatch, error: int, answer: bool | None) -> None:
    """The program loads everywhere; a kernel without it refuses the link."""

    def call(_number: int, command: int, *_rest: object) -> tuple[int, int]:
        fails = command == bpf.LINK_CREATE and error
        return (-1, error) if fails else (os.open("/dev/null", os.O_RDONLY), 0)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(bpf, "system_call", call)
    assert features.has_uprobe_multi() is answer
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.kernel
def test_as_root_the_ring_buffer_is_there() -> None:
    assert features.has_ring_buffer() is True


@pytest.mark.kernel
def test_as_root_uprobe_multi_agrees_with_the_kernels_age() -> None:
    version = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
    assert features.has_uprobe_multi() is (version >= (6, 6))
