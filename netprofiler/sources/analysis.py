"""What TLS is in a file, and where to probe it: the one entry to the analysis of binaries.

Contract: `analyse` never raises, whatever the file is, and is bounded in time and memory: by the size of the file, and by
the bounds of `elf`, `tls_libraries` and `golang`. The file is mapped, not copied, and closed when it returns. Results are
for the caller to keep, by build id or content.
"""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Final

from netprofiler.sources.elf import Damaged, Image
from netprofiler.sources.golang import analyse_go
from netprofiler.sources.probes import Analysis, Finding
from netprofiler.sources.tls_libraries import find_libraries

FILE_BYTES_MAX: Final = 1 << 30
"""Programs with everything linked in have 0.3 GiB; what is larger holds data."""

_BLIND_TEXTS: Final = ((b"/rustls-0.", "rustls"), (b"/rustls/src/", "rustls"))
"""What the constants of a program with such a library contain: Rust's panics name their source files."""
_BLIND_FUNCTIONS: Final = {
    "s2n_negotiate": "s2n",
    "wolfSSL_connect": "wolfSSL",
    "mbedtls_ssl_handshake": "mbed TLS",
    "rustls_connection_read_tls": "rustls",
}
"""Functions that only the library itself has."""
_JAVA: Final = "libjvm.so"


def analyse(path_or_descriptor: Path | str | int) -> Analysis:
    """A descriptor stays open, and where it is."""
    try:
        if isinstance(path_or_descriptor, int):
            return _analyse(path_or_descriptor)
        # Not to wait for the other end of a pipe that has taken a program's name.
        descriptor = os.open(path_or_descriptor, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return _analyse(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return Analysis(problem=f"cannot be read: {error.strerror}")


def _analyse(descriptor: int) -> Analysis:
    data = _map(descriptor)
    if isinstance(data, str):
        return Analysis(problem=data)
    with data:
        go = analyse_go(data)
        try:
            image = Image(data)
            go = None if go is None else _checked(go, image)
            libraries = _libraries(descriptor, image, alone=go is not None)
            blind = _blind(image)
        except Damaged as reason:
            return Analysis(findings=() if go is None else (go,), problem=str(reason))
        libraries = tuple(_checked(finding, image) for finding in libraries)
        return Analysis(image.build_id, libraries if go is None else (go, *libraries), blind)


def _checked(finding: Finding, image: Image) -> Finding:
    """The kernel puts a breakpoint wherever it is told to: one outside of the code would change the program's data."""
    if all(image.is_code_in_file(probe.offset) for probe in finding.probes):
        return finding
    return replace(finding, probes=(), layout=None, problem="its functions lie outside of its code: a damaged file")


def _libraries(descriptor: int, image: Image, *, alone: bool) -> tuple[Finding, ...]:
    beside = None if alone else _libcrypto(descriptor, image)
    if beside is None:
        return find_libraries(image)
    with beside:
        try:
            crypto = Image(beside)
        except Damaged:
            crypto = None
        return find_libraries(image, crypto)


def _map(descriptor: int) -> mmap.mmap | str:
    """The file, or why not."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return "not a file"
    if status.st_size > FILE_BYTES_MAX:
        return f"larger than {FILE_BYTES_MAX} bytes"
    if not status.st_size:
        return "empty"
    return mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ)


def _libcrypto(descriptor: int, image: Image) -> mmap.mmap | None:
    """The libcrypto that a libssl is loaded with, if it lies beside it: in the same directory of the same file system,
    since the path may be one of another mount namespace.
    """
    name = next((name for name in image.needed if name.startswith("libcrypto") and "/" not in name), "")
    if not name:
        return None
    try:
        path = os.path.join(os.path.dirname(os.readlink(f"/proc/self/fd/{descriptor}")), name)
        other = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if os.fstat(other).st_dev != os.fstat(descriptor).st_dev:
                return None
            data = _map(other)
        finally:
            os.close(other)
    except OSError:
        return None
    return None if isinstance(data, str) else data


def _blind(image: Image) -> tuple[str, ...]:
    found = [_BLIND_FUNCTIONS[name] for name in image.symbols(_BLIND_FUNCTIONS)]
    texts = image.contains(text for text, _ in _BLIND_TEXTS)
    found += [name for text, name in _BLIND_TEXTS if text in texts]
    if image.soname == _JAVA:
        found.append("Java")
    return tuple(sorted(set(found)))
