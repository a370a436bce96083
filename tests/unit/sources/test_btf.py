"""Offsets from the running kernel's BTF, against facts that do not depend on the kernel's version."""

from __future__ import annotations

from pathlib import Path

import pytest

from netprofiler.errors import CommandError
from netprofiler.sources import btf

pytestmark = pytest.mark.skipif(not btf.BTF_PATH.is_file(), reason="this kernel shows no BTF")


def test_known_layouts() -> None:
    offsets = btf.member_offsets(
        ["sock_common.skc_daddr", "sock_common.skc_rcv_saddr", "sock_common.skc_dport", "sock_common.skc_family"]
    )
    # bpf/socket.h reads these 20 bytes at once.
    assert list(offsets.values()) == [0, 4, 12, 16]


def test_members_of_anonymous_structs_are_found() -> None:
    """skc_daddr lies in a struct in a union; mm_struct's members in an anonymous struct."""
    offsets = btf.member_offsets(["mm_struct.arg_start", "mm_struct.arg_end"])
    assert offsets["mm_struct.arg_end"] == offsets["mm_struct.arg_start"] + 8


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match=r"task_struct\.no_such_member, no_such_struct\.member") as caught:
        btf.member_offsets(["task_struct.files", "task_struct.no_such_member", "no_such_struct.member"])
    assert caught.value.exit_code == 3


def test_no_btf_is_said_with_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btf, "BTF_PATH", Path("/nonexistent/vmlinux"))
    with pytest.raises(CommandError, match="/nonexistent/vmlinux is missing") as caught:
        btf.member_offsets(["task_struct.files"])
    assert caught.value.exit_code == 3
