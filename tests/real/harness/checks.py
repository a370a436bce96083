"""What a log must satisfy to be right: pure functions from records (parsed lines) to nothing, or an AssertionError that says what is wrong.

Nothing here starts a program or reads a file, so that the checks can themselves be tested with wrong logs.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.real.harness.truth import Truth

Record = dict[str, Any]
Ledger = dict[str, Any]
Role = Literal["client", "server"]

BODY_LIMIT_BYTES = 4096
"""The agent's default ``--body-limit``."""

KEY_ORDER: tuple[str, ...] = (
    "timestamp", "pid", "tid", "comm", "cmdline", "direction", "role",
    "source_ip", "source_port", "dest_ip", "dest_port", "unix_path",
    "bytes", "protocol", "method", "url", "status_code", "reason",
    "body", "body_encoding", "body_bytes", "headers", "trailers", "raw_payload",
    "tls", "grpc", "websocket", "connection", "exchange", "hop",
    "ttfb_ms", "duration_ms", "completeness", "missing_bytes", "missing_reason", "unknown_fields",
    "redacted", "source_container", "destination_container", "destination_type",
)  # fmt: skip

INT_KEYS = frozenset(
    {"pid", "tid", "source_port", "dest_port", "bytes", "status_code", "body_bytes", "missing_bytes", "unknown_fields"}
)
NUMBER_KEYS = frozenset({"ttfb_ms", "duration_ms"})
OBJECT_KEYS = frozenset(
    {"headers", "trailers", "tls", "grpc", "websocket", "source_container", "destination_container"}
)
ARRAY_KEYS = frozenset({"redacted"})

ALWAYS = (
    "timestamp", "pid", "tid", "comm", "cmdline", "direction", "role", "bytes", "protocol",
    "body_bytes", "connection", "exchange", "completeness",
)  # fmt: skip
ADDRESS = ("source_ip", "source_port", "dest_ip", "dest_port")

COMPLETENESS = frozenset({"complete", "truncated", "gap", "partial", "open"})
MISSING_REASONS = frozenset({"sendfile", "splice", "io_uring", "ring_full", "budget", "unknown"})
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")

LOSS_ROWS = frozenset(
    {"lost", "gap", "budget", "partial", "unparsed", "unreadable", "pending", "output_failed", "not_wanted"}
)
"""Ledger rows that must be zero when a test has the agent watch a few well-behaved exchanges."""


def parse_line(line: str) -> Record:
    """One line of the log; a key given twice is an error that ``json`` alone would hide."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        assert len(names) == len(set(names)), f"a key twice in one object: {names}"
        return dict(pairs)

    record = json.loads(line, object_pairs_hook=once)
    assert isinstance(record, dict), f"a line that is no object: {line[:200]}"
    return record


def parse_log(text: str) -> list[Record]:
    assert text == "" or text.endswith("\n"), "the log's last line is cut off"
    return [parse_line(line) for line in text.splitlines()]


def is_request(record: Record) -> bool:
    return "method" in record


def is_interim(record: Record) -> bool:
    """100 and 103 are records of their own; 101 is the final response (RFC 9110, 15.2)."""
    return "status_code" in record and 100 <= record["status_code"] < 200 and record["status_code"] != 101


def expected_headers(raw_head: str) -> dict[str, str | list[str]]:
    """The head once more, read the naive way: independent of the agent's parser."""
    found: dict[str, str | list[str]] = {}
    for line in raw_head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        value = value.strip(" \t")
        earlier = found.get(name)
        if earlier is None:
            found[name] = value
        elif isinstance(earlier, list):
            earlier.append(value)
        else:
            found[name] = [earlier, value]
    return found


def header(record: Record, name: str) -> str | None:
    for key, value in record.get("headers", {}).items():
        if key.lower() == name.lower():
            return ", ".join(value) if isinstance(value, list) else str(value)
    return None


def validate_record(
    record: Record, *, unix: bool = False, hop: bool = True, body_limit_bytes: int = BODY_LIMIT_BYTES
) -> None:
    """Everything that record.md says of one line and that can be judged from the line alone.

    ``unix``: on a UNIX socket. ``hop``: on TCP it must have one; without, it must have none.
    """
    _validate_shape(record, unix=unix, hop=hop and not unix)
    _validate_sides(record)
    _validate_completeness(record, body_limit_bytes)
    _validate_payload(record)


def brief(record: Record) -> str:
    """A record in one line, for messages."""
    what = record.get("method", record.get("status_code"))
    return (
        f"[{record.get('comm')}/{record.get('pid')} {record.get('role')} {record.get('direction')} {what}"
        f" {record.get('url', '')} body={record.get('body_bytes')} {record.get('completeness')}"
        f" {record.get('missing_reason', '')} exchange={record.get('exchange')}]"
    )


