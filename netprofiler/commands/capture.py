"""What `run` and `record` share: a live capture from its start to its end.

Contract: `Capture.run(consumer)` attaches, prints `ready`, gives the consumer every batch of raw records and the end of
every round, and ends on SIGINT, SIGTERM, `--duration`, the end of COMMAND, or when the consumer is done. Everything that
a consumer is told, and nothing else, decides what it makes of the capture: `record` writes that down, and a replay tells
it again (sources/recording.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

from netprofiler import wire
from netprofiler.commands.log import Log
from netprofiler.commands.outputs import discard_stdout
from netprofiler.commands.surroundings import Surroundings
from netprofiler.config import Config
from netprofiler.connection import Command
from netprofiler.counters import Row
from netprofiler.errors import CommandError, ExitCode
from netprofiler.metrics.series import DURATION_BOUNDS_NS
from netprofiler.sinks.base import OutputClosed
from netprofiler.sources.analysis import analyse
from netprofiler.sources.discovery import Discovery
from netprofiler.sources.kernel import FileProbes, Filters, KernelSource, monotonic_ns, wall_offset_ns
from netprofiler.sources.probes import Finding
from netprofiler.sources.processes import descendants, gone_unix_sockets, process_name
from netprofiler.sources.sent_files import SentFiles
from netprofiler.sources.tallies import Asker, Tally
from netprofiler.sources.unread import why_unread

DRAIN_SECONDS: Final = 0.040
"""The ring is read this often. A round costs some 200 us without a record (half of it to fall asleep and wake up, in a virtual
machine), and 400 us beside its records, as everything that it touches has left the caches meanwhile: at 2,000 requests/s a
record costs 4 us less than with rounds of 10 ms, and the 99th percentile of the watched, in which the bursts are seen, is the
same from 25 ms on. What fills the ring faster wakes the reader (WAKEUP_BYTES)."""
FLOOD_DRAIN_SECONDS: Final = 0.010
FLOOD_BYTES: Final = 1024 * 1024
"""Where the last round brought more than this, large bodies, the ring could fill meanwhile."""
TRICKLE_BYTES: Final = 64 * 1024
"""A round ends with a batch smaller than this: what comes in while we read is left for the next one."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
SETTLE_NS: Final = 3_000_000_000
"""What runs already is looked through before `ready`, if that takes no longer: a tenth of a second as a rule, as most of it was
done while the programs were compiled or loaded; with dozens of large programs, each analysed for the first time, seconds."""
REASONS_MAX: Final = 32
"""Processes of which it is said at the end why their TLS was not read."""
POLL_NS: Final = 500_000_000
"""Discovery is asked to go on this often when nothing calls for it: it costs as much as a round without traffic."""
HOUSEKEEPING_NS: Final = 1_000_000_000
NICE: Final = -10
"""The agent competes with what it watches: it needs its share promptly, or the ring fills."""
CLOCK_STEP_NS: Final = 1_000_000
"""A wall clock that has moved by more than this against the monotonic one was set: the offset follows."""


class Source(Protocol):
    """What a capture needs of `KernelSource`."""

    def wait(self, seconds: float) -> bool: ...

    def read(self) -> bytes: ...

    def advance(self, size: int) -> None: ...

    def command(self, command: Command) -> None: ...

    def refresh_executables(self) -> None: ...

    def notices(self) -> list[wire.Notice]: ...

    def tls_counts(self) -> dict[str, int]: ...


class Consumer(Protocol):
    """What becomes of what is captured."""

    sent_file_bytes: int
    """How much it wants of a file that was sent."""

    @property
    def done(self) -> bool:
        """It wants no more."""

    def batch(self, batch: bytes, now_ns: int) -> int:
        """Take a batch; returns how much of it was whole."""

    def commands(self) -> list[Command]:
        """What the kernel side is to be told since it was last asked."""

    def end_round(self, now_ns: int) -> None:
        """All that was in the ring at that time has been given."""

    def unix_owners(self) -> dict[int, int]:
        """UNIX sockets (inode) that are open as far as it knows → the pid that used it last. The kernel side does not
        see these close.
        """

    def unread(self) -> dict[int, int]:
        """Processes (pid) → their TLS connections that have ended and could not be read."""

    def forget(self, inodes: list[int], now_ns: int) -> None:
        """Of those, these are gone."""

    def set_wall_offset(self, offset_ns: int, now_ns: int) -> None: ...

    def reopen(self) -> None: ...

    def end(self, now_ns: int) -> None:
        """Nothing more will come."""


