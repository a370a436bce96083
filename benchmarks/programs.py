"""The agent, servers and clients. Each is started on a free loopback port and ended by its own pid."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import host

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
READY_SECONDS = 20.0
END_SECONDS = 60.0


class ProgramError(Exception):
    """A program that a measure needs did not start, or said what we cannot read. The measure is reported as failed."""


def build() -> None:
    """build/bench/server, build/bench/load, and the latter again as https: a probe is put into a file, not into a process."""
    go = shutil.which("go")
    if go is None:
        found = subprocess.run([str(ROOT / "scripts" / "go.sh")], capture_output=True, text=True, check=True)
        go = str(Path(found.stdout.strip()) / "go")
    for name, directory in (("server", ROOT / "server"), ("load", ROOT / "benchmarks" / "load")):
        command = [go, "build", "-trimpath", "-buildvcs=false", "-o", str(BUILD / name), "."]
        environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
        subprocess.run(command, cwd=directory, env=environment, check=True)
    shutil.copy(BUILD / "load", BUILD / "https")


def end(process: subprocess.Popen[Any], number: int = signal.SIGTERM, seconds: float = END_SECONDS) -> float:
    """Signal it and wait. Returns the seconds that this took."""
    begin = time.monotonic()
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return time.monotonic() - begin


# ---- the agent ------------------------------------------------------------------------------------------------------


class Agent:
    """`netprofiler --output F --ledger L ARGUMENTS`, up and running, until `stop()`."""

    def __init__(
        self, executable: str, directory: Path, arguments: Sequence[str] = (), cache: Path | None = None
    ) -> None:
        """`cache`: where it looks for compiled programs, instead of in its usual place."""
        environment = {**os.environ, "CACHE_DIRECTORY": str(cache)} if cache is not None else None
        self.log = directory / "http.log"
        self._ledger = directory / "ledger.json"
        self._errors = directory / "stderr"
        for path in (self.log, self._ledger, self._errors):
            path.unlink(missing_ok=True)
        self.exit_status: int | None = None
        self.stop_seconds = 0.0
        output = [] if "--no-output" in arguments else ["--output", str(self.log)]
        command = [executable, *output, "--ledger", str(self._ledger), *arguments]
        begin = time.monotonic()
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=environment
            )
        while not any(line.startswith("ready") for line in self.messages()):
            if self._process.poll() is not None or time.monotonic() - begin > READY_SECONDS:
                end(self._process, signal.SIGKILL)
                raise ProgramError(f"the agent did not become ready: {' / '.join(self.messages()[-3:])}")
            time.sleep(0.002)
        self.ready_seconds = time.monotonic() - begin

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def messages(self) -> list[str]:
        return self._errors.read_text(encoding="utf-8", errors="replace").splitlines()

    def stop(self) -> None:
        self.stop_seconds = end(self._process, signal.SIGINT)
        self.exit_status = self._process.returncode

    def ledger(self) -> dict[str, Any]:
        try:
            ledger = json.loads(self._ledger.read_text())
        except (OSError, ValueError):
            return {}
        return ledger if isinstance(ledger, dict) else {}

    def discard(self) -> None:
        """A log can be gigabytes."""
        self.log.unlink(missing_ok=True)


# ---- servers --------------------------------------------------------------------------------------------------------


class Server:
    def __init__(self, name: str, pid: int, port: int, scheme: str = "http") -> None:
        self.name = name
        self.pid = pid
        self.port = port
        self._scheme = scheme

    def url(self, path: str) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}{path}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextlib.contextmanager
def _listening(name: str, command: list[str], scheme: str = "http") -> Iterator[Server]:
    """A program of ours that says ``listening tcp 127.0.0.1:PORT`` on standard error."""
    errors = BUILD / f"{name}.stderr"
    with errors.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file)
    try:
        for _ in range(2000):
            match = re.search(r"listening tcp \S+:(\d+)", errors.read_text())
            if match:
                break
            if process.poll() is not None:
                break
            time.sleep(0.005)
        else:
            match = None
        if match is None:
            raise ProgramError(f"{name} does not listen: {errors.read_text().strip()}")
        yield Server(name, process.pid, int(match[1]), scheme)
    finally:
        end(process, seconds=8)


@contextlib.contextmanager
def go_server() -> Iterator[Server]:
    command = [str(BUILD / "server"), "-host", "127.0.0.1", "-port", "0", "-tls-port", "", "-access-log", "/dev/null"]
    with _listening("server", command) as server:
        yield server


@contextlib.contextmanager
def echo_server() -> Iterator[Server]:
    with _listening("echo", [str(BUILD / "load"), "echo", "-address", "127.0.0.1:0"]) as server:
        yield server


@contextlib.contextmanager
def go_tls_server(executable: Path = BUILD / "https") -> Iterator[Server]:
    """net/http over crypto/tls, HTTP/1.1."""
    with _listening(executable.name, [str(executable), "https", "-address", "127.0.0.1:0"], "https") as server:
        yield server


_NGINX = """
daemon off;
{user}
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    server {{ listen 127.0.0.1:{port}{tls}; root {directory}/www; }}
}}
"""


@contextlib.contextmanager
def nginx(*, tls: bool = False) -> Iterator[Server]:
    """Static files: /small (a few hundred bytes), /large (1 MiB), by sendfile, or through TLS."""
    executable = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(executable).exists():
        raise ProgramError("nginx is not installed")
    directory = BUILD / "nginx"
    (directory / "www").mkdir(parents=True, exist_ok=True)
    (directory / "www" / "small").write_bytes(b"<p>a small file, by sendfile</p>\n" * 8)
    (directory / "www" / "large").write_bytes(b"0123456789abcde\n" * 65536)
    port = free_port()
    configuration = directory / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    with_tls = ""
    if tls:
        subprocess.run([str(BUILD / "load"), "certificate", "-directory", str(directory)], check=True)
        with_tls = f" ssl; ssl_certificate {directory}/certificate.pem; ssl_certificate_key {directory}/key.pem"
    configuration.write_text(_NGINX.format(directory=directory, port=port, user=user, tls=with_tls))
    process = subprocess.Popen(
        [executable, "-p", str(directory), "-c", str(configuration)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port, process)
        yield Server("nginx", process.pid, port, "https" if tls else "http")
    finally:
        end(process, seconds=8)


def free_port() -> int:
    import socket  # noqa: PLC0415  (only here)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Look into /proc/net/tcp: a connection made to see whether it works would be traffic."""
    wanted = f"0100007F:{port:04X} 00000000:0000 0A"
    for _ in range(1000):
        if wanted in Path("/proc/net/tcp").read_text():
            return
        if process.poll() is not None:
            break
        time.sleep(0.005)
    raise ProgramError(f"nothing listens on port {port}")


