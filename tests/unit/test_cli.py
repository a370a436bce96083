"""The command line: what is wrong is one line and a status, never a traceback; help fits a screen."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from netprofiler import __version__
from netprofiler.cli import VERBS, main

ROOT = Path(__file__).resolve().parents[2]
THERE = [verb for verb in VERBS if importlib.util.find_spec(f"netprofiler.commands.{verb}") is not None]


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("netprofiler: ")
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_help_fits_a_screen_and_shows_three_examples(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 24  # and a line for the prompt
    assert max(map(len, lines)) <= 80
    examples = lines[lines.index("examples:") + 1 :]
    assert sum("netprofiler" in line and line.startswith("  ") for line in examples) == 3
    for verb in VERBS:
        assert any(line.split()[:1] == [verb] for line in lines), verb


def test_every_verb_is_there() -> None:
    assert list(VERBS) == THERE


@pytest.mark.parametrize("verb", THERE)
def test_every_verb_has_its_own_help(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as raised:
        main([verb, "--help"])
    assert raised.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: netprofiler {verb}")
    assert VERBS[verb].split()[0] in out
    assert max(map(len, out.splitlines())) <= 80


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"netprofiler {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], ("'fly'", "run, record, replay")),
        (["--fly"], ("--fly", "--help")),
        (["run", "--fly"], ("--fly", "--help")),
        (["run", "--outpu", "x"], ("--outpu",)),  # no abbreviations: they would break with the next option
        (["run", "extra"], ("extra",)),
        (["doctor", "--output", "x"], ("--output",)),
        (["doctor", "extra"], ("extra",)),
        (["explain"], ("PID",)),
        (["--output"], ("--output",)),
        (["--"], ("--", "command")),
        (["doctor", "--", "true"], ("doctor", "-- COMMAND")),
        (["--pid", "x"], ("--pid", "'x'", "whole number")),
        (["--pid", "0"], ("--pid", "'0'", "from 1 to")),
        (["--port", "65536"], ("--port", "65535")),
        (["--comm", ""], ("--comm", "not empty")),
        (["--body-limit", "-1"], ("--body-limit", "from 0 to")),
        (["--body-limit", "99999999"], ("--body-limit", "16777216")),
        (["--stream-interval", "nan"], ("--stream-interval", "seconds")),
        (["--stream-interval", "soon"], ("--stream-interval", "'soon'")),
        (["--duration", "-1"], ("--duration",)),
        (["--count", "0"], ("--count",)),
        (["--log-format", "xml"], ("--log-format", "text or json")),
        (["--output", "x", "--no-output"], ("--output", "--no-output")),
        (["--config", "/nonexistent.toml"], ("/nonexistent.toml", "No such file")),
    ],
)
def test_bad_usage_is_one_line_and_2(
    arguments: list[str], said: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = error_of(capsys)
    for part in said:
        assert part in error


def test_without_root_it_is_3(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netprofiler.sources.kernel.may_capture", lambda: False)
    assert main([]) == 3
    error = error_of(capsys)
    assert "root" in error and "sudo" in error


def run_program(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "netprofiler", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )


def test_the_program_itself() -> None:
    """As a process: the status is the process' own, and nothing is said twice."""
    done = run_program("fly")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert run_program("--version").stdout == f"netprofiler {__version__}\n"


def test_a_reader_that_goes_away_is_no_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run_program("--help", stdout=writer)
    finally:
        os.close(writer)
    assert done.returncode == 0
    assert done.stderr == ""


def test_help_needs_neither_root_nor_bcc() -> None:
    """`netprofiler run --help` must work where nothing else does."""
    code = (
        "import sys; sys.modules['bcc'] = None\n"
        "from netprofiler.cli import main\n"
        "try:\n    main(['run', '--help'])\nexcept SystemExit as end:\n    sys.exit(end.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
