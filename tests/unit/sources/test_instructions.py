"""sources/instructions.py: what the kernel emulates, and values followed through straight code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netprofiler.sources.instructions import (
    Argument,
    Constant,
    Loaded,
    Returned,
    Stack,
    State,
    Sum,
    Value,
    decode,
    is_emulated,
    plus,
    signed32,
)


@pytest.mark.parametrize(
    ("code", "emulated"),
    [
        ("55", True),  # push %rbp
        ("4157", True),  # push %r15
        ("4855", False),  # push with REX.W: the kernel wants REX.B alone
        ("6a01", False),  # push $1
        ("78 2f", True),  # js, short
        ("0f84 00010000", True),  # je, long
        ("e8 00000000", True),  # call
        ("e9 00000000", True),  # jmp, long
        ("eb 00", True),  # jmp, short
        ("90", True),  # nop
        ("0f1f00", False),  # a longer one
        ("ff d0", False),  # call *%rax
        ("ff e0", False),  # jmp *%rax
        ("c3", False),  # ret
        ("5d", False),  # pop %rbp
        ("66e8 0000", False),  # a prefix that the kernel refuses
        ("0f05", False),  # syscall
        ("f30f1efa", False),  # endbr64
        ("41", False),
        ("0f", False),
        ("", False),
    ],
)
def test_emulated(code: str, emulated: bool) -> None:
    assert is_emulated(bytes.fromhex(code)) is emulated


def after(code: str) -> State:
    state = State.at_entry()
    for instruction in decode(bytes.fromhex(code), 0x1000):
        state.step(instruction)
    return state


@pytest.mark.parametrize(
    ("code", "register", "value"),
    [
        ("4889fb", "rbx", Argument(0)),  # mov %rdi,%rbx
        ("4863d2", "rdx", Argument(2)),  # movslq %edx,%rdx
        ("488b4710", "rax", Loaded(Argument(0), 16, 8)),  # mov 0x10(%rdi),%rax
        ("8b4738", "rax", Loaded(Argument(0), 56, 4)),  # mov 0x38(%rdi),%eax
        ("488b4708 8b00", "rax", Loaded(Loaded(Argument(0), 8, 8), 0, 4)),
        ("488db760010000", "rsi", Sum(Argument(0), 0x160)),  # lea 0x160(%rdi),%rsi
        ("488d0510000000", "rax", Constant(0x1017)),  # lea 0x10(%rip),%rax
        ("31c0", "rax", Constant(0)),  # xor %eax,%eax
        ("83c8ff", "rax", Constant((1 << 64) - 1)),  # or $-1,%eax
        ("55 4889e5", "rbp", Stack(-8)),  # push %rbp; mov %rsp,%rbp
        ("4883ec18 488d4c2408", "rcx", Stack(-16)),  # sub $0x18,%rsp; lea 8(%rsp),%rcx
        ("4883ec18 48897c2408 31ff 488b742408", "rsi", Argument(0)),  # by way of the stack
        ("53 4889fb e800000000 4889df 5b", "rdi", Argument(0)),  # a call keeps %rbx
        ("e800000000", "rax", Returned(0x1000)),
        ("e800000000", "rdi", None),  # and not %rdi
        ("01d0", "rax", None),  # add %edx,%eax
        ("b001", "rax", None),  # mov $1,%al: the rest is what it was
        ("4801f7", "rdi", None),  # add %rsi,%rdi
    ],
)
def test_values(code: str, register: str, value: Value | None) -> None:
    assert after(code).registers.get(register) == value


def test_a_callee_may_write_where_it_was_pointed_to() -> None:
    # sub $0x18,%rsp; mov %rdi,8(%rsp); lea 8(%rsp),%rsi; call; mov 8(%rsp),%rdi
    state = after("4883ec18 48897c2408 488d742408 e800000000 488b7c2408")
    assert state.registers.get("rdi") is None


def test_arguments_are_live_until_one_is_written() -> None:
    assert after("4157").holds_arguments(6)
    assert not after("31c9").holds_arguments(4)
    assert after("31c9").holds_arguments(3)


def test_sums() -> None:
    assert plus(plus(Argument(1), 8), -8) == Argument(1)
    assert plus(None, 1) is None
    assert signed32(0xFFFFFFFF) == -1
    assert signed32(0x7FFFFFFF) == 0x7FFFFFFF


@given(st.binary(max_size=200))
def test_any_bytes_are_followed(code: bytes) -> None:
    state = State.at_entry()
    end = 0
    for instruction in decode(code, 0):
        assert instruction.address == end
        end = instruction.end
        state.step(instruction)
    assert end <= len(code)
