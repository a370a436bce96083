"""netprofiler.privileges, in processes of their own: what is given up stays given up."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from netprofiler.errors import CommandError
from netprofiler.privileges import CAPABILITIES, NEEDED, REQUIRED, confine, effective, forbid

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give up")

STATUS = """
import os, re, sys, pathlib
def status():
    text = pathlib.Path("/proc/self/status").read_text()
    return {name: value for name, value in re.findall(r"^(Cap\\w+|NoNewPrivs|Uid|Seccomp):\\s*(.*)$", text, re.MULTILINE)}
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", STATUS + code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_required_is_needed() -> None:
    assert set(REQUIRED) < set(NEEDED)


@AS_ROOT
def test_nothing_is_left_but_what_is_needed_and_nothing_can_be_got_back() -> None:
    out = run("""
from netprofiler import privileges
had = privileges.effective() & set(privileges.NEEDED)
assert not privileges.confine(None, [], command=False)
assert privileges.effective() == had
mask = sum(1 << privileges.CAPABILITIES[name] for name in had)
s = status()
assert int(s["CapEff"], 16) == int(s["CapPrm"], 16) == mask, s
assert int(s["CapBnd"], 16) & ~mask == 0, s
assert int(s["CapInh"], 16) == int(s["CapAmb"], 16) == 0, s
assert s["NoNewPrivs"] == "1", s
try:
    os.chown("/proc/self", 1, 1)
except PermissionError:
    print("refused")
""")
    assert out == "refused"


@AS_ROOT
def test_where_probes_are_perf_events_one_more_is_kept_or_missed() -> None:
    out = run("""
from netprofiler import privileges
had = privileges.effective() & {*privileges.NEEDED, "CAP_SYS_ADMIN"}
assert "CAP_SYS_ADMIN" in had
assert not privileges.confine(None, [], command=False, probe_events=True)
assert privileges.effective() == had
assert not privileges.confine(None, [], command=False)
assert privileges.effective() == had - {"CAP_SYS_ADMIN"}
print(*privileges.confine(None, [], command=False, probe_events=True))
""")
    assert out == "TLS cannot be read: before Linux 6.6 its probes need CAP_SYS_ADMIN"


@AS_ROOT
def test_another_user_has_the_capabilities_and_no_more() -> None:
    out = run("""
from netprofiler import privileges
had = privileges.effective() & set(privileges.NEEDED)
assert not privileges.confine("nobody", [], command=False)
assert privileges.effective() == had
mask = sum(1 << privileges.CAPABILITIES[name] for name in had)
assert int(status()["CapBnd"], 16) & ~mask == 0, status()
assert os.getresuid() == (65534,) * 3 and os.getresgid()[0] != 0 and 0 not in os.getgroups()
try:
    os.setuid(0)
except PermissionError:
    print("refused")
""")
    assert out == "refused"


@AS_ROOT
def test_a_command_can_still_be_all_that_we_were() -> None:
    out = run("""
from netprofiler import privileges
before = status()["CapBnd"]
assert not privileges.confine(None, [], command=True)
s = status()
assert (s["CapBnd"], s["NoNewPrivs"]) == (before, "0"), s
import subprocess
print(subprocess.run(["grep", "CapEff", "/proc/self/status"], capture_output=True, text=True).stdout.split()[1] == before)
""")
    assert out == "True"


@AS_ROOT
def test_a_file_in_somebody_elses_directory_can_still_be_made(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    out = run(f"""
from netprofiler import privileges
privileges.confine(None, ["{tmp_path}/http.log"], command=False)
open("{tmp_path}/http.log", "w").close()
print(privileges.effective() - set(privileges.NEEDED))
""")
    assert out == "frozenset({'CAP_DAC_OVERRIDE'})"


def test_another_user_for_a_command_is_refused() -> None:
    with pytest.raises(CommandError, match="exclude"):
        confine("nobody", [], command=True)


def test_a_user_that_is_not_there() -> None:
    with pytest.raises(CommandError, match="--user nobody-of-this-name"):
        confine("nobody-of-this-name", [], command=False)


def test_forbidden_calls_fail_in_every_thread_and_the_rest_goes_on() -> None:
    out = run("""
import platform, socket, subprocess, threading
from netprofiler.privileges import forbid
begun, go, seen = threading.Event(), threading.Event(), []
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
def worker():
    begun.set()
    go.wait()
    try:
        subprocess.run(["/bin/true"])
    except PermissionError:
        seen.append("thread refused")
thread = threading.Thread(target=worker)
thread.start()
begun.wait()
assert forbid(platform.machine()) is None
go.set()
thread.join()
for what in (lambda: subprocess.run(["/bin/true"]), lambda: socket.socket(socket.AF_INET), lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)):
    try:
        what()
        seen.append("done")
    except PermissionError:
        seen.append("refused")
accepted, _ = listener.accept()
accepted.sendall(b"x")
assert client.recv(1) == b"x"
socket.socket(socket.AF_UNIX).close()
socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0).close()
open("/proc/self/status").close()
threading.Thread(target=print, args=(seen,)).start()
""")
    assert out == str(["thread refused", "refused", "refused", "refused"])


def test_a_machine_that_is_not_known_is_said() -> None:
    assert forbid("riscv64") == "no system call filter for riscv64"
    assert platform.machine() in ("x86_64", "aarch64")


def test_what_this_process_has_is_told() -> None:
    assert effective() <= set(CAPABILITIES)
