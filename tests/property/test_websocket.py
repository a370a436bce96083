"""WebSocket conversations, written by wsproto, in whatever pieces are the same messages; a gap never makes a wrong one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol

from netprofiler.exchange import Completeness, Message
from netprofiler.testing import split
from tests.unit.protocols.test_websocket import CLIENT, SERVER, Talk, said, upgraded

AGREED = [
    "",
    "permessage-deflate",
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    "permessage-deflate; client_no_context_takeover; server_max_window_bits=10",
    'permessage-deflate; client_max_window_bits="9"; server_no_context_takeover',
]
LIMIT = 60

TEXTS = st.one_of(st.text(max_size=12), st.sampled_from(["the same again and again, " * n for n in (1, 2, 6, 30)]))
DATA = st.one_of(
    TEXTS, st.binary(max_size=12), st.integers(0, 300).map(lambda size: bytes(range(256)) * 2 + bytes(size))
)


@dataclass(frozen=True)
class Truth:
    """One message as it was sent."""

    opcode: str
    payload: bytes
    begin: int
    """Offset of its first byte in its direction."""
    body_bytes: int
    """Payload on the stream, and with the headers: without the control frames between its fragments."""
    stream_bytes: int


@dataclass(frozen=True)
class Sent:
    """One direction."""

    data: bytes
    truths: list[Truth]
    """In the order in which they ended."""


@st.composite
def directions(draw: st.DrawFn, client: bool, agreed: str) -> Sent:
    extensions: list[Extension] = []
    if agreed:
        extension = PerMessageDeflate()
        extension.finalize(agreed.replace('"', ""))
        extensions.append(extension)
    sender = FrameProtocol(client=client, extensions=extensions)
    keys = Random(draw(st.integers(0, 1 << 32)))
    out = bytearray()
    truths: list[Truth] = []

    def send(frame: bytearray) -> tuple[int, int]:
        """Sizes of its payload, and of all of it."""
        out.extend(frame)
        payload = len(frame) - 2 - 4 * client
        return payload if payload <= 125 else payload - 2, len(frame)

    def control() -> None:
        begin, payload = len(out), draw(st.binary(max_size=4))
        kind, frame = draw(st.sampled_from([("ping", sender.ping(payload)), ("pong", sender.pong(payload))]))
        truths.append(Truth(kind, payload, begin, *send(frame)))

    with patch("wsproto.frame_protocol.os.urandom", keys.randbytes):  # masking keys that come again
        for _ in range(draw(st.integers(1, 8))):
            if draw(st.integers(0, 4)) == 0:
                control()
                continue
            whole = draw(DATA)
            begin, body_bytes, stream_bytes = len(out), 0, 0
            bounds = [0, *sorted(draw(st.lists(st.integers(0, len(whole)), max_size=2))), len(whole)]
            for index, (start, stop) in enumerate(pairwise(bounds)):
                if index and draw(st.booleans()):
                    control()
                payload, all_of_it = send(sender.send_data(whole[start:stop], fin=index == len(bounds) - 2))
                body_bytes += payload
                stream_bytes += all_of_it
            if isinstance(whole, str):
                truths.append(Truth("text", whole.encode(), begin, body_bytes, stream_bytes))
            else:
                truths.append(Truth("binary", whole, begin, body_bytes, stream_bytes))
        if draw(st.booleans()):
            begin = len(out)
            truths.append(Truth("close", b"\x03\xe8bye", begin, *send(sender.close(1000, "bye"))))
    return Sent(bytes(out), truths)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[str, tuple[Sent, Sent]]:
    agreed = draw(st.sampled_from(AGREED))
    return agreed, (draw(directions(True, agreed)), draw(directions(False, agreed)))


CUTS = st.lists(st.integers(1, 3000), max_size=30)


def start(agreed: str, *, fresh: bool = True) -> Talk:
    talk = Talk(upgraded(agreed) if agreed else upgraded(), fresh=fresh, body_limit=LIMIT)
    talk.positions = [0, 0]
    return talk


@given(conversations(), CUTS, CUTS, st.randoms())
def test_any_split_gives_the_messages_that_were_sent(
    conversation: tuple[str, tuple[Sent, Sent]], client_cuts: list[int], server_cuts: list[int], random: Random
) -> None:
    agreed, (client, server) = conversation
    talk = start(agreed)
    pieces = [split(client.data, client_cuts), split(server.data, server_cuts)]
    while pieces[CLIENT] or pieces[SERVER]:
        direction = random.choice([direction for direction in (CLIENT, SERVER) if pieces[direction]])
        talk.feed(direction, pieces[direction].pop(0))
    assert sum(talk.rows.values()) == talk.fed == talk.rows["recorded"]
    messages = talk.take()
    for direction, sent in ((CLIENT, client), (SERVER, server)):
        got = [message for message in messages if message.direction == direction]
        assert [shape(message) for message in got] == [
            (
                truth.opcode,
                truth.begin,
                truth.payload[:LIMIT],
                truth.body_bytes,
                truth.stream_bytes,
                Completeness.TRUNCATED if len(truth.payload) > LIMIT else Completeness.COMPLETE,
            )
            for truth in sent.truths
        ]
    talk.end()
    assert not talk.take()


def shape(message: Message) -> tuple[str, int, bytes, int, int, Completeness]:
    return (
        said(message).opcode,
        message.position,
        message.body,
        message.body_bytes,
        message.stream_bytes,
        message.completeness,
    )


def check_against(messages: list[Message], sent: Sent) -> None:
    """What there is of them is right."""
    truths = {truth.begin: truth for truth in sent.truths}
    for message in messages:
        opcode, begin, body, body_bytes, stream_bytes, completeness = shape(message)
        truth = truths.pop(begin)
        assert opcode == truth.opcode
        assert truth.payload[:LIMIT].startswith(body)
        if completeness in (Completeness.COMPLETE, Completeness.TRUNCATED):
            assert (body_bytes, stream_bytes) == (truth.body_bytes, truth.stream_bytes)
        else:
            assert body_bytes <= truth.body_bytes and stream_bytes <= truth.stream_bytes
        if completeness is Completeness.COMPLETE:
            assert body == truth.payload


@given(st.data(), conversations(), st.sampled_from([CLIENT, SERVER]), CUTS, CUTS, st.booleans())
def test_a_gap_anywhere_makes_no_message_wrong(
    data: st.DataObject,
    conversation: tuple[str, tuple[Sent, Sent]],
    direction: int,
    before: list[int],
    after: list[int],
    at_frames: bool,
) -> None:
    agreed = conversation[0]
    sent = conversation[1][direction]
    size = len(sent.data)
    begin = data.draw(st.integers(0, size), "begin")
    length = data.draw(st.one_of(st.integers(1, 12), st.integers(1, size)), "length")
    stop = min(size, begin + length)
    if at_frames:
        stop = min((truth.begin for truth in sent.truths if truth.begin >= stop), default=size)
    talk = start(agreed)
    talk.feed(direction, *split(sent.data[:begin], before))
    if stop > begin:
        talk.missing(direction, stop - begin)
    talk.feed(direction, *split(sent.data[stop:], after))
    talk.end()
    check_against(talk.take(), sent)
    assert sum(talk.rows.values()) == talk.fed


@given(st.data(), conversations(), st.sampled_from([CLIENT, SERVER]), CUTS)
def test_joined_anywhere_no_message_is_wrong(
    data: st.DataObject, conversation: tuple[str, tuple[Sent, Sent]], direction: int, cuts: list[int]
) -> None:
    sent = conversation[1][direction]
    begin = data.draw(st.integers(0, len(sent.data)), "begin")
    talk = start(conversation[0], fresh=False)
    talk.positions[direction] = begin
    talk.feed(direction, *split(sent.data[begin:], cuts))
    talk.end()
    check_against(talk.take(), sent)
    assert sum(talk.rows.values()) == talk.fed


FIRST = st.sampled_from([0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0xC1, 0xC2, 0xA1, 0x83])
SECOND = st.sampled_from([0, 1, 2, 125, 126, 127, 0x80, 0x81, 0x84, 0xFD, 0xFE, 0xFF])
LIKE_FRAMES = st.builds(
    lambda first, second, rest: bytes([first, second]) + rest, FIRST, SECOND, st.binary(max_size=20)
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.sampled_from([CLIENT, SERVER]), st.one_of(LIKE_FRAMES, st.binary(max_size=30))),
        st.tuples(st.just("missing"), st.sampled_from([CLIENT, SERVER]), st.integers(1, 300)),
        st.tuples(st.just("tick"), st.just(0), st.integers(0, 10**10)),
        st.tuples(st.just("end"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS, st.sampled_from([*AGREED, "x-other", "permessage-deflate; ;=,;,"]), st.booleans())
def test_whatever_comes_nothing_raises_and_every_byte_has_one_row(
    steps: list[tuple[str, int, bytes | int]], agreed: str, fresh: bool
) -> None:
    talk = start(agreed, fresh=fresh)
    for kind, direction, value in steps:
        if isinstance(value, bytes):
            talk.feed(direction, value)
        elif kind == "missing":
            talk.missing(direction, value)
        elif kind == "tick":
            talk.now_ns += value
            talk.conversation.tick(talk.now_ns)
        else:
            talk.end()
    talk.end()
    assert sum(talk.rows.values()) == talk.fed
    assert not talk.waits()
    for message in talk.take():
        assert len(message.body) <= LIMIT
        assert message.body_bytes < message.stream_bytes
        assert (message.completeness is Completeness.GAP) == (message.missing_bytes > 0) or (
            message.completeness is Completeness.OPEN
        )
