"""What is known of containers, and what an engine can do about it."""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netprofiler.containers import directory, engine
from netprofiler.containers.directory import Containers
from netprofiler.containers.facts import Facts
from netprofiler.exchange import Container
from tests.unit.containers.fakes import A, B, FakeEngine, FakeProc, described


@pytest.fixture
def short() -> Iterator[Path]:
    """Short enough for a UNIX socket's path."""
    with tempfile.TemporaryDirectory(prefix="npc-") as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "RETRY_SECONDS", (0.02, 0.05))
    monkeypatch.setattr(directory, "START_SECONDS", 0.5)
    monkeypatch.setattr(engine, "TIMEOUT_SECONDS", 0.2)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


class Started:
    def __init__(self, proc: Path, *sockets: Path, files: dict[str, Facts] | None = None) -> None:
        found = files or {}
        self.containers = Containers(
            tuple(map(str, sockets)), proc=proc, find_sockets=list, read_files=lambda identity, _: found.get(identity)
        )

    def __enter__(self) -> Containers:
        self.containers.start()
        self.containers.settle()
        return self.containers

    def __exit__(self, *_: object) -> None:
        self.containers.close()


def test_what_runs_at_the_start_is_known_with_labels_addresses_and_ports(short: Path, tmp_path: Path) -> None:
    proc = FakeProc(tmp_path)
    proc.add(7, container=A, namespace="web")
    labels = {"com.docker.compose.service": "web", "com.docker.compose.project": "shop"}
    with FakeEngine(short / "s") as fake:
        fake.containers[A] = described(A, "shop_web_1", labels=labels, address="10.0.0.2", pid=7)
        with Started(tmp_path, fake.path) as containers:
            assert containers.active
            assert containers.container(A) == Container(A, "shop_web_1", "web", "image-of-shop_web_1", "shop")
            assert containers.identity_of(7) == A
            assert containers.identity_of(1) == ""
            assert containers.identity_of(8) is None
            assert containers.name_of(7) == "web"
            assert containers.name_of(1) is None
            assert [facts.container.container_id for facts in containers.at_address("10.0.0.2")] == [A]
            assert [facts.container.container_id for facts in containers.at_port(8080)] == [A]
            assert containers.at_port(81) == []
            assert containers.in_namespace(proc.namespace_of(7), time.monotonic_ns()) == A


def test_events_tell_of_containers_that_begin_are_renamed_and_end(short: Path, tmp_path: Path) -> None:
    FakeProc(tmp_path)
    with FakeEngine(short / "s") as fake, Started(tmp_path, fake.path) as containers:
        version = containers.version
        fake.tell("create", A, name="brief", image="i", **{"com.docker.compose.service": "job"})
        until(lambda: containers.facts_of(A))
        assert containers.version > version
        assert containers.container(A) == Container(A, "brief", "job", "i")
        fake.containers[A] = described(A, "brief", address="10.0.0.9")
        fake.tell("start", A, name="brief", image="i")
        until(lambda: containers.at_address("10.0.0.9"))
        fake.containers[A] = described(A, "longer", address="10.0.0.9")
        fake.tell("rename", A, name="longer", image="i")
        until(lambda: containers.container(A).container_name == "longer")
        fake.tell("die", A, name="longer", image="i")
        until(lambda: not containers.at_address("10.0.0.9"))
        assert containers.container(A).container_name == "longer", "its name is still asked for"
        assert containers.at_port(8080) == []


def test_an_engine_that_is_restarted_is_followed_again(short: Path, tmp_path: Path) -> None:
    FakeProc(tmp_path)
    with FakeEngine(short / "s") as fake:
        started = Started(tmp_path, fake.path)
        containers = started.__enter__()
        fake.tell("create", A, name="before", image="i")
        until(lambda: containers.facts_of(A))
    try:
        until(lambda: containers.failures)
        assert containers.container(A).container_name == "before"
        with FakeEngine(short / "s") as again:
            again.containers[B] = described(B, "after")
            until(lambda: containers.container(B).container_name == "after")
            assert sum(containers.failures.values()) >= 1
    finally:
        started.__exit__()


