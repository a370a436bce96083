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
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from netprofiler.cli import main
from netprofiler.commands import explain as module
from netprofiler.commands.explain import (
    FOUND_MEANINGS,
    ROW_MEANINGS,
    SOCKETS_SHOWN,
    UNREAD_SHOWN,
    Look,
    Unread,
    as_json,
    as_text,
    describe_sites,
    explain,
    ways_to_sockets,
)
from netprofiler.counters import LEDGER_ROWS
from netprofiler.errors import CommandError
from netprofiler.sources.discovery import State
from netprofiler.sources.kernel import FOUND_NAMES
from netprofiler.sources.probes import Analysis, Call, Finding, Layout, Library, Probe, Purpose, Result
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
    assert set(limits) == {"1 UDP socket"}
    assert "QUIC" in limits["1 UDP socket"]


def test_a_socket_in_no_table_is_not_guessed(proc: Path) -> None:
    (proc / f"{PID}/fd/9").symlink_to("socket:[999]")
    assert explain(PID, proc).sockets[-1].kind == "unknown"
    assert "1 unknown socket" in limits_of(proc)


OPENSSL = Finding(
    Library.OPENSSL,
    "3.0.17",
    (
        Probe(0x900, Purpose.FREE, function="SSL_free"),
        Probe(0x100, Purpose.ENTER, Call.READ, function="SSL_read"),
        Probe(0x120, Purpose.LEAVE, Call.READ, Result.AX, emulated=False, function="SSL_read"),
        Probe(0x200, Purpose.ENTER, Call.WRITE, function="SSL_write"),
        Probe(0x220, Purpose.LEAVE, Call.WRITE, Result.AX, function="SSL_write"),
        Probe(0x240, Purpose.LEAVE, Call.WRITE, Result.AX, function="SSL_write"),
    ),
    Layout(Library.OPENSSL, random=0x160, server=0x38, read_bio=0x10, bio_method=8, bio_number=0x38),
    ("SSL_read is left single-stepped, at its return.", "Data in the middle of a renegotiation is missed."),
)


def map_file(proc: Path, path: str, start: int = 0x7F0000000000) -> None:
    """The process has one more file mapped, twice, as libraries are."""
    with (proc / f"{PID}/maps").open("a") as maps:
        maps.write(f"{start:x}-{start + 4096:x} r--p 00000000 08:01 {start >> 12} {path}\n")
        maps.write(f"{start + 4096:x}-{start + 8192:x} r-xp 00001000 08:01 {start >> 12} {path}\n")
    content = proc / f"content-{start:x}"
    content.write_bytes(elf(text=b"SSL_" + path.encode()))
    (proc / f"{PID}/map_files").mkdir(exist_ok=True)
    (proc / f"{PID}/map_files/{start + 4096:x}-{start + 8192:x}").symlink_to(content)


def analysis_is(monkeypatch: pytest.MonkeyPatch, analysis: Analysis) -> None:
    monkeypatch.setattr(module, "analyse", lambda _: analysis)


