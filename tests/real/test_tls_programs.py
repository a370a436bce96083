"""Real clients against real servers over TLS: what the agent logs is what they say, 23 exchanges, both sides, nothing more.

As in ``test_programs.py`` each test has three stories to compare, the plan's, the server's and the client's, here of the handshake
too. One agent watches them all, and all the programs begin after it.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.real.harness import servers, tls_servers
from tests.real.harness.checks import Exchange, Record, assert_equal_to_truth, assert_hops, assert_only
from tests.real.harness.http2 import probed
from tests.real.harness.programs import PYTHON, SCRIPTS, Finished, Program, curl_args, require, run_client
from tests.real.harness.static_files import document_root, get, static_plan
from tests.real.harness.tls import (
    NAME,
    Certificates,
    Negotiated,
    assert_tls,
    build_c,
    iana,
    messages,
    negotiated,
    one_story,
    tls_lines,
)
from tests.real.harness.tls_lab import TlsLab
from tests.real.harness.truth import Ask, Truth, agreed, app_plan, from_json_log, pattern

pytestmark = pytest.mark.real

COUNT = 23
SIDES = 4
"""Records of one exchange between two programs of this host."""


@pytest.fixture(scope="module")
def tls_lab() -> Iterator[TlsLab]:
    with tempfile.TemporaryDirectory(prefix="np-") as name, TlsLab(Path(name)) as opened:
        yield opened


def write_plan(directory: Path, asks: Sequence[Ask]) -> Path:
    path = directory / "plan.json"
    path.write_text(json.dumps([[ask.method, ask.target, ask.request.decode()] for ask in asks]))
    return path


def base(port: int) -> str:
    return f"https://{NAME}:{port}"


def curl(asks: Sequence[Ask], port: int, directory: Path, certificates: Certificates, *options: str) -> Finished:
    """One curl, by way of which it also tells of its handshakes (``client.err``)."""
    wanted = ("-v", "--http1.1", "--cacert", str(certificates.ca), *options)
    return run_client(curl_args(asks, base(port), directory, *wanted), directory)


def told_by_curl(directory: Path, sni: str = NAME) -> list[Negotiated]:
    text = (directory / "client.err").read_text(errors="replace")
    handshakes = re.findall(r"^\* SSL connection using TLSv(\S+) / (\S+)", text, re.MULTILINE)
    accepted = re.findall(r"^\* ALPN: server (?:accepted (\S+)|did not agree)", text, re.MULTILINE)
    assert len(handshakes) == len(accepted) > 0, text[:2000]
    return [
        Negotiated(version, iana(cipher), sni, alpn)
        for (version, cipher), alpn in zip(handshakes, accepted, strict=True)
    ]


def told_in(text: str) -> list[Negotiated]:
    return [negotiated(entry) for entry in tls_lines(text)]


def both_sides(
    records: Sequence[Record],
    truth: Sequence[Truth],
    clients: set[int],
    at_servers: set[int],
    libraries: tuple[str, str],
    story: Negotiated,
    *,
    offered: bool,
) -> tuple[list[Exchange], list[Exchange]]:
    """The whole comparison, when these records are those of one client with one server."""
    at_client = assert_equal_to_truth(records, truth, "client", pids=clients)
    at_server = assert_equal_to_truth(records, truth, "server", pids=at_servers)
    assert_only(records, at_client, at_server)
    assert_hops(messages(at_client), messages(at_server))
    assert_tls(at_client, libraries[0], story, offered=offered)
    assert_tls(at_server, libraries[1], story, offered=offered)
    for record in records:
        assert {record["source_ip"], record["dest_ip"]} == {"127.0.0.1"}
    return at_client, at_server


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_curl_to_nginx(tls_lab: TlsLab, directory: Path, certificates: Certificates, version: str) -> None:
    [port], asks = tls_lab.ports(1), static_plan()
    asks[2] = Ask("PUT", "/new/large", 201, None, pattern(200_000, "put"))
    with tls_servers.nginx(directory, port, certificates, document_root(directory), version=version) as nginx:
        done = curl(asks, port, directory, certificates)
        access = nginx.truth(COUNT, directory / "access.log")
        pids = nginx.pids()
    truth = agreed(asks, access, done.truth())
    log = (directory / "access.log").read_text()
    story = one_story(told_by_curl(directory), told_in(log))
    assert story.version == version and story.alpn == "http/1.1"
    records = tls_lab.records([port], SIDES * COUNT)
    at_client, at_server = both_sides(records, truth, {done.pid}, pids, ("openssl", "openssl"), story, offered=True)
    assert len({e.request["connection"] for e in at_client}) == 1, "curl reused its connection"
    assert {e.request["source_port"] for e in at_server} == {entry["peer_port"] for entry in tls_lines(log)}


@pytest.mark.parametrize(
    "cipher", ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES256-SHA384"]
)
def test_each_kind_of_cipher(tls_lab: TlsLab, directory: Path, certificates: Certificates, cipher: str) -> None:
    """TLS 1.2 with an AEAD, with a stream cipher, and with CBC; here no ALPN is offered."""
    [port], asks = tls_lab.ports(1), static_plan()
    more = "ssl_ciphers ALL:@SECLEVEL=0;"
    with tls_servers.nginx(directory, port, certificates, document_root(directory), version="1.2", more=more) as nginx:
        done = curl(asks, port, directory, certificates, "--ciphers", cipher, "--no-alpn")
        access = nginx.truth(COUNT, directory / "access.log")
        pids = nginx.pids()
    story = one_story(told_in((directory / "access.log").read_text()))
    assert story.cipher == iana(cipher) and story.alpn == ""
    truth = agreed(asks, access, done.truth())
    records = tls_lab.records([port], SIDES * COUNT)
    both_sides(records, truth, {done.pid}, pids, ("openssl", "openssl"), story, offered=False)


CLIENTS = ("requests", "http.client", "urllib3", "aiohttp", "httpx", "httpx-async")
OFFERING = frozenset({"urllib3", "requests", "httpx", "httpx-async"})
"""Those that offer ALPN by themselves; the others do with a context that they make, not with ours."""


@pytest.mark.parametrize("client", CLIENTS)
def test_python_clients_to_python_servers(
    tls_lab: TlsLab, directory: Path, certificates: Certificates, client: str
) -> None:
    """Each client with a wrapped ``http.server`` (TLS 1.3), asyncio (TLS 1.2) and uvicorn."""
    asks = app_plan()
    ports = tls_lab.ports(3)
    with (
        tls_servers.python_server(directory, ports[0], certificates, "http.server", version="1.3") as wrapped,
        tls_servers.python_server(directory, ports[1], certificates, "asyncio", version="1.2") as with_bios,
        tls_servers.uvicorn(directory, ports[2], certificates) as uvicorn,
    ):
        bases = [base(port) for port in ports]
        script = SCRIPTS / "tls_clients.py"
        done = run_client([PYTHON, script, client, certificates.ca, write_plan(directory, asks), *bases], directory)
        accesses = [server.truth(COUNT) for server in (wrapped, with_bios, uvicorn)]
        at_servers = [server.pids() for server in (wrapped, with_bios, uvicorn)]
    for port, access, pids, server, version in zip(
        ports, accesses, at_servers, (wrapped, with_bios, uvicorn), ("1.3", "1.2", "1.3"), strict=True
    ):
        mine = "".join(line for line in done.output.splitlines(keepends=True) if f'"base": "{base(port)}"' in line)
        truth = agreed(asks, access, from_json_log(mine))
        story = one_story(told_in(mine), told_in(server.log.read_text()))
        assert (story.version, story.sni) == (version, NAME)
        records = tls_lab.records([port], SIDES * COUNT)
        both_sides(records, truth, {done.pid}, pids, ("openssl", "openssl"), story, offered=client in OFFERING)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_node_to_node(tls_lab: TlsLab, directory: Path, certificates: Certificates, version: str) -> None:
    """``fetch`` and ``https.request`` in turn; OpenSSL is in Node's own executable."""
    [port], asks = tls_lab.ports(1), app_plan()
    [node, env] = require("node", "env")
    # Libraries in the linker's cache are probed before; Node's executable when the first Node runs.
    with probed(tls_servers.node_server(directory, port, certificates, version=version), tls_lab.agent.pid) as server:
        done = run_client(
            [
                *(env, f"NODE_EXTRA_CA_CERTS={certificates.ca}", node, SCRIPTS / "node_tls_client.js"),
                *(base(port), write_plan(directory, asks)),
            ],
            directory,
        )
        access = server.truth(COUNT)
    truth = agreed(asks, access, done.truth())
    at_server_text = server.log.read_text()
    assert {entry.get("sni", NAME) for entry in tls_lines(at_server_text)} == {NAME}
    by_kind = {kind: [e for e in tls_lines(at_server_text) if bool(e["alpn"]) == kind] for kind in (True, False)}
    records = tls_lab.records([port], SIDES * COUNT)
    at_client = assert_equal_to_truth(records, truth, "client", pids={done.pid})
    at_server = assert_equal_to_truth(records, truth, "server", pids={server.pid})
    assert_only(records, at_client, at_server)
    assert_hops(messages(at_client), messages(at_server))
    for kind, entries in by_kind.items():
        peers = {entry["peer_port"] for entry in entries}
        for side in (at_client, at_server):
            of_kind = [e for e in side if e.request["source_port"] in peers]
            assert len(of_kind) == len(entries)
            if entries:
                story = one_story(negotiated(entry) for entry in entries)
                assert story.version == version
                assert_tls(of_kind, "openssl", story, offered=kind)


