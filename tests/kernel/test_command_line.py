"""What scripts rely on: exit statuses, signals, files, messages."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.harness import (
    ARRIVAL_SECONDS,
    NETPROFILER,
    READY_SECONDS,
    Agent,
    Calls,
    check_ledger,
    check_run,
    end_process,
    give,
    run_agent,
    running,
    sides,
    wait_until,
)

pytestmark = pytest.mark.kernel

UNPRIVILEGED = [
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    # the interpreter may lie where only root can look (/root/.pyenv): reading is allowed, nothing else
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
]


def loaded(kind: str) -> set[int]:
    """Ids of all the programs (or links, maps) in the kernel now."""
    command = ["bpftool", "-j", kind, "show"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return {entry["id"] for entry in json.loads(listed.stdout or "[]") or []}


def held(pid: int) -> dict[str, set[int]]:
    """Ids of what this process holds; others may use BPF at the same time."""
    ids: dict[str, set[int]] = {"prog": set(), "link": set(), "map": set()}
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        for kind, found in ids.items():
            if f"{kind}_id" in fields:
                found.add(int(fields[f"{kind}_id"]))
    assert ids["prog"], "nothing loaded"
    assert ids["prog"] <= loaded("prog")
    return ids


def left_behind(ids: dict[str, set[int]]) -> dict[str, set[int]]:
    """What of these is still there, given a moment: the kernel frees a little later. Looking opens each map, and a prog array
    that is opened and closed while the kernel is about to clear it is never freed (kernel/bpf/arraymap.c,
    prog_array_map_clear): so the first look is after that.
    """
    time.sleep(0.5)
    remains: dict[str, set[int]] = {}

    def gone() -> bool:
        nonlocal remains
        remains = {kind: left for kind, own in ids.items() if (left := own & loaded(kind))}
        return not remains

    wait_until(gone, 5, 0.5)
    return remains


def one_message(stderr: str) -> str:
    """The only line; no traceback."""
    assert "Traceback" not in stderr, stderr
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert len(lines) == 1, stderr
    return lines[0]


# ---- start and end ----


def test_ready_and_interrupt(tmp_path: Path, calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path) as agent:
        own = held(agent.pid)
        run = calls.run(["--target", "/interrupt", "--requests", "23"])
        started = time.monotonic()
        assert agent.end(signal.SIGINT) == 0, agent.stderr()
        ended = time.monotonic() - started
        with capsys.disabled():
            print(f"\n[ready after {agent.ready_seconds:.2f} s, ended {ended:.2f} s after SIGINT]", end=" ")
        assert agent.ready_seconds < 5
        assert ended < 3
        # sent just before the signal: drained, not dropped
        check_run(agent.of(run.pids), run)
        check_ledger(agent.ledger(), bytes_at_least=run.stream_bytes)
        assert not left_behind(own)
    stderr = agent.stderr()
    assert "Traceback" not in stderr
    assert len([line for line in stderr.splitlines() if line.startswith("ready")]) == 1
    after_ready = stderr[stderr.index("ready") :]
    assert "bytes" in after_ready, "the ledger on standard error"
    assert "recorded" in after_ready


def test_terminate(tmp_path: Path, calls: Calls) -> None:
    with running(tmp_path) as agent:
        own = held(agent.pid)
        run = calls.run(["--target", "/terminate"])
        assert agent.end(signal.SIGTERM) == 0, agent.stderr()
        check_run(agent.of(run.pids), run)
        check_ledger(agent.ledger(), bytes_at_least=run.stream_bytes)
    assert "recorded" in agent.stderr()
    assert not left_behind(own)


def test_kill_leaves_no_program(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        own = held(agent.pid)
        agent.process.kill()
        assert agent.process.wait(5) == -signal.SIGKILL
    # not the maps: the kernel (6.18) keeps a prog_array of 320 bytes whose owner was killed
    assert not left_behind({"prog": own["prog"], "link": own["link"]})


def test_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        agent.process.send_signal(signal.SIGINT)
        agent.process.send_signal(signal.SIGINT)
        agent.process.wait(2)
    assert "Traceback" not in agent.stderr()


def test_interrupt_before_ready(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    try:
        wait_until(lambda: False, 0.4)
        status = agent.end(signal.SIGINT, 20)
    finally:
        agent.kill()
    assert status in {0, 130, -signal.SIGINT}, agent.stderr()
    assert "Traceback" not in agent.stderr()


@contextmanager
def notified(directory: Path) -> Iterator[tuple[dict[str, str], Callable[[float], list[str]]]]:
    """What systemd does for Type=notify: an environment for the agent, and all that it has said within so many seconds."""
    path = directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        give(path)

        def said(seconds: float) -> list[str]:
            found = []
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                listener.settimeout(left)
                with contextlib.suppress(TimeoutError):
                    found.append(listener.recv(4096).decode())
            return found

        yield {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "30000000"}, said


def test_systemd_is_told_that_it_is_up_lives_and_ends(tmp_path: Path) -> None:
    with notified(tmp_path) as (environment, said):
        with running(tmp_path / "agent", "--comm", "calls", environment=environment) as agent:
            alive = said(1)
            while len(alive) < 4 and time.monotonic() < agent.started + READY_SECONDS:
                alive += said(1)
            assert agent.end(signal.SIGTERM) == 0
        ended = said(0.5)
    assert alive[0] == "READY=1"
    assert len(alive) >= 4
    assert set(alive[1:]) == {"WATCHDOG=1"}
    assert "STOPPING=1" in ended


def test_systemd_hears_nothing_of_a_capture_that_hangs(tmp_path: Path, calls: Calls) -> None:
    """Its output is a pipe that is full: records are neither read nor written, so that the watchdog is right to end it. When
    there is room again, it goes on, and nothing was lost.
    """
    reader, writer = os.pipe()
    give(tmp_path)
    with notified(tmp_path) as (environment, said):
        options = ("--comm", "calls", "--ledger", str(tmp_path / "ledger"), "--output", "-")
        with running(tmp_path / "agent", *options, environment=environment, own_output=False, stdout=writer) as agent:
            os.close(writer)
            assert wait_until(lambda: "WATCHDOG=1" in said(1), 15)
            calls.run(["--requests", "100"])
            said(3)
            assert said(4) == []
            text = bytearray()
            drain = threading.Thread(target=lambda: text.extend(_all_of(reader)))
            drain.start()
            assert wait_until(lambda: "WATCHDOG=1" in said(1), 15)
            assert agent.end() == 0, agent.stderr()
            drain.join(10)
    ledger = json.loads((tmp_path / "ledger").read_text())
    check_ledger(ledger)
    assert ledger["records"]["rows"]["written"] == text.count(b"\n") >= 400


def _all_of(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


# ---- the output ----


def test_output_is_private_and_appended_to(tmp_path: Path, calls: Calls) -> None:
    (tmp_path / "http.log").touch()
    (tmp_path / "http.log").unlink()
    previous = os.umask(0)
    try:
        with running(tmp_path) as agent:
            first = calls.run(["--target", "/append/1"])
            assert agent.end() == 0
    finally:
        os.umask(previous)
    assert stat.S_IMODE(agent.log.stat().st_mode) == 0o600
    text = agent.log.read_text()
    with running(tmp_path) as agent:
        second = calls.run(["--target", "/append/2"])
        assert agent.end() == 0
    assert agent.log.read_text().startswith(text)
    check_run(agent.of(first.pids), first)
    check_run(agent.of(second.pids), second)


def test_hangup_reopens_the_output(tmp_path: Path, calls: Calls) -> None:
    with running(tmp_path) as agent:
        first = calls.run(["--target", "/rotate/1"])
        check_run(agent.wait_for(first.pids, 4), first)
        rotated = agent.log.with_suffix(".1")
        agent.log.rename(rotated)
        agent.process.send_signal(signal.SIGHUP)
        assert wait_until(agent.log.exists, 3)
        assert stat.S_IMODE(agent.log.stat().st_mode) == 0o600
        second = calls.run(["--target", "/rotate/2"])
        old = rotated.read_text()
        assert wait_until(lambda: agent.log.read_text().count("\n") >= 4, ARRIVAL_SECONDS)
        assert agent.end() == 0
    new = agent.log.read_text()
    assert rotated.read_text() == old
    assert old.count("/rotate/1") >= 2
    assert "/rotate/2" not in old
    records = [record for record in map(json.loads, new.splitlines()) if record["pid"] in second.pids]
    check_run(records, second)
    assert "/rotate/1" not in new
    check_ledger(agent.ledger())


def test_standard_output(tmp_path: Path, calls: Calls) -> None:
    """Neither a terminal nor a file: JSON Lines, with and without `--output -`."""
    for options in ([], ["--output", "-"]):
        out = tmp_path / "out"
        with out.open("wb") as stdout, running(tmp_path, *options, own_output=False, stdout=stdout.fileno()) as agent:
            run = calls.run(["--target", "/stdout"])
            assert agent.end() == 0
        records = [record for record in map(json.loads, out.read_text().splitlines()) if record["pid"] in run.pids]
        check_run(records, run)


def test_reader_that_leaves(tmp_path: Path, calls: Calls) -> None:
    """`netprofiler | head -1`."""
    read, write = os.pipe()
    with running(tmp_path, "--output", "-", own_output=False, stdout=write) as agent:
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            calls.run(["--target", "/head/1"])
            assert json.loads(pipe.readline())["protocol"].startswith("HTTP/1.")
        for number in range(20):
            calls.run(["--target", f"/head/{number}"])
            if agent.process.poll() is not None:
                break
        assert agent.process.wait(5) == 0
    stderr = agent.stderr()
    assert "Traceback" not in stderr
    assert "BrokenPipe" not in stderr


def test_full_disk_is_survived(tmp_path: Path, calls: Calls) -> None:
    """Reported once, counted, and the agent goes on."""
    ledger = tmp_path / "ledger.json"
    with running(tmp_path, "--output", "/dev/full", "--ledger", str(ledger), own_output=False) as agent:
        for number in range(5):
            calls.run(["--target", f"/full/{number}"])
            time.sleep(0.1)
        assert agent.process.poll() is None, agent.stderr()
        assert agent.end() == 0, agent.stderr()
    assert agent.stderr().count("No space left") == 1, agent.stderr()
    book = agent.ledger()["records"]
    assert sum(book["rows"].values()) == book["made"]
    assert book["rows"]["output_failed"] >= 20
    assert book["rows"].get("written", 0) == 0


def test_count(tmp_path: Path, calls: Calls) -> None:
    agent = Agent(tmp_path, "--count", "5")
    try:
        agent.wait_ready()
        calls.run(["--target", "/count", "--requests", "20"])
        assert agent.process.wait(5) == 0
    finally:
        agent.kill()
    assert len(agent.records()) == 5
    check_ledger(agent.ledger())


def test_duration(tmp_path: Path, calls: Calls) -> None:
    agent = Agent(tmp_path, "--duration", "1")
    try:
        agent.wait_ready()
        started = time.monotonic()
        run = calls.run(["--target", "/duration"])
        assert agent.process.wait(5) == 0
    finally:
        agent.kill()
    assert 0.5 < time.monotonic() - started < 3
    check_run(agent.of(run.pids), run)


def test_body_limit_and_raw_payload(tmp_path: Path, calls: Calls) -> None:
    with running(tmp_path, "--body-limit", "100", "--no-raw-payload") as agent:
        run = calls.run(["--target", "/limit?bytes=500", "--method", "POST", "--body-bytes", "500"])
        assert agent.end() == 0
    requests, responses = sides(agent.of(run.pids), run.client_pid)
    for record in (*requests, *responses):
        assert len(record["body"]) == 100
        assert record["body_bytes"] == 500
        assert record["completeness"] == "truncated"
        assert "raw_payload" not in record
    check_ledger(agent.ledger(), run.stream_bytes)


def test_whole_bodies(tmp_path: Path, calls: Calls) -> None:
    limit = 1 << 20
    with running(tmp_path, "--body-limit", str(limit)) as agent:
        size = "300000"
        run = calls.run(
            ["--target", f"/whole?bytes={size}", "--method", "POST", "--body-bytes", size, "--requests", "3"],
            ["--send", "sendmsg", "--iovec-bytes", "20000"],
        )
        check_run(agent.wait_for(run.pids, 12), run, limit=limit)
        assert agent.end() == 0
    check_ledger(agent.ledger(), run.stream_bytes)


def test_the_agent_does_not_see_itself(tmp_path: Path, calls: Calls) -> None:
    """Its log goes into a socket on which HTTP is spoken: a line about each line would never end."""
    ours, theirs = socket.socketpair()
    with ours, running(tmp_path, "--output", "-", own_output=False, stdout=theirs.fileno()) as agent:
        with theirs:
            theirs.sendall(b"POST /self HTTP/1.1\r\nHost: self\r\nTransfer-Encoding: chunked\r\n\r\n")
        received = b""
        ours.settimeout(0.3)
        runs = [calls.run(["--target", f"/self/{number}"]) for number in range(5)]
        pids = set().union(*(run.pids for run in runs))
        quiet_at = time.monotonic() + 3
        end = time.monotonic() + 10
        while time.monotonic() < min(quiet_at, end):
            try:
                received += ours.recv(1 << 20)
                quiet_at = time.monotonic() + 1
            except TimeoutError:
                continue
        assert time.monotonic() < end, "it goes on and on"
        lines = received.partition(b"\r\n\r\n")[2].splitlines()
        records = [json.loads(line) for line in lines]
        assert len([record for record in records if record["pid"] in pids]) == 20
        assert not [record for record in records if record["pid"] == agent.pid]
        assert agent.end() == 0


# ---- a command of one's own ----


def test_command(tmp_path: Path, calls: Calls) -> None:
    """Only its traffic and its children's, and its exit status."""
    with calls.serve("127.0.0.1:0", "--connections", "3") as server:
        script = (
            f"{calls.binary} request {server.address} --target /command/1 && "
            f"( {calls.binary} request {server.address} --target /command/2 & wait ) && sleep 0.7 && exit 7"
        )
        agent = Agent(tmp_path, command=["sh", "-c", script], stdout=subprocess.DEVNULL)
        try:
            wait_until(agent.is_ready, 15)
            calls.request(server.address, "--target", "/command/other")
            assert agent.process.wait(20) == 7, agent.stderr()
        finally:
            agent.kill()
        server.finish()
    records = agent.records()
    requests = [record for record in records if "method" in record]
    assert [record["url"] for record in requests] == ["/command/1", "/command/2"]
    assert {record["comm"] for record in records} == {"calls"}
    assert {record["role"] for record in records} == {"client"}
    assert len(records) == 4
    assert len({record["pid"] for record in records}) == 2
    check_ledger(agent.ledger())
    assert "recorded" in agent.stderr()