def _validate_shape(record: Record, *, unix: bool, hop: bool) -> None:
    unknown = [key for key in record if key not in KEY_ORDER]
    assert not unknown, f"keys that no record has: {unknown}"
    order = [KEY_ORDER.index(key) for key in record]
    assert order == sorted(order), f"keys out of order: {list(record)}"

    required = list(ALWAYS)
    if not unix:
        required += ADDRESS
    if hop:
        required.append("hop")
    if record["protocol"] != "HTTP/2":  # whose heads are no text on the stream
        required.append("raw_payload")
    required += ["method", "url"] if is_request(record) else ["status_code"]
    if "unknown_fields" in record:
        assert record["protocol"] == "HTTP/2" and record["completeness"] in ("partial", "gap", "open"), brief(record)
        required = [key for key in required if key not in ("url", "status_code")]
    if not is_request(record) and record["completeness"] != "open":
        required += ["ttfb_ms", "duration_ms"]
    missing = [key for key in required if key not in record]
    assert not missing, f"keys missing: {missing} in {brief(record)}: {record}"
    assert ("method" in record) != ("status_code" in record), f"both or neither of request and response: {record}"
    if unix:
        present = [key for key in ADDRESS if key in record]
        assert not present, f"keys that a UNIX socket does not have: {present}"
    assert hop or "hop" not in record, f"a hop of what has none: {brief(record)}"

    for key, value in record.items():
        if key in INT_KEYS:
            assert type(value) is int and value >= 0, f"{key} is {value!r}"
        elif key in NUMBER_KEYS:
            assert type(value) in (int, float) and value >= 0, f"{key} is {value!r}"
        elif key in OBJECT_KEYS:
            assert isinstance(value, dict), f"{key} is {value!r}"
        elif key in ARRAY_KEYS:
            assert isinstance(value, list) and value, f"{key} is {value!r}"
        else:
            assert isinstance(value, str) and value, f"{key} is {value!r}"
    assert TIMESTAMP.fullmatch(record["timestamp"]), record["timestamp"]


def _validate_sides(record: Record) -> None:
    assert record["role"] in ("client", "server"), record["role"]
    assert record["direction"] in ("send", "recv"), record["direction"]
    sends_requests = (record["role"] == "client") == (record["direction"] == "send")
    assert is_request(record) == sends_requests, f"direction and role do not fit the message: {brief(record)}"
    if not is_request(record):
        assert record["ttfb_ms"] <= record["duration_ms"], brief(record)


def _validate_completeness(record: Record, body_limit_bytes: int) -> None:
    completeness = record["completeness"]
    assert completeness in COMPLETENESS, completeness
    assert ("missing_bytes" in record) == (completeness == "gap"), brief(record)
    assert ("missing_reason" in record) == (completeness == "gap"), brief(record)
    if completeness == "gap":
        assert record["missing_bytes"] > 0, brief(record)
        assert record["missing_reason"] in MISSING_REASONS, record["missing_reason"]
    # What a coding has been undone of may be longer than what was on the stream.
    is_coded = any(header(record, name) is not None for name in ("content-encoding", "grpc-encoding"))
    if completeness in ("complete", "truncated") and not is_coded:
        whole = record["body_bytes"] <= body_limit_bytes
        assert (completeness == "complete") == whole, f"{completeness} does not fit body_bytes: {brief(record)}"
    if record["body_bytes"] == 0:
        assert "body" not in record and "body_encoding" not in record, brief(record)
    elif completeness in ("complete", "truncated") and body_limit_bytes > 0:
        assert "body" in record, f"a body that was seen is not shown: {brief(record)}"
    if "body_encoding" in record:
        assert record["body_encoding"] == "base64" and "body" in record, brief(record)
    elif "body" in record:
        assert len(record["body"].encode()) <= body_limit_bytes, brief(record)


