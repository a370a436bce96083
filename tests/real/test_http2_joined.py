"""The agent starts when a gRPC channel has done 23 calls, so that its header tables are hot: the next 23 are all there, and none is wrong.

Fields that refer to what was said before are absent and counted; a second channel, which the agent sees from its start, says what
they were. A call is known by its messages, which no table changes.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.real.harness.agent import Agent, port_filters
from tests.real.harness.checks import Record, brief, is_request, validate_record
from tests.real.harness.grpc_calls import (
    PREFIX_BYTES,
    SERVICE,
    Call,
    assert_calls,
    client_command,
    data_of,
    server,
    told,
    write_plan,
)
from tests.real.harness.programs import free_port, run_client, wait_until
from tests.real.harness.tls import Certificates
from tests.real.harness.truth import pattern

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

COUNT = 23
METADATA = (("x-tenant", "eleven"), ("x-region", "north"), ("authorization-kind", "none"))


def calls_of(name: str, count: int) -> list[Call]:
    """The same calls each time, but for their numbers and what depends on these; sizes of requests differ from each other."""
    calls = []
    for number in range(count):
        seed = f"{name}-{number}"
        message = pattern(100 + number, seed).decode()
        method, send = (
            ("Unary", (message,)),
            ("Chat", (message, "and")),
            ("Collect", (message, "and", "more")),
            ("Unary", (message,)),
        )[number % 4]
        calls.append(Call(seed, method, send, metadata=METADATA))
    return calls


def framed(messages: Sequence[bytes]) -> bytes:
    return b"".join(b"\0" + len(message).to_bytes(PREFIX_BYTES - 1, "big") + message for message in messages)


@pytest.mark.parametrize(("kind", "way"), [("python", "plain"), ("go", "plain"), ("go", "tls")])
def test_calls_on_a_channel_that_was_joined(directory: Path, certificates: Certificates, kind: str, way: str) -> None:
    port = free_port()
    secure = certificates if way == "tls" else None
    late, early = calls_of("late", 2 * COUNT), calls_of("early", 2 * COUNT)
    plan = write_plan(directory, late)
    output = directory / "client.log"
    with (
        server(kind, directory, port, secure, None) as program,
        output.open("wb") as out,
        subprocess.Popen(
            [str(word) for word in client_command(kind, plan, port, secure, before=COUNT)],
            stdin=subprocess.PIPE,
            stdout=out,
        ) as client,
    ):
        wait_until(lambda: "open\n" in output.read_text(), "the channel is open")
        # The client's last call is over for the server, too.
        wait_until(lambda: program.log.read_text().count("\n") >= COUNT, "the server's story")
        with Agent(directory, *port_filters(port), allowed_rows={"partial"}) as agent:
            client.communicate(b"go on\n", timeout=20)
            assert client.returncode == 0
            done = run_client(client_command(kind, write_plan(directory, early), port, secure), directory)
            wait_until(lambda: program.log.read_text().count("\n") >= 4 * COUNT, "the server's story")
        story = program.log.read_text()
        server_pid = program.pid
    joined = late[COUNT:]
    at_client, at_server = told(output.read_text()), told(story)
    for call in joined:
        assert (at_client[call.id].code, at_client[call.id].received) == (0, [len(m) for m in call.replies()])

    names = {call.id for call in early}
    first = {record["connection"] for record in agent.records if record.get("headers", {}).get("x-call") in names}
    seen_from_start = [record for record in agent.records if record["connection"] in first]
    its_told = told(done.output)
    of_early = {name: one for name, one in at_server.items() if name in names}
    known = {
        "client": assert_calls(seen_from_start, "client", done.pid, early, its_told, of_early),
        "server": assert_calls(seen_from_start, "server", server_pid, early, its_told, of_early),
    }

    rest = [record for record in agent.records if record["connection"] not in first]
    for role, pid in (("client", client.pid), ("server", server_pid)):
        mine = [record for record in rest if record["role"] == role]
        assert {record["pid"] for record in mine} == {pid}
        assert_joined(mine, joined, known[role], early[COUNT:])


def assert_joined(
    mine: Sequence[Record], joined: Sequence[Call], known: dict[str, list[Record]], alike: Sequence[Call]
) -> None:
    """One side of the channel. ``alike``: what was done on the other one, whose records are ``known``."""
    requests = {data_of(r): r for r in mine if is_request(r)}
    responses = {r["exchange"]: r for r in mine if not is_request(r)}
    assert len(mine) == 2 * len(joined) == 2 * len(requests) == 2 * len(responses), [brief(r) for r in mine]
    unknown = 0
    for call, other in zip(joined, alike, strict=True):
        sent = framed([message.encode() for message in call.send])
        assert sent in requests, f"the request of {call.id} is missing"
        request = requests[sent]
        response = responses[request["exchange"]]
        assert data_of(response) == framed(call.replies()), f"{call.id} is answered by another: {brief(response)}"
        # Its messages told which call it is; its fields, as far as they are known, are those of this call.
        for record, whole in zip((request, response), known[other.id], strict=True):
            assert_fields(record, whole, call, other)
            unknown += record.get("unknown_fields", 0)
    assert unknown > 0, "the tables were not hot: this tests nothing"


def assert_fields(record: Record, whole: Record, call: Call, other: Call) -> None:
    """What is there is right, what is not is counted."""
    validate_record(record, hop="tls" not in record)  # plaintext has one only where its connection was seen to begin
    expected = json.loads(json.dumps(whole).replace(other.id, call.id))
    missing = 0
    for group in ("headers", "trailers"):
        fields = record.get(group, {})
        if group == "trailers" and group not in record and record.get("unknown_fields", 0) == 0:
            assert group not in whole, brief(record)
        assert fields == {name: value for name, value in expected.get(group, {}).items() if name in fields}, (
            f"{group} of {brief(record)}: {fields}, not {expected.get(group)}"
        )
        missing += len(expected.get(group, {})) - len(fields)
    for key in ("method", "url", "status_code"):
        assert record.get(key, expected.get(key)) == expected.get(key), brief(record)
        missing += key in expected and key not in record
    assert missing == record.get("unknown_fields", 0), f"{missing} fields are absent: {brief(record)}"
    assert record["completeness"] == ("partial" if missing else "complete"), brief(record)
    facts = record.get("grpc", {})
    assert {"service": SERVICE, "method": call.method, **facts} == {
        "service": SERVICE, "method": call.method, **{k: v for k, v in expected["grpc"].items() if k in facts},
    }, brief(record)  # fmt: skip
