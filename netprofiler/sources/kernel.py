"""The kernel as a source: loads and attaches bpf/, reads its ring buffer, its counters, and tells it what to leave out.

Contract: the only importer of BCC. `KernelSource(filters)` compiles and loads; `attach()` starts the capture; `read()`
gives what is in the ring as one batch (wire.py) and `advance(n)` gives n bytes of it back to the kernel; `ledger()`
gives the kernel side's rows; `detach()` ends the capture, after which the ring can still be drained; `close()` frees
everything. Raises `CommandError` (exit status 3) where this host cannot do it, with what is missing.

No tracefs, no kprobes, no kernel headers: raw tracepoints are attached by name, offsets come from BTF, and the header
stubs in bpf/include stand in for the headers that BCC asks for.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import re
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from netprofiler import wire
from netprofiler.connection import Command, Ignore
from netprofiler.counters import KERNEL_ROWS, Row
from netprofiler.errors import CommandError, ExitCode
from netprofiler.sources.bcc_import import load_bcc
from netprofiler.sources.btf import member_offsets
from netprofiler.sources.probes import Finding, Layout
from netprofiler.sources.uprobes import (
    TRACE_UPROBE_MULTI,
    AttachError,
    UprobeLink,
    attach_probes,
    load_probe_program,
    replace_map,
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
NOTICE_BYTES: Final = 256 * 1024
"""What happens to processes, between two rounds of the agent: 5,000 notices."""

_INIT_PID_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO of <linux/proc_ns.h>
_MADV_PAGEOUT: Final = 21

TRACEPOINTS: Final = {
    b"sched_process_fork": b"on_fork",
    b"sched_process_exec": b"on_exec",
    b"sched_process_exit": b"on_exit",
    b"inet_sock_set_state": b"on_set_state",
    b"sys_exit": b"on_sys_exit",
}
"""Raw tracepoints → programs, in the order of attaching: what sees traffic comes last. Forks are followed for --pid."""

TAIL_CALLED: Final = (b"on_deliver", b"on_undecided", b"on_long_call")
"""In the order of bpf/maps.h's PROGRAM_ numbers."""

CONTROL_IGNORE: Final = 1
CONTROL_SKIP: Final = (2, 4)

PROBE: Final = b"on_probe"

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