def test_wget_to_nginx(tls_lab: TlsLab, directory: Path, certificates: Certificates) -> None:
    """Debian's wget is built with GnuTLS; the files that it saves are its truth."""
    [port], asks = tls_lab.ports(1), [ask for ask in static_plan() if ask.method == "GET"]
    asks += [get(size, "?more") for size in (1, 17, 4097)]
    assert len(asks) == COUNT
    [wget] = require("wget")
    saved = directory / "saved"
    saved.mkdir()
    with tls_servers.nginx(directory, port, certificates, document_root(directory)) as nginx:
        args = [wget, "-q", "--no-config", "--no-proxy", "--no-hsts", "--tries=1", "--timeout=20", "--content-on-error"]
        args += [f"--ca-certificate={certificates.ca}", "-nH", "-x", "-P", str(saved)]
        done = run_client([*args, *(base(port) + ask.target for ask in asks)], directory, ok=(0, 8))
        access = nginx.truth(COUNT, directory / "access.log")
        pids = nginx.pids()
    sizes = {
        "/" + str(p.relative_to(saved)).replace("a b", "a%20b").replace("\u00e9", "%C3%A9"): p.stat().st_size
        for p in saved.rglob("*")
        if p.is_file()
    }
    truth = agreed(asks, access, [Truth(ask.method, ask.target, ask.status, sizes[ask.target]) for ask in asks])
    story = one_story(told_in((directory / "access.log").read_text()))
    assert story.alpn == ""
    records = tls_lab.records([port], SIDES * COUNT)
    both_sides(records, truth, {done.pid}, pids, ("gnutls", "openssl"), story, offered=False)


