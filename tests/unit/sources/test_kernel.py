"""What sources/kernel.py does before and beside the kernel: the program's text, its -D, cutting batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from netprofiler import counters, wire
from netprofiler.errors import CommandError, ExitCode
from netprofiler.sources import bpf, features, kernel
from netprofiler.sources.compiler import ObjectCache
from netprofiler.sources.kernel import Filters, KernelSource
from netprofiler.sources.uprobes import Way

BPF = kernel.find_bpf()


def test_the_unit_holds_every_file_of_ours_and_no_include_line_is_left() -> None:
    text = kernel.assemble(BPF)
    for name in ("events.h", "arch.h", "maps.h", "socket.h", "detect.h", "syscalls.h"):
        assert f'#line 1 "{name}"' in text
        assert f'#include "{name}"' not in text
    assert "int on_sys_exit(" in text


def test_every_offset_that_the_program_names_is_asked_for() -> None:
    wanted = kernel.needed_offsets(kernel.assemble(BPF))
    assert "task_struct.files" in wanted
    assert "tcp_sock.copied_seq" in wanted
    assert "sock_common.skc_net" in wanted
    assert len(wanted) == len(set(wanted)) > 25


def test_ledger_rows_stand_in_the_order_of_the_header() -> None:
    """maps.h says ROW_NAME number; counters.KERNEL_ROWS is read by that number."""
    rows = {}
    for line in (BPF / "maps.h").read_text().splitlines():
        if line.startswith("#define ROW_"):
            _, name, number = line.split()
            rows[int(number)] = name.removeprefix("ROW_").lower()
    assert tuple(rows[number] for number in sorted(rows)) == counters.KERNEL_ROWS
    assert f"#define ROWS {len(counters.KERNEL_ROWS)}\n" in (BPF / "maps.h").read_text()


def test_without_filters_the_program_has_none() -> None:
    assert kernel._filter_flags(Filters()) == ["-DFILTER_COMM_COUNT=0"]


@pytest.mark.parametrize(
    ("filters", "flags"),
    [
        (Filters(pids=(1,)), {"-DFILTER_PID=1", "-DFILTER_PROCESS"}),
        (Filters(exclude_pids=(1,)), {"-DFILTER_PID=2", "-DFILTER_PROCESS"}),
        (Filters(ports=(80,), exclude_ports=(81,)), {"-DFILTER_PORT=1"}),
        (Filters(comms=("a",), exclude_comms=("b",)), {"-DFILTER_COMM=1", "-DFILTER_PROCESS"}),
        (Filters(executables=("/bin/a",)), {"-DFILTER_EXECUTABLE=1", "-DFILTER_PROCESS"}),
    ],
)
def test_a_kind_of_filter_is_compiled_in_when_it_is_used(filters: Filters, flags: set[str]) -> None:
    made = set(kernel._filter_flags(filters))
    assert {flag for flag in made if not flag.startswith("-DFILTER_COMM_COUNT")} == flags


def test_more_filters_than_the_map_holds_are_refused_by_name() -> None:
    with pytest.raises(CommandError, match="at most 16 filters by comm") as caught:
        kernel._filter_flags(Filters(comms=tuple(f"name{i}" for i in range(17))))
    assert caught.value.exit_code == 2


# --- what is loaded ---------------------------------------------------------------------------------------------------

MARKED = bpf.INSTRUCTION.pack(0x15, 2, 1, kernel.AGENT_PID_MARKER)  # if r2 == AGENT_PID goto +1


def test_the_agents_pid_takes_its_place() -> None:
    made = bpf.Object((), {"on_sys_exit": MARKED * 2, "on_probe": MARKED, "on_exit": bytes(8)}, variant=1)
    mine = bpf.INSTRUCTION.pack(0x15, 2, 1, os.getpid())
    programs = {"on_sys_exit": mine * 2, "on_probe": mine, "on_exit": bytes(8)}
    assert kernel.put_agent_pid(made) == bpf.Object((), programs, variant=1)


@pytest.mark.parametrize(
    "programs",
    [
        {"on_sys_exit": bytes(8), "on_probe": MARKED},
        {"on_sys_exit": MARKED, "on_probe": bytes(8)},
        {"on_sys_exit": MARKED, "on_exit": MARKED},
    ],
    ids=["not in on_sys_exit", "not in on_probe", "in on_exit, too"],
)
def test_a_program_that_cannot_tell_the_agent_is_not_loaded(programs: dict[str, bytes]) -> None:
    with pytest.raises(CommandError, match="places for the agent's pid"):
        kernel.put_agent_pid(bpf.Object((), programs))


class Kernel:
    """What takes programs, or refuses them, in the place of bpf.Loaded; and a compiler."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, refused: set[int]) -> None:
        self.refused = refused
        self.compiled: list[int] = []
        self.loaded: list[int] = []
        monkeypatch.setattr(kernel, "compile_object", self.compile_object)
        monkeypatch.setattr(bpf, "Loaded", self.load)

    def compile_object(self, _text: str, flags: Sequence[str], _bpf: Path, variant: int) -> bpf.Object:
        assert ("-DSOCKET_EVENTS" in flags) is (variant == kernel.SOCKET_EVENTS)
        assert ("-DDIRECT_READS" in flags) is (variant < kernel.COPIED_READS)
        self.compiled.append(variant)
        return bpf.Object((), {"on_sys_exit": MARKED, "on_probe": MARKED}, variant)

    def load(self, made: bpf.Object, _wanted: object) -> int:
        self.loaded.append(made.variant)
        if made.variant in self.refused:
            raise bpf.ProgramRefused(22, "on_exec: Invalid argument: unknown func")
        return made.variant

    def start(self, *, variant: int = 0, cached: bool = True) -> tuple[object, list[int], list[int]]:
        """What is loaded at last; what was compiled, and what was tried, on the way."""
        self.compiled, self.loaded = [], []
        source = KernelSource.__new__(KernelSource)
        source._follows_forks, source._tls, source._functions, source._way = False, True, [1], Way.MULTI
        attempts = list(enumerate(kernel.VARIANTS))[variant:]
        loaded = source._compile_and_load("text", [], BPF, attempts, cached=cached)
        return loaded, self.compiled, self.loaded


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_second_start_compiles_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_side = Kernel(monkeypatch, refused=set())
    assert kernel_side.start() == (0, [0], [0])
    assert kernel_side.start() == (0, [], [0])