def possible_cpus() -> int:
    """Highest CPU number that this host can ever have, plus one."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(re.split(r"[-,]", text)[-1]) + 1


def check_host() -> None:
    """What can be told before anything is loaded."""
    if os.geteuid() != 0:
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


@contextlib.contextmanager
def _quiet_stderr(captured: list[str]) -> Iterator[None]:
    """Libbcc and the compiler write to descriptor 2: collected, to be shown only when something went wrong."""
    saved = os.dup(2)
    with open(os.memfd_create("bcc-messages"), "w+b", buffering=0) as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            captured.append(file.read().decode("utf-8", "replace"))


FOUND_NAMES: Final = ("session", "hello", "descriptor", "call", "not_found")
"""In the order of the FOUND_ numbers of bpf/maps.h."""


class FileProbes:
    """The probes in one file; `close()` takes them away."""

    def __init__(self, links: list[UprobeLink], layout: int, give_back: Callable[[int], None]) -> None:
        self._links = links
        self._layout = layout
        self._give_back = give_back
        self.count = sum(link.count for link in links)

    def close(self) -> None:
        if self._links:
            for link in self._links:
                link.close()
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


class KernelSource:
    """`tls`: load what stands behind probes, too. `direct_reads`: use plain loads where the kernel takes them (bpf/arch.h); False is for comparing the two."""

    def __init__(self, filters: Filters, *, tls: bool = True, direct_reads: bool = True) -> None:
        check_host()
        bpf_dir = find_bpf()
        text = assemble(bpf_dir, tls=tls)
        offsets = member_offsets(needed_offsets(text))
        bcc = load_bcc()
        os.environ["BCC_KERNEL_SOURCE"] = str(bpf_dir)
        flags = [
            "-DCONFIG_BPF_SYSCALL",
            f"-DPAGE_SIZE={mmap.PAGESIZE}",
            f"-I{bpf_dir}",
            f"-DRING_PAGES={RING_BYTES // mmap.PAGESIZE}",
            f"-DWAKEUP_BYTES={WAKEUP_BYTES}",
            f"-DCPUS={possible_cpus()}",
            f"-DCONNECTIONS_MAX={CONNECTIONS_MAX}",
            f"-DPROCESSES_MAX={PROCESSES_MAX}",
            f"-DTLS_PROBES={int(tls)}",
            f"-DLAYOUTS_MAX={LAYOUTS_MAX}",
            f"-DSESSIONS_MAX={SESSIONS_MAX}",
            f"-DFILES_MAX={FILES_MAX}",
            f"-DNOTICE_PAGES={NOTICE_BYTES // mmap.PAGESIZE}",
            f"-DAGENT_PID={os.getpid()}",
            "-Wno-unused-function",
        ]
        flags += [f"-DOFFSET_{path.replace('.', '__')}={offset}" for path, offset in offsets.items()]
        flags += _filter_flags(filters)
        self._filters = filters
        self._tls = tls
        follows_forks = bool(filters.pids or filters.exclude_pids)
        self._tracepoints = {
            tracepoint: name
            for tracepoint, name in TRACEPOINTS.items()
            if follows_forks or tracepoint != b"sched_process_fork"
        }
        if direct_reads:
            # A kernel before 5.11 has not the helper for it; another BCC may number its maps otherwise.
            try:
                self._compile(bcc, text, [*flags, "-DDIRECT_READS", "-DRING_QUERY"])
            except CommandError:
                if hasattr(self, "_bpf"):
                    self._bpf.cleanup()
                direct_reads = False
        if not direct_reads:
            self._compile(bcc, text, flags)
        self.direct_reads = direct_reads
        for index, name in enumerate(TAIL_CALLED):
            self._bpf[b"programs"][ctypes.c_int(index)] = ctypes.c_int(self._programs[name].fd)
        for index, descriptor in enumerate(self._behind_probes):
            self._bpf[b"probe_programs"][ctypes.c_int(index)] = ctypes.c_int(descriptor)
        self._set_filters(filters)
        self._controls: Any = self._bpf[b"controls"]
        self._attached = False
        self._map_rings()
        self._free_layouts = list(range(LAYOUTS_MAX - 1, -1, -1))
        _page_out_compiler()

    def _compile(self, bcc: Any, text: str, flags: list[str]) -> None:
        messages: list[str] = []
        self._programs: dict[bytes, Any] = {}
        self._behind_probes: list[int] = []
        try:
            with _quiet_stderr(messages):
                self._bpf: Any = bcc.BPF(text=text.encode(), cflags=flags)
                for name in (*self._tracepoints.values(), *TAIL_CALLED):
                    self._programs[name] = self._bpf.load_func(name, bcc.BPF.RAW_TRACEPOINT)
                if self._tls:
                    self._programs[PROBE] = self._bpf.load_func(PROBE, bcc.BPF.KPROBE, attach_type=TRACE_UPROBE_MULTI)
                    self._load_behind_probes(bcc)
        except Exception as error:  # BCC raises plain Exception for all that goes wrong
            detail = " ".join(messages).strip().splitlines()[-1:] or [str(error)]
            raise CommandError(
                f"the kernel or the compiler refused the program: {detail[0]}",
                ExitCode.HOST,
                remedy="see `netprofiler doctor`",
            ) from error

    def _load_behind_probes(self, bcc: Any) -> None:
        """The programs that sys_exit calls, again as programs for probes: what they call next is in another prog array."""
        programs, instead = self._bpf[b"programs"].map_fd, self._bpf[b"probe_programs"].map_fd
        for name in TAIL_CALLED:
            size = bcc.lib.bpf_function_size(self._bpf.module, name)
            code = ctypes.string_at(bcc.lib.bpf_function_start(self._bpf.module, name), size)
            self._behind_probes.append(load_probe_program(replace_map(code, programs, instead)))

    # --- filters -----------------------------------------------------------------------------------------------------

    def _set_filters(self, filters: Filters) -> None:
        for pid in filters.pids:
            self.watch_pid(pid, INCLUDE)
        for pid in filters.exclude_pids:
            self.watch_pid(pid, EXCLUDE)
        table = self._bpf[b"watched_ports"]
        for flags, ports in ((INCLUDE, filters.ports), (EXCLUDE, filters.exclude_ports)):
            for port in ports:
                table[ctypes.c_uint16(port)] = ctypes.c_uint32(flags)
        table = self._bpf[b"watched_comms"]
        comms = [(name, INCLUDE) for name in filters.comms] + [(name, EXCLUDE) for name in filters.exclude_comms]
        for index, (name, flags) in enumerate(comms):
            leaf = table.Leaf()
            # The kernel keeps 15 bytes and a NUL.
            ctypes.memmove(ctypes.byref(leaf), name.encode()[: wire.COMM_BYTES - 1].ljust(wire.COMM_BYTES, b"\0"), 16)
            leaf.flags = flags
            table[ctypes.c_int(index)] = leaf
        self.refresh_executables()

    def watch_pid(self, pid: int, flags: int = INCLUDE) -> None:
        """From now on; its descendants that already live have to be named too."""
        self._bpf[b"watched_pids"][ctypes.c_uint32(pid)] = ctypes.c_uint32(flags)

    def refresh_executables(self) -> None:
        """Look the paths up again: an executable may have been replaced, or have come into being."""
        filters = self._filters
        if not (filters.executables or filters.exclude_executables):
            return
        table = self._bpf[b"watched_executables"]
        paths = [(path, INCLUDE) for path in filters.executables]
        paths += [(path, EXCLUDE) for path in filters.exclude_executables]
        for index, (path, flags) in enumerate(paths):
            leaf = table.Leaf()
            try:
                status = os.stat(path)
            except OSError:
                continue
            leaf.inode = status.st_ino
            leaf.device = os.major(status.st_dev) << 20 | os.minor(status.st_dev)
            leaf.flags = flags
            table[ctypes.c_int(index)] = leaf

    # --- the capture -------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        messages: list[str] = []
        try:
            with _quiet_stderr(messages):
                for tracepoint, name in self._tracepoints.items():
                    self._bpf.attach_raw_tracepoint(tracepoint, name)
        except Exception as error:
            raise CommandError(
                f"the kernel refused to attach: {error}", ExitCode.HOST, remedy="see `netprofiler doctor`"
            ) from error
        self._attached = True

    def detach(self) -> None:
        if self._attached:
            self._attached = False
            with _quiet_stderr([]):
                for tracepoint in reversed(self._tracepoints):
                    self._bpf.detach_raw_tracepoint(tracepoint)

    # --- TLS ---------------------------------------------------------------------------------------------------------

    def attach_file(self, path: str, finding: Finding) -> FileProbes:
        """Probes in the file that `path` leads to. Raises `uprobes.AttachError`."""
        if not self._free_layouts:
            raise AttachError(path, errno.ENOSPC)
        index = self._free_layouts.pop()
        table = self._bpf[b"tls_layouts"]
        packed = (finding.layout or Layout(finding.library)).pack()
        try:
            table[ctypes.c_int(index)] = table.Leaf.from_buffer_copy(packed)
            program = self._programs[PROBE].fd
            links = attach_probes({False: program, True: program}, path, finding.probes, index)
        except AttachError:
            self._free_layouts.append(index)
            raise
        # What begins from now on is seen from its beginning.
        leaf = table.Leaf.from_buffer_copy(packed)
        leaf.attached_ns = monotonic_ns()
        table[ctypes.c_int(index)] = leaf
        return FileProbes(links, index, self._free_layouts.append)

    def forget_file(self, device: int, inode: int) -> None:
        """The next mapping of this file is told again."""
        table = self._bpf[b"told_files"]
        with contextlib.suppress(KeyError):
            del table[table.Key(inode, device)]

    def notices(self) -> list[wire.Notice]:
        """What happened to processes since the last call."""
        data = self._notices.read(NOTICE_BYTES)
        if not data:
            return []
        out = [wire.parse_notice(record) for record in wire.records(data)]
        self._notices.advance(wire.whole_length(data))
        return out

    def tls_counts(self) -> dict[str, int]:
        """How the sockets of plaintext were found (FOUND_NAMES), and notices that found their ring full."""
        counts = dict.fromkeys((*FOUND_NAMES, "notices_lost"), 0)
        for of_cpu in self._bpf[b"tls_counts"][ctypes.c_int(0)]:
            for name, count in zip(FOUND_NAMES, of_cpu.found, strict=True):
                counts[name] += count
            counts["notices_lost"] += of_cpu.notices_lost
        return counts

    def probes(self) -> list[str]:
        return [name.decode() for name in self._bpf.raw_tracepoint_fds]

    def close(self) -> None:
        self.detach()
        self._epoll.close()
        self._events.close()
        self._notices.close()
        for descriptor in self._behind_probes:
            os.close(descriptor)
        with _quiet_stderr([]):
            self._bpf.cleanup()

    # --- the ring ----------------------------------------------------------------------------------------------------

    def _map_rings(self) -> None:
        self._events = Ring(self._bpf[b"events"].map_fd, RING_BYTES)
        self._notices = Ring(self._bpf[b"notices"].map_fd, NOTICE_BYTES)
        self._wakes = -1
        self._epoll = select.epoll()
        # Edge-triggered: it answers to a wake-up, not to there being something.
        self._epoll.register(self._bpf[b"events"].map_fd, select.EPOLLIN | select.EPOLLET)

    def wake_for(self, descriptor: int) -> None:
        """`wait` ends early when this descriptor is readable."""
        self._wakes = descriptor
        self._epoll.register(descriptor, select.EPOLLIN)

    def wait(self, seconds: float) -> bool:
        """Until a CPU has written much, or the time is over. True: what `wake_for` named is readable."""
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
        for ledger in self._bpf[b"ledgers"].values():
            for name, row in zip(KERNEL_ROWS, ledger.rows, strict=True):
                rows[name].calls += row.calls
                rows[name].bytes += row.bytes
        for of_cpu in self._bpf[b"tls_counts"][ctypes.c_int(0)]:
            for name in ("total", "lost"):
                rows[name].calls += of_cpu.crowded
                rows[name].bytes += of_cpu.crowded_bytes
        return rows

    def announcements_lost(self) -> int:
        return sum(ledger.announcements_lost for ledger in self._bpf[b"ledgers"].values())

    def command(self, command: Command) -> None:
        """Carry out what the pipeline found out."""
        key = ctypes.c_uint64(command.socket)
        try:
            leaf = self._controls[key]
        except KeyError:
            leaf = self._controls.Leaf()
        if isinstance(command, Ignore):
            leaf.flags = CONTROL_IGNORE
        else:
            leaf.flags |= CONTROL_SKIP[command.direction]
            leaf.skip_until[command.direction] = command.until
        self._controls[key] = leaf


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


def _page_out_compiler() -> None:
    """LibLLVM and libclang are needed no more: their file pages (120 MB resident) go back to the page cache. Pages that
    were written to (relocations) stay, as there is nowhere to page them out to.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/maps") as maps:
        for line in maps:
            if "libLLVM" in line or "libclang" in line or "libbcc" in line:
                start, end = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_PAGEOUT)
    with contextlib.suppress(AttributeError):
        libc.malloc_trim(0)


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
