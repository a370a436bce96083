"""Files as the kernel names them: what processes have mapped, which inode it is, and whether TLS may be in it.

Contract: whatever a process or a file does while it is looked at (it ends, is removed, is damaged) gives an empty answer
or an OSError where that is said. Everything that is read is bounded.

The kernel names a file by the device of its file system (``i_sb->s_dev``: major << 20 | minor) and its inode: so do the
events of the kernel side and /proc/PID/maps. stat(2) gives another device on btrfs, and on overlayfs whose layers are on
several file systems. On overlayfs all of these name the overlay, and two overlays have two names for the inode of a layer
that they share; the file handle tells (`real_inode`).
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import platform
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from netprofiler.sources.processes import PROC

FILE_MAX_BYTES: Final = 1 << 30
"""Larger files are not looked into: the largest browsers have 250 MB."""
MAPS_MAX_BYTES: Final = 16 * 1024 * 1024
"""/proc/PID/maps: 65,530 mappings is the kernel's usual limit."""
CACHE_MAX_BYTES: Final = 16 * 1024 * 1024
CHUNK_BYTES: Final = 1024 * 1024

MARKS: Final = (
    b"SSL_",  # OpenSSL, BoringSSL: exported names, or those in their own tables of errors
    b"BoringSSL",
    b"gnutls_",
    b"PR_Write",  # NSPR: its layers are NSS
    b"crypto/tls.",  # Go: names of functions survive stripping
    b"rustls",
    b"mbedtls",
    b"wolfSSL",
    b"s2n_",
    b"JNI_CreateJavaVM",  # Java brings its own
)
"""A file with none of these in its bytes has no TLS that could be read, or named as what cannot be read."""

Key = tuple[int, int]
"""Device and inode, as the kernel names them."""


# --- mappings ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mapping:
    """A part of a file that is mapped to be executed."""

    start: int
    end: int
    key: Key
    path: str


_MAPPING: Final = re.compile(
    rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) [r-][w-]x[ps] [0-9a-f]+ ([0-9a-f]{1,8}):([0-9a-f]{1,8}) ([0-9]{1,20}) +(/.*)$",
    re.MULTILINE,
)


def parse_maps(text: bytes) -> Iterator[Mapping]:
    """/proc/PID/maps → what is of a file and executable."""
    for match in _MAPPING.finditer(text):
        start, end, major, minor, inode, path = match.groups()
        if inode != b"0":
            key = (int(major, 16) << 20 | int(minor, 16), int(inode))
            yield Mapping(int(start, 16), int(end, 16), key, path.decode("utf-8", "backslashreplace"))


