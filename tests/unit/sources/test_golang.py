"""sources/golang.py, on programs built here: what it finds is what the linker and the running program say; and on files that are
damaged, made up or patched, it ends in time, in a reason.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import re
import resource
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netprofiler.sources import golang
from netprofiler.sources.golang import analyse_go
from netprofiler.sources.probes import Finding, Library, Probe, Purpose

REPOSITORY = Path(__file__).parents[3]

WRITE = "crypto/tls.(*Conn).Write"
READ = "crypto/tls.(*Conn).Read"
READ_RECORD = "crypto/tls.(*Conn).readRecordOrCCS"
READ_HANDSHAKE = "crypto/tls.(*Conn).readHandshake"
DECRYPT = "crypto/tls.(*halfConn).decrypt"

PROGRAM = """
package main

import (
	"crypto/tls"
	"encoding/json"
	"net"
	"os"
	"reflect"
	"unsafe"
)

// Tells where *net.TCPConn and (*tls.Conn).Write really are, and what a net.netFD looks like.
func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		panic(err)
	}
	var descriptor uintptr
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		panic(err)
	}
	raw.Control(func(fd uintptr) { descriptor = fd })
	secured := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	if len(os.Args) > 1 {
		secured.Read(make([]byte, 1))
	}
	var any interface{} = conn
	words := (*[2]uintptr)(unsafe.Pointer(&any))
	first := *(*uintptr)(unsafe.Pointer(words[1]))
	table := **(**[2]uintptr)(unsafe.Pointer(secured))
	json.NewEncoder(os.Stdout).Encode(map[string]interface{}{
		"type":       words[0],
		"conn_type":  table[1],
		"write":      reflect.ValueOf((*tls.Conn).Write).Pointer(),
		"descriptor": descriptor,
		"net_fd":     *(*[8]uintptr)(unsafe.Pointer(first)),
	})
}
"""

MODES = {
    "plain": ("0", []),
    "stripped": ("0", ["-ldflags=-s -w"]),
    "pie": ("0", ["-buildmode=pie"]),
    "external": ("1", ["-ldflags=-linkmode=external"]),
    "external stripped pie": ("1", ["-buildmode=pie", "-ldflags=-linkmode=external -s -w"]),
}


@functools.cache
def go() -> str:
    done = subprocess.run([REPOSITORY / "scripts/go.sh"], capture_output=True, text=True, check=True)
    return f"{done.stdout.strip()}/go"


def build(directory: Path, source: str, cgo: str, options: list[str], **environment: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "main.go").write_text(source)
    (directory / "go.mod").write_text("module program\n\ngo 1.17\n")
    done = subprocess.run(
        [go(), "build", *options, "-o", "program", "."],
        cwd=directory,
        env={**os.environ, "CGO_ENABLED": cgo, "GOTOOLCHAIN": "local", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory / "program"


class Image:
    """An ELF file, read by other means than those under test."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        table, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
        headers = [struct.unpack_from("<IIQQQQ", data, table + index * size) for index in range(count)]
        self.segments: list[tuple[int, int, int]] = [
            (header[3], header[2], header[5]) for header in headers if header[0] == 1
        ]

    def offset(self, address: int) -> int:
        return next(at + address - start for start, at, size in self.segments if start <= address < start + size)

    def address(self, offset: int) -> int:
        return next(start + offset - at for start, at, size in self.segments if at <= offset < at + size)

    def patched(self, at: int, code: bytes) -> bytes:
        return self.data[:at] + code + self.data[at + len(code) :]


@dataclass(frozen=True)
class Program:
    path: Path
    data: bytes
    truth: dict[str, int]
    net_fd: list[int]

    @property
    def image(self) -> Image:
        return Image(self.data)


