"""What is known of processes beside their traffic: which filters are made of it, and when it is forgotten."""

from __future__ import annotations

from netprofiler import wire
from netprofiler.commands.surroundings import Surroundings
from netprofiler.config import Config
from netprofiler.sources.kernel import Filters


def notice(kind: int, pid: int) -> wire.Notice:
    return wire.Notice(*(0 for _ in wire.Notice._fields))._replace(kind=kind, pid=pid)


def test_without_a_selection_filters_stay_as_they_are() -> None:
    filters = Filters(pids=(7,), exclude_pids=(8,), ports=(80,))
    assert Surroundings(Config()).filters(filters) is filters


def test_a_selection_has_the_kernel_side_watch_nobody_at_first() -> None:
    for config in (
        Config(container=("a",)),
        Config(compose_service=("a",)),
        Config(opt_in="A"),
        Config(container_label=("a",)),
    ):
        filters = Surroundings(config).filters(Filters(pids=(7,), exclude_pids=(8,), ports=(80,)))
        assert filters == Filters(pids=(0,), exclude_pids=(8,), ports=(80,))


def test_exclusion_alone_has_it_watch_everybody() -> None:
    assert Surroundings(Config(exclude_container=("a",))).filters(Filters()) == Filters(exclude_pids=(0,))
    asked_for_too = Surroundings(Config(exclude_container=("a",))).filters(Filters(pids=(7,)))
    assert asked_for_too == Filters(pids=(0,))


def test_what_a_process_was_is_known_for_one_round_more_than_it_lives() -> None:
    surroundings = Surroundings(Config())
    surroundings.containers._remember_pid(7, "a" * 64)
    surroundings.attend([notice(wire.NOTICE_EXITED, 7)])
    assert surroundings.containers.identity_of(7) == "a" * 64
    surroundings.attend([])
    assert surroundings.containers._pids == {}
    surroundings.close()


def test_sockets_that_speak_grpc_alone_are_not_asked() -> None:
    config = Config(container_socket=("/run/containerd/containerd.sock", "/run/crio/crio.sock", "/x/docker.sock"))
    assert Surroundings(config).containers._sockets == ("/x/docker.sock",)
