"""The kernel side's sums, as they change."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from netprofiler.sources.bpf import Map
from netprofiler.sources.tallies import BUCKETS, IDLE_NS, Asker, Tallies, Tally

FULL = 4
"""Entries of the table."""


class Table:
    """In the place of a map."""

    def __init__(self, key_size: int, value_size: int) -> None:
        self.facts = SimpleNamespace(key_size=key_size, value_size=value_size, max_entries=FULL)
        self.content: dict[bytes, bytes] = {}

    def items(self) -> list[tuple[bytes, bytes]]:
        return list(self.content.items())

    def delete(self, key: bytes) -> bool:
        return self.content.pop(key, None) is not None


class Kernel:
    """Both tables, and their reader."""

    def __init__(self) -> None:
        self.sums = Table(8, 664)
        self.unanswered = Table(16, 8)
        self.tallies = Tallies(cast("Map", self.sums), cast("Map", self.unanswered))

    def put(self, key: int, *, whole: int = 0, cut: int = 0, pid: int = 7, line: bytes = b"GET /a") -> None:
        """`whole`, `cut`: exchanges, each of 3 ms, 10 and 20 bytes."""
        address = ipaddress.IPv6Address("::ffff:127.0.0.1").packed
        value = struct.pack("<QIHBB16s", 99, pid, 8080, 1, 0, address)
        value += struct.pack("<128s64sHB5x", line, b" example.test:80 ", 200, ord("1"))
        for count in (whole, cut):
            value += struct.pack(f"<{BUCKETS}QQQQ", 0, count, *[0] * (BUCKETS - 2), 3 * count, 10 * count, 20 * count)
        self.sums.content[struct.pack("<Q", key)] = value


EXCHANGE = Tally(
    asker=Asker(7, 99, is_server=True),
    is_tls=False,
    address="127.0.0.1",
    port=8080,
    method="GET",
    target="/a",
    host="example.test:80",
    version="HTTP/1.1",
    status=200,
    incomplete=False,
    buckets=(0, 2, *[0] * (BUCKETS - 2)),
    duration_ns=6,
    request_bytes=20,
    response_bytes=40,
)


def test_each_exchange_is_told_once() -> None:
    kernel = Kernel()
    kernel.put(1, whole=2)
    assert kernel.tallies.read(0) == ([EXCHANGE], [])
    assert kernel.tallies.read(1) == ([], [])
    kernel.put(1, whole=4)
    assert kernel.tallies.read(2) == ([EXCHANGE], [])
    kernel.put(1, whole=4, cut=2)
    assert kernel.tallies.read(3) == ([replace(EXCHANGE, incomplete=True)], [])


def test_unanswered_requests_are_told_once() -> None:
    kernel = Kernel()
    key = struct.pack("<QII", 99, 7, 0)
    kernel.unanswered.content[key] = struct.pack("<Q", 3)
    assert kernel.tallies.read(0) == ([], [(Asker(7, 99, is_server=False), 3)])
    kernel.unanswered.content[key] = struct.pack("<Q", 5)
    assert kernel.tallies.read(1) == ([], [(Asker(7, 99, is_server=False), 2)])
    assert kernel.tallies.read(2) == ([], [])


def test_what_is_of_a_process_that_is_gone_goes_when_it_has_been_read_once_more() -> None:
    kernel = Kernel()
    kernel.put(1, whole=1)
    kernel.put(2, whole=1, pid=8)
    kernel.unanswered.content[struct.pack("<QII", 99, 7, 1)] = struct.pack("<Q", 1)
    kernel.tallies.read(0)
    kernel.tallies.exited(7)
    kernel.put(1, whole=2)
    assert [tally.buckets[1] for tally in kernel.tallies.read(1)[0]] == [1]
    kernel.put(1, whole=5)
    assert [tally.buckets[1] for tally in kernel.tallies.read(2)[0]] == [3]
    assert [key[0] for key in kernel.sums.content] == [2]
    assert kernel.unanswered.content == {}
    kernel.put(1, whole=1)  # another process, with the same pid
    assert [tally.buckets[1] for tally in kernel.tallies.read(3)[0]] == [1]


def test_idle_sums_make_room_where_the_table_is_filling_and_only_there() -> None:
    kernel = Kernel()
    for key in range(FULL - 1):
        kernel.put(key, whole=1)
    kernel.tallies.read(0)
    kernel.tallies.read(2 * IDLE_NS)
    assert len(kernel.sums.content) == FULL - 1
    kernel.put(FULL, whole=1)
    kernel.put(0, whole=2)
    kernel.tallies.read(2 * IDLE_NS)
    assert sorted(key[0] for key in kernel.sums.content) == [0, FULL]
    kernel.put(1, whole=1)
    assert [tally.buckets[1] for tally in kernel.tallies.read(2 * IDLE_NS)[0]] == [1]


@pytest.mark.parametrize("line", [b"", b"\xff\xfe \x01", b"GET"])
def test_a_request_line_that_is_none_is_no_error(line: bytes) -> None:
    kernel = Kernel()
    kernel.put(1, whole=1, line=line)
    [tally], _ = kernel.tallies.read(0)
    assert tally.method == line.split(b" ")[0].decode("utf-8", "replace")


def test_tables_of_another_make_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bpf/maps\.h"):
        Tallies(cast("Map", Table(8, 656)), cast("Map", Table(16, 8)))
