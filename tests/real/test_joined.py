"""The agent starts when connections are open already, in the middle of this and that.

What it could not see from the start is absent or ``partial``, never wrong; from the next message on everything is complete.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

import pytest

from tests.real.harness.agent import Agent, port_filters
from tests.real.harness.checks import Record, assert_hops, brief, exchanges, is_request, validate_record
from tests.real.harness.truth import pattern
from tests.real.harness.wire import Listener, Wire

pytestmark = pytest.mark.real

BODY = pattern(1000, "joined")
CHUNKS = b"1f4\r\n" + BODY[:500] + b"\r\n1f4\r\n" + BODY[500:] + b"\r\n0\r\n\r\n"
GET = b"GET /joined HTTP/1.1\r\nHost: lab\r\n\r\n"
POST = b"POST /joined HTTP/1.1\r\nHost: lab\r\nContent-Length: 1000\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
OK_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

Script = tuple[tuple[Literal["up", "down"], bytes], ...]
"""What crosses the wire, in order."""

SITUATIONS: dict[str, tuple[Script, Script]] = {
    # name: (before the agent starts, after)
    "connected only": ((), ()),
    "idle after an exchange": ((("up", GET), ("down", OK + BODY)), ()),
    "request line half sent": ((("up", GET[:9]),), (("up", GET[9:]), ("down", OK + BODY))),
    "request head half sent": ((("up", GET[:30]),), (("up", GET[30:]), ("down", OK + BODY))),
    "request body half sent": ((("up", POST + BODY[:400]),), (("up", BODY[400:]), ("down", OK + BODY))),
    "request sent, response due": ((("up", GET),), (("down", OK + BODY),)),
    "response head half received": ((("up", GET), ("down", OK[:11])), (("down", OK[11:] + BODY),)),
    "response body half received": ((("up", GET), ("down", OK + BODY[:500])), (("down", BODY[500:]),)),
    "response body at its last byte": ((("up", GET), ("down", OK + BODY[:-1])), (("down", BODY[-1:]),)),
    "chunked response half received": (
        (("up", GET), ("down", OK_CHUNKED + CHUNKS[:600])),
        (("down", CHUNKS[600:]),),
    ),
}


def play(wire: Wire, script: Script) -> None:
    for direction, data in script:
        if direction == "up":
            wire.up(data)
        else:
            wire.down(data)


def next_exchanges(wire: Wire) -> None:
    for number in range(3):
        body = pattern(100 + number, f"next{number}")
        wire.exchange(
            f"POST /next/{number} HTTP/1.1\r\nHost: lab\r\nContent-Length: 3\r\n\r\nn={number}".encode(),
            f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body,
        )


def judge(records: list[Record], *, unix: bool) -> None:
    """``records`` are those of one connection."""
    complete = [r for r in records if r["completeness"] != "partial"]
    # The message that was joined may be whole (its first byte came after the agent): then it is as it was sent.
    joined = [r for r in complete if r.get("url") == "/joined" or r.get("body_bytes") == 1000]
    for record in joined:
        assert record.get("body", BODY.decode()) == BODY.decode(), brief(record)
        if is_request(record):
            assert record["bytes"] in (len(GET), len(POST) + 1000), brief(record)
        else:
            assert record["bytes"] == len(OK) + 1000, brief(record)
    wrong = [
        f"{brief(request)} answered by {brief(response)}"
        for request in complete
        for response in complete
        if request.get("url", "").startswith("/next/")
        and "status_code" in response
        and (request["exchange"], request["role"]) == (response["exchange"], response["role"])
        and response["body_bytes"] != 100 + int(request["url"][-1])
    ]
    assert not wrong, f"a response took another's request: {wrong}"
    rest = [r for r in complete if r not in joined]
    for record in rest:
        validate_record(record, unix=unix)
    for role in ("client", "server"):
        side = exchanges(rest, role)
        seen = [(e.request["url"], e.request.get("body"), e.response.get("body")) for e in side]
        assert seen == [
            (f"/next/{number}", f"n={number}", pattern(100 + number, f"next{number}").decode()) for number in range(3)
        ], f"{role}: {[brief(r) for r in records]}"
        assert all(r["completeness"] == "complete" for e in side for r in (e.request, e.response))
        # Nobody else's message has the name of one of these exchanges.
        names = {e.request["exchange"] for e in side}
        strays = [r for r in records if r["role"] == role and r not in rest and r["exchange"] in names]
        assert not strays, [brief(r) for r in strays]
    if not unix:
        assert_hops([r for r in rest if r["role"] == "client"], [r for r in rest if r["role"] == "server"])


def test_joined_on_tcp(directory: Path) -> None:
    listener = Listener()
    wires = {name: listener.connect() for name in SITUATIONS}
    for name, (before, _) in SITUATIONS.items():
        play(wires[name], before)
    with Agent(directory, *port_filters(listener.port), allowed_rows=JOINED_ROWS) as agent:
        for name, (_, after) in SITUATIONS.items():
            play(wires[name], after)
            next_exchanges(wires[name])
        for wire in wires.values():
            wire.close()
    listener.close()
    failures = []
    for name, wire in wires.items():
        mine = [r for r in agent.records if wire.client_port in (r["source_port"], r["dest_port"])]
        try:
            judge(mine, unix=False)
        except AssertionError as error:
            failures.append(f"--- {name}: {error}")
    assert not failures, "\n".join(failures)


JOINED_ROWS = frozenset({"partial", "gap", "unparsed"})
"""Bytes of messages whose start nobody saw."""


def test_joined_on_unix_sockets(directory: Path) -> None:
    """Without sequence numbers there are no positions from before; where messages begin must still be found."""
    listener = Listener(str(directory / "joined.sock"))
    wires = {name: listener.connect() for name in SITUATIONS}
    inodes = {
        name: {f"{os.fstat(end.fileno()).st_ino}" for end in (wire.client, wire.server)} for name, wire in wires.items()
    }
    for name, (before, _) in SITUATIONS.items():
        play(wires[name], before)
    with Agent(directory, "--pid", str(os.getpid()), allowed_rows=JOINED_ROWS) as agent:
        for name, (_, after) in SITUATIONS.items():
            play(wires[name], after)
            next_exchanges(wires[name])
        for wire in wires.values():
            wire.close()
    listener.close()
    failures = []
    for name, numbers in inodes.items():
        mine = [r for r in agent.records if numbers & set(re.findall(r"\d+", r["connection"]))]
        try:
            judge(mine, unix=True)
        except AssertionError as error:
            failures.append(f"--- {name}: {error}")
    assert not failures, "\n".join(failures)
