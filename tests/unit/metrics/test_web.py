from __future__ import annotations

import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import bcrypt
import pytest

from netprofiler.errors import CommandError, ExitCode
from netprofiler.metrics import web
from netprofiler.metrics.sink import Metrics
from netprofiler.metrics.web import CONNECTIONS_MAX, MetricsServer, split_address
from tests.unit.metrics.counting import names_of
from tests.unit.metrics.test_collector import a_health, counted
from tests.unit.metrics.test_web_config import certificate, written

__all__ = ["certificate"]


@pytest.fixture(autouse=True)
def _ends_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "POLL_SECONDS", 0.02)


@contextmanager
def serving(
    metrics: Metrics | None = None, config: str | None = None, warn: Callable[[str], None] = pytest.fail
) -> Iterator[MetricsServer]:
    server = MetricsServer(metrics or counted(), "127.0.0.1:0", config, warn)
    server.start()
    try:
        yield server
    finally:
        server.close()


def get(server: MetricsServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=5)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def live(seconds_ago: float = 0) -> Metrics:
    """As a capture that was attached and came by some time ago."""
    metrics = Metrics(names_of())
    metrics.watch(a_health)
    metrics.tick(time.monotonic_ns() - int(seconds_ago * 1e9), set)
    return metrics


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        (":9090", ("127.0.0.1", 9090)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_an_address_without_a_host_is_loopback(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["9090", "::1:80", "a:", "a:b", ":70000", ":-1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r":|9090"):
        split_address(address)


def test_an_address_that_cannot_be_had_is_a_usage_error() -> None:
    with serving() as server, pytest.raises(CommandError, match="in use") as caught:
        MetricsServer(counted(), f":{server.port}", None, pytest.fail)
    assert caught.value.exit_code == ExitCode.USAGE


def test_who_listens_beyond_loopback_without_a_password_is_warned() -> None:
    said: list[str] = []
    MetricsServer(counted(), "0.0.0.0:0", None, said.append).close()
    assert len(said) == 1 and "anybody" in said[0]


def test_the_format_is_the_one_that_is_asked_for() -> None:
    with serving() as server:
        status, headers, text = get(server, "/metrics")
        assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "http_server_request_duration_seconds_count{" in text and "# EOF" not in text
        accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
        _, headers, text = get(server, "/metrics", Accept=accept)
        assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        assert text.endswith("# EOF\n")
        assert "Python" not in headers["Server"]


def test_there_are_few_pages() -> None:
    with serving() as server:
        assert get(server, "/")[0] == 200
        assert get(server, "/metrics?name[]=x")[0] == 200
        assert get(server, "/other")[0] == 404
        assert get(server, "/metrics", "POST")[0] == 501
        status, headers, body = get(server, "/metrics", "HEAD")
        assert (status, body) == (200, "") and int(headers["Content-Length"]) > 1000


def test_ready_is_who_is_attached_and_alive_is_who_comes_by() -> None:
    for metrics, ready, alive in (
        (Metrics(names_of()), 503, 200),
        (live(), 200, 200),
        (live(seconds_ago=60), 503, 503),
    ):
        with serving(metrics) as server:
            assert (get(server, "/readyz")[0], get(server, "/healthz")[0]) == (ready, alive)


def test_a_connection_serves_more_than_one_scrape() -> None:
    with serving() as server:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=5)
        for _ in range(3):
            connection.request("GET", "/metrics")
            assert connection.getresponse().read().startswith(b"# HELP")
        connection.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET /metrics\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
        b"\xff\xfe\xfd\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    ],
)
def test_nonsense_disturbs_nobody(request_: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        with socket.create_connection((server.host, server.port), 5) as connection:
            answer = b""
            with suppress(OSError):  # a reset: what it sent was not read to its end
                connection.sendall(request_)
                connection.shutdown(socket.SHUT_WR)
                while data := connection.recv(65536):
                    answer += data
        assert answer.count(b"HTTP/1.1 200") <= 1
        assert get(server, "/metrics")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_who_keeps_all_connections_keeps_nobody_out() -> None:
    before = threading.active_count()
    with serving() as server, ExitStack() as stack:
        for _ in range(3 * CONNECTIONS_MAX):
            connection = stack.enter_context(socket.create_connection((server.host, server.port), 5))
            connection.sendall(b"GET /metrics HTT")
        for _ in range(3):
            assert get(server, "/metrics")[0] == 200
        end = time.monotonic() + 5
        while threading.active_count() > before + CONNECTIONS_MAX + 3:
            assert time.monotonic() < end, threading.active_count()
            time.sleep(0.01)


def test_who_is_slow_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "REQUEST_SECONDS", 0.2)
    with serving() as server, socket.create_connection((server.host, server.port), 5) as connection:
        begun = time.monotonic()
        connection.settimeout(0.05)
        ended = False
        while not ended and time.monotonic() < begun + 5:
            try:
                connection.sendall(b"X")  # never silent, never done
                ended = connection.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
        assert ended and time.monotonic() - begun < 3


def test_who_takes_no_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "REQUEST_SECONDS", 0.3)
    with serving() as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect((server.host, server.port))
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n" * 2000)
        end = time.monotonic() + 5
        while server._server._open:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert get(server, "/metrics")[0] == 200