def test_a_second_start_does_not_try_what_was_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_side = Kernel(monkeypatch, refused={0})
    assert kernel_side.start() == (1, [0, 1], [0, 1])
    assert kernel_side.start() == (1, [], [1])


def test_what_was_kept_and_is_refused_now_is_compiled_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_side = Kernel(monkeypatch, refused=set())
    kernel_side.start()
    kernel_side.refused = {0}
    assert kernel_side.start() == (1, [0, 1], [0, 0, 1])
    assert kernel_side.start() == (1, [], [1])


def test_what_no_kernel_takes_is_an_error_and_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match="the kernel refused the program: on_exec: Invalid argument: unknown func"):
        Kernel(monkeypatch, refused=set(range(len(kernel.VARIANTS)))).start()
    assert not cache.exists()


def test_the_ways_to_compile_are_kept_apart(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_side = Kernel(monkeypatch, refused=set())
    assert kernel_side.start()[0] == 0
    assert kernel_side.start(variant=1) == (1, [1], [1])
    assert kernel_side.start() == (0, [], [0])


def test_where_it_is_asked_whether_it_compiles_nothing_is_kept_or_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_side = Kernel(monkeypatch, refused=set())
    assert kernel_side.start(cached=False) == (0, [0], [0])
    assert not cache.exists()
    kernel_side.start()
    assert kernel_side.start(cached=False) == (0, [0], [0])


def test_a_damaged_object_is_compiled_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_side = Kernel(monkeypatch, refused=set())
    kernel_side.start()
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert kernel_side.start() == (0, [0], [0])
    assert kernel_side.start() == (0, [], [0])
    assert ObjectCache(cache).read(kept.stem) is not None


# --- batches ----------------------------------------------------------------------------------------------------------


def _record(payload: bytes) -> bytes:
    return wire.frame(
        wire.build_data(wire.DataCaptured(1, 2, 3, 4, wire.SEND, 5, len(payload), wire.DATA_FIRST, 0, payload))
    )


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 47, 60])
def test_a_batch_cut_anywhere_ends_with_its_last_whole_record(cut: int) -> None:
    first, second = _record(b"GET / HTTP/1.1\r\n\r\n"), _record(b"x" * 33)
    whole = first + second
    assert wire.whole_length(whole) == len(whole)
    assert wire.whole_length(first + second[:cut]) == len(first)


def test_a_record_that_is_being_written_ends_the_batch() -> None:
    first, second = _record(b"a"), bytearray(_record(b"b"))
    second[3] |= 0x80  # RING_BUSY
    assert wire.whole_length(first + bytes(second)) == len(first)
    assert wire.whole_length(first + bytes(second)) == len(first)


def test_a_missing_source_tree_is_said_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "__file__", str(tmp_path / "netprofiler" / "sources" / "kernel.py"))
    with pytest.raises(CommandError, match="install netprofiler again"):
        kernel.find_bpf()


def test_a_kernel_without_ring_buffer_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "check_host", lambda: None)
    monkeypatch.setattr(features, "has_ring_buffer", lambda: False)
    with pytest.raises(CommandError, match="has no BPF ring buffer") as raised:
        KernelSource(kernel.Filters())
    assert raised.value.exit_code == ExitCode.HOST
    assert raised.value.remedy == "boot Linux 5.10 or newer"
