"""`make test-go-matrix`: the oldest and the newest patch of every minor version of Go that there is, built in four ways.

Not collected by itself: building what test_go_tls.py leaves out takes many minutes the first time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.harness import go_programs
from tests.real.harness.go_lab import GoLab
from tests.real.test_go_tls import check_build

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def lab() -> Iterator[GoLab]:
    with tempfile.TemporaryDirectory(prefix="np-") as name, GoLab(Path(name)) as opened:
        yield opened


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", go_programs.MODES)
@pytest.mark.parametrize("version", go_programs.ENDS)
def test_each_build(lab: GoLab, directory: Path, version: str, mode: str) -> None:
    check_build(lab, directory, version, mode)