def html_of(output: bytes) -> list[bytes]:
    """The pages among what ``gnutls-cli`` printed."""
    return re.findall(rb"\r\n\r\n(\n?<HTML>.*?</HTML>\n*)", output, re.DOTALL)


@pytest.mark.parametrize(
    ("version", "priority", "cipher"),
    [
        ("1.2", "NORMAL:-VERS-ALL:+VERS-TLS1.2:-CIPHER-ALL:+AES-128-GCM", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
        ("1.3", "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+CHACHA20-POLY1305", "TLS_CHACHA20_POLY1305_SHA256"),
    ],
)
def test_gnutls_to_gnutls(
    tls_lab: TlsLab, directory: Path, certificates: Certificates, version: str, priority: str, cipher: str
) -> None:
    """``gnutls-serv`` closes after each response, hence 23 times ``gnutls-cli``; what that printed is the truth."""
    [port] = tls_lab.ports(1)
    [client] = require("gnutls-cli")
    args = [client, "--port", str(port), "--x509cafile", str(certificates.ca)]
    args += ["--priority", priority, "--logfile", str(directory / "cli.log"), NAME]
    truth = []
    pids = set()
    with tls_servers.gnutls_server(directory, port, certificates, priority=priority) as server:
        for number in range(COUNT):
            target = f"/page/{number}?of={COUNT}"
            process = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=directory)
            request = f"GET {target} HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
            output, _ = process.communicate(request, timeout=20)
            assert process.returncode == 0, output[-2000:]
            pids.add(process.pid)
            head, _, page = output.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.0 200 OK\r\n"), output[:300]
            assert target.encode() in request
            truth.append(Truth("GET", target, 200, len(page), 0, page[:4096].decode("ascii")))
        server_pids = server.pids()
    story = Negotiated(version, cipher, NAME, "")
    records = tls_lab.records([port], SIDES * COUNT)
    at_client, _ = both_sides(records, truth, pids, server_pids, ("gnutls", "gnutls"), story, offered=False)
    suite = {"1.2": "AES-128-GCM", "1.3": "CHACHA20-POLY1305"}[version]
    for e in at_client:
        assert f"TLS{version}" in e.response["body"] and suite in e.response["body"], "the page tells of the handshake"
    assert len({e.request["connection"] for e in at_client}) == COUNT


