"""Exchanges that are added up in the kernel (bpf/tally.h): the same numbers, of the same traffic, as from an agent that parses
each message; written down by hand for what is simple, made up at random for the rest.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.harness import Agent, check_ledger, running, wait_until
from tests.real.harness.programs import free_port
from tests.real.harness.tls import make_certificates

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

CLIENT, SERVER = "client", "server"
SETTLE_SECONDS = 10.0
READ_SECONDS = 0.5
"""Twice what the agent takes to ask the kernel side."""
RANDOM_CONNECTIONS = 150
SEED = 20_261_121

Step = tuple[str, bytes]
"""Who sends what, in one call."""


@dataclass
class Counting:
    """The agent that adds up in the kernel, and the one that parses."""

    tallying: Agent
    parsing: Agent
    ports: dict[Agent, int]
    certificate: Path
    key: Path

    def numbers(self, agent: Agent) -> dict[str, float]:
        """What it counts, but for how long it took: sample with its labels → value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[agent]}/metrics", timeout=10) as response:
            text = response.read().decode()
        wanted = re.compile(
            r"(http_\w+_count|http_\w+_size_bytes_sum|netprofiler_(?:requests_unanswered|responses_unpaired)_total)"
            r"\{(.*)\} (\S+)"
        )
        found = {}
        for line in text.splitlines():
            if match := wanted.fullmatch(line):
                found[f"{match[1]}{{{match[2]}}}"] = float(match[3])
        return found

    def tallied_bytes(self) -> int:
        """By the ledger, at which the agent looks once a second."""
        time.sleep(1.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[self.tallying]}/metrics", timeout=10) as response:
            [value] = re.findall(rb'netprofiler_ledger_bytes_total\{row="tallied"\} (\S+)', response.read())
        return int(float(value))

    def agree(self) -> dict[str, float]:
        """The numbers of both, once they are equal, and what was said last is among them."""
        time.sleep(READ_SECONDS)
        wait_until(lambda: self.numbers(self.tallying) == self.numbers(self.parsing), SETTLE_SECONDS, 0.2)
        tallied, parsed = self.numbers(self.tallying), self.numbers(self.parsing)
        differ = {
            key: (tallied.get(key), parsed.get(key))
            for key in tallied.keys() | parsed.keys()
            if tallied.get(key) != parsed.get(key)
        }
        assert differ == {}, "(tallied, parsed)"
        return tallied


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counting]:
    directory = tmp_path_factory.mktemp("tally")
    certificates = make_certificates(directory)
    with ExitStack() as stack:
        agents, ports = [], {}
        own = [free_port(), free_port()]
        unwatched = ["--exclude-port", str(own[0]), "--exclude-port", str(own[1])]
        for name, port, output in (
            ("tallying", own[0], ["--no-output"]),
            ("parsing", own[1], ["--output", str(directory / "parsed.log")]),
        ):
            options = ["--pid", str(os.getpid()), *unwatched, "--metrics-address", f"127.0.0.1:{port}", *output]
            ledger = directory / name / "ledger.json"
            agent = stack.enter_context(running(directory / name, *options, "--ledger", str(ledger), own_output=False))
            agents.append(agent)
            ports[agent] = port
        yield Counting(agents[0], agents[1], ports, certificates.certificate, certificates.key)
        for agent in agents:
            assert agent.end() == 0, agent.stderr()
            assert "Traceback" not in agent.stderr(), agent.stderr()
        # What is no HTTP after all, and what was cut short, is in rows of its own.
        check_ledger(agents[0].ledger(), lossless=False)
        assert agents[0].ledger()["bytes"]["rows"]["lost"] == 0


