"""x86-64 code as the analysis of binaries reads it: decoding, what the kernel emulates, and values followed through code.

Contract: decoding is capstone's, bounded by the caller; what does not decode ends a run. `State` follows symbolic values
(an argument of the function, the stack pointer, what a call returned, what was loaded from there) through straight code;
what it does not understand becomes unknown, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import capstone
from capstone import x86_const as x86

_ENGINE: Final = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
_ENGINE.detail = True

LENGTH_MAX: Final = 15
"""Bytes of the longest instruction."""


def is_emulated(code: bytes) -> bool:
    """Whether a uprobe on this instruction costs one trap: arch/x86/kernel/uprobes.c, branch_setup_xol_ops and
    push_setup_xol_ops. Other prefixes than REX.B on a push are left out, though the kernel accepts some.
    """
    if not code:
        return False
    first = code[0]
    if first == 0x41:
        return len(code) > 1 and 0x50 <= code[1] <= 0x57
    if first == 0x0F:
        return len(code) > 1 and 0x80 <= code[1] <= 0x8F
    return 0x50 <= first <= 0x57 or 0x70 <= first <= 0x7F or first in (0x90, 0xE8, 0xE9, 0xEB)


_BY_NAME: Final[dict[str, str]] = {
    name: wide
    for wide, narrow in {
        "rax": "eax ax al ah",
        "rbx": "ebx bx bl bh",
        "rcx": "ecx cx cl ch",
        "rdx": "edx dx dl dh",
        "rsi": "esi si sil",
        "rdi": "edi di dil",
        "rbp": "ebp bp bpl",
        "rsp": "esp sp spl",
        **{f"r{n}": f"r{n}d r{n}w r{n}b" for n in range(8, 16)},
    }.items()
    for name in (wide, *narrow.split())
}
_REGISTERS: Final[dict[int, str]] = {
    number: _BY_NAME.get(name, name)
    for number in range(1, x86.X86_REG_ENDING)
    if (name := _ENGINE.reg_name(number)) is not None
}
"""Capstone's number → the whole register's name."""

_ENDS: Final = frozenset({x86.X86_INS_UD2, x86.X86_INS_HLT, x86.X86_INS_INT3})
_MOVES: Final = frozenset(
    {
        x86.X86_INS_MOV,
        x86.X86_INS_MOVABS,
        x86.X86_INS_MOVZX,
        x86.X86_INS_MOVSX,
        x86.X86_INS_MOVSXD,
        x86.X86_INS_MOVUPS,
        x86.X86_INS_MOVAPS,
        x86.X86_INS_MOVDQU,
        x86.X86_INS_MOVDQA,
        x86.X86_INS_VMOVDQU,
        x86.X86_INS_VMOVDQA,
        x86.X86_INS_VMOVUPS,
        x86.X86_INS_VMOVAPS,
        x86.X86_INS_MOVQ,
        x86.X86_INS_MOVD,
    }
)
_WIDENS: Final = frozenset({x86.X86_INS_CDQE, x86.X86_INS_CWDE})
ARGUMENTS: Final = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
_SAVED: Final = frozenset({"rbx", "rbp", "rsp", "r12", "r13", "r14", "r15"})


_BRANCHES: Final = frozenset(
    number
    for name, number in vars(x86).items()
    if name.startswith(("X86_INS_J", "X86_INS_LOOP")) and name not in ("X86_INS_JMP", "X86_INS_LJMP")
)


class Instruction:
    """One instruction; a thin cover of capstone's, whose details are read when they are asked for."""

    __slots__ = ("_raw", "address", "emulated", "end", "operation")

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.address: int = raw.address
        self.end: int = raw.address + raw.size
        self.operation: int = raw.id
        self.emulated = is_emulated(bytes(raw.bytes))

    @property
    def is_call(self) -> bool:
        return bool(self.operation == x86.X86_INS_CALL)

    @property
    def is_return(self) -> bool:
        return bool(self.operation == x86.X86_INS_RET)

    @property
    def is_jump(self) -> bool:
        """Unconditional."""
        return bool(self.operation == x86.X86_INS_JMP)

    @property
    def is_branch(self) -> bool:
        """Conditional; loop and jrcxz too."""
        return self.operation in _BRANCHES

    @property
    def is_stop(self) -> bool:
        """Ends the program."""
        return self.operation in _ENDS

    @property
    def target(self) -> int:
        """Of a direct jump or call; else -1."""
        operand = self._raw.operands[0]
        return operand.imm & (1 << 64) - 1 if operand.type == x86.X86_OP_IMM else -1

    @property
    def table(self) -> int:
        """Of a jump through a table of addresses, `jmp *table(,%reg,8)`: the table's; else -1."""
        operand = self._raw.operands[0]
        if operand.type != x86.X86_OP_MEM or operand.mem.base or not operand.mem.index or operand.mem.scale != 8:
            return -1
        return int(operand.mem.disp)

    @property
    def distance_base(self) -> str:
        """Of `movslq (%base,%reg,4),%reg`, as a table of distances is read: the base; else empty."""
        if self.operation != x86.X86_INS_MOVSXD:
            return ""
        operand = self._raw.operands[1]
        if operand.type != x86.X86_OP_MEM or operand.mem.scale != 4 or operand.mem.disp:
            return ""
        return _REGISTERS.get(operand.mem.base, "")

    def loads_address_into(self, register: str) -> int:
        """Of `lea address(%rip),%register`: the address; else -1."""
        if self.operation != x86.X86_INS_LEA:
            return -1
        into, source = self._raw.operands
        if _REGISTERS.get(into.reg) != register or source.mem.base != x86.X86_REG_RIP or source.mem.index:
            return -1
        return int(self.end + source.mem.disp)

    @property
    def compared_with(self) -> int:
        """Of `cmp $number,…`: the number, when it is not negative; else -1."""
        if self.operation != x86.X86_INS_CMP or self._raw.operands[1].type != x86.X86_OP_IMM:
            return -1
        return max(int(self._raw.operands[1].imm), -1)

    @property
    def is_landing(self) -> bool:
        """`endbr64`."""
        return bool(self.operation == x86.X86_INS_ENDBR64)

    @property
    def is_copy(self) -> bool:
        """`rep movs`: bytes from RSI to RDI."""
        return self.operation in (x86.X86_INS_MOVSB, x86.X86_INS_MOVSQ) and bytes(self._raw.bytes[:1]) == b"\xf3"

    def writes(self) -> frozenset[str]:
        """Whole registers; a call: what it returns."""
        if self.is_call:
            return frozenset({"rax"})
        try:
            _, written = self._raw.regs_access()
        except capstone.CsError:  # not known for this one: its result may be anywhere
            return frozenset(_BY_NAME.values())
        return frozenset(_REGISTERS.get(number, "") for number in written)

    @property
    def operands(self) -> list[Any]:
        return list(self._raw.operands)


