"""WebSocket for the tests: a plan of what two ends say, what was said according to the bytes that one of them wrote and read, and what the
log must have of it.

The framing is read here once more, the naive way (RFC 6455, 5.2; RFC 7692, 7.2), independent of the agent's.
"""

from __future__ import annotations

import base64
import json
import random
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.real.harness.checks import (
    ADDRESS,
    ALWAYS,
    BODY_LIMIT_BYTES,
    KEY_ORDER,
    TIMESTAMP,
    Exchange,
    Record,
    Role,
    brief,
    exchanges,
    validate_record,
)
from tests.real.harness.truth import pattern

MESSAGES = 100
"""Of text and binary, in each direction."""
CLOSE = (4001, "done \u2713")
OPCODES = {1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong"}
Part = list[dict[str, Any]]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _entry(kind: str, *fragments: bytes) -> dict[str, Any]:
    return {"kind": kind, "fragments": [_text(fragment) for fragment in fragments]}


def part(who: str) -> Part:
    """100 messages and 20 pings: every length of the frame's header, what is compressible and what is not, cut in every way."""
    chance = random.Random(who)
    sizes = (0, 1, 125, 126, 127, 999, 4095, 4096, 4097, 65_535, 65_536, 70_000)
    found: Part = [_entry("text", pattern(size, f"{who}-{size}")) for size in sizes]
    found += [_entry("binary", chance.randbytes(size)) for size in sizes]
    found += [_entry("binary", bytes(size)) for size in (20, 3000, 30_000)]
    found += [_entry("text", ("\u00e9\u2713" * size).encode()) for size in (3, 50, 2000)]
    found += [_entry("text", b"", b"begins with nothing"), _entry("binary", b"ends with nothing", b"")]
    for number in range(16):
        fragments = [pattern(chance.randrange(1, 600), f"{who}-{number}-{n}") for n in range(chance.randrange(2, 6))]
        found.append(_entry(chance.choice(("text", "binary")), *fragments))
        if number % 2:
            found[-1]["between"] = _text(f"{who} between {number}".encode())
    long = pattern(20_000, f"{who}-long")
    found.append(_entry("text", long[:1], long[1:9000], long[9000:]))
    cut = "one \u2713 in two fragments".encode()
    found.append(_entry("text", cut[:5], cut[5:]))
    while len(found) < MESSAGES - 1:
        number = len(found)
        found.append(_entry("text", json.dumps({"from": who, "number": number, "more": "x" * number}).encode()))
    assert len(found) == MESSAGES - 1
    found += [_entry("ping", f"{who} ping {number}".encode()) for number in range(11)] + [_entry("ping", b"")]
    chance.shuffle(found)
    # So that who has the last message has had all pings before it, and answered them, when it closes.
    return [*found, _entry("text", f"{who} has said all".encode())]


def browser_part() -> Part:
    """What a page can say: no fragments and no pings of its own. The last of the 100 messages is its report."""
    found = [m for m in part("browser") if m["kind"] != "ping" and len(m["fragments"]) == 1]
    while len(found) < MESSAGES - 1:
        found.append(_entry("text", pattern(len(found) * 17, f"browser-{len(found)}")))
    return found[: MESSAGES - 1]


def write_plan(directory: Path) -> tuple[Path, dict[Role, Part]]:
    plan: dict[Role, Part] = {"client": part("client"), "server": part("server")}
    path = directory / "plan.json"
    path.write_text(json.dumps({"client": plan["client"], "server": plan["server"], "close": CLOSE}))
    return path, plan


def planned(messages: Part) -> list[tuple[str, bytes]]:
    """Text and binary in the order in which they are sent."""
    return [
        (str(m["kind"]), b"".join(base64.b64decode(fragment) for fragment in m["fragments"]))
        for m in messages
        if m["kind"] != "ping"
    ]


def pings(messages: Part) -> list[bytes]:
    """Those of their own, and those behind the first fragment of a message, in the order in which they are sent."""
    found = []
    for message in messages:
        if message["kind"] == "ping":
            found.append(base64.b64decode(message["fragments"][0]))
        elif "between" in message:
            found.append(base64.b64decode(message["between"]))
    return found


@dataclass(frozen=True, slots=True)
class Said:
    """One message of one direction, as it crossed the stream."""

    opcode: str
    content: bytes
    """Inflated."""
    body_bytes: int
    """Of payload on the stream, without the headers of frames."""
    stream_bytes: int
    """With them."""
    offset: int
    """Of its first frame, in the direction's stream from the connection's beginning."""
    compressed: bool
    fragments: int


@dataclass(frozen=True, slots=True)
class Stream:
    """All that one direction said."""

    head: str
    """The upgrade's request or response, with the empty line."""
    messages: list[Said]
    """In the order in which they ended."""

    def of(self, *opcodes: str) -> list[tuple[str, bytes]]:
        return [(said.opcode, said.content) for said in self.messages if said.opcode in opcodes]


def read_stream(raw: bytes) -> Stream:
    head, blank, _ = raw.partition(b"\r\n\r\n")
    assert blank, raw[:100]
    at = len(head) + 4
    messages: list[Said] = []
    # The window may be kept or not: who does not keep it never refers to it, so one inflater does for both (7.2.2).
    inflater = zlib.decompressobj(-15)
    payload, began, size, parts, opcode, compressed = b"", at, 0, 0, 0, False
    while at < len(raw):
        start = at
        final, kind, masked, length = raw[at] >> 7, raw[at] & 15, raw[at + 1] >> 7, raw[at + 1] & 127
        rsv1 = bool(raw[at] & 0x40)
        at += 2
        if length > 125:
            wide = 2 if length == 126 else 8
            length = int.from_bytes(raw[at : at + wide], "big")
            at += wide
        mask = raw[at : at + 4] if masked else bytes(4)
        at += len(mask) if masked else 0
        data = raw[at : at + length]
        assert len(data) == length, f"the stream ends inside a frame of {length} bytes"
        repeated = (mask * (length // 4 + 1))[:length]
        data = (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(length, "big")
        at += length
        if kind >= 8:
            messages.append(Said(OPCODES[kind], data, length, at - start, start, False, 1))
            continue
        if kind:
            payload, began, size, parts, opcode, compressed = b"", start, 0, 0, kind, rsv1
        payload, size, parts = payload + data, size + at - start, parts + 1
        if final:
            content = inflater.decompress(payload + b"\x00\x00\xff\xff") if compressed else payload
            messages.append(Said(OPCODES[opcode], content, len(payload), size, began, compressed, parts))
    return Stream((head + blank).decode("ascii"), messages)


@dataclass(frozen=True, slots=True)
class Talk:
    """One connection: both directions, and the client's port."""

    up: Stream
    down: Stream
    client_port: int


def talk_of(told: dict[str, Any], role: Role) -> Talk:
    """From the line of ``websocket_python.py``, which played ``role``."""
    sent, received = (read_stream(base64.b64decode(told[key])) for key in ("sent", "received"))
    here, there = told["ports"]
    return Talk(sent, received, here) if role == "client" else Talk(received, sent, there)


def assert_side(
    records: Sequence[Record],
    talk: Talk,
    role: Role,
    pids: Collection[int],
    *,
    tls: dict[str, str] | None = None,
) -> Exchange:
    """The records of one process are the upgrade and the messages of ``talk``, each direction's in its order, and nothing else."""
    mine = [record for record in records if record["role"] == role]
    assert mine, f"no records of the {role}"
    framed = [record for record in mine if record["protocol"] == "websocket"]
    [upgrade] = exchanges([record for record in mine if record["protocol"] != "websocket"], role)
    for record, head in ((upgrade.request, talk.up.head), (upgrade.response, talk.down.head)):
        validate_record(record)
        assert record["raw_payload"] == head
        assert record["bytes"] == len(head)
    assert upgrade.response["status_code"] == 101

    for up, stream in ((True, talk.up), (False, talk.down)):
        sends = up == (role == "client")
        first = upgrade.request if up else upgrade.response
        here = [record for record in framed if record["direction"] == ("send" if sends else "recv")]
        seen = [_summary(record) for record in here]
        wanted = [_wanted(said) for said in stream.messages]
        assert len(seen) == len(wanted), f"{role}: {len(seen)} messages {here[0]['direction']}, not {len(wanted)}"
        for number, (record, got, want) in enumerate(zip(here, seen, wanted, strict=True)):
            differs = {key: (got[key], want[key]) for key in want if got[key] != want[key]}
            assert not differs, f"{role}, message {number}: (log, truth) {differs}"
            _assert_belongs(record, first, upgrade, tls)
            assert record["hop"] == _hop_after(first["hop"], stream.messages[number].offset)
        # A message of fragments began before those that came between them.
        times = [r["timestamp"] for r, said in zip(here, stream.messages, strict=True) if said.fragments == 1]
        assert times == sorted(times), f"{role}: times go back"
    assert {record["pid"] for record in mine} <= set(pids), f"{role}: {brief(mine[0])} is not of {pids}"
    return upgrade


def _assert_belongs(record: Record, first: Record, upgrade: Exchange, tls: dict[str, str] | None) -> None:
    """What a message has in common with the upgrade's message of the same direction."""
    unknown = [key for key in record if key not in KEY_ORDER]
    assert not unknown, f"keys that no record has: {unknown}"
    order = [KEY_ORDER.index(key) for key in record]
    assert order == sorted(order), f"keys out of order: {list(record)}"
    missing = [key for key in (*ALWAYS, *ADDRESS, "hop", "websocket") if key not in record and key != "raw_payload"]
    assert not missing, f"keys missing: {missing} in {record}"
    foreign = [key for key in ("method", "url", "status_code", "reason", "headers", "trailers") if key in record]
    assert not foreign, f"a WebSocket message has no {foreign}"
    for key in ("pid", "comm", "cmdline", "direction", "role", "connection", "exchange", *ADDRESS):
        assert record[key] == first[key], f"{key} is {record[key]}, that of the upgrade {first[key]}"
    assert TIMESTAMP.fullmatch(record["timestamp"])
    assert record["timestamp"] >= upgrade.request["timestamp"]
    assert record.get("tls") == tls == first.get("tls"), f"tls is {record.get('tls')}, {first.get('tls')}; truth: {tls}"


def _hop_after(first: str, offset: int) -> str:
    """The hop of what lies ``offset`` bytes behind the message with the hop ``first``: sequence numbers wrap at 2^32."""
    name, at, number = first.rpartition("@")
    return f"{name}{at}{(int(number) + offset) % 2**32}"


def shown(content: bytes, *, text: bool) -> bytes:
    """What the record keeps of it: a character of text that the limit would cut is left out."""
    kept = content[:BODY_LIMIT_BYTES]
    return kept.decode(errors="ignore").encode() if text else kept


def body(record: Record) -> bytes:
    found = str(record.get("body", ""))
    return base64.b64decode(found) if record.get("body_encoding") == "base64" else found.encode()


def _wanted(said: Said) -> dict[str, Any]:
    cut = len(said.content) > BODY_LIMIT_BYTES
    found: dict[str, Any] = {
        "opcode": said.opcode,
        "body": shown(said.content, text=said.opcode == "text"),
        "body_bytes": said.body_bytes,
        "bytes": said.stream_bytes,
        "completeness": "truncated" if cut else "complete",
        "close": None,
    }
    if said.opcode == "close" and said.content:
        found["close"] = (int.from_bytes(said.content[:2], "big"), said.content[2:].decode())
    return found


def _summary(record: Record) -> dict[str, Any]:
    websocket = dict(record["websocket"])
    found: dict[str, Any] = {
        "opcode": websocket.pop("opcode"),
        "body": body(record),
        "body_bytes": record["body_bytes"],
        "bytes": record["bytes"],
        "completeness": record["completeness"],
        "close": None,
    }
    if "close_code" in websocket:
        found["close"] = (websocket.pop("close_code"), websocket.pop("close_reason", ""))
    assert not websocket, f"more in websocket than there should be: {websocket}"
    return found