def test_passwords_are_asked_for(tmp_path: Path) -> None:
    digest = bcrypt.hashpw(b"pa:ss", bcrypt.gensalt(4)).decode()
    with serving(config=written(tmp_path, f"basic_auth_users: {{ann: {digest}}}")) as server:
        for path in ("/metrics", "/healthz", "/"):
            status, headers, _ = get(server, path)
            assert status == 401 and headers["WWW-Authenticate"].startswith("Basic realm=")
        wrong = ["YW5uOnBhc3M=", "Ym9iOnBhOnNz", "", "!!!!", "YW5u", "/w=="]  # ann:pass, bob:pa:ss, ann, 0xff
        for credentials in wrong:
            assert get(server, "/metrics", Authorization=f"Basic {credentials}")[0] == 401
        assert get(server, "/metrics", Authorization="Bearer YW5uOnBhOnNz")[0] == 401
        for _ in range(2):
            assert get(server, "/metrics", Authorization="basic YW5uOnBhOnNz")[0] == 200


def test_tls_is_served_and_who_speaks_none_disturbs_nobody(
    certificate: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    text = "tls_server_config: {cert_file: cert, key_file: key}\nhttp_server_config: {headers: {X-Frame-Options: deny}}"
    with serving(config=written(certificate, text)) as server:
        context = ssl.create_default_context(cafile=str(certificate / "cert"))
        silent = socket.create_connection((server.host, server.port), 5)
        with socket.create_connection((server.host, server.port), 5) as plain:
            plain.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            plain.settimeout(5)
            with suppress(ConnectionResetError):
                assert b"200" not in plain.recv(100)
        for _ in range(2):
            connection = http.client.HTTPSConnection(server.host, server.port, timeout=5, context=context)
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("X-Frame-Options")) == (200, "deny")
            assert answer.read().startswith(b"# HELP")
            connection.close()
        silent.close()
    assert "Traceback" not in capfd.readouterr().err


def test_a_configuration_that_changes_is_read_again_and_a_wrong_one_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "RELOAD_SECONDS", 0.0)
    said: list[str] = []
    path = written(tmp_path, "")
    with serving(config=path, warn=said.append) as server:
        assert get(server, "/metrics")[0] == 200
        digest = bcrypt.hashpw(b"x", bcrypt.gensalt(4)).decode()
        written(tmp_path, f"basic_auth_users: {{ann: {digest}}}")
        assert get(server, "/metrics")[0] == 401
        written(tmp_path, "nonsense: 1")
        assert get(server, "/metrics")[0] == 401
        os.unlink(path)
        assert get(server, "/metrics")[0] == 401
    assert len(said) == 2 and all("what was read before holds" in line for line in said)
