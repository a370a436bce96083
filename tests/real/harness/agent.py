"""The installed agent as a user runs it: started, awaited, interrupted, and its log and ledger read."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType

import pytest

from tests.real.harness.checks import Ledger, Record, assert_ledger, parse_log
from tests.real.harness.programs import REPOSITORY, wait_until

NETPROFILER = REPOSITORY / ".venv" / "bin" / "netprofiler"
READY_SECONDS = 60.0
EXIT_SECONDS = 15.0


class Agent:
    """``with Agent(directory, "--port", "8080") as agent:`` traffic in the block, ``agent.records`` and ``agent.ledger`` after it.

    Leaving the block interrupts the agent, expects exit status 0, a log of whole lines and a ledger that sums and tells of
    no loss but in ``allowed_rows``. When the block fails, the agent is ended and the block's error is the one reported.
    """

    def __init__(self, directory: Path, *args: str, allowed_rows: Collection[str] = ()) -> None:
        self.output = directory / "http.log"
        self.ledger_path = directory / "ledger.json"
        self.errors = directory / "netprofiler.err"
        self.args = [str(NETPROFILER), "--output", str(self.output), "--ledger", str(self.ledger_path), *args]
        self.records: list[Record] = []
        self.ledger: Ledger = {}
        self._allowed_rows = allowed_rows
        self._read_bytes = 0
        self._read_records: list[Record] = []
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Agent:
        if os.geteuid() != 0:
            pytest.fail("the tests against real programs need root")
        with self.errors.open("wb") as errors:
            self._process = subprocess.Popen(
                self.args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
            )
        try:
            wait_until(self._is_ready, f"{self.args} says ready", READY_SECONDS)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._kill()
            return
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        try:
            status = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            raise AssertionError(f"the agent did not end {EXIT_SECONDS:g} s after SIGINT: {self.stderr()}") from None
        assert status == 0, f"the agent's exit status is {status}: {self.stderr()}"
        assert "Traceback" not in self.stderr(), self.stderr()
        self.records = self.log()
        self.ledger = json.loads(self.ledger_path.read_text())
        assert_ledger(self.ledger, len(self.records), allowed_rows=self._allowed_rows)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stderr(self) -> str:
        return self.errors.read_text(errors="replace")[-4000:]

    def log(self) -> list[Record]:
        """The whole lines written so far."""
        if self.output.exists():
            with self.output.open("rb") as file:
                file.seek(self._read_bytes)
                new = file.read()
            new = new[: new.rfind(b"\n") + 1]
            self._read_bytes += len(new)
            self._read_records += parse_log(new.decode())
        return list(self._read_records)

    def rss_bytes(self) -> int:
        """Anonymous memory: what grows with connections; libLLVM's file mapping is not the agent's doing."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no RssAnon in /proc/PID/status")

    def wait_for_records(self, count: int, seconds: float = 10.0) -> None:
        """Until the log has that many lines, or the time is over: the comparison says better what is missing."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.output.exists() and self.output.read_bytes().count(b"\n") >= count:
                return
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the agent ended with status {self._process.returncode}: {self.stderr()}")
        return any(line.startswith("ready") for line in self.stderr().splitlines())

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait(5)


def port_filters(*ports: int) -> Sequence[str]:
    return [word for port in ports for word in ("--port", str(port))]
