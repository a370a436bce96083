"""HTTP/2 between real programs, by prior knowledge, by upgrade and by ALPN: what the agent logs is what they say, both sides, nothing more."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.real.harness import http2
from tests.real.harness.agent import Agent, port_filters
from tests.real.harness.checks import brief, exchanges, is_request, validate_record
from tests.real.harness.http2 import assert_handshakes, assert_same_exchanges, both_sides, probed
from tests.real.harness.programs import Program, curl_args, free_port, require, run_client
from tests.real.harness.static_files import document_root, get, static_plan
from tests.real.harness.tls import Certificates, messages
from tests.real.harness.tls_lab import TlsLab
from tests.real.harness.truth import Ask, Truth, agreed, app_plan, pattern

pytestmark = pytest.mark.real

COUNT = 23
SIDES = 4
"""Records of one exchange between two programs of this host."""
TIMEOUT_SECONDS = 600
"""The first run of all builds the Go programs."""
WAYS = ["plain", "tls"]


@pytest.fixture(scope="module")
def lab() -> Iterator[TlsLab]:
    with tempfile.TemporaryDirectory(prefix="np-") as name, TlsLab(Path(name)) as opened:
        yield opened


# ---- agents of their own: h2load's records are many, interim and partial ones would be among the others' ----


def told_by_h2load(output: str) -> tuple[int, int]:
    """How many exchanges succeeded, and the bytes of all bodies."""
    [requests] = re.findall(
        r"^requests: (\d+) total, \1 started, \1 done, \1 succeeded, 0 failed", output, re.MULTILINE
    )
    [data] = re.findall(r"headers \(space savings .*\), .* \((\d+)\) data$", output, re.MULTILINE)
    return int(requests), int(data)


@pytest.mark.timeout(TIMEOUT_SECONDS)
@pytest.mark.parametrize("way", WAYS)
def test_h2load_to_nginx(directory: Path, certificates: Certificates, way: str) -> None:
    """A hundred streams at a time on each of ten connections."""
    port, count, sizes = free_port(), 5000, (0, 17, 100, 1000, 4097)
    [h2load] = require("h2load")
    secure = certificates if way == "tls" else None
    base = http2.base(port, secure)
    with Agent(directory, *port_filters(port)) as agent:
        with http2.nginx(directory, port, document_root(directory), secure) as nginx:
            args = [h2load, "-n", str(count), "-c", "10", "-m", "100", *(f"{base}/f/{size}" for size in sizes)]
            done = run_client(args, directory)
            access = nginx.truth(count, directory / "access.log")
            pids = nginx.pids()
        agent.wait_for_records(SIDES * count, seconds=20)
    truth = agreed([get(size) for size in sizes] * (count // len(sizes)), access)
    truth = [Truth(t.method, t.target, t.status, t.response_bytes, 0, t.response_start) for t in truth]
    assert told_by_h2load(done.output) == (count, sum(t.response_bytes or 0 for t in truth))
    at_client, at_server = both_sides(agent.records, truth, {done.pid}, pids)
    for side in (at_client, at_server):
        numbers: dict[str, list[int]] = {}
        for e in side:
            numbers.setdefault(e.request["connection"], []).append(int(http2.number_of(e.request)))
        assert len(numbers) == 10
        assert all(sorted(found) == list(range(1, len(found) + 1)) for found in numbers.values())


EVENTS = 6
EVENT_MILLISECONDS = 500


@pytest.mark.timeout(TIMEOUT_SECONDS)
@pytest.mark.parametrize("way", WAYS)
def test_server_sent_events(directory: Path, certificates: Certificates, way: str) -> None:
    """A stream of three seconds: what there is after one second, and all of it at its end; and a short exchange behind it."""
    port = free_port()
    secure = certificates if way == "tls" else None
    target = f"/events/{EVENTS}?every={EVENT_MILLISECONDS}"
    events = "".join(f"id: {n}\ndata: event {n} of {EVENTS}\n\n" for n in range(EVENTS))
    asks = [Ask("GET", target, 200, events.encode()), Ask("GET", "/bytes/5", 200, pattern(5, "/bytes/5"))]
    with Agent(directory, "--stream-interval", "1", *port_filters(port)) as agent:
        with go_watched(directory, port, secure, agent.pid) as server:
            done = http2.go_client(asks, port, directory, secure)
            truth = agreed(asks, server.truth(len(asks)), done.truth())
    interim = [r for r in agent.records if r["completeness"] == "open"]
    final = [r for r in agent.records if r["completeness"] != "open"]
    both_sides(final, truth, {done.pid}, {server.pid})
    assert {(r["role"], r["status_code"]) for r in interim} == {("client", 200), ("server", 200)} and len(interim) == 2
    for record in interim:
        [whole] = [r for r in final if r["hop"] == record["hop"] and r["role"] == record["role"]]
        assert record["exchange"] == whole["exchange"] and record["headers"] == whole["headers"]
        # The interval is over with the third event; a machine that is busy may be later.
        assert events.startswith(record["body"]) and events != record["body"] and record["body"].endswith("\n\n")
        assert record["body"].count("\n\n") >= 2
        assert record["body_bytes"] == len(record["body"])
        assert record["timestamp"] == whole["timestamp"] and "duration_ms" not in record
        assert whole["body"] == events and whole["completeness"] == "complete"
        assert whole["duration_ms"] >= (EVENTS - 1) * EVENT_MILLISECONDS


def go_watched(
    directory: Path, port: int, secure: Certificates | None, agent_pid: int
) -> AbstractContextManager[Program]:
    """Over TLS: and probed."""
    program = http2.go_server(directory, port, secure)
    return program if secure is None else probed(program, agent_pid)


@pytest.mark.timeout(TIMEOUT_SECONDS)
@pytest.mark.parametrize("way", WAYS)
def test_responses_that_are_reset(directory: Path, certificates: Certificates, way: str) -> None:
    """RST_STREAM after so many bytes: the response is partial, and has these; its neighbours are whole."""
    port = free_port()
    asks = []
    for size in (1, 300, 4096, 30_000):
        asks.append(Ask("GET", f"/bytes/{size}", 200, pattern(size, f"/bytes/{size}")))
        asks.append(Ask("GET", f"/abort/{size}", 200, pattern(size, f"/abort/{size}")))
    secure = certificates if way == "tls" else None
    with Agent(directory, *port_filters(port), allowed_rows={"partial"}) as agent:
        with go_watched(directory, port, secure, agent.pid) as server:
            done = http2.go_client(asks, port, directory, secure)
            truth = agreed(asks, server.truth(len(asks)), done.truth())
    assert done.output.count("stream error") == len(asks) // 2
    records = agent.records
    assert len(records) == SIDES * len(asks), [brief(r) for r in records]
    reset = [r for r in records if not is_request(r) and r["completeness"] == "partial"]
    assert len(reset) == len(asks)
    sides = [exchanges(records, "client"), exchanges(records, "server")]
    assert_same_exchanges(*sides)
    for side, pid in zip(sides, (done.pid, server.pid), strict=True):
        assert [(e.request["url"], e.response["body_bytes"]) for e in side] == [
            (a.target, a.response_bytes) for a in asks
        ]
        for e, ask in zip(side, asks, strict=True):
            assert e.request["pid"] == e.response["pid"] == pid
            assert (e.response["completeness"] == "partial") == ask.target.startswith("/abort/")
            assert e.response.get("body") == (ask.response or b"")[:4096].decode()
            for record in messages([e]):
                validate_record(record)
    assert [t.response_bytes for t in truth] == [a.response_bytes for a in asks]


# ---- one agent for the others ----


@pytest.mark.parametrize("way", ["plain", "tls", "tls at a time"])
def test_curl_to_nginx(lab: TlsLab, directory: Path, certificates: Certificates, way: str) -> None:
    [port], asks = lab.ports(1), static_plan()
    asks[2] = Ask("PUT", "/new/large", 201, None, pattern(200_000, "put"))
    secure = None if way == "plain" else certificates
    options = ["--parallel"] if way == "tls at a time" else []
    with http2.nginx(directory, port, document_root(directory), secure) as nginx:
        done = http2.curl(asks, port, directory, secure, *options)
        access = nginx.truth(COUNT, directory / "access.log")
        pids = nginx.pids()
    truth = agreed(asks, access, done.truth())
    at_client, at_server = both_sides(lab.records([port], SIDES * COUNT), truth, {done.pid}, pids, hasty=True)
    assert len({e.request["connection"] for e in at_client}) == 1, "curl reused its connection"
    if secure:
        assert_handshakes(at_client, at_server, ("openssl", "openssl"), (directory / "access.log").read_text())


def test_curl_to_nginx_with_sendfile(lab: TlsLab, directory: Path) -> None:
    """The frames' headers are written, their payload goes out by sendfile: a length without bytes at the server."""
    [port], asks = lab.ports(1), static_plan()
    with http2.nginx(directory, port, document_root(directory), None, sendfile=True) as nginx:
        done = http2.curl(asks, port, directory, None)
        access = nginx.truth(COUNT, directory / "access.log")
        pids = nginx.pids()
    truth = agreed(asks, access, done.truth())
    records = lab.records([port], SIDES * COUNT)
    _, at_server = both_sides(records, truth, {done.pid}, pids, sendfile=True, hasty=True)
    assert [e for e in at_server if e.response["completeness"] == "gap"], "nginx used sendfile"


