"""An engine that serves the API on a socket, and a /proc, both made of what a test says."""

from __future__ import annotations

import contextlib
import json
import queue
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any

from netprofiler.sources.processes import PF_FORKNOEXEC

A = "a" * 64
B = "b" * 64


def described(
    identity: str,
    name: str,
    *,
    labels: dict[str, str] | None = None,
    address: str = "",
    network: str = "n1",
    pid: int = 0,
) -> dict[str, Any]:
    """As ``GET /containers/ID/json`` gives it."""
    return {
        "Id": identity,
        "Name": f"/{name}",
        "State": {"Pid": pid},
        "HostConfig": {"NetworkMode": network},
        "Config": {"Image": f"image-of-{name}", "Labels": labels or {}},
        "NetworkSettings": {
            "Networks": {network: {"NetworkID": f"id-of-{network}", "IPAddress": address, "GlobalIPv6Address": ""}},
            "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "81/tcp": None},
        },
    }


class FakeEngine:
    """``with FakeEngine(path) as engine:`` what is in `containers` runs; `tell` sends an event."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.containers: dict[str, Any] = {}
        self.requests: list[str] = []
        self.listening = threading.Event()
        self._events: queue.Queue[bytes | None] = queue.Queue()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.requests.append(self.path)
                if self.path.startswith("/events"):
                    self.send_response(200)
                    self.end_headers()
                    fake.listening.set()
                    while (line := fake._events.get()) is not None:
                        self.wfile.write(line)
                        self.wfile.flush()
                    return
                name = self.path.split("/")[2]
                if name == "json":
                    answer: Any = [{"Id": identity} for identity in fake.containers]
                else:
                    answer = fake.containers.get(name)
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(404 if answer is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def address_string(self) -> str:
                return "unix"

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Server(str(path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FakeEngine:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.put(None)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def tell(self, action: str, identity: str, **attributes: str) -> None:
        event = {"Type": "container", "Action": action, "Actor": {"ID": identity, "Attributes": attributes}}
        self.say(json.dumps(event).encode() + b"\n")

    def say(self, line: bytes) -> None:
        self._events.put(line)


class FakeProc:
    """A /proc with these processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.add(1)

    def add(
        self,
        pid: int,
        *,
        container: str = "",
        parent: int = 1,
        start: int = 100,
        environ: bytes = b"",
        namespace: str = "host",
        executed: bool = True,
    ) -> None:
        directory = self.path / str(pid)
        (directory / "ns").mkdir(parents=True, exist_ok=True)
        (directory / "net").mkdir(exist_ok=True)
        (directory / "cgroup").write_text(f"0::/docker/{container}\n" if container else "0::/\n")
        flags = 0 if executed else PF_FORKNOEXEC
        fields = ["S", str(parent), *["0"] * 4, str(flags), *["0"] * 12, str(start), "0"]
        (directory / "stat").write_text(f"{pid} (a) name) {' '.join(fields)}\n")
        (directory / "environ").write_bytes(environ)
        (directory / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
        (directory / "task" / str(pid) / "children").touch()
        with contextlib.suppress(FileNotFoundError), (self.path / f"{parent}/task/{parent}/children").open("a") as of:
            of.write(f"{pid} ")
        shared = self.path / f"namespace-{namespace}"
        shared.touch()
        (directory / "ns" / "net").unlink(missing_ok=True)
        (directory / "ns" / "net").symlink_to(shared)

    def network(self, pid: int, *, own: tuple[str, ...], routes: tuple[tuple[str, str, str], ...] = ()) -> None:
        """`routes`: device, network and mask, both as /proc/net/route has them."""
        directory = self.path / str(pid) / "net"
        lines = [f"  |-- {address}\n     /32 host LOCAL" for address in own]
        (directory / "fib_trie").write_text("Local:\n" + "\n".join(lines) + "\n")
        head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
        rows = [f"{device} {network} 00000000 0001 0 0 0 {mask} 0 0 0" for device, network, mask in routes]
        (directory / "route").write_text(head + "\n".join(rows) + "\n")

    def namespace_of(self, pid: int) -> int:
        return (self.path / str(pid) / "ns" / "net").stat().st_ino

    def remove(self, pid: int) -> None:
        import shutil

        shutil.rmtree(self.path / str(pid))
