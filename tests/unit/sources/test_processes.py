"""What /proc says of processes that run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from netprofiler.sources.processes import forked

# Forks a child, which forks one of its own; starts another program from the second; says their pids.
FAMILY = """
import os, subprocess, sys, time
if (child := os.fork()) == 0:
    if (grandchild := os.fork()) == 0:
        other = subprocess.Popen(["cat"])
        print(os.getppid(), os.getpid(), other.pid, flush=True)
        other.wait()
        os._exit(0)
    os.waitpid(grandchild, 0)
    os._exit(0)
os.waitpid(child, 0)
"""


def test_the_children_that_run_its_program_still_are_found_and_those_of_another_are_not() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        child, grandchild, other = map(int, process.stdout.readline().split())
        assert forked(process.pid) == [child, grandchild]
        assert forked(grandchild) == [] and forked(other) == []
        process.stdin.close()
        assert process.wait(10) == 0
    assert forked(process.pid) == []


def test_a_proc_that_has_no_lists_of_children_gives_none(tmp_path: Path) -> None:
    (tmp_path / "7" / "task" / "7").mkdir(parents=True)
    assert forked(7, tmp_path) == []
