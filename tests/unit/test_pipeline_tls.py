"""netprofiler.pipeline: the plaintext inside of a socket, and what the ciphertext around it tells."""

from __future__ import annotations

import json
from dataclasses import replace

from netprofiler import wire
from netprofiler.pipeline import Pipeline
from netprofiler.redaction import Redactor
from netprofiler.sinks.jsonlines import RecordWriter
from netprofiler.testing import PID, Script, batch
from tests.unit.protocols.handshakes import client_hello, extension, protocols, record, server_hello, server_name

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OLD = b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"
NO = b"HTTP/1.1 204 No Content\r\n\r\n"
OPENSSL = wire.LIBRARIES.index("openssl")

HELLO = record(client_hello(server_name(b"example.test"), protocols(b"h2", b"http/1.1")))
ANSWER = record(server_hello(extension(43, b"\x03\x04"), cipher=0x1301))
FACTS = {"library": "openssl", "version": "1.3", "cipher": "TLS_AES_128_GCM_SHA256", "sni": "example.test"}


def inside(events: list[wire.Event]) -> list[wire.Event]:
    """The same as plaintext of OpenSSL inside of their socket."""
    out: list[wire.Event] = []
    for event in events:
        if isinstance(event, wire.ConnectionOpened):
            out.append(replace(event, socket=event.socket | wire.SOCKET_TLS, library=OPENSSL))
        elif isinstance(event, wire.ProcessSeen):
            out.append(event)
        else:
            out.append(replace(event, socket=event.socket | wire.SOCKET_TLS))
    return out


def exchange(*, response: bytes = NO, role: int = wire.ROLE_CLIENT) -> tuple[int, list[wire.Event]]:
    """The socket's number, and the events of an exchange inside of it."""
    script = Script()
    script.process()
    peer = script.open(role)
    peer.send(GET)
    peer.recv(response)
    return peer.socket, inside([step for step in script.steps if isinstance(step, wire.Event)])


def handshake(socket: int, *parts: tuple[int, bytes]) -> list[wire.Event]:
    return [wire.HandshakeCaptured(1, socket, PID, direction, payload) for direction, payload in parts]


def lines(agent: Pipeline, events: list[wire.Event]) -> list[dict[str, object]]:
    writer = RecordWriter(Redactor(()), wall_offset_ns=0, body_limit=4096, raw_payload=True)
    out = []
    for event in events:
        data = batch([event])
        assert agent.feed(data) == len(data)
        out += [json.loads(writer.render(message)) for message in agent.take_messages()]
    return out


def test_records_tell_the_handshake_and_the_socket() -> None:
    socket, events = exchange()
    agent = Pipeline()
    records = lines(agent, handshake(socket, (wire.SEND, HELLO), (wire.RECV, ANSWER)) + events)
    assert [entry["tls"] for entry in records] == [{**FACTS, "alpn": "http/1.1"}] * 2
    assert {entry["connection"] for entry in records} == {f"sock:[{socket}]"}
    assert [entry["dest_port"] for entry in records] == [8080, 54321]
    assert all("hop" in entry for entry in records)


def test_a_hello_that_came_in_pieces() -> None:
    socket, events = exchange()
    parts = [(wire.SEND, HELLO[:5]), (wire.SEND, HELLO[5:]), (wire.RECV, ANSWER[:7]), (wire.RECV, ANSWER[7:])]
    records = lines(Pipeline(), handshake(socket, *parts) + events)
    assert [entry["tls"] for entry in records] == [{**FACTS, "alpn": "http/1.1"}] * 2


def test_http_1_0_is_spoken_as_http_1_1_by_alpn() -> None:
    socket, events = exchange(response=OLD)
    records = lines(Pipeline(), handshake(socket, (wire.SEND, HELLO), (wire.RECV, ANSWER)) + events)
    assert [(entry["protocol"], entry["tls"]) for entry in records] == [
        ("HTTP/1.1", {**FACTS, "alpn": "http/1.1"}),
        ("HTTP/1.0", {**FACTS, "alpn": "http/1.1"}),
    ]


def test_a_connection_that_was_there_before_has_its_library_alone() -> None:
    _, events = exchange()
    assert [entry["tls"] for entry in lines(Pipeline(), events)] == [{"library": "openssl"}] * 2


def test_early_data_comes_before_the_hello_is_sent() -> None:
    socket, events = exchange()
    request, response = events[:3], events[3:]
    later = handshake(socket, (wire.SEND, HELLO), (wire.RECV, ANSWER))
    agent = Pipeline()
    records = lines(agent, request + later + response)
    assert [entry["tls"] for entry in records] == [{"library": "openssl"}, {**FACTS, "alpn": "http/1.1"}]
    agent.drain(1 << 62)
    assert (agent.counters.tls_unread, agent.unread) == (0, {})


def test_the_side_that_speaks_first_is_the_client() -> None:
    socket, events = exchange(role=0)
    first = handshake(socket, (wire.SEND, HELLO), (wire.RECV, ANSWER))
    assert [entry["role"] for entry in lines(Pipeline(), first + events)] == ["client"] * 2


def test_a_socket_that_is_not_known_gives_no_addresses() -> None:
    _, events = exchange()
    unknown = wire.SOCKET_TLS | wire.SOCKET_UNKNOWN | 0xABC
    moved: list[wire.Event] = []
    for event in events:
        if isinstance(event, wire.ConnectionOpened):
            moved.append(replace(event, socket=unknown, family=0, local_ip="", remote_ip="", role=0, counted=True))
        elif not isinstance(event, wire.ProcessSeen):
            moved.append(replace(event, socket=unknown))
    records = lines(Pipeline(), moved)
    assert {entry["connection"] for entry in records} == {"tls:[abc]"}
    assert not {"source_ip", "dest_ip", "hop"} & {key for entry in records for key in entry}
    assert [entry.get("method", entry.get("status_code")) for entry in records] == ["GET", 204]


def test_exchanges_behind_a_proxys_connect_are_numbered_on() -> None:
    script = Script()
    peer = script.client()
    peer.send(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n")
    peer.recv(b"HTTP/1.1 200 Connection established\r\n\r\n")
    outer = [step for step in script.steps if isinstance(step, wire.Event)]
    socket, events = exchange()
    same = [event if isinstance(event, wire.ProcessSeen) else replace(event, socket=peer.socket) for event in outer]
    inner = [
        event if isinstance(event, wire.ProcessSeen) else replace(event, socket=peer.socket | wire.SOCKET_TLS)
        for event in events
    ]
    assert socket == peer.socket
    records = lines(Pipeline(), same + inner)
    assert [entry["exchange"] for entry in records] == [f"sock:[{socket}]#{number}" for number in (1, 1, 2, 2)]
    assert [("tls" in entry) for entry in records] == [False, False, True, True]


def test_what_could_not_be_read_is_counted_by_process() -> None:
    agent = Pipeline()
    for socket in (1, 2):
        lines(agent, handshake(socket, (wire.SEND, HELLO), (wire.RECV, ANSWER)))
    lines(agent, [wire.ConnectionClosed(2, 1, wire.BOTH, True, 0)])
    assert (agent.counters.tls_unread, agent.unread) == (1, {PID: 1})
    agent.drain(3)
    assert (agent.counters.tls_unread, agent.unread) == (2, {PID: 2})


def test_what_is_read_and_is_not_http_is_not_called_unread() -> None:
    agent = Pipeline()
    lines(agent, handshake(1, (wire.SEND, HELLO), (wire.RECV, ANSWER), (wire.SEND, b"")))
    agent.drain(3)
    assert (agent.counters.tls_unread, agent.unread) == (0, {})
