"""What no single client shows of the programs: how they are compiled, kept and loaded, their two ways of reading, calls that
are not ours."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from netprofiler import wire
from netprofiler.errors import CommandError
from netprofiler.sources import bpf, features, kernel
from netprofiler.sources.compiler import ObjectCache, compile_object
from netprofiler.sources.kernel import (
    AGENT_PID_MARKER,
    ASK_AGENT_PID,
    COPIED_READS,
    DIRECT_READS,
    LAYOUTS_MAX,
    RING_BYTES,
    SOCKET_EVENTS,
    SOCKET_TRACEPOINTS,
    TAIL_CALLED,
    TRACEPOINTS,
    VARIANTS,
    Filters,
    KernelSource,
    find_bpf,
)
from netprofiler.sources.probes import Layout, Library
from tests.kernel.harness import Agent, Calls, give, running, wait_until

pytestmark = [pytest.mark.kernel, pytest.mark.loads_bcc]


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        if self.headers["Transfer-Encoding"]:
            body = b""
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # with Content-Length, too

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def echo() -> Iterator[int]:
    """A server in this process, on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="int 0x80 is x86's")
def test_a_32_bit_call_is_not_taken_for_one_of_ours(tmp_path: Path) -> None:
    binary = tmp_path / "i386"
    subprocess.run(["gcc", "-Wall", "-o", binary, Path(__file__).with_name("i386.c")], check=True, timeout=60)
    with echo() as port, running(tmp_path, "--port", str(port)) as agent:
        client = subprocess.Popen([binary, str(port)], stdout=subprocess.PIPE, text=True)
        output, _ = client.communicate(timeout=10)
        assert client.returncode == 0
        assert output == "HTTP/1.1 200 OK\n"
        request, response = agent.wait_for([client.pid], 2)
        assert agent.end() == 0
    # Its result, a pid, is no count of bytes.
    ledger = agent.ledger()["bytes"]
    assert ledger["total"] - ledger["rows"]["filtered"] == sum(record["bytes"] for record in agent.records())
    assert (request["method"], request["url"], request["body"]) == ("POST", "/halves", "hello")
    assert request["bytes"] == len(request["raw_payload"])
    assert request["completeness"] == response["completeness"] == "complete"
    assert response["exchange"] == request["exchange"]


def test_what_io_uring_moves_is_counted(tmp_path: Path) -> None:
    """It is known how much it is; where it lies is not, so nothing of it becomes a record."""
    if features.has_io_uring() is not True:
        pytest.fail("this kernel has no io_uring, or it is switched off: the test has to run where there is one")
    binary = tmp_path / "uring"
    subprocess.run(["gcc", "-Wall", "-O1", "-o", binary, Path(__file__).with_name("uring.c")], check=True, timeout=60)
    with echo() as port, running(tmp_path / "agent", "--comm", "uring") as agent:
        done = subprocess.run([binary, str(port)], capture_output=True, text=True, check=True, timeout=20)
        sent, received = map(int, done.stdout.split())
        assert received > 40
        assert agent.end() == 0
    ledger = agent.ledger()
    assert ledger["bytes"]["rows"]["unreadable"] == sent + received
    assert ledger["bytes"]["total"] == sum(ledger["bytes"]["rows"].values())
    assert ledger["bytes"]["total"] - ledger["bytes"]["rows"]["filtered"] == sent + received
    assert agent.records() == []


def capture(source: KernelSource) -> list[wire.Event]:
    """All that is in the ring; it has to be empty afterwards."""
    events = []
    while batch := source.read():
        used = wire.whole_length(batch)
        events += [wire.parse(record) for record in wire.records(batch[:used])]
        source.advance(used)
    return events