@pytest.mark.parametrize(
    "lie",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({"Id": B}).encode(),
        json.dumps(
            {
                "Id": A,
                "Name": 7,
                "State": {"Pid": "x"},
                "Config": {"Image": ["i"], "Labels": {"k": 1, "com.docker.compose.service": "x" * 100_000}},
                "HostConfig": [],
                "NetworkSettings": {
                    "Networks": {"n": {"IPAddress": "999"}, "m": 3},
                    "Ports": {"80/tcp": [{"HostPort": "²"}]},
                },
            }
        ).encode(),
        json.dumps({"Id": A, "State": {"Pid": 1}}).encode(),
    ],
)
def test_an_engine_that_lies_is_believed_nothing_that_cannot_be(short: Path, tmp_path: Path, lie: bytes) -> None:
    """And its other containers are known."""
    proc = FakeProc(tmp_path)
    with FakeEngine(short / "s") as fake:
        fake.containers[A] = lie
        fake.containers[B] = described(B, "honest")
        with Started(tmp_path, fake.path) as containers:
            until(lambda: containers.container(B).container_name == "honest")
            assert containers.container(A) == Container(A)
            assert containers.at_address("999") == []
            assert containers.in_namespace(proc.namespace_of(1), 0) == "", "not the host's for a container"


@pytest.mark.parametrize(
    "event",
    [
        b"{\n",
        b"7\n",
        b'{"Type":"container"}\n',
        b"x" * (1 << 20) + b"x\n",
        b"\xff\n",
        b'{"Type":"network","Actor":[]}\n',
    ],
)
def test_an_event_that_is_none_does_no_harm(short: Path, tmp_path: Path, event: bytes) -> None:
    FakeProc(tmp_path)
    with FakeEngine(short / "s") as fake, Started(tmp_path, fake.path) as containers:
        fake.say(event)
        fake.say(b"\n")
        fake.containers[A] = described(A, "later")
        deadline = time.monotonic() + 5
        while containers.container(A).container_name != "later" and time.monotonic() < deadline:
            fake.tell("start", A, name="later", image="i")  # one may go to the connection that has just been given up
            time.sleep(0.02)
        assert containers.container(A).container_name == "later"


def test_an_engine_that_does_not_answer_delays_the_start_only_so_long(short: Path, tmp_path: Path) -> None:
    FakeProc(tmp_path).add(7, container=A)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(short / "s"))
        silent.listen(8)
        began = time.monotonic()
        with Started(tmp_path, short / "s", short / "absent") as containers:
            assert time.monotonic() - began < 2
            assert containers.identity_of(7) == A
            assert containers.container(A) == Container(A)
            until(lambda: len(containers.failures) == 2)
            assert {text.rpartition(": ")[2] for text in containers.failures} == {
                "timed out",
                "no such file or directory",
            }


def test_a_container_that_no_engine_tells_of_is_looked_for_in_files_once(tmp_path: Path) -> None:
    FakeProc(tmp_path).add(7, container=A)
    with Started(tmp_path, files={A: Facts(Container(A, "from-a-file"))}) as containers:
        before = containers.active
        assert containers.identity_of(7) == A
        assert (before, containers.active) == (False, True), "a process in a container was seen"
        containers.facts_of(A)
        until(lambda: containers.container(A).container_name == "from-a-file")
        assert containers.container(B) == Container(B)


def test_a_pid_that_another_process_has_by_now_tells_nothing(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path)
    proc.add(7, container=A, start=500)
    containers = Containers(("x",), proc=tmp_path)
    assert containers.identity_of(7, 500 * directory.CLOCK_TICK_NS + 3) == A
    assert containers.identity_of(7, 499 * directory.CLOCK_TICK_NS) is None
    proc.remove(7)
    assert containers.identity_of(7, 500 * directory.CLOCK_TICK_NS) == A, "it was remembered when it lived"
    containers.exited(7)
    assert containers.identity_of(7) is None


def test_tables_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeProc(tmp_path)
    monkeypatch.setattr(directory, "CONTAINERS_MAX", 10)
    monkeypatch.setattr(directory, "PIDS_MAX", 10)
    containers = Containers((), proc=tmp_path, find_sockets=list)
    for number in range(100):
        identity = f"{number:064x}"
        containers._put(Facts(Container(identity), addresses=(("n", f"10.0.0.{number}"),), ports=(number,)), anew=True)
        containers._remember_pid(number, identity)
        containers.facts_of(f"{number + 1000:064x}")
    assert len(containers._facts) == 10
    assert len(containers._by_address) == 10
    assert len(containers._by_port) == 10
    assert len(containers._pids) == 10
    assert len(containers._sought) <= 10
