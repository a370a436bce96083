"""What names people and machines, masked on wish (`--mask`): addresses and home directories, wherever in a line they stand.

Contract: `make_mask(what)` gives a function from a line of output to the same line, or None where nothing is asked for. A line
of JSON stays JSON: what is replaced, and what stands for it, needs no escape. The same is always replaced by the same, so that
both ends of a connection still have one `hop`.

Of an address the network stays: the first three numbers of IPv4, the first 48 bits of IPv6 (what is left of it is no person's
any more: as web statistics do it). Loopback and unspecified addresses are nobody's, and stay. Bodies in base64 are not looked
into.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address, IPv6Network
from typing import Final

WHAT: Final = ("addresses", "homes")

_IPV4: Final = re.compile(r"(?<![\d.])((?!127\.|0\.0\.0\.0)\d{1,3}\.\d{1,3}\.\d{1,3}\.)\d{1,3}(?![\d.]*\d)")
_IPV6: Final = re.compile(r"(?<![0-9A-Za-z:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![0-9A-Za-z:])")
_HOME: Final = re.compile(r"(/home/|/Users/)[^/\s\"\\:;,&?#]+")
_NETWORK_BITS: Final = 48


def _masked_ipv6(match: re.Match[str]) -> str:
    try:
        address = IPv6Address(match[0])
    except ValueError:
        return match[0]  # a time, a MAC address
    if address.is_loopback or address.is_unspecified:
        return match[0]
    return str(IPv6Network((address, _NETWORK_BITS), strict=False).network_address)


def _addresses(line: str) -> str:
    line = _IPV4.sub(r"\g<1>0", line)
    return _IPV6.sub(_masked_ipv6, line)


def _homes(line: str) -> str:
    return _HOME.sub(r"\1[masked]", line)


def make_mask(what: Iterable[str]) -> Callable[[str], str] | None:
    """`what`: of `WHAT`."""
    chosen = set(what)
    masks = [mask for name, mask in (("addresses", _addresses), ("homes", _homes)) if name in chosen]
    if not masks:
        return None

    def mask(line: str) -> str:
        for each in masks:
            line = each(line)
        return line

    return mask
