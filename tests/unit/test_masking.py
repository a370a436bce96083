"""netprofiler.masking: addresses and home directories, and nothing else."""

from __future__ import annotations

import pytest

from netprofiler.masking import make_mask


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ('"source_ip":"10.1.2.3","source_port":80', '"source_ip":"10.1.2.0","source_port":80'),
        ("203.0.113.77:8080>10.0.0.1:9@17", "203.0.113.0:8080>10.0.0.0:9@17"),
        ('"2001:db8:1:2::3"', '"2001:db8:1::"'),
        ("[2001:db8:1:2:3:4:5:6]:443", "[2001:db8:1::]:443"),
        ("X-Forwarded-For: 203.0.113.77, 198.51.100.9", "X-Forwarded-For: 203.0.113.0, 198.51.100.0"),
        ("127.0.0.1 ::1 0.0.0.0", "127.0.0.1 ::1 0.0.0.0"),
        ("2026-11-21T04:18:24.123456789Z and 12:30:45", "2026-11-21T04:18:24.123456789Z and 12:30:45"),
        ("1.2.3.4.5 and 00:1a:2b:3c:4d:5e", "1.2.3.4.5 and 00:1a:2b:3c:4d:5e"),
    ],
)
def test_addresses(line: str, masked: str) -> None:
    mask = make_mask(["addresses"])
    assert mask is not None
    assert mask(line) == masked
    assert mask(masked) == masked


def test_home_directories() -> None:
    mask = make_mask(["homes"])
    assert mask is not None
    assert mask('"cmdline":"/home/ada/bin/x --f=/home/ada","url":"/Users/bob?a=/homes/c"') == (
        '"cmdline":"/home/[masked]/bin/x --f=/home/[masked]","url":"/Users/[masked]?a=/homes/c"'
    )
    assert mask("10.1.2.3") == "10.1.2.3"


def test_both_and_none() -> None:
    mask = make_mask(["homes", "addresses"])
    assert mask is not None
    assert mask("/home/ada 10.1.2.3") == "/home/[masked] 10.1.2.0"
    assert make_mask([]) is None
