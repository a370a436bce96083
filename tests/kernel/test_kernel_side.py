"""What the programs do that no single client shows: their two ways of reading, and calls that are not ours."""

from __future__ import annotations

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
from netprofiler.sources.kernel import Filters, KernelSource
from tests.kernel.harness import running, wait_until

pytestmark = pytest.mark.kernel


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


def capture(source: KernelSource) -> list[wire.Event]:
    """All that is in the ring; it has to be empty afterwards."""
    events = []
    while batch := source.read():
        used = wire.whole_length(batch)
        events += [wire.parse(record) for record in wire.records(batch[:used])]
        source.advance(used)
    return events


def test_both_ways_of_reading_kernel_memory_give_the_same() -> None:
    """Plain loads (bpf/arch.h, DIRECT_READS) and bpf_probe_read_kernel, side by side on the same traffic."""
    names: list[set[str]] = []
    seen: list[list[wire.Event]] = []
    with echo() as port:
        filters = Filters(ports=(port,))
        sources = [KernelSource(filters, direct_reads=direct) for direct in (True, False)]
        try:
            # Linux 5.11 or newer; an older kernel shows that the program falls back by itself.
            assert [source.direct_reads for source in sources] == [True, False]
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
    assert sorted(map(repr, seen[0])) == sorted(map(repr, seen[1]))


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
