"""A recording: what the kernel side sent, in a file, for `record`, `replay` and `decode`.

Contract: `RecordingWriter` writes what a capture goes through, round by round; `Recording` gives it back as the frames of
sources/base.py, one at a time. What was written and not damaged comes back the same, byte for byte and time for time, so
that a replay says what the live run would have said.

The format, version 1; all numbers little-endian:

    header   magic (12 bytes), u16 format version, u16 ABI version (bpf/events.h), u32 length of the metadata,
             u32 CRC-32 of all that is before this field and of the metadata; then the metadata, a JSON object:
             netprofiler, kernel, machine (strings), started (RFC 3339), wall_offset_ns
    frame    u32 kind, u32 length, i64 time (monotonic, ns), u32 CRC-32 of these three and of the payload, u32 0;
             then the payload:
               1 batch    raw records, as in wire.py
               2 rounds   i64 times at which rounds ended; the frame's time is the last of them
               3 clock    i64 wall offset from here on
               4 end      JSON: {"rows": {name: [calls, bytes]}, "announcements_lost": n}; nothing follows

The times of rounds are there because they decide when waiting ends (connection.py): without them a replay would cut a
gap, or write an interim record, at another moment than the live run.

A recording holds payload with all its secrets: it is made 0600, and never through a symbolic link.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import stat
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from struct import Struct
from typing import BinaryIO, Final

from netprofiler import __version__, wire
from netprofiler.counters import KERNEL_ROWS, Row
from netprofiler.errors import CommandError, ExitCode
from netprofiler.sources.base import Batch, ClockSet, DamagedCaptureError, End, Frame, Rounds

MAGIC: Final = b"\x89NETPROF\r\n\x1a\n"
"""As PNG's: no text, and a transfer as text destroys it visibly."""
FORMAT_VERSION: Final = 1

HEADER: Final = Struct("<12sHHI")
CHECKSUM: Final = Struct("<I")
FRAME: Final = Struct("<IIq")
FRAME_END: Final = Struct("<II")
NUMBER: Final = Struct("<q")

FRAME_BATCH: Final = 1
FRAME_ROUNDS: Final = 2
FRAME_CLOCK: Final = 3
FRAME_END_OF_CAPTURE: Final = 4

METADATA_BYTES_MAX: Final = 64 * 1024
FRAME_BYTES_MAX: Final = 8 * 1024 * 1024
"""Far more than a writer puts into one. A frame that says it is larger is damaged, and is not read."""
PART_BYTES: Final = 16 * 1024
"""A larger batch is written in frames of about this size: of a file that is cut anywhere, no more than this is lost."""
ROUNDS_MAX: Final = 64
"""Rounds without a record are kept back and written together: a second and a half of silence is one frame."""


class RecordingWriter:
    """Writes one recording. An OSError of the disk is the caller's: whatever was whole before it stays whole."""

    def __init__(self, path: str, *, wall_offset_ns: int) -> None:
        self.path = path
        self._descriptor = open_recording(path)
        self._rounds: list[int] = []
        metadata = json.dumps(
            {
                "netprofiler": __version__,
                "kernel": platform.release(),
                "machine": platform.machine(),
                "started": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
                "wall_offset_ns": wall_offset_ns,
            }
        ).encode()
        try:
            self._write(make_header(metadata))
        except OSError as error:
            os.close(self._descriptor)
            raise CommandError(f"{path}: {error.strerror}", ExitCode.USAGE) from error

    def batch(self, time_ns: int, batch: bytes) -> None:
        """`batch` holds whole records only."""
        self.flush()
        for part in _parts(batch):
            self._frame(FRAME_BATCH, time_ns, part)

    def round(self, time_ns: int) -> None:
        """A round has ended."""
        self._rounds.append(time_ns)
        if len(self._rounds) >= ROUNDS_MAX:
            self.flush()

    def clock(self, time_ns: int, wall_offset_ns: int) -> None:
        self.flush()
        self._frame(FRAME_CLOCK, time_ns, NUMBER.pack(wall_offset_ns))

    def end(self, time_ns: int, rows: dict[str, Row], announcements_lost: int) -> None:
        self.flush()
        table = {name: [row.calls, row.bytes] for name, row in rows.items()}
        payload = json.dumps({"rows": table, "announcements_lost": announcements_lost}).encode()
        self._frame(FRAME_END_OF_CAPTURE, time_ns, payload)

    def flush(self) -> None:
        if self._rounds:
            times = self._rounds
            self._rounds = []
            self._frame(FRAME_ROUNDS, times[-1], b"".join(map(NUMBER.pack, times)))

    def close(self) -> None:
        os.close(self._descriptor)

    def _frame(self, kind: int, time_ns: int, payload: bytes) -> None:
        self._write(make_frame(kind, time_ns, payload))

    def _write(self, data: bytes) -> None:
        """All of it, or none of it and an OSError."""
        start = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            os.ftruncate(self._descriptor, start)
            os.lseek(self._descriptor, start, os.SEEK_SET)
            raise


