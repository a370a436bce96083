"""Filters are decided in the kernel: the same kind is OR, different kinds are AND, excludes win.

All agents run at once over one piece of traffic; each test compares one log with what its filter lets through.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.harness import (
    ACTORS,
    ARRIVAL_SECONDS,
    Agent,
    Calls,
    Record,
    Server,
    check_form,
    check_ledger,
    end_process,
    wait_until,
)

pytestmark = pytest.mark.kernel


@dataclass(frozen=True)
class Visit:
    """One end of one exchange: what a filter can look at."""

    target: str
    role: str
    pid: int
    family: str
    """The tree of processes that it belongs to: `tree` or its own name."""
    comm: str
    exe: str
    port: int


@dataclass
class Scene:
    """The traffic and the agents that saw it."""

    agents: dict[str, Agent] = field(default_factory=dict)
    visits: list[Visit] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    """Placeholders of the options below, and what stands for them."""

    @property
    def pids(self) -> set[int]:
        return {visit.pid for visit in self.visits}


@dataclass(frozen=True)
class Case:
    """Options, and which visits they let through."""

    options: str
    lets_through: Callable[[Visit, dict[str, str]], bool]


def comm_is(*comms: str) -> Callable[[Visit, dict[str, str]], bool]:
    return lambda visit, _: visit.comm in comms


CASES: dict[str, Case] = {
    "pid": Case("--pid TREE", lambda v, _: v.family == "tree"),
    "two-pids": Case("--pid TREE --pid SERVER_B", lambda v, n: v.family == "tree" or str(v.pid) == n["SERVER_B"]),
    "comm": Case("--comm alpha", comm_is("alpha")),
    "two-comms": Case("--comm alpha --comm beta", comm_is("alpha", "beta")),
    "exe": Case("--exe OTHER", lambda v, n: v.exe == n["OTHER"]),
    "port": Case("--port PORT_A", lambda v, n: str(v.port) == n["PORT_A"]),
    "two-ports": Case("--port PORT_A --port PORT_B", lambda v, n: str(v.port) in {n["PORT_A"], n["PORT_B"]}),
    "port-and-comm": Case(
        "--port PORT_A --comm alpha --comm beta",
        lambda v, n: str(v.port) == n["PORT_A"] and v.comm in {"alpha", "beta"},
    ),
    "exe-and-comm": Case("--exe OTHER --comm beta", lambda v, n: v.exe == n["OTHER"] and v.comm == "beta"),
    "pid-and-port": Case("--pid TREE --port PORT_A", lambda v, n: v.family == "tree" and str(v.port) == n["PORT_A"]),
    "exclude-pid": Case("--exclude-pid TREE", lambda v, _: v.family != "tree"),
    "exclude-comm": Case("--exclude-comm alpha --exclude-comm server", lambda v, _: v.comm not in {"alpha", "server"}),
    "exclude-exe": Case("--exclude-exe OTHER", lambda v, n: v.exe != n["OTHER"]),
    "exclude-port": Case("--exclude-port PORT_A", lambda v, n: str(v.port) != n["PORT_A"]),
    "port-but-comm": Case(
        "--port PORT_A --exclude-comm beta", lambda v, n: str(v.port) == n["PORT_A"] and v.comm != "beta"
    ),
    "comm-but-comm": Case("--comm alpha --exclude-comm alpha", lambda *_: False),
}
BATCH = 4
"""Agents that start at once: each compiles its program."""


def tree_visits(port: int, output: str, family_pid: int) -> list[Visit]:
    exe = str(Path(sys.executable).resolve())
    visits = []
    for line in output.splitlines():
        fact: dict[str, Any] = json.loads(line)
        pid = fact.get("child", fact["pid"])
        comm = Path(sys.executable).name
        visits.append(Visit(fact["target"], "client", pid, "tree", comm, exe, port))
    assert any(visit.pid == family_pid for visit in visits)
    assert len(visits) == 9
    return visits


@pytest.fixture(scope="module")
def scene(calls: Calls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("filters")
    scene = Scene()
    other = directory / "other"
    shutil.copy(calls.binary, other)
    with ExitStack() as stack:
        server_a, server_b = (
            stack.enter_context(calls.serve("127.0.0.1:0", "--comm", "server", "--connections", str(count)))
            for count in (15, 6)
        )
        # what was there before the agents
        tree = subprocess.Popen(
            [sys.executable, "-u", str(ACTORS), "tree", str(server_a.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(end_process, tree)
        assert tree.stdout is not None
        assert json.loads(tree.stdout.readline())["what"] == "ready"
        scene.names = {
            "TREE": str(tree.pid),
            "SERVER_B": str(server_b.pid),
            "OTHER": str(other),
            "PORT_A": str(server_a.port),
            "PORT_B": str(server_b.port),
        }
        names = list(CASES)
        for first in range(0, len(names), BATCH):
            batch = names[first : first + BATCH]
            for name in batch:
                options = [scene.names.get(word, word) for word in CASES[name].options.split()]
                scene.agents[name] = Agent(directory / name, *options)
                stack.callback(scene.agents[name].kill)
            for name in batch:
                scene.agents[name].wait_ready()

        output, _ = tree.communicate("\n", timeout=30)
        scene.visits += tree_visits(server_a.port, output, tree.pid)
        # processes that start after the agents
        for server in (server_a, server_b):
            for binary in (calls.binary, other):
                for comm in ("alpha", "beta", "gamma"):
                    target = f"/filter/{server.port}-{binary.name}-{comm}"
                    (truth,) = calls.request(server.address, "--comm", comm, "--target", target, binary=binary)
                    scene.visits.append(Visit(target, "client", truth.pid, comm, comm, str(binary), server.port))
        calls.run(["--target", "/filter/elsewhere"])  # what every filter that names something leaves out
        for server in (server_a, server_b):
            scene.visits += server_visits(calls, server)
        yield scene
        for agent in scene.agents.values():
            assert agent.end() == 0, agent.stderr()


def server_visits(calls: Calls, server: Server) -> list[Visit]:
    return [
        Visit(truth.target, "server", server.pid, "server", "server", str(calls.binary), server.port)
        for truth in server.finish()
    ]


def seen(scene: Scene, agent: Agent) -> list[Record]:
    """What it logged of this module's traffic: others may use the host at the same time."""
    ports = {int(scene.names["PORT_A"]), int(scene.names["PORT_B"])}
    return [r for r in agent.records() if ports & {r.get("source_port"), r.get("dest_port")}]


