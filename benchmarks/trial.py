"""One load, with or without the agent, and all that is looked at around it; rounds of them, interleaved."""

from __future__ import annotations

import contextlib
import mmap
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import host, noise
from benchmarks.programs import Agent, Load, ProgramError, Server, end

SETTLE_SECONDS = 0.4
"""After a load: the agent drains its ring, and holds what may still be completed, for at most a quarter of a second."""
SAMPLE_SECONDS = 0.25

OFF = "off"
OFF_AGAIN = "off again"


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how the agent is run."""

    executable: str
    directory: Path


@dataclass(frozen=True, slots=True)
class Variant:
    name: str
    arguments: tuple[str, ...] | None
    """The agent's; None: no agent."""
    other: tuple[str, ...] = ()
    """The command of another tool that runs where the agent would, and says `ready` on standard output."""


def off_variants(rounds: int) -> list[Variant]:
    """Twice: how far the second is from the first is the noise of the ratio. One round alone has no ratio worth it."""
    return [Variant(OFF, None), *([Variant(OFF_AGAIN, None)] if rounds > 1 else [])]


@dataclass(slots=True)
class Trial:
    variant: str
    round: int
    load: dict[str, Any] = field(default_factory=dict)
    failed: str = ""
    seconds: float = 0.0
    agent_cpu_us: int = 0
    server_cpu_us: int = 0
    elsewhere_percent: float = 0.0
    """CPU that neither agent, client nor server used (the kernel's threads, other people), of one core."""
    stolen_percent: float = 0.0
    other_agents: int = 0
    ready_seconds: float = 0.0
    stop_seconds: float = 0.0
    exit_status: int | None = None
    memory_ready: host.Memory | None = None
    memory_early: host.Memory | None = None
    """When a third of the load was over."""
    memory_end: host.Memory | None = None
    memory_high_kb: int = 0
    ledger: dict[str, Any] = field(default_factory=dict)
    log: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def per_second(self) -> float | None:
        return None if self.failed else float(self.load.get("per_second") or 0)

    def latency(self, name: str, which: str = "service_us") -> float | None:
        value = self.load.get(which, {}).get(name)
        return None if value is None or self.failed else float(value)

    @property
    def requests(self) -> int:
        return int(self.load.get("requests", 0))

    @property
    def written(self) -> int:
        return int(self.ledger.get("records", {}).get("rows", {}).get("written", 0))

    def row(self, name: str, unit: str = "bytes") -> int:
        return int(self.ledger.get(unit, {}).get("rows", {}).get(name, 0))

    def total(self, unit: str = "bytes") -> int:
        return int(self.ledger.get(unit, {}).get("total", 0))

    @property
    def sums(self) -> bool | None:
        """Do the ledger's rows sum to its totals?"""
        if not self.ledger:
            return None
        return all(sum(self.ledger[unit]["rows"].values()) == self.ledger[unit]["total"] for unit in ("bytes", "calls"))

    @property
    def us_per_message(self) -> float | None:
        return self.agent_cpu_us / self.written if self.written and not self.failed else None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def count_log(path: Path, port: int, server_pids: list[int]) -> dict[str, int]:
    """What the log holds of one server's traffic. By counting substrings: the log of a saturated run is gigabytes."""
    counts = dict.fromkeys(("lines", "to_server", "from_server", "at_server", "requests_at_server", "complete"), 0)
    counts["bytes"] = path.stat().st_size if path.exists() else 0
    if not counts["bytes"]:
        return counts
    to_server = b'"dest_port":%d,' % port
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as log:
        end = len(log)
        start = 0
        while start < end:
            stop = end if end - start <= 1 << 24 else log.rfind(b"\n", start, start + (1 << 24)) + 1
            block = log[start:stop]
            start = stop
            counts["lines"] += block.count(b"\n")
            counts["to_server"] += block.count(to_server)
            counts["from_server"] += block.count(b'"source_port":%d,' % port)
            counts["complete"] += block.count(b',"completeness":"complete"')
            for pid in server_pids:
                counts["at_server"] += block.count(b'"pid":%d,' % pid)
            counts["requests_at_server"] += block.count(b'"direction":"recv","role":"server"')
    return counts


@contextlib.contextmanager
def running(setting: Setting, arguments: tuple[str, ...] | None) -> Iterator[Agent | None]:
    if arguments is None:
        yield None
        return
    agent = Agent(setting.executable, setting.directory, arguments)
    try:
        yield agent
    finally:
        agent.stop()


@contextlib.contextmanager
def running_other(command: tuple[str, ...]) -> Iterator[None]:
    if not command:
        yield
        return
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise ProgramError(f"{command[1]} did not become ready: {process.communicate()[1].strip()[-300:]}")
        yield
    finally:
        end(process)
        process.communicate()


