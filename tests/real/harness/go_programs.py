"""Go toolchains of many versions, and what they build from programs/: built once, kept below .cache/.

scripts/go_toolchains.sh brings a toolchain here by its version and prints its GOROOT. Run as a program, this builds all that a
run of the tests needs: scripts/test.sh has it done while other tests run, for what is built for the first time takes minutes.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import Final

from tests.real.harness.programs import REPOSITORY, SCRIPTS

TOOLCHAINS = REPOSITORY / "scripts" / "go_toolchains.sh"
CACHE = REPOSITORY / ".cache" / "go_tls"
SOURCE = SCRIPTS / "go_tls"
BUILD_SECONDS = 600.0
"""A first build with a toolchain compiles its whole standard library, twice with another build mode."""

ENDS: Final = (
    *("1.17.1", "1.17.13", "1.18", "1.18.10", "1.19.2", "1.19.13", "1.20", "1.20.14", "1.21.0", "1.21.13"),
    *("1.22.0", "1.22.12", "1.23.0", "1.23.12", "1.24.0", "1.24.13", "1.25.0", "1.25.14", "1.26.0", "1.26.11"),
    *("1.27.0", "1.27.4"),
)
"""Of each minor version since the calling convention that netprofiler knows the oldest and the newest patch that
`go list -m -versions golang.org/toolchain` names."""
CHOSEN: Final = (ENDS[0], "1.22.12", ENDS[-1])
"""For every run of the tests; the others are for `make test-go-matrix`."""

MODES: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "plain": ((), "0"),
    "stripped": (("-ldflags=-s -w",), "0"),
    "pie": (("-buildmode=pie",), "0"),
    "external": (("-ldflags=-linkmode=external",), "1"),
}
"""Flags of `go build`, and CGO_ENABLED: what the C linker links has the C parts of the standard library, too."""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


@functools.cache
def goroot(version: str) -> Path:
    done = subprocess.run([TOOLCHAINS, version], capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert done.returncode == 0, f"no Go {version}: {done.stderr[-2000:]}"
    return Path(done.stdout.strip())


def build(version: str, mode: str, package: str = ".") -> Path:
    """`go_tls` as that version builds it in that mode."""
    directory = SOURCE / package
    source = b"".join(path.read_bytes() for path in sorted(directory.glob("*.*")))
    name = f"{directory.name}-{version}-{mode}-{hashlib.sha256(source + repr(MODES[mode]).encode()).hexdigest()[:12]}"
    binary = CACHE / name
    if binary.exists():
        return binary
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():  # nor has another process built it meanwhile
            _build(goroot(version), directory, binary, version, mode, package)
    return binary


def _build(root: Path, directory: Path, binary: Path, version: str, mode: str, package: str) -> None:
    flags, cgo = MODES[mode]
    arguments = [str(root / "bin" / "go"), "build", *flags, "-buildvcs=false", "-o", f"{binary}.new"]
    if _numbers(version) < (1, 18):
        arguments.remove("-buildvcs=false")
    if package == ".":
        # The language version decides what the library does by default (GODEBUG): that of the toolchain, as in a program of its day.
        module = CACHE / f"{version}.mod"
        module.write_text(f"module go_tls\n\ngo {_numbers(version)[0]}.{_numbers(version)[1]}\n")
        arguments.append(f"-modfile={module}")
    # GOFLAGS is said, and not empty, because a user's own (`go env -w`) may have what an old Go does not know.
    environment = {
        **os.environ,
        "GOROOT": str(root),
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-trimpath",
        "CGO_ENABLED": cgo,
    }
    done = subprocess.run(
        [*arguments, "."],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"go {version} {mode}: {done.stderr[-2000:]}"
    Path(f"{binary}.new").rename(binary)


def build_chosen() -> None:
    """All that the tests of every run ask for."""
    for version in CHOSEN:
        for mode in MODES:
            build(version, mode)
        build(version, "plain", "../go_conns")
    for package in ("chi", "../grpc_go", "../http2_go"):
        build(CHOSEN[-1], "plain", package)


if __name__ == "__main__":
    build_chosen()
