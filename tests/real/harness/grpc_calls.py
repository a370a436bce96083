"""gRPC calls as a test plans them, as the two programs tell them, and as the log must have them.

Each call has a number of its own in the metadata ``x-call``, by which its records are found; what it sends and receives depends on
that number, so that a swapped body never looks right.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.real.harness import go_programs
from tests.real.harness.checks import BODY_LIMIT_BYTES, Record, Role, brief, header, is_request, validate_record
from tests.real.harness.http2 import probed
from tests.real.harness.programs import PYTHON, SCRIPTS, Program
from tests.real.harness.tls import Certificates
from tests.real.harness.truth import pattern

SERVICE = "netprofiler.test.Probe"
PREFIX_BYTES = 5
"""Before each message: compressed or not, and its length (gRPC over HTTP/2, Length-Prefixed-Message)."""
CANCELLED, DEADLINE_EXCEEDED = 1, 4
PYTHONS = {"python": PYTHON, "debian": "/usr/bin/python3"}
"""With grpcio of PyPI, in which BoringSSL is linked; and with Debian's ``python3-grpcio``, which takes the system's OpenSSL."""
DEBIAN_GRPC = Path("/usr/lib/python3/dist-packages/grpc")


@dataclass(frozen=True, slots=True)
class Call:
    id: str
    method: str
    send: tuple[str, ...]
    gzip: bool = False
    deadline_ms: int = 0
    cancel_after: int = 0
    """Responses."""
    metadata: tuple[tuple[str, str], ...] = ()

    def replies(self) -> list[bytes]:
        """What the server answers: see programs/grpc_python.py."""
        sent = [message.encode() for message in self.send]
        first, _, rest = self.send[0].partition(" ")
        match self.method:
            case "Unary":
                return sent
            case "Collect":
                return [f"{len(sent)} {sum(map(len, sent))}".encode()]
            case "Produce":
                return [pattern(int(rest), str(number)) for number in range(int(first))]
            case "Chat":
                return [message + b"!" for message in sent]
            case "FailLate":
                return [b"one", b"two"]
            case "Wait":
                return [b"started"]
        return []

    def status(self) -> tuple[int, str]:
        """As the server answers, where it does."""
        if self.method in ("Fail", "FailLate"):
            code, _, message = self.send[0].partition(" ")
            return int(code), message
        return (12, "no such method") if self.method == "Nope" else (0, "")

    @property
    def given_up(self) -> bool:
        return bool(self.deadline_ms or self.cancel_after)


def plan(name: str) -> list[Call]:
    """Calls of every kind; those that the client gives up are at the end of it, but for one that follows them."""

    def text(size: int, seed: str) -> str:
        return pattern(size, f"{name}-{seed}").decode()

    calls: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
        *(("Unary", (text(size, f"u{size}"),), {}) for size in (0, 1, 100, 4091, 4092, 20_000)),
        ("Unary", (text(1024 * 1024, "mebibyte"),), {}),
        ("Unary", (text(900, "tagged"),), {"metadata": (("x-twice", "a"), ("x-twice", "b"), ("x-tag", "v" * 300))}),
        *(("Unary", (text(size, f"z{size}"),), {"gzip": True}) for size in (50, 3000, 1024 * 1024)),
        ("Collect", tuple(text(size, f"c{size}") for size in (1, 0, 300, 5)), {}),
        ("Collect", tuple(text(size, f"d{size}") for size in (70_000, 1, 40_000)), {}),
        ("Produce", ("3 100",), {}),
        ("Produce", ("23 1000",), {}),
        ("Produce", ("2 1048576",), {}),
        ("Produce", ("3 2000",), {"gzip": True}),
        ("Chat", tuple(text(size, f"t{size}") for size in (1, 17, 400, 0, 3)), {}),
        ("Chat", tuple(text(size, f"s{size}") for size in (30_000, 2, 50_000)), {"gzip": True}),
        ("Fail", ("5 nothing of that name",), {}),
        ("Fail", ("3 100% w\u00e9ird: caf\u00e9",), {}),
        ("FailLate", ("8 too much",), {}),
        ("Nope", ("?",), {}),
        ("Wait", ("w",), {"deadline_ms": 300}),
        ("Silent", ("s",), {"deadline_ms": 300}),
        ("Wait", ("c",), {"cancel_after": 1}),
        ("Chat", ("before", "the end"), {"cancel_after": 2}),
        ("Unary", (text(60, "last"),), {}),
    ]
    return [Call(f"{name}-{number}", method, send, **more) for number, (method, send, more) in enumerate(calls)]


def many(name: str, count: int) -> list[Call]:
    """Small calls of the four kinds, for as many at a time."""
    calls = []
    for number in range(count):
        seed = f"{name}-{number}"
        small, larger = pattern(number % 50, seed).decode(), pattern(3000, seed).decode()
        method, send = (
            ("Unary", (small,)),
            ("Collect", (small, larger, small)),
            ("Produce", (f"{number % 7} 700",)),
            ("Chat", (larger, small)),
        )[number % 4]
        calls.append(Call(seed, method, send))
    return calls


def write_plan(directory: Path, calls: Sequence[Call]) -> Path:
    path = directory / "calls.json"
    names = ("id", "method", "send", "gzip", "deadline_ms", "cancel_after", "metadata")
    path.write_text(json.dumps([{name: getattr(call, name) for name in names} for call in calls]))
    return path


def go_binary() -> Path:
    return go_programs.build(go_programs.CHOSEN[-1], "plain", "../grpc_go")


def python_command(kind: str, *args: str | Path) -> list[str | Path]:
    assert kind != "debian" or DEBIAN_GRPC.is_dir(), (
        "python3-grpcio is not installed; `make test` installs what the tests start"
    )
    return [PYTHONS[kind], SCRIPTS / "grpc_python.py", *args]


def server(
    kind: str, directory: Path, port: int, certificates: Certificates | None, agent_pid: int | None
) -> AbstractContextManager[Program]:
    """``python``, ``debian`` or ``go``; over TLS (the last two), and with an agent: probed."""
    address = ("127.0.0.1", port)
    if kind in PYTHONS:
        args = python_command(kind, "server", str(port))
        args += [] if certificates is None else [certificates.certificate, certificates.key]
        return Program(args, directory, name="server", address=address)
    args = [go_binary(), "server", "-listen", f"127.0.0.1:{port}"]
    if certificates is None:
        return Program(args, directory, name="server", address=address)
    args += ["-certificate", certificates.certificate, "-key", certificates.key]
    program = Program(args, directory, name="server", address=address)
    return program if agent_pid is None else probed(program, agent_pid)


def client_command(
    kind: str, path: Path, port: int, certificates: Certificates | None, *, streams: int = 1, before: int = 0
) -> list[str | Path]:
    if kind in PYTHONS:
        args = python_command(kind, "client", f"127.0.0.1:{port}", path, str(streams), str(before))
        return args if certificates is None else [*args, certificates.ca]
    args = [go_binary(), "client", "-connect", f"127.0.0.1:{port}", "-plan", path]
    args += ["-streams", str(streams), "-before", str(before)]
    return args if certificates is None else [*args, "-ca", certificates.ca]


@dataclass(frozen=True, slots=True)
class Told:
    """One call as one end saw it."""

    sent: list[int]
    received: list[int]
    code: int
    message: str
    sent_wire: list[int] | None = None
    """Sizes as they were sent, compressed or not; None where the program does not say."""
    received_wire: list[int] | None = None
    tls: dict[str, Any] = field(default_factory=dict)


def told(text: str) -> dict[str, Told]:
    """Calls by their number."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        entry = json.loads(line)
        name = entry["id"]
        assert name not in found, f"call {name} twice"
        tls = {key: entry[key] for key in ("version", "cipher", "sni", "alpn") if key in entry}
        wire = (entry.get("sent_wire"), entry.get("received_wire"))
        found[name] = Told(entry["sent"], entry["received"], entry["code"], entry["message"], *wire, tls)
    return found


