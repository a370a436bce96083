"""Mixed load for a minute: memory and descriptors stay where they are, and every exchange is in the log (`make soak`: ten minutes).

What the agent remembers of processes, heads and strings grows up to its bounds (docs/architecture.md). So these are filled
first, and what is measured is the anonymous memory from then on. A straight line through it says how much each connection
leaves behind; the means of BLOCKS parts of the time say how exactly that is known, because memory grows in steps, and the
next second knows nothing that the last one did not.
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import fmean, linear_regression
from types import TracebackType
from typing import Self

import pytest

from netprofiler.pipeline import PROCESSES_MAX
from netprofiler.protocols.header_compression import CACHED_STRINGS
from netprofiler.protocols.http1 import CACHED_HEADS
from tests.kernel.harness import Agent, check_ledger, wait_until
from tests.real.harness.planted import http2
from tests.real.harness.tls import Certificates, build_c
from tests.real.harness.wire import Listener, transfer

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]

SECONDS = 45.0
"""Measured, behind the warm-up."""
LEAK_BYTES = 500
"""What the two ends of a connection may leave behind, at most, as far as can be told: where a busy machine keeps the agent waiting,
it takes some MiB more for what has come meanwhile, for good. The ten-minute form tells better, and one byte is found by
tests/unit/test_leaks.py.
"""
BLOCKS = 10
STUDENT_95 = 1.86
"""Of the t distribution with BLOCKS - 2 degrees of freedom: one in twenty lies above it."""
WARM_UP_CYCLES = 128
CYCLE_SECONDS = 0.2
"""The load is the same whatever the machine is busy with: that the agent loses nothing under too much of it is not promised."""
RECORDS_OF_AN_EXCHANGE = 4
"""Both ends are here: each writes a request and a response."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

