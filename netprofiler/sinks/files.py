"""The file that records are written to: opened safely, mended, rotated, compressed, encrypted.

Contract: `write` takes whole lines and returns how many bytes of them are in the file, whole lines again; what stopped it is
in `failure`, and the next `write` tries anew, so that recording goes on by itself when there is room again. Nothing here
raises but `open_output` (`CommandError`), when the agent starts.

- A file is made 0600. Symbolic links, other users' files and hard links are refused, and a file that another agent writes.
- A last line that broke off, because the agent before was killed, is cut off; nothing else is changed in what is there.
- Rotation renames: NAME to NAME.1, that to NAME.2, up to `keep`; the newest of the old ones is compressed by a thread. What
  cannot be renamed goes on growing: no record is lost to rotation.
- An encrypted file is in the age format (https://age-encryption.org/v1), by pyrage. Its unit is a chunk of 64 KiB: less
  than that is in memory only, until the file ends. It cannot be appended to, so each start, and what went wrong, begin a
  new one, and the one before is rotated away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import os
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Final, cast

import zstandard

from netprofiler.errors import CommandError, ExitCode

COMPRESSIONS: Final = {"gzip": ".gz", "zstd": ".zst", "none": ""}
KEEP: Final = 7
"""Old files, where rotation is asked for and nothing is said: a week of daily ones."""
AGE_CHUNK_BYTES: Final = 64 * 1024
AGE_TAG_BYTES: Final = 16
"""The age format, "Payload": STREAM of ChaCha20-Poly1305."""
RETRY_SECONDS: Final = 1.0
"""An encrypted file that could not be begun is tried again so often."""
CLOSE_SECONDS: Final = 30.0
"""A compression that is under way may take so long when the agent ends; otherwise the file stays as it is."""
_BLOCK_BYTES: Final = 1024 * 1024
_BEGINNING: Final = b'{"timestamp":'
"""Of a line of ours: what else does not end in a line's end is not ours to cut."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a file is renamed, and what becomes of it."""

    size_bytes: int | None = None
    age_seconds: float | None = None
    keep: int = KEEP
    compression: str = "zstd"
    """Of `COMPRESSIONS`."""


def open_output(path: str, option: str = "--output") -> int:
    """A descriptor to append to; CommandError (exit status 2), which names the option, where that cannot be."""
    if path == "-":
        return sys.stdout.fileno()
    flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | flags, 0o600)  # to mend it, it is read
        except PermissionError:
            descriptor = os.open(path, os.O_WRONLY | flags, 0o600)
    except OSError as error:
        reason = "is a symbolic link: give the file itself" if error.errno == errno.ELOOP else error.strerror
        if error.errno == errno.EISDIR:
            reason = "is a directory"
        raise CommandError(f"{option} {path}: {reason}", exit_code=ExitCode.USAGE) from error
    reason = _refusal(descriptor)
    if reason is not None:
        os.close(descriptor)
        raise CommandError(f"{option} {path}: {reason}", exit_code=ExitCode.USAGE)
    return descriptor


def _refusal(descriptor: int) -> str | None:
    """Why nothing is written to it; None: it may be."""
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        return "is a directory"
    if not stat.S_ISCHR(status.st_mode) and status.st_uid != os.geteuid():
        return "belongs to another user: remove it, or give another name"
    if stat.S_ISREG(status.st_mode):
        if status.st_nlink > 1:
            return "has another name, too (a hard link): give another one"
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return "another netprofiler writes it: give each its own"
    return None


def mend(descriptor: int) -> int:
    """Cut off a line of ours that broke off; returns its bytes. A line of anybody else is ended instead."""
    try:
        status = os.fstat(descriptor)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode) or not size or os.pread(descriptor, 1, size - 1) == b"\n":
            return 0
        start = size
        while start:
            block = max(0, start - _BLOCK_BYTES)
            newline = os.pread(descriptor, start - block, block).rfind(b"\n")
            start = block
            if newline >= 0:
                start += newline + 1
                break
        if os.pread(descriptor, len(_BEGINNING), start) == _BEGINNING[: size - start]:
            os.ftruncate(descriptor, start)
            return size - start
        os.write(descriptor, b"\n")
    except OSError:
        pass  # not readable: what is there stays
    return 0


