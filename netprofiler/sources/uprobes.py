"""Attaching BPF programs to instructions of a file: one call, one link, for all the probes of a library.

Contract: `UprobeLink` makes one link of the type uprobe_multi (Linux 6.6) and lives until `close()`, or until this
process ends: the kernel takes the probes away with the last descriptor, however we end. It holds for every process that
has the file mapped, now or later, in whatever mount namespace. What the kernel refuses is an `AttachError`; then nothing
is attached.

The path is followed once. It may be /proc/self/fd/N, so that the file that was analysed is the file that is attached;
the descriptor may be closed afterwards. The link keeps the file's mount busy until it is closed.

The kernel looks at an instruction when it puts the probe in, that is, when a process has it mapped. Where none has, a
bad offset is no error here, and no probe later. It never asks whether an offset is where an instruction begins: a probe
in the middle of one breaks the programs that run it. Offsets come from disassembly of the very file, or not at all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from netprofiler.sources.probes import Probe

_BPF_CALLS: Final = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD: Final = 5
_PROG_TYPE_KPROBE: Final = 2
_INSTRUCTION: Final = struct.Struct("<BBhi")
_LOAD_IMM64: Final = 0x18
_PSEUDO_MAP_FD: Final = 1
_LINK_CREATE: Final = 28  # enum bpf_cmd of <linux/bpf.h>
CLOSERS: Final = 16
"""Threads that take probes away."""
TRACE_UPROBE_MULTI: Final = 48
"""enum bpf_attach_type: what the programs have to be loaded with."""
_UPROBE_MULTI_RETURN: Final = 1  # BPF_F_UPROBE_MULTI_RETURN
_ENOTSUPP: Final = 524  # the kernel's own, not in errno.h: an instruction that cannot be probed

_REASONS: Final = {
    errno.ENOENT: ("gone", "the file is gone"),
    errno.ESRCH: ("gone", "the process that had it mapped is gone"),
    errno.EBADF: ("not_a_file", "it is no regular file"),
    errno.EACCES: ("not_allowed", "the kernel does not allow it"),
    errno.EPERM: ("not_allowed", "the kernel does not allow it"),
    errno.EINVAL: ("bad_offset", "an offset is outside of the file, or the kernel does not know uprobe_multi"),
    errno.EIO: ("bad_offset", "the code at an offset cannot be read"),
    errno.ENOEXEC: ("bad_instruction", "at an offset is no instruction that can be probed"),
    errno.EOPNOTSUPP: ("bad_instruction", "at an offset is no instruction that can be probed"),
    _ENOTSUPP: ("bad_instruction", "at an offset is no instruction that can be probed"),
    errno.EMFILE: ("descriptors", "too many open files"),
    errno.ENFILE: ("descriptors", "too many open files"),
    errno.ENOMEM: ("memory", "the kernel has no memory for it"),
}


class AttachError(Exception):
    """The kernel refused: `reason` is a word for counters, the message a sentence for the user."""

    def __init__(self, path: str, error: int) -> None:
        self.reason, text = _REASONS.get(error, ("refused", os.strerror(error)))
        self.errno = error
        super().__init__(f"{path} cannot be probed: {text} ({errno.errorcode.get(error, error)})")


class UprobeLink:
    """`program`: descriptor of a BPF program of type kprobe, loaded for TRACE_UPROBE_MULTI. `offsets`: of instructions in
    the file; `cookies`: what the program gets with a hit of each.
    """

    def __init__(
        self, program: int, path: str, offsets: Sequence[int], cookies: Sequence[int], *, on_return: bool = False
    ) -> None:
        count = len(offsets)
        if len(cookies) != count:
            raise ValueError("a cookie for each offset")
        path_text = ctypes.create_string_buffer(os.fsencode(path))
        offset_array = (ctypes.c_uint64 * count)(*offsets)
        cookie_array = (ctypes.c_uint64 * count)(*cookies)
        # program, target, attach type, flags; path, offsets, counters, cookies, how many, flags, pid (0: all)
        attributes = struct.pack(
            "<IIIIQQQQIII4x",
            *(program, 0, TRACE_UPROBE_MULTI, 0),
            *(ctypes.addressof(path_text), ctypes.addressof(offset_array), 0, ctypes.addressof(cookie_array)),
            *(count, _UPROBE_MULTI_RETURN if on_return else 0, 0),
        )
        self._descriptor = -1
        descriptor, error = _bpf(_LINK_CREATE, attributes)
        if descriptor < 0:
            raise AttachError(path, error)
        self._descriptor = descriptor
        self.count = count

    def close(self) -> None:
        """Takes the probes away; twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def attach_probes(programs: Mapping[bool, int], path: str, probes: Sequence[Probe], layout: int) -> list[UprobeLink]:
    """All probes of a finding: one link, and one more where some are `on_return`. `programs`: descriptors, by `on_return`."""
    links: list[UprobeLink] = []
    try:
        for on_return in (False, True):
            chosen = [probe for probe in probes if probe.on_return is on_return]
            if chosen:
                offsets = [probe.offset for probe in chosen]
                cookies = [probe.cookie(layout) for probe in chosen]
                links.append(UprobeLink(programs[on_return], path, offsets, cookies, on_return=on_return))
    except AttachError:
        for link in links:
            link.close()
        raise
    return links


