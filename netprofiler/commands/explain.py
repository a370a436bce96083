"""`netprofiler explain PID`: for one process, what is seen of it, what is not, and why.

Contract: everything comes from /proc and the executable's file, and is a fact, not a guess: what cannot be known from
outside is said to be unknown. The process is not touched. With `--seconds N` the kernel side watches this process and
its children for that long, and what became of its bytes is shown by rows of the ledger; without it nothing is attached.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from netprofiler.counters import LEDGER_ROWS, Counters, make_ledger
from netprofiler.errors import CommandError, ExitCode
from netprofiler.pipeline import Pipeline
from netprofiler.sources.binaries import UNREADABLE, Program, mapped_tls_libraries, read_program
from netprofiler.sources.kernel import Filters, KernelSource, check_host, monotonic_ns
from netprofiler.sources.processes import PROC, ProcessFacts, count_io_urings, descendants, process_facts
from netprofiler.sources.sockets import IS_SEEN, SocketFacts, process_sockets

SOCKETS_SHOWN: Final = 50
"""Lines for a person; `--json` has all of them."""
SECONDS_MAX: Final = 3600.0
_ROUND_SECONDS: Final = 0.025

ROW_MEANINGS: Final = {
    "recorded": "became records",
    "filtered": "of other processes",
    "not_http": "not HTTP by its first bytes, or joined in the middle of something",
    "tls": "TLS: not readable yet",
    "http2": "HTTP/2: not read yet",
    "tunnel": "after CONNECT or an upgrade: no HTTP/1 any more",
    "over_limit": "of bodies, over what is copied: counted, not kept",
    "sendfile": "sent from a file by sendfile: never passed through the process",
    "splice": "moved by splice: never passed through the process",
    "unreadable": "in memory that could not be read, or discarded by the receiver",
    "gap": "of messages that miss a part",
    "partial": "of messages that were joined or ended in the middle",
    "unparsed": "could not be framed as HTTP",
    "lost": "the ring was full",
    "pending": "of messages that are not over",
}
"""The rows of the ledger in a few words; docs/ledger.md has more."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that is not seen of this process."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Look:
    """What a look of some seconds brought."""

    seconds: float
    requests: int
    responses: int
    unpaired: int
    rows: dict[str, dict[str, int]]
    """Unit (`bytes`, `calls`) → row → count; only rows that are not 0, and only of this process and its children."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that is said of a process."""

    process: ProcessFacts
    program: Program
    tls_libraries: list[str]
    io_urings: int
    sockets: list[SocketFacts]
    limits: list[Limit]
    look: Look | None = None


def explain(pid: int, proc: Path = PROC) -> Explanation:
    """CommandError (exit status 2) where there is no such process."""
    process = process_facts(pid, proc)
    if process is None:
        raise CommandError(f"there is no process {pid}", ExitCode.USAGE)
    program = read_program(proc / str(pid) / "exe") if process.executable else UNREADABLE
    try:
        with (proc / str(pid) / "maps").open(errors="backslashreplace") as maps:
            libraries = mapped_tls_libraries(maps)
    except OSError:
        libraries = []
    io_urings = count_io_urings(pid, proc)
    sockets = process_sockets(pid, proc)
    limits = find_limits(process, program, libraries, io_urings, sockets)
    return Explanation(process, program, libraries, io_urings, sockets, limits)


