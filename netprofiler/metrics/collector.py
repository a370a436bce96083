"""The tables, and the agent's own state, as the text that Prometheus reads.

Contract: `Exposition.render(accept)` may be called by any thread. A label whose value is not known, or does not apply, is absent.
docs/metrics.md has each metric.

prometheus-client negotiates the format and writes what there is little of (`AgentCollector`, in a registry of its own for each
scrape, so that all of it is of one moment). The histograms are written here: all samples of one `Series` share the text of their
labels, which takes 2 us a line, where the library takes 20.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final, NamedTuple

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from netprofiler import __version__
from netprofiler.metrics.health import Health
from netprofiler.metrics.series import DURATION_BOUNDS_SECONDS
from netprofiler.metrics.services import Service
from netprofiler.metrics.sink import Metrics, SeriesSnapshot, Snapshot

REASONS_MAX: Final = 64
"""Of attach failures; further ones are one, `other`."""

_LES: Final = (*(str(bound) for bound in DURATION_BOUNDS_SECONDS), "+Inf")
_INFINITE: Final = ("+Inf",)
_EOF: Final = b"# EOF\n"
"""The last line of OpenMetrics."""


class _Histogram(NamedTuple):
    """One metric of the `Series` of a family."""

    family: str
    name: str
    unit: str
    text: str
    read: Callable[[SeriesSnapshot], Numbers]


class Numbers(NamedTuple):
    """Of one histogram."""

    bounds: tuple[str, ...]
    counts: Iterable[int]
    """Cumulated, by upper bound."""
    sum: int | float


def _durations(series: SeriesSnapshot) -> Numbers:
    return Numbers(_LES, accumulate(series.buckets), series.sum_ns / 1e9)


def _request_sizes(series: SeriesSnapshot) -> Numbers:
    return Numbers(_INFINITE, (series.requests,), series.request_bytes)


def _response_sizes(series: SeriesSnapshot) -> Numbers:
    return Numbers(_INFINITE, (sum(series.buckets),), series.response_bytes)


_HISTOGRAMS: Final = (
    *(
        _Histogram(
            f"{protocol}_{side}",
            f"{protocol}_{side}{'_request' if protocol == 'http' else ''}_duration_seconds",
            "seconds",
            f"Duration of {'HTTP requests' if protocol == 'http' else 'gRPC calls'}, at the {side}.",
            _durations,
        )
        for protocol in ("http", "rpc")
        for side in ("server", "client")
    ),
    *(
        _Histogram(
            f"http_{side}",
            f"http_{side}_{message}_body_size_bytes",
            "bytes",
            f"Size of HTTP {message} bodies, at the {side}.",
            _request_sizes if message == "request" else _response_sizes,
        )
        for side in ("server", "client")
        for message in ("request", "response")
    ),
)


class Exposition:
    """See above."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start_seconds = time.time()

    def render(self, accept: str) -> tuple[list[bytes], str]:
        """The text in pieces, which may be megabytes together, and its content type; `accept`: as the header of that name."""
        encode, content_type = choose_encoder(accept)
        snapshot = self._metrics.snapshot()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(AgentCollector(snapshot, self._metrics.instance, self._start_seconds))
        text = encode(registry)
        openmetrics = text.endswith(_EOF)
        pieces = [text[: -len(_EOF)] if openmetrics else text]
        for histogram in _HISTOGRAMS:
            lines = "".join(_lines(histogram, snapshot, self._metrics.instance, unit=openmetrics))
            pieces.append(lines.encode("utf-8", "replace"))
        if openmetrics:
            pieces.append(_EOF)
        return pieces, content_type


