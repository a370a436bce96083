"""Who calls whom, out of records made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from netprofiler.cli import main
from netprofiler.commands.map import Calls, graphviz, mermaid

Record = dict[str, Any]
CLIENT = ("10.0.0.1", 5000)
SERVER = ("10.0.0.2", 80)


def end(
    role: str,
    number: int,
    *,
    name: str,
    peer: Record | None = None,
    hop: bool = True,
    source: tuple[str, int] = CLIENT,
    destination: tuple[str, int] = SERVER,
    status: int = 200,
    ms: float = 1.0,
    url: str = "/",
    second: int = 0,
    connection: str = "",
    **more: Any,
) -> list[Record]:
    """Request and response of one exchange, as one end wrote them."""
    connection = connection or f"sock:[{role}]"
    mine = {"service": name, "project": "shop"}
    position = 1000 + 100 * number

    def record(*, request: bool) -> Record:
        sent = request is (role == "client")
        ends = (source, destination) if request else (destination, source)
        made: Record = {
            "timestamp": f"2026-11-21T04:18:{second:02}.000000000Z",
            "comm": name,
            "direction": "send" if sent else "recv",
            "role": role,
            "source_ip": ends[0][0],
            "source_port": ends[0][1],
            "dest_ip": ends[1][0],
            "dest_port": ends[1][1],
            "bytes": 100,
            "protocol": "HTTP/1.1",
            **({"method": "GET", "url": url} if request else {"status_code": status, "duration_ms": ms}),
            "connection": connection,
            "exchange": f"{connection}#{number}",
            "completeness": "complete",
        }
        if hop:
            made["hop"] = f"{ends[0][0]}:{ends[0][1]}>{ends[1][0]}:{ends[1][1]}@{position}"
        made["source_container" if sent else "destination_container"] = mine
        if peer is not None:
            made["destination_container" if sent else "source_container"] = peer
        return {**made, **more}

    return [record(request=True), record(request=False)]


def edges_of(*records: list[Record]) -> dict[tuple[str, str], tuple[int, int, int]]:
    calls = Calls()
    calls.read(0, (json.dumps(record).encode() for each in records for record in each))
    assert calls.skipped == 0
    return {(edge.caller, edge.callee): (edge.calls, edge.errors, edge.unanswered) for edge in calls.edges()}


def test_a_call_that_both_ends_wrote_is_one_call() -> None:
    seen = [each for n in range(3) for each in (end("client", n, name="a"), end("server", n, name="b"))]
    assert edges_of(*seen) == {("shop/a", "shop/b"): (3, 0, 0)}


def test_a_call_is_matched_though_its_address_was_translated() -> None:
    inside = ("172.17.0.2", 8080)
    seen = [
        each for n in range(2) for each in (end("client", n, name="a"), end("server", n, name="b", destination=inside))
    ]
    assert edges_of(*seen) == {("shop/a", "shop/b"): (2, 0, 0)}
    # Where two could be meant, none is.
    again = end("server", 0, name="c", destination=("172.17.0.3", 8080), connection="sock:[other]")
    assert edges_of(*seen, again)["10.0.0.1", "shop/c"] == (1, 0, 0)
    assert edges_of(*seen, again)["shop/a", "10.0.0.2:80"] == (1, 0, 0)


def test_where_an_end_has_no_hop_the_connection_and_the_order_tell() -> None:
    seen = [each for n in range(3) for each in (end("client", n, name="a"), end("server", n, name="b", hop=False))]
    assert edges_of(*seen) == {("shop/a", "shop/b"): (3, 0, 0)}
    # One is missing at one end: then they are not told to be the same.
    assert edges_of(*seen[:-1]) == {("shop/a", "10.0.0.2:80"): (3, 0, 0), ("10.0.0.1", "shop/b"): (2, 0, 0)}


def test_a_call_that_one_end_wrote_goes_to_what_it_knows_of_the_other() -> None:
    other = {"service": "db", "project": "shop"}
    pod = {"pod": "web-1", "namespace": "prod"}
    short = {"container_id": "f" * 64}
    assert edges_of(end("client", 1, name="a", peer=other)) == {("shop/a", "shop/db"): (1, 0, 0)}
    assert edges_of(end("server", 1, name="a", peer=pod)) == {("prod/web-1", "shop/a"): (1, 0, 0)}
    assert edges_of(end("client", 1, name="a", peer=short)) == {("shop/a", "f" * 12): (1, 0, 0)}
    assert edges_of(end("client", 1, name="a")) == {("shop/a", "10.0.0.2:80"): (1, 0, 0)}
    assert edges_of(end("server", 1, name="a")) == {("10.0.0.1", "shop/a"): (1, 0, 0)}


def test_errors_are_statuses_from_500_on_and_grpc_statuses() -> None:
    seen = [end("client", n, name="a", status=status) for n, status in enumerate((200, 404, 499, 500, 503))]
    grpc = [end("client", 10 + n, name="a", grpc={"status": n}) for n in range(2)]
    assert edges_of(*seen, *grpc)["shop/a", "10.0.0.2:80"] == (7, 3, 0)


def test_interim_and_open_records_and_websocket_messages_are_no_calls_and_what_is_not_answered_is_said() -> None:
    request, response = end("client", 1, name="a")
    interim = {**response, "status_code": 103}
    opened = {**response, "completeness": "open", "status_code": 500}
    socket = {**request, "protocol": "websocket", "exchange": "x"}
    assert edges_of([request, interim, opened, socket]) == {("shop/a", "10.0.0.2:80"): (1, 0, 1)}
    assert edges_of([request, interim, response]) == {("shop/a", "10.0.0.2:80"): (1, 0, 0)}


def test_the_same_ids_in_files_of_two_hosts_are_two_exchanges() -> None:
    calls = Calls()
    for number, records in enumerate((end("client", 1, name="a"), end("client", 1, name="b"))):
        calls.read(number, (json.dumps(record).encode() for record in records))
    assert {edge.caller: edge.calls for edge in calls.edges()} == {"shop/a": 1, "shop/b": 1}


def test_the_table_has_rate_errors_and_quantiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "http.log"
    records = [
        record
        for n in range(100)
        for record in end("client", n, name="a", ms=n + 1, status=500 if n < 7 else 200, second=n // 10)
    ]
    log.write_text("\n".join(map(json.dumps, records)) + "\nno record\n[]\n{}\n")
    assert main(["map", str(log)]) == 0
    printed = capsys.readouterr()
    head, line = printed.out.splitlines()
    assert head.split() == [
        "CALLER",
        "CALLEE",
        "CALLS",
        "RATE/S",
        "ERRORS",
        "UNANSWERED",
        "P50",
        "MS",
        "P99",
        "MS",
        "PROTOCOL",
    ]
    # 100 calls between the first second and the ninth.
    assert line.split() == ["shop/a", "10.0.0.2:80", "100", "11.11", "7", "0", "50.0", "99.0", "HTTP/1.1"]
    assert "3 lines are no records" in printed.err


def test_names_cannot_break_out_of_the_drawings() -> None:
    evil = 'x"] --> y; <b>`\\\x1b[31m\n'
    calls = Calls()
    calls.read(0, (json.dumps(record).encode() for record in end("client", 1, name=evil)))
    edges = calls.edges()
    drawn = mermaid(edges, 1.0)
    assert drawn.splitlines()[1] == '    n0["shop/x#quot;] --#gt; y; #lt;b#gt;#96;#92;?[31m?"]'
    assert len(drawn.splitlines()) == 4
    dot = graphviz(edges, 1.0)
    assert r'"shop/x\"] --> y; <b>`\\?[31m?" -> "10.0.0.2:80"' in dot
    assert len(dot.splitlines()) == 5


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", str(tmp_path / "none")]) == 2
    assert "none: No such file" in capsys.readouterr().err