def assert_told(calls: Sequence[Call], at_client: dict[str, Told], at_server: dict[str, Told]) -> None:
    """Both programs saw the plan, before the agent is looked at."""
    names = [call.id for call in calls]
    assert sorted(at_client) == sorted(at_server) == sorted(names)
    for call in calls:
        here, there = at_client[call.id], at_server[call.id]
        replies = [len(message) for message in call.replies()]
        assert here.sent == there.received == [len(message.encode()) for message in call.send], call
        assert here.received == there.sent == replies, call
        if call.given_up:
            # Where the deadline reaches the server first, it may say that its work was cancelled.
            assert here.code in ((DEADLINE_EXCEEDED, CANCELLED) if call.deadline_ms else (CANCELLED,)), call
        else:
            assert (here.code, here.message) == (there.code, there.message) == call.status(), call


def wire_sizes(*tellings: list[int] | None) -> list[int] | None:
    known = [sizes for sizes in tellings if sizes is not None]
    assert all(sizes == known[0] for sizes in known), f"the programs disagree: {known}"
    return known[0] if known else None


def data_of(record: Record) -> bytes:
    """What was kept of the body, as it was on the stream."""
    body: str = record.get("body", "")
    return base64.b64decode(body, validate=True) if "body_encoding" in record else body.encode()


