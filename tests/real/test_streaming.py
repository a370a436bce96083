"""Messages that take longer than ``--stream-interval``: one record when that is over, with what there is; and the whole one at the end."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.real.harness.agent import Agent, port_filters
from tests.real.harness.checks import (
    BODY_LIMIT_BYTES,
    KEY_ORDER,
    Record,
    Role,
    assert_equal_to_truth,
    assert_hops,
    assert_only,
    brief,
    is_request,
    validate_record,
)
from tests.real.harness.programs import PYTHON, SCRIPTS, Program, free_port, require, wait_until
from tests.real.harness.servers import go_server
from tests.real.harness.tls import NAME, make_certificates, messages
from tests.real.harness.truth import Truth, pattern, target_of
from tests.real.programs.streaming_server import events

pytestmark = pytest.mark.real

STREAM_INTERVAL = 2.0
LATE_SECONDS = 1.5
"""What an interim record may come later than that, on a machine that is busy."""
COUNT, INTERVAL_MS = 17, 500
"""Eight seconds: four intervals, of which only the first gives a record."""
ROLES: tuple[Role, ...] = ("client", "server")
CURL_TIMED_OUT = 28
TIMES = {"ttfb_ms", "duration_ms"}
FEWEST, MOST = 2, 9
"""Pieces in an interim record: those of the first second have come, those behind the fourth have not."""
SMALL_BYTES, LARGE_BYTES = 40, 400
"""Of an event; all the large ones together are more than the agent keeps."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One exchange that takes its time: its slow message carries ``pieces``, each of which is sent as a whole."""

    url: str
    pieces: list[bytes]
    is_request: bool = False

    @property
    def slow(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def target(self) -> str:
        return target_of(self.url)

    @property
    def truth(self) -> Truth:
        if self.is_request:
            return Truth("POST", self.target, 200, 0, len(self.slow))
        return Truth("GET", self.target, 200, len(self.slow), 0, self.slow[:BODY_LIMIT_BYTES].decode("ascii"))


GO_EVENTS = [b'id: %d\nevent: tick\ndata: {"tick":%d}\n\n' % (n, n) for n in range(1, COUNT + 1)]
SMALL_EVENTS, LARGE_EVENTS = (list(events(COUNT, 0, size)) for size in (SMALL_BYTES, LARGE_BYTES))
LINES = [pattern(60 + 7 * n, f"line-{n}").replace(b"\n", b" ") + b"\n" for n in range(COUNT - 1)] + [b"end\n"]


def grow(path: Path) -> None:
    """As a program writes its log: sometimes a line in two writes."""
    with path.open("ab", buffering=0) as log:
        for number, line in enumerate(LINES):
            cut = len(line) // 2 if number % 3 == 2 else len(line)
            log.write(line[:cut])
            time.sleep(INTERVAL_MS / 1000)
            if cut < len(line):
                log.write(line[cut:])


def upload(client: subprocess.Popen[bytes]) -> None:
    assert client.stdin is not None
    with contextlib.suppress(OSError, ValueError):  # the test has failed and closed it
        for piece in events(COUNT, INTERVAL_MS, LARGE_BYTES):
            client.stdin.write(piece)
            client.stdin.flush()
        client.stdin.close()


@contextlib.contextmanager
def curl(stream: Stream, directory: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """It writes what it gets as it comes; an upload is what comes from its standard input, by chunks."""
    [binary] = require("curl")
    args = [binary, "-sS", "-N", "--http1.1", *more]
    if stream.is_request:
        args += ["-X", "POST", "-T", "-", "-H", "Expect:"]
    stdin = subprocess.PIPE if stream.is_request else subprocess.DEVNULL
    with subprocess.Popen([*args, stream.url], cwd=directory, stdin=stdin, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()  # does nothing when it has ended


def server(directory: Path, port: int, name: str, *files: Path) -> Program:
    return Program(
        [PYTHON, SCRIPTS / "streaming_server.py", str(port), directory, *files],
        directory,
        name=name,
        address=("127.0.0.1", port),
    )


def slow_records(records: Sequence[Record], stream: Stream, role: Role) -> list[Record]:
    """Of the stream's slow message, in the order of the log."""
    names = {r["exchange"] for r in records if r["role"] == role and r.get("url") == stream.target}
    assert len(names) == 1, f"{role}: {stream.target} has the exchanges {names}"
    return [r for r in records if r["exchange"] in names and is_request(r) == stream.is_request]


def assert_interim(record: Record, stream: Stream) -> None:
    """What had come by then: whole pieces, and no more than can have come."""
    assert record["completeness"] == "open", brief(record)
    assert not TIMES & record.keys(), f"times of an exchange that is not over: {brief(record)}"
    timed = record | (dict.fromkeys(TIMES, 0) if "status_code" in record else {})
    validate_record({key: timed[key] for key in KEY_ORDER if key in timed})
    sizes = [sum(map(len, stream.pieces[:count])) for count in range(FEWEST, MOST + 1)]
    assert record["body_bytes"] in sizes, f"{record['body_bytes']} is not one of {sizes}: {brief(record)}"
    assert record["body"].encode() == stream.slow[: record["body_bytes"]], f"{record['body']!r} of {stream.target}"


def assert_interim_and_final(records: Sequence[Record], stream: Stream, role: Role) -> Record:
    """Two records, of one message: the later one has all that the earlier one had. Returns the later one."""
    found = slow_records(records, stream, role)
    assert len(found) == 2, f"{role}: {[brief(r) for r in found]}"
    interim, final = found
    assert_interim(interim, stream)
    assert list(interim) == [key for key in final if key not in TIMES]
    later = ("bytes", "body", "body_bytes", "raw_payload", "completeness")
    differ = [key for key in interim if key not in later and interim[key] != final[key]]
    assert not differ, f"{differ} differ between {brief(interim)} and {brief(final)}"
    assert final["bytes"] > interim["bytes"]
    assert final["raw_payload"].startswith(interim["raw_payload"])
    return final


def test_streams_of_eight_seconds(directory: Path, go_server_binary: Path) -> None:
    """Server-sent events of Go and of Python, by chunks, until the end of the connection, and over TLS; a log that is followed; an upload."""
    (directory / "certificates").mkdir()
    certificates = make_certificates(directory / "certificates")
    go, plain, tls = (free_port() for _ in range(3))
    small, large = (f"{COUNT}/{INTERVAL_MS}/{size}" for size in (SMALL_BYTES, LARGE_BYTES))
    streams = [
        Stream(f"http://127.0.0.1:{go}/events?n={COUNT}&interval_ms={INTERVAL_MS}", GO_EVENTS),
        Stream(f"http://127.0.0.1:{plain}/events/{large}", LARGE_EVENTS),
        Stream(f"http://127.0.0.1:{plain}/close/{small}", SMALL_EVENTS),
        Stream(f"http://127.0.0.1:{plain}/tail/growing.log", LINES),
        Stream(f"http://127.0.0.1:{plain}/upload", LARGE_EVENTS, is_request=True),
        Stream(f"https://{NAME}:{tls}/events/{small}", SMALL_EVENTS),
        Stream(f"https://{NAME}:{tls}/tail/growing.log?tls", LINES),
    ]
    growing = directory / "growing.log"
    growing.touch()
    with (
        Agent(directory, *port_filters(go, plain, tls), "--stream-interval", f"{STREAM_INTERVAL:g}") as agent,
        go_server(directory, go, go_server_binary),
        server(directory, plain, "plain") as at_plain,
        server(directory, tls, "tls", certificates.certificate, certificates.key) as at_tls,
        contextlib.ExitStack() as stack,
    ):
        began = time.monotonic()
        clients = [stack.enter_context(curl(s, directory, "--cacert", str(certificates.ca))) for s in streams]
        writers = [threading.Thread(target=grow, args=(growing,))]
        writers += [
            threading.Thread(target=upload, args=(client,))
            for stream, client in zip(streams, clients, strict=True)
            if stream.is_request
        ]
        for writer in writers:
            writer.start()

        time.sleep(STREAM_INTERVAL - 0.3)
        assert not [r for r in agent.log() if r["completeness"] == "open"], "an interim record before its time"
        wait_until(
            lambda: sum(r["completeness"] == "open" for r in agent.log()) >= 2 * len(streams),
            "the interim records of all streams, at both ends",
            began + STREAM_INTERVAL + LATE_SECONDS - time.monotonic(),
        )
        meanwhile = agent.log()
        for stream in streams:
            for role in ROLES:
                [interim] = slow_records(meanwhile, stream, role)
                assert_interim(interim, stream)
        for writer in writers:
            writer.join()
        outputs = [client.stdout.read() for client in clients if client.stdout is not None]
        assert [client.wait(20) for client in clients] == [0] * len(clients)
        told = [*at_plain.truth(4), *at_tls.truth(2)]
        agent.wait_for_records(2 * 3 * len(streams))

    assert outputs == [b"" if stream.is_request else stream.slow for stream in streams]
    assert sorted((t.target, t.response_bytes, t.request_bytes) for t in told) == sorted(
        (s.target, s.truth.response_bytes, s.truth.request_bytes) for s in streams[1:]
    )
    whole = [r for r in agent.records if r["completeness"] != "open"]
    truth = [stream.truth for stream in streams]
    at_client = assert_equal_to_truth(whole, truth, "client", pids={client.pid for client in clients})
    at_server = assert_equal_to_truth(whole, truth, "server")
    assert_only(whole, at_client, at_server)
    assert_hops(messages(at_client), messages(at_server))
    assert len(agent.records) == 2 * 3 * len(streams)
    for stream in streams:
        for role in ROLES:
            final = assert_interim_and_final(agent.records, stream, role)
            assert final["body"].encode() == stream.slow[:BODY_LIMIT_BYTES]
            if not stream.is_request:
                assert final["duration_ms"] >= (COUNT - 1) * INTERVAL_MS - 100 > final["ttfb_ms"]


def test_a_stream_that_its_client_leaves(directory: Path) -> None:
    """The final record has what came until then, and says that it is not all."""
    port = free_port()
    stream = Stream(f"http://127.0.0.1:{port}/events/{COUNT}/{INTERVAL_MS}/{SMALL_BYTES}", SMALL_EVENTS)
    with (
        Agent(
            directory, *port_filters(port), "--stream-interval", f"{STREAM_INTERVAL:g}", allowed_rows={"partial"}
        ) as agent,
        server(directory, port, "plain"),
        curl(stream, directory, "--max-time", f"{STREAM_INTERVAL + 1.2:g}") as client,
    ):
        assert client.stdout is not None
        output = client.stdout.read()
        assert client.wait(20) == CURL_TIMED_OUT
        agent.wait_for_records(6)
    assert len(agent.records) == 6, [brief(r) for r in agent.records]
    at_client, at_server = (assert_interim_and_final(agent.records, stream, role) for role in ROLES)
    assert at_client["completeness"] == at_server["completeness"] == "partial"
    assert at_client["body"].encode() == output == stream.slow[: len(output)]
    assert at_client["body_bytes"] == len(output)
    # The server may have sent one event more, which found nobody.
    assert at_server["body"].encode() in (output, stream.slow[: len(output) + SMALL_BYTES])
    assert at_server["body_bytes"] == len(at_server["body"])
