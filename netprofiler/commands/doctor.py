"""`netprofiler doctor`: what this kernel and machine offer, what is missing, what that costs, and what mends it.

Contract: CHECKS is the whole list, in the order in which it is printed; each check is a function of a `Host` and looks,
but changes nothing. What needs a privilege that we have not is `not looked at`, never guessed. Exit status 0 when a
capture would work, 3 when it would not: when a check that is needed says `missing`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from netprofiler.errors import CommandError, ExitCode
from netprofiler.sources import features
from netprofiler.sources.analysis import analyse
from netprofiler.sources.bcc_import import INSTALL, find_bcc, load_bcc
from netprofiler.sources.binaries import look_into, mappings
from netprofiler.sources.btf import BTF_PATH, member_offsets
from netprofiler.sources.kernel import SOCKET_EVENTS, Filters, KernelSource, assemble, find_bpf, needed_offsets
from netprofiler.sources.mapped_files import Key, Mapping, linked_tls_libraries
from netprofiler.sources.unread import title

OLDEST_KERNEL: Final = (5, 10)
"""Older ones lack the ring buffer (5.8) or were never tried."""
NO_MEMLOCK_KERNEL: Final = (5, 11)
"""From here on BPF memory counts for the control group, not for RLIMIT_MEMLOCK."""
MEMLOCK_BYTES: Final = 64 * 1024 * 1024
"""What the maps and the ring take, with room to spare."""
BLIND_SECONDS: Final = 2.0
"""How long files of other processes are looked into."""
_INIT_PID_NAMESPACE: Final = "pid:[4026531836]"  # PROC_PID_INIT_INO of <linux/proc_ns.h>
_ARCHITECTURES: Final = ("x86_64", "aarch64")

_CAPABILITIES: Final = {
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_NICE": 23,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
"""Bits of CapEff, <linux/capability.h>."""


class State(StrEnum):
    """What a check says."""

    OK = "ok"
    MISSING = "missing"
    WARNING = "warning"
    UNKNOWN = "not looked at"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found."""

    state: State
    text: str
    """What there is."""
    cost: str | None = None
    """What comes of it; None where nothing does."""
    remedy: str | None = None
    """The command that mends it, where there is one."""


@dataclass(frozen=True, slots=True)
class Host:
    """Where to look: this machine, or what a test says."""

    root: Path = Path("/")
    user: int = field(default_factory=os.geteuid)
    system: str = field(default_factory=platform.system)
    machine: str = field(default_factory=platform.machine)
    release: str = field(default_factory=platform.release)

    @property
    def capabilities(self) -> int | None:
        """Bits of what this process may do; None: not told."""
        match = re.search(r"^CapEff:\s*([0-9a-f]+)", self.read("proc/self/status") or "", re.MULTILINE)
        return int(match[1], 16) if match else None

    def _may(self, *names: str) -> bool:
        held = self.capabilities or 0
        return self.user == 0 or all(held >> _CAPABILITIES[name] & 1 for name in names)

    @property
    def may_capture(self) -> bool:
        """As root, or as the user of a service that was given what it takes (packaging/netprofiler.service)."""
        return self._may("CAP_BPF", "CAP_PERFMON")

    @property
    def sees_others(self) -> bool:
        """What other users' processes have opened and mapped."""
        return self._may("CAP_SYS_PTRACE")

    @property
    def version(self) -> tuple[int, int]:
        match = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def read(self, path: str) -> str | None:
        try:
            return (self.root / path).read_text(errors="replace")
        except OSError:
            return None


def _ok(text: str) -> Finding:
    return Finding(State.OK, text)


def _unknown(text: str, remedy: str | None = None) -> Finding:
    return Finding(State.UNKNOWN, text, remedy=remedy)


_AS_ROOT: Final = "sudo netprofiler doctor"


# --- the checks -------------------------------------------------------------------------------------------------------


def check_system(host: Host) -> Finding:
    """The architecture: registers and call numbers (bpf/arch.h) are known for two."""
    text = f"{host.system} on {host.machine}"
    if host.system == "Linux" and host.machine in _ARCHITECTURES:
        return _ok(text)
    return Finding(State.MISSING, text, "capturing needs Linux on x86-64 or arm64; replay and decode work here")


def check_kernel(host: Host) -> Finding:
    """The kernel's version."""
    text = f"kernel {host.release}"
    if host.version >= OLDEST_KERNEL:
        return _ok(text)
    oldest = ".".join(map(str, OLDEST_KERNEL))
    return Finding(State.MISSING, text, f"{oldest} or newer is needed", "boot a newer kernel")


