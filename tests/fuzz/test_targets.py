"""What fuzzing has found stays mended, and goes on finding: the kept corpora, and some hundred new inputs by atheris."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.run import CORPUS, ROOT
from fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_breaks_no_promise(name: str) -> None:
    files = sorted((CORPUS / name).iterdir())
    assert files, f"{name} has no corpus"
    for file in files:
        data = file.read_bytes()
        for size in (len(data), len(data) // 2, 1, 0):
            TARGETS[name](data[:size])


def test_corpora_are_small_and_of_targets_that_there_are() -> None:
    files = [file for file in CORPUS.rglob("*") if file.is_file()]
    assert {file.parent.name for file in files} == set(TARGETS)
    assert sum(file.stat().st_size for file in files) < 1024 * 1024


def test_what_breaks_a_promise_is_found(tmp_path: Path) -> None:
    """The checks can fail: a record with a wrong line, a ledger that does not sum."""
    from fuzz import targets
    from netprofiler.counters import Row
    from netprofiler.pipeline import Pipeline

    pipeline = Pipeline()
    pipeline.shared.counters.rows["gap"] = Row(1, -1)
    with pytest.raises(AssertionError):
        targets._sums(pipeline)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python")
def test_some_hundred_executions_of_each() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.run", "--all", "2", "-runs=500", "-timeout=20"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [*TARGETS, "fuzz:"]
    assert int(done.stdout.split()[-2]) > 1000, done.stdout
