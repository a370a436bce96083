"""What engines leave in files: names, images and pods without any API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from netprofiler.containers import state_files
from netprofiler.containers.state_files import read_facts, socket_paths
from netprofiler.exchange import Container
from tests.unit.containers.fakes import A, FakeEngine

OWN_NETWORK = {"namespaces": [{"type": "pid"}, {"type": "network"}]}
PODS_NETWORK = {"namespaces": [{"type": "network", "path": "/proc/1234/ns/net"}]}


def write(root: Path, name: str, content: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def read(root: Path, *namespaces: str) -> Container | None:
    facts = read_facts(A, namespaces, (str(root),))
    return None if facts is None else facts.container


TASK = "run/containerd/io.containerd.runtime.v2.task/{}/" + A + "/config.json"
CRI = {
    "io.kubernetes.cri.container-name": "web",
    "io.kubernetes.cri.image-name": "registry.example/library/web:1",
    "io.kubernetes.cri.sandbox-name": "web-7d4b9c-x2x9z",
    "io.kubernetes.cri.sandbox-namespace": "prod",
}


def test_containerd_for_kubernetes(tmp_path: Path) -> None:
    write(tmp_path, TASK.format("k8s.io"), {"annotations": CRI, "linux": PODS_NETWORK})
    expected = Container(A, "web", "web", "registry.example/library/web:1", pod="web-7d4b9c-x2x9z", namespace="prod")
    assert read(tmp_path) == expected
    assert read(tmp_path, "k8s.io") == expected
    assert read(tmp_path, "other") is None
    facts = read_facts(A, (), (str(tmp_path),))
    assert facts is not None and facts.shares_network


def test_nerdctl(tmp_path: Path) -> None:
    labels = {"nerdctl/name": "shop-web-1", "com.docker.compose.project": "shop", "com.docker.compose.service": "web"}
    write(tmp_path, TASK.format("default"), {"annotations": labels, "linux": OWN_NETWORK})
    assert read(tmp_path) == Container(A, "shop-web-1", "web", project="shop")
    facts = read_facts(A, (), (str(tmp_path),))
    assert facts is not None and not facts.shares_network and dict(facts.labels) == labels


def test_cri_o(tmp_path: Path) -> None:
    annotations = {
        "io.kubernetes.container.name": "web",
        "io.kubernetes.pod.name": "web-0",
        "io.kubernetes.pod.namespace": "prod",
        "io.kubernetes.cri-o.ImageName": "registry.example/web:2",
        "io.kubernetes.cri-o.Labels": json.dumps({"app.kubernetes.io/name": "shop"}),
    }
    path = f"run/containers/storage/overlay-containers/{A}/userdata/config.json"
    write(tmp_path, path, {"annotations": annotations, "linux": PODS_NETWORK})
    assert read(tmp_path) == Container(A, "web", "shop", "registry.example/web:2", pod="web-0", namespace="prod")


def test_docker_whose_socket_is_not_there(tmp_path: Path) -> None:
    state = {"Name": "/shop_web_1", "Config": {"Image": "web", "Labels": {"com.docker.compose.service": "web"}}}
    write(tmp_path, f"var/lib/docker/containers/{A}/config.v2.json", state)
    assert read(tmp_path) == Container(A, "shop_web_1", "web", "web")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        [],
        {},
        {"annotations": []},
        {"annotations": {"a": 1}},
        {"annotations": {"a": "x" * 100_000}},
        b" " * (state_files.FILE_MAX + 1),
    ],
)
def test_a_file_that_says_nothing_tells_nothing(tmp_path: Path, content: Any) -> None:
    write(tmp_path, TASK.format("x"), content)
    write(tmp_path, f"var/lib/docker/containers/{A}/config.v2.json", content)
    assert read(tmp_path) is None


@pytest.mark.parametrize("linux", [None, [], {"namespaces": 7}, {"namespaces": [7]}, {}])
def test_a_bundle_without_namespaces_and_labels_that_are_none_do_no_harm(tmp_path: Path, linux: Any) -> None:
    write(tmp_path, TASK.format("x"), {"annotations": {**CRI, "io.kubernetes.cri-o.Labels": "{"}, "linux": linux})
    facts = read_facts(A, (), (str(tmp_path),))
    assert facts is not None and facts.shares_network and facts.container.container_name == "web"


@pytest.mark.parametrize("identity", ["", "..", "a" * 63, "../" + "a" * 61, "*" * 64])
def test_only_an_id_is_looked_for(tmp_path: Path, identity: str) -> None:
    write(tmp_path, TASK.format("x"), {"annotations": CRI})
    assert read_facts(identity, (), (str(tmp_path),)) is None


def test_sockets_are_found_once_each(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "var").mkdir()
    (tmp_path / "var/run").symlink_to("../run")
    assert socket_paths((str(tmp_path),)) == []
    with FakeEngine(tmp_path / "run/docker.sock"):
        assert socket_paths((str(tmp_path), str(tmp_path))) == [f"{tmp_path}/run/docker.sock"]