@dataclass(frozen=True, slots=True)
class Attached:
    """What is attached now, and what could not be."""

    probes: dict[str, int]
    """By kind: ``tracepoint``, ``uprobe``."""
    files: int
    failures: dict[str, int]
    """Files that could not be opened, analysed or attached, by reason."""
    rows: dict[str, Row]
    """What the kernel side has counted by now."""
    announcements_lost: int


@dataclass(frozen=True, slots=True)
class Ended:
    """What the kernel side counted, when all is over."""

    rows: dict[str, Row]
    announcements_lost: int


class Capture:
    """One capture, with its signals and, after ``--``, its COMMAND."""

    def __init__(self, config: Config, log: Log, offset_ns: int) -> None:
        self._config = config
        self._log = log
        self._offset_ns = offset_ns
        self._sent_files = SentFiles()
        self._stop = False
        self._reopen = False
        self._discovery: Discovery | None = None
        self._source: KernelSource | None = None
        self._notices_lost = 0
        self._poll_ns = 0
        self._reasons: dict[int, tuple[str, str]] = {}
        """Processes with TLS that is not read → name and reason, asked while they live."""
        self._child: subprocess.Popen[bytes] | None = None
        self.surroundings = Surroundings(config)

    def _on_stop(self, signum: int, _frame: FrameType | None) -> None:
        if self._stop:
            os._exit(128 + signum)  # the second one: at once
        self._stop = True

    def _on_hangup(self, _signum: int, _frame: FrameType | None) -> None:
        self._reopen = True

    def run(self, consumer: Consumer) -> Ended:
        config = self._config
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_hangup)
        filters = make_filters(config)
        if config.command:
            self._child = start_stopped(config.command)
            filters = replace(filters, pids=(*filters.pids, self._child.pid))
        try:
            if config.tls:
                # Children begin with COMMAND; those of what runs already are seen to begin.
                only = frozenset(filters.pids) if config.pid and self._child is None else None
                self._discovery = Discovery(analyse, self._attach_file, self._forget_file, only=only)
                self._discovery.prepare()
            self.surroundings.begin()
            source = KernelSource(
                self.surroundings.filters(filters),
                tls=config.tls,
                tally=DURATION_BOUNDS_NS if config.numbers_only or config.max_cpu is not None else (),
                is_budgeted=config.max_cpu is not None,
            )
            return self._run(source, consumer)
        except BaseException:
            if self._child is not None:
                self._child.kill()
                self._child.wait()
            raise
        finally:
            self.surroundings.close()

    def _run(self, source: KernelSource, consumer: Consumer) -> Ended:
        with contextlib.suppress(OSError):
            os.nice(NICE)
        prepare_interpreter()
        self._source = source
        discovery = self._discovery
        try:
            source.attach()
            self.surroundings.attach(source.watch_pid)
            if discovery is not None:
                discovery.start()
                if discovery.descriptor >= 0:
                    source.wake_for(discovery.descriptor)
                self._settle(discovery)
                give_back_memory()
            self._log.ready(self._attached(source))
            notify_systemd("READY=1")
            if self._child is not None:
                self._child.send_signal(signal.SIGCONT)
            try:
                self.loop(source, consumer)
            except OutputClosed:
                discard_stdout()
            source.detach()
            notify_systemd("STOPPING=1")
            with contextlib.suppress(OutputClosed):
                self.end(source, consumer)
            for pid, count in consumer.unread().items():
                if pid in self._reasons:
                    name, reason = self._reasons[pid]
                    if discovery is not None and process_name(pid) == name:  # it lives: more may be known by now
                        reason = why_unread(pid, discovery.describe(pid))
                    connections = "1 TLS connection" if count == 1 else f"{count} TLS connections"
                    self._log.warn(f"not read: {connections} of process {pid} ({name}): {reason}")
        finally:
            if discovery is not None:
                discovery.close()
            rows = source.ledger()
            lost = source.announcements_lost()
            source.close()
        for problem in self.surroundings.problems():
            self._log.warn(problem)
        if rows["lost"].bytes or lost:
            self._log.warn(
                f"lost: the ring was full for {rows['lost'].calls} calls ({rows['lost'].bytes} bytes) "
                f"and {lost} announcements"
            )
        return Ended(rows, lost)

    def attached(self) -> Attached | None:
        """For metrics, within a round."""
        source, discovery = self._source, self._discovery
        if source is None:
            return None
        probes = {"tracepoint": len(source.probes())}
        files, failures = 0, {}
        if discovery is not None:
            counts = discovery.counts()
            probes["uprobe"], files, failures = counts.attached_probes, counts.attached_files, dict(counts.failures)
        return Attached(probes, files, failures, source.ledger(), source.announcements_lost())

    def tallied(self, now_ns: int) -> tuple[list[Tally], list[tuple[Asker, int]]]:
        """What the kernel side has added up since the last call; within a round, or at the end."""
        return ([], []) if self._source is None else self._source.tallied(now_ns)

    def _attach_file(self, path: str, finding: Finding) -> FileProbes:
        assert self._source is not None
        return self._source.attach_file(path, finding)

    def _forget_file(self, device: int, inode: int) -> None:
        assert self._source is not None
        self._source.forget_file(device, inode)

    def _settle(self, discovery: Discovery) -> None:
        until_ns = monotonic_ns() + SETTLE_NS
        while not self._stop and monotonic_ns() < until_ns:
            discovery.poll()
            if discovery.settled:
                return
            time.sleep(0.002)

    def _attached(self, source: KernelSource) -> str:
        """For the line `ready`."""
        text = f"{len(source.probes())} probes attached: {', '.join(source.probes())}"
        if self._discovery is not None:
            counts = self._discovery.counts()
            text += f"; {counts.attached_probes} in {counts.attached_files} TLS libraries"
        return text

    def status(self) -> int:
        """The exit status: COMMAND's, once it has ended; it is ended when we were told to end."""
        child = self._child
        if child is None:
            return ExitCode.OK
        status = child.wait() if child.poll() is None and not self._stop else child.poll()
        if status is None:
            child.terminate()
            status = child.wait()
        return status if status >= 0 else 128 - status

    def loop(self, source: Source, consumer: Consumer) -> None:
        start_ns = monotonic_ns()
        deadline = None if self._config.duration is None else start_ns + int(self._config.duration * 1e9)
        housekeeping_ns = start_ns + HOUSEKEEPING_NS
        drained = 0
        while not self._stop:
            changed = source.wait(DRAIN_SECONDS if drained < FLOOD_BYTES else FLOOD_DRAIN_SECONDS)
            now_ns = monotonic_ns()
            drained = self._round(source, consumer, now_ns)
            self._attend(source, now_ns, changed=changed)
            if self._reopen:
                self._reopen = False
                consumer.reopen()
            if now_ns >= housekeeping_ns:
                housekeeping_ns = now_ns + HOUSEKEEPING_NS
                self._keep_house(source, consumer, now_ns)
            if consumer.done or (deadline is not None and now_ns >= deadline):
                return
            if self._child is not None and self._child.poll() is not None:
                return

    def _attend(self, source: Source, now_ns: int, *, changed: bool) -> None:
        """What processes have begun or ended to use; `changed`: a file with probes was written to."""
        notices = source.notices()
        self.surroundings.attend(notices)
        discovery = self._discovery
        if discovery is None:
            return
        discovery.attend(notices)
        if changed or notices or not discovery.settled or now_ns >= self._poll_ns:
            self._poll_ns = now_ns + POLL_NS
            discovery.poll()

    def end(self, source: Source, consumer: Consumer) -> None:
        """The probes are gone: what is left in the ring, then what is left in hand."""
        now_ns = monotonic_ns()
        self._round(source, consumer, now_ns, to_the_end=True)
        self._keep_house(source, consumer, now_ns)
        consumer.end(now_ns)

    def _round(self, source: Source, consumer: Consumer, now_ns: int, *, to_the_end: bool = False) -> int:
        """What is in the ring now; returns how many bytes that were."""
        drained = 0
        self._sent_file_bytes = consumer.sent_file_bytes
        while batch := source.read():
            if wire.FILE_MAGIC in batch:
                used = wire.whole_length(batch)
                whole = wire.resolve_files(batch[:used], self._read_sent)
                consumer.batch(whole, now_ns)
            else:
                used = consumer.batch(batch, now_ns)
            source.advance(used)
            drained += used
            for command in consumer.commands():
                source.command(command)
            if not used or (len(batch) < TRICKLE_BYTES and not to_the_end):
                break  # nothing used: the kernel is writing this very record
        consumer.end_round(now_ns)
        for command in consumer.commands():
            source.command(command)
        return drained

    def _read_sent(self, file: wire.FileSource, length: int, time_ns: int) -> bytes:
        return self._sent_files.read(file, min(length, self._sent_file_bytes), time_ns + self._offset_ns)

    def _keep_house(self, source: Source, consumer: Consumer, now_ns: int) -> None:
        notify_systemd("WATCHDOG=1")
        if self._discovery is not None:
            lost = source.tls_counts()["notices_lost"]
            if lost > self._notices_lost:
                self._notices_lost = lost
                self._discovery.events_lost()
            for pid in consumer.unread():
                if pid not in self._reasons and len(self._reasons) < REASONS_MAX:
                    self._reasons[pid] = (process_name(pid), why_unread(pid, self._discovery.describe(pid)))
        source.refresh_executables()
        self._sent_files.expire(now_ns + self._offset_ns)
        owners = consumer.unix_owners()
        if owners:
            consumer.forget(gone_unix_sockets(owners), now_ns)
        offset = wall_offset_ns()
        if abs(offset - self._offset_ns) > CLOCK_STEP_NS:
            self._offset_ns = offset
            consumer.set_wall_offset(offset, now_ns)


