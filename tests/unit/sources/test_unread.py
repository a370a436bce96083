"""sources/unread.py: one reason, a true one, whatever is known."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from netprofiler.sources.discovery import FileFacts, State
from netprofiler.sources.probes import Analysis, Finding, Library, Probe, Purpose
from netprofiler.sources.unread import NAMES, kernel_tls_sockets, title, why_blind, why_unread

PID = 4711
PROBES = (Probe(1, Purpose.FREE),)
READABLE = Analysis("", (Finding(Library.OPENSSL, "3.0.17", PROBES),))
STRIPPED = Analysis("", (Finding(Library.BORINGSSL, problem="the names of its functions were stripped."),))
JAVA = Analysis("", blind=("Java",))
RUSTLS = Analysis("", blind=("rustls",))

ATTACHED = FileFacts("/lib/libssl.so.3", State.ATTACHED, "", READABLE)
PLAIN = FileFacts("/bin/sh", State.NOTHING)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """The process lives."""
    (tmp_path / f"{PID}/net").mkdir(parents=True)
    (tmp_path / f"{PID}/stat").write_text(f"{PID} (a) b) S 1 1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([ATTACHED, PLAIN], ("OpenSSL 3.0.17 in /lib/libssl.so.3 is probed", "began before that")),
        (
            [FileFacts("/lib/libssl.so.3", State.FAILED, "too many open files", READABLE)],
            ("OpenSSL 3.0.17 in /lib/libssl.so.3 is not probed: too many open files",),
        ),
        ([FileFacts("/lib/libssl.so.3", State.READY, "", READABLE)], ("is not probed: analysed, not attached",)),
        (
            [PLAIN, FileFacts("/opt/envoy", State.NOTHING, "", STRIPPED)],
            ("BoringSSL in /opt/envoy cannot be probed: the names of its functions were stripped",),
        ),
        ([PLAIN, FileFacts("/jvm/libjvm.so", State.NOTHING, "", JAVA)], ("it has Java in /jvm/libjvm.so", "compiles")),
        ([FileFacts("/bin/rg", State.NOTHING, "", RUSTLS)], ("it has rustls in /bin/rg", "Rust")),
        ([PLAIN, FileFacts("/bin/new", None)], ("/bin/new was not looked into yet",)),
        ([PLAIN, FileFacts("/bin/new", State.WAITING)], ("/bin/new was not looked into yet",)),
        (
            [PLAIN, FileFacts("/bin/x", State.FAILED, "a", Analysis(problem="damaged."))],
            ("/bin/x: damaged",),
        ),
        ([PLAIN], ("no TLS library that netprofiler knows",)),
        ([], ("what it has mapped cannot be read",)),
    ],
)
def test_each_reason(proc: Path, files: list[FileFacts], words: tuple[str, ...]) -> None:
    why = why_unread(PID, files, proc)
    assert all(word in why for word in words), why
    assert not why.endswith(".") and "\n" not in why


def test_the_order_of_reasons(proc: Path) -> None:
    """What is probed goes before what cannot be: a Java program may have BoringSSL, too."""
    java = FileFacts("/jvm/libjvm.so", State.NOTHING, "", JAVA)
    envoy = FileFacts("/opt/envoy", State.NOTHING, "", STRIPPED)
    new = FileFacts("/bin/new", None)
    for files in ([java, new, ATTACHED, envoy], [envoy, ATTACHED, java]):
        why = why_unread(PID, files, proc)
        assert why.startswith("OpenSSL 3.0.17 in /lib/libssl.so.3 is probed: ")
        assert why.endswith("or ended without data, or were those of BoringSSL, Java, which cannot be read")
    assert why_unread(PID, [ATTACHED], proc).endswith("or ended without data")
    assert why_unread(PID, [new, java, envoy], proc).startswith("BoringSSL")
    assert why_unread(PID, [new, java], proc).startswith("it has Java")


def test_a_process_that_has_ended(proc: Path) -> None:
    assert why_unread(PID + 1, [], proc) == "it ended before its files could be looked at"
    (proc / f"{PID}/stat").write_text(f"{PID} (a) b) Z 1 1\n")
    assert why_unread(PID, [], proc) == "it ended before its files could be looked at"


def test_a_real_zombie() -> None:
    process = subprocess.Popen(["/bin/true"])
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert why_unread(process.pid, []) == "it ended before its files could be looked at"
    finally:
        process.wait()


def test_kernel_tls(proc: Path) -> None:
    assert kernel_tls_sockets(PID, proc) == 0
    (proc / f"{PID}/net/tls_stat").write_text("TlsCurrTxSw\t2\nTlsCurrRxSw\t1\nTlsTxSw\t9\ngarbage\n")
    assert kernel_tls_sockets(PID, proc) == 3
    assert why_unread(PID, [PLAIN], proc).endswith("3 sockets of its network namespace are encrypted by the kernel")


def test_names() -> None:
    assert set(NAMES) == set(Library)
    assert title(Finding(Library.GO, "go1.26.8")) == "Go's crypto/tls go1.26.8"
    assert title(Finding(Library.BORINGSSL)) == "BoringSSL"
    assert title(Finding(Library.NSS, "4.35")) == "NSS by NSPR 4.35"
    assert why_blind("wolfSSL") == "netprofiler has no probes for it"


def test_it_is_quick(proc: Path) -> None:
    files = [*[PLAIN] * 500, FileFacts("/bin/new", None)]
    start = time.thread_time()
    why_unread(PID, files, proc)
    assert time.thread_time() - start < 0.005
