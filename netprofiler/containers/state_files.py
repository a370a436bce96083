"""What container engines leave in files, for when there is no API to ask, or nobody gave us its socket.

Contract: `read_facts(id)` gives what the files of this host say of a container, or None. It never raises and reads at most
FILE_MAX of each. containerd and CRI-O have no API but gRPC; all that is wanted of it is in the annotations of the bundle
from which the container was started (OCI runtime specification, config.md), where the Kubernetes interface and nerdctl put
names, image and pod.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
from pathlib import Path
from typing import Any, Final

from netprofiler.containers.facts import Facts, is_container_id, labels_of, make_container, member, text_of

FILE_MAX: Final = 4 * 1024 * 1024
"""A bundle's configuration has some 20 KB, of which mounts and environment are the most."""

ROOTS: Final = ("", "/proc/1/root")
"""Ours, and the host's where the agent is in a container with the host's processes."""

_BUNDLES: Final = (
    "run/containerd/io.containerd.runtime.v2.task/{namespace}/{id}/config.json",
    "run/k3s/containerd/io.containerd.runtime.v2.task/{namespace}/{id}/config.json",
    "run/containers/storage/overlay-containers/{id}/userdata/config.json",
    "var/lib/containers/storage/overlay-containers/{id}/userdata/config.json",
)
_DOCKER: Final = "var/lib/docker/containers/{id}/config.v2.json"


def read_facts(identity: str, namespaces: tuple[str, ...] = (), roots: tuple[str, ...] = ROOTS) -> Facts | None:
    """`namespaces`: of containerd; none: whichever has it."""
    if not is_container_id(identity):
        return None
    for root in roots:
        for pattern in _BUNDLES:
            for namespace in namespaces or ("*",):
                for path in glob.glob(f"{root}/{pattern.format(namespace=namespace, id=identity)}"):
                    facts = _bundle(identity, _load(path))
                    if facts is not None:
                        return facts
        facts = _docker(identity, _load(f"{root}/{_DOCKER.format(id=identity)}"))
        if facts is not None:
            return facts
    return None


def _load(path: str) -> Any:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            data = file.read(FILE_MAX + 1)
        return json.loads(data) if len(data) <= FILE_MAX else None
    except (OSError, ValueError, RecursionError):
        return None


def _bundle(identity: str, bundle: Any) -> Facts | None:
    annotations = labels_of(member(bundle, "annotations"))
    if not annotations:
        return None
    with contextlib.suppress(ValueError, TypeError, RecursionError):  # CRI-O: the labels are one annotation
        annotations |= labels_of(json.loads(member(bundle, "annotations", "io.kubernetes.cri-o.Labels") or "{}"))
    return Facts(make_container(identity, "", "", annotations), annotations, shares_network=_shares_network(bundle))


def _shares_network(bundle: Any) -> bool:
    """No namespace is made for it, or one is joined that exists: its pod's. (Docker's networks come by such a path, too, but
    nobody asks a file of Docker's for this.)
    """
    namespaces = member(bundle, "linux", "namespaces")
    if not isinstance(namespaces, list):
        return True
    return not any(member(entry, "type") == "network" and not member(entry, "path") for entry in namespaces)


def _docker(identity: str, state: Any) -> Facts | None:
    name = text_of(member(state, "Name"))
    if not name:
        return None
    labels = labels_of(member(state, "Config", "Labels"))
    return Facts(
        make_container(identity, name, text_of(member(state, "Config", "Image")), labels),
        labels,
        shares_network=True,
    )


def socket_paths(roots: tuple[str, ...] = ROOTS) -> list[str]:
    """Sockets of Docker and Podman that exist now."""
    names = ("run/docker.sock", "var/run/docker.sock", "run/podman/podman.sock")
    found: dict[tuple[int, int], str] = {}
    for root in roots:
        for name in names:
            path = Path(f"{root}/{name}")
            try:
                status = path.stat()
            except OSError:
                continue
            if path.is_socket():
                found.setdefault((status.st_dev, status.st_ino), str(path))
    return list(found.values())
