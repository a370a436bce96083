"""Start the agent and raw clients, and compare what the one says with what the others did.

Nothing here waits without a bound, and everything that is started is ended by its own pid.
"""

from __future__ import annotations

import calendar
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netprofiler.privileges import NEEDED

Record = dict[str, Any]

NETPROFILER = Path(sys.executable).with_name("netprofiler")
ACTORS = Path(__file__).with_name("actors.py")
BODY_LIMIT = 4096
USER = os.environ.get("NETPROFILER_TEST_USER")
"""As whom the agent is started, with the stated capabilities alone, ambient as systemd gives them; without it, as we are."""
READY_SECONDS = 60.0
"""Far over the promised two seconds: how long a start takes is asserted by one test alone."""
ARRIVAL_SECONDS = 15.0

KEYS = re.findall(
    r"\w+",
    """
    timestamp pid tid comm cmdline direction role source_ip source_port dest_ip dest_port unix_path
    bytes protocol method url status_code reason body body_encoding body_bytes headers trailers
    raw_payload tls grpc websocket connection exchange hop ttfb_ms duration_ms completeness
    missing_bytes missing_reason redacted source_container destination_container destination_type
    """,
)
"""In the order in which they stand in a line."""
ADDRESS_KEYS = {"source_ip", "source_port", "dest_ip", "dest_port"}
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")


