"""WebSocket between real programs: each message is a record at both ends, with what the programs say was in it and what crossed the stream.

Three stories are compared before the agent's: the plan, what came out of the libraries, and the bytes that Python's end wrote and read.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real.harness import websocket
from tests.real.harness.checks import Role, header
from tests.real.harness.http2 import probed
from tests.real.harness.programs import PYTHON, SCRIPTS, Program, require, run_client, wait_until
from tests.real.harness.tls import NAME, Certificates, negotiated
from tests.real.harness.tls_lab import TlsLab
from tests.real.harness.websocket import CLOSE, Part, Stream, Talk, assert_side, pings, planned, talk_of

pytestmark = pytest.mark.real

NODE_WS = Path("/usr/share/nodejs/ws")
"""Debian's package ``node-ws``."""


@pytest.fixture(scope="module")
def lab() -> Iterator[TlsLab]:
    with tempfile.TemporaryDirectory(prefix="np-") as name, TlsLab(Path(name)) as opened:
        yield opened


@pytest.fixture(scope="module")
def node(lab: TlsLab) -> Iterator[str]:
    """A Node that only runs, so that the probes in its executable are there when the others begin."""
    assert NODE_WS.is_dir(), "node-ws is not installed; `make test` installs what the tests start"
    [path] = require("node")
    with tempfile.TemporaryDirectory(prefix="np-") as name:
        with probed(Program([path, "-e", "setTimeout(() => {}, 1e6)"], Path(name), name="node"), lab.agent.pid):
            yield path


def end(node: str, kind: str) -> list[str | Path]:
    return [PYTHON, SCRIPTS / "websocket_python.py"] if kind == "python" else [node, SCRIPTS / "websocket_node.js"]


def line_of(text: str) -> dict[str, Any]:
    [line] = [line for line in text.splitlines() if line.startswith("{")]
    told = json.loads(line)
    assert isinstance(told, dict)
    return told


def server_line(server: Program) -> dict[str, Any]:
    wait_until(lambda: server.log.read_text().endswith("}\n"), "the server tells of the conversation", 10)
    return line_of(server.log.read_text())


def assert_one_story(talk: Talk, plan: dict[Role, Part], closer: str, told: dict[Role, dict[str, Any]]) -> None:
    """The plan, what each library gave its program (``told`` by role), and the stream agree, before the agent is looked at."""
    sides: tuple[tuple[Role, Role, Stream, Stream], ...] = (
        ("client", "server", talk.up, talk.down),
        ("server", "client", talk.down, talk.up),
    )
    for role, receiver, stream, other in sides:
        assert stream.of("text", "binary") == planned(plan[role])
        assert [content for _, content in stream.of("ping")] == pings(plan[role])
        assert [content for _, content in other.of("pong")] == pings(plan[role]), "each ping is answered, with its data"
        assert next(content for _, content in stream.of("close"))[2:].decode() == CLOSE[1], f"{closer} closes"
        got = [(kind, base64.b64decode(data)) for kind, data in told[receiver]["got"]]
        kinds = {kind for kind, _ in got}
        assert got == stream.of(*kinds), "what one end's library gave is what the other's end said"
        assert tuple(told[receiver]["close"]) == CLOSE


def tls_of(told: dict[str, Any], **more: str) -> dict[str, str] | None:
    """What the records must say of the handshake, from what Python's end says. None: it had none."""
    if "version" not in told:
        return None
    truth = negotiated(told)
    assert truth.version and truth.cipher
    return {"library": "openssl", "version": truth.version, "cipher": truth.cipher, **more}


