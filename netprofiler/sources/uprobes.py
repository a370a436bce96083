"""Attaching BPF programs to instructions of a file: one call, one link, for all the probes of a library; on kernels before 6.6 a
perf event for each.

Contract: `UprobeLink` makes one link of the type uprobe_multi (Linux 6.6), `UprobeEvents` a descriptor for each probe; both
live until `close()`, or until this process ends: the kernel takes the probes away with the last descriptor, however we end.
They hold for every process that has the file mapped, now or later, in whatever mount namespace. What the kernel refuses is
an `AttachError`; then nothing is attached.

`Way` is how a program gets to know which probe it was: by the cookie of its link, or, before Linux 5.15, because each probe has a
program of its own, a few instructions that leave the cookie in a map and go on to the program that they share. They do so on one
CPU without a break: the kernel runs programs behind probes with preemption off until Linux 6.0.

The path is followed once. It may be /proc/self/fd/N, so that the file that was analysed is the file that is attached;
the descriptor may be closed afterwards. The link keeps the file's mount busy until it is closed.

The kernel looks at an instruction when it puts the probe in, that is, when a process has it mapped. Where none has, a
bad offset is no error here, and no probe later. It never asks whether an offset is where an instruction begins: a probe
in the middle of one breaks the programs that run it. Offsets come from disassembly of the very file, or not at all.
"""

from __future__ import annotations

import enum
import errno
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from netprofiler.sources import bpf, features
from netprofiler.sources.probes import Probe

T = TypeVar("T")

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


class Way(enum.Enum):
    """How probes are attached, best first."""

    MULTI = "uprobe_multi"
    """One link for all of a file. Linux 6.6."""
    COOKIES = "perf events with cookies"
    """Linux 5.15."""
    JUMPS = "perf events, with a program each"
    """Before that."""


def find_way() -> Way:
    """The best that this kernel offers."""
    if features.knows_uprobe_multi():
        return Way.MULTI
    return Way.COOKIES if features.has_cookies() else Way.JUMPS


class UprobeLink:
    """`program`: descriptor of a BPF program of type kprobe, loaded for TRACE_UPROBE_MULTI. `offsets`: of instructions in
    the file; `cookies`: what the program gets with a hit of each.
    """

    def __init__(
        self, program: int, path: str, offsets: Sequence[int], cookies: Sequence[int], *, on_return: bool = False
    ) -> None:
        self._descriptor = -1
        try:
            self._descriptor = bpf.link_uprobes(program, path, offsets, cookies, on_return=on_return)
        except OSError as error:
            raise AttachError(path, error.errno or 0) from error
        self.count = len(offsets)

    def close(self) -> None:
        """Takes the probes away; twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class UprobeEvents:
    """A perf event for each probe. `hold`: a program to an event, for a cookie → the descriptor that keeps both; it closes the
    event's where that is another one.
    """

    def __init__(self, path: str, probes: Sequence[Probe], layout: int, hold: Callable[[int, Probe, int], int]) -> None:
        self._descriptors: list[int] = []
        try:
            for probe in probes:
                event = bpf.open_uprobe_event(path, probe.offset, on_return=probe.on_return)
                try:
                    self._descriptors.append(hold(event, probe, probe.cookie(layout)))
                except OSError:
                    os.close(event)
                    raise
        except OSError as error:
            self.close()
            raise AttachError(path, error.errno or 0) from error
        self.count = len(probes)

    def close(self) -> None:
        """Takes the probes away; twice does no harm. The kernel waits with each until no CPU is in it, and these times overlap."""
        descriptors, self._descriptors = self._descriptors, []
        _all_at_once(os.close, descriptors)


Link = UprobeLink | UprobeEvents


def attach_probes(
    programs: Mapping[bool, int], path: str, probes: Sequence[Probe], layout: int, way: Way = Way.MULTI
) -> list[Link]:
    """All probes of a finding. `programs`: descriptors, by `on_return`. Not for `Way.JUMPS`."""
    if way is Way.COOKIES:
        return [UprobeEvents(path, probes, layout, lambda *held: _link_event(programs, *held))]
    links: list[Link] = []
    try:
        for on_return in (False, True):
            chosen = [probe for probe in probes if probe.on_return is on_return]
            if chosen:
                offsets = [probe.offset for probe in chosen]
                cookies = [probe.cookie(layout) for probe in chosen]
                links.append(UprobeLink(programs[on_return], path, offsets, cookies, on_return=on_return))
    except AttachError:
        close_links(links)
        raise
    return links


def _link_event(programs: Mapping[bool, int], event: int, probe: Probe, cookie: int) -> int:
    link = bpf.link_event(programs[probe.on_return], event, cookie)
    os.close(event)
    return link


def attach_jumps(jumps: Jumps, path: str, probes: Sequence[Probe], layout: int) -> list[Link]:
    """The same by `Way.JUMPS`."""
    return [UprobeEvents(path, probes, layout, jumps.hold)]


class Jumps:
    """Programs that go on to a shared one. `cookies`: a per-CPU array, whose first value is where that finds its cookie; `programs`: the
    array of programs that it is in, at `index`; both are descriptors.
    """

    def __init__(self, cookies: int, programs: int, index: int) -> None:
        self._cookies = cookies
        self._programs = programs
        self._index = index

    def hold(self, event: int, _: Probe, cookie: int) -> int:
        """To this event, from now on."""
        program = bpf.load_program(bpf.PROG_TYPE_KPROBE, self._code(cookie), name="to_probe")
        try:
            bpf.set_event_program(event, program)
        finally:
            os.close(program)
        return event

    def _code(self, cookie: int) -> bytes:
        def load(register: int, number: int, *, is_map: bool = False) -> bytes:
            number &= (1 << 64) - 1
            source = bpf.PSEUDO_MAP_FD << 4 if is_map else 0
            return struct.pack(
                "<BBhIBBhI", bpf.LOAD_IMM64, source | register, 0, number & 0xFFFFFFFF, 0, 0, 0, number >> 32
            )

        def one(operation: int, registers: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
            return bpf.INSTRUCTION.pack(operation, registers, offset, immediate)

        return b"".join(
            (
                one(0xBF, 0x16),  # r6 = r1
                one(0x62, 0x0A, -4, 0),  # *(u32 *)(r10 - 4) = 0
                load(1, self._cookies, is_map=True),
                one(0xBF, 0xA2),  # r2 = r10
                one(0x07, 0x02, 0, -4),  # r2 += -4
                one(bpf.CALL, immediate=1),  # bpf_map_lookup_elem
                one(0x15, 0x00, 8, 0),  # if r0 == 0 goto the end
                load(1, cookie),
                one(0x7B, 0x10),  # *(u64 *)r0 = r1
                one(0xBF, 0x61),  # r1 = r6
                load(2, self._programs, is_map=True),
                one(0xB7, 0x03, 0, self._index),  # r3 = index
                one(bpf.CALL, immediate=12),  # bpf_tail_call
                one(0xB7),  # r0 = 0
                one(0x95),  # exit
            )
        )


def close_links(links: Sequence[Link]) -> None:
    """Closes all at once. The kernel waits 20 to 40 ms for each, and these times overlap: 50 links take 2.2 s one by one,
    0.25 s with 16 threads.
    """
    _all_at_once(lambda link: link.close(), links)


def _all_at_once(close: Callable[[T], None], what: Sequence[T]) -> None:
    if len(what) < 2:
        for each in what:
            close(each)
        return
    with ThreadPoolExecutor(min(len(what), CLOSERS), "detach") as closers:
        for each in what:
            closers.submit(close, each)
