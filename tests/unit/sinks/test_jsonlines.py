"""netprofiler.sinks.jsonlines: one line a message, and what happens to it."""

from __future__ import annotations

import base64
import errno
import gzip
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from netprofiler import wire
from netprofiler.counters import Counters
from netprofiler.errors import CommandError
from netprofiler.redaction import Redactor
from netprofiler.sinks.base import OutputClosed
from netprofiler.sinks.jsonlines import ENDS_MAX, JsonLines, RecordWriter, body_text
from netprofiler.testing import START_NS, Script

# docs/record.md, in its order.
KEYS = [
    "timestamp",
    "pid",
    "tid",
    "comm",
    "cmdline",
    "direction",
    "role",
    "source_ip",
    "source_port",
    "dest_ip",
    "dest_port",
    "unix_path",
    "bytes",
    "protocol",
    "method",
    "url",
    "status_code",
    "reason",
    "body",
    "body_encoding",
    "body_bytes",
    "headers",
    "trailers",
    "raw_payload",
    "tls",
    "grpc",
    "websocket",
    "connection",
    "exchange",
    "hop",
    "ttfb_ms",
    "duration_ms",
    "completeness",
    "missing_bytes",
    "missing_reason",
    "unknown_fields",
    "redacted",
    "source_container",
    "destination_container",
    "destination_type",
]
# 2026-11-21T04:18:24Z, where the script's clock begins.
WALL_NS = 1_795_234_704_000_000_000 - START_NS
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
Record = dict[str, Any]


def writer(*, limit: int = 4096, raw: bool = True, redactor: Redactor | None = None) -> RecordWriter:
    return RecordWriter(redactor or Redactor(), wall_offset_ns=WALL_NS, body_limit=limit, raw_payload=raw)


def records(script: Script, *, limit: int = 4096, raw: bool = True, redactor: Redactor | None = None) -> list[Record]:
    render = writer(limit=limit, raw=raw, redactor=redactor).render
    out = []
    for message in script.play(body_limit=limit).messages:
        record = json.loads(render(message))
        assert list(record) == [key for key in KEYS if key in record]
        out.append(record)
    return out


