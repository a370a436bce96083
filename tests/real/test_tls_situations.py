"""What TLS connections do besides exchanging: begin before the agent, resume, send early, renegotiate, close by halves, outlive their library.

Exact, or absent where it cannot be known; never another connection's. Most of it is led by the test itself, by two processes that use OpenSSL
as they are told (``programs/tls_actor.c``).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.real.harness import tls_servers
from tests.real.harness.agent import Agent
from tests.real.harness.checks import (
    Exchange,
    Record,
    Role,
    assert_equal_to_truth,
    assert_hops,
    assert_only,
    brief,
    is_request,
)
from tests.real.harness.programs import (
    PYTHON,
    REPOSITORY,
    SCRIPTS,
    Program,
    Talker,
    curl_args,
    free_port,
    require,
    run_client,
    talk,
)
from tests.real.harness.tls import (
    NAME,
    Certificates,
    Negotiated,
    assert_tls,
    build_c,
    messages,
    negotiated,
    one_story,
    tls_lines,
)
from tests.real.harness.tls_lab import TlsLab
from tests.real.harness.tls_wire import Actor, TlsWire, request_bytes, response_bytes, shaken, tls_wire
from tests.real.harness.truth import Ask, Truth, agreed, app_plan, from_json_log, pattern

pytestmark = pytest.mark.real

COUNT = 23
SIDES = 4
MIB = 1024 * 1024
CLOSED_BY_NOTIFY = ["6"]
"""SSL_ERROR_ZERO_RETURN"""


@pytest.fixture(scope="module")
def tls_lab() -> Iterator[TlsLab]:
    with tempfile.TemporaryDirectory(prefix="np-") as name, TlsLab(Path(name)) as opened:
        yield opened


@pytest.fixture(scope="module")
def actor_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_c("tls_actor", tmp_path_factory.mktemp("actor"), "-lssl", "-lcrypto")


@pytest.fixture
def wire(tls_lab: TlsLab, directory: Path, certificates: Certificates, actor_binary: Path) -> Iterator[TlsWire]:
    [port] = tls_lab.ports(1)
    with tls_wire(actor_binary, directory, certificates, port) as made:
        yield made


def judge(
    lab: TlsLab,
    wire: TlsWire,
    *,
    offered: bool = False,
    early: bool = False,
    truth: Sequence[Truth] | None = None,
) -> tuple[list[Exchange], list[Exchange]]:
    """All of the wire, both ends, in order, with the handshake that both ends told."""
    wanted = wire.truth if truth is None else truth
    records = lab.records([wire.port], SIDES * len(wanted))
    at_client = assert_equal_to_truth(records, wanted, "client", pids={wire.client.pid}, ordered=True)
    at_server = assert_equal_to_truth(records, wanted, "server", pids={wire.server.pid}, ordered=True)
    assert_only(records, at_client, at_server)
    assert_hops(messages(at_client), messages(at_server))
    for side in (at_client, at_server):
        assert len({e.request["connection"] for e in side}) == len(wire.handshakes)
        for told in wire.handshakes:
            mine = [e for e in side if e.request["source_port"] == told.client_port]
            assert_tls(mine, "openssl", told.negotiated, offered=offered, early=early)
    for here, there in zip(at_client, at_server, strict=True):
        for key in ("url", "body", "raw_payload", "completeness"):
            assert here.request.get(key) == there.request.get(key), f"{key} of the request differs"
            assert here.response.get(key) == there.response.get(key), f"{key} of the response differs"
    return at_client, at_server


BEFORE = 2
"""Exchanges before the agent: one on each of the two connections that Node's client has."""


def joined_plan() -> list[Ask]:
    """For the small servers; no HEAD, because undici closes its connection after one."""
    plan = [Ask("GET", f"/bytes/{n}", 200, pattern(n, f"/bytes/{n}")) for n in (10, 20)]
    for number in range(COUNT):
        body = pattern(number * 1111, f"joined{number}") if number % 3 else b""
        size = number * 777
        if body:
            plan.append(Ask("POST", f"/echo?{number}", 200, body, body))
        else:
            plan.append(Ask("GET", f"/bytes/{size}?{number}", 200, pattern(size, f"/bytes/{size}")))
    return plan


