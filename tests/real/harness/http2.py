"""Servers and clients that speak HTTP/2, and what a log of theirs must satisfy besides.

``nginx`` takes prior knowledge only (before 1.25.1 a port without TLS speaks one or the other), Node's library has no upgrade
(RFC 7540, 3.2) at all, Apache and Go's h2c take both.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.real.harness import go_programs
from tests.real.harness.checks import (
    FRAME_HEADER_BYTES,
    Exchange,
    Record,
    assert_equal_to_truth,
    assert_hops,
    assert_only,
    header,
)
from tests.real.harness.programs import SCRIPTS, Finished, Program, curl_args, require, run_client, wait_until
from tests.real.harness.servers import APACHE, APACHE_MODULES, NGINX
from tests.real.harness.text import is_probed
from tests.real.harness.tls import NAME, Certificates, assert_tls, messages, negotiated, one_story, tls_lines
from tests.real.harness.tls_servers import APACHE_TLS, NGINX_LOG
from tests.real.harness.truth import Ask, Truth

ATTACH_SECONDS = 30.0
ATTACHED_SECONDS = 0.05
"""From the probes to the agent's note of it, which says that what begins now is seen from its beginning."""

NGINX_PLAIN = """
    server {{
        listen 127.0.0.1:{port} http2;
        keepalive_requests 100000;
        root {root};
        dav_methods PUT;
        create_full_put_path on;
    }}
"""


def nginx(
    directory: Path, port: int, root: Path, certificates: Certificates | None, *, sendfile: bool = False
) -> Program:
    [binary] = require("nginx")
    if certificates is None:
        server = NGINX_PLAIN.format(port=port, root=root)
    else:
        server = NGINX_LOG.replace(" ssl;", " ssl http2;").format(
            dir=directory,
            port=port,
            root=root,
            certificate=certificates.certificate,
            key=certificates.key,
            versions="TLSv1.2 TLSv1.3",
            more="",
        )
        server = server.replace("keepalive_requests 1000;", "keepalive_requests 100000;")
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(dir=directory, extra=server, sendfile="on" if sendfile else "off"))
    args: list[str | Path] = [binary, "-c", config, "-p", directory, "-e", directory / "nginx-early.log"]
    return Program(args, directory, name="nginx", address=("127.0.0.1", port))


APACHE_HTTP2 = """
LoadModule http2_module {modules}/mod_http2.so
Protocols {protocol} http/1.1
KeepAliveTimeout 20
MaxKeepAliveRequests 1000
"""


def apache(directory: Path, port: int, root: Path, certificates: Certificates | None) -> Program:
    """Its log is ``access.log``, over TLS ``tls.log``."""
    [binary] = require("apache2")
    text = APACHE.format(dir=directory, port=port, root=root, modules=APACHE_MODULES, sendfile="On")
    text += APACHE_HTTP2.format(modules=APACHE_MODULES, protocol="h2c" if certificates is None else "h2")
    if certificates is not None:
        text += APACHE_TLS.format(
            dir=directory,
            modules=APACHE_MODULES,
            version="1.3",
            certificate=certificates.certificate,
            key=certificates.key,
        )
    config = directory / "apache.conf"
    config.write_text(text)
    return Program([binary, "-DFOREGROUND", "-f", config], directory, name="apache", address=("127.0.0.1", port))


def go_binary() -> Path:
    return go_programs.build(go_programs.CHOSEN[-1], "plain", "../http2_go")


def go_server(directory: Path, port: int, certificates: Certificates | None) -> Program:
    args: list[str | Path] = [go_binary(), "server", "-listen", f"127.0.0.1:{port}"]
    if certificates is not None:
        args += ["-certificate", certificates.certificate, "-key", certificates.key]
    return Program(args, directory, name="go", address=("127.0.0.1", port))