def response(head: bytes, body: bytes = b"", *, limit: int = 4096) -> Record:
    """The record of one response."""
    script = Script()
    peer = script.client()
    peer.send(GET)
    peer.recv(b"HTTP/1.1 200 OK\r\n" + head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return records(script, limit=limit)[1]


def test_all_keys_of_a_request_and_its_response() -> None:
    script = Script()
    script.process(cmdline="/bin/traffic --requests 10")
    peer = script.client(positions=(1000, 5000))
    peer.send(b'POST /echo HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Length: 18\r\n\r\n{"message":"hi\\n"}')
    peer.recv(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    sent, received = records(script)
    assert sent == {
        "timestamp": "2026-11-21T04:18:24.000300000Z",
        "pid": 1234,
        "tid": 1236,
        "comm": "traffic",
        "cmdline": "/bin/traffic --requests 10",
        "direction": "send",
        "role": "client",
        "source_ip": "127.0.0.1",
        "source_port": 54321,
        "dest_ip": "127.0.0.1",
        "dest_port": 8080,
        "bytes": 83,
        "protocol": "HTTP/1.1",
        "method": "POST",
        "url": "/echo",
        "body": '{"message":"hi\\n"}',
        "body_bytes": 18,
        "headers": {"Host": "127.0.0.1:8080", "Content-Length": "18"},
        "raw_payload": 'POST /echo HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Length: 18\r\n\r\n{"message":"hi\\n"}',
        "connection": "sock:[48213]",
        "exchange": "sock:[48213]#1",
        "hop": "127.0.0.1:54321>127.0.0.1:8080@1000",
        "completeness": "complete",
    }
    assert received == {
        "timestamp": "2026-11-21T04:18:24.000400000Z",
        "pid": 1234,
        "tid": 1236,
        "comm": "traffic",
        "cmdline": "/bin/traffic --requests 10",
        "direction": "recv",
        "role": "client",
        "source_ip": "127.0.0.1",
        "source_port": 8080,
        "dest_ip": "127.0.0.1",
        "dest_port": 54321,
        "bytes": 40,
        "protocol": "HTTP/1.1",
        "status_code": 200,
        "reason": "OK",
        "body": "ok",
        "body_bytes": 2,
        "headers": {"Content-Length": "2"},
        "raw_payload": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "connection": "sock:[48213]",
        "exchange": "sock:[48213]#1",
        "hop": "127.0.0.1:8080>127.0.0.1:54321@5000",
        "ttfb_ms": 0.1,
        "duration_ms": 0.1,
        "completeness": "complete",
    }


def test_both_ends_give_the_same_hop() -> None:
    script = Script()
    client = script.client(local=("10.0.0.1", 5000), remote=("10.0.0.2", 80), positions=(7, 9))
    server = script.server(local=("10.0.0.2", 80), remote=("10.0.0.1", 5000), positions=(9, 7))
    client.send(GET)
    server.recv(GET)
    server.send(b"HTTP/1.1 204 No Content\r\n\r\n")
    client.recv(b"HTTP/1.1 204 No Content\r\n\r\n")
    shown = records(script)
    assert [r["hop"] for r in shown] == ["10.0.0.1:5000>10.0.0.2:80@7"] * 2 + ["10.0.0.2:80>10.0.0.1:5000@9"] * 2
    assert [r["role"] for r in shown] == ["client", "server", "server", "client"]
    assert len({r["connection"] for r in shown}) == 2


@pytest.mark.parametrize(
    ("ip", "shown", "hop"),
    [
        ("::ffff:10.1.2.3", "10.1.2.3", "10.1.2.3:1"),
        ("2001:db8::1", "2001:db8::1", "[2001:db8::1]:1"),
        ("::1", "::1", "[::1]:1"),
    ],
)
def test_addresses(ip: str, shown: str, hop: str) -> None:
    script = Script()
    script.client(family=wire.FAMILY_IPV6, local=(ip, 1), remote=(ip, 2)).send(GET)
    [record] = records(script)
    assert (record["source_ip"], record["dest_ip"]) == (shown, shown)
    assert record["hop"].startswith(f"{hop}>")


@pytest.mark.parametrize(
    ("path", "shown"), [("/run/a b.sock", "/run/a b.sock"), ("@abstract", "@abstract"), ("", None)]
)
def test_unix_sockets_have_a_path_if_any_and_no_hop(path: str, shown: str | None) -> None:
    script = Script()
    script.server(family=wire.FAMILY_UNIX, unix_path=path).recv(GET)
    [record] = records(script)
    assert record.get("unix_path") == shown
    assert not {"source_ip", "source_port", "dest_ip", "dest_port", "hop"} & record.keys()
    assert record["connection"] == "sock:[48213]"


def test_a_packet_capture_has_no_process_and_no_direction() -> None:
    script = Script()
    peer = script.client(passive=True, pid=0, tid=0)
    peer.send(GET)
    [record] = records(script)
    assert not {"pid", "tid", "comm", "cmdline", "direction", "role"} & record.keys()
    assert record["source_port"] == 54321
    assert record["hop"] == "127.0.0.1:54321>127.0.0.1:8080@1000"


def test_what_is_not_known_is_absent() -> None:
    script = Script()
    script.client(announced=False, fresh=False).recv(b"HTTP/1.1 204\r\n\r\n")
    [record] = records(script)
    assert list(record) == (
        [
            "timestamp",
            "pid",
            "tid",
            "direction",
            "role",
            "bytes",
            "protocol",
            "status_code",
            "body_bytes",
            "headers",
            "raw_payload",
            "connection",
            "exchange",
            "completeness",
        ]
    )
    assert record["headers"] == {}


def test_names_that_come_more_than_once_and_oddly_written() -> None:
    shown = response(b"set-cookie2: 1\r\nSet-Cookie2: 2\r\nVary: a\r\nVary: b\r\nVary: a\r\n")
    assert shown["headers"] == {"set-cookie2": "1", "Set-Cookie2": "2", "Vary": ["a", "b", "a"], "Content-Length": "0"}


# --- bodies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", {"body_bytes": 0}),
        (b'a"\\\n\x00\x7f\xe2\x80\xa8', {"body": 'a"\\\n\x00\x7f\u2028', "body_bytes": 9}),
        (b"\xff\xfe", {"body": base64.b64encode(b"\xff\xfe").decode(), "body_encoding": "base64", "body_bytes": 2}),
        ("é€😀".encode(), {"body": "é€😀", "body_bytes": 9}),
        # Whole, and cut inside of a character by whoever sent it: that is no text.
        (b"ab\xc3", {"body": "YWLD", "body_encoding": "base64", "body_bytes": 3}),
    ],
)
def test_bodies(body: bytes, expected: Record) -> None:
    shown = response(b"", body)
    assert {key: shown[key] for key in ("body", "body_encoding", "body_bytes") if key in shown} == expected
    assert shown["completeness"] == "complete"


