"""netprofiler.pipeline: batches in, messages out; who is remembered, and for how long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from netprofiler import pipeline, wire
from netprofiler.exchange import Completeness
from netprofiler.pipeline import GRACE_NS, Pipeline
from netprofiler.testing import Script, batch, build

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
NO = b"HTTP/1.1 204 No Content\r\n\r\n"


def one_connection() -> Script:
    script = Script()
    script.process()
    peer = script.client()
    peer.send(GET)
    peer.recv(NO)
    return script


def events(script: Script) -> list[wire.Event]:
    return [step for step in script.steps if isinstance(step, wire.Event)]


def test_many_records_in_one_batch() -> None:
    agent = Pipeline()
    data = batch(events(one_connection()))
    assert agent.feed(data) == len(data)
    assert [m.head.method or m.head.status for m in agent.take_messages()] == ["GET", 204]
    assert agent.take_messages() == []
    assert agent.counters.messages == 2


def test_a_record_that_is_still_being_written_ends_the_batch() -> None:
    agent = Pipeline()
    script = one_connection()
    whole = batch(events(script)[:-1])
    last = bytearray(batch(events(script)[-1:]))
    last[3] |= 0x80
    assert agent.feed(whole + bytes(last)) == len(whole)
    assert len(agent.take_messages()) == 1
    last[3] &= 0x7F
    assert agent.feed(bytes(last)) == len(last)
    assert len(agent.take_messages()) == 1


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_record_that_was_discarded_is_passed_over(index: int) -> None:
    agent = Pipeline()
    frames = [bytearray(batch([event])) for event in events(one_connection())]
    frames[index][3] |= 0x40
    data = b"".join(frames)
    assert agent.feed(data) == len(data)
    agent.drain(1 << 62)
    shown = [m.head.method or m.head.status for m in agent.take_messages()]
    assert shown == ([204] if index == 2 else ["GET", 204])


def damaged() -> list[bytes]:
    script = one_connection()
    data = next(event for event in events(script) if isinstance(event, wire.DataCaptured))
    record = build(data)
    captured = bytearray(record)
    captured[4] += 1  # promises a byte more than it holds
    direction = bytearray(record)
    direction[1] = 2
    reason = bytearray(record)
    reason[3] = 9
    return [
        wire.frame(bytes(captured)),
        wire.frame(bytes(direction)),
        wire.frame(bytes(reason)),
        wire.frame(build(replace(data, length=5))),
        wire.frame(record)[:-8],
        wire.frame(record[:20]),
        wire.frame(b"\x09" + bytes(60)),
        wire.frame(b""),
        b"\x00\x01",
    ]


@pytest.mark.parametrize("data", damaged(), ids=range(len(damaged())))
def test_damaged_records(data: bytes) -> None:
    with pytest.raises(wire.MalformedRecord):
        Pipeline().feed(data)


def test_a_connection_that_is_gone_is_forgotten_after_a_while() -> None:
    script = one_connection()
    peer_socket = next(e.socket for e in events(script) if isinstance(e, wire.DataCaptured))
    agent = Pipeline()
    agent.feed(batch(events(script)))
    gone = wire.ConnectionClosed(script.now(), peer_socket, wire.BOTH, True, 1000 + len(GET))
    agent.feed(batch([gone, gone]))
    agent.tick(gone.time_ns + GRACE_NS)
    assert peer_socket in agent.connections
    agent.tick(gone.time_ns + GRACE_NS + 100_000_000)
    assert not agent.connections
    assert not agent._gone


def test_what_reaches_the_ring_behind_the_end_still_counts() -> None:
    script = Script()
    peer = script.server()
    peer.recv(GET)
    peer.send(b"HTTP/1.1 200 OK\r\n\r\n", b"body")
    peer.close()
    opened, ask, head, body, gone = script.steps
    played = script.play([opened, ask, head, gone, body])
    assert [(m.body, m.completeness) for m in played.responses] == [(b"body", Completeness.COMPLETE)]


def test_an_inode_that_is_used_again() -> None:
    """With its end, and with its end lost in a full ring."""
    for closed in (True, False):
        script = Script()
        first = script.client(local=("127.0.0.1", 1000))
        first.send(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
        if closed:
            first.close()
        script._sockets -= 1
        second = script.client(local=("127.0.0.1", 2000), positions=(77, 88))
        second.send(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
        second.recv(NO)
        played = script.play()
        assert [(m.head.target, m.link.local_port) for m in played.requests] == [("/1", 1000), ("/2", 2000)]
        assert played.responses[0].request is played.requests[1]


def test_another_process_takes_the_connection_over() -> None:
    script = Script()
    script.process(pid=1, comm="parent")
    script.process(pid=2, comm="child")
    peer = script.server(pid=1)
    peer.recv(GET)
    opened = events(script)[2]
    assert isinstance(opened, wire.ConnectionOpened)
    script.steps.append(replace(opened, pid=2, time_ns=script.now()))
    peer.pid = 2
    peer.send(NO)
    played = script.play()
    assert [m.process.comm for m in played.messages if m.process] == ["parent", "child"]
    assert played.responses[0].request is played.requests[0]


def test_a_program_that_becomes_another() -> None:
    script = Script()
    script.process(comm="sh")
    peer = script.client()
    peer.send(GET)
    script.process(comm="curl")
    peer.recv(NO)
    assert [m.process.comm for m in script.play().messages if m.process] == ["sh", "curl"]


def test_unix_sockets_are_watched_until_somebody_says_that_they_are_gone() -> None:
    script = Script()
    peer = script.client(family=wire.FAMILY_UNIX, pid=5)
    peer.send(b"GET / HTTP/1.0\r\n\r\n")
    peer.recv(b"HTTP/1.0 200 OK\r\n\r\nbody")
    agent = script.play(drain=False).pipeline
    assert agent.unix_owners == {peer.socket: 5}
    agent.forget(peer.socket, script.time_ns)
    agent.forget(peer.socket, script.time_ns)
    assert agent.unix_owners == {}
    assert agent.take_messages() == []
    agent.tick(script.time_ns + 2 * GRACE_NS)
    assert [(m.body, m.completeness) for m in agent.take_messages()] == [(b"body", Completeness.PARTIAL)]
    assert not agent.connections


def test_the_longest_silent_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "CONNECTIONS_MAX", 4)
    script = Script()
    peers = [script.client(local=("127.0.0.1", port)) for port in range(1, 5)]
    for peer in (peers[1], peers[2], peers[3], peers[0]):
        peer.send(b"GET / HTTP/1.1\r\n")
    fifth = script.client()
    fifth.send(GET)
    played = script.play(drain=False)
    assert set(played.pipeline.connections) == {peer.socket for peer in (*peers[2:], peers[0], fifth)}
    assert played.rows()["unparsed"] == 16


def test_limits_of_a_pipeline() -> None:
    script = one_connection()
    agent = Pipeline(body_limit=7, stream_interval_ns=1)
    agent.feed(batch(events(script)))
    assert agent.shared.body_limit == 7
    assert agent.counters is agent.shared.counters
