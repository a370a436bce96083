"""Who captured what, and when: one line for each start and end of the agent, in a file of its own (`--audit FILE`).

Contract: each line is a JSON object whose `hash` is the SHA-256 of all that is before it in the line, `previous` included,
which is the hash of the line before. So a line that was changed, taken out or put in breaks the chain, which `Audit` looks
through when it opens the file, and warns of. That the newest lines were cut off only shows to whom has their hash elsewhere:
each is in the agent's own log (standard error, the journal), too.

The agent does not start where its start cannot be written down.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from netprofiler import __version__
from netprofiler.config import Config
from netprofiler.errors import CommandError, ExitCode
from netprofiler.redaction import Redactor
from netprofiler.sinks.files import mend, open_output

_HASH: Final = ',"hash":"'
_BEGINNING: Final = "0" * 64
"""`previous` of the first line."""
_NO_LOGIN: Final = 0xFFFFFFFF
"""/proc/self/loginuid of what no login has begun."""


def line_of(facts: Mapping[str, Any], previous: str) -> tuple[str, str]:
    """Facts → the line, without its end, and its hash."""
    text = json.dumps({**facts, "previous": previous}, ensure_ascii=False, separators=(",", ":"))[:-1]
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return f'{text}{_HASH}{digest}"}}', digest


def broken_line(lines: Iterator[str]) -> tuple[int | None, str]:
    """The number of the first line that does not fit the one before it, or None; and the hash to go on from."""
    previous = _BEGINNING
    broken = None
    for number, line in enumerate(lines, 1):
        text, found, end = line.rstrip("\n").rpartition(_HASH)
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        fits = found and end == f'{digest}"}}' and text.endswith(f',"previous":"{previous}"')
        if not fits and broken is None:
            broken = number
        previous = end[:64] if found else previous
    return broken, previous


def who() -> dict[str, Any]:
    """Of this process: its user, who logged in, and who called sudo."""
    facts: dict[str, Any] = {"uid": os.getuid(), "user": _name(os.getuid())}
    with contextlib.suppress(OSError, ValueError):
        login = int(Path("/proc/self/loginuid").read_text())
        if login != _NO_LOGIN:
            facts |= {"login_uid": login, "login": _name(login)}
    if os.environ.get("SUDO_USER"):
        facts["sudo_user"] = os.environ["SUDO_USER"]
    return facts


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


class Audit:
    """One file, kept open; CommandError where it cannot be written."""

    def __init__(self, path: str, warn: Callable[[str], None]) -> None:
        self._path = path
        self._descriptor = open_output(path, option="--audit")
        mend(self._descriptor)
        with open(self._descriptor, encoding="utf-8", errors="surrogateescape", closefd=False) as file:
            file.seek(0)
            broken, self._previous = broken_line(file)
        if broken is not None:
            warn(f"--audit {path}: line {broken} is not what was written: it, or what was before it, was changed")

    def add(self, facts: Mapping[str, Any]) -> str:
        """One line; returns its hash."""
        line, digest = line_of({"time": datetime.now(UTC).isoformat().replace("+00:00", "Z"), **facts}, self._previous)
        data = f"{line}\n".encode("utf-8", "surrogateescape")
        try:
            if os.write(self._descriptor, data) != len(data):
                raise OSError(0, "not all of a line was written")
        except OSError as error:
            raise CommandError(f"--audit {self._path}: {error.strerror}", ExitCode.FAILED) from error
        self._previous = digest
        return digest

    def close(self) -> None:
        os.close(self._descriptor)


def options_given(config: Config) -> dict[str, Any]:
    """What is not as it is by itself. `redactor`'s work: a COMMAND may hold secrets."""
    usual = asdict(Config())
    given = {name: value for name, value in asdict(config).items() if value != usual[name]}
    if config.command:
        given["command"] = Redactor(config.redact).command_line(" ".join(config.command))[0]
    return given


@contextlib.contextmanager
def audited(config: Config, verb: str, warn: Callable[[str], None]) -> Iterator[None]:
    """A capture, with a line before and one after it; nothing without `--audit`."""
    if config.audit is None:
        yield
        return
    audit = Audit(config.audit, warn)
    try:
        common = {"pid": os.getpid(), "host": socket.gethostname()}
        facts = {"event": "start", "verb": verb, **who(), **common, "version": __version__}
        warn(f"audit: started, {audit.add({**facts, 'options': options_given(config)})}")
        end = "failed"
        try:
            yield
            end = "ended"
        finally:
            with contextlib.suppress(CommandError):  # a full disk is no reason to fail at the end
                warn(f"audit: {end}, {audit.add({'event': end, **common})}")
    finally:
        audit.close()