_PROGRAM = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as ends:
    ends.sendall(b"GET /churn HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
    ends.recv(1000)
"""


def anonymous_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")[2].split()[0])


def descriptors(pid: int) -> dict[str, int]:
    """By what they are; but for links, of which there is one for each file with TLS that somebody on this host uses."""
    found: dict[str, int] = {}
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            what = re.sub(r"\d+", "N", os.readlink(f"{directory}/{name}"))
            if "link" not in what:
                found[what] = found.get(what, 0) + 1
    return found


def more(agent: Agent, before: dict[str, int]) -> dict[str, int]:
    """Descriptors of which there are more than before."""
    return {what: count for what, count in descriptors(agent.pid).items() if count > before.get(what, 0)}


def growth(samples: list[tuple[int, int]]) -> tuple[float, float]:
    """Of (connections, KiB): bytes a connection, by least squares through the means of BLOCKS blocks, and its standard error."""
    size = len(samples) / BLOCKS
    blocks = [samples[round(n * size) : round((n + 1) * size)] for n in range(BLOCKS)]
    x = [fmean(connections for connections, _ in block) for block in blocks]
    y = [1024 * fmean(kib for _, kib in block) for block in blocks]
    slope, intercept = linear_regression(x, y)
    mean = fmean(x)
    residual = sum((b - slope * a - intercept) ** 2 for a, b in zip(x, y, strict=True))
    return slope, (residual / (BLOCKS - 2) / sum((a - mean) ** 2 for a in x)) ** 0.5


class Mixed:
    """Each kind in turn, on connections of its own; `exchanges` and `connections` are what was done."""

    def __init__(self, directory: Path, certificates: Certificates) -> None:
        self.listener = Listener()
        self.exchanges = 0
        self.connections = 0
        binary = build_c("forks", directory)
        self._forking = subprocess.Popen([binary, str(self.listener.port)], stdin=subprocess.PIPE)
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(certificates.certificate, certificates.key)
        self._client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client.check_hostname = False
        self._client.verify_mode = ssl.CERT_NONE

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.listener.close()
        assert self._forking.stdin is not None
        self._forking.stdin.close()
        self._forking.wait(20)

    def plaintext(self, count: int) -> None:
        """A target and a field that were never there before, in each: what is remembered of heads is always full."""
        with self.listener.wire() as wire:
            for _ in range(count):
                wire.exchange(
                    b"GET /plain?n=%d HTTP/1.1\r\nHost: a\r\n\r\n" % self.exchanges,
                    b"HTTP/1.1 200 OK\r\nX-N: %d\r\nContent-Length: 2\r\n\r\nok" % self.exchanges,
                )
                self.exchanges += 1
        self.connections += 1

    def http2(self) -> None:
        fields = [(":method", "GET"), (":scheme", "http"), (":path", f"/h2/{self.exchanges}"), (":authority", "a")]
        with self.listener.wire() as wire:
            wire.exchange(*http2(fields))
        self.exchanges += 1
        self.connections += 1

    def tls(self, count: int) -> None:
        with self.listener.wire() as wire:
            ends: list[ssl.SSLSocket] = []
            thread = threading.Thread(
                target=lambda: ends.append(self._server.wrap_socket(wire.server.dup(), server_side=True))
            )
            thread.start()
            with self._client.wrap_socket(wire.client.dup()) as near:
                thread.join()
                with ends[0] as far:
                    for _ in range(count):
                        transfer(near, far, b"GET /tls/%d HTTP/1.1\r\nHost: a\r\n\r\n" % self.exchanges)
                        transfer(far, near, OK)
                        self.exchanges += 1
        self.connections += 1

    def forked(self, count: int) -> None:
        """Processes that come and go, without a program of their own."""
        assert self._forking.stdin is not None
        self._forking.stdin.write(b"%d\n" % count)
        self._forking.stdin.flush()
        for _ in range(count):
            self._answer()

    def program(self) -> None:
        with subprocess.Popen([sys.executable, "-S", "-c", _PROGRAM, str(self.listener.port)]) as asking:
            self._answer()
            asking.wait(20)

    def _answer(self) -> None:
        connection, _ = self.listener._socket.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(OK)
        self.exchanges += 1
        self.connections += 1

    def warm_up(self) -> None:
        """All that is remembered is full: of processes, of heads, of HTTP/2's strings. Not faster than the agent reads: memory that
        a burst has left free would hide a leak.
        """
        for _ in range(WARM_UP_CYCLES):
            begun = time.monotonic()
            self.forked(PROCESSES_MAX // WARM_UP_CYCLES + 1)
            self.plaintext(2 * CACHED_HEADS // WARM_UP_CYCLES)
            for _ in range(2 * CACHED_STRINGS // WARM_UP_CYCLES):
                self.http2()
            time.sleep(max(0.0, begun + CYCLE_SECONDS - time.monotonic()))

    def cycle(self) -> None:
        begun = time.monotonic()
        for _ in range(60):
            self.plaintext(1)
        self.plaintext(20)
        for _ in range(10):
            self.http2()
        for _ in range(5):
            self.tls(4)
        self.forked(10)
        self.program()
        time.sleep(max(0.0, begun + CYCLE_SECONDS - time.monotonic()))


def soak(directory: Path, certificates: Certificates, seconds: float, leak_bytes: float) -> None:
    with Mixed(directory, certificates) as mixed:
        limits = ("--rotate-size", "32M", "--rotate-keep", "1", "--rotate-compression", "none")
        agent = Agent(directory, "--port", str(mixed.listener.port), *limits)
        try:
            agent.wait_ready()
            mixed.warm_up()
            samples: list[tuple[int, int]] = []
            before: dict[str, int] = {}
            begun = time.monotonic()
            while time.monotonic() - begun < seconds:
                mixed.cycle()
                samples.append((mixed.connections, anonymous_kib(agent.pid)))
                before = before or descriptors(agent.pid)
            # A file that somebody has just begun to use is open while it is looked into.
            assert wait_until(lambda: not more(agent, before), 10), more(agent, before)
            assert agent.end(seconds=60) == 0, agent.stderr()
        finally:
            agent.kill()
    grown, error = growth(samples)
    count = samples[-1][0] - samples[0][0]
    print(
        f"{mixed.exchanges} exchanges; {count} connections, {samples[0][1]} to {samples[-1][1]} KiB:"
        f" {grown:.1f} ± {error:.1f} bytes a connection; {sum(before.values())} descriptors"
    )
    check_ledger(agent.ledger())
    assert agent.ledger()["records"]["rows"]["written"] == RECORDS_OF_AN_EXCHANGE * mixed.exchanges
    assert grown + STUDENT_95 * error < leak_bytes, samples


def test_memory_and_descriptors_stay_and_nothing_is_lost(tmp_path: Path, certificates: Certificates) -> None:
    soak(tmp_path, certificates, SECONDS, LEAK_BYTES)


def test_a_leak_would_be_found() -> None:
    """Of LEAK_BYTES a connection, in steps of 1 MiB with noise in between, as an allocator makes them."""
    leaking = [(n, 50_000 + LEAK_BYTES * n // 1024 // 1024 * 1024 + n % 7) for n in range(0, 40_000, 400)]
    slope, error = growth(leaking)
    assert slope == pytest.approx(LEAK_BYTES, rel=0.2)
    assert slope + STUDENT_95 * error > LEAK_BYTES * 0.9
    flat, error = growth([(n, 50_000 + n % 7) for n in range(0, 40_000, 400)])
    assert abs(flat) + STUDENT_95 * error < 1
