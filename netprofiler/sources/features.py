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

_RETURN_0: Final = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
"""r0 = 0; exit"""

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
    """Linux 6.6 and later: many probes in user programs by one call (for TLS, which is not written yet)."""
    program = ctypes.create_string_buffer(_RETURN_0, len(_RETURN_0))
    license_text = ctypes.create_string_buffer(b"GPL")
    # type, instructions, where they are, license; log level, size, buffer; version, flags; name; interface, attach type
    attributes = struct.pack(
        "<IIQQIIQII16sII",
        _PROG_TYPE_KPROBE,
        len(_RETURN_0) // 8,
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
    try:
        path = ctypes.create_string_buffer(b"/")
        offset = ctypes.c_uint64(0)
        # program, target, attach type, flags; path, offsets, counters, cookies, how many, flags, pid
        attributes = struct.pack(
            "<IIIIQQQQIII",
            *(descriptor, 0, _TRACE_UPROBE_MULTI, 0),
            *(ctypes.addressof(path), ctypes.addressof(offset), 0, 0, 1, 0, 0),
        )
        link, error = _bpf(_LINK_CREATE, attributes)
        if link >= 0:
            os.close(link)
        # A directory has no code to probe; a kernel that knows the call gets as far as saying so (as libbpf asks it).
        return error == errno.EBADF
    finally:
        os.close(descriptor)


def has_io_uring() -> bool | None:
    """Whether programs here can do I/O that is no system call of theirs. None: switched off for us."""
    _, error = _system_call(_IO_URING_SETUP, 0, None)
    if error == errno.ENOSYS:
        return False
    return None if error in _NOT_ALLOWED else True
