"""A real Prometheus over the agent's metrics: what PromQL says of rate, errors and durations, against what the load generators
counted and measured themselves; and the dashboard's queries, each of them, and the rules.
"""

from __future__ import annotations

import bisect
import json
import re
import subprocess
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from netprofiler.metrics.series import DURATION_BOUNDS_SECONDS, ROUTES_MAX, SERIES_PER_SERVICE_MAX
from tests.kernel.harness import check_ledger, running
from tests.real.harness import tls_servers
from tests.real.harness.agent import Agent, port_filters
from tests.real.harness.programs import (
    PYTHON,
    REPOSITORY,
    SCRIPTS,
    Program,
    free_port,
    require,
    run_client,
)
from tests.real.harness.prometheus import Prometheus
from tests.real.harness.tls import make_certificates
from tests.real.harness.wire import Listener

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

DASHBOARDS = REPOSITORY / "dashboards"
COUNT = 400
BEFORE = 16
CALLERS = 4
TARGETS = ("/healthz", "/slow?ms=30", "/healthz", "/status/503")
STATUSES = (200, 200, 200, 503)
"""Of TARGETS, which are asked for in turn."""
MADE_UP = 2_000


@dataclass(frozen=True)
class World:
    """Servers of each kind, an agent that watches them, and a Prometheus that scrapes it."""

    directory: Path
    prometheus: Prometheus
    agent: Agent
    ports: dict[str, int]
    listener: Listener


@pytest.fixture(scope="module")
def world(go_server_binary: Path) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="np-", ignore_cleanup_errors=True) as name, ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o755)
        certificates = make_certificates(directory)
        go, go_tls, openssl, grpc, target = (free_port() for _ in range(5))
        stack.enter_context(
            Program(
                [go_server_binary],
                directory,
                name="go",
                address=("127.0.0.1", go_tls),
                env={
                    "HTTP_HOST": "127.0.0.1",
                    "HTTP_PORT": str(go),
                    "HTTPS_PORT": str(go_tls),
                    "ACCESS_LOG": str(directory / "go-access.log"),
                    "OTEL_SERVICE_NAME": "shop",
                },
            )
        )
        proxied = f"location / {{ proxy_pass http://127.0.0.1:{go}; }}"
        stack.enter_context(tls_servers.nginx(directory, openssl, certificates, directory, more=proxied))
        stack.enter_context(
            Program(
                [PYTHON, SCRIPTS / "grpc_load.py", "server", str(grpc)],
                directory,
                name="grpc",
                address=("127.0.0.1", grpc),
            )
        )
        listener = Listener()
        stack.callback(listener.close)
        ports = {
            "plaintext": go,
            "go-tls": go_tls,
            "openssl": openssl,
            "http2": go_tls,
            "grpc": grpc,
            "wire": listener.port,
            "scrape": target,
        }
        options = [*port_filters(*set(ports.values())), "--metrics-address", f":{target}"]
        # The last scrape is broken off.
        agent = stack.enter_context(Agent(directory, *options, allowed_rows={"partial"}))
        prometheus = stack.enter_context(Prometheus(directory, target, DASHBOARDS / "netprofiler.rules.yml"))
        yield World(directory, prometheus, agent, ports, listener)


@dataclass(frozen=True)
class Told:
    """One exchange as the load generator saw it."""

    status: int
    seconds: float
    method: str = ""


def h2load(world: World, kind: str, count: int) -> list[Told]:
    """What h2load wrote down of each request, which is over when its last byte is there."""
    [binary] = require("h2load")
    scheme = "http" if kind == "plaintext" else "https"
    targets = world.directory / "targets"
    targets.write_text("".join(f"{scheme}://127.0.0.1:{world.ports[kind]}{target}\n" for target in TARGETS))
    log = world.directory / "h2load.log"
    log.unlink(missing_ok=True)
    version = [] if kind == "http2" else ["--h1"]
    streams = ["-m", "4", "-c", "1"] if kind == "http2" else ["-c", str(CALLERS)]
    run_client(
        [binary, *version, "-n", str(count), *streams, f"--input-file={targets}", f"--log-file={log}"], world.directory
    )
    rows = [line.split("\t") for line in log.read_text().splitlines()]
    return [Told(int(status), int(micros) / 1e6) for _, status, micros, *_ in rows]


