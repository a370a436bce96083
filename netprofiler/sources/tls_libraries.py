"""C libraries for TLS in a file: OpenSSL, BoringSSL, GnuTLS and NSPR → where to probe, and how their objects are laid out.

Contract: functions are found by name, probe sites and the offsets of members by disassembly, whatever the version. A site
is taken only where the code proves it: the arguments are still in their registers, or the result is already there, and
every call passes one site of each kind exactly once. What cannot be proved is absent, with a note or a problem that says
why. Bounded by `BUDGET` instructions a file.

Where a probe is cheap: on an instruction that the kernel emulates. In order of preference a call is left

1. on emulated instructions behind which nothing writes EAX, such that each way to a `ret` passes one of them;
2. on the first emulated instruction behind the inner call, where that returned EAX and the count lies on the stack;
3. on the `ret`s, single-stepped;
4. by a uretprobe, where the function ends in a jump to another one that is not known.
"""

from __future__ import annotations

import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from netprofiler.sources.elf import Image, Symbol
from netprofiler.sources.instructions import (
    ARGUMENTS,
    Argument,
    Constant,
    Instruction,
    Loaded,
    Returned,
    Stack,
    State,
    Sum,
    Value,
    decode,
    signed32,
)
from netprofiler.sources.probes import ABSENT, Call, Finding, Layout, Library, Probe, Purpose, Result

BUDGET: Final = 40_000
"""Instructions decoded in one file. libgnutls, which takes the most, needs 8,000; each takes 10 µs."""
NAMELESS_BYTES: Final = 4096
"""Decoded at once of a function of which neither a symbol nor .eh_frame tells the size."""
FUNCTION_BYTES_MAX: Final = 32_768
"""gnutls_handshake has 11 KB."""
PARTS_MAX: Final = 8
"""Pieces of one function: what is unlikely lies elsewhere, and a tail call goes on in another function."""
SITES_MAX: Final = 64
"""Places where one function is left; gnutls_handshake has 30."""
TABLES_MAX: Final = 64
"""Jump tables in one function."""
TABLE_MAX: Final = 256
"""Entries of a jump table."""
WALK_STEPS_MAX: Final = 6_000
VISITS_MAX: Final = 16
TRUNK_MAX: Final = 64
"""Instructions from the entry within which arguments are looked for."""
_NEVER_RETURN: Final = frozenset({"__stack_chk_fail", "abort", "__assert_fail", "exit", "_exit", "__fortify_fail"})


class Unclear(Exception):
    """Why a function cannot be followed."""


@dataclass(frozen=True, slots=True)
class Part:
    """Code that lies together, by address."""

    instructions: dict[int, Instruction]
    is_open: bool
    """Where it ends is not known: what is there was cut off."""


class Code:
    """The functions of one file, decoded when needed, within the budget."""

    def __init__(self, image: Image) -> None:
        self.image: Final = image
        self._left = BUDGET
        self._parts: dict[int, Part] = {}
        self._imported: dict[int, str] = {}
        self._symbols: dict[str, Symbol | None] = {}
        self._functions: dict[int, Function] = {}

    def part(self, address: int, size: int = 0) -> Part:
        """All instructions of the function, or part of one, that `address` is in, in order."""
        begin, end = self.image.extent(address)
        if not begin:
            begin, end = address, address + (size or NAMELESS_BYTES)
        if begin not in self._parts:
            if end - begin > FUNCTION_BYTES_MAX:
                raise Unclear("it is too large")
            instructions = {
                instruction.address: instruction for instruction in decode(self.image.read(begin, end - begin), begin)
            }
            self.image.check_time()
            self._left -= len(instructions)
            if self._left < 0:
                raise Unclear("the file needs too much work")
            self._parts[begin] = Part(instructions, is_open=end == address + NAMELESS_BYTES)
        return self._parts[begin]

    def imported(self, address: int) -> str:
        """The name of what the PLT stub at `address` calls; empty where it is none."""
        if address not in self._imported:
            self._imported[address] = self.image.imported(address)
        return self._imported[address]

    def symbol(self, name: str) -> Symbol | None:
        """A function that this file has."""
        if name not in self._symbols:
            self._symbols[name] = self.image.symbols([name]).get(name)
        return self._symbols[name]

    def know(self, names: Iterable[str]) -> None:
        """Look several up at once."""
        wanted = [name for name in names if name not in self._symbols]
        found = self.image.symbols(wanted)
        self._symbols |= {name: found.get(name) for name in wanted}

    def function(self, symbol: Symbol) -> Function:
        if symbol.address not in self._functions:
            self._functions[symbol.address] = Function(self, symbol)
        return self._functions[symbol.address]


