"""Probes in running programs: hits with their cookies, whatever way leads to the file; and how long they take to go."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from netprofiler.sources import discovery
from netprofiler.sources.bcc_import import load_bcc
from netprofiler.sources.bpf import TRACE_UPROBE_MULTI
from netprofiler.sources.discovery import Discovery
from netprofiler.sources.kernel import find_bpf
from netprofiler.sources.mapped_files import key_of, parse_maps, read_maps
from netprofiler.sources.probes import Analysis, Call, Finding, Layout, Library, Probe, Purpose
from netprofiler.sources.uprobes import (
    AttachError,
    Link,
    UprobeLink,
    attach_probes,
    close_links,
)

pytestmark = [pytest.mark.kernel, pytest.mark.loads_bcc]

SOURCE = Path(__file__).with_name("uprobed.c")
PROGRAM = b"""
BPF_HASH(hits, u64, u64, 1024);
static u64 (*get_attach_cookie)(void *ctx) = (void *)174; /* BPF_FUNC_get_attach_cookie */

static inline void count(void *ctx, u64 flag) {
	u64 cookie = get_attach_cookie(ctx) | flag;

	hits.increment(cookie);
}

int on_entry(void *ctx) {
	count(ctx, 0);
	return 0;
}

int on_return(void *ctx) {
	count(ctx, 1ULL << 63);
	return 0;
}
"""
ON_RETURN = 1 << 63
NOT_PROBED = {"x86_64": b"\x06\x06\x06\x06", "aarch64": b"\x02\x00\x00\xd4"}
"""push %es, which 64-bit code has not; hvc #0."""


class Counter:
    """A BPF program that counts hits by cookie."""

    def __init__(self) -> None:
        bcc = load_bcc()
        os.environ["BCC_KERNEL_SOURCE"] = str(find_bpf())
        self.bpf: Any = bcc.BPF(text=PROGRAM, cflags=["-DCONFIG_BPF_SYSCALL", f"-I{find_bpf()}", "-DPAGE_SIZE=4096"])
        self.programs = {
            is_return: self.bpf.load_func(name, bcc.BPF.KPROBE, None, TRACE_UPROBE_MULTI).fd
            for is_return, name in ((False, b"on_entry"), (True, b"on_return"))
        }

    def hits(self) -> dict[int, int]:
        """Since it was last asked, by cookie."""
        table = self.bpf[b"hits"]
        found = {key.value: value.value for key, value in table.items()}
        table.clear()
        return found


@pytest.fixture(scope="module")
def counter() -> Iterator[Counter]:
    counter = Counter()
    yield counter
    counter.bpf.cleanup()


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("uprobed") / "uprobed"
    subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", path, SOURCE], check=True, timeout=60)
    return path


def offset_of(path: Path, function: str) -> int:
    """In the file, of its first instruction."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        symbols = table.get_symbol_by_name(function)
        assert symbols
        return next(elf.address_offsets(symbols[0]["st_value"]))


class Program:
    """`uprobed`, running."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        self.call(0)  # it runs, so it is mapped

    def call(self, times: int, added: int = 1) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{times}\n")
        self.process.stdin.flush()
        assert int(self.process.stdout.readline()) == sum(2 * left + added + 2 for left in range(1, times + 1))


@contextmanager
def running(path: Path) -> Iterator[Program]:
    program = Program(path)
    with program.process:
        try:
            yield program
        finally:
            program.process.kill()


def test_hits_with_their_cookies(binary: Path, counter: Counter) -> None:
    offsets = [offset_of(binary, "target"), offset_of(binary, "other")]
    with running(binary) as before:
        link = UprobeLink(counter.programs[False], str(binary), offsets, [7, 2**64 - 1 - ON_RETURN])
        with running(binary) as after:
            before.call(23)
            after.call(2)
            assert counter.hits() == {7: 25, 2**64 - 1 - ON_RETURN: 25}
            link.close()
            link.close()
            before.call(23)
            assert counter.hits() == {}


def test_the_probes_of_a_finding(binary: Path, counter: Counter) -> None:
    probes = (
        Probe(offset_of(binary, "target"), Purpose.ENTER, Call.WRITE),
        Probe(offset_of(binary, "target"), Purpose.LEAVE, Call.WRITE, on_return=True),
        Probe(offset_of(binary, "other"), Purpose.FREE),
    )
    links = attach_probes(counter.programs, str(binary), probes, 5)
    try:
        assert [link.count for link in links] == [2, 1]
        with running(binary) as program:
            program.call(23)
        assert counter.hits() == {
            probes[0].cookie(5): 23,
            probes[1].cookie(5) | ON_RETURN: 23,
            probes[2].cookie(5): 23,
        }
    finally:
        close_links(links)
    with running(binary) as program:
        program.call(23)
    assert counter.hits() == {}


