"""Processes that do unusual things with sockets; run as `python actors.py SCENE ARGUMENT...`.

Each scene is one function. It prints one JSON object a line: what it did, and which process and
thread did it. Standard input, where a scene reads it, paces the scene: one line, one step.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

LIFETIME_SECONDS = 90


def say(what: str, **facts: object) -> None:
    line = json.dumps({"what": what, "pid": os.getpid(), "tid": threading.get_native_id(), **facts})
    os.write(1, line.encode() + b"\n")


def step() -> str:
    """Wait for the next line of standard input, read byte by byte: children read on from here."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit(0)
        line += byte
    return line.decode().strip()


def head(target: str, body: bytes = b"") -> bytes:
    method, length = ("POST", f"Content-Length: {len(body)}\r\n") if body else ("GET", "")
    return f"{method} {target} HTTP/1.1\r\nHost: actors\r\n{length}\r\n".encode()


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 Done\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def receive(read: Callable[[int], bytes]) -> bytes:
    """One message with a Content-Length, or without a body."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = read(65536)
        if not part:
            return data
        data += part
    end = data.index(b"\r\n\r\n") + 4
    length = 0
    for line in data[:end].lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(data) < end + length:
        data += read(65536)
    return data


def connect(port: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(port)), timeout=20)
    connection.settimeout(None)
    return connection


def listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    say("listening", port=listener.getsockname()[1])
    return listener


def talk(connection: socket.socket, target: str, body: bytes = b"") -> bytes:
    connection.sendall(head(target, body) + body)
    return receive(connection.recv)


def target_of(request: bytes) -> str:
    return request.split(b" ")[1].decode()


def serve(connection: socket.socket) -> None:
    """Answer until the peer closes; the answer repeats the target."""
    while request := receive(connection.recv):
        target = target_of(request)
        connection.sendall(answer(f"answer to {target}".encode()))
        say("answered", target=target)


# ---- client scenes: PORT is that of a server that answers ----


def dup(port: str) -> None:
    """Three names for one socket, each used for a part."""
    first = connect(port).detach()
    second = os.dup(first)
    body = b"dup" * 100
    message = head("/dup/1", body) + body
    os.write(first, message[:40])
    os.write(second, message[40:])
    os.close(first)
    os.dup2(second, 500)
    received = receive(lambda size: os.read(500, size))
    say("talked", target="/dup/1", answer=len(received))
    third = fcntl.fcntl(500, fcntl.F_DUPFD, 700)
    os.close(500)
    os.write(third, head("/dup/2"))
    os.close(second)
    received = receive(lambda size: os.read(third, size))
    say("talked", target="/dup/2", answer=len(received))


def fork(port: str) -> None:
    """The parent sends the head, its child the body; the parent receives the answer."""
    connection = connect(port)
    body = b"fork" * 100
    connection.sendall(head("/fork", body))
    child = os.fork()
    if not child:
        connection.sendall(body)
        os._exit(0)
    os.waitpid(child, 0)
    receive(connection.recv)
    say("talked", target="/fork", child=child)


def threads(port: str) -> None:
    """One thread sends all requests, another receives all answers."""
    connection = connect(port)
    turn = threading.Semaphore(1)
    count = 7

    def send() -> None:
        for number in range(count):
            turn.acquire(timeout=10)
            connection.sendall(head(f"/threads/{number}"))
        say("sent")

    def read() -> None:
        for _ in range(count):
            receive(connection.recv)
            turn.release()
        say("received")

    both = [threading.Thread(target=send), threading.Thread(target=read)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(20)


def passed(port: str) -> None:
    """A connection is passed to another process (no child that inherited it), which goes on."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        fds = socket.recv_fds(theirs, 1, 1)[1]
        talk(socket.socket(fileno=fds[0]), "/passed/2")
        say("talked", target="/passed/2")
        os._exit(0)
    connection = connect(port)
    talk(connection, "/passed/1")
    say("talked", target="/passed/1")
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [connection.fileno()]))
    ours.sendmsg([b"x"], [rights])
    connection.close()
    os.waitpid(child, 0)


def reuse(port: str) -> None:
    """A new connection takes the number of the one just closed, at once."""
    numbers = set()
    for number in range(23):
        connection = connect(port)
        numbers.add(connection.fileno())
        talk(connection, f"/reuse/{number}")
        connection.close()
    say("talked", numbers=len(numbers))


def blocked(first_port: str, second_port: str) -> None:
    """A receive blocks on a number that is closed and taken by another connection meanwhile."""
    first = connect(first_port)
    number = first.fileno()
    first.sendall(head("/blocked/slow"))
    got: list[bytes] = []

    def read() -> None:
        got.append(os.read(number, 65536))
        say("received", got=len(got[0]))

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.2)  # inside read() by now
    os.close(first.detach())
    second = connect(second_port)
    assert second.fileno() == number, (second.fileno(), number)
    say("open", inode=os.fstat(number).st_ino)
    talk(second, "/blocked/2")
    thread.join(20)
    talk(second, "/blocked/3")
    say("talked")


