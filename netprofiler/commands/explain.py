"""`netprofiler explain PID`: for one process, what is seen of it, what is not, and why.

Contract: everything comes from /proc and from the files that the process has mapped, and is a fact, not a guess: what
cannot be known from outside is said to be unknown. The process is not touched. With `--seconds N` all is attached that a
capture attaches, this process and its children are watched for that long, and what became of their bytes is shown by rows
of the ledger; without it nothing is attached.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from netprofiler.counters import LEDGER_ROWS, Counters, make_ledger
from netprofiler.errors import CommandError, ExitCode
from netprofiler.exchange import WebSocket
from netprofiler.pipeline import Pipeline
from netprofiler.privileges import effective
from netprofiler.sources.analysis import analyse
from netprofiler.sources.binaries import UNREADABLE, Program, mapped_files, read_program
from netprofiler.sources.discovery import Discovery, FileFacts, State
from netprofiler.sources.kernel import Filters, KernelSource, check_host, monotonic_ns
from netprofiler.sources.probes import ABSENT, Call, Finding, Layout, Library, Probe, Purpose
from netprofiler.sources.processes import PROC, ProcessFacts, count_io_urings, descendants, process_facts
from netprofiler.sources.sockets import IS_SEEN, SocketFacts, process_sockets
from netprofiler.sources.unread import kernel_tls_sockets, title, why_blind, why_unread

SOCKETS_SHOWN: Final = 50
"""Lines for a person; `--json` has all of them."""
UNREAD_SHOWN: Final = 10
"""As above."""
SECONDS_MAX: Final = 3600.0
SETTLE_SECONDS: Final = 3.0
"""`--seconds` counts from when all files of all processes were looked into, or from after so long: where processes begin
all the time, there is always one to be looked into.
"""
_ROUND_SECONDS: Final = 0.010

ROW_MEANINGS: Final = {
    "recorded": "became records",
    "tallied": "added up in the kernel",
    "budget": "added up in the kernel, for --max-cpu",
    "filtered": "of other processes",
    "not_http": "not HTTP by its first bytes, or joined in the middle of something",
    "tls": "TLS, as it is on the socket: what was read inside is counted by itself",
    "control": "of HTTP/2 frames that are of no message",
    "tunnel": "after CONNECT or an upgrade: no HTTP any more",
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

FOUND_MEANINGS: Final = {
    "session": "known from an earlier call of the session, such as its handshake",
    "hello": "the random of the ClientHello",
    "descriptor": "the descriptor in the library's object",
    "call": "the system calls inside of the library's call",
    "not_found": "not found, or of a process that is not watched",
}
"""How the sockets of calls with plaintext were found, by the names of `KernelSource.tls_counts`."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that is not seen of this process."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Unread:
    """TLS connections of a process of which nothing was read."""

    pid: int
    connections: int
    why: str


@dataclass(frozen=True, slots=True)
class Look:
    """What a look of some seconds brought."""

    seconds: float
    """From attaching to detaching: what was asked for, and before that the time in which files were looked into."""
    requests: int
    responses: int
    unpaired: int
    websocket_messages: int
    heads_cut: int
    """Header blocks of HTTP/2 over what is decoded of one."""
    rows: dict[str, dict[str, int]]
    """Unit (`bytes`, `calls`) → row → count; only rows that are not 0, and only of this process and its children."""
    tls_read: int
    """TLS connections of which a message was read."""
    tls_unread: list[Unread]
    """TLS connections that began meanwhile and of which nothing was read, HTTP or not, by process."""
    found: dict[str, int]
    """Calls with plaintext, of all processes of this host, by how their socket was found (FOUND_MEANINGS); those that
    are not 0."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that is said of a process."""

    process: ProcessFacts
    program: Program
    tls: list[FileFacts]
    """Of the files that it has mapped, those with TLS in them, or that could not be looked into."""
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
    files = with_tls(mapped_files(pid, analyse, proc))
    io_urings = count_io_urings(pid, proc)
    sockets = process_sockets(pid, proc)
    limits = find_limits(process, program, files, io_urings, sockets, kernel_tls_sockets(pid, proc))
    return Explanation(process, program, files, io_urings, sockets, limits)