def _validate_payload(record: Record) -> None:
    """``raw_payload`` against the rest: the head read again, the lengths added up."""
    if record["protocol"] == "HTTP/2":
        _validate_frames(record)
        return
    if record.get("redacted") or record["completeness"] == "partial":
        return
    head, blank, rest = record["raw_payload"].partition("\r\n\r\n")
    assert blank, f"raw_payload without the end of its head: {record['raw_payload'][:200]!r}"
    if "\ufffd" in head:
        return
    first = head.split("\r\n")[0]
    if is_request(record):
        assert first == f"{record['method']} {record['url']} {record['protocol']}", first
    else:
        reason = record.get("reason", "")
        assert first.rstrip() == f"{record['protocol']} {record['status_code']} {reason}".rstrip(), first
    expected = expected_headers(head)
    assert "headers" in record, f"every message has headers, none is an empty object: {brief(record)}"
    seen = record["headers"]
    assert list(seen.items()) == list(expected.items()), f"{seen} is not {expected}"

    head_bytes = len(head.encode()) + 4
    body_bytes = record["body_bytes"]
    if header(record, "transfer-encoding") is None:
        assert record["bytes"] == head_bytes + body_bytes, f"{head_bytes} + {body_bytes} != bytes: {brief(record)}"
        if "\ufffd" not in rest and record["completeness"] == "complete":
            assert len(rest.encode()) == body_bytes, f"raw_payload's body is not body_bytes long: {brief(record)}"
            if "body_encoding" not in record and header(record, "content-encoding") is None:
                assert record.get("body", "") == rest, f"body is not that of raw_payload: {brief(record)}"
    elif record["bytes"] != head_bytes or body_bytes:  # a response to HEAD announces chunks and sends none
        assert record["bytes"] > head_bytes + body_bytes, f"no room for the framing of chunks: {brief(record)}"


FRAME_HEADER_BYTES = 9
"""RFC 9113, section 4.1."""


