"""A sink whose services are named at once, and what it has counted, by label."""

from __future__ import annotations

import time
from collections.abc import Callable

from netprofiler.exchange import Link, Message
from netprofiler.metrics.services import ServiceNames
from netprofiler.metrics.sink import Metrics, SeriesSnapshot, Snapshot
from netprofiler.testing import Played


def names_of(name: str | Callable[[int], str | None] = "shop") -> ServiceNames:
    return ServiceNames((lambda _pid: name) if isinstance(name, str) else name)


def settle(metrics: Metrics, links: set[Link] | None = None, now_ns: int = 0) -> Snapshot:
    """What was counted, once every name is known. `links`: connections that are still open; default: all."""
    end = time.monotonic() + 5
    # Before time goes by: a name that takes a second is not waited for.
    while any(owner.service is None for owner in metrics._waiting):
        assert time.monotonic() < end, "no name"
        time.sleep(0.001)
    while True:
        metrics.tick(now_ns, lambda: Everything() if links is None else links)
        if not metrics._waiting:
            return metrics.snapshot()
        assert time.monotonic() < end, "not counted"
        time.sleep(0.001)


class Everything:
    """Holds whatever is asked for."""

    def __contains__(self, link: object) -> bool:
        return True


def count(played: Played | list[Message], metrics: Metrics | None = None) -> Snapshot:
    metrics = metrics or Metrics(names_of())
    metrics.emit(played if isinstance(played, list) else played.messages)
    return settle(metrics)


def the_only(snapshot: Snapshot, family: str) -> SeriesSnapshot:
    (series,) = [each for each in snapshot.series if each.family == family]
    return series


def by(snapshot: Snapshot, family: str, *labels: str) -> dict[tuple[str, ...], int]:
    """Exchanges by these labels; an absent one is empty."""
    counts: dict[tuple[str, ...], int] = {}
    for series in snapshot.series:
        if series.family == family:
            have = dict(series.labels) | {"service_name": series.service.name}
            key = tuple(have.get(label, "") for label in labels)
            counts[key] = counts.get(key, 0) + sum(series.buckets)
    return counts


def total(snapshot: Snapshot, family: str) -> int:
    return sum(sum(series.buckets) for series in snapshot.series if series.family == family)
