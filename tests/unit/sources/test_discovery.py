"""sources/discovery.py, with real processes and files; the analysis, the probes and the clock are fakes."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netprofiler import wire
from netprofiler.sources import discovery
from netprofiler.sources.discovery import Discovery, State
from netprofiler.sources.mapped_files import Key, key_of, parse_maps, read_maps
from netprofiler.sources.probes import Analysis, Finding, Library, Probe, Purpose
from netprofiler.sources.uprobes import AttachError

READABLE = Finding(Library.OPENSSL, "3.0", (Probe(0x10, Purpose.ENTER), Probe(0x20, Purpose.LEAVE)))
UNREADABLE = Finding(Library.GNUTLS, problem="it is older than 3.0")
NOT_THERE = 2**22 + 1
"""No process: above the highest pid_max."""
EXECUTABLE = Path("/bin/sleep").read_bytes()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Handle:
    """Probes that are no probes."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.open = True

    def close(self) -> None:
        assert self.open
        self.open = False


class Stage:
    """A `Discovery` with its surroundings; programs are copies of sleep(1) with a text at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now_ns = 1_000_000_000
        self.handles: list[Handle] = []
        self.analysed: list[str] = []
        self.forgotten: list[Key] = []
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.go_on = threading.Event()
        self.go_on.set()
        self.refuse = 0
        self.discovery = Discovery(
            self.analyse,
            self.attach,
            lambda device, inode: self.forgotten.append((device, inode)),
            clock_ns=lambda: self.now_ns,
        )

    def analyse(self, path: str) -> Analysis:
        self.analysed.append(os.readlink(path))
        assert self.go_on.wait(10)
        content = Path(path).read_bytes()
        if b"SSL_broken" in content:
            raise RecursionError("as deep as it goes")
        if b"SSL_damaged" in content:
            return Analysis(problem="the section table is damaged")
        findings = [READABLE] * (b"SSL_readable" in content) + [UNREADABLE] * (b"gnutls_" in content)
        return Analysis("0123", tuple(findings), ("rustls",) if b"rustls" in content else ())

    def attach(self, path: str, finding: Finding) -> Handle:
        assert finding is READABLE
        if self.refuse:
            raise AttachError(path, self.refuse)
        handle = Handle(os.stat(path).st_ino)
        self.handles.append(handle)
        return handle

    def program(self, name: str, text: bytes = b"SSL_readable") -> Path:
        path = self.directory / name
        path.write_bytes(EXECUTABLE + text)
        path.chmod(0o755)
        return path

    def run(self, path: Path) -> int:
        """Started, and not told of."""
        process = subprocess.Popen([path, "60"])
        self.processes[process.pid] = process
        # Popen returns a little before the kernel has mapped the program.
        wait_until(lambda: any(mapping.path == str(path) for mapping in parse_maps(read_maps(process.pid))))
        return process.pid

    def execute(self, path: Path) -> int:
        """Started, and told of."""
        pid = self.run(path)
        self.tell(wire.NOTICE_EXECUTED, pid, *self.key(path))
        return pid

    def tell(self, kind: int, pid: int, device: int = 0, inode: int = 0, address: int = 0) -> None:
        self.discovery.attend([wire.Notice(kind=kind, pid=pid, inode=inode, address=address, device=device)])

    def kill(self, *pids: int) -> None:
        """Ended, and not told of."""
        for pid in pids:
            with self.processes.pop(pid) as process:
                process.kill()

    def end(self, *pids: int) -> None:
        self.kill(*pids)
        for pid in pids:
            self.tell(wire.NOTICE_EXITED, pid)

    def key(self, path: Path) -> Key:
        with path.open("rb") as file:
            key = key_of(file.fileno())
        assert key is not None
        return key

    def poll_until(self, condition: Callable[[], bool]) -> None:
        def polled() -> bool:
            self.discovery.poll()
            return condition()

        wait_until(polled)

    def settle(self) -> None:
        self.poll_until(lambda: self.discovery.settled)

    def let_linger(self) -> None:
        """Time goes by until the unused is searched for users, and the search is over."""
        self.discovery.poll()
        self.now_ns += discovery.LINGER_NS
        self.discovery.poll()
        self.poll_until(lambda: not self.discovery._searching)

    @property
    def open_inodes(self) -> list[int]:
        """Probed now; detaching is done by other threads."""
        wait_until(
            lambda: (
                sum(handle.open for handle in self.handles)
                == sum(len(inode.handles) for inode in self.discovery._inodes)
            )
        )
        return [handle.inode for handle in self.handles if handle.open]

    def state(self, pid: int, path: Path) -> tuple[State | None, str]:
        (facts,) = [facts for facts in self.discovery.describe(pid) if facts.path.startswith(str(path))]
        return facts.state, facts.reason


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(discovery, "linked_tls_libraries", lambda _: [])
    before = set(os.listdir("/proc/self/fd"))
    stage = Stage(tmp_path)
    stage.discovery._worker.start()
    yield stage
    stage.go_on.set()
    stage.kill(*list(stage.processes))
    stage.discovery.close()
    assert not any(handle.open for handle in stage.handles)
    assert len(os.listdir("/proc/self/fd")) <= len(before)


# --- attaching -----------------------------------------------------------------------------------------------------------


def test_a_program_is_attached(stage: Stage) -> None:
    path = stage.program("server")
    pid = stage.execute(path)
    assert stage.state(pid, path) == (State.WAITING, "")
    stage.settle()
    assert stage.open_inodes == [path.stat().st_ino]
    assert stage.state(pid, path) == (State.ATTACHED, "")
    (facts,) = [facts for facts in stage.discovery.describe(pid) if facts.path == str(path)]
    assert facts.analysis == Analysis("0123", (READABLE,))
    counts = stage.discovery.counts()
    assert (counts.attached_files, counts.attached_probes, counts.attached) == (1, 2, 1)
    assert not counts.missed
    assert not counts.failures


def test_many_processes_are_one_attachment(stage: Stage) -> None:
    path = stage.program("server")
    link = path.with_name("link")
    link.hardlink_to(path)
    for each in (path, path, link):
        stage.execute(each)
    stage.settle()
    stage.execute(link)
    stage.settle()
    assert len(stage.handles) == 1
    assert len(stage.analysed) == 1


def test_the_same_content_is_analysed_once(stage: Stage) -> None:
    one, two = stage.program("one"), stage.program("two")
    for path in (one, two):
        stage.execute(path)
        stage.settle()
    assert stage.open_inodes == [one.stat().st_ino, two.stat().st_ino]
    assert stage.analysed == [str(one)]


def test_what_has_no_tls_is_not_analysed(stage: Stage) -> None:
    path = stage.program("cat", b"no such thing")
    pid = stage.execute(path)
    stage.settle()
    assert stage.state(pid, path) == (State.NOTHING, "")
    assert stage.analysed == []
    assert stage.discovery._of_pid == {}


def test_what_cannot_be_read_is_named(stage: Stage) -> None:
    path = stage.program("blind", b"gnutls_ rustls")
    pid = stage.execute(path)
    stage.settle()
    assert stage.state(pid, path) == (State.NOTHING, "it is older than 3.0")
    assert stage.discovery.counts().blind == {"gnutls": 1, "rustls": 1}
    assert stage.handles == []


def test_a_damaged_file_and_an_analysis_that_breaks(stage: Stage) -> None:
    damaged = stage.program("damaged", b"SSL_damaged")
    broken = stage.program("broken", b"SSL_broken")
    good = stage.program("good")
    pids = [stage.execute(path) for path in (damaged, broken, good)]
    stage.settle()
    assert stage.state(pids[0], damaged) == (State.FAILED, "the section table is damaged")
    assert stage.state(pids[1], broken) == (
        State.FAILED,
        "the analysis broke: RecursionError: as deep as it goes",
    )
    assert stage.state(pids[2], good)[0] is State.ATTACHED
    assert stage.discovery.counts().failures == {"analysis": 2}


def test_what_the_kernel_refuses(stage: Stage) -> None:
    path = stage.program("server")
    stage.refuse = 22
    pid = stage.execute(path)
    stage.settle()
    state, reason = stage.state(pid, path)
    assert state is State.FAILED
    assert reason.startswith("OPENSSL: ")
    assert "an offset is outside of the file" in reason
    assert stage.discovery.counts().failures == {"bad_offset": 1}
    # Not tried again with each process.
    stage.execute(path)
    stage.settle()
    assert stage.discovery.counts().failures == {"bad_offset": 1}


def test_a_program_that_was_removed(stage: Stage) -> None:
    path = stage.program("server")
    key, inode = stage.key(path), path.stat().st_ino
    pid = stage.run(path)
    path.unlink()
    stage.program("server", b"another one")
    stage.discovery.executed(pid, *key)
    stage.settle()
    assert stage.open_inodes == [inode]
    assert stage.state(pid, path) == (State.ATTACHED, "")


def test_the_number_of_an_inode_is_given_to_another_file(stage: Stage) -> None:
    """Or the file is written anew, which is the same to us."""
    path = stage.program("tool", b"no such thing")
    stage.end(stage.execute(path))
    stage.settle()
    path.write_bytes(EXECUTABLE + b"SSL_readable")
    os.utime(path, ns=(0, 10**18))
    pid = stage.execute(path)
    stage.settle()
    assert stage.state(pid, path) == (State.ATTACHED, "")
    assert stage.key(path) in stage.forgotten


def test_a_program_that_is_built_again_loses_its_probes(stage: Stage) -> None:
    path = stage.program("server")
    stage.end(stage.execute(path))
    stage.settle()
    assert stage.open_inodes == [path.stat().st_ino]
    path.write_bytes(EXECUTABLE + b"SSL_readable, better")
    stage.discovery.poll()
    assert stage.open_inodes == []
    assert stage.discovery.counts().failures == {"changed": 1}
    assert stage.key(path) in stage.forgotten
    pid = stage.execute(path)
    stage.settle()
    assert stage.state(pid, path) == (State.ATTACHED, "")
    assert len(stage.analysed) == 2


def test_a_file_that_is_written_to_while_it_is_attached(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stage.program("server")
    stamps = iter([(1, 2, 3), (1, 2, 4)])
    monkeypatch.setattr(discovery, "file_stamp", lambda _: next(stamps))
    pid = stage.execute(path)
    stage.settle()
    assert stage.open_inodes == []
    assert stage.state(pid, path) == (State.FAILED, "the file was written to while it was attached")


# --- from the first process to the last --------------------------------------------------------------------------------


def test_detached_when_the_last_process_is_gone(stage: Stage) -> None:
    path = stage.program("server")
    first, second = stage.execute(path), stage.execute(path)
    stage.settle()
    stage.end(first)
    stage.let_linger()
    assert stage.open_inodes == [path.stat().st_ino]
    stage.end(second)
    stage.now_ns += discovery.LINGER_NS // 2
    stage.discovery.poll()
    stage.now_ns += discovery.LINGER_NS // 2 - 1
    stage.discovery.poll()
    assert stage.open_inodes == [path.stat().st_ino]
    assert stage.forgotten == []
    stage.let_linger()
    assert stage.open_inodes == []
    assert stage.forgotten == [stage.key(path)]
    counts = stage.discovery.counts()
    assert (counts.attached, counts.detached, counts.attached_files, counts.attached_probes) == (1, 1, 0, 0)
    assert stage.discovery._of_pid == {}


def test_attached_again_without_another_analysis(stage: Stage) -> None:
    path = stage.program("server")
    stage.end(stage.execute(path))
    stage.settle()
    stage.let_linger()
    assert stage.open_inodes == []
    stage.discovery._worker._analyses.clear()
    pid = stage.execute(path)
    stage.settle()
    assert stage.open_inodes == [path.stat().st_ino]
    assert stage.state(pid, path) == (State.ATTACHED, "")
    assert len(stage.analysed) == 1


def test_a_user_that_nobody_told_of_is_found(stage: Stage) -> None:
    """A fork inherits what is mapped without an event."""
    path = stage.program("server")
    known = stage.execute(path)
    stage.settle()
    inherited = stage.run(path)
    stage.end(known)
    stage.let_linger()
    assert stage.open_inodes == [path.stat().st_ino]
    stage.end(inherited)
    stage.let_linger()
    assert stage.open_inodes == []


def test_a_process_that_comes_during_the_search(stage: Stage) -> None:
    path = stage.program("server")
    stage.end(stage.execute(path))
    stage.settle()
    stage.discovery.poll()
    stage.now_ns += discovery.LINGER_NS
    stage.discovery._worker.jobs.put(None)  # the worker ends: the search has not begun
    stage.discovery._worker._thread.join()
    stage.discovery.poll()
    assert stage.discovery._searching
    stage.execute(path)
    stage.discovery._take_users({stage.key(path): set()})  # as if it had ended before
    assert stage.open_inodes == [path.stat().st_ino]
    assert stage.discovery._idle == {}


def test_an_exec_ends_the_use_of_what_was_there(stage: Stage) -> None:
    path = stage.program("server")
    other = stage.program("other", b"no such thing")
    pid = stage.execute(path)
    stage.settle()
    stage.kill(pid)
    stage.discovery.executed(pid, *stage.key(other))
    stage.settle()
    stage.let_linger()
    assert stage.open_inodes == []


def test_the_linkers_libraries_stay(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stage.program("libssl.so.3")
    missing = str(path.with_name("libgnutls.so"))
    monkeypatch.setattr(discovery, "linked_tls_libraries", lambda _: [str(path), missing])
    second = Discovery(stage.analyse, stage.attach, lambda *_: None, clock_ns=lambda: stage.now_ns)
    monkeypatch.setattr(second._worker, "_survey", lambda _: second._worker._put(discovery._Done()))
    second.start()
    try:
        assert [handle.inode for handle in stage.handles] == [path.stat().st_ino]  # before start() returned
        pid = stage.run(path)
        second.executed(pid, *stage.key(path))
        stage.kill(pid)
        second.exited(pid)
        for _ in range(5):
            stage.now_ns += discovery.LINGER_NS
            second.poll()
        assert stage.handles[0].open
        assert second._of_pid == {}
    finally:
        second.close()
    assert not stage.handles[0].open


# --- some processes only ----------------------------------------------------------------------------------------------------


def test_what_only_others_use_is_attached_once_a_watched_process_forks(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, others, linked = (stage.program(name) for name in ("watched", "others", "libssl.so.3"))
    monkeypatch.setattr(discovery, "linked_tls_libraries", lambda _: [str(linked)])
    pid, other = stage.run(watched), stage.run(others)
    monkeypatch.setattr(discovery, "processes", lambda: [pid, other])
    stage.discovery.close()
    stage.discovery = Discovery(
        stage.analyse,
        stage.attach,
        lambda device, inode: stage.forgotten.append((device, inode)),
        only=frozenset((pid,)),
        clock_ns=lambda: stage.now_ns,
    )
    stage.discovery.start()
    stage.settle()
    assert stage.open_inodes == [watched.stat().st_ino]
    stage.tell(wire.NOTICE_EXECUTED, other, *stage.key(others))
    stage.settle()
    assert stage.open_inodes == [watched.stat().st_ino]
    assert stage.key(others) in stage.forgotten, "it is told of again when somebody maps it"
    stage.tell(wire.NOTICE_FORKED, pid)
    assert linked.stat().st_ino in stage.open_inodes, "at once: a child may be quick"
    stage.settle()
    assert sorted(stage.open_inodes) == sorted(path.stat().st_ino for path in (watched, others, linked))


# --- too late ------------------------------------------------------------------------------------------------------------


def test_a_process_that_ended_before_its_file_was_opened(stage: Stage) -> None:
    path = stage.program("server")
    stage.discovery.executed(NOT_THERE, *stage.key(path))
    assert stage.discovery.counts().missed == {"ended": 1}
    stage.discovery.mapped(NOT_THERE, *stage.key(path), 0x1000)
    stage.settle()
    assert stage.discovery.counts().missed == {"ended": 2}
    assert stage.forgotten == [stage.key(path)]
    assert stage.discovery.counts().files == 0


def test_processes_that_ended_before_their_file_was_attached(stage: Stage) -> None:
    path = stage.program("short")
    plain = stage.program("plain", b"gnutls_")
    stage.go_on.clear()
    stage.end(stage.execute(path), stage.execute(path))
    stage.end(stage.execute(plain))
    stage.go_on.set()
    stage.settle()
    assert stage.discovery.counts().missed == {"late": 2}
    # The next one is seen from its first byte.
    assert stage.open_inodes == [path.stat().st_ino]
    stage.end(stage.execute(path))
    stage.settle()
    assert stage.discovery.counts().missed == {"late": 2}


# --- the survey ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def only_ours(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The survey looks at the processes of the stage."""
    monkeypatch.setattr(discovery, "processes", lambda: list(stage.processes))


