"""Names of control groups, as the engines give them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netprofiler.containers.cgroups import container_id

N = "573170b3b1ba4697068fc9cc80c3915d33e4a3f08bac33ccaf24360f04e544b2"
OTHER = "ca63e1e1f025cd35ca6a52ae5f03c4cc3d41e093c478e5c612298130b9f0186b"
POD = "pod1f7a1c3b-8d5f-4a52-9d1c-0a9b8c7d6e5f"
POD_SLICE = f"kubepods-burstable-{POD.replace('-', '_')}.slice"


@pytest.mark.parametrize(
    "path",
    [
        f"/docker/{N}",
        f"/system.slice/docker-{N}.scope",
        f"/docker/{N}/init.scope",
        f"/kubepods/burstable/{POD}/{N}",
        f"/kubepods.slice/kubepods-burstable.slice/{POD_SLICE}/cri-containerd-{N}.scope",
        f"/system.slice/containerd.service/{POD_SLICE}:cri-containerd:{N}",
        f"/default/{N}",
        f"/system.slice/nerdctl-{N}.scope",
        f"/machine.slice/libpod-{N}.scope",
        f"/machine.slice/libpod-{N}.scope/container",
        f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{N}.scope/container",
        f"/libpod_parent/libpod-{N}",
        f"/kubepods.slice/kubepods-besteffort.slice/{POD_SLICE}/crio-{N}.scope",
        f"/kubepods/besteffort/{POD}/crio-{N}",
        f"/../{N}",
        f"/../../system.slice/docker-{N}.scope",
        f"/docker/{OTHER}/kubelet/kubepods/burstable/{POD}/{N}",
    ],
)
def test_the_id_is_found_in_the_name(path: str) -> None:
    assert container_id(f"0::{path}\n") == N
    assert container_id(f"12:memory:{path}\n5:cpu,cpuacct:{path}\n1:name=systemd:{path}\n") == N


def test_the_unified_hierarchy_is_asked_first() -> None:
    assert container_id(f"4:memory:/docker/{OTHER}\n0::/docker/{N}\n") == N
    assert container_id(f"4:memory:/docker/{N}\n0::/\n") == N


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/user.slice/user-0.slice/session-1.scope",
        "/system.slice/docker.service",
        f"/machine.slice/libpod-conmon-{N}.scope",
        f"/system.slice/crio-conmon-{N}.scope",
        f"/docker/{N[:-1]}",
        f"/docker/{N}0",
        f"/docker/{N.upper()}",
        f"/buildkit/{N}.mount",
        f"/docker-{N}.service",
    ],
)
def test_what_is_no_container_has_no_id(path: str) -> None:
    assert container_id(f"0::{path}\n") == ""


@given(st.text())
def test_any_text_gives_an_id_or_nothing(text: str) -> None:
    assert container_id(text) == "" or len(container_id(text)) == 64
