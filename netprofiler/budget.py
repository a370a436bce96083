"""How many of the connections the log is kept of, so that the agent stays within a share of a CPU (`--max-cpu`).

Contract: `Budget.update(now_ns, cpu_ns)` is told the time and the CPU time that the agent has used in all, every now and then,
and gives the shares to keep: of 0 to SHARES - 1, into which connections are divided by `share_of`, those below that number are
logged. Both ends of a connection have the same share, as the kernel side finds it, too (bpf/tally.h). No clock is read here.
"""

from __future__ import annotations

import ipaddress
from typing import Final

SHARES: Final = 65_536
_SLACK: Final = 0.8
"""With less than this of what it may have, the agent takes more connections again."""
_GROWTH: Final = 1.25
_STEP: Final = SHARES // 64
_LEAST: Final = SHARES // 256
"""Fewer than this are none."""
_FACTOR: Final = 0x9E3779B1


class Budget:
    """`percent`: 100 is one core."""

    def __init__(self, percent: float) -> None:
        self._limit = percent / 100
        self._kept: float = SHARES
        self._before: tuple[int, int] | None = None

    def update(self, now_ns: int, cpu_ns: int) -> int:
        before, self._before = self._before, (now_ns, cpu_ns)
        if before is not None and now_ns > before[0]:
            used = (cpu_ns - before[1]) / (now_ns - before[0])
            if used > self._limit:
                self._kept *= self._limit / used
                if self._kept < _LEAST:
                    self._kept = 0
            elif used < _SLACK * self._limit:
                self._kept = min(SHARES, max(self._kept * _GROWTH, self._kept + _STEP))
        return int(self._kept)


def share_of(local_ip: str, local_port: int, remote_ip: str, remote_port: int) -> int:
    """The same at both ends, where no address is translated between them."""
    words = _words(local_ip) ^ _words(remote_ip)
    folded = (words ^ words >> 32 ^ words >> 64 ^ words >> 96) & 0xFFFFFFFF
    return ((folded ^ local_port ^ remote_port) * _FACTOR & 0xFFFFFFFF) >> 16


def _words(address: str) -> int:
    """As the kernel side reads it: of IPv4, the last of four words."""
    return int.from_bytes(ipaddress.ip_address(address).packed, "little")