def make_header(metadata: bytes, *, version: int = FORMAT_VERSION, abi: int = wire.ABI_VERSION) -> bytes:
    """All that is before the first frame."""
    start = HEADER.pack(MAGIC, version, abi, len(metadata))
    return start + CHECKSUM.pack(zlib.crc32(metadata, zlib.crc32(start))) + metadata


def make_frame(kind: int, time_ns: int, payload: bytes) -> bytes:
    """One frame."""
    start = FRAME.pack(kind, len(payload), time_ns)
    return start + FRAME_END.pack(zlib.crc32(payload, zlib.crc32(start)), 0) + payload


def _parts(batch: bytes) -> Iterator[bytes]:
    """A batch in pieces of about PART_BYTES, cut between records."""
    start = at = 0
    while len(batch) - start > PART_BYTES and at < len(batch):
        length = int.from_bytes(batch[at : at + 4], "little") & wire.RING_LENGTH_MASK
        end = at + wire.RING_HEADER_BYTES + (length + 7 & ~7)
        if end - start > PART_BYTES and at > start:
            yield batch[start:at]
            start = at
        at = end
    yield batch[start:]


def open_recording(path: str) -> int:
    """A descriptor to write a recording to. An older recording is overwritten, any other file is not."""

    def refuse(reason: str, remedy: str | None = None) -> CommandError:
        return CommandError(f"{path}: {reason}", ExitCode.USAGE, remedy=remedy)

    # O_NONBLOCK: a FIFO must not make us wait for its reader; it is refused below.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise refuse("is a symbolic link", "give the file itself") from error
        if error.errno == errno.EISDIR:
            raise refuse("is a directory", "give a file in it") from error
        raise refuse(error.strerror or str(error)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise refuse("is no regular file")
        if status.st_size and os.read(descriptor, len(MAGIC)) != MAGIC:
            raise refuse("is there and is no recording: it is not overwritten", "give another name, or remove it")
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, 0)
    except OSError as error:
        os.close(descriptor)
        raise refuse(error.strerror or str(error)) from error
    except CommandError:
        os.close(descriptor)
        raise
    return descriptor


