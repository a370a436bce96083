from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from netprofiler.exchange import Link, Message, Process, Role
from netprofiler.metrics import series as series_module
from netprofiler.metrics.collector import Exposition
from netprofiler.metrics.series import (
    ADDRESSES_MAX,
    IDLE_NS,
    ROUTES_MAX,
    SERIES_MAX,
    SERIES_PER_SERVICE_MAX,
    SERVICES_MAX,
    Place,
    Series,
    Tables,
)
from netprofiler.metrics.services import Service
from netprofiler.metrics.sink import CACHE_MAX, PLACES_MAX, Metrics
from tests.unit.metrics.counting import by, names_of, settle, total
from tests.unit.sinks import messages as made

HOSTILE = 100_000
METHODS = 50
PLACE = Place(Service("shop"), True, "10.0.0.1", 80, "http")


def attack(role: Role, first: int, last: int) -> Iterator[list[Message]]:
    """Each exchange with another path, host, method and status."""
    link = Link("sock:[1]", role, "10.0.0.1", 80, "10.0.0.2", 5555)
    for start in range(first, last, 1000):
        batch = []
        for number in range(start, start + 1000):
            authority = ((":authority", f"h{number:x}.example"),)
            head = made.h2_request(f"M{number}", f"/made/up-{to_letters(number)}/path", authority)
            request = made.message(head, link=link)
            batch += [request, made.message(made.h2_response(200 + number), link=link, request=request)]
        yield batch


