"""A connection is its socket: whatever number, process or thread uses it, and since whenever."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.harness import (
    ACTORS,
    ARRIVAL_SECONDS,
    Agent,
    Calls,
    Record,
    check_form,
    check_ledger,
    check_run,
    end_process,
    running,
    wait_until,
)

pytestmark = pytest.mark.kernel


class Actor:
    """One scene of actors.py."""

    def __init__(self, scene: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", str(ACTORS), scene, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.said: list[dict[str, Any]] = []

    def hear(self, what: str) -> dict[str, Any]:
        """The next thing said, which is this."""
        assert self.process.stdout is not None
        fact: dict[str, Any] = json.loads(self.process.stdout.readline() or '{"what": "nothing"}')
        assert fact["what"] == what, fact
        self.said.append(fact)
        return fact

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self) -> list[dict[str, Any]]:
        output, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, self.process.returncode
        self.said += [json.loads(line) for line in output.splitlines()]
        return self.said

    def close(self) -> None:
        end_process(self.process)


@contextmanager
def acting(scene: str, *arguments: str) -> Iterator[Actor]:
    actor = Actor(scene, *arguments)
    try:
        yield actor
    finally:
        actor.close()


class Early:
    """What stood open before the agent was started."""

    server: Actor
    client: Actor
    port: int


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Agent, Early]]:
    with ExitStack() as stack:
        state = Early()
        state.server = stack.enter_context(acting("answering"))
        state.port = state.server.hear("listening")["port"]
        state.client = stack.enter_context(acting("early", str(state.port)))
        state.client.hear("ready")
        agent = stack.enter_context(running(tmp_path_factory.mktemp("agent")))
        yield agent, state
        assert agent.end() == 0, agent.stderr()
        check_ledger(agent.ledger())


@pytest.fixture(scope="module")
def agent(early: tuple[Agent, Early]) -> Agent:
    return early[0]


@pytest.fixture(scope="module")
def port(early: tuple[Agent, Early]) -> str:
    """A server, threaded, that answers each request with "answer to TARGET"."""
    return str(early[1].port)


def at_port(agent: Agent, port: int | str, count: int) -> list[Record]:
    """Records of connections to a server's port."""

    def select() -> list[Record]:
        ports = {"source_port", "dest_port"}
        return [r for r in agent.records() if int(port) in [r.get(key) for key in ports]]

    wait_until(lambda: len(select()) >= count, ARRIVAL_SECONDS)
    return select()


def exchanges(agent: Agent, port: int | str, prefix: str, count: int) -> dict[str, list[Record]]:
    """Target → its four records: client's request and response, server's request and response.

    All are complete, and answer the target that they are paired with.
    """

    def select() -> dict[str, list[Record]]:
        records = at_port(agent, port, 0)
        by_exchange: dict[str, list[Record]] = {}
        for record in records:
            by_exchange.setdefault(record.get("exchange", "none"), []).append(record)
        found: dict[str, list[Record]] = {}
        for record in records:
            if record.get("url", "").startswith(prefix):
                found.setdefault(record["url"], []).extend(by_exchange[record["exchange"]])
        return found

    wait_until(lambda: sum(map(len, select().values())) >= 4 * count, ARRIVAL_SECONDS)
    found = select()
    for target, records in found.items():
        records.sort(key=lambda record: (record["role"], "status_code" in record))
        places = [(record["role"], record["direction"]) for record in records]
        expected = [("client", "send"), ("client", "recv"), ("server", "recv"), ("server", "send")]
        assert places == expected, (target, places)
        for record in records:
            check_form(record)
            assert record["completeness"] == "complete", record
            if "status_code" in record:
                assert record["body"] == f"answer to {target}"
        assert records[0]["hop"] == records[2]["hop"]
        assert records[1]["hop"] == records[3]["hop"]
        assert records[0]["hop"] != records[1]["hop"]
    assert len(found) == count, list(found)
    return found


# ---- the client's side ----


def test_duplicated_numbers(agent: Agent, port: str) -> None:
    with acting("dup", port) as actor:
        actor.finish()
    found = exchanges(agent, port, "/dup/", 2)
    assert found["/dup/1"][0]["body"] == "dup" * 100
    assert len({records[0]["connection"] for records in found.values()}) == 1
    assert {record["pid"] for records in found.values() for record in records[:2]} == {actor.pid}