def wait_until(condition: Callable[[], bool], seconds: float, step: float = 0.02) -> bool:
    """Whether the condition came true within the time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return condition()
        time.sleep(step)
    return True


def end_process(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(3)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None and not stream.closed:
            stream.close()


# ---- the agent ----


def give(path: Path) -> None:
    """To USER, who is to write there."""
    if USER is not None:
        shutil.chown(path, USER)


def as_user() -> list[str]:
    """What to put before a command line so that it runs as USER."""
    if USER is None:
        return []
    names = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in NEEDED)
    return [
        *("setpriv", f"--reuid={USER}", f"--regid={pwd.getpwnam(USER).pw_gid}", "--clear-groups"),
        *(f"--inh-caps=-all,{names}", f"--ambient-caps=-all,{names}", f"--bounding-set=-all,{names}"),
    ]


class Agent:
    """One run of netprofiler with its files in a directory of its own."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        verb: Sequence[str] = (),
        command: Sequence[str] = (),
        stdout: int | None = None,
        own_output: bool = True,
        environment: dict[str, str] | None = None,
        program: Sequence[str] = (str(NETPROFILER),),
        as_root: bool = False,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "http.log"
        self.ledger_path = directory / "ledger.json"
        self.stderr_path = directory / "stderr"
        give(directory)
        arguments = [*([] if as_root else as_user()), *program, *verb]
        if own_output:
            arguments += ["--output", str(self.log), "--ledger", str(self.ledger_path)]
        arguments += options
        if command:
            arguments += ["--", *command]
        self.arguments = arguments
        self.started = time.monotonic()
        self.ready_seconds = 0.0
        self._offset = 0
        self._records: list[Record] = []
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if stdout is None else stdout,
                stderr=stderr,
                env={**os.environ, **(environment or {})},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    def is_ready(self) -> bool:
        return any(line.startswith("ready") for line in self.stderr().splitlines())

    def wait_ready(self) -> Agent:
        wait_until(lambda: self.is_ready() or self.process.poll() is not None, READY_SECONDS, 0.01)
        assert self.is_ready(), f"{self.arguments} is not ready: {self.stderr()}"
        self.ready_seconds = time.monotonic() - self.started
        return self

    def records(self) -> list[Record]:
        """All whole lines written so far."""
        if self.log.exists():
            with self.log.open("rb") as log:
                log.seek(self._offset)
                data = log.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            self._records += [json.loads(line) for line in whole.splitlines()]
        return self._records

    def of(self, pids: Iterable[int]) -> list[Record]:
        wanted = set(pids)
        return [record for record in self.records() if record["pid"] in wanted]

    def wait_for(self, pids: Iterable[int], count: int, seconds: float = ARRIVAL_SECONDS) -> list[Record]:
        """Records of these processes, as soon as there are so many, or at the end of the time."""
        wanted = set(pids)
        wait_until(lambda: len(self.of(wanted)) >= count, seconds)
        return self.of(wanted)

    def end(self, number: int = signal.SIGINT, seconds: float = 10.0) -> int:
        """Signal, wait, exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)

    def ledger(self) -> dict[str, Any]:
        ledger: dict[str, Any] = json.loads(self.ledger_path.read_text())
        return ledger

    def kill(self) -> None:
        end_process(self.process)


@contextmanager
def running(directory: Path, *options: str, **more: Any) -> Iterator[Agent]:
    agent = Agent(directory, *options, **more)
    try:
        yield agent.wait_ready()
    finally:
        agent.kill()


def run_agent(*arguments: str, seconds: float = 20.0, **more: Any) -> tuple[int, str, str]:
    """A run that ends by itself: exit status, standard output, standard error."""
    done = subprocess.run(
        [*as_user(), str(NETPROFILER), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        **more,
    )
    return done.returncode, done.stdout, done.stderr


def check_ledger(ledger: dict[str, Any], bytes_at_least: int = 0, lossless: bool = True) -> None:
    """Rows sum to the totals exactly; nothing was lost."""
    for name in ("bytes", "calls", "records"):
        book = ledger[name]
        total = book["made"] if name == "records" else book["total"]
        assert sum(book["rows"].values()) == total, (name, book)
        assert all(value >= 0 for value in book["rows"].values()), (name, book)
        if lossless:
            for row in ("lost", "budget", "output_failed"):
                assert book["rows"].get(row, 0) == 0, (name, row, book)
    assert ledger["bytes"]["total"] >= bytes_at_least, ledger["bytes"]


# ---- what the clients did ----


@dataclass(frozen=True)
class Truth:
    """One exchange as one of its two processes counted it."""

    pid: int
    tid: int
    comm: str
    inode: int
    local_ip: str
    local_port: int
    peer_ip: str
    peer_port: int
    method: str
    target: str
    status: int
    sent: int
    sent_body: int
    received: int
    received_body: int
    sends: int
    receives: int
    again: int
    short_sends: int
    peeks: int
    notices: int


def pattern(size: int, tag: str, exchange: int) -> str:
    """The bodies that calls.c makes."""
    lines = (f"{tag}{(exchange * 10000 + line) % 1000000:06d}\n" for line in range((size + 7) // 8))
    return "".join(lines)[:size]


@dataclass
class Run:
    """A client and a server of calls.c that have ended."""

    address: str
    client: list[Truth] = field(default_factory=list)
    server: list[Truth] = field(default_factory=list)
    started: float = 0.0
    ended: float = 0.0

    @property
    def client_pid(self) -> int:
        return self.client[0].pid

    @property
    def server_pid(self) -> int:
        return self.server[0].pid

    @property
    def pids(self) -> set[int]:
        return {truth.pid for truth in (*self.client, *self.server)}

    @property
    def stream_bytes(self) -> int:
        return sum(truth.sent + truth.received for truth in (*self.client, *self.server))


def parse_truths(text: str) -> list[Truth]:
    return [Truth(**json.loads(line)) for line in text.splitlines() if line.startswith("{")]


class Server:
    """calls serve, listening."""

    def __init__(self, binary: Path, address: str, *options: str) -> None:
        self.process = subprocess.Popen([str(binary), "serve", address, *options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        first = self.process.stdout.readline().split()
        assert first and first[0] == "listening", f"calls serve {address}: {first}"
        self.port = int(first[1])
        self.address = address[:-1] + str(self.port) if address.endswith(":0") else address
        self.pid = self.process.pid

    def finish(self, seconds: float = 30.0) -> list[Truth]:
        """What it says after its last connection."""
        output, _ = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, self.process.returncode
        return parse_truths(output)

    def kill(self) -> None:
        end_process(self.process)


class Calls:
    """The compiled calls.c."""

    def __init__(self, binary: Path) -> None:
        self.binary = binary

    @contextmanager
    def serve(self, address: str, *options: str) -> Iterator[Server]:
        server = Server(self.binary, address, *options)
        try:
            yield server
        finally:
            server.kill()

    def request(self, address: str, *options: str, binary: Path | None = None) -> list[Truth]:
        done = subprocess.run(
            [str(binary or self.binary), "request", address, *options],
            stdout=subprocess.PIPE,
            text=True,
            timeout=40,
            check=True,
        )
        return parse_truths(done.stdout)

    def run(self, client: Sequence[str] = (), server: Sequence[str] = (), address: str = "127.0.0.1:0") -> Run:
        """One client, one server, one connection."""
        started = time.time()
        if address == "pair":
            done = subprocess.run(
                [str(self.binary), "pair", *client, "--", *server],
                stdout=subprocess.PIPE,
                text=True,
                timeout=40,
                check=True,
            )
            truths = parse_truths(done.stdout)
            pids = sorted({truth.pid for truth in truths})
            run = Run(
                address,
                client=[truth for truth in truths if truth.pid == pids[0]],
                server=[truth for truth in truths if truth.pid == pids[-1]],
            )
        else:
            with self.serve(address, *server) as listening:
                answers = self.request(listening.address, *client)
                run = Run(listening.address, client=answers, server=listening.finish())
        run.started, run.ended = started, time.time()
        return run


# ---- comparing ----


def seconds_of(timestamp: str) -> float:
    assert TIMESTAMP.fullmatch(timestamp), timestamp
    whole, nanoseconds = timestamp[:-1].split(".")
    moment = calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S"))
    return moment + int(nanoseconds) / 1e9


def plain(ip: str) -> str:
    return ip.removeprefix("::ffff:")


def check_form(record: Record) -> None:
    """What holds for every record whatever it is about."""
    assert set(record) <= set(KEYS), set(record) - set(KEYS)
    order = [KEYS.index(key) for key in record]
    assert order == sorted(order), list(record)
    assert None not in record.values(), record
    assert "" not in [value for key, value in record.items() if key != "reason"], record
    assert ("unix_path" in record) <= (not ADDRESS_KEYS & set(record)), record
    present = ADDRESS_KEYS & set(record)
    assert present in (set(), ADDRESS_KEYS), record
    assert record["completeness"] in {"complete", "truncated", "gap", "partial", "open"}, record
    assert ("missing_bytes" in record) == (record["completeness"] == "gap"), record
    assert ("method" in record) != ("status_code" in record), record
    assert ("body" in record) <= (record["body_bytes"] > 0), record
    seconds_of(record["timestamp"])


def exact_body(record: Record, body: str, limit: int) -> None:
    """The body as far as the limit lets it through, and every byte counted."""
    assert record.get("body", "") == body[:limit]
    assert record["completeness"] == ("complete" if len(body) <= limit else "truncated"), record


def prefix_body(record: Record, body: str, limit: int) -> None:
    """More pieces in one call than are looked at: the start of the body, and said so."""
    shown = record.get("body", "")
    assert body.startswith(shown), shown[-80:]
    if len(shown) < min(len(body), limit):
        assert record["completeness"] in {"truncated", "gap"}, record
        assert record["completeness"] == "truncated" or record["missing_bytes"] > 0, record


def missing_body(reason: str) -> Callable[[Record, str, int], None]:
    """Bytes that passed by no buffer: a gap of exactly their number, or read back from the file."""

    def check(record: Record, body: str, limit: int) -> None:
        if not body:
            exact_body(record, body, limit)
            return
        shown = record.get("body", "")
        assert body[:limit].startswith(shown), shown[-80:]
        if record["completeness"] == "gap":
            assert record["missing_bytes"] == len(body), record
            assert record["missing_reason"] == reason, record
        else:
            exact_body(record, body, limit)

    return check


def sides(records: list[Record], pid: int) -> tuple[list[Record], list[Record]]:
    """One process's requests and its responses, in the order of the log."""
    own = [record for record in records if record["pid"] == pid]
    return (
        [record for record in own if "method" in record],
        [record for record in own if "status_code" in record],
    )


