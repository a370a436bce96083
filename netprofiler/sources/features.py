"""What this kernel offers, asked by trying: bpf(2) and friends by number, without BCC and without a compiler.

Contract: every question answers True, False, or None where it may not be asked (no privilege, a sandbox). Nothing is
left behind: what a question makes it closes before it answers. `netprofiler doctor` is the one who asks.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
from typing import Final

from netprofiler.sources import bpf

_IO_URING_SETUP: Final = 425  # the same number on all architectures

_NOTHING: Final = b"".join(struct.pack("<BBhi", code, 0, 0, 0) for code in (0xB7, 0x95))
"""r0 = 0; exit"""
_ASK_COOKIE: Final = struct.pack("<BBhi", 0x85, 0, 0, 174) + _NOTHING
"""call bpf_get_attach_cookie; then the same"""

_ASK_TASK: Final = struct.pack("<BBhi", 0x85, 0, 0, 158) + _NOTHING
"""call bpf_get_current_task_btf; then the same"""

_NOT_ALLOWED: Final = (errno.EPERM, errno.EACCES)


def has_ring_buffer() -> bool | None:
    """Linux 5.8 and later."""
    try:
        os.close(bpf.create_map(bpf.MapFacts("probe", bpf.MAP_TYPE_RINGBUF, 0, 0, mmap.PAGESIZE, 0)))
    except OSError as error:
        return _answer(error)
    return True


def has_uprobe_multi() -> bool | None:
    """Linux 6.6 and later: many probes in user programs by one call, each with a cookie that its program can ask for. A
    program that asks is attached to a file of our own, which nobody runs.
    """
    with contextlib.ExitStack() as opened:

        def keep(descriptor: int) -> int:
            opened.callback(os.close, descriptor)
            return descriptor

        try:
            program = keep(bpf.load_program(bpf.PROG_TYPE_KPROBE, _ASK_COOKIE, attach_type=bpf.TRACE_UPROBE_MULTI))
            file = keep(os.memfd_create("netprofiler-probe", os.MFD_CLOEXEC))
            os.write(file, bytes(mmap.PAGESIZE))
            keep(bpf.link_uprobes(program, f"/proc/self/fd/{file}", [0], [1]))
        except OSError as error:
            return _answer(error)
    return True


def knows_uprobe_multi() -> bool:
    """The same in 0.1 ms, without attaching: who knows it misses the file."""
    try:
        program = bpf.load_program(bpf.PROG_TYPE_KPROBE, _NOTHING, attach_type=bpf.TRACE_UPROBE_MULTI)
    except OSError:
        return False
    try:
        os.close(bpf.link_uprobes(program, "/proc/self/fd/none", [0], [0]))
    except OSError as error:
        return error.errno == errno.ENOENT
    finally:
        os.close(program)
    return False


def has_cookies() -> bool | None:
    """Linux 5.15 and later: a program behind a probe can ask which one it was."""
    return _loads(bpf.PROG_TYPE_KPROBE, _ASK_COOKIE)


def has_current_task() -> bool | None:
    """Linux 5.11 and later: a program can ask for its task as something whose type the verifier knows."""
    return _loads(bpf.PROG_TYPE_RAW_TRACEPOINT, _ASK_TASK)


def has_uprobe_events() -> bool | None:
    """Probes in user programs one by one: perf events (CONFIG_UPROBE_EVENTS). One is put into a file of our own, which nobody
    runs.
    """
    with contextlib.ExitStack() as opened:
        file = os.memfd_create("netprofiler-probe", os.MFD_CLOEXEC)
        opened.callback(os.close, file)
        os.write(file, bytes(mmap.PAGESIZE))
        try:
            os.close(bpf.open_uprobe_event(f"/proc/self/fd/{file}", 0))
        except OSError as error:
            return _answer(error)
    return True


def _loads(program_type: int, code: bytes) -> bool | None:
    try:
        os.close(bpf.load_program(program_type, code))
    except OSError as error:
        return _answer(error)
    return True


def _answer(error: OSError) -> bool | None:
    return None if error.errno in _NOT_ALLOWED else False


def has_io_uring() -> bool | None:
    """Whether programs here can do I/O that is no system call of theirs. None: switched off for us."""
    _, error = bpf.system_call(_IO_URING_SETUP, 0, None)
    if error == errno.ENOSYS:
        return False
    return None if error in _NOT_ALLOWED else True
