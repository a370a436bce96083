"""sources/sockets.py: the tables of /proc, line by line (test_explain.py has whole processes)."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from netprofiler.sources.sockets import parse_inet, parse_unix, process_sockets

LITTLE = pytest.mark.skipif(sys.byteorder != "little", reason="addresses in these lines are a little-endian machine's")


def inet(local: str, remote: str, state: str, inode: int) -> str:
    return f"   1: {local} {remote} {state} 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 0 20 4 30 10 -1"


@LITTLE
@pytest.mark.parametrize(
    ("local", "remote", "shown"),
    [
        ("0100007F:1F90", "00000000:0000", ("127.0.0.1:8080", "")),
        ("0101A8C0:0050", "0201A8C0:D431", ("192.168.1.1:80", "192.168.1.2:54321")),
        (
            "00000000000000000000000001000000:0050",
            "B80D0120000000000000000001000000:01BB",
            ("[::1]:80", "[2001:db8::1]:443"),
        ),
        (
            "0000000000000000FFFF00000100007F:0050",
            "0000000000000000FFFF00000100007F:C350",
            ("127.0.0.1:80", "127.0.0.1:50000"),
        ),
    ],
)
def test_addresses(local: str, remote: str, shown: tuple[str, str]) -> None:
    assert parse_inet([inet(local, remote, "01", 7)], "TCP")[7] == ("TCP", *shown, "established")


@pytest.mark.parametrize(
    ("number", "name"),
    [("01", "established"), ("02", "syn-sent"), ("08", "close-wait"), ("0A", "listening"), ("FF", "")],
)
def test_states(number: str, name: str) -> None:
    assert parse_inet([inet("0100007F:1F90", "0100007F:1F91", number, 7)], "TCP")[7][3] == name


def test_states_are_tcps_alone() -> None:
    assert parse_inet([inet("0100007F:1F90", "00000000:0000", "07", 7)], "UDP")[7][3] == ""


@pytest.mark.parametrize(
    "line", ["", "   1:", "   1: zz:zz 0:0 01", inet("0100007F", "0100007F:1", "01", 1), inet("01:1", "02:2", "01", 1)]
)
def test_damaged_lines_are_passed_over(line: str) -> None:
    assert parse_inet([line], "TCP") == {}
    assert parse_unix([line]) == {}


def test_time_wait_has_no_inode() -> None:
    assert parse_inet([inet("0100007F:1F90", "0100007F:1F91", "06", 0)], "TCP") == {}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0: 00000002 00000000 00010000 0001 01 9 /run/x.sock", ("UNIX stream", "/run/x.sock", "", "listening")),
        ("0: 00000003 00000000 00000000 0001 03 9", ("UNIX stream", "", "", "established")),
        ("0: 00000002 00000000 00000000 0002 01 9 @abstract", ("UNIX datagram", "@abstract", "", "unconnected")),
        ("0: 00000002 00000000 00000000 0005 03 9", ("UNIX seqpacket", "", "", "established")),
        ("0: 00000002 00000000 00000000 0003 03 9", ("UNIX type 3", "", "", "established")),
    ],
)
def test_unix(line: str, expected: tuple[str, str, str, str]) -> None:
    assert parse_unix([line]) == {9: expected}


def test_nobody_has_no_sockets(tmp_path: Path) -> None:
    assert process_sockets(1, tmp_path) == []


def test_kinds_of_our_own() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink,
    ):
        udp.bind(("127.0.0.1", 0))
        kinds = {entry.descriptor: entry.kind for entry in process_sockets(os.getpid())}
        assert kinds[tcp.fileno()] == "TCP"
        assert kinds[udp.fileno()] == "UDP"
        assert kinds[datagram.fileno()] == "UNIX datagram"
        assert kinds[netlink.fileno()] == "NETLINK"


def test_an_unbound_socket_is_in_no_table_but_has_a_name() -> None:
    with socket.socket() as unbound:
        kinds = {entry.descriptor: entry.kind for entry in process_sockets(os.getpid())}
        assert kinds[unbound.fileno()] == "TCP"