BodyCheck = Callable[[Record, str, int], None]


def check_message(record: Record, run: Run, truth: Truth, index: int, body_check: BodyCheck, limit: int) -> None:
    """One record against what its process did."""
    client = truth in run.client
    request = "method" in record
    sending = client == request
    check_form(record)
    assert run.started - 0.5 < seconds_of(record["timestamp"]) < run.ended + 0.5, record
    assert (record["pid"], record["tid"], record["comm"]) == (truth.pid, truth.tid, truth.comm)
    if "cmdline" in record:  # a process of a few milliseconds may be gone before it is looked at
        assert record["cmdline"].split()[0].endswith("calls"), record["cmdline"]
    assert record["role"] == ("client" if client else "server")
    assert record["direction"] == ("send" if sending else "recv")
    if truth.local_ip:
        local = (plain(truth.local_ip), truth.local_port)
        peer = (plain(truth.peer_ip), truth.peer_port)
        source, destination = (local, peer) if sending else (peer, local)
        assert (record["source_ip"], record["source_port"]) == source
        assert (record["dest_ip"], record["dest_port"]) == destination
        assert "hop" in record
    else:
        assert not ADDRESS_KEYS & set(record), record
        assert "hop" not in record
        if run.address.startswith("unix:"):
            assert record["unix_path"] == run.address.removeprefix("unix:")
        else:
            assert "unix_path" not in record
    assert record["protocol"] == "HTTP/1.1"
    assert record["headers"]["X-Exchange"] == str(index)
    if request:
        assert (record["method"], record["url"]) == (truth.method, truth.target)
    else:
        assert (record["status_code"], record["reason"]) == (truth.status, "Done")
        assert 0 <= record["ttfb_ms"] <= record["duration_ms"] <= 30000, record
    size = truth.sent_body if sending else truth.received_body
    assert record["bytes"] == (truth.sent if sending else truth.received)
    assert record["body_bytes"] == size
    body = pattern(size, "q" if request else "a", index)
    body_check(record, body, limit)
    if body_check is exact_body:
        raw = record["raw_payload"]
        head, _, rest = raw.partition("\r\n\r\n")
        assert len(head) + 4 == record["bytes"] - size
        assert rest == body[:limit]


