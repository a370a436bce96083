"""One loopback connection of which the test holds both ends: what crosses it, and in which pieces, is the test's script."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

IO_SECONDS = 20.0
DIRECT_BYTES = 64 * 1024
"""What a loopback socket's buffers surely take while nobody reads."""


class Wire:
    """``up`` is from client to server, ``down`` the other way. Each call returns when all its bytes were received.

    ``piece`` is the most that one write, and so one read, carries; None leaves it to the kernel.
    """

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        name = client.getsockname()
        self.client_port = int(name[1]) if isinstance(name, tuple) else 0
        self.up_bytes = 0
        self.down_bytes = 0
        for end in (client, server):
            end.settimeout(IO_SECONDS)
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def up(self, data: bytes, piece: int | None = None) -> None:
        self.up_bytes += len(data)
        transfer(self.client, self.server, data, piece)

    def down(self, data: bytes, piece: int | None = None) -> None:
        self.down_bytes += len(data)
        transfer(self.server, self.client, data, piece)

    def exchange(self, request: bytes, response: bytes) -> None:
        self.up(request)
        self.down(response)

    def server_closes(self) -> None:
        """And the client reads the end of the stream, as a client must whose response ends there."""
        self.server.close()
        assert self.client.recv(1) == b""
        self.client.close()

    def client_closes(self) -> None:
        self.client.close()
        assert self.server.recv(1) == b""
        self.server.close()

    def close(self) -> None:
        """The usual end of a keep-alive connection; nothing when it is over already."""
        if self.client.fileno() != -1:
            self.client_closes()


def transfer(sender: socket.socket, receiver: socket.socket, data: bytes, piece: int | None = None) -> None:
    if piece is not None:
        for start in range(0, len(data), piece):
            part = data[start : start + piece]
            assert sender.send(part) == len(part)
            receive(receiver, part)
    elif len(data) <= DIRECT_BYTES:
        sender.sendall(data)
        receive(receiver, data)
    else:
        errors: list[BaseException] = []

        def send() -> None:
            try:
                sender.sendall(data)
            except OSError as error:
                errors.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        receive(receiver, data)
        thread.join(IO_SECONDS)
        assert not errors, errors


def receive(receiver: socket.socket, expected: bytes) -> None:
    got = bytearray()
    while len(got) < len(expected):
        part = receiver.recv(min(len(expected) - len(got), 256 * 1024))
        assert part, f"the stream ended after {len(got)} of {len(expected)} bytes"
        got += part
    assert got == expected


class Listener:
    """A listening socket on loopback, or at a path, that makes wires."""

    def __init__(self, path: str | None = None) -> None:
        self._socket = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(IO_SECONDS)
        self._socket.bind(("127.0.0.1", 0) if path is None else path)
        self._socket.listen(64)
        self.address = self._socket.getsockname()

    @property
    def port(self) -> int:
        return int(self.address[1])

    def connect(self) -> Wire:
        client = socket.socket(self._socket.family, socket.SOCK_STREAM)
        client.settimeout(IO_SECONDS)
        client.connect(self.address)
        server, _ = self._socket.accept()
        return Wire(client, server)

    @contextmanager
    def wire(self) -> Iterator[Wire]:
        wire = self.connect()
        try:
            yield wire
            wire.close()
        finally:
            wire.client.close()
            wire.server.close()

    def close(self) -> None:
        self._socket.close()


def pause(seconds: float) -> None:
    time.sleep(seconds)
