"""Real clients against real servers: what the agent logs is what they say, 23 exchanges, both sides, nothing more.

Each test has three stories to compare: the plan, the server's access log and the client's output. Only when these agree is
the agent's log held against them, once for the client's process and once for the server's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.harness import servers
from tests.real.harness.agent import Agent, port_filters
from tests.real.harness.checks import (
    Exchange,
    assert_equal_to_truth,
    assert_hops,
    assert_only,
)
from tests.real.harness.programs import (
    PYTHON,
    SCRIPTS,
    curl_args,
    free_port,
    require,
    run_client,
)
from tests.real.harness.static_files import STATIC_SIZES, document_root, get
from tests.real.harness.tls_lab import TlsLab
from tests.real.harness.truth import Ask, Truth, agreed, app_plan, go_plan, pattern

pytestmark = pytest.mark.real

SIDES = 4
"""Records of one exchange between two programs of this host."""


@pytest.fixture(scope="module")
def lab() -> Iterator[TlsLab]:
    """For the programs that begin after the agent; others have an agent of their own, which begins after them."""
    with tempfile.TemporaryDirectory(prefix="np-") as name, TlsLab(Path(name)) as opened:
        yield opened


def of_port(found: list[Exchange], port: int) -> list[Exchange]:
    return [e for e in found if e.request["dest_port"] == port]


def messages(found: list[Exchange]) -> list[dict[str, object]]:
    return [record for e in found for record in (e.request, *e.interim, e.response)]


def same_at_both_ends(client: list[Exchange], server: list[Exchange]) -> None:
    assert_hops(messages(client), messages(server))


def writing_plan() -> list[Ask]:
    """23 exchanges for nginx with files below /f/ and PUT switched on."""
    plan = [get(size) for size in STATIC_SIZES]
    plan += [get(100, "?q=a%20b&c=%C3%A9"), get(17, "?a"), get(10_000, "?again")]
    plan += [Ask("HEAD", "/f/1000", 200, b""), Ask("HEAD", "/f/200000?x", 200, b""), Ask("HEAD", "/missing", 404, b"")]
    plan += [Ask("GET", "/missing?x=1", 404), Ask("GET", "/f/missing", 404)]
    plan += [Ask("PUT", "/new/small", 201, None, b"ten bytes."), Ask("PUT", "/new/large", 201, None, bytes(200_000))]
    plan += [Ask("PUT", "/new/small", 204, b"", b"eleven byte"), Ask("POST", "/f/100", 405, None, b"not here")]
    assert len(plan) == 23
    return plan


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_curl_to_nginx_static(directory: Path, host: str) -> None:
    port, asks = free_port(host), writing_plan()
    base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    with servers.nginx_static(directory, port, document_root(directory), host=host) as nginx:
        with Agent(directory, *port_filters(port)) as agent:
            curl = run_client(curl_args(asks, base, directory), directory)
            access = nginx.truth(len(asks), directory / "access.log")
            pids = nginx.pids()
    truth = agreed(asks, access, curl.truth())
    at_client = assert_equal_to_truth(agent.records, truth, "client", pids={curl.pid}, ordered=True)
    at_server = assert_equal_to_truth(agent.records, truth, "server", pids=pids, ordered=True, sendfile=True)
    assert_only(agent.records, at_client, at_server)
    same_at_both_ends(at_client, at_server)
    assert len({e.request["connection"] for e in at_client}) == 1, "curl reused its connection"
    for record in agent.records:
        assert {record["source_ip"], record["dest_ip"]} == {host}
    by_sendfile = [e.response for e in at_server if e.response["completeness"] == "gap"]
    for response in by_sendfile:
        if "body" in response:
            [same] = {e.response["body"] for e in at_client if e.response["hop"] == response["hop"]}
            assert response["body"] == same, "the body read back from the file is not the body that was sent"


@pytest.mark.parametrize("keep_alive", [True, False], ids=["upstream-keep-alive", "upstream-http-1.0"])
def test_curl_to_nginx_proxy_to_go(lab: TlsLab, directory: Path, go_server_binary: Path, keep_alive: bool) -> None:
    [port, upstream], asks = lab.ports(2), go_plan()
    with (
        servers.go_server(directory, upstream, go_server_binary) as go,
        servers.nginx_proxy(directory, port, upstream, keep_alive=keep_alive) as nginx,
    ):
        curl = run_client(curl_args(asks, f"http://127.0.0.1:{port}", directory), directory)
        at_nginx = nginx.truth(len(asks), directory / "access.log")
        at_go = go.truth(len(asks), directory / "go-access.log")
        pids = nginx.pids()
        records = lab.records([port, upstream], 2 * SIDES * len(asks))
    truth = agreed(asks, at_nginx, at_go, curl.truth())
    outer = assert_equal_to_truth(records, truth, "client", pids={curl.pid}, ordered=True)
    proxy_in = assert_equal_to_truth(records, truth, "server", pids=pids, ordered=True, sendfile=True)
    proxy_out = assert_equal_to_truth(records, truth, "client", pids=pids, sendfile=True)
    inner = assert_equal_to_truth(records, truth, "server", pids={go.pid})
    assert_only(records, outer, proxy_in, proxy_out, inner)
    same_at_both_ends(outer, proxy_in)
    same_at_both_ends(proxy_out, inner)
    expected = "HTTP/1.1" if keep_alive else "HTTP/1.0"
    assert {e.request["protocol"] for e in proxy_out} == {expected}


def test_curl_to_haproxy_to_go(lab: TlsLab, directory: Path, go_server_binary: Path) -> None:
    [port, upstream], asks = lab.ports(2), go_plan()
    with (
        servers.go_server(directory, upstream, go_server_binary) as go,
        servers.haproxy(directory, port, upstream) as haproxy,
    ):
        curl = run_client(curl_args(asks, f"http://127.0.0.1:{port}", directory), directory)
        at_haproxy = haproxy.truth(len(asks))
        at_go = go.truth(len(asks), directory / "go-access.log")
        records = lab.records([port, upstream], 2 * SIDES * len(asks))
    truth = agreed(asks, at_haproxy, at_go, curl.truth())
    outer = assert_equal_to_truth(records, truth, "client", pids={curl.pid}, ordered=True)
    proxy_in = assert_equal_to_truth(records, truth, "server", pids={haproxy.pid}, ordered=True)
    proxy_out = assert_equal_to_truth(records, truth, "client", pids={haproxy.pid})
    inner = assert_equal_to_truth(records, truth, "server", pids={go.pid})
    assert_only(records, outer, proxy_in, proxy_out, inner)
    same_at_both_ends(outer, proxy_in)
    same_at_both_ends(proxy_out, inner)


@pytest.mark.parametrize("keep_alive", [True, False], ids=["keep-alive", "close"])
def test_ab_to_apache(lab: TlsLab, directory: Path, keep_alive: bool) -> None:
    """ab speaks HTTP/1.0; with -k it asks for keep-alive. One ab a target, for ab has but one."""
    [port] = lab.ports(1)
    [ab] = require("ab")
    runs = [(5, "GET", "/f/1000"), (5, "GET", "/f/65536?x=1"), (3, "HEAD", "/f/4097"), (4, "GET", "/missing")]
    runs += [(3, "GET", "/f/0"), (3, "POST", "/f/17")]
    (directory / "body").write_bytes(b"b" * 5000)
    told: Counter[tuple[str, str]] = Counter()
    transferred: dict[str, int] = {}
    pids: set[int] = set()
    with servers.apache(directory, port, document_root(directory), sendfile=keep_alive) as apache:
        for count, method, target in runs:
            # With -k ab may send more requests than it was told when it has several connections.
            args = [ab, "-q", "-n", str(count), "-c", "1" if keep_alive else "2", "-s", "10"]
            args += ["-k"] if keep_alive else []
            args += ["-i"] if method == "HEAD" else []
            args += ["-p", str(directory / "body")] if method == "POST" else []
            done = run_client([*args, f"http://127.0.0.1:{port}{target}"], directory)
            pids.add(done.pid)
            complete = re.search(r"^Complete requests: +(\d+)$", done.output, re.MULTILINE)
            html = re.search(r"^HTML transferred: +(\d+) bytes$", done.output, re.MULTILINE)
            assert complete is not None and html is not None, done.output
            told[method, target] = int(complete[1])
            transferred[target] = int(html[1])
        truth = apache.truth(23, directory / "access.log")
        server_pids = apache.pids()
        records = lab.records([port], SIDES * 23)
    # The stories of ab and of Apache, side by side.
    assert told == Counter((t.method, t.target) for t in truth)
    assert sum(told.values()) == 23
    for target, total in transferred.items():
        assert sum(t.response_bytes or 0 for t in truth if t.target == target) == total, target
    known = [
        Truth(
            *(t.method, t.target, t.status, t.response_bytes),
            request_bytes=5000 if t.method == "POST" else 0,
            response_start=pattern(int(t.target[3:].partition("?")[0]), t.target.partition("?")[0])[:4096].decode()
            if t.status == 200
            else None,
        )
        for t in truth
    ]
    at_client = assert_equal_to_truth(records, known, "client", pids=pids)
    at_server = assert_equal_to_truth(records, known, "server", pids=server_pids, sendfile=keep_alive)
    assert_only(records, at_client, at_server)
    same_at_both_ends(at_client, at_server)
    connections = {e.request["connection"] for e in at_client}
    assert len(connections) == (len(runs) if keep_alive else 23)
    assert {e.request["protocol"] for e in at_client} == {"HTTP/1.0"}


@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/1.0"])
def test_wget_to_python(lab: TlsLab, directory: Path, protocol: str) -> None:
    """wget has one method a run; the files that it saves are its truth."""
    [port], asks = lab.ports(1), app_plan()
    [wget] = require("wget")
    base = f"http://127.0.0.1:{port}"
    groups: dict[tuple[str, bytes], list[Ask]] = {}
    for ask in asks:
        groups.setdefault((ask.method, ask.request), []).append(ask)
    told: list[Truth] = []
    pids: set[int] = set()
    with servers.python_http_server(directory, port, protocol) as server:
        for number, ((method, body), group) in enumerate(groups.items()):
            saved = directory / f"saved-{number}"
            saved.mkdir()
            args = [wget, "-q", "--no-config", "--no-proxy", "--tries=1", "--timeout=20", "--content-on-error"]
            if protocol == "HTTP/1.0":
                args += ["--no-http-keep-alive"]
            if method == "HEAD":
                args += ["--spider"]
            elif method == "GET":
                args += ["-nH", "-x", "-P", str(saved)]
            else:
                (directory / "body").write_bytes(body)
                args += [f"--method={method}", f"--body-file={directory / 'body'}", "-nH", "-x", "-P", str(saved)]
            done = run_client([*args, *(base + ask.target for ask in group)], directory, ok=(0, 8))
            pids.add(done.pid)
            for ask in group:
                size = 0
                if method != "HEAD":
                    [path] = [p for p in saved.rglob("*") if p.is_file() and unquoted(p, saved) == ask.target]
                    size = path.stat().st_size
                told.append(Truth(ask.method, ask.target, ask.status, size))
        access = server.truth(len(asks))
        records = lab.records([port], SIDES * len(asks))
    truth = agreed(asks, access, told)
    at_client = assert_equal_to_truth(records, truth, "client", pids=pids)
    at_server = assert_equal_to_truth(records, truth, "server", pids={server.pid})
    assert_only(records, at_client, at_server)
    same_at_both_ends(at_client, at_server)
    assert {e.response["protocol"] for e in at_client} == {protocol}


def unquoted(path: Path, root: Path) -> str:
    """wget names a file by the decoded target; our targets decode to nothing else among them."""
    name = "/" + str(path.relative_to(root))
    return name.replace("a b", "a%20b").replace("\u00e9", "%C3%A9")


def write_plan(directory: Path, asks: list[Ask]) -> Path:
    path = directory / "plan.json"
    path.write_text(json.dumps([[ask.method, ask.target, ask.request.decode()] for ask in asks]))
    return path


@pytest.mark.parametrize("unix", [True, False], ids=["unix", "tcp"])
def test_requests_to_gunicorn(directory: Path, unix: bool) -> None:
    port, asks = free_port(), app_plan()
    path = str(directory / "gunicorn.sock")
    address = path if unix else ("127.0.0.1", port)
    plan = write_plan(directory, asks)
    with servers.gunicorn(directory, bind=f"unix:{path}" if unix else f"127.0.0.1:{port}", address=address) as gunicorn:
        # A UNIX socket has no port: there this process is watched, and with it its children, now and later.
        filters = ["--pid", str(os.getpid())] if unix else port_filters(port)
        with Agent(directory, *filters) as agent:
            base = path if unix else f"http://127.0.0.1:{port}"
            done = run_client([PYTHON, SCRIPTS / "requests_client.py", base, plan], directory)
            access = gunicorn.truth(len(asks))
            pids = gunicorn.pids()
    records = agent.records
    truth = agreed(asks, access, done.truth())
    at_client = assert_equal_to_truth(records, truth, "client", pids={done.pid}, unix=unix, ordered=True)
    at_server = assert_equal_to_truth(records, truth, "server", pids=pids, unix=unix, ordered=True)
    assert_only(records, at_client, at_server)
    if unix:
        assert {r["unix_path"] for r in records} == {path}
    else:
        same_at_both_ends(at_client, at_server)


def test_node_fetch_and_request_to_node(lab: TlsLab, directory: Path) -> None:
    [port], asks = lab.ports(1), app_plan()
    [node] = require("node")
    plan = write_plan(directory, asks)
    with servers.node_server(directory, port) as server:
        done = run_client([node, SCRIPTS / "node_client.js", f"http://127.0.0.1:{port}", plan], directory)
        access = server.truth(len(asks))
        records = lab.records([port], SIDES * len(asks))
    truth = agreed(asks, access, done.truth())
    at_client = assert_equal_to_truth(records, truth, "client", pids={done.pid})
    at_server = assert_equal_to_truth(records, truth, "server", pids={server.pid})
    assert_only(records, at_client, at_server)
    same_at_both_ends(at_client, at_server)
    by_fetch = [e for e in at_client if "sec-fetch-mode" in e.request["headers"]]
    assert len(by_fetch) == 12, "half of the requests came from undici, which fetch is"


@pytest.mark.parametrize("version", ["HTTP_1_1", "default"])
def test_java_to_java(lab: TlsLab, directory: Path, classes: Path, version: str) -> None:
    """By default the JDK's client asks for HTTP/2 with ``Upgrade: h2c``, which the JDK's server ignores."""
    [port], asks = lab.ports(1), app_plan()
    [java] = require("java")
    plan = directory / "plan.tsv"
    lines = []
    for number, ask in enumerate(asks):
        (directory / f"body-{number}").write_bytes(ask.request)
        lines.append(f"{ask.method}\t{ask.target}\t{directory / f'body-{number}'}\n")
    plan.write_text("".join(lines))
    with servers.java_server(directory, port, classes) as server:
        command: list[str | Path] = [
            java,
            *servers.JAVA_FLAGS,
            "-cp",
            classes,
            "Client",
            f"http://127.0.0.1:{port}",
            plan,
            version,
        ]
        done = run_client(command, directory)
        access = server.truth(len(asks))
        records = lab.records([port], SIDES * len(asks))
    truth = agreed(asks, access, done.truth())
    at_client = assert_equal_to_truth(records, truth, "client", pids={done.pid}, ordered=True)
    at_server = assert_equal_to_truth(records, truth, "server", pids={server.pid}, ordered=True)
    assert_only(records, at_client, at_server)
    same_at_both_ends(at_client, at_server)
    upgrades = [e for e in at_client if e.request["headers"].get("Upgrade") == "h2c"]
    assert bool(upgrades) == (version == "default")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_go_to_go(directory: Path, go_server_binary: Path, go_traffic_binary: Path, host: str) -> None:
    port = free_port(host)
    with servers.go_server(directory, port, go_server_binary, host=host) as server:
        # traffic/ sends tokens, which would be redacted; what is compared here is what was sent.
        with Agent(directory, "--no-redact", *port_filters(port)) as agent:
            command: list[str | Path] = [go_traffic_binary, "-host", host, "-port", str(port), "-json"]
            command += ["-requests", "23", "-delay-ms", "0"]
            done = run_client(command, directory)
            truth = server.truth(23, directory / "go-access.log")
    report = json.loads(done.output)
    assert (report["requests"], report["errors"], len(truth)) == (23, 0, 23)
    for row in report["rows"]:
        mine = [t for t in truth if (t.method, t.target.partition("?")[0]) == (row["method"], row["path"])]
        assert (len(mine), {t.status for t in mine}) == (row["count"], {row["status"]}), row
        assert sum(t.response_bytes or 0 for t in mine) == row["response_body_bytes"], row
        assert sum(t.request_bytes or 0 for t in mine) == row["request_body_bytes"], row
    at_client = assert_equal_to_truth(agent.records, truth, "client", pids={done.pid}, ordered=True)
    at_server = assert_equal_to_truth(agent.records, truth, "server", pids={server.pid}, ordered=True)
    assert_only(agent.records, at_client, at_server)
    same_at_both_ends(at_client, at_server)
    for e in (*at_client, *at_server):
        if e.request["url"] == "/echo" and e.request["method"] == "POST":
            assert e.request["body"] == e.response["body"], "an echo is what was sent"


def test_curl_to_go_with_interim_responses_chunks_and_events(
    lab: TlsLab, directory: Path, go_server_binary: Path
) -> None:
    """What Go's server makes of Expect, 103, chunks with a trailer, and server-sent events."""
    [port] = lab.ports(1)
    pieces = "".join(f"piece {n} of 5\n" for n in range(1, 6)).encode()
    events = "".join(f'id: {n}\nevent: tick\ndata: {{"tick":{n}}}\n\n' for n in range(1, 6)).encode()
    body = pattern(3000, "expected")
    asks = [
        Ask("GET", "/early", 200),
        Ask("POST", "/echo?expect", 200, body, body),
        Ask("GET", "/chunked?n=5", 200, pieces),
        Ask("GET", "/events?n=5&interval_ms=30", 200, events),
        Ask("GET", "/status/304", 304, b""),
    ]
    with servers.go_server(directory, port, go_server_binary) as server:
        command = curl_args(asks, f"http://127.0.0.1:{port}", directory, "-H", "Expect: 100-continue")
        curl = run_client(command, directory)
        access = server.truth(len(asks), directory / "go-access.log")
        records = lab.records([port], SIDES * len(asks) + 2 * 2)
    truth = agreed(asks, access, curl.truth())
    at_client = assert_equal_to_truth(records, truth, "client", pids={curl.pid}, ordered=True)
    at_server = assert_equal_to_truth(records, truth, "server", pids={server.pid}, ordered=True)
    assert_only(records, at_client, at_server)
    same_at_both_ends(at_client, at_server)
    for side in (at_client, at_server):
        early, echo, chunked, sse, not_modified = side
        assert [r["status_code"] for r in early.interim] == [103]
        assert early.interim[0]["headers"] == {"Link": "</style.css>; rel=preload; as=style"}
        assert [r["status_code"] for r in echo.interim] == [100]
        assert echo.request["body"] == body.decode()
        assert chunked.response["trailers"] == {"X-Body-Sha256": hashlib.sha256(pieces).hexdigest()}
        assert sse.response["duration_ms"] >= 120
        assert [e.interim for e in (chunked, sse, not_modified)] == [()] * 3


def test_curl_processes_that_live_for_milliseconds(lab: TlsLab, directory: Path, go_server_binary: Path) -> None:
    """Who sent it must be known although /proc/PID is gone when the agent looks."""
    [port] = lab.ports(1)
    curl = require("curl")[0]
    with servers.go_server(directory, port, go_server_binary) as server:
        wanted = {}
        for number in range(23):
            command = [curl, "-s", "-o", "/dev/null", f"http://127.0.0.1:{port}/echo?number={number}"]
            done = run_client(command, directory)
            wanted[done.pid] = (" ".join(command), f"/echo?number={number}")
        truth = server.truth(23, directory / "go-access.log")
        records = lab.records([port], SIDES * 23)
    assert len(wanted) == 23
    at_client = assert_equal_to_truth(records, truth, "client", pids=wanted)
    at_server = assert_equal_to_truth(records, truth, "server", pids={server.pid})
    assert_only(records, at_client, at_server)
    same_at_both_ends(at_client, at_server)
    for e in at_client:
        for record in (e.request, e.response):
            assert record["comm"] == "curl"
            assert record["cmdline"] == wanted[record["pid"]][0]
        assert e.request["url"] == wanted[e.request["pid"]][1], "the request of another curl"
