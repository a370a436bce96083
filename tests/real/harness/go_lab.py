"""One agent over many Go programs, each a server and a client that the test starts: told apart by pid, for some have no port.

The agent watches this process and all that descends from it. A binary is analysed when its server starts; the client is
started when the probes are in the server's text, and is then seen from its first byte, because it is the same file.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from tests.real.harness.agent import Agent
from tests.real.harness.checks import (
    Exchange,
    Record,
    assert_equal_to_truth,
    assert_hops,
    brief,
)
from tests.real.harness.programs import Finished, Program, run_client, wait_until
from tests.real.harness.text import is_probed
from tests.real.harness.tls import assert_tls, messages, negotiated, one_story, tls_lines
from tests.real.harness.truth import Ask, Truth, agreed

ATTACH_SECONDS = 30.0
ATTACHED_SECONDS = 0.05
"""From the probes to the agent's note of it, which says that what begins now is seen from its beginning."""
SETTLE_SECONDS = 20.0


class GoLab:
    def __init__(self, directory: Path, *arguments: str) -> None:
        self.agent = Agent(directory, "--pid", str(os.getpid()), *arguments)
        self._read_records = 0
        self._by_pid: dict[int, list[Record]] = {}
        self._handed_out: dict[int, int] = {}
        self._servers = 0

    def __enter__(self) -> GoLab:
        self.agent.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.agent.__exit__(kind, error, trace)
        if kind is not None:
            return
        self._read()
        late = {pid: len(self._by_pid.get(pid, [])) - count for pid, count in self._handed_out.items()}
        assert not any(late.values()), f"records that came after their test had ended: {late}"
        strangers = [r for pid, group in self._by_pid.items() if pid not in self._handed_out for r in group]
        assert not strangers, f"records of no test: {[brief(r) for r in strangers]}"

    @contextmanager
    def server(self, command: Sequence[str | Path], directory: Path) -> Iterator[Program]:
        """Listening, and probed."""
        self._servers += 1
        with Program(command, directory, name=f"server-{self._servers}") as program:
            self._handed_out.setdefault(program.pid, 0)
            wait_until(lambda: "listening" in program.errors.read_text(), "the server listens")
            binary = Path(command[0])
            wait_until(lambda: is_probed(program.pid, binary, self.agent.pid), f"{binary} is probed", ATTACH_SECONDS)
            time.sleep(ATTACHED_SECONDS)
            yield program

    def client(self, command: Sequence[str | Path], directory: Path) -> Finished:
        done = run_client(command, directory)
        self._handed_out.setdefault(done.pid, 0)
        return done

    def records(self, pids: Collection[int], count: int) -> list[Record]:
        """All that the log has of these processes, once it has ``count`` records of them: with more to come, the lab fails at its end."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while self._count(pids) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        self._read()
        for pid in pids:
            self._handed_out[pid] = len(self._by_pid.get(pid, []))
        return [record for pid in pids for record in self._by_pid.get(pid, [])]

    def _count(self, pids: Collection[int]) -> int:
        self._read()
        return sum(len(self._by_pid.get(pid, [])) for pid in pids)

    def _read(self) -> None:
        """What the log has got since it was read last."""
        records = self.agent.log()
        for record in records[self._read_records :]:
            self._by_pid.setdefault(record["pid"], []).append(record)
        self._read_records = len(records)


def address_of(server: Program) -> str:
    """``tcp:HOST:PORT`` or ``unix:PATH``, as the server says on standard error."""
    words = next(line for line in server.errors.read_text().splitlines() if line.startswith("listening ")).split()
    return f"{words[1]}:{words[2]}"


def write_plan(directory: Path, asks: Sequence[Ask]) -> Path:
    path = directory / "plan.json"
    path.write_text(json.dumps([[ask.method, ask.target, ask.request.decode()] for ask in asks]))
    return path


def exchange(
    lab: GoLab,
    directory: Path,
    asks: Sequence[Ask],
    binary: Path,
    server_options: Sequence[str] = (),
    client_options: Sequence[str] = (),
    *,
    listen: str = "tcp:127.0.0.1:0",
    connections: int = 1,
    server_binary: Path | None = None,
) -> tuple[list[Exchange], list[Exchange], str]:
    """Server and client do the plan (on each connection); the log has what they say, exactly, at either end.

    Gives the exchanges as the client and the server had them in the log, and what both programs printed.
    """
    plan = write_plan(directory, asks)
    unix = listen.startswith("unix:")
    with lab.server([server_binary or binary, "server", "-listen", listen, *server_options], directory) as server:
        command: list[str | Path] = [binary, "client", "-connect", address_of(server), "-plan", plan, *client_options]
        done = lab.client(command, directory)
        told = server.truth(len(asks) * connections)
        printed = done.output + server.log.read_text()
        if connections > 1:
            asks = [
                Ask(ask.method, f"{ask.target}?connection={number}", ask.status, ask.response, ask.request)
                for ask in asks
                for number in range(connections)
            ]
        truth = agreed(asks, told, done.truth())
        records = lab.records([done.pid, server.pid], 4 * len(truth))
    ordered = connections == 1
    at_client = assert_equal_to_truth(records, truth, "client", pids={done.pid}, unix=unix, ordered=ordered)
    at_server = assert_equal_to_truth(records, truth, "server", pids={server.pid}, unix=unix, ordered=ordered)
    assert len(records) == 4 * len(truth), f"{len(records)} records of {len(truth)} exchanges"
    assert_bodies(truth, asks, at_client, at_server)
    if not unix:
        assert_hops(messages(at_client), messages(at_server))
    story = one_story(*([negotiated(line)] for line in tls_lines(printed)))
    assert_tls([*at_client, *at_server], "go", story)
    return at_client, at_server, printed


def assert_bodies(truth: Sequence[Truth], asks: Sequence[Ask], *sides: Sequence[Exchange]) -> None:
    """Of every message the body, as far as it is kept (``assert_equal_to_truth`` has looked at sizes and responses)."""
    sent: dict[tuple[str, str], set[str]] = {}
    for ask in asks:
        sent.setdefault((ask.method, ask.target), set()).add(ask.request[:4096].decode())
    received: dict[tuple[str, str], set[str]] = {}
    for one in truth:
        received.setdefault((one.method, one.target), set()).add(one.response_start or "")
    for e in (e for side in sides for e in side):
        key = (e.request["method"], e.request["url"])
        assert e.request.get("body", "") in sent[key], f"the body of {brief(e.request)} is another"
        assert e.response.get("body", "") in received[key], f"the body of {brief(e.response)} is another"
