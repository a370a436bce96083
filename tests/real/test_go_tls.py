"""Go's crypto/tls: programs of many Go versions, built in four ways, each as server and client.

Here the oldest, the newest and one Go in the middle; tests/real/go_matrix.py (`make test-go-matrix`) takes the oldest and the
newest patch of every minor version that there is.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.harness import go_programs
from tests.real.harness.checks import Record
from tests.real.harness.go_lab import GoLab, exchange
from tests.real.harness.tls import tls_lines
from tests.real.harness.truth import Ask, app_plan, pattern

pytestmark = pytest.mark.real

CHOSEN = go_programs.CHOSEN
NEWEST = CHOSEN[-1]

MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module")
def lab() -> Iterator[GoLab]:
    with tempfile.TemporaryDirectory(prefix="np-") as name, GoLab(Path(name)) as opened:
        yield opened


def bytes_of(size: int, query: str = "") -> Ask:
    return Ask("GET", f"/bytes/{size}{query}", 200, pattern(size, f"/bytes/{size}"))


def echo_of(size: int, number: int) -> Ask:
    body = pattern(size, f"echo{number}")
    return Ask("POST", f"/echo?{number}", 200, body, body)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", go_programs.MODES)
@pytest.mark.parametrize("version", CHOSEN)
def test_each_build(lab: GoLab, directory: Path, version: str, mode: str) -> None:
    check_build(lab, directory, version, mode)


def check_build(lab: GoLab, directory: Path, version: str, mode: str) -> None:
    """23 exchanges over one connection, then over one each, with the older TLS and a connection of another type."""
    binary = go_programs.build(version, mode)
    for options in ((), ("-tls", "1.2", "-wrap", "-close")):
        server = [o for o in options if o != "-close"]
        at_client, _, printed = exchange(lab, directory, app_plan(), binary, server, options)
        assert {line["version"] for line in tls_lines(printed)} == {"TLSv1.2" if options else "TLSv1.3"}
        assert len({e.request["connection"] for e in at_client}) == (23 if options else 1)


@pytest.fixture(params=CHOSEN)
def binary(request: pytest.FixtureRequest) -> Path:
    return go_programs.build(request.param, "plain")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("wrap", [False, True], ids=["tcp", "wrapped"])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_each_kind_of_connection(lab: GoLab, directory: Path, binary: Path, version: str, wrap: bool) -> None:
    options = ["-tls", version, *(["-wrap"] if wrap else [])]
    exchange(lab, directory, app_plan(), binary, options, options)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("wrap", [False, True], ids=["tcp", "wrapped"])
def test_goroutines_that_move_between_threads(lab: GoLab, directory: Path, binary: Path, wrap: bool) -> None:
    """A read waits for the network on one thread, and what it waited for is decrypted on another."""
    asks = [*(echo_of(60_000 + n, n) for n in range(12)), *(bytes_of(50_000 + n) for n in range(11))]
    options = ["-move", "-pieces", *(["-wrap"] if wrap else [])]
    *_, printed = exchange(lab, directory, asks, binary, options, options)
    moved = sum(line["moved"] for line in tls_lines(printed))
    assert moved > 20, f"{moved} reads ended on another thread than they began: too few to say anything"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("wrap", [False, True], ids=["tcp", "wrapped"])
def test_stacks_that_grow_in_write_and_read(lab: GoLab, directory: Path, binary: Path, wrap: bool) -> None:
    """Each call at another depth of a new stack, so that each function below runs out of room at some depth."""
    generator = random.Random(4)
    asks = [echo_of(generator.choice((1, 30, 900, 5000)), n) for n in range(131)]
    options = ["-stacks", *(["-wrap"] if wrap else [])]
    exchange(lab, directory, asks, binary, options, options)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("wrap", [False, True], ids=["tcp", "wrapped"])
def test_two_hundred_connections_at_once(lab: GoLab, directory: Path, binary: Path, wrap: bool) -> None:
    asks = [bytes_of(13), bytes_of(3000), bytes_of(20_000)]
    options = ["-wrap"] if wrap else []
    at_client, at_server, _ = exchange(
        lab, directory, asks, binary, options, ["-each", "200", *options], connections=200
    )
    for side in (at_client, at_server):
        by_connection: dict[str, set[str]] = {}
        for e in side:
            by_connection.setdefault(e.request["connection"], set()).add(e.request["url"].partition("?")[2])
        assert len(by_connection) == 200
        assert all(len(numbers) == 1 for numbers in by_connection.values()), "a request on another's connection"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("options", [(), ("-pieces",), ("-stacks",)], ids=["length", "chunked", "one-write"])
def test_a_mebibyte_both_ways(lab: GoLab, directory: Path, binary: Path, options: tuple[str, ...]) -> None:
    asks = [echo_of(MEBIBYTE, 0), bytes_of(MEBIBYTE), echo_of(17, 1), echo_of(MEBIBYTE + 1, 2), bytes_of(0)]
    server = [o for o in options if o != "-stacks"]
    exchange(lab, directory, asks, binary, server, options)


@pytest.mark.timeout(600)
def test_chunked_both_ways(lab: GoLab, directory: Path, binary: Path) -> None:
    asks = [ask for ask in app_plan() if ask.method != "HEAD"]
    at_client, _, _ = exchange(lab, directory, asks, binary, ["-pieces"], ["-pieces"])
    for e in at_client:
        assert (e.request["headers"].get("Transfer-Encoding") == "chunked") == (e.request["body_bytes"] > 0)
        assert e.response["headers"].get("Transfer-Encoding") == ("chunked" if e.response["body_bytes"] else None)


@pytest.mark.timeout(600)
def test_a_connection_for_each_request(lab: GoLab, directory: Path, binary: Path) -> None:
    at_client, at_server, _ = exchange(lab, directory, app_plan(), binary, [], ["-close"])
    for side in (at_client, at_server):
        assert len({e.request["connection"] for e in side}) == 23


@pytest.mark.timeout(600)
def test_half_closed_connections(lab: GoLab, directory: Path, binary: Path) -> None:
    """The client's close_notify (RFC 8446, 6.1) comes before the answer."""
    at_client, _, _ = exchange(lab, directory, app_plan(), binary, [], ["-half"])
    assert len({e.request["connection"] for e in at_client}) == 23