def grpc_load(world: World, _kind: str, count: int) -> list[Told]:
    args: list[str | Path] = [
        PYTHON,
        SCRIPTS / "grpc_load.py",
        "client",
        str(world.ports["grpc"]),
        str(count),
        str(CALLERS),
    ]
    rows = [json.loads(line) for line in run_client(args, world.directory).output.splitlines()]
    return [Told(row["code"], row["seconds"], row["method"]) for row in rows]


def bucket(seconds: float) -> int:
    return bisect.bisect_left(DURATION_BOUNDS_SECONDS, seconds)


def quantile(seconds: Sequence[float], share: float) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


KINDS: list[tuple[str, Callable[[World, str, int], list[Told]]]] = [
    ("plaintext", h2load),
    ("go-tls", h2load),
    ("openssl", h2load),
    ("http2", h2load),
    ("grpc", grpc_load),
]


@pytest.mark.parametrize(("kind", "load"), KINDS, ids=[kind for kind, _ in KINDS])
def test_promql_says_what_the_load_generator_counted(
    world: World, kind: str, load: Callable[[World, str, int], list[Told]]
) -> None:
    prometheus = world.prometheus
    rpc = kind == "grpc"
    version = "2" if kind == "http2" else "1.1"
    which = f'server_port="{world.ports[kind]}"' + ("" if rpc else f',network_protocol_version="{version}"')
    status = "rpc_grpc_status_code" if rpc else "http_response_status_code"
    names = {
        side: f"rpc_{side}_duration_seconds" if rpc else f"http_{side}_request_duration_seconds"
        for side in ("server", "client")
    }
    told = load(world, kind, BEFORE)  # so that each series is there: a rate counts from what it saw first
    prometheus.next_scrape()
    began = time.time()
    time.sleep(0.5)
    main = load(world, kind, COUNT)
    told += main
    prometheus.next_scrape()
    time.sleep(0.5)
    ended = time.time()
    took = ended - began
    assert len(told) == COUNT + BEFORE
    by_status = Counter(str(each.status) for each in told)
    assert len(by_status) == 2 and sum(by_status.values()) == len(told)
    failed = sum(count for code, count in by_status.items() if code in ("503", "13"))

    for side, name in names.items():
        # Counts, and the share of errors: to the exchange.
        expected: dict[tuple[str, ...], float] = {(code,): count for code, count in by_status.items()}
        prometheus.await_values(expected, f"sum by ({status}) ({name}_count{{{which}}})", status)
        errors = prometheus.value(f'sum({name}_count{{{which},error_type!=""}}) / sum({name}_count{{{which}}})')
        assert errors == failed / len(told), side
        assert prometheus.value(f'sum({name}_bucket{{{which},le="+Inf"}})') == len(told)
        # The rate, from one moment to the other; PromQL's own extrapolates to the ends of its window, by a scrape at each.
        count = f"sum({name}_count{{{which}}}"
        assert prometheus.value(f"{count} @ {ended:.3f}) - {count} @ {began:.3f})") == len(main), side
        rate = prometheus.value(f"sum(rate({name}_count{{{which}}}[{int(took * 1000)}ms]))", at=ended)
        assert rate * took == pytest.approx(len(main), rel=0.4), side
        # Quantiles: the bucket in which the generator measured, or the one beside it; of what is next in rank, too, as it is
        # scheduled late on a busy machine, after the bytes have come. What a server saw took no longer.
        for share in (0.25, 0.5, 0.9, 0.99):
            least, most = (quantile([each.seconds for each in main], share + by) for by in (-0.03, 0.005))
            asked = prometheus.value(f"histogram_quantile({share}, sum by (le) ({name}_bucket{{{which}}}))")
            said = f"{side}: {share}: {asked} s, measured {least} to {most} s"
            assert bucket(asked) <= bucket(most) + 1, said
            assert bucket(asked) >= bucket(least) - 1 or side == "server", said
        slow = 'rpc_method="Slow"' if rpc else 'http_route="/slow"'
        median = prometheus.value(f"histogram_quantile(0.5, sum by (le) ({name}_bucket{{{which},{slow}}}))")
        assert bucket(median) == bucket(0.031), f"{side}: {median} s, asked for 30 ms"
        # The mean of what took 30 ms is no matter of buckets.
        mean = prometheus.value(f"sum({name}_sum{{{which},{slow}}}) / sum({name}_count{{{which},{slow}}})")
        assert 0.029 < mean < 0.030 + 0.5 * max(0.04, quantile([each.seconds for each in main], 1)), side

    if rpc:
        methods = Counter(each.method for each in told)
        counts = prometheus.values(f"sum by (rpc_method) (rpc_server_duration_seconds_count{{{which}}})", "rpc_method")
        assert counts == {(method,): count for method, count in methods.items()}
    else:
        routes = prometheus.values(f"sum by (http_route) ({names['server']}_count{{{which}}})", "http_route")
        assert routes == {("/healthz",): len(told) / 2, ("/slow",): len(told) / 4, ("/status/{id}",): len(told) / 4}
        sent = prometheus.value(f'sum(http_server_response_body_size_bytes_sum{{{which},http_route="/slow"}})')
        assert sent == len(told) / 4 * len('{"slept_ms":30}\n')
        assert sent == prometheus.value(f'sum(http_client_response_body_size_bytes_sum{{{which},http_route="/slow"}})')


