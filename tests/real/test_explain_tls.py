"""`netprofiler explain` of real programs: what it says of their TLS is what they say of themselves, and what the kernel does.

The truth about a version is the program's own (``curl --version``, ``ssl.OPENSSL_VERSION``, the Go that built it); about probes it is
the breakpoints in the text of the process while `explain --seconds` watches it.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.real.harness import go_programs, servers, tls_servers
from tests.real.harness.agent import NETPROFILER
from tests.real.harness.programs import PYTHON, Program, free_port, process_tree, require, wait_until
from tests.real.harness.text import breakpoints
from tests.real.harness.tls import NAME, Certificates, build_c

pytestmark = pytest.mark.real

Explanation = dict[str, Any]


def explain(pid: int, *options: str) -> Explanation:
    done = subprocess.run(
        [NETPROFILER, "explain", str(pid), "--json", *options], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    document: Explanation = json.loads(done.stdout)
    return document


def explained_text(pid: int) -> str:
    return subprocess.run(
        [NETPROFILER, "explain", str(pid)], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def output_of(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout + done.stderr


def found_in(text: str, pattern: str) -> str:
    match = re.search(pattern, text)
    assert match, f"no {pattern} in {text[:500]}"
    return match[1]


def mapped(pid: int) -> set[str]:
    """Paths of what the process may execute."""
    lines = (line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
    return {words[5] for words in lines if len(words) == 6 and "x" in words[1]}


def library(explanation: Explanation, name: str) -> tuple[str, dict[str, Any]]:
    """Path and library, of which there is one; each function's probes are complete."""
    [(path, found)] = [
        (file["path"], one) for file in explanation["tls"] for one in file["libraries"] if one["library"] == name
    ]
    assert "problem" not in found, found
    assert found["probes"], found
    for probe in found["probes"]:
        assert probe["function"] and probe["offset"] > 0
        assert probe["kind"] in ("emulated", "single-stepped", "return probe")
    assert path in mapped(explanation["process"]["pid"])
    return path, found


def assert_reads_and_writes(found: dict[str, Any]) -> None:
    """A C library's: each call that moves plaintext has a beginning and an end."""
    for call in ("read", "write"):
        purposes = {probe["purpose"] for probe in found["probes"] if probe["call"] == call}
        assert purposes == {"enter", "leave"}, (call, purposes)


def limits_about_tls(explanation: Explanation) -> list[str]:
    return [limit["why"] for limit in explanation["limits"] if limit["what"] == "TLS"]


@contextmanager
def waiting_client(args: Sequence[str | Path], port: int) -> Iterator[int]:
    """A client of a server that accepts and says nothing: it hangs in the handshake, with its library mapped."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(20)
        process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(1) == b"\x16", "a handshake"
                yield process.pid
        finally:
            process.kill()
            process.wait(5)


def test_curl() -> None:
    [curl] = require("curl")
    port = free_port()
    with waiting_client([curl, "-s", f"https://127.0.0.1:{port}/"], port) as pid:
        explanation = explain(pid)
        path, found = library(explanation, "openssl")
        assert "libssl.so" in path
        assert found["version"] == found_in(output_of(curl, "--version"), r" OpenSSL/(\S+)")
        assert_reads_and_writes(found)
        assert found["sockets_by"][0] == "the random of the ClientHello"
        assert limits_about_tls(explanation) == []
        assert f"OpenSSL {found['version']} in {path}: {len(found['probes'])} probes" in explained_text(pid)


def test_wget() -> None:
    [wget, client] = require("wget", "gnutls-cli")
    port = free_port()
    command = [wget, "-q", "--no-config", "-O", "/dev/null", "--no-check-certificate", f"https://127.0.0.1:{port}/"]
    with waiting_client(command, port) as pid:
        explanation = explain(pid)
        path, found = library(explanation, "gnutls")
        assert "libgnutls.so" in path
        assert found["version"] == found_in(output_of(client, "--version"), r"^gnutls-cli (\S+)")
        assert_reads_and_writes(found)
        assert found["sockets_by"] == ["the system calls inside of its calls"]


def test_nss(directory: Path) -> None:
    """A program of ours, and what stands beside it: the version is NSPR's, whose functions are probed."""
    [config] = require("nspr-config")
    binary = build_c(
        "nss_client", directory, "-I/usr/include/nss", "-I/usr/include/nspr", "-lssl3", "-lnss3", "-lnspr4"
    )
    plan = directory / "plan"
    plan.write_text("GET /\n")
    port = free_port()
    with waiting_client([binary, str(port), NAME, plan], port) as pid:
        path, found = library(explain(pid), "nss")
        assert "libnspr4.so" in path
        assert f"{found['version']}.0".startswith(output_of(config, "--version").strip())
        assert_reads_and_writes(found)


