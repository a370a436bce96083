"""Probes by each way that this kernel has: the newest by all of them, an old one by those that it was made for."""

from __future__ import annotations

import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netprofiler import wire
from netprofiler.sources import features, kernel
from netprofiler.sources.analysis import analyse
from netprofiler.sources.kernel import Filters, KernelSource
from netprofiler.sources.mapped_files import linked_tls_libraries
from netprofiler.sources.probes import Finding, Library, Probe, Purpose
from netprofiler.sources.uprobes import AttachError, Way, find_way

pytestmark = pytest.mark.kernel

PROBES_SECONDS = 5.0
"""To take some forty probes away; one by one it takes longer on a kernel that waits 100 ms with each."""
TALK = """
import socket, ssl, sys, threading
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain(sys.argv[1])
client = ssl.create_default_context(cafile=sys.argv[1])
here, there = socket.socketpair()
def serve():
    with server.wrap_socket(there, server_side=True) as connection:
        while (request := connection.recv(4096)):
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
thread = threading.Thread(target=serve)
thread.start()
with client.wrap_socket(here, server_hostname="localhost") as connection:
    for number in range(int(sys.argv[2])):
        connection.sendall(b"GET /way/%d HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n" % number)
        assert connection.recv(4096).endswith(b"ok")
thread.join()
"""
EXCHANGES = 23


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With its key."""
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "-")
    made = subprocess.run(
        ["openssl", "req", "-x509", *key, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    path.write_bytes(made.stdout)
    return path


@pytest.fixture(params=list(Way), ids=lambda way: way.name.lower())
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[KernelSource | None]:
    """A capture whose probes are attached this way; None: this kernel has it not, and says so."""
    way: Way = request.param
    if way is Way.MULTI and find_way() is not Way.MULTI:
        assert features.has_uprobe_multi() is False
        yield None
        return
    if way is Way.COOKIES and not features.has_cookies():
        yield None
        return
    monkeypatch.setattr(kernel, "find_way", lambda: way)
    opened = KernelSource(Filters(exclude_comms=("go",)))
    opened.attach()
    yield opened
    opened.close()


def openssl() -> tuple[str, Finding]:
    """The library of this Python, and where its probes go."""
    linked = {os.path.realpath(path): path for path in linked_tls_libraries()}
    assert ssl.OPENSSL_VERSION_INFO[0] == 3
    for path in linked.values():
        for finding in analyse(path).findings:
            if finding.library is Library.OPENSSL:
                return path, finding
    raise AssertionError(f"no OpenSSL in {linked}")


def talk(certificate: Path) -> int:
    """By Debian's Python, which has Debian's OpenSSL. Returns its pid."""
    talker = subprocess.Popen(["/usr/bin/python3", "-c", TALK, certificate, str(EXCHANGES)])
    assert talker.wait(60) == 0
    return talker.pid


def requests(source: KernelSource, pid: int) -> list[bytes]:
    """Targets of the requests that this process said inside of TLS."""
    time.sleep(0.2)
    found = []
    while batch := source.read():
        used = wire.whole_length(batch)
        for record in wire.records(batch[:used]):
            event = wire.parse(record)
            if isinstance(event, wire.DataCaptured) and event.pid == pid and event.payload.startswith(b"GET /way/"):
                found.append(event.payload.split()[1])
        source.advance(used)
    return found


def test_tls_is_read_as_long_as_the_probes_are_there(source: KernelSource | None, certificate: Path) -> None:
    if source is None:
        return
    path, finding = openssl()
    probes = source.attach_file(path, finding)
    assert probes.count == len(finding.probes)
    read = requests(source, talk(certificate))
    assert sorted(read) == sorted(2 * [b"/way/%d" % number for number in range(EXCHANGES)]), "as sent, as received"
    started = time.monotonic()
    probes.close()
    assert time.monotonic() - started < PROBES_SECONDS
    assert requests(source, talk(certificate)) == []


def test_what_is_refused_in_part_is_not_attached(source: KernelSource | None, certificate: Path) -> None:
    if source is None:
        return
    path, finding = openssl()
    before = len(os.listdir("/proc/self/fd"))
    wrong = Probe(2**40, Purpose.ENTER)
    with pytest.raises(AttachError):
        source.attach_file(path, Finding(finding.library, probes=(*finding.probes, wrong), layout=finding.layout))
    assert len(os.listdir("/proc/self/fd")) == before
    assert requests(source, talk(certificate)) == []


def test_a_file_that_is_not_there_is_gone(source: KernelSource | None) -> None:
    if source is None:
        return
    _, finding = openssl()
    with pytest.raises(AttachError) as raised:
        source.attach_file("/no/such/file", finding)
    assert raised.value.reason == "gone"
