"""10,000 keep-alive connections, open all at once, between one client and one server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.harness.agent import Agent, port_filters
from tests.real.harness.checks import assert_equal_to_truth, assert_hops
from tests.real.harness.programs import PYTHON, SCRIPTS, Program, free_port, talk
from tests.real.harness.truth import Truth

pytestmark = pytest.mark.real

COUNT = 10_000
MOST_BYTES_PER_CONNECTION = 16 * 1024
"""Two ends each. 10,000 connections are then 160 MB at most, and with what BCC takes below 300 MB; the aim is far lower."""


def test_ten_thousand_connections(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    truth = []
    for n, turn in [(n, 0) for n in range(COUNT)] + [(n, 1) for n in range(0, COUNT, 10)]:
        body = f"you asked for /{n}/{turn}"
        truth.append(Truth("GET", f"/{n}/{turn}", 200, len(body), 0, body))
    script = SCRIPTS / "many.py"
    with (
        Program([PYTHON, script, "server", str(port)], directory, name="many", address=("127.0.0.1", port)) as server,
        talk([PYTHON, script, "client", str(port), str(COUNT)], directory) as client,
    ):
        assert client.line(60) == "open"
        with Agent(directory, *port_filters(port)) as agent:
            before = agent.rss_bytes()
            client.say("ask")
            assert client.line(60) == "asked"
            agent.wait_for_records(4 * len(truth), seconds=30)
            each = (agent.rss_bytes() - before) / COUNT
            client.say("close")
            client.end(20)
        pids = {client.pid}
    with capsys.disabled():
        print(f"\n{COUNT} connections: {each / 1024:.2f} KiB of the agent's memory for the two ends of each")
    at_client = assert_equal_to_truth(agent.records, truth, "client", pids=pids)
    at_server = assert_equal_to_truth(agent.records, truth, "server", pids={server.pid})
    assert len(agent.records) == 4 * len(truth)
    assert_hops(
        [r for e in at_client for r in (e.request, e.response)],
        [r for e in at_server for r in (e.request, e.response)],
    )
    for e in (*at_client, *at_server):
        assert e.response["body"] == f"you asked for {e.request['url']}"
    assert len({e.request["connection"] for e in at_client}) == COUNT
    assert each < MOST_BYTES_PER_CONNECTION