def close_links(links: Sequence[UprobeLink]) -> None:
    """Closes all at once. The kernel waits 20 to 40 ms for each, and these times overlap: 50 links take 2.2 s one by one,
    0.25 s with 16 threads.
    """
    if len(links) < 2:
        for link in links:
            link.close()
        return
    with ThreadPoolExecutor(min(len(links), CLOSERS), "detach") as closers:
        for link in links:
            closers.submit(link.close)


def replace_map(code: bytes, descriptor: int, instead: int) -> bytes:
    """BPF instructions with another map in the place of one."""
    out = bytearray(code)
    for at in range(0, len(code), _INSTRUCTION.size):
        operation, registers, _, number = _INSTRUCTION.unpack_from(code, at)
        if operation == _LOAD_IMM64 and registers >> 4 == _PSEUDO_MAP_FD and number == descriptor:
            _INSTRUCTION.pack_into(out, at, operation, registers, 0, instead)
    return bytes(out)


def load_probe_program(code: bytes) -> int:
    """A descriptor of the program, of the type that probes and what they tail-call must have. Raises OSError."""
    instructions = ctypes.create_string_buffer(code, len(code))
    text = ctypes.create_string_buffer(b"GPL")
    # type, number of instructions, instructions, license; no log; at 68 the expected attach type
    attributes = struct.pack(
        "<IIQQIIQII16sII",
        *(_PROG_TYPE_KPROBE, len(code) // _INSTRUCTION.size),
        *(ctypes.addressof(instructions), ctypes.addressof(text)),
        *(0, 0, 0, 0, 0),
        *(b"", 0, TRACE_UPROBE_MULTI),
    )
    descriptor, error = _bpf(_PROG_LOAD, attributes)
    if descriptor < 0:
        raise OSError(error, f"the kernel refused a program behind the probes: {os.strerror(error)}")
    return descriptor


def _bpf(command: int, attributes: bytes) -> tuple[int, int]:
    """bpf(2): result (-1 where it failed) and errno."""
    number = _BPF_CALLS.get(platform.machine())
    if number is None:
        return -1, errno.EPERM
    # CDLL lets other threads run meanwhile: the kernel walks all processes that have the file mapped.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    # The kernel takes a longer union than it knows, as long as the rest is zero.
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    result = libc.syscall(ctypes.c_long(number), ctypes.c_long(command), buffer, ctypes.c_long(len(buffer)))
    return result, ctypes.get_errno()
