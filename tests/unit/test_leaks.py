"""Connections that come and go leave nothing behind: not a byte, and nothing that waits for the garbage collector.

That comes late to an agent (`prepare_interpreter` in commands/capture.py): a cycle in each connection would be a leak for
hours. What is remembered of heads, names and processes is bounded, and the same for all connections here.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import hpack
import pytest

from netprofiler import wire
from netprofiler.pipeline import Pipeline
from netprofiler.protocols.http2 import PREFACE
from netprofiler.redaction import Redactor
from netprofiler.sinks.jsonlines import RecordWriter
from netprofiler.testing import Peer, Script, Tick, batch
from tests.unit.protocols import http2_frames as h2
from tests.unit.test_pipeline_tls import ANSWER, HELLO, handshake, inside

CONNECTIONS = 200
NOISE_BYTES = 4096
"""Of lists and dictionaries that happen to be larger at the end: 20 bytes a connection; the smallest object has 16, and what is
kept of a connection, some hundred.
"""
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"


def plain(script: Script) -> None:
    peer = script.client()
    peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    peer.recv(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    peer.close()


def broken(script: Script) -> None:
    """What is in the middle of something when it ends, and of which something is missing."""
    peer = script.server()
    peer.recv(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n")
    peer.lose(wire.RECV, 10)
    peer.recv(b"de\r\n")
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")
    peer.close()


def http2(script: Script) -> None:
    peer = script.client()
    fields = [(":method", "GET"), (":scheme", "http"), (":path", "/a"), (":authority", "a"), ("n", "1")]
    peer.send(PREFACE + h2.settings() + h2.headers(1, hpack.Encoder().encode(fields), ends=True))
    peer.recv(h2.settings() + h2.headers(1, hpack.Encoder().encode([(":status", "200")])) + h2.data(1, b"body"))
    peer.close()


def websocket(script: Script) -> None:
    peer = script.server()
    peer.recv(b"GET / HTTP/1.1\r\nHost: a\r\n" + UPGRADE + b"\r\n")
    peer.send(b"HTTP/1.1 101 Switching Protocols\r\n" + UPGRADE + b"\r\n", b"\x81\x02ab", b"\x01\x02ab")
    peer.close()


def _in_tls(script: Script, *, read: bool) -> None:
    start = len(script.steps)
    peer = script.client()
    _exchange(peer)
    events = [step for step in script.steps[start:] if isinstance(step, wire.Event)]
    hellos = [replace(event, time_ns=script.time_ns) for event in handshake(peer.socket, (0, HELLO), (1, ANSWER))]
    script.steps[start:] = [*hellos, *(inside(events) if read else ())]
    script.steps.append(wire.ConnectionClosed(script.now(), peer.socket | wire.SOCKET_TLS, wire.BOTH, True, 0))
    script.steps.append(wire.ConnectionClosed(script.now(), peer.socket, wire.BOTH, True, 0))


def _exchange(peer: Peer) -> None:
    peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    peer.recv(b"HTTP/1.1 204 No Content\r\n\r\n")


def tls(script: Script) -> None:
    _in_tls(script, read=True)


def tls_that_is_not_read(script: Script) -> None:
    _in_tls(script, read=False)


def unix(script: Script) -> None:
    peer = script.client(family=wire.FAMILY_UNIX, unix_path="/run/a")
    _exchange(peer)
    peer.close()


@pytest.mark.parametrize("play", [plain, broken, http2, websocket, tls, tls_that_is_not_read, unix])
def test_a_connection_leaves_nothing_behind(play: Callable[[Script], None]) -> None:
    script = Script()
    script.process()
    pipeline = Pipeline()
    writer = RecordWriter(Redactor(()), wall_offset_ns=0, body_limit=4096, raw_payload=True)

    def run() -> int:
        """As the agent does; returns how many records came of it."""
        records = 0
        for _ in range(CONNECTIONS):
            play(script)
            script.wait(1)
            for step in script.steps:
                if isinstance(step, Tick):
                    pipeline.tick(step.time_ns)
                else:
                    pipeline.feed(batch([step]))
            script.steps.clear()
            for message in pipeline.take_messages():
                assert writer.render(message)
                records += 1
            pipeline.take_commands()
        script.wait(60)
        pipeline.tick(script.time_ns)
        script.steps.clear()
        return records

    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        run()
        before, _ = tracemalloc.get_traced_memory()
        records = run()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert records >= (0 if play is tls_that_is_not_read else 2 * CONNECTIONS)
    assert not pipeline.connections and not pipeline.unix_owners
    assert after - before < NOISE_BYTES