@pytest.mark.parametrize("name", CASES)
def test_filter(scene: Scene, name: str) -> None:
    agent, case = scene.agents[name], CASES[name]
    expected = sorted(
        (visit.role, visit.pid, visit.target) for visit in scene.visits if case.lets_through(visit, scene.names)
    )
    wait_until(lambda: len(seen(scene, agent)) >= 2 * len(expected), ARRIVAL_SECONDS)
    records = seen(scene, agent)
    for record in records:
        check_form(record)
        assert record["completeness"] == "complete", record
    requests = [record for record in records if "method" in record]
    responses = {record["exchange"]: record for record in records if "status_code" in record}
    assert sorted((r["role"], r["pid"], r["url"]) for r in requests) == expected
    assert len(responses) == len(requests)
    for request in requests:
        assert responses[request["exchange"]]["pid"] == request["pid"]
    assert bool(expected) == (name != "comm-but-comm")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.options.startswith("--exclude")])
def test_nobody_else_is_logged(scene: Scene, name: str) -> None:
    """A filter that names what to watch lets nothing of the rest of the host through."""
    assert {record["pid"] for record in scene.agents[name].records()} <= scene.pids


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_out_is_in_the_ledger(scene: Scene, name: str) -> None:
    agent = scene.agents[name]
    assert agent.end() == 0, agent.stderr()
    ledger = agent.ledger()
    check_ledger(ledger)
    assert ledger["calls"]["rows"]["filtered"] > 0
    assert ledger["bytes"]["rows"]["filtered"] > 0
    kept = len([visit for visit in scene.visits if CASES[name].lets_through(visit, scene.names)])
    assert ledger["records"]["rows"].get("written", 0) >= 2 * kept