def read_maps(pid: int | str, proc: Path = PROC) -> bytes:
    """Empty when the process is gone, or is a kernel thread."""
    try:
        descriptor = os.open(proc / str(pid) / "maps", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    parts = []
    size = 0
    try:
        while size < MAPS_MAX_BYTES and (part := os.read(descriptor, CHUNK_BYTES)):
            parts.append(part)
            size += len(part)
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return b"".join(parts)


def processes() -> list[int]:
    """All that live now."""
    return [int(entry) for entry in os.listdir(PROC) if entry.isdigit()]


def find_users(keys: Iterable[Key]) -> dict[Key, set[int]]:
    """Which processes have these files mapped, in any way."""
    # As in /proc/PID/maps; a search for bytes is much faster than taking every line apart.
    wanted = {key: b" %02x:%02x %d " % (key[0] >> 20, key[0] & 0xFFFFF, key[1]) for key in keys}
    users: dict[Key, set[int]] = {key: set() for key in wanted}
    seen: set[int] = set()
    # A process may hand a file on to its child and end while we look: look again at who is new.
    for _ in range(3):
        new = set(processes()) - seen
        if not new:
            break
        seen |= new
        for pid in new:
            text = read_maps(pid).replace(b"\n", b" \n")  # a file without a name, too
            for key, pattern in wanted.items():
                if pattern in text:
                    users[key].add(pid)
    return users


# --- which file it is ----------------------------------------------------------------------------------------------------

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_STATX_CALLS: Final = {"x86_64": 332, "aarch64": 291}
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
_AT_HANDLE_FID: Final = 0x200  # Linux 6.5: a handle to compare, not to open
_STATX_BASIC_STATS: Final = 0x7FF
_OVL_FILEID_V1: Final = 0xF8
_HANDLE_MAX_BYTES: Final = 128  # MAX_HANDLE_SZ
_OVERLAYS_MAX: Final = 3

Stamp = tuple[int, int, int]
"""Inode (as stat(2) says), size, time of the last modification: as before → the same content."""


def file_stamp(path: str) -> Stamp | None:
    """Of a link in /proc. Asks no server (FUSE, NFS), which might let us wait."""
    number = _STATX_CALLS.get(platform.machine())
    buffer = ctypes.create_string_buffer(256)
    if number is None or _LIBC.syscall(
        ctypes.c_long(number),
        ctypes.c_long(_AT_FDCWD),
        path.encode(),
        ctypes.c_long(_AT_STATX_DONT_SYNC),
        ctypes.c_long(_STATX_BASIC_STATS),
        buffer,
    ):
        return None
    # struct statx of <linux/stat.h>: stx_ino at 32, stx_size at 40, stx_mtime at 112
    inode, size = struct.unpack_from("<QQ", buffer, 32)
    seconds, nanoseconds = struct.unpack_from("<qI", buffer, 112)
    return inode, size, seconds * 1_000_000_000 + nanoseconds


@dataclass(frozen=True, slots=True)
class RealInode:
    """What inode a file is, below all overlays."""

    handle: bytes
    """The file handle of it; empty where the file system has none."""
    overlay: bytes | None
    """None: the file is not on an overlay; else what tells the file system below (its UUID)."""
    stat: Key
    """Device and inode as stat(2) says: exact but for overlays."""

    def same(self, other: RealInode) -> bool:
        if self.stat == other.stat:
            return True
        if not self.handle or self.handle != other.handle:
            return False
        # Without an overlay, stat would have said the same. Two overlays name the file system below, a plain file does
        # not: then the content, which is compared as well, has to do.
        if self.overlay is None or other.overlay is None:
            return self.overlay is not other.overlay
        return self.overlay == other.overlay


def real_inode(descriptor: int) -> RealInode:
    """Raises no more than fstat does."""
    status = os.fstat(descriptor)
    key = (status.st_dev, status.st_ino)
    buffer = ctypes.create_string_buffer(struct.pack("Ii", _HANDLE_MAX_BYTES, 0), 8 + _HANDLE_MAX_BYTES)
    mount = ctypes.c_int()
    try:
        result = _LIBC.name_to_handle_at(descriptor, b"", buffer, ctypes.byref(mount), _AT_EMPTY_PATH | _AT_HANDLE_FID)
    except AttributeError:  # a C library without it
        result = -1
    if result:
        return RealInode(b"", None, key)
    size, kind = struct.unpack_from("Ii", buffer)
    return _below_overlays(kind, buffer.raw[8 : 8 + size], key)


def _below_overlays(kind: int, handle: bytes, key: Key) -> RealInode:
    """fs/overlayfs/overlayfs.h: struct ovl_fh: 3 bytes of padding, then struct ovl_fb: version, magic, length, flags,
    type, UUID (16), and the handle of the file below.
    """
    overlay = None
    for _ in range(_OVERLAYS_MAX):
        if kind != _OVL_FILEID_V1 or len(handle) < 24:
            break
        length, kind, overlay = handle[5], handle[7], handle[8:24]
        handle = handle[24 : 3 + length]
    return RealInode(struct.pack("<i", kind) + handle, overlay, key)


_IN_MODIFY: Final = 2
_IN_Q_OVERFLOW: Final = 0x4000
_INOTIFY_EVENT: Final = struct.Struct("iIII")  # watch, mask, cookie, length of the name (none here)


class ChangeWatch:
    """Tells which of some files were written to, by inotify. The kernel keeps probes at their offsets whatever is written
    there, and the instructions that were there: a program that is built again into the same inode would run some of its
    predecessor's (tests/kernel/test_uprobes.py).
    """

    def __init__(self) -> None:
        self.descriptor: int = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watches: set[int] = set()

    def add(self, path: str) -> int:
        """A number for this inode; -1 where the kernel refused (`fs.inotify.max_user_watches`)."""
        watch: int = _LIBC.inotify_add_watch(self.descriptor, path.encode(), _IN_MODIFY)
        if watch >= 0:
            self._watches.add(watch)
        return watch

    def remove(self, watch: int) -> None:
        if watch in self._watches:
            self._watches.remove(watch)
            _LIBC.inotify_rm_watch(self.descriptor, watch)

    def changed(self) -> set[int]:
        """Since it was last asked."""
        if not self._watches:
            return set()
        try:
            events = os.read(self.descriptor, 4096)
        except OSError:  # most often: there is nothing
            return set()
        found = set()
        for watch, mask, _, _ in _INOTIFY_EVENT.iter_unpack(events[: len(events) // 16 * 16]):
            if mask & _IN_Q_OVERFLOW:
                return set(self._watches)
            if mask & _IN_MODIFY:
                found.add(watch)
        return found & self._watches

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self._watches.clear()


def key_of(descriptor: int) -> Key | None:
    """As /proc/PID/maps would name it: by mapping it, because nothing else tells the device of the file system."""
    try:
        with mmap.mmap(descriptor, mmap.PAGESIZE, access=mmap.ACCESS_COPY) as mapping:
            anchor = ctypes.c_char.from_buffer(mapping)
            address = b"%08x-" % ctypes.addressof(anchor)
            del anchor
            text = read_maps("self")
    except (OSError, ValueError):  # ValueError: the file is shorter
        return None
    match = re.search(rb"^%s[0-9a-f]+ \S+ \S+ ([0-9a-f]+):([0-9a-f]+) (\d+)" % address, text, re.MULTILINE)
    return (int(match[1], 16) << 20 | int(match[2], 16), int(match[3])) if match else None


# --- the linker's cache --------------------------------------------------------------------------------------------------

LINKER_CACHE: Final = Path("/etc/ld.so.cache")
_CACHE_MAGIC: Final = b"glibc-ld.so.cache1.1"
_CACHE_HEADER_BYTES: Final = 48
_CACHE_ENTRY: Final = struct.Struct("<iIIIQ")  # flags, name, path, OS version, hardware
_TLS_LIBRARY: Final = re.compile(r"lib(?:ssl|gnutls|nspr4)\.so[.0-9]*")
_DIRECTORIES: Final = ("lib64", "lib", "usr/lib64", "usr/lib", "usr/local/lib")
"""Where the linker looks without a cache (musl)."""


def parse_linker_cache(data: bytes) -> list[tuple[str, str]]:
    """/etc/ld.so.cache → name and path of each library. Empty where it is damaged, or of another kind."""
    # Behind an older format's table, in caches that have both; positions count from here.
    start = data.find(_CACHE_MAGIC)
    if start < 0 or len(data) - start < _CACHE_HEADER_BYTES:
        return []
    data = data[start:]
    (count,) = struct.unpack_from("<I", data, len(_CACHE_MAGIC))
    if count > (len(data) - _CACHE_HEADER_BYTES) // _CACHE_ENTRY.size:
        return []
    found = []
    for index in range(count):
        _, name, path, _, _ = _CACHE_ENTRY.unpack_from(data, _CACHE_HEADER_BYTES + index * _CACHE_ENTRY.size)
        found.append((_text_at(data, name), _text_at(data, path)))
    return found


def _text_at(data: bytes, position: int) -> str:
    end = data.find(b"\0", position, position + 4096)
    return data[position:end].decode("utf-8", "surrogateescape") if end >= 0 else ""


def linked_tls_libraries(root: Path = Path("/")) -> list[str]:
    """Paths, each file once, of the TLS libraries that a program would be linked to when it starts. `root` may be
    /proc/PID/root.
    """
    try:
        with (root / LINKER_CACHE.relative_to("/")).open("rb") as file:
            entries = parse_linker_cache(file.read(CACHE_MAX_BYTES))
        paths = [path for name, path in entries if _TLS_LIBRARY.fullmatch(name)]
    except OSError:
        candidates = (root / directory for directory in _DIRECTORIES)
        paths = [f"/{path.relative_to(root)}" for directory in candidates for path in _libraries_in(directory)]
    found: dict[Key, str] = {}
    for path in paths:
        # Not os.path.realpath, which would follow /proc/PID/root to our own root.
        full = f"{root}/{path.lstrip('/')}" if root != Path("/") else path
        try:
            status = os.stat(full)
        except OSError:
            continue  # the cache may name what was removed
        found.setdefault((status.st_dev, status.st_ino), full)
    return list(found.values())


def _libraries_in(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if _TLS_LIBRARY.fullmatch(path.name))
    except OSError:
        return []


# --- the content ---------------------------------------------------------------------------------------------------------


def read_content(descriptor: int) -> bytes:
    """A digest of an ELF file that contains one of MARKS; empty where it does not."""
    overlap = max(map(len, MARKS)) - 1
    hasher = hashlib.sha256()
    marked = False
    position = 0
    tail = b""
    while chunk := os.pread(descriptor, CHUNK_BYTES, position):
        if position == 0 and not chunk.startswith(b"\x7fELF"):
            return b""
        if position >= FILE_MAX_BYTES:  # it grows while we read
            return b""
        position += len(chunk)
        hasher.update(chunk)
        if not marked:
            text = tail + chunk
            marked = any(mark in text for mark in MARKS)
            tail = text[-overlap:]
    return hasher.digest() if marked else b""
