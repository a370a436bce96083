"""Whatever is on the wire: each exchange counts once, nothing raises, and the text can be read."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from netprofiler.exchange import Completeness, Message, WebSocket
from netprofiler.metrics.collector import Exposition
from netprofiler.metrics.services import ServiceNames
from netprofiler.metrics.sink import Metrics
from netprofiler.testing import Script
from tests.unit.metrics.counting import settle

NAMES = ServiceNames(lambda _pid: "shop")

token = st.sampled_from([b"GET", b"POST", b"HEAD", b"CONNECT", b"BREW"])
target = st.one_of(
    st.sampled_from([b"/", b"/a?b", b"*", b"http://h/x", b"/%ff/\xff"]),
    st.binary(max_size=30).map(lambda raw: b"/" + raw.replace(b"\n", b"").replace(b"\r", b"").replace(b" ", b"")),
)
host = st.sampled_from([b"a", b"A:80", b"\xff", b"[::1]:9", b'"\\', b""])
request = st.builds(lambda m, t, h: m + b" " + t + b" HTTP/1.1\r\nHost: " + h + b"\r\n\r\n", token, target, host)
response = st.builds(
    lambda status, body: b"HTTP/1.1 %03d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body),
    st.integers(0, 999),
    st.binary(max_size=9),
)
piece = st.one_of(
    st.tuples(st.just(True), request),
    st.tuples(st.just(False), response),
    st.tuples(st.booleans(), st.binary(max_size=40)),
)


def is_exchange(message: Message) -> bool:
    head = message.head
    return (
        not head.is_request
        and message.request is not None
        and message.completeness is not Completeness.OPEN
        and not isinstance(message.extra, WebSocket)
        and (head.status >= 200 or head.status in (0, 101))
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.booleans(), st.lists(piece, max_size=12), st.integers(0, 3))
def test_any_traffic(as_server: bool, pieces: list[tuple[bool, bytes]], cut: int) -> None:
    script = Script()
    peer = script.server() if as_server else script.client()
    for asks, data in pieces:
        for part in (data[:cut], data[cut:]):
            if part:
                (peer.request if asks else peer.response)(part)
    messages = script.play().messages
    metrics = Metrics(NAMES)
    for message in messages:
        metrics.emit([message])
    settle(metrics)
    snapshot = settle(metrics, set(), 10**18)
    assert sum(sum(series.buckets) for series in snapshot.series) == sum(map(is_exchange, messages))
    assert all(sum(series.buckets) == series.requests for series in snapshot.series)
    text = b"".join(Exposition(metrics).render("application/openmetrics-text; version=1.0.0")[0]).decode()
    assert list(parse_openmetrics(text))  # type: ignore[no-untyped-call]
