"""One agent for a whole module of tests against TLS programs, which all begin after it.

A test takes its ports from the lab; what the log has of these ports is its own. What comes after the test has asked for it, or belongs to no
test, fails at the end: a TLS record whose socket was mixed up lands at another test's port, or at none.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

from tests.real.harness.agent import Agent, port_filters
from tests.real.harness.checks import Record, brief
from tests.real.harness.programs import free_port

PORTS = 64
SETTLE_SECONDS = 20.0


class TlsLab:
    def __init__(self, directory: Path, *, allowed_rows: Collection[str] = ()) -> None:
        found: set[int] = set()
        while len(found) < PORTS:
            found.add(free_port())
        self._free = sorted(found)
        self._all = frozenset(found)
        self._told: dict[frozenset[int], int] = {}
        self.agent = Agent(directory, *port_filters(*self._free), allowed_rows=allowed_rows)

    def __enter__(self) -> TlsLab:
        self.agent.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.agent.__exit__(kind, error, trace)
        late = [f"{len(self._of(mine)) - count} of {sorted(mine)}" for mine, count in self._told.items()]
        late = [text for text in late if not text.startswith("0 ")]
        assert not late, f"records that came after their test had ended: {late}"
        strangers = [r for r in self.agent.records if not ports_of(r) & self._all]
        assert not strangers, f"records of no port of ours: {[brief(r) for r in strangers]}"

    def ports(self, count: int) -> list[int]:
        taken, self._free = self._free[:count], self._free[count:]
        assert len(taken) == count, "the lab has too few ports"
        return taken

    def records(self, ports: list[int], count: int) -> list[Record]:
        """All that the log has of these ports, once it has ``count`` records of them: with more to come, the lab fails at its end."""
        mine = frozenset(ports)
        deadline = time.monotonic() + SETTLE_SECONDS
        while len(self._of(mine)) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        found = self._of(mine)
        self._told[mine] = len(found)
        return found

    def _of(self, mine: frozenset[int]) -> list[Record]:
        return [record for record in self.agent.log() if ports_of(record) & mine]


def ports_of(record: Record) -> set[int]:
    return {record.get("source_port", 0), record.get("dest_port", 0)}