def check_root(host: Host) -> Finding:
    """Who we are."""
    if host.user == 0:
        return _ok("root")
    if host.may_capture:
        return _ok(f"user {host.user}, with capabilities")
    return Finding(State.MISSING, f"user {host.user}, not root", "nothing can be captured", "run netprofiler with sudo")


def check_capabilities(host: Host) -> Finding:
    """What root may do here: in a container it is less."""
    effective = host.capabilities
    if effective is None:
        return _unknown("/proc/self/status tells nothing of capabilities")
    if not host.may_capture:
        return _unknown("an ordinary user has none; what root has here can only root see", _AS_ROOT)
    held = [name for name, bit in _CAPABILITIES.items() if effective >> bit & 1]
    lacking = [name for name in _CAPABILITIES if name not in held]
    text = f"effective: {', '.join(held) or 'none that matters here'}"
    if "CAP_SYS_ADMIN" not in held and not {"CAP_BPF", "CAP_PERFMON"} <= set(held):
        return Finding(
            State.MISSING,
            f"{text}; lacking {', '.join(lacking)}",
            "programs cannot be loaded into the kernel",
            "run it with sudo; in a container: --privileged, or --cap-add BPF --cap-add PERFMON --cap-add SYS_PTRACE",
        )
    if "CAP_SYS_PTRACE" not in held:
        return Finding(
            State.WARNING,
            f"{text}; lacking CAP_SYS_PTRACE",
            "`explain`, and files sent by sendfile, cannot be read for processes of other users",
            "in a container: --cap-add SYS_PTRACE",
        )
    return _ok(text)


def check_pid_namespace(host: Host) -> Finding:
    """Whether pids mean the same here and in the kernel."""
    try:
        namespace = str((host.root / "proc/self/ns/pid").readlink())
    except OSError:
        return _unknown("/proc/self/ns/pid cannot be read")
    if namespace == _INIT_PID_NAMESPACE:
        return _ok("the host's")
    return Finding(
        State.MISSING,
        f"{namespace}, not the host's",
        "the pids that the kernel side sees would mean other processes here",
        "start the container with --pid=host (pid: host in a compose file)",
    )


def check_lockdown(host: Host) -> Finding:
    """Whether the kernel lets BPF read its memory."""
    text = host.read("sys/kernel/security/lockdown")
    if text is None:
        return _unknown(
            "/sys/kernel/security/lockdown is not there: securityfs is not mounted, or no lockdown is built in"
        )
    match = re.search(r"\[(\w+)\]", text)
    mode = match[1] if match else text.strip()
    if mode == "confidentiality":
        return Finding(
            State.MISSING,
            "lockdown=confidentiality",
            "BPF programs may not read kernel memory",
            "boot with lockdown=integrity (or without Secure Boot's lockdown)",
        )
    return _ok(mode)


def check_btf(host: Host) -> Finding:
    """Where struct offsets come from."""
    path = host.root / BTF_PATH.relative_to("/")
    try:
        size = path.stat().st_size
    except OSError:
        return Finding(
            State.MISSING,
            f"{BTF_PATH} is not there",
            "the layout of the kernel's structures is not known",
            "mount -t sysfs sysfs /sys; or boot a kernel with CONFIG_DEBUG_INFO_BTF=y (every distribution's since 2021)",
        )
    return _ok(f"{BTF_PATH}, {size / 1e6:.1f} MB")


