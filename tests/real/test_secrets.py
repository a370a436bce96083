"""Sixty secrets in twenty forms, in plaintext and over TLS: none is in anything that the agent writes; what only looks like one is."""

from __future__ import annotations

import json
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.harness import Agent, check_ledger, run_agent, wait_until
from tests.real.harness.planted import PLANTS, Plant, found_in, look_alikes, steps, word
from tests.real.harness.programs import require
from tests.real.harness.tls import Certificates
from tests.real.harness.wire import Listener, Wire, transfer

pytestmark = pytest.mark.real

OVER_TLS = tuple(plant for plant in PLANTS if plant.piece is None)[::3]
LAST = "/this-is-the-last-one"
ARGUMENTS = ("on-the-command-line" + word(), "in-a-header" + word(), "of-a-user" + word())


@dataclass(frozen=True)
class Outcome:
    """What three runs of the agent left behind, of the same traffic."""

    log: str
    terminal: str
    """Standard error, standard output and the ledger."""
    replayed: str
    recording: bytes


def exchange(wire: Wire, up: bytes, down: bytes, piece: int | None = None) -> None:
    for is_up, data in steps(up, down):
        (wire.up if is_up else wire.down)(data, piece)


def exchange_tls(listener: Listener, plant: Plant, certificates: Certificates) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificates.certificate, certificates.key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    with listener.wire() as wire:
        ends: list[ssl.SSLSocket] = []
        thread = threading.Thread(target=lambda: ends.append(server.wrap_socket(wire.server.dup(), server_side=True)))
        thread.start()
        with client.wrap_socket(wire.client.dup()) as near:
            thread.join()
            with ends[0] as far:
                for is_up, data in steps(plant.up, plant.down):
                    transfer(near if is_up else far, far if is_up else near, data)


def curl(port: int) -> None:
    """Its command line is in each of its records."""
    [program] = require("curl")
    in_query, in_header, of_user = ARGUMENTS
    with subprocess.Popen(
        [
            program,
            "-s",
            "-u",
            f"reader:{of_user}",
            "-H",
            f"X-Api-Key: {in_header}",
            f"http://127.0.0.1:{port}/?token={in_query}",
        ]
    ) as process:
        assert process.wait(10) == 0


def make_traffic(listener: Listener, certificates: Certificates) -> None:
    for plant in PLANTS:
        with listener.wire() as wire:
            exchange(wire, plant.up, plant.down, plant.piece)
    for plant in OVER_TLS:
        exchange_tls(listener, plant, certificates)
    for _, up, down in look_alikes():
        with listener.wire() as wire:
            exchange(wire, up, down)
    thread = threading.Thread(target=curl, args=(listener.port,))
    thread.start()
    connection, _ = listener._socket.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        thread.join()
    with listener.wire() as wire:
        wire.exchange(f"GET {LAST} HTTP/1.1\r\nHost: h\r\n\r\n".encode(), b"HTTP/1.1 204 No Content\r\n\r\n")


@pytest.fixture(scope="module")
def outcome(certificates: Certificates) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory(prefix="np-") as name:
        directory = Path(name)
        listener = Listener()
        port = ("--port", str(listener.port))
        recording = directory / "a.recording"
        live = Agent(directory / "live", *port)
        recorder = Agent(directory / "record", str(recording), *port, verb=("record",), own_output=False)
        try:
            live.wait_ready()
            recorder.wait_ready()
            make_traffic(listener, certificates)
            assert wait_until(lambda: LAST in live.log.read_text(), 15)
            assert live.end() == 0, live.stderr()
            assert recorder.end() == 0, recorder.stderr()
        finally:
            live.kill()
            recorder.kill()
            listener.close()
        check_ledger(live.ledger())
        replayed = directory / "replayed.log"
        status, output, errors = run_agent("replay", str(recording), "--output", str(replayed))
        assert status == 0, errors
        yield Outcome(
            live.log.read_text(),
            live.stderr() + live.ledger_path.read_text() + output + errors,
            replayed.read_text(),
            recording.read_bytes(),
        )


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("where", ["log", "terminal", "replayed"])
def test_no_secret_is_in_anything_that_is_written(outcome: Outcome, where: str) -> None:
    text = getattr(outcome, where)
    assert not found_in(PLANTS, text)
    for secret in ARGUMENTS:
        assert secret[-22:] not in text


def test_each_was_there_and_is_named(outcome: Outcome) -> None:
    """Each at both ends, and those over TLS once more."""
    named = [name for record in records(outcome.log) for name in record.get("redacted", ())]
    for plant in PLANTS:
        for name in plant.names:
            alike = [each for each in (*PLANTS, *OVER_TLS) if name in each.names]
            assert named.count(name) >= 2 * len(alike), (plant.form, name, named.count(name))
    over_tls = [record for record in records(outcome.log) if "tls" in record and "redacted" in record]
    assert len(over_tls) >= 2 * len(OVER_TLS)
    assert sorted(record.get("redacted", []) for record in records(outcome.replayed)) == sorted(
        record.get("redacted", []) for record in records(outcome.log)
    )


def test_look_alikes_are_there_as_they_were(outcome: Outcome) -> None:
    payloads = "\n".join(record.get("raw_payload", "") for record in records(outcome.log))
    missing = [text for text, _, _ in look_alikes() if text not in payloads]
    assert not missing


def test_a_recording_has_all_of_them(outcome: Outcome) -> None:
    """It is what the kernel sent (docs/redaction.md): that the secrets went by is no invention of this test."""
    header = next(plant for plant in PLANTS if plant.form == "header")
    assert header.secret.encode() in outcome.recording