@pytest.mark.parametrize("way", ["plain", "upgrade", "tls"])
def test_curl_to_apache(lab: TlsLab, directory: Path, certificates: Certificates, way: str) -> None:
    [port], asks = lab.ports(1), static_plan()
    secure = certificates if way == "tls" else None
    upgraded = COUNT if way == "upgrade" else 0
    log = directory / ("tls.log" if secure else "access.log")
    with http2.apache(directory, port, document_root(directory), secure) as apache:
        if upgraded:
            clients, told = http2.curl_upgrading(asks, port, directory)
        else:
            done = http2.curl(asks, port, directory, secure)
            clients, told = {done.pid}, done.truth()
        access = http2.apache_truth(apache, log, COUNT, upgraded=bool(upgraded))
        pids = apache.pids()
    truth = agreed(asks, access, told)
    records = lab.records([port], SIDES * COUNT + 2 * upgraded)
    at_client, at_server = both_sides(records, truth, clients, pids, upgraded=upgraded, hasty=True)
    if secure:
        assert_handshakes(
            at_client, at_server, ("openssl", "openssl"), log.read_text(), '{"version":"1.3","alpn":"h2"}'
        )


@pytest.mark.timeout(TIMEOUT_SECONDS)
@pytest.mark.parametrize("way", ["plain", "upgrade", "tls"])
def test_curl_to_go(lab: TlsLab, directory: Path, certificates: Certificates, way: str) -> None:
    """The upgraded connection goes on to serve."""
    [port], asks = lab.ports(1), app_plan()
    secure = certificates if way == "tls" else None
    with go_watched(directory, port, secure, lab.agent.pid) as server:
        if way == "upgrade":
            done = run_client(curl_args(asks, http2.base(port, None), directory, "--http2"), directory)
        else:
            done = http2.curl(asks, port, directory, secure)
        truth = agreed(asks, server.truth(COUNT), done.truth())
    upgraded = int(way == "upgrade")
    records = lab.records([port], SIDES * COUNT + 2 * upgraded)
    at_client, at_server = both_sides(records, truth, {done.pid}, {server.pid}, upgraded=upgraded, hasty=True)
    assert len({e.request["connection"] for e in at_client}) == 1
    if secure:
        assert_handshakes(at_client, at_server, ("openssl", "go"), server.log.read_text())