def test_what_is_refused_in_part_is_not_attached(binary: Path, counter: Counter) -> None:
    before = len(os.listdir("/proc/self/fd"))
    probes = (Probe(offset_of(binary, "target"), Purpose.ENTER), Probe(2**40, Purpose.LEAVE, on_return=True))
    with pytest.raises(AttachError):
        attach_probes(counter.programs, str(binary), probes, 0)
    assert len(os.listdir("/proc/self/fd")) == before
    with running(binary) as program:
        program.call(2)
    assert counter.hits() == {}


def test_a_file_without_a_name(binary: Path, counter: Counter, tmp_path: Path) -> None:
    """Deleted and replaced: by descriptor, by the mapping, by the process' executable."""
    path = tmp_path / "replaced"
    for way in ("descriptor", "map_files", "exe"):
        shutil.copy(binary, path)
        with running(path) as program, path.open("rb") as file:
            path.unlink()
            path.write_bytes(b"something else")
            if way == "descriptor":
                name = f"/proc/self/fd/{file.fileno()}"
            elif way == "exe":
                name = f"/proc/{program.pid}/exe"
            else:
                mapping = next(parse_maps(read_maps(program.pid)))
                name = f"/proc/{program.pid}/map_files/{mapping.start:x}-{mapping.end:x}"
            link = UprobeLink(counter.programs[False], name, [offset_of(binary, "target")], [1])
            try:
                program.call(23)
                assert counter.hits() == {1: 23}, way
            finally:
                link.close()
        path.unlink()


@pytest.mark.parametrize(
    ("path", "offset", "reason", "error"),
    [
        ("/no/such/file", 0, "gone", errno.ENOENT),
        ("/proc/self/fd/1000000", 0, "gone", errno.ENOENT),
        ("/etc", 0, "not_a_file", errno.EBADF),
        ("/dev/null", 0, "not_a_file", errno.EBADF),
        (sys.executable, 2**40, "bad_offset", errno.EINVAL),
    ],
)
def test_reasons(counter: Counter, path: str, offset: int, reason: str, error: int) -> None:
    with pytest.raises(AttachError, match=path) as raised:
        UprobeLink(counter.programs[False], path, [offset], [0])
    assert (raised.value.reason, raised.value.errno) == (reason, error)


def test_bytes_that_are_no_instruction(binary: Path, counter: Counter, tmp_path: Path) -> None:
    """The kernel looks where a process has it mapped; elsewhere it takes anything."""
    path = tmp_path / "damaged"
    content = bytearray(binary.read_bytes())
    offset = offset_of(binary, "target")
    content[offset : offset + 4] = NOT_PROBED[platform.machine()]
    path.write_bytes(content)
    path.chmod(0o755)
    with running(path), pytest.raises(AttachError) as raised:
        UprobeLink(counter.programs[False], str(path), [offset], [0])
    assert raised.value.reason == "bad_instruction"


def test_fifty_programs_let_go(binary: Path, counter: Counter, tmp_path: Path) -> None:
    offsets = [offset_of(binary, "target"), offset_of(binary, "other")]
    links = []
    for index in range(50):
        path = tmp_path / str(index)
        shutil.copy(binary, path)
        links.append(UprobeLink(counter.programs[False], str(path), offsets, [index, index]))
    with running(tmp_path / "0") as first, running(tmp_path / "49") as last:
        first.call(1)
        last.call(2)
        assert counter.hits() == {0: 2, 49: 4}
        started = time.monotonic()
        close_links(links)
        assert time.monotonic() - started < 1
        first.call(1)
        last.call(2)
    assert counter.hits() == {}


def test_what_holds_the_probes_is_killed(binary: Path, counter: Counter) -> None:
    """The kernel takes them away with the last descriptor; the program goes on."""
    with running(binary) as program:
        holder = os.fork()
        if not holder:
            UprobeLink(counter.programs[False], str(binary), [offset_of(binary, "target")], [3])
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(1)
        os.waitpid(holder, os.WUNTRACED)
        program.call(23)
        assert counter.hits() == {3: 23}
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        program.call(23)
        assert counter.hits() == {}


