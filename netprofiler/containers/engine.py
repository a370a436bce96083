"""The API of Docker, which Podman serves too: HTTP on a UNIX socket (Docker Engine API 1.24 and later).

Contract: `Engine(path)` asks one engine; every call may block for TIMEOUT_SECONDS and raises `EngineError`, nothing else,
whatever the other side sends. What it sends is bounded: ANSWER_MAX of an answer, LINE_MAX of an event. `events()` blocks
until something happens; `close()`, from another thread, ends that.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final

from netprofiler.containers.facts import (
    HEADER,
    TOKEN,
    EngineError,
    Event,
    Facts,
    address_of,
    is_container_id,
    labels_of,
    make_container,
    member,
    text_of,
)

TIMEOUT_SECONDS: Final = 5.0
ANSWER_MAX: Final = 32 * 1024 * 1024
"""The list of 4,096 containers has some 16 MB."""
LINE_MAX: Final = 1024 * 1024
"""An event carries the labels of its container."""
LISTED_MAX: Final = 4096
"""Containers taken of a list."""
_EVENTS: Final = "/events?filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%7D"


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=TIMEOUT_SECONDS)
        self._path = path
        self.socket: socket.socket | None = None
        """Also when http.client has given it to the response."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket = self.sock
        self.sock.settimeout(TIMEOUT_SECONDS)
        self.sock.connect(self._path)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "not understood"


class Engine:
    """See above."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._stream: _Connection | None = None
        self._closed = threading.Event()

    def list(self) -> list[str]:
        """Ids of the containers that run."""
        answer = self._ask("/containers/json")
        if not isinstance(answer, list):
            raise EngineError("not understood")
        identities = (member(item, "Id") for item in answer[:LISTED_MAX])
        return [identity for identity in identities if is_container_id(identity)]

    def inspect(self, identity: str) -> Facts:
        answer = self._ask(f"/containers/{identity}/json")
        if member(answer, "Id") != identity:
            raise EngineError("not understood")
        labels = labels_of(member(answer, "Config", "Labels"))
        networks = member(answer, "NetworkSettings", "Networks")
        mode = text_of(member(answer, "HostConfig", "NetworkMode"))
        pid = member(answer, "State", "Pid")
        return Facts(
            container=make_container(
                identity, text_of(member(answer, "Name")), text_of(member(answer, "Config", "Image")), labels
            ),
            labels=labels,
            addresses=tuple(_addresses(networks)),
            ports=tuple(_ports(member(answer, "NetworkSettings", "Ports"))),
            pid=pid if isinstance(pid, int) and pid > 0 else 0,
            shares_network=mode == "host" or mode.startswith(("container:", "ns:")),
            host_network=mode == "host",
        )

    def events(self) -> Iterator[Event | None]:
        """What happens from now on; first a None, when the engine has begun to tell."""
        try:
            stream = self._stream = _Connection(self.path)
            stream.request("GET", _EVENTS, headers={HEADER: TOKEN})
            response = stream.getresponse()
            if response.status != 200:
                raise EngineError(f"status {response.status}")
            yield None
            assert stream.socket is not None
            stream.socket.settimeout(None)
            while line := response.readline(LINE_MAX + 1):
                if len(line) > LINE_MAX:
                    raise EngineError("not understood")
                event = _event(json.loads(line)) if line.strip() else None
                if event is not None:
                    yield event
        except (OSError, http.client.HTTPException, ValueError, RecursionError, AttributeError) as error:
            raise EngineError(_reason(error)) from error
        finally:
            if self._stream is not None:
                self._stream.close()
        if not self._closed.is_set():
            raise EngineError("closed")

    def close(self) -> None:
        self._closed.set()
        stream = self._stream
        if stream is not None and stream.socket is not None:
            with contextlib.suppress(OSError):
                stream.socket.shutdown(socket.SHUT_RDWR)

    def _ask(self, target: str) -> Any:
        connection = _Connection(self.path)
        try:
            connection.request("GET", target, headers={HEADER: TOKEN})
            response = connection.getresponse()
            data = response.read(ANSWER_MAX + 1)
            if response.status != 200:
                raise EngineError(f"status {response.status}")
            if len(data) > ANSWER_MAX:
                raise EngineError("not understood")
            return json.loads(data)
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            raise EngineError(_reason(error)) from error
        finally:
            connection.close()


def _addresses(networks: object) -> Iterator[tuple[str, str]]:
    if not isinstance(networks, dict):
        return
    for name, network in list(networks.items())[:64]:
        identity = text_of(member(network, "NetworkID")) or text_of(name)
        for key in ("IPAddress", "GlobalIPv6Address"):
            address = address_of(member(network, key))
            if address:
                yield identity, address


def _ports(ports: object) -> Iterator[int]:
    if not isinstance(ports, dict):
        return
    for name, bindings in list(ports.items())[:1024]:
        if isinstance(bindings, list) and isinstance(name, str) and name.endswith("/tcp"):
            for binding in bindings[:16]:
                port = text_of(member(binding, "HostPort"))
                if port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65_536:
                    yield int(port)


def _event(value: Any) -> Event | None:
    action = text_of(member(value, "Action"))
    attributes = labels_of(member(value, "Actor", "Attributes"))
    if member(value, "Type") == "network":
        identity = attributes.get("container")
        return Event(action, identity, None) if identity is not None and is_container_id(identity) else None
    identity = member(value, "Actor", "ID")
    if not is_container_id(identity) or member(value, "Type") != "container":
        return None
    container = make_container(identity, attributes.get("name", ""), attributes.get("image", ""), attributes)
    return Event(action.partition(":")[0], identity, Facts(container, attributes))
