"""The measures that need the kernel. Each gives a Section; a program that fails is reported in it, not raised."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import host, noise
from benchmarks.noise import Spread, spread, text
from benchmarks.programs import (
    BUILD,
    Agent,
    ProgramError,
    Server,
    echo_server,
    end,
    go_server,
    load_command,
    nginx,
    parse_load,
    parse_wrk,
    wrk_command,
)
from benchmarks.report import Section
from benchmarks.trial import (
    OFF,
    OFF_AGAIN,
    Rounds,
    Setting,
    Trial,
    Variant,
    count_log,
    off_variants,
    running,
    say,
    watch,
)

ALL = "everything logged"
FLOOR = "--comm nosuch"
SERVER = "--pid SERVER"
SERVER_LOG_OFF = "--pid SERVER --no-output"
ALL_LOG_OFF = "everything, --no-output"


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    rounds: int
    fixed_rounds: int
    """Of the fixed rate: what is looked for is a tenth, and a round's noise is more than that."""
    fixed_seconds: int
    saturation_seconds: int
    short_seconds: int
    starts: int
    idle_connections: int
    fixed_rate: int = 2000


QUICK = Plan(
    rounds=1, fixed_rounds=1, fixed_seconds=4, saturation_seconds=3, short_seconds=2, starts=2, idle_connections=2000
)
FULL = Plan(
    rounds=3, fixed_rounds=7, fixed_seconds=8, saturation_seconds=10, short_seconds=4, starts=5, idle_connections=10_000
)


def _percent(value: float) -> str:
    return f"{value:.0f} %"


def trial_notes(trials: list[Trial]) -> list[str]:
    """What disturbed, and what went wrong."""
    notes = []
    elsewhere = spread(trial.elsewhere_percent for trial in trials)
    stolen = spread(trial.stolen_percent for trial in trials)
    if elsewhere is not None and stolen is not None:
        notes.append(
            f"CPU used by nobody of agent, server and client: {elsewhere.text(0)} % of one core; "
            f"stolen by the hypervisor: {stolen.text(1)} %."
        )
    others = [trial for trial in trials if trial.other_agents]
    if others:
        notes.append(f"**Disturbed**: in {len(others)} of {len(trials)} trials another netprofiler was attached.")
    notes += [
        f"**Failed**: {trial.variant}, round {trial.round + 1}: {trial.failed}" for trial in trials if trial.failed
    ]
    errors = [trial for trial in trials if trial.load.get("errors")]
    notes += [
        f"**Client errors**: {trial.variant}, round {trial.round + 1}: {trial.load['errors']} {trial.load.get('error', '')}"
        for trial in errors
    ]
    wrong = [trial for trial in trials if trial.sums is False]
    notes += [f"**The ledger does not sum**: {trial.variant}, round {trial.round + 1}" for trial in wrong]
    warnings = {
        f"{trial.variant}: {warning}" for trial in trials for warning in trial.warnings if "lost:" not in warning
    }
    notes += [f"The agent said, with {warning}" for warning in sorted(warnings)]
    return notes


def lost_of(trials: list[Trial]) -> str:
    calls = sum(trial.row("lost", "calls") for trial in trials)
    if not calls:
        return "0"
    total = sum(trial.total("calls") for trial in trials)
    lost_bytes = sum(trial.row("lost") for trial in trials)
    unsaid = [trial for trial in trials if trial.row("lost") and not any("lost:" in line for line in trial.warnings)]
    return f"{calls:,} calls ({100 * calls / total:.2f} %), {lost_bytes:,} B{', **not said**' if unsaid else ''}"


def memory_of(trials: list[Trial]) -> str:
    """MiB: when a third of the load was over → at its end."""
    pairs = [(t.memory_early, t.memory_end) for t in trials if t.memory_early and t.memory_end]
    if not pairs:
        return "-"
    early = max(first.resident for first, _ in pairs) / 1024
    late = max(last.resident for _, last in pairs) / 1024
    high = max(trial.memory_high_kb for trial in trials) / 1024
    return f"{early:.0f} → {late:.0f} (peak {high:.0f})"


