from __future__ import annotations

import contextlib
import re
import urllib.request
from dataclasses import replace
from typing import cast

import pytest

from netprofiler.commands.capture import Attached, Capture
from netprofiler.commands.metrics import Metered, start_metrics
from netprofiler.config import Config
from netprofiler.counters import Row
from netprofiler.errors import CommandError, ExitCode
from netprofiler.pipeline import Pipeline
from netprofiler.sources.tallies import Asker, Tally
from netprofiler.testing import Script, batch


class FakeCapture:
    """What `Metered` needs of a `Capture`."""

    def __init__(self) -> None:
        self.is_attached = False
        self.sums: tuple[list[Tally], list[tuple[Asker, int]]] = ([], [])

    def tallied(self, _now_ns: int) -> tuple[list[Tally], list[tuple[Asker, int]]]:
        sums, self.sums = self.sums, ([], [])
        return sums

    def attached(self) -> Attached | None:
        if not self.is_attached:
            return None
        rows = {"total": Row(9, 900), "delivered": Row(9, 900)}
        return Attached({"tracepoint": 6, "uprobe": 4}, 2, {"stripped": 1}, rows, 3)


def started(config: Config, pipeline: Pipeline | None = None) -> tuple[Metered, FakeCapture]:
    capture = FakeCapture()
    metered = start_metrics(config, cast("Capture", capture), pipeline or Pipeline(), pytest.fail, lambda _pid: "shop")
    assert metered is not None
    return metered, capture


def read(metered: Metered, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{metered.server.port}{path}", timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def test_without_an_address_nothing_is_started() -> None:
    assert start_metrics(Config(), cast("Capture", FakeCapture()), Pipeline(), pytest.fail) is None


@pytest.mark.parametrize("config", [Config(metrics_config="x"), Config(route=("/a",))])
def test_what_means_nothing_without_an_address_is_refused(config: Config) -> None:
    with pytest.raises(CommandError, match="--metrics-address") as caught:
        start_metrics(config, cast("Capture", FakeCapture()), Pipeline(), pytest.fail)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    "config", [Config(metrics_config="/none"), Config(route=("/" * 3, "/x"), metrics_config="/none")]
)
def test_a_wrong_file_ends_the_start(config: Config) -> None:
    with pytest.raises(CommandError, match="/none"):
        start_metrics(
            Config(metrics_address=":0", metrics_config=config.metrics_config),
            cast("Capture", FakeCapture()),
            Pipeline(),
            pytest.fail,
        )


def test_it_serves_before_it_is_ready_and_says_so() -> None:
    metered, capture = started(Config(metrics_address=":0"))
    with pytest.raises(urllib.error.HTTPError, match="503"):
        read(metered, "/readyz")
    assert "netprofiler_probes_attached" not in read(metered)
    capture.is_attached = True
    metered.read(500)
    metered.read(250)
    metered.end_round(10**9)
    metered.end_round(3 * 10**9)
    text = read(metered)
    for line in (
        'netprofiler_probes_attached{kind="uprobe"} 4.0',
        "netprofiler_probed_files 2.0",
        'netprofiler_attach_failures_total{reason="stripped"} 1.0',
        "netprofiler_announcements_lost_total 3.0",
        "netprofiler_ring_read_bytes_total 750.0",
        "netprofiler_ring_peak_bytes 750.0",
        "netprofiler_seen_bytes_total 900.0",
    ):
        assert line in text.splitlines()
    metered.close()
    with pytest.raises(OSError, match="refused"):
        read(metered)


def test_a_request_counts_as_unanswered_when_the_pipeline_has_let_go_of_its_connection() -> None:
    pipeline = Pipeline()
    metered, _ = started(Config(metrics_address=":0"), pipeline)
    script = Script()
    client = script.client()
    client.request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    pipeline.feed(batch(step for step in script.steps))  # type: ignore[misc]
    metered.metrics.emit(pipeline.take_messages())
    now_ns = script.time_ns
    metered.end_round(now_ns)
    assert "netprofiler_requests_unanswered_total{" not in read(metered)
    pipeline.drain(now_ns)
    metered.metrics.emit(pipeline.take_messages())
    metered.end_round(now_ns + 2_000_000_000)
    metered.metrics.flush()
    assert 'role="client",service_name="shop"} 1.0' in read(metered) or 'role="client"' in read(metered)
    metered.close()


def test_what_the_kernel_side_has_added_up_is_counted_as_messages_are() -> None:
    metered, capture = started(Config(metrics_address="127.0.0.1:0"))
    with contextlib.closing(metered):
        asker = Asker(4242, 99, is_server=False)
        tally = Tally(
            *(asker, True, "10.0.0.1", 8443, "GET", "/items/17", "Shop.test:444", "HTTP/1.1", 503, False),
            *((0, 0, 5, *[0] * 21), 35_000_000, 0, 1234),
        )
        capture.sums = ([tally, replace(tally, host="", status=200, incomplete=True)], [(asker, 2)])
        metered.end_round(10**12)
        metered.end_round(10**12 + 1)
        text = read(metered)
    labels = (
        'http_request_method="GET",http_response_status_code="%d",http_route="/items/{id}",url_scheme="https",'
        'network_protocol_version="1.1",server_address="%s",server_port="%d",error_type="%s"'
    )
    of_host, of_address = labels % (503, "shop.test", 444, "503"), labels % (200, "10.0.0.1", 8443, "incomplete")
    for which in (of_host, of_address):
        assert re.search(rf"http_client_request_duration_seconds_count{{[^\n]*{re.escape(which)}}} 5\n", text), text
    assert re.search(rf"http_client_response_body_size_bytes_sum{{[^\n]*{re.escape(of_host)}}} 1234\n", text)
    assert re.search(r'netprofiler_requests_unanswered_total{[^\n]*role="client"[^\n]*} 2\.0\n', text)
    assert "netprofiler_messages_total 22.0" in text
