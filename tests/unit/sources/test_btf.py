"""sources/btf.py: offsets of this kernel, and what is said where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from netprofiler.errors import CommandError, ExitCode
from netprofiler.sources import btf
from netprofiler.sources.kernel import assemble, find_bpf, needed_offsets


def needs_btf_and_libbpf() -> None:
    if not btf.BTF_PATH.exists():
        pytest.skip("needs a kernel with BTF")
    try:
        btf._load_libbpf()
    except CommandError:
        pytest.skip("needs libbpf")


def test_a_kernel_without_btf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(btf, "BTF_PATH", tmp_path / "vmlinux")
    with pytest.raises(CommandError, match="BTF") as raised:
        btf.member_offsets(["sock.sk_protocol"])
    assert raised.value.exit_code == ExitCode.HOST
    assert "CONFIG_DEBUG_INFO_BTF" in str(raised.value)


def test_members_that_this_kernel_has_not_are_named() -> None:
    needs_btf_and_libbpf()
    with pytest.raises(CommandError) as raised:
        btf.member_offsets(["sock.sk_protocol", "sock.sk_nonsense", "nonsense.member"])
    assert raised.value.exit_code == ExitCode.HOST
    assert "sock.sk_nonsense" in str(raised.value) and "nonsense.member" in str(raised.value)
    assert "sk_protocol" not in str(raised.value)


def test_all_that_the_program_needs_is_found() -> None:
    needs_btf_and_libbpf()
    needed = needed_offsets(assemble(find_bpf()))
    offsets = btf.member_offsets(needed)
    assert list(offsets) == needed
    assert len(needed) > 20
    assert all(0 <= offset < 1 << 16 for offset in offsets.values())


def test_anonymous_members_are_looked_into() -> None:
    """sock_common's addresses lie in a struct in a union, both without a name."""
    needs_btf_and_libbpf()
    offsets = btf.member_offsets(["sock_common.skc_daddr", "sock_common.skc_rcv_saddr"])
    assert offsets == {"sock_common.skc_daddr": 0, "sock_common.skc_rcv_saddr": 4}
