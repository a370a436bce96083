"""What sources/kernel.py does before and beside the kernel: the program's text, its -D, cutting batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from netprofiler import counters, wire
from netprofiler.errors import CommandError
from netprofiler.sources import kernel
from netprofiler.sources.kernel import Filters

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
