"""Fixtures of the kernel tests: calls.c compiled, and one agent for a module's many calls."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.harness import USER, Agent, Calls, check_ledger, give, running

KEPT = Path("/var/cache/netprofiler")
SOURCE = Path(__file__).with_name("calls.c")


@pytest.fixture(scope="session", autouse=True)
def kept_for_user() -> Iterator[None]:
    """Where USER's agents keep what they compile, with what root's have compiled already: a second or more for each of them."""
    if USER is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="np-") as name, pytest.MonkeyPatch.context() as patch:
        give(Path(name))
        for kept in KEPT.glob("*"):
            give(Path(shutil.copy(kept, name)))
        patch.setenv("CACHE_DIRECTORY", name)
        yield


@pytest.fixture(scope="session")
def calls() -> Iterator[Calls]:
    """The C client and server; any user may execute them, so not in a directory of pytest's."""
    with tempfile.TemporaryDirectory(prefix="np-") as name:
        Path(name).chmod(0o755)
        binary = Path(name) / "calls"
        subprocess.run(
            ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(binary), str(SOURCE)],
            check=True,
            timeout=60,
        )
        yield Calls(binary)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One agent for the whole module; at its end the ledger sums and nothing was lost. Go's programs, which are built for other
    tests meanwhile, download megabytes.
    """
    with running(tmp_path_factory.mktemp("agent"), "--exclude-comm", "go") as agent:
        yield agent
        assert agent.end() == 0, agent.stderr()
        check_ledger(agent.ledger())


@pytest.fixture
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where to listen, by transport: pair is a socketpair."""
    transports = {
        "ipv4": "127.0.0.1:0",
        "ipv6": "[::1]:0",
        "mapped": "[::ffff:127.0.0.1]:0",
        "unix": f"unix:{tmp_path}/socket",
        "abstract": f"unix:@{tmp_path.name}",
        "pair": "pair",
    }
    return transports[request.param]
