"""netprofiler.audit: who captured what, and that nobody changed it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from netprofiler.audit import audited, broken_line
from netprofiler.config import Config
from netprofiler.errors import CommandError


def run(path: Path, **options: object) -> list[str]:
    warnings: list[str] = []
    with audited(Config(audit=str(path), **options), "run", warnings.append):  # type: ignore[arg-type]
        pass
    return warnings


def test_a_start_and_an_end_say_who_when_and_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "ada")
    path = tmp_path / "audit"
    said = run(path, port=(8080,), output="/x", command=("curl", "-u", "a:hunter2", "http://h/"))
    start, end = map(json.loads, path.read_text().splitlines())
    assert (start["event"], end["event"], start["verb"]) == ("start", "ended", "run")
    assert (start["uid"], start["sudo_user"], start["pid"]) == (os.getuid(), "ada", os.getpid())
    assert start["options"]["port"] == [8080]
    assert "hunter2" not in path.read_text()
    assert end["previous"] == start["hash"]
    assert start["hash"] in said[0]
    assert end["hash"] in said[1]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_run_that_fails_says_so(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), audited(Config(audit=str(tmp_path / "a")), "run", lambda _: None):
        raise ZeroDivisionError
    assert json.loads((tmp_path / "a").read_text().splitlines()[1])["event"] == "failed"


@pytest.mark.parametrize("change", ["changed", "taken out", "put in", "exchanged", "none"])
def test_what_was_changed_is_found_at_the_next_start(tmp_path: Path, change: str) -> None:
    path = tmp_path / "audit"
    for port in (1, 2, 3):
        run(path, port=(port,))
    lines = path.read_text().splitlines(keepends=True)
    if change == "changed":
        lines[2] = lines[2].replace('"port":[2]', '"port":[9]')
    elif change == "taken out":
        del lines[2]
    elif change == "put in":
        lines.insert(2, lines[2])
    elif change == "exchanged":
        lines[2], lines[3] = lines[3], lines[2]
    path.write_text("".join(lines))
    said = run(path)
    broken, _ = broken_line(iter(path.read_text().splitlines(keepends=True)))
    if change == "none":
        assert broken is None
        assert len(said) == 2
    else:
        assert broken in (3, 4)
        assert f"line {broken} is not what was written" in said[0]


def test_without_an_audit_file_nothing_is_written_and_one_that_cannot_be_written_stops_the_start(
    tmp_path: Path,
) -> None:
    with audited(Config(), "run", lambda _: None):
        pass
    assert not os.listdir(tmp_path)
    with pytest.raises(CommandError, match="--audit"), audited(Config(audit=str(tmp_path)), "run", lambda _: None):
        pytest.fail("it began")