def test_first_request_of_a_command_is_seen(tmp_path: Path, calls: Calls) -> None:
    """The command starts when the probes are there, not before."""
    agent = Agent(tmp_path, command=[str(calls.binary), "pair", "--target", "/first", "--", "--delay-ms", "0"])
    try:
        assert agent.process.wait(20) == 0, agent.stderr()
    finally:
        agent.kill()
    records = agent.records()
    assert sorted((r["role"], "method" in r) for r in records) == [
        ("client", False), ("client", True), ("server", False), ("server", True),
    ]  # fmt: skip
    assert {r["url"] for r in records if "method" in r} == {"/first"}


def test_command_that_does_not_exist(tmp_path: Path) -> None:
    agent = Agent(tmp_path, command=["/nonexistent/command"])
    try:
        assert agent.process.wait(20) not in {0, -signal.SIGSEGV}
    finally:
        agent.kill()
    assert "/nonexistent/command" in agent.stderr()
    assert "Traceback" not in agent.stderr()


def test_interrupt_of_a_command(tmp_path: Path) -> None:
    """A terminal sends SIGINT to both; by itself it ends the agent, and the command is not left running."""
    agent = Agent(tmp_path, command=["sleep", "30"])
    try:
        agent.wait_ready()
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
        assert wait_until(lambda: bool(children.read_text().split()), 5)
        (child,) = map(int, children.read_text().split())
        agent.end(signal.SIGINT)
        assert wait_until(lambda: not Path(f"/proc/{child}").exists(), 3), "the command is left running"
    finally:
        agent.kill()
    assert "Traceback" not in agent.stderr()


