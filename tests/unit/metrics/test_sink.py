from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from netprofiler.exchange import Completeness, Link, Message, Process, Role, Tls
from netprofiler.metrics import sink as sink_module
from netprofiler.metrics.series import BUCKETS, DURATION_BOUNDS_NS
from netprofiler.metrics.services import Service
from netprofiler.metrics.sink import Metrics
from netprofiler.testing import PID, START_NS, STEP_NS, Peer, Script
from tests.unit.metrics.counting import by, count, names_of, settle, the_only, total
from tests.unit.sinks import messages as made

GET = b"GET /users/17?x=1 HTTP/1.1\r\nHost: shop.example:81\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def exchange(peer: Peer, request: bytes = GET, response: bytes = OK) -> None:
    peer.request(request)
    peer.response(response)


def response(status: int, more: str = "Content-Length: 0") -> bytes:
    return f"HTTP/1.1 {status} X\r\n{more}\r\n\r\n".encode()


def test_an_exchange_counts_once_at_each_end_that_was_seen() -> None:
    script = Script()
    client, server = script.client(), script.server(local=("127.0.0.1", 8080), remote=("127.0.0.1", 54321))
    for _ in range(23):
        client.request(GET)
        server.request(GET)
        server.response(OK)
        client.response(OK)
    snapshot = count(script.play())
    assert total(snapshot, "http_server") == total(snapshot, "http_client") == 23
    assert snapshot.unanswered == [(Service("shop"), "client", 0), (Service("shop"), "server", 0)]
    assert [count for _, _, count in snapshot.unpaired] == [0, 0]


def test_a_server_is_known_by_where_it_was_reached_and_a_client_by_whom_it_asked() -> None:
    script = Script()
    exchange(script.server(local=("10.0.0.1", 8080), remote=("10.0.0.9", 5555)))
    exchange(script.client(local=("10.0.0.9", 5555), remote=("10.0.0.1", 8080)))
    exchange(script.client(remote=("10.0.0.1", 80)), b"GET / HTTP/1.1\r\nHost: Shop.Example\r\n\r\n")
    exchange(script.client(remote=("10.0.0.1", 80)), b"GET / HTTP/1.0\r\n\r\n")
    snapshot = count(script.play())
    assert dict(the_only(snapshot, "http_server").labels) == {
        "http_request_method": "GET",
        "http_response_status_code": "200",
        "http_route": "/users/{id}",
        "url_scheme": "http",
        "network_protocol_version": "1.1",
        "server_address": "10.0.0.1",
        "server_port": "8080",
    }
    assert by(snapshot, "http_client", "server_address", "server_port", "network_protocol_version") == {
        ("shop.example", "81", "1.1"): 1,
        ("shop.example", "80", "1.1"): 1,
        ("10.0.0.1", "80", "1.0"): 1,
    }


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        ("shop.example", "shop.example", 0),
        ("Shop.Example:8080", "shop.example", 8080),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("[::1]:80", "::1", 80),
        ("[::1]", "::1", 0),
        ("a:70000", "a", 0),
        ("a b", "other", 0),
        ("x" * 300, "other", 0),
        ("a/../b", "other", 0),
        ("\ud800", "other", 0),
        ("[::1", "other", 0),
        ("a:99999999", "other", 0),
        ("", "", 0),
    ],
)
def test_a_host_that_is_none_is_other(host: str, address: str, port: int) -> None:
    assert sink_module.host_of(made.h2_request(headers=((":authority", host),))) == (address, port)
    assert sink_module.host_of(made.h2_request(headers=(("HOST", host),))) == (address, port)


def test_tls_is_https_and_a_unix_socket_is_its_path() -> None:
    secure = made.a_link(tls=Tls("openssl"))
    request = made.message(made.h2_request("GET"), link=secure)
    snapshot = count([request, made.message(made.h2_response(), link=secure, request=request)])
    assert by(snapshot, "http_client", "url_scheme", "network_protocol_version") == {("https", "2"): 1}
    unix = Link("sock:[9]", Role.SERVER, unix_path="/run/shop.sock")
    request = made.message(made.h2_request("GET"), link=unix)
    snapshot = count([request, made.message(made.h2_response(), link=unix, request=request)])
    assert by(snapshot, "http_server", "server_address", "server_port") == {("/run/shop.sock", ""): 1}


