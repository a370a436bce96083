"""Compiles bpf/ for another kernel than the running one, into CACHE_DIRECTORY: in emulation that takes half a minute for each set
of filters, here a second. scripts/kernels.py runs it in the machine's own user land, with its Python and its BCC.

    kernels_compile.py BTF RELEASE VERSION CPUS     as uname(1) says -r and -v there

The object is found by a name that says all that it depends on: where one of these is wrong the machine compiles by itself.
"""

import contextlib
import ctypes
import platform
import re
import sys
from typing import Any, Final

from netprofiler.sources import bpf, btf, features, kernel
from netprofiler.sources.compiler import ObjectCache
from netprofiler.sources.uprobes import Way

FILTERS: Final = (
    kernel.Filters(),
    kernel.Filters(pids=(1,)),
    kernel.Filters(ports=(80,)),
    kernel.Filters(exclude_comms=("go",)),
)
"""Kinds that the tests use."""


class Kept(Exception):
    """Enough: nothing is loaded here."""


class Libbpf:
    """Libbpf, for which the running kernel's BTF is that of a file."""

    def __init__(self, library: Any, path: str) -> None:
        self._library = library
        library.btf__parse.restype = ctypes.c_void_p
        library.btf__parse.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        self.btf__load_vmlinux_btf = lambda: library.btf__parse(path.encode(), None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


def main(path: str, release: str, version: str, cpus: str) -> None:
    age = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    replacements: dict[tuple[Any, str], Any] = {
        (platform, "release"): lambda: release,
        (platform, "version"): lambda: version,
        (bpf, "possible_cpus"): lambda: int(cpus),
        (features, "knows_uprobe_multi"): lambda: age >= (6, 6),
        (features, "has_cookies"): lambda: age >= (5, 15),
        (features, "has_current_task"): lambda: age >= (5, 11),
        (kernel.KernelSource, "_load"): lambda _, made: made,
    }
    load_libbpf, read, write = btf._load_libbpf, ObjectCache.read, ObjectCache.write
    replacements[btf, "_load_libbpf"] = lambda: Libbpf(load_libbpf(), path)

    def write_and_end(cache: ObjectCache, key: str, made: bpf.Object) -> None:
        write(cache, key, made)
        raise Kept

    def read_and_end(cache: ObjectCache, key: str) -> None:
        if read(cache, key) is not None:
            raise Kept

    replacements[ObjectCache, "write"] = write_and_end
    replacements[ObjectCache, "read"] = read_and_end
    for (owner, name), replacement in replacements.items():
        setattr(owner, name, replacement)
    for filters in FILTERS:
        with contextlib.suppress(Kept):
            kernel.KernelSource(filters)
    # tests/kernel/test_probe_ways.py has this way everywhere.
    vars(kernel)["find_way"] = lambda: Way.JUMPS
    with contextlib.suppress(Kept):
        kernel.KernelSource(FILTERS[-1])


if __name__ == "__main__":
    main(*sys.argv[1:])