class OutputFile:
    """`path` as above; ``-`` is standard output, which is neither mended nor rotated."""

    def __init__(self, path: str, rotation: Rotation | None, warn: Callable[[str], None]) -> None:
        self._path = path
        self._rotation = rotation
        self._warn = warn
        self._old = OldFiles(path, rotation, warn)
        self._descriptor = open_output(path)
        self._regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._opened = time.monotonic()
        self.failure: OSError | None = None
        if self._regular:
            self._old.forget_unfinished()
        self._mend()

    def _mend(self) -> None:
        broken = mend(self._descriptor)
        if broken:
            self._warn(f"{self._path}: its last line was not whole and is cut off ({broken} bytes)")

    def write(self, data: bytes) -> int:
        done = 0
        for part in self._parts(data):
            written = self._write(part)
            done += written
            if written < len(part):
                break
        return done

    def _parts(self, data: bytes) -> Iterator[bytes]:
        """Whole lines, as many together as fit into one file."""
        room = self._rotation.size_bytes if self._rotation is not None else None
        while room is not None and len(data) > room:
            end = data.rfind(b"\n", 0, room) + 1 or data.find(b"\n") + 1
            yield data[:end]
            data = data[end:]
        if data:
            yield data

    def _write(self, data: bytes) -> int:
        if self._regular:
            self._look_after(len(data))
        view = memoryview(data)
        self.failure = None
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            self.failure = error
            return self._end_line(data, len(data) - len(view))
        return len(data)

    def _end_line(self, data: bytes, done: int) -> int:
        """A line that broke off must not run into the next one. Returns the bytes of whole lines."""
        whole = data.rfind(b"\n", 0, done) + 1
        if done > whole and self._regular:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - (done - whole))
        return whole

    def _look_after(self, coming: int) -> None:
        status = os.fstat(self._descriptor)
        if not status.st_nlink:
            self._warn(f"{self._path}: was removed: made anew")
            self.reopen()
            return
        rotation = self._rotation
        if rotation is None or not status.st_size:
            return
        too_large = rotation.size_bytes is not None and status.st_size + coming > rotation.size_bytes
        too_old = rotation.age_seconds is not None and time.monotonic() - self._opened > rotation.age_seconds
        if (too_large or too_old) and self._is_ours() and self._old.shift():
            self.reopen()
            self._old.compress()

    def _is_ours(self) -> bool:
        """What has the name is the file that is open."""
        try:
            return os.path.samestat(os.stat(self._path, follow_symlinks=False), os.fstat(self._descriptor))
        except OSError:
            return False

    def reopen(self) -> None:
        """A file that was moved away, or removed, is made anew; where that cannot be, the old one goes on."""
        if self._path == "-" or (self._regular and self._is_ours()):
            return
        try:
            descriptor = open_output(self._path)
        except CommandError as error:
            self._warn(str(error))
            return
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._opened = time.monotonic()
        self._mend()

    def take_lost(self) -> int:
        """Lines that `write` took and that did not reach the file after all, since this was last asked."""
        return 0

    def close(self) -> None:
        if self._path != "-":
            os.close(self._descriptor)
        self._old.close()