def unframed(data: bytes) -> list[bytes]:
    """The messages of a body, decompressed; of the last one, which may be cut, what is there of it, if it is not compressed."""
    found = []
    while data:
        length = int.from_bytes(data[1:PREFIX_BYTES], "big")
        message, rest = data[PREFIX_BYTES : PREFIX_BYTES + length], data[PREFIX_BYTES + length :]
        assert data[0] in (0, 1), f"the flag of a message is {data[0]}"
        if len(data) < PREFIX_BYTES or (data[0] and len(message) < length):
            break
        found.append(gzip.decompress(message) if data[0] else message)
        data = rest
    return found


def assert_messages(record: Record, messages: Sequence[bytes], sizes: list[int] | None) -> None:
    """``messages`` as the program had them, ``sizes`` as they were sent, where some program says."""
    facts = record["grpc"]
    assert facts["messages"] == len(messages), f"{facts} of {len(messages)} messages: {brief(record)}"
    assert record["body_bytes"] == facts["message_bytes"] + PREFIX_BYTES * facts["messages"], brief(record)
    if sizes is not None:
        assert facts["message_bytes"] == sum(sizes), f"{facts}, not {sizes}: {brief(record)}"
    data = data_of(record)
    if messages:
        assert record["body_encoding"] == "base64", brief(record)
    is_encoded = header(record, "grpc-encoding") is not None
    if not is_encoded:
        assert len(data) == min(record["body_bytes"], BODY_LIMIT_BYTES), brief(record)
    elif record["completeness"] in ("complete", "truncated"):  # the messages have been uncompressed
        size = sum(PREFIX_BYTES + len(message) for message in messages)
        is_cut = max(size, record["body_bytes"]) > BODY_LIMIT_BYTES
        assert (record["completeness"] == "truncated") is is_cut, f"{size} bytes: {brief(record)}"
    seen = unframed(data)
    if record["body_bytes"] <= BODY_LIMIT_BYTES and not (is_encoded and record["completeness"] == "truncated"):
        assert seen == list(messages), f"another's messages: {brief(record)}"
        if not is_encoded:
            assert facts["message_bytes"] == sum(map(len, messages)), brief(record)
    else:
        for mine, whole in zip(seen, messages, strict=False):
            assert whole.startswith(mine), f"another's messages: {brief(record)}"