@pytest.mark.parametrize("bound", range(BUCKETS))
def test_durations_fall_into_the_bucket_whose_bound_they_do_not_exceed(bound: int) -> None:
    duration = DURATION_BOUNDS_NS[bound] if bound < BUCKETS - 1 else 11_000_000_000
    request = made.message(made.h2_request("GET"), time_ns=START_NS)
    answer = made.message(made.h2_response(), request=request, end_ns=START_NS + duration, link=request.link)
    series = the_only(count([request, answer] * 2), "http_client")
    assert series.buckets == tuple(2 * (index == bound) for index in range(BUCKETS))
    assert series.sum_ns == 2 * duration


def test_an_answer_that_overtook_its_request_took_no_time() -> None:
    request = made.message(made.h2_request("GET"), time_ns=START_NS)
    answer = made.message(made.h2_response(), request=request, end_ns=START_NS - 5, link=request.link)
    series = the_only(count([request, answer]), "http_client")
    assert (series.buckets[0], series.sum_ns) == (1, 0)


def test_the_duration_is_from_the_first_byte_of_the_request_to_the_last_of_the_response() -> None:
    script = Script()
    server = script.server()
    server.request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc", b"def")
    server.response(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", b"ab", b"cd")
    series = the_only(count(script.play()), "http_server")
    assert series.sum_ns == 4 * STEP_NS
    assert (series.requests, series.request_bytes, series.response_bytes) == (1, 6, 4)


def test_a_request_that_ends_after_its_response_counts_with_its_whole_size() -> None:
    script = Script()
    server = script.server()
    server.request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
    server.response(response(413))
    server.request(b"def")
    first, second = script.play().messages
    assert (first.head.status, second.head.method) == (413, "POST")
    metrics = Metrics(names_of())
    metrics.emit([first])
    series = the_only(settle(metrics), "http_server")
    assert (sum(series.buckets), series.requests, series.request_bytes) == (1, 0, 0)
    metrics.emit([second])
    series = the_only(settle(metrics), "http_server")
    assert (sum(series.buckets), series.requests, series.request_bytes) == (1, 1, 6)


def test_an_upload_that_never_ends_counts_with_what_came_when_its_connection_ends() -> None:
    script = Script()
    server = script.server()
    server.request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
    server.response(response(413))
    played = script.play(drain=False)
    metrics = Metrics(names_of())
    metrics.emit(played.messages)
    assert the_only(settle(metrics), "http_server").requests == 0
    series = the_only(settle(metrics, set(), 10**18), "http_server")
    assert (series.requests, series.request_bytes) == (1, 3)


@pytest.mark.parametrize(
    ("status", "server_error", "client_error"),
    [(200, "", ""), (304, "", ""), (404, "", "404"), (499, "", "499"), (500, "500", "500"), (503, "503", "503")],
)
def test_what_is_an_error_depends_on_the_side(status: int, server_error: str, client_error: str) -> None:
    script = Script()
    exchange(script.server(), GET, response(status))
    exchange(script.client(), GET, response(status))
    snapshot = count(script.play())
    assert by(snapshot, "http_server", "error_type", "http_response_status_code") == {(server_error, str(status)): 1}
    assert by(snapshot, "http_client", "error_type", "http_response_status_code") == {(client_error, str(status)): 1}


def test_a_response_that_breaks_off_is_an_error_with_its_status() -> None:
    script = Script()
    client = script.client()
    exchange(client, GET, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab")
    client.close()
    script.wait(2)
    exchange(script.client())
    snapshot = count(script.play())
    assert by(snapshot, "http_client", "error_type", "http_response_status_code") == {
        ("incomplete", "200"): 1,
        ("", "200"): 1,
    }


def test_fields_that_are_not_known_make_no_exchange_incomplete() -> None:
    request = made.message(made.h2_request("", ""))
    answer = made.message(
        made.h2_response(0, unknown=1), request=request, link=request.link, completeness=Completeness.PARTIAL
    )
    assert dict(the_only(count([request, answer]), "http_client").labels) == {
        "url_scheme": "http",
        "network_protocol_version": "2",
        "server_address": "a",
        "server_port": "80",
    }


def test_interim_responses_and_interim_pictures_count_nothing() -> None:
    script = Script()
    server = script.server()
    server.request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    server.response(b"HTTP/1.1 100 Continue\r\n\r\n")
    server.request(b"abc")
    server.response(b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
    script.wait(6)
    server.response(b"k")
    played = script.play()
    assert Completeness.OPEN in [message.completeness for message in played.messages]
    snapshot = count(played)
    assert by(snapshot, "http_server", "http_response_status_code") == {("200",): 1}
    assert [count for _, _, count in snapshot.unanswered] == [0, 0]


def test_an_upgrade_counts_and_what_is_said_after_it_does_not() -> None:
    link = made.a_link()
    request = made.message(made.h2_request("GET", "/chat"), link=link)
    answer = made.message(made.h2_response(101), request=request, link=link)
    snapshot = count(
        [request, answer, made.websocket("text", b"hello", link=link), made.websocket("text", sent=False, link=link)]
    )
    assert by(snapshot, "http_client", "http_response_status_code") == {("101",): 1}
    assert [count for _, _, count in snapshot.unpaired] == [0, 0]


def test_connect_has_no_route() -> None:
    script = Script()
    exchange(
        script.client(), b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"
    )
    snapshot = count(script.play())
    assert by(snapshot, "http_client", "http_request_method", "http_route") == {("CONNECT", ""): 1}


def test_methods_that_nobody_knows_are_one() -> None:
    script = Script()
    for method in (b"GET", b"BREW", b"WHEN", b"get", b"PROPFIND"):
        exchange(script.server(), method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
    snapshot = count(script.play())
    assert by(snapshot, "http_server", "http_request_method") == {("GET",): 1, ("_OTHER",): 4}


def test_a_path_that_is_not_found_is_no_route_unless_it_is_known() -> None:
    script = Script()
    server = script.server()
    exchange(server, b"GET /made-up HTTP/1.1\r\nHost: a\r\n\r\n", response(404))
    exchange(server, b"GET /known HTTP/1.1\r\nHost: a\r\n\r\n", response(200))
    exchange(server, b"GET /known HTTP/1.1\r\nHost: a\r\n\r\n", response(404))
    assert by(count(script.play()), "http_server", "http_route", "http_response_status_code") == {
        ("", "404"): 1,
        ("/known", "200"): 1,
        ("/known", "404"): 1,
    }


def test_routes_that_were_named_go_first() -> None:
    script = Script()
    for name in (b"ann", b"bob", b"4711"):
        exchange(script.server(), b"GET /users/" + name + b"?a HTTP/1.1\r\nHost: a\r\n\r\n")
    snapshot = count(script.play(), Metrics(names_of(), ["/users/{name}"]))
    assert by(snapshot, "http_server", "http_route") == {("/users/{name}",): 3}


def test_a_request_without_an_answer_is_counted_when_its_connection_has_ended() -> None:
    script = Script()
    client = script.client()
    exchange(client)
    client.request(GET, GET)
    metrics = Metrics(names_of())
    metrics.emit(script.play().messages)
    snapshot = settle(metrics)
    assert [count for _, _, count in snapshot.unanswered] == [0, 0]
    snapshot = settle(metrics, set(), 10**18)
    assert snapshot.unanswered == [(Service("shop"), "client", 2), (Service("shop"), "server", 0)]
    assert total(snapshot, "http_client") == 1
    assert not metrics._ends


def test_a_response_without_a_known_request_is_counted_for_itself() -> None:
    script = Script()
    client = script.client(fresh=False)
    client.response(OK)
    exchange(client)
    snapshot = count(script.play())
    assert snapshot.unpaired == [(Service("shop"), "client", 1), (Service("shop"), "server", 0)]
    assert by(snapshot, "http_client", "http_response_status_code") == {("200",): 1}


def test_who_has_the_connection_now_is_who_counts() -> None:
    first, second = Process(1, 7, "first", ""), Process(2, 7, "second", "")
    link = made.a_link(Role.SERVER)
    messages: list[Message] = []
    for process in (first, second, first):
        request = made.message(made.h2_request("GET"), link=link, process=process, pid=process.pid)
        answer = made.message(made.h2_response(), link=link, process=process, pid=process.pid, request=request)
        messages += [request, answer]
    snapshot = count(messages, Metrics(names_of({1: "one", 2: "two"}.get)))
    assert by(snapshot, "http_server", "service_name") == {("one",): 2, ("two",): 1}


def test_exchanges_wait_for_the_name_of_their_service_and_none_is_lost() -> None:
    go_on = threading.Event()
    metrics = Metrics(names_of(lambda _pid: "slow" if go_on.wait(5) else None))
    script = Script()
    server = script.server()
    for _ in range(23):
        exchange(server)
    metrics.emit(script.play().messages)
    metrics.tick(script.time_ns, set)
    assert metrics.snapshot().series == []
    go_on.set()
    assert by(settle(metrics), "http_server", "service_name") == {("slow",): 23}


def test_a_name_that_takes_too_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    metrics = Metrics(names_of(lambda _pid: str(go_on.wait(5))))
    script = Script()
    script.process(comm="shop", cmdline="")
    server = script.server()
    exchange(server)
    metrics.emit(script.play().messages)
    metrics.tick(script.time_ns + 2_000_000_000, set)
    assert by(metrics.snapshot(), "http_server", "service_name") == {("shop",): 1}
    go_on.set()


def test_more_than_can_wait_is_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "BACKLOG_MAX", 10)
    go_on = threading.Event()
    metrics = Metrics(names_of(lambda _pid: str(go_on.wait(5))))
    script = Script()
    script.process(comm="shop", cmdline="")
    server = script.server()
    for _ in range(23):
        exchange(server)
    metrics.emit(script.play().messages)
    assert metrics._backlog <= 10
    metrics.flush()
    assert by(metrics.snapshot(), "http_server", "service_name") == {("shop",): 23}
    go_on.set()


def test_grpc_counts_as_calls_and_not_as_http() -> None:
    link = made.a_link(Role.SERVER)
    messages = []
    for status in (0, 0, 5, 13, 99, None):
        request = made.grpc(link=link)
        answer = made.grpc(request=False, asked=request, link=link, status=status)
        if status is None:
            answer.completeness = Completeness.PARTIAL
        messages += [request, answer]
    snapshot = count(messages)
    assert total(snapshot, "http_server") == 0
    assert by(snapshot, "rpc_server", "rpc_service", "rpc_method", "rpc_system") == {("shop.Orders", "Get", "grpc"): 6}
    assert by(snapshot, "rpc_server", "rpc_grpc_status_code", "error_type") == {
        ("0", ""): 2,
        ("5", ""): 1,
        ("13", "INTERNAL"): 1,
        ("other", "other"): 1,
        ("", "incomplete"): 1,
    }


def test_for_a_client_every_status_of_grpc_but_ok_is_an_error() -> None:
    link = made.a_link(Role.CLIENT)
    messages = []
    for status in (0, 5):
        request = made.grpc(link=link)
        messages += [request, made.grpc(request=False, asked=request, link=link, status=status)]
    # A proxy's answer, which is no gRPC.
    request = made.grpc(link=link)
    messages += [request, made.message(made.h2_response(502), link=link, request=request)]
    assert by(count(messages), "rpc_client", "rpc_grpc_status_code", "error_type") == {
        ("0", ""): 1,
        ("5", "NOT_FOUND"): 1,
        ("", "502"): 1,
    }


def test_made_up_methods_of_grpc_are_one() -> None:
    link = made.a_link(Role.SERVER)
    messages = []
    for number in range(1000):
        head = made.h2_request("POST", f"/made.Up{number}/Call")
        request = made.grpc(link=link, head=head, service=f"made.Up{number}", method="Call")
        messages += [request, made.grpc(request=False, asked=request, link=link, service=f"made.Up{number}", status=12)]
    snapshot = count(messages)
    assert by(snapshot, "rpc_server", "rpc_service", "rpc_method") == {("", "_OTHER"): 1000}


def test_sums_made_elsewhere_merge_into_the_same_series() -> None:
    script = Script()
    exchange(script.server(local=("10.0.0.1", 80)), b"GET /users/1 HTTP/1.1\r\nHost: a\r\n\r\n")
    metrics = Metrics(names_of())
    before = the_only(count(script.play().messages, metrics), "http_server")
    buckets = [0] * BUCKETS
    buckets[1], buckets[3] = 20, 3
    metrics.add_counts(
        PID,
        Role.SERVER,
        "GET",
        200,
        "/users/4711",
        "HTTP/1.1",
        23,
        buckets,
        92_000_000,
        100,
        46,
        address="10.0.0.1",
        port=80,
    )
    after = the_only(settle(metrics), "http_server")
    assert after.labels == before.labels
    assert after.buckets == tuple(old + new for old, new in zip(before.buckets, buckets, strict=True))
    assert after.sum_ns == before.sum_ns + 92_000_000
    assert (after.requests, after.request_bytes, after.response_bytes) == (24, 100, 48)


def test_sums_that_do_not_add_up_are_refused() -> None:
    metrics = Metrics(names_of())
    for buckets in ([1] * BUCKETS, [23], [0] * (BUCKETS - 1) + [22]):
        with pytest.raises(ValueError, match="buckets"):
            metrics.add_counts(1, Role.CLIENT, "GET", 200, "/", "HTTP/1.1", 23, buckets, 0, 0, 0)
    assert settle(metrics).series == []


def test_the_short_way_and_the_long_way_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()
    for peer in (script.server(), script.client()):
        for number in range(50):
            exchange(
                peer,
                b"GET /a/%d HTTP/1.1\r\nHost: h%d\r\n\r\n" % (number % 7, number % 3),
                response(200 + number % 5 * 100 if number % 5 < 4 else 204),
            )
    messages = script.play().messages
    short = count(messages)
    monkeypatch.setattr(sink_module, "CACHED_TARGET_MAX", -1)
    long = count(messages)
    assert sorted(map(str, short.series)) == sorted(map(str, long.series))
    assert short.series


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "ENDS_MAX", 10)
    script = Script()
    for _ in range(100):
        exchange(script.server())
    metrics = Metrics(names_of())
    assert total(count(script.play(), metrics), "http_server") == 100
    assert len(metrics._ends) <= 10


def test_a_scrape_sees_whole_batches_while_others_are_counted() -> None:
    script = Script()
    server = script.server()
    for _ in range(50):
        exchange(server)
    messages = script.play().messages
    metrics = Metrics(names_of())
    count(messages, metrics)
    stop = threading.Event()
    seen: list[int] = []

    def scrape() -> None:
        while not stop.is_set():
            snapshot = metrics.snapshot()
            seen.append(total(snapshot, "http_server"))
            (series,) = snapshot.series
            assert series.requests == sum(series.buckets) == series.response_bytes // 2

    thread = threading.Thread(target=scrape)
    thread.start()
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        metrics.emit(messages)
    stop.set()
    thread.join()
    assert all(number % 50 == 0 for number in seen) and seen == sorted(seen) and len(seen) > 3


def test_what_comes_from_a_packet_capture_has_no_process_and_counts_nothing() -> None:
    script = Script()
    exchange(script.client(passive=True, pid=0))
    snapshot = count(script.play())
    assert snapshot.series == [] and all(count == 0 for _, _, count in snapshot.unpaired)


def test_messages_are_not_changed() -> None:
    script = Script()
    exchange(script.client())
    messages = script.play().messages
    copies = [replace(message) for message in messages]
    count(messages)
    for message, copy in zip(messages, copies, strict=True):
        assert all(getattr(message, name) is getattr(copy, name) for name in Message.__dataclass_fields__)