def test_services_are_named_and_have_one_target_info_each(world: World) -> None:
    prometheus = world.prometheus
    servers = prometheus.values(
        "group by (service_name, server_port) (http_server_request_duration_seconds_count)",
        "service_name",
        "server_port",
    )
    ports = world.ports
    assert ("shop", str(ports["plaintext"])) in servers and ("shop", str(ports["go-tls"])) in servers
    assert ("nginx", str(ports["openssl"])) in servers
    assert "h2load" in {
        name
        for (name,) in prometheus.values(
            "group by (service_name) (http_client_request_duration_seconds_count)", "service_name"
        )
    }
    infos = prometheus.values("target_info", "job", "instance", "service_name")
    assert set(infos.values()) == {1.0}
    # As OpenTelemetry has it: job and instance join the two.
    joined = prometheus.values(
        "count by (service_name) (http_server_request_duration_seconds_count * on (job, instance) group_left(host_name) target_info)",
        "service_name",
    )
    assert ("shop",) in joined


def test_the_agent_counts_what_its_log_and_its_ledger_hold(world: World) -> None:
    prometheus = world.prometheus
    prometheus.next_scrape()
    time.sleep(1.5)  # what the agent says of itself is a second old
    prometheus.next_scrape()
    log = world.agent.log()
    scrape = world.ports["scrape"]
    which = '__name__=~"(http_server_request|http_client_request|rpc_server|rpc_client)_duration_seconds_count"'
    counted = prometheus.value(f'sum({{{which},server_port!="{scrape}"}})')
    others = [record for record in log if scrape not in (record["source_port"], record["dest_port"])]
    assert counted == sum(record.get("status_code", 0) >= 200 for record in others)
    # Of the scrapes Prometheus' end is seen, and the agent's own is not.
    scrapes = prometheus.values(
        f'sum by (service_name, http_route) ({{{which},server_port="{scrape}"}})', "service_name", "http_route"
    )
    assert list(scrapes) == [("prometheus", "/metrics")]
    assert prometheus.values(f'http_server_request_duration_seconds_count{{server_port="{scrape}"}}') == {}
    assert len(others) < prometheus.value('netprofiler_records_total{outcome="written"}') <= len(world.agent.log())
    rows = prometheus.value("sum(netprofiler_ledger_bytes_total)") + prometheus.value(
        "netprofiler_ledger_pending_bytes"
    )
    assert rows == prometheus.value("netprofiler_seen_bytes_total") > 0
    assert prometheus.value('sum(netprofiler_ledger_calls_total{row="lost"})') == 0
    assert prometheus.value("sum(netprofiler_responses_unpaired_total)") == 0
    peak, size = prometheus.value("netprofiler_ring_peak_bytes"), prometheus.value("netprofiler_ring_size_bytes")
    assert 0 < peak < size
    assert prometheus.value('netprofiler_probes_attached{kind="uprobe"}') > 0
    rss = prometheus.value('netprofiler_memory_bytes{kind="anonymous"}')
    assert rss == pytest.approx(world.agent.rss_bytes(), rel=0.2)


