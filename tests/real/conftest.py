"""What the tests against real programs share: binaries built once, and directories that other users' servers can read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.harness.lab import Lab
from tests.real.harness.servers import build_go, java_classes
from tests.real.harness.tls import Certificates, make_certificates


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short enough for a UNIX socket's path, and readable for www-data, which pytest's tmp_path is not."""
    with tempfile.TemporaryDirectory(prefix="np-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def go_server_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_go("server", tmp_path_factory.mktemp("go-server"))


@pytest.fixture(scope="session")
def go_traffic_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_go("traffic", tmp_path_factory.mktemp("go-traffic"))


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return java_classes(tmp_path_factory.mktemp("java"))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One agent for the tests of a module; whatever they did not account for fails the last of them."""
    with tempfile.TemporaryDirectory(prefix="np-") as name, Lab(Path(name)) as opened:
        yield opened


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    with tempfile.TemporaryDirectory(prefix="np-") as name:
        yield make_certificates(Path(name))