def _validate_frames(record: Record) -> None:
    """What RFC 9113, section 8, says of every message, and the frames that its body needs at least."""
    assert "raw_payload" not in record, brief(record)
    names = list(record.get("headers", {}))
    regular = [name for name in names if not name.startswith(":")]
    assert regular == [name.lower() for name in regular], f"names in capitals: {names}"
    pseudo = names[: len(names) - len(regular)]
    assert not [name for name in names[len(pseudo) :] if name.startswith(":")], f"a pseudo field behind others: {names}"
    if not is_request(record):
        assert pseudo == [], f"pseudo fields of a response are its status alone: {brief(record)}: {names}"
    elif record["method"] != "CONNECT":
        assert set(pseudo) <= {":scheme", ":authority"}, f"{brief(record)}: {names}"
        assert ":scheme" in pseudo or "unknown_fields" in record, f"{brief(record)}: {names}"
    data = record["body_bytes"] + FRAME_HEADER_BYTES if record["body_bytes"] else 0
    assert record["bytes"] > FRAME_HEADER_BYTES + data, f"no room for the frames: {brief(record)}"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and what answered it, on one side."""

    request: Record
    interim: tuple[Record, ...]
    response: Record


def exchanges(records: Iterable[Record], role: Role) -> list[Exchange]:
    """One side's records joined by ``exchange`` alone, in the order of the requests in the log.

    Fails on an exchange with no or two requests, with no or two final responses, and on records of one exchange that
    disagree on who and where.
    """
    grouped: dict[str, list[Record]] = {}
    for record in records:
        if record["role"] == role:
            grouped.setdefault(record["exchange"], []).append(record)
    found = []
    for name, group in grouped.items():
        requests = [record for record in group if is_request(record)]
        # A switch to HTTP/2 is answered there (RFC 7540, 3.2): then its 101 is no final response.
        switched = [r for r in group if r.get("status_code") == 101 and any(o["protocol"] == "HTTP/2" for o in group)]
        interim = tuple(r for r in group if is_interim(r) or r in switched)
        finals = [r for r in group if not is_request(r) and r not in interim]
        assert len(requests) == 1, f"{len(requests)} requests in exchange {name}: {[brief(r) for r in group]}"
        assert len(finals) == 1, f"{len(finals)} final responses in exchange {name}: {[brief(r) for r in group]}"
        request, response = requests[0], finals[0]
        for other in (*interim, response):
            for key in ("pid", "comm", "cmdline", "connection"):
                assert other[key] == request[key], f"{key} differs in exchange {name}: {[brief(r) for r in group]}"
            for here, there in (("source_ip", "dest_ip"), ("source_port", "dest_port")):
                assert request.get(here) == other.get(there), f"addresses differ in exchange {name}"
                assert request.get(there) == other.get(here), f"addresses differ in exchange {name}"
        found.append(Exchange(request, interim, response))
    return found


def assert_equal_to_truth(
    records: Sequence[Record],
    truth: Sequence[Truth],
    role: Role,
    *,
    pids: Collection[int] | None = None,
    unix: bool = False,
    hop: bool = True,
    ordered: bool = False,
    sendfile: bool = False,
) -> list[Exchange]:
    """The records of ``role`` (of ``pids``, where given) are the exchanges of ``truth``: nothing missing, nothing extra.

    With ``sendfile`` what this side sent may be a gap with ``missing_reason`` ``sendfile``; nothing else may be anything
    but complete or truncated.
    """
    mine = [record for record in records if record["role"] == role and (pids is None or record["pid"] in pids)]
    for record in mine:
        validate_record(record, unix=unix, hop=hop)
        if sendfile and record["direction"] == "send" and record["completeness"] == "gap":
            assert record["missing_reason"] == "sendfile", brief(record)
            assert record["missing_bytes"] <= record["body_bytes"], brief(record)
        else:
            assert record["completeness"] in ("complete", "truncated"), brief(record)
    found = exchanges(mine, role)
    seen = [(e.request["method"], e.request["url"], e.response["status_code"], e.response["body_bytes"]) for e in found]
    wanted = [(t.method, t.target, t.status, t.response_bytes) for t in truth]
    _assert_same(seen, wanted, role)
    if ordered:
        assert seen == wanted, f"{role}: the same exchanges, in another order: {seen} is not {wanted}"

    if all(t.request_bytes is not None for t in truth):
        _assert_same(
            [(e.request["method"], e.request["url"], e.request["body_bytes"]) for e in found],
            [(t.method, t.target, t.request_bytes) for t in truth],
            role,
        )
    by_key: dict[tuple[str, str], set[str]] = {}
    for t in truth:
        if t.response_start is not None:
            by_key.setdefault((t.method, t.target), set()).add(t.response_start)
    for e in found:
        starts = by_key.get((e.request["method"], e.request["url"]))
        if starts and "body" in e.response:
            assert e.response["body"] in starts, (
                f"{role}: {brief(e.response)} has the body {e.response['body'][:80]!r}, not that of its request"
            )
    return found


def _assert_same(seen: Sequence[tuple[Any, ...]], wanted: Sequence[tuple[Any, ...]], role: str) -> None:
    missing = Counter(wanted) - Counter(seen)
    extra = Counter(seen) - Counter(wanted)
    assert not missing and not extra, (
        f"{role}: {len(seen)} exchanges in the log, {len(wanted)} in truth\n"
        f"  {missing.total()} in truth only: {sorted(missing.elements(), key=repr)[:23]}\n"
        f"  {extra.total()} in the log only: {sorted(extra.elements(), key=repr)[:23]}"
    )


def assert_hops(client: Iterable[Record], server: Iterable[Record]) -> None:
    """Every message has one hop, unique on its side, the same at both ends, and both ends tell the same story."""
    sides: list[dict[str, Record]] = []
    for name, side in (("client", client), ("server", server)):
        by_hop: dict[str, Record] = {}
        for record in side:
            assert record["hop"] not in by_hop, f"hop {record['hop']} twice at the {name}: {brief(record)}"
            by_hop[record["hop"]] = record
        sides.append(by_hop)
    at_client, at_server = sides
    alone = [brief(record) for hop, record in at_client.items() if hop not in at_server]
    alone += [brief(record) for hop, record in at_server.items() if hop not in at_client]
    assert not alone, f"messages whose hop is at one end only: {alone}"
    same = ("bytes", "protocol", "method", "url", "status_code", "reason", "body_bytes", "headers", *ADDRESS)
    for hop, record in at_client.items():
        for key in same:
            assert record.get(key) == at_server[hop].get(key), f"{key} differs between the ends of hop {hop}"
        assert {record["direction"], at_server[hop]["direction"]} == {"send", "recv"}, hop
        assert record["connection"] != at_server[hop]["connection"], f"both ends are one socket: {hop}"


def assert_only(records: Iterable[Record], *accounted: Iterable[Exchange]) -> None:
    """Nothing in the log but these exchanges."""
    known = {id(r) for group in accounted for e in group for r in (e.request, *e.interim, e.response)}
    extra = [brief(record) for record in records if id(record) not in known]
    assert not extra, f"records that no truth accounts for: {extra}"


def assert_ledger(ledger: Ledger, lines: int, *, allowed_rows: Collection[str] = ()) -> None:
    """Rows sum to their totals; nothing was lost; as many records written as there are lines."""
    for name in ("bytes", "calls", "records"):
        part: Mapping[str, Any] = ledger[name]
        total = part["made"] if name == "records" else part["total"]
        rows: Mapping[str, int] = part["rows"]
        for row, value in rows.items():
            assert type(value) is int and value >= 0, f"{name}.{row} is {value!r}"
        assert sum(rows.values()) == total, f"{name}: rows sum to {sum(rows.values())}, total is {total}: {rows}"
        bad = {row: n for row, n in rows.items() if row in LOSS_ROWS and row not in allowed_rows and n}
        assert not bad, f"{name} went missing: {bad}"
    written = ledger["records"]["rows"].get("written", 0)
    assert written == lines, f"the ledger says {written} records written, the log has {lines} lines"