def decode(code: bytes, address: int) -> Iterator[Instruction]:
    """In a row, up to what does not decode."""
    for raw in _ENGINE.disasm(code, address):
        yield Instruction(raw)


# Values


@dataclass(frozen=True, slots=True)
class Argument:
    """Of the function, as its caller passed it, from 0."""

    index: int


@dataclass(frozen=True, slots=True)
class Stack:
    """The stack pointer as it was at the function's first instruction, and `offset` more."""

    offset: int


@dataclass(frozen=True, slots=True)
class Constant:
    """A number, or an address that does not depend on where the file was loaded other than by its base."""

    number: int


@dataclass(frozen=True, slots=True)
class Returned:
    """What the call at `address` returned."""

    address: int


@dataclass(frozen=True, slots=True)
class Sum:
    """An address in an object."""

    base: Argument | Returned | Loaded
    number: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """`size` bytes from `base + offset`."""

    base: Argument | Returned | Loaded
    offset: int
    size: int


Value = Argument | Stack | Constant | Returned | Sum | Loaded


def plus(value: Value | None, number: int) -> Value | None:
    """The sum, as far as it is known."""
    match value:
        case None:
            return None
        case Stack(offset):
            return Stack(offset + number)
        case Constant(known):
            return Constant((known + number) & (1 << 64) - 1)
        case Sum(base, known):
            return Sum(base, known + number) if known + number else base
        case _:
            return Sum(value, number) if number else value


def signed32(number: int) -> int:
    """The low half as C's int."""
    return (number & 0xFFFFFFFF ^ 0x80000000) - 0x80000000


DEPTH_MAX: Final = 6
"""Loads through loads; more is a loop."""


def _depth(value: Value | None) -> int:
    depth = 0
    while isinstance(value, Sum | Loaded):
        value = value.base
        depth += 1
    return depth