class Function:
    """The graph of one function's instructions."""

    def __init__(self, code: Code, symbol: Symbol) -> None:
        self.code: Final[Code] = weakref.proxy(code)
        """It keeps us: held here as well, the instructions of each analysis, 10 MB, would wait for the garbage collector."""
        self.entry: Final = symbol.address
        self.instructions: dict[int, Instruction] = {}
        self.successors: dict[int, tuple[int, ...]] = {}
        self.returns: list[int] = []
        self.leaves_to: list[int] = []
        """Jumps whose target is not known."""
        self.calls: set[int] = set()
        """Targets of direct calls, and of jumps into other functions."""
        self._tables = 0
        self._grow(symbol.size)
        self.predecessors: dict[int, list[int]] = {address: [] for address in self.instructions}
        for address, following in self.successors.items():
            for other in following:
                self.predecessors[other].append(address)

    def _grow(self, size: int) -> None:
        parts = [self.code.part(self.entry, size)]
        waiting = [self.entry]
        while waiting:
            address = waiting.pop()
            if address in self.successors:
                continue
            home = next((part for part in parts if address in part.instructions), None)
            if home is None:
                if len(parts) == PARTS_MAX or not self.code.image.is_code(address):
                    raise Unclear("it is in too many parts")
                parts.append(home := self.code.part(address))
                self.calls.add(address)
                if address not in home.instructions:
                    raise Unclear("its code does not decode")
            instruction = home.instructions[address]
            self.instructions[address] = instruction
            self.successors[address] = tuple(self._following(instruction, home))
            waiting += self.successors[address]

    def _following(self, instruction: Instruction, part: Part) -> Iterable[int]:
        if instruction.is_return:
            self.returns.append(instruction.address)
            return
        if instruction.is_stop:
            return
        if instruction.is_jump:
            if (target := instruction.target) >= 0:
                if not (name := self.code.imported(target)):
                    yield target
                elif (own := self.code.symbol(name)) is not None:
                    self.calls.add(own.address)
                    yield own.address
                else:
                    self.leaves_to.append(instruction.address)
            elif table := self._jump_table(instruction, part):
                yield from table
            else:
                self.leaves_to.append(instruction.address)
            return
        if instruction.is_branch:
            yield instruction.target
        elif instruction.is_call and (target := instruction.target) >= 0:
            self.calls.add(target)
            if self.code.imported(target) in _NEVER_RETURN:
                return
        if (
            part.is_open or instruction.end in part.instructions
        ):  # behind the last call of a function nothing comes: it does not return
            yield instruction.end

    def _jump_table(self, jump: Instruction, part: Part) -> list[int]:
        self._tables += 1
        if self._tables > TABLES_MAX:
            raise Unclear("it has too many jump tables")
        return _jump_table(self.code.image, jump, part.instructions)

    def reaches(self, starts: Iterable[int], without: frozenset[int] = frozenset()) -> set[int]:
        """What can be executed from `starts`, them included, stopping at (and leaving out) `without`."""
        waiting = [start for start in starts if start not in without]
        seen = set(waiting)
        while waiting:
            for other in self.successors[waiting.pop()]:
                if other not in seen and other not in without:
                    seen.add(other)
                    waiting.append(other)
        return seen

    def calls_any(self, symbols: Iterable[Symbol | None], names: Iterable[str]) -> bool:
        addresses = {symbol.address for symbol in symbols if symbol is not None}
        wanted = set(names)
        return any(target in addresses or self.code.imported(target) in wanted for target in self.calls)

    # Sites

    def enter(self, arguments: int) -> int | None:
        """The first emulated instruction, if the arguments are live there, and nothing jumps back before it."""
        state, address = State.at_entry(), self.entry
        for _ in range(TRUNK_MAX):
            instruction = self.instructions[address]
            if self.predecessors[address] and address == self.entry:
                return None
            if len(self.predecessors[address]) > 1:
                return None
            if instruction.emulated:
                return address if state.holds_arguments(arguments) else None
            if len(self.successors[address]) != 1 or instruction.is_call:
                return None
            state.step(instruction)
            (address,) = self.successors[address]
        return None

    def leave(self) -> tuple[int, ...]:
        """Emulated instructions of which every way to a return passes exactly one, with EAX as it will be returned."""
        if self.leaves_to or not self.returns:
            return ()
        ending = self._backwards(self.returns)
        waiting = [
            address
            for address in ending
            if not self.instructions[address].is_return and "rax" in self.instructions[address].writes()
        ]
        unsettled = set(waiting)  # EAX is still written on a way from here to a return
        while waiting:
            for other in self.predecessors[waiting.pop()]:
                if other not in unsettled:
                    unsettled.add(other)
                    waiting.append(other)
        candidates = frozenset(
            address for address in ending if address not in unsettled and self.instructions[address].emulated
        )
        if len(candidates) > SITES_MAX:
            return ()
        last = frozenset(address for address in candidates if not self._behind(address) & candidates)
        first = frozenset(
            address for address in candidates if address == self.entry or self._reached_without(address, candidates)
        )
        for sites in (last, first):
            if sites and self._is_cut(sites):
                return tuple(sorted(sites))
        return ()

    def _reached_without(self, address: int, others: frozenset[int]) -> bool:
        return address in {
            following for start in self.reaches([self.entry], others) for following in self.successors[start]
        }

    def _behind(self, address: int) -> set[int]:
        return self.reaches(self.successors[address])

    def _backwards(self, ends: Iterable[int]) -> set[int]:
        waiting = list(ends)
        seen = set(waiting)
        while waiting:
            for other in self.predecessors[waiting.pop()]:
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    def _is_cut(self, sites: frozenset[int]) -> bool:
        if any(self._behind(site) & sites for site in sites):
            return False
        return not self.reaches([self.entry], sites) & set(self.returns)