def expressions() -> list[tuple[str, str]]:
    """Every query of the dashboard, by its panel, as Grafana sends it with everything chosen."""
    dashboard = json.loads((DASHBOARDS / "netprofiler.json").read_text())
    found = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "5m").replace("$service", ".*").replace("$agent", ".*")
            assert "$" not in query, query
            found.append((panel["title"], query))
    return found


def test_each_query_of_the_dashboard_returns_data(world: World) -> None:
    prometheus = world.prometheus
    prometheus.next_scrape()
    queries = expressions()
    assert len(queries) > 30
    empty = []
    for title, query in queries:
        data = prometheus.get("query", query=query)
        assert isinstance(data, dict)
        if not data["result"]:
            empty.append(f"{title}: {query}")
    assert not empty, empty
    names = {
        name for _, query in queries for name in re.findall(r"\b(?:http|rpc|netprofiler)_[a-z0-9_]+(?=[{\[])", query)
    }
    known = {name for (name,) in prometheus.values('group by (__name__) ({__name__=~".+"})', "__name__")}
    assert names - known <= {
        "netprofiler_attach_failures_total",  # there are none
        "netprofiler_metrics_other_exchanges_total",
        "netprofiler_requests_unanswered_total",
        "netprofiler_responses_unpaired_total",
    }


