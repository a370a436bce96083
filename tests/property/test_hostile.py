"""Whatever the bytes, nothing raises; whatever the traffic, memory has its bounds."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netprofiler import connection, pairing, pipeline, streams, wire
from netprofiler.exchange import Message
from netprofiler.pipeline import Pipeline
from netprofiler.protocols import http1
from netprofiler.testing import Script, build, split
from tests.property.traffic import peer_of

NUMBERS = st.one_of(st.integers(0, 20), st.integers(0, 2**32 - 1), st.sampled_from([2**31 - 1, 2**31, 2**32 - 1]))
WORDS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: b\r\nConnection: upgrade\r\n\r\n",
        b"HEAD / HTTP/1.0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
        b"HTTP/1.1 100\r\n\r\n",
        b"HTTP/1.1 101 S\r\n\r\n",
        b"HTTP/1.1 204 No\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\nTrailer: x\r\n\r\n",
        b"5;a=b\r\nhello\r\n",
        b"0\r\nx: y\r\n\r\n",
        b"\r\n",
        b"\n",
        b"5",
        b"H",
        b"GET ",
        b": ",
        b"\x16\x03\x01\x00",
    ]
)
JUNK = st.lists(st.one_of(WORDS, st.binary(max_size=12)), max_size=8).map(b"".join)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_batch_or_damaged(batch: bytes) -> None:
    pipeline = Pipeline()
    try:
        used = pipeline.feed(batch)
    except wire.MalformedRecord:
        return
    assert 0 <= used <= len(batch)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 2, 2, 2, 3, 4, 128, 9]), st.integers(0, 400), st.binary(max_size=60), st.booleans()
        ),
        max_size=6,
    )
)
def test_any_record_is_an_event_or_damaged(records: list[tuple[int, int, bytes, bool]]) -> None:
    """Of the right kind and about the right size, with anything in it."""
    batch = b"".join(
        wire.frame(bytes([kind]) + (seed * 8)[:length] + (bytes(length) if pad else b""))
        for kind, length, seed, pad in records
    )
    pipeline = Pipeline()
    try:
        assert pipeline.feed(batch) == len(batch)
    except wire.MalformedRecord:
        return
    pipeline.tick(1 << 62)
    pipeline.drain(1 << 62)


@given(
    st.lists(
        st.tuples(st.integers(1, 2), st.integers(0, 1), st.integers(0, 4), NUMBERS, NUMBERS, JUNK, st.booleans()),
        max_size=12,
    ),
    st.booleans(),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
)
def test_any_data_is_taken(
    pieces: list[tuple[int, int, int, int, int, bytes, bool]], in_order: bool, role: int, fresh: bool
) -> None:
    """Records that are well-formed, of streams that are not: whatever they hold, every byte has its row."""
    script = Script()
    peers = [script.open(role, fresh=fresh, positions=(0, 0)) for _ in range(2)]
    for which, direction, reason, position, length, payload, tick in pieces:
        peer = peers[which - 1]
        if not in_order:
            peer.positions[direction] = position
        peer.piece(direction, payload, length=length % 100_000 if reason else None, reason=reason)
        if tick:
            script.wait(0.3)
    peers[0].close()
    played = script.play()
    rows = played.rows()
    assert all(count > 0 for count in rows.values()), rows
    assert "pending" not in rows
    assert "pending" not in played.rows("calls")
    assert all(message.body_bytes >= len(message.body) for message in played.messages)


@given(JUNK, JUNK, st.lists(st.integers(0, 400), max_size=20), st.sampled_from([0, 1, 2]), st.booleans())
def test_any_split_of_any_bytes_ends_up_in_the_same_rows(
    sent: bytes, received: bytes, cuts: list[int], role: int, fresh: bool
) -> None:
    for direction_first in (wire.SEND, wire.RECV):
        script = Script()
        peer = peer_of(script, role, fresh=fresh)
        for direction in (direction_first, 1 - direction_first):
            for piece in split(sent if direction == wire.SEND else received, cuts):
                peer.piece(direction, piece)
        peer.close()
        played = script.play()
        rows = played.rows()
        assert sum(rows.values()) == len(sent) + len(received)
        assert "pending" not in rows


def _size(root: object) -> int:
    """Bytes of all that hangs on `root`, each object once."""
    seen: set[int] = set()
    todo: deque[Any] = deque([root])
    total = 0
    while todo:
        item = todo.popleft()
        if id(item) in seen or isinstance(item, type):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        if isinstance(item, dict):
            todo.extend(item.keys())
            todo.extend(item.values())
        elif isinstance(item, (list, tuple, set, frozenset, deque)):
            todo.extend(item)
        else:
            for kind in type(item).__mro__:
                slots = getattr(kind, "__slots__", ())
                todo.extend(getattr(item, name, None) for name in ([slots] if isinstance(slots, str) else slots))
            todo.extend(vars(item).values() if hasattr(item, "__dict__") else ())
    return total


def _feed(pipeline: Pipeline, script: Script) -> None:
    for step in script.steps:
        assert isinstance(step, wire.DataCaptured | wire.ConnectionOpened | wire.ConnectionClosed | wire.ProcessSeen)
        pipeline.feed(wire.frame(build(step)))
    script.steps.clear()


HOSTILE = {
    "a head without end": [b"GET /" + b"a" * 60_000],
    "lines without end": [b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000],
    "a chunk size without end": [b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1" * 60_000],
    "an extension without end": [b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;a" * 20_000],
    "trailers without end": [
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"a: b\r\n" * 9_000,
    ],
    "a body without end": [b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n", b"x" * 60_000],
    "chunks without end": [b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 9_000],
    "no HTTP at all": [b"\x00\x01" * 30_000],
    "requests without answer": [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2_000],
}


@pytest.mark.parametrize("pieces", HOSTILE.values(), ids=HOSTILE.keys())
def test_one_stream_holds_no_more_than_stated(pieces: list[bytes]) -> None:
    pipeline = Pipeline(body_limit=4096)
    script = Script()
    peer = script.server()
    peer.recv(pieces[0])
    sizes = []
    for _ in range(30):
        peer.recv(*pieces[-1:])
        _feed(pipeline, script)
        pipeline.take_messages()
        pipeline.take_commands()
        sizes.append(_size(pipeline.connections[peer.socket].readers) + _size(pipeline.shared.busy))
    stated = http1.MAX_HEAD_BYTES + connection.TRAILERS_MAX_BYTES + connection.LINE_MAX_BYTES + 4 * 4096
    assert max(sizes) < 2 * stated + 200_000
    assert sizes[-1] <= max(sizes[:20])
    assert len(pipeline.connections[peer.socket].pairing.waiting) <= pairing.WAITING_MAX


def test_early_bytes_and_early_answers_are_bounded() -> None:
    pipeline = Pipeline()
    script = Script()
    peer = script.client()
    peer.lose(wire.SEND, 1)
    for _ in range(300):
        peer.send(b"x" * 60_000)
        peer.recv(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" if not _ else b"y" * 60_000)
        _feed(pipeline, script)
        readers = pipeline.connections[peer.socket].readers
        assert _size(readers) < streams.HELD_BYTES_MAX + connection.BLOCKED_BYTES_MAX + 1_000_000
    single = script.client(local=("127.0.0.1", 2))
    single.lose(wire.SEND, 1)
    for _ in range(20_000):
        single.send(b"x")
        single.recv(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" if not _ else b"y")
    _feed(pipeline, script)
    reader = pipeline.connections[single.socket].readers
    assert reader[0].holding is None or len(reader[0].holding.segments) <= streams.HELD_SEGMENTS_MAX + 1
    assert reader[1].blocked is None or len(reader[1].blocked) <= connection.BLOCKED_SEGMENTS_MAX + 1


def test_connections_processes_and_what_is_remembered_of_them_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "CONNECTIONS_MAX", 8)
    monkeypatch.setattr(pipeline, "PROCESSES_MAX", 4)
    monkeypatch.setattr(http1, "CACHED_HEADS", 32)
    script = Script()
    agent = Pipeline()
    for index in range(200):
        family = wire.FAMILY_UNIX if index % 3 == 0 else wire.FAMILY_IPV4
        peer = script.client(family=family, pid=index + 1)
        script.process(pid=index + 1)
        peer.send(f"GET /{index} HTTP/1.1\r\nHost: {index}\r\n\r\nGET /half".encode())
        if index % 2:
            peer.close()
        _feed(agent, script)
        agent.take_messages()
        assert len(agent.connections) <= 8
        assert len(agent.shared.processes) <= 4
        assert len(agent.shared.busy) <= 8
        assert agent.unix_owners.keys() <= agent.connections.keys()
        heads = agent.shared.heads
        assert max(len(heads.requests), len(heads.responses), len(heads._fields)) <= 32
        agent.tick(script.time_ns)
    assert len(agent._gone) <= 100
    agent.tick(script.time_ns + 10_000_000_000)
    assert not agent._gone
    agent.drain(script.time_ns)
    assert not agent.connections
    assert not agent.shared.busy
    assert not agent.unix_owners


def test_a_message_keeps_no_history_alive() -> None:
    """An answer knows its request; a request knows nobody."""
    script = Script()
    peer = script.client()
    for _ in range(50):
        peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        peer.recv(b"HTTP/1.1 204 No Content\r\n\r\n")
    played = script.play(drain=False)
    assert all(message.request is None for message in played.requests)
    assert all(isinstance(message.request, Message) for message in played.responses)
    state = played.pipeline.connections[peer.socket]
    assert not state.pairing.waiting
    assert state not in played.pipeline.shared.busy


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n", b"HTTP/1.1 101 Switching\r\n\r\nhello"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nhello"),
    ],
)
def test_nobody_waits_for_a_tunnel(ask: bytes, answer: bytes) -> None:
    """Thousands of WebSockets must not cost anything at each tick."""
    script = Script()
    peer = script.client()
    peer.send(ask)
    peer.recv(answer)
    peer.send(b"anything")
    script.wait(1)
    played = script.play(drain=False)
    assert not played.pipeline.shared.busy


def test_nobody_waits_for_a_stream_whose_interim_record_is_out() -> None:
    script = Script()
    peer = script.client()
    peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    peer.recv(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    script.wait(1)
    assert script.play(drain=False).pipeline.shared.busy
    script.wait(6)
    assert not script.play(drain=False).pipeline.shared.busy