def agent_percent(trial: Trial) -> float | None:
    return None if not trial.seconds or trial.failed else trial.agent_cpu_us / (trial.seconds * 1e4)


def records_of(trials: list[Trial], per_request: int, connections: int) -> str:
    """Records of the server's port, of those that there must have been. A request in flight at the end is nobody's."""
    seen = sum(trial.log.get("to_server", 0) + trial.log.get("from_server", 0) for trial in trials)
    made = sum(trial.requests for trial in trials) * per_request
    if not made:
        return f"{seen:,}"
    slack = connections * per_request * len(trials)
    exact = "all" if made <= seen <= made + slack else f"{100 * seen / made:.2f} %"
    return f"{seen:,} of {made:,}{f'…{made + slack:,}' if slack else ''}: {exact}"


def fixed_rate(setting: Setting, plan: Plan) -> Section:
    with go_server() as server:
        return at_fixed_rate(
            f"{plan.fixed_rate:,} requests/s on the Go server",
            setting,
            plan,
            server,
            (),
            [
                Variant(ALL, ()),
                Variant(SERVER, ("--pid", str(server.pid))),
                Variant(SERVER_LOG_OFF, ("--pid", str(server.pid), "--no-output")),
                Variant(ALL_LOG_OFF, ("--no-output",)),
            ],
        )


def at_fixed_rate(
    title: str, setting: Setting, plan: Plan, server: Server, flags: tuple[str, ...], variants: list[Variant]
) -> Section:
    """`flags`: more for the client."""
    connections = 20
    rate = plan.fixed_rate
    command = load_command(
        "http", server.address, "-rate", str(rate), "-connections", str(connections),
        "-duration", f"{plan.fixed_seconds}s", *flags,
    )  # fmt: skip
    variants = [*off_variants(plan.fixed_rounds), *variants]
    rounds = Rounds(setting, title, variants, plan.fixed_rounds, server, command, parse_load, plan.fixed_seconds)
    section = Section(
        title,
        f"Open loop, {connections} keep-alive connections, {plan.fixed_seconds} s, {plan.fixed_rounds} rounds. Latency from "
        "the client's write to the end of the answer. A record is one message as one process saw it: four an "
        "exchange where both sides are logged. Agent CPU: user and system time from the first request until the "
        "ring is drained, by records written.",
        (
            "", "client p50, µs", "to off", "client p99, µs", "to off", "agent µs a record",
            "agent CPU, % of a core", "server CPU, to off", "records of the server's port", "lost",
        ),
        data=[trial.as_json() for trial in rounds.trials],
    )  # fmt: skip
    for variant in variants:
        trials = rounds.of(variant.name)
        on = variant.arguments is not None
        is_off = variant.name == OFF
        section.rows.append(
            (
                variant.name,
                text(rounds.spread(variant.name, lambda t: t.latency("p50")), 0),
                "1" if is_off else text(rounds.ratio(variant.name, lambda t: t.latency("p50"))),
                text(rounds.spread(variant.name, lambda t: t.latency("p99")), 0),
                "1" if is_off else text(rounds.ratio(variant.name, lambda t: t.latency("p99"))),
                text(rounds.spread(variant.name, lambda t: t.us_per_message), 1) if on else "",
                text(rounds.spread(variant.name, agent_percent), 1) if on else "",
                "1" if is_off else text(rounds.ratio(variant.name, lambda t: float(t.server_cpu_us))),
                records_of(trials, 4 if variant.name == ALL else 2, 0) if on else "",
                lost_of(trials) if on else "",
            )
        )
    off = [trial for trial in rounds.trials if trial.variant == OFF]
    reached = spread(trial.per_second for trial in rounds.trials)
    due = spread(trial.latency("p50", "due_us") for trial in off)
    section.notes = [
        f"Reached: {text(reached, 0)} requests/s. Off, p50 from when a request was due: {text(due, 0)} µs (the timer).",
        *trial_notes(rounds.trials),
    ]
    return section


