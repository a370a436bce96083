"""`netprofiler replay FILE…`: recordings and packet captures through the pipeline, to the same outputs as live.

The same file gives the same lines each time: what the pipeline is told, times included, comes from the file alone. Each
file has a pipeline of its own, as sockets of different hosts and times have nothing to do with each other; outputs and
ledger are one.
"""

from __future__ import annotations

import argparse
import contextlib

from netprofiler import wire
from netprofiler.commands.log import Log
from netprofiler.commands.outputs import Outputs, check_ledger_path, discard_stdout, report_ledger
from netprofiler.config import Config, add_options, make_config
from netprofiler.counters import Counters, Row
from netprofiler.errors import CommandError, ExitCode
from netprofiler.pipeline import Pipeline
from netprofiler.sinks.base import OutputClosed
from netprofiler.sources.base import Batch, ClockSet, DamagedCaptureError, End, Rounds, StoredCapture
from netprofiler.sources.files import open_capture
from netprofiler.sources.selection import Selection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For the command line."""
    parser.add_argument("files", metavar="FILE", nargs="+", help="a recording, .pcap or .pcapng; known by its content")
    add_options(parser, capture=False)


def execute(arguments: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Returns the exit status."""
    config = make_config(arguments)
    check_ledger_path(config)
    if config.exe or config.exclude_exe:
        raise CommandError(
            "--exe, --exclude-exe: a recording does not say which executables ran",
            ExitCode.USAGE,
            remedy="use --comm or --pid",
        )
    return Replay(config, Log(config)).run(arguments.files)


class Replay:
    """One replay, of one file or more."""

    def __init__(self, config: Config, log: Log) -> None:
        self._config = config
        self._log = log
        self._counters = Counters()
        self._rows: dict[str, Row] = {}

    def run(self, paths: list[str]) -> int:
        config = self._config
        damaged: list[DamagedCaptureError] = []
        with contextlib.ExitStack() as stack:
            # All are looked at before anything is written.
            captures = []
            for path in paths:
                captures.append(open_capture(path))
                stack.callback(captures[-1].close)
            for capture in captures:
                if Selection(config, self._counters).of_processes and not capture.knows_processes:
                    raise CommandError(
                        f"{capture.path}: a packet capture knows no processes",
                        ExitCode.USAGE,
                        remedy="filter by --port",
                    )
            outputs = Outputs(config, self._counters, captures[0].wall_offset_ns, self._log.warn)
            stack.callback(outputs.close)
            try:
                for capture in captures:
                    self._log.detail(f"{capture.path}: {capture.description}")
                    outputs.set_wall_offset(capture.wall_offset_ns)
                    try:
                        self._replay(capture, outputs)
                    except DamagedCaptureError as error:
                        damaged.append(error)
                    for note in capture.notes():
                        self._log.warn(note)
                    if outputs.done:
                        break
            except OutputClosed:
                discard_stdout()
        report_ledger(config, self._counters, self._rows, self._log.warn)
        for each in damaged[:-1]:
            self._log.warn(str(each))
        if damaged:
            raise damaged[-1]
        return ExitCode.OK

    def _replay(self, capture: StoredCapture, outputs: Outputs) -> None:
        """One file to its end, or to where it is damaged: what was whole before is shown."""
        config = self._config
        counters = self._counters
        pipeline = Pipeline(
            body_limit=config.body_limit,
            stream_interval_ns=int(config.stream_interval * 1_000_000_000),
            counters=counters,
        )
        before = Row(counters.delivered.calls, counters.delivered.bytes)
        selection = Selection(config, counters)
        rows: dict[str, Row] | None = None
        now_ns = 0

        def deliver() -> None:
            pipeline.take_commands()  # the kernel side is not here
            messages = pipeline.take_messages()
            if messages:
                outputs.emit(messages)

        try:
            for frame in capture.frames():
                match frame:
                    case Batch():
                        now_ns = frame.time_ns
                        pipeline.feed(selection.apply(frame.data) if selection else frame.data)
                        deliver()
                    case Rounds():
                        for now_ns in frame.times_ns:
                            pipeline.tick(now_ns)
                            deliver()
                    case ClockSet():
                        outputs.set_wall_offset(frame.wall_offset_ns)
                    case End():
                        now_ns = frame.time_ns
                        rows = frame.rows
                        if frame.announcements_lost:
                            self._log.warn(f"{capture.path}: {frame.announcements_lost} announcements were lost")
                if outputs.done:
                    break
        except wire.MalformedRecord as error:
            raise DamagedCaptureError(f"{capture.path}: holds {error}", remedy="what is before it is shown") from error
        finally:
            pipeline.drain(now_ns)
            deliver()
            delivered = Row(counters.delivered.calls - before.calls, counters.delivered.bytes - before.bytes)
            self._add_rows(rows or {"total": delivered, "delivered": delivered})

    def _add_rows(self, rows: dict[str, Row]) -> None:
        for name, row in rows.items():
            sum_ = self._rows.setdefault(name, Row())
            sum_.calls += row.calls
            sum_.bytes += row.bytes
