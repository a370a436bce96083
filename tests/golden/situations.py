"""One recording for each situation, written as a script; scripts/golden.py makes the files of them.

The files are what counts: the test replays them, whatever this module says today.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Final

from netprofiler import wire
from netprofiler.sources.recording import (
    FRAME_BATCH,
    FRAME_END_OF_CAPTURE,
    FRAME_ROUNDS,
    NUMBER,
    make_frame,
    make_header,
)
from netprofiler.testing import Peer, Script, Tick, batch

WALL_OFFSET_NS: Final = 1_795_233_504_123_456_789 - 1_000_000_000_000
"""A moment in November 2026, for START_NS of the scripts."""

SERVER: Final = {"local": ("127.0.0.1", 8080), "remote": ("127.0.0.1", 54321)}


def both(script: Script) -> tuple[Peer, Peer]:
    """The two ends of one connection, as two processes of this host have them."""
    script.process(1234, "traffic", "/bin/traffic --requests 10")
    script.process(2345, "server", "/bin/server")
    client = script.client(pid=1234, tid=1236)
    server = script.server(**SERVER, positions=(5_000_000, 1000), pid=2345, tid=2347)
    return client, server


def say(sender: Peer, receiver: Peer, *pieces: bytes) -> None:
    for piece in pieces:
        sender.send(piece)
        receiver.recv(piece)


def close(*peers: Peer) -> None:
    for peer in peers:
        peer.close()


def request(target: bytes, method: bytes = b"GET", body: bytes = b"", fields: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"%s %s HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n%s%s\r\n%s" % (method, target, fields, length, body)


def response(body: bytes, status: bytes = b"200 OK", fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, fields, len(body), body)


def keep_alive(script: Script) -> None:
    """Three exchanges, one after the other; one carries a secret, one is cut by the body limit."""
    client, server = both(script)
    say(client, server, request(b"/healthz", fields=b"Authorization: Bearer abc\r\n"))
    say(server, client, response(b'{"status":"ok"}', fields=b"Content-Type: application/json\r\n"))
    say(client, server, request(b"/echo?token=abc&n=1", b"POST", b'{"message":"hello"}'))
    say(server, client, response(b'{"message":"hello"}', fields=b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n"))
    say(client, server, request(b"/bytes/5000"))
    say(server, client, response(b"x" * 5000))
    close(client, server)


def pipelining(script: Script) -> None:
    """Three requests in one call, three responses in one call."""
    client, server = both(script)
    say(client, server, b"".join(request(b"/%d" % number) for number in range(3)))
    say(server, client, b"".join(response(b"answer %d" % number) for number in range(3)))
    close(client, server)


def chunked(script: Script) -> None:
    """Chunks with extensions, in many calls, and trailers."""
    client, server = both(script)
    say(client, server, request(b"/events", fields=b"TE: trailers\r\n"))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    say(server, client, head, b"5;name=value\r\nhel", b"lo\r\n7\r\n, world\r\n", b"0\r\nX-Sum: 12\r\n\r\n")
    close(client, server)


def interim_responses(script: Script) -> None:
    """100 before the body of the request is sent, 103 before the response."""
    client, server = both(script)
    head = b"PUT /file HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    say(client, server, head)
    say(server, client, b"HTTP/1.1 100 Continue\r\n\r\n")
    say(client, server, b"data")
    say(server, client, b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
    say(server, client, response(b"", b"201 Created"))
    close(client, server)


def without_body(script: Script) -> None:
    """HEAD, 204 and 304: a length, and no body."""
    client, server = both(script)
    say(client, server, request(b"/large", b"HEAD"))
    say(server, client, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    say(client, server, request(b"/gone", b"DELETE"))
    say(server, client, b"HTTP/1.1 204 No Content\r\n\r\n")
    say(client, server, request(b"/cached"))
    say(server, client, b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\nContent-Length: 12\r\n\r\n')
    say(client, server, request(b"/last"))
    say(server, client, response(b"the last"))
    close(client, server)


def gzipped(script: Script) -> None:
    """A coded body, a binary one, and one until the connection ends."""
    client, server = both(script)
    say(client, server, request(b"/gzip", fields=b"Accept-Encoding: gzip\r\n"))
    body = gzip.compress(b'{"message":"hello"}' * 20, mtime=0)
    say(server, client, response(body, fields=b"Content-Encoding: gzip\r\n"))
    say(client, server, request(b"/image"))
    say(server, client, response(bytes(range(128, 160)), fields=b"Content-Type: image/png\r\n"))
    say(client, server, request(b"/until-close"))
    say(server, client, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"all ", b"of it")
    server.shutdown()
    client.end()
    close(client, server)


def sendfile(script: Script) -> None:
    """The server sends a file: once its start could be read back, once it could not."""
    client, server = both(script)
    body = b"0123456789" * 1000
    for target, known in ((b"/known", body[:4096]), (b"/unknown", b"")):
        say(client, server, request(target))
        say(server, client, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        server.sendfile(len(body), known)
        client.recv(body)
    close(client, server)


def joined(script: Script) -> None:
    """Open before the agent: the first response answers a request that was not seen; the last one is cut by the end."""
    script.process(1234, "traffic", "/bin/traffic --requests 10")
    client = script.open(0, fresh=False)
    client.recv(response(b"to a request from before"))
    client.send(request(b"/first"))
    client.recv(response(b"first"))
    client.send(request(b"/second"))
    client.recv(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nended in the mid")
    close(client)


def connect(script: Script) -> None:
    """What comes after an answered CONNECT, or a 101, is not HTTP."""
    client, server = both(script)
    say(client, server, b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
    say(server, client, b"HTTP/1.1 200 Connection established\r\n\r\n")
    say(client, server, b"\x16\x03\x01\x00\x05hello", b"GET /not-http HTTP/1.1\r\n\r\n")
    say(server, client, b"\x16\x03\x03\x00\x05hello")
    close(client, server)
    other = script.client(local=("127.0.0.1", 54322), pid=1234)
    other.send(request(b"/chat", fields=b"Connection: Upgrade\r\nUpgrade: websocket\r\n"))
    other.recv(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    other.recv(b"\x81\x05hello")
    close(other)


def unix(script: Script) -> None:
    """A UNIX socket with a name, one with an abstract name, one without."""
    script.process(1234, "docker", "docker ps")
    for path in ("/run/docker.sock", "@abstract", ""):
        client = script.client(family=wire.FAMILY_UNIX, unix_path=path)
        client.send(request(b"/containers/json"))
        client.recv(response(b"[]", fields=b"Content-Type: application/json\r\n"))
        close(client)


def stream(script: Script) -> None:
    """Server-sent events for longer than the stream interval: one interim record."""
    client, server = both(script)
    say(client, server, request(b"/events"))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    say(server, client, head)
    for number in range(8):
        event = b"data: %d\n\n" % number
        say(server, client, b"%x\r\n%s\r\n" % (len(event), event))
        script.wait(1)
    say(server, client, b"0\r\n\r\n")
    close(client, server)


def gap(script: Script) -> None:
    """Bytes of a body were lost, and then a whole response: nothing is paired wrongly."""
    client, server = both(script)
    say(client, server, request(b"/body"))
    server.send(response(b"y" * 3000))
    client.recv(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n" + b"y" * 1000)
    client.lose(wire.RECV, 1000)
    client.recv(b"y" * 1000)
    script.wait(1)
    say(client, server, request(b"/lost"))
    answer = response(b"lost")
    server.send(answer)
    client.lose(wire.RECV, len(answer))
    script.wait(1)
    say(client, server, request(b"/after"))
    say(server, client, response(b"after"))
    script.wait(1)
    close(client, server)


SITUATIONS: Final[dict[str, Callable[[Script], None]]] = {
    "keep_alive": keep_alive,
    "pipelining": pipelining,
    "chunked": chunked,
    "interim_responses": interim_responses,
    "without_body": without_body,
    "gzipped": gzipped,
    "sendfile": sendfile,
    "joined": joined,
    "connect": connect,
    "unix": unix,
    "stream": stream,
    "gap": gap,
}


def make_recording(situation: Callable[[Script], None]) -> bytes:
    """The whole file."""
    script = Script()
    situation(script)
    metadata = {
        "netprofiler": "golden",
        "kernel": "6.1.0",
        "machine": "x86_64",
        "started": "2026-11-21T04:18:24.123456Z",
        "wall_offset_ns": WALL_OFFSET_NS,
    }
    parts = [make_header(json.dumps(metadata).encode())]
    waiting: list[wire.Event] = []
    last_ns = 0
    calls = total = 0

    def finish_round(time_ns: int) -> None:
        if waiting:
            parts.append(make_frame(FRAME_BATCH, time_ns, batch(waiting)))
            waiting.clear()
        parts.append(make_frame(FRAME_ROUNDS, time_ns, NUMBER.pack(time_ns)))

    for step in script.steps:
        last_ns = max(last_ns, step.time_ns)
        if isinstance(step, Tick):
            finish_round(step.time_ns)
            continue
        waiting.append(step)
        if isinstance(step, wire.DataCaptured):
            total += step.length
            calls += step.flags & wire.DATA_FIRST
    finish_round(last_ns)
    names = ("total", "delivered", "filtered", "not_http", "tls", "tunnel", "over_limit", "lost")
    rows = {name: [calls, total] if name in ("total", "delivered") else [0, 0] for name in names}
    end = json.dumps({"rows": rows, "announcements_lost": 0}).encode()
    parts.append(make_frame(FRAME_END_OF_CAPTURE, last_ns, end))
    return b"".join(parts)
