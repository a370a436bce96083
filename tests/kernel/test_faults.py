"""What goes wrong around the agent, brought about on purpose: what happens is what docs/reliability.md promises, and the ledger sums."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netprofiler.sources import bpf
from tests.kernel.harness import Agent, Calls, Record, check_ledger, end_process, give, running, seconds_of, wait_until
from tests.real.harness.wire import Listener

pytestmark = pytest.mark.kernel

STOPPED_SECONDS = float(os.environ.get("NETPROFILER_STOPPED_SECONDS", "3"))
"""Of SIGSTOP: a minute in the nightly form (docs/reliability.md)."""
KILLS = int(os.environ.get("NETPROFILER_KILLS", "4"))
"""Of SIGKILL: fifty in `make soak`."""
RECORDS_OF_AN_EXCHANGE = 4
"""Both ends are here: each writes a request and a response."""


class Load:
    """Exchanges over kept connections, in a thread; how many is known exactly."""

    def __init__(self, pause_seconds: float = 0.03) -> None:
        self.listener = Listener()
        self.done = 0
        self._pause_seconds = pause_seconds
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)
        self._body = b"x" * 500

    @property
    def port(self) -> str:
        return str(self.listener.port)

    def exchanges(self, count: int) -> None:
        """So many, here and now."""
        with self.listener.wire() as wire:
            for _ in range(count):
                wire.exchange(
                    b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n" % self.done + self._body,
                    b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + self._body,
                )
                self.done += 1

    def goes_on(self, exchanges: int = 20) -> bool:
        """Whether so many more are done."""
        until = self.done + exchanges
        return wait_until(lambda: self.done >= until, 10)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.exchanges(20)
                time.sleep(
                    self._pause_seconds
                )  # some hundred exchanges a second: what the agent can do on a busy machine, too
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self._errors.append(error)

    def __enter__(self) -> Load:
        return self

    def begin(self) -> None:
        """When the agent is ready: what is done from here on is what it must have seen."""
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        assert not self._errors, self._errors

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.listener.close()


@contextmanager
def small_disk(path: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of its own."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k,mode=0700", "tmpfs", path], check=True)
    give(path)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@contextmanager
def control_group(controller: str, **limits: str) -> Iterator[Path]:
    """Of version 1, which mounts each controller by itself, or 2."""
    root = Path("/sys/fs/cgroup") / controller
    group = (root if root.is_dir() else root.parent) / f"netprofiler-test-{os.getpid()}"
    group.mkdir()
    try:
        for name, value in limits.items():
            file = group / name.replace("__", ".")
            if file.exists():
                file.write_text(value)
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(pid)
        wait_until(lambda: _removed(group), 5)


def _removed(group: Path) -> bool:
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


def lines(path: Path) -> list[Record]:
    """All of a log; each line is whole, or this fails."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def book(agent: Agent) -> dict[str, int]:
    rows: dict[str, int] = agent.ledger()["records"]["rows"]
    return rows


def finish(agent: Agent, *, lossless: bool) -> dict[str, Any]:
    assert agent.end(seconds=20) == 0, agent.stderr()
    assert "Traceback" not in agent.stderr(), agent.stderr()
    ledger = agent.ledger()
    check_ledger(ledger, lossless=lossless)
    return ledger


# ---- the output ----


def test_a_full_disk_loses_what_the_ledger_says_and_recording_resumes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk, Load() as load:
        log = disk / "http.log"
        ledger = tmp_path / "ledger.json"
        options = ("--output", str(log), "--ledger", str(ledger), "--port", load.port)
        with running(tmp_path, *options, own_output=False) as agent:
            load.begin()
            assert wait_until(lambda: "No space left" in agent.stderr(), 20), agent.stderr()
            full_at = log.stat().st_size
            assert log.read_bytes().endswith(b"\n")
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            assert wait_until(lambda: log.stat().st_size > full_at + 50_000, 20), agent.stderr()
            load.end()
            ledger_of = finish(agent, lossless=False)
        records = lines(log)
        rows = ledger_of["records"]["rows"]
        assert rows["written"] == len(records)
        assert rows["output_failed"] > 0
        assert ledger_of["records"]["made"] == RECORDS_OF_AN_EXCHANGE * load.done
        assert agent.stderr().count("No space left") < 5, "it is said once, not with each record"
        assert "is written again" in agent.stderr()
        assert ledger_of["bytes"]["rows"]["lost"] == 0


