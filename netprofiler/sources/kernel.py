"""The kernel as a source: loads and attaches bpf/, reads its ring buffer, its counters, and tells it what to leave out.

Contract: `KernelSource(filters)` loads, and compiles where it has to (compiler.py); `attach()` starts the capture; `read()`
gives what is in the ring as one batch (wire.py) and `advance(n)` gives n bytes of it back to the kernel; `ledger()`
gives the kernel side's rows; `detach()` ends the capture, after which the ring can still be drained; `close()` frees
everything. Raises `CommandError` (exit status 3) where this host cannot do it, with what is missing.

No tracefs, no kprobes, no kernel headers: raw tracepoints are attached by name, offsets come from BTF, and the header
stubs in bpf/include stand in for the headers that BCC asks for.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import platform
import re
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from netprofiler import wire
from netprofiler.budget import SHARES
from netprofiler.connection import Command, GiveBack, Ignore, Keep
from netprofiler.counters import KERNEL_ROWS, Row
from netprofiler.errors import CommandError, ExitCode
from netprofiler.privileges import may_capture
from netprofiler.sources import bpf, features
from netprofiler.sources.btf import KernelTypes
from netprofiler.sources.compiler import ObjectCache, cache_directory, compile_object, object_key
from netprofiler.sources.probes import Finding, Layout
from netprofiler.sources.tallies import BUCKETS, Asker, Tallies, Tally
from netprofiler.sources.uprobes import (
    AttachError,
    Jumps,
    Link,
    Way,
    attach_jumps,
    attach_probes,
    close_links,
    find_way,
)

RING_BYTES: Final = 16 * 1024 * 1024
"""Half a second of a server at 40,000 exchanges/s, or some 15 ms of large bodies at memory speed. It counts as resident
memory where it was touched, twice (it is mapped twice, so that a record never wraps)."""
WAKEUP_BYTES: Final = 2 * 1024 * 1024
"""The reader sleeps on a timer; a CPU that wrote this much wakes it early."""
BATCH_BYTES: Final = 4 * 1024 * 1024
"""Read at once: bounds the copy."""
CONNECTIONS_MAX: Final = 131_072
"""Sockets whose verdict is remembered in the kernel: twice what the user side keeps, as most are not HTTP. 13 MB. Least recently used go; an
HTTP connection that was forgotten is found again at its next message."""
PROCESSES_MAX: Final = 16_384
LAYOUTS_MAX: Final = 4096
"""Files with TLS in them that are probed at one time."""
SESSIONS_MAX: Final = 65_536
"""TLS sessions, and threads and goroutines in calls of TLS libraries, that the kernel side remembers."""
FILES_MAX: Final = 16_384
STEPS_MAX: Final = 16_384
"""Threads that are in a system call of several steps."""
INODES_BATCH: Final = 1024
"""The kernel gives inode numbers to its CPUs in such batches (fs/inode.c: LAST_INO_BATCH)."""
TALLIES_MAX: Final = 65_536
"""Connections whose exchanges are added up in the kernel, 1.6 KB for each that there is; others' are sent up."""
TALLY_SUMS_MAX: Final = 16_384
"""Sets of process, address, request line, host and status, 0.8 KB for each that there is; the exchanges of others are sent up."""
NOTICE_BYTES: Final = 256 * 1024
"""What happens to processes, between two rounds of the agent: 5,000 notices."""

_INIT_PID_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO of <linux/proc_ns.h>

