"""What the agent's own metrics page says of a few exchanges, without Prometheus."""

from __future__ import annotations

import os
import re
import socket
import time
import urllib.request
from pathlib import Path

import pytest

from tests.kernel.harness import Calls, check_ledger, running, wait_until

pytestmark = pytest.mark.kernel

EXCHANGES = 23


def test_the_page_has_each_exchange_once_a_side_and_a_ledger_that_sums(tmp_path: Path, calls: Calls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    page = ""

    def total(name: str) -> float:
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))

    def settled() -> bool:
        nonlocal page
        time.sleep(0.2)
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            page = answer.read().decode()
        return total("http_server_request_duration_seconds_count") >= EXCHANGES

    options = ["--metrics-address", address, "--pid", str(os.getpid()), "--exclude-port", address.rpartition(":")[2]]
    with running(tmp_path, *options) as agent:
        run = calls.run(["--target", "/counted", "--requests", str(EXCHANGES)])
        assert len(agent.wait_for(run.pids, 4 * EXCHANGES)) == 4 * EXCHANGES
        assert wait_until(settled, 15, 0.5), page[-2000:]
        time.sleep(1.5)  # what the agent says of itself is a second old
        settled()
        assert total("http_server_request_duration_seconds_count") == EXCHANGES
        assert total("http_client_request_duration_seconds_count") == EXCHANGES
        rows = total("netprofiler_ledger_bytes_total") + total("netprofiler_ledger_pending_bytes")
        assert rows == total("netprofiler_seen_bytes_total") >= run.stream_bytes
        assert agent.end() == 0, agent.stderr()
        check_ledger(agent.ledger(), run.stream_bytes)