def test_an_output_with_errors_is_survived(tmp_path: Path) -> None:
    """EIO: a terminal that has hung up."""
    leader, follower = os.openpty()
    name = os.ttyname(follower)
    give(Path(name))
    with Load() as load:
        options = ("--output", name, "--ledger", str(tmp_path / "ledger.json"), "--port", load.port)
        with running(tmp_path, *options, own_output=False) as agent:
            load.begin()
            os.close(leader)
            assert wait_until(lambda: "Input/output error" in agent.stderr(), 20), agent.stderr()
            os.close(follower)
            load.end()
            ledger = finish(agent, lossless=False)
    assert ledger["records"]["made"] == RECORDS_OF_AN_EXCHANGE * load.done
    assert ledger["records"]["rows"]["output_failed"] > 0
    assert agent.stderr().count("Input/output error") == 1


def test_an_output_that_is_removed_or_rotated_goes_on(tmp_path: Path) -> None:
    with Load() as load, running(tmp_path, "--port", load.port) as agent:
        load.begin()
        wait_until(lambda: agent.log.exists() and agent.log.stat().st_size > 0, 10)
        moved = tmp_path / "http.log.1"
        agent.log.rename(moved)
        agent.process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: agent.log.exists() and agent.log.stat().st_size > 0, 10), agent.stderr()
        kept = tmp_path / "kept"
        agent.log.rename(kept)
        os.link(kept, agent.log)
        agent.log.unlink()
        kept_before = lines(kept)
        kept.unlink()  # removed for good: what is in it is gone
        assert wait_until(lambda: agent.log.exists() and agent.log.stat().st_size > 0, 10), agent.stderr()
        load.end()
        ledger = finish(agent, lossless=True)
        assert "removed" in agent.stderr()
        assert ledger["records"]["rows"]["written"] == RECORDS_OF_AN_EXCHANGE * load.done
        assert len(lines(moved)) + len(kept_before) + len(lines(agent.log)) <= RECORDS_OF_AN_EXCHANGE * load.done
        assert kept_before and lines(moved)


def test_rotation_inside_of_the_agent_loses_nothing(tmp_path: Path) -> None:
    options = ("--rotate-size", "256K", "--rotate-keep", "1000", "--rotate-compression", "none")
    with Load() as load, running(tmp_path, "--port", load.port, *options) as agent:
        load.begin()
        assert wait_until((tmp_path / "http.log.3").exists, 30), agent.stderr()
        load.end()
        finish(agent, lossless=True)
    files = [agent.log, *tmp_path.glob("http.log.*")]
    assert all(file.stat().st_size <= 256 * 1024 for file in files)
    seen = [record["url"] for file in files for record in lines(file) if "url" in record]
    assert len(seen) == 2 * load.done
    assert set(seen) == {f"/{number}" for number in range(load.done)}


# ---- the agent itself ----


def test_stopped_and_continued(tmp_path: Path) -> None:
    """SIGSTOP: what fits into the ring is there afterwards, the rest is in the ledger."""
    with Load(0) as load, running(tmp_path, "--port", load.port) as agent:
        load.begin()
        agent.process.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        agent.process.send_signal(signal.SIGCONT)
        load.end()
        ledger = finish(agent, lossless=False)
    rows = ledger["bytes"]["rows"]
    assert rows["recorded"] > 0
    whole = [record for record in lines(agent.log) if record["completeness"] == "complete"]
    if rows["lost"]:
        assert "ring was full" in agent.stderr()
    else:
        assert len(whole) == RECORDS_OF_AN_EXCHANGE * load.done
    for record in whole:
        assert record["body_bytes"] == 500


