"""64 MiB by ``sendfile``: no probe sees the bytes, the record is right all the same."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from tests.real.harness.agent import Agent, port_filters
from tests.real.harness.checks import assert_hops, exchanges, validate_record
from tests.real.harness.truth import pattern
from tests.real.harness.wire import Listener

pytestmark = pytest.mark.real

SIZE = 64 * 1024 * 1024


def send_file(end: socket.socket, path: Path) -> None:
    with path.open("rb") as file:
        sent = 0
        while sent < SIZE:
            sent += os.sendfile(end.fileno(), file.fileno(), sent, SIZE - sent)


def drain(end: socket.socket, size: int) -> None:
    buffer = bytearray(1024 * 1024)
    while size:
        got = end.recv_into(buffer, min(size, len(buffer)))
        assert got
        size -= got


def test_64_mebibytes_by_sendfile(directory: Path) -> None:
    path = directory / "large"
    start = pattern(4096, "large")
    with path.open("wb") as file:
        file.write(start)
        file.truncate(SIZE)
    listener = Listener()
    with Agent(directory, *port_filters(listener.port)) as agent, listener.wire() as wire:
        wire.server.setblocking(True)
        wire.up(b"GET /large HTTP/1.1\r\nHost: lab\r\n\r\n")
        wire.down(f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {SIZE}\r\n\r\n".encode())
        thread = threading.Thread(target=send_file, args=(wire.server, path))
        thread.start()
        drain(wire.client, SIZE)
        thread.join(20)
        wire.exchange(b"GET /after HTTP/1.1\r\nHost: lab\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext")
        agent.wait_for_records(8)
    listener.close()
    assert len(agent.records) == 8, "one record a message and end"
    for record in agent.records:
        validate_record(record)
    assert_hops(
        [r for r in agent.records if r["role"] == "client"], [r for r in agent.records if r["role"] == "server"]
    )
    at_client, at_server = exchanges(agent.records, "client"), exchanges(agent.records, "server")
    for side in (at_client, at_server):
        assert [(e.request["url"], e.response["body_bytes"]) for e in side] == [("/large", SIZE), ("/after", 4)]
        assert side[1].response["body"] == "next"
    received, sent = at_client[0].response, at_server[0].response
    assert (received["completeness"], received["body"]) == ("truncated", start.decode())
    if sent["completeness"] == "gap":
        assert (sent["missing_reason"], sent["missing_bytes"]) == ("sendfile", SIZE)
    else:
        assert (sent["completeness"], sent["body"]) == ("truncated", start.decode())
    assert sent.get("body", start.decode()) == start.decode(), "the start of the file, or nothing"
    assert agent.ledger["bytes"]["rows"]["sendfile"] == SIZE