@pytest.mark.kernel
@pytest.mark.usefixtures("only_ours")
def test_the_survey_finds_what_runs(stage: Stage) -> None:
    path, other = stage.program("server"), stage.program("other", b"gnutls_")
    first, second, third = stage.run(path), stage.run(path), stage.run(other)
    stage.discovery._survey()
    stage.settle()
    assert stage.open_inodes == [path.stat().st_ino]
    assert stage.state(third, other) == (State.NOTHING, "it is older than 3.0")
    stage.end(first)
    stage.let_linger()
    assert stage.open_inodes == [path.stat().st_ino]
    stage.end(second)
    stage.let_linger()
    assert stage.open_inodes == []


@pytest.mark.kernel
@pytest.mark.usefixtures("only_ours")
def test_an_event_and_the_survey_find_the_same(stage: Stage) -> None:
    path = stage.program("server")
    stage.go_on.clear()
    pid = stage.execute(path)
    stage.discovery._survey()
    stage.execute(path)
    stage.go_on.set()
    stage.settle()
    assert len(stage.handles) == 1
    assert stage.state(pid, path) == (State.ATTACHED, "")
    assert len(stage.analysed) == 1


@pytest.mark.kernel
@pytest.mark.usefixtures("only_ours")
def test_an_event_does_not_wait_for_the_survey(stage: Stage) -> None:
    running = [stage.program(f"server{index}", b"SSL_readable %d" % index) for index in range(3)]
    for path in running:
        stage.run(path)
    stage.go_on.clear()
    stage.discovery._survey()
    wait_until(lambda: bool(stage.analysed))
    new = stage.program("new", b"SSL_readable, new")
    stage.execute(new)
    stage.go_on.set()
    stage.settle()
    assert stage.analysed[1] == str(new)
    assert len(stage.handles) == 4