def test_a_full_ring_is_in_the_ledger_and_no_pair_is_wrong(tmp_path: Path) -> None:
    with Load() as load, running(tmp_path, "--port", load.port) as agent:
        agent.process.send_signal(signal.SIGSTOP)
        with load.listener.wire() as wire:
            for number in range(600):  # 64 MiB: more than any ring
                wire.exchange(
                    b"GET /big/%d HTTP/1.1\r\nHost: a\r\n\r\n" % number,
                    b"HTTP/1.1 200 OK\r\nX-N: %d\r\nContent-Length: 100000\r\n\r\n" % number + b"y" * 100_000,
                )
        agent.process.send_signal(signal.SIGCONT)
        ledger = finish(agent, lossless=False)
    rows = ledger["bytes"]["rows"]
    assert rows["lost"] + rows["over_limit"] + rows["gap"] > 0
    requests = {(r["pid"], r["role"], r["exchange"]): r["url"] for r in lines(agent.log) if "url" in r}
    checked = 0
    for record in lines(agent.log):
        number = record.get("headers", {}).get("X-N")
        url = requests.get((record["pid"], record["role"], record["exchange"]))
        if number is not None and url is not None:
            assert url == f"/big/{number}"
            checked += 1
    assert checked > 0


def test_little_memory_and_little_time(tmp_path: Path) -> None:
    """A control group's limits: 192 MiB, and a twentieth of a processor."""
    with (
        control_group("memory", memory__limit_in_bytes="192M", memory__max="192M") as memory,
        control_group("cpu", cpu__cfs_period_us="100000", cpu__cfs_quota_us="5000") as cpu,
        Load() as load,
        running(tmp_path, "--port", load.port) as agent,
    ):
        load.begin()
        for group in (memory, cpu):
            (group / "cgroup.procs").write_text(str(agent.pid))
        time.sleep(2)
        load.end()
        (cpu.parent / "cgroup.procs").write_text(str(agent.pid))  # it may end in time
        finish(agent, lossless=False)
    assert lines(agent.log)


def test_a_second_agent_writes_the_same_and_not_into_the_same_file(tmp_path: Path) -> None:
    with Load() as load:
        options = ("--port", load.port)
        with running(tmp_path / "a", *options) as first, running(tmp_path / "b", *options) as second:
            load.begin()
            refused = Agent(tmp_path / "c", *options, "--output", str(first.log), own_output=False)
            assert refused.process.wait(20) == 2
            assert "another netprofiler" in refused.stderr()
            assert load.goes_on(100)
            load.end()
            finish(first, lossless=True)
            finish(second, lossless=True)
        urls = [sorted(r["url"] for r in lines(agent.log) if "url" in r) for agent in (first, second)]
        assert len(urls[0]) == 2 * load.done
        assert urls[0] == urls[1]


_BY_ID = {"prog_id": 13, "map_id": 14, "link_id": 30}
"""Of BPF objects: the key of /proc/PID/fdinfo, and the command of bpf(2) that opens one by its id (<linux/bpf.h>)."""