def find_limits(
    process: ProcessFacts, program: Program, libraries: list[str], io_urings: int, sockets: list[SocketFacts]
) -> list[Limit]:
    """Each thing that keeps traffic of this process out of the log."""
    limits = []
    if not process.executable and not process.cmdline:
        limits.append(Limit("everything", "it has no executable: a kernel thread, or a process that has ended"))
    elif not process.executable:
        limits.append(
            Limit(
                "unknown", "its /proc entries may not be read (no CAP_SYS_PTRACE?): sockets and libraries are not known"
            )
        )
    if program.bits == 32:
        limits.append(
            Limit("everything", "a 32-bit program: its system calls have other numbers, and are not looked at")
        )
    if process.pid == os.getpid():
        limits.append(Limit("everything", "this is netprofiler itself"))
    limits += [
        Limit("TLS", f"{library} is mapped: what goes through it is encrypted before it is seen, and not readable yet")
        for library in libraries
    ]
    for name in program.static_tls:
        # A program that only imports the names has the library mapped as well.
        if name == "Go crypto/tls" or not libraries:
            version = f" ({program.go_version})" if name.startswith("Go") and program.go_version else ""
            limits.append(
                Limit("TLS", f"{name}{version} is linked into the executable: what goes through it is not readable yet")
            )
    if io_urings:
        limits.append(
            Limit(
                "io_uring", f"{io_urings} open: what is sent and received through it is no system call, and is not seen"
            )
        )
    by_kind: dict[str, int] = {}
    for entry in sockets:
        by_kind[entry.kind] = by_kind.get(entry.kind, 0) + 1
    for kind, count in by_kind.items():
        if kind not in IS_SEEN:
            why = (
                "QUIC (HTTP/3) is not read, nor is other UDP"
                if kind == "UDP"
                else "HTTP/1 is looked for in TCP and UNIX streams"
            )
            limits.append(Limit(f"{count} {kind} socket{'s' if count > 1 else ''}", why))
    if any(entry.kind == "TCP" for entry in sockets):
        limits.append(
            Limit(
                "kernel TLS",
                "whether a socket encrypts in the kernel cannot be told from /proc (`ss -tie` shows tcp-ulp-tls)",
            )
        )
    return limits


def watch(pid: int, seconds: float) -> Look:
    """Capture this process and its children for a while; records are counted, not written."""
    source = KernelSource(Filters(pids=(pid, *descendants(pid))))
    pipeline = Pipeline(body_limit=0, stream_interval_ns=0)
    requests = responses = 0

    def read_all() -> None:
        nonlocal requests, responses
        while batch := source.read():
            used = pipeline.feed(batch)
            source.advance(used)
            for command in pipeline.take_commands():
                source.command(command)
            if not used:
                break
        now_ns = monotonic_ns()
        pipeline.tick(now_ns)
        take()

    def take() -> None:
        nonlocal requests, responses
        for message in pipeline.take_messages():
            if message.head.is_request:
                requests += 1
            else:
                responses += 1

    try:
        source.attach()
        end_ns = monotonic_ns() + int(seconds * 1e9)
        while monotonic_ns() < end_ns:
            source.wait(_ROUND_SECONDS)
            read_all()
        source.detach()
        read_all()
        pipeline.drain(monotonic_ns())
        take()
        return Look(seconds, requests, responses, pipeline.counters.unpaired, own_rows(pipeline.counters, source))
    finally:
        source.close()


def own_rows(counters: Counters, source: KernelSource) -> dict[str, dict[str, int]]:
    """The ledger without what the filter left out, and without rows that are 0."""
    ledger = make_ledger(counters, source.ledger())
    rows = {}
    for unit in ("bytes", "calls"):
        table = ledger[unit]
        assert isinstance(table, dict)
        rows[unit] = {name: count for name, count in table["rows"].items() if count and name != "filtered"}
    return rows


# --- showing it -------------------------------------------------------------------------------------------------------


def socket_is_seen(entry: SocketFacts) -> bool:
    """Whether the kernel side looks at what is sent and received on it."""
    return entry.kind in IS_SEEN