def early(port: str) -> None:
    """Connections in each state before the agent comes; a line of input, and they go on."""
    idle, half_head, half_body, used = (connect(port) for _ in range(4))
    body = b"early" * 200
    talk(used, "/early/used/before")
    half_head.sendall(head("/early/head/before")[:20])
    half_body.sendall(head("/early/body/before", body) + body[:300])
    say("ready")
    step()
    half_head.sendall(head("/early/head/before")[20:])
    receive(half_head.recv)
    half_body.sendall(body[300:])
    receive(half_body.recv)
    for name, opened in (("idle", idle), ("head", half_head), ("body", half_body), ("used", used)):
        for number in range(2):
            talk(opened, f"/early/{name}/{number}", body)
    say("talked")


# ---- server scenes: they print the port ----


def worker(_: str) -> None:
    """The parent accepts, a forked worker serves, the parent closes."""
    listener = listen()
    for _number in range(3):
        connection, _peer = listener.accept()
        child = os.fork()
        if not child:
            serve(connection)
            os._exit(0)
        connection.close()
        os.waitpid(child, 0)


def accept_and_pass(_: str) -> None:
    """One process accepts, another, to which the connection is passed, serves."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        for _number in range(2):
            fds = socket.recv_fds(theirs, 1, 1)[1]
            serve(socket.socket(fileno=fds[0]))
        os._exit(0)
    listener = listen()
    for _number in range(2):
        connection, _peer = listener.accept()
        socket.send_fds(ours, [b"x"], [connection.fileno()])
        connection.close()
    os.waitpid(child, 0)


def prefork(_: str) -> None:
    """Two workers accept from one listener that they inherited; each serves one connection."""
    listener = listen()
    children = []
    for _number in range(2):
        child = os.fork()
        if not child:
            connection, _peer = listener.accept()
            serve(connection)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def inetd(_: str) -> None:
    """The connection becomes standard input and output of a shell that was executed anew."""
    listener = listen()
    connection, _peer = listener.accept()
    script = (
        'read line; while read more && [ "${#more}" -gt 1 ]; do :; done; '
        r"printf 'HTTP/1.1 200 Done\r\nContent-Length: 6\r\n\r\ninetd\n'"
    )
    child = os.fork()
    if not child:
        os.dup2(connection.fileno(), 0)
        os.dup2(connection.fileno(), 1)
        os.execv("/bin/sh", ["sh", "-c", script])
    connection.close()
    os.waitpid(child, 0)
    say("answered", child=child)


def slow(_: str) -> None:
    """Answers each of three connections' only request after a line of input."""
    listener = listen()
    connection, _peer = listener.accept()
    request = receive(connection.recv)
    step()
    connection.sendall(answer(b"slow"))
    say("answered", target=target_of(request))
    connection.close()


# ---- for filters ----


def tree(port: str) -> None:
    """A process with a thread, a child and a grandchild that were there before, and new ones of each.

    The first line of input sets all of them off.
    """

    def visit(name: str) -> None:
        with connect(port) as connection:
            talk(connection, f"/filter/{name}")
        say("talked", target=f"/filter/{name}")

    go_read, go_write = os.pipe()
    child = os.fork()
    if not child:
        grandchild = os.fork()
        os.read(go_read, 1)
        visit("old-child" if grandchild else "old-grandchild")
        if grandchild:
            os.waitpid(grandchild, 0)
        os._exit(0)
    old_thread_go = threading.Event()

    def wait_and_visit() -> None:
        old_thread_go.wait(60)
        visit("old-thread")

    old_thread = threading.Thread(target=wait_and_visit)
    old_thread.start()
    say("ready")
    step()
    os.write(go_write, b"go")
    os.waitpid(child, 0)
    old_thread_go.set()
    old_thread.join(20)
    visit("main")
    new_thread = threading.Thread(target=visit, args=("new-thread",))
    new_thread.start()
    new_thread.join(20)
    child = os.fork()
    if not child:
        visit("new-child")
        grandchild = os.fork()
        if not grandchild:
            visit("new-grandchild")
            os._exit(0)
        os.waitpid(grandchild, 0)
        os._exit(0)
    os.waitpid(child, 0)
    ended_read, ended_write = os.pipe()
    child = os.fork()
    if not child:  # its parent ends first: still a descendant
        if os.fork():
            os._exit(0)
        time.sleep(0.1)
        visit("orphan")
        os.write(ended_write, b"x")
        os._exit(0)
    os.waitpid(child, 0)
    os.read(ended_read, 1)
    child = os.fork()
    if not child:
        program = (
            "import socket,sys;c=socket.create_connection(('127.0.0.1',int(sys.argv[1])));"
            "c.sendall(b'GET /filter/executed HTTP/1.1\\r\\nHost: actors\\r\\n\\r\\n');c.recv(999)"
        )
        os.execv(sys.executable, [sys.executable, "-c", program, port])
    os.waitpid(child, 0)
    say("talked", target="/filter/executed", child=child)


def answering(_: str) -> None:
    """A server, a thread a connection, until its input ends."""
    listener = listen()

    def accept() -> None:
        while True:
            connection, _peer = listener.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    while True:
        step()


SCENES: dict[str, Callable[..., None]] = {
    scene.__name__: scene
    for scene in (
        dup, fork, threads, passed, reuse, blocked, early,
        worker, accept_and_pass, prefork, inetd, slow, tree, answering,
    )
}  # fmt: skip


if __name__ == "__main__":
    signal.alarm(LIFETIME_SECONDS)
    SCENES[sys.argv[1]](*(sys.argv[2:] or [""]))