def bpf_objects(pid: int) -> set[tuple[str, int]]:
    """Programs, maps and links that the process holds, by id."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            for line in entry.read_text().splitlines():
                key, _, value = line.partition(":")
                if key in _BY_ID and (key == "link_id" or "link_type" not in entry.read_text()):
                    found.add((key, int(value)))
    return found


def are_gone(objects: set[tuple[str, int]]) -> bool:
    for kind, number in objects:
        with contextlib.suppress(FileNotFoundError):
            os.close(bpf._bpf(_BY_ID[kind], number.to_bytes(4, "little")))
            return False
    return True


def check_kills(directory: Path, kills: int) -> None:
    """SIGKILL under load, at any moment, the start included: targets go on, nothing stays in the kernel, the log is mended, and
    nothing is in it twice.
    """
    moments = random.Random(5)
    mended = 0
    with Load() as load:
        load.begin()
        for turn in range(kills):
            agent = Agent(directory, "--port", load.port)
            try:
                if turn % 5:
                    agent.wait_ready()
                time.sleep(moments.uniform(0.05, 0.8))
                if turn % 2:
                    agent.process.send_signal(signal.SIGSTOP)  # what it holds is then what it held when it was killed
                held = bpf_objects(agent.pid)
                agent.process.kill()
                agent.process.wait(10)
            finally:
                agent.kill()
            assert not turn % 5 or {kind for kind, _ in held} == set(_BY_ID), held
            mended += "last line was not whole" in agent.stderr()
            if turn % 3 == 0:  # what a write that was interrupted leaves behind
                with agent.log.open("ab") as log:
                    log.write(b'{"timestamp":"2026-11-21T04:18:24.1')
                give(agent.log)
            assert load.goes_on(), "the target does not go on"
            assert wait_until(functools.partial(are_gone, held), 20), "objects are left"
        with running(directory, "--port", load.port) as agent:
            mended += "last line was not whole" in agent.stderr()
            assert load.goes_on(100)
            load.end()
            finish(agent, lossless=True)
    assert mended == len(range(0, kills, 3)), "each broken line is cut off by the next start"
    records = lines(agent.log)
    keys = Counter((r["pid"], r["role"], r["direction"], r["connection"], r["hop"], r.get("url")) for r in records)
    assert max(keys.values()) == 1, "a record is there twice"
    assert len(records) > kills


def test_killed_at_any_moment_and_started_again(tmp_path: Path) -> None:
    check_kills(tmp_path, KILLS)


# ---- the clock, and the kernel's maps ----


def test_a_clock_that_is_set_is_followed(tmp_path: Path) -> None:
    """An hour ahead, then two days back: times follow within two seconds, durations do not. A machine that was suspended is the
    same: the monotonic clock, by which all is measured, stands still meanwhile, and the wall clock has gone on.
    """
    library = tmp_path / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(source)], check=True)
    clock = tmp_path / "offset"
    clock.write_text("0")
    environment = {"LD_PRELOAD": str(library), "NETPROFILER_TEST_CLOCK": str(clock)}
    offsets = (0, 3600, -172_800)
    done = []
    with Load() as load, running(tmp_path, "--port", load.port, environment=environment) as agent:
        for offset in offsets:
            clock.with_suffix(".new").write_text(str(offset * 10**9))
            clock.with_suffix(".new").rename(clock)
            time.sleep(3)
            begun = time.time() + offset
            load.exchanges(20)
            done.append((load.done, begun, time.time() + offset))
        finish(agent, lossless=True)
    records = lines(agent.log)
    assert len(records) == RECORDS_OF_AN_EXCHANGE * load.done
    at = 0
    for count, begun, ended in done:
        for record in records[at : RECORDS_OF_AN_EXCHANGE * count]:
            assert begun - 0.1 < seconds_of(record["timestamp"]) < ended + 0.1, record
            assert 0 <= record.get("duration_ms", 0) < 10_000, record
        at = RECORDS_OF_AN_EXCHANGE * count


_SMALL = """
import sys
from netprofiler import pipeline
from netprofiler.sources import kernel
kernel.CONNECTIONS_MAX = kernel.PROCESSES_MAX = 256
pipeline.CONNECTIONS_MAX = 256
from netprofiler.cli import main
sys.exit(main())
"""


def test_more_connections_than_the_maps_hold(tmp_path: Path) -> None:
    """Each is found again at its next message, however long it was forgotten: nothing is lost, and nobody gets another's answer."""
    connections, rounds = 400, 3
    program = (sys.executable, "-c", _SMALL)
    with Load() as load, contextlib.ExitStack() as opened:
        with running(tmp_path, "--port", load.port, program=program) as agent:
            wires = [opened.enter_context(load.listener.wire()) for _ in range(connections)]
            for turn in range(rounds):
                for number, wire in enumerate(wires):
                    wire.exchange(
                        b"GET /%d/%d HTTP/1.1\r\nHost: a\r\n\r\n" % (turn, number),
                        b"HTTP/1.1 200 OK\r\nX-N: /%d/%d\r\nContent-Length: 2\r\n\r\nok" % (turn, number),
                    )
            finish(agent, lossless=True)
    records = lines(agent.log)
    urls = Counter(record["url"] for record in records if "url" in record)
    answers = Counter(record["headers"]["X-N"] for record in records if "status_code" in record)
    assert urls == answers == {f"/{turn}/{number}": 2 for turn in range(rounds) for number in range(connections)}
    asked: dict[tuple[str, str, str], str] = {}
    paired = 0
    for record in records:
        exchange = (record["connection"], record["role"], record["exchange"])  # numbered from 1 when it is found again
        if "url" in record:
            asked[exchange] = record["url"]
        elif "duration_ms" in record:
            assert asked[exchange] == record["headers"]["X-N"]
            paired += 1
    assert paired >= 2 * connections


