"""`make test-churn`: test_tls_churn.py's churn for ten minutes. Not collected by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.test_tls_churn import check_churn

pytestmark = pytest.mark.real

SECONDS = 600.0


@pytest.mark.timeout(900)
def test_ten_minutes(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_churn(directory, capsys, SECONDS)