def prepare_interpreter() -> None:
    """For a process that makes and drops objects at a high rate: nothing that lives now is garbage, and what comes goes by
    reference count; buffers of some megabytes are kept, not mapped and unmapped (a page fault for every 4 KiB) each time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    libc = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):  # musl has no mallopt
        libc.mallopt(_M_MMAP_THRESHOLD, 64 * 1024 * 1024)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 * 1024 * 1024)


def give_back_memory() -> None:
    """What looking into large binaries has left behind, 20 MiB, which `prepare_interpreter` would have kept."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def make_filters(config: Config) -> Filters:
    """With a pid come its descendants that live already; later ones are followed in the kernel."""

    def with_descendants(pids: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(pid for given in pids for pid in (given, *descendants(given))))

    for pid in config.pid:
        if not Path(f"/proc/{pid}").exists():
            raise CommandError(f"--pid {pid}: there is no such process", ExitCode.USAGE)
    return Filters(
        pids=with_descendants(config.pid),
        exclude_pids=with_descendants(config.exclude_pid),
        comms=config.comm,
        exclude_comms=config.exclude_comm,
        executables=config.exe,
        exclude_executables=config.exclude_exe,
        ports=config.port,
        exclude_ports=config.exclude_port,
    )


def notify_systemd(state: str) -> None:
    """sd_notify(3), where systemd asks for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        if address.startswith("@"):
            address = "\0" + address[1:]
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(state.encode(), address)


def start_stopped(command: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start COMMAND so that it can be watched from its first instruction on: a shell that stops itself, and on SIGCONT
    becomes COMMAND.
    """
    try:
        child = subprocess.Popen(["/bin/sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *command])
    except (OSError, ValueError) as error:
        raise CommandError(f"{command[0]}: cannot be started: {error}", ExitCode.USAGE) from error
    os.waitpid(child.pid, os.WUNTRACED)
    return child