def files_plan(root: Path) -> list[Ask]:
    (root / "f").mkdir(parents=True)
    plan = []
    for number in range(BEFORE + COUNT):
        body = pattern(number * 777, f"file{number}")
        (root / "f" / str(number)).write_bytes(body)
        plan.append(Ask("GET", f"/f/{number}", 200, body))
    return plan


JOINED = ("ssl", "asyncio", "node", "nginx", "haproxy")
MEMORY = frozenset({("client", "asyncio"), ("server", "asyncio"), ("client", "node"), ("server", "node")})
"""Where OpenSSL never saw the socket, and the ClientHello went by before the agent: the addresses may be absent."""
IN_A_CALL = frozenset({("server", "ssl")})
"""Where a thread waits in SSL_read when the agent comes: what that call returns, the first request, nobody saw."""


# The first test of the module, so that its programs are not seen by the agent that the others share.
def test_connections_that_were_there_before_the_agent(directory: Path, certificates: Certificates) -> None:
    """Each of the five has a connection with exchanges on it; the agent comes; the other 23 are exact. Of the handshake nothing is known."""
    ports = {name: free_port() for name in JOINED}
    upstream = free_port()
    files = files_plan(directory / "root")
    plans = {name: files if name == "nginx" else joined_plan() for name in JOINED}
    [env, node] = require("env", "node")
    access_logs = {"nginx": directory / "access.log"}
    with contextlib.ExitStack() as stack:
        plain: list[str | Path] = [PYTHON, SCRIPTS / "http_server.py", str(upstream), "HTTP/1.1"]
        stack.enter_context(Program(plain, directory, name="plain", address=("127.0.0.1", upstream)))
        server_of = {
            "ssl": tls_servers.python_server(directory, ports["ssl"], certificates, "http.server"),
            "asyncio": tls_servers.python_server(directory, ports["asyncio"], certificates, "asyncio"),
            "node": tls_servers.node_server(directory, ports["node"], certificates),
            "nginx": tls_servers.nginx(directory, ports["nginx"], certificates, directory / "root"),
            "haproxy": tls_servers.haproxy(directory, ports["haproxy"], upstream, certificates),
        }
        for server in server_of.values():
            stack.enter_context(server)
        talkers: dict[str, Talker] = {}
        for name, port in ports.items():
            plan = directory / f"plan-{name}"
            plan.write_text(json.dumps([[ask.method, ask.target, ask.request.decode()] for ask in plans[name]]))
            args: list[str | Path]
            if name == "node":
                args = [env, f"NODE_EXTRA_CA_CERTS={certificates.ca}", node, SCRIPTS / "node_tls_client.js"]
                args += [f"https://{NAME}:{port}", plan, str(BEFORE)]
            else:
                kind = "asyncio" if name == "asyncio" else "ssl"
                args = [PYTHON, SCRIPTS / "tls_talk.py", kind, str(port), certificates.ca, plan, str(BEFORE)]
            talkers[name] = stack.enter_context(talk(args, directory))
        for talker in talkers.values():
            assert talker.line(20) == "open"
        # Not by port: where the socket is not known, neither is its port.
        watched = {pid for server in server_of.values() for pid in server.pids()} | {t.pid for t in talkers.values()}
        with Agent(directory, *(f"--pid={pid}" for pid in watched)) as agent:
            told: dict[str, list[Truth]] = {}
            for talker in talkers.values():
                talker.say("go on")
            for name, talker in talkers.items():
                told[name] = from_json_log("\n".join(json.dumps(entry) for entry in json.loads(talker.line(20))))
            agent.wait_for_records(SIDES * COUNT * (len(JOINED) + 1))  # and HAProxy's other side, in plaintext
            time.sleep(0.3)
            for talker in talkers.values():
                talker.say("close")
                talker.end(10)
            pids = {name: server.pids() for name, server in server_of.items()}
            clients = {name: {talker.pid} for name, talker in talkers.items()}
        accesses = {
            name: server.truth(BEFORE + COUNT, access_logs.get(name))[BEFORE:] for name, server in server_of.items()
        }
        logs = {
            name: access_logs.get(name, server.log).read_text().splitlines()[BEFORE:]
            for name, server in server_of.items()
        }
    inside = [record for record in agent.records if "tls" in record]
    failures = []
    accounted: list[list[Exchange]] = []
    for name in JOINED:
        truth = agreed(plans[name][BEFORE:], accesses[name], told[name])
        peers = {entry["target"]: int(entry["peer_port"]) for entry in tls_lines("\n".join(logs[name]))}
        sides: list[tuple[Role, set[int]]] = [("client", clients[name]), ("server", pids[name])]
        for role, group in sides:
            try:
                accounted.append(judge_joined(inside, truth, role, group, ports[name], peers, name))
            except AssertionError as error:
                failures.append(f"--- {name}, {role}: {error}")
    assert not failures, "\n".join(failures)
    accounted_for = sum(2 * len(group) for group in accounted) + len(IN_A_CALL)
    assert len(inside) == accounted_for, "records that no truth accounts for"


