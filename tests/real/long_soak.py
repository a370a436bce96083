"""Ten minutes of mixed load: memory and descriptors stay where they are, and every exchange is in the log.

Not collected by itself: `make soak`, or `pytest tests/real/long_soak.py`. NETPROFILER_SOAK_SECONDS makes it shorter.
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

import pytest

from tests.kernel.harness import Agent, check_ledger
from tests.real.harness.planted import http2
from tests.real.harness.tls import Certificates
from tests.real.harness.wire import Listener, transfer

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]

SECONDS = float(os.environ.get("NETPROFILER_SOAK_SECONDS", "600"))
SLOPE_KIB_A_MINUTE = 256
"""Within noise: an allocator takes and gives back pages."""
_CHURN = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as ends:
    ends.sendall(b"GET /churn HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
    ends.recv(1000)
"""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def rss_kib(pid: int) -> int:
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


def slope(samples: list[tuple[float, int]]) -> float:
    """Of a straight line through them, by least squares: KiB a minute."""
    n = len(samples)
    mean_x, mean_y = sum(x for x, _ in samples) / n, sum(y for _, y in samples) / n
    return 60 * sum((x - mean_x) * (y - mean_y) for x, y in samples) / sum((x - mean_x) ** 2 for x, _ in samples)


class Mixed:
    """Each kind in turn, on connections of its own; `exchanges` is how many were done."""

    def __init__(self, certificates: Certificates) -> None:
        self.listener = Listener()
        self.exchanges = 0
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(certificates.certificate, certificates.key)
        self._client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client.check_hostname = False
        self._client.verify_mode = ssl.CERT_NONE

    def plaintext(self) -> None:
        with self.listener.wire() as wire:
            for number in range(20):
                wire.exchange(b"GET /plain/%d?n=%d HTTP/1.1\r\nHost: a\r\n\r\n" % (number, self.exchanges), OK)
                self.exchanges += 1

    def http2(self) -> None:
        fields = [(":method", "GET"), (":scheme", "http"), (":path", f"/h2/{self.exchanges}"), (":authority", "a")]
        with self.listener.wire() as wire:
            wire.exchange(*http2(fields))
        self.exchanges += 1

    def tls(self) -> None:
        with self.listener.wire() as wire:
            ends: list[ssl.SSLSocket] = []
            thread = threading.Thread(
                target=lambda: ends.append(self._server.wrap_socket(wire.server.dup(), server_side=True))
            )
            thread.start()
            with self._client.wrap_socket(wire.client.dup()) as near:
                thread.join()
                with ends[0] as far:
                    for _ in range(5):
                        transfer(near, far, b"GET /tls/%d HTTP/1.1\r\nHost: a\r\n\r\n" % self.exchanges)
                        transfer(far, near, OK)
                        self.exchanges += 1

    def churn(self) -> None:
        with subprocess.Popen([sys.executable, "-S", "-c", _CHURN, str(self.listener.port)]) as asking:
            connection, _ = self.listener._socket.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(OK)
            asking.wait(10)
        self.exchanges += 1


def test_memory_and_descriptors_stay_and_nothing_is_lost(tmp_path: Path, certificates: Certificates) -> None:
    mixed = Mixed(certificates)
    agent = Agent(tmp_path, "--port", str(mixed.listener.port))
    samples: list[tuple[float, int]] = []
    try:
        agent.wait_ready()
        begin = time.monotonic()
        before: dict[str, int] = {}
        last = 0.0
        while (now := time.monotonic() - begin) < SECONDS:
            for kind in (mixed.plaintext, mixed.tls, mixed.http2, mixed.churn):
                kind()
            time.sleep(0.05)
            if now - last > min(2.0, SECONDS / 30):
                last = now
                samples.append((now, rss_kib(agent.pid)))
                before = before or descriptors(agent.pid)
        time.sleep(1)
        after = descriptors(agent.pid)
        assert agent.end(seconds=30) == 0, agent.stderr()
    finally:
        agent.kill()
        mixed.listener.close()
    half = samples[len(samples) // 2 :]
    print(f"{mixed.exchanges} exchanges, RSS {samples[0][1]} to {samples[-1][1]} KiB, {slope(half):.0f} KiB a minute")
    check_ledger(agent.ledger())
    assert agent.ledger()["records"]["rows"]["written"] == 4 * mixed.exchanges
    assert sum(after.values()) <= sum(before.values()) + 4, (before, after)
    allowed = SLOPE_KIB_A_MINUTE if SECONDS >= 300 else 16 * SLOPE_KIB_A_MINUTE
    assert slope(half) < allowed, samples
