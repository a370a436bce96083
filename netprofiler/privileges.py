"""What the agent may do, and gives up: capabilities, the user, and files that it could make.

Contract: `confine` is called once, by the only thread, before outputs are opened and anything is parsed. After it the
process has the capabilities of `NEEDED`, as far as it had them, and can get no others: bounding and ambient set are
emptied of the rest, and no program that it executes gains any (no_new_privs). `forbid` is called when all that needs a
program or a network socket is done: from there on a system call filter refuses both. What the kernel does not offer is
left out, and said. docs/security.md has what each is for.

A COMMAND behind ``--`` is the user's own and runs as he would run it: then the bounding set stays, no_new_privs is not set, and
nothing is forbidden, because all three would be the command's, too.
"""

from __future__ import annotations

import ctypes
import os
import platform
import pwd
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from netprofiler.config import Config
from netprofiler.errors import CommandError, ExitCode
from netprofiler.sources.bpf import allow_locked_memory
from netprofiler.sources.features import knows_uprobe_multi

CAPABILITIES: Final = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_NICE": 23,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
    "CAP_CHECKPOINT_RESTORE": 40,
}
"""Numbers of <linux/capability.h>: those that are of use."""
REQUIRED: Final = ("CAP_BPF", "CAP_PERFMON")
"""Without them nothing is captured."""
NEEDED: Final = tuple(
    name for name in CAPABILITIES if name not in ("CAP_DAC_OVERRIDE", "CAP_NET_ADMIN", "CAP_SYS_ADMIN")
)
"""CAP_SYS_ADMIN only where probes in TLS libraries are perf events, before Linux 6.6: CAP_PERFMON is not enough for these;
CAP_DAC_OVERRIDE only with an output in a directory of somebody else's, where a file is made anew, or at the end;
CAP_NET_ADMIN only where processes are chosen by their container or environment, to be told when one begins."""
_LAST: Final = 63
"""The kernel's sets have 64 bits; those that it does not know it refuses."""

# <linux/prctl.h>
_PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_VERSION_3: Final = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_libc: Final = ctypes.CDLL(None, use_errno=True)


def effective() -> frozenset[str]:
    """Of `CAPABILITIES`, what this process has. All, where the kernel does not say."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    bits = int(match[1], 16) if match else -1
    # Before Linux 5.8 CAP_SYS_ADMIN (21) stood for those that came later.
    every = bits >> 21 & 1
    return frozenset(name for name, bit in CAPABILITIES.items() if bits >> bit & 1 or (every and bit >= 38))


def may_capture() -> bool:
    """Whether it makes sense to try."""
    return effective() >= set(REQUIRED)


def confine(
    user: str | None, outputs: Iterable[str], *, command: bool, choosing: bool = False, probe_events: bool = False
) -> list[str]:
    """`user`: to become, or None; `outputs`: files that are written; `command`: a COMMAND is to run as we did; `choosing`:
    processes are chosen by their container or environment; `probe_events`: probes will be perf events. Returns what could
    not be done, a line each.
    """
    if user is not None and command:
        raise CommandError("--user and a COMMAND exclude each other", ExitCode.USAGE, remedy="start COMMAND by itself")
    problems: list[str] = []
    keep = effective() & set(NEEDED)
    if any(_is_of_another(os.path.dirname(os.path.abspath(path))) for path in outputs) and user is None:
        keep |= effective() & {"CAP_DAC_OVERRIDE"}
    if choosing:
        keep |= effective() & {"CAP_NET_ADMIN"}
    if probe_events:
        if "CAP_SYS_ADMIN" not in effective():
            problems.append("TLS cannot be read: before Linux 6.6 its probes need CAP_SYS_ADMIN")
        keep |= effective() & {"CAP_SYS_ADMIN"}
    if not command:
        for bit in range(_LAST + 1):
            if bit not in _bits(keep):
                _prctl(_PR_CAPBSET_DROP, bit)  # refused without CAP_SETPCAP: then exec cannot give any either
    if user is not None:
        _become(user)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    if not command and _prctl(_PR_SET_NO_NEW_PRIVS, 1):
        problems.append("no_new_privs cannot be set")
    if not _set_capabilities(keep):
        problems.append("capabilities cannot be dropped")
    return problems


def _is_of_another(directory: str) -> bool:
    try:
        return os.stat(directory).st_uid != os.geteuid()
    except OSError:
        return False


def _bits(names: Iterable[str]) -> set[int]:
    return {CAPABILITIES[name] for name in names}


def _prctl(option: int, argument: int) -> int:
    return int(_libc.prctl(option, *map(ctypes.c_ulong, (argument, 0, 0, 0))))


def _set_capabilities(names: Iterable[str]) -> bool:
    mask = sum(1 << bit for bit in _bits(names))
    header = _Header(_VERSION_3, 0)
    words = (mask & 0xFFFFFFFF, mask >> 32)
    sets = (_Sets * 2)(*(_Sets(word, word, 0) for word in words))
    return int(_libc.capset(ctypes.byref(header), ctypes.byref(sets))) == 0


def _become(user: str) -> None:
    """Another user, with the capabilities that we have; CommandError where that cannot be."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise CommandError(f"--user {user}: there is no such user", ExitCode.USAGE) from None
    try:
        _prctl(_PR_SET_KEEPCAPS, 1)
        os.initgroups(user, entry.pw_gid)
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    except OSError as error:
        raise CommandError(f"--user {user}: {error.strerror}", ExitCode.USAGE, remedy="start it as root") from error


