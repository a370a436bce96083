"""wire.py is bpf/events.h: the C compiler says where each member lies, and what comes out of `build_…` is what goes in."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netprofiler import wire
from netprofiler.testing import build

EVENTS_H = Path(__file__).parents[2] / "bpf" / "events.h"

STRUCTS = {
    "opened_record": wire.OPENED,
    "data_record": wire.DATA,
    "closed_record": wire.CLOSED,
    "process_record": wire.PROCESS,
    "file_source": wire.FILE_SOURCE,
    "notice": wire.NOTICE,
}
CONSTANTS = {
    "ABI_VERSION": wire.ABI_VERSION,
    "RECORD_OPENED": wire.KIND_OPENED,
    "RECORD_DATA": wire.KIND_DATA,
    "RECORD_CLOSED": wire.KIND_CLOSED,
    "RECORD_PROCESS": wire.KIND_PROCESS,
    "RECORD_HANDSHAKE": wire.KIND_HANDSHAKE,
    "SOCKET_TLS": wire.SOCKET_TLS,
    "SOCKET_UNKNOWN": wire.SOCKET_UNKNOWN,
    **{f"LIBRARY_{name.upper()}": number for number, name in enumerate(wire.LIBRARIES) if number},
    "NOTICE_EXECUTED": wire.NOTICE_EXECUTED,
    "NOTICE_MAPPED": wire.NOTICE_MAPPED,
    "NOTICE_EXITED": wire.NOTICE_EXITED,
    "NOTICE_FORKED": wire.NOTICE_FORKED,
    "RECORD_USER": wire.KIND_USER,
    "RECORD_PASSIVE": wire.KIND_PASSIVE,
    "FRESH": wire.FRESH,
    "RESUMED": wire.RESUMED,
    "DIRECTION_SEND": wire.SEND,
    "DIRECTION_RECV": wire.RECV,
    "DIRECTION_BOTH": wire.BOTH,
    "DATA_FIRST": wire.DATA_FIRST,
    "DATA_FILE": wire.DATA_FILE,
    "DATA_AFTER_LOSS": wire.DATA_AFTER_LOSS,
    "REASON_NONE": wire.REASON_NONE,
    "REASON_OVER_LIMIT": wire.REASON_OVER_LIMIT,
    "REASON_SENDFILE": wire.REASON_SENDFILE,
    "REASON_SPLICE": wire.REASON_SPLICE,
    "REASON_IO_URING": wire.REASON_IO_URING,
    "REASON_UNREADABLE": wire.REASON_UNREADABLE,
    "ROLE_UNKNOWN": 0,
    "ROLE_CLIENT": wire.ROLE_CLIENT,
    "ROLE_SERVER": wire.ROLE_SERVER,
    "FAMILY_UNIX": wire.FAMILY_UNIX,
    "FAMILY_IPV4": wire.FAMILY_IPV4,
    "FAMILY_IPV6": wire.FAMILY_IPV6,
    "UNIX_PATH_BYTES": wire.UNIX_PATH_BYTES,
    "COMM_BYTES": wire.COMM_BYTES,
    "FILE_NAME_BYTES": wire.FILE_NAME_BYTES,
    "FILE_NAMES": wire.FILE_NAMES,
}
NOT_MIRRORED = {"NETPROFILER_EVENTS_H", "ARGUMENTS_BYTES"}
"""The include guard, and how much of a command line the kernel side sends: the record says its length itself."""


def members(struct: str) -> list[str]:
    """Names of a struct's members, in order, as events.h has them."""
    block = re.search(rf"^struct {struct} {{\n(.*?)^}};", EVENTS_H.read_text(), re.MULTILINE | re.DOTALL)
    assert block
    code = re.sub(r"/\*.*?\*/", "", block[1], flags=re.DOTALL)
    return re.findall(r"(\w+)(?:\[\w+\])*;", code)


def offsets(struct: Struct) -> list[int]:
    """Where each value of a struct lies; padding is a member of events.h, too."""
    found = []
    at = 0
    for count, code in re.findall(r"(\d*)([A-Za-z])", struct.format):
        size = Struct(f"<{code}").size
        if code in "sx":
            found.append(at)
            at += int(count or 1)
            continue
        for _ in range(int(count or 1)):
            found.append(at)
            at += size
    assert at == struct.size
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler says of every offset, size and constant."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the ABI test needs a C compiler (Debian: gcc)"
    directory = tmp_path_factory.mktemp("abi")
    lines = [f'printf("{name} %llu\\n", (unsigned long long)({name}));' for name in CONSTANTS]
    for struct in STRUCTS:
        lines.append(f'printf("{struct} %zu\\n", sizeof(struct {struct}));')
        lines += [
            f'printf("{struct}.{member} %zu\\n", offsetof(struct {struct}, {member}));' for member in members(struct)
        ]
    source = directory / "abi.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{EVENTS_H}"\nint main(void)\n{{\n'
        + "\n".join(lines)
        + "\nreturn 0;\n}\n"
    )
    subprocess.run([compiler, "-Wall", "-Werror", "-o", directory / "abi", source], check=True, timeout=60)
    out = subprocess.run([directory / "abi"], check=True, timeout=10, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in out.splitlines())}


@pytest.mark.parametrize("struct", STRUCTS)
def test_layout(struct: str, compiled: dict[str, int]) -> None:
    names = members(struct)
    assert compiled[struct] == STRUCTS[struct].size
    assert compiled[struct] % 8 == 0
    assert [compiled[f"{struct}.{name}"] for name in names] == offsets(STRUCTS[struct])


