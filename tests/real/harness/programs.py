"""Starts real programs in the foreground with files of their own, waits for them by connecting, ends them by pid."""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.real.harness.truth import Ask, Truth, from_json_log

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPTS = Path(__file__).resolve().parents[1] / "programs"
PYTHON = sys.executable

START_SECONDS = 20.0
"""The slowest start is a JVM's, 1 s when alone; the rest is for a machine that is busy."""
CLIENT_SECONDS = 60.0


def require(*names: str) -> list[str]:
    """Paths of the programs; a missing one fails the test, for a skipped test proves nothing. ``make test`` installs them."""
    found = []
    for name in names:
        path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if path is None:
            pytest.fail(f"{name} is not installed; `make test` installs what the tests start")
        found.append(path)
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """Free now, and not of those that the kernel hands out to clients (32768 and up), so that it stays free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(100):
        port = random.randrange(20_000, 32_000)
        with socket.socket(family, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise AssertionError(f"no free port on {host}")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


def connects(address: tuple[str, int] | str) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(address)
        except OSError:
            return False
    return True


def process_tree(root: int) -> set[int]:
    """``root`` and all that descend from it, now."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name in brackets may hold blanks and brackets; what follows the last one is fixed (proc(5)).
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    tree = {root}
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in tree}
        grown = not children <= tree
        tree |= children
    return tree


class Program:
    """A server that runs while the ``with`` block does; its output goes to ``log`` and ``errors``."""

    def __init__(
        self,
        args: Sequence[str | Path],
        directory: Path,
        *,
        name: str,
        address: tuple[str, int] | str | None = None,
        env: Mapping[str, str] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.args = [str(arg) for arg in args]
        self.log = directory / f"{name}.log"
        self.errors = directory / f"{name}.err"
        self._directory = directory
        self._address = address
        self._env = {**os.environ, **(env or {})}
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Program:
        with self.log.open("ab") as out, self.errors.open("ab") as err:
            self._process = subprocess.Popen(
                self.args, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=self._env, cwd=self._directory
            )
        try:
            if self._address is not None:
                wait_until(self._is_up, f"{self.args[0]} listens on {self._address}")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def pids(self) -> set[int]:
        return process_tree(self.pid)

    def truth(self, count: int, path: Path | None = None) -> list[Truth]:
        """The access log, once it has ``count`` lines: programs write a line after they have sent the response."""
        source = path or self.log

        def lines() -> int:
            return len(from_json_log(source.read_text())) if source.exists() else 0

        with contextlib.suppress(AssertionError):  # what is missing, the comparison says better
            wait_until(lambda: lines() >= count, "the access log", seconds=5)
        return from_json_log(source.read_text())

    def _is_up(self) -> bool:
        assert self._process is not None and self._address is not None
        if self._process.poll() is not None:
            raise AssertionError(f"{self.args} ended at once: {self.errors.read_text()[-2000:]}")
        return connects(self._address)

    def _end(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(self._stop_signal)
        try:
            self._process.wait(8)
        except subprocess.TimeoutExpired:
            for pid in process_tree(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait(5)


@dataclass(frozen=True, slots=True)
class Finished:
    """A client that has ended well."""

    pid: int
    output: str

    def truth(self) -> list[Truth]:
        return from_json_log(self.output)


def run_client(args: Sequence[str | Path], directory: Path, *, ok: tuple[int, ...] = (0,)) -> Finished:
    """Runs a client to its end; its output is its truth."""
    command = [str(arg) for arg in args]
    with (directory / "client.err").open("w+b") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=directory
        )
        try:
            output, _ = process.communicate(timeout=CLIENT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        errors.seek(0)
        assert process.returncode in ok, f"{command[:4]} exited {process.returncode}: {errors.read()[-2000:]!r}"
    return Finished(process.pid, output)


CURL_FORMAT = (
    '{"method":"%{method}","url":"%{url_effective}","status":%{response_code},'
    '"response_body_bytes":%{size_download},"request_body_bytes":%{size_upload}}\\n'
)


def curl_args(asks: Sequence[Ask], base: str, directory: Path, *options: str) -> list[str]:
    """One curl for all asks, over as few connections as the server allows; it prints what it got, a JSON line each."""
    [curl] = require("curl")
    args = [curl]
    for number, ask in enumerate(asks):
        if number:
            args.append("--next")
        args += ["-sS", "-g", "--path-as-is", "-m", "20", "-o", "/dev/null", "-w", CURL_FORMAT, *options]
        if ask.method == "HEAD":
            args.append("--head")
        elif ask.request or ask.method != "GET":
            body = directory / f"body-{number}"
            body.write_bytes(ask.request)
            args += ["-X", ask.method, "--data-binary", f"@{body}"]
        args.append(base + ask.target)
    return args


class Talker:
    """A program of ours that is told what to do by lines, and answers by lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def line(self, seconds: float) -> str:
        """The next line, which the program writes at once and whole."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        assert ready, f"no line within {seconds:g} s"
        return self._process.stdout.readline().rstrip("\n")

    def end(self, seconds: float) -> None:
        assert self._process.wait(seconds) == 0


@contextlib.contextmanager
def talk(args: Sequence[str | Path], directory: Path) -> Iterator[Talker]:
    errors = directory / "talker.err"
    with errors.open("wb") as err:
        process = subprocess.Popen(
            [str(arg) for arg in args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            cwd=directory,
        )
    try:
        yield Talker(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(5)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