def test_nginx(directory: Path, certificates: Certificates) -> None:
    [nginx] = require("nginx")
    root = directory / "root"
    root.mkdir()
    with tls_servers.nginx(directory, free_port(), certificates, root) as server:
        told = output_of(nginx, "-V")
        version = re.search(r"running with OpenSSL (\S+)", told) or re.search(r"built with OpenSSL (\S+)", told)
        assert version
        for pid in server.pids():  # master and worker
            path, found = library(explain(pid), "openssl")
            assert "libssl.so" in path
            assert found["version"] == version[1]
            assert_reads_and_writes(found)


def test_haproxy(directory: Path, certificates: Certificates) -> None:
    [haproxy] = require("haproxy")
    version = found_in(output_of(haproxy, "-vv"), r"Running on OpenSSL version : OpenSSL (\S+)")
    with tls_servers.haproxy(directory, free_port(), free_port(), certificates) as server:
        _, found = library(explain(server.pid), "openssl")
        assert found["version"] == version
        assert_reads_and_writes(found)


def test_apache(directory: Path, certificates: Certificates) -> None:
    version = found_in(output_of(*require("openssl"), "version"), r"^OpenSSL (\S+)")
    root = directory / "root"
    root.mkdir()
    with tls_servers.apache(directory, free_port(), certificates, root, version="1.3") as server:
        for pid in server.pids():
            _, found = library(explain(pid), "openssl")
            assert found["version"] == version


def test_node(directory: Path, certificates: Certificates) -> None:
    """OpenSSL is in the executable."""
    [node] = require("node")
    with tls_servers.node_server(directory, free_port(), certificates) as server:
        path, found = library(explain(server.pid), "openssl")
        assert path == str(Path(f"/proc/{server.pid}/exe").readlink())
        assert found["version"] == output_of(node, "-p", "process.versions.openssl").strip().partition("+")[0]
        assert_reads_and_writes(found)
        assert found["sockets_by"][0] == "the random of the ClientHello"


def test_python(directory: Path, certificates: Certificates) -> None:
    version = found_in(output_of(PYTHON, "-c", "import ssl; print(ssl.OPENSSL_VERSION)"), r"OpenSSL (\S+)")
    with tls_servers.python_server(directory, free_port(), certificates, "asyncio") as server:
        _, found = library(explain(server.pid), "openssl")
        assert found["version"] == version
        assert_reads_and_writes(found)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["plain", "stripped"])
@pytest.mark.parametrize("version", go_programs.CHOSEN)
def test_go(directory: Path, version: str, mode: str) -> None:
    binary = go_programs.build(version, mode)
    with go_server(binary, directory) as server:
        explanation = explain(server.pid)
        path, found = library(explanation, "go")
        assert path == str(binary)
        assert found["version"] == f"go{version}"
        assert {probe["purpose"] for probe in found["probes"]} == {"go_write", "go_handshake", "go_decrypted"}
        assert {probe["kind"] for probe in found["probes"]} == {"emulated"}
        assert found["sockets_by"][0] == "the descriptor of a *net.TCPConn"
        assert explanation["program"]["go_version"] in (f"go{version}", "go")


@contextmanager
def go_server(binary: Path, directory: Path) -> Iterator[Program]:
    with Program([binary, "server", "-listen", "tcp:127.0.0.1:0"], directory, name="server") as server:
        wait_until(lambda: "listening" in server.errors.read_text(), "the server listens")
        yield server