def run_trial(
    setting: Setting,
    variant: Variant,
    number: int,
    server: Server,
    command: list[str],
    parse: Callable[[str], dict[str, Any]],
    seconds: float,
) -> Trial:
    trial = Trial(variant.name, number)
    agent: Agent | None = None
    try:
        with running_other(variant.other), running(setting, variant.arguments) as agent:
            trial.other_agents = host.other_agents(agent.pid if agent else None)
            if agent is not None:
                trial.ready_seconds = agent.ready_seconds
                trial.memory_ready = host.memory(agent.pid)
            watch(trial, agent, server, command, parse, seconds)
    except ProgramError as error:
        trial.failed = str(error)
    if agent is not None:
        trial.stop_seconds = agent.stop_seconds
        trial.exit_status = agent.exit_status
        if agent.exit_status:
            trial.failed = trial.failed or f"the agent ended with status {agent.exit_status}"
        trial.ledger = agent.ledger()
        trial.log = count_log(agent.log, server.port, host.tree(server.pid))
        trial.warnings = [line for line in agent.messages() if line.startswith("netprofiler:")]
        agent.discard()
    return trial


def watch(
    trial: Trial,
    agent: Agent | None,
    server: Server,
    command: list[str],
    parse: Callable[[str], dict[str, Any]],
    seconds: float,
) -> None:
    """Run the load, look at everything meanwhile, and wait until the agent has drained its ring."""
    if agent is not None:
        # A program that the agent sees for the first time is analysed, once (benchmarks/tls.py measures that): it is no part
        # of what a message costs.
        subprocess.run([command[0], "--help"], capture_output=True, check=False)
        time.sleep(SETTLE_SECONDS)
    agent_before = (host.cpu_us(agent.pid) or 0) if agent else 0
    server_before = host.tree_cpu_us(server.pid)
    machine_before = host.machine()
    begin = time.monotonic()
    load = Load(command)
    try:
        while load.running():
            time.sleep(SAMPLE_SECONDS)
            if agent is not None and (memory := host.memory(agent.pid)) is not None:
                trial.memory_high_kb = max(trial.memory_high_kb, memory.resident)
                if trial.memory_early is None and time.monotonic() - begin > seconds / 3:
                    trial.memory_early = memory
        trial.load = parse(load.output(seconds + 30))
    finally:
        load.kill()
    machine_after = host.machine()
    trial.seconds = time.monotonic() - begin
    trial.server_cpu_us = host.tree_cpu_us(server.pid) - server_before
    in_load = ((host.cpu_us(agent.pid) or 0) - agent_before) if agent else 0
    elsewhere = machine_after.busy - machine_before.busy - in_load - trial.server_cpu_us - load.cpu_us
    trial.elsewhere_percent = 100 * max(0, elsewhere) / (trial.seconds * 1e6)
    trial.stolen_percent = 100 * (machine_after.stolen - machine_before.stolen) / (trial.seconds * 1e6)
    if agent is not None:
        time.sleep(SETTLE_SECONDS)
        if not agent.alive:
            raise ProgramError(f"the agent died: {' / '.join(agent.messages()[-3:])}")
        trial.agent_cpu_us = (host.cpu_us(agent.pid) or 0) - agent_before
        trial.memory_end = host.memory(agent.pid)


class Rounds:
    """Trials of some variants, `rounds` times, in an order that turns."""

    def __init__(
        self,
        setting: Setting,
        title: str,
        variants: list[Variant],
        rounds: int,
        server: Server,
        command: list[str],
        parse: Callable[[str], dict[str, Any]],
        seconds: float,
    ) -> None:
        self.variants = variants
        self.trials: list[Trial] = []
        for number in range(rounds):
            shift = number % len(variants)
            for variant in variants[shift:] + variants[:shift]:
                trial = run_trial(setting, variant, number, server, command, parse, seconds)
                self.trials.append(trial)
                rate = trial.load.get("per_second", 0)
                us = f", agent {trial.us_per_message:.1f} µs/record" if trial.us_per_message else ""
                failed = f", FAILED: {trial.failed}" if trial.failed else ""
                lost = f", lost {trial.row('lost', 'calls')} calls" if trial.row("lost", "calls") else ""
                say(f"  {title}, round {number + 1}, {variant.name}: {rate:,.0f}/s{us}{lost}{failed}")

    def of(self, variant: str) -> list[Trial]:
        """By round."""
        return sorted((trial for trial in self.trials if trial.variant == variant), key=lambda trial: trial.round)

    def spread(self, variant: str, value: Callable[[Trial], float | None]) -> noise.Spread | None:
        return noise.spread(value(trial) for trial in self.of(variant))

    def ratio(self, variant: str, value: Callable[[Trial], float | None]) -> noise.Spread | None:
        """To `off` of the same round."""
        return noise.ratios([value(trial) for trial in self.of(variant)], [value(trial) for trial in self.of(OFF)])