def _jump_table(image: Image, jump: Instruction, part: dict[int, Instruction]) -> list[int]:
    """Targets of a `switch`, as compilers make it: a bound, a table of 4-byte distances or of addresses, a jump."""
    before = [part[address] for address in range(jump.address - 96, jump.address) if address in part]
    bound, table = TABLE_MAX, jump.table
    width = 8
    base = ""
    for instruction in reversed(before):
        if table < 0 and not base:
            base = instruction.distance_base
            width = 4
        elif base and table < 0:
            table = instruction.loads_address_into(base)
        if (compared := instruction.compared_with) >= 0:
            bound = min(bound, compared + 1)
            break
    if table < 0 and base:  # its address may be kept in a register for long
        earlier = (part[address] for address in sorted(part, reverse=True) if address < jump.address)
        table = next((found for instruction in earlier if (found := instruction.loads_address_into(base)) >= 0), -1)
    if table < 0 or bound == TABLE_MAX:
        return []
    targets: dict[int, None] = {}
    for index in range(bound):
        if width == 8:
            target = image.word(table + index * 8)
        else:
            entry = image.read(table + index * 4, 4)
            target = table + int.from_bytes(entry, "little", signed=True) if len(entry) == 4 else 0
        if target not in part:
            return []
        targets[target] = None
    return list(targets)


# Ways through straight code


@dataclass(slots=True)
class Way:
    """One way from a function's entry to where it leaves."""

    state: State
    end: Instruction
    """A return, or a jump elsewhere."""


def ways(
    code: Code, symbol: Symbol, at: Callable[[Instruction, State], bool] | None = None, *, whole: bool = False
) -> list[Way]:
    """Ways through a function; a loop is gone through once, an instruction at most `VISITS_MAX` times: more is `Unclear`
    if they are wanted `whole`. `at` sees each instruction with the state before it, and ends the way by True.
    """
    function = code.function(symbol)
    visits: Counter[int] = Counter()
    found: list[Way] = []
    waiting = [(function.entry, State.at_entry(), frozenset[int]())]
    steps = 0
    while waiting:
        address, state, taken = waiting.pop()
        while True:
            steps += 1
            if steps > WALK_STEPS_MAX:
                raise Unclear("there are too many ways through it")
            visits[address] += 1
            if visits[address] > VISITS_MAX:
                if whole:
                    raise Unclear("there are too many ways through it")
                break
            instruction = function.instructions[address]
            if at is not None and at(instruction, state):
                break
            following = function.successors[address]
            if instruction.is_return or address in function.leaves_to:
                found.append(Way(state, instruction))
                break
            if not instruction.is_jump and not instruction.is_branch:
                state.step(instruction)
            if not following:
                break
            if len(following) > 1:
                if address in taken:
                    break
                taken |= {address}
                waiting += [(other, state.copy(), taken) for other in following[1:]]
            address = following[0]
            if instruction.is_jump:
                if address in taken:
                    break
                taken |= {address}
    return found