def test_all_ways_to_compile_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side on the same traffic: seen by the sockets or as calls leave the kernel, read by plain loads or by
    bpf_probe_read_kernel; and once as on Linux 7, where programs behind tracepoints can be preempted.
    """
    names: list[set[str]] = []
    seen: list[list[wire.Event]] = []
    with echo() as port:
        filters = Filters(ports=(port,))
        sources = [KernelSource(filters, variant=variant) for variant in range(len(VARIANTS))]
        try:
            # An older kernel than 6.3, or 5.11, falls back by itself.
            version = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
            best = SOCKET_EVENTS if version >= (6, 3) else DIRECT_READS if version >= (5, 11) else COPIED_READS
            assert [source.variant for source in sources] == [max(way, best) for way in range(len(VARIANTS))]
            monkeypatch.setattr(kernel, "PREEMPTIBLE_SINCE", (0, 0))
            sources.append(KernelSource(filters))
            for source in sources:
                source.attach()
            for size in (0, 10, 5_000, 100_000):
                subprocess.run(
                    ["curl", "-s", "-o", "/dev/null", "--data-binary", "@-", f"http://127.0.0.1:{port}/{size}"],
                    input=b"x" * size,
                    check=True,
                    timeout=10,
                )
            time.sleep(0.1)
            for source in sources:
                source.detach()
                seen.append([replace(event, time_ns=0) for event in capture(source)])
                names.append({type(event).__name__ for event in seen[-1]})
                rows = source.ledger()
                assert rows["total"].bytes == sum(row.bytes for name, row in rows.items() if name != "total")
                assert rows["delivered"].bytes > 2 * (5_000 + 100_000)
        finally:
            for source in sources:
                source.close()
    assert names[0] == {"ProcessSeen", "ConnectionOpened", "DataCaptured", "ConnectionClosed"}
    # Both ends come from two processors: the order between connections may differ.
    assert all(sorted(map(repr, events)) == sorted(map(repr, seen[0])) for events in seen)


def test_a_full_ring_is_told_and_counted(tmp_path: Path) -> None:
    """The agent does not read for a while: what is lost is in the ledger and on standard error, what comes later is
    whole, and the message with the hole says what it was.
    """
    with echo() as port, running(tmp_path, "--port", str(port)) as agent:
        client = subprocess.Popen(
            [sys.executable, "-c", FLOOD, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == "open\n"
        agent.process.send_signal(signal.SIGSTOP)
        try:
            client.stdin.write("flood\n")
            client.stdin.flush()
            assert client.stdout.readline() == "flooded\n"
        finally:
            agent.process.send_signal(signal.SIGCONT)
        time.sleep(1)  # for the agent to read what there is: 16 MiB
        client.communicate("go on\n", timeout=20)
        assert client.returncode == 0
        assert wait_until(lambda: any(record.get("url") == "/last" for record in agent.of([client.pid])), 10)
        time.sleep(0.5)
        assert agent.end() == 0
    records = agent.of([client.pid])
    assert records[0]["url"] == "/first"
    assert records[1]["exchange"] == records[0]["exchange"]
    (last,) = [record for record in records if record.get("url") == "/last"]
    assert (last["body"], last["completeness"]) == ("last", "complete")
    (holed,) = [record for record in records if record.get("url") == "/holed"]
    assert (holed["completeness"], holed["missing_reason"]) == ("gap", "ring_full")
    assert holed["body"] == "y" * 4096
    answers = {record["exchange"] for record in records if "status_code" in record and record.get("body") == "last"}
    assert answers
    others = {record["exchange"] for record in records if record.get("url") not in (None, "/last")}
    assert not answers & others, "an answer was given to another request"
    ledger = agent.ledger()
    for unit in ("bytes", "calls"):
        assert ledger[unit]["total"] == sum(ledger[unit]["rows"].values())
        assert ledger[unit]["rows"]["lost"] > 0
        assert min(ledger[unit]["rows"].values()) >= 0
    assert len(agent.records()) == ledger["records"]["rows"]["written"]
    assert f"lost: the ring was full for {ledger['calls']['rows']['lost']} calls" in agent.stderr()


FLOOD = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
def ask(target, body):
    connection.request("POST", target, body)
    assert connection.getresponse().read() == body
ask("/first", b"first")
# A request of which the middle will be lost.
connection.putrequest("POST", "/holed")
connection.putheader("Transfer-Encoding", "chunked")  # of a known length, the kernel side would be told to skip it
connection.endheaders()
def chunk():
    connection.send(b"3e8\\r\\n" + b"y" * 1000 + b"\\r\\n")
chunk()
print("open", flush=True)
sys.stdin.readline()
for _ in range(30000):
    chunk()
print("flooded", flush=True)
sys.stdin.readline()
chunk()
connection.send(b"0\\r\\n\\r\\n")
assert connection.getresponse().read() == b""
ask("/last", b"last")
"""