def with_tls(files: list[FileFacts]) -> list[FileFacts]:
    """Those of which there is something to say."""
    return [file for file in files if file.analysis.findings or file.analysis.blind or file.state is State.FAILED]


def find_limits(
    process: ProcessFacts,
    program: Program,
    files: list[FileFacts],
    io_urings: int,
    sockets: list[SocketFacts],
    kernel_tls: int,
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
    for file in files:
        limits += tls_limits(file)
    if io_urings:
        limits.append(
            Limit(
                "io_uring",
                f"{io_urings} open: what is sent and received through it is no system call: it is counted at best, and not read",
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
                else "HTTP is looked for in TCP and UNIX streams"
            )
            limits.append(Limit(f"{count} {kind} socket{'s' if count > 1 else ''}", why))
    if kernel_tls:
        limits.append(
            Limit(
                "kernel TLS",
                f"in its network namespace the kernel encrypts or decrypts {kernel_tls} directions of sockets; whose, "
                "/proc does not tell (`ss -tie` shows tcp-ulp-tls). What passes a TLS library on its way there is read",
            )
        )
    return limits


def tls_limits(file: FileFacts) -> list[Limit]:
    """What of a file's TLS is not read."""
    limits = [
        Limit("TLS", f"{title(finding)} in {file.path}: {finding.problem}")
        for finding in file.analysis.findings
        if finding.problem
    ]
    limits += [Limit("TLS", f"{name} in {file.path}: {why_blind(name)}") for name in file.analysis.blind]
    if file.state is State.FAILED and not limits:
        limits.append(Limit("unknown", f"whether {file.path} has TLS in it: {file.analysis.problem or file.reason}"))
    return limits


def ways_to_sockets(finding: Finding) -> list[str]:
    """How it is found out which socket the plaintext is on, in the order in which it is tried."""
    layout = finding.layout or Layout(finding.library)
    ways = []
    if finding.library is Library.GO:
        if layout.conn_type_from_write or layout.conn_type_from_read:
            ways.append("the descriptor of a *net.TCPConn")
    else:
        if ABSENT not in (layout.random, layout.server):
            ways.append("the random of the ClientHello")
        if ABSENT not in (layout.read_bio, layout.bio_method, layout.bio_number):
            ways.append("the descriptor of a socket BIO")
    return [*ways, "the system calls inside of its calls"]


# --- the look ---------------------------------------------------------------------------------------------------------


def watch(pid: int, seconds: float) -> tuple[Look, list[FileFacts]]:
    """Capture this process and its children for a while; records are counted, not written. The second: its files, as
    they were at the end.
    """
    source = KernelSource(Filters(pids=(pid, *descendants(pid))), tls=True)
    discovery = Discovery(analyse, source.attach_file, source.forget_file)
    pipeline = Pipeline(body_limit=0, stream_interval_ns=0)
    requests = responses = websocket_messages = 0
    tls_connections: set[str] = set()
    reasons: dict[int, str] = {}

    def read_all() -> None:
        while batch := source.read():
            used = pipeline.feed(batch)
            source.advance(used)
            for command in pipeline.take_commands():
                source.command(command)
            if not used:
                break
        pipeline.tick(monotonic_ns())
        take()
        give_reasons()

    def give_reasons(*, at_the_end: bool = False) -> None:
        """At once, for the process may end; and again at the end, when all is known of those that live."""
        for unread in pipeline.unread:
            if unread not in reasons or (at_the_end and (PROC / str(unread)).exists()):
                reasons[unread] = why_unread(unread, discovery.describe(unread))

    def take() -> None:
        nonlocal requests, responses, websocket_messages
        for message in pipeline.take_messages():
            if isinstance(message.extra, WebSocket):
                websocket_messages += 1
            elif message.head.is_request:
                requests += 1
            else:
                responses += 1
            if message.link.tls is not None:
                tls_connections.add(message.link.name)

    def go_on(until_ns: int, *, until_settled: bool = False) -> None:
        while monotonic_ns() < until_ns and not (until_settled and discovery.settled):
            source.wait(_ROUND_SECONDS)
            read_all()
            discovery.attend(source.notices())
            discovery.poll()

    try:
        source.attach()
        start_ns = monotonic_ns()
        discovery.start()
        go_on(monotonic_ns() + int(SETTLE_SECONDS * 1e9), until_settled=True)
        go_on(monotonic_ns() + int(seconds * 1e9))
        files = discovery.describe(pid)
        source.detach()
        elapsed_ns = monotonic_ns() - start_ns
        read_all()
        pipeline.drain(monotonic_ns())
        take()
        give_reasons(at_the_end=True)
        found = {name: count for name, count in source.tls_counts().items() if count and name in FOUND_MEANINGS}
        counters = pipeline.counters
        look = Look(
            round(elapsed_ns / 1e9, 1),
            requests,
            responses,
            counters.unpaired,
            websocket_messages,
            counters.heads_cut,
            own_rows(counters, source),
            len(tls_connections),
            [Unread(unread, count, reasons[unread]) for unread, count in pipeline.unread.items()],
            found,
        )
        return look, files
    finally:
        discovery.close()
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
    readable = [finding for file in explanation.tls for finding in file.analysis.findings if finding.probes]
    inside = ", and inside of TLS by:" if readable else ""
    lines += ["", f"seen: HTTP/1, HTTP/2 and WebSocket in the clear on these TCP and UNIX stream sockets{inside}"]
    for file in explanation.tls:
        for finding in file.analysis.findings:
            if finding.probes:
                lines += tls_lines(file, finding)
    lines.append("not seen:")
    lines += [f"  {limit.what}: {limit.why}" for limit in explanation.limits] or [
        "  nothing of it is known to be out of sight"
    ]
    if explanation.look is not None:
        lines += ["", *_look_lines(explanation.look)]
    return "\n".join(lines)


def tls_lines(file: FileFacts, finding: Finding) -> list[str]:
    """A library that can be read: what is probed, and how."""
    state = "attached" if file.state is State.ATTACHED else "when netprofiler captures"
    because = f" ({file.reason})" if file.reason else ""
    count = len(finding.probes)
    lines = [f"  {title(finding)} in {file.path}: {count} probe{'s' if count > 1 else ''}, {state}{because}"]
    by_function: dict[str, list[Probe]] = {}
    for probe in sorted(finding.probes, key=lambda probe: (_ORDER.get(probe.call, len(_ORDER)), probe.function)):
        by_function.setdefault(probe.function, []).append(probe)
    width = max(map(len, by_function))
    lines += [f"    {name:{width}}  {describe_sites(sites)}" for name, sites in by_function.items()]
    lines.append(f"    sockets are found by: {', '.join(ways_to_sockets(finding))}")
    lines += [f"    note: {note}" for note in finding.notes if not _ABOUT_SITES.search(note)]
    return lines


_ORDER: Final = {call: index for index, call in enumerate((Call.WRITE, Call.READ, Call.SENDFILE, Call.OTHER))}
"""What moves plaintext comes first. Go's probes have no `Call`."""
_ABOUT_SITES: Final = re.compile(r" is (?:entered|left) single-stepped\b")
"""Notes that say what the line of the function says."""
_PLACES: Final = {
    Purpose.LEAVE: "at its end",
    Purpose.GO_DECRYPTED: "behind decrypt",
    Purpose.GO_READ_RETURN: "at its end",
}
_BEGINNING: Final = "at its beginning"


def kind_of(probe: Probe) -> str:
    """What happens at the instruction; the first costs a tenth of the others."""
    return "return probe" if probe.on_return else "emulated" if probe.emulated else "single-stepped"


def describe_sites(probes: list[Probe]) -> str:
    """``emulated at its beginning, 2 emulated at its end``."""
    counts: dict[tuple[str, str], int] = {}
    for probe in sorted(probes, key=lambda probe: _PLACES.get(probe.purpose, "") != ""):
        key = (kind_of(probe), _PLACES.get(probe.purpose, _BEGINNING))
        counts[key] = counts.get(key, 0) + 1
    return ", ".join(f"{f'{count} ' if count > 1 else ''}{kind} {place}" for (kind, place), count in counts.items())


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
        + (f", {look.websocket_messages} WebSocket messages" if look.websocket_messages else "")
    ]
    if look.heads_cut:
        lines.append(f"  {look.heads_cut} header blocks of HTTP/2 were too large to be decoded whole")
    for name in LEDGER_ROWS:
        byte_count, calls = look.rows["bytes"].get(name, 0), look.rows["calls"].get(name, 0)
        if byte_count or calls:
            lines.append(f"  {name:10} {byte_count:>12} bytes {calls:>8} calls  {ROW_MEANINGS[name]}")
    if len(lines) == 1:
        lines.append("  it sent and received nothing on TCP and UNIX stream sockets")
    if look.found:
        lines.append("  how the sockets of plaintext were found, in all processes of this host:")
        lines += [
            f"  {'':28} {look.found[name]:>8} calls  {meaning}"
            for name, meaning in FOUND_MEANINGS.items()
            if name in look.found
        ]
    if look.tls_read or look.tls_unread:
        others = sum(unread.connections for unread in look.tls_unread)
        lines.append(f"  TLS connections: {look.tls_read} with HTTP, {others} of which nothing was read")
        lines += [
            f"    {unread.connections} of process {unread.pid}: {unread.why}"
            for unread in look.tls_unread[:UNREAD_SHOWN]
        ]
    return lines


def as_json(explanation: Explanation) -> str:
    """For scripts: docs/cli.md has the keys."""
    document = asdict(replace(explanation, tls=[]))
    document["tls"] = [_file_document(file) for file in explanation.tls]
    for entry, facts in zip(document["sockets"], explanation.sockets, strict=True):
        entry["seen"] = socket_is_seen(facts)
        for key in ("local", "remote", "state"):
            if not entry[key]:
                del entry[key]
    if explanation.look is None:
        del document["look"]
    return json.dumps(document, indent=1, ensure_ascii=False)


def _file_document(file: FileFacts) -> dict[str, Any]:
    document: dict[str, Any] = {
        "path": file.path,
        "state": file.state.name.lower() if file.state else "unknown",
        "reason": file.reason,
        "build_id": file.analysis.build_id,
        "libraries": [_finding_document(finding) for finding in file.analysis.findings],
        "blind": [{"name": name, "why": why_blind(name)} for name in file.analysis.blind],
    }
    return {key: value for key, value in document.items() if value != ""}


def _finding_document(finding: Finding) -> dict[str, Any]:
    document: dict[str, Any] = {
        "library": finding.library.name.lower(),
        "version": finding.version,
        "probes": [
            {
                "function": probe.function,
                "purpose": probe.purpose.name.lower(),
                "call": probe.call.name.lower(),
                "offset": probe.offset,
                "kind": kind_of(probe),
            }
            for probe in finding.probes
        ],
        "sockets_by": ways_to_sockets(finding) if finding.probes else [],
        "notes": list(finding.notes),
        "problem": finding.problem,
    }
    return {key: value for key, value in document.items() if value != ""}


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
    if os.geteuid() != 0 and "CAP_SYS_PTRACE" not in effective():
        raise CommandError("explaining a process needs root (CAP_SYS_PTRACE)", ExitCode.HOST, remedy="run it with sudo")
    if seconds:
        check_host()
    explanation = explain(pid)
    if seconds:
        look, files = watch(pid, seconds)
        explanation = replace(explanation, look=look, tls=with_tls(files) or explanation.tls)
    print(as_json(explanation) if arguments.json else as_text(explanation))
    return ExitCode.OK