def assert_request(record: Record, call: Call, sizes: list[int] | None) -> None:
    validate_record(record)
    assert (record["method"], record["url"]) == ("POST", f"/{SERVICE}/{call.method}")
    assert record["headers"]["content-type"].startswith("application/grpc")
    assert record["headers"]["te"] == "trailers"
    assert (record["headers"].get("grpc-encoding") == "gzip") == call.gzip, brief(record)
    for name, value in call.metadata:
        values = [v for n, v in call.metadata if n == name]
        assert record["headers"][name] == (values if len(values) > 1 else value)
    assert {**record["grpc"], "messages": 0, "message_bytes": 0} == {
        "service": SERVICE, "method": call.method, "messages": 0, "message_bytes": 0,
    }, brief(record)  # fmt: skip
    assert_messages(record, [message.encode() for message in call.send], sizes)
    cut = call.method == "Chat" and call.cancel_after  # before the client had said that this was all
    whole = "truncated" if record["body_bytes"] > BODY_LIMIT_BYTES else "complete"
    assert record["completeness"] == ("partial" if cut else whole), brief(record)


def assert_response(record: Record, call: Call, sizes: list[int] | None) -> None:
    validate_record(record)
    assert record["status_code"] == 200
    assert record["headers"]["content-type"].startswith("application/grpc")
    facts = record["grpc"]
    assert (facts["service"], facts["method"]) == (SERVICE, call.method), brief(record)
    status = (facts.get("status"), facts.get("message", ""))
    if call.given_up and record["completeness"] == "partial":
        assert status == (None, ""), f"a status that nobody sent: {brief(record)}"
    elif call.given_up:
        assert call.deadline_ms and status[0] in (DEADLINE_EXCEEDED, CANCELLED), f"{facts}: {brief(record)}"
    else:
        if header(record, "grpc-encoding") is None:  # else see assert_messages
            whole = "truncated" if record["body_bytes"] > BODY_LIMIT_BYTES else "complete"
            assert record["completeness"] == whole, brief(record)
        assert status == call.status(), f"{facts}: {brief(record)}"
        where = record if "grpc-status" in record["headers"] else {"headers": record["trailers"]}
        assert where["headers"]["grpc-status"] == str(status[0]), brief(record)
    if call.method not in ("Fail", "Silent", "Nope"):
        assert record["headers"]["x-call"] == call.id, f"another's response: {brief(record)}"
    assert_messages(record, call.replies(), sizes)


def assert_calls(
    records: Sequence[Record],
    role: Role,
    pid: int,
    calls: Sequence[Call],
    at_client: dict[str, Told],
    at_server: dict[str, Told],
) -> dict[str, list[Record]]:
    """The records of one side are these calls, nothing missing, nothing extra: the two of each by its number.

    A call that is given up has a response where the server has begun one.
    """
    mine = [record for record in records if record["role"] == role]
    assert {record["pid"] for record in mine} == {pid}
    requests: dict[str, Record] = {}
    for record in mine:
        if is_request(record):
            name = record["headers"]["x-call"]
            assert name not in requests, f"{role}: call {name} twice"
            requests[name] = record
    assert sorted(requests) == sorted(call.id for call in calls), f"{role}: calls missing, or extra"
    responses: dict[str, list[Record]] = {}
    for record in mine:
        if not is_request(record):
            responses.setdefault(record["exchange"], []).append(record)
    found = {}
    for call in calls:
        request = requests[call.id]
        here, there = at_client[call.id], at_server[call.id]
        assert_request(request, call, wire_sizes(here.sent_wire, there.received_wire))
        answers = responses.pop(request["exchange"], [])
        assert len(answers) == 1 or (call.method == "Silent" and not answers), f"{role}: {len(answers)} of {call.id}"
        for answer in answers:
            assert answer["connection"] == request["connection"]
            assert_response(answer, call, wire_sizes(here.received_wire, there.sent_wire))
        found[call.id] = [request, *answers]
    assert not responses, f"{role}: responses of no call: {[brief(r) for group in responses.values() for r in group]}"
    return found
