"""netprofiler explain: a /proc made of files, and real processes where we are root."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from netprofiler.cli import main
from netprofiler.commands import explain as module
from netprofiler.commands.explain import ROW_MEANINGS, SOCKETS_SHOWN, Look, as_json, as_text, explain
from netprofiler.counters import LEDGER_ROWS
from netprofiler.errors import CommandError
from netprofiler.sources.sockets import SocketFacts

PID = 4711
TCP_HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
UNIX_HEAD = "Num       RefCount Protocol Flags    Type St Inode Path\n"


def elf(bits: int = 64, text: bytes = b"") -> bytes:
    return b"\x7fELF" + bytes([2 if bits == 64 else 1, 1, 1]) + bytes(57) + text


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """One process: 64-bit, with five sockets and a pipe."""
    directory = tmp_path / str(PID)
    for name in ("fd", "net", "ns"):
        (directory / name).mkdir(parents=True)
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/net").symlink_to("net:[4026531840]")
    (directory / "ns/net").symlink_to("net:[4026531840]")
    (directory / "ns/pid").symlink_to("pid:[4026531836]")
    (directory / "comm").write_text("nginx\n")
    (directory / "cmdline").write_bytes(b"nginx: worker\0-g\0daemon off;\0")
    (directory / "cgroup").write_text("1:cpu:/old\n0::/system.slice/nginx.service\n")
    (directory / "status").write_text(
        f"Name:\tnginx\nTgid:\t{PID}\nPid:\t{PID}\nPPid:\t1\nUid:\t33\t33\t33\t33\nThreads:\t1\n"
    )
    (directory / "maps").write_text("7f0000000000-7f0000001000 r-xp 00000000 08:01 1 /usr/lib/libc.so.6\n")
    executable = tmp_path / "nginx"
    executable.write_bytes(elf())
    (directory / "exe").symlink_to(executable)
    for descriptor, target in enumerate(
        ("pipe:[1]", "socket:[101]", "socket:[102]", "socket:[103]", "socket:[104]", "socket:[105]"), 3
    ):
        (directory / f"fd/{descriptor}").symlink_to(target)
    little = sys.byteorder == "little"
    loopback = "0100007F" if little else "7F000001"
    mapped = "0000000000000000FFFF0000" if little else "00000000000000000000FFFF"
    (directory / "net/tcp").write_text(
        TCP_HEAD
        + f"   0: {loopback}:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 101 1 x 100 0\n"
        + f"   1: {loopback}:1F90 {loopback}:C350 01 00000000:00000000 00:00000000 00000000    33        0 102 1 x 20 4\n"
        + "   2: damaged\n"
    )
    (directory / "net/tcp6").write_text(
        TCP_HEAD + f"   0: {mapped}{loopback}:1F91 {mapped}{loopback}:C351 08 0:0 00:0 0    33        0 103 1 x 20 4\n"
    )
    (directory / "net/udp").write_text(
        TCP_HEAD + f"   9: {loopback}:01BB 00000000:0000 07 00000000:00000000 00:00000000 00000000 33 0 104 2 x 0\n"
    )
    (directory / "net/unix").write_text(
        UNIX_HEAD
        + "0000000000000000: 00000002 00000000 00010000 0001 01 105 /run/app with space.sock\n"
        + "0000000000000000: 00000002 00000000 00000000 0002 01 106\n"
    )
    return tmp_path


def limits_of(proc: Path) -> dict[str, str]:
    return {limit.what: limit.why for limit in explain(PID, proc).limits}


def test_the_process(proc: Path) -> None:
    process = explain(PID, proc).process
    assert (process.comm, process.cmdline, process.parent, process.user) == (
        "nginx",
        "nginx: worker -g daemon off;",
        1,
        33,
    )
    assert process.cgroup == "/system.slice/nginx.service"
    assert process.network_namespace == "net:[4026531840]"


def test_its_sockets(proc: Path) -> None:
    assert explain(PID, proc).sockets == [
        SocketFacts(4, 101, "TCP", "127.0.0.1:8080", "", "listening"),
        SocketFacts(5, 102, "TCP", "127.0.0.1:8080", "127.0.0.1:50000", "established"),
        SocketFacts(6, 103, "TCP", "127.0.0.1:8081", "127.0.0.1:50001", "close-wait"),
        SocketFacts(7, 104, "UDP", "127.0.0.1:443", "", ""),
        SocketFacts(8, 105, "UNIX stream", "/run/app with space.sock", "", "listening"),
    ]


def test_what_is_not_seen_of_an_ordinary_process(proc: Path) -> None:
    limits = limits_of(proc)
    assert set(limits) == {"1 UDP socket", "kernel TLS"}
    assert "QUIC" in limits["1 UDP socket"]


def test_a_socket_in_no_table_is_not_guessed(proc: Path) -> None:
    (proc / f"{PID}/fd/9").symlink_to("socket:[999]")
    assert explain(PID, proc).sockets[-1].kind == "unknown"
    assert "1 unknown socket" in limits_of(proc)


def test_tls_libraries(proc: Path) -> None:
    (proc / f"{PID}/maps").write_text(
        "7f0000000000-7f0000001000 r--p 00000000 08:01 1 /usr/lib/x86_64-linux-gnu/libssl.so.3\n"
        "7f0000001000-7f0000002000 r-xp 00001000 08:01 1 /usr/lib/x86_64-linux-gnu/libssl.so.3\n"
        "7f0000003000-7f0000004000 r-xp 00001000 08:01 2 /opt/my libs/libgnutls.so.30.34.3 (deleted)\n"
        "7f0000005000-7f0000006000 r-xp 00001000 08:01 3 /usr/lib/libnspr4.so\n"
        "7f0000007000-7f0000008000 r-xp 00001000 08:01 4 /usr/lib/libsslcommon-not.so\n"
        "7f0000009000-7f000000a000 rw-p 00000000 00:00 0\n"
    )
    explanation = explain(PID, proc)
    assert explanation.tls_libraries == [
        "/usr/lib/x86_64-linux-gnu/libssl.so.3",
        "/opt/my libs/libgnutls.so.30.34.3 (deleted)",
        "/usr/lib/libnspr4.so",
    ]
    assert "not readable yet" in limits_of(proc)["TLS"]


def test_tls_in_the_executable(proc: Path) -> None:
    (proc / "nginx").write_bytes(elf(text=b"\0crypto/tls.(*Conn).Write\0SSL_read_ex\0"))
    limits = [limit.why for limit in explain(PID, proc).limits if limit.what == "TLS"]
    assert [why.split(" is linked")[0] for why in limits] == ["Go crypto/tls", "OpenSSL"]
    # Imported names are no library of its own.
    (proc / f"{PID}/maps").write_text("7f0-7f1 r-xp 0 08:01 1 /usr/lib/libssl.so.3\n")
    limits = [limit.why for limit in explain(PID, proc).limits if limit.what == "TLS"]
    assert [why.split(" is ")[0] for why in limits] == ["/usr/lib/libssl.so.3", "Go crypto/tls"]


def test_a_32_bit_program(proc: Path) -> None:
    (proc / "nginx").write_bytes(elf(32))
    assert explain(PID, proc).program.bits == 32
    assert "32-bit" in limits_of(proc)["everything"]


def test_io_uring(proc: Path) -> None:
    (proc / f"{PID}/fd/9").symlink_to("anon_inode:[io_uring]")
    assert explain(PID, proc).io_urings == 1
    assert "no system call" in limits_of(proc)["io_uring"]


def test_a_kernel_thread_and_what_may_not_be_read(proc: Path) -> None:
    (proc / f"{PID}/exe").unlink()
    assert "may not be read" in limits_of(proc)["unknown"]
    (proc / f"{PID}/cmdline").write_bytes(b"")
    assert "kernel thread" in limits_of(proc)["everything"]


def test_a_process_that_ends_meanwhile_gives_less(proc: Path) -> None:
    for name in ("comm", "cmdline", "cgroup", "maps", "exe"):
        (proc / f"{PID}" / name).unlink()
    explanation = explain(PID, proc)
    assert explanation.process.comm == ""
    assert as_text(explanation, proc)


def test_no_such_process(proc: Path) -> None:
    with pytest.raises(CommandError, match="there is no process 4712") as raised:
        explain(4712, proc)
    assert raised.value.exit_code == 2


def test_a_thread_is_no_process(proc: Path) -> None:
    (proc / f"{PID}/status").write_text(f"Tgid:\t{PID - 1}\nPid:\t{PID}\n")
    with pytest.raises(CommandError, match="there is no process"):
        explain(PID, proc)


def test_text(proc: Path) -> None:
    text = as_text(explain(PID, proc), proc)
    assert f"process {PID}: nginx" in text
    assert "sockets: 5, of which 4 can carry what is read" in text
    assert "127.0.0.1:8080 -> 127.0.0.1:50000 established" in text
    assert "(this one)" in text
    assert [line for line in text.splitlines() if line.endswith("not read")] == [
        "  fd 7    UDP 127.0.0.1:443 sock:[104]  not read"
    ]


def test_many_sockets_are_cut_for_people_only(proc: Path) -> None:
    for descriptor in range(1000, 1000 + SOCKETS_SHOWN):
        (proc / f"{PID}/fd/{descriptor}").symlink_to(f"socket:[{descriptor}]")
    explanation = explain(PID, proc)
    assert "and 5 more" in as_text(explanation, proc)
    assert len(json.loads(as_json(explanation))["sockets"]) == SOCKETS_SHOWN + 5


def test_json(proc: Path) -> None:
    document = json.loads(as_json(explain(PID, proc)))
    assert list(document) == ["process", "program", "tls_libraries", "io_urings", "sockets", "limits"]
    assert document["sockets"][0] == {
        "descriptor": 4,
        "inode": 101,
        "kind": "TCP",
        "local": "127.0.0.1:8080",
        "state": "listening",
        "seen": True,
    }
    assert document["sockets"][3]["seen"] is False


def test_a_look_is_shown_by_rows() -> None:
    look = Look(2.0, 3, 2, 1, {"bytes": {"recorded": 100, "tls": 9}, "calls": {"recorded": 5, "tls": 1}})
    lines = module._look_lines(look)
    assert "3 requests, 2 responses (1 of them without their request)" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["recorded", "tls"]
    assert "nothing" in module._look_lines(Look(2.0, 0, 0, 0, {"bytes": {}, "calls": {}}))[-1]


def test_every_row_has_a_meaning() -> None:
    assert tuple(ROW_MEANINGS) == LEDGER_ROWS


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["nginx"], 2, "'nginx' is not a process id"),
        (["0"], 2, "'0' is not a process id"),
        (["1", "--seconds", "x"], 2, "--seconds: 'x' is not a number"),
        (["1", "--seconds", "-1"], 2, "--seconds"),
        ([], 2, "PID"),
    ],
)
def test_bad_usage(arguments: list[str], status: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *arguments]) == status
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_without_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["explain", "1"]) == 3
    assert "sudo" in capsys.readouterr().err


# --- real ones --------------------------------------------------------------------------------------------------------


def test_this_process() -> None:
    """No root is needed for what is ours."""
    left, right = socket.socketpair()
    with left, right, socket.create_server(("127.0.0.1", 0)) as server:
        explanation = explain(os.getpid())
        by_descriptor = {entry.descriptor: entry for entry in explanation.sockets}
        assert by_descriptor[left.fileno()].kind == "UNIX stream"
        assert by_descriptor[right.fileno()].state == "established"
        port = server.getsockname()[1]
        assert by_descriptor[server.fileno()].local == f"127.0.0.1:{port}"
        assert by_descriptor[server.fileno()].state == "listening"
    assert explanation.program.bits == struct.calcsize("P") * 8
    assert any(limit.why == "this is netprofiler itself" for limit in explanation.limits)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.kernel
def test_a_look_of_some_time(server: str) -> None:
    """A client that is another process (ours would be the agent's) and asks again and again."""
    script = "import sys, time, urllib.request\nwhile True:\n    urllib.request.urlopen(sys.argv[1]).read(); time.sleep(0.02)\n"
    client = subprocess.Popen([sys.executable, "-c", script, server])
    try:
        look = module.watch(client.pid, 1.0)
    finally:
        client.kill()
        client.wait()
    assert look.requests > 5
    assert abs(look.requests - look.responses) <= 1
    assert look.rows["bytes"]["recorded"] > 500
    assert "filtered" not in look.rows["bytes"]
