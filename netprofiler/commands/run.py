"""`netprofiler run`: captures this host's HTTP until told to stop."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
from types import FrameType
from typing import Final

from netprofiler import wire
from netprofiler.commands.log import Log
from netprofiler.commands.outputs import Outputs, check_ledger_path, report_ledger
from netprofiler.config import Config, add_options, make_config
from netprofiler.errors import CommandError, ExitCode
from netprofiler.pipeline import Pipeline
from netprofiler.sinks.base import OutputClosed
from netprofiler.sources.kernel import Filters, KernelSource, check_host, monotonic_ns, wall_offset_ns
from netprofiler.sources.processes import descendants, gone_unix_sockets, read_sent_file

DRAIN_SECONDS: Final = 0.025
"""The ring is read this often. Rarer costs less CPU and shows records later; the ring holds much more than this."""
HOUSEKEEPING_NS: Final = 1_000_000_000
NICE: Final = -10
"""The agent competes with what it watches: it needs its share promptly, or the ring fills."""
CLOCK_STEP_NS: Final = 1_000_000
"""A wall clock that has moved by more than this against the monotonic one was set: the offset follows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, capture=True)


def execute(arguments: argparse.Namespace, command: tuple[str, ...]) -> int:
    config = make_config(arguments, command=command)
    return Run(config).run()


def make_filters(config: Config) -> Filters:
    """With a pid come its descendants that live already; later ones are followed in the kernel."""

    def with_descendants(pids: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(pid for given in pids for pid in (given, *descendants(given))))

    for pid in config.pid:
        if not os.path.exists(f"/proc/{pid}"):
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


class Run:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._log = Log(config)
        self._stop = False
        self._reopen = False
        self._child: subprocess.Popen[bytes] | None = None

    def _on_stop(self, signum: int, frame: FrameType | None) -> None:
        if self._stop:
            os._exit(128 + signum)  # the second one: at once
        self._stop = True

    def _on_hangup(self, signum: int, frame: FrameType | None) -> None:
        self._reopen = True

    def run(self) -> int:
        config = self._config
        check_host()
        check_ledger_path(config)
        self._offset_ns = wall_offset_ns()
        self._pipeline = Pipeline(
            body_limit=config.body_limit, stream_interval_ns=int(config.stream_interval * 1_000_000_000)
        )
        self._outputs = Outputs(config, self._pipeline.counters, self._offset_ns, self._log.warn)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_hangup)
        release: int | None = None
        filters = make_filters(config)
        if config.command:
            self._child, release = start_stopped(config.command)
            filters = make_filters(config)
            filters = Filters(**{**_as_dict(filters), "pids": (*filters.pids, self._child.pid)})
        source = KernelSource(filters)
        with contextlib.suppress(OSError):
            os.nice(NICE)
        try:
            source.attach()
            self._log.ready(f"{len(source.probes())} probes attached: {', '.join(source.probes())}")
            notify_systemd("READY=1")
            if release is not None:
                os.write(release, b"x")
                os.close(release)
            try:
                self._capture(source)
            except OutputClosed:
                self._discard_stdout()
            source.detach()
            notify_systemd("STOPPING=1")
            with contextlib.suppress(OutputClosed):
                self._end(source)
        finally:
            kernel = source.ledger()
            lost = source.announcements_lost()
            source.close()
            self._outputs.close()
        if kernel["lost"].bytes or lost:
            self._log.warn(
                f"lost: the ring was full for {kernel['lost'].calls} calls ({kernel['lost'].bytes} bytes) "
                f"and {lost} announcements"
            )
        report_ledger(config, self._pipeline.counters, kernel, self._log.warn)
        if self._child is not None:
            status = self._child.wait() if self._child.poll() is None and not self._stop else self._child.poll()
            if status is None:
                self._child.terminate()
                status = self._child.wait()
            return status if status >= 0 else 128 - status
        return 0

    def _capture(self, source: KernelSource) -> None:
        start_ns = monotonic_ns()
        deadline = None if self._config.duration is None else start_ns + int(self._config.duration * 1e9)
        housekeeping_ns = start_ns + HOUSEKEEPING_NS
        while not self._stop:
            source.wait(DRAIN_SECONDS)
            now_ns = monotonic_ns()
            self._round(source, now_ns)
            if self._reopen:
                self._reopen = False
                self._outputs.reopen()
            if now_ns >= housekeeping_ns:
                housekeeping_ns = now_ns + HOUSEKEEPING_NS
                self._keep_house(source, now_ns)
            if self._outputs.done or (deadline is not None and now_ns >= deadline):
                return
            if self._child is not None and self._child.poll() is not None:
                return

    def _round(self, source: KernelSource, now_ns: int) -> None:
        """What is in the ring now, to its end."""
        pipeline = self._pipeline
        while batch := source.read():
            if wire.FILE_MAGIC in batch:
                used = wire.whole_length(batch)
                limit = self._config.body_limit
                batch = wire.resolve_files(
                    batch[:used], lambda file, length: read_sent_file(file, length, limit) if limit else b""
                )
                pipeline.feed(batch)
            else:
                used = pipeline.feed(batch)
            source.advance(used)
            self._deliver(source)
            if not used:
                break  # the kernel is writing this very record
        pipeline.tick(now_ns)
        self._deliver(source)

    def _deliver(self, source: KernelSource) -> None:
        for command in self._pipeline.take_commands():
            source.command(command)
        messages = self._pipeline.take_messages()
        if messages:
            self._outputs.emit(messages)

    def _keep_house(self, source: KernelSource, now_ns: int) -> None:
        source.refresh_executables()
        pipeline = self._pipeline
        if pipeline.unix_owners:
            for inode in gone_unix_sockets(pipeline.unix_owners):
                pipeline.forget(inode, now_ns)
        offset = wall_offset_ns()
        if abs(offset - self._offset_ns) > CLOCK_STEP_NS:
            self._offset_ns = offset
            self._outputs.set_wall_offset(offset)

    def _end(self, source: KernelSource) -> None:
        """The probes are gone: what is left in the ring, then what is left in hand."""
        now_ns = monotonic_ns()
        self._round(source, now_ns)
        self._keep_house(source, now_ns)
        self._pipeline.drain(now_ns)
        self._deliver(source)

    def _discard_stdout(self) -> None:
        """Nobody reads it: the interpreter must not complain when it flushes at exit."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)


def _as_dict(filters: Filters) -> dict[str, tuple[object, ...]]:
    return {name: getattr(filters, name) for name in Filters.__slots__}


def start_stopped(command: tuple[str, ...]) -> tuple[subprocess.Popen[bytes], int]:
    """Start COMMAND behind a gate: it is executed when a byte is written to the returned descriptor, so that it can be
    watched from its first instruction on. The gate is a shell that reads one line and then becomes COMMAND."""
    gate, release = os.pipe()
    try:
        child = subprocess.Popen(
            ["/bin/sh", "-c", f'read _ <&{gate}; exec {gate}<&-; exec "$@"', "sh", *command],
            pass_fds=(gate,),
        )
    except OSError as error:
        raise CommandError(f"{command[0]}: {error.strerror}", ExitCode.USAGE) from error
    os.close(gate)
    return child, release


