"""`netprofiler run`: captures this host's HTTP until told to stop."""

from __future__ import annotations

import argparse
import time
from typing import Final

from netprofiler.audit import audited
from netprofiler.budget import Budget
from netprofiler.commands.capture import Capture
from netprofiler.commands.log import Log
from netprofiler.commands.metrics import Metered, start_metrics
from netprofiler.commands.outputs import Outputs, check_ledger_path, report_ledger, written_files
from netprofiler.commands.surroundings import Surroundings
from netprofiler.config import Config, add_options, make_config
from netprofiler.connection import Command
from netprofiler.containers.places import Places
from netprofiler.environment import ProfileWriter
from netprofiler.exchange import Message
from netprofiler.pipeline import Pipeline
from netprofiler.privileges import settle, shut
from netprofiler.redaction import Redactor
from netprofiler.sources.kernel import check_host, wall_offset_ns

BUDGET_NS: Final = 500_000_000
"""The agent looks this often whether it is within `--max-cpu`."""


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
    pipeline = Pipeline(
        body_limit=config.body_limit,
        stream_interval_ns=int(config.stream_interval * 1_000_000_000),
        gives_back=config.numbers_only,
        has_budget=config.max_cpu is not None,
    )
    budget = None if config.max_cpu is None else Budget(config.max_cpu)
    capture = Capture(config, log, offset_ns)
    surroundings = capture.surroundings
    with audited(config, "run", log.warn):
        settle(config, written_files(config), log.warn)
        outputs = Outputs(config, pipeline.counters, offset_ns, log.warn)
        metered = start_metrics(config, capture, pipeline, log.warn, surroundings.containers.name_of)
        try:
            profiles = _profiles(config, surroundings, log)
            shut(config, log.warn)
            ended = capture.run(Live(config, pipeline, outputs, surroundings, profiles, metered, budget))
        finally:
            if metered is not None:
                metered.close()
            outputs.close()
    report_ledger(config, pipeline.counters, ended.rows, log.warn)
    return capture.status()


def _profiles(config: Config, surroundings: Surroundings, log: Log) -> ProfileWriter | None:
    """The output of --env-output."""
    if config.env_output is None:
        return None
    redactor = Redactor(config.redact, enabled=not config.no_redact)
    return ProfileWriter(
        config.env_output, config.env_prefix, surroundings.opt_in, surroundings.environments, redactor, log.warn
    )


class Live:
    """The consumer of a capture that shows it: pipeline, places, profiles and outputs."""

    def __init__(
        self,
        config: Config,
        pipeline: Pipeline,
        outputs: Outputs,
        surroundings: Surroundings | None = None,
        profiles: ProfileWriter | None = None,
        metered: Metered | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._containers = None if surroundings is None else surroundings.containers
        self._places: Places | None = None
        self._profiles = profiles
        self.sent_file_bytes = config.body_limit
        self._pipeline = pipeline
        self._outputs = outputs
        self._metered = metered
        self._budget = budget
        self._budget_ns = 0

    @property
    def done(self) -> bool:
        return self._outputs.done

    def batch(self, batch: bytes, now_ns: int) -> int:
        if self._places is None and self._containers is not None and self._containers.active:
            self._places = Places(self._containers, self._pipeline.counters)
            self._pipeline.opened = []
        used = self._pipeline.feed(batch)
        if self._metered is not None:
            self._metered.read(used)
        self._deliver(now_ns)
        return used

    def commands(self) -> list[Command]:
        return self._pipeline.take_commands()

    def end_round(self, now_ns: int) -> None:
        if self._budget is not None and now_ns >= self._budget_ns:
            self._budget_ns = now_ns + BUDGET_NS
            self._pipeline.keep(self._budget.update(now_ns, time.process_time_ns()))
        self._pipeline.tick(now_ns)
        self._deliver(now_ns)
        if self._metered is not None:
            self._metered.end_round(now_ns)

    def unix_owners(self) -> dict[int, int]:
        return self._pipeline.unix_owners

    def unread(self) -> dict[int, int]:
        return self._pipeline.unread

    def forget(self, inodes: list[int], now_ns: int) -> None:
        for inode in inodes:
            self._pipeline.forget(inode, now_ns)

    def set_wall_offset(self, offset_ns: int, now_ns: int) -> None:  # noqa: ARG002 - only a recorder writes times down
        self._outputs.set_wall_offset(offset_ns)

    def reopen(self) -> None:
        self._outputs.reopen()

    def end(self, now_ns: int) -> None:
        self._pipeline.drain(now_ns)
        self._deliver(now_ns)
        if self._metered is not None:
            self._metered.read_tallies(now_ns)
        if self._places is not None:
            self._emit(self._places.drain())
        if self._profiles is not None:
            self._profiles.close()

    def _deliver(self, now_ns: int) -> None:
        messages = self._pipeline.take_messages()
        places = self._places
        if places is not None:
            if self._pipeline.opened:
                places.opened(self._pipeline.opened)
                self._pipeline.opened = []
            if messages or places.waiting:
                messages = places.take(messages, now_ns)
        if messages:
            self._emit(messages)

    def _emit(self, messages: list[Message]) -> None:
        if self._profiles is not None:
            for message in messages:
                if message.process is not None:
                    self._profiles.tell(message.process)
        if messages and self._metered is not None:
            self._metered.metrics.emit(messages)
        if messages:
            self._outputs.emit(messages)