@pytest.mark.parametrize(
    ("limit", "body", "completeness"),
    [
        (9, "é€😀", "complete"),
        (8, "é€", "truncated"),
        (6, "é€", "truncated"),
        (5, "é€", "truncated"),
        (4, "é", "truncated"),
        (1, None, "truncated"),
        (0, None, "truncated"),
    ],
)
def test_a_limit_inside_of_a_character_drops_the_character(limit: int, body: str | None, completeness: str) -> None:
    shown = response(b"", "é€😀".encode(), limit=limit)
    assert shown.get("body") == body
    assert (shown["body_bytes"], shown["completeness"]) == (9, completeness)
    assert "body_encoding" not in shown


def test_body_text_drops_only_what_the_limit_cut() -> None:
    assert body_text(b"a\xe2\x82", cut=True) == "a"
    assert body_text(b"a\xe2\x82", cut=False) is None
    assert body_text(b"a\xff", cut=True) is None
    assert body_text(b"\xe2\x82aaaa", cut=True) is None


def test_coded_bodies_are_shown_decoded_with_the_size_on_the_stream() -> None:
    coded = gzip.compress(b"hello")
    shown = response(b"Content-Encoding: gzip\r\n", coded)
    assert (shown["body"], shown["body_bytes"], shown["completeness"]) == ("hello", len(coded), "complete")
    assert "\ufffd" in shown["raw_payload"]


def test_a_coded_body_that_becomes_too_large() -> None:
    shown = response(b"Content-Encoding: gzip\r\n", gzip.compress(b"a" * 10_000), limit=100)
    assert (shown["body"], shown["completeness"]) == ("a" * 100, "truncated")


def test_a_coded_body_kept_in_part() -> None:
    text = bytes(range(32, 127)) * 20
    coded = gzip.compress(text)
    shown = response(b"Content-Encoding: gzip\r\n", coded, limit=len(coded) - 20)
    assert shown["completeness"] == "truncated"
    assert text.decode().startswith(shown["body"])
    assert shown["body"]


def test_a_coded_body_that_cannot_be_undone_is_shown_as_it_was() -> None:
    shown = response(b"Content-Encoding: gzip\r\n", b"not gzip")
    assert (shown["body"], shown["completeness"]) == ("not gzip", "complete")


def test_chunks_trailers_and_the_raw_payload() -> None:
    script = Script()
    head = b"POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n"
    script.client().send(head + b"5\r\nhe\xc3\xa9l\r\n0\r\nX-Sum: 1\r\nX-Sum: 2\r\n\r\n")
    [record] = records(script)
    assert (record["body"], record["body_bytes"]) == ("heél", 5)
    assert record["trailers"] == {"X-Sum": ["1", "2"]}
    assert record["raw_payload"] == head.decode() + "5\r\nheél\r\n0\r\nX-Sum: 1\r\nX-Sum: 2\r\n\r\n"
    assert record["bytes"] == len(record["raw_payload"].encode())


def test_raw_payload_with_bytes_that_are_no_text() -> None:
    script = Script()
    script.client().send(b"POST /\xff HTTP/1.1\r\nHost: \xfe\r\nContent-Length: 2\r\n\r\n\xfd\xfd")
    [record] = records(script)
    assert record["raw_payload"] == "POST /\ufffd HTTP/1.1\r\nHost: \ufffd\r\nContent-Length: 2\r\n\r\n\ufffd\ufffd"
    assert (record["url"], record["headers"]["Host"]) == ("/ÿ", "þ")


def test_no_raw_payload() -> None:
    script = Script()
    script.client().send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\xff\r\n0\r\n\r\n")
    [record] = records(script, raw=False)
    assert "raw_payload" not in record
    assert record["body"] == "/w=="


# --- redaction ----------------------------------------------------------------------------------------------------

SECRET = b"s3cret"