def test_curl_upgrades_each_connection_to_go(lab: TlsLab, directory: Path) -> None:
    """The request's body is HTTP/1.1's; the answer comes when it is whole."""
    [port] = lab.ports(1)
    asks = [ask for ask in app_plan() if len(ask.request) < 60_000]
    with http2.go_server(directory, port, None) as server:
        clients, told = http2.curl_upgrading(asks, port, directory, "-H", "Expect:")
        truth = agreed(asks, server.truth(len(asks)), told)
    records = lab.records([port], 6 * len(asks))
    at_client, at_server = both_sides(records, truth, clients, {server.pid}, upgraded=len(asks), hasty=True)
    bodies = {(ask.method, ask.target): ask.request[:4096].decode() for ask in asks}
    for e in (*at_client, *at_server):
        assert e.request.get("body", "") == bodies[e.request["method"], e.request["url"]]


@pytest.mark.parametrize("way", WAYS)
def test_curl_to_node(lab: TlsLab, directory: Path, certificates: Certificates, way: str) -> None:
    [port], asks = lab.ports(1), app_plan()
    secure = certificates if way == "tls" else None
    with node_watched(directory, port, secure, lab.agent.pid) as server:
        done = http2.curl(asks, port, directory, secure)
        truth = agreed(asks, server.truth(COUNT), done.truth())
    records = lab.records([port], SIDES * COUNT)
    at_client, at_server = both_sides(records, truth, {done.pid}, {server.pid}, hasty=True)
    if secure:
        assert_handshakes(at_client, at_server, ("openssl", "openssl"), server.log.read_text())


def node_watched(
    directory: Path, port: int, secure: Certificates | None, agent_pid: int
) -> AbstractContextManager[Program]:
    """Over TLS: and probed; OpenSSL is in Node's own executable."""
    program = http2.node_server(directory, port, secure)
    return program if secure is None else probed(program, agent_pid)


@pytest.mark.parametrize("streams", [1, 20])
@pytest.mark.parametrize("way", WAYS)
def test_node_to_node(lab: TlsLab, directory: Path, certificates: Certificates, way: str, streams: int) -> None:
    [port], asks = lab.ports(1), app_plan()
    secure = certificates if way == "tls" else None
    with node_watched(directory, port, secure, lab.agent.pid) as server:
        done = http2.node_client(asks, port, directory, secure, streams=streams)
        truth = agreed(asks, server.truth(COUNT), done.truth())
    records = lab.records([port], SIDES * COUNT)
    at_client, at_server = both_sides(records, truth, {done.pid}, {server.pid})
    assert len({e.request["connection"] for e in at_client}) == 1
    if secure:
        told = server.log.read_text(), done.output
        assert_handshakes(at_client, at_server, ("openssl", "openssl"), *told)


