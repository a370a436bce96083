"""The measures of TLS: what its probes cost, beside what the usual ones cost (reference_probes.py), and how long attaching takes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks import host
from benchmarks.live import ALL, ALL_LOG_OFF, SERVER, SERVER_LOG_OFF, Plan, at_fixed_rate, throughput
from benchmarks.noise import spread, text
from benchmarks.programs import (
    BUILD,
    Agent,
    Load,
    ProgramError,
    Server,
    go_tls_server,
    load_command,
    nginx,
    parse_load,
    parse_wrk,
    wrk_command,
)
from benchmarks.report import Section
from benchmarks.trial import Setting, Variant, say

NO_TLS = "--no-tls"
GO_USUAL = "usual probes: entry and every RET"
C_USUAL = "usual probes: entry and uretprobe"
BINARIES = 50
PROBED_SECONDS = 10.0
STEADY_RATE = 500


def _reference(kind: str, path: str | Path) -> tuple[str, ...]:
    return (sys.executable, str(Path(__file__).with_name("reference_probes.py")), kind, str(path))


def _libssl() -> str:
    """The file that the linker would take, which nginx and wrk have."""
    cache = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"libssl\.so\.3 .*=> (\S+)", cache)
    if match is None:
        raise ProgramError("no libssl.so.3 here")
    return match[1]


def fixed_rate(setting: Setting, plan: Plan) -> Section:
    with go_tls_server() as server:
        section = at_fixed_rate(
            f"{plan.fixed_rate:,} requests/s on the Go server, over TLS",
            setting,
            replace(plan, fixed_rounds=plan.rounds),
            server,
            ("-tls", "-wait", "1s"),
            [
                Variant(ALL, ()),
                Variant(SERVER, ("--pid", str(server.pid))),
                Variant(SERVER_LOG_OFF, ("--pid", str(server.pid), "--no-output")),
                Variant(GO_USUAL, None, _reference("go", BUILD / "https")),
            ],
        )
    section.notes.append(f"{GO_USUAL}: in the server's binary alone; the client is another file.")
    return section


def saturation_go(setting: Setting, plan: Plan) -> Section:
    connections = 16
    with go_tls_server() as server:
        return throughput(
            "Saturated: wrk on the Go server, over TLS",
            f"`wrk -t1 -c{connections}` (OpenSSL), GET of some 15 bytes, two cores for client, server and agent together.",
            setting,
            server,
            wrk_command(server.url("/healthz"), plan.saturation_seconds, connections),
            parse_wrk,
            variants=[
                (Variant(ALL, ()), 4),
                (Variant(SERVER, ("--pid", str(server.pid))), 2),
                (Variant(SERVER_LOG_OFF, ("--pid", str(server.pid), "--no-output")), 0),
                (Variant(NO_TLS, ("--no-tls",)), 0),
                (Variant(GO_USUAL, None, _reference("go", BUILD / "https")), 0),
            ],
            rounds=plan.rounds,
            seconds=plan.saturation_seconds,
            connections=connections,
        )


def saturation_nginx(setting: Setting, plan: Plan) -> Section:
    connections = 16
    with nginx(tls=True) as server:
        return throughput(
            "Saturated: wrk on nginx, a small static file, over TLS",
            f"`wrk -t1 -c{connections}`, one worker, 264 bytes. Client and server have the same library, so both are probed.",
            setting,
            server,
            wrk_command(server.url("/small"), plan.short_seconds, connections),
            parse_wrk,
            variants=[
                (Variant(ALL, ()), 4),
                (Variant(ALL_LOG_OFF, ("--no-output",)), 0),
                (Variant(SERVER, ("--pid", str(server.pid))), 2),
                (Variant(NO_TLS, ("--no-tls",)), 0),
                (Variant(C_USUAL, None, _reference("openssl", _libssl())), 0),
            ],
            rounds=plan.rounds,
            seconds=plan.short_seconds,
            connections=connections,
        )


# ---- attaching ------------------------------------------------------------------------------------------------------


class _Text:
    """The text of a process's executable, against its file: where it differs there are probes."""

    def __init__(self, server: Server, executable: Path) -> None:
        self._memory = os.open(f"/proc/{server.pid}/mem", os.O_RDONLY)
        self._stored = executable.read_bytes()
        maps = Path(f"/proc/{server.pid}/maps").read_text()
        match = re.search(rf"^(\w+)-(\w+) r-xp (\w+) .*{re.escape(str(executable))}$", maps, re.MULTILINE)
        assert match is not None
        self._start, end, self._offset = (int(word, 16) for word in match.groups())
        self._size = min(end - self._start, len(self._stored) - self._offset)

    def probes(self) -> tuple[int, ...]:
        """Offsets in the text."""
        running = os.pread(self._memory, self._size, self._start)
        stored = self._stored[self._offset : self._offset + self._size]
        if running == stored:
            return ()
        return tuple(at for at in range(self._size) if running[at] != stored[at])

    def has(self, probe: int) -> bool:
        return os.pread(self._memory, 1, self._start + probe)[0] != self._stored[self._offset + probe]

    def close(self) -> None:
        os.close(self._memory)


@contextlib.contextmanager
def _copies(count: int) -> Iterator[list[Path]]:
    """Of one binary: as many files, and so as many attachments."""
    directory = BUILD / "copies"
    directory.mkdir(exist_ok=True)
    paths = [directory / f"https-{number}" for number in range(count)]
    try:
        for path in paths:
            shutil.copy(BUILD / "https", path)
        yield paths
    finally:
        shutil.rmtree(directory)