# ---- clients --------------------------------------------------------------------------------------------------------


class Load:
    """A client under way; `result()` when it has ended."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.cpu_us = 0

    def running(self) -> bool:
        if self._process.poll() is not None:
            return False
        # The process is a zombie when it has ended: read before that.
        self.cpu_us = host.cpu_us(self._process.pid) or self.cpu_us
        return True

    def output(self, seconds: float) -> str:
        try:
            out, errors = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise ProgramError(f"{self.command[0]} did not end") from None
        if self._process.returncode:
            raise ProgramError(f"{Path(self.command[0]).name} failed: {errors.strip() or out.strip()}")
        return out

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def load_command(kind: str, address: str, *flags: str) -> list[str]:
    return [str(BUILD / "load"), kind, "-address", address, *flags]


def wrk_command(url: str, seconds: int, connections: int) -> list[str]:
    return ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", url]


_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7}


def parse_load(output: str) -> dict[str, Any]:
    result = json.loads(output)
    assert isinstance(result, dict)
    return result


def parse_wrk(output: str) -> dict[str, Any]:
    """The same keys as load/ prints, as far as wrk tells."""
    requests = re.search(r"(\d+) requests in ([\d.]+)(s|m),", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if requests is None or rate is None:
        raise ProgramError(f"wrk said: {output.strip()[:300]}")
    errors = sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout) (\d+)", output))
    errors += sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", output))
    quantiles = {
        f"p{percent}": float(value) * _UNITS[unit]
        for percent, value, unit in re.findall(r"^\s+(50|90|99)%\s+([\d.]+)(us|ms|s|m)", output, re.MULTILINE)
    }
    return {
        "requests": int(requests[1]),
        "errors": errors,
        "seconds": float(requests[2]) * (60 if requests[3] == "m" else 1),
        "per_second": float(rate[1]),
        "service_us": quantiles,
    }
