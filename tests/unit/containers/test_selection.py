"""Which processes are watched: by container, by environment, by pid; the opt-in truth table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from netprofiler.containers.directory import Containers
from netprofiler.containers.facts import Facts
from netprofiler.containers.selection import LEAVE, Selection, Wanted
from netprofiler.environment import Environments, OptIn
from netprofiler.exchange import Container
from netprofiler.sources.kernel import EXCLUDE, INCLUDE
from tests.unit.containers.fakes import A, B, FakeProc

WEB = Facts(
    Container(A, "shop_web_1", "web", "i", "shop"),
    {"com.docker.compose.service": "web", "com.docker.compose.project": "shop", "tier": "front"},
)
DB = Facts(
    Container(B, "shop_db_1", "db", "i", "shop"),
    {"com.docker.compose.service": "db", "com.docker.compose.project": "shop", "tier": "back"},
)


class Kernel:
    """What the kernel side was told."""

    def __init__(self) -> None:
        self.flags: dict[int, int] = {}

    def watch(self, pid: int, flags: int) -> None:
        self.flags[pid] = flags


def select(proc: Path, wanted: Wanted, *facts: Facts) -> tuple[Selection, Kernel, Containers]:
    containers = Containers((), proc=proc, find_sockets=list)
    for each in facts:
        containers._put(each, anew=True)
    kernel = Kernel()
    return Selection(wanted, containers, Environments(proc), kernel.watch, proc), kernel, containers


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    fake = FakeProc(tmp_path)
    fake.add(10, container=A)
    fake.add(20, container=B)
    fake.add(30)
    return fake


@pytest.mark.parametrize(
    ("wanted", "watched"),
    [
        (Wanted(names=("shop_web_1",)), {10}),
        (Wanted(names=("shop_web_1", "shop_db_1")), {10, 20}),
        (Wanted(names=(A[:12],)), {10}),
        (Wanted(names=(A[:11],)), set()),
        (Wanted(names=("web",)), set()),
        (Wanted(projects=("shop",)), {10, 20}),
        (Wanted(projects=("other",)), set()),
        (Wanted(services=("db",)), {20}),
        (Wanted(projects=("shop",), services=("db",)), {20}),
        (Wanted(projects=("other",), services=("db",)), set()),
        (Wanted(labels=("tier=back",)), {20}),
        (Wanted(labels=("tier",)), {10, 20}),
        (Wanted(labels=("tier=",)), set()),
        (Wanted(projects=("shop",), exclude_names=("shop_db_1",)), {10}),
        (Wanted(projects=("shop",), pids=(20,)), {20}),
        (Wanted(projects=("shop",), exclude_pids=(20,)), {10}),
    ],
)
def test_kinds_are_and_and_several_of_one_kind_are_or(proc: FakeProc, wanted: Wanted, watched: set[int]) -> None:
    selection, kernel, _ = select(proc.path, wanted, WEB, DB)
    selection.scan()
    assert {pid for pid, flags in kernel.flags.items() if flags == INCLUDE} == watched


def test_exclusion_alone_leaves_everybody_else(proc: FakeProc) -> None:
    wanted = Wanted(exclude_names=("shop_db_1",))
    assert wanted.excludes_only
    selection, kernel, _ = select(proc.path, wanted, WEB, DB)
    selection.scan()
    assert kernel.flags == {20: EXCLUDE}


def test_a_container_that_nobody_has_told_of_yet_is_decided_when_somebody_does(proc: FakeProc) -> None:
    selection, kernel, containers = select(proc.path, Wanted(services=("web",)))
    selection.scan()
    assert selection.decide(10) is None
    assert kernel.flags == {}
    containers._put(WEB, anew=True)
    selection.refresh()
    assert kernel.flags == {10: INCLUDE}
    containers._put(DB, anew=True)
    selection.refresh()
    assert kernel.flags == {10: INCLUDE}


def test_what_a_process_has_forked_before_it_was_decided_is_watched_with_it(proc: FakeProc) -> None:
    selection, kernel, containers = select(proc.path, Wanted(services=("web",)))
    proc.add(60, parent=10, executed=False)
    proc.add(61, parent=60, executed=False)
    proc.add(62, parent=60)  # of another program: it is told by itself
    proc.add(63, parent=62, executed=False)
    selection.executed(10)
    assert kernel.flags == {}
    containers._put(WEB, anew=True)
    selection.refresh()
    assert kernel.flags == {10: INCLUDE, 60: INCLUDE, 61: INCLUDE}


def test_a_child_that_has_inherited_what_it_should_not_is_left_alone(proc: FakeProc) -> None:
    selection, kernel, _ = select(proc.path, Wanted(opt_in=OptIn("ADI_PROFILE")))
    proc.add(40, environ=b"ADI_PROFILE=x\0")
    proc.add(41, parent=40)  # forked, and has executed nothing: not told
    proc.add(42, parent=41, environ=b"OTHER=x\0")
    proc.add(43, parent=41, environ=b"ADI_PROFILE=\0")
    selection.executed(40)
    selection.executed(42)
    selection.executed(43)
    assert kernel.flags == {40: INCLUDE, 42: LEAVE, 43: INCLUDE}
    proc.add(40, environ=b"OTHER=x\0")
    selection.executed(40)
    assert kernel.flags[40] == LEAVE, "another program, with another environment"


def test_a_process_that_is_gone_and_a_full_table_do_no_harm(proc: FakeProc) -> None:
    selection, _, _ = select(proc.path, Wanted(projects=("shop",), opt_in=OptIn()), WEB)
    selection.executed(999)
    assert selection.decide(999) is False

    def full(pid: int, flags: int) -> None:
        raise OSError(7, "Argument list too long")

    failing = Selection(
        Wanted(names=("shop_web_1",)), select(proc.path, Wanted(), WEB)[2], Environments(proc.path), full, proc.path
    )
    failing.executed(10)
    assert failing.failed == 1


# The truth table: environment, without values, with the values local and dev.
TABLE: tuple[tuple[dict[str, str], bool, bool], ...] = (
    ({"ADI_PROFILE": "local"}, True, True),
    ({"ADI_PROFILE": "dev"}, True, True),
    ({"ADI_PROFILE": "prod"}, True, False),
    ({"ADI_PROFILE": "local", "ADI_PROFILE_DISABLED": "1"}, False, False),
    ({"ADI_PROFILE": "prod", "ADI_PROFILE_DISABLED": "1"}, False, False),
    ({}, False, False),
    ({"ADI_PROFILE_DISABLED": "0"}, False, False),
    ({"ADI_PROFILE": "local", "ADI_PROFILE_DISABLED": "0"}, True, True),
    ({"ADI_PROFILE": "prod", "ADI_PROFILE_DISABLED": "0"}, True, False),
    ({"ADI_PROFILE": ""}, True, False),
    ({"adi_profile": "local"}, False, False),
)


@pytest.mark.parametrize(("environ", "without", "with_values"), TABLE)
def test_opt_in_is_decided_by_the_truth_table(environ: Mapping[str, str], without: bool, with_values: bool) -> None:
    assert OptIn().judge(environ).wanted is without
    assert OptIn(values=("local", "dev")).judge(environ).wanted is with_values


@pytest.mark.parametrize(("environ", "without", "with_values"), TABLE)
def test_the_kernel_side_watches_by_the_truth_table(
    tmp_path: Path, environ: Mapping[str, str], without: bool, with_values: bool
) -> None:
    proc = FakeProc(tmp_path)
    proc.add(50, environ="".join(f"{name}={value}\0" for name, value in environ.items()).encode())
    for values, expected in (((), without), (("local", "dev"), with_values)):
        selection, kernel, _ = select(tmp_path, Wanted(opt_in=OptIn(values=values)))
        selection.scan()
        assert kernel.flags == ({50: INCLUDE} if expected else {})


def test_another_variable_may_be_named() -> None:
    opt_in = OptIn("SHOW_ME", ("yes",))
    assert opt_in.judge({"SHOW_ME": "yes", "SHOW_ME_NAME": "shop"}).name == "shop"
    assert not opt_in.judge({"SHOW_ME": "yes", "SHOW_ME_DISABLED": "1"}).wanted
    assert not opt_in.judge({"ADI_PROFILE": "yes"}).wanted
