"""What is not HTTP costs no record and no copy, and is in the ledger to the byte."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.real.harness.agent import Agent
from tests.real.harness.checks import brief
from tests.real.harness.programs import PYTHON, SCRIPTS, talk
from tests.real.harness.wire import Listener

pytestmark = pytest.mark.real

NOT_HTTP_ROWS = frozenset({"not_http", "tls"})
"""TLS may have a row of its own."""
EMPTY_ROWS = ("recorded", "over_limit")
"""Rows that mean that payload was copied, or would have been."""


def test_noise_at_full_speed(directory: Path) -> None:
    with talk([PYTHON, SCRIPTS / "noise.py", "2"], directory) as noise:
        assert noise.line(20) == "ready"
        with Agent(directory, "--pid", str(noise.pid)) as agent:
            noise.say("go")
            sent = json.loads(noise.line(30))
            noise.say("end")
            noise.end(10)
    assert agent.records == [], [brief(record) for record in agent.records]
    assert all(count > 100_000 for count in sent.values()), f"it was not full speed: {sent}"
    rows = agent.ledger["bytes"]["rows"]
    assert [rows.get(row, 0) for row in EMPTY_ROWS] == [0, 0], rows
    assert agent.ledger["bytes"]["total"] - rows.get("filtered", 0) == 2 * sum(sent.values()), rows
    assert sum(rows.get(row, 0) for row in NOT_HTTP_ROWS) == 2 * sum(sent.values()), rows


@pytest.mark.parametrize("first", ["client", "server"])
def test_words_that_look_like_http_and_are_not(directory: Path, first: str) -> None:
    """Redis has an inline GET, SMTP and FTP greet with numbers: a look at the first bytes must not make records of them."""
    up = b"GET key:000\r\nPOST a letter\r\nGET / is a path\r\n"
    down = b"HTTP is not what this is\r\n220 mail.example ESMTP\r\n"
    listener = Listener()
    with Agent(
        directory, "--pid", str(os.getpid()), "--port", str(listener.port), allowed_rows={"unparsed", "partial"}
    ) as agent:
        for piece in (None, 1):
            with listener.wire() as wire:
                for _ in range(20):
                    if first == "client":
                        wire.up(up, piece)
                        wire.down(down, piece)
                    else:
                        wire.down(down, piece)
                        wire.up(up, piece)
    listener.close()
    assert agent.records == [], [brief(record) for record in agent.records]
    ledger = agent.ledger["bytes"]
    assert ledger["total"] - ledger["rows"].get("filtered", 0) == 2 * 2 * 20 * (len(up) + len(down))