def judge_joined(
    records: Sequence[Record],
    truth: Sequence[Truth],
    role: Role,
    pids: set[int],
    port: int,
    peers: dict[str, int],
    name: str,
) -> list[Exchange]:
    mine = [record for record in records if record["role"] == role and record["pid"] in pids]
    if (role, name) in IN_A_CALL:
        alone = mine.pop(0)
        assert "status_code" in alone and "duration_ms" not in alone, f"answered what nobody saw: {brief(alone)}"
        assert (alone["status_code"], alone["body_bytes"]) == (truth[0].status, truth[0].response_bytes)
        truth = truth[1:]
    known = {"source_ip" in record for record in mine}
    assert len(known) <= 1, "of one connection some messages have addresses and others have none"
    unknown = known == {False}
    assert not unknown or (role, name) in MEMORY, "the socket is known to the library, and so are the addresses"
    found = assert_equal_to_truth(mine, truth, role, unix=unknown, hop=False, ordered=True)
    for e in found:
        for record in (e.request, e.response):
            assert record["tls"] == {"library": "openssl"}, f"of a handshake that nobody saw: {record['tls']}"
        if not unknown:
            assert (e.request["source_port"], e.request["dest_port"]) == (peers[e.request["url"]], port), brief(
                e.request
            )
    return found


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_session_resumption(tls_lab: TlsLab, wire: TlsWire, version: str) -> None:
    """One whole handshake and 22 that take up its session, whose ServerHello has no certificate behind it."""
    wire.both(f"version {version}")
    wire.both("alpn http/1.1")
    for number in range(COUNT):
        wire.connect()
        assert wire.handshake().resumed == (number > 0)
        wire.exchange(f"/resumed/{number}", pattern(number * 50, f"resumed{number}"))
        if number == 0:
            wire.client.do("resume")
        wire.close()
    judge(tls_lab, wire, offered=True)


def test_early_data(tls_lab: TlsLab, wire: TlsWire) -> None:
    """From the second connection on the request comes with the ClientHello (RFC 8446, 2.3)."""
    wire.server.do("max_early 16384")
    wire.connect()
    wire.handshake()
    wire.exchange("/late", b"not early")
    wire.client.do("resume")
    wire.close()
    for number in range(COUNT - 1):
        request, response = request_bytes("GET", f"/early/{number}"), pattern(number * 40, f"early{number}")
        wire.connect()
        wire.client.do(f"early {wire.client.path(request)}")
        saved = wire.server.path()
        wire.server.begin(f"receive_early {saved}")
        wire.client.begin("handshake")
        wire.server.result()
        told = wire.shaken(wire.client.result(), wire.server.do("handshake"))
        assert (told.early, told.resumed, saved.read_bytes()) == ("accepted", True, request)
        wire.down(response_bytes(response))
        wire.note("GET", f"/early/{number}", response)
        wire.close()
    judge(tls_lab, wire, early=True)