TRACEPOINTS: Final = {
    b"sched_process_fork": "on_fork",
    b"sched_process_exec": "on_exec",
    b"sched_process_exit": "on_exit",
    b"inet_sock_set_state": "on_set_state",
}
"""Raw tracepoints → programs, in the order of attaching. Forks are followed for --pid."""
SOCKET_TRACEPOINTS: Final = {
    b"vm_unmapped_area": "on_unmapped_area",
    b"tcp_rcv_space_adjust": "on_tcp_read",
    b"sock_recv_length": "on_sock_recv_length",
    b"sock_send_length": "on_sock_send_length",
}
"""What sees traffic comes last. Where there are these (bpf/socket_events.h)."""
CALL_TRACEPOINTS: Final = {b"sys_exit": "on_sys_exit"}
"""Else (bpf/sys_exit.h)."""
CAST: Final = "bpf_rdonly_cast"
LOOP: Final = ("bpf_iter_num_new", "bpf_iter_num_next", "bpf_iter_num_destroy")
"""Functions of the kernel: what bpf/socket_events.h needs (Linux 6.2), and what bpf/tally.h needs (Linux 6.4)."""
CAST_TYPES: Final = ("list_head", "sk_buff", "tcp_sock", "unix_skb_parms", "unix_sock")
"""The structures that bpf/socket_events.h names to CAST: BTF_ID_ there."""

TAIL_CALLED: Final = ("on_deliver", "on_undecided", "on_long_call")
"""In the order of bpf/maps.h's PROGRAM_ numbers."""
TALLY: Final = "on_tally"
"""One more of them, for who wants exchanges added up (bpf/tally.h)."""

CONTROL_IGNORE: Final = 1
CONTROL_SKIP: Final = (2, 4)
CONTROL_TALLY: Final = 8

PROBE: Final = "on_probe"
PREEMPTIBLE_SINCE: Final = (7, 0)
"""From here on programs behind tracepoints can be preempted (include/linux/tracepoint.h: tracepoint_srcu)."""
PROBE_INDEX: Final = 4
"""bpf/maps.h: PROGRAM_PROBE."""

AGENT_PID_MARKER: Final = 0x4E504944
"""What the programs are compiled with as AGENT_PID; the pid takes its place when they are loaded. No pid is so large (PID_MAX_LIMIT
is 2²²), and nothing else in bpf/ is that number."""
ASK_AGENT_PID: Final = (
    PROBE,
    "on_sys_exit",
    "on_sock_recv_length",
    "on_sock_send_length",
    "on_tcp_read",
    "on_unmapped_area",
)
"""Programs with that number in them."""

FUNCTION_MARKER: Final = 0x4E504346
"""What the programs call in place of CAST and, by the numbers behind it, of those of LOOP."""

VARIANTS: Final = (
    ("-DSOCKET_EVENTS", "-DDIRECT_READS", "-DRING_QUERY"),
    ("-DDIRECT_READS", "-DRING_QUERY"),
    ("-DRING_QUERY",),
    (),
)
"""Ways to compile, best first. The first is for Linux 6.3 and later; a kernel before 5.11 has not the helper for the second; another
BCC may number its maps otherwise, and then it is the last."""
SOCKET_EVENTS: Final = 0
DIRECT_READS: Final = 1
COPIED_READS: Final = 2

# Keys and values of maps, as bpf/maps.h has them.
U64_MASK: Final = (1 << 64) - 1
_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_CONTROL: Final = struct.Struct("<III4x")
_LEDGER: Final = struct.Struct(f"<{2 * len(KERNEL_ROWS)}QQ8x")
_COMM_FILTER: Final = struct.Struct("<16sQ")
_EXECUTABLE_FILTER: Final = struct.Struct("<QII")
_FILE_ID: Final = struct.Struct("<QQ")

INCLUDE: Final = 1
EXCLUDE: Final = 2
FILTERS_MAX: Final = 16
PORTS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Filters:
    """What to watch. The same kind is OR, different kinds AND; exclusion wins."""

    pids: tuple[int, ...] = ()
    exclude_pids: tuple[int, ...] = ()
    comms: tuple[str, ...] = ()
    exclude_comms: tuple[str, ...] = ()
    executables: tuple[str, ...] = ()
    """Paths as the agent sees them; an executable is its inode, so a bind mount or a hard link is the same."""
    exclude_executables: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    exclude_ports: tuple[int, ...] = ()


