"""What is known of a container, whoever said it, and how names are made of labels.

Contract: `make_facts` takes what an engine or a file said, of any type, and keeps what is a text; never raises.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from netprofiler.exchange import Container

TEXT_MAX: Final = 512
"""Of a name or a label that is kept; DNS names and image names have at most 255."""
LABELS_MAX: Final = 256
HEADER: Final = "X-Netprofiler"
"""Of our own requests, which are nobody's traffic: its value is `TOKEN`."""
TOKEN: Final = os.urandom(16).hex()
_ID: Final = re.compile(r"[0-9a-f]{64}")

# The first that is there gives the name.
_SERVICE: Final = (
    "com.docker.compose.service",
    "io.podman.compose.service",
    "com.docker.swarm.service.name",
    "app.kubernetes.io/name",
    "k8s-app",
    "app",
    "io.kubernetes.container.name",
    "io.kubernetes.cri.container-name",
)
_PROJECT: Final = ("com.docker.compose.project", "io.podman.compose.project")
_POD: Final = ("io.kubernetes.pod.name", "io.kubernetes.cri.sandbox-name")
_NAMESPACE: Final = ("io.kubernetes.pod.namespace", "io.kubernetes.cri.sandbox-namespace")
_NAME: Final = (
    "nerdctl/name",
    "io.kubernetes.container.name",
    "io.kubernetes.cri.container-name",
    "io.kubernetes.cri-o.Name",
)
_IMAGE: Final = ("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName", "io.kubernetes.cri-o.Image")


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one container."""

    container: Container
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[tuple[str, str], ...] = ()
    """Network (its id) and IP address, of each that it is in."""
    ports: tuple[int, ...] = ()
    """Of the host, that lead to it."""
    pid: int = 0
    """Its first process, as the engine sees it; 0: not known, or there is none."""
    shares_network: bool = False
    """It has no network namespace of its own: another container's, its pod's or the host's."""
    host_network: bool = False


class EngineError(Exception):
    """The engine cannot be asked, or what it says is none of what it should. The text: one word or two, for a counter."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to a container."""

    action: str
    """`create`, `start`, `rename`, `die`, `destroy`, …; `connect` and `disconnect` of a network."""
    identity: str
    facts: Facts | None
    """What the event itself tells: name, image and labels; None of a network's."""


def is_container_id(value: object) -> bool:
    """64 hexadecimal digits."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def text_of(value: object) -> str:
    """A text of an acceptable length, or nothing."""
    return value if isinstance(value, str) and len(value) <= TEXT_MAX else ""


def labels_of(value: object) -> dict[str, str]:
    """Those of an object that are texts of an acceptable length, LABELS_MAX of them."""
    if not isinstance(value, dict):
        return {}
    pairs = list(value.items())[:LABELS_MAX]
    return {name: text for name, text in pairs if text_of(name) and isinstance(text, str) and len(text) <= TEXT_MAX}


def address_of(value: object) -> str:
    """An IP address as records have it, or nothing."""
    try:
        return str(ipaddress.ip_address(value)) if isinstance(value, str) and value else ""
    except ValueError:
        return ""


def _first(labels: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")


def make_container(identity: str, name: str, image: str, labels: Mapping[str, str]) -> Container:
    """`name`, `image`: as the engine says; where it does not, by labels."""
    return Container(
        container_id=identity,
        container_name=name.removeprefix("/") or _first(labels, _NAME),
        service=_first(labels, _SERVICE),
        image=image or _first(labels, _IMAGE),
        project=_first(labels, _PROJECT),
        pod=_first(labels, _POD),
        namespace=_first(labels, _NAMESPACE),
    )


def member(value: Any, *names: str) -> Any:
    """``value[name][name]…`` of what may be anything; None where there is no such thing."""
    for name in names:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value