def test_gnutls_client_keeps_its_connection(tls_lab: TlsLab, directory: Path, certificates: Certificates) -> None:
    """23 requests that ``gnutls-cli`` has from its standard input, one after the other, to nginx."""
    [port], asks = tls_lab.ports(1), static_plan()
    [client] = require("gnutls-cli")
    args = [client, "--port", str(port), "--x509cafile", str(certificates.ca), "--logfile", str(directory / "cli.log")]
    args += ["--alpn", "http/1.1"]
    with tls_servers.nginx(directory, port, certificates, document_root(directory)) as nginx:
        with subprocess.Popen([*args, NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=directory) as process:
            assert process.stdin is not None and process.stdout is not None
            told = []
            for ask in asks:
                process.stdin.write(f"{ask.method} {ask.target} HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
                process.stdin.flush()
                lines = list(iter(process.stdout.readline, b"\r\n"))
                [length] = [int(line[15:]) for line in lines if line.lower().startswith(b"content-length:")]
                size = 0 if ask.method == "HEAD" else length
                assert len(process.stdout.read(size)) == size
                told.append(Truth(ask.method, ask.target, int(lines[0].split()[1]), size))
            process.stdin.close()
            assert process.wait(10) == 0
        access = nginx.truth(COUNT, directory / "access.log")
        pids = nginx.pids()
    truth = agreed(asks, access, told)
    story = one_story(told_in((directory / "access.log").read_text()))
    records = tls_lab.records([port], SIDES * COUNT)
    both_sides(records, truth, {process.pid}, pids, ("gnutls", "openssl"), story, offered=True)


def test_curl_to_haproxy_to_python(tls_lab: TlsLab, directory: Path, certificates: Certificates) -> None:
    """HAProxy terminates TLS: ciphertext before it, plaintext behind it, and its own messages on both."""
    [port, upstream], asks = tls_lab.ports(2), app_plan()
    with (
        servers.python_http_server(directory, upstream, "HTTP/1.1") as server,
        tls_servers.haproxy(directory, port, upstream, certificates) as haproxy,
    ):
        done = curl(asks, port, directory, certificates)
        at_haproxy = haproxy.truth(COUNT)
        at_python = server.truth(COUNT)
    truth = agreed(asks, at_haproxy, at_python, done.truth())
    story = one_story(told_by_curl(directory), told_in(haproxy.log.read_text()))
    records = tls_lab.records([port, upstream], 2 * SIDES * COUNT)
    outer = [r for r in records if port in (r["source_port"], r["dest_port"])]
    inner = [r for r in records if upstream in (r["source_port"], r["dest_port"])]
    both_sides(outer, truth, {done.pid}, {haproxy.pid}, ("openssl", "openssl"), story, offered=True)
    at_client = assert_equal_to_truth(inner, truth, "client", pids={haproxy.pid})
    at_server = assert_equal_to_truth(inner, truth, "server", pids={server.pid})
    assert_only(inner, at_client, at_server)
    assert_hops(messages(at_client), messages(at_server))
    assert not [r for r in inner if "tls" in r], "behind HAProxy there is no TLS"


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_curl_to_apache(tls_lab: TlsLab, directory: Path, certificates: Certificates, version: str) -> None:
    [port], asks = tls_lab.ports(1), static_plan()
    with tls_servers.apache(directory, port, certificates, document_root(directory), version=version) as apache:
        done = curl(asks, port, directory, certificates)
        access = apache.truth(COUNT, directory / "tls.log")
        pids = apache.pids()
    truth = agreed(asks, access, done.truth())
    story = one_story(told_by_curl(directory), told_in((directory / "tls.log").read_text()))
    assert story.version == version
    records = tls_lab.records([port], SIDES * COUNT)
    both_sides(records, truth, {done.pid}, pids, ("openssl", "openssl"), story, offered=True)


def test_nss_to_nginx(tls_lab: TlsLab, directory: Path, certificates: Certificates) -> None:
    """A client of ours, by ``PR_Write`` and ``PR_Read`` in turn with ``PR_Send`` and ``PR_Recv``."""
    [port], asks = tls_lab.ports(1), static_plan()
    binary = build_c(
        "nss_client", directory, "-I/usr/include/nss", "-I/usr/include/nspr", "-lssl3", "-lnss3", "-lnspr4"
    )
    plan = directory / "plan"
    plan.write_text("".join(f"{ask.method} {ask.target}\n" for ask in asks))
    with tls_servers.nginx(directory, port, certificates, document_root(directory)) as nginx:
        done = run_client([binary, str(port), NAME, plan], directory)
        access = nginx.truth(COUNT, directory / "access.log")
        pids = nginx.pids()
    truth = agreed(asks, access, done.truth())
    story = one_story(told_in(done.output), told_in((directory / "access.log").read_text()))
    assert story.alpn == "http/1.1"
    records = tls_lab.records([port], SIDES * COUNT)
    both_sides(records, truth, {done.pid}, pids, ("nss", "openssl"), story, offered=True)


def nss_database(directory: Path, certificates: Certificates) -> Path:
    database = directory / "nss"
    database.mkdir()
    [certutil, pk12util] = require("certutil", "pk12util")
    commands: list[list[str | Path]] = [
        [certutil, "-N", "-d", database, "--empty-password"],
        [pk12util, "-i", certificates.pkcs12, "-d", database, "-W", "", "-K", ""],
        [certutil, "-A", "-n", "ca", "-t", "C,,", "-d", database, "-i", certificates.ca],
    ]
    for args in commands:
        subprocess.run(args, check=True, capture_output=True, timeout=20)
    return database


def test_nss_tools(tls_lab: TlsLab, directory: Path, certificates: Certificates) -> None:
    """``selfserv`` closes after each response, hence 23 times ``tstclnt``; what that printed is the truth."""
    [port] = tls_lab.ports(1)
    [selfserv, tstclnt] = require("selfserv", "tstclnt")
    database = nss_database(directory, certificates)
    server = Program(
        [selfserv, "-d", database, "-p", str(port), "-n", "server", "-w", "", "-V", "tls1.3:tls1.3"],
        directory,
        name="selfserv",
        address=("127.0.0.1", port),
    )
    args = [tstclnt, "-h", NAME, "-p", str(port), "-d", str(database), "-V", "tls1.3:tls1.3", "-4", "-v"]
    truth = []
    pids = set()
    with server:
        for number in range(COUNT):
            target = f"/page/{number}?of={COUNT}"
            request = f"GET {target} HTTP/1.0\r\nHost: {NAME}\r\n\r\n".encode()
            (directory / "request").write_bytes(request)
            with (directory / "request").open("rb") as standard_input:
                process = subprocess.Popen(
                    args, stdin=standard_input, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=directory
                )
                output, errors = process.communicate(timeout=20)
            assert process.returncode == 0, errors
            pids.add(process.pid)
            assert b"SSL version 3.4 using 128-bit AES-GCM" in errors, errors  # NSS counts TLS 1.3 as 3.4
            head, _, page = output.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.0 200 OK\r\n") and page.startswith(request), output
            truth.append(Truth("GET", target, 200, len(page), 0, page.decode()))
        server_pids = server.pids()
    story = Negotiated("1.3", "TLS_AES_128_GCM_SHA256", NAME, "")
    records = tls_lab.records([port], SIDES * COUNT)
    both_sides(records, truth, pids, server_pids, ("nss", "nss"), story, offered=False)
