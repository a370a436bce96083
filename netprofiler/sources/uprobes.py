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

import errno
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from netprofiler.sources.bpf import link_uprobes
from netprofiler.sources.probes import Probe

CLOSERS: Final = 16
"""Threads that take probes away."""
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
        self._descriptor = -1
        try:
            self._descriptor = link_uprobes(program, path, offsets, cookies, on_return=on_return)
        except OSError as error:
            raise AttachError(path, error.errno or 0) from error
        self.count = len(offsets)

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