def test_secrets_leave_no_trace() -> None:
    script = Script()
    peer = script.client()
    peer.send(
        b"POST /a?token=s3cret&x=\xff&b=c HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer s3cret\r\n"
        b"cookie: a=s3cret\r\n  b=s3cret\r\nCookie: s3cret\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nhi\r\n0\r\nX-Auth-Token: s3cret\r\nX-Sum: 1\r\n\r\n"
    )
    peer.recv(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=s3cret\r\nSet-Cookie: b=s3cret\r\nContent-Length: 0\r\n\r\n")
    asked, answered = records(script)
    assert "s3cret" not in json.dumps([asked, answered])
    assert asked["url"] == "/a?token=[redacted]&x=ÿ&b=c"
    assert asked["redacted"] == ["Authorization", "cookie", "Cookie", "token", "X-Auth-Token"]
    assert asked["headers"]["Authorization"] == "[redacted]"
    assert asked["trailers"] == {"X-Auth-Token": "[redacted]", "X-Sum": "1"}
    assert asked["raw_payload"] == (
        "POST /a?token=[redacted]&x=\ufffd&b=c HTTP/1.1\r\nHost: a\r\nAuthorization: [redacted]\r\n"
        "cookie: [redacted]\r\nCookie: [redacted]\r\nTransfer-Encoding: chunked\r\n\r\n"
        "2\r\nhi\r\n0\r\nX-Auth-Token: [redacted]\r\nX-Sum: 1\r\n\r\n"
    )
    assert answered["headers"]["Set-Cookie"] == ["[redacted]", "[redacted]"]
    assert answered["redacted"] == ["Set-Cookie"]


def test_trailers_that_never_ended_leave_no_trace() -> None:
    script = Script()
    script.client().send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nCookie: s3cret\r\n")
    [record] = records(script)
    assert record["completeness"] == "partial"
    assert "s3cret" not in json.dumps(record)


def test_names_of_the_users_own_and_none() -> None:
    script = Script()
    script.client().send(b"GET /?pin=s3cret HTTP/1.1\r\nHost: a\r\nX-Pin: s3cret\r\n\r\n")
    [record] = records(script, redactor=Redactor(["pin", "x-pin"]))
    assert record["redacted"] == ["X-Pin", "pin"]
    assert "s3cret" not in json.dumps(record)
    [record] = records(script, redactor=Redactor(enabled=False))
    assert "redacted" not in record
    assert json.dumps(record).count("s3cret") == 4


# --- completeness and time ----------------------------------------------------------------------------------------


def test_a_gap_says_how_much_and_why() -> None:
    script = Script()
    peer = script.server()
    peer.recv(GET)
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    peer.sendfile(1000, "starté".encode()[:-1])
    record = records(script)[1]
    assert (record["completeness"], record["missing_bytes"], record["missing_reason"]) == ("gap", 1000, "sendfile")
    assert (record["body"], record["body_bytes"]) == ("start", 1000)


def test_an_open_record_has_no_duration_yet() -> None:
    script = Script()
    peer = script.client()
    peer.send(GET)
    peer.recv(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\ndata: \r\n")
    script.wait(6)
    peer.recv(b"0\r\n\r\n")
    _, interim, final = records(script)
    assert (interim["completeness"], interim["body"]) == ("open", "data: ")
    assert "duration_ms" not in interim
    assert final["exchange"] == interim["exchange"]
    assert (final["ttfb_ms"], final["duration_ms"]) == (0.1, 6000.2)


def test_an_answer_seen_before_its_request_took_no_time() -> None:
    script = Script()
    peer = script.client()
    peer.recv(b"HTTP/1.1 204 No Content\r\n\r\n")
    peer.send(GET)
    record = next(r for r in records(script) if "status_code" in r)
    assert (record["ttfb_ms"], record["duration_ms"]) == (0, 0)


def test_nanoseconds_seconds_and_a_clock_that_is_set() -> None:
    script = Script()
    peer = script.client()
    for seconds in (0, 0.9998, 0.1, 86400):
        script.time_ns += int(seconds * 1e9)
        peer.send(GET)
    messages = script.play().messages
    render = writer()
    shown = [json.loads(render.render(m))["timestamp"] for m in messages]
    assert shown == [
        "2026-11-21T04:18:24.000200000Z",
        "2026-11-21T04:18:25.000100000Z",
        "2026-11-21T04:18:25.100200000Z",
        "2026-11-22T04:18:25.100300000Z",
    ]
    render.set_wall_offset(WALL_NS - 3_600_000_000_000)
    assert json.loads(render.render(messages[3]))["timestamp"] == "2026-11-22T03:18:25.100300000Z"
    assert json.loads(render.render(messages[0]))["timestamp"] == "2026-11-21T03:18:24.000200000Z"


@pytest.mark.parametrize(
    "time_ns", [0, 1, (1 << 62) - 1, 1 << 62, (1 << 62) + 30_714_752, (1 << 63) + 1, (1 << 64) - 1]
)
def test_any_time_that_a_damaged_recording_can_hold(time_ns: int) -> None:
    [message] = some_messages(1)
    message.time_ns = time_ns
    shown = json.loads(writer().render(message))["timestamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", shown)


def test_many_processes_on_one_connection_and_one_that_becomes_another() -> None:
    script = Script()
    peer = script.server()
    for pid in range(1, 3 * ENDS_MAX):
        peer.pid = peer.tid = pid
        script.process(pid=pid, comm=f"c{pid}", cmdline="")
        peer.recv(GET)
    script.process(pid=pid, comm="other", cmdline="/bin/other")
    peer.recv(GET)
    messages = script.play().messages
    render = writer().render
    shown = [json.loads(render(m)) for m in messages]
    assert [r["comm"] for r in shown] == [f"c{n}" for n in range(1, 3 * ENDS_MAX)] + ["other"]
    assert [r["pid"] for r in shown[:-1]] == list(range(1, 3 * ENDS_MAX))
    assert "cmdline" not in shown[0]
    assert len(messages[0].link.rendered) <= ENDS_MAX


# --- the file -----------------------------------------------------------------------------------------------------


def some_messages(count: int = 3) -> Any:
    script = Script()
    peer = script.client()
    for number in range(count):
        peer.send(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
    return script.play().messages


def sink(path: Path) -> tuple[JsonLines, Counters, list[str]]:
    counters, warnings = Counters(), []  # type: tuple[Counters, list[str]]
    return JsonLines(str(path), writer(), counters, warnings.append), counters, warnings


def urls(path: Path) -> list[str]:
    return [json.loads(line)["url"] for line in path.read_text().splitlines()]


def test_the_file_is_private_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "http.log"
    for _ in range(2):
        lines, counters, _ = sink(path)
        lines.emit(some_messages())
        lines.close()
        assert counters.written == 3
    assert urls(path) == ["/0", "/1", "/2"] * 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "http.log"
    lines, _, _ = sink(path)
    lines.emit(some_messages(1))
    path.rename(tmp_path / "old.log")
    lines.emit(some_messages(1))
    lines.reopen()
    lines.emit(some_messages(2))
    lines.close()
    assert urls(tmp_path / "old.log") == ["/0", "/0"]
    assert urls(path) == ["/0", "/1"]


def test_where_it_cannot_be_made_anew_the_old_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "http.log"
    lines, _, warnings = sink(path)
    path.rename(tmp_path / "old.log")
    path.symlink_to(tmp_path / "elsewhere")
    lines.reopen()
    lines.emit(some_messages(1))
    lines.close()
    assert urls(tmp_path / "old.log") == ["/0"]
    assert "symbolic link" in warnings[0]


@pytest.mark.parametrize("what", ["directory", "link", "no directory"])
def test_outputs_that_are_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "http.log"
    if what == "directory":
        path.mkdir()
    elif what == "link":
        path.symlink_to(tmp_path / "other")
    else:
        path = path / "x"
    with pytest.raises(CommandError, match=str(path)) as raised:
        sink(path)
    assert raised.value.exit_code == 2
    assert not (tmp_path / "other").exists()


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, counters, _ = sink(tmp_path / "http.log")
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:7])))
    lines.emit(some_messages())
    assert urls(tmp_path / "http.log") == ["/0", "/1", "/2"]
    assert counters.written == 3


def test_a_full_disk_loses_whole_lines_counts_them_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "http.log"
    lines, counters, warnings = sink(path)
    lines.emit(some_messages(1))
    write, room = os.write, len(path.read_bytes()) + 20

    def full(descriptor: int, data: bytes) -> int:
        left = room - path.stat().st_size
        if left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, bytes(data[:left]))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        room *= 2
        lines.emit(some_messages(3))
        lines.emit(some_messages(2))
    assert (counters.written, counters.output_failed) == (2, 4)
    assert len(warnings) == 1
    assert "No space left" in warnings[0]
    lines.emit(some_messages(1))
    assert urls(path) == ["/0", "/0", "/0"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        lines.emit(some_messages(1))
    assert "is written again: 4 records were lost" in warnings[1]
    assert len(warnings) == 3  # it went well in between


def test_a_reader_that_went_away_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    counters = Counters()
    with os.fdopen(writing, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stdout)
        lines = JsonLines("-", writer(), counters, lambda _: None)
        with pytest.raises(OutputClosed):
            lines.emit(some_messages(2))
        assert counters.output_failed == 2
        lines.reopen()
        lines.close()
