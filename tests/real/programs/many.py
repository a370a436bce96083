"""Ten thousand keep-alive connections: ``many.py server PORT`` and ``many.py client PORT COUNT``.

The client opens COUNT connections and says ``open``; after a line on standard input it sends one request on each, in order, and a
second on every tenth, at a bounded rate, checks every answer, says ``asked``, and after one more line closes and ends.
"""

from __future__ import annotations

import resource
import select
import socket
import sys
import time

PER_SECOND = 1500
BURST = 15


def raise_limit() -> None:
    """To what 10,000 connections take; raising the hard limit needs CAP_SYS_RESOURCE, which root may lack."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = max(hard, 11_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(port: int) -> None:
    raise_limit()
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for fd, _ in epoll.poll(1):
            if fd == listener.fileno():
                try:
                    while True:
                        connection, _ = listener.accept()
                        connections[connection.fileno()] = connection
                        epoll.register(connection.fileno(), select.EPOLLIN)
                except BlockingIOError:
                    continue
            data = connections[fd].recv(4096)
            if not data:
                epoll.unregister(fd)
                connections.pop(fd).close()
                continue
            assert data.endswith(b"\r\n\r\n"), "each request is one write and so small that it is one read"
            target = data.split(b" ", 2)[1]
            body = b"you asked for " + target
            connections[fd].send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def ask(port: int, count: int) -> None:
    raise_limit()
    connections = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        connections.append(connection)
    print("open", flush=True)
    sys.stdin.readline()
    plan = [(n, 0) for n in range(count)] + [(n, 1) for n in range(0, count, 10)]
    start = time.monotonic()
    for first in range(0, len(plan), BURST):
        burst = plan[first : first + BURST]
        for n, turn in burst:
            connections[n].send(b"GET /%d/%d HTTP/1.1\r\nHost: many\r\n\r\n" % (n, turn))
        for n, turn in burst:
            target = b"/%d/%d" % (n, turn)
            data = connections[n].recv(4096)
            assert data.endswith(b"\r\n\r\nyou asked for " + target), data
        time.sleep(max(0.0, start + (first + BURST) / PER_SECOND - time.monotonic()))
    print("asked", flush=True)
    sys.stdin.readline()
    for connection in connections:
        connection.close()


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve(int(sys.argv[2]))
    else:
        ask(int(sys.argv[2]), int(sys.argv[3]))
