"""From C to an `Object` (sources/bpf.py) by BCC, and the objects that were compiled before, in files.

Contract: `compile_object` is the only one that imports BCC; it takes a second, and BCC, with the compiler in it, stays in this
process. So what it makes is kept by `ObjectCache`, from which a later start takes it without either. A file of the cache is
code for the kernel: it is used only when nobody else can have written it (owner, mode, no symbolic links) and when it is
whole (checksum). Whatever is odd about a file is as if it were not there, and what cannot be kept is not kept: neither is an
error.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import hashlib
import os
import platform
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import orjson

from netprofiler.errors import CommandError, ExitCode
from netprofiler.sources.bcc_import import load_bcc
from netprofiler.sources.bpf import INSTRUCTION, MapFacts, Object, relocate

FORMAT: Final = 1
"""Of the files in the cache: raised by any change to `Object`, or to how BCC's code becomes one."""
OBJECTS_KEPT: Final = 8
"""One for each set of kinds of filters that is in use on a host, and some."""
OBJECT_BYTES_MAX: Final = 16 * 1024 * 1024
"""A hundred times the largest: what is read of a file in the cache."""
CACHE_DIRECTORY: Final = Path("/var/cache/netprofiler")

_NAME: Final = re.compile(r"[0-9a-f]{64}(\.json|\.[0-9a-f]{16}\.new)")
_CHECKSUM_BYTES: Final = 64  # hexadecimal SHA-256, and then a line feed
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_MADV_PAGEOUT: Final = 21


# --- compiling --------------------------------------------------------------------------------------------------------


def compile_object(text: str, flags: Sequence[str], bpf: Path, variant: int = 0) -> Object:
    """`bpf`: the directory whose include/ stands in for the kernel's headers."""
    bcc = load_bcc()
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf)
    messages: list[str] = []
    try:
        with _quiet_stderr(messages):
            module = bcc.BPF(text=text.encode(), cflags=[*flags, "-DCONFIG_BPF_SYSCALL", f"-I{bpf}"])
            try:
                return _extract(bcc.lib, module.module, variant)
            finally:
                module.cleanup()
    except Exception as error:  # BCC raises plain Exception for all that goes wrong
        detail = " ".join(messages).strip().splitlines()[-1:] or [str(error)]
        raise CommandError(
            f"the compiler refused the program: {detail[0]}", ExitCode.HOST, remedy="see `netprofiler doctor`"
        ) from error
    finally:
        _page_out()


def _extract(lib: Any, module: int, variant: int) -> Object:
    """BCC has made the maps already, and put their descriptors into the code: these become their places."""
    maps = []
    places = {}
    for index in range(_asked(lib.bpf_num_tables, ctypes.c_size_t, module)):
        (name,) = (_asked(lib.bpf_table_name, ctypes.c_char_p, module, index),)
        facts = (
            _asked(function, ctypes.c_size_t, module, index) & 0xFFFFFFFF
            for function in (
                *(lib.bpf_table_type_id, lib.bpf_table_key_size_id, lib.bpf_table_leaf_size_id),
                *(lib.bpf_table_max_entries_id, lib.bpf_table_flags_id),
            )
        )
        places[_asked(lib.bpf_table_fd_id, ctypes.c_int, module, index)] = index
        maps.append(MapFacts(name.decode(), *facts))
    programs = {}
    for index in range(lib.bpf_num_functions(module)):
        name = lib.bpf_function_name(module, index)
        code = ctypes.string_at(lib.bpf_function_start(module, name), lib.bpf_function_size(module, name))
        programs[name.decode()] = relocate(code, places)
    return Object(tuple(maps), programs, variant)


def _asked(function: Any, result: type[Any], module: int, *index: int) -> Any:
    """BCC's Python half declares some functions of libbcc, and these not."""
    typed = ctypes.CFUNCTYPE(result, ctypes.c_void_p, *(ctypes.c_size_t for _ in index))
    return typed(ctypes.cast(function, ctypes.c_void_p).value or 0)(module, *index)