def throughput(
    title: str,
    intro: str,
    setting: Setting,
    server: Server,
    command: list[str],
    parse: Callable[[str], dict[str, Any]],
    *,
    variants: list[tuple[Variant, int]],
    rounds: int,
    seconds: float,
    connections: int,
) -> Section:
    """`variants`: each with the records that one request should give."""
    everything = [*off_variants(rounds), *(variant for variant, _ in variants)]
    per_request = {variant.name: count for variant, count in variants}
    run = Rounds(setting, title, everything, rounds, server, command, parse, seconds)
    section = Section(
        title,
        f"{intro} {seconds:.0f} s, {rounds} rounds.",
        (
            "", "requests/s", "to off", "agent CPU, % of a core", "µs a record", "records of the server's port",
            "lost", "ledger sums", "agent RSS, MiB", "end, s",
        ),
        data=[trial.as_json() for trial in run.trials],
    )  # fmt: skip
    for variant in everything:
        trials = run.of(variant.name)
        ended = [trial for trial in trials if not trial.failed]
        first = (
            variant.name,
            text(run.spread(variant.name, lambda t: t.per_second), 0),
            "1" if variant.name == OFF else text(run.ratio(variant.name, lambda t: t.per_second)),
        )
        if variant.arguments is None:
            section.rows.append((*first, "", "", "", "", "", "", ""))
            continue
        expected = per_request[variant.name]
        section.rows.append(
            (
                *first,
                text(run.spread(variant.name, agent_percent), 0),
                text(run.spread(variant.name, lambda t: t.us_per_message), 1) if expected else "",
                records_of(ended, expected, connections) if expected else f"{sum(t.written for t in ended)} in all",
                lost_of(ended),
                "yes" if ended and all(trial.sums for trial in ended) else "**no**",
                memory_of(ended),
                text(spread(trial.stop_seconds for trial in ended)),
            )
        )
    section.notes = trial_notes(run.trials)
    return section


def saturation_go(setting: Setting, plan: Plan) -> Section:
    connections = 16
    with go_server() as server:
        return throughput(
            "Saturated: wrk on the Go server",
            f"`wrk -t1 -c{connections}`, GET of some 15 bytes, two cores for client, server and agent together.",
            setting,
            server,
            wrk_command(server.url("/healthz"), plan.saturation_seconds, connections),
            parse_wrk,
            variants=[
                (Variant(ALL, ()), 4),
                (Variant(SERVER, ("--pid", str(server.pid))), 2),
                (Variant(SERVER_LOG_OFF, ("--pid", str(server.pid), "--no-output")), 0),
                (Variant(ALL_LOG_OFF, ("--no-output",)), 0),
                (Variant(FLOOR, ("--comm", "nosuch")), 0),
            ],
            rounds=plan.rounds,
            seconds=plan.saturation_seconds,
            connections=connections,
        )


def saturation_nginx(setting: Setting, plan: Plan) -> Section:
    connections = 16
    with nginx() as server:
        return throughput(
            "Saturated: wrk on nginx, a small static file",
            f"`wrk -t1 -c{connections}`, one worker, 264 bytes by sendfile.",
            setting,
            server,
            wrk_command(server.url("/small"), plan.short_seconds, connections),
            parse_wrk,
            variants=[
                (Variant(ALL, ()), 4),
                (Variant(SERVER, ("--pid", str(server.pid))), 2),
                (Variant(SERVER_LOG_OFF, ("--pid", str(server.pid), "--no-output")), 0),
                (Variant(ALL_LOG_OFF, ("--no-output",)), 0),
                (Variant(FLOOR, ("--comm", "nosuch")), 0),
            ],
            rounds=plan.rounds,
            seconds=plan.short_seconds,
            connections=connections,
        )