# ---- what cannot be ----


def test_output_is_a_directory(tmp_path: Path) -> None:
    status, _, stderr = run_agent("--output", str(tmp_path))
    assert status == 2
    assert str(tmp_path) in one_message(stderr)


def test_output_is_a_symbolic_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / "link").symlink_to(target)
    status, _, stderr = run_agent("--output", str(tmp_path / "link"))
    assert status == 2
    assert str(tmp_path / "link") in one_message(stderr)
    assert not target.exists()


def test_output_cannot_be_made(tmp_path: Path) -> None:
    path = tmp_path / "no" / "such" / "http.log"
    status, _, stderr = run_agent("--output", str(path))
    assert status == 2
    assert str(path) in one_message(stderr)


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["run", "--no-such-option"], ["nosuchverb"]], ids=" ".join)
def test_unknown_word(arguments: list[str]) -> None:
    status, stdout, stderr = run_agent(*arguments)
    assert status == 2
    assert arguments[-1].lstrip("-") in stderr
    assert "Traceback" not in stderr
    assert not stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--pid", "x"],
        ["--port", "70000"],
        ["--count", "-1"],
        ["--duration", "soon"],
        ["--body-limit", "-5"],
        ["--pid", "0"],
    ],
    ids=" ".join,
)
def test_bad_value(arguments: list[str]) -> None:
    status, _, stderr = run_agent(*arguments)
    assert status == 2
    assert arguments[0] in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("arguments", [[], ["run"], ["record", "file"], ["--", "true"]], ids=str)