def returned(code: Code, symbol: Symbol | None) -> list[Value]:
    """What a function may return, as far as it is known; empty where it is too complex."""
    if symbol is None:
        return []
    try:
        found = ways(code, symbol)
    except Unclear:
        return []
    return [value for way in found if way.end.is_return and (value := way.state.registers.get("rax")) is not None]


def _member(values: Iterable[Value], size: int) -> int:
    """The one member of the first argument's object that is returned; ABSENT unless there is exactly one."""
    offsets = {
        value.offset
        for value in values
        if isinstance(value, Loaded) and value.base == Argument(0) and value.size == size and 0 <= value.offset < 32768
    }
    return offsets.pop() if len(offsets) == 1 else ABSENT


def _client_random(code: Code, symbol: Symbol | None) -> tuple[int, int]:
    """`random_pointer`, `random`: from where SSL_get_client_random copies to its second argument."""
    sources: set[tuple[int, int]] = set()

    def note(address: Value | None) -> None:
        base, offset = (address.base, address.number) if isinstance(address, Sum) else (address, 0)
        if not 0 < offset < 32768:
            return
        if base == Argument(0):
            sources.add((ABSENT, offset))
        elif isinstance(base, Loaded) and base.base == Argument(0) and base.size == 8 and 0 < base.offset < 32768:
            sources.add((base.offset, offset))

    def copied(instruction: Instruction, state: State) -> bool:
        if (instruction.is_call or instruction.is_jump) and state.registers.get("rdi") == Argument(1):
            note(state.registers.get("rsi"))
        if instruction.is_copy and state.registers.get("rdi") == Argument(1):
            note(state.registers.get("rsi"))
        for address, value in state.stores:
            if address == Argument(1) and isinstance(value, Loaded):
                note(Sum(value.base, value.offset))
        return bool(sources)

    if symbol is not None:
        try:
            ways(code, symbol, copied)
        except Unclear:
            return ABSENT, ABSENT
    return sources.pop() if len(sources) == 1 else (ABSENT, ABSENT)


def _methods(code: Code, symbol: Symbol | None) -> set[int]:
    """Offsets in the method's table of functions that are called, or stored, with the session itself first."""
    offsets: set[int] = set()

    def note(value: Value | None) -> None:
        match value:
            case Loaded(Loaded(Argument(0), _, 8), offset, 8) if 0 < offset < 256:
                offsets.add(offset)

    def at(instruction: Instruction, state: State) -> bool:
        leaves = (instruction.is_call or instruction.is_jump) and instruction.target < 0
        if leaves and state.registers.get("rdi") == Argument(0) and state.registers.get("rdx") in (Argument(2), None):
            note(state.value(instruction.operands[0], instruction.end))
        for _, value in state.stores:
            note(value)
        return False

    if symbol is None:
        return offsets
    try:
        ways(code, symbol, at)
    except Unclear:
        return set()
    return offsets


def _behind_inner_call(code: Code, function: Function, kind: _Kind) -> dict[int, int]:
    """The first emulated instruction behind the inner call that does the work, where EAX still is what that returned →
    displacement of the count on the stack (`Result.STACK`). Empty where some way that may succeed passes none.
    """
    inner: dict[int, int] = {}
    sites: dict[int, int] = {}
    unclear = False
    passed_on: set[int] = set()
    """Calls whose result is returned: the arguments may also still be in their registers when another one is called."""

    def at(instruction: Instruction, state: State) -> bool:
        nonlocal unclear
        match state.registers.get("rax"), state.stack_pointer:
            case Returned(address), int(pointer) if address in inner and instruction.emulated:
                displacement = inner[address] - pointer if kind.result is Result.AX else 0
                unclear |= sites.setdefault(instruction.address, displacement) != displacement
                return True
        top = state.stack_pointer
        if instruction.is_call and top is not None and not code.imported(instruction.target):
            passed = [state.registers.get(name) for name in ARGUMENTS]
            if passed[0] == Argument(0) and Argument(1) in passed:
                if kind.result is Result.AX and isinstance(count := passed[3], Stack):
                    inner[instruction.address] = count.offset
                elif instruction.address in passed_on and Argument(3) in (*passed, state.stack.get(top)):
                    inner[instruction.address] = 0
        return False

    try:
        if kind.result is Result.POINTER:
            values = returned(code, Symbol(function.entry, 0))
            passed_on = {value.address for value in values if isinstance(value, Returned)}
        for way in ways(code, Symbol(function.entry, 0), at, whole=True):
            result = way.state.registers.get("rax")
            unclear |= not (isinstance(result, Constant) and signed32(result.number) <= 0)
    except Unclear:
        return {}
    return {} if unclear else sites