# --- compiled, kept, loaded -------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the agents that a test starts keep what they compile."""
    give(tmp_path)
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept_in(cache: Path) -> bpf.Object:
    """The only one."""
    (path,) = cache.iterdir()
    kept = ObjectCache(cache).read(path.stem)
    assert kept is not None
    return kept


def map_references(code: bytes) -> list[int]:
    """Of instructions; the second half of a number is none, and has no source."""
    instructions = [bpf.INSTRUCTION.unpack_from(code, at) for at in range(0, len(code), bpf.INSTRUCTION.size)]
    return [number for operation, registers, _, number in instructions if operation == 0x18 and registers >> 4 == 1]


def test_what_is_compiled_names_maps_by_their_place(cache: Path) -> None:
    """And is the same each time: nothing in it is of the process that compiled it."""
    KernelSource(Filters()).close()
    made = kept_in(cache)
    names = [facts.name for facts in made.maps]
    assert len(names) == len(set(names)) > 20
    layout = Layout(Library.GO).pack()
    assert bpf.MapFacts("tls_layouts", bpf.MAP_TYPE_ARRAY, 4, len(layout), LAYOUTS_MAX, 0) in made.maps
    assert bpf.MapFacts("events", bpf.MAP_TYPE_RINGBUF, 0, 0, RING_BYTES, 0) in made.maps
    assert set(made.programs) == {*TRACEPOINTS.values(), *SOCKET_TRACEPOINTS.values(), *TAIL_CALLED, "on_probe"} - {
        "on_fork"
    }
    used = {name: {names[place] for place in map_references(code)} for name, code in made.programs.items()}
    assert {"connections", "events", "programs", "workspaces", "ledgers"} <= used["on_sock_recv_length"]
    assert {"tls_layouts", "tls_sessions", "probe_programs"} <= used["on_probe"]
    assert "programs" not in used["on_probe"]
    filters = {"watched_ports", "watched_comms", "watched_executables"}
    assert set().union(*used.values()) == set(names) - filters
    pids = {name: bpf.replace_immediate(code, AGENT_PID_MARKER, 1)[1] for name, code in made.programs.items()}
    assert {name: count for name, count in pids.items() if count} == dict.fromkeys(
        set(ASK_AGENT_PID) - {"on_sys_exit"}, 1
    )
    (path,) = cache.iterdir()
    before = path.read_bytes()
    path.unlink()
    # With other descriptors in the way.
    source = KernelSource(Filters())
    try:
        assert path.read_bytes() == before
    finally:
        source.close()


def test_what_does_not_compile_is_said() -> None:
    with pytest.raises(CommandError, match="the compiler refused the program"):
        compile_object("int f(void *ctx) { return no_such_thing; }", ["-DPAGE_SIZE=4096"], find_bpf())


def mapped_files(agent: Agent) -> str:
    return Path(f"/proc/{agent.pid}/maps").read_text()


def exchange(calls: Calls, agent: Agent) -> None:
    """The agent sees what there is to see."""
    run = calls.run()
    records = agent.wait_for(run.pids, 4)
    assert [record["bytes"] for record in records if record["pid"] == run.client_pid] == [
        run.client[0].sent,
        run.client[0].received,
    ]


def test_the_second_start_takes_what_was_kept_without_bcc(tmp_path: Path, cache: Path, calls: Calls) -> None:
    with running(tmp_path / "first") as agent:
        assert "libbcc" in mapped_files(agent)
        exchange(calls, agent)
    (kept,) = cache.iterdir()
    content = kept.read_bytes()
    with running(tmp_path / "second") as agent:
        assert "libbcc" not in mapped_files(agent)
        assert "libLLVM" not in mapped_files(agent)
        exchange(calls, agent)
        assert agent.end() == 0
    assert kept.read_bytes() == content
    with running(tmp_path / "filtered", "--port", "1") as agent:
        assert "libbcc" in mapped_files(agent)
    assert len(list(cache.iterdir())) == 2, "other filters are another program"