def test_early_data_to_nginx(tls_lab: TlsLab, directory: Path, certificates: Certificates, actor_binary: Path) -> None:
    """``ssl_early_data on``; the client is an actor, because curl 7.88 knows no early data."""
    [port] = tls_lab.ports(1)
    root = directory / "root"
    root.mkdir()
    page = pattern(1000, "/page") + b"THE-END"
    (root / "page").write_bytes(page)
    truth = [Truth("GET", f"/page?{number}", 200, len(page), 0, page.decode()) for number in range(COUNT)]
    args = [actor_binary, certificates.certificate, certificates.key]
    handshakes = []
    with (
        tls_servers.nginx(directory, port, certificates, root, version="1.3", more="ssl_early_data on;") as nginx,
        talk(args, directory) as talker,
    ):
        client = Actor(talker, directory, "client")
        for number, told in enumerate(truth):
            request = client.path(request_bytes("GET", told.target))
            client.do(f"connect {port}")
            if number == 0:
                handshakes.append(shaken(client.do("handshake")))
                client.do(f"send {request}")
            else:
                client.do(f"early {request}")
                handshakes.append(shaken(client.do("handshake")))
            saved = client.path()
            client.do(f"receive_until THE-END {saved}")
            assert saved.read_bytes().partition(b"\r\n\r\n")[2] == page
            if number == 0:
                client.do("resume")
            # The next session comes behind the response; and one that ends without close_notify cannot be resumed.
            client.do("shutdown")
            client.do("end")
            client.do("close")
        access = nginx.truth(COUNT, directory / "access.log")
        pids = nginx.pids()
    log = tls_lines((directory / "access.log").read_text())
    assert [t.target for t in access] == [t.target for t in truth]
    # nginx's $ssl_early_data is 1 only while the handshake is not complete; the client knows better.
    assert [told.early for told in handshakes] == ["none"] + ["accepted"] * (COUNT - 1)
    story = one_story((negotiated(entry) for entry in log), (told.negotiated for told in handshakes))
    records = tls_lab.records([port], SIDES * COUNT)
    at_client = assert_equal_to_truth(records, truth, "client", pids={client.pid}, ordered=True)
    at_server = assert_equal_to_truth(records, truth, "server", pids=pids, ordered=True)
    assert_only(records, at_client, at_server)
    assert_hops(messages(at_client), messages(at_server))
    assert_tls(at_client, "openssl", story, early=True)
    assert_tls(at_server, "openssl", story)


def test_renegotiation(tls_lab: TlsLab, wire: TlsWire) -> None:
    """TLS 1.2: the second ClientHello is encrypted and its random is another. What the first one said still holds."""
    wire.both("version 1.2")
    wire.connect()
    wire.handshake()
    for number in range(COUNT):
        request, response = request_bytes("GET", f"/again/{number}"), pattern(number * 70, f"again{number}")
        saved = wire.server.path()
        wire.server.begin(f"receive {len(request)} {saved}")
        if number in (5, 11):
            wire.client.do("renegotiate")
        wire.client.do(f"send {wire.client.path(request)}")
        wire.server.result()
        assert saved.read_bytes() == request
        wire.down(response_bytes(response))
        wire.note("GET", f"/again/{number}", response)
    wire.close()
    judge(tls_lab, wire)


def test_key_update(tls_lab: TlsLab, wire: TlsWire) -> None:
    wire.connect()
    wire.handshake()
    for number in range(COUNT):
        if number in (3, 4, 20):
            wire.client.do("key_update")
        wire.exchange(f"/fresh/{number}", pattern(number * 70, f"fresh{number}"))
    wire.close()
    judge(tls_lab, wire)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_half_close(tls_lab: TlsLab, wire: TlsWire, version: str) -> None:
    """The client has said that it will send no more; the response comes after that."""
    wire.both(f"version {version}")
    for number in range(COUNT):
        response = pattern(number * 1000, f"half{number}")
        wire.connect()
        wire.handshake()
        wire.up(request_bytes("GET", f"/half/{number}"))
        wire.client.do("shutdown")
        assert wire.server.do("end") == CLOSED_BY_NOTIFY
        wire.down(response_bytes(response))
        wire.note("GET", f"/half/{number}", response)
        wire.server.do("shutdown")
        assert wire.client.do("end") == CLOSED_BY_NOTIFY
        wire.both("close")
    judge(tls_lab, wire)


def test_peek(tls_lab: TlsLab, wire: TlsWire) -> None:
    """What is looked at is not received: it counts once, when it is read."""
    wire.connect()
    wire.handshake()
    for number in range(COUNT):
        request = request_bytes("GET", f"/peek/{number}")
        response = pattern(number * 30 + 1, f"peek{number}")
        for sender, receiver, data in (
            (wire.client, wire.server, request),
            (wire.server, wire.client, response_bytes(response)),
        ):
            sender.do(f"send {sender.path(data)}")
            assert receiver.do("peek 10") == ["10"]
            assert receiver.do(f"peek {len(data)}") == [str(len(data))]
            saved = receiver.path()
            receiver.do(f"receive {len(data)} {saved} {7 if number % 2 else ''}")
            assert saved.read_bytes() == data
        wire.note("GET", f"/peek/{number}", response)
    wire.close()
    judge(tls_lab, wire)


