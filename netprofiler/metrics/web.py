"""The HTTP server for `/metrics`, `/healthz` and `/readyz`.

Contract: `MetricsServer` listens once it is made (`CommandError` where it cannot), serves from `start()` to `close()` by threads of
its own, and never disturbs who counts: a scrape takes the lock for a copy of the tables only. Who is slow, or hostile, gets
REQUEST_SECONDS for a request and for taking the answer, and one of CONNECTIONS_MAX threads; where these are used up, the
connection that has been idle for the longest makes room. One scrape is rendered at a time. HTTP/1.1 only; GET and HEAD.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Final

from netprofiler.errors import CommandError, ExitCode
from netprofiler.metrics.collector import Exposition
from netprofiler.metrics.sink import Metrics

if TYPE_CHECKING:
    from netprofiler.metrics.web_config import WebConfig

CONNECTIONS_MAX: Final = 16
"""Prometheus takes one; two of them for availability, and people with browsers, a few more."""
REQUEST_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 120.0
"""Between two scrapes on one connection."""
POLL_SECONDS: Final = 0.5
STUCK_SECONDS: Final = 10.0
"""The main thread comes by every 40 ms: silent for this long it does not count any more."""
PASSWORDS_MAX: Final = 64
"""Right passwords are remembered, as a hash: bcrypt is slow on purpose."""
RELOAD_SECONDS: Final = 1.0

_INDEX: Final = b"""<!doctype html><title>netprofiler</title><h1>netprofiler</h1>
<ul><li><a href="/metrics">metrics</a><li><a href="/healthz">healthz</a><li><a href="/readyz">readyz</a></ul>
"""
_TEXT: Final = "text/plain; charset=utf-8"


def split_address(address: str) -> tuple[str, int]:
    """``HOST:PORT`` → host and port; no host is loopback. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(address)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(address)
    return host or "127.0.0.1", int(port)


class MetricsServer:
    """See above. `address`: as for `split_address`; port 0 is any. `config_path`: of web_config.py."""

    def __init__(self, metrics: Metrics, address: str, config_path: str | None, warn: Callable[[str], None]) -> None:
        host, port = split_address(address)
        guard = None if config_path is None else Guard(config_path, warn)
        try:
            family, _, _, _, sockaddr = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
            )[0]
            self._server = _Server(family, sockaddr[:2], metrics, guard)
        except OSError as error:
            raise CommandError(f"--metrics-address {address}: {error.strerror}", ExitCode.USAGE) from error
        self.host: str = str(self._server.server_address[0])
        self.port: int = self._server.server_address[1]
        if guard is None and not _is_loopback(self.host):
            warn(
                f"--metrics-address {address}: anybody who reaches it can read it; --metrics-config FILE adds TLS and passwords"
            )
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), name="metrics", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
        self._server.drop_all()


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1")


