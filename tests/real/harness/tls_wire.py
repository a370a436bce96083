"""One TLS connection after another of which the test leads both ends, two processes that use OpenSSL as the test says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.real.harness.programs import Talker, talk
from tests.real.harness.tls import NAME, Certificates, Negotiated, iana
from tests.real.harness.truth import Truth

ANSWER_SECONDS = 20.0


class Actor:
    """A process of ``programs/tls_actor.c``."""

    def __init__(self, talker: Talker, directory: Path, name: str) -> None:
        self._talker = talker
        self._directory = directory
        self._name = name
        self._files = 0
        self.pid = talker.pid

    def begin(self, command: str) -> None:
        self._talker.say(command)

    def result(self) -> list[str]:
        line = self._talker.line(ANSWER_SECONDS)
        assert line.startswith("ok"), f"{self._name}: {line}"
        return line.split()[1:]

    def do(self, command: str) -> list[str]:
        self.begin(command)
        return self.result()

    def path(self, data: bytes = b"") -> Path:
        """A file of its own, with what is to be sent."""
        self._files += 1
        path = self._directory / f"{self._name}-{self._files}"
        path.write_bytes(data)
        return path


@dataclass(frozen=True, slots=True)
class Handshake:
    """What one end told of it."""

    negotiated: Negotiated
    resumed: bool
    client_port: int
    early: str


def shaken(words: list[str]) -> Handshake:
    """What a client's ``handshake`` answered."""
    version, cipher, resumed, alpn, port, early = words
    return Handshake(
        Negotiated(version.removeprefix("TLSv"), iana(cipher), NAME, "" if alpn == "-" else alpn),
        resumed == "1",
        int(port),
        early,
    )


class TlsWire:
    """``up`` is from client to server; ``exchange`` does a whole exchange and notes it in ``truth``."""

    def __init__(self, client: Actor, server: Actor, port: int) -> None:
        self.client = client
        self.server = server
        self.port = port
        self.truth: list[Truth] = []
        self.handshakes: list[Handshake] = []
        server.do(f"listen {port}")

    def both(self, command: str) -> None:
        for actor in (self.client, self.server):
            actor.do(command)

    def connect(self) -> None:
        """TCP alone."""
        self.server.begin("accept")
        self.client.do(f"connect {self.port}")
        self.server.result()

    def handshake(self) -> Handshake:
        """TLS; both ends must tell the same of it."""
        self.client.begin("handshake")
        self.server.begin("handshake")
        return self.shaken(self.client.result(), self.server.result())

    def shaken(self, at_client: list[str], at_server: list[str]) -> Handshake:
        assert at_server[:4] == at_client[:4], f"the ends disagree: {at_client}, {at_server}"
        found = shaken(at_client)
        self.handshakes.append(found)
        return found

    def up(self, data: bytes, *, send: str = "send", receive: str = "receive", piece: str = "") -> None:
        self._carry(self.client, self.server, data, send, receive, piece)

    def down(self, data: bytes, *, send: str = "send", receive: str = "receive", piece: str = "") -> None:
        self._carry(self.server, self.client, data, send, receive, piece)

    def _carry(self, sender: Actor, receiver: Actor, data: bytes, send: str, receive: str, piece: str) -> None:
        saved = receiver.path()
        receiver.begin(f"{receive} {len(data)} {saved} {piece}")
        sender.do(f"{send} {sender.path(data)} {piece}")
        receiver.result()
        assert saved.read_bytes() == data, "what was received is not what was sent"

    def note(self, method: str, target: str, response: bytes, request: bytes = b"") -> None:
        self.truth.append(Truth(method, target, 200, len(response), len(request), response[:4096].decode("ascii")))

    def exchange(
        self,
        target: str,
        response: bytes,
        request: bytes = b"",
        *,
        send: str = "send",
        receive: str = "receive",
        piece: str = "",
    ) -> None:
        method = "POST" if request else "GET"
        self.up(request_bytes(method, target, request), send=send, receive=receive, piece=piece)
        self.down(response_bytes(response), send=send, receive=receive, piece=piece)
        self.note(method, target, response, request)

    def close(self) -> None:
        """As OpenSSL's users do: close_notify of the one, its receipt by the other, then the sockets."""
        self.client.do("shutdown")
        self.server.do("end")
        self.both("close")


def request_bytes(method: str, target: str, body: bytes = b"") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {target} HTTP/1.1\r\nHost: {NAME}\r\n{length}\r\n".encode() + body


def response_bytes(body: bytes) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@contextlib.contextmanager
def tls_wire(binary: Path, directory: Path, certificates: Certificates, port: int) -> Iterator[TlsWire]:
    """The two processes, not connected yet."""
    args = [binary, certificates.certificate, certificates.key]
    with talk(args, directory) as client, talk(args, directory) as server:
        yield TlsWire(Actor(client, directory, "client"), Actor(server, directory, "server"), port)
