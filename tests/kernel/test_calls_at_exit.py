"""The calls again, seen as they leave the kernel: as on kernels before 6.3, where the sockets' tracepoints are not."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.kernel.harness import Agent, check_ledger, running
from tests.kernel.test_calls import (
    test_send_and_receive,
    test_short_counts,
    test_transport,
    test_unseen_bytes_on_unix_sockets,
)

pytestmark = pytest.mark.kernel

__all__ = [
    "test_send_and_receive",
    "test_short_counts",
    "test_transport",
    "test_unseen_bytes_on_unix_sockets",
]

AGENT = """
import sys
from netprofiler.sources import kernel
kernel.SOCKET_TRACEPOINTS[b"netprofiler_has_none"] = ""  # a kernel that has not all of them
from netprofiler.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running(
        tmp_path_factory.mktemp("agent"), "--exclude-comm", "go", program=(sys.executable, "-c", AGENT)
    ) as agent:
        assert "sys_exit" in agent.stderr()
        assert "sock_send_length" not in agent.stderr()
        yield agent
        assert agent.end() == 0, agent.stderr()
        check_ledger(agent.ledger())