@contextlib.contextmanager
def _quiet_stderr(captured: list[str]) -> Iterator[None]:
    """Libbcc and the compiler write to descriptor 2: collected, to be shown only when something went wrong."""
    saved = os.dup(2)
    with open(os.memfd_create("bcc-messages"), "w+b", buffering=0) as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            captured.append(file.read().decode("utf-8", "replace"))


def _page_out() -> None:
    """LibLLVM and libclang are needed no more: their file pages (120 MB resident) go back to the page cache. Pages that
    were written to (relocations) stay, as there is nowhere to page them out to.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/maps") as maps:
        for line in maps:
            if "libLLVM" in line or "libclang" in line or "libbcc" in line:
                start, end = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_PAGEOUT)
    with contextlib.suppress(AttributeError):  # musl has no malloc_trim
        libc.malloc_trim(0)


# --- keeping ----------------------------------------------------------------------------------------------------------


def object_key(text: str, flags: Sequence[str], bpf: Path) -> str:
    """The name of what this text becomes: all that BCC's answer depends on, which is also the kernel that it runs on."""
    parts = [str(FORMAT), platform.machine(), platform.release(), platform.version(), *flags, text]
    for path in sorted((bpf / "include").rglob("*.h")):
        parts += [str(path.relative_to(bpf)), path.read_text()]
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()


def cache_directory() -> Path:
    """systemd's, where a unit has CacheDirectory=."""
    given = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    return Path(given) if given.startswith("/") else CACHE_DIRECTORY


class ObjectCache:
    """Objects by `object_key`, one file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, key: str) -> Object | None:
        """None where there is no such object, or none to be trusted."""
        try:
            with self._opened() as directory:
                descriptor = os.open(f"{key}.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
                with open(descriptor, "rb") as file:
                    status = os.fstat(descriptor)
                    if not stat.S_ISREG(status.st_mode) or not _is_ours(status):
                        return None
                    return _unpack(file.read(OBJECT_BYTES_MAX))
        except (OSError, ValueError):
            return None

    def write(self, key: str, made: Object) -> None:
        """Atomically; in place of what is there."""
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileExistsError):
                self._directory.mkdir(mode=0o700)
            with self._opened() as directory:
                temporary = f"{key}.{secrets.token_hex(8)}.new"
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                try:
                    with open(os.open(temporary, flags, 0o600, dir_fd=directory), "wb") as file:
                        file.write(_pack(made))
                    os.rename(temporary, f"{key}.json", src_dir_fd=directory, dst_dir_fd=directory)
                except OSError:
                    os.unlink(temporary, dir_fd=directory)
                    raise
                _prune(directory)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """A descriptor of the directory, if it is ours alone."""
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if not _is_ours(os.fstat(descriptor)):
                raise PermissionError
            yield descriptor
        finally:
            os.close(descriptor)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE


def _prune(directory: int) -> None:
    """The newest stay; what a write that was cut short has left goes in time, too."""
    ages = []
    for name in os.listdir(directory):
        if _NAME.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                ages.append((os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime_ns, name))
    for _, name in sorted(ages, reverse=True)[OBJECTS_KEPT:]:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(name, dir_fd=directory)


def _pack(made: Object) -> bytes:
    """A line with the checksum of the rest, which is JSON."""
    content = orjson.dumps(
        {
            "maps": [asdict(facts) for facts in made.maps],
            "programs": {name: base64.b64encode(code).decode() for name, code in made.programs.items()},
            "variant": made.variant,
        }
    )
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def _unpack(data: bytes) -> Object:
    """Raises `ValueError`."""
    checksum, content = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES + 1 :]
    if hashlib.sha256(content).hexdigest().encode() != checksum:
        raise ValueError("the checksum is another")
    try:
        found = orjson.loads(content)
        maps = tuple(MapFacts(**facts) for facts in found["maps"])
        programs = {name: base64.b64decode(code, validate=True) for name, code in found["programs"].items()}
        variant = int(found["variant"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not what `_pack` writes") from error
    if any(len(code) % INSTRUCTION.size for code in programs.values()):
        raise ValueError("half an instruction")
    return Object(maps, programs, variant)
