"""What `run` and `replay` share: which sinks a configuration asks for, the round from pipeline to sinks, the ledger."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from netprofiler.config import Config
from netprofiler.counters import Counters, Row, make_ledger
from netprofiler.errors import CommandError, ExitCode
from netprofiler.exchange import Message
from netprofiler.masking import make_mask
from netprofiler.redaction import Redactor
from netprofiler.sinks.base import Sink
from netprofiler.sinks.files import EncryptedFile, OutputFile, Rotation
from netprofiler.sinks.jsonlines import JsonLines, RecordWriter
from netprofiler.sinks.terminal import Terminal

if TYPE_CHECKING:
    from netprofiler.protobuf import Descriptors


class Outputs:
    """The sink of a configuration, or none; stops taking messages when `--count` is reached."""

    def __init__(self, config: Config, counters: Counters, wall_offset_ns: int, warn: Callable[[str], None]) -> None:
        self._counters = counters
        self._left = config.count
        self._sink: Sink | None = None
        self._may_leave_out = config.max_cpu is not None
        redactor = Redactor(config.redact, enabled=not config.no_redact)
        if config.no_redact:
            warn("--no-redact: secrets are written as they are")
        descriptors = _descriptors(config, redactor)
        if config.no_output:
            return
        if config.output is None and sys.stdout.isatty():
            self._sink = Terminal(
                sys.stdout, redactor, counters, wall_offset_ns=wall_offset_ns, mask=make_mask(config.mask)
            )
            return
        writer = RecordWriter(
            redactor,
            wall_offset_ns=wall_offset_ns,
            body_limit=config.body_limit,
            raw_payload=not config.no_raw_payload,
            descriptors=descriptors,
        )
        path = config.output or "-"
        self._sink = JsonLines(
            path, writer, counters, warn, file=_output_file(config, path, warn), mask=make_mask(config.mask)
        )

    def set_wall_offset(self, offset_ns: int) -> None:
        """The wall clock was set."""
        if self._sink is not None:
            self._sink.set_wall_offset(offset_ns)

    @property
    def done(self) -> bool:
        return self._left == 0

    def emit(self, messages: list[Message]) -> None:
        if self._left is not None:
            taken = messages[: self._left]
            self._counters.not_wanted += len(messages) - len(taken)
            self._left -= len(taken)
            messages = taken
        if self._may_leave_out:
            logged = [message for message in messages if not message.link.left_out]
            self._counters.budget += len(messages) - len(logged)
            messages = logged
        if not messages:
            return
        if self._sink is None:
            self._counters.not_wanted += len(messages)
        else:
            self._sink.emit(messages)

    def reopen(self) -> None:
        if self._sink is not None:
            self._sink.reopen()

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close()


def _output_file(config: Config, path: str, warn: Callable[[str], None]) -> OutputFile | EncryptedFile:
    """What `--rotate-…` and `--encrypt-to` make of it."""
    rotation = Rotation(config.rotate_size, config.rotate_age, config.rotate_keep, config.rotate_compression)
    if config.encrypt_to:
        return EncryptedFile(path, config.encrypt_to, rotation, warn)
    return OutputFile(path, rotation, warn)


def _descriptors(config: Config, redactor: Redactor) -> Descriptors | None:
    """Those of `--proto`, read before the capture begins; google.protobuf is imported for who asks for it."""
    if not config.proto:
        return None
    from netprofiler.protobuf import Descriptors  # noqa: PLC0415

    return Descriptors(config.proto, redactor)


def written_files(config: Config) -> list[str]:
    """What is made anew, or at the end."""
    named = (config.output, config.ledger, config.audit, config.env_output)
    return [path for path in named if path is not None and path != "-"]


def check_ledger_path(config: Config) -> None:
    """Before the work, not after it."""
    if config.ledger is not None:
        parent = os.path.dirname(os.path.abspath(config.ledger))
        if os.path.isdir(config.ledger) or os.path.islink(config.ledger):
            raise CommandError(f"--ledger {config.ledger}: is a directory or a symbolic link", ExitCode.USAGE)
        if not os.path.isdir(parent) or not os.access(parent, os.W_OK, effective_ids=True):
            raise CommandError(f"--ledger {config.ledger}: {parent} is no directory to write to", ExitCode.USAGE)


def report_ledger(
    config: Config, counters: Counters, kernel: dict[str, Row] | None, warn: Callable[[str], None]
) -> None:
    """The ledger to standard error, and to its file."""
    ledger = make_ledger(counters, kernel)
    if config.ledger is not None:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(config.ledger, flags, 0o600), "w") as file:
                json.dump(ledger, file, indent=1)
                file.write("\n")
        except OSError as error:
            warn(f"--ledger {config.ledger}: {error.strerror}")
    print(ledger_text(ledger), file=sys.stderr)


def ledger_text(ledger: dict[str, object]) -> str:
    """The ledger for a reader: one line a table, rows of 0 left out."""
    lines = ["ledger"]
    for unit, table in ledger.items():
        assert isinstance(table, dict)
        total = table["total"] if "total" in table else table["made"]
        rows = ", ".join(f"{name} {count}" for name, count in table["rows"].items() if count)
        lines.append(f"  {unit:8}{total:>14}  = {rows or '0'}")
    return "\n".join(lines)


def discard_stdout() -> None:
    """Nobody reads it: the interpreter must not complain when it flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