def nothing_to_copy(setting: Setting, plan: Plan) -> Section:
    connections = 16
    with echo_server() as server:
        command = load_command(
            "binary", server.address, "-connections", str(connections), "-duration", f"{plan.short_seconds}s"
        )
        return throughput(
            "Nothing to copy: a binary protocol",
            f"A Go client and a Go server, {connections} connections, 128 bytes there and back, one write and one read "
            "at each end: as many calls as an HTTP exchange.",
            setting,
            server,
            command,
            parse_load,
            variants=[(Variant(ALL, ()), 0), (Variant(FLOOR, ("--comm", "nosuch")), 0)],
            rounds=plan.rounds + (plan.rounds > 1),
            seconds=plan.short_seconds,
            connections=connections,
        )


def kernel_side(setting: Setting, plan: Plan) -> Section:
    section = Section(
        "The kernel side alone",
        "Time in our BPF programs, as the kernel measures it (`kernel.bpf_stats_enabled`, whose own cost is in it), by "
        f"requests answered. Saturated, {plan.short_seconds} s each. Calls that are no data (a read that would block, "
        "epoll, futex) run the program too; a request has four calls with data (nginx: five).",
        ("", "", "runs a request", "ns a run", "ns a request"),
        data=[],
    )
    trials: list[Trial] = []
    with go_server() as go, echo_server() as echo, nginx() as static, host.bpf_statistics():
        binary = load_command("binary", echo.address, "-duration", f"{plan.short_seconds}s")
        for name, server, command, parse in (
            ("Go, HTTP", go, wrk_command(go.url("/healthz"), plan.short_seconds, 16), parse_wrk),
            ("Go, binary", echo, binary, parse_load),
            ("nginx, a small file", static, wrk_command(static.url("/small"), plan.short_seconds, 16), parse_wrk),
        ):
            for variant, arguments in ((ALL, ()), (SERVER, ("--pid", str(server.pid))), (FLOOR, ("--comm", "nosuch"))):
                trial = Trial(variant, 0)
                try:
                    with running(setting, arguments) as agent:
                        assert agent is not None
                        trial.other_agents = host.other_agents(agent.pid)
                        before = host.bpf_runs(agent.pid)
                        watch(trial, agent, server, command, parse, plan.short_seconds)
                        after = host.bpf_runs(agent.pid)
                    agent.discard()
                except ProgramError as error:
                    section.notes.append(f"**Failed**: {name}, {variant}: {error}")
                    continue
                trials.append(trial)
                runs, spent = after.runs - before.runs, after.nanoseconds - before.nanoseconds
                requests = max(1, trial.requests)
                each = spent / runs if runs else 0.0
                section.rows.append(
                    (name, variant, f"{runs / requests:.1f}", f"{each:.0f}", f"{spent / requests:,.0f}")
                )
                section.data.append({"load": name, "variant": variant, "runs": runs, "ns": spent, "requests": requests})
                say(f"  kernel side, {name}, {variant}: {each:.0f} ns a run, {spent / requests:,.0f} ns a request")
    section.notes += [
        "The calls of everybody on the host are counted, not those of the load alone.",
        *trial_notes(trials),
    ]
    return section


def connection_per_request(setting: Setting, plan: Plan) -> Section:
    connections = 8
    with go_server() as server:
        command = load_command(
            "http", server.address, "-close", "-connections", str(connections), "-duration", f"{plan.short_seconds}s"
        )
        return throughput(
            "A connection for each request",
            f"A Go client, {connections} at a time, `Connection: close`, on the Go server.",
            setting,
            server,
            command,
            parse_load,
            variants=[(Variant(ALL, ()), 4), (Variant(SERVER, ("--pid", str(server.pid))), 2)],
            rounds=plan.rounds,
            seconds=plan.short_seconds,
            connections=0,
        )


def large_bodies(setting: Setting, plan: Plan) -> list[Section]:
    connections = 4
    sections = []
    for name, intro, make, path in (
        ("1 MiB answers, written", "The Go server, `Content-Length` and write.", go_server, "/bytes/1048576"),
        ("1 MiB answers, sendfile", "nginx, a file of 1 MiB.", nginx, "/large"),
    ):
        with make() as server:
            sections.append(
                throughput(
                    name,
                    f"{intro} `wrk -t1 -c{connections}`.",
                    setting,
                    server,
                    wrk_command(server.url(path), plan.short_seconds, connections),
                    parse_wrk,
                    variants=[(Variant(ALL, ()), 4), (Variant(SERVER, ("--pid", str(server.pid))), 2)],
                    rounds=plan.rounds,
                    seconds=plan.short_seconds,
                    connections=connections,
                )
            )
    return sections