class Recording:
    """A recording to read; `head` is what was read of the file already. It need not be seekable."""

    knows_processes = True

    def __init__(self, path: str, head: bytes, file: BinaryIO) -> None:
        self.path = path
        self._head = head
        self._file = file
        self._at = 0
        metadata = self._read_header()
        offset = metadata.get("wall_offset_ns")
        if not isinstance(offset, int) or abs(offset) >= 1 << 63:
            raise self._refuse("its header does not say which time it is from")
        self.wall_offset_ns = offset
        known = {name: str(metadata.get(name, "unknown")) for name in ("netprofiler", "kernel", "machine", "started")}
        self.description = (
            f"a recording by netprofiler {known['netprofiler']}, ABI {wire.ABI_VERSION}, "
            f"on Linux {known['kernel']} {known['machine']}, started {known['started']}"
        )

    def _refuse(self, reason: str, remedy: str | None = None) -> CommandError:
        return CommandError(f"{self.path}: {reason}", ExitCode.USAGE, remedy=remedy)

    def _read(self, size: int) -> bytes:
        taken, self._head = self._head[:size], self._head[size:]
        try:
            data = taken + self._file.read(size - len(taken))
        except OSError as error:
            raise DamagedCaptureError(f"{self.path}: at byte {self._at}: {error.strerror}") from error
        self._at += len(data)
        return data

    def _read_header(self) -> dict[str, object]:
        start = self._read(HEADER.size)
        if not MAGIC.startswith(start[: len(MAGIC)]) or not start:
            raise self._refuse("is no recording of netprofiler")
        if len(start) < HEADER.size:
            raise self._refuse("a recording that is truncated in its header", "record again")
        _, version, abi, length = HEADER.unpack(start)
        if version != FORMAT_VERSION:
            raise self._refuse(
                f"a recording of format version {version}; this netprofiler reads version {FORMAT_VERSION}",
                "use the netprofiler that made it",
            )
        if abi != wire.ABI_VERSION:
            raise self._refuse(
                f"its records have ABI version {abi}; this netprofiler reads version {wire.ABI_VERSION}",
                "use the netprofiler that made it",
            )
        if length > METADATA_BYTES_MAX:
            raise self._refuse("a recording whose header is damaged", "record again")
        rest = self._read(CHECKSUM.size + length)
        if len(rest) < CHECKSUM.size + length:
            raise self._refuse("a recording that is truncated in its header", "record again")
        metadata = rest[CHECKSUM.size :]
        if CHECKSUM.unpack_from(rest)[0] != zlib.crc32(metadata, zlib.crc32(start)):
            raise self._refuse("a recording whose header is damaged", "record again")
        try:
            known = json.loads(metadata)
        except (ValueError, RecursionError) as error:
            raise self._refuse("a recording whose header is damaged", "record again") from error
        return known if isinstance(known, dict) else {}

    def frames(self) -> Iterator[Frame]:
        while True:
            at = self._at
            start = self._read(FRAME.size + FRAME_END.size)
            if len(start) < FRAME.size + FRAME_END.size:
                raise self._truncated(at)
            kind, length, time_ns = FRAME.unpack_from(start)
            checksum, _ = FRAME_END.unpack_from(start, FRAME.size)
            if length > FRAME_BYTES_MAX:
                raise self._damaged(at)
            payload = self._read(length)
            if len(payload) < length:
                raise self._truncated(at)
            if checksum != zlib.crc32(payload, zlib.crc32(start[: FRAME.size])):
                raise self._damaged(at)
            frame = self._parse(kind, time_ns, payload, at)
            yield frame
            if isinstance(frame, End):
                if self._read(1):
                    raise self._damaged(self._at - 1)
                return

    def _parse(self, kind: int, time_ns: int, payload: bytes, at: int) -> Frame:
        if kind == FRAME_BATCH:
            return Batch(time_ns, payload)
        if kind == FRAME_ROUNDS and len(payload) % NUMBER.size == 0:
            return Rounds(tuple(number for (number,) in NUMBER.iter_unpack(payload)))
        if kind == FRAME_CLOCK and len(payload) == NUMBER.size:
            return ClockSet(time_ns, NUMBER.unpack(payload)[0])
        if kind == FRAME_END_OF_CAPTURE:
            try:
                return _parse_end(time_ns, payload)
            except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
                pass
        raise self._damaged(at)

    def _truncated(self, at: int) -> DamagedCaptureError:
        return DamagedCaptureError(
            f"{self.path}: the recording is truncated: nothing whole follows byte {at}, and its end is missing",
            remedy="what was whole is shown; end `netprofiler record` by SIGINT or SIGTERM, and copy all of the file",
        )

    def _damaged(self, at: int) -> DamagedCaptureError:
        return DamagedCaptureError(
            f"{self.path}: the recording is damaged at byte {at}", remedy="what is before it is shown; record again"
        )

    def notes(self) -> list[str]:
        return []

    def close(self) -> None:
        self._file.close()


def _parse_end(time_ns: int, payload: bytes) -> End:
    table = json.loads(payload)
    # Rows that were not there from the beginning.
    found = dict.fromkeys(("unreadable", "tallied", "budget"), (0, 0)) | table["rows"]
    rows = {name: Row(int(found[name][0]), int(found[name][1])) for name in KERNEL_ROWS}
    return End(time_ns, rows, int(table["announcements_lost"]))