def test_parent_sends_head_and_child_the_body(agent: Agent, port: str) -> None:
    with acting("fork", port) as actor:
        facts = actor.finish()
    (records,) = exchanges(agent, port, "/fork", 1).values()
    assert records[0]["body"] == "fork" * 100
    assert records[0]["pid"] == actor.pid, "the process of the first byte"
    assert records[0]["pid"] != facts[-1]["child"]
    assert records[1]["pid"] == actor.pid


def test_one_thread_sends_another_receives(agent: Agent, port: str) -> None:
    with acting("threads", port) as actor:
        threads = {fact["what"]: fact["tid"] for fact in actor.finish()}
    found = exchanges(agent, port, "/threads/", 7)
    assert list(found) == [f"/threads/{number}" for number in range(7)]
    for request, response, _, _ in found.values():
        assert (request["pid"], request["tid"]) == (actor.pid, threads["sent"])
        assert (response["pid"], response["tid"]) == (actor.pid, threads["received"])


def test_passed_to_another_process(agent: Agent, port: str) -> None:
    with acting("passed", port) as actor:
        users = {fact["target"]: fact["pid"] for fact in actor.finish()}
    found = exchanges(agent, port, "/passed/", 2)
    assert users["/passed/1"] != users["/passed/2"]
    for target, records in found.items():
        assert {record["pid"] for record in records[:2]} == {users[target]}
    assert len({records[0]["connection"] for records in found.values()}) == 1
    assert len({records[2]["connection"] for records in found.values()}) == 1


def test_number_reused_at_once(agent: Agent, port: str) -> None:
    with acting("reuse", port) as actor:
        assert actor.finish()[-1]["numbers"] == 1
    found = exchanges(agent, port, "/reuse/", 23)
    assert len({records[0]["connection"] for records in found.values()}) == 23
    assert len({records[0]["source_port"] for records in found.values()}) == 23


def test_receive_blocks_while_its_number_changes_hands(agent: Agent, port: str) -> None:
    """The bytes that the late receive took are the first connection's, whatever its number names by then."""
    with acting("slow") as server:
        slow = server.hear("listening")["port"]
        with acting("blocked", str(slow), port) as client:
            client.hear("open")
            # the second connection's first exchange is through before the first is answered
            exchanges_seen = wait_until(
                lambda: any(r.get("url") == "/blocked/2" for r in agent.records()), ARRIVAL_SECONDS
            )
            server.step()
            server.finish()
            client.finish()
    assert exchanges_seen
    found = exchanges(agent, port, "/blocked/", 2)
    assert list(found) == ["/blocked/2", "/blocked/3"]
    assert len({records[0]["connection"] for records in found.values()}) == 1
    first = at_port(agent, slow, 3)
    for record in first:
        check_form(record)
        assert record.get("body", "slow") == "slow"
        assert record.get("url", "/blocked/slow") == "/blocked/slow"
    truth = [r for r in first if r["pid"] == server.pid]
    assert [r["completeness"] for r in truth] == ["complete", "complete"]
    assert len({r["connection"] for r in first if r["pid"] == client.pid}) <= 1


# ---- before the agent ----


def test_connections_older_than_the_agent(early: tuple[Agent, Early]) -> None:
    """Half a head or half a body went by unseen: those are partial or absent, the next ones whole."""
    agent, state = early
    state.client.step()
    state.client.finish()
    found = exchanges(agent, state.port, "/early/idle/", 2)
    assert all(records[0]["body"] == "early" * 200 for records in found.values())
    for name in ("head", "body", "used"):
        for number in range(2):
            (records,) = exchanges(agent, state.port, f"/early/{name}/{number}", 1).values()
            assert records[0]["body"] == "early" * 200
            assert records[0]["dest_port"] == state.port
    clients = {
        (record["source_port"] if record["direction"] == "send" else record["dest_port"])
        for record in at_port(agent, state.port, 0)
        if record["pid"] == state.client.pid and record["role"] == "client"
    }
    assert len(clients) == 4
    own = [r for r in at_port(agent, state.port, 0) if r["pid"] == state.client.pid]
    joined = [r for r in own if r["completeness"] != "complete"]
    for record in joined:
        assert record["completeness"] == "partial", record
    answers = [r["body"] for r in own if "status_code" in r and r["completeness"] == "complete"]
    after = [f"answer to /early/{name}/{number}" for name in ("idle", "head", "body", "used") for number in range(2)]
    # the answers to the two that were joined in the middle may be shown: as nobody else's
    in_the_middle = {"answer to /early/head/before", "answer to /early/body/before"}
    assert sorted(set(answers) - in_the_middle) == sorted(after)
    assert len(answers) == len(set(answers))
    urls = {r["exchange"]: r["url"] for r in own if "url" in r and "exchange" in r}
    for record in own:
        if "status_code" in record and record.get("exchange") in urls:
            assert record["body"] == "answer to " + urls[record["exchange"]]