@pytest.mark.parametrize("name", CONSTANTS)
def test_constant(name: str, compiled: dict[str, int]) -> None:
    assert compiled[name] == CONSTANTS[name]


def test_nothing_is_left_out() -> None:
    text = EVENTS_H.read_text()
    assert set(re.findall(r"^#define (\w+)", text, re.MULTILINE)) == set(CONSTANTS) | NOT_MIRRORED
    assert set(re.findall(r"^struct (\w+) {", text, re.MULTILINE)) == set(STRUCTS)


def test_file_magic() -> None:
    assert rb"npfile\x01\x02" in EVENTS_H.read_bytes()
    assert wire.FILE_MAGIC == b"npfile\x01\x02"


OPENED = wire.ConnectionOpened(
    time_ns=1,
    socket=48213,
    pid=1234,
    role=wire.ROLE_CLIENT,
    fresh=True,
    family=wire.FAMILY_IPV4,
    network_namespace=4026531840,
    local_ip="127.0.0.1",
    local_port=54321,
    remote_ip="127.0.0.2",
    remote_port=8080,
    unix_path="",
    send_position=1000,
    recv_position=4294967295,
    counted=False,
)
DATA = wire.DataCaptured(
    time_ns=2,
    socket=48213,
    pid=1234,
    tid=1236,
    direction=wire.RECV,
    position=7,
    length=5,
    flags=wire.DATA_FIRST,
    reason=wire.REASON_NONE,
    payload=b"hello",
)
EVENTS: list[wire.Event] = [
    OPENED,
    replace(OPENED, family=wire.FAMILY_IPV6, local_ip="::1", remote_ip="2001:db8::1"),
    replace(OPENED, passive=True, pid=0, role=0),
    replace(
        OPENED,
        family=wire.FAMILY_UNIX,
        local_ip="",
        remote_ip="",
        local_port=0,
        remote_port=0,
        unix_path="/run/a.sock",
        counted=True,
    ),
    replace(OPENED, family=wire.FAMILY_UNIX, local_ip="", remote_ip="", unix_path="@abstract"),
    DATA,
    replace(DATA, reason=wire.REASON_SENDFILE, length=1 << 31, payload=b""),
    wire.ConnectionClosed(3, 48213, wire.BOTH, True, 12),
    wire.ProcessSeen(4, 1234, 99, 1000, "traffic", "/bin/traffic --requests 10"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_event_comes_back(event: wire.Event) -> None:
    assert wire.parse(build(event)) == event


def test_mapped_address_is_ipv4() -> None:
    event = replace(OPENED, family=wire.FAMILY_IPV6, local_ip="::ffff:10.0.0.1")
    opened = wire.parse_opened(wire.build_opened(event))
    assert opened.local_ip == "10.0.0.1"


def test_batch_is_walked() -> None:
    records = [build(event) for event in EVENTS]
    batch = b"".join(map(wire.frame, records))
    assert list(wire.records(batch)) == records
    assert wire.whole_length(batch) == len(batch)
    assert wire.survey(batch) == (len(batch), [(48213, 1234), (48213, 1234)])


def test_batch_ends_before_a_record_that_is_being_written() -> None:
    whole = wire.frame(build(OPENED))
    busy = bytearray(wire.frame(build(DATA)))
    busy[3] |= 0x80
    batch = whole + bytes(busy) + whole
    assert list(wire.records(batch)) == [build(OPENED)]
    assert wire.whole_length(batch) == len(whole)
    assert wire.survey(batch)[0] == len(whole)


def test_discarded_record_is_left_out() -> None:
    discarded = bytearray(wire.frame(build(DATA)))
    discarded[3] |= 0x40
    batch = bytes(discarded) + wire.frame(build(OPENED))
    assert list(wire.records(batch)) == [build(OPENED)]
    assert wire.survey(batch) == (len(batch), [])


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_short_record_is_malformed(event: wire.Event) -> None:
    record = build(event)
    struct = next(
        struct for struct in (wire.OPENED, wire.DATA, wire.CLOSED, wire.PROCESS) if struct.size <= len(record)
    )
    for size in (0, 1, struct.size - 1):
        with pytest.raises(wire.MalformedRecord):
            wire.parse(record[:size])


@given(st.binary(max_size=300))
def test_any_bytes_are_an_event_or_malformed(record: bytes) -> None:
    with contextlib.suppress(wire.MalformedRecord):
        wire.parse(record)


def test_sent_file_is_put_in_place() -> None:
    source = wire.FILE_SOURCE.pack(wire.FILE_MAGIC, 4096, 77, 0x800001, 5, 1234, 2)
    source += (b"file\0".ljust(64, b"\0") + b"dir").ljust(wire.FILE_NAMES * wire.FILE_NAME_BYTES, b"\0")
    event = replace(
        DATA, flags=wire.DATA_FIRST | wire.DATA_FILE, reason=wire.REASON_SENDFILE, length=1000, payload=source
    )
    asked = []

    def read(file: wire.FileSource, length: int, time_ns: int) -> bytes:
        asked.append((file, length, time_ns))
        return b"x" * 2000

    resolved = wire.resolve_files(wire.frame(build(OPENED)) + wire.frame(build(event)), read)
    opened, data = map(wire.parse, wire.records(resolved))
    assert opened == OPENED
    assert data == replace(event, flags=wire.DATA_FIRST, payload=b"x" * 1000)
    assert asked == [(wire.FileSource(4096, 77, 0x800001, 5, 1234, (b"file", b"dir")), 1000, 2)]
