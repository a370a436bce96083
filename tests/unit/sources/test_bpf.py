"""sources/bpf.py: what is changed in instructions, and what comes back from the kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

import pytest

from netprofiler.sources import bpf

LEAVE = b"".join(bpf.INSTRUCTION.pack(operation, 0, 0, 0) for operation in (0xB7, 0x95))  # r0 = 0; exit
COUNTER = bpf.MapFacts("counter", bpf.MAP_TYPE_ARRAY, 4, 8, 2, 0)


def load_imm64(source: int, number: int, upper: int = 0) -> bytes:
    """R1 = number, or a map."""
    return bpf.INSTRUCTION.pack(bpf.LOAD_IMM64, source << 4 | 1, 0, number) + bpf.INSTRUCTION.pack(0, 0, 0, upper)


def descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")


# --- instructions -----------------------------------------------------------------------------------------------------


def test_map_references_are_replaced_and_numbers_are_not() -> None:
    code = load_imm64(bpf.PSEUDO_MAP_FD, 7) + load_imm64(0, 7, upper=7) + load_imm64(bpf.PSEUDO_MAP_FD, 9) + LEAVE
    assert bpf.relocate(code, {7: 0, 9: 1}) == (
        load_imm64(bpf.PSEUDO_MAP_FD, 0) + load_imm64(0, 7, upper=7) + load_imm64(bpf.PSEUDO_MAP_FD, 1) + LEAVE
    )


def test_the_second_half_of_a_number_is_no_instruction() -> None:
    looks_like_one = struct.pack("<BBhi", bpf.LOAD_IMM64, bpf.PSEUDO_MAP_FD << 4, 0, 7)
    code = bpf.INSTRUCTION.pack(bpf.LOAD_IMM64, 1, 0, 5) + looks_like_one + LEAVE
    assert bpf.relocate(code, {7: 0}) == code
    assert bpf.replace_immediate(code, 7, 8) == (code, 0)


@pytest.mark.parametrize("source", [bpf.PSEUDO_MAP_FD, 2, 15])
def test_a_reference_to_something_unknown_is_refused(source: int) -> None:
    with pytest.raises(ValueError, match=f"kind {source} to 8"):
        bpf.relocate(load_imm64(source, 8), {7: 0})


def test_an_immediate_is_replaced_wherever_it_stands_but_in_a_map_reference() -> None:
    compare = bpf.INSTRUCTION.pack(0x15, 2, 3, 7)  # if r2 == 7 goto +3
    other = bpf.INSTRUCTION.pack(0x15, 2, 7, 3)
    code = compare + load_imm64(bpf.PSEUDO_MAP_FD, 7) + other + load_imm64(0, 7) + LEAVE
    assert bpf.replace_immediate(code, 7, 4_000_000) == (
        bpf.INSTRUCTION.pack(0x15, 2, 3, 4_000_000)
        + load_imm64(bpf.PSEUDO_MAP_FD, 7)
        + other
        + load_imm64(0, 4_000_000)
        + LEAVE,
        2,
    )


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ""),
        ("0: R1=ctx()\nR2 !read_ok\nprocessed 1 insns (limit 1000000)\n", "R2 !read_ok"),
        (
            "unknown func bpf_x#99\nverification time 12 usec\nstack depth 0\nprocessed 1 insns\n\n",
            "unknown func bpf_x#99",
        ),
    ],
)
def test_what_the_verifier_said_last(log: str, words: str) -> None:
    assert bpf.last_words(log) == words


# --- in the kernel ----------------------------------------------------------------------------------------------------


@pytest.mark.kernel
def test_a_map_gives_back_what_was_put_in() -> None:
    table = bpf.Map(bpf.MapFacts("table", bpf.MAP_TYPE_HASH, 2, 3, 4, 0))
    try:
        assert table.lookup(b"ab") is None
        assert table.delete(b"ab") is False
        table.update(b"ab", b"123")
        table.update(b"cd", b"456")
        table.update(b"ab", b"789")
        assert (table.lookup(b"ab"), table.lookup(b"cd")) == (b"789", b"456")
        assert table.delete(b"ab") is True
        assert table.lookup(b"ab") is None
    finally:
        os.close(table.descriptor)


@pytest.mark.kernel
def test_keys_and_values_of_another_size_never_reach_the_kernel() -> None:
    table = bpf.Map(COUNTER)
    try:
        for key, value in (
            (b"123", b"12345678"),
            (b"12345", b"12345678"),
            (b"\0\0\0\0", b"1234567"),
            (b"\0\0\0\0", b""),
        ):
            with pytest.raises(ValueError, match=r"no (key|value)"):
                table.update(key, value)
        with pytest.raises(ValueError, match="no key"):
            table.lookup(b"")
        assert table.lookup(b"\0\0\0\0") == bytes(8)
    finally:
        os.close(table.descriptor)


@pytest.mark.kernel
def test_a_per_cpu_map_has_a_value_for_each_cpu() -> None:
    table = bpf.Map(bpf.MapFacts("percpu", bpf.MAP_TYPE_PERCPU_ARRAY, 4, 12, 1, 0))
    try:
        assert table.lookup_all(bytes(4)) == [bytes(12)] * bpf.possible_cpus()
        with pytest.raises(ValueError, match="no value"):
            table.update(bytes(4), bytes(12))
    finally:
        os.close(table.descriptor)


@pytest.mark.kernel
def test_a_program_that_is_refused_says_why() -> None:
    before = descriptors()
    read_r2 = bpf.INSTRUCTION.pack(0xBF, 2 << 4, 0, 0) + bpf.INSTRUCTION.pack(0x95, 0, 0, 0)  # r0 = r2; exit
    with pytest.raises(bpf.ProgramRefused, match=r"reads_r2: Permission denied: R2 !read_ok") as raised:
        bpf.load_program(bpf.PROG_TYPE_RAW_TRACEPOINT, read_r2, name="reads_r2")
    assert raised.value.errno == errno.EACCES
    assert descriptors() == before


@pytest.mark.kernel
def test_an_object_is_loaded_with_its_maps_and_with_others_instead() -> None:
    made = bpf.Object(
        (COUNTER, bpf.MapFacts("a_name_that_is_too_long_for_the_kernel", bpf.MAP_TYPE_ARRAY, 4, 8, 2, 0)),
        {"first": load_imm64(bpf.PSEUDO_MAP_FD, 0) + LEAVE, "unwanted": b"\xff" * 8},
        variant=1,
    )
    before = descriptors()
    loaded = bpf.Loaded(
        made,
        [
            bpf.Wanted("first", bpf.PROG_TYPE_RAW_TRACEPOINT),
            bpf.Wanted("first", bpf.PROG_TYPE_KPROBE, instead={"counter": made.maps[1].name}),
        ],
    )
    try:
        assert loaded.variant == 1
        assert list(loaded.maps) == [facts.name for facts in made.maps]
        assert list(loaded.programs) == [(bpf.PROG_TYPE_RAW_TRACEPOINT, "first"), (bpf.PROG_TYPE_KPROBE, "first")]
        used = [used_maps(descriptor) for descriptor in loaded.programs.values()]
        assert used == [[map_id(each.descriptor)] for each in loaded.maps.values()]
    finally:
        loaded.close()
    assert descriptors() == before


@pytest.mark.kernel
def test_an_object_of_which_one_program_is_refused_leaves_nothing() -> None:
    made = bpf.Object((COUNTER,), {"good": LEAVE, "bad": bpf.INSTRUCTION.pack(0xFF, 0, 0, 0)})
    before = descriptors()
    with pytest.raises(bpf.ProgramRefused, match="bad"):
        bpf.Loaded(made, [bpf.Wanted(name, bpf.PROG_TYPE_RAW_TRACEPOINT) for name in ("good", "bad")])
    assert descriptors() == before


def map_id(descriptor: int) -> int:
    with open(f"/proc/self/fdinfo/{descriptor}") as info:
        return next(int(line.split()[1]) for line in info if line.startswith("map_id:"))


def used_maps(program: int) -> list[int]:
    """Ids of the maps that a program refers to, by BPF_OBJ_GET_INFO_BY_FD: struct bpf_prog_info has nr_map_ids at 52, map_ids
    behind it.
    """
    ids = (ctypes.c_uint32 * 8)()
    info = ctypes.create_string_buffer(64)
    struct.pack_into("<IQ", info, 52, len(ids), ctypes.addressof(ids))
    bpf._bpf(15, struct.pack("<IIQ", program, len(info), ctypes.addressof(info)))
    return list(ids[: struct.unpack_from("<I", info, 52)[0]])