def test_the_rules_hold_and_prometheus_evaluates_them(world: World) -> None:
    [promtool] = require("promtool")
    for what, file in (("check", "netprofiler.rules.yml"), ("test", "netprofiler.rules_test.yml")):
        done = subprocess.run(
            [promtool, what, "rules", file], cwd=DASHBOARDS, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr
    data = world.prometheus.get("rules")
    assert isinstance(data, dict)
    rules = [rule for group in data["groups"] for rule in group["rules"]]
    assert len(rules) >= 10 and {rule["health"] for rule in rules} == {"ok"}
    assert world.prometheus.value("sum(service:http_server_requests:rate5m)") > 0


def test_promtool_finds_nothing_to_criticise(world: World) -> None:
    [promtool, curl] = require("promtool", "curl")
    targets = world.prometheus.get("targets")
    assert isinstance(targets, dict)
    url = targets["activeTargets"][0]["scrapeUrl"]
    for accept, content_type in (
        ("", "text/plain; version=0.0.4"),
        ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text; version=1.0.0"),
    ):
        got = subprocess.run(
            [curl, "-sSi", "-H", f"Accept: {accept}", url], capture_output=True, timeout=20, check=True
        ).stdout
        head, _, text = got.partition(b"\r\n\r\n")
        assert f"Content-Type: {content_type}".encode() in head
        if not accept:
            done = subprocess.run(
                [promtool, "check", "metrics"], input=text, capture_output=True, timeout=20, check=False
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_hostile_client_on_the_wire_fills_its_share_and_is_counted(world: World) -> None:
    prometheus = world.prometheus
    before = world.agent.rss_bytes()
    with world.listener.wire() as wire:
        for number in range(MADE_UP):
            word = "".join(chr(ord("a") + int(digit)) for digit in str(number))
            wire.exchange(
                f"{word.upper() if number else 'GET'} /made/{word}/up HTTP/1.1\r\nHost: h{number}.example\r\n\r\n".encode(),
                f"HTTP/1.1 {200 + number % 400} X\r\nContent-Length: 0\r\n\r\n".encode(),
            )
    prometheus.next_scrape()
    which = 'service_name=~"python.*"'
    for side in ("server", "client"):
        name = f"http_{side}_request_duration_seconds_count"
        assert prometheus.value(f"sum({name}{{{which}}})") == MADE_UP, side
        assert prometheus.value(f"count(count by (http_route) ({name}{{{which}}}))") <= ROUTES_MAX + 5
    series = prometheus.value('count({__name__=~"http_.*_request_duration_seconds_count",service_name=~"python.*"})')
    assert 100 < series <= SERIES_PER_SERVICE_MAX + 4
    others = prometheus.values("netprofiler_metrics_other_exchanges_total", "label")
    assert others[("http_route",)] + others.get(("series",), 0) > MADE_UP
    assert world.agent.rss_bytes() - before < 30_000_000  # the log's caches of heads, too


WRK_SECONDS = 10
WRK_CONNECTIONS = 32


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_at_full_speed_in_metrics_mode_each_exchange_that_wrk_counts_is_counted(
    go_server_binary: Path, tmp_path: Path, scheme: str
) -> None:
    """At the client exactly those; at the server also those that wrk did not wait for when its time was over."""
    [wrk] = require("wrk")
    ports = {"http": free_port(), "https": free_port()}
    scrape = free_port()
    environment = {
        "HTTP_HOST": "127.0.0.1",
        "HTTP_PORT": str(ports["http"]),
        "HTTPS_PORT": str(ports["https"]),
        "ACCESS_LOG": "/dev/null",
    }
    server = Program([go_server_binary], tmp_path, name="go", address=("127.0.0.1", ports["https"]), env=environment)
    options = ["--no-output", *port_filters(ports[scheme]), "--metrics-address", f"127.0.0.1:{scrape}"]
    ledger = tmp_path / "agent" / "ledger.json"
    with server, running(tmp_path / "agent", *options, "--ledger", str(ledger), own_output=False) as agent:
        url = f"{scheme}://127.0.0.1:{ports[scheme]}/healthz"
        done = subprocess.run(
            [wrk, "-t1", f"-c{WRK_CONNECTIONS}", f"-d{WRK_SECONDS}s", url],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        told = re.search(r"(\d+) requests in", done.stdout)
        assert told is not None and "Socket errors" not in done.stdout, done.stdout
        time.sleep(1.0)
        with urllib.request.urlopen(f"http://127.0.0.1:{scrape}/metrics", timeout=10) as response:
            text = response.read().decode()
        assert agent.end() == 0, agent.stderr()
        found = agent.ledger()
    counts = {
        side: sum(map(int, re.findall(rf"http_{side}_request_duration_seconds_count{{[^\n]*}} (\d+)\n", text)))
        for side in ("client", "server")
    }
    made = int(told[1])
    assert made > 1_000
    assert counts["client"] == made
    assert made <= counts["server"] <= made + WRK_CONNECTIONS
    check_ledger(found, lossless=False)
    rows = found["bytes"]["rows"]
    assert rows["lost"] == rows["gap"] == rows["unparsed"] == 0
    assert rows["tallied"] > 0.99 * (found["bytes"]["total"] - rows["tls"] - rows["filtered"]), rows
