"""A recording gives back what was written, and says what is wrong with one that is not whole."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netprofiler import wire
from netprofiler.counters import KERNEL_ROWS, Row
from netprofiler.errors import CommandError, ExitCode
from netprofiler.sources import recording
from netprofiler.sources.base import Batch, ClockSet, DamagedCaptureError, End, Frame, Rounds
from netprofiler.sources.files import open_capture
from netprofiler.sources.recording import Recording, RecordingWriter, make_frame, make_header
from netprofiler.testing import Script, Tick, batch

ROWS = {name: Row(number, 10 * number) for number, name in enumerate(KERNEL_ROWS)}
METADATA = json.dumps({"wall_offset_ns": 5, "netprofiler": "0.1.0"}).encode()


SCRIPT = Script()
SCRIPT.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
BATCH = batch(step for step in SCRIPT.steps if not isinstance(step, Tick))


def write(path: Path) -> None:
    writer = RecordingWriter(str(path), wall_offset_ns=12345)
    for time_ns in (100, 200):
        writer.round(time_ns)
    writer.batch(300, BATCH)
    writer.round(300)
    writer.clock(310, 54321)
    writer.batch(400, BATCH)
    writer.end(500, ROWS, 3)
    writer.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "recording")
    return tmp_path / "recording"


def read(data: bytes) -> list[Frame]:
    return list(Recording("file", b"", io.BytesIO(data)).frames())


def test_comes_back(path: Path) -> None:
    capture = open_capture(str(path))
    assert capture.wall_offset_ns == 12345
    assert capture.knows_processes
    assert "netprofiler" in capture.description
    assert list(capture.frames()) == [
        Rounds((100, 200)),
        Batch(300, BATCH),
        Rounds((300,)),
        ClockSet(310, 54321),
        Batch(400, BATCH),
        End(500, ROWS, 3),
    ]
    assert capture.notes() == []
    capture.close()


def test_is_private(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_older_recording_is_overwritten_and_becomes_private(path: Path) -> None:
    path.chmod(0o644)
    size = path.stat().st_size
    write(path)
    assert path.stat().st_size == size
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def refused(make: Callable[[], object]) -> str:
    with pytest.raises(CommandError) as caught:
        make()
    assert caught.value.exit_code == ExitCode.USAGE
    return str(caught.value)


def test_other_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "http.log"
    path.write_text('{"timestamp":"…"}\n')
    message = refused(lambda: RecordingWriter(str(path), wall_offset_ns=0))
    assert "http.log" in message
    assert "no recording" in message
    assert path.read_text() == '{"timestamp":"…"}\n'


def test_directory_link_and_fifo_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "fifo")
    assert "directory" in refused(lambda: RecordingWriter(str(tmp_path), wall_offset_ns=0))
    assert "symbolic link" in refused(lambda: RecordingWriter(str(tmp_path / "link"), wall_offset_ns=0))
    assert "regular" in refused(lambda: RecordingWriter(str(tmp_path / "fifo"), wall_offset_ns=0))
    assert "No such" in refused(lambda: RecordingWriter(str(tmp_path / "none" / "file"), wall_offset_ns=0))
    assert not (tmp_path / "target").exists()


def test_full_disk_leaves_what_was_whole() -> None:
    """/dev/full is no regular file, so the limit of file sizes stands in for it."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"recording-{os.getpid()}"
    writer = RecordingWriter(str(path), wall_offset_ns=0)
    try:
        writer.batch(1, BATCH)
        size = path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))
        with pytest.raises(OSError, match="large"):
            writer.batch(2, BATCH)
        assert path.stat().st_size == size
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        writer.end(3, ROWS, 0)
        assert read(path.read_bytes()) == [Batch(1, BATCH), End(3, ROWS, 0)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
        writer.close()
        path.unlink()


def test_large_batch_is_split_between_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "PART_BYTES", 3 * len(BATCH) + 10)
    path = tmp_path / "recording"
    writer = RecordingWriter(str(path), wall_offset_ns=0)
    writer.batch(1, BATCH * 10)
    writer.end(2, ROWS, 0)
    writer.close()
    frames = read(path.read_bytes())
    batches = [frame.data for frame in frames if isinstance(frame, Batch)]
    assert len(batches) > 2
    assert all(wire.whole_length(data) == len(data) <= recording.PART_BYTES for data in batches)
    assert b"".join(batches) == BATCH * 10


