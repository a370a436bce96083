"""Facts about this machine, and what processes use of it, from /proc alone."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "not installed"
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip() if lines and not done.returncode else "?"


def _debian_version(package: str) -> str:
    return _first_line("dpkg-query", "-W", "-f=${Version}", package)


def _field(path: str, name: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return "?"
    match = re.search(rf"^{name}\s*[:=]\s*\"?(.*?)\"?$", text, re.MULTILINE)
    return match[1] if match else "?"


def facts() -> dict[str, str]:
    memory_kb = int(_field("/proc/meminfo", "MemTotal").split()[0])
    root = Path(__file__).resolve().parent.parent
    commit = _first_line("git", "-c", f"safe.directory={root}", "-C", str(root), "rev-parse", "--short", "HEAD")
    changed = _first_line(
        "git", "-c", f"safe.directory={root}", "-C", str(root), "status", "--short", "netprofiler", "bpf"
    )
    return {
        "CPU": f"{_field('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores",
        "hypervisor": "yes" if "hypervisor" in _field("/proc/cpuinfo", "flags") else "no",
        "memory": f"{memory_kb / 1048576:.0f} GiB",
        "kernel": f"{platform.release()} {platform.machine()}",
        "distribution": _field("/etc/os-release", "PRETTY_NAME"),
        "Python": platform.python_version(),
        "BCC": _debian_version("python3-bpfcc"),
        "Go": _first_line("go", "env", "GOVERSION"),
        "nginx": _debian_version("nginx"),
        "wrk": _debian_version("wrk"),
        "netprofiler": commit + (" with changes" if changed != "?" else ""),
    }


def cpu_us(pid: int) -> int | None:
    """User and system time of a process and its threads, µs; None when it is gone. A tick (10 ms) is the unit."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    after_name = stat[stat.rindex(")") + 2 :].split()
    return (int(after_name[11]) + int(after_name[12])) * TICK_US


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    out = [pid]
    for one in out:
        try:
            for task in (PROC / str(one) / "task").iterdir():
                out += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return out


def tree_cpu_us(pid: int) -> int:
    return sum(cpu_us(each) or 0 for each in tree(pid))


@dataclass(frozen=True, slots=True)
class Memory:
    """KiB."""

    resident: int
    anonymous: int
    proportional: int
    """PSS: a page that two mappings or processes share counts once."""


def memory(pid: int) -> Memory | None:
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
        status = (PROC / str(pid) / "status").read_text()
    except OSError:
        return None
    fields = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text + status, re.MULTILINE)}
    return Memory(fields.get("VmRSS", 0), fields.get("RssAnon", 0), fields.get("Pss", 0))


@dataclass(frozen=True, slots=True)
class Machine:
    """Of all CPUs, µs since boot."""

    busy: int
    stolen: int


def machine() -> Machine:
    values = [int(value) * TICK_US for value in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, steal = values
    return Machine(user + nice + system + irq + softirq, steal)


def other_agents(own: int | None) -> int:
    """Netprofilers besides ours: with one of them attached, "off" is not off."""
    count = 0
    for directory in PROC.iterdir():
        if directory.name.isdigit() and int(directory.name) != own:
            try:
                arguments = (directory / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if len(arguments) > 1 and arguments[1].endswith(b"/netprofiler") and b"python" in arguments[0]:
                count += 1
    return count


BPF_STATISTICS = PROC / "sys" / "kernel" / "bpf_stats_enabled"


@contextlib.contextmanager
def bpf_statistics() -> Iterator[None]:
    """The kernel takes the time of every BPF program. That costs some 50 ns a run itself: not for other measures."""
    before = BPF_STATISTICS.read_text()
    BPF_STATISTICS.write_text("1")
    try:
        yield
    finally:
        BPF_STATISTICS.write_text(before)


@dataclass(frozen=True, slots=True)
class ProgramRuns:
    runs: int
    nanoseconds: int


def bpf_runs(pid: int) -> ProgramRuns:
    """Of all BPF programs that a process holds."""
    programs: dict[str, tuple[int, int]] = {}
    for info in (PROC / str(pid) / "fdinfo").iterdir():
        try:
            fields = dict(line.split(":\t", 1) for line in info.read_text().splitlines() if ":\t" in line)
        except OSError:
            continue
        if "run_cnt" in fields and "prog_id" in fields:
            programs[fields["prog_id"]] = (int(fields["run_cnt"]), int(fields["run_time_ns"]))
    return ProgramRuns(sum(runs for runs, _ in programs.values()), sum(time for _, time in programs.values()))