# ---- the server's side ----


def client_of(calls: Calls, port: int, name: str, count: int = 2) -> list[str]:
    truths = calls.request(f"127.0.0.1:{port}", "--target", f"/{name}", "--requests", str(count))
    assert len(truths) == count
    return [truth.target for truth in truths]


def check_server(agent: Agent, port: int, target: str, pids: list[int]) -> list[Record]:
    """The server's records are these processes', in this order, and complete."""
    records = at_port(agent, port, 4 * len(pids))
    server = [record for record in records if record["role"] == "server"]
    requests = [record for record in server if "method" in record]
    responses = {record["exchange"]: record for record in server if "status_code" in record}
    assert [record["pid"] for record in requests] == pids
    for record in requests:
        assert record["url"] == target
        assert record["completeness"] == "complete"
        response = responses[record["exchange"]]
        assert response["body"] == f"answer to {target}"
        assert response["pid"] == record["pid"]
    assert len(records) == 4 * len(pids)
    return requests


def test_accepted_here_served_in_a_fork(agent: Agent, calls: Calls) -> None:
    with acting("worker") as actor:
        port = actor.hear("listening")["port"]
        for _ in range(3):
            client_of(calls, port, "worker")
        served = [fact["pid"] for fact in actor.finish() if fact["what"] == "answered"]
    assert len(set(served)) == 3
    assert actor.pid not in served
    check_server(agent, port, "/worker", served)


def test_accepted_here_passed_and_served_there(agent: Agent, calls: Calls) -> None:
    with acting("accept_and_pass") as actor:
        port = actor.hear("listening")["port"]
        for _ in range(2):
            client_of(calls, port, "passed-on")
        served = [fact["pid"] for fact in actor.finish() if fact["what"] == "answered"]
    assert len(set(served)) == 1
    assert actor.pid not in served
    check_server(agent, port, "/passed-on", served)


def test_workers_with_one_listener(agent: Agent, calls: Calls) -> None:
    with acting("prefork") as actor:
        port = actor.hear("listening")["port"]
        for _ in range(2):
            client_of(calls, port, "prefork")
        served = [fact["pid"] for fact in actor.finish() if fact["what"] == "answered"]
    assert len(set(served)) == 2
    check_server(agent, port, "/prefork", served)


def test_socket_as_standard_input_of_a_shell(agent: Agent, calls: Calls) -> None:
    """One byte a read, and a program executed on an inherited connection."""
    with acting("inetd") as actor:
        port = actor.hear("listening")["port"]
        client_of(calls, port, "inetd", 1)
        child = actor.finish()[-1]["child"]
    records = [r for r in at_port(agent, port, 4) if r["role"] == "server"]
    assert [(r["pid"], r["comm"], r["completeness"]) for r in records] == [(child, "sh", "complete")] * 2
    assert records[0]["url"] == "/inetd"
    assert records[1]["body"] == "inetd\n"
    assert records[0].get("cmdline", "sh -c read line;").startswith("sh -c read line;")
    assert records[0]["exchange"] == records[1]["exchange"]


def test_calls_beside_all_that(agent: Agent, calls: Calls) -> None:
    run = calls.run(["--target", "/beside", "--requests", "23"])
    check_run(agent.wait_for(run.pids, 92), run)


def test_actors_do_what_they_say(tmp_path: Path) -> None:
    """The scenes stand on their own, without the agent's word for it."""
    with acting("answering") as server:
        port = str(server.hear("listening")["port"])
        for scene in ("dup", "fork", "threads", "passed", "reuse"):
            with acting(scene, port) as actor:
                actor.finish()