@pytest.mark.timeout(600)
@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "wrapped"])
def test_over_a_unix_socket(lab: GoLab, directory: Path, binary: Path, wrap: bool) -> None:
    path = directory / "tls.sock"
    options = ["-wrap"] if wrap else []
    at_client, at_server, _ = exchange(lab, directory, app_plan(), binary, options, options, listen=f"unix:{path}")
    assert {e.request["unix_path"] for e in (*at_client, *at_server)} == {str(path)}


@pytest.mark.timeout(600)
def test_chi(lab: GoLab, directory: Path) -> None:
    """A router and middleware of others, which wrap what they get."""
    binary = go_programs.build(NEWEST, "plain")
    exchange(lab, directory, app_plan(), binary, server_binary=go_programs.build(NEWEST, "plain", "chi"))


def place_of(record: Record, end: str) -> str:
    return f"{record[f'{end}_ip']}:{record[f'{end}_port']}" if f"{end}_ip" in record else ""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", CHOSEN)
def test_no_connection_gets_the_socket_of_another(lab: GoLab, directory: Path, version: str) -> None:
    """TLS inside of TLS, in goroutines that do not read themselves, of two connections in turn, and at an address that another
    connection had: what cannot be known is absent, and all else is exact.
    """
    binary = go_programs.build(version, "plain", "../go_conns")
    with lab.server([binary, "wait"], directory):
        done = lab.client([binary, "run"], directory)
        told = [json.loads(line) for line in done.output.splitlines()]
        records = lab.records([done.pid], 4 * len(told))
    assert len(told) == 1 + 1 + 10 + 40
    assert len(records) == 4 * len(told)
    for one in told:
        ends = [r for r in records if r.get("url", "").endswith(one["target"])]
        assert sorted(r["direction"] for r in ends) == ["recv", "send"], one
        for request in ends:
            assert (place_of(request, "source"), place_of(request, "dest")) == (one["client"], one["server"]), one
            assert request["connection"].startswith("tls:") == (not one["client"])
            [response] = [
                r
                for r in records
                if r["connection"] == request["connection"]
                and r["direction"] != request["direction"]
                and r.get("body") == f"{one['target']}\n" * 3
            ]
            assert (place_of(response, "source"), place_of(response, "dest")) == (one["server"], one["client"]), one