def test_sendfile(tls_lab: TlsLab, wire: TlsWire) -> None:
    """SSL_sendfile needs the kernel's TLS. Without it it fails and sends nothing, and nothing is made of it."""
    wire.both("ktls")
    wire.connect()
    wire.handshake()
    body = pattern(20_000, "file")
    for number in range(COUNT):
        wire.up(request_bytes("GET", f"/file/{number}"))
        [sent] = wire.server.do(f"sendfile {wire.server.path(body)}")
        if int(sent) >= 0:
            pytest.fail("this kernel has TLS of its own: what is to be expected then is not written yet")
        wire.down(response_bytes(body))
        wire.note("GET", f"/file/{number}", body)
    wire.close()
    judge(tls_lab, wire)


@pytest.mark.parametrize("how", ["plain", "ex"])
def test_large_bodies(tls_lab: TlsLab, wire: TlsWire, how: str) -> None:
    """1 MiB up and down, of known length and in chunks; SSL_write takes it in one call, SSL_read gives it by records."""
    send, receive = {"plain": ("send", "receive"), "ex": ("send_ex", "receive_ex")}[how]
    up, down = pattern(MIB, "up"), pattern(MIB, "down")
    wire.connect()
    wire.handshake()
    wire.exchange("/large", down, up, send=send, receive=receive)
    for piece in (1000, 16_384, 100_000, MIB):
        request = f"POST /chunks/{piece} HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        wire.up(request + chunked(up, piece), send=send, receive=receive)
        time.sleep(PAUSE_SECONDS)
        wire.down(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(down, piece), send=send, receive=receive
        )
        wire.note("POST", f"/chunks/{piece}", down, up)
        time.sleep(PAUSE_SECONDS)
    wire.exchange("/pieces", down, up, piece="5000", send=send, receive=receive)
    wire.exchange("/after", b"small", send=send, receive=receive)
    wire.close()
    at_client, _ = judge(tls_lab, wire)
    assert [e.request["completeness"] for e in at_client] == ["truncated"] * 6 + ["complete"]


PAUSE_SECONDS = 0.1
"""A megabyte chunked at memory speed, again and again, fills the ring: then bodies are left out (`budget`), by design. Here it is
about what they hold."""


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_slow_reader(tls_lab: TlsLab, wire: TlsWire, version: str) -> None:
    """SSL_write on a non-blocking socket says WANT_WRITE and is called again with the same bytes: they were sent once."""
    wire.both(f"version {version}")
    wire.both("nonblocking")
    wire.connect()
    wire.handshake()
    for number, size in enumerate((MIB, 100, 300_000, MIB)):
        response = pattern(size, f"slow{number}")
        wire.up(request_bytes("GET", f"/slow/{number}"))
        data = response_bytes(response)
        send = "send_ex" if number == 2 else "send"
        wire.server.begin(f"{send} {wire.server.path(data)}")
        time.sleep(0.1)
        saved = wire.client.path()
        wire.client.do(f"receive {len(data)} {saved} 3000")
        sent, retries = wire.server.result()
        assert (int(sent), saved.read_bytes()) == (len(data), data)
        assert (int(retries) > 0) == (size > 200_000), f"{retries} retries of {size} bytes"
        wire.note("GET", f"/slow/{number}", response)
    wire.close()
    judge(tls_lab, wire)


def curl(asks: Sequence[Ask], base: str, directory: Path, certificates: Certificates, *options: str) -> list[str]:
    return curl_args(asks, base, directory, "--http1.1", "--cacert", str(certificates.ca), *options)


def told_in(text: str) -> list[Negotiated]:
    return [negotiated(entry) for entry in tls_lines(text)]


def test_curl_processes_that_live_for_milliseconds(
    tls_lab: TlsLab, directory: Path, certificates: Certificates
) -> None:
    """Their library was seen before them, so that each is seen from its first byte."""
    [port], asks = tls_lab.ports(1), app_plan()
    pids = {}
    told = []
    with tls_servers.python_server(directory, port, certificates, "asyncio") as server:
        for number, ask in enumerate(asks):
            done = run_client(curl([ask], f"https://{NAME}:{port}", directory, certificates), directory)
            pids[done.pid] = number
            told += done.truth()
        access = server.truth(COUNT)
        log = server.log.read_text()
    truth = agreed(asks, access, told)
    story = one_story(told_in(log))
    records = tls_lab.records([port], SIDES * COUNT)
    at_client = assert_equal_to_truth(records, truth, "client", pids=pids, ordered=True)
    at_server = assert_equal_to_truth(records, truth, "server", pids={server.pid}, ordered=True)
    assert_only(records, at_client, at_server)
    assert_hops(messages(at_client), messages(at_server))
    for e in at_client:
        assert e.request["url"] == asks[pids[e.request["pid"]]].target, "the request of another curl"
        assert e.request["comm"] == e.response["comm"] == "curl"
    assert_tls(at_client, "openssl", story, offered=True)
    assert_tls(at_server, "openssl", story, offered=True)