def test_java(directory: Path, classes: Path) -> None:
    """Java's own TLS cannot be read, and that is said."""
    with servers.java_server(directory, free_port(), classes) as server:
        explanation = explain(server.pid)
        assert not [one for file in explanation["tls"] for one in file["libraries"]]
        [why] = limits_about_tls(explanation)
        assert why.startswith("Java in ") and "libjvm.so" in why
        assert f"  TLS: {why}" in explained_text(server.pid)


def test_a_program_without_tls() -> None:
    [sleep] = require("sleep")
    process = subprocess.Popen([sleep, "30"])
    try:
        wait_until(lambda: sleep in " ".join(mapped(process.pid)), "it runs")
        explanation = explain(process.pid)
        assert explanation["tls"] == []
        assert limits_about_tls(explanation) == []
    finally:
        process.kill()
        process.wait(5)


# --- with --seconds -------------------------------------------------------------------------------------------------------

ASK = """
import http.client, ssl, sys, time
context = ssl.create_default_context(cafile=sys.argv[2])
while True:
    connection = http.client.HTTPSConnection("localhost", int(sys.argv[1]), context=context, timeout=10)
    for _ in range(3):
        connection.request("GET", "/bytes/100")
        connection.getresponse().read()
        time.sleep(0.02)
    connection.close()
"""


def test_a_look_at_what_is_read(directory: Path, certificates: Certificates) -> None:
    """Probes are where it says, and so is plaintext."""
    port = free_port()
    with (
        tls_servers.python_server(directory, port, certificates, "asyncio", version="1.3") as server,
        Program([PYTHON, "-c", ASK, str(port), certificates.ca], directory, name="asker"),
        subprocess.Popen(
            [NETPROFILER, "explain", str(server.pid), "--json", "--seconds", "3"], stdout=subprocess.PIPE, text=True
        ) as explaining,
    ):
        wait_until(lambda: bool(breakpoints(server.pid, "libssl")), "the server is probed")
        [(path, offsets)] = breakpoints(server.pid, "libssl").items()
        output, _ = explaining.communicate(timeout=60)
        assert explaining.returncode == 0
    explanation = json.loads(output)
    [file] = [file for file in explanation["tls"] if file["path"] == path]
    assert file["state"] == "attached"
    assert {probe["offset"] for probe in file["libraries"][0]["probes"]} <= set(offsets)  # another agent may run, too
    look = explanation["look"]
    assert look["requests"] > 20 and abs(look["requests"] - look["responses"]) <= 1
    assert look["tls_read"] >= look["requests"] // 3
    # What was open when the look ended, or had begun before the probes were in.
    assert sum(unread["connections"] for unread in look["tls_unread"]) <= 2
    assert look["found"]["session"] + look["found"].get("hello", 0) > 20
    rows = look["rows"]["bytes"]
    assert rows["recorded"] > 1000
    assert rows["tls"] > rows["recorded"], "the ciphertext of the same bytes"


JAVA_ASK = """
import javax.net.ssl.*;
public final class Ask {
  public static void main(String[] args) throws Exception {
    while (true) {
      try (SSLSocket socket = (SSLSocket) SSLSocketFactory.getDefault().createSocket("127.0.0.1", Integer.parseInt(args[0]))) {
        socket.startHandshake();
      } catch (SSLException error) {
        System.out.println("asked"); // Our certificate is not known to it; the handshake was one all the same.
      }
      Thread.sleep(50);
    }
  }
}
"""


def test_a_look_at_what_cannot_be_read(directory: Path, certificates: Certificates) -> None:
    [java] = require("java")
    (directory / "Ask.java").write_text(JAVA_ASK)
    port = free_port()
    root = directory / "root"
    root.mkdir()
    with (
        tls_servers.nginx(directory, port, certificates, root),
        Program([java, *servers.JAVA_FLAGS, directory / "Ask.java", str(port)], directory, name="ask") as asker,
    ):
        wait_until(lambda: "asked" in asker.log.read_text(), "it asks")
        look = explain(asker.pid, "--seconds", "2")["look"]
    assert look["tls_read"] == 0
    [unread] = look["tls_unread"]
    assert unread["pid"] in process_tree(asker.pid) | {asker.pid}
    assert unread["connections"] > 5
    assert unread["why"].startswith("it has Java in ") and "libjvm.so" in unread["why"]
