"""`replay`: several files, filters, bad files. That its lines are right is the matter of tests/golden."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from netprofiler import wire
from netprofiler.cli import main
from netprofiler.sources.recording import FRAME_BATCH, make_frame, make_header
from tests.golden.situations import SITUATIONS, make_recording
from tests.unit.sources.packets import Conversation, Packets

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "keep_alive"
    path.write_bytes(make_recording(SITUATIONS["keep_alive"]))
    return path


@pytest.fixture
def packets(tmp_path: Path) -> Path:
    packets = Packets()
    for port in (8080, 8081):
        conversation = Conversation(packets, server=("127.0.0.1", port)).open()
        conversation.send(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % port)
        conversation.recv(b"HTTP/1.1 204 No Content\r\n\r\n")
        conversation.close()
    path = tmp_path / "packets"
    path.write_bytes(packets.pcap())
    return path


def replay(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> list[dict[str, Any]]:
    """The records; what was on standard error is in `errors`."""
    output = Path(os.environ.get("PYTEST_TMP", "/tmp")) / f"replayed-{os.getpid()}"
    try:
        assert main(["replay", *map(str, arguments), "--output", str(output)]) == status, capsys.readouterr().err
        return [json.loads(line) for line in output.read_text().splitlines()]
    finally:
        output.unlink(missing_ok=True)


def test_several_files(capsys: pytest.CaptureFixture[str], recording: Path, packets: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    records = replay(capsys, recording, packets, recording, "--ledger", ledger)
    assert len(records) == 12 + 4 + 12
    assert records[:12] == records[16:]
    book = json.loads(ledger.read_text())
    assert sum(book["bytes"]["rows"].values()) == book["bytes"]["total"]
    assert book["bytes"]["rows"]["pending"] == 0
    assert book["records"] == {"made": 28, "rows": {"written": 28, "output_failed": 0, "not_wanted": 0, "budget": 0}}


def test_records_of_a_packet_capture_know_no_process(capsys: pytest.CaptureFixture[str], packets: Path) -> None:
    for record in replay(capsys, packets):
        assert not record.keys() & {"pid", "tid", "comm", "cmdline", "direction", "role"}
        assert record["hop"].startswith(f"{record['source_ip']}:{record['source_port']}>")
        assert list(record)[:2] == ["timestamp", "source_ip"]


@pytest.mark.parametrize(
    ("options", "pids"),
    [
        (["--pid", "1234"], {1234}),
        (["--exclude-pid", "1234"], {2345}),
        (["--pid", "1234", "--pid", "2345"], {1234, 2345}),
        (["--comm", "server"], {2345}),
        (["--exclude-comm", "server"], {1234}),
        (["--comm", "server", "--pid", "1234"], set()),
        (["--port", "8080"], {1234, 2345}),
        (["--port", "8081"], set()),
        (["--exclude-port", "54321"], set()),
    ],
)
def test_filters(
    capsys: pytest.CaptureFixture[str], recording: Path, tmp_path: Path, options: list[str], pids: set[int]
) -> None:
    records = replay(capsys, recording, *options, "--ledger", tmp_path / "ledger")
    assert {record["pid"] for record in records} == pids
    rows = json.loads((tmp_path / "ledger").read_text())["bytes"]["rows"]
    total = json.loads((tmp_path / "ledger").read_text())["bytes"]["total"]
    assert rows["recorded"] + rows["filtered"] == total
    assert rows["filtered"] == total * (2 - len(pids)) // 2


def test_port_of_a_packet_capture(capsys: pytest.CaptureFixture[str], packets: Path) -> None:
    records = replay(capsys, packets, "--port", "8081")
    assert [record.get("url") for record in records] == ["/8081", None]


def test_count(capsys: pytest.CaptureFixture[str], recording: Path, tmp_path: Path) -> None:
    assert len(replay(capsys, recording, recording, "--count", "3", "--ledger", tmp_path / "ledger")) == 3
    book = json.loads((tmp_path / "ledger").read_text())
    assert sum(book["records"]["rows"].values()) == book["records"]["made"]
    assert book["records"]["rows"]["written"] == 3


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 2) -> str:
    assert main(["replay", *map(str, arguments)]) == status
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


def test_processes_of_a_packet_capture_cannot_be_asked_for(
    capsys: pytest.CaptureFixture[str], packets: Path, recording: Path
) -> None:
    for options in (["--pid", "1"], ["--exclude-comm", "a"]):
        message = refused(capsys, recording, packets, *options)
        assert str(packets) in message
        assert "--port" in message


def test_what_replay_does_not_have(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    assert "--exe" in refused(capsys, recording, "--exe", "/bin/true")
    assert "--duration" in refused(capsys, recording, "--duration", "1")
    assert "FILE" in refused(capsys)
    assert "COMMAND" in refused(capsys, recording, "--", "true")


def test_filter_from_the_environment_is_not_passed_over(
    capsys: pytest.CaptureFixture[str], recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETPROFILER_EXE", "/bin/true")
    assert "--comm" in refused(capsys, recording)


def test_nothing_is_written_when_one_of_the_files_is_none(
    capsys: pytest.CaptureFixture[str], recording: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_text("{}\n")
    assert "foreign" in refused(capsys, recording, foreign, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["recording", "packets"])
def test_truncated_file(
    capsys: pytest.CaptureFixture[str], kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data = request.getfixturevalue(kind).read_bytes()
    path = tmp_path / "cut"
    path.write_bytes(data[:-10])
    ledger = tmp_path / "ledger"
    records = replay(capsys, path, "--ledger", ledger, status=1)
    assert len(records) == (12 if kind == "recording" else 4)
    message = capsys.readouterr().err
    assert "cut: the" in message
    assert "truncated" in message
    assert "Traceback" not in message
    rows = json.loads(ledger.read_text())["bytes"]
    assert sum(rows["rows"].values()) == rows["total"]


def test_file_behind_a_damaged_one_is_shown(
    capsys: pytest.CaptureFixture[str], recording: Path, packets: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(recording.read_bytes()[:-10])
    records = replay(capsys, cut, packets, status=1)
    assert len(records) == 12 + 4


def test_record_that_is_none_in_a_whole_frame(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "odd"
    header = make_header(b'{"wall_offset_ns": 0}')
    for record in (b"\x63" * 40, wire.DATA.pack(wire.KIND_DATA, 0, 0, 0, 99, 1, 1, 1, 1, 1, 99), b"\x01"):
        path.write_bytes(header + make_frame(FRAME_BATCH, 1, wire.frame(record)))
        assert replay(capsys, path, status=1) == []
        message = capsys.readouterr().err
        assert "odd: holds" in message
        assert main(["decode", str(path)]) == 1
        assert "odd: holds" in capsys.readouterr().err


def test_to_standard_output(recording: Path) -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "netprofiler", "replay", str(recording)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == (GOLDEN / "keep_alive.recording.jsonl").read_text()
    assert done.stderr.startswith("ledger\n")


def test_reader_that_goes_away(recording: Path) -> None:
    """`netprofiler replay FILE | head -1`: quiet, and without complaint."""
    import subprocess
    import sys

    process = subprocess.Popen(
        [sys.executable, "-m", "netprofiler", "replay", *[str(recording)] * 200],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    message = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 0
    assert "Traceback" not in message
    assert "Broken" not in message
