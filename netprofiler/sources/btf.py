"""What the running kernel says of itself in its BTF, read by libbpf.

Contract: `KernelTypes` is opened with `with`. `member_offsets(paths)` maps each ``struct.member`` to its offset in bytes,
looking into anonymous members; a structure or member that this kernel has not raises `CommandError` (exit status 3), naming
it. `struct_id`, `function_id` and `has_tracepoint` answer None and False for what is not there. libbpf is a dependency of
the distribution's BCC, so it is there wherever BCC is. About 10 ms, nearly all of it libbpf reading the BTF.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Self

from netprofiler.errors import CommandError

BTF_PATH = Path("/sys/kernel/btf/vmlinux")

_KIND_STRUCT = 4
_KIND_UNION = 5
_KIND_TYPEDEF = 8
_KIND_FUNCTION = 12
_MAX_DEPTH = 8  # anonymous structs in unions in structs: three levels are known


class _Type(ctypes.Structure):
    """struct btf_type of <linux/btf.h>; the members of a struct follow it."""

    _fields_ = (("name_off", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size_or_type", ctypes.c_uint32))


class _Member(ctypes.Structure):
    """struct btf_member."""

    _fields_ = (("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32))


def _load_libbpf() -> ctypes.CDLL:
    for name in ("libbpf.so.1", "libbpf.so.0"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.btf__load_vmlinux_btf.restype = ctypes.c_void_p
        library.btf__free.argtypes = [ctypes.c_void_p]
        library.btf__find_by_name_kind.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32]
        library.btf__find_by_name_kind.restype = ctypes.c_int32
        library.btf__type_by_id.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        library.btf__type_by_id.restype = ctypes.POINTER(_Type)
        library.btf__name_by_offset.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        library.btf__name_by_offset.restype = ctypes.c_char_p
        library.btf__resolve_size.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        library.btf__resolve_size.restype = ctypes.c_int64
        return library
    raise CommandError("libbpf.so is missing: install it with `apt-get install libbpf1`", exit_code=3)


ONE_ARCHITECTURE: Final = frozenset(("thread_info.status",))
"""Named in bpf/arch.h for x86-64 alone: left out where they are not."""


class KernelTypes:
    """See above. Raises `CommandError` where there is no BTF."""

    def __init__(self) -> None:
        if not BTF_PATH.is_file():
            raise CommandError(
                f"this kernel shows no BTF: {BTF_PATH} is missing"
                " (CONFIG_DEBUG_INFO_BTF=y is needed, or /sys must be mounted)",
                exit_code=3,
            )
        self._lib = _load_libbpf()
        self._btf = self._lib.btf__load_vmlinux_btf()
        if not self._btf or self._lib.libbpf_get_error(ctypes.c_void_p(self._btf)):
            raise CommandError(f"{BTF_PATH} could not be read as BTF", exit_code=3)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.btf__free(self._btf)

    def member_offsets(self, paths: Iterable[str]) -> dict[str, int]:
        """``["task_struct.files", …]`` → offsets in bytes."""
        offsets: dict[str, int] = {}
        missing = []
        for path in paths:
            struct, member = path.split(".")
            offset = self._offset(struct, member)
            if offset is not None:
                offsets[path] = offset
            elif path not in ONE_ARCHITECTURE:
                missing.append(path)
        if missing:
            raise CommandError(
                f"this kernel's BTF has no {', '.join(missing)}: netprofiler does not know it", exit_code=3
            )
        return offsets

    def struct_id(self, name: str) -> int | None:
        return self._find_id(name, _KIND_STRUCT)

    def function_id(self, name: str) -> int | None:
        return self._find_id(name, _KIND_FUNCTION)

    def has_tracepoint(self, name: str) -> bool:
        """Every tracepoint has a type for the functions that are called at it."""
        return self._find_id(f"btf_trace_{name}", _KIND_TYPEDEF) is not None

    def _find_id(self, name: str, kind: int) -> int | None:
        number: int = self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
        return number if number > 0 else None

    def _offset(self, struct: str, member: str) -> int | None:
        type_id = self.struct_id(struct)
        return None if type_id is None else self._find(type_id, member.encode(), 0)

    def _members(self, type_id: int) -> Iterator[tuple[bytes, int, int]]:
        header = self._lib.btf__type_by_id(self._btf, type_id).contents
        count = header.info & 0xFFFF
        bit_sizes = header.info >> 31  # kind_flag: the offset's upper byte is a bit-field's size
        first = ctypes.addressof(header) + ctypes.sizeof(_Type)
        for member in (_Member * count).from_address(first):
            bits = member.offset & 0xFFFFFF if bit_sizes else member.offset
            yield self._lib.btf__name_by_offset(self._btf, member.name_off), member.type, bits // 8

    def _find(self, type_id: int, wanted: bytes, depth: int) -> int | None:
        for name, member_type, offset in self._members(type_id):
            if name == wanted:
                return offset
            if not name and depth < _MAX_DEPTH:
                kind = (self._lib.btf__type_by_id(self._btf, member_type).contents.info >> 24) & 0x1F
                if kind in (_KIND_STRUCT, _KIND_UNION):
                    inner = self._find(member_type, wanted, depth + 1)
                    if inner is not None:
                        return offset + inner
        return None


def member_offsets(paths: Iterable[str]) -> dict[str, int]:
    """`KernelTypes.member_offsets`, for who wants nothing else."""
    with KernelTypes() as types:
        return types.member_offsets(paths)