def test_a_library_that_can_be_read(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    map_file(proc, "/usr/lib/libssl.so.3")
    analysis_is(monkeypatch, Analysis("abcd", (OPENSSL,)))
    explanation = explain(PID, proc)
    [file] = explanation.tls
    assert (file.path, file.state, file.analysis.findings) == ("/usr/lib/libssl.so.3", State.READY, (OPENSSL,))
    assert "TLS" not in limits_of(proc)
    text = as_text(explanation, proc)
    shown = text[text.index("  OpenSSL") : text.index("not seen:")]
    assert shown.splitlines() == [
        "  OpenSSL 3.0.17 in /usr/lib/libssl.so.3: 6 probes, when netprofiler captures",
        "    SSL_write  emulated at its beginning, 2 emulated at its end",
        "    SSL_read   emulated at its beginning, single-stepped at its end",
        "    SSL_free   emulated at its beginning",
        f"    sockets are found by: {', '.join(ways_to_sockets(OPENSSL))}",
        "    note: Data in the middle of a renegotiation is missed.",
    ]
    [described] = json.loads(as_json(explanation))["tls"]
    assert (described["path"], described["state"], described["build_id"]) == ("/usr/lib/libssl.so.3", "ready", "abcd")
    [library] = described["libraries"]
    assert (library["library"], library["version"]) == ("openssl", "3.0.17")
    assert library["notes"] == list(OPENSSL.notes)
    assert "problem" not in library
    assert library["probes"][2] == {
        "function": "SSL_read",
        "purpose": "leave",
        "call": "read",
        "offset": 0x120,
        "kind": "single-stepped",
    }


def test_what_cannot_be_read_has_a_reason(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    map_file(proc, "/opt/server (deleted)")
    boring = Finding(Library.BORINGSSL, problem="its functions' names were stripped")
    analysis_is(monkeypatch, Analysis("", (boring,), ("rustls", "s2n")))
    explanation = explain(PID, proc)
    whys = [limit.why for limit in explanation.limits if limit.what == "TLS"]
    assert whys[0] == "BoringSSL in /opt/server (deleted): its functions' names were stripped"
    assert whys[1].startswith("rustls in /opt/server (deleted): it is Rust code")
    assert whys[2] == "s2n in /opt/server (deleted): netprofiler has no probes for it"
    text = as_text(explanation, proc)
    assert "inside of TLS" not in text
    assert all(f"  TLS: {why}" in text for why in whys)
    [described] = json.loads(as_json(explanation))["tls"]
    assert described["libraries"][0]["problem"] == boring.problem
    assert described["libraries"][0]["sockets_by"] == []
    assert [one["name"] for one in described["blind"]] == ["rustls", "s2n"]


def test_a_file_that_cannot_be_looked_into(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    map_file(proc, "/opt/damaged")
    analysis_is(monkeypatch, Analysis(problem="the ELF file has no loadable segment"))
    assert limits_of(proc)["unknown"] == ("whether /opt/damaged has TLS in it: the ELF file has no loadable segment")

    def breaks(_: str) -> Analysis:
        raise ZeroDivisionError("x")

    monkeypatch.setattr(module, "analyse", breaks)
    assert limits_of(proc)["unknown"].endswith("the analysis broke: ZeroDivisionError: x")
    next((proc / f"{PID}/map_files").iterdir()).unlink()
    assert "unknown" not in limits_of(proc), "it was unmapped meanwhile"


def test_files_without_tls_are_not_analysed(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    map_file(proc, "/usr/lib/libc.so.6")
    for content in proc.glob("content-*"):
        content.write_bytes(elf())
    analysis_is(monkeypatch, Analysis("", (OPENSSL,)))
    assert explain(PID, proc).tls == []


def test_the_ways_to_sockets() -> None:
    inside = "the system calls inside of its calls"
    assert ways_to_sockets(OPENSSL) == ["the random of the ClientHello", "the descriptor of a socket BIO", inside]
    assert ways_to_sockets(Finding(Library.GNUTLS)) == [inside]
    assert ways_to_sockets(Finding(Library.OPENSSL, layout=Layout(Library.OPENSSL, random=8))) == [inside]
    assert ways_to_sockets(Finding(Library.GO, layout=Layout(Library.GO))) == [inside]
    go = Layout(Library.GO, conn_type_from_write=-4096)
    assert ways_to_sockets(Finding(Library.GO, layout=go)) == ["the descriptor of a *net.TCPConn", inside]


def test_the_kinds_of_sites() -> None:
    go = [
        Probe(1, Purpose.GO_READ_RETURN, emulated=False),
        Probe(2, Purpose.GO_READ_RETURN, emulated=False),
        Probe(3, Purpose.GO_READ_CALL),
    ]
    assert describe_sites(go) == "emulated at its beginning, 2 single-stepped at its end"
    assert describe_sites([Probe(1, Purpose.GO_READ), Probe(2, Purpose.GO_DECRYPTED)]) == (
        "emulated at its beginning, emulated behind decrypt"
    )
    assert describe_sites([Probe(1, Purpose.LEAVE, Call.READ, on_return=True)]) == "return probe at its end"


def test_kernel_tls_is_said_where_there_is_any(proc: Path) -> None:
    (proc / f"{PID}/net/tls_stat").write_text("TlsCurrTxSw \t2\nTlsCurrRxSw\t1\nTlsTxSw\t700\nTlsDecryptError 0\n")
    assert "decrypts 3 directions" in limits_of(proc)["kernel TLS"]
    (proc / f"{PID}/net/tls_stat").write_text("TlsCurrTxSw\t0\nTlsTxSw\t700\n")
    assert "kernel TLS" not in limits_of(proc)


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
    assert list(document) == ["process", "program", "tls", "io_urings", "sockets", "limits"]
    assert document["sockets"][0] == {
        "descriptor": 4,
        "inode": 101,
        "kind": "TCP",
        "local": "127.0.0.1:8080",
        "state": "listening",
        "seen": True,
    }
    assert document["sockets"][3]["seen"] is False


def a_look(
    rows: dict[str, dict[str, int]],
    tls_read: int = 0,
    unread: list[Unread] | None = None,
    found: dict[str, int] | None = None,
) -> Look:
    return Look(2.0, 3, 2, 1, 0, 0, rows, tls_read, unread or [], found or {})


def test_a_look_is_shown_by_rows() -> None:
    look = a_look({"bytes": {"recorded": 100, "tls": 9}, "calls": {"recorded": 5, "tls": 1}})
    lines = module._look_lines(look)
    assert "3 requests, 2 responses (1 of them without their request)" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["recorded", "tls"]
    assert "nothing" in module._look_lines(a_look({"bytes": {}, "calls": {}}))[-1]


def test_a_look_says_what_is_neither_request_nor_response() -> None:
    look = replace(a_look({"bytes": {}, "calls": {}}), websocket_messages=7, heads_cut=2)
    lines = module._look_lines(look)
    assert lines[0].endswith(", 7 WebSocket messages")
    assert lines[1] == "  2 header blocks of HTTP/2 were too large to be decoded whole"


def test_a_look_says_what_became_of_tls() -> None:
    unread = [Unread(4000 + number, 2, "it ended before") for number in range(UNREAD_SHOWN + 1)]
    look = a_look({"bytes": {"tls": 9}, "calls": {"tls": 1}}, 3, unread, {"hello": 7, "not_found": 1})
    lines = module._look_lines(look)
    assert f"  TLS connections: 3 with HTTP, {2 * len(unread)} of which nothing was read" in lines
    assert "    2 of process 4000: it ended before" in lines
    assert not any(f"process {unread[-1].pid}" in line for line in lines)
    assert [line.split()[0] for line in lines if line.endswith(FOUND_MEANINGS["hello"])] == ["7"]
    assert [line.split()[0] for line in lines if line.endswith(FOUND_MEANINGS["not_found"])] == ["1"]
    assert not any(line.endswith(FOUND_MEANINGS["call"]) for line in lines)


def test_every_way_has_a_meaning() -> None:
    assert tuple(FOUND_MEANINGS) == FOUND_NAMES


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
    monkeypatch.setattr("netprofiler.commands.explain.effective", frozenset)
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
        look, files = module.watch(client.pid, 1.0)
    finally:
        client.kill()
        client.wait()
    assert look.requests > 5
    assert abs(look.requests - look.responses) <= 1
    assert look.rows["bytes"]["recorded"] > 500
    assert "filtered" not in look.rows["bytes"]
    assert (look.tls_read, look.tls_unread) == (0, [])
    libraries = {file.path.rpartition("/")[2]: file.state for file in files}
    assert libraries[next(name for name in libraries if name.startswith("libssl"))] is State.ATTACHED