def _inner(code: Code, symbol: Symbol | None) -> Symbol | None:
    """The function that gets the same session, buffer and length."""
    found: set[int] = set()

    def at(instruction: Instruction, state: State) -> bool:
        if instruction.is_call and instruction.target >= 0 and state.holds_arguments(3):
            found.add(instruction.target)
        return False

    if symbol is None:
        return None
    try:
        ways(code, symbol, at)
    except Unclear:
        return None
    return Symbol(found.pop(), 0) if len(found) == 1 else None


# Probes


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is probed by name, and how it tells its result."""

    name: str
    call: Call
    result: Result
    arguments: int
    """How many must be live at ENTER."""


class _Plan:
    """The probes of one library."""

    def __init__(self, code: Code) -> None:
        self.code: Final = code
        self.probes: dict[tuple[int, Purpose, bool], Probe] = {}
        self.notes: list[str] = []

    def offset(self, address: int) -> int:
        offset = self.code.image.offset_of(address)
        if offset < 0:
            raise Unclear("its code is not in the file")
        return offset

    def _add(self, probes: Iterable[Probe]) -> None:
        """All of one function, or none: two functions may share code, as long as they tell their results alike."""
        added = {(probe.offset, probe.purpose, probe.on_return): probe for probe in probes}
        for key, probe in added.items():
            other = self.probes.get(key, probe)
            if (other.call, other.result, other.displacement) != (probe.call, probe.result, probe.displacement):
                raise Unclear(f"it shares code with {other.function}")
        self.probes = added | self.probes

    @property
    def is_cheap(self) -> bool:
        return bool(self.probes) and all(probe.emulated for probe in self.probes.values())

    def take(self, other: _Plan) -> None:
        self._add(other.probes.values())
        self.notes += other.notes

    def _entry(self, function: Function) -> int:
        """The first instruction that does something."""
        first = function.instructions[function.entry]
        return first.end if first.is_landing and first.end in function.instructions else first.address

    def call(self, kind: _Kind, symbol: Symbol | None = None) -> bool:
        """ENTER and LEAVE of a function. False, and a note, where it cannot be probed."""
        symbol = symbol or self.code.symbol(kind.name)
        if symbol is None:
            return False
        try:
            function = self.code.function(symbol)
            return self._call(kind, function)
        except Unclear as reason:
            self.notes.append(f"{kind.name} is not probed: {reason}.")
            return False

    def _call(self, kind: _Kind, function: Function) -> bool:
        enter = function.enter(kind.arguments)
        leave = dict.fromkeys(function.leave(), 0)
        result, emulated = kind.result, True
        if not leave and kind.call in (Call.READ, Call.WRITE):
            leave = _behind_inner_call(self.code, function, kind)
            result = Result.STACK if leave and result is Result.AX else result
        if not leave:
            emulated = False
            leave = {} if function.leaves_to else dict.fromkeys(sorted(function.returns), 0)
        if len(leave) > SITES_MAX:
            raise Unclear("it has too many returns")
        on_return = not leave
        if on_return and kind.call is Call.OTHER:
            # A uretprobe changes the return address of a function that may switch stacks; not for the sake of a socket.
            self.notes.append(f"{kind.name} is not probed: it ends in a jump that cannot be followed.")
            return False
        if on_return:
            leave = {function.entry: 0}
        start = self._entry(function) if enter is None else enter
        probes = [Probe(self.offset(start), Purpose.ENTER, kind.call, emulated=enter is not None, function=kind.name)]
        probes += [
            Probe(self.offset(address), Purpose.LEAVE, kind.call, result, displacement, on_return, emulated, kind.name)
            for address, displacement in leave.items()
        ]
        self._add(probes)
        if enter is None:
            self.notes.append(f"{kind.name} is entered single-stepped: no emulated instruction with its arguments.")
        if on_return:
            self.notes.append(f"{kind.name} is left by a return probe: it ends in a jump that cannot be followed.")
        elif not emulated:
            self.notes.append(f"{kind.name} is left single-stepped, at {_count(len(leave))}.")
        return True

    def free(self, name: str) -> None:
        symbol = self.code.symbol(name)
        if symbol is None:
            return
        try:
            function = self.code.function(symbol)
            enter = function.enter(1)
            if enter is None:
                self.notes.append(f"{name} is entered single-stepped: no emulated instruction with its argument.")
            offset = self.offset(self._entry(function) if enter is None else enter)
            self._add([Probe(offset, Purpose.FREE, emulated=enter is not None, function=name)])
        except Unclear as reason:
            self.notes.append(f"{name} is not probed: {reason}.")

    def calls(self, name: str, other: str) -> bool:
        """Whether the function `name` does its work by `other`."""
        symbol = self.code.symbol(name)
        if symbol is None:
            return False
        try:
            return self.code.function(symbol).calls_any([self.code.symbol(other)], [other])
        except Unclear:
            return False

    def finding(self, library: Library, version: str, layout: Layout | None, problem: str) -> Finding:
        probes = tuple(sorted(self.probes.values(), key=lambda probe: (probe.offset, probe.purpose)))
        if problem:
            probes = ()
        return Finding(library, version, probes, layout, tuple(self.notes), problem)


def _count(number: int) -> str:
    return "its return" if number == 1 else f"its {number} returns"


# OpenSSL and BoringSSL

_OPENSSL_NAMES: Final = (
    *("SSL_read", "SSL_read_ex", "SSL_write", "SSL_write_ex", "SSL_write_ex2", "SSL_peek", "SSL_peek_ex"),
    *("SSL_do_handshake", "SSL_accept", "SSL_connect", "SSL_shutdown", "SSL_sendfile", "SSL_free", "SSL_clear"),
    *("SSL_read_early_data", "SSL_write_early_data", "SSL_set_connect_state", "SSL_set_accept_state", "TLS_method"),
    *("SSL_get_rbio", "SSL_get_client_random", "SSL_is_server"),
    *(
        "BIO_method_type",
        "BIO_get_data",
        "BIO_s_socket",
        "OPENSSL_init_ssl",
        "SSL_CTX_set_grease_enabled",
        "SSL_CTX_new",
    ),
    "OpenSSL_version",
)
_READ: Final = _Kind("SSL_read", Call.READ, Result.AX, 3)
_READ_EX: Final = _Kind("SSL_read_ex", Call.READ, Result.POINTER, 4)
_WRITE: Final = _Kind("SSL_write", Call.WRITE, Result.AX, 3)
_WRITE_EX: Final = _Kind("SSL_write_ex", Call.WRITE, Result.POINTER, 4)
_OPENSSL_VERSION: Final = re.compile(rb"OpenSSL (\d\.\d\.\d+[a-z]{0,2}(?:-[a-z]+\d*)?)[ +]")
_BIO_OF: Final = {".so.1.1": (0, 0x30), ".so.3": (8, 0x38)}
"""How libcrypto's name ends → `bio_method`, `bio_number`, where libcrypto itself is not at hand: struct bio_st of 1.1.1
and of 3.0 to 3.6. A name stands for one binary interface; the struct has not changed within one since 1.1.1."""


def _openssl(code: Code, crypto: Image | None) -> Finding | None:
    if code.symbol("SSL_read") is None or code.symbol("SSL_write") is None or code.symbol("SSL_CTX_new") is None:
        return None
    if any(
        name.startswith("libgnutls.so") for name in code.image.needed
    ):  # GnuTLS's imitation: its own calls are probed
        return None
    boring = code.symbol("OPENSSL_init_ssl") is None or code.symbol("SSL_CTX_set_grease_enabled") is not None
    plan = _Plan(code)
    problem = ""
    if not _openssl_read(plan) or not _openssl_write(plan):
        problem = " ".join(plan.notes) or "SSL_read and SSL_write cannot be followed."
    _openssl_other(plan)
    for name in ("SSL_free", "SSL_clear"):
        plan.free(name)
    beside = code if crypto is None else Code(crypto)
    layout = _openssl_layout(code, beside, Library.BORINGSSL if boring else Library.OPENSSL)
    version = "" if boring else _version(beside, "OpenSSL_version", _OPENSSL_VERSION) or _old_version(beside.image)
    return plan.finding(layout.library, version, layout, problem)


def _openssl_read(plan: _Plan) -> bool:
    return _cheapest(plan, _READ, _READ_EX, _Kind("ssl_read of the method", Call.READ, Result.POINTER, 4))


def _openssl_write(plan: _Plan) -> bool:
    return _cheapest(plan, _WRITE, _WRITE_EX, _Kind("ssl_write of the method", Call.WRITE, Result.POINTER, 4))


def _cheapest(plan: _Plan, plain: _Kind, counted: _Kind, shared: _Kind) -> bool:
    """Probes the function of the method's table that both call, where that is cheap and the two are not."""
    named = _Plan(plan.code)
    probed = named.call(plain)
    if plan.code.symbol(counted.name) is not None and not named.calls(counted.name, plain.name):
        probed &= named.call(counted)
    if not named.is_cheap and (symbol := _method(plan.code, plain.name)) is not None:
        inner = _Plan(plan.code)
        if inner.call(shared, symbol) and inner.is_cheap:
            plan.take(inner)
            plan.notes.append(
                f"{shared.name.replace('_', ' ').split()[1]}s are probed inside, where {plain.name} and {counted.name} meet: "
                "data in the middle of a renegotiation is missed."
            )
            return True
    plan.take(named)
    return probed