def node_server(directory: Path, port: int, certificates: Certificates | None) -> Program:
    [node] = require("node")
    args: list[str | Path] = [node, SCRIPTS / "node_http2_server.js", str(port)]
    if certificates is not None:
        args += [certificates.certificate, certificates.key]
    return Program(args, directory, name="node", address=("127.0.0.1", port))


@contextmanager
def probed(program: Program, agent_pid: int) -> Iterator[Program]:
    """A server whose executable has TLS in it, running and probed: clients of the same executable are then seen from their start."""
    executable = Path(program.args[0]).resolve()
    with program:
        wait_until(lambda: is_probed(program.pid, executable, agent_pid), f"{executable} is probed", ATTACH_SECONDS)
        time.sleep(ATTACHED_SECONDS)
        yield program


def base(port: int, certificates: Certificates | None) -> str:
    return f"http://127.0.0.1:{port}" if certificates is None else f"https://{NAME}:{port}"


def curl(asks: Sequence[Ask], port: int, directory: Path, certificates: Certificates | None, *options: str) -> Finished:
    """One curl. Without TLS, prior knowledge is that of the first request alone: curl 7.88 gives up a connection where a later one,
    for which it would be used again, claims to know it, too."""
    if certificates is not None:
        trust = ("-v", "--http2", "--cacert", str(certificates.ca))
        return run_client(curl_args(asks, base(port, certificates), directory, *trust, *options), directory)
    args = curl_args(asks, base(port, None), directory, "--http2", *options)
    args[args.index("--http2")] = "--http2-prior-knowledge"
    return run_client(args, directory)


def curl_upgrading(asks: Sequence[Ask], port: int, directory: Path, *options: str) -> tuple[set[int], list[Truth]]:
    """A curl, and so an upgrade, for each: their pids, and what they say."""
    done = [run_client(curl_args([ask], base(port, None), directory, "--http2", *options), directory) for ask in asks]
    return {one.pid for one in done}, [truth for one in done for truth in one.truth()]


def apache_truth(program: Program, path: Path, count: int, *, upgraded: bool = False) -> list[Truth]:
    """Apache notes a switch as one request more, and for HEAD the size of what it did not send."""
    told = program.truth(2 * count if upgraded else count, path)
    sizes_known = [replace(t, response_bytes=None) if t.method == "HEAD" else t for t in told]
    return [t for t in sizes_known if t.status != 101]


def write_plan(directory: Path, asks: Sequence[Ask]) -> Path:
    path = directory / "plan.json"
    path.write_text(json.dumps([[ask.method, ask.target, ask.request.decode()] for ask in asks]))
    return path


def go_client(
    asks: Sequence[Ask], port: int, directory: Path, certificates: Certificates | None, *, streams: int = 1
) -> Finished:
    args: list[str | Path] = [go_binary(), "client", "-base", base(port, certificates)]
    args += ["-plan", write_plan(directory, asks), "-streams", str(streams)]
    args += [] if certificates is None else ["-ca", certificates.ca]
    return run_client(args, directory)


def node_client(
    asks: Sequence[Ask], port: int, directory: Path, certificates: Certificates | None, *, streams: int = 1
) -> Finished:
    [node] = require("node")
    args: list[str | Path] = [node, SCRIPTS / "node_http2_client.js", base(port, certificates)]
    args += [write_plan(directory, asks), str(streams)]
    args += [] if certificates is None else [certificates.ca]
    return run_client(args, directory)


def number_of(record: Record) -> str:
    """Which exchange of its connection it is."""
    return str(record["exchange"]).rpartition("#")[2]


