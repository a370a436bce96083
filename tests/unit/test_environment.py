"""Environments as processes have them, and the YAML documents made of them."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from netprofiler import environment
from netprofiler.environment import Environments, OptIn, ProfileWriter, clean_arguments, parse_environ
from netprofiler.errors import CommandError
from netprofiler.exchange import Process
from netprofiler.redaction import Redactor
from tests.unit.containers.fakes import FakeProc

PLANTED = (
    "hunter2-aaaa",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "db-secret-bbbb",
    "bearer-cccc-dddd",
    "AKIAIOSFODNN7EXAMPLE",
    "key-eeee",
    "cookie-ffff",
)
ENVIRON = {
    "ADI_PROFILE": "local",
    "ADI_PROFILE_NAME": "shop",
    "APP_PASSWORD": PLANTED[0],
    "APP_SESSION": PLANTED[6],
    "APP_JWT": PLANTED[1],
    "APP_DATABASE": f"postgres://user:{PLANTED[2]}@db:5432/shop?x=1",
    "APP_HEADER": f"Authorization: Bearer {PLANTED[3]}",
    "APP_ID": f"id {PLANTED[4]} end",
    "APP_API_KEY": PLANTED[5],
    "APP_MONKEY": "banana",
    "APP_PASSENGERS": "4",
    "APP_TEXT": "a: b\n# c\t\x07 ä €",
    "HOME": "/root",
}


def write(
    proc: FakeProc, tmp_path: Path, process: Process, *, prefixes: tuple[str, ...] = (), redact: bool = True
) -> Any:
    path = tmp_path / "env.yml"
    warnings: list[str] = []
    writer = ProfileWriter(
        *(str(path), prefixes, OptIn(), Environments(proc.path), Redactor(enabled=redact), warnings.append, proc.path)
    )
    writer.tell(process)
    writer.tell(process)
    writer.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert warnings == []
    [document] = yaml.safe_load_all(path.read_text())
    return document


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    fake = FakeProc(tmp_path / "proc")
    fake.add(7, environ="".join(f"{name}={value}\0" for name, value in ENVIRON.items()).encode())
    (fake.path / "7" / "cmdline").write_bytes(
        f"shop\0--password\0{PLANTED[0]}\0--api-key={PLANTED[5]}\0--port\x008080\0".encode()
    )
    return fake


CMDLINE = f"shop --password {PLANTED[0]} --api-key={PLANTED[5]} --port 8080"


def test_a_profile_has_what_was_asked_for_and_no_secret(proc: FakeProc, tmp_path: Path) -> None:
    document = write(proc, tmp_path, Process(7, 1, "shop", CMDLINE), prefixes=("APP_", "ADI_"))
    assert document["adi_profile_pid"] == 7
    assert document["adi_profile_match"] == "local"
    assert document["adi_profile_name"] == "shop"
    assert document["adi_profile_cmdline"] == "shop --password [redacted] --api-key=[redacted] --port 8080"
    shown = document["adi_profile_env"]
    assert set(shown) == {name for name in ENVIRON if name != "HOME"}
    assert [name for name, value in shown.items() if value == ENVIRON[name]] == [
        *("ADI_PROFILE", "ADI_PROFILE_NAME", "APP_MONKEY", "APP_PASSENGERS", "APP_TEXT")
    ]
    assert shown["APP_DATABASE"] == "postgres://user:[redacted]@db:5432/shop?x=1"
    assert shown["APP_HEADER"] == "Authorization: [redacted]"
    assert [secret for secret in PLANTED if secret in repr(document)] == []
    assert "error" not in document


def test_all_of_the_environment_is_told_where_no_prefix_is_given_and_secrets_where_that_is_asked_for(
    proc: FakeProc, tmp_path: Path
) -> None:
    document = write(proc, tmp_path, Process(7, 1, "shop", CMDLINE), redact=False)
    assert document["adi_profile_env"] == ENVIRON
    assert document["adi_profile_cmdline"] == CMDLINE


def test_a_process_that_is_gone_has_an_error_in_its_profile(proc: FakeProc, tmp_path: Path) -> None:
    document = write(proc, tmp_path, Process(8, 1, "gone", "gone --token abcdef"))
    assert document["adi_profile_pid"] == 8
    assert "could not be read" in document["error"]
    assert document["adi_profile_env"] == {}
    assert "adi_profile_match" not in document
    assert "adi_profile_name" not in document
    assert document["adi_profile_cmdline"] == "gone --token [redacted]"


def test_an_environment_is_that_of_the_beginning_though_the_process_overwrites_it(proc: FakeProc) -> None:
    environments = Environments(proc.path)
    environments.executed(7)
    (proc.path / "7" / "environ").write_bytes(b"nginx: master process\0\0\0")
    assert environments.of(7) == ENVIRON
    environments.exited(7)
    assert environments.of(7) == {}
    with pytest.raises(OSError, match="No such file"):
        environments.of(8)


def test_what_is_remembered_is_bounded(proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "REMEMBERED_MAX", 3)
    environments = Environments(proc.path)
    for pid in range(100, 110):
        proc.add(pid)
        environments.executed(pid)
    assert len(environments._kept) == 3


def test_of_a_name_that_comes_twice_the_first_counts() -> None:
    assert parse_environ(b"A=1\0A=2\0=3\0B\0C=\0D=x=y\0\xff=\xfe\0") == {
        "A": "1",
        "C": "",
        "D": "x=y",
        "\\xff": "\\xfe",
    }


@given(st.binary())
def test_any_bytes_are_an_environment(data: bytes) -> None:
    assert "" not in parse_environ(data)


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="=\0"), min_size=1),
        st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    )
)
def test_any_environment_is_yaml_that_loads_as_the_same(environ: dict[str, str]) -> None:
    text = yaml.safe_dump({"adi_profile_env": environ}, explicit_start=True, sort_keys=False)
    assert yaml.safe_load(text) == {"adi_profile_env": environ}


def test_secrets_among_arguments_are_replaced() -> None:
    arguments = [
        "--password=x1",
        "--token",
        "x2",
        "--token",
        "--verbose",
        "SECRET=x3",
        "-p",
        "https://u:x4@h/",
        "http://h/?password=x5&a=b",
        "--key-file=k",
    ]
    cleaned = clean_arguments(arguments, Redactor())
    assert cleaned == [
        *("--password=[redacted]", "--token", "[redacted]", "--token", "--verbose", "SECRET=[redacted]", "-p"),
        *("https://u:[redacted]@h/", "http://h/?password=[redacted]&a=b", "--key-file=[redacted]"),
    ]


@pytest.mark.parametrize("kind", ["directory", "link", "missing"])
def test_an_output_that_cannot_be_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "there"
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path = tmp_path / "no" / "there"
    with pytest.raises(CommandError, match="--env-output"):
        ProfileWriter(str(path), (), OptIn(), Environments(), Redactor(), print)