def test_not_root(tmp_path: Path, arguments: list[str]) -> None:
    tmp_path.chmod(0o777)
    done = subprocess.run(
        [*UNPRIVILEGED, str(NETPROFILER), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 3, (done.returncode, done.stderr)
    message = one_message(done.stderr)
    assert "root" in message
    assert "sudo" in message, "what mends it"
    assert not done.stdout


def in_other_mounts(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the agent in a mount namespace prepared by a shell script."""
    return subprocess.run(
        [
            "unshare",
            "-m",
            "--propagation",
            "private",
            "sh",
            "-c",
            f'{script}; exec "$@"',
            "sh",
            str(NETPROFILER),
            *arguments,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_no_btf(tmp_path: Path) -> None:
    done = in_other_mounts("mount -t tmpfs none /sys/kernel/btf", "--output", str(tmp_path / "log"))
    assert done.returncode == 3, (done.returncode, done.stderr)
    assert "BTF" in one_message(done.stderr)


def test_no_tracefs(tmp_path: Path, calls: Calls) -> None:
    """Raw tracepoints need none, so its absence is no reason to stop."""
    hide = "for d in /sys/kernel/tracing /sys/kernel/debug; do mount -t tmpfs -o ro none $d; done"
    done = in_other_mounts(
        hide, "--output", str(tmp_path / "log"), "--", str(calls.binary), "pair", "--target", "/no-tracefs", "--"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text().count('"url":"/no-tracefs"') == 2


def test_pypi_bcc(tmp_path: Path, calls: Calls) -> None:
    """PyPI's `bcc` stands in the way: named, or passed over, never used."""
    package = tmp_path / "bcc"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('this is the lattice library')\n")
    agent = Agent(
        tmp_path / "agent",
        command=[str(calls.binary), "pair", "--target", "/pypi", "--"],
        # Nothing that was compiled before: BCC is needed.
        environment={"PYTHONPATH": str(tmp_path), "CACHE_DIRECTORY": str(tmp_path / "cache")},
    )
    try:
        status = agent.process.wait(20)
    finally:
        agent.kill()
    assert status in {0, 3}, agent.stderr()
    if status == 3:
        assert "bcc" in one_message(agent.stderr())
    else:
        assert len(agent.records()) == 4
        assert "lattice" not in agent.stderr()


def test_without_capability_to_load(tmp_path: Path) -> None:
    """Root by number alone, as in a container."""
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", str(NETPROFILER), "--output", str(tmp_path / "log")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 3, (done.returncode, done.stderr)
    one_message(done.stderr)


def test_few_open_files(tmp_path: Path, calls: Calls) -> None:
    """A low limit of locked memory and files, as services have, is no obstacle."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))

    done = subprocess.run(
        [
            str(NETPROFILER),
            "--output",
            str(tmp_path / "log"),
            "--",
            str(calls.binary),
            "pair",
            "--target",
            "/few",
            "--",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        preexec_fn=limit,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text().count('"url":"/few"') == 2


def test_runs_from_any_directory(tmp_path: Path, calls: Calls) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "netprofiler",
            "--output",
            "log",
            "--",
            str(calls.binary),
            "pair",
            "--target",
            "/cwd",
            "--",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text().count('"url":"/cwd"') == 2


def test_terminal_view(tmp_path: Path, calls: Calls) -> None:
    """On a terminal, and without --output, one line an exchange."""
    leader, follower = os.openpty()
    agent = Agent(tmp_path, own_output=False, stdout=follower)
    os.close(follower)
    try:
        agent.wait_ready()
        calls.run(["--target", "/terminal?bytes=500", "--method", "POST", "--body-bytes", "123"])
        text = b""

        def shown() -> bool:
            nonlocal text
            os.set_blocking(leader, False)
            try:
                text += os.read(leader, 65536)
            except BlockingIOError:
                pass
            except OSError:
                return True
            return text.count(b"/terminal") >= 2

        assert wait_until(shown, ARRIVAL_SECONDS), text
        assert agent.end() == 0
    finally:
        agent.kill()
        os.close(leader)
    lines = [line for line in text.decode().splitlines() if "/terminal" in line]
    assert len(lines) == 2, lines
    for line in lines:
        for part in ("calls", "POST", "200", "123", "500", "\x1b["):
            assert part in line, (part, line)


def test_doctor_and_explain(calls: Calls) -> None:
    status, stdout, stderr = run_agent("doctor", "--json")
    assert status == 0, stderr
    assert json.loads(stdout)
    server = subprocess.Popen([str(calls.binary), "serve", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        with server.stdout:
            port = server.stdout.readline().split()[1]
            status, stdout, stderr = run_agent("explain", str(server.pid), "--json")
    finally:
        end_process(server)
    assert status == 0, stderr
    json.loads(stdout)
    assert port in stdout
