"""What the programs do that no single client shows: their two ways of reading, and calls that are not ours."""

from __future__ import annotations

import platform
import subprocess
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
from tests.kernel.harness import running

pytestmark = pytest.mark.kernel


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
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
