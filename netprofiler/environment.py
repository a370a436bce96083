"""Environments of processes: who asks to be profiled, and the profiles that `--env-output` writes.

Contract: `OptIn.judge` decides by an environment alone. `Environments` remembers what an environment was when its process
began, because some programs overwrite it (nginx writes its title there). `ProfileWriter.tell` writes one YAML document a
process, once; what cannot be read or written is told in the document, or counted. Nothing here raises because of what a
process does; CommandError where the output cannot be opened.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from netprofiler.exchange import Process
from netprofiler.redaction import PLACEHOLDER, Redactor
from netprofiler.sinks.files import open_output
from netprofiler.sources.processes import PROC

ENVIRON_MAX: Final = 256 * 1024
"""Of one environment; execve(2) takes at most a quarter of the stack, 2 MiB, for it and the arguments."""
REMEMBERED_MAX: Final = 2048
"""Environments kept of processes that live; over it the oldest go, and are read again when they are asked for."""
TOLD_MAX: Final = 65_536
"""Processes of which it is remembered that their profile was written."""

_SECRET_NAME: Final = re.compile(
    r"pass(?:wd|word|phrase)|(?:^|_)pass(?:$|_)|pwd|secret|token|credential|private|api_?key|access_?key|(?:^|_)key(?:$|_)|(?:^|_)auth(?:$|_)"
    r"|authorization|cookie|session|signature|salt|dsn|certificate|(?:^|_)pin$",
    re.IGNORECASE,
)
_NO_SECRETS: Final = frozenset(
    ("PWD", "OLDPWD", "SSH_AUTH_SOCK", "XDG_SESSION_ID", "XDG_SESSION_TYPE", "DESKTOP_SESSION")
)
_SECRET_TEXT: Final = re.compile(
    r"(?P<user>://[^\s/:@]*:)[^\s/@]+(?=@)"  # user:password@ of a URL
    r"|(?P<bearer>\b(?:Bearer|Basic)\s+)[\w.~+/=-]{6,}"
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"  # a JSON web token
    r"|-----BEGIN [^-]*PRIVATE KEY-----.*?(?:-----END [^-]*-----|$)"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_\w{20,}|\bxox[abprs]-[\w-]{10,}|\bsk_(?:live|test)_\w{8,}",
    re.DOTALL,
)
_OPTION: Final = re.compile(r"^(?P<name>--?[\w-]+)(?:=(?P<value>.*))?$", re.DOTALL)


def parse_environ(data: bytes) -> dict[str, str]:
    """/proc/PID/environ (proc(5)): ``NAME=VALUE`` and a NUL each. Of a name that comes twice the first counts, as getenv(3) has it.
    What is no such pair (a program has written something else there) is left out.
    """
    found: dict[str, str] = {}
    for entry in data.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals and name:
            found.setdefault(name.decode("utf-8", "backslashreplace"), value.decode("utf-8", "backslashreplace"))
    return found


def read_environ(pid: int, proc: Path = PROC) -> dict[str, str]:
    """As it is now; OSError where it cannot be read."""
    with open(proc / str(pid) / "environ", "rb") as file:
        return parse_environ(file.read(ENVIRON_MAX))


@dataclass(frozen=True, slots=True)
class Judgement:
    """What an environment says."""

    wanted: bool
    match: str | None = None
    """Value of the variable; None: it is not there."""
    name: str | None = None
    """What it wants to be called."""


@dataclass(frozen=True, slots=True)
class OptIn:
    """`variable`: by which a process asks for it. `values`: one of them, where there are any."""

    variable: str = "ADI_PROFILE"
    values: tuple[str, ...] = ()

    def judge(self, environ: Mapping[str, str]) -> Judgement:
        value = environ.get(self.variable)
        wanted = (
            value is not None
            and environ.get(f"{self.variable}_DISABLED") != "1"
            and (not self.values or value in self.values)
        )
        return Judgement(wanted, value, environ.get(f"{self.variable}_NAME"))


class Environments:
    """By pid, as they were when somebody was first told of the process. May be used from several threads."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._lock = threading.Lock()
        self._kept: dict[int, dict[str, str]] = {}

    def executed(self, pid: int) -> None:
        """The process has just begun to run a program."""
        try:
            environ = read_environ(pid, self._proc)
        except OSError:
            return
        with self._lock:
            self._kept.pop(pid, None)
            self._kept[pid] = environ
            if len(self._kept) > REMEMBERED_MAX:
                del self._kept[next(iter(self._kept))]

    def exited(self, pid: int) -> None:
        with self._lock:
            self._kept.pop(pid, None)

    def of(self, pid: int) -> dict[str, str]:
        """OSError: it is not known, and the process is gone."""
        kept = self._kept.get(pid)
        return read_environ(pid, self._proc) if kept is None else kept


