"""gRPC between grpcio and grpc-go: every call as both programs tell it, at either end, in plaintext and over TLS.

PyPI's grpcio over TLS cannot be read: its BoringSSL is linked in, without symbols. Debian's takes the system's OpenSSL.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.harness.checks import Record, assert_hops
from tests.real.harness.grpc_calls import (
    Call,
    Told,
    assert_calls,
    assert_told,
    client_command,
    many,
    plan,
    server,
    told,
    write_plan,
)
from tests.real.harness.http2 import number_of
from tests.real.harness.programs import Program, run_client, wait_until
from tests.real.harness.tls import NAME, Certificates
from tests.real.harness.tls_lab import TlsLab

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
"""The first run of all builds the Go program."""

PAIRS = [
    ("python", "python", "plain"),
    ("python", "go", "plain"),
    ("go", "python", "plain"),
    ("go", "go", "plain"),
    ("go", "go", "tls"),
    ("debian", "debian", "tls"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[TlsLab]:
    """What a client gives up is partial, in the ledger, too; that nothing else is, the records say."""
    with tempfile.TemporaryDirectory(prefix="np-") as name, TlsLab(Path(name), allowed_rows={"partial"}) as opened:
        yield opened


def told_by_server(program: Program, count: int) -> dict[str, Told]:
    """It tells of a call when that is over, which a client that has given up does not wait for."""
    wait_until(lambda: program.log.read_text().count("\n") >= count, "the server's story", seconds=10)
    return told(program.log.read_text())


def compare(
    lab: TlsLab,
    directory: Path,
    certificates: Certificates,
    pair: tuple[str, str, str],
    calls: list[Call],
    *,
    streams: int,
) -> tuple[dict[str, list[Record]], dict[str, list[Record]]]:
    client, at, way = pair
    [port] = lab.ports(1)
    secure = certificates if way == "tls" else None
    with server(at, directory, port, secure, lab.agent.pid) as program:
        done = run_client(
            client_command(client, write_plan(directory, calls), port, secure, streams=streams), directory
        )
        at_client, at_server = told(done.output), told_by_server(program, len(calls))
        pid = program.pid
    assert_told(calls, at_client, at_server)
    silent = sum(call.method == "Silent" for call in calls)
    records = lab.records([port], 4 * len(calls) - 2 * silent)
    sides = (
        assert_calls(records, "client", done.pid, calls, at_client, at_server),
        assert_calls(records, "server", pid, calls, at_client, at_server),
    )
    assert len({r["connection"] for side in sides for group in side.values() for r in group}) == 2
    certain = [call.id for call in calls if not call.given_up]
    here, there = ([r for name in certain for r in side[name]] for side in sides)
    assert_hops(here, there)
    for name in certain:
        ends = [[(r["hop"], number_of(r), r.get("trailers")) for r in side[name]] for side in sides]
        assert ends[0] == ends[1], f"the two ends pair, or count, call {name} differently"
    if secure is not None:
        for record in (*here, *there):
            [story] = {tuple(t.tls.items()) for t in (*at_client.values(), *at_server.values())}
            if at == "go":
                assert record["tls"] == {"library": "go", **dict(story), "version": dict(story)["version"][-3:]}
            else:  # grpcio does not say which version and cipher it has
                tls = dict(record["tls"])
                assert tls.pop("cipher").startswith("TLS_")
                assert tls == {"library": "openssl", "version": "1.3", "sni": NAME, "alpn": "h2"}
    return sides


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_kind_of_call(
    lab: TlsLab, directory: Path, certificates: Certificates, pair: tuple[str, str, str]
) -> None:
    calls = plan("one")
    sides = compare(lab, directory, certificates, pair, calls, streams=1)
    for side in sides:
        for call in calls:
            request, *responses = side[call.id]
            # The Wait of a deadline lasts as long; times are those of the first and the last frame.
            if call.method == "Wait" and call.deadline_ms:
                assert responses[0]["duration_ms"] < call.deadline_ms + 200
            elif responses:
                assert 0 <= responses[0]["ttfb_ms"] <= responses[0]["duration_ms"] < 20_000
            assert request["comm"]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_many_calls_at_a_time(
    lab: TlsLab, directory: Path, certificates: Certificates, pair: tuple[str, str, str]
) -> None:
    """On one connection: their frames take turns."""
    compare(lab, directory, certificates, pair, many("many", 120), streams=20)
