"""What a sendfile sent, read back from the file.

Contract: `SentFiles.read(source, length, sent_ns)` gives the first `length` bytes of what was sent, or nothing where they
can no longer be had. The file is found by the process' descriptor, else by its names below the mounts of the process. It
has to be the same inode, a regular file, and unchanged (ctime) since before it was sent: what was written later was not
sent. `expire(now_ns)` closes what was not used for a while.

A file is looked for once and kept open for a second, because a server sends the same few again and again, and the kernel
side tells the names only every half second (bpf/syscalls.h, DESCRIBE_AGAIN_NS).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from netprofiler.wire import FileSource

PROC = Path("/proc")

CTIME_TICK_NS: Final = 10_000_000
"""A change may carry the time of the last clock tick before it (HZ=100: 10 ms)."""
KEEP_NS: Final = 1_000_000_000
FILES_MAX: Final = 64
"""Descriptors held open."""


class SentFiles:
    """The files that were sent lately, held open for a second."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int], tuple[int, int]] = {}
        """(device, inode) → descriptor (-1: not found), when it was looked for."""

    def read(self, source: FileSource, length: int, sent_ns: int) -> bytes:
        """`sent_ns`: wall clock."""
        if length <= 0:
            return b""
        key = (source.device, source.inode)
        kept = self._files.get(key)
        if kept is None or sent_ns - kept[1] > KEEP_NS or (kept[0] < 0 and source.names):
            self._forget(key)
            if len(self._files) >= FILES_MAX:
                self._forget(next(iter(self._files)))
            kept = self._files[key] = (_open(source), sent_ns)
        descriptor = kept[0]
        if descriptor < 0:
            return b""
        try:
            content = os.pread(descriptor, length, source.offset)
            unchanged = os.fstat(descriptor).st_ctime_ns + CTIME_TICK_NS < sent_ns
        except OSError:
            return b""
        return content if unchanged else b""

    def _forget(self, key: tuple[int, int]) -> None:
        descriptor, _ = self._files.pop(key, (-1, 0))
        if descriptor >= 0:
            os.close(descriptor)

    def expire(self, now_ns: int) -> None:
        """`now_ns`: wall clock."""
        for key in [key for key, (_, since_ns) in self._files.items() if now_ns - since_ns > KEEP_NS]:
            self._forget(key)

    def close(self) -> None:
        for key in list(self._files):
            self._forget(key)


def _open(source: FileSource) -> int:
    for path in _candidates(source):
        # O_PATH first: the path may lead to something whose opening has effects (a FIFO, a device).
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            status = os.fstat(handle)
            if status.st_ino == source.inode and stat.S_ISREG(status.st_mode):
                return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        finally:
            os.close(handle)
    return -1


def _candidates(source: FileSource) -> Iterable[str]:
    process = PROC / str(source.pid)
    yield str(process / "fd" / str(source.descriptor))
    inside = b"/".join(reversed(source.names)).decode("utf-8", "surrogateescape")
    if not inside or len(source.names) >= 12:
        return
    device = f"{source.device >> 20}:{source.device & 0xFFFFF}"
    for owner in (process, PROC / "self"):
        try:
            mounts = (owner / "mountinfo").read_text(errors="surrogateescape").splitlines()
        except OSError:
            continue
        for line in mounts:
            fields = line.split()
            # proc(5): id, parent, device, root within the file system, mount point
            if len(fields) > 4 and fields[2] == device:
                root, point = fields[3], fields[4]
                path = f"/{inside}"
                if root != "/":
                    if not path.startswith(f"{root}/"):
                        continue
                    path = path[len(root) :]
                yield f"{owner}/root{point.rstrip('/')}{path}"
