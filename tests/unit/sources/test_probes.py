"""probes.py is bpf/tls.h and bpf/maps.h: the C compiler says where each member lies, and what each name stands for."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

from netprofiler import wire
from netprofiler.sources.probes import ABSENT, Call, Layout, Library, Probe, Purpose, Result

BPF = Path(__file__).parents[3] / "bpf"

MEMBERS = (
    *("library", "random_pointer", "random", "read_bio", "bio_method", "bio_number", "server"),
    *("conn_type_from_write", "conn_type_from_read", "conn_type_from_handshake", "conn_itab_type", "descriptor"),
)


def defines(name: str, prefix: str) -> dict[str, int]:
    """Of a header, the names with this prefix and their values."""
    found = re.findall(rf"^#define {prefix}(\w+) (\d+)\b", (BPF / name).read_text(), re.MULTILINE)
    return {key: int(value) for key, value in found}


@pytest.mark.parametrize(("prefix", "members"), [("PURPOSE_", Purpose), ("TLS_CALL_", Call), ("RESULT_", Result)])
def test_names_are_those_of_the_kernel_side(prefix: str, members: type[Purpose | Call | Result]) -> None:
    mirrored = {member.name: member.value for member in members if member.value}
    assert defines("tls.h", prefix) == mirrored


def test_libraries_are_those_of_the_records() -> None:
    assert defines("events.h", "LIBRARY_") == {library.name: library.value for library in Library}
    assert [library.name.lower() for library in Library] == list(wire.LIBRARIES[1:])


def test_layout_is_packed_as_the_kernel_side_has_it(tmp_path: Path) -> None:
    block = re.search(r"^struct tls_layout {.*?^};", (BPF / "maps.h").read_text(), re.MULTILINE | re.DOTALL)
    assert block
    values = {name: 1000 + index for index, name in enumerate(MEMBERS)}
    values |= {"library": Library.GNUTLS, "random": ABSENT, "conn_type_from_read": -(1 << 40)}
    packed = Layout(**values).pack()  # type: ignore[arg-type]
    source = tmp_path / "layout.c"
    source.write_text(
        "#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n"
        "typedef uint64_t u64; typedef uint32_t u32; typedef int64_t s64; typedef int32_t s32; typedef int16_t s16;\n"
        f"{block[0]}\n"
        "int main(void) { struct tls_layout layout; fread(&layout, 1, sizeof(layout), stdin);\n"
        + "\n".join(f'printf("{name} %lld\\n", (long long)layout.{name});' for name in (*MEMBERS, "attached_ns"))
        + 'printf("size %zu\\n", sizeof(layout)); }'
    )
    program = tmp_path / "layout"
    subprocess.run(["gcc", "-w", "-o", program, source], check=True)
    output = subprocess.run([program], input=packed, capture_output=True, check=True).stdout.decode()
    seen = {name: int(value) for name, value in (line.split() for line in output.splitlines())}
    assert seen == {**values, "attached_ns": 0, "size": len(packed)}


def test_cookie_holds_all_that_a_probe_tells() -> None:
    probe = Probe(0x1234, Purpose.LEAVE, Call.READ, Result.STACK, -8)
    purpose, call, result, _, displacement, layout = struct.unpack("<BBBBhH", probe.cookie(4095).to_bytes(8, "little"))
    assert (purpose, call, result, displacement, layout) == (Purpose.LEAVE, Call.READ, Result.STACK, -8, 4095)