# --- with discovery ------------------------------------------------------------------------------------------------------


class Links:
    def __init__(self, links: list[Link]) -> None:
        self._links = links

    def close(self) -> None:
        close_links(self._links)


def settle(found: Discovery) -> None:
    deadline = time.monotonic() + 10
    while not found.settled:
        found.poll()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def found(binary: Path, counter: Counter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Discovery]:
    """Discovery with real probes, of `uprobed` alone."""
    monkeypatch.setattr(discovery, "linked_tls_libraries", lambda _: [])
    monkeypatch.setattr(discovery, "processes", list)
    probe = Probe(offset_of(binary, "target"), Purpose.ENTER)
    analysis = Analysis(findings=(Finding(Library.OPENSSL, probes=(probe,), layout=Layout(Library.OPENSSL)),))
    found = Discovery(
        lambda _: analysis,
        lambda path, finding: Links(attach_probes(counter.programs, path, finding.probes, 0)),
        lambda *_: None,
    )
    found.start()
    yield found
    found.close()


def marked(binary: Path, path: Path) -> Path:
    """A copy that looks as if it had TLS in it."""
    shutil.copy(binary, path)
    with path.open("ab") as file:
        file.write(b"SSL_")
    return path


def test_overlays_of_one_layer_are_probed_once(
    binary: Path, counter: Counter, found: Discovery, tmp_path: Path
) -> None:
    """Two containers of one image, and the layer itself: three names, one inode, and each hit is one hit."""
    layer = tmp_path / "layer"
    layer.mkdir()
    paths = [marked(binary, layer / "server")]
    mounts = []
    try:
        for name in ("one", "two"):
            top = tmp_path / name
            top.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", top], check=True, timeout=10)
            mounts.append(top)
            for part in ("upper", "work", "merged"):
                (top / part).mkdir()
            options = f"lowerdir={layer},upperdir={top}/upper,workdir={top}/work"
            subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, top / "merged"], check=True, timeout=10)
            mounts.append(top / "merged")
            paths.append(top / "merged/server")
        with running(paths[0]) as below, running(paths[1]) as one, running(paths[2]) as two:
            keys = set()
            # In an order in which an overlay comes first.
            for program, path in ((one, paths[1]), (two, paths[2]), (below, paths[0])):
                with path.open("rb") as file:
                    key = key_of(file.fileno())
                assert key is not None
                assert key in {mapping.key for mapping in parse_maps(read_maps(program.pid))}
                keys.add(key)
                found.executed(program.pid, *key)
                settle(found)
            assert len(keys) == 3
            assert found.counts().attached_files == 1
            for program in (one, two, below):
                program.call(23)
                hits = counter.hits()
                assert list(hits.values()) == [23]
    finally:
        found.close()
        for mount in reversed(mounts):
            subprocess.run(["umount", mount], check=True, timeout=10)


def test_a_program_that_is_built_again_runs(binary: Path, counter: Counter, found: Discovery, tmp_path: Path) -> None:
    """Written into the inode that has probes: the kernel would go on running the instruction that was there before."""
    path = marked(binary, tmp_path / "server")
    with path.open("rb") as file:
        key = key_of(file.fileno())
    assert key is not None
    with running(path) as program:
        found.executed(program.pid, *key)
        settle(found)
        program.call(23)
        assert list(counter.hits().values()) == [23]
    found.exited(program.pid)
    other = tmp_path / "other"
    subprocess.run(["gcc", "-O1", "-DADDED=5", "-o", str(other), str(SOURCE)], check=True, timeout=60)
    assert offset_of(other, "target") == offset_of(binary, "target")
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(other.read_bytes())
    found.poll()
    assert found.counts().attached_files == 0
    wait_for_detachment()
    with running(path) as program:
        program.call(23, added=5)
    assert counter.hits() == {}


def wait_for_detachment() -> None:
    """Done by a thread: no descriptor of this process is a link any more."""
    deadline = time.monotonic() + 10
    while any("bpf_link" in os.readlink(f"/proc/self/fd/{name}") for name in list_descriptors()):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def list_descriptors() -> list[str]:
    return [name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")]


def test_attaching_takes_little(binary: Path, counter: Counter) -> None:
    """While processes have it mapped."""
    with running(binary), running(binary):
        times = []
        for _ in range(3):
            started = time.monotonic()
            link = UprobeLink(counter.programs[False], str(binary), [offset_of(binary, "target")], [0])
            times.append(time.monotonic() - started)
            link.close()
    assert min(times) < 0.1
