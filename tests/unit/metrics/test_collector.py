from __future__ import annotations

from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from netprofiler import __version__
from netprofiler.counters import Counters, Row, make_ledger
from netprofiler.exchange import Role
from netprofiler.metrics.collector import REASONS_MAX, Exposition
from netprofiler.metrics.health import PEAK_NS, Health, Peak
from netprofiler.metrics.sink import Metrics
from netprofiler.testing import Script
from tests.unit.metrics.counting import names_of, settle
from tests.unit.sinks import messages as made

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Samples = dict[str, list[tuple[dict[str, str], float]]]


def samples(metrics: Metrics) -> Samples:
    """What is in the text, which is the same in both formats."""
    exposition = Exposition(metrics)
    found: Samples = {}
    for family in parse_text(b"".join(exposition.render("")[0]).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    strict: Samples = {}
    text = b"".join(exposition.render(OPENMETRICS)[0]).decode()
    for family in parse_openmetrics(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            strict.setdefault(sample.name, []).append((sample.labels, sample.value))
    for changing in ("netprofiler_cpu_seconds_total", "netprofiler_memory_bytes"):
        assert found.pop(changing) and strict.pop(changing)
    assert strict == found
    return found


def counted(*, text: str = "shop") -> Metrics:
    metrics = Metrics(names_of(text))
    script = Script()
    server = script.server(local=("10.0.0.1", 80))
    for _ in range(2):
        server.request(b"POST /orders HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        server.response(b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nhello")
    server.request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    metrics.emit(script.play().messages)
    settle(metrics)
    settle(metrics, set(), 10**18)
    return metrics


def a_health(**more: Any) -> Health:
    counters = Counters()
    counters.delivered = Row(10, 1000)
    counters.recorded.calls, counters.recorded.bytes = 9, 900
    kernel = {"total": Row(12, 1300), "delivered": Row(10, 1000), "lost": Row(2, 300)}
    return Health(ledger=make_ledger(counters, kernel), **more)


LABELS = {
    "service_name": "shop",
    "job": "shop",
    "http_request_method": "POST",
    "http_response_status_code": "201",
    "http_route": "/orders",
    "url_scheme": "http",
    "network_protocol_version": "1.1",
    "server_address": "10.0.0.1",
    "server_port": "80",
}


def test_an_exchange_is_a_histogram_of_its_duration_and_the_sums_of_its_sizes() -> None:
    metrics = counted()
    found = samples(metrics)
    labels = LABELS | {"instance": metrics.instance}
    name = "http_server_request_duration_seconds"
    assert found[f"{name}_count"] == [(labels, 2)]
    assert found[f"{name}_sum"] == [(labels, 0.0002)]
    buckets = found[f"{name}_bucket"]
    assert [bucket["le"] for bucket, _ in buckets] == [
        "0.0", "0.005", "0.01", "0.025", "0.05", "0.075", "0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0", "7.5", "10.0", "+Inf",
    ]  # fmt: skip
    assert [count for _, count in buckets] == [0, *[2] * 15]
    for side, size in (("request", 6), ("response", 10)):
        assert found[f"http_server_{side}_body_size_bytes_sum"] == [(labels, size)]
        assert found[f"http_server_{side}_body_size_bytes_count"] == [(labels, 2)]
        assert found[f"http_server_{side}_body_size_bytes_bucket"] == [(labels | {"le": "+Inf"}, 2)]
    assert "http_client_request_duration_seconds_count" not in found


def test_grpc_has_its_own_names() -> None:
    metrics = Metrics(names_of())
    link = made.a_link(Role.SERVER)
    request = made.grpc(link=link)
    metrics.emit([request, made.grpc(request=False, asked=request, link=link, status=14)])
    settle(metrics)
    ((labels, count),) = samples(metrics)["rpc_server_duration_seconds_count"]
    assert count == 1
    assert labels == {
        "service_name": "shop",
        "job": "shop",
        "instance": metrics.instance,
        "rpc_system": "grpc",
        "rpc_service": "shop.Orders",
        "rpc_method": "Get",
        "rpc_grpc_status_code": "14",
        "server_address": "10.0.0.1",
        "server_port": "5000",
        "error_type": "UNAVAILABLE",
    }


def test_each_service_has_one_target_info() -> None:
    metrics = counted()
    ((labels, value),) = samples(metrics)["target_info"]
    assert value == 1
    assert labels == {
        "service_name": "shop",
        "job": "shop",
        "instance": metrics.instance,
        "host_name": metrics.instance,
        "telemetry_sdk_name": "netprofiler",
        "service_name_source": "container",
    }


def test_what_is_no_exchange_has_counters() -> None:
    found = samples(counted())
    ((labels, count),) = found["netprofiler_requests_unanswered_total"]
    assert (labels["service_name"], labels["role"], count) == ("shop", "server", 1)
    assert "netprofiler_responses_unpaired_total" not in found
    assert found["netprofiler_messages_total"] == [({}, 5)]


def test_names_that_a_label_cannot_hold_as_they_are_come_through() -> None:
    found = samples(counted(text='a"b\\c ü'))
    assert found["target_info"][0][0]["service_name"] == 'a"b\\c ü'


def test_the_ledger_sums_to_what_was_seen() -> None:
    metrics = counted()
    metrics.watch(a_health)
    metrics.tick(2 * 10**18, set)
    found = samples(metrics)
    for unit, total, pending in (("bytes", 1300, 100), ("calls", 12, 1)):
        rows = {labels["row"]: count for labels, count in found[f"netprofiler_ledger_{unit}_total"]}
        assert sum(rows.values()) + pending == total
        assert found[f"netprofiler_ledger_pending_{unit}"] == [({}, pending)]
        assert found[f"netprofiler_seen_{unit}_total"] == [({}, total)]
        assert "pending" not in rows and rows["lost"] > 0


def test_the_state_of_the_capture_is_there_when_it_is_attached() -> None:
    metrics = counted()
    assert "netprofiler_probes_attached" not in samples(metrics)
    health = a_health(
        probes={"tracepoint": 6, "uprobe": 57},
        probed_files=5,
        attach_failures={"no symbols": 2},
        ring_size_bytes=4096,
        ring_read_bytes=99,
        ring_peak_bytes=50,
        announcements_lost=1,
        tls_unread=3,
        connections=4,
    )
    metrics.watch(lambda: health)
    metrics.tick(2 * 10**18, set)
    assert metrics.is_ready
    found = samples(metrics)
    assert found["netprofiler_probes_attached"] == [({"kind": "tracepoint"}, 6), ({"kind": "uprobe"}, 57)]
    assert found["netprofiler_attach_failures_total"] == [({"reason": "no symbols"}, 2)]
    single = {name: rows[0][1] for name, rows in found.items() if name.startswith("netprofiler_") and len(rows) == 1}
    expected = {
        "netprofiler_probed_files": 5,
        "netprofiler_ring_size_bytes": 4096,
        "netprofiler_ring_read_bytes_total": 99,
        "netprofiler_ring_peak_bytes": 50,
        "netprofiler_announcements_lost_total": 1,
        "netprofiler_tls_unread_connections_total": 3,
        "netprofiler_connections": 4,
        "netprofiler_metrics_series": 1,
    }
    assert expected.items() <= single.items()


def test_reasons_are_bounded() -> None:
    metrics = counted()
    metrics.watch(lambda: a_health(attach_failures={f"reason {number}": number for number in range(1000)}))
    metrics.tick(2 * 10**18, set)
    rows = samples(metrics)["netprofiler_attach_failures_total"]
    assert len(rows) == REASONS_MAX + 1
    assert sum(count for _, count in rows) == sum(range(1000))


def test_the_agent_says_what_it_is_and_what_it_takes() -> None:
    text = b"".join(Exposition(counted()).render("")[0]).decode()
    found = {sample.name: sample for family in parse_text(text) for sample in family.samples}
    assert found["netprofiler_build_info"].labels["version"] == __version__
    assert found["netprofiler_cpu_seconds_total"].value > 0
    assert found["netprofiler_memory_bytes"].value > 1_000_000


def test_a_peak_is_shown_for_a_while_and_then_gone() -> None:
    peak = Peak()
    peak.add(5, 1)
    peak.add(70, 2)
    peak.add(3, PEAK_NS)
    assert peak.value == 70
    peak.add(4, PEAK_NS + 2)
    assert peak.value == 70
    peak.add(1, 2 * PEAK_NS + 5)
    assert peak.value == 4
