"""What the agent may do: as root it gives up all but what docs/security.md states; with that alone, anybody can run it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from netprofiler.privileges import CAPABILITIES, NEEDED
from netprofiler.sources.features import knows_uprobe_multi
from tests.kernel.harness import Agent, Calls, check_ledger, running, wait_until

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]
NOBODY = 65534
PYTHON = "/usr/bin/python3"
"""One that anybody can execute; the environment's may be in root's home directory."""
STATED = sum(1 << CAPABILITIES[name] for name in (*NEEDED, *(() if knows_uprobe_multi() else ("CAP_SYS_ADMIN",))))


def threads(pid: int) -> Iterator[dict[str, str]]:
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        yield dict(re.findall(r"^(\w+):\s*(.*)$", status.read_text(), re.MULTILINE))


def check_confined(pid: int, extra: int = 0) -> int:
    """Each of its threads; returns how many there are."""
    allowed = STATED | extra
    found = list(threads(pid))
    for status in found:
        for name in ("CapEff", "CapPrm", "CapBnd"):
            assert int(status[name], 16) & ~allowed == 0, (status["Name"], name, status[name])
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0, status["Name"]
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), status["Name"]
    return len(found)


def test_as_root_every_thread_has_what_is_stated_and_no_more(tmp_path: Path, calls: Calls) -> None:
    with running(tmp_path, "--metrics-address", ":0") as agent:
        assert check_confined(agent.pid) > 1, "the worker and the metrics' threads are looked at, too"
        run = calls.run(["--target", "/confined", "--requests", "3"])
        assert len(agent.wait_for(run.pids, 12)) == 12
        moved = tmp_path / "moved"
        agent.log.rename(moved)
        agent.process.send_signal(signal.SIGHUP)
        assert wait_until(agent.log.exists, 10), "outputs are opened again all the same"
        assert agent.end() == 0, agent.stderr()
        check_ledger(agent.ledger())
    assert "cannot be" not in agent.stderr()


def test_recording_is_confined_too(tmp_path: Path, calls: Calls) -> None:
    with running(tmp_path, str(tmp_path / "a.recording"), verb=("record",), own_output=False) as agent:
        check_confined(agent.pid)
        calls.run(["--target", "/recorded"])
        assert agent.end() == 0, agent.stderr()
    assert (tmp_path / "a.recording").stat().st_size > 1000


def test_a_command_is_all_that_root_is(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print(open('/proc/self/status').read())"]
    out = tmp_path / "out"
    with out.open("wb") as stdout:
        agent = Agent(tmp_path, command=command, stdout=stdout.fileno(), as_root=True)
        try:
            assert agent.process.wait(30) == 0, agent.stderr()
        finally:
            agent.kill()
    mine = next(threads(os.getpid()))
    its = dict(re.findall(r"^(\w+):\s*(.*)$", out.read_text(), re.MULTILINE))
    for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp"):
        assert its[name] == mine[name], name


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Of nobody's own: pytest's are root's alone."""
    directory = Path(tempfile.mkdtemp(prefix="np-"))
    os.chown(directory, NOBODY, NOBODY)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("with_tls", [True, False])
def test_an_ordinary_user_with_these_capabilities_captures_all(
    open_directory: Path, calls: Calls, with_tls: bool
) -> None:
    names = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in NEEDED)
    site = next(path for path in sys.path if path.endswith("site-packages"))
    ledger = open_directory / "ledger"
    log = open_directory / "log"
    with (open_directory / "stderr").open("wb") as stderr:
        agent = subprocess.Popen(
            [
                *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
                *(f"--inh-caps=-all,{names}", f"--ambient-caps=-all,{names}", f"--bounding-set=-all,{names}"),
                *(PYTHON, "-m", "netprofiler", "--output", str(log), "--ledger", str(ledger)),
                *([] if with_tls else ["--no-tls"]),
            ],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{site}", "CACHE_DIRECTORY": str(open_directory)},
            cwd=ROOT,
            stderr=stderr,
        )

    def said() -> str:
        return (open_directory / "stderr").read_text()

    try:
        assert wait_until(lambda: "ready" in said() or agent.poll() is not None, 60)
        assert "ready" in said(), said()
        check_confined(agent.pid)
        assert next(threads(agent.pid))["Uid"].split() == [str(NOBODY)] * 4
        run = calls.run(["--target", "/ordinary", "--requests", "23"])
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(20) == 0, said()
    finally:
        agent.kill()
        agent.wait()
    records = [json.loads(line) for line in log.read_text().splitlines()]
    mine = [record for record in records if record["pid"] in run.pids]
    assert len(mine) == 4 * 23
    assert all(record["completeness"] == "complete" and record["comm"] == "calls" for record in mine)
    check_ledger(json.loads(ledger.read_text()))


def test_root_becomes_another_user(open_directory: Path, calls: Calls) -> None:
    log = open_directory / "http.log"
    options = ("--user", "nobody", "--output", str(log), "--ledger", str(open_directory / "ledger.json"))
    with running(open_directory, *options, own_output=False, as_root=True) as agent:
        check_confined(agent.pid)
        assert next(threads(agent.pid))["Uid"].split() == [str(NOBODY)] * 4
        run = calls.run(["--target", "/becomes", "--requests", "3"])
        assert len(agent.wait_for(run.pids, 12)) == 12
        assert agent.end() == 0, agent.stderr()
        check_ledger(agent.ledger())