@dataclass(slots=True)
class State:
    """Registers and the function's own stack before an instruction."""

    registers: dict[str, Value]
    stack: dict[int, Value] = field(default_factory=dict)
    stores: list[tuple[Value, Value | None]] = field(default_factory=list)
    """To memory that is not the stack: address, value; since the entry."""

    @classmethod
    def at_entry(cls) -> State:
        registers: dict[str, Value] = {name: Argument(index) for index, name in enumerate(ARGUMENTS)}
        registers["rsp"] = Stack(0)
        return cls(registers)

    def copy(self) -> State:
        return State(dict(self.registers), dict(self.stack), list(self.stores))

    @property
    def stack_pointer(self) -> int | None:
        value = self.registers.get("rsp")
        return value.offset if isinstance(value, Stack) else None

    def holds_arguments(self, count: int) -> bool:
        return all(self.registers.get(name) == Argument(index) for index, name in enumerate(ARGUMENTS[:count]))

    def address(self, operand: Any, end: int) -> Value | None:
        memory = operand.mem
        if memory.segment or memory.index:
            return None
        if not memory.base:
            return Constant(memory.disp & (1 << 64) - 1)
        if memory.base == x86.X86_REG_RIP:
            return Constant(end + memory.disp & (1 << 64) - 1)
        return plus(self.registers.get(_REGISTERS.get(memory.base, "")), memory.disp)

    def value(self, operand: Any, end: int) -> Value | None:
        if operand.type == x86.X86_OP_IMM:
            return Constant(operand.imm & (1 << 64) - 1)
        if operand.type == x86.X86_OP_REG:
            return self.registers.get(_REGISTERS.get(operand.reg, ""))
        match self.address(operand, end):
            case Stack(offset):
                return self.stack.get(offset)
            case None | Constant():
                return None
            case Sum(base, number):
                return Loaded(base, number, operand.size) if _depth(base) < DEPTH_MAX else None
            case address:
                return Loaded(address, 0, operand.size) if _depth(address) < DEPTH_MAX else None

    def _set(self, name: str, value: Value | None) -> None:
        if value is None:
            self.registers.pop(name, None)
        else:
            self.registers[name] = value

    def _store(self, operand: Any, value: Value | None, end: int) -> None:
        address = self.address(operand, end)
        if isinstance(address, Stack):
            for offset in range(address.offset - 7, address.offset + max(operand.size, 1)):
                self.stack.pop(offset, None)
            if value is not None:
                self.stack[address.offset] = value
        elif address is not None:
            self.stores.append((address, value))

    def step(self, instruction: Instruction) -> None:
        """Go over it, as far as it is no jump; a call returns."""
        operation, operands, end = instruction.operation, instruction.operands, instruction.end
        if instruction.is_call:
            for name in ARGUMENTS:
                if isinstance(value := self.registers.get(name), Stack):  # the callee may write there
                    for offset in [known for known in self.stack if value.offset <= known < value.offset + 64]:
                        del self.stack[offset]
            self.registers = {name: value for name, value in self.registers.items() if name in _SAVED}
            self.registers["rax"] = Returned(instruction.address)
        elif operation == x86.X86_INS_PUSH:
            self._set("rsp", pushed := plus(self.registers.get("rsp"), -8))
            if isinstance(pushed, Stack):
                self.stack.pop(pushed.offset, None)
                value = self.value(operands[0], end) if operands[0].type == x86.X86_OP_REG else None
                if value is not None:
                    self.stack[pushed.offset] = value
        elif operation == x86.X86_INS_POP and operands[0].type == x86.X86_OP_REG:
            top = self.registers.get("rsp")
            self._set(
                _REGISTERS.get(operands[0].reg, ""), self.stack.get(top.offset) if isinstance(top, Stack) else None
            )
            self._set("rsp", plus(top, 8))
        elif operation == x86.X86_INS_LEAVE:
            frame = self.registers.get("rbp")
            self._set("rbp", self.stack.get(frame.offset) if isinstance(frame, Stack) else None)
            self._set("rsp", plus(frame, 8))
        elif operation in _MOVES and len(operands) == 2:
            value = self.value(operands[1], end)
            if operands[0].type == x86.X86_OP_REG:
                whole = operands[0].size >= 4
                self._set(_REGISTERS.get(operands[0].reg, ""), value if whole else None)
            else:
                self._store(operands[0], value, end)
        elif operation == x86.X86_INS_LEA:
            self._set(_REGISTERS.get(operands[0].reg, ""), self.address(operands[1], end))
        elif operation in (x86.X86_INS_ADD, x86.X86_INS_SUB) and _is_register_and_number(operands):
            name = _REGISTERS.get(operands[0].reg, "")
            number = operands[1].imm if operation == x86.X86_INS_ADD else -operands[1].imm
            self._set(name, plus(self.registers.get(name), number))
        elif operation == x86.X86_INS_XOR and _is_same_register(operands):
            self._set(_REGISTERS.get(operands[0].reg, ""), Constant(0))
        elif operation == x86.X86_INS_OR and _is_all_ones(operands):
            self._set(_REGISTERS.get(operands[0].reg, ""), Constant((1 << 64) - 1))
        elif operation not in _WIDENS:
            for operand in operands[:1]:
                if operand.type == x86.X86_OP_MEM and operand.access & capstone.CS_AC_WRITE:
                    self._store(operand, None, end)
            for name in instruction.writes():
                self.registers.pop(name, None)


def _is_register_and_number(operands: list[Any]) -> bool:
    register, number = operands
    return bool(register.type == x86.X86_OP_REG and register.size == 8 and number.type == x86.X86_OP_IMM)


def _is_same_register(operands: list[Any]) -> bool:
    one, other = operands
    return bool(one.type == other.type == x86.X86_OP_REG and one.reg == other.reg and one.size >= 4)


def _is_all_ones(operands: list[Any]) -> bool:
    """`or $-1,%register`, a short way to say -1."""
    into, number = operands
    mask = (1 << 8 * into.size) - 1
    return bool(
        into.type == x86.X86_OP_REG and into.size >= 4 and number.type == x86.X86_OP_IMM and number.imm & mask == mask
    )
