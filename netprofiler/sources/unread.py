"""Why the TLS of a process is not read: one sentence, from what is known of its files.

Contract: `why_unread` answers from what it is given and a look at /proc, in less than a millisecond; it opens no file of
the process. It names the first cause of these that holds, so what it says is true even where another cause holds as well:
the files were never looked at; what is in them is probed (then the connection was older, or carried nothing, or was that of
another implementation in the process); it can be probed but is not; it cannot be read, and why; nothing that netprofiler knows is in them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from netprofiler.sources.discovery import FileFacts, State
from netprofiler.sources.probes import Finding, Library
from netprofiler.sources.processes import PROC

NAMES: Final = {
    Library.GO: "Go's crypto/tls",
    Library.OPENSSL: "OpenSSL",
    Library.BORINGSSL: "BoringSSL",
    Library.GNUTLS: "GnuTLS",
    Library.NSS: "NSS",
}
"""For people."""

_WHY_BLIND: Final = {
    "java": "it is Java code, which the virtual machine compiles while it runs: no instruction of a file could be probed",
    "rustls": "it is Rust code, inlined into the program, without functions or a layout that could be relied on",
}
_NO_PROBES: Final = "netprofiler has no probes for it"


def title(finding: Finding) -> str:
    """``OpenSSL 3.0.17``."""
    version = finding.version
    if finding.library is Library.NSS and version:
        return f"NSS by NSPR {version}"  # what is probed is NSPR, and the version is its
    return f"{NAMES[finding.library]} {version}".rstrip()


def why_blind(name: str) -> str:
    """Of an implementation that cannot be read (`Analysis.blind`)."""
    return next((why for word, why in _WHY_BLIND.items() if name.lower().startswith(word)), _NO_PROBES)


def why_unread(pid: int, files: Iterable[FileFacts], proc: Path = PROC) -> str:
    """`files`: as Discovery describes them."""
    files = list(files)
    if not files:
        if not os.path.exists(proc / str(pid)) or _is_zombie(proc / str(pid)):
            return "it ended before its files could be looked at"
        return "what it has mapped cannot be read"
    findings = [(file, finding) for file in files for finding in file.analysis.findings]
    for file, finding in findings:
        if finding.probes and file.state is State.ATTACHED:
            return (
                f"{title(finding)} in {file.path} is probed: its connections began before that, or ended without data"
                f"{_or_by_others(files)}"
            )
    for file, finding in findings:
        if finding.probes:
            return f"{title(finding)} in {file.path} is not probed: {file.reason or _state(file)}"
    for file, finding in findings:
        if finding.problem:
            return f"{title(finding)} in {file.path} cannot be probed: {finding.problem.rstrip('.')}"
    for file in files:
        for name in file.analysis.blind:
            return f"it has {name} in {file.path}: {why_blind(name)}"
    for file in files:
        if file.state in (None, State.WAITING):
            return f"{file.path} was not looked into yet"
        if file.state is State.FAILED:
            return f"{file.path}: {(file.analysis.problem or file.reason).rstrip('.')}"
    in_kernel = kernel_tls_sockets(pid, proc)
    also = f", and {in_kernel} sockets of its network namespace are encrypted by the kernel" if in_kernel else ""
    return f"no TLS library that netprofiler knows is in the files that it runs{also}"


def _or_by_others(files: list[FileFacts]) -> str:
    """A program may have several implementations: rustup has OpenSSL and rustls."""
    names = {name for file in files for name in file.analysis.blind}
    names |= {title(finding) for file in files for finding in file.analysis.findings if finding.problem}
    return f", or were those of {', '.join(sorted(names))}, which cannot be read" if names else ""


def kernel_tls_sockets(pid: int, proc: Path = PROC) -> int:
    """Directions of sockets, in the network namespace of the process, whose records the kernel makes or takes apart."""
    try:
        lines = (proc / str(pid) / "net/tls_stat").read_text(errors="replace").splitlines()
    except OSError:  # no kernel TLS in this kernel, or its module is not loaded
        return 0
    counts = (line.split() for line in lines)
    return sum(int(count[1]) for count in counts if len(count) == 2 and re.match(r"TlsCurr[TR]x", count[0]))


def _state(file: FileFacts) -> str:
    return "not looked into yet" if file.state is None else file.state.value


def _is_zombie(directory: Path) -> bool:
    """It has ended, and its parent does not know yet."""
    try:
        text = (directory / "stat").read_text(errors="replace")
    except OSError:
        return True
    return text.rpartition(")")[2].split()[:1] == ["Z"]
