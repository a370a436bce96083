"""TLS programs that come and go, and an agent that is killed: what the agent holds stays flat, and what it leaves is nothing.

tests/real/long_churn.py (`make test-churn`) has the same churn for ten minutes.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import statistics
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from netprofiler.sources import kernel
from netprofiler.sources.discovery import LINGER_NS
from tests.real.harness import go_programs
from tests.real.harness.agent import NETPROFILER, Agent
from tests.real.harness.checks import assert_equal_to_truth
from tests.real.harness.go_lab import GoLab, address_of, exchange, write_plan
from tests.real.harness.programs import Program, require, wait_until
from tests.real.harness.text import breakpoints, is_probed, orphans
from tests.real.harness.truth import Ask, Truth, app_plan, from_json_log, pattern

pytestmark = pytest.mark.real

SECONDS = 32.0
PER_SECOND = 25
FRESH_EVERY = 40
"""One of so many processes is a Go program of a file that was not there before."""
TRACEPOINTS = len(kernel.TRACEPOINTS | kernel.SOCKET_TRACEPOINTS)
SAMPLE_SECONDS = 1.0
LINGER_SECONDS = LINGER_NS / 1e9
"""So long the agent keeps the probes in a file that nobody runs any more."""
MOST_UNDER_WAY = 6
"""Links and descriptors besides: of programs that are just starting or ending."""
FIRST_GROWTH_BYTES = 12 * 1024 * 1024
"""Of anonymous memory, while caches fill. In a short run nothing more can be said."""
LATER_GROWTH_BYTES = 2 * 1024 * 1024
"""From the second quarter of a long run to its last: Python's heap has steps of 1 MiB."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the agent holds."""

    seconds: float
    """Since the first process."""
    descriptors: int
    links: int
    anonymous_bytes: int


def sample(agent: Agent, seconds: float) -> Sample:
    links = 0
    directory = Path(f"/proc/{agent.pid}/fdinfo")
    names = [entry.name for entry in directory.iterdir()]
    for name in names:
        try:
            links += "link_type:" in (directory / name).read_text()
        except (FileNotFoundError, ProcessLookupError):  # closed meanwhile
            continue
    return Sample(seconds, len(names), links, agent.rss_bytes())


def has_settled(agent: Agent) -> bool:
    """It was seen to attach more than the server's probes, and for a second has attached nothing."""
    first = sample(agent, 0).links
    time.sleep(1)
    return sample(agent, 0).links == first > TRACEPOINTS + 1


@contextmanager
def tls_server(binary: Path, directory: Path) -> Iterator[Program]:
    with Program([binary, "server", "-listen", "tcp:127.0.0.1:0"], directory, name="server") as server:
        wait_until(lambda: "listening" in server.errors.read_text(), "the server listens")
        yield server


