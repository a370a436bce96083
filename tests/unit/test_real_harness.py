"""The checks of ``tests/real`` on logs that are right, and on logs that are wrong in one thing: each must be found."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest

from tests.real.harness.checks import (
    KEY_ORDER,
    Ledger,
    Record,
    assert_equal_to_truth,
    assert_hops,
    assert_ledger,
    assert_only,
    exchanges,
    expected_headers,
    parse_line,
    parse_log,
    validate_record,
)
from tests.real.harness.truth import Ask, Truth, agreed, app_plan, from_json_log, go_plan, pattern, target_of

TRUTH = [
    Truth("GET", "/a", 200, 5, 0, "first"),
    Truth("POST", "/b", 404, 6, 3, "second"),
    Truth("HEAD", "/c", 200, 0, 0, ""),
]
REQUEST_BODIES = {"/b": "abc"}


def record(role: str, number: int, *, response: bool) -> Record:
    """One side's record of one message of ``TRUTH``, as the agent would write it."""
    truth = TRUTH[number]
    body = (truth.response_start or "") if response else REQUEST_BODIES.get(truth.target, "")
    length = 100 if truth.method == "HEAD" and response else len(body)
    if response:
        head = f"HTTP/1.1 {truth.status} Why\r\nContent-Length: {length}\r\n\r\n"
        headers: dict[str, str | list[str]] = {"Content-Length": str(length)}
    else:
        head = f"{truth.method} {truth.target} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n"
        headers = {"Host": "h", "Content-Length": str(length)}
    server, client = ("127.0.0.1", 8080), ("127.0.0.1", 40000)
    source, dest = (server, client) if response else (client, server)
    fields: Record = {
        "timestamp": f"2026-11-21T04:18:24.00000000{number}Z",
        "pid": 10 if role == "client" else 20,
        "tid": 10 if role == "client" else 21,
        "comm": role,
        "cmdline": f"/bin/{role}",
        "direction": "send" if (role == "client") != response else "recv",
        "role": role,
        "source_ip": source[0],
        "source_port": source[1],
        "dest_ip": dest[0],
        "dest_port": dest[1],
        "bytes": len(head) + len(body),
        "protocol": "HTTP/1.1",
        "body_bytes": len(body),
        "headers": headers,
        "raw_payload": head + body,
        "connection": f"sock:[{role}]",
        "exchange": f"sock:[{role}]#{number}",
        "hop": f"hop-{number}-{response}",
        "completeness": "complete",
    }
    if response:
        fields |= {"status_code": truth.status, "reason": "Why", "ttfb_ms": 0.5, "duration_ms": 1}
    else:
        fields |= {"method": truth.method, "url": truth.target}
    if body:
        fields["body"] = body
    return {key: fields[key] for key in KEY_ORDER if key in fields}


def good_log() -> list[Record]:
    return [
        record(role, number, response=response)
        for number in range(len(TRUTH))
        for response in (False, True)
        for role in ("client", "server")
    ]


def check(log: list[Record]) -> None:
    at_client = assert_equal_to_truth(log, TRUTH, "client", pids={10}, ordered=True)
    at_server = assert_equal_to_truth(log, TRUTH, "server", pids={20}, ordered=True)
    assert_only(log, at_client, at_server)
    assert_hops(
        [r for e in at_client for r in (e.request, e.response)],
        [r for e in at_server for r in (e.request, e.response)],
    )


def test_a_good_log_is_good() -> None:
    check(good_log())


def test_any_missing_record_is_found() -> None:
    for index in range(len(good_log())):
        log = good_log()
        del log[index]
        with pytest.raises(AssertionError):
            check(log)


def test_any_record_written_twice_is_found() -> None:
    for index in range(len(good_log())):
        log = good_log()
        log.append(copy.deepcopy(log[index]))
        with pytest.raises(AssertionError):
            check(log)


@pytest.mark.parametrize("role", ["client", "server"])
def test_swapped_responses_are_found(role: str) -> None:
    """Each exchange still has a request and a response, but another's."""
    log = good_log()
    first, second = [r for r in log if r["role"] == role and "status_code" in r][:2]
    first["exchange"], second["exchange"] = second["exchange"], first["exchange"]
    with pytest.raises(AssertionError):
        check(log)


def test_swapped_bodies_of_one_size_are_found() -> None:
    """The counts are all right; only the content tells."""
    truth = [Truth("GET", "/a", 200, 5, 0, "first"), Truth("GET", "/b", 200, 5, 0, "other")]
    log = []
    for number, body in ((0, "other"), (1, "first")):
        request, response = record("client", 0, response=False), record("client", 0, response=True)
        request["url"] = truth[number].target
        request["raw_payload"] = request["raw_payload"].replace("/a", truth[number].target)
        response["body"] = body
        response["raw_payload"] = response["raw_payload"].replace("first", body)
        for r in (request, response):
            r["exchange"] = f"sock:[client]#{number}"
        log += [request, response]
    with pytest.raises(AssertionError, match="not that of its request"):
        assert_equal_to_truth(log, truth, "client")