def to_letters(number: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


@pytest.mark.parametrize(("role", "count"), [(Role.SERVER, HOSTILE), (Role.CLIENT, HOSTILE // 4)])
def test_a_hostile_peer_makes_no_more_series_than_its_share_and_every_exchange_counts(role: Role, count: int) -> None:
    metrics = Metrics(names_of())
    family = f"http_{role.value}"
    for batch in attack(role, 0, count - 10_000):
        metrics.emit(batch)
        settle(metrics)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for batch in attack(role, count - 10_000, count):
        metrics.emit(batch)
    batch.clear()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    # A cache that is full is made anew, so memory goes up and down by as much as that.
    assert grown < 4_000_000
    assert len(metrics._cache) <= CACHE_MAX and len(metrics._places) <= PLACES_MAX
    snapshot = settle(metrics)
    assert total(snapshot, family) == count
    assert len(snapshot.series) <= SERIES_PER_SERVICE_MAX + 2
    routes = by(snapshot, family, "http_route")
    assert len(routes) <= ROUTES_MAX + 2
    assert by(snapshot, family, "http_request_method") == {("_OTHER",): count}
    # Statuses up to 599 exist; all others do not.
    statuses = by(snapshot, family, "http_response_status_code")
    assert statuses[("other",)] >= count - 400
    assert sum(snapshot.other.get(label, 0) for label in ("http_response_status_code", "series")) >= count - 400
    assert len(by(snapshot, family, "server_address")) <= ADDRESSES_MAX + 2
    text = b"".join(Exposition(metrics).render("")[0])
    assert text.count(b"\n") < 30 * SERIES_PER_SERVICE_MAX and len(text) < 6_000_000


def test_one_service_leaves_room_for_the_others() -> None:
    tables = Tables()
    for number in range(SERIES_PER_SERVICE_MAX * 2):
        place = Place(Service("attacked"), True, f"10.0.0.{number % 40}", 80, "http")
        tables.find_http(place, "GET", 200 + number % 300, f"/{to_letters(number % 50)}", "HTTP/1.1", 0)
    assert tables.count == SERIES_PER_SERVICE_MAX + 1
    assert dict(tables.find_http(PLACE, "GET", 200, "/a", "HTTP/1.1", 0).labels)["http_route"] == "/a"


def test_errors_over_the_bound_stay_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_module, "SERIES_PER_SERVICE_MAX", 1)
    tables = Tables()
    for status in (200, 201, 500, 503):
        tables.find_http(PLACE, "GET", status, "/a", "HTTP/1.1", 0).buckets[0] += 1
    found = {
        tuple(label for label in series.labels if label[0] == "error_type"): series.count for series in tables.series()
    }
    assert found == {(): 1, (("error_type", "other"),): 2}
    assert [(series.count, series.other) for series in tables.series()] == [(1, ()), (1, ("series",)), (2, ("series",))]


def test_services_over_their_bound_are_one() -> None:
    tables = Tables()
    for number in range(SERVICES_MAX + 50):
        place = Place(Service(f"s{number}"), True, "10.0.0.1", 80, "http")
        tables.find_http(place, "GET", 200, "/", "HTTP/1.1", 0).buckets[0] += 1
    names = [series.service.name for series in tables.series()]
    assert len(names) == len(set(names)) == SERVICES_MAX + 1
    assert {series.service.name: series.count for series in tables.series()}["other"] == 50
    assert next(series for series in tables.series() if series.service.name == "other").other == ("service_name",)


def test_the_same_labels_are_the_same_series() -> None:
    tables = Tables()
    again = Place(Service("shop"), True, "10.0.0.1", 80, "http")
    assert tables.find_http(PLACE, "GET", 200, "/a", "HTTP/1.1", 0) is tables.find_http(
        again, "GET", 200, "/a", "HTTP/1.1", 0
    )


def test_all_series_have_different_labels_whatever_is_over_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROUTES_MAX", 2), ("ADDRESSES_MAX", 2), ("SERIES_PER_SERVICE_MAX", 5), ("SERVICES_MAX", 2)):
        monkeypatch.setattr(series_module, name, value)
    tables = Tables()
    for number in range(200):
        place = Place(Service(f"s{number % 4}"), bool(number % 2), f"10.0.0.{number % 7}", 80, "http")
        tables.find_http(place, "GET", 100 * number, f"/{number}", "HTTP/1.1", 0)
        tables.find_rpc(place, f"s{number % 5}", "m", number % 90, 200, 0, incomplete=False)
    labels = [(series.family, series.service, series.labels) for series in tables.series()]
    assert len(labels) == len(set(labels))


def full(now_ns: int = 0) -> tuple[Tables, list[Series]]:
    """Every service's share used up."""
    tables = Tables()
    made = []
    for number in range(SERIES_MAX):
        place = Place(Service(f"s{number // SERIES_PER_SERVICE_MAX}"), True, "10.0.0.1", 80, "http")
        made.append(tables.find_http(place, "GET", 100 + number % 500, "/", "HTTP/1.1", now_ns))
    assert tables.count == SERIES_MAX
    return tables, made


def test_the_bound_of_all_holds_for_services_that_have_room() -> None:
    tables, _ = full()
    series = tables.find_http(PLACE, "GET", 200, "/a", "HTTP/1.1", 1)
    assert series.other == ("series",) and series.service.name == "shop"


def test_what_is_idle_makes_room_and_what_is_not_stays() -> None:
    tables, made = full()
    busy = made[7]
    busy.last_ns = IDLE_NS
    idle = made[8]
    idle.buckets[0] = 3
    now_ns = IDLE_NS + 1
    series = tables.find_http(PLACE, "GET", 200, "/a", "HTTP/1.1", now_ns)
    assert series.other == ()
    assert tables.epoch == 1 and tables.dropped == SERIES_MAX - 1
    assert set(tables.series()) == {busy, series}
    assert tables.count == 2


def test_looking_for_what_is_idle_is_not_done_for_every_message(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, _ = full()
    tables.find_http(PLACE, "GET", 200, "/a", "HTTP/1.1", 1)
    monkeypatch.setattr(tables, "shelves", {**tables.shelves})
    looks = 0

    class Counted(dict[Service, series_module.Shelf]):
        def items(self):  # type: ignore[no-untyped-def]
            nonlocal looks
            looks += 1
            return super().items()

    tables.shelves = Counted(tables.shelves)
    for number in range(1000):
        tables.find_http(PLACE, "GET", 200, f"/{to_letters(number)}", "HTTP/1.1", 2 + number)
    assert looks == 0


def test_the_sink_forgets_series_that_made_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_module, "SERIES_PER_SERVICE_MAX", 2)
    metrics = Metrics(names_of())
    link = made.a_link(Role.SERVER)

    def exchange(status: int, time_ns: int) -> None:
        request = made.message(made.h2_request("GET", "/"), link=link, time_ns=time_ns)
        metrics.emit([request, made.message(made.h2_response(status), link=link, request=request, end_ns=time_ns)])

    exchange(200, 1)
    exchange(201, 1)
    settle(metrics)
    exchange(202, IDLE_NS * 2)  # drops both
    exchange(200, IDLE_NS * 2 + 1)
    snapshot = settle(metrics)
    assert by(snapshot, "http_server", "http_response_status_code") == {("202",): 1, ("200",): 1}
    assert snapshot.dropped == 2


def test_processes_that_come_and_go_leave_no_series_behind() -> None:
    metrics = Metrics(names_of())
    for pid in range(1, 5000):
        process = Process(pid, pid, "curl", "curl")
        link = made.a_link(Role.CLIENT)
        request = made.message(made.h2_request("GET"), link=link, process=process, pid=pid)
        metrics.emit([request, made.message(made.h2_response(), link=link, process=process, pid=pid, request=request)])
        if pid % 500 == 0:
            settle(metrics, set(), pid * 10**6)
    snapshot = settle(metrics, set(), 10**18)
    assert by(snapshot, "http_client", "service_name") == {("shop",): 4999}
    assert len(snapshot.series) == 1 and not metrics._ends