@pytest.mark.kernel
@pytest.mark.usefixtures("only_ours")
def test_after_lost_events_all_is_looked_for_again(stage: Stage) -> None:
    path, unseen = stage.program("server"), stage.program("unseen", b"SSL_readable too")
    gone, stays = stage.execute(path), stage.execute(path)
    stage.settle()
    stage.kill(gone)  # nobody tells
    late = stage.run(unseen)
    stage.discovery.events_lost()
    stage.settle()
    assert stage.open_inodes == [path.stat().st_ino, unseen.stat().st_ino]
    assert len(stage.analysed) == 2
    stage.end(stays, late)
    stage.let_linger()
    assert stage.open_inodes == []
    assert stage.discovery._of_pid == {}


@pytest.mark.kernel
@pytest.mark.usefixtures("only_ours")
def test_a_dead_process_of_the_survey_is_no_user(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stage.program("server")
    pid = stage.run(path)
    stage.go_on.clear()
    stage.discovery._survey()
    wait_until(lambda: bool(stage.analysed))
    process = stage.processes[pid]
    process.kill()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    stage.discovery.exited(pid)  # while it is a zombie still
    stage.go_on.set()
    stage.settle()
    assert stage.discovery._of_pid == {}
    stage.let_linger()
    assert stage.open_inodes == []


# --- mappings ------------------------------------------------------------------------------------------------------------

MAP = """
import ctypes, mmap, sys
file = open(sys.argv[1], "r+b")
mapping = mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
print(ctypes.addressof(ctypes.c_char.from_buffer(mapping)), flush=True)
sys.stdin.readline()
"""


@pytest.mark.kernel
@pytest.mark.parametrize("replaced", [False, True])
def test_a_library_that_is_mapped(stage: Stage, replaced: bool) -> None:
    path = stage.program("library.so")
    key, inode = stage.key(path), path.stat().st_ino
    process = subprocess.Popen(["python3", "-c", MAP, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        stage.processes[process.pid] = process
        assert process.stdout is not None
        address = int(process.stdout.readline())
        if replaced:
            path.unlink()
            stage.program("library.so", b"another one")
        stage.tell(wire.NOTICE_MAPPED, process.pid, *key, address + 100)
        stage.settle()
        assert stage.open_inodes == [inode]
        assert stage.state(process.pid, path) == (State.ATTACHED, "")
        stage.end(process.pid)
    stage.let_linger()
    assert stage.open_inodes == []


@pytest.mark.kernel
def test_a_number_that_is_told_of_again_may_be_another_file(stage: Stage) -> None:
    path = stage.program("library", b"no such thing")
    pid = stage.execute(path)
    stage.settle()
    key = stage.key(path)
    stage.tell(wire.NOTICE_MAPPED, pid, *key, 0)
    stage.settle()
    assert stage.state(pid, path)[0] is State.NOTHING
    stage.end(pid)
    path.write_bytes(EXECUTABLE + b"SSL_readable")
    pid = stage.run(path)
    stage.tell(wire.NOTICE_MAPPED, pid, *key, 0)
    stage.settle()
    assert stage.state(pid, path)[0] is State.ATTACHED


# --- bounds --------------------------------------------------------------------------------------------------------------


def test_files_that_wait_are_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "QUEUE_MAX", 2)
    stage.go_on.clear()
    paths = [stage.program(f"server{index}", b"SSL_readable %d" % index) for index in range(3)]
    for path in paths:
        stage.execute(path)
    assert stage.discovery.counts().over == {"queue": 1}
    assert stage.forgotten == [stage.key(paths[2])]
    stage.go_on.set()
    stage.settle()
    stage.execute(paths[2])
    stage.settle()
    assert stage.open_inodes == [path.stat().st_ino for path in paths]


def test_attachments_are_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "ATTACHMENTS_MAX", 1)
    one, two = stage.program("one"), stage.program("two")
    first, second = stage.execute(one), stage.execute(two)
    stage.settle()
    assert stage.open_inodes == [one.stat().st_ino]
    assert stage.state(second, two) == (State.READY, "1 files are attached already")
    assert stage.discovery.counts().over == {"attachments": 1}
    stage.end(first)
    stage.let_linger()
    stage.execute(two)
    stage.settle()
    assert stage.open_inodes == [two.stat().st_ino]


def test_known_files_are_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "FILES_MAX", 3)
    paths = [stage.program(f"plain{index}", b"nothing") for index in range(5)]
    for path in paths:
        stage.end(stage.execute(path))
        stage.settle()
    assert stage.discovery.counts().files == 3
    assert stage.forgotten == [stage.key(path) for path in paths[:2]]
    assert len(stage.discovery._plain) == 3
    # Those that are in use are not forgotten for others.
    servers = [stage.program(f"server{index}") for index in range(4)]
    for path in servers:
        stage.execute(path)
        stage.settle()
    assert stage.open_inodes == [path.stat().st_ino for path in servers[:3]]
    assert stage.discovery.counts().over == {"files": 1}