@functools.cache
def _program(base: Path, mode: str) -> Program:
    cgo, options = MODES[mode]
    path = build(base / mode.replace(" ", "-"), PROGRAM, cgo, options)
    truth = json.loads(subprocess.run([path], capture_output=True, check=True).stdout)
    return Program(path, path.read_bytes(), truth, truth.pop("net_fd"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("go")


@pytest.fixture(params=MODES)
def program(request: pytest.FixtureRequest, base: Path) -> Program:
    return _program(base, request.param)


@pytest.fixture
def plain(base: Path) -> Program:
    return _program(base, "plain")


@functools.cache
def symbols(path: Path) -> dict[str, tuple[int, int]]:
    """Address and size, as the linker has them."""
    lines = subprocess.run([go(), "tool", "nm", "-size", path], capture_output=True, text=True, check=True).stdout
    wanted = re.compile(r"^ *([0-9a-f]+) +(\d+) [Tt] (crypto/tls\.\S+)$", re.MULTILINE)
    return {name: (int(address, 16), int(size)) for address, size, name in wanted.findall(lines)}


def found(data: bytes) -> Finding:
    finding = analyse_go(data)
    assert finding is not None
    assert finding.library is Library.GO
    return finding


def site(finding: Finding, purpose: Purpose) -> Probe:
    [probe] = [probe for probe in finding.probes if probe.purpose is purpose]
    return probe


def behind_decrypt(image: Image, names: dict[str, tuple[int, int]]) -> int:
    """Offset behind the one call of decrypt in readRecordOrCCS: e8 and the distance."""
    start, size = names[READ_RECORD]
    at = image.offset(start)
    [behind] = [
        place + 5
        for place in range(at, at + size - 5)
        if image.data[place] == 0xE8
        and start + place + 5 - at + struct.unpack_from("<i", image.data, place + 1)[0] == names[DECRYPT][0]
    ]
    return behind


def test_what_is_found_is_what_the_running_program_says(program: Program) -> None:
    finding = found(program.data)
    assert finding.problem == ""
    assert finding.notes == ()
    version = subprocess.run([go(), "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout.split()[0]
    assert finding.version == version
    assert [probe.purpose for probe in finding.probes] == [Purpose.GO_WRITE, Purpose.GO_HANDSHAKE, Purpose.GO_DECRYPTED]
    assert all(probe.emulated and not probe.on_return for probe in finding.probes)
    assert [probe.function for probe in finding.probes] == [WRITE, READ_HANDSHAKE, READ_RECORD]

    write, handshake, decrypted = finding.probes
    image, layout = program.image, finding.layout
    assert layout is not None
    assert program.data[write.offset] == program.data[handshake.offset] == 0x55  # push %rbp
    assert program.data[decrypted.offset] in (0x0F, 0x74, 0x75)
    assert program.data[decrypted.offset - 3 : decrypted.offset] == b"\x48\x85\xf6"  # test %rsi,%rsi
    # A PIE is loaded anywhere, so distances are compared: the type from the function, and the function from the site.
    from_entry = program.truth["type"] - program.truth["write"]
    assert program.truth["type"] == program.truth["conn_type"]
    prologue = from_entry - layout.conn_type_from_write
    assert 0 < prologue <= 24
    assert (
        image.address(write.offset) + layout.conn_type_from_write
        == image.address(handshake.offset) + layout.conn_type_from_handshake
        == image.address(decrypted.offset) + layout.conn_type_from_read
    )
    assert layout.conn_itab_type == 8
    assert program.net_fd[layout.descriptor // 8] == program.truth["descriptor"]
    assert layout.descriptor == 16


@pytest.mark.parametrize("mode", ["plain", "pie", "external"])
def test_sites_lie_where_the_linker_put_the_functions(base: Path, mode: str) -> None:
    program = _program(base, mode)
    names, finding, image = symbols(program.path), found(program.data), program.image
    for purpose in (Purpose.GO_WRITE, Purpose.GO_HANDSHAKE):
        probe = site(finding, purpose)
        start, _ = names[probe.function]
        entry = image.offset(start)
        assert program.data[probe.offset - 6 : probe.offset - 4] == b"\x0f\x86"  # jbe runtime.morestack
        assert entry < probe.offset <= entry + 24
    assert site(finding, Purpose.GO_DECRYPTED).offset == behind_decrypt(image, names) + 3


def test_stripping_moves_nothing(base: Path) -> None:
    assert found(_program(base, "stripped").data) == found(_program(base, "plain").data)


def test_without_a_table_of_sections(base: Path, program: Program) -> None:
    """sstrip and some packers take it away; the segments have all that is needed."""
    data = bytearray(program.data)
    struct.pack_into("<Q", data, 40, 0)
    struct.pack_into("<HHH", data, 58, 0, 0, 0)
    assert found(bytes(data)) == found(program.data)


def test_mapped_is_as_read(plain: Program) -> None:
    with plain.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
        assert analyse_go(image) == found(plain.data)


def test_go_without_tls_and_what_is_no_go(base: Path) -> None:
    path = build(base / "silent", 'package main\n\nfunc main() { println("x") }\n', "0", [])
    assert analyse_go(path.read_bytes()) is None
    assert analyse_go(Path(sys.executable).resolve().read_bytes()) is None
    assert analyse_go(b"") is None
    assert analyse_go(b"\x7fELF") is None
    assert analyse_go(b"#!/bin/sh\n" * 100) is None


def test_another_architecture_is_a_problem_only_with_tls(plain: Program) -> None:
    arm64 = plain.image.patched(18, b"\xb7\x00")
    assert found(arm64).problem == "only Go for x86-64 is understood"
    assert analyse_go(arm64.replace(b"crypto/tls.(*Conn).Write", b"crypto/tls.(*Conn).Wrath")) is None


def test_a_jump_that_is_not_passed_with_the_results_intact_is_not_taken(plain: Program) -> None:
    """test %rsi,%rsi becomes xor %rax,%rax: the data is gone, so the place right behind the call is what remains."""
    behind = behind_decrypt(plain.image, symbols(plain.path))
    finding = found(plain.image.patched(behind, b"\x48\x31\xc0"))
    decrypted = site(finding, Purpose.GO_DECRYPTED)
    assert (decrypted.offset, decrypted.emulated) == (behind, False)
    assert finding.notes == (
        f"{READ_RECORD} is probed right behind decrypt, single-stepped: its jump on the error was not found",
    )
    assert site(finding, Purpose.GO_HANDSHAKE) == site(found(plain.data), Purpose.GO_HANDSHAKE)
    assert decrypted.displacement == site(found(plain.data), Purpose.GO_DECRYPTED).displacement


def spill(program: Program) -> tuple[int, int]:
    """Offset of the instruction by which readRecordOrCCS puts its first argument into its caller's frame, and how far that is
    from SP: the frame, the caller's frame pointer, and the address to return to.
    """
    start, size = symbols(program.path)[READ_RECORD]
    at = program.image.offset(start)
    code = program.data[at : at + size]
    before = re.search(rb"\x55\x48\x89\xe5\x48\x81\xec(....)", code, re.DOTALL)  # push %rbp; mov %rsp,%rbp; sub $…,%rsp
    assert before is not None
    displacement = struct.unpack("<i", before[1])[0] + 16
    return at + code.index(b"\x48\x89\x84\x24" + struct.pack("<i", displacement)), displacement  # mov %rax,…(%rsp)


def assert_read_at_both(program: Program, data: bytes) -> None:
    """Where the connection lies is not proven, so the function is probed at its beginning, as it is behind decrypt."""
    finding = found(data)
    assert [probe.purpose for probe in finding.probes] == [Purpose.GO_WRITE, Purpose.GO_READ, Purpose.GO_DECRYPTED]
    read, decrypted = finding.probes[1:]
    whole = site(found(program.data), Purpose.GO_DECRYPTED)
    assert (decrypted.offset, decrypted.displacement) == (whole.offset, 0)
    start, _ = symbols(program.path)[READ_RECORD]
    assert program.image.offset(start) < read.offset <= program.image.offset(start) + 24
    assert finding.notes == (
        f"{READ_RECORD} is probed at its beginning too: it was not found where it keeps the connection",
    )
    layout = finding.layout
    assert layout is not None
    assert program.image.address(read.offset) + layout.conn_type_from_read == program.truth["type"]
    assert layout.conn_type_from_handshake == 0


@pytest.mark.parametrize("mode", ["plain", "pie", "external"])
def test_the_connection_lies_where_its_caller_keeps_a_place_for_it(base: Path, mode: str) -> None:
    program = _program(base, mode)
    assert site(found(program.data), Purpose.GO_DECRYPTED).displacement == spill(program)[1]


def test_a_connection_that_is_not_kept_there(plain: Program) -> None:
    at, _ = spill(plain)
    for other in (
        b"\x48\x89\x9c\x24",  # mov %rbx,…(%rsp)
        b"\x48\x8b\x84\x24",  # mov …(%rsp),%rax
        b"\x48\x89\x84\x25",  # mov %rax,…(%rbp)
    ):
        assert_read_at_both(plain, plain.image.patched(at, other))


def test_a_place_that_is_written_to_again(plain: Program) -> None:
    """One of the instructions that read it becomes one that writes, or that takes its address."""
    at, displacement = spill(plain)
    reads = b"\x48\x8b\x84\x24" + struct.pack("<i", displacement)
    later = plain.data.index(reads, at)
    for other in (b"\x48\x89\x84\x24", b"\x48\x8d\x84\x24", b"\x48\x01\x84\x24"):  # mov, lea, add
        assert_read_at_both(plain, plain.image.patched(later, other))
    # 8 bytes from 4 before it.
    overlapping = b"\x48\x89\x84\x24" + struct.pack("<i", displacement - 4)
    assert_read_at_both(plain, plain.image.patched(later, overlapping))


def test_a_way_to_the_plaintext_that_does_not_put_the_connection_there(plain: Program) -> None:
    """The jump before it, to where an earlier error is returned, is made to lead to the call of decrypt."""
    at, _ = spill(plain)
    jump = plain.data.rindex(b"\x0f\x85", 0, at)  # jne
    assert at - jump == 6
    call = behind_decrypt(plain.image, symbols(plain.path)) - 5
    assert_read_at_both(plain, plain.image.patched(jump + 2, struct.pack("<i", call - at)))


def test_a_connection_that_is_replaced_before_it_is_kept(plain: Program) -> None:
    """test %rdx,%rdx before the jump becomes mov %rbx,%rax."""
    at, _ = spill(plain)
    assert plain.data[at - 9 : at - 6] == b"\x48\x85\xd2"
    assert_read_at_both(plain, plain.image.patched(at - 9, b"\x48\x89\xd8"))


def test_a_stack_pointer_that_moves_in_the_middle(plain: Program) -> None:
    """An instruction that reads the place becomes push %rax, pop %rax: then SP is not the same all over."""
    at, displacement = spill(plain)
    reads = plain.data.index(b"\x48\x8b\x84\x24" + struct.pack("<i", displacement), at)
    assert_read_at_both(plain, plain.image.patched(reads, b"\x50\x58" + b"\x90" * 6))


def test_without_the_function_that_reads_the_handshake(plain: Program) -> None:
    """Its name is taken away."""
    data = plain.data.replace(f"\0{READ_HANDSHAKE}\0".encode(), f"\0{READ_HANDSHAKE[:-1]}k\0".encode())
    assert_read_at_both(plain, data)


def test_a_site_inside_a_loop_is_not_taken(plain: Program) -> None:
    """The jump of the stack's check is made to lead to the push, which would then run without the check."""
    push = site(found(plain.data), Purpose.GO_WRITE).offset
    finding = found(plain.image.patched(push - 4, struct.pack("<i", 0)))
    write = site(finding, Purpose.GO_WRITE)
    assert (write.offset, write.emulated) == (push, False)
    assert finding.notes == (f"{WRITE} is probed on an instruction that is single-stepped: its beginning has no other",)


def test_arguments_that_are_gone_before_the_first_emulated_instruction(plain: Program) -> None:
    push = site(found(plain.data), Purpose.GO_WRITE).offset
    finding = found(plain.image.patched(push, b"\x31\xdb\x90\x90"))  # xor %ebx,%ebx
    assert site(finding, Purpose.GO_WRITE).offset == push
    assert not site(finding, Purpose.GO_WRITE).emulated


def test_without_the_call_of_decrypt_the_returns_of_read_are_probed(plain: Program) -> None:
    names = symbols(plain.path)
    finding = found(plain.image.patched(behind_decrypt(plain.image, names) - 5, b"\x0f\x1f\x44\x00\x00"))
    call = site(finding, Purpose.GO_READ_CALL)
    start, _ = names[READ]
    assert plain.image.offset(start) < call.offset <= plain.image.offset(start) + 24
    assert call.emulated
    returns = [probe for probe in finding.probes if probe.purpose is Purpose.GO_READ_RETURN]
    listing = subprocess.run(
        [go(), "tool", "objdump", "-s", r"^crypto/tls\.\(\*Conn\)\.Read$", plain.path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = [int(line.split()[1], 16) for line in listing.splitlines() if line.split()[-1] == "RET"]
    assert [plain.image.address(probe.offset) for probe in returns] == expected
    assert len(expected) > 3
    assert all(not probe.emulated and not probe.on_return for probe in returns)
    assert any("at ten times the cost" in note for note in finding.notes)
    layout = finding.layout
    assert layout is not None
    assert plain.image.address(call.offset) + layout.conn_type_from_read == plain.truth["type"]


def test_arguments_on_the_stack_are_refused(plain: Program) -> None:
    """Go before 1.17 compares with the goroutine that it loads from %fs, not with R14: cmp 0x10(%rcx),%r12."""
    push = site(found(plain.data), Purpose.GO_WRITE).offset
    assert plain.data[push - 10 : push - 6] == b"\x4d\x3b\x66\x10"  # cmp 0x10(%r14),%r12
    finding = found(plain.image.patched(push - 10, b"\x4c\x3b\x61\x10"))
    assert finding.problem == f"{WRITE} does not take its arguments in registers: Go before 1.17, or unknown"
    assert finding.probes == ()
    assert finding.version.startswith("go1.")


def test_a_type_of_the_same_name_in_another_package_is_not_taken(plain: Program) -> None:
    """Without its name the type cannot be found, and the note says what follows."""
    finding = found(plain.data.replace(b"\x0c*net.TCPConn", b"\x0c*not.TCPConn"))
    layout = finding.layout
    assert layout is not None
    assert (layout.conn_type_from_write, layout.conn_type_from_read) == (0, 0)
    assert finding.notes == (
        "sockets are found by the system calls inside reads and writes: type *net.TCPConn was not found",
    )
    assert len(finding.probes) == 3


MAGIC = struct.pack("<I", 0xFFFFFFF1) + b"\0\0\x01\x08"


def test_a_table_of_functions_that_is_not_one(plain: Program) -> None:
    at = plain.data.index(MAGIC)
    for finding in (
        found(plain.image.patched(at, bytes(8))),
        found(plain.image.patched(at + 8, b"\xff" * 64)),
        found(plain.image.patched(at + 8, struct.pack("<Q", 1 << 40))),
    ):
        assert finding.problem == "its table of functions was not found"
    # It looks right, but the runtime does not use it.
    module = plain.data.index(
        struct.pack(
            "<QQ", plain.image.address(at), plain.image.address(at) + struct.unpack_from("<Q", plain.data, at + 32)[0]
        )
    )
    assert found(plain.image.patched(module, bytes(8))).problem == "its table of functions belongs to no module"


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096, 100_000])
def test_truncated_at_the_start(plain: Program, size: int) -> None:
    assert analyse_go(plain.data[:size]) is None


def test_truncated_anywhere(plain: Program) -> None:
    whole = found(plain.data)
    for tenth in range(1, 20):
        finding = analyse_go(plain.data[: len(plain.data) * tenth // 20])
        assert finding is None or finding.problem or finding.probes == whole.probes


def test_a_sparse_file_of_two_gigabytes(tmp_path: Path, plain: Program) -> None:
    """Every section and segment says that it is as large as the file; the table of functions is nowhere."""
    data = bytearray(plain.data.replace(MAGIC, bytes(8)))
    size = 2 << 30
    table, entry, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    for index in range(count):
        struct.pack_into("<QQ", data, table + index * entry + 32, size, size)
    table, entry, count = *struct.unpack_from("<Q", data, 40), *struct.unpack_from("<HH", data, 58)
    for index in range(count):
        struct.pack_into("<Q", data, table + index * entry + 32, size)
    path = tmp_path / "sparse"
    path.write_bytes(data)
    os.truncate(path, size)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
        finding = analyse_go(image)
        assert finding is not None
        assert finding.problem == "it is too large, or repeats too much, to be searched"
        assert time.process_time() - start < 10
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown <= golang.SCANNED_BYTES_MAX * 5 // 4  # pages of the file, which the kernel may drop


def test_what_is_searched_for_a_million_times(plain: Program) -> None:
    """Fake tables, and fake names of the type, everywhere."""
    start = time.process_time()
    at = plain.data.index(MAGIC)
    table = plain.data[at : at + 96]
    assert found(plain.data.replace(MAGIC, bytes(8)) + table * 50_000).problem
    name = b"\x01\x0c*net.TCPConn"
    flood = plain.data[: plain.data.index(name)] + name * 100_000
    finding = analyse_go(flood + plain.data[len(flood) :])
    assert finding is None or finding.problem or finding.notes
    assert time.process_time() - start < 10


INTERESTING = st.sampled_from(
    [0, 1, 7, 8, 0x7F, 0x80, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 47, 1 << 63, (1 << 64) - 1]
)


@st.composite
def damage(draw: st.DrawFn) -> list[tuple[str, int, bytes]]:
    """Values that mean something where tables are, or anything anywhere."""
    where = st.sampled_from(
        ["header", "programs", "sections", "table", "module", "name", "type", "write", "record", "anywhere"]
    )
    what = st.one_of(INTERESTING.map(lambda value: value.to_bytes(8, "little")), st.binary(min_size=1, max_size=16))
    return draw(st.lists(st.tuples(where, st.integers(0, 1 << 24), what), min_size=1, max_size=8))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(damages=damage(), mode=st.sampled_from(["stripped", "external stripped pie"]))
def test_damage_never_raises(base: Path, damages: list[tuple[str, int, bytes]], mode: str) -> None:
    program = _program(base, mode)
    whole = found(program.data)
    image = program.image
    at = program.data.index(MAGIC)
    probes = {probe.purpose: probe.offset for probe in whole.probes}
    layout = whole.layout
    assert layout is not None
    kind = image.offset(image.address(probes[Purpose.GO_WRITE]) + layout.conn_type_from_write)
    sections = struct.unpack_from("<Q", program.data, 40)[0]
    places = {
        "header": (0, 64),
        "programs": (64, 56 * 12),
        "sections": (sections, len(program.data) - sections),
        "table": (at, 96),
        "module": (max(program.data.find(struct.pack("<Q", image.address(at))), 0), 512),
        "name": (program.data.index(WRITE.encode()), 32),
        "type": (kind, 80),
        "write": (probes[Purpose.GO_WRITE] - 16, 64),
        "record": (probes[Purpose.GO_DECRYPTED] - 16, 64),
        "anywhere": (0, len(program.data)),
    }
    data = bytearray(program.data)
    for where, index, what in damages:
        start, size = places[where]
        place = start + index % max(size, 1)
        data[place : place + len(what)] = what
    start_s = time.process_time()
    finding = analyse_go(bytes(data))
    assert time.process_time() - start_s < 5
    if finding is None:
        return
    assert bool(finding.problem) != bool(finding.probes)
    for probe in finding.probes:
        assert 0 <= probe.offset < len(data)
        assert not probe.on_return
        probe.cookie(0)
    if finding.layout is not None:
        assert finding.layout.pack()


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=2048))
def test_any_bytes_behind_a_header_that_is_right(data: bytes) -> None:
    finding = analyse_go(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00" + data)
    assert finding is None or finding.problem