def together(streams: int, rounds: int) -> list[Ask]:
    """The server answers when so many are under way: small and large bodies, both ways."""
    plan = [Ask("GET", "/bytes/3", 200, pattern(3, "/bytes/3"))]
    sizes = (0, 1, 13, 900, 4096, 5000, 20_000) if streams < 100 else (0, 1, 13, 900, 4097)
    for number in range(streams * rounds):
        size, query = sizes[number % len(sizes)], f"?together={streams}&n={number}"
        if number % 3:
            plan.append(Ask("GET", f"/bytes/{size}{query}", 200, pattern(size, f"/bytes/{size}")))
        else:
            body = pattern(size, f"echo{number}")
            plan.append(Ask("POST", f"/echo{query}", 200, body, body))
    return plan


@pytest.mark.timeout(TIMEOUT_SECONDS)
@pytest.mark.parametrize(("streams", "rounds"), [(1, 23), (2, 12), (20, 5), (500, 1)])
@pytest.mark.parametrize("way", WAYS)
def test_go_client_with_streams_at_a_time(
    lab: TlsLab, directory: Path, certificates: Certificates, way: str, streams: int, rounds: int
) -> None:
    [port], asks = lab.ports(1), together(streams, rounds)
    secure = certificates if way == "tls" else None
    with go_watched(directory, port, secure, lab.agent.pid) as server:
        done = http2.go_client(asks, port, directory, secure, streams=streams)
        truth = agreed(asks, server.truth(len(asks)), done.truth())
    records = lab.records([port], SIDES * len(asks))
    at_client, at_server = both_sides(records, truth, {done.pid}, {server.pid})
    sent = {ask.target: ask.request[:4096].decode() for ask in asks}
    for side in (at_client, at_server):
        assert len({e.request["connection"] for e in side}) == 1
        assert sorted(int(http2.number_of(e.request)) for e in side) == list(range(1, len(asks) + 1))
        assert all(e.request.get("body", "") == sent[e.request["url"]] for e in side)
    if secure:
        assert_handshakes(at_client, at_server, ("go", "go"), server.log.read_text(), done.output)


@pytest.mark.timeout(TIMEOUT_SECONDS)
@pytest.mark.parametrize("way", WAYS)
def test_go_client_to_nginx_and_node_client_to_go(
    lab: TlsLab, directory: Path, certificates: Certificates, way: str
) -> None:
    """Each library with another's: nghttp2's encoder is not Go's, and neither is nginx's."""
    secure = certificates if way == "tls" else None
    [port], asks = lab.ports(1), static_plan()
    with http2.nginx(directory, port, document_root(directory), secure) as nginx:
        done = http2.go_client(asks, port, directory, secure, streams=5)
        truth = agreed(asks, nginx.truth(COUNT, directory / "access.log"), done.truth())
        pids = nginx.pids()
    both_sides(lab.records([port], SIDES * COUNT), truth, {done.pid}, pids)

    [port], asks = lab.ports(1), app_plan()
    with go_watched(directory, port, secure, lab.agent.pid) as server:
        done = http2.node_client(asks, port, directory, secure, streams=5)
        truth = agreed(asks, server.truth(COUNT), done.truth())
    both_sides(lab.records([port], SIDES * COUNT), truth, {done.pid}, {server.pid})


@pytest.mark.timeout(TIMEOUT_SECONDS)
@pytest.mark.parametrize("way", WAYS)
def test_early_hints_and_trailers(lab: TlsLab, directory: Path, certificates: Certificates, way: str) -> None:
    sizes = (0, 9, 5000, 70_000)
    [port] = lab.ports(1)
    asks = [Ask("GET", f"/trailers/{size}", 200, pattern(size, f"/trailers/{size}")) for size in sizes]
    secure = certificates if way == "tls" else None
    with go_watched(directory, port, secure, lab.agent.pid) as server:
        done = http2.go_client(asks, port, directory, secure, streams=2)
        truth = agreed(asks, server.truth(len(asks)), done.truth())
    sums = {f"/trailers/{size}": hashlib.sha256(pattern(size, f"/trailers/{size}")).hexdigest() for size in sizes}
    at_client, at_server = both_sides(lab.records([port], 6 * len(asks)), truth, {done.pid}, {server.pid})
    for e in (*at_client, *at_server):
        [hints] = e.interim
        assert hints["status_code"] == 103 and hints["body_bytes"] == 0
        assert hints["headers"]["link"] == "</style.css>; rel=preload; as=style"
        assert "link" not in e.response["headers"] and e.response["headers"]["trailer"] == "Sum"
        assert e.response["trailers"] == {"sum": sums[e.request["url"]]}