def _lines(histogram: _Histogram, snapshot: Snapshot, instance: str, *, unit: bool) -> Iterator[str]:
    """The same in both formats but for the line that says the unit."""
    name = histogram.name
    yield f"# HELP {name} {histogram.text}\n# TYPE {name} histogram\n"
    if unit:
        yield f"# UNIT {name} {histogram.unit}\n"
    for series in snapshot.series:
        if series.family != histogram.family:
            continue
        values = {**service_labels(series.service, instance), **dict(series.labels)}
        labels = ",".join(f'{label}="{_escape(value)}"' for label, value in values.items())
        bounds, counts, total = histogram.read(series)
        count = 0
        for bound, count in zip(bounds, counts, strict=True):
            yield f'{name}_bucket{{{labels},le="{bound}"}} {count}\n'
        yield f"{name}_count{{{labels}}} {count}\n{name}_sum{{{labels}}} {total}\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class AgentCollector(Collector):
    """What is of the agent, and the services that it counts for."""

    def __init__(self, snapshot: Snapshot, instance: str, start_seconds: float) -> None:
        self._snapshot = snapshot
        self._instance = instance
        self._start_seconds = start_seconds

    def collect(self) -> Iterator[Metric]:
        yield self._target_info(self._snapshot, self._instance)
        yield from self._of_the_agent(self._snapshot, self._instance)

    @staticmethod
    def _target_info(snapshot: Snapshot, instance: str) -> Metric:
        """Of each instance of a service that there is a metric of (OpenTelemetry, Prometheus compatibility)."""
        services = {each.service for each in snapshot.series}
        services |= {
            service for table in (snapshot.unanswered, snapshot.unpaired) for service, _, count in table if count
        }
        info = InfoMetricFamily("target", "The services whose exchanges are counted.")
        for service in sorted(services, key=lambda service: (service.name, service.namespace, service.source)):
            more = {"host_name": instance, "telemetry_sdk_name": "netprofiler"}
            if service.source:
                more["service_name_source"] = service.source
            info.add_metric((), {**service_labels(service, instance), **more})
        return info

    def _of_the_agent(self, snapshot: Snapshot, instance: str) -> Iterator[Metric]:
        yield _info("netprofiler_build", "The agent's version.", version=__version__, python=platform.python_version())
        yield GaugeMetricFamily(
            "netprofiler_start_time_seconds", "When the agent began, as UNIX time.", self._start_seconds
        )
        times = os.times()
        yield CounterMetricFamily(
            "netprofiler_cpu_seconds",
            "CPU time of the agent's processes. What its probes cost is spent by those that run into them.",
            times.user + times.system + times.children_user + times.children_system,
        )
        memory = GaugeMetricFamily("netprofiler_memory_bytes", "Memory of the agent's process.", labels=("kind",))
        for kind, size in _memory().items():
            memory.add_metric((kind,), size)
        yield memory
        yield CounterMetricFamily("netprofiler_messages", "HTTP messages that were counted.", snapshot.messages)
        for name, text, table in (
            (
                "netprofiler_requests_unanswered",
                "Requests whose connection ended before a response was seen. They are in no duration.",
                snapshot.unanswered,
            ),
            (
                "netprofiler_responses_unpaired",
                "Responses whose request was not seen, or cannot be told. They are in no duration.",
                snapshot.unpaired,
            ),
        ):
            counter = Metric(name, text, "counter")
            for service, role, count in table:
                if count:
                    counter.add_sample(f"{name}_total", {**service_labels(service, instance), "role": role}, count)
            yield counter
        yield GaugeMetricFamily("netprofiler_metrics_series", "Sets of labels there are.", len(snapshot.series))
        yield CounterMetricFamily(
            "netprofiler_metrics_series_dropped", "Sets of labels that were idle and made room.", snapshot.dropped
        )
        yield _counter(
            "netprofiler_metrics_other_exchanges",
            "Exchanges that were counted as `other`, by the label whose bound was reached; `series`: by the bound of all.",
            "label",
            snapshot.other,
        )
        if snapshot.health is not None:
            yield from _of_the_capture(snapshot.health)


def service_labels(service: Service, instance: str) -> dict[str, str]:
    """`job` and `instance` are the service's, by OpenTelemetry's rule: scrape with `honor_labels: true`."""
    labels = {"service_name": service.name}
    job = service.name
    if service.namespace:
        labels["service_namespace"] = service.namespace
        job = f"{service.namespace}/{service.name}"
    return {**labels, "job": job, "instance": instance}


def _info(name: str, text: str, **labels: str) -> Metric:
    return InfoMetricFamily(name, text, labels)


def _counter(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    counter = CounterMetricFamily(name, text, labels=(label,))
    for value, count in counts.items():
        counter.add_metric((value,), count)
    return counter


def _of_the_capture(health: Health) -> Iterator[Metric]:
    for unit in ("bytes", "calls"):
        table = health.ledger[unit]
        rows = dict(table["rows"])
        pending = rows.pop("pending")
        what = "Bytes" if unit == "bytes" else "System calls"
        yield CounterMetricFamily(f"netprofiler_seen_{unit}", f"{what} that the kernel side saw.", table["total"])
        yield _counter(
            f"netprofiler_ledger_{unit}", f"{what} that the kernel side saw, by what became of them.", "row", rows
        )
        yield GaugeMetricFamily(
            f"netprofiler_ledger_pending_{unit}", f"{what} of which that is not known yet.", pending
        )
    yield _counter(
        "netprofiler_records",
        "Records made for the log, by what became of them.",
        "outcome",
        health.ledger["records"]["rows"],
    )
    yield CounterMetricFamily(
        "netprofiler_announcements_lost",
        "Descriptions of processes and connections for which the ring had no room; they are tried again.",
        health.announcements_lost,
    )
    yield CounterMetricFamily(
        "netprofiler_tls_unread_connections",
        "TLS connections that ended and of which no plaintext was seen.",
        health.tls_unread,
    )
    yield GaugeMetricFamily("netprofiler_connections", "Connections that are followed.", health.connections)
    probes = GaugeMetricFamily("netprofiler_probes_attached", "Probes, by kind.", labels=("kind",))
    for kind, count in (health.probes or {}).items():
        probes.add_metric((kind,), count)
    yield probes
    yield GaugeMetricFamily("netprofiler_probed_files", "Files with TLS that have probes.", health.probed_files)
    failures = dict(sorted((health.attach_failures or {}).items(), key=lambda pair: -pair[1]))
    shown = dict(list(failures.items())[:REASONS_MAX])
    if len(failures) > len(shown):
        shown["other"] = sum(failures.values()) - sum(shown.values())
    yield _counter(
        "netprofiler_attach_failures", "Files that could not be opened, analysed or attached.", "reason", shown
    )
    yield GaugeMetricFamily("netprofiler_ring_size_bytes", "Size of the ring buffer.", health.ring_size_bytes)
    yield CounterMetricFamily("netprofiler_ring_read_bytes", "Bytes read from the ring buffer.", health.ring_read_bytes)
    yield GaugeMetricFamily(
        "netprofiler_ring_peak_bytes",
        "The most that was in the ring buffer when it was read, in the last half minute at least.",
        health.ring_peak_bytes,
    )


def _memory() -> dict[str, int]:
    """Resident, and the anonymous part of it: the rest is files that others may have mapped, too."""
    kinds = {"VmRSS": "resident", "RssAnon": "anonymous"}
    sizes = {}
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                name, _, value = line.partition(":")
                if name in kinds:
                    sizes[kinds[name]] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return {}
    return sizes