def is_secret_name(name: str, redactor: Redactor) -> bool:
    """Of an environment variable or an option."""
    return (
        redactor.enabled
        and name not in _NO_SECRETS
        and (_SECRET_NAME.search(name.replace("-", "_")) is not None or redactor.is_secret_field(name))
    )


def clean_text(text: str, redactor: Redactor) -> str:
    """Without what has the shape of a secret."""
    if not redactor.enabled:
        return text
    text = _SECRET_TEXT.sub(lambda match: (match["user"] or match["bearer"] or "") + PLACEHOLDER, text)
    return redactor.target(redactor.text(text)[0])[0]


def clean_arguments(arguments: list[str], redactor: Redactor) -> list[str]:
    """``--password=x``, ``--password x``, ``PASSWORD=x``, and what has the shape of a secret."""
    out: list[str] = []
    hidden = False
    for argument in arguments:
        if hidden and not argument.startswith("-"):
            out.append(PLACEHOLDER)
            hidden = False
            continue
        hidden = False
        match = _OPTION.match(argument)
        name, equals, _ = argument.partition("=")
        if match is not None and is_secret_name(match["name"].lstrip("-"), redactor):
            hidden = match["value"] is None
            out.append(argument if hidden else f"{match['name']}={PLACEHOLDER}")
        elif equals and name.isidentifier() and is_secret_name(name, redactor):
            out.append(f"{name}={PLACEHOLDER}")
        else:
            out.append(clean_text(argument, redactor))
    return out


class ProfileWriter:
    """Appends to `path`, made 0600. `prefixes`: of the variables that are told; none: all."""

    def __init__(
        self,
        path: str,
        prefixes: tuple[str, ...],
        opt_in: OptIn,
        environments: Environments,
        redactor: Redactor,
        warn: Callable[[str], None],
        proc: Path = PROC,
    ) -> None:
        self._path = path
        self._prefixes = prefixes
        self._opt_in = opt_in
        self._environments = environments
        self._redactor = redactor
        self._warn = warn
        self._warned = False
        self._proc = proc
        self._told: dict[tuple[int, int], Process] = {}
        self._descriptor = open_output(path, option="--env-output")

    def tell(self, process: Process) -> None:
        """It speaks HTTP: its profile, if that was not written yet."""
        key = (process.pid, process.start_ns)
        before = self._told.get(key)
        if before is process or (before is not None and before.cmdline == process.cmdline):
            return
        if len(self._told) >= TOLD_MAX:
            del self._told[next(iter(self._told))]
        self._told[key] = process
        # What is imported for who asks for it takes 30 ms.
        import yaml  # noqa: PLC0415

        text = yaml.safe_dump(self.profile(process), explicit_start=True, sort_keys=False)
        try:
            os.write(self._descriptor, text.encode())
        except OSError as error:
            if not self._warned:
                self._warned = True
                self._warn(f"--env-output {self._path}: {error.strerror}")

    def profile(self, process: Process) -> dict[str, Any]:
        """The document."""
        profile: dict[str, Any] = {"adi_profile_pid": process.pid}
        error = ""
        try:
            environ = self._environments.of(process.pid)
        except OSError as reason:
            environ = {}
            error = f"the environment of process {process.pid} could not be read: {reason.strerror}"
        judgement = self._opt_in.judge(environ)
        if judgement.match is not None:
            profile["adi_profile_match"] = clean_text(judgement.match, self._redactor)
        if judgement.name is not None:
            profile["adi_profile_name"] = clean_text(judgement.name, self._redactor)
        profile["adi_profile_cmdline"] = " ".join(clean_arguments(self._arguments(process), self._redactor))
        profile["adi_profile_env"] = {
            name: PLACEHOLDER if is_secret_name(name, self._redactor) else clean_text(value, self._redactor)
            for name, value in environ.items()
            if not self._prefixes or name.startswith(self._prefixes)
        }
        if error:
            profile["error"] = error
        return profile

    def _arguments(self, process: Process) -> list[str]:
        """As /proc has them, where that is still the same program; else as the kernel told them, joined by spaces."""
        try:
            data = (self._proc / str(process.pid) / "cmdline").read_bytes()
        except OSError:
            data = b""
        arguments = [part.decode("utf-8", "backslashreplace") for part in data.rstrip(b"\0").split(b"\0")]
        return arguments if " ".join(arguments) == process.cmdline else process.cmdline.split(" ")

    def close(self) -> None:
        if self._path != "-":
            os.close(self._descriptor)