# ---- the targets ----

_HALF = """
import socket, sys, os, signal
ends = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
ends.sendall(b"POST /half HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: 100\\r\\n\\r\\nhalf of it")
os.kill(os.getpid(), signal.SIGKILL)
"""
_ONE = """
import os, socket, sys
with open("/proc/sys/kernel/ns_last_pid", "w") as last:
    last.write(str(int(sys.argv[2]) - 1))
child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    print(child, flush=True)
    sys.exit(os.waitstatus_to_exitcode(status))
program = f'exec 3<>/dev/tcp/127.0.0.1/{sys.argv[1]}; printf "GET /{sys.argv[3]} HTTP/1.1\\\\r\\\\nHost: a\\\\r\\\\n\\\\r\\\\n" >&3; read -t 5 line <&3; : {sys.argv[3]}'
os.execv("/bin/bash", ["bash", "-c", program])
"""


def test_a_target_that_dies_in_the_middle_of_a_message(tmp_path: Path) -> None:
    with Load() as load, running(tmp_path, "--port", load.port) as agent:
        with subprocess.Popen([sys.executable, "-c", _HALF, load.port]) as dying:
            connection, _ = load.listener._socket.accept()
            with connection, contextlib.suppress(ConnectionResetError):
                while connection.recv(1000):
                    pass
            dying.wait(10)
        found = agent.wait_for([dying.pid], 1)
        ledger = finish(agent, lossless=False)
    [record] = found
    assert (record["url"], record["completeness"], record["body"]) == ("/half", "partial", "half of it")
    assert ledger["bytes"]["rows"]["lost"] == 0


def test_a_pid_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    with Load() as load, running(tmp_path, "--port", load.port) as agent:
        pids: list[int] = []
        pid_max = int(Path("/proc/sys/kernel/pid_max").read_text())
        for name in ("first", "second"):
            target = str(pids[0]) if pids else str((os.getpid() + pid_max // 2) % pid_max or 1000)
            for _ in range(20):  # somebody else may have taken it
                with subprocess.Popen(
                    [sys.executable, "-c", _ONE, load.port, target, name], stdout=subprocess.PIPE, text=True
                ) as asking:
                    connection, _ = load.listener._socket.accept()
                    with connection:
                        connection.recv(1000)
                        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                        told, _ = asking.communicate(timeout=10)
                pid = int(told)
                if not pids or pid == pids[0]:
                    pids.append(pid)
                    break
        assert len(set(pids)) == 1 and len(pids) == 2, f"the kernel did not give the pid again: {pids}"
        found = agent.wait_for(pids, 4)
        finish(agent, lossless=True)
    for record in found:
        if "url" in record:
            assert record["cmdline"].endswith(f": {record['url'][1:]}"), record
    assert {record["url"] for record in found if "url" in record} >= {"/first", "/second"}


def test_a_storm_of_processes(tmp_path: Path, calls: Calls) -> None:
    """Two thousand that come and go, some of which speak HTTP: what speaks is there, memory does not grow with them."""
    storm = subprocess.Popen(
        [
            "/bin/sh",
            "-c",
            "i=0; while [ $i -lt 2000 ]; do /bin/true & i=$((i+1)); [ $((i % 50)) = 0 ] && wait; done; wait",
        ]
    )
    try:
        with running(tmp_path) as agent:
            before = anonymous_kib(agent.pid)
            runs = [calls.run(["--target", f"/storm/{number}", "--requests", "2"]) for number in range(10)]
            storm.wait(60)
            pids = [pid for run in runs for pid in run.pids]
            found = agent.wait_for(pids, 80)
            grown = anonymous_kib(agent.pid) - before
            finish(agent, lossless=True)
    finally:
        end_process(storm)
    assert sorted({record["url"] for record in found if "url" in record}) == [f"/storm/{n}" for n in range(10)]
    assert len(found) == 80
    assert grown < 32 * 1024, f"{grown} KiB more"


def anonymous_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0])