def attaching(setting: Setting, _plan: Plan) -> Section:
    section = Section(
        f"{BINARIES} binaries: attaching and detaching",
        f"{BINARIES} copies of the Go server's binary (one build id, so one analysis), a process of each. A probe is attached when "
        "its breakpoint is in the process's text, which is looked at from outside.",
        ("", "median (min..max)"),
        data={},
    )
    with _copies(BINARIES) as paths:
        probe = _programs_after(setting, paths, section)
        _programs_before(setting, paths, probe, section)
    _usual(section)
    return section


def _wait_for(condition: bool, begin: float, what: str) -> bool:
    if not condition and time.monotonic() - begin > PROBED_SECONDS:
        raise ProgramError(f"not within {PROBED_SECONDS:g} s: {what}")
    return condition


def _left(texts: list[_Text]) -> str:
    """What went wrong, if it did."""
    left = sum(bool(each.probes()) for each in texts)
    others = host.other_agents(None)
    return f"{left} programs still had probes{f', of {others} other agents perhaps' if others else ''}" if left else ""


def _programs_after(setting: Setting, paths: list[Path], section: Section) -> int:
    """The agent is there; programs start one after the other. Returns where one of the probes is."""
    seconds: list[float] = []
    with contextlib.ExitStack() as servers:
        agent = Agent(setting.executable, setting.directory)
        texts: list[_Text] = []
        try:
            first_probe = -1
            for path in paths:
                begin = time.monotonic()
                text_of = _Text(servers.enter_context(go_tls_server(path)), path)
                texts.append(text_of)
                while not _wait_for(
                    text_of.has(first_probe) if first_probe >= 0 else bool(text_of.probes()), begin, f"{path} is probed"
                ):
                    time.sleep(0.0005)
                seconds.append(time.monotonic() - begin)
                if first_probe < 0:
                    first_probe = text_of.probes()[0]
        finally:
            agent.stop()
        left = _left(texts)
        for text_of in texts:
            text_of.close()
        agent.discard()
    say(
        f"  attaching: first {seconds[0]:.3f} s, others {text(spread(seconds[1:]), 3)} s, end {agent.stop_seconds:.2f} s"
    )
    section.rows += [
        ("start of the first program to its probes, analysis included, ms", f"{seconds[0] * 1e3:.0f}"),
        ("start of each other to its probes, ms", text(spread(value * 1e3 for value in seconds[1:]), 0)),
        (f"SIGINT to exit with {len(paths)} attached, s", f"{agent.stop_seconds:.2f}"),
    ]
    section.data["after"] = {"seconds": seconds, "stop": agent.stop_seconds, "left": left}
    if left or agent.exit_status:
        section.notes.append(f"**Failed**: {left}; exit status {agent.exit_status}")
    return first_probe


def _programs_before(setting: Setting, paths: list[Path], probe: int, section: Section) -> None:
    """The programs are there, one of them under load; the agent comes and goes."""
    with contextlib.ExitStack() as servers:
        running = [(servers.enter_context(go_tls_server(path)), path) for path in paths]
        texts = [_Text(server, path) for server, path in running]
        command = load_command(
            "http", running[0][0].address, "-tls", "-rate", str(STEADY_RATE), "-connections", "8", "-duration", "12s"
        )
        quiet = parse_load(Load(command).output(30))
        load = Load(command)
        time.sleep(0.5)
        agent = Agent(setting.executable, setting.directory)
        try:
            begin = time.monotonic()
            while not _wait_for(all(each.has(probe) for each in texts), begin, "all are probed"):
                time.sleep(0.005)
            late = time.monotonic() - begin
        finally:
            agent.stop()
        left = _left(texts)
        watched = parse_load(load.output(30))
        for each in texts:
            each.close()
        agent.discard()
    say(
        f"  programs first: ready {agent.ready_seconds:.2f} s, {late:.3f} s after that all, end {agent.stop_seconds:.2f} s"
    )
    section.rows += [
        (f"start of the agent to `ready` with {len(paths)} running, s", f"{agent.ready_seconds:.2f}"),
        ("from `ready` until the last of them is seen to be probed, s", f"{late:.2f}"),
        (f"SIGINT to exit with {len(paths)} attached, one of them under load, s", f"{agent.stop_seconds:.2f}"),
        (
            f"longest answer at {STEADY_RATE}/s, without the agent → while it comes and goes, ms",
            f"{quiet['service_us']['max'] / 1e3:.1f} → {watched['service_us']['max'] / 1e3:.1f}",
        ),
    ]
    section.data["before"] = {
        "ready": agent.ready_seconds, "late": late, "stop": agent.stop_seconds, "left": left, "quiet": quiet,
        "watched": watched,
    }  # fmt: skip
    errors = quiet["errors"] + watched["errors"]
    if left or errors or agent.exit_status:
        section.notes.append(
            f"**Failed**: {left or 'no probe left'}; {errors} errors of the client; exit status {agent.exit_status}"
        )


def _usual(section: Section) -> None:
    """One binary, by the usual way."""
    with go_tls_server():
        process = subprocess.Popen(_reference("go", BUILD / "https"), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        told = json.loads(process.communicate(timeout=60)[0])
    section.rows += [
        ("the usual way, one binary: attaching, ms", f"{told['attach_seconds'] * 1e3:.0f}"),
        (f"the usual way, one binary: detaching its {told['probes']} probes, s", f"{told['detach_seconds']:.2f}"),
    ]
    section.data["usual"] = told