class Talk:
    """A connection of which each call is ours to make: one sends, the other receives all of it."""

    def __init__(self, counting: Counting | None = None, family: int = socket.AF_INET) -> None:
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        with socket.create_server((host, 0), family=family) as listener:
            self.port = listener.getsockname()[1]
            client = socket.create_connection((host, self.port))
            server, _ = listener.accept()
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            each.settimeout(10)
        self.ends: dict[str, socket.socket] = {CLIENT: client, SERVER: server}
        if counting is not None:
            self._speak_tls(counting)

    def _speak_tls(self, counting: Counting) -> None:
        inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        inside.load_cert_chain(counting.certificate, counting.key)
        outside = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        outside.check_hostname = False
        outside.verify_mode = ssl.CERT_NONE
        made: list[ssl.SSLSocket] = []
        thread = threading.Thread(
            target=lambda: made.append(inside.wrap_socket(self.ends[SERVER], server_side=True)), daemon=True
        )
        thread.start()
        self.ends[CLIENT] = outside.wrap_socket(self.ends[CLIENT])
        thread.join(10)
        [self.ends[SERVER]] = made

    def say(self, who: str, *pieces: bytes, together: bool = False) -> None:
        """Each piece in a call of its own; `together`: received when all are there."""
        left = 0
        for piece in pieces:
            self.ends[who].sendall(piece)
            left += len(piece)
            if not together:
                self.hear(who, left)
                left = 0
        self.hear(who, left)

    def hear(self, who: str, size: int) -> None:
        """What `who` has said, at the other end."""
        other = self.ends[SERVER if who == CLIENT else CLIENT]
        while size:
            got = other.recv(size)
            assert got
            size -= len(got)

    def ask(self, *pieces: bytes) -> None:
        self.say(CLIENT, *pieces)

    def answer(self, *pieces: bytes) -> None:
        self.say(SERVER, *pieces)

    def close(self) -> None:
        for end in self.ends.values():
            end.close()