CONNECTIONS, TURNS = 50, 6


def test_many_connections_in_one_thread(tls_lab: TlsLab, directory: Path, certificates: Certificates) -> None:
    """aiohttp and asyncio have memory BIOs: which socket it is, no system call tells. Not one may be another's."""
    [port] = tls_lab.ports(1)
    count = CONNECTIONS * TURNS
    with tls_servers.python_server(directory, port, certificates, "asyncio") as server:
        base = f"https://{NAME}:{port}"
        client: list[str | Path] = [
            PYTHON,
            SCRIPTS / "tls_many.py",
            base,
            certificates.ca,
            str(CONNECTIONS),
            str(TURNS),
        ]
        done = run_client(client, directory)
        access = server.truth(count)
        log = tls_lines(server.log.read_text())
    truth = done.truth()
    assert sorted(truth, key=repr) == sorted(access, key=repr)
    ports = {entry["target"]: entry["port"] for entry in map(json.loads, done.output.splitlines())}
    assert ports == {entry["target"]: entry["peer_port"] for entry in log}
    assert (len(ports), len(set(ports.values()))) == (count, CONNECTIONS)
    records = tls_lab.records([port], SIDES * count)
    mixed = [
        brief(record)
        for record in records
        if is_request(record) and ports[record["url"]] not in (record["source_port"], record["dest_port"])
    ]
    assert not mixed, f"records with another connection's socket: {mixed}"
    at_client = assert_equal_to_truth(records, truth, "client", pids={done.pid})
    at_server = assert_equal_to_truth(records, truth, "server", pids={server.pid})
    assert_only(records, at_client, at_server)
    assert_hops(messages(at_client), messages(at_server))
    for e in (*at_client, *at_server):
        token = e.request["url"].partition("?")[2]
        for record in (e.request, e.response):
            assert record["body"] == (token * 3000)[: record["body_bytes"]][:4096], brief(record)
            assert ports[e.request["url"]] in (record["source_port"], record["dest_port"]), brief(record)
    story = one_story(negotiated(entry) for entry in log)
    assert_tls(at_client, "openssl", story)
    assert_tls(at_server, "openssl", story)


def test_client_and_server_in_one_process(tls_lab: TlsLab, directory: Path, certificates: Certificates) -> None:
    """Both ends of both connections are one thread's: only the role tells which is which."""
    [port] = tls_lab.ports(1)
    files = (certificates.certificate, certificates.key, certificates.ca)
    done = run_client(
        [*("env", f"PYTHONPATH={REPOSITORY}", PYTHON, SCRIPTS / "tls_both.py", str(port)), *files, str(COUNT)],
        directory,
    )
    truth = done.truth()
    assert len(truth) == 2 * COUNT
    records = tls_lab.records([port], SIDES * 2 * COUNT)
    at_client = assert_equal_to_truth(records, truth, "client", pids={done.pid})
    at_server = assert_equal_to_truth(records, truth, "server", pids={done.pid})
    assert_only(records, at_client, at_server)
    assert_hops(messages(at_client), messages(at_server))
    assert len({e.request["connection"] for e in (*at_client, *at_server)}) == 4