def check_libbpf(host: Host) -> Finding:
    """What reads the BTF."""
    for name in ("libbpf.so.1", "libbpf.so.0"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        try:
            version = library.libbpf_version_string
        except AttributeError:  # before 0.7
            return _ok(name)
        version.restype = ctypes.c_char_p
        return _ok(f"{name} ({(version() or b'').decode()})")
    return Finding(State.MISSING, "no libbpf.so", "BTF cannot be read", "apt-get install libbpf1")


def check_offsets(host: Host) -> Finding:
    """Whether this kernel has all that the program reads."""
    try:
        offsets = member_offsets(needed_offsets(assemble(find_bpf())))
    except CommandError as error:
        return Finding(State.MISSING, str(error), "the program cannot find its way through the kernel's structures")
    return _ok(f"all {len(offsets)} struct members that the program reads were found")


def check_bcc(host: Host) -> Finding:
    """What compiles the program; PyPI has an unrelated package of that name."""
    try:
        found = find_bcc(host.root, sys.path if host.root == Path("/") else ())
        module = load_bcc(host.root)
    except CommandError as error:
        return Finding(State.MISSING, str(error), "the program cannot be compiled", error.remedy or INSTALL)
    text = f"{getattr(module, '__version__', 'version unknown')} at {found.package}"
    if found.impostor is not None:
        return Finding(
            State.WARNING,
            f"{text}; PyPI's unrelated package `bcc` is at {found.impostor}",
            "none for netprofiler, which ignores it; other BCC tools in that environment break",
            "pip uninstall bcc",
        )
    return _ok(text)


def check_ring_buffer(host: Host) -> Finding:
    """How records get to us."""
    answer = features.has_ring_buffer()
    if answer is None:
        return _unknown("making a BPF map is not allowed to this user", _AS_ROOT)
    if answer:
        return _ok("the kernel made one")
    return Finding(State.MISSING, "the kernel has none", "nothing can be captured", "boot Linux 5.10 or newer")


def check_program(host: Host) -> Finding:
    """Everything that `run` does up to attaching, with all programs that there are."""
    if not host.may_capture:
        return _unknown("loading a program needs root", _AS_ROOT)
    try:
        source = KernelSource(Filters(pids=(os.getpid(),)), cached=False)
    except CommandError as error:
        return Finding(
            State.MISSING,
            str(error).replace(" (to mend it: see `netprofiler doctor`)", ""),
            "nothing can be captured",
        )
    source.close()
    if source.variant != SOCKET_EVENTS:
        return Finding(
            State.WARNING,
            "all programs compiled and passed the verifier, but not those that need Linux 6.3; nothing was attached",
            "calls are seen at sys_exit: every system call of this host takes 0.1 us longer while netprofiler runs",
        )
    return _ok("all programs compiled and passed the verifier; nothing was attached")


def check_memlock(host: Host) -> Finding:
    """A limit that old kernels count BPF memory against."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    text = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft // 1024} KiB"
    if host.version >= NO_MEMLOCK_KERNEL:
        return _ok(f"{text}; this kernel does not count BPF memory there")
    if soft == resource.RLIM_INFINITY or soft >= MEMLOCK_BYTES:
        return _ok(text)
    return Finding(
        State.WARNING,
        text,
        "before Linux 5.11 maps count there; a capture raises it itself where it has CAP_SYS_RESOURCE",
        "ulimit -l unlimited (LimitMEMLOCK=infinity in a systemd unit)",
    )


def check_tracefs(host: Host) -> Finding:
    """Not needed; said because other tools need it."""
    for line in (host.read("proc/self/mounts") or "").splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == "tracefs":
            return _ok(f"mounted at {fields[1]}; not needed")
    return _ok("not mounted; not needed: raw tracepoints are attached by name")


def check_headers(host: Host) -> Finding:
    """Not needed; said because other tools need them."""
    there = (host.root / "lib/modules" / host.release / "build").exists()
    return _ok(f"{'installed' if there else 'not installed'}; not needed: the program takes its offsets from BTF")


def check_kprobes(host: Host) -> Finding:
    """Not needed; said because other tools need them."""
    return _ok("not looked for; not needed: neither kprobes nor fentry are used")


def check_uprobe_multi(host: Host) -> Finding:
    """What TLS is read by."""
    answer = features.has_uprobe_multi()
    if answer is None:
        return _unknown("attaching a probe is not allowed to this user; TLS is read by it", _AS_ROOT)
    if answer:
        return _ok("a probe with a cookie was attached to a file of our own, and taken away")
    events = features.has_uprobe_events()
    if events:
        way = "perf events with cookies" if features.has_cookies() else "perf events, with a program each"
        return Finding(
            State.WARNING,
            f"not in kernel {host.release} (it came with 6.6); TLS is read all the same, by {way}, one of which was attached "
            "to a file of our own, and taken away",
            "a file takes longer to attach and to let go, and a descriptor a probe; a capture keeps CAP_SYS_ADMIN for it",
            "boot Linux 6.6 or newer; --no-tls does without",
        )
    return Finding(
        State.WARNING,
        f"not in kernel {host.release} (it came with 6.6), and "
        + ("perf events are not allowed to this user" if events is None else "no perf events for uprobes either"),
        "TLS is not read; its connections are counted in the row `tls`",
        "boot Linux 6.6 or newer; --no-tls does without",
    )


def check_tls_libraries(host: Host) -> Finding:
    """Those that a program gets when it starts: they are probed from the start."""
    if host.machine != "x86_64":
        return _unknown(f"TLS is read on x86-64 only, not on {host.machine}")
    found = []
    bad = []
    for path in linked_tls_libraries(host.root):
        analysis = analyse(path)
        for finding in analysis.findings:
            if finding.probes:
                found.append(f"{title(finding)} ({path}, {len(finding.probes)} probes)")
            else:
                bad.append(f"{title(finding)} ({path}): {finding.problem}")
        if analysis.problem:
            bad.append(f"{path}: {analysis.problem}")
    text = "; ".join(found) or "none in the linker's cache"
    if bad:
        return Finding(
            State.WARNING,
            f"{text}; cannot be read: {'; '.join(bad)}",
            "what programs say through these is in no record",
        )
    return _ok(text)


def check_blind_tls(host: Host) -> Finding:
    """Processes with TLS in them that netprofiler cannot read. Looks for BLIND_SECONDS, executables first."""
    if not host.sees_others:
        return _unknown("what other processes run needs root", _AS_ROOT)
    blind, unseen = _blind_processes(host)
    late = f"; {unseen} files were not looked into within {BLIND_SECONDS:g} s" if unseen else ""
    if blind:
        return Finding(
            State.WARNING,
            _some([f"{pid} ({_comm(host, pid)}): {', '.join(sorted(names))}" for pid, names in sorted(blind.items())])
            + late,
            "what these say through it is in no record",
            "explain PID says more of each; look at the other end, or at a proxy that ends TLS",
        )
    return _ok(f"no process that runs now has TLS in it that is known not to be readable{late}")


def _blind_processes(host: Host) -> tuple[dict[int, set[str]], int]:
    """Pid → names of what it has; and how many files were left out."""
    proc = host.root / "proc"
    users: dict[Key, list[int]] = {}
    first: dict[Key, tuple[int, Mapping]] = {}
    executables: set[Key] = set()
    for directory in proc.glob("[0-9]*"):
        pid = int(directory.name)
        mapped = [] if pid == os.getpid() else mappings(pid, proc)
        executables.update(mapping.key for mapping in mapped[:1])  # its own comes first
        for mapping in {mapping.key: mapping for mapping in mapped}.values():
            users.setdefault(mapping.key, []).append(pid)
            first.setdefault(mapping.key, (pid, mapping))
    found: dict[int, set[str]] = {}
    until = time.monotonic() + BLIND_SECONDS
    in_order = sorted(first, key=lambda key: key not in executables)
    for index, key in enumerate(in_order):
        if time.monotonic() > until:
            return found, len(in_order) - index
        analysis = look_into(*first[key], analyse, proc).analysis
        names = {*analysis.blind, *(title(finding) for finding in analysis.findings if finding.problem)}
        if names:
            for pid in users[key]:
                found.setdefault(pid, set()).update(names)
    return found, 0


def check_io_uring(host: Host) -> Finding:
    """A way around system calls: what goes there is counted at best."""
    switch = (host.read("proc/sys/kernel/io_uring_disabled") or "").strip()
    if switch == "2" or features.has_io_uring() is False:
        return _ok("not there, or switched off: no program can hide its I/O in it")
    users = _holders(host, "io_uring")
    if users:
        return Finding(
            State.WARNING,
            f"in use by {_some([f'{pid} ({name})' for pid, name in users])}",
            "what these send and receive through it is no system call: it is counted (Linux 6.3 and later), and not read",
            "explain PID says so of each; io_uring can be switched off: sysctl kernel.io_uring_disabled=2",
        )
    if not host.sees_others:
        return _unknown(
            "programs may use it, and what goes through it is not read; who does can only root see", _AS_ROOT
        )
    return _ok("programs may use it, and what goes through it is not read; nobody does now")


def check_other_agents(host: Host) -> Finding:
    """Whoever else has a program at the same place."""
    if not host.sees_others:
        return _unknown("other processes' descriptors need root", _AS_ROOT)
    others = _holders(host, "sys_exit")
    if not others:
        return _ok("no other process holds a raw tracepoint at sys_exit")
    return Finding(
        State.WARNING,
        f"raw tracepoint at sys_exit held by {_some([f'{pid} ({name})' for pid, name in others])}",
        "every system call of this host pays for each of them",
    )


def _some(items: list[str]) -> str:
    shown = ", ".join(items[:5])
    return f"{shown} and {len(items) - 5} more" if len(items) > 5 else shown


def _holders(host: Host, what: str) -> list[tuple[int, str]]:
    """Processes with an io_uring, or with a BPF link to the raw tracepoint sys_exit, among their descriptors."""
    processes = sorted((host.root / "proc").glob("[0-9]*"), key=lambda path: int(path.name))
    return [(int(process.name), _comm(host, int(process.name))) for process in processes if _holds(process, what)]


def _comm(host: Host, pid: int) -> str:
    return (host.read(f"proc/{pid}/comm") or "?").strip()


def _holds(process: Path, what: str) -> bool:
    try:
        for descriptor in (process / "fd").iterdir():
            target = str(descriptor.readlink())
            if what == "io_uring":
                if target == "anon_inode:[io_uring]":
                    return True
            elif target.startswith("anon_inode:bpf"):
                details = (process / "fdinfo" / descriptor.name).read_text()
                if re.search(r"^tp_name:\s*sys_exit$", details, re.MULTILINE):
                    return True
    except OSError:  # it has ended, has closed it, or is not ours to see
        pass
    return False


# --- the list ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the list."""

    name: str
    look: Callable[[Host], Finding]
    needed: bool
    """Without it nothing can be captured."""


CHECKS: Final = (
    Check("system", check_system, True),
    Check("kernel", check_kernel, True),
    Check("root", check_root, True),
    Check("capabilities", check_capabilities, True),
    Check("pid namespace", check_pid_namespace, True),
    Check("lockdown", check_lockdown, True),
    Check("BTF", check_btf, True),
    Check("libbpf", check_libbpf, True),
    Check("struct offsets", check_offsets, True),
    Check("BCC", check_bcc, True),
    Check("ring buffer", check_ring_buffer, True),
    Check("program", check_program, True),
    Check("memlock limit", check_memlock, False),
    Check("other agents", check_other_agents, False),
    Check("io_uring", check_io_uring, False),
    Check("uprobe_multi", check_uprobe_multi, False),
    Check("TLS libraries", check_tls_libraries, False),
    Check("blind TLS", check_blind_tls, False),
    Check("kprobes, fentry", check_kprobes, False),
    Check("tracefs", check_tracefs, False),
    Check("kernel headers", check_headers, False),
)


def examine(host: Host, checks: tuple[Check, ...] = CHECKS) -> list[tuple[Check, Finding]]:
    """Look at everything."""
    return [(check, check.look(host)) for check in checks]


def can_capture(findings: list[tuple[Check, Finding]]) -> bool:
    """Whether nothing that is needed is missing."""
    return not any(check.needed and finding.state is State.MISSING for check, finding in findings)


def as_text(findings: list[tuple[Check, Finding]]) -> str:
    """For people."""
    width = max(len(check.name) for check, _ in findings)
    indent = " " * (len(State.UNKNOWN) + 2 + width + 2)
    lines = []
    for check, finding in findings:
        lines.append(f"{finding.state:{len(State.UNKNOWN)}}  {check.name:{width}}  {finding.text}")
        if finding.cost:
            lines.append(f"{indent}costs: {finding.cost}")
        if finding.remedy:
            label = "to look" if finding.state is State.UNKNOWN else "to mend it"
            lines.append(f"{indent}{label}: {finding.remedy}")
    lines.append("")
    missing = [check.name for check, finding in findings if check.needed and finding.state is State.MISSING]
    if missing:
        lines.append(f"netprofiler cannot capture here: see {', '.join(missing)}.")
    else:
        lines.append("netprofiler can capture here.")
    return "\n".join(lines)


def as_json(findings: list[tuple[Check, Finding]]) -> str:
    """For scripts: docs/cli.md has the keys."""
    checks = []
    for check, finding in findings:
        entry = {"name": check.name, "state": finding.state.value, "needed": check.needed, "text": finding.text}
        if finding.cost:
            entry["cost"] = finding.cost
        if finding.remedy:
            entry["remedy"] = finding.remedy
        checks.append(entry)
    return json.dumps({"can_capture": can_capture(findings), "checks": checks}, indent=1, ensure_ascii=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this verb takes."""
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")


def execute(arguments: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Runs the verb; returns its exit status."""
    findings = examine(Host())
    print(as_json(findings) if arguments.json else as_text(findings))
    return ExitCode.OK if can_capture(findings) else ExitCode.HOST
