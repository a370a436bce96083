"""`netprofiler map FILE…`: who calls whom, out of the records that `run` and `replay` write.

Contract: reads JSON Lines, of one host or of several, a line at a time; a line that is no record is counted and left out.
A call is one exchange, counted once: what its client and its server wrote of it are matched by `hop`, which is the same at
both ends; where an address was translated between them, by the position in `hop`, the start line and the size, if these
are the same in one record of each end alone; where one end has no `hop`, by the addresses of the connection, if one
connection of each end alone has these, and by their order on it. What was seen at one end only is a call, too: its other end is what the record
says of it, a container or an address. Times are the client's where it was seen, errors are statuses from 500 on and gRPC
statuses other than 0.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from netprofiler.errors import CommandError, ExitCode

FORMATS: Final = ("table", "mermaid", "graphviz")
_LINE_MAX: Final = 64 * 1024 * 1024
"""Of a record: both bodies at the largest --body-limit, each byte of them as an escape."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For the command line."""
    parser.add_argument("file", metavar="FILE", nargs="+", help="records (JSON Lines); - is standard input")
    parser.add_argument("--format", choices=FORMATS, default="table", help="table (default), mermaid or graphviz")


def execute(arguments: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Returns the exit status."""
    calls = Calls()
    for number, path in enumerate(arguments.file):
        try:
            if path == "-":
                calls.read(number, sys.stdin.buffer)
            else:
                with open(path, "rb") as file:
                    calls.read(number, file)
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}", ExitCode.USAGE) from error
    edges = calls.edges()
    if calls.skipped:
        print(f"netprofiler: {calls.skipped} lines are no records of HTTP", file=sys.stderr)
    print({"table": table, "mermaid": mermaid, "graphviz": graphviz}[arguments.format](edges, calls.seconds))
    return ExitCode.OK


@dataclass(slots=True)
class Call:
    """One exchange at one end."""

    is_client: bool
    here: str
    there: str
    """As far as this end knows: empty, when it says nothing."""
    hop: str
    connection: tuple[int, str]
    """File and id."""
    addresses: tuple[str, int, str, int]
    """Sender's and receiver's."""
    start: tuple[str, str, int]
    """Method, target, bytes."""
    protocol: str
    duration_ms: float = -1.0
    failed: bool = False
    answered: bool = False


@dataclass(slots=True)
class Edge:
    """All calls of one caller to one callee."""

    caller: str
    callee: str
    calls: int = 0
    errors: int = 0
    unanswered: int = 0
    durations: array[float] = field(default_factory=lambda: array("d"))
    protocols: set[str] = field(default_factory=set)

    def quantile(self, share: float) -> float:
        """The smallest duration (ms) that at least this share of the calls did not exceed; NaN: none is known."""
        ordered = sorted(self.durations)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


class Calls:
    """Records → calls → edges."""

    def __init__(self) -> None:
        self.skipped = 0
        self._calls: dict[tuple[int, str], Call] = {}
        self._first = math.inf
        self._last = -math.inf

    @property
    def seconds(self) -> float:
        """From the first record to the last."""
        return max(0.0, self._last - self._first)

    def read(self, number: int, lines: Iterable[bytes]) -> None:
        """`number`: of the file, whose ids are its own."""
        for line in lines:
            try:
                record = json.loads(line) if len(line) <= _LINE_MAX else None
                self._take(number, record)
            except (ValueError, KeyError, TypeError, RecursionError):
                self.skipped += 1

    def _take(self, number: int, record: Any) -> None:
        if not isinstance(record, dict):
            raise TypeError
        seconds = datetime.fromisoformat(record["timestamp"]).timestamp()
        if record["protocol"] == "websocket" or record["completeness"] == "open" or "role" not in record:
            return
        self._first = min(self._first, seconds)
        self._last = max(self._last, seconds)
        key = (number, str(record["exchange"]))
        is_client = record["role"] == "client"
        is_sent = record["direction"] == "send"
        if is_sent is is_client:  # a request
            if key not in self._calls:
                self._calls[key] = _call(record, number, is_client=is_client)
            return
        call = self._calls.get(key)
        status = record.get("status_code")
        if call is None or status is None or (status < 200 and status != 101):
            return
        call.answered = True
        grpc = record.get("grpc")
        call.failed = status >= 500 or (isinstance(grpc, dict) and grpc.get("status", 0) != 0)
        duration = record.get("duration_ms")
        if isinstance(duration, (int, float)):
            call.duration_ms = float(duration)

    def edges(self) -> list[Edge]:
        """By caller and callee."""
        edges: dict[tuple[str, str], Edge] = {}
        for client, server in self._pairs():
            call = client or server
            assert call is not None
            if client is not None and server is not None:
                caller, callee = client.here, server.here
            elif client is not None:
                caller, callee = client.here, client.there or "unknown"
            else:
                caller, callee = call.there or "unknown", call.here
            edge = edges.setdefault((caller, callee), Edge(caller, callee))
            edge.calls += 1
            edge.errors += call.failed
            edge.unanswered += not call.answered
            edge.protocols.add(call.protocol)
            if call.duration_ms >= 0:
                edge.durations.append(call.duration_ms)
        return sorted(edges.values(), key=lambda edge: (edge.caller, edge.callee))

    def _pairs(self) -> Iterator[tuple[Call | None, Call | None]]:
        """Client's and server's view of each call; None: not seen there."""
        servers = [call for call in self._calls.values() if not call.is_client]
        clients = [call for call in self._calls.values() if call.is_client]
        by_hop = _unique((call.hop, call) for call in servers if call.hop)
        # Of those that are left: a translated address is in `hop`, too.
        server_hops = {call.hop for call in servers}
        client_hops = {call.hop for call in clients}
        by_position = _unique((_position(call), call) for call in servers if call.hop and call.hop not in client_hops)
        alone = _unique((_position(call), call) for call in clients if call.hop and call.hop not in server_hops)
        pairs: dict[int, Call] = {}
        for client in clients:
            server = by_hop.get(client.hop)
            if server is None and alone.get(_position(client)) is client:
                server = by_position.get(_position(client))
            if server is not None:
                pairs[id(client)] = server
        matched = {id(server) for server in pairs.values()}
        pairs |= _by_addresses(
            [call for call in clients if id(call) not in pairs], [call for call in servers if id(call) not in matched]
        )
        matched = {id(server) for server in pairs.values()}
        yield from ((client, pairs.get(id(client))) for client in clients)
        yield from ((None, server) for server in servers if id(server) not in matched)


def _by_addresses(clients: list[Call], servers: list[Call]) -> dict[int, Call]:
    """Client (its id()) → server, of those where an end has no `hop`."""
    at_end: list[dict[tuple[str, int, str, int], list[Call]]] = []
    for calls in (clients, servers):
        found: dict[tuple[str, int, str, int], list[Call]] = {}
        for call in calls:
            if call.addresses[0]:
                found.setdefault(call.addresses, []).append(call)
        at_end.append(found)
    pairs: dict[int, Call] = {}
    for addresses, mine in at_end[0].items():
        theirs = at_end[1].get(addresses, [])
        one_each = len({call.connection for call in mine}) == len({call.connection for call in theirs}) == 1
        if one_each and [call.start for call in mine] == [call.start for call in theirs]:
            both = zip(mine, theirs, strict=True)
            pairs |= {id(client): server for client, server in both if not (client.hop and server.hop)}
    return pairs


def _position(call: Call) -> tuple[str, tuple[str, str, int]]:
    """What a translated address leaves as it was."""
    return call.hop.rpartition("@")[2], call.start


def _unique(pairs: Iterable[tuple[Any, Call]]) -> dict[Any, Call]:
    """Without the keys that come more than once."""
    found: dict[Any, Call] = {}
    often = set()
    for key, call in pairs:
        if key in found:
            often.add(key)
        found[key] = call
    return {key: call for key, call in found.items() if key not in often}


def _call(record: dict[str, Any], number: int, *, is_client: bool) -> Call:
    is_sent = record["direction"] == "send"
    local, remote = ("source", "destination") if is_sent else ("destination", "source")
    here = _container_name(record.get(f"{local}_container")) or _process_name(record)
    container = _container_name(record.get(f"{remote}_container"))
    address = str(record.get("dest_ip" if is_sent else "source_ip", ""))
    if is_sent and address:
        port = record.get("dest_port")
        address = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    tls = " TLS" if "tls" in record else ""
    return Call(
        is_client=is_client,
        here=here,
        there=container or address or str(record.get("unix_path", "")),
        hop=str(record.get("hop", "")),
        connection=(number, str(record["connection"])),
        addresses=(
            str(record.get("source_ip", "")),
            int(record.get("source_port", 0)),
            str(record.get("dest_ip", "")),
            int(record.get("dest_port", 0)),
        ),
        start=(str(record.get("method", "")), str(record.get("url", "")), int(record["bytes"])),
        protocol=f"{record['protocol']}{tls}",
    )


def _container_name(container: Any) -> str:
    """``project/service``, ``namespace/pod``, the name, or the beginning of the id."""
    if not isinstance(container, dict):
        return ""
    scope = container.get("project") or container.get("namespace")
    name = container.get("service") or container.get("pod") or container.get("container_name")
    if not name:
        return str(container.get("container_id", ""))[:12]
    return f"{scope}/{name}" if scope else str(name)


def _process_name(record: dict[str, Any]) -> str:
    return str(record.get("comm") or record.get("pid") or "unknown")


# --- output --------------------------------------------------------------------------------------------------------------


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _rate(edge: Edge, seconds: float) -> str:
    return f"{edge.calls / seconds:.2f}" if seconds > 0 else "-"


def table(edges: list[Edge], seconds: float) -> str:
    """For a reader: a line an edge."""
    head = ("CALLER", "CALLEE", "CALLS", "RATE/S", "ERRORS", "UNANSWERED", "P50 MS", "P99 MS", "PROTOCOL")
    rows = [
        (
            _plain(edge.caller),
            _plain(edge.callee),
            str(edge.calls),
            _rate(edge, seconds),
            str(edge.errors),
            str(edge.unanswered),
            _number(edge.quantile(0.5)),
            _number(edge.quantile(0.99)),
            ", ".join(sorted(edge.protocols)),
        )
        for edge in edges
    ]
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    numbers = range(2, 8)

    def line(row: tuple[str, ...]) -> str:
        cells = (text.rjust(widths[at]) if at in numbers else text.ljust(widths[at]) for at, text in enumerate(row))
        return "  ".join(cells).rstrip()

    return "\n".join(map(line, (head, *rows)))


def _nodes(edges: list[Edge]) -> dict[str, str]:
    """Name → identifier."""
    names = dict.fromkeys(name for edge in edges for name in (edge.caller, edge.callee))
    return {name: f"n{number}" for number, name in enumerate(names)}


def _label(edge: Edge, seconds: float) -> str:
    text = f"{edge.calls} calls, {_rate(edge, seconds)}/s, p50 {_number(edge.quantile(0.5))} ms, p99 {_number(edge.quantile(0.99))} ms"
    return f"{text}, {edge.errors} errors" if edge.errors else text


def _plain(text: str) -> str:
    """Without what a terminal, or the line that it is in, could take for more than text."""
    return "".join(character if character.isprintable() else "?" for character in text)


def mermaid(edges: list[Edge], seconds: float) -> str:
    """A flowchart (mermaid.js.org/syntax/flowchart.html)."""

    def quoted(text: str) -> str:
        escapes = {'"': "#quot;", "#": "#35;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "`": "#96;", "\\": "#92;"}
        return "".join(escapes.get(character, character) for character in _plain(text))

    nodes = _nodes(edges)
    lines = ["flowchart LR"]
    lines += [f'    {identifier}["{quoted(name)}"]' for name, identifier in nodes.items()]
    lines += [f'    {nodes[edge.caller]} -->|"{_label(edge, seconds)}"| {nodes[edge.callee]}' for edge in edges]
    return "\n".join(lines)


def graphviz(edges: list[Edge], seconds: float) -> str:
    """A digraph in the DOT language; edges with errors are red."""

    def quoted(text: str) -> str:
        escaped = _plain(text).replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'

    lines = ["digraph calls {", "    rankdir=LR;", "    node [shape=box];"]
    for edge in edges:
        colour = ", color=red" if edge.errors else ""
        lines.append(
            f"    {quoted(edge.caller)} -> {quoted(edge.callee)} [label={quoted(_label(edge, seconds))}{colour}];"
        )
    return "\n".join([*lines, "}"])
