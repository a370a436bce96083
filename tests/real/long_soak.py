"""`make soak`: test_soak.py's load for ten minutes, and fifty agents that are killed. Not collected by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.test_faults import check_kills
from tests.real.harness.tls import Certificates
from tests.real.test_soak import soak

pytestmark = pytest.mark.real

SECONDS = 600.0
KILLS = 50
LEAK_BYTES = 100
"""What the two ends of a connection may leave behind, at most, as far as can be told: 50 for each end."""


@pytest.mark.timeout(1200)
def test_ten_minutes(tmp_path: Path, certificates: Certificates) -> None:
    soak(tmp_path, certificates, SECONDS, LEAK_BYTES)


@pytest.mark.timeout(1200)
def test_fifty_that_are_killed(tmp_path: Path) -> None:
    check_kills(tmp_path, KILLS)