# ---- what is forbidden besides ----

_PR_SET_SECCOMP: Final = 22
_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_FILTER_FLAG_TSYNC: Final = 1
# <linux/audit.h>; the numbers of calls by machine.
_MACHINES: Final = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_SECCOMP: Final = (317, 277)
_SOCKET: Final = (41, 198)
FORBIDDEN: Final = {
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_writev": (311, 271),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "mount": (165, 40),
    "umount2": (166, 39),
    "move_mount": (429, 429),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "unshare": (272, 97),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
}
"""What the agent never does, and what takes it over would want to: on x86-64 and on arm64."""
_FAMILIES: Final = (1, 16)
"""AF_UNIX: container engines, systemd. AF_NETLINK: what the kernel tells of processes."""
# <linux/bpf_common.h>, <linux/seccomp.h>
_LOAD, _EQUAL, _ABOVE, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW: Final = 0x7FFF0000
_REFUSE: Final = 0x00050000 | 1  # SECCOMP_RET_ERRNO, EPERM
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_X32: Final = 0x40000000
"""On x86-64, from here on: the numbers of another way to make the same calls."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


def forbid(machine: str) -> str | None:
    """From here on no thread of this process executes a program, traces, mounts, loads into the kernel, or makes a socket that
    is none of `_FAMILIES`: FORBIDDEN calls fail with EPERM. Returns why not, if not. `machine`: as platform.machine() says.
    """
    if machine not in _MACHINES:
        return f"no system call filter for {machine}"
    architecture, column = _MACHINES[machine]
    numbers = [row[column] for row in FORBIDDEN.values()]
    count = len(numbers)
    # Jumps count the instructions that they skip; the last two are "allow" and "refuse".
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 0, count + 7, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_ABOVE, count + 5, 0, _X32),
        *((_EQUAL, count - index + 4, 0, number) for index, number in enumerate(numbers)),
        (_EQUAL, 0, 3, _SOCKET[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 1, 0, _FAMILIES[0]),
        (_EQUAL, 0, 1, _FAMILIES[1]),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    instructions = (_Instruction * len(program))(*(_Instruction(*each) for each in program))
    filters = _Program(len(program), instructions)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    refused = _libc.syscall(
        ctypes.c_long(_SECCOMP[column]),
        ctypes.c_ulong(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_ulong(_SECCOMP_FILTER_FLAG_TSYNC),
        ctypes.byref(filters),
    )
    return "this kernel takes no system call filter" if refused else None


def settle(config: Config, outputs: Iterable[str], warn: Callable[[str], None]) -> None:
    """`confine`, as a configuration asks for it."""
    choosing = any((config.opt_in, config.container, config.exclude_container, config.compose_project))
    choosing = choosing or any((config.compose_service, config.container_label))
    allow_locked_memory()  # while we may
    probe_events = config.tls and not knows_uprobe_multi()
    for problem in confine(
        config.user, outputs, command=bool(config.command), choosing=choosing, probe_events=probe_events
    ):
        warn(problem)


def shut(config: Config, warn: Callable[[str], None]) -> None:
    """`forbid`, the same."""
    problem = None if config.command else forbid(platform.machine())
    if problem is not None:
        warn(problem)
