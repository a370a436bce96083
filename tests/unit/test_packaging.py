"""packaging/: what is stated there is what the code needs, and options that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from netprofiler.config import OPTIONS
from netprofiler.privileges import NEEDED

UNIT = Path(__file__).parents[2] / "packaging" / "netprofiler.service"
SECURITY = Path(__file__).parents[2] / "docs" / "security.md"


def settings(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["AmbientCapabilities", "CapabilityBoundingSet"])
def test_the_service_has_what_is_needed_and_no_more(name: str) -> None:
    [value] = settings(name)
    assert sorted(value.split()) == sorted(NEEDED)


def test_each_capability_is_documented_with_what_is_without_it() -> None:
    rows = re.findall(r"^\| (`CAP_.*?) \|", SECURITY.read_text(), re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"CAP_\w+", row)}
    assert documented == {*NEEDED, "CAP_NET_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"}


def test_its_options_are_options() -> None:
    [command] = settings("ExecStart")
    names = re.findall(r"--([a-z-]+)", command)
    assert names
    assert set(names) <= {option.name for option in OPTIONS}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_its_exposure_is_what_is_stated() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.search(r"exposure level for netprofiler.service: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip("this systemd-analyze cannot look at a file")
    assert float(found[1]) <= 2.3
    assert "says 2.3" in SECURITY.read_text()
