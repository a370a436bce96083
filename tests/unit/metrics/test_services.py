from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from netprofiler.exchange import Process
from netprofiler.metrics import services
from netprofiler.metrics.services import (
    NAME_MAX_CHARACTERS,
    Service,
    ServiceNames,
    environment_names,
    find_service,
    unit_of,
    without_looking,
)

PROCESS = Process(7, 77, "worker", "/opt/shop/bin/orders --port 80")


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def a_process(
    proc: Path, *, cgroup: str = "0::/\n", environment: bytes = b"", executable: str = "/usr/bin/python3"
) -> Path:
    directory = proc / "7"
    directory.mkdir()
    (directory / "cgroup").write_text(cgroup)
    (directory / "environ").write_bytes(environment)
    (directory / "exe").symlink_to(executable)
    return proc


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/nginx.service\n", "nginx"),
        ("0::/system.slice/nginx.service/workers\n", "nginx"),
        ("0::/system.slice/system-postgres.slice/postgres@15-main.service\n", "postgres@15-main"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/shop.service\n", "shop"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope\n", ""),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", ""),
        ("0::/system.slice/docker-0123.scope\n", ""),
        ("0::/\n", ""),
        ("9:name=systemd:/system.slice/old.service\n4:memory:/other.service\n0::/\n", "old"),
        ("0::/system.slice/my\\x2dshop.service\n", "my-shop"),
        ("0::/system.slice/.service\n", ""),
        ("garbage", ""),
        ("", ""),
    ],
)
def test_the_unit_is_the_innermost_service_that_is_no_users_manager(cgroup: str, unit: str) -> None:
    assert unit_of(cgroup) == unit


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        (b"A=b\0OTEL_SERVICE_NAME=orders\0", ("orders", "")),
        (b"OTEL_RESOURCE_ATTRIBUTES=service.name=o%20s,service.namespace=shop,x=y\0", ("o s", "shop")),
        (b"OTEL_RESOURCE_ATTRIBUTES=service.name=a\0OTEL_SERVICE_NAME=b\0", ("b", "")),
        (b"XOTEL_SERVICE_NAME=x\0OTEL_SERVICE_NAME\0", ("", "")),
        (b"OTEL_SERVICE_NAME=a\xff\nb\0", ("a\ufffdb", "")),
        (b"", ("", "")),
    ],
)
def test_the_environment_says_name_and_namespace(environment: bytes, names: tuple[str, str]) -> None:
    assert environment_names(environment) == names


def test_container_goes_before_unit_before_environment_before_executable(tmp_path: Path) -> None:
    proc = a_process(tmp_path, cgroup="0::/system.slice/shop.service\n", environment=b"OTEL_SERVICE_NAME=orders\0")

    def found(names: Callable[[int], str | None] | None) -> tuple[str, str]:
        service = find_service(7, PROCESS, names, proc)
        return service.name, service.source

    assert found({7: "cart"}.get) == ("cart", "container")
    assert found({8: "cart"}.get) == ("shop", "systemd")
    (proc / "7" / "cgroup").write_text("0::/\n")
    assert found(None) == ("orders", "environment")
    (proc / "7" / "environ").write_bytes(b"")
    assert found(None) == ("python3", "executable")
    (proc / "7" / "exe").unlink()
    assert found(None) == ("orders", "executable")  # by its arguments


def test_a_namespace_comes_with_the_name_that_the_environment_gives(tmp_path: Path) -> None:
    environment = b"OTEL_RESOURCE_ATTRIBUTES=service.name=orders,service.namespace=shop\0"
    assert find_service(7, None, None, a_process(tmp_path, environment=environment)) == Service("orders", "shop")


def test_an_executable_that_was_replaced_keeps_its_name(tmp_path: Path) -> None:
    assert find_service(7, None, None, a_process(tmp_path, executable="/opt/shop (deleted)")).name == "shop"


def test_a_process_that_is_gone_is_called_by_what_is_known_of_it(tmp_path: Path) -> None:
    assert find_service(7, PROCESS, None, tmp_path).name == "orders"
    assert find_service(7, Process(7, 7, "worker", ""), None, tmp_path).name == "worker"
    assert find_service(7, None, None, tmp_path).name == "unknown"


def test_names_are_cut_to_what_fits_a_label() -> None:
    name = without_looking(Process(1, 1, "", "/bin/" + "x" * 10_000 + "\n\ud800")).name
    assert name == "x" * NAME_MAX_CHARACTERS


def test_a_service_is_the_same_however_its_name_was_found() -> None:
    assert Service("a", source="systemd") == Service("a", source="executable")


def test_who_asks_is_not_kept_waiting_by_a_name_that_takes_long() -> None:
    go_on = threading.Event()

    def slow(_pid: int) -> str:
        assert go_on.wait(5)
        return "cart"

    names = ServiceNames(slow)
    owner = names.owner(os.getpid(), PROCESS)
    assert not owner.service
    assert names.owner(os.getpid(), PROCESS) is owner
    go_on.set()
    wait_for(lambda: owner.service == Service("cart"))
    names.close()


def test_processes_beyond_the_queue_are_called_by_what_is_known_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "QUEUE_MAX", 1)
    go_on = threading.Event()
    names = ServiceNames(lambda _pid: str(go_on.wait(5)))
    owners = [names.owner(pid, Process(pid, 1, f"w{pid}", "")) for pid in range(1, 6)]
    named = [owner.service.name for owner in owners if owner.service is not None]
    assert set(named) <= {"w2", "w3", "w4", "w5"} and len(named) >= 3
    go_on.set()
    names.close()


def test_owners_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "OWNERS_MAX", 10)
    names = ServiceNames(lambda _pid: "x")
    first = names.owner(1, None)
    for pid in range(2, 100):
        names.owner(pid, None)
    assert names.owner(99, None) is not first
    assert names.owner(1, None) is not first
    assert len(names._owners) == 10
    names.close()


def test_a_container_of_which_the_engine_knows_only_later_gives_its_name_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "LOOK_AGAIN_SECONDS", 0.02)
    known: dict[int, str] = {}
    names = ServiceNames(known.get)
    pid = os.getpid()
    owner = names.owner(pid, None)
    wait_for(lambda: owner.service is not None)
    before = owner.service
    known[pid] = "cart"
    assert before is not None and before.name != "cart"
    wait_for(lambda: owner.service == Service("cart"))
    names.close()