def test_tls_through_a_proxy(tls_lab: TlsLab, directory: Path, certificates: Certificates) -> None:
    """CONNECT is plaintext on the same socket; what is in the tunnel has that socket's addresses, at each end its own."""
    [port, proxy_port], asks = tls_lab.ports(2), app_plan()
    proxy_args: list[str | Path] = [PYTHON, SCRIPTS / "connect_proxy.py", str(proxy_port)]
    with (
        tls_servers.python_server(directory, port, certificates, "http.server") as server,
        Program(proxy_args, directory, name="proxy", address=("127.0.0.1", proxy_port)) as proxy,
    ):
        options = ("-x", f"http://127.0.0.1:{proxy_port}")
        done = run_client(curl(asks, f"https://{NAME}:{port}", directory, certificates, *options), directory)
        access = server.truth(COUNT)
        log = server.log.read_text()
    truth = agreed(asks, access, done.truth())
    story = one_story(told_in(log))
    records = tls_lab.records([port, proxy_port], SIDES * COUNT + 4)
    connect = Truth("CONNECT", f"{NAME}:{port}", 200, 0, 0, "")
    plain = [r for r in records if "tls" not in r]
    at_client = assert_equal_to_truth(plain, [connect], "client", pids={done.pid})
    at_proxy = assert_equal_to_truth(plain, [connect], "server", pids={proxy.pid})
    assert_hops(messages(at_client), messages(at_proxy))
    inside = [r for r in records if "tls" in r]
    client_end = assert_equal_to_truth(inside, truth, "client", pids={done.pid}, ordered=True)
    server_end = assert_equal_to_truth(inside, truth, "server", pids={server.pid}, ordered=True)
    assert_only(records, at_client, at_proxy, client_end, server_end)
    assert {e.request["dest_port"] for e in client_end} == {proxy_port}
    assert {e.request["dest_port"] for e in server_end} == {port}
    assert_tls(client_end, "openssl", story, offered=True)
    assert_tls(server_end, "openssl", story, offered=True)


def library_directory(directory: Path) -> Path:
    """OpenSSL's libraries, copied to where no cache of the linker knows of them."""
    found = directory / "lib"
    found.mkdir()
    put_libraries(found)
    return found


def put_libraries(found: Path) -> None:
    """Written beside and renamed, as a package manager does: processes that have the old file mapped keep it."""
    for name in ("libssl.so.3", "libcrypto.so.3"):
        [source] = Path("/usr/lib").glob(f"*-linux-gnu/{name}")
        shutil.copy(source, found / f"{name}.new")
        os.replace(found / f"{name}.new", found / name)


def test_library_that_is_replaced_and_deleted(tls_lab: TlsLab, directory: Path, certificates: Certificates) -> None:
    """A server goes on with the file that it has, a new one has the new file, a third outlives its file."""
    ports = tls_lab.ports(3)
    libraries = library_directory(directory)
    asks = app_plan()
    told: dict[int, list[Truth]] = {port: [] for port in ports}
    clients: dict[int, set[int]] = {port: set() for port in ports}

    def ask(port: int, first: int, last: int) -> None:
        part = curl(asks[first:last], f"https://{NAME}:{port}", directory, certificates)
        done = run_client(part, directory)
        told[port] += done.truth()
        clients[port].add(done.pid)

    def serve(port: int, kind: str) -> Program:
        where = directory / str(port)
        where.mkdir()
        return tls_servers.python_server(where, port, certificates, kind, library_path=libraries)

    with serve(ports[0], "http.server") as old:
        ask(ports[0], 0, 8)
        put_libraries(libraries)
        assert "lib/libssl.so.3 (deleted)" in Path(f"/proc/{old.pid}/maps").read_text()
        ask(ports[0], 8, 16)
        with serve(ports[1], "asyncio") as new, serve(ports[2], "http.server") as last:
            ask(ports[1], 0, COUNT)
            shutil.rmtree(libraries)
            ask(ports[0], 16, COUNT)
            ask(ports[2], 0, COUNT)
            pids = {ports[0]: old.pid, ports[1]: new.pid, ports[2]: last.pid}
            accesses = {port: server.truth(COUNT) for port, server in zip(ports, (old, new, last), strict=True)}
            logs = {port: server.log.read_text() for port, server in zip(ports, (old, new, last), strict=True)}
    for port in ports:
        truth = agreed(asks, accesses[port], told[port])
        story = one_story(told_in(logs[port]))
        records = tls_lab.records([port], SIDES * COUNT)
        at_client = assert_equal_to_truth(records, truth, "client", pids=clients[port], ordered=True)
        at_server = assert_equal_to_truth(records, truth, "server", pids={pids[port]}, ordered=True)
        assert_only(records, at_client, at_server)
        assert_hops(messages(at_client), messages(at_server))
        assert_tls(at_client, "openssl", story, offered=True)
        assert_tls(at_server, "openssl", story, offered=True)
