"""What this kernel offers, asked by trying: bpf(2) and friends by number, without BCC and without a compiler.

Contract: every question answers True, False, or None where it may not be asked (no privilege, a sandbox). Nothing is
left behind: what a question makes it closes before it answers. `netprofiler doctor` is the one who asks.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct
from typing import Final

_BPF_CALLS: Final = {"x86_64": 321, "aarch64": 280}
_IO_URING_SETUP: Final = 425  # the same number on all architectures

# enum bpf_cmd, bpf_map_type, bpf_prog_type, bpf_attach_type of <linux/bpf.h>
_MAP_CREATE: Final = 0
_PROG_LOAD: Final = 5
_LINK_CREATE: Final = 28
_MAP_TYPE_RINGBUF: Final = 27
_PROG_TYPE_KPROBE: Final = 2
_TRACE_UPROBE_MULTI: Final = 48

_ASK_COOKIE: Final = b"".join(
    struct.pack("<BBhi", code, 0, 0, immediate) for code, immediate in ((0x85, 174), (0xB7, 0), (0x95, 0))
)
"""call bpf_get_attach_cookie; r0 = 0; exit"""

_NOT_ALLOWED: Final = (errno.EPERM, errno.EACCES)


def _system_call(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> tuple[int, int]:
    """Result (-1 where it failed) and errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    converted = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = libc.syscall(ctypes.c_long(number), *converted)
    return result, ctypes.get_errno()


def _bpf(command: int, attributes: bytes) -> tuple[int, int]:
    number = _BPF_CALLS.get(platform.machine())
    if number is None:
        return -1, errno.EPERM
    # The kernel takes a longer union than it knows, as long as the rest is zero.
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    return _system_call(number, command, buffer, len(buffer))


def has_ring_buffer() -> bool | None:
    """Linux 5.8 and later."""
    descriptor, error = _bpf(_MAP_CREATE, struct.pack("<IIII", _MAP_TYPE_RINGBUF, 0, 0, mmap.PAGESIZE))
    if descriptor < 0:
        return None if error in _NOT_ALLOWED else False
    os.close(descriptor)
    return True


def has_uprobe_multi() -> bool | None:
    """Linux 6.6 and later: many probes in user programs by one call, each with a cookie that its program can ask for. A
    program that asks is attached to a file of our own, which nobody runs.
    """
    program = ctypes.create_string_buffer(_ASK_COOKIE, len(_ASK_COOKIE))
    license_text = ctypes.create_string_buffer(b"GPL")
    # type, instructions, where they are, license; log level, size, buffer; version, flags; name; interface, attach type
    attributes = struct.pack(
        "<IIQQIIQII16sII",
        _PROG_TYPE_KPROBE,
        len(_ASK_COOKIE) // 8,
        ctypes.addressof(program),
        ctypes.addressof(license_text),
        *(0, 0, 0),
        *(0, 0),
        b"",
        *(0, _TRACE_UPROBE_MULTI),
    )
    descriptor, error = _bpf(_PROG_LOAD, attributes)
    if descriptor < 0:
        return None if error in _NOT_ALLOWED else False
    file = os.memfd_create("netprofiler-probe", os.MFD_CLOEXEC)
    try:
        os.write(file, bytes(mmap.PAGESIZE))
        path = ctypes.create_string_buffer(f"/proc/self/fd/{file}".encode())
        offset, cookie = ctypes.c_uint64(0), ctypes.c_uint64(1)
        # program, target, attach type, flags; path, offsets, counters, cookies, how many, flags, pid
        attributes = struct.pack(
            "<IIIIQQQQIII",
            *(descriptor, 0, _TRACE_UPROBE_MULTI, 0),
            *(ctypes.addressof(path), ctypes.addressof(offset), 0, ctypes.addressof(cookie), 1, 0, 0),
        )
        link, error = _bpf(_LINK_CREATE, attributes)
        if link < 0:
            return None if error in _NOT_ALLOWED else False
        os.close(link)
        return True
    finally:
        os.close(file)
        os.close(descriptor)


def has_io_uring() -> bool | None:
    """Whether programs here can do I/O that is no system call of theirs. None: switched off for us."""
    _, error = _system_call(_IO_URING_SETUP, 0, None)
    if error == errno.ENOSYS:
        return False
    return None if error in _NOT_ALLOWED else True