def find_bpf() -> Path:
    """The directory with netprofiler.c: in the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "_bpf", package.parent / "bpf"):
        if (candidate / "netprofiler.c").is_file():
            return candidate
    raise CommandError("the BPF sources are missing from this installation", remedy="install netprofiler again")


def assemble(bpf: Path, *, tls: bool = True) -> str:
    """The one unit: BCC rewrites map calls in the main file only, so our own includes are put in place."""
    text = (bpf / "netprofiler.c").read_text()
    if not tls:
        text = text.replace('#include "tls.h"\n', "")

    def include(match: re.Match[str]) -> str:
        name = match[1]
        return f'#line 1 "{name}"\n{(bpf / name).read_text()}'

    return re.sub(r'^#include "(\w+\.h)"\n', include, text, flags=re.MULTILINE)


def needed_offsets(text: str) -> list[str]:
    """``struct.member`` of every OFFSET_struct__member in the program."""
    return [".".join(pair) for pair in sorted(set(re.findall(r"\bOFFSET_(\w+?)__(\w+)", text)))]


def check_host() -> None:
    """What can be told before anything is loaded."""
    if not may_capture():
        raise CommandError(
            "capturing needs root (CAP_BPF, CAP_PERFMON and more)", ExitCode.HOST, remedy="run it with sudo"
        )
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise CommandError("capturing needs Linux on x86-64 or arm64", ExitCode.HOST)
    if os.stat("/proc/self/ns/pid").st_ino != _INIT_PID_NAMESPACE:
        raise CommandError(
            "the agent is in a pid namespace of its own, where it cannot tell whose traffic it sees",
            ExitCode.HOST,
            remedy="start its container with the host's: --pid=host, or pid: host in a compose file",
        )


FOUND_NAMES: Final = ("session", "hello", "descriptor", "call", "not_found")
"""In the order of the FOUND_ numbers of bpf/maps.h."""
_TLS_COUNTERS: Final = struct.Struct(f"<{len(FOUND_NAMES)}QQQQ")


class FileProbes:
    """The probes in one file; `close()` takes them away."""

    def __init__(self, links: list[Link], layout: int, give_back: Callable[[int], None]) -> None:
        self._links = links
        self._layout = layout
        self._give_back = give_back
        self.count = sum(link.count for link in links)

    def close(self) -> None:
        if self._links:
            close_links(self._links)
            self._links = []
            self._give_back(self._layout)


class Ring:
    """A BPF ring buffer, read through its memory."""

    def __init__(self, descriptor: int, size: int) -> None:
        page = mmap.PAGESIZE
        # kernel/bpf/ringbuf.c: the consumer's page (ours to write), the producer's, then the data, mapped twice.
        self._consumer_page = mmap.mmap(descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._pages = mmap.mmap(descriptor, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        # A cast view reads and writes 8 bytes at once, which struct does not promise.
        self._consumer = memoryview(self._consumer_page).cast("Q")
        whole = memoryview(self._pages)
        self._producer = whole[:page].cast("Q")
        self._data = whole[page:]
        self._mask = size - 1
        whole.release()

    def read(self, limit: int) -> bytes:
        """What is in the ring, copied, at most `limit` bytes of it."""
        position = self._consumer[0]
        start = position & self._mask
        return bytes(self._data[start : start + min(self._producer[0] - position, limit)])

    def advance(self, size: int) -> None:
        self._consumer[0] = self._consumer[0] + size

    def close(self) -> None:
        for view in (self._consumer, self._producer, self._data):
            view.release()
        self._consumer_page.close()
        self._pages.close()


def put_agent_pid(made: bpf.Object) -> bpf.Object:
    """The object with our pid where it was compiled with AGENT_PID_MARKER. Raises `CommandError` where that stands in other
    programs than it should: the agent would watch itself, or what it should not.
    """
    programs = {}
    for name, code in made.programs.items():
        programs[name], count = bpf.replace_immediate(code, AGENT_PID_MARKER, os.getpid())
        if bool(count) is not (name in ASK_AGENT_PID):
            raise CommandError(f"{name} was compiled with {count} places for the agent's pid", ExitCode.HOST)
    return replace(made, programs=programs)


def put_functions(made: bpf.Object, functions: Sequence[int | None]) -> bpf.Object:
    """The object with calls of these functions of the kernel (BTF ids), where it was compiled with FUNCTION_MARKER and the
    numbers behind it.
    """
    programs = made.programs
    for marker, function in enumerate(functions, FUNCTION_MARKER):
        if function is not None:
            programs = {name: bpf.replace_call(code, marker, function) for name, code in programs.items()}
    return replace(made, programs=programs)


def _version() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", platform.release())[:2]))


def _new_inodes() -> tuple[int, dict[int, int]]:
    """From which inode number on sockets are new, and the batches that the CPUs have begun before: batch → the first number of
    it that is new.
    """
    cpus = os.sched_getaffinity(0)
    begun = {}
    number = 0
    try:
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})
            number = _inode_of_a_socket()
            begun[number // INODES_BATCH] = number + 1
        batch = number // INODES_BATCH
        while number // INODES_BATCH == batch:
            number = _inode_of_a_socket()
    finally:
        os.sched_setaffinity(0, cpus)
    return number, begun


def _inode_of_a_socket() -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        return os.fstat(made.fileno()).st_ino


class KernelSource:
    """`tls`: load what stands behind probes, too. `tally`: have exchanges added up in the kernel, where it can (`tallies`), by
    duration, of which these are the bounds in ns; `is_budgeted`: those of connections that are not to be kept (`Keep`).
    `variant`: the first of VARIANTS to be tried; others than the best are for comparing. `cached`: what was compiled before is used, and what is compiled now is kept; False is for finding out whether
    it compiles.
    """

    def __init__(
        self,
        filters: Filters,
        *,
        tls: bool = True,
        tally: Sequence[int] = (),
        is_budgeted: bool = False,
        variant: int = SOCKET_EVENTS,
        cached: bool = True,
    ) -> None:
        check_host()
        bpf.allow_locked_memory()
        if features.has_ring_buffer() is False:
            raise CommandError(
                f"kernel {platform.release()} has no BPF ring buffer", ExitCode.HOST, remedy="boot Linux 5.10 or newer"
            )
        directory = find_bpf()
        text = assemble(directory, tls=tls)
        with KernelTypes() as types:
            offsets = types.member_offsets(needed_offsets(text))
            casts = {name: types.struct_id(name) for name in CAST_TYPES}
            self._functions = [types.function_id(name) for name in (CAST, *LOOP)]
            has_socket_events = (
                self._functions[0] is not None
                and None not in casts.values()
                and all(types.has_tracepoint(tracepoint.decode()) for tracepoint in SOCKET_TRACEPOINTS)
            )
        flags = [
            f"-DPAGE_SIZE={mmap.PAGESIZE}",
            f"-DRING_PAGES={RING_BYTES // mmap.PAGESIZE}",
            f"-DWAKEUP_BYTES={WAKEUP_BYTES}",
            f"-DCPUS={bpf.possible_cpus()}",
            f"-DCONNECTIONS_MAX={CONNECTIONS_MAX}",
            f"-DPROCESSES_MAX={PROCESSES_MAX}",
            f"-DTLS_PROBES={int(tls)}",
            f"-DLAYOUTS_MAX={LAYOUTS_MAX}",
            f"-DSESSIONS_MAX={SESSIONS_MAX}",
            f"-DFILES_MAX={FILES_MAX}",
            f"-DSTEPS_MAX={STEPS_MAX}",
            f"-DINODES_BATCH={INODES_BATCH}",
            f"-DNOTICE_PAGES={NOTICE_BYTES // mmap.PAGESIZE}",
            f"-DAGENT_PID={AGENT_PID_MARKER}",
            f"-DFUNCTION_MARKER={FUNCTION_MARKER}",
            "-Wno-unused-function",
        ]
        flags += [f"-DOFFSET_{path.replace('.', '__')}={offset}" for path, offset in offsets.items()]
        flags += [f"-DBTF_ID_{name}={number}" for name, number in casts.items()]
        flags += _filter_flags(filters)
        self._filters = filters
        self._tls = tls
        self._way = find_way() if tls else Way.MULTI
        if self._way is Way.JUMPS:
            flags.append("-DNO_COOKIES")
        if _version() >= PREEMPTIBLE_SINCE:
            flags.append("-DPREEMPTIBLE")
        self._follows_forks = bool(filters.pids or filters.exclude_pids)
        self._links: dict[bytes, int] = {}
        best = SOCKET_EVENTS if has_socket_events else DIRECT_READS if features.has_current_task() else COPIED_READS
        variants = range(max(variant, best), len(VARIANTS))
        attempts: list[tuple[int, tuple[str, ...]]] = [(number, VARIANTS[number]) for number in variants]
        if tally and attempts[0][0] == SOCKET_EVENTS and None not in self._functions:
            attempts.insert(
                0, (SOCKET_EVENTS, (*VARIANTS[SOCKET_EVENTS], *_tally_flags(tally), *["-DBUDGET"] * is_budgeted))
            )
        self._loaded = self._compile_and_load(text, flags, directory, attempts, cached=cached)
        self._maps = self._loaded.maps
        self.variant = self._loaded.variant
        """Which of VARIANTS it is."""
        self.tallies = (bpf.PROG_TYPE_RAW_TRACEPOINT, TALLY) in self._loaded.programs
        """Exchanges are added up, as was asked for."""
        if self.tallies and is_budgeted:
            self.command(Keep(SHARES))
        self._sums = Tallies(self._maps["tally_sums"], self._maps["tally_unanswered"]) if self.tallies else None
        for array, program_type in (
            ("programs", bpf.PROG_TYPE_RAW_TRACEPOINT),
            ("probe_programs", bpf.PROG_TYPE_KPROBE),
        )[: 1 + tls]:
            for index, name in enumerate((*TAIL_CALLED, TALLY) if self.tallies else TAIL_CALLED):
                descriptor = self._loaded.programs[program_type, name]
                self._maps[array].update(_U32.pack(index), _U32.pack(descriptor))
        if self._way is Way.JUMPS:
            descriptor = self._loaded.programs[bpf.PROG_TYPE_KPROBE, PROBE]
            self._maps["probe_programs"].update(_U32.pack(PROBE_INDEX), _U32.pack(descriptor))
        self._set_filters(filters)
        self._map_rings()
        self._free_layouts = list(range(LAYOUTS_MAX - 1, -1, -1))

    def _compile_and_load(
        self,
        text: str,
        flags: list[str],
        directory: Path,
        attempts: Sequence[tuple[int, Sequence[str]]],
        *,
        cached: bool,
    ) -> bpf.Loaded:
        """What was kept, if it loads; else the first of these (variant, flags) that the kernel takes, which is then kept."""
        cache = ObjectCache(cache_directory()) if cached else None
        key = object_key(text, [*flags, *(" ".join(more) for _, more in attempts)], directory)
        kept = cache.read(key) if cache else None
        if kept is not None:
            with contextlib.suppress(CommandError):
                return self._load(kept)
        for number, (variant, more) in enumerate(attempts, 1):
            try:
                made = compile_object(text, [*flags, *more], directory, variant)
                loaded = self._load(made)
            except CommandError:
                if number == len(attempts):
                    raise
                continue
            if cache:
                cache.write(key, made)
            return loaded
        raise AssertionError("the last attempt has raised")

    def _tracepoints(self, variant: int) -> dict[bytes, str]:
        all_of_them = TRACEPOINTS | (SOCKET_TRACEPOINTS if variant == SOCKET_EVENTS else CALL_TRACEPOINTS)
        return {
            tracepoint: name
            for tracepoint, name in all_of_them.items()
            if self._follows_forks or tracepoint != b"sched_process_fork"
        }

    def _load(self, made: bpf.Object) -> bpf.Loaded:
        tail_called = (*TAIL_CALLED, TALLY) if TALLY in made.programs else TAIL_CALLED
        behind_tracepoints = (*self._tracepoints(made.variant).values(), *tail_called)
        wanted = [bpf.Wanted(name, bpf.PROG_TYPE_RAW_TRACEPOINT) for name in behind_tracepoints]
        if self._tls:
            # What these call is loaded again, as programs for probes: what they call next is in another prog array.
            attach_type = bpf.TRACE_UPROBE_MULTI if self._way is Way.MULTI else 0
            wanted += [
                bpf.Wanted(name, bpf.PROG_TYPE_KPROBE, attach_type, {"programs": "probe_programs"})
                for name in (PROBE, *tail_called)
            ]
        try:
            return bpf.Loaded(put_functions(put_agent_pid(made), self._functions), wanted)
        except OSError as error:
            raise CommandError(
                f"the kernel refused the program: {error.strerror}", ExitCode.HOST, remedy="see `netprofiler doctor`"
            ) from error

    # --- filters -----------------------------------------------------------------------------------------------------

    def _set_filters(self, filters: Filters) -> None:
        for pid in filters.pids:
            self.watch_pid(pid, INCLUDE)
        for pid in filters.exclude_pids:
            self.watch_pid(pid, EXCLUDE)
        for flags, ports in ((INCLUDE, filters.ports), (EXCLUDE, filters.exclude_ports)):
            for port in ports:
                self._maps["watched_ports"].update(_U16.pack(port), _U32.pack(flags))
        comms = [(name, INCLUDE) for name in filters.comms] + [(name, EXCLUDE) for name in filters.exclude_comms]
        for index, (name, flags) in enumerate(comms):
            # The kernel keeps 15 bytes and a NUL.
            comm = name.encode()[: wire.COMM_BYTES - 1]
            self._maps["watched_comms"].update(_U32.pack(index), _COMM_FILTER.pack(comm, flags))
        self.refresh_executables()

    def watch_pid(self, pid: int, flags: int = INCLUDE) -> None:
        """From now on; its descendants that already live have to be named too."""
        self._maps["watched_pids"].update(_U32.pack(pid), _U32.pack(flags))

    def refresh_executables(self) -> None:
        """Look the paths up again: an executable may have been replaced, or have come into being."""
        filters = self._filters
        if not (filters.executables or filters.exclude_executables):
            return
        paths = [(path, INCLUDE) for path in filters.executables]
        paths += [(path, EXCLUDE) for path in filters.exclude_executables]
        for index, (path, flags) in enumerate(paths):
            try:
                status = os.stat(path)
            except OSError:
                continue
            device = os.major(status.st_dev) << 20 | os.minor(status.st_dev)
            value = _EXECUTABLE_FILTER.pack(status.st_ino, device, flags)
            self._maps["watched_executables"].update(_U32.pack(index), value)

    # --- the capture -------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        try:
            for tracepoint, name in self._tracepoints(self.variant).items():
                program = self._loaded.programs[bpf.PROG_TYPE_RAW_TRACEPOINT, name]
                self._links[tracepoint] = bpf.open_raw_tracepoint(tracepoint, program)
        except OSError as error:
            self.detach()
            raise CommandError(
                f"the kernel refused to attach: {error.strerror}", ExitCode.HOST, remedy="see `netprofiler doctor`"
            ) from error
        if self.variant == SOCKET_EVENTS:
            first, begun = _new_inodes()
            for batch, number in begun.items():
                self._maps["begun_batches"].update(_U32.pack(batch), _U32.pack(number))
            self._maps["first_new_inode"].update(_U32.pack(0), _U64.pack(first))

    def detach(self) -> None:
        while self._links:
            _, descriptor = self._links.popitem()  # the last comes first
            os.close(descriptor)

    # --- TLS ---------------------------------------------------------------------------------------------------------

    def attach_file(self, path: str, finding: Finding) -> FileProbes:
        """Probes in the file that `path` leads to. Raises `uprobes.AttachError`."""
        if not self._free_layouts:
            raise AttachError(path, errno.ENOSPC)
        index = self._free_layouts.pop()
        key, layout = _U32.pack(index), (finding.layout or Layout(finding.library)).pack()
        self._maps["tls_layouts"].update(key, layout)
        try:
            links = self._attach_probes(path, finding, index)
        except AttachError:
            self._free_layouts.append(index)
            raise
        # What begins from now on is seen from its beginning.
        self._maps["tls_layouts"].update(key, layout[: -_U64.size] + _U64.pack(monotonic_ns()))
        return FileProbes(links, index, self._free_layouts.append)

    def _attach_probes(self, path: str, finding: Finding, layout: int) -> list[Link]:
        if self._way is Way.JUMPS:
            cookies, programs = (self._maps[name].descriptor for name in ("probe_cookie", "probe_programs"))
            return attach_jumps(Jumps(cookies, programs, PROBE_INDEX), path, finding.probes, layout)
        program = self._loaded.programs[bpf.PROG_TYPE_KPROBE, PROBE]
        return attach_probes({False: program, True: program}, path, finding.probes, layout, self._way)

    def forget_file(self, device: int, inode: int) -> None:
        """The next mapping of this file is told again."""
        self._maps["told_files"].delete(_FILE_ID.pack(inode, device))

    def notices(self) -> list[wire.Notice]:
        """What happened to processes since the last call."""
        data = self._notices.read(NOTICE_BYTES)
        if not data:
            return []
        out = [wire.parse_notice(record) for record in wire.records(data)]
        self._notices.advance(wire.whole_length(data))
        if self._sums is not None:
            for notice in out:
                if notice.kind == wire.NOTICE_EXITED:
                    self._sums.exited(notice.pid)
        return out

    def tls_counts(self) -> dict[str, int]:
        """How the sockets of plaintext were found (FOUND_NAMES), and notices that found their ring full."""
        counts = dict.fromkeys((*FOUND_NAMES, "notices_lost"), 0)
        for *found, _, _, notices_lost in self._tls_counters():
            for name, count in zip(FOUND_NAMES, found, strict=True):
                counts[name] += count
            counts["notices_lost"] += notices_lost
        return counts

    def _tls_counters(self) -> list[tuple[int, ...]]:
        """Of each CPU: FOUND_NAMES, crowded, crowded_bytes, notices_lost."""
        return [_TLS_COUNTERS.unpack(value) for value in self._maps["tls_counts"].lookup_all(_U32.pack(0))]

    def probes(self) -> list[str]:
        return [tracepoint.decode() for tracepoint in self._links]

    def close(self) -> None:
        self.detach()
        self._epoll.close()
        self._events.close()
        self._notices.close()
        self._loaded.close()

    # --- the ring ----------------------------------------------------------------------------------------------------

    def _map_rings(self) -> None:
        self._events = Ring(self._maps["events"].descriptor, RING_BYTES)
        self._notices = Ring(self._maps["notices"].descriptor, NOTICE_BYTES)
        self._wakes = -1
        self._epoll = select.epoll()
        # Edge-triggered: it answers to a wake-up, not to there being something.
        for name in ("events", "notices"):
            self._epoll.register(self._maps[name].descriptor, select.EPOLLIN | select.EPOLLET)

    def wake_for(self, descriptor: int) -> None:
        """`wait` ends early when this descriptor is readable."""
        self._wakes = descriptor
        self._epoll.register(descriptor, select.EPOLLIN)

    def wait(self, seconds: float) -> bool:
        """Until a CPU has written much, a file is used that was not before, or the time is over. True: what `wake_for` named
        is readable.
        """
        return any(descriptor == self._wakes for descriptor, _ in self._epoll.poll(seconds))

    def read(self) -> bytes:
        """What is in the ring, copied; empty when there is nothing."""
        batch = self._events.read(BATCH_BYTES)
        if len(batch) == BATCH_BYTES:
            return batch[: wire.whole_length(batch)]
        return batch

    def advance(self, size: int) -> None:
        """The first `size` bytes of what was read are done with."""
        self._events.advance(size)

    # --- counters and commands ---------------------------------------------------------------------------------------

    def ledger(self) -> dict[str, Row]:
        rows = {name: Row() for name in KERNEL_ROWS}
        for *counts, _ in self._ledgers():
            for index, name in enumerate(KERNEL_ROWS):
                rows[name].calls += counts[2 * index]
                rows[name].bytes += counts[2 * index + 1]
        # What is taken out of this row again may have been put into it on another CPU.
        for name in ("tallied", "budget"):
            rows[name].calls &= U64_MASK
            rows[name].bytes &= U64_MASK
        for *_, crowded, crowded_bytes, _ in self._tls_counters():
            for name in ("total", "lost"):
                rows[name].calls += crowded
                rows[name].bytes += crowded_bytes
        return rows

    def tallied(self, now_ns: int) -> tuple[list[Tally], list[tuple[Asker, int]]]:
        """What was added up since the last call (tallies.py)."""
        return ([], []) if self._sums is None else self._sums.read(now_ns)

    def announcements_lost(self) -> int:
        return sum(announcements_lost for *_, announcements_lost in self._ledgers())

    def _ledgers(self) -> list[tuple[int, ...]]:
        """Of each place of each CPU: calls and bytes by KERNEL_ROWS, announcements_lost."""
        table = self._maps["ledgers"]
        values = (table.lookup(_U32.pack(index)) for index in range(table.facts.max_entries))
        return [_LEDGER.unpack(value) for value in values if value is not None]

    def command(self, command: Command) -> None:
        """Carry out what the pipeline found out."""
        if isinstance(command, Keep):
            if self.tallies:
                self._maps["kept_shares"].update(_U32.pack(0), _U32.pack(command.shares))
            return
        key = _U64.pack(command.socket)
        if isinstance(command, GiveBack):
            if self.tallies:
                self._maps["controls"].update(key, _CONTROL.pack(CONTROL_TALLY, *command.positions))
            return
        before = self._maps["controls"].lookup(key)
        flags, *skip_until = _CONTROL.unpack(before) if before is not None else (0, 0, 0)
        if isinstance(command, Ignore):
            flags = CONTROL_IGNORE
        else:
            flags = flags & ~CONTROL_TALLY | CONTROL_SKIP[command.direction]
            skip_until[command.direction] = command.until
        self._maps["controls"].update(key, _CONTROL.pack(flags, *skip_until))


def _tally_flags(bounds: Sequence[int]) -> list[str]:
    if len(bounds) >= BUCKETS:
        raise ValueError(f"at most {BUCKETS - 1} bounds")
    below = "+".join(f"((x)>{bound}ULL)" for bound in bounds)
    return [
        "-DTALLY",
        f"-DTALLIES_MAX={TALLIES_MAX}",
        f"-DTALLY_SUMS_MAX={TALLY_SUMS_MAX}",
        f"-DCOUNT_BELOW(x)=({below})",
    ]


def _filter_flags(filters: Filters) -> list[str]:
    flags = []
    kinds = (
        ("PID", filters.pids, filters.exclude_pids),
        ("COMM", filters.comms, filters.exclude_comms),
        ("EXECUTABLE", filters.executables, filters.exclude_executables),
        ("PORT", filters.ports, filters.exclude_ports),
    )
    for name, includes, excludes in kinds:
        limit = PORTS_MAX if name == "PORT" else PROCESSES_MAX if name == "PID" else FILTERS_MAX
        if len(includes) + len(excludes) > limit:
            raise CommandError(f"at most {limit} filters by {name.lower()} are possible", ExitCode.USAGE)
        if includes or excludes:
            # With nothing to include, all is included but what is excluded.
            flags.append(f"-DFILTER_{name}={INCLUDE if includes else EXCLUDE}")
            if name != "PORT":
                flags.append("-DFILTER_PROCESS")
    flags.append(f"-DFILTER_COMM_COUNT={len(filters.comms) + len(filters.exclude_comms)}")
    return list(dict.fromkeys(flags))


def monotonic_ns() -> int:
    """The clock of the records (bpf_ktime_get_ns)."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def wall_offset_ns() -> int:
    """What added to `monotonic_ns` gives wall clock: the middle of two readings around a third, the narrowest of 5."""
    best = (1 << 62, 0)
    for _ in range(5):
        before = monotonic_ns()
        wall = time.time_ns()
        after = monotonic_ns()
        best = min(best, (after - before, wall - (before + after) // 2))
    return best[1]