def life(setting: Setting, plan: Plan) -> Section:
    """Start, nothing to do, end."""
    section = Section(
        "Start, idle, end",
        f"{plan.starts} times, with nothing to watch. Start: from exec to the line `ready`; end: from SIGINT until the "
        "process is gone. Idle CPU over two seconds. A first start compiles the programs, a later one has them.",
        ("", "first start", "a later one"),
    )
    first, later = Starts(), Starts()
    for _ in range(plan.starts):
        with tempfile.TemporaryDirectory(prefix="np-") as empty:
            _start(setting, section, first, Path(empty))
        _start(setting, section, later, None)
    both = (first, later)
    section.rows = [
        ("start to `ready`, s", *(text(spread(each.ready)) for each in both)),
        ("SIGINT to exit, s", *(text(spread(each.stop)) for each in both)),
        ("idle CPU, % of a core", *(text(spread(each.idle)) for each in both)),
        ("RSS, MiB", *(text(spread(m.resident / 1024 for m in each.memories), 1) for each in both)),
        ("of it anonymous, MiB", *(text(spread(m.anonymous / 1024 for m in each.memories), 1) for each in both)),
        ("PSS, MiB", *(text(spread(m.proportional / 1024 for m in each.memories), 1) for each in both)),
    ]
    section.data = {"first": asdict(first), "later": asdict(later)}
    return section


@dataclass(slots=True)
class Starts:
    """What some starts of the agent took."""

    ready: list[float] = field(default_factory=list)
    stop: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    memories: list[host.Memory] = field(default_factory=list)


def _start(setting: Setting, section: Section, seen: Starts, cache: Path | None) -> None:
    try:
        agent = Agent(setting.executable, setting.directory, cache=cache)
    except ProgramError as error:
        section.notes.append(f"**Failed**: {error}")
        return
    begin = time.monotonic()
    before = host.cpu_us(agent.pid) or 0
    time.sleep(2)
    seen.idle.append(((host.cpu_us(agent.pid) or 0) - before) / ((time.monotonic() - begin) * 1e4))
    memory = host.memory(agent.pid)
    agent.stop()
    seen.ready.append(agent.ready_seconds)
    seen.stop.append(agent.stop_seconds)
    if memory is not None:
        seen.memories.append(memory)
    if agent.exit_status:
        section.notes.append(f"**Failed**: exit status {agent.exit_status}")
    agent.discard()


