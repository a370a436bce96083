"""A live capture, its recording, and the replay of that say the same; the kernel side is a list of batches here."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from netprofiler import wire
from netprofiler.cli import main
from netprofiler.commands import capture as capture_module
from netprofiler.commands.capture import Capture, Ended, start_stopped
from netprofiler.commands.log import Log
from netprofiler.commands.outputs import Outputs, report_ledger
from netprofiler.commands.record import Recorder
from netprofiler.commands.run import Live
from netprofiler.config import Config
from netprofiler.connection import Command, Skip
from netprofiler.counters import KERNEL_ROWS, Row
from netprofiler.errors import CommandError
from netprofiler.pipeline import Pipeline
from netprofiler.sources.recording import RecordingWriter
from netprofiler.testing import Script, Tick, batch

ROUND_NS = 25_000_000
OFFSET_NS = 1_795_233_504_123_456_789


class FakeSource:
    """Gives a batch at a time, and the clock goes on with each look."""

    def __init__(self, batches: list[bytes]) -> None:
        self.batches = batches
        self.ring = b""
        self.told: list[Command] = []
        self.now_ns = 0

    def wait(self, seconds: float) -> bool:
        assert seconds < 0.1
        self.now_ns += ROUND_NS
        if self.batches:
            self.ring += self.batches.pop(0)
        return False

    def read(self) -> bytes:
        return self.ring

    def advance(self, size: int) -> None:
        self.ring = self.ring[size:]

    def command(self, command: Command) -> None:
        self.told.append(command)

    def refresh_executables(self) -> None: ...

    def notices(self) -> list[wire.Notice]:
        return []

    def tls_counts(self) -> dict[str, int]:
        return {"notices_lost": 0}


class Both:
    """A consumer that is two: what `run` and `record` would have made of the very same capture."""

    sent_file_bytes = 4096

    def __init__(self, live: Live, recorder: Recorder, source: FakeSource) -> None:
        self.live = live
        self.recorder = recorder
        self.source = source

    @property
    def done(self) -> bool:
        return not self.source.batches

    def batch(self, batch: bytes, now_ns: int) -> int:
        used = self.recorder.batch(batch, now_ns)
        assert self.live.batch(batch, now_ns) == used
        return used

    def commands(self) -> list[Command]:
        assert self.recorder.commands() == []
        return self.live.commands()

    def end_round(self, now_ns: int) -> None:
        self.recorder.end_round(now_ns)
        self.live.end_round(now_ns)

    def unix_owners(self) -> dict[int, int]:
        assert self.recorder.unix_owners() == self.live.unix_owners()
        return dict(self.live.unix_owners())

    def unread(self) -> dict[int, int]:
        return self.live.unread()

    def forget(self, inodes: list[int], now_ns: int) -> None:
        self.recorder.forget(inodes, now_ns)
        self.live.forget(inodes, now_ns)

    def set_wall_offset(self, offset_ns: int, now_ns: int) -> None:
        self.recorder.set_wall_offset(offset_ns, now_ns)
        self.live.set_wall_offset(offset_ns, now_ns)

    def reopen(self) -> None:
        self.recorder.reopen()

    def end(self, now_ns: int) -> None:
        self.recorder.end(now_ns)
        self.live.end(now_ns)


def request(target: bytes) -> bytes:
    return b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % target


def traffic() -> list[bytes]:
    """Batches of 25 ms: ordinary exchanges, one that streams, a hole, a large body, and UNIX sockets that go."""
    script = Script(time_ns=0)
    script.process()
    client = script.client()
    streaming = script.client(local=("127.0.0.1", 2))
    large = script.client(local=("127.0.0.1", 3))
    unix = script.client(family=wire.FAMILY_UNIX, unix_path="/run/a.sock")
    streaming.send(request(b"/stream"))
    streaming.recv(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    large.send(request(b"/large"))
    large.recv(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"y" * 5000)
    unix.send(request(b"/unix"))
    unix.recv(b"HTTP/1.1 200 OK\r\n\r\nuntil it goes")
    rounds = []
    for number in range(100):
        if number % 10 == 5:
            client.send(request(b"/%d" % number))
            client.recv(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 1000)
            if number == 45:
                client.lose(wire.RECV, 500)
            else:
                client.recv(b"x" * 500)
            client.recv(b"x" * 500)
        if number % 7 == 0:
            streaming.recv(b"6\r\nevent\n\r\n")
        rounds.append(batch(step for step in script.steps if not isinstance(step, Tick)))
        script.steps.clear()
        script.time_ns = max(script.time_ns, (number + 1) * ROUND_NS)
    return [*rounds, b""]


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, FakeSource]:
    """Lines of a live capture and its recording; the clock is set in the middle of it."""
    source = FakeSource(traffic())
    monkeypatch.setattr(capture_module, "monotonic_ns", lambda: source.now_ns)
    monkeypatch.setattr(
        capture_module,
        "wall_offset_ns",
        lambda: OFFSET_NS + (3_600_000_000_000 if source.now_ns > 1_500_000_000 else 0),
    )
    monkeypatch.setattr(
        capture_module, "gone_unix_sockets", lambda owners: list(owners) if source.now_ns > 2_000_000_000 else []
    )
    config = Config(output=str(tmp_path / "live.log"), ledger=str(tmp_path / "live.ledger"), stream_interval=1.0)
    log = Log(config)
    pipeline = Pipeline(stream_interval_ns=1_000_000_000)
    outputs = Outputs(config, pipeline.counters, OFFSET_NS, log.warn)
    recorder = Recorder(RecordingWriter(str(tmp_path / "recording"), wall_offset_ns=OFFSET_NS), log.warn)
    consumer = Both(Live(config, pipeline, outputs), recorder, source)
    capture = Capture(config, log, OFFSET_NS)
    capture.loop(source, consumer)
    capture.end(source, consumer)
    outputs.close()
    delivered = pipeline.counters.delivered
    rows = {name: Row() for name in KERNEL_ROWS} | {"total": delivered, "delivered": delivered}
    recorder.finish(Ended(rows, 0))
    recorder.close()
    report_ledger(config, pipeline.counters, rows, log.warn)
    return tmp_path / "live.log", tmp_path / "recording", source


def test_replay_says_what_the_live_run_said(both: tuple[Path, Path, FakeSource], tmp_path: Path) -> None:
    live, recording, source = both
    lines = live.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {record["completeness"] for record in records} == {"complete", "open", "gap", "partial"}
    assert {record["timestamp"][:13] for record in records} == {"2026-11-21T03", "2026-11-21T04"}
    assert any(isinstance(command, Skip) for command in source.told)
    for _ in range(2):
        output, ledger = tmp_path / "replayed.log", tmp_path / "replayed.ledger"
        options = ["--stream-interval", "1", "--output", str(output), "--ledger", str(ledger)]
        assert main(["replay", str(recording), *options]) == 0
        assert output.read_text() == live.read_text()
        assert ledger.read_text() == (tmp_path / "live.ledger").read_text()
        output.unlink()


class BrokenWriter:
    """A disk that is full now and then."""

    path = "the-recording"

    def __init__(self) -> None:
        self.full = False
        self.batches: list[bytes] = []
        self.rows: dict[str, Row] = {}

    def _write(self) -> None:
        if self.full:
            raise OSError(28, "No space left on device")

    def batch(self, _time_ns: int, batch: bytes) -> None:
        self._write()
        self.batches.append(batch)

    def round(self, _time_ns: int) -> None:
        self._write()

    def clock(self, _time_ns: int, _wall_offset_ns: int) -> None:
        self._write()

    def end(self, _time_ns: int, rows: dict[str, Row], _announcements_lost: int) -> None:
        self._write()
        self.rows = rows


def test_full_disk_is_said_once_and_is_in_the_ledger() -> None:
    writer = BrokenWriter()
    warnings: list[str] = []
    recorder = Recorder(writer, warnings.append)  # type: ignore[arg-type]
    script = Script()
    script.client().send(b"GET / HTTP/1.1\r\n\r\n")
    data = batch(step for step in script.steps if not isinstance(step, Tick))
    for full in (False, True, True, False):
        writer.full = full
        assert recorder.batch(data, 1) == len(data)
        recorder.end_round(1)
    assert len(writer.batches) == 2
    assert len(warnings) == 1
    assert "the-recording: No space left" in warnings[0]
    rows = {name: Row() for name in KERNEL_ROWS} | {"total": Row(4, 72), "delivered": Row(4, 72)}
    recorder.finish(Ended(rows, 0))
    assert (writer.rows["delivered"], writer.rows["lost"]) == (Row(2, 36), Row(2, 36))


def test_command_runs_only_when_it_is_released(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    child = start_stopped(("touch", str(marker)))
    assert child.poll() is None
    assert not marker.exists()
    child.send_signal(signal.SIGCONT)
    assert child.wait(10) == 0
    assert marker.exists()


def test_command_does_not_run_when_the_capture_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_filters: object, **_options: object) -> None:
        raise CommandError("no BPF here", 3)

    monkeypatch.setattr(capture_module, "KernelSource", fail)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    config = Config(command=("touch", str(tmp_path / "marker")))
    capture = Capture(config, Log(config), 0)
    with pytest.raises(CommandError, match="no BPF"):
        capture.run(None)  # type: ignore[arg-type]
    assert capture.status() == 128 + signal.SIGKILL
    assert not (tmp_path / "marker").exists()


def test_verbs_of_a_capture_need_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("netprofiler.sources.kernel.may_capture", lambda: False)
    for arguments in (["run"], ["record", "file"]):
        assert main(arguments) == 3
        assert "sudo" in capsys.readouterr().err


Make = Callable[[Path], None]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.symlink_to("elsewhere"), "symbolic link"),
        (lambda path: path.write_text("a log\n"), "no recording"),
    ],
)
def test_recording_that_cannot_be_made(
    tmp_path: Path, make: Make, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("netprofiler.commands.record.check_host", lambda: None)
    path = tmp_path / "it"
    make(path)
    assert main(["record", str(path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert str(path) in message
    assert word in message