def _openssl_other(plan: _Plan) -> None:
    plan.call(_Kind("SSL_sendfile", Call.SENDFILE, Result.AX_LONG, 4))
    for name in ("SSL_peek", "SSL_peek_ex"):
        if not plan.calls("SSL_read", name):
            plan.call(_Kind(name, Call.OTHER, Result.AX, 1))
    methods = {
        "SSL_connect": _method(plan.code, "SSL_set_connect_state"),
        "SSL_accept": _method(plan.code, "SSL_set_accept_state"),
    }
    if all(methods.values()):  # what SSL_do_handshake and a first SSL_read or SSL_write call, whoever starts
        for name, symbol in methods.items():
            plan.call(_Kind(name, Call.OTHER, Result.AX, 1), symbol)
    else:
        plan.call(_Kind("SSL_do_handshake", Call.OTHER, Result.AX, 1))
        for name in ("SSL_connect", "SSL_accept"):
            if not plan.calls(name, "SSL_do_handshake"):
                plan.call(_Kind(name, Call.OTHER, Result.AX, 1))
    plan.call(_Kind("SSL_shutdown", Call.OTHER, Result.AX, 1), _method(plan.code, "SSL_shutdown"))


def _method(code: Code, name: str) -> Symbol | None:
    """What the function of that name calls, or sets to be called, in the table of TLS's method."""
    tables = {value.number for value in returned(code, code.symbol("TLS_method")) if isinstance(value, Constant)}
    offsets = _methods(code, code.symbol(name))
    if not offsets and (inner := _inner(code, code.symbol(name))) is not None:
        offsets = _methods(code, inner)
    if len(tables) != 1 or len(offsets) != 1:
        return None
    address = code.image.word(tables.pop() + offsets.pop())
    return Symbol(address, 0) if code.image.is_code(address) else None


