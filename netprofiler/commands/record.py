"""`netprofiler record FILE`: writes what the kernel side sends to a file, and parses none of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

from netprofiler import wire
from netprofiler.audit import audited
from netprofiler.commands.capture import Capture, Ended
from netprofiler.commands.log import Log
from netprofiler.commands.outputs import check_ledger_path, report_ledger, written_files
from netprofiler.config import add_options, make_config
from netprofiler.connection import Command
from netprofiler.counters import Counters, Row
from netprofiler.errors import CommandError
from netprofiler.privileges import settle, shut
from netprofiler.sources.kernel import check_host, wall_offset_ns
from netprofiler.sources.recording import RecordingWriter

SENT_FILE_BYTES: Final = 16 * 1024
"""Of a file that was sent (sendfile): a replay with a larger --body-limit shows no more of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For the command line."""
    parser.add_argument(
        "file", metavar="FILE", help="made 0600; an older recording is overwritten, other files are not"
    )
    add_options(parser, capture=True, outputs=False)


def execute(arguments: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Returns the exit status."""
    config = make_config(arguments, command=command)
    log = Log(config)
    check_host()
    check_ledger_path(config)
    offset_ns = wall_offset_ns()
    recorder = Recorder(RecordingWriter(arguments.file, wall_offset_ns=offset_ns), log.warn)
    capture = Capture(config, log, offset_ns)
    try:
        with audited(config, "record", log.warn):
            settle(config, [arguments.file, *written_files(config)], log.warn)
            shut(config, log.warn)
            ended = capture.run(recorder)
        recorder.finish(ended)
    finally:
        recorder.close()
    # What lies in the recording is nowhere else yet: a replay will tell what it is.
    report_ledger(config, Counters(), ended.rows, log.warn)
    return capture.status()


class Recorder:
    """The consumer of a capture that writes it down.

    A disk that is full is reported once and survived: what could not be written is lost, and is so in the ledger.
    """

    sent_file_bytes = SENT_FILE_BYTES

    done = False

    def __init__(self, writer: RecordingWriter, warn: Callable[[str], None]) -> None:
        self._writer = writer
        self._warn = warn
        self._warned = False
        self._unix: dict[int, int] = {}
        self._unwritten = Row()
        self._end_ns = 0

    def batch(self, batch: bytes, now_ns: int) -> int:
        used, unix = wire.survey(batch)
        self._unix.update(unix)
        self._batch(batch if used == len(batch) else batch[:used], now_ns)
        return used

    def _batch(self, batch: bytes, now_ns: int) -> None:
        if batch and not self._try(lambda: self._writer.batch(now_ns, batch)):
            for record in wire.records(batch):
                if record[0] == wire.KIND_DATA:
                    event = wire.parse_data(record)
                    self._unwritten.bytes += event.length
                    self._unwritten.calls += event.flags & wire.DATA_FIRST

    def _try(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except OSError as error:
            if not self._warned:
                self._warned = True
                self._warn(f"{self._writer.path}: {error.strerror}: what is captured now is lost")
            return False
        self._warned = False
        return True

    def commands(self) -> list[Command]:
        return []

    def end_round(self, now_ns: int) -> None:
        self._try(lambda: self._writer.round(now_ns))

    def unix_owners(self) -> dict[int, int]:
        return self._unix

    def unread(self) -> dict[int, int]:
        return {}  # a replay tells

    def forget(self, inodes: list[int], now_ns: int) -> None:
        """The end of a UNIX socket is made a record, as the kernel side has none."""
        records = []
        for inode in inodes:
            self._unix.pop(inode, None)
            records.append(wire.build_closed(wire.ConnectionClosed(now_ns, inode, wire.BOTH, True, 0)))
        self._batch(b"".join(map(wire.frame, records)), now_ns)

    def set_wall_offset(self, offset_ns: int, now_ns: int) -> None:
        self._try(lambda: self._writer.clock(now_ns, offset_ns))

    def reopen(self) -> None:
        """A recording is one file."""

    def end(self, now_ns: int) -> None:
        self._end_ns = now_ns

    def finish(self, ended: Ended) -> None:
        """The last frame: what the kernel side counted."""
        rows = ended.rows
        for unit in ("calls", "bytes"):
            unwritten = getattr(self._unwritten, unit)
            setattr(rows["delivered"], unit, getattr(rows["delivered"], unit) - unwritten)
            setattr(rows["lost"], unit, getattr(rows["lost"], unit) + unwritten)
        try:
            self._writer.end(self._end_ns, rows, ended.announcements_lost)
        except OSError as error:
            raise CommandError(
                f"{self._writer.path}: {error.strerror}: the recording lacks its end", remedy="make room, record again"
            ) from error

    def close(self) -> None:
        self._writer.close()