def as_text(explanation: Explanation, proc: Path = PROC) -> str:
    """For people."""
    process = explanation.process
    program = explanation.program
    bits = f" ({program.bits}-bit)" if program.bits else ""
    go = f", {program.go_version}" if program.go_version else ""
    lines = [
        f"process {process.pid}: {process.comm}",
        f"  command      {process.cmdline or 'none'}",
        f"  executable   {process.executable or 'cannot be read'}{bits}{go}",
        f"  parent {process.parent}, user {process.user}, {process.threads} thread{'s' if process.threads != 1 else ''}",
        f"  namespaces   {_namespaces(process, proc)}",
        f"  cgroup       {process.cgroup or 'none'}",
        "",
    ]
    sockets = explanation.sockets
    seen = sum(map(socket_is_seen, sockets))
    lines.append(f"sockets: {len(sockets)}, of which {seen} can carry what is read (TCP, UNIX stream)")
    for entry in sockets[:SOCKETS_SHOWN]:
        where = " -> ".join(part for part in (entry.local, entry.remote) if part) or "no address"
        state = f" {entry.state}" if entry.state else ""
        sight = "" if socket_is_seen(entry) else "  not read"
        lines.append(f"  fd {entry.descriptor:<4} {entry.kind} {where}{state} sock:[{entry.inode}]{sight}")
    if len(sockets) > SOCKETS_SHOWN:
        lines.append(f"  and {len(sockets) - SOCKETS_SHOWN} more: --json has them all")
    lines += ["", "seen: HTTP/1.0 and HTTP/1.1 in the clear on these TCP and UNIX stream sockets", "not seen:"]
    lines += [f"  {limit.what}: {limit.why}" for limit in explanation.limits] or [
        "  nothing of it is known to be out of sight"
    ]
    if explanation.look is not None:
        lines += ["", *_look_lines(explanation.look)]
    return "\n".join(lines)


def _namespaces(process: ProcessFacts, proc: Path) -> str:
    if not process.network_namespace:
        return "cannot be read"
    try:
        own = str((proc / "self/ns/net").readlink())
    except OSError:
        own = ""
    same = " (this one)" if process.network_namespace == own else ""
    return f"{process.pid_namespace}, {process.network_namespace}{same}"


def _look_lines(look: Look) -> list[str]:
    lines = [
        f"in {look.seconds:g} s, with its children: {look.requests} requests, {look.responses} responses"
        + (f" ({look.unpaired} of them without their request)" if look.unpaired else "")
    ]
    for name in LEDGER_ROWS:
        byte_count, calls = look.rows["bytes"].get(name, 0), look.rows["calls"].get(name, 0)
        if byte_count or calls:
            lines.append(f"  {name:10} {byte_count:>12} bytes {calls:>8} calls  {ROW_MEANINGS[name]}")
    if len(lines) == 1:
        lines.append("  it sent and received nothing on TCP and UNIX stream sockets")
    return lines


def as_json(explanation: Explanation) -> str:
    """For scripts: docs/cli.md has the keys."""
    document = asdict(explanation)
    for entry, facts in zip(document["sockets"], explanation.sockets, strict=True):
        entry["seen"] = socket_is_seen(facts)
        for key in ("local", "remote", "state"):
            if not entry[key]:
                del entry[key]
    if explanation.look is None:
        del document["look"]
    return json.dumps(document, indent=1, ensure_ascii=False)


def _pid(text: str) -> int:
    try:
        pid = int(text)
    except ValueError:
        pid = 0
    if pid < 1:
        raise CommandError(f"{text!r} is not a process id", ExitCode.USAGE, remedy="give a number, such as pgrep says")
    return pid


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= SECONDS_MAX:
        raise CommandError(f"--seconds: {text!r} is not a number from 0 to {SECONDS_MAX:.0f}", ExitCode.USAGE)
    return seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this verb takes."""
    parser.add_argument("pid", metavar="PID", help="the process")
    parser.add_argument(
        "--seconds", metavar="N", default="0", help="watch it for so long and show what became of its bytes"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")


def execute(arguments: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Runs the verb; returns its exit status."""
    pid, seconds = _pid(arguments.pid), _seconds(arguments.seconds)
    if os.geteuid() != 0:
        raise CommandError("explaining a process needs root", ExitCode.HOST, remedy="run it with sudo")
    if seconds:
        check_host()
    explanation = explain(pid)
    if seconds:
        explanation = replace(explanation, look=watch(pid, seconds))
    print(as_json(explanation) if arguments.json else as_text(explanation))
    return ExitCode.OK