def _openssl_layout(code: Code, beside: Code, library: Library) -> Layout:
    pointer, random = _client_random(code, code.symbol("SSL_get_client_random"))
    method, number = _bio(beside)
    if ABSENT in (method, number):
        named = [
            value
            for name in code.image.needed
            if "libcrypto" in name
            for end, value in _BIO_OF.items()
            if name.endswith(end)
        ]
        method, number = named[0] if named else (ABSENT, ABSENT)
    return Layout(
        library,
        random_pointer=pointer,
        random=random,
        read_bio=_member(returned(code, code.symbol("SSL_get_rbio")), 8),
        bio_method=method,
        bio_number=number,
        server=_member(returned(code, code.symbol("SSL_is_server")), 4),
    )


def _bio(code: Code) -> tuple[int, int]:
    """`bio_method` and `bio_number`, by BIO_method_type and by what the socket's read and write pass on."""
    methods = {
        value.base.offset
        for value in returned(code, code.symbol("BIO_method_type"))
        if isinstance(value, Loaded) and isinstance(value.base, Loaded) and value.base.base == Argument(0)
    }
    numbers: set[int] = set()

    def at(instruction: Instruction, state: State) -> bool:
        if instruction.is_call:
            match state.registers.get("rdi"):
                case Loaded(Argument(0), offset, 4):
                    numbers.add(offset)
        return False

    tables = [value.number for value in returned(code, code.symbol("BIO_s_socket")) if isinstance(value, Constant)]
    for table in tables[:1]:
        for index in range(2, 7):  # behind type and name: write, write_old, read, read_old in some order of versions
            address = code.image.word(table + index * 8)
            if code.image.is_code(address):
                try:
                    ways(code, Symbol(address, 0), at)
                except Unclear:
                    continue
    if not numbers:  # struct bio_st: int num, (padding or a counter), void *ptr
        data = _member(returned(code, code.symbol("BIO_get_data")), 8)
        numbers = {data - 8} if data >= 8 else set()
    return (methods.pop() if len(methods) == 1 else ABSENT), (numbers.pop() if len(numbers) == 1 else ABSENT)