def test_a_damaged_object_is_compiled_anew(tmp_path: Path, cache: Path, calls: Calls) -> None:
    KernelSource(Filters()).close()
    (kept,) = cache.iterdir()
    content = kept.read_bytes()
    kept.write_bytes(content[:-100])
    give(cache)
    give(kept)
    with running(tmp_path / "agent") as agent:
        assert "libbcc" in mapped_files(agent)
        exchange(calls, agent)
    assert kept.read_bytes() == content


def test_where_nothing_can_be_kept_it_is_compiled_each_time(tmp_path: Path, calls: Calls) -> None:
    for name in ("first", "second"):
        with running(tmp_path / name, environment={"CACHE_DIRECTORY": "/proc/netprofiler"}) as agent:
            assert "libbcc" in mapped_files(agent)
            exchange(calls, agent)
            assert agent.end() == 0
            assert agent.stderr().count("\n") == agent.stderr().count("\n", agent.stderr().index("ready"))


def test_the_kernel_gets_back_all_that_it_gave(cache: Path) -> None:
    def descriptors() -> list[str]:
        return sorted(os.listdir("/proc/self/fd"))

    KernelSource(Filters()).close()
    before = descriptors()
    source = KernelSource(Filters())
    source.attach()
    assert len(descriptors()) > len(before) + 30
    source.close()
    assert descriptors() == before


def test_two_agents_see_each_other_and_not_themselves(cache: Path) -> None:
    """From the same object: the pid of each is put in when it is loaded."""
    KernelSource(Filters(ports=(1,))).close()
    kept = kept_in(cache)
    with echo() as port:
        agents = [
            subprocess.Popen(
                [sys.executable, "-c", WATCHER, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        try:
            for step in ("attached", "asked"):
                for agent in agents:
                    assert agent.stdout is not None
                    assert agent.stdout.readline() == f"{step}\n"
                if step == "attached":
                    for agent in agents:
                        assert agent.stdin is not None
                        agent.stdin.write("ask\n")
                        agent.stdin.flush()
            seen = [json.loads(agent.communicate("say\n", timeout=20)[0]) for agent in agents]
        finally:
            for agent in agents:
                agent.kill()
                agent.wait()
    assert kept_in(cache) == kept
    first, second = agents
    # What the server got and what a client sent: the server is this process, and is seen by both.
    targets = {f"GET /{agent.pid} " for agent in agents}
    for mine, other, events in ((first, second, seen[0]), (second, first, seen[1])):
        senders = {pid for pid, target in events if target in targets}
        assert senders == {os.getpid(), other.pid}, f"{mine.pid} sees {senders}"
        assert {target for pid, target in events if pid == os.getpid()} >= targets
        assert {target for pid, target in events if pid == other.pid} >= {f"GET /{other.pid} "}


WATCHER = """
import http.client, json, os, sys, time
from netprofiler import wire
from netprofiler.sources.kernel import Filters, KernelSource
port = int(sys.argv[1])
source = KernelSource(Filters(ports=(port,)))
source.attach()
print("attached", flush=True)
sys.stdin.readline()
connection = http.client.HTTPConnection("127.0.0.1", port)
connection.request("GET", f"/{os.getpid()}", headers={"Content-Length": "0"})
assert connection.getresponse().read() == b""
print("asked", flush=True)
sys.stdin.readline()
source.detach()
batch = source.read()
events = [wire.parse(record) for record in wire.records(batch[: wire.whole_length(batch)])]
processes = [(event.pid, event.payload[:32].decode("latin-1")) for event in events if isinstance(event, wire.DataCaptured)]
print(json.dumps([(pid, " ".join(text.split(" ")[:2]) + " ") for pid, text in processes]))
source.close()
"""