@pytest.mark.timeout(180)
def test_processes_that_come_and_go(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_churn(directory, capsys, SECONDS)


def check_churn(directory: Path, capsys: pytest.CaptureFixture[str], seconds: float) -> None:
    binary = go_programs.build(go_programs.CHOSEN[-1], "plain")
    [curl] = require("curl")
    body = pattern(13, "/bytes/13")
    # By pid, of which a machine has some 32,000: in ten minutes they come around.
    curls: defaultdict[int, set[str]] = defaultdict(set)
    asked_by_curl: list[str] = []
    go_clients: set[int] = set()
    running: list[tuple[subprocess.Popen[bytes], Path | None]] = []
    samples: list[Sample] = []
    targets: list[str] = []
    plan = write_plan(directory, [Ask("GET", "/bytes/13?go", 200, body)])

    def reap(wait: bool) -> None:
        for entry in list(running):
            process, copy = entry
            if wait:
                process.wait(20)
            if process.poll() is not None:
                assert process.returncode == 0, f"{process.args!r} exited {process.returncode}"
                running.remove(entry)
                if copy is not None:
                    copy.unlink()

    with tls_server(binary, directory) as server, Agent(directory, "--pid", str(os.getpid())) as agent:
        wait_until(lambda: is_probed(server.pid, binary, agent.pid), "the server is probed")
        address = address_of(server)
        # Once a watched process has a child, everything is probed, whoever uses it.
        subprocess.run(["true"], check=True, timeout=10)
        wait_until(lambda: has_settled(agent), "everything is probed")
        before = sample(agent, 0)
        begin = time.monotonic()
        for number in itertools.count():
            due = begin + number / PER_SECOND
            if due > begin + seconds:
                break
            time.sleep(max(0.0, due - time.monotonic()))
            copy = None
            if number % FRESH_EVERY:
                target = f"/bytes/13?curl={number}"
                args = [curl, "-sk", "-o", "/dev/null", f"https://{address.removeprefix('tcp:')}{target}"]
            else:
                copy = directory / f"copy-{number}"
                shutil.copy(binary, copy)
                target = "/bytes/13?go"
                args = [str(copy), "client", "-connect", address, "-plan", str(plan)]
            process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            running.append((process, copy))
            targets.append(target)
            if copy is None:
                curls[process.pid].add(target)
                asked_by_curl.append(target)
            else:
                go_clients.add(process.pid)
            reap(wait=False)
            if number % int(PER_SECOND * SAMPLE_SECONDS) == 0:
                samples.append(sample(agent, time.monotonic() - begin))
        reap(wait=True)
        late = time.monotonic() - begin - seconds
        assert late < 2, f"the programs did not keep up: {late:.1f} s late"
        server_told = server.truth(len(targets))
        agent.wait_for_records(2 * len(targets) + 2 * len(asked_by_curl), seconds=10)
        if seconds > 4 * LINGER_SECONDS:
            time.sleep(LINGER_SECONDS + 5)
        after = sample(agent, time.monotonic() - begin)
        server_pid = server.pid

    assert Counter(t.target for t in server_told) == Counter(targets)
    truth = [Truth("GET", target, 200, len(body), 0, body.decode()) for target in targets]
    assert_equal_to_truth(agent.records, truth, "server", pids={server_pid})
    by_curl = [Truth("GET", target, 200, len(body), 0, body.decode()) for target in asked_by_curl]
    at_curl = assert_equal_to_truth(agent.records, by_curl, "client", pids=curls)
    assert all(e.request["url"] in curls[e.request["pid"]] for e in at_curl), "the request of another curl"
    # Of a file that nobody has seen before, a program of a few milliseconds may be missed; what is there is right.
    by_go = [r for r in agent.records if r["pid"] in go_clients]
    assert all(
        r.get("url", "/bytes/13?go") in {"/bytes/13?go", *curls[r["pid"]]}
        and r.get("body", body.decode()) == body.decode()
        for r in by_go
    )
    with capsys.disabled():
        print(
            f"\n{len(targets)} processes, {len(go_clients)} of new files; before {before}, at the end of it {samples[-1]}, after {after}"
        )
    check_bounds(before, [*samples, after], seconds)
    if seconds > 4 * LINGER_SECONDS:
        check_flat(before, samples, after)


def check_bounds(before: Sample, samples: list[Sample], seconds: float) -> None:
    """Whatever the agent holds more than before is of files that were in use a moment ago."""
    for one in samples:
        begun = min(one.seconds, seconds) - max(0.0, one.seconds - LINGER_SECONDS)
        recent = max(0.0, begun) * PER_SECOND / FRESH_EVERY + MOST_UNDER_WAY
        assert one.links <= before.links + recent, f"{one} with at most {recent:.0f} new files, before: {before}"
        assert one.descriptors <= before.descriptors + 2 * recent, f"{one}, before: {before}"
        assert one.anonymous_bytes < before.anonymous_bytes + FIRST_GROWTH_BYTES, f"{one}, before: {before}"


def check_flat(before: Sample, samples: list[Sample], after: Sample) -> None:
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    assert max(s.descriptors for s in late) <= min(s.descriptors for s in early) + 2 * MOST_UNDER_WAY
    assert max(s.links for s in late) <= min(s.links for s in early) + MOST_UNDER_WAY
    growth = statistics.median(s.anonymous_bytes for s in late) - statistics.median(s.anonymous_bytes for s in early)
    assert growth < LATER_GROWTH_BYTES, f"memory grew by {growth / 1024:.0f} KiB from the second quarter to the last"
    assert after.links <= before.links, f"links of files that nobody uses: {after}, before: {before}"
    assert after.descriptors <= before.descriptors + 1, f"{after}, before: {before}"


@pytest.mark.timeout(180)
def test_killed_under_full_load(directory: Path) -> None:
    """Go as server, OpenSSL as client (wrk), both probed: SIGKILL harms neither, leaves nothing, and another agent takes over."""
    binary = go_programs.build(go_programs.CHOSEN[-1], "plain")
    [wrk] = require("wrk")
    log = directory / "killed.log"
    with tls_server(binary, directory) as server:
        url = f"https://{address_of(server).removeprefix('tcp:')}/bytes/13?load"
        load = subprocess.Popen(
            [wrk, "-t1", "-c16", "-d60s", url], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        try:
            killed = subprocess.Popen(
                [str(NETPROFILER), "--output", str(log), "--pid", str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                wait_until(lambda: is_probed(server.pid, binary, killed.pid), "the server is probed")
                probed = [server.pid, load.pid]
                wait_until(lambda: all(breakpoints(pid) for pid in probed), "server and client are probed")
                wait_until(lambda: log.exists() and log.stat().st_size > 1_000_000, "the load is seen")
            finally:
                killed.kill()
                killed.wait(10)
            # The kernel takes the probes away when the last descriptor is closed, which the dead process's exit does.
            wait_until(lambda: not any(orphans(pid) for pid in probed), "no probe is left", seconds=2)
            time.sleep(1)
            load.send_signal(signal.SIGINT)  # it prints what it has done
            output, _ = load.communicate(timeout=30)
        finally:
            load.kill()
            load.wait()
        answered = re.search(r"(\d+) requests in", output)
        assert answered is not None and int(answered[1]) > 1000, output
        assert "Socket errors" not in output and "Non-2xx" not in output, output
        told = Counter((t.target, t.status, t.response_bytes) for t in from_json_log(server.log.read_text()))
        assert set(told) == {("/bytes/13?load", 200, 13)}
        # What was under way when wrk stopped was answered, or was not: one on each connection.
        assert int(answered[1]) <= told.total() <= int(answered[1]) + 16
    with GoLab(directory) as lab:
        exchange(lab, directory, app_plan(), binary)