def test_lingering_files_are_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "LINGERING_MAX", 2)
    paths = [stage.program(f"server{index}") for index in range(4)]
    for path in paths:
        stage.end(stage.execute(path))
        stage.settle()
    stage.poll_until(lambda: len(stage.discovery._inodes) == 2)
    assert stage.open_inodes == [path.stat().st_ino for path in paths[2:]]


def test_analyses_of_unused_files_are_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "READY_MAX", 2)
    monkeypatch.setattr(discovery, "ANALYSES_MAX", 1)
    for index in range(4):
        stage.end(stage.execute(stage.program(f"server{index}", b"SSL_readable %d" % index)))
        stage.settle()
        stage.let_linger()
    assert stage.discovery.counts().files == 2
    assert len(stage.discovery._ready) == 2
    assert len(stage.discovery._worker._analyses) == 1


def test_remembered_processes_are_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "PIDS_MAX", 1)
    path = stage.program("server")
    first, second = stage.execute(path), stage.execute(path)
    stage.settle()
    assert stage.discovery.counts().over == {"pids": 1}
    stage.end(first)
    stage.let_linger()
    assert stage.open_inodes == [path.stat().st_ino]  # the search found the second
    stage.end(second)
    stage.let_linger()
    assert stage.open_inodes == []


def test_an_end_with_work_under_way(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "STOP_SECONDS", 0.01)
    stage.go_on.clear()
    for index in range(5):
        stage.execute(stage.program(f"server{index}", b"SSL_readable %d" % index))
    started = time.monotonic()
    stage.discovery.close()
    assert time.monotonic() - started < 5  # the analysis under way would take 10
    stage.go_on.set()
    stage.discovery._worker._thread.join(10)
    assert stage.handles == []


def test_what_an_event_of_a_known_file_costs(stage: Stage) -> None:
    path = stage.program("server")
    pid = stage.execute(path)
    stage.settle()
    key = stage.key(path)

    def microseconds() -> float:
        started = time.perf_counter()
        for _ in range(200):
            stage.discovery.executed(pid, *key)
        return (time.perf_counter() - started) / 200 * 1e6

    assert min(microseconds() for _ in range(5)) < 200