def idle_connections(setting: Setting, plan: Plan) -> Section:
    count = plan.idle_connections
    section = Section(
        f"{count:,} keep-alive connections",
        "Opened, then one request on each, twice; client and server are both seen, so there are twice as many sockets. "
        "Anonymous memory is the heap: the ring, which is mapped twice, is not in it.",
        ("", "RSS, MiB", "anonymous, MiB", "PSS, MiB", "bytes a socket (anonymous, since ready)"),
    )
    seen: list[tuple[str, host.Memory]] = []
    agent: Agent | None = None
    failed = ""
    client: subprocess.Popen[str] | None = None
    port = 0
    try:
        with go_server() as server:
            port = server.port
            agent = Agent(setting.executable, setting.directory)

            def look(when: str) -> None:
                assert agent is not None
                time.sleep(0.6)
                memory = host.memory(agent.pid)
                if memory is not None:
                    seen.append((when, memory))

            look("ready")
            client = subprocess.Popen(
                load_command("http", server.address, "-hold", "2", "-connections", str(count)),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert client.stdin is not None
            assert client.stdout is not None
            assert client.stderr is not None
            for when in ("open", "after one request on each", "after two"):
                if not client.stdout.readline():
                    raise ProgramError(client.stderr.read().strip())
                look(when)
                client.stdin.write("\n")
                client.stdin.flush()
            client.wait(20)
            look("closed")
    except (ProgramError, subprocess.TimeoutExpired, OSError) as error:
        failed = str(error)
    finally:
        if client is not None:
            end(client)
        if agent is not None:
            agent.stop()
    base = seen[0][1].anonymous if seen else 0
    for when, memory in seen:
        each = "" if when in ("ready", "closed") else f"{(memory.anonymous - base) * 1024 / (2 * count):,.0f}"
        section.rows.append(
            (
                when,
                f"{memory.resident / 1024:.1f}",
                f"{memory.anonymous / 1024:.1f}",
                f"{memory.proportional / 1024:.1f}",
                each,
            )
        )
    if failed:
        section.notes.append(f"**Failed**: {failed}")
    if agent is not None:
        log = count_log(agent.log, port, [])
        rows = agent.ledger().get("calls", {}).get("rows", {})
        section.notes.append(
            f"Records of these connections: {log['to_server'] + log['from_server']:,} of {8 * count:,}; "
            f"lost {rows.get('lost', '?')} calls; SIGINT to exit {agent.stop_seconds:.2f} s."
        )
        agent.discard()
    section.data = [{"when": when, **asdict(memory)} for when, memory in seen]
    return section


def compare(setting: Setting, plan: Plan) -> Section:
    """tcpdump and strace, where installed, in the same rounds."""
    connections = 16
    capture = BUILD / "compare.pcap"
    with go_server() as server:
        tools: dict[str, list[str] | None] = {
            OFF: None,
            OFF_AGAIN: None,
            "tcpdump -w": ["tcpdump", "-i", "lo", "-w", str(capture), "port", str(server.port)],
            "strace -f": ["strace", "-f", "-qq", "-e", "trace=read,write", "-s", "4096", "-o", "/dev/null", "-p",
                          str(server.pid)],
        }  # fmt: skip
        tools = {name: command for name, command in tools.items() if command is None or shutil.which(command[0])}
        names = [*tools, f"netprofiler, {ALL}", f"netprofiler, {SERVER}"]
        arguments: dict[str, tuple[str, ...]] = {names[-2]: (), names[-1]: ("--pid", str(server.pid))}
        command = wrk_command(server.url("/healthz"), plan.short_seconds, connections)
        results: dict[str, list[float | None]] = {name: [] for name in names}
        notes = []
        for number in range(plan.rounds):
            for name in names:
                trial = Trial(name, number)
                agent: Agent | None = None
                tool: subprocess.Popen[bytes] | None = None
                try:
                    if name in arguments:
                        agent = Agent(setting.executable, setting.directory, arguments[name])
                    elif (tool_command := tools[name]) is not None:
                        tool = subprocess.Popen(
                            tool_command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                        )
                        time.sleep(0.7)
                        if tool.poll() is not None:
                            raise ProgramError(f"{name} ended with status {tool.returncode}")
                    watch(trial, agent, server, command, parse_wrk, plan.short_seconds)
                except ProgramError as error:
                    trial.failed = str(error)
                    notes.append(f"**Failed**: {name}: {error}")
                finally:
                    if tool is not None:
                        end(tool)
                    if agent is not None:
                        agent.stop()
                        agent.discard()
                    capture.unlink(missing_ok=True)
                results[name].append(trial.per_second)
                say(f"  compare, round {number + 1}, {name}: {trial.per_second or 0:,.0f}/s")
    section = Section(
        "For comparison",
        f"`wrk -t1 -c{connections}` on the Go server, {plan.short_seconds} s, {plan.rounds} rounds: other ways to see "
        "the same traffic.",
        ("", "requests/s", "to off"),
        notes=notes,
        data=results,
    )
    for name, values in results.items():
        ratio: Spread | None = noise.ratios(values, results[OFF])
        section.rows.append((name, text(spread(values), 0), "1" if name == OFF else text(ratio)))
    return section


def make_setting(executable: str) -> Setting:
    directory = BUILD / "agent"
    directory.mkdir(parents=True, exist_ok=True)
    return Setting(str(Path(executable)), directory)
