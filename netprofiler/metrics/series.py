"""The tables: what was counted, by labels, bounded.

Contract: `Tables.find(…)` gives the `Series` of an exchange's labels, the same object for the same labels until `Tables.epoch`
changes (series that were idle for long were dropped to make room). It never refuses: what is over a bound gets the label value
`other`, and is counted all the same. Not thread-safe: who reads and who writes hold the same lock (sink.py).

Bounds, each so that one hostile client, or server, can fill no more than its own service's share:

1. SERVICES_MAX services; further ones are the service `other`.
2. Of a service: ROUTES_MAX routes (and as many gRPC methods), ADDRESSES_MAX server addresses; further ones are `other`. A path
   that was answered 404 (or UNIMPLEMENTED) makes no new route: anybody can ask for it.
3. Of a service SERIES_PER_SERVICE_MAX series, of all SERIES_MAX; further ones have `other` for each label, and tell only
   what failed from what did not, so that error ratios stay exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from netprofiler.metrics.services import Service, clean

OTHER: Final = "other"
SERVICES_MAX: Final = 256
ROUTES_MAX: Final = 100
ADDRESSES_MAX: Final = 50
SERIES_PER_SERVICE_MAX: Final = 500
SERIES_MAX: Final = 2_000
"""The OpenTelemetry SDK's limit for one metric. At 24 lines each a scrape is 15 MB at most, and takes a second."""
IDLE_NS: Final = 900_000_000_000
"""Series to which nothing was added for 15 minutes make room where a bound is reached: every scrape has seen them."""
MAKE_ROOM_NS: Final = 60_000_000_000
"""Looking for idle ones costs a look at all; under an attack there is nothing to find."""

