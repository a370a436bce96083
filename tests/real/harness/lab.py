"""One agent for a whole module of tests, each with connections of its own.

A test that has done its exchanges asks for the records of its connection. To know that no more are to come, the lab does one more
exchange on another connection and waits for that to be in the log. What comes later still, or belongs to no test, fails at the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from tests.real.harness.agent import Agent, port_filters
from tests.real.harness.checks import Exchange, Record, assert_hops, brief, exchanges, validate_record
from tests.real.harness.wire import Listener, Wire

SETTLE_SECONDS = 20.0
NOT_ASKED = -1
"""Of a test that failed before it asked for its records."""


class Lab:
    def __init__(self, directory: Path) -> None:
        self._listener = Listener()
        self._agent = Agent(directory, *port_filters(self._listener.port))
        self._handed_out: dict[int, int] = {}
        self._barriers = 0

    def __enter__(self) -> Lab:
        try:
            self._agent.__enter__()
        except BaseException:
            self._listener.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self._agent.__exit__(kind, error, trace)
        late = []
        for port, count in self._handed_out.items():
            if count != NOT_ASKED:
                late += self._of(port)[count:]
        assert not late, f"records that came after their test had ended: {[brief(r) for r in late]}"
        strangers = [r for r in self._agent.records if not self._handed_out.keys() & ports(r)]
        assert not strangers, f"records of no test: {[brief(r) for r in strangers]}"

    @contextmanager
    def wire(self) -> Iterator[Wire]:
        with self._listener.wire() as wire:
            self._handed_out[wire.client_port] = NOT_ASKED
            yield wire

    def records(self, wire: Wire, count: int) -> list[Record]:
        """All records of the connection: ``count`` of them, or the test fails."""
        self._wait(wire.client_port, count)
        self._barrier()
        found = self._of(wire.client_port)
        self._handed_out[wire.client_port] = len(found)
        assert len(found) == count, f"{len(found)} records, not {count}: {[brief(r) for r in found]}"
        for record in found:
            validate_record(record)
        return found

    def exchanges(self, wire: Wire, count: int, *, interim: int = 0, tunnelled: bool = False) -> list[Exchange]:
        """The client's exchanges, when both sides have ``count`` and tell the same.

        Unless bytes were ``tunnelled`` after the last, the messages' ``bytes`` add up to what crossed the wire.
        """
        records = self.records(wire, 2 * (2 * count + interim))
        for role in ("client", "server"):
            mine = [record for record in records if record["role"] == role]
            up = sum(record["bytes"] for record in mine if "method" in record)
            down = sum(record["bytes"] for record in mine if "status_code" in record)
            if not tunnelled:
                assert (up, down) == (wire.up_bytes, wire.down_bytes), f"{role}: bytes on the stream"
        at_client, at_server = exchanges(records, "client"), exchanges(records, "server")
        assert len(at_client) == len(at_server) == count
        assert_hops(
            [r for r in records if r["role"] == "client"],
            [r for r in records if r["role"] == "server"],
        )
        for here, there in zip(at_client, at_server, strict=True):
            for key in ("url", "body", "body_encoding", "trailers", "raw_payload", "completeness"):
                assert here.request.get(key) == there.request.get(key), f"{key} of the request differs"
                assert here.response.get(key) == there.response.get(key), f"{key} of the response differs"
            assert here.request["hop"] == there.request["hop"], "the two ends disagree on the order"
            assert here.response["hop"] == there.response["hop"], "the two ends pair differently"
        return at_client

    def _barrier(self) -> None:
        self._barriers += 1
        name = f"/barrier/{self._barriers}"
        with self._listener.wire() as wire:
            wire.exchange(
                f"GET {name} HTTP/1.1\r\nHost: barrier\r\n\r\n".encode(),
                b"HTTP/1.1 204 No Content\r\n\r\n",
            )
        self._wait(wire.client_port, 4)
        # A port may serve twice; what the barrier saw is not the next one's.
        self._handed_out[wire.client_port] = len(self._of(wire.client_port))

    def _of(self, port: int) -> list[Record]:
        return [record for record in self._agent.log() if port in ports(record)]

    def _wait(self, port: int, count: int) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while len(self._of(port)) < count and time.monotonic() < deadline:
            time.sleep(0.05)


def ports(record: Record) -> set[int]:
    return {record.get("source_port", 0), record.get("dest_port", 0)}