def test_another_order_is_found_where_the_order_is_known() -> None:
    log = good_log()
    log = log[4:] + log[:4]
    assert_equal_to_truth(log, TRUTH, "client", pids={10})
    with pytest.raises(AssertionError, match="another order"):
        assert_equal_to_truth(log, TRUTH, "client", pids={10}, ordered=True)


def test_records_of_a_process_that_no_truth_knows_are_found() -> None:
    log = good_log()
    stranger = record("client", 0, response=False) | {"pid": 99, "exchange": "sock:[99]#0"}
    with pytest.raises(AssertionError, match="no truth accounts for"):
        check([*log, stranger])


CHANGES: dict[str, Callable[[Record], object]] = {
    "a key is missing": lambda r: r.pop("tid"),
    "the address is missing": lambda r: r.pop("source_ip"),
    "the hop is missing": lambda r: r.pop("hop"),
    "raw_payload is missing": lambda r: r.pop("raw_payload"),
    "a key that no record has": lambda r: r.update(extra=1),
    "keys out of order": lambda r: r.update(pid=r.pop("pid")),
    "null": lambda r: r.update(reason=None),
    "an empty string for what is unknown": lambda r: r.update(comm=""),
    "a boolean for a number": lambda r: r.update(pid=True),
    "a number as a string": lambda r: r.update(body_bytes="5"),
    "a negative duration": lambda r: r.update(ttfb_ms=-0.1),
    "the last byte before the first": lambda r: r.update(ttfb_ms=2),
    "microseconds": lambda r: r.update(timestamp="2026-11-21T04:18:24.000000Z"),
    "local time": lambda r: r.update(timestamp="2026-11-21T04:18:24.000000000+01:00"),
    "another direction": lambda r: r.update(direction="send"),
    "another role": lambda r: r.update(role="server"),
    "a body of no bytes": lambda r: r.update(body_bytes=0),
    "a body that is not that of raw_payload": lambda r: r.update(body="worst"),
    "no body although it was seen": lambda r: r.pop("body"),
    "a body cut without saying so": lambda r: r.update(raw_payload=r["raw_payload"][:-1]),
    "complete, and yet truncated": lambda r: r.update(completeness="truncated"),
    "a completeness of its own": lambda r: r.update(completeness="done"),
    "a gap without its size": lambda r: r.update(completeness="gap"),
    "bytes that do not add up": lambda r: r.update(bytes=r["bytes"] + 1),
    "another status than in the head": lambda r: r.update(status_code=204),
    "a header's name in other letters": lambda r: r.update(headers={"content-length": "5"}),
    "a header's value changed": lambda r: r.update(headers={"Content-Length": "6"}),
    "a header left out": lambda r: r.update(headers={}),
    "no headers although there were": lambda r: r.pop("headers"),
    "an unknown encoding": lambda r: r.update(body_encoding="hex"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_record_is_found(change: str) -> None:
    good = record("client", 0, response=True)
    validate_record(good)
    CHANGES[change](good)
    with pytest.raises(AssertionError):
        validate_record(good)


def test_what_unix_sockets_do_not_have() -> None:
    r = record("client", 0, response=True)
    with pytest.raises(AssertionError):
        validate_record(r, unix=True)
    for key in ("source_ip", "source_port", "dest_ip", "dest_port", "hop"):
        del r[key]
    validate_record(r, unix=True)
    with pytest.raises(AssertionError):
        validate_record(r)


def test_a_gap_is_accepted_from_sendfile_alone() -> None:
    log = good_log()
    sent = next(r for r in log if r["role"] == "server" and r["direction"] == "send")
    gap: Record = {"completeness": "gap", "missing_bytes": 5, "missing_reason": "sendfile"}
    sent.update(gap)
    sent["raw_payload"] = sent["raw_payload"].removesuffix("first")
    del sent["body"]
    assert_equal_to_truth(log, TRUTH, "server", sendfile=True)
    with pytest.raises(AssertionError):
        assert_equal_to_truth(log, TRUTH, "server")
    sent["missing_reason"] = "ring_full"
    with pytest.raises(AssertionError):
        assert_equal_to_truth(log, TRUTH, "server", sendfile=True)
    received = next(r for r in log if r["role"] == "server" and r["direction"] == "recv" and r["url"] == "/b")
    received.update(gap)
    sent["missing_reason"] = "sendfile"
    with pytest.raises(AssertionError):
        assert_equal_to_truth(log, TRUTH, "server", sendfile=True)


def test_hops_must_be_unique_and_at_both_ends() -> None:
    def sides() -> tuple[list[Record], list[Record]]:
        log = good_log()
        return [r for r in log if r["role"] == "client"], [r for r in log if r["role"] == "server"]

    client, server = sides()
    assert_hops(client, server)
    client[0]["hop"], client[1]["hop"] = client[1]["hop"], client[0]["hop"]
    with pytest.raises(AssertionError):
        assert_hops(client, server)
    client, server = sides()
    client[0]["hop"] = client[1]["hop"]
    with pytest.raises(AssertionError, match="twice"):
        assert_hops(client, server)
    client, server = sides()
    with pytest.raises(AssertionError, match="one end only"):
        assert_hops(client, server[1:])


def test_exchanges_with_interim_responses() -> None:
    log = [record("client", 1, response=False), record("client", 1, response=True)]
    interim = copy.deepcopy(log[1]) | {"status_code": 100}
    [e] = exchanges([log[0], interim, log[1]], "client")
    assert (e.request, e.interim, e.response) == (log[0], (interim,), log[1])
    with pytest.raises(AssertionError, match="0 final responses"):
        exchanges([log[0], interim], "client")
    with pytest.raises(AssertionError, match="0 requests"):
        exchanges([interim, log[1]], "client")
    with pytest.raises(AssertionError, match="pid differs"):
        exchanges([log[0], log[1] | {"pid": 11}], "client")
    with pytest.raises(AssertionError, match="addresses differ"):
        exchanges([log[0], log[1] | {"source_port": 8081}], "client")


def good_ledger() -> Ledger:
    return {
        "bytes": {"total": 100, "rows": {"recorded": 60, "filtered": 30, "not_http": 10}},
        "calls": {"total": 10, "rows": {"recorded": 6, "filtered": 4}},
        "records": {"made": 12, "rows": {"written": 12, "output_failed": 0}},
    }


def test_ledgers() -> None:
    assert_ledger(good_ledger(), 12)
    with pytest.raises(AssertionError, match="12 records written"):
        assert_ledger(good_ledger(), 11)
    for part, row in (("bytes", "recorded"), ("calls", "filtered"), ("records", "written")):
        for change in (1, -1):
            ledger = good_ledger()
            ledger[part]["rows"][row] += change
            with pytest.raises(AssertionError, match="rows sum to"):
                assert_ledger(ledger, 12)
    for row in ("lost", "gap", "budget", "partial", "unparsed", "unreadable", "pending"):
        ledger = good_ledger()
        ledger["bytes"]["rows"] |= {row: 10, "not_http": 0}
        with pytest.raises(AssertionError, match="went missing"):
            assert_ledger(ledger, 12)
        assert_ledger(ledger, 12, allowed_rows={row})


def test_logs_are_whole_lines_of_objects() -> None:
    assert parse_log('{"a":1}\n{"b":2}\n') == [{"a": 1}, {"b": 2}]
    for text in ('{"a":1}\n{"b":2}', '{"a":1}\n[]\n', '{"a":1}\n{"b"\n'):
        with pytest.raises((AssertionError, json.JSONDecodeError)):
            parse_log(text)
    with pytest.raises(AssertionError, match="twice"):
        parse_line('{"headers":{"A":"1","A":"2"}}')


def test_the_naive_reading_of_a_head() -> None:
    assert expected_headers("GET / HTTP/1.1\r\nA: 1\r\nb:2 \r\nA:\t3\r\nA: 4\r\nC:") == {
        "A": ["1", "3", "4"],
        "b": "2",
        "C": "",
    }


def test_access_logs() -> None:
    text = (
        "starting\n"
        '{"method":"GET","target":"/a?b=c","status":200,"response_body_bytes":5,"request_body_bytes":""}\n'
        '{"line":"PUT /x HTTP/1.1","status":"201","response_body_bytes":"-"}\n'
        '{"method":"GET","url":"http://[::1]:80/d?e","status":404,"response_body_bytes":0,"request_body_bytes":0}\n'
    )
    assert from_json_log(text) == [
        Truth("GET", "/a?b=c", 200, 5),
        Truth("PUT", "/x", 201, None),
        Truth("GET", "/d?e", 404, 0, 0),
    ]
    assert target_of("http://127.0.0.1:80") == "/"


def test_programs_must_agree_with_the_plan_and_each_other() -> None:
    asks = [Ask("GET", "/a", 200, b"first"), Ask("GET", "/b", 404)]
    first, second = Truth("GET", "/a", 200, 5), Truth("GET", "/b", 404, 9)
    assert agreed(asks, [second, first]) == [
        Truth("GET", "/a", 200, 5, 0, "first"),
        Truth("GET", "/b", 404, 9, 0, None),
    ]
    for told in (
        [first],
        [first, second, second],
        [first, Truth("GET", "/b", 500, 9)],
        [Truth("GET", "/a", 200, 4), second],
        [first, Truth("GET", "/b", 404, None)],
    ):
        with pytest.raises(AssertionError):
            agreed(asks, told)
    with pytest.raises(AssertionError):
        agreed(asks, [first, second], [first, Truth("GET", "/b", 404, 8)])


def test_plans() -> None:
    for plan in (app_plan(), go_plan()):
        assert len(plan) == 23
        assert len({(ask.method, ask.target) for ask in plan}) == 23, "each exchange can be told from the others"
    assert pattern(30, "x") == b"x:000000\nx:000001\nx:000002\nx:0"
    assert pattern(0, "x") == b""