class OldFiles:
    """NAME.1, NAME.2, …: what has been rotated away."""

    def __init__(self, path: str, rotation: Rotation | None, warn: Callable[[str], None]) -> None:
        self._path = path
        self._rotation = rotation or Rotation()
        self._warn = warn
        self._worker: threading.Thread | None = None

    @property
    def _unfinished(self) -> str:
        return f"{self._path}.1.unfinished"

    def forget_unfinished(self) -> None:
        """A compression that was interrupted: the file itself is still there."""
        with contextlib.suppress(OSError):
            os.unlink(self._unfinished)

    def shift(self) -> bool:
        """Make NAME free. False: not now."""
        if self._worker is not None and self._worker.is_alive():
            return False  # it reads NAME.1
        keep = self._rotation.keep
        try:
            for number in range(keep, 0, -1):
                for suffix in COMPRESSIONS.values():
                    name = f"{self._path}.{number}{suffix}"
                    if os.path.lexists(name):
                        if number == keep:
                            os.unlink(name)
                        else:
                            os.rename(name, f"{self._path}.{number + 1}{suffix}")
            if keep:
                os.rename(self._path, f"{self._path}.1")
            else:
                os.unlink(self._path)
        except OSError as error:
            self._warn(f"{self._path}: cannot be rotated: {error.strerror}")
            return False
        return True

    def compress(self) -> None:
        """NAME.1, by a thread."""
        if COMPRESSIONS[self._rotation.compression] and self._rotation.keep:
            self._worker = threading.Thread(target=self._compress, name="compress", daemon=True)
            self._worker.start()

    def _compress(self) -> None:
        source = f"{self._path}.1"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            with (
                open(os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as old,
                open(os.open(self._unfinished, flags, 0o600), "wb") as out,
            ):
                if self._rotation.compression == "gzip":
                    with gzip.GzipFile("", "wb", fileobj=out) as packed:
                        shutil.copyfileobj(old, packed, _BLOCK_BYTES)
                else:
                    zstandard.ZstdCompressor().copy_stream(old, out)
                out.flush()
                os.fsync(out.fileno())
            os.rename(self._unfinished, source + COMPRESSIONS[self._rotation.compression])
            os.unlink(source)
        except OSError as error:
            self._warn(f"{source}: cannot be compressed, and stays as it is: {error.strerror}")
            self.forget_unfinished()

    def close(self) -> None:
        if self._worker is not None:
            self._worker.join(CLOSE_SECONDS)


Recipient = object
"""pyrage's recipients have no common type."""


def recipients(texts: Sequence[str]) -> list[Recipient]:
    """``age1…`` and ``ssh-ed25519 …`` → what pyrage takes; CommandError (exit status 2)."""
    import pyrage  # noqa: PLC0415

    found: list[Recipient] = []
    for text in texts:
        kind = pyrage.ssh.Recipient if text.startswith("ssh-") else pyrage.x25519.Recipient
        try:
            found.append(kind.from_str(text))
        except pyrage.RecipientError as error:
            raise CommandError(
                f"--encrypt-to {text}: {error}",
                ExitCode.USAGE,
                remedy="make a key pair with `age-keygen`, give its public key",
            ) from error
    return found


class EncryptedFile:
    """As `OutputFile`; what is written is for these recipients only."""

    def __init__(self, path: str, to: Sequence[str], rotation: Rotation | None, warn: Callable[[str], None]) -> None:
        if path == "-":
            raise CommandError("--encrypt-to: standard output is no file", ExitCode.USAGE, remedy="give --output FILE")
        self._path = path
        self._to = recipients(to)
        self._rotation = rotation or Rotation(compression="none")
        self._warn = warn
        self._old = OldFiles(path, self._rotation, warn)
        self._lost = 0
        self._stream: _AgeStream | None = None
        self._retry_at = 0.0
        self._scrap = False
        self.failure: OSError | None = None
        os.close(open_output(path))  # what is refused is refused at the start
        self._begin()

    def _begin(self) -> None:
        try:
            if not self._scrap and os.stat(self._path).st_size and not self._old.shift():
                self.failure = OSError(errno.EBUSY, "the file before is still there")
                return
            descriptor = open_output(self._path)
        except CommandError as error:
            self.failure = OSError(errno.EACCES, str(error))
            return
        except FileNotFoundError:
            descriptor = open_output(self._path)
        os.ftruncate(descriptor, 0)
        self._stream = _AgeStream(descriptor, self._to)
        if self._stream.failure is not None:
            self._fail()

    def _fail(self) -> None:
        """The stream is broken for good: its whole chunks can be read, the rest is lost."""
        assert self._stream is not None
        self.failure = self._stream.failure
        self._lost += self._stream.lines_lost()
        self._scrap = not self._stream.durable_bytes
        self._stream.close()
        self._stream = None
        self._retry_at = time.monotonic() + RETRY_SECONDS

    def write(self, data: bytes) -> int:
        stream = self._stream
        rotation = self._rotation
        if stream is not None:
            too_large = rotation.size_bytes is not None and stream.written_bytes + len(data) > rotation.size_bytes
            too_old = rotation.age_seconds is not None and time.monotonic() - stream.began > rotation.age_seconds
            if (stream.taken_bytes and (too_large or too_old)) or stream.is_removed():
                self._finish()
        if self._stream is None:
            if time.monotonic() < self._retry_at:
                return 0
            self.failure = None
            self._begin()
            if self._stream is None:
                self._retry_at = time.monotonic() + RETRY_SECONDS
                return 0
        self.failure = None
        self._stream.feed(data)
        if self._stream.failure is not None:
            self._fail()
        return len(data)  # those that are lost are in take_lost()

    def _finish(self) -> None:
        stream = self._stream
        if stream is not None:
            stream.finish()
            if stream.failure is not None:
                self._fail()
            else:
                stream.close()
                self._stream = None
                self._scrap = False

    def take_lost(self) -> int:
        lost, self._lost = self._lost, 0
        return lost

    def reopen(self) -> None:
        self._finish()
        self._begin()

    def close(self) -> None:
        self._finish()
        self._old.close()


class _AgeStream:
    """pyrage pulls what it encrypts: it does so in a thread, and `feed` returns when it has taken all and asks for more."""

    def __init__(self, descriptor: int, to: list[Recipient]) -> None:
        self._descriptor = descriptor
        self._condition = threading.Condition()
        self._waiting = b""
        self._ended = False
        self._hungry = False
        self._head_bytes = -1
        self._tail = bytearray()
        """What is not known to be in the file."""
        self._tail_start = 0
        self.taken_bytes = 0
        self.written_bytes = 0
        self.failure: OSError | None = None
        self.began = time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(to,), name="encrypt", daemon=True)
        self._thread.start()
        self._settle()

    def _run(self, to: list[Recipient]) -> None:
        import pyrage  # noqa: PLC0415

        failure: OSError | None = None
        try:
            pyrage.encrypt_io(cast("IO[bytes]", self), cast("IO[bytes]", _Out(self)), to)
        except (OSError, pyrage.EncryptError) as error:
            failure = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
        with self._condition:
            self.failure = self.failure or failure
            self._ended = self._hungry = True
            self._condition.notify_all()

    def read(self, size: int) -> bytes:
        """For pyrage."""
        with self._condition:
            if self._head_bytes < 0:
                self._head_bytes = self.written_bytes
            while not self._waiting and not self._ended:
                self._hungry = True
                self._condition.notify_all()
                self._condition.wait()
            part, self._waiting = self._waiting[:size], self._waiting[size:]
            return part

    def put(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                done = os.write(self._descriptor, view)
                self.written_bytes += done
                view = view[done:]
        except OSError as error:
            self.failure = error
            raise

    def _settle(self) -> None:
        with self._condition:
            while not self._hungry:
                self._condition.wait()

    def feed(self, data: bytes) -> None:
        with self._condition:
            self._tail += data
            self.taken_bytes += len(data)
            if self._ended:
                return
            self._waiting += data
            self._hungry = False
            self._condition.notify_all()
        self._settle()
        done = self.durable_bytes - self._tail_start
        del self._tail[:done]
        self._tail_start += done

    @property
    def durable_bytes(self) -> int:
        """Of what was taken, so much is in whole chunks in the file."""
        chunks = (self.written_bytes - max(0, self._head_bytes)) // (AGE_CHUNK_BYTES + AGE_TAG_BYTES)
        return max(0, min(chunks * AGE_CHUNK_BYTES, self.taken_bytes))

    def lines_lost(self) -> int:
        """Lines that do not end in a whole chunk."""
        return self._tail.count(b"\n", max(0, self.durable_bytes - self._tail_start))

    def is_removed(self) -> bool:
        return not os.fstat(self._descriptor).st_nlink

    def finish(self) -> None:
        """The last chunk."""
        with self._condition:
            self._ended = True
            self._condition.notify_all()
        self._thread.join()

    def close(self) -> None:
        self.finish()
        os.close(self._descriptor)


class _Out:
    """The file object that pyrage writes to."""

    def __init__(self, stream: _AgeStream) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        self._stream.put(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""