def request(
    path: str, *, method: str = "GET", body: bytes = b"", fields: Sequence[str] = (), version: str = "1.1"
) -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: example.test", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def response(status: int = 200, body: bytes = b"hello", fields: Sequence[str] = ()) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", "Content-Type: text/plain", *fields, f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def chunked(*chunks: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def split(text: bytes, *at: int) -> list[bytes]:
    ends = [*at, len(text)]
    return [text[start:end] for start, end in zip([0, *at], ends, strict=True)]


def counts(numbers: dict[str, float], side: str, route: str) -> dict[str, float]:
    """Status → exchanges of a route at one end."""
    found: dict[str, float] = {}
    for key, value in numbers.items():
        if key.startswith(f"http_{side}_request_duration_seconds_count{{") and f'http_route="{route}"' in key:
            [status] = re.findall(r'http_response_status_code="(\w*)"', key)
            found[status] = found.get(status, 0) + value
    return found


@pytest.mark.parametrize("speaks", ["plaintext", "IPv6", "tls"])
def test_simple_exchanges_never_leave_the_kernel(counting: Counting, speaks: str) -> None:
    before = counting.tallied_bytes()
    talk = Talk(counting if speaks == "tls" else None, socket.AF_INET6 if speaks == "IPv6" else socket.AF_INET)
    size = 0
    for number in range(23):
        body = b"x" * number
        asked = request(
            f"/simple-{speaks}?number={number}", method="POST" if number % 3 == 2 else "GET", body=body[:-1]
        )
        status = 503 if number % 5 == 4 else 200
        answered = response(status, body)
        talk.ask(asked)
        talk.answer(answered)
        size += len(asked) + len(answered)
    talk.close()
    numbers = counting.agree()
    for side in (CLIENT, SERVER):
        assert counts(numbers, side, f"/simple-{speaks}") == {"200": 19, "503": 4}
    assert counting.tallied_bytes() - before == 2 * size


def test_heads_and_bodies_in_several_calls_and_bodies_without_bytes_are_added_up_too(
    counting: Counting, tmp_path: Path
) -> None:
    before = counting.tallied_bytes()
    talk = Talk()
    size = 0

    def exchange(asked: Sequence[bytes], answered: Sequence[bytes]) -> None:
        nonlocal size
        talk.ask(*asked)
        talk.answer(*answered)
        size += sum(map(len, (*asked, *answered)))

    for pieces in ([], [1], [3], [20], [1, 2, len(request("/pieces")) - 1]):  # Go reads ahead one byte
        exchange(split(request("/pieces"), *pieces), [response()])
    exchange(split(request("/pieces", method="POST", body=b"b" * 500), 100, 300), [response(201)])
    exchange([request("/pieces")], split(response(200, b"c" * 100_000), len(response()) + 3, 40_000))
    exchange([request("/pieces", method="HEAD")], [b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"])
    exchange([request("/pieces")], [b"HTTP/1.1 204 No Content\r\n\r\n"])
    exchange([request("/pieces")], [b"HTTP/1.1 304 Not Modified\r\ncontent-LENGTH:   77\r\n\r\n"])
    exchange([request("/pieces")], [response(200, b"")])
    # In two segments of one call; and a body that goes from a file.
    for asked, head, body in ((request("/pieces"), response(200, b"d" * 50)[:-50], b"d" * 50),):
        talk.ask(asked)
        talk.ends[SERVER].sendmsg([head, body])
        talk.hear(SERVER, len(head + body))
        size += len(asked + head + body)
    (tmp_path / "file").write_bytes(b"f" * 30_000)
    head = response(200, b"f" * 30_000)[:-30_000]
    talk.ask(request("/pieces"))
    talk.answer(head)
    with (tmp_path / "file").open("rb") as file:
        talk.ends[SERVER].sendfile(file)
    talk.hear(SERVER, 30_000)
    size += len(request("/pieces")) + len(head) + 30_000
    talk.close()
    numbers = counting.agree()
    for side in (CLIENT, SERVER):
        assert counts(numbers, side, "/pieces") == {"200": 10, "201": 1, "204": 1, "304": 1}
    assert counting.tallied_bytes() - before == 2 * size


SIMPLE = ((CLIENT, request("/odd")), (SERVER, response()))
LONG = "n" * 3000
ODD: dict[str, Sequence[Step]] = {
    "chunked": ((CLIENT, request("/odd")), (SERVER, chunked(b"one", b"two" * 100))),
    "chunked-in-calls": ((CLIENT, request("/odd")), *((SERVER, piece) for piece in split(chunked(b"a" * 99), 60, 90, 150))),
    "continue": (
        (CLIENT, request("/odd", method="POST", body=b"q" * 9, fields=["Expect: 100-continue"])[:-9]),
        (SERVER, b"HTTP/1.1 100 Continue\r\n\r\n"),
        (CLIENT, b"q" * 9),
        (SERVER, response()),
    ),
    "early-hints": ((CLIENT, request("/odd")), (SERVER, b"HTTP/1.1 103 Early Hints\r\n\r\n"), (SERVER, response())),
    "pipelined": ((CLIENT, request("/odd") * 3), (SERVER, response() * 3)),
    "pipelined-in-calls": (*((CLIENT, request("/odd")),) * 3, *((SERVER, response()),) * 3),
    "long-line": ((CLIENT, request("/odd?" + LONG)), (SERVER, response())),
    "long-path": ((CLIENT, request("/odd/" + LONG)), (SERVER, response(404))),
    "long-head": ((CLIENT, request("/odd", fields=["X-Long: " + LONG])), (SERVER, response())),
    "long-answer": ((CLIENT, request("/odd")), (SERVER, response(fields=["X-Long: " + LONG]))),
    "large-request": ((CLIENT, request("/odd", method="PUT", body=b"z" * 20_000)), (SERVER, response())),
    "late-body": (
        *((CLIENT, piece) for piece in split(request("/odd", method="PUT", body=b"y" * 2000), 70)),
        (SERVER, response()),
    ),
    "absolute": ((CLIENT, request("http://other.test:81/odd")), (SERVER, response())),
    "two-lengths": ((CLIENT, request("/odd", method="POST", body=b"12", fields=["Content-Length: 2"])), (SERVER, response())),
    "blank-before-colon": ((CLIENT, request("/odd")), (SERVER, b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello")),
    "folded": ((CLIENT, request("/odd", fields=["X-Folded: 1", " Content-Length: 3"])), (SERVER, response())),
    "line-feeds": ((CLIENT, request("/odd").replace(b"\r\n", b"\n")), (SERVER, response())),
    "both-framings": ((CLIENT, request("/odd")), (SERVER, chunked(b"a").replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n", 1))),
    "strange-method": ((CLIENT, request("/odd", method="PROPFIND")), (SERVER, response(207))),
    "star": ((CLIENT, request("*", method="OPTIONS")), (SERVER, response())),
    "http-1.0": ((CLIENT, request("/odd", version="1.0")), (SERVER, response(fields=["Connection: keep-alive"]))),
    "half-an-upload": (
        (CLIENT, request("/odd", method="POST", body=b"u" * 900)[:-400]),
        (SERVER, response(413)),
        (CLIENT, b"u" * 400),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_what_is_not_simple_is_parsed_and_counted_once_with_simple_exchanges_before_and_behind(
    counting: Counting, kind: str
) -> None:
    before = sum(counts(counting.agree(), SERVER, "/odd").values())
    talk = Talk()
    for steps in (SIMPLE, SIMPLE, ODD[kind], ODD[kind], SIMPLE, SIMPLE):
        for who, turn in itertools.groupby(steps, key=lambda step: step[0]):
            # What one end says in several calls is there before the other listens.
            talk.say(who, *(text for _, text in turn), together=True)
        time.sleep(0.1)  # by now it may have been given back
    talk.close()
    numbers = counting.agree()
    if kind not in {"two-lengths", "blank-before-colon", "both-framings", "folded", "star", "long-path"}:
        extra = {"pipelined": 6, "pipelined-in-calls": 6}.get(kind, 2)
        assert sum(counts(numbers, SERVER, "/odd").values()) - before == 4 + extra


def test_what_stays_open_is_counted_as_such(counting: Counting) -> None:
    """Unanswered; answered in part; in the middle of a head; until the end of the connection; an upgrade; a tunnel."""
    time.sleep(1.2)  # they are counted once a second
    before = {key: value for key, value in counting.agree().items() if "unanswered" in key}
    scripts: list[Sequence[Step]] = [
        [(CLIENT, request("/open"))],
        [(CLIENT, request("/open")), (SERVER, response(200, b"a" * 3000)[:-1000])],
        [(CLIENT, request("/open")), (SERVER, b"HTTP/1.1 200 OK\r\nContent-Le")],
        [(CLIENT, request("/open")[:-7])],
        [(CLIENT, request("/open")), (SERVER, b"HTTP/1.1 200 OK\r\n\r\nuntil the end")],
        [
            (CLIENT, request("/open", fields=["Connection: Upgrade", "Upgrade: other"])),
            (SERVER, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\nConnection: Upgrade\r\n\r\n"),
            (CLIENT, request("/open")),
            (SERVER, response()),
        ],
        [(CLIENT, request("example.test:443", method="CONNECT")), (SERVER, b"HTTP/1.1 200 OK\r\n\r\n"), (CLIENT, b"\x16\x03\x01what")],
        [(SERVER, response(408))],
    ]  # fmt: skip
    for script in scripts:
        firsts: tuple[Sequence[Step], ...] = ((), SIMPLE)
        for first in firsts:
            talk = Talk()
            for who, text in (*first, *script):
                talk.say(who, text)
            talk.close()
    time.sleep(1.2)
    numbers = counting.agree()
    unanswered = {key: value - before.get(key, 0) for key, value in numbers.items() if "unanswered" in key}
    assert len(unanswered) == 2
    assert set(unanswered.values()) == {4}, "no answer, and an answer without the end of its head; each twice"


def test_a_client_that_half_closes_and_one_that_is_reset(counting: Counting) -> None:
    talk = Talk()
    talk.ask(request("/half"))
    talk.ends[CLIENT].shutdown(socket.SHUT_WR)
    assert talk.ends[SERVER].recv(10) == b""
    talk.answer(response())
    talk.close()
    talk = Talk()
    talk.ask(request("/half"))
    talk.answer(response())
    talk.ask(request("/half"))
    talk.ends[SERVER].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    talk.ends[SERVER].close()
    with pytest.raises(ConnectionResetError):
        talk.ends[CLIENT].recv(10)
    talk.close()
    assert counts(counting.agree(), SERVER, "/half") == {"200": 2}


def make_up(choose: random.Random) -> tuple[bytes, bytes]:
    """A request and its response."""
    path = f"/random/{choose.choice('abc')}" + choose.choice(["", "?q=1", "?" + "w" * choose.randrange(300)])
    fields = [f"X-{number}: {'v' * choose.randrange(90)}" for number in range(choose.randrange(6))]
    fields += choose.choice([[], ["Accept: */*"], ["Host-Not: a"], ["Content-Type: text/html", "Transfers: none"]])
    body = b"r" * choose.choice([0, 0, 0, 5, 200, 2000])
    method = choose.choice(["GET", "GET", "HEAD", "POST", "DELETE"])
    asked = request(path, method=method, body=body, fields=fields)
    payload = b"s" * choose.choice([0, 3, 400, 5000, 40_000])
    answered = (
        chunked(payload) if payload and choose.random() < 0.2 else response(choose.choice([200, 404, 500]), payload)
    )
    if method == "HEAD":
        answered = answered[: answered.index(b"\r\n\r\n") + 4]
    return asked, answered


def cut(choose: random.Random, text: bytes) -> list[bytes]:
    return split(
        text, *sorted(choose.sample(range(1, len(text)), min(len(text) - 1, choose.choice([0, 0, 0, 1, 2, 5]))))
    )


def test_exchanges_at_random_in_calls_at_random_are_counted_as_the_parser_counts_them(counting: Counting) -> None:
    choose = random.Random(SEED)
    before = sum(value for name in "abc" for value in counts(counting.agree(), SERVER, f"/random/{name}").values())
    made = 0
    for number in range(RANDOM_CONNECTIONS):
        talk = Talk(counting if number % 3 == 2 else None)
        left = choose.randrange(1, 12)
        while left > 0:
            pipelined = min(left, choose.choice([1, 1, 1, 1, 2, 3]))
            left -= pipelined
            exchanges = [make_up(choose) for _ in range(pipelined)]
            asked, answered = (b"".join(texts) for texts in zip(*exchanges, strict=True))
            talk.say(CLIENT, *cut(choose, asked), together=len(asked) < 4000 and choose.random() < 0.3)
            talk.say(SERVER, *cut(choose, answered))
            made += pipelined
            if choose.random() < 0.1:
                time.sleep(0.06)  # long enough to be given back
        talk.close()
    numbers = counting.agree()
    found = sum(value for name in "abc" for value in counts(numbers, SERVER, f"/random/{name}").values())
    assert found - before == made


def test_over_its_budget_the_agent_logs_whole_exchanges_of_fewer_connections_and_counts_all(tmp_path: Path) -> None:
    """Both ends in this process: a connection is logged at both or at none, but for when the share has just changed."""
    port = free_port()
    with running(
        tmp_path, "--pid", str(os.getpid()), "--metrics-address", f"127.0.0.1:{port}", "--max-cpu", "2",
        "--exclude-port", str(port),
    ) as agent:  # fmt: skip
        exchanges = 0
        until = time.monotonic() + 12
        talks = [Talk() for _ in range(32)]
        while time.monotonic() < until:
            for number, talk in enumerate(talks):
                asked, answered = request("/budget"), response()
                if number % 8 == 7:
                    answered = chunked(b"parsed" * 20)
                talk.ask(asked)
                talk.answer(answered)
                exchanges += 1
            if exchanges % 640 == 0:  # others, with other shares
                for talk in talks[:4]:
                    talk.close()
                talks[:4] = [Talk() for _ in range(4)]
        for talk in talks:
            talk.close()
        time.sleep(READ_SECONDS)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert agent.end() == 0, agent.stderr()
        ledger = agent.ledger()
        check_ledger(ledger, lossless=False)
        records = agent.records()
    for side in (CLIENT, SERVER):
        counted = re.findall(rf"http_{side}_request_duration_seconds_count{{[^\n]*}} (\d+)\n", text)
        assert sum(map(int, counted)) == exchanges
    assert ledger["bytes"]["rows"]["lost"] == 0
    assert ledger["bytes"]["rows"]["budget"] > 0 and ledger["bytes"]["rows"]["tallied"] == 0
    assert ledger["records"]["rows"]["budget"] > 0, "chunked ones are parsed to be counted, and not logged"
    assert 0 < len(records) < 4 * exchanges * 0.9
    by_exchange: dict[str, list[str]] = {}
    for record in records:
        by_exchange.setdefault(record["exchange"], []).append(record["direction"])
    halves = [exchange for exchange, directions in by_exchange.items() if sorted(directions) != ["recv", "send"]]
    assert halves == []
