"""`netprofiler run`: captures this host's HTTP until told to stop."""

from __future__ import annotations

import argparse

from netprofiler.commands.capture import Capture
from netprofiler.commands.log import Log
from netprofiler.commands.outputs import Outputs, check_ledger_path, report_ledger
from netprofiler.config import Config, add_options, make_config
from netprofiler.connection import Command
from netprofiler.pipeline import Pipeline
from netprofiler.sources.kernel import check_host, wall_offset_ns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For the command line."""
    add_options(parser, capture=True)


def execute(arguments: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Returns the exit status."""
    config = make_config(arguments, command=command)
    log = Log(config)
    check_host()
    check_ledger_path(config)
    offset_ns = wall_offset_ns()
    pipeline = Pipeline(body_limit=config.body_limit, stream_interval_ns=int(config.stream_interval * 1_000_000_000))
    outputs = Outputs(config, pipeline.counters, offset_ns, log.warn)
    capture = Capture(config, log, offset_ns)
    try:
        ended = capture.run(Live(config, pipeline, outputs))
    finally:
        outputs.close()
    report_ledger(config, pipeline.counters, ended.rows, log.warn)
    return capture.status()


class Live:
    """The consumer of a capture that shows it: pipeline and outputs."""

    def __init__(self, config: Config, pipeline: Pipeline, outputs: Outputs) -> None:
        self.sent_file_bytes = config.body_limit
        self._pipeline = pipeline
        self._outputs = outputs

    @property
    def done(self) -> bool:
        return self._outputs.done

    def batch(self, batch: bytes, now_ns: int) -> int:  # noqa: ARG002 - only a recorder writes times down
        used = self._pipeline.feed(batch)
        self._deliver()
        return used

    def commands(self) -> list[Command]:
        return self._pipeline.take_commands()

    def end_round(self, now_ns: int) -> None:
        self._pipeline.tick(now_ns)
        self._deliver()

    def unix_owners(self) -> dict[int, int]:
        return self._pipeline.unix_owners

    def unread(self) -> dict[int, int]:
        return self._pipeline.unread

    def forget(self, inodes: list[int], now_ns: int) -> None:
        for inode in inodes:
            self._pipeline.forget(inode, now_ns)

    def set_wall_offset(self, offset_ns: int, now_ns: int) -> None:  # noqa: ARG002 - as above
        self._outputs.set_wall_offset(offset_ns)

    def reopen(self) -> None:
        self._outputs.reopen()

    def end(self, now_ns: int) -> None:
        self._pipeline.drain(now_ns)
        self._deliver()

    def _deliver(self) -> None:
        messages = self._pipeline.take_messages()
        if messages:
            self._outputs.emit(messages)