def _version(code: Code, name: str, pattern: re.Pattern[bytes]) -> str:
    """From the text that the library's own function returns."""
    for value in returned(code, code.symbol(name)):
        if isinstance(value, Constant) and (found := pattern.match(code.image.read(value.number, 48))):
            return found[1].decode()
    return ""


def _old_version(image: Image) -> str:
    """1.1.1's OpenSSL_version returns it from a table."""
    needle = b"OpenSSL 1.1.1"
    position = image.contains([needle]).get(needle, -1)
    found = _OPENSSL_VERSION.match(image.data[position : position + 48]) if position >= 0 else None
    return found[1].decode() if found else ""


# GnuTLS

_DOTTED: Final = re.compile(rb"(\d{1,2}(?:\.\d{1,2}){1,2})[\0 ]")
_GNUTLS_NAMES: Final = (
    *("gnutls_record_send", "gnutls_record_send2", "gnutls_record_recv", "gnutls_record_recv_seq"),
    *("gnutls_record_uncork", "gnutls_handshake", "gnutls_bye", "gnutls_deinit", "gnutls_check_version"),
)


def _gnutls(code: Code) -> Finding | None:
    if code.symbol("gnutls_record_send") is None or code.symbol("gnutls_record_recv") is None:
        return None
    plan = _Plan(code)
    second = plan.call(_Kind("gnutls_record_send2", Call.WRITE, Result.AX_LONG, 3))
    sends = second and plan.calls("gnutls_record_send", "gnutls_record_send2")
    if not sends:
        sends = plan.call(_Kind("gnutls_record_send", Call.WRITE, Result.AX_LONG, 3))
    receives = plan.call(_Kind("gnutls_record_recv", Call.READ, Result.AX_LONG, 3))
    plan.call(_Kind("gnutls_record_recv_seq", Call.READ, Result.AX_LONG, 3))
    for name in ("gnutls_record_uncork", "gnutls_handshake", "gnutls_bye"):
        plan.call(_Kind(name, Call.OTHER, Result.AX, 1))
    plan.free("gnutls_deinit")
    problem = "" if sends and receives else " ".join(plan.notes)
    return plan.finding(Library.GNUTLS, _version(code, "gnutls_check_version", _DOTTED), None, problem)


# NSS

_NSS_CALLS: Final = (
    *(_Kind(name, Call.WRITE, Result.AX, 3) for name in ("PR_Write", "PR_Send")),
    _Kind("PR_Writev", Call.WRITE_VECTOR, Result.AX, 3),
    *(_Kind(name, Call.READ, Result.AX, 3) for name in ("PR_Read", "PR_Recv")),
)


_NSS_NAMES: Final = (*(kind.name for kind in _NSS_CALLS), "PR_Close", "PR_GetVersion")


def _nspr(code: Code) -> Finding | None:
    if code.symbol("PR_Read") is None or code.symbol("PR_Write") is None:
        return None
    plan = _Plan(code)
    probed = [plan.call(kind) for kind in _NSS_CALLS]
    plan.free("PR_Close")
    version = _version(code, "PR_GetVersion", _DOTTED)
    return plan.finding(Library.NSS, version, None, "" if all(probed) else " ".join(plan.notes))


# What has no names

_UNNAMED: Final = (
    (Library.BORINGSSL, "BoringSSL", b"ssl/ssl_lib.cc\0"),
    (Library.OPENSSL, "OpenSSL", b"ssl/ssl_lib.c\0"),
)
"""Source files whose names stand in the messages of a library that was linked in and lost its symbols."""


def _unnamed(image: Image) -> Finding | None:
    found = image.contains(text for _, _, text in _UNNAMED)
    for library, name, text in _UNNAMED:
        if text in found:
            return Finding(
                library,
                problem=f"{name} is linked into it, but its functions' names were stripped, so they cannot be found.",
            )
    return None


def find_libraries(image: Image, crypto: Image | None = None) -> tuple[Finding, ...]:
    """The C libraries in a file. `crypto`: the libcrypto that it is loaded with, where that is another file."""
    code = Code(image)
    code.know([*_OPENSSL_NAMES, *_GNUTLS_NAMES, *_NSS_NAMES])
    openssl = _openssl(code, crypto) or _unnamed(image)
    return tuple(finding for finding in (openssl, _gnutls(code), _nspr(code)) if finding is not None)