def check_run(
    records: list[Record],
    run: Run,
    *,
    client_sends: BodyCheck = exact_body,
    client_receives: BodyCheck = exact_body,
    server_sends: BodyCheck = exact_body,
    server_receives: BodyCheck = exact_body,
    limit: int = BODY_LIMIT,
) -> None:
    """Every exchange of the run four times, each right, the four joined, and nothing else."""
    hops: dict[tuple[str, int], str] = {}
    count = len(run.client)
    assert len(run.server) == count
    connections = set()
    for truths, sends, receives in (
        (run.client, client_sends, client_receives),
        (run.server, server_sends, server_receives),
    ):
        client = truths is run.client
        requests, responses = sides(records, truths[0].pid)
        assert [record["url"] for record in requests] == [truth.target for truth in truths]
        assert [record["status_code"] for record in responses] == [t.status for t in truths]
        for index, truth in enumerate(truths):
            request, response = requests[index], responses[index]
            check_message(request, run, truth, index, sends if client else receives, limit)
            check_message(response, run, truth, index, receives if client else sends, limit)
            assert request["exchange"] == response["exchange"]
            for kind, record in (("request", request), ("response", response)):
                if "hop" in record:
                    assert hops.setdefault((kind, index), record["hop"]) == record["hop"]
        own = {record["connection"] for record in (*requests, *responses)}
        assert len(own) == 1, own
        connections |= own
        assert len({record["exchange"] for record in requests}) == count
    assert len(connections) == 2, "the two ends of a connection are two sockets"
    assert len(set(hops.values())) == len(hops)
    assert len([record for record in records if record["pid"] in run.pids]) == 4 * count


def check_never_wrong(records: list[Record], run: Run) -> None:
    """Whatever is there is true, whatever is missing."""
    by_exchange: dict[tuple[int, str], set[str]] = {}
    for record in records:
        check_form(record)
        if "X-Exchange" not in record.get("headers", {}):
            assert record["completeness"] in {"gap", "partial"}, record
            continue
        index = int(record["headers"]["X-Exchange"])
        request = "method" in record
        truth = (run.client if record["pid"] == run.client_pid else run.server)[index]
        sending = (truth in run.client) == request
        size = truth.sent_body if sending else truth.received_body
        body = pattern(size, "q" if request else "a", index)
        assert body.startswith(record.get("body", "")), record
        assert record["body_bytes"] == size or record["completeness"] == "partial", record
        assert record.get("url", truth.target) == truth.target
        assert record.get("status_code", truth.status) == truth.status
        if "exchange" in record:
            by_exchange.setdefault((record["pid"], record["exchange"]), set()).add(str(index))
    assert all(len(indexes) == 1 for indexes in by_exchange.values()), by_exchange