@pytest.mark.parametrize("mode", ["off", "takeover", "fresh"])
@pytest.mark.parametrize("transport", ["plaintext", "tls"])
@pytest.mark.parametrize(("client", "server"), [("python", "node"), ("node", "python")])
def test_a_hundred_messages_each_way(
    lab: TlsLab,
    directory: Path,
    certificates: Certificates,
    node: str,
    client: str,
    server: str,
    transport: str,
    mode: str,
) -> None:
    [port] = lab.ports(1)
    path, plan = websocket.write_plan(directory)
    closer = "server" if (mode == "takeover") == (client == "python") else "client"
    common: list[str | Path] = [str(port), mode, closer, path]
    tls = transport == "tls"
    at_server = [certificates.certificate, certificates.key] if tls else []
    at_client = [certificates.ca] if tls else []
    with Program(
        [*end(node, server), "server", *common, *at_server], directory, name="server", address=("127.0.0.1", port)
    ) as listener:
        done = run_client([*end(node, client), "client", *common, *at_client], directory)
        told: dict[Role, dict[str, Any]] = {"client": line_of(done.output), "server": server_line(listener)}
        pids: dict[Role, int] = {"client": done.pid, "server": listener.pid}
    role: Role = "client" if client == "python" else "server"
    talk = talk_of(told[role], role)
    assert ("version" in told[role]) == tls
    assert_one_story(talk, plan, closer, told)

    messages = len(talk.up.messages) + len(talk.down.messages)
    assert messages == 2 * (websocket.MESSAGES + 2 * len(pings(plan["client"])) + 1)
    assert any(said.compressed for said in talk.up.messages + talk.down.messages) == (mode != "off")
    assert any(said.fragments > 1 for said in talk.up.messages) and any(s.fragments > 1 for s in talk.down.messages)

    records = lab.records([port], 2 * (messages + 2))
    for side, pid in pids.items():
        upgrade = assert_side(records, talk, side, {pid}, tls=tls_of(told[role], sni=NAME))
        assert upgrade.request["url"] == f"/talk?mode={mode}"
        agreed = header(upgrade.response, "sec-websocket-extensions") or ""
        assert agreed.startswith("permessage-deflate") == (mode != "off")
        assert ("server_no_context_takeover" in agreed and "client_no_context_takeover" in agreed) == (mode == "fresh")
    assert len(records) == 2 * (messages + 2)


def chromium(directory: Path, page: Path) -> Program:
    """Headless, with a profile of its own and without what would go out to the Internet; it runs until it is ended."""
    [binary] = require("chromium")
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    alone = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--ignore-certificate-errors")
    profile = f"--user-data-dir={directory / 'profile'}"
    return Program(
        [binary, *alone, *quiet, profile, "--remote-debugging-port=0", page.as_uri()], directory, name="chromium"
    )


@pytest.mark.parametrize("transport", ["plaintext", "tls"])
def test_a_browser(lab: TlsLab, directory: Path, certificates: Certificates, transport: str) -> None:
    """Chromium talks to Python. Its executable is stripped, so over TLS only the server's side is read; there it offers ALPN, but no name."""
    [port] = lab.ports(1)
    tls = transport == "tls"
    closer = "server" if tls else "client"
    path, plan = websocket.write_plan(directory)
    said = websocket.browser_part()
    report = [{"kind": "text", "fragments": [""]}]
    whole = {"client": said + report, "server": plan["server"], "close": CLOSE}
    path.write_text(json.dumps(whole))
    page = directory / "page.html"
    url = f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/talk?mode=takeover"
    script = json.dumps({"url": url, "closer": closer, "plan": {**whole, "client": said}})
    page.write_text((SCRIPTS / "websocket_browser.html").read_text().replace("PLAN", script, 1))

    files = [certificates.certificate, certificates.key] if tls else []
    with Program(
        [PYTHON, SCRIPTS / "websocket_python.py", "server", str(port), "takeover", closer, path, *files],
        directory,
        name="server",
        address=("127.0.0.1", port),
    ) as server:
        with chromium(directory, page) as browser:
            told = server_line(server)
            pids: dict[Role, set[int]] = {"client": browser.pids(), "server": {server.pid}}
    talk = talk_of(told, "server")
    assert talk.up.of("text", "binary")[:-1] == planned(said)
    assert talk.down.of("text", "binary") == planned(plan["server"])
    assert [content for _, content in talk.up.of("pong")] == pings(plan["server"])
    reported = json.loads(talk.up.of("text")[-1][1])
    assert [(kind, base64.b64decode(data)) for kind, data in reported["got"]] == planned(plan["server"])
    assert len(talk.up.of("text", "binary")) == len(talk.down.of("text", "binary")) == websocket.MESSAGES
    assert tuple(told["close"]) == CLOSE
    assert any(s.compressed for s in talk.up.messages) and any(s.compressed for s in talk.down.messages)

    messages = len(talk.up.messages) + len(talk.down.messages)
    sides: tuple[Role, ...] = ("server",) if tls else ("client", "server")
    records = lab.records([port], len(sides) * (messages + 2))
    for side in sides:
        upgrade = assert_side(records, talk, side, pids[side], tls=tls_of(told, alpn="http/1.1"))
        assert header(upgrade.response, "sec-websocket-extensions") == reported["extensions"]
    assert len(records) == len(sides) * (messages + 2)
