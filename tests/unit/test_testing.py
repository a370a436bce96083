"""netprofiler.testing: the fakes say what they are told to."""

from __future__ import annotations

import pytest

from netprofiler import wire
from netprofiler.testing import START_NS, STEP_NS, Script, Tick, batch, build, split


@pytest.mark.parametrize(
    ("cuts", "pieces"), [([], [b"abcd"]), ([2], [b"ab", b"cd"]), ([3, 1, 1, 0, 4, 9], [b"a", b"bc", b"d"])]
)
def test_split(cuts: list[int], pieces: list[bytes]) -> None:
    assert split(b"abcd", cuts) == pieces


def test_positions_and_times_go_on_by_themselves() -> None:
    script = Script()
    peer = script.server(positions=(0xFFFFFFFF, 7))
    peer.recv(b"ab", b"c")
    peer.send(b"de")
    peer.lose(wire.SEND, 10)
    peer.sendfile(100, b"f")
    script.wait(1)
    peer.shutdown()
    peer.end()
    peer.close()
    data = [step for step in script.steps if isinstance(step, wire.DataCaptured)]
    assert [(d.direction, d.position, d.length, d.payload) for d in data] == [
        (wire.RECV, 7, 2, b"ab"),
        (wire.RECV, 9, 1, b"c"),
        (wire.SEND, 0xFFFFFFFF, 2, b"de"),
        (wire.SEND, 11, 100, b"f"),
    ]
    ends = [step for step in script.steps if isinstance(step, wire.ConnectionClosed)]
    assert [(e.direction, e.position, e.gone) for e in ends] == [(0, 111, False), (1, 10, False), (2, 111, True)]
    [tick] = [step for step in script.steps if isinstance(step, Tick)]
    assert tick.time_ns == START_NS + 5 * STEP_NS + 1_000_000_000
    assert [step.time_ns for step in script.steps] == sorted(step.time_ns for step in script.steps)


def test_events_are_what_the_kernel_side_would_have_written() -> None:
    script = Script()
    script.process()
    peer = script.client(family=wire.FAMILY_UNIX, unix_path="@a")
    peer.send(b"x")
    peer.close()
    events = [step for step in script.steps if isinstance(step, wire.Event)]
    assert [wire.parse(build(event)) for event in events] == events
    assert list(wire.records(batch(events))) == [build(event) for event in events]


def test_a_pipeline_of_its_own_each_time() -> None:
    script = Script()
    script.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    first, second = script.play(), script.play()
    assert first.pipeline is not second.pipeline
    assert len(first.messages) == len(second.messages) == 1
    assert first.rows() == {"recorded": 27}
    assert first.rows("calls") == {"recorded": 1}
