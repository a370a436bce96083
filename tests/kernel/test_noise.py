"""What is not HTTP makes no record, copies no payload, and is in the ledger."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from tests.kernel.harness import Agent, Calls, check_ledger, check_run, running

pytestmark = pytest.mark.kernel

NOISE = {
    "redis": (b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nvalue\r\n" * 20, b"+OK\r\n" * 20),
    "tls": (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(507),
        b"\x17\x03\x03\x04\x00" + os.urandom(1024),
    ),
    "random": (os.urandom(1400), os.urandom(9000)),
    "almost": (b"GETTING somewhere\r\n\r\n" * 10, b"HTTPS is not HTTP\r\n\r\n" * 10),
    "zeros": (bytes(1000), bytes(1000)),
}
ROUNDS = 500


def exchange_noise(request: bytes, response: bytes, unix: bool) -> int:
    """Bytes that went through, each counted where it was sent and where it was received."""
    if unix:
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()

    def answer() -> None:
        for _ in range(ROUNDS):
            theirs.recv(len(request), socket.MSG_WAITALL)
            theirs.sendall(response)

    with ours, theirs:
        thread = threading.Thread(target=answer)
        thread.start()
        for _ in range(ROUNDS):
            ours.sendall(request)
            ours.recv(len(response), socket.MSG_WAITALL)
        thread.join(30)
    return 2 * ROUNDS * (len(request) + len(response))


def test_noise_on_sockets(tmp_path: Path, calls: Calls) -> None:
    with running(tmp_path, "--pid", str(os.getpid())) as agent:
        sent = sum(exchange_noise(*noise, unix) for noise in NOISE.values() for unix in (False, True))
        run = calls.run(["--target", "/noise"])
        check_run(agent.wait_for(run.pids, 4), run)
        assert agent.end() == 0
    assert {record["pid"] for record in agent.records()} == run.pids
    ledger = agent.ledger()
    check_ledger(ledger, bytes_at_least=sent)
    rows = ledger["bytes"]["rows"]
    tls = sum(map(len, NOISE["tls"])) * 2 * ROUNDS  # over TCP; a socketpair's first bytes nobody promises
    assert rows["tls"] >= tls, ledger
    assert rows["not_http"] + rows["tls"] >= 0.98 * sent, ledger
    assert rows["recorded"] <= 2 * run.stream_bytes, ledger


def test_noise_is_not_copied(tmp_path: Path) -> None:
    """A recording of it is hardly larger than the start of each connection."""
    agent = Agent(tmp_path, str(tmp_path / "recording"), verb=["record"], own_output=False)
    try:
        agent.wait_ready()
        sent = sum(exchange_noise(*noise, unix) for noise in NOISE.values() for unix in (False, True))
        assert agent.end() == 0, agent.stderr()
    finally:
        agent.kill()
    assert sent > 10_000_000
    assert (tmp_path / "recording").stat().st_size < sent / 20


def test_http_in_files_and_pipes_is_no_traffic(tmp_path: Path, agent: Agent, calls: Calls) -> None:
    text = b"GET /file HTTP/1.1\r\nHost: file\r\n\r\n"
    read, write = os.pipe()
    with (tmp_path / "file").open("wb+", buffering=0) as file:
        for _ in range(100):
            os.write(write, text)
            os.read(read, 4096)
            file.write(text)
        file.seek(0)
        file.read()
    os.close(read)
    os.close(write)
    first, second = socket.socketpair(type=socket.SOCK_DGRAM)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, first, second:
        udp.bind(("127.0.0.1", 0))
        udp.connect(udp.getsockname())
        udp.send(text)
        udp.recv(4096)
        first.send(text)
        second.recv(4096)
    run = calls.run(["--target", "/after"])
    check_run(agent.wait_for(run.pids, 4), run)
    assert not agent.of([os.getpid()])


def test_http_that_comes_after_noise_on_another_connection(agent: Agent, calls: Calls) -> None:
    exchange_noise(*NOISE["random"], False)
    run = calls.run(["--target", "/sober", "--requests", "7"])
    check_run(agent.wait_for(run.pids, 28), run)
