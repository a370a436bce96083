"""What holds for all tests: who may be skipped, and where a skip is a failure.

A test below `tests/kernel` is marked `kernel`, one below `tests/real` is marked `real`. Both need root, BPF, BTF and BCC. Where
these are missing such a test is skipped, with the reason printed; where NETPROFILER_REQUIRE_KERNEL=1 or CI=true says that they
have to be there, every skip of such a test fails, whoever asked for it: a green run has then really run them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from netprofiler.errors import CommandError
from netprofiler.sources.bcc_import import find_bcc

HERE = Path(__file__).parent
NEED_KERNEL = ("kernel", "real")
BTF = Path("/sys/kernel/btf/vmlinux")


def kernel_required() -> bool:
    """Whether this run has promised a kernel to test on."""
    return os.environ.get("NETPROFILER_REQUIRE_KERNEL") == "1" or os.environ.get("CI") == "true"


@functools.cache
def kernel_missing() -> str | None:
    """Why tests on the kernel cannot run here; None where they can."""
    if os.geteuid() != 0:
        return "needs root (sudo make test)"
    if not BTF.exists():
        return f"needs a kernel with BTF: {BTF} does not exist"
    try:
        find_bcc(Path("/"), [])
    except CommandError as error:
        return f"needs BCC: {error}"
    return None


def _needs_kernel(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) is not None for name in NEED_KERNEL)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks by directory, before -m selects. What loads BCC comes last: the compiler in it (200 MB) stays in this process, and
    every agent that starts from then on would look for TLS in it, for a second.
    """
    for item in items:
        for name in NEED_KERNEL:
            if item.path.is_relative_to(HERE / name):
                item.add_marker(name)
    items.sort(key=lambda item: item.get_closest_marker("loads_bcc") is not None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips before any fixture of such a test is set up."""
    if _needs_kernel(item) and (reason := kernel_missing()) is not None:
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turns a skip into a failure where the kernel is required; an expected failure is reported as "skipped" too, and stays."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and _needs_kernel(item) and kernel_required():
        report.outcome = "failed"
        report.longrepr = _refusal(report.longrepr)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself as a whole."""
    report = yield
    on_kernel = any(collector.path.is_relative_to(HERE / name) for name in NEED_KERNEL)
    if report.skipped and on_kernel and kernel_required():
        report.outcome = "failed"
        report.longrepr = _refusal(report.longrepr)
    return report


def _refusal(skip: object) -> str:
    reason = skip[2] if isinstance(skip, tuple) else skip
    return f"skipped where the kernel is required (NETPROFILER_REQUIRE_KERNEL=1 or CI=true): {reason}"
