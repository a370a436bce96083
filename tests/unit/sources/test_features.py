"""sources/features.py: asks, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from netprofiler.sources import bpf, features

QUESTIONS = (
    features.has_ring_buffer,
    features.has_uprobe_multi,
    features.knows_uprobe_multi,
    features.has_cookies,
    features.has_current_task,
    features.has_uprobe_events,
    features.has_io_uring,
)


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
    assert features.has_cookies() is answer
    assert features.has_current_task() is answer


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
@pytest.mark.parametrize(
    ("question", "since"),
    [
        (features.has_uprobe_multi, (6, 6)),
        (features.knows_uprobe_multi, (6, 6)),
        (features.has_cookies, (5, 15)),
        (features.has_current_task, (5, 11)),
        (features.has_uprobe_events, (4, 17)),
    ],
)
def test_as_root_answers_agree_with_the_kernels_age(
    question: Callable[[], bool | None], since: tuple[int, int]
) -> None:
    version = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
    assert question() is (version >= since)


@pytest.mark.parametrize(("error", "answer"), [(errno.ENOENT, True), (errno.EINVAL, False), (errno.EPERM, False)])
def test_who_knows_uprobe_multi_misses_the_file(monkeypatch: pytest.MonkeyPatch, error: int, answer: bool) -> None:
    def call(_number: int, command: int, *_rest: object) -> tuple[int, int]:
        return (-1, error) if command == bpf.LINK_CREATE else (os.open("/dev/null", os.O_RDONLY), 0)

    monkeypatch.setattr(bpf, "system_call", call)
    assert features.knows_uprobe_multi() is answer
