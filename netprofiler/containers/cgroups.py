"""The names that container engines give to control groups.

Contract: `container_id(text)` takes what is in /proc/PID/cgroup (cgroups(7), "/proc/[pid]/cgroup"), of version 1 or 2, as
seen from any cgroup namespace, and gives the id of the innermost container; empty where there is none. Never raises.

What the engines call it, with N the 64 hexadecimal digits of the id (cgroupfs and systemd drivers):

    Docker           /docker/N                              /system.slice/docker-N.scope
    containerd, CRI  /kubepods/burstable/podUID/N           …/kubepods-burstable-podUID.slice/cri-containerd-N.scope
    nerdctl          /NAMESPACE/N                           /system.slice/nerdctl-N.scope
    Podman           /libpod_parent/libpod-N                /machine.slice/libpod-N.scope/container
    CRI-O            /kubepods/…/crio-N                     …/crio-N.scope

The monitors of Podman and CRI-O (`libpod-conmon-N.scope`, `crio-conmon-N.scope`) are outside of the container that they
are named after.
"""

from __future__ import annotations

import re
from typing import Final

TEXT_MAX: Final = 65_536
"""Of /proc/PID/cgroup: a line a hierarchy, of at most PATH_MAX; there are some 15."""

_CONTAINER: Final = re.compile(
    r"(?:docker|cri-containerd|containerd|nerdctl|libpod|crio)?-?(?P<id>[0-9a-f]{64})(?:\.scope)?", re.ASCII
)


def _paths(text: str) -> list[str]:
    """Of the unified hierarchy first: ``0::PATH``."""
    lines = [line.split(":", 2) for line in text[:TEXT_MAX].splitlines()]
    found = [(number != "0", path) for number, _, path in (line for line in lines if len(line) == 3)]
    return [path for _, path in sorted(found, key=lambda pair: pair[0])]


def container_id(text: str) -> str:
    """64 hexadecimal digits, or nothing."""
    for path in _paths(text):
        for part in reversed(path.split("/")):
            # With cgroupfs, containerd takes the systemd driver's `SLICE:cri-containerd:N` for one name.
            match = _CONTAINER.fullmatch(part.rpartition(":")[2])
            if match is not None:
                return match["id"]
    return ""