DURATION_BOUNDS_SECONDS: Final = (
    0.0, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
"""OpenTelemetry's advice for http.server.request.duration, and 0: an answer that was seen before the send which it answers
had returned, so that its duration is known to be small and no more."""
DURATION_BOUNDS_NS: Final = tuple(round(bound * 1e9) for bound in DURATION_BOUNDS_SECONDS)
"""Inclusive upper bounds of all buckets but the last, which has none: a list of counts is one longer than this."""
BUCKETS: Final = len(DURATION_BOUNDS_NS) + 1

SERVER_ERRORS: Final = frozenset((2, 4, 12, 13, 14, 15))
"""Statuses of gRPC that are an error of the server, too: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE,
DATA_LOSS (OpenTelemetry, semantic conventions for gRPC); for a client all but OK are."""
GRPC_STATUSES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_UNIMPLEMENTED: Final = 12
_NOT_FOUND: Final = 404
INCOMPLETE: Final = "incomplete"
"""error_type of an exchange whose response ended before its end."""

METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"))
_OTHER_METHOD: Final = "_OTHER"
"""OpenTelemetry's, for a method that is not well known."""


@dataclass(slots=True, eq=False)
class Place:
    """Where an exchange happened. Compared by identity, which is quick; the sink keeps one for each."""

    service: Service
    is_server: bool
    address: str
    port: int
    """0: none."""
    scheme: str


class Series:
    """The numbers of one set of labels."""

    __slots__ = (
        "buckets",
        "family",
        "labels",
        "last_ns",
        "other",
        "request_bytes",
        "requests",
        "response_bytes",
        "service",
        "sum_ns",
    )

    def __init__(
        self,
        family: str,
        service: Service,
        labels: tuple[tuple[str, str], ...],
        other: tuple[str, ...],
        now_ns: int,
    ) -> None:
        self.family = family
        """``http_server``, ``http_client``, ``rpc_server``, ``rpc_client``."""
        self.service = service
        self.labels = labels
        """Names and values but the service's; none is empty."""
        self.other = other
        """Labels whose value is OTHER because a bound was reached."""
        self.buckets = [0] * BUCKETS
        """Exchanges by duration, not cumulated."""
        self.sum_ns = 0
        self.requests = 0
        """Requests whose size is in `request_bytes`: they may end after their responses."""
        self.request_bytes = 0
        self.response_bytes = 0
        self.last_ns = now_ns

    @property
    def count(self) -> int:
        return sum(self.buckets)


class Shelf:
    """What belongs to one service."""

    __slots__ = ("addresses", "methods", "routes", "series", "service", "unanswered", "unpaired")

    def __init__(self, service: Service) -> None:
        self.service = service
        self.series: dict[tuple[object, ...], Series] = {}
        self.routes: set[str] = set()
        self.methods: set[tuple[str, str]] = set()
        self.addresses: set[tuple[str, int]] = set()
        self.unanswered = [0, 0]
        """Requests whose connection ended without an answer: as a client, as a server."""
        self.unpaired = [0, 0]
        """Responses to requests that are not known."""


class Tables:
    """See above."""

    def __init__(self) -> None:
        self.shelves: dict[Service, Shelf] = {}
        self.epoch = 0
        self.dropped_other: Counter[str] = Counter()
        """Of series that were dropped: exchanges with OTHER in this label."""
        self.dropped = 0
        """Series that were dropped."""
        self._count = 0
        self._look_again_ns = 0

    @property
    def count(self) -> int:
        """Series there are."""
        return self._count

    def series(self) -> Iterable[Series]:
        for shelf in self.shelves.values():
            yield from shelf.series.values()

    def shelf(self, service: Service, now_ns: int) -> Shelf:
        shelf = self.shelves.get(service)
        if shelf is None:
            if len(self.shelves) >= SERVICES_MAX and service.name != OTHER:
                self._make_room(now_ns)
                if len(self.shelves) >= SERVICES_MAX:
                    return self.shelf(Service(OTHER), now_ns)
            shelf = self.shelves[service] = Shelf(service)
        return shelf

    def find_http(
        self,
        place: Place,
        method: str,
        status: int,
        route: str,
        version: str,
        now_ns: int,
        *,
        incomplete: bool = False,
    ) -> Series:
        """`status` 0, and any text that is empty: not known, or there is none. `version`: as in `Head`."""
        shelf = self.shelf(place.service, now_ns)
        other = ["service_name"] if shelf.service is not place.service and shelf.service != place.service else []
        if 100 <= status <= 599:
            status_text = str(status)
        else:
            status_text = OTHER if status else ""
            other += ["http_response_status_code"] * bool(status)
        if route and route not in shelf.routes:
            if status == _NOT_FOUND:
                route = ""
            elif len(shelf.routes) >= ROUTES_MAX:
                route = OTHER
                other.append("http_route")
            else:
                shelf.routes.add(route)
        address, port = self._address(shelf, place, other)
        error = ""
        if status >= (500 if place.is_server else 400):
            error = status_text
        elif incomplete:
            error = INCOMPLETE
        return self._find(
            shelf,
            "http_server" if place.is_server else "http_client",
            (
                ("http_request_method", method if method in METHODS or not method else _OTHER_METHOD),
                ("http_response_status_code", status_text),
                ("http_route", route),
                ("url_scheme", place.scheme),
                ("network_protocol_version", version.rpartition("/")[2]),
                ("server_address", address),
                ("server_port", port),
                ("error_type", error),
            ),
            other,
            now_ns,
        )

    def find_rpc(
        self,
        place: Place,
        service: str,
        method: str,
        status: int | None,
        http_status: int,
        now_ns: int,
        *,
        incomplete: bool,
    ) -> Series:
        """A call of gRPC. `status` None: it had none."""
        shelf = self.shelf(place.service, now_ns)
        other = ["service_name"] if shelf.service is not place.service and shelf.service != place.service else []
        service, method = clean(service), clean(method)
        if (service, method) not in shelf.methods:
            if status == _UNIMPLEMENTED:
                service, method = "", _OTHER_METHOD
            elif len(shelf.methods) >= ROUTES_MAX:
                service = method = OTHER
                other.append("rpc_method")
            else:
                shelf.methods.add((service, method))
        address, port = self._address(shelf, place, other)
        known = status is not None and status < len(GRPC_STATUSES)
        status_text = "" if status is None else str(status) if known else OTHER
        if status is not None and not known:
            other.append("rpc_grpc_status_code")
        error = ""
        if status is not None:
            if status and (not place.is_server or not known or status in SERVER_ERRORS):
                error = GRPC_STATUSES[status] if known else OTHER
        elif http_status not in (0, 200):
            error = str(http_status) if 100 <= http_status <= 599 else OTHER
        else:
            error = INCOMPLETE if incomplete else ""
        return self._find(
            shelf,
            "rpc_server" if place.is_server else "rpc_client",
            (
                ("rpc_system", "grpc"),
                ("rpc_service", service),
                ("rpc_method", method),
                ("rpc_grpc_status_code", status_text),
                ("server_address", address),
                ("server_port", port),
                ("error_type", error),
            ),
            other,
            now_ns,
        )

    @staticmethod
    def _address(shelf: Shelf, place: Place, other: list[str]) -> tuple[str, str]:
        key = (place.address, place.port)
        if key not in shelf.addresses:
            if len(shelf.addresses) >= ADDRESSES_MAX:
                other.append("server_address")
                return OTHER, ""
            shelf.addresses.add(key)
        return place.address, str(place.port) if place.port else ""

    def _find(
        self, shelf: Shelf, family: str, labels: tuple[tuple[str, str], ...], other: list[str], now_ns: int
    ) -> Series:
        key = (family, *(value for _, value in labels))
        series = shelf.series.get(key)
        if series is not None:
            return series
        if self._is_full(shelf):
            self._make_room(now_ns)
            # It may have been dropped itself, when all of it was idle.
            shelf = self.shelves.setdefault(shelf.service, shelf)
            if self._is_full(shelf):
                return self._rest(shelf, family, now_ns, failed=bool(labels[-1][1]))
        shown = tuple(label for label in labels if label[1])
        return self._add(shelf, key, Series(family, shelf.service, shown, tuple(other), now_ns))

    def _is_full(self, shelf: Shelf) -> bool:
        return len(shelf.series) >= SERIES_PER_SERVICE_MAX or self._count >= SERIES_MAX

    def _rest(self, shelf: Shelf, family: str, now_ns: int, *, failed: bool) -> Series:
        """What is over the bound of series: two for each service and family, beside the bound."""
        labels: tuple[tuple[str, str], ...]
        if family.startswith("rpc"):
            labels = (
                ("rpc_system", "grpc"),
                ("rpc_service", OTHER),
                ("rpc_method", OTHER),
                ("rpc_grpc_status_code", OTHER),
            )
        else:
            labels = (
                ("http_request_method", _OTHER_METHOD),
                ("http_response_status_code", OTHER),
                ("http_route", OTHER),
                ("url_scheme", ""),
                ("network_protocol_version", ""),
            )
        labels += (("server_address", OTHER), ("server_port", ""), ("error_type", OTHER if failed else ""))
        key = (family, *(value for _, value in labels))
        series = shelf.series.get(key)
        if series is None:
            shown = tuple(label for label in labels if label[1])
            series = self._add(shelf, key, Series(family, shelf.service, shown, ("series",), now_ns))
        return series

    def _add(self, shelf: Shelf, key: tuple[object, ...], series: Series) -> Series:
        shelf.series[key] = series
        self._count += 1
        return series

    def _make_room(self, now_ns: int) -> None:
        """Drop what is idle. A counter that comes back begins at 0, which Prometheus takes for what it is."""
        if now_ns < self._look_again_ns:
            return
        self._look_again_ns = now_ns + MAKE_ROOM_NS
        before = self.dropped
        for service, shelf in list(self.shelves.items()):
            idle = [key for key, series in shelf.series.items() if now_ns - series.last_ns > IDLE_NS]
            for key in idle:
                series = shelf.series.pop(key)
                for label in series.other:
                    self.dropped_other[label] += series.count
            self._count -= len(idle)
            self.dropped += len(idle)
            if idle:
                shelf.routes = {
                    value for s in shelf.series.values() for name, value in s.labels if name == "http_route"
                }
                shelf.methods.clear()
                shelf.addresses.clear()
            if not shelf.series:
                del self.shelves[service]
        if self.dropped != before:
            self.epoch += 1