def assert_same_exchanges(at_client: Sequence[Exchange], at_server: Sequence[Exchange]) -> None:
    """Both ends pair the same messages, and count the streams of a connection alike."""
    sides = []
    for side in (at_client, at_server):
        connections: dict[str, str] = {}
        pairs = set()
        for e in side:
            hops = (e.request["hop"], *(r["hop"] for r in e.interim), e.response["hop"])
            pairs.add((number_of(e.request), *hops))
            # A connection at the one end is a connection at the other: its addresses name it.
            pair = re.sub("@.*", "", e.request["hop"])
            assert connections.setdefault(e.request["connection"], pair) == pair
        sides.append(pairs)
    assert sides[0] == sides[1], f"the two ends pair, or count, differently: {sorted(sides[0] ^ sides[1])[:8]}"


def both_sides(
    records: Sequence[Record],
    truth: Sequence[Truth],
    clients: Collection[int],
    at_servers: Collection[int],
    *,
    upgraded: int = 0,
    sendfile: bool = False,
    hasty: bool = False,
) -> tuple[list[Exchange], list[Exchange]]:
    """The whole comparison, when these records are those of one client with one server.

    ``upgraded``: so many exchanges began in HTTP/1.1, each the first of its connection.
    ``hasty``: the client is curl (``all_but_the_end``).
    """
    at_client = assert_equal_to_truth(records, truth, "client", pids=clients)
    at_server = assert_equal_to_truth(records, truth, "server", pids=at_servers, sendfile=sendfile)
    assert_only(records, at_client, at_server)
    told_by_client = messages(at_client)
    if hasty:
        told_by_client = all_but_the_end(told_by_client, messages(at_server))
    assert_hops(told_by_client, messages(at_server))
    assert_same_exchanges(at_client, at_server)
    for side in (at_client, at_server):
        switched = [e for e in side if e.interim and e.interim[0]["status_code"] == 101]
        assert len(switched) == upgraded
        for e in switched:
            assert_upgrade(e)
        for e in side:
            if e in switched:
                continue
            assert {r["protocol"] for r in messages([e])} == {"HTTP/2"}
            headers = e.request["headers"]
            secure = "tls" in e.request
            assert headers[":scheme"] == ("https" if secure else "http")
            port = e.request["dest_port"]
            assert headers[":authority"] == (f"{NAME}:{port}" if secure else f"127.0.0.1:{port}")
            assert not {"unknown_fields", "redacted"} & {*e.request, *e.response}
    return at_client, at_server


def all_but_the_end(at_client: Sequence[Record], at_server: Sequence[Record]) -> list[Record]:
    """curl 7.88 resets a stream (STREAM_CLOSED) when it has as much as Content-Length says: an empty DATA frame that ends the stream
    behind that comes too late for the client's record. The client's records, without that difference."""
    there = {record["hop"]: record for record in at_server}
    found = []
    for record in at_client:
        size = there[record["hop"]]["bytes"] if record["hop"] in there else 0
        promised = "status_code" in record and header(record, "content-length") == str(record["body_bytes"])
        late = promised and size == record["bytes"] + FRAME_HEADER_BYTES
        found.append({**record, "bytes": size} if late else record)
    return found


def assert_upgrade(exchange: Exchange) -> None:
    """RFC 7540, section 3.2: the request is HTTP/1.1's, a 101 switches, and stream 1 answers."""
    assert exchange.request["protocol"] == "HTTP/1.1" and exchange.request["headers"]["Upgrade"] == "h2c"
    [switch] = exchange.interim
    assert number_of(switch) == "1"
    assert (switch["protocol"], switch["status_code"]) == ("HTTP/1.1", 101)
    assert switch["headers"]["Upgrade"] == "h2c"
    assert exchange.response["protocol"] == "HTTP/2"


def assert_handshakes(
    at_client: Sequence[Exchange], at_server: Sequence[Exchange], libraries: tuple[str, str], *told: str
) -> None:
    """``told``: logs and outputs with a line for each exchange. By ALPN all of them speak HTTP/2."""
    story = one_story(*([negotiated(line) for line in tls_lines(text)] for text in told))
    assert story.alpn == "h2"
    for side, library in zip((at_client, at_server), libraries, strict=True):
        assert_tls(side, library, story, offered=True)
