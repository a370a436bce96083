"""`decode`: one line for each raw record, which nothing in a recording can turn into something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netprofiler import wire
from netprofiler.cli import main
from netprofiler.commands.decode import describe, escaped, escaped_bytes
from netprofiler.sources.recording import FRAME_BATCH, FRAME_CLOCK, NUMBER, make_frame, make_header
from netprofiler.testing import Script, Tick, batch
from tests.golden.situations import SITUATIONS, make_recording
from tests.unit.sources.packets import Conversation, Packets


def decode(capsys: pytest.CaptureFixture[str], path: Path, status: int = 0) -> list[str]:
    assert main(["decode", str(path)]) == status
    return capsys.readouterr().out.splitlines()


def test_each_record_is_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_bytes(make_recording(SITUATIONS["sendfile"]))
    lines = decode(capsys, path)
    script = Script()
    SITUATIONS["sendfile"](script)
    assert len(lines) == 1 + len(script.steps) + 1
    assert lines[0].startswith("# a recording by netprofiler golden, ABI 3, on Linux 6.1.0 x86_64")
    assert lines[1] == "03:58:24.123556789 process sock=-          pid=1234 traffic: /bin/traffic --requests 10"
    assert lines[3] == (
        "03:58:24.123756789 opened  sock=48213      pid=1234 client fresh 127.0.0.1:54321 > 127.0.0.1:8080 "
        "send@1000 recv@5000000"
    )
    assert lines[5] == (
        "03:58:24.123956789 data    sock=48213      pid=1234 tid=1236 send @1000 45/45 first  "
        r"GET /known HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"
    )
    assert "send @5000042 4096/10000 first sendfile  0123456789" in lines[9]
    assert sum("sendfile" in line for line in lines) == 2
    assert "both gone @" in lines[-2]
    assert "total" in lines[-1]


def test_packet_capture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    packets = Packets()
    conversation = Conversation(packets, client=("::1", 1), server=("::2", 2)).open()
    conversation.send(b"GET / HTTP/1.1\r\n\r\n")
    conversation.close()
    path = tmp_path / "packets"
    path.write_bytes(packets.pcap())
    lines = decode(capsys, path)
    assert len(lines) == 6
    assert "seen from outside client fresh [::1]:1 > [::2]:2" in lines[1]
    assert "pid" not in lines[2]
    assert r"send @1000 18/18 first  GET / HTTP/1.1\r\n\r\n" in lines[2]


def test_clock_that_was_set(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = Script(time_ns=0)
    script.process()
    data = batch(step for step in script.steps if not isinstance(step, Tick))
    path = tmp_path / "recording"
    frames = [
        make_frame(FRAME_BATCH, 1, data),
        make_frame(FRAME_CLOCK, 2, NUMBER.pack(3_600_000_000_000)),
        make_frame(FRAME_BATCH, 3, data),
    ]
    path.write_bytes(make_header(b'{"wall_offset_ns": 0}') + b"".join(frames))
    lines = decode(capsys, path, status=1)
    assert [line.split()[0][:5] for line in lines[1:]] == ["00:00", "01:00", "01:00"]


HOSTILE = "\x1b[31m\x07\r\n\u202eabc\x9b2J\u2028"


def test_nothing_drives_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = Script()
    script.process(1, HOSTILE[:10], HOSTILE)
    client = script.client(family=wire.FAMILY_UNIX, unix_path=HOSTILE)
    client.send(HOSTILE.encode())
    data = batch(step for step in script.steps if not isinstance(step, Tick))
    path = tmp_path / "recording"
    metadata = b'{"wall_offset_ns": 0, "kernel": "\\u001b[31m\\n"}'
    path.write_bytes(make_header(metadata) + make_frame(FRAME_BATCH, 1, data))
    assert main(["decode", str(path)]) == 1
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 4
    assert all(character.isprintable() or character == "\n" for character in out)
    assert r"\x1b[31m" in out


@given(st.binary())
def test_bytes_are_escaped_and_told_apart(data: bytes) -> None:
    text = escaped_bytes(data)
    assert text.isascii()
    assert text.isprintable()
    assert text.encode().decode("unicode_escape").encode("latin-1") == data


@given(st.text())
def test_text_is_escaped(text: str) -> None:
    assert escaped(text).isprintable()


def test_odd_numbers_are_shown() -> None:
    closed = describe(wire.ConnectionClosed(1, 2, 9, False, 3))
    assert re.search(r"closed +sock=2 +\? @3", closed)


@pytest.mark.parametrize("content", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(64)])
def test_foreign_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    assert main(["decode", str(path)]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert "foreign" in captured.err
    assert captured.err.count("\n") == 1


def test_truncated_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = make_recording(SITUATIONS["stream"])
    path = tmp_path / "recording"
    path.write_bytes(data)
    whole = decode(capsys, path)
    path.write_bytes(data[: len(data) * 2 // 3])
    assert main(["decode", str(path)]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert 1 < len(lines) < len(whole)
    assert lines == whole[: len(lines)]
    assert "truncated" in captured.err