def test_silent_rounds_are_written_together(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    writer = RecordingWriter(str(path), wall_offset_ns=0)
    times = range(1, 1000)
    for time_ns in times:
        writer.round(time_ns)
    writer.end(1000, ROWS, 0)
    writer.close()
    frames = read(path.read_bytes())
    assert [time_ns for frame in frames if isinstance(frame, Rounds) for time_ns in frame.times_ns] == list(times)
    assert path.stat().st_size < 10_000


# ---- what is not whole ----


def frames_until_damage(data: bytes) -> tuple[list[Frame], str]:
    frames = []
    with pytest.raises(DamagedCaptureError) as caught:  # noqa: PT012 - what came before the error counts
        for frame in Recording("the-file", b"", io.BytesIO(data)).frames():
            frames.append(frame)  # noqa: PERF402
    assert caught.value.exit_code == ExitCode.FAILED
    assert "the-file" in str(caught.value)
    return frames, str(caught.value)


def test_every_truncation(path: Path) -> None:
    data = path.read_bytes()
    whole = read(data)
    counts = set()
    for size in range(len(data)):
        try:
            Recording("the-file", b"", io.BytesIO(data[:size]))
        except CommandError as error:
            assert (error.exit_code, "the-file" in str(error)) == (ExitCode.USAGE, True)  # noqa: PT017 - or it is none
            continue
        frames, message = frames_until_damage(data[:size])
        assert "truncated" in message
        assert frames == whole[: len(frames)]
        counts.add(len(frames))
    assert counts == set(range(len(whole)))


def test_every_changed_byte_is_noticed(path: Path) -> None:
    data = path.read_bytes()
    whole = read(data)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x55
        try:
            capture = Recording("the-file", b"", io.BytesIO(bytes(changed)))
        except CommandError:
            continue
        frames = []
        try:
            for frame in capture.frames():
                frames.append(frame)  # noqa: PERF402
        except DamagedCaptureError:
            assert frames == whole[: len(frames)]
        else:
            # the four bytes behind each checksum mean nothing
            assert frames == whole


def test_what_follows_the_end_is_damage(path: Path) -> None:
    frames, message = frames_until_damage(path.read_bytes() + b"x")
    assert isinstance(frames[-1], End)
    assert "damaged" in message


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (make_frame(77, 0, b""), "damaged"),
        (make_frame(recording.FRAME_ROUNDS, 0, b"123"), "damaged"),
        (make_frame(recording.FRAME_CLOCK, 0, b""), "damaged"),
        (make_frame(recording.FRAME_END_OF_CAPTURE, 0, b"{}"), "damaged"),
        (make_frame(recording.FRAME_END_OF_CAPTURE, 0, b"[" * 100_000), "damaged"),
        (make_frame(recording.FRAME_END_OF_CAPTURE, 0, b'{"rows":{"total":[Infinity,0]}}'), "damaged"),
        (recording.FRAME.pack(1, recording.FRAME_BYTES_MAX + 1, 0) + bytes(8), "damaged"),
        (recording.FRAME.pack(1, recording.FRAME_BYTES_MAX, 0) + bytes(8), "truncated"),
    ],
)
def test_frame_that_is_none(frame: bytes, word: str) -> None:
    frames, message = frames_until_damage(make_header(METADATA) + frame)
    assert frames == []
    assert word in message


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (make_header(METADATA, version=2), "version 2"),
        (make_header(METADATA, abi=wire.ABI_VERSION + 1), f"ABI version {wire.ABI_VERSION + 1}"),
        (make_header(b"[" * 60_000), "damaged"),
        (make_header(b"{}"), "time"),
        (make_header(b"[]"), "time"),
        (make_header(b'{"wall_offset_ns": 1e300}'), "time"),
        (make_header(b'{"wall_offset_ns": 99999999999999999999}'), "time"),
        (make_header(b" " * 100_000), "damaged"),
        (make_header(METADATA)[:-1] + b"x", "damaged"),
        (make_header(METADATA)[:20], "truncated"),
        (recording.MAGIC[:7], "truncated"),
        (b"no recording at all, and long enough for one", "no recording"),
    ],
)
def test_header_that_is_none(data: bytes, word: str) -> None:
    message = refused(lambda: Recording("the-file", b"", io.BytesIO(data)))
    assert "the-file" in message
    assert word in message


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "empty"), (b"{}\n", "neither"), (bytes(64), "neither"), (b"GET / HTTP/1.1\r\n\r\n", "neither")],
)
def test_foreign_file(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    message = refused(lambda: open_capture(str(path)))
    assert "foreign" in message
    assert word in message


def test_file_that_cannot_be_opened(tmp_path: Path) -> None:
    assert "No such file" in refused(lambda: open_capture(str(tmp_path / "absent")))
    assert "directory" in refused(lambda: open_capture(str(tmp_path)))
    assert "name" in refused(lambda: open_capture("a\0b"))


@given(st.binary(max_size=200), st.sampled_from((1, 2, 3, 4, 5)))
def test_any_payload(payload: bytes, kind: int) -> None:
    data = make_header(METADATA) + make_frame(kind, 1, payload)
    with contextlib.suppress(DamagedCaptureError):
        read(data)