class Guard:
    """TLS and passwords; the files are read again when they have changed, and what is wrong with them then is told once."""

    def __init__(self, path: str, warn: Callable[[str], None]) -> None:
        from netprofiler.metrics import web_config  # noqa: PLC0415 - YAML and bcrypt for who asks for it

        self._module = web_config
        self._path = path
        self._warn = warn
        self._lock = threading.Lock()
        self._bcrypt = threading.Lock()
        self._right: dict[bytes, bytes] = {}
        self._salt = secrets.token_bytes(16)
        self._config = web_config.load(path)
        self._stamps = self._look()
        self._look_again = time.monotonic() + RELOAD_SECONDS

    def _look(self) -> tuple[object, ...]:
        stamps: list[object] = []
        for path in self._config.files:
            try:
                status = os.stat(path)
                stamps.append((status.st_mtime_ns, status.st_ino, status.st_size))
            except OSError:
                stamps.append(None)
        return tuple(stamps)

    @property
    def config(self) -> WebConfig:
        with self._lock:
            now = time.monotonic()
            if now >= self._look_again:
                self._look_again = now + RELOAD_SECONDS
                stamps = self._look()
                if stamps != self._stamps:
                    self._stamps = stamps
                    try:
                        self._config = self._module.load(self._path)
                        self._stamps = self._look()
                        self._right.clear()
                    except CommandError as error:
                        self._warn(f"{error}; what was read before holds")
            return self._config

    def admits(self, authorization: str | None) -> bool:
        """RFC 7617. One comparison at a time: a flood of wrong passwords costs one CPU at most."""
        users = self.config.users
        if not users:
            return True
        scheme, _, credentials = (authorization or "").partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            pair = base64.b64decode(credentials.strip(), validate=True)
            user = pair.partition(b":")[0].decode()
        except (binascii.Error, ValueError):
            return False
        password = pair.partition(b":")[2]
        digest = users.get(user)
        key = hashlib.sha256(self._salt + pair).digest()
        if digest is not None and self._right.get(key) == digest:
            return True
        with self._bcrypt:
            right = self._module.is_password(password, digest)
        if not right or digest is None:
            return False
        if len(self._right) >= PASSWORDS_MAX:
            self._right.clear()
        self._right[key] = digest
        return True


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, family: int, address: Any, metrics: Metrics, guard: Guard | None) -> None:
        self.address_family = family
        self.metrics = metrics
        self.guard = guard
        self.exposition = Exposition(metrics)
        self.rendering = threading.Lock()
        self._open_lock = threading.RLock()
        self._open: dict[Any, tuple[float, bool]] = {}
        """Connection → when it has to be done, and whether it is idle."""
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[Any, Any]:
        connection, address = self.socket.accept()
        tls = self.guard.config.tls if self.guard is not None else None
        if tls is not None:  # the handshake is the handler's, with its timeout
            return tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            if len(self._open) >= CONNECTIONS_MAX:
                idle = [connection for connection, (_, is_idle) in self._open.items() if is_idle]
                if not idle:
                    self.shutdown_request(request)
                    return
                oldest = min(idle, key=lambda connection: self._open[connection][0])
                del self._open[oldest]
                _drop(oldest)
            self._open[request] = (time.monotonic() + REQUEST_SECONDS, True)
        super().process_request(request, client_address)

    def touch(self, request: Any, seconds: float, *, idle: bool) -> None:
        """The connection gets so much time more."""
        with self._open_lock:
            if request in self._open:
                self._open[request] = (time.monotonic() + seconds, idle)

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        now = time.monotonic()
        with self._open_lock:
            for connection, (deadline, _) in self._open.items():
                if now > deadline:
                    _drop(connection)

    def drop_all(self) -> None:
        with self._open_lock:
            for connection in self._open:
                _drop(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or speaks no TLS, is no error of ours."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _drop(connection: Any) -> None:
    """Its handler, which may be reading or writing, sees the end."""
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except OSError:
        return


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def parse_request(self) -> bool:
        # The request line is there: from here on it is a request.
        self.server.touch(self.request, REQUEST_SECONDS, idle=True)
        return super().parse_request()

    def do_GET(self) -> None:
        self.server.touch(self.request, REQUEST_SECONDS, idle=False)
        guard = self.server.guard
        if guard is not None and not guard.admits(self.headers.get("Authorization")):
            more = {"WWW-Authenticate": 'Basic realm="netprofiler", charset="UTF-8"'}
            self._answer(HTTPStatus.UNAUTHORIZED, [b"Unauthorized\n"], more=more)
            return
        path = self.path.partition("?")[0]
        if path == "/metrics":
            with self.server.rendering:
                pieces, content_type = self.server.exposition.render(self.headers.get("Accept", ""))
            # The time it took to make is not the client's.
            self.server.touch(self.request, REQUEST_SECONDS, idle=False)
            self._answer(HTTPStatus.OK, pieces, content_type)
        elif path == "/healthz":
            self._say(self._is_alive(), "alive", "the capture does not come by any more")
        elif path == "/readyz":
            self._say(self.server.metrics.is_ready and self._is_alive(), "ready", "probes are not attached")
        elif path == "/":
            self._answer(HTTPStatus.OK, [_INDEX], "text/html; charset=utf-8")
        else:
            self._answer(HTTPStatus.NOT_FOUND, [b"there are /metrics, /healthz and /readyz\n"])

    do_HEAD = do_GET  # noqa: N815

    def version_string(self) -> str:
        return "netprofiler"

    def _is_alive(self) -> bool:
        ticked_ns = self.server.metrics.ticked_ns
        return not ticked_ns or time.monotonic() - ticked_ns / 1e9 < STUCK_SECONDS

    def _say(self, good: bool, yes: str, no: str) -> None:
        self._answer(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, [f"{yes if good else no}\n".encode()])

    def _answer(
        self,
        status: HTTPStatus,
        pieces: Sequence[bytes],
        content_type: str = _TEXT,
        *,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        guard = self.server.guard
        headers = {"Content-Type": content_type, "Content-Length": str(sum(map(len, pieces))), **(more or {})}
        for name, value in {**headers, **(guard.config.headers if guard is not None else {})}.items():
            self.send_header(name, value)
        if self._has_body():
            self.close_connection = True  # nobody reads it
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            for piece in pieces:
                self.wfile.write(piece)
        self.server.touch(self.request, IDLE_SECONDS, idle=True)

    def _has_body(self) -> bool:
        return self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as above
        """The agent's log is not about its own scrapes."""
