"""netprofiler.protocols.websocket: messages out of frames, and what becomes of what is none."""

from __future__ import annotations

import time
import tracemalloc
import zlib
from dataclasses import astuple, dataclass, field
from typing import NamedTuple

import pytest
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol

from netprofiler.counters import Counters
from netprofiler.exchange import Completeness, Fields, Head, Link, Message, Process, WebSocket
from netprofiler.protocols.websocket import (
    INFLATED_MAX_BYTES,
    LOST_SEGMENTS_MAX,
    STRANGE_SEGMENTS_MAX,
    WebSocketConversation,
    frame_header,
    unmask,
)
from netprofiler.streams import Segment

CLIENT, SERVER = 0, 1
KEY = b"\x11\x22\x33\x44"
DEFLATE = "permessage-deflate"
NO_TAKEOVER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@dataclass
class Shared:
    """What the connection offers."""

    counters: Counters = field(default_factory=Counters)
    processes: dict[int, Process] = field(default_factory=dict)
    out: list[Message] = field(default_factory=list)
    body_limit: int = 4096
    stream_interval_ns: int = 5_000_000_000


def upgraded(*extensions: str) -> Head:
    """The response that has agreed to them."""
    headers = tuple(("Sec-WebSocket-Extensions", value) for value in extensions)
    fields = Fields(headers, None, unframed=False, chunked=False, content_encoding=(), upgrade=True, raw="")
    return Head(False, "HTTP/1.1", "", "", 101, "", fields, "", 100, 0)


def frame(payload: bytes, first: int = 0x81, key: bytes = b"") -> bytes:
    size = len(payload)
    mask = 0x80 if key else 0
    if size < 126:
        length = bytes([mask | size])
    elif size < 1 << 16:
        length = bytes([mask | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([mask | 127]) + size.to_bytes(8, "big")
    return bytes([first]) + length + key + unmask(payload, key)


def deflated(payload: bytes, compressor: zlib._Compress | None = None) -> bytes:
    compressor = compressor or zlib.compressobj(wbits=-15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


class Talk:
    """A conversation, its surroundings, and where it is. Each segment comes a millisecond after the one before."""

    def __init__(self, response: Head | None = None, *, fresh: bool = True, body_limit: int = 4096) -> None:
        self.shared = Shared(body_limit=body_limit)
        self.conversation = WebSocketConversation(
            self.shared,
            Link("sock:[1]"),
            request_direction=CLIENT,
            number=7,
            response=response,
            fresh=fresh,
        )
        self.positions = [1000, 2**32 - 5]
        self.now_ns = 0
        self.fed = 0

    def feed(self, direction: int, *payloads: bytes) -> str:
        row = ""
        for payload in payloads:
            self.now_ns += 1_000_000
            position = self.positions[direction]
            segment = Segment(position, len(payload), payload, 0, self.now_ns, 10, 10 + self.now_ns // 1_000_000)
            self.positions[direction] = (position + len(payload)) % 2**32
            self.fed += len(payload)
            row = self.conversation.feed(direction, segment)
        return row

    def missing(self, direction: int, length: int, reason: str = "unknown") -> None:
        self.now_ns += 1_000_000
        self.positions[direction] = (self.positions[direction] + length) % 2**32
        self.conversation.missing(direction, length, reason, self.now_ns)

    def end(self) -> None:
        for direction in (CLIENT, SERVER):
            self.conversation.end(direction, self.now_ns, finished=True)

    def take(self) -> list[Message]:
        out, self.shared.out = self.shared.out, []
        return out

    def one(self) -> Message:
        (message,) = self.take()
        return message

    def waits(self) -> bool:
        return self.conversation.waits

    def is_lost(self) -> bool:
        return self.conversation.is_lost

    @property
    def rows(self) -> dict[str, int]:
        return {name: row.bytes for name, row in self.shared.counters.rows.items() if row.bytes}


class Said(NamedTuple):
    """A `WebSocket` that compares."""

    opcode: str
    close_code: int | None = None
    close_reason: str | None = None
    inflated: bool = False


def said(message: Message) -> Said:
    assert isinstance(message.extra, WebSocket)
    return Said(*astuple(message.extra))


# --- frame headers ---------------------------------------------------------------------------------------------------

FIRSTS = frozenset([0x81, 0x89])


@pytest.mark.parametrize(
    ("data", "masked", "expected"),
    [
        (b"\x81\x05", False, (2, 5)),
        (b"\x81\x85abcd", True, (6, 5)),
        (b"\x81\x7e\x00\x7e", False, (4, 126)),
        (b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00", False, (10, 65536)),
        (b"\x81\xff\x00\x00\x00\x00\x00\x01\x00\x00abcd", True, (14, 65536)),
        (b"", False, (0, 0)),
        (b"\x81", False, (0, 0)),
        (b"\x81\x7e\x00", False, (0, 0)),
        (b"\x81\x85abc", True, (0, 0)),
        (b"\x83\x05", False, (-1, 0)),  # a reserved opcode
        (b"\x09\x05", False, (-1, 0)),  # a control frame in fragments
        (b"\x81\x85abcd", False, (-1, 0)),  # a server masks
        (b"\x81\x05", True, (-1, 0)),  # a client does not
        (b"\x81\x7e\x00\x7d", False, (-1, 0)),  # said too long
        (b"\x81\x7f\x00\x00\x00\x00\x00\x00\xff\xff", False, (-1, 0)),
        (b"\x81\x7f\x80\x00\x00\x00\x00\x01\x00\x00", False, (-1, 0)),
        (b"\x89\x7e\x00\x7e", False, (-1, 0)),  # a long control frame
    ],
)
def test_frame_headers(data: bytes, masked: bool, expected: tuple[int, int]) -> None:
    assert frame_header(data, 0, masked, FIRSTS) == expected
    assert frame_header(b"xx" + data, 2, masked, FIRSTS) == expected


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 1024, 1025, 5000])
def test_unmasking_goes_on_at_any_offset(size: int) -> None:
    payload = bytes(range(256)) * 20
    masked = bytes(byte ^ KEY[at % 4] for at, byte in enumerate(payload))
    for offset in range(6):
        assert unmask(masked[offset : offset + size], KEY, offset) == payload[offset : offset + size]


# --- messages --------------------------------------------------------------------------------------------------------


def test_a_text_is_one_message_with_its_sizes_and_origin() -> None:
    talk = Talk(upgraded())
    talk.shared.processes[10] = Process(10, 1, "a", "a")
    assert talk.feed(CLIENT, frame(b"hello", key=KEY)) == "recorded"
    message = talk.one()
    assert (message.body, message.body_bytes, message.stream_bytes) == (b"hello", 5, 11)
    assert (message.direction, message.number, message.position, message.request) == (CLIENT, 7, 1000, None)
    assert (message.pid, message.tid, message.time_ns, message.end_ns) == (10, 11, 1_000_000, 1_000_000)
    assert message.process is talk.shared.processes[10]
    assert message.completeness is Completeness.COMPLETE
    assert said(message) == Said("text")
    head = message.head
    assert (head.version, head.method, head.status, head.fields.headers) == ("websocket", "", 0, ())
    assert talk.rows == {"recorded": 11}


def test_several_messages_in_one_segment_and_one_in_several() -> None:
    talk = Talk(upgraded())
    three = frame(b"a") + frame(b"\xff\xfe", 0x82) + frame(b"")
    talk.feed(SERVER, three[:-1])
    talk.feed(SERVER, three[-1:] + frame(b"x" * 300)[:2])
    talk.feed(SERVER, frame(b"x" * 300)[2:100], frame(b"x" * 300)[100:])
    got = [(m.body, said(m).opcode, m.position, m.time_ns // 10**6, m.end_ns // 10**6) for m in talk.take()]
    assert got == [
        (b"a", "text", 2**32 - 5, 1, 1),
        (b"\xff\xfe", "binary", 2**32 - 2, 1, 1),
        (b"", "text", 2, 1, 2),  # positions wrap
        (b"x" * 300, "text", 4, 2, 4),
    ]
    assert talk.rows == {"recorded": talk.fed}


def test_fragments_are_joined_and_control_frames_between_them_are_messages() -> None:
    talk = Talk(upgraded())
    talk.feed(
        CLIENT, frame(b"one ", 0x01, KEY), frame(b"?", 0x89, KEY) + frame(b"two ", 0x00, KEY), frame(b"3", 0x80, KEY)
    )
    ping, text = talk.take()
    assert (said(ping).opcode, ping.body, ping.stream_bytes) == ("ping", b"?", 7)
    assert (said(text).opcode, text.body, text.body_bytes, text.stream_bytes) == ("text", b"one two 3", 9, 27)
    assert (text.time_ns, text.end_ns) == (1_000_000, 3_000_000)
    assert talk.rows == {"recorded": talk.fed}


@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [
        (b"", None, None),
        (b"\x03", None, None),
        (b"\x03\xe8", 1000, None),
        (b"\x0f\xa0bye \xc3\xa9", 4000, "bye é"),
        (b"\x03\xe9\xff", 1001, None),
    ],
)
@pytest.mark.parametrize("body_limit", [0, 4096])
@pytest.mark.parametrize("cut", [0, 3])
def test_close_frames(payload: bytes, code: int | None, reason: str | None, body_limit: int, cut: int) -> None:
    talk = Talk(upgraded(), body_limit=body_limit)
    data = frame(payload, 0x88, KEY)
    talk.feed(CLIENT, data[:cut], data[cut:])
    message = talk.one()
    assert said(message) == Said("close", code, reason)
    assert message.body == payload[:body_limit]
    assert (message.completeness is Completeness.TRUNCATED) == (len(payload) > body_limit)


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_long_body_is_cut_at_the_limit_and_counted_in_full(pieces: int) -> None:
    talk = Talk(upgraded(), body_limit=10)
    for size, completeness in (
        (10, Completeness.COMPLETE),
        (11, Completeness.TRUNCATED),
        (70000, Completeness.TRUNCATED),
    ):
        data = frame(bytes(range(200)) * 350, key=KEY) if size == 70000 else frame(bytes(range(size)), key=KEY)
        step = -(-len(data) // pieces)
        talk.feed(CLIENT, *(data[at : at + step] for at in range(0, len(data), step)))
        message = talk.one()
        assert (message.body, message.body_bytes, message.completeness) == (bytes(range(10)), size, completeness)
        assert message.stream_bytes == len(data)


def test_text_that_is_not_utf_8_is_kept_as_it_is() -> None:
    talk = Talk(upgraded())
    talk.feed(SERVER, frame(b"\xff\xfe"))
    assert talk.one().body == b"\xff\xfe"


# --- permessage-deflate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extensions", [(DEFLATE,), (NO_TAKEOVER,), ("PerMessage-Deflate ; server_max_window_bits=10",), None]
)
def test_compressed_messages_are_inflated(extensions: tuple[str, ...] | None) -> None:
    talk = Talk(None if extensions is None else upgraded(*extensions))
    for _ in range(3):
        payload = deflated(b"hello " * 30)
        talk.feed(CLIENT, frame(payload, 0xC1, KEY))
        message = talk.one()
        assert (message.body, message.body_bytes) == (b"hello " * 30, len(payload))
        assert (said(message), message.completeness) == (Said("text", inflated=True), Completeness.COMPLETE)


def test_the_window_goes_on_from_message_to_message_also_behind_uncompressed_ones() -> None:
    talk = Talk(upgraded(DEFLATE))
    compressor = zlib.compressobj(wbits=-15)
    first, second = deflated(b"something to repeat", compressor), deflated(b"something to repeat", compressor)
    assert len(second) < len(first) / 2
    talk.feed(SERVER, frame(first, 0xC1) + frame(b"plain"), frame(second, 0xC1))
    assert [message.body for message in talk.take()] == [b"something to repeat", b"plain", b"something to repeat"]


@pytest.mark.parametrize("extensions", [DEFLATE, NO_TAKEOVER])
def test_what_is_inflated_is_cut_at_the_limit_and_the_next_message_is_right(extensions: str) -> None:
    talk = Talk(upgraded(extensions), body_limit=100)
    compressor = zlib.compressobj(wbits=-15)
    for size, completeness in (
        (100, Completeness.COMPLETE),
        (101, Completeness.TRUNCATED),
        (400_000, Completeness.TRUNCATED),
    ):
        payload = deflated(b"a" * size, compressor if extensions is DEFLATE else None)
        talk.feed(SERVER, frame(payload, 0xC2))
        message = talk.one()
        assert (message.body, message.completeness, message.body_bytes) == (b"a" * 100, completeness, len(payload))


def test_final_blocks_are_inflated() -> None:
    # RFC 7692, section 7.2.3.4
    talk = Talk(upgraded(DEFLATE))
    payload = bytes.fromhex("f348cdc9c9070000")
    talk.feed(SERVER, frame(payload, 0xC1), frame(payload, 0xC1), frame(deflated(b"again"), 0xC1))
    assert [message.body for message in talk.take()] == [b"Hello", b"Hello", b"again"]


def test_data_that_cannot_be_inflated_has_no_body() -> None:
    talk = Talk(upgraded(DEFLATE))
    talk.feed(SERVER, frame(b"\xff\xff\xff", 0xC1), frame(deflated(b"good"), 0xC1))
    bad, good = talk.take()
    assert (bad.body, bad.body_bytes, bad.completeness) == (b"", 3, Completeness.TRUNCATED)
    assert (good.body, good.completeness) == (b"good", Completeness.COMPLETE)


def test_many_final_blocks_are_not_followed() -> None:
    talk = Talk(upgraded(DEFLATE))
    began = time.process_time()
    talk.feed(SERVER, frame(b"\x03\x00" * 500_000, 0xC2))
    assert time.process_time() - began < 0.5
    assert talk.one().completeness is Completeness.TRUNCATED


@pytest.mark.parametrize("extensions", [DEFLATE, NO_TAKEOVER])
@pytest.mark.parametrize("step", [1 << 24, 1500])
def test_a_deflate_bomb_costs_no_more_than_the_bound(extensions: str, step: int) -> None:
    compressor = zlib.compressobj(9, wbits=-15)
    # A GiB of zeros: a MiB that refers to nothing before it, again and again.
    bomb = (compressor.compress(bytes(1 << 20)) + compressor.flush(zlib.Z_FULL_FLUSH)) * 1024
    data = frame(bomb, 0xC2, KEY)
    assert len(data) > 1_000_000
    talk = Talk(upgraded(extensions))
    began = time.process_time()
    talk.feed(CLIENT, *(data[at : at + step] for at in range(0, len(data), step)))
    assert time.process_time() - began < 1
    message = talk.one()
    assert (message.body, message.body_bytes) == (bytes(4096), len(bomb))
    assert message.completeness is Completeness.TRUNCATED
    # Nothing is known of a window that was given up; without one nothing is lost.
    talk.feed(CLIENT, frame(deflated(b"next"), 0xC1, KEY))
    message = talk.one()
    assert message.body == (b"" if extensions is DEFLATE else b"next")
    assert (message.completeness is Completeness.TRUNCATED) == (extensions is DEFLATE)


def test_a_deflate_bomb_takes_little_memory() -> None:
    bomb = deflated(bytes(4 * INFLATED_MAX_BYTES))
    data = frame(bomb, 0xC2)
    talk = Talk(upgraded(DEFLATE))
    tracemalloc.start()
    try:
        talk.feed(SERVER, data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_what_an_unknown_extension_has_done_to_a_message_is_not_shown() -> None:
    talk = Talk(upgraded("x-other; a=1", DEFLATE))
    talk.feed(SERVER, frame(b"???", 0xA1), frame(deflated(b"hidden"), 0xC1), frame(b"plain"))
    got = [(message.body, message.completeness) for message in talk.take()]
    assert got == [(b"", Completeness.TRUNCATED), (b"", Completeness.TRUNCATED), (b"plain", Completeness.COMPLETE)]


# --- what is no WebSocket --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        frame(b"x", 0x83),  # a reserved opcode
        frame(b"x", 0xC1),  # compressed, which nobody agreed to
        frame(b"x", 0x81, KEY),  # a server masks
        frame(b"x", 0x80),  # goes on with nothing
    ],
)
def test_behind_an_error_is_nothing_until_a_segment_of_frames(wrong: bytes) -> None:
    talk = Talk(upgraded())
    assert talk.feed(SERVER, frame(b"a") + wrong + frame(b"b")) == "recorded"
    assert talk.feed(SERVER, b"rubbish") == "unparsed"
    assert talk.feed(SERVER, frame(b"c")) == "recorded"
    assert [message.body for message in talk.take()] == [b"a", b"c"]
    assert talk.rows == {"recorded": 6, "unparsed": talk.fed - 6}


def test_a_message_under_way_ends_at_an_error() -> None:
    talk = Talk(upgraded())
    talk.feed(SERVER, frame(b"begun", 0x01), frame(b"another", 0x01))
    message = talk.one()
    assert (message.body, message.completeness) == (b"begun", Completeness.PARTIAL)
    assert talk.rows == {"partial": 7, "unparsed": 9}


def test_an_error_of_one_side_is_not_the_others() -> None:
    talk = Talk(upgraded())
    talk.feed(SERVER, b"rubbish")
    talk.feed(CLIENT, frame(b"fine", key=KEY))
    assert talk.one().body == b"fine"


def test_it_is_lost_when_nothing_can_be_read_for_long() -> None:
    talk = Talk(upgraded())
    talk.feed(CLIENT, *[b"rubbish"] * (STRANGE_SEGMENTS_MAX - 1))
    assert not talk.is_lost()
    talk.feed(SERVER, b"rubbish")
    assert talk.is_lost()
    talk = Talk(upgraded())
    talk.feed(SERVER, frame(b"a"), *[b"rubbish"] * (LOST_SEGMENTS_MAX - 1))
    assert not talk.is_lost()
    talk.feed(SERVER, frame(b"a"), *[b"rubbish"] * (LOST_SEGMENTS_MAX - 1))
    assert not talk.is_lost()
    talk.feed(SERVER, b"rubbish")
    assert talk.is_lost()


# --- joined late -----------------------------------------------------------------------------------------------------


def test_joined_late_a_text_that_fills_a_segment_is_believed() -> None:
    talk = Talk(upgraded(), fresh=False)
    talk.feed(SERVER, b"the end of something", frame("é".encode()))
    talk.feed(CLIENT, frame(b"hello", key=KEY))
    assert [message.body for message in talk.take()] == ["é".encode(), b"hello"]
    assert talk.rows["unparsed"] == 20


def test_joined_late_a_single_binary_is_believed_with_the_next() -> None:
    talk = Talk(upgraded(), fresh=False)
    assert talk.feed(SERVER, frame(b"\x00\x01", 0x82)) == "unparsed"
    assert not talk.take()
    assert not talk.rows
    assert talk.feed(SERVER, frame(b"\x02", 0x82)) == "recorded"
    assert [(message.body, message.time_ns) for message in talk.take()] == [
        (b"\x00\x01", 1_000_000),
        (b"\x02", 2_000_000),
    ]
    talk = Talk(upgraded(), fresh=False)
    talk.feed(SERVER, frame(b"\x00\x01", 0x82))
    talk.end()
    assert not talk.take()
    assert talk.rows == {"unparsed": 4}


@pytest.mark.parametrize(
    "data",
    [
        frame(b"\xff\xff"),  # text, but not UTF-8
        frame(b"a") + b"\x81",  # not to the end
        b"\x00" * 64,  # continuations, one after the other
        frame(b"a", 0x01) + frame(b"b", 0x01),
        frame(b"a") + frame(b"b", 0x80),
        frame(b"a" * 70000)[:-1],
        frame(b"") + frame(b"", 0x89),  # nothing in it
        frame(b"", 0x01) + frame(b"a", 0x89) + frame(b"b", 0x89),
        frame(b"\x00\x01bye", 0x88) + frame(b"a", 0x89),  # a code that nobody sends
        frame(b"\x03\xe8\xff", 0x88) + frame(b"a", 0x89),
        frame(b"\x03", 0x88) + frame(b"a", 0x89),
    ],
)
def test_joined_late_what_may_be_chance_is_no_message(data: bytes) -> None:
    talk = Talk(upgraded(), fresh=False)
    talk.feed(SERVER, data)
    talk.end()
    assert not talk.take()
    assert talk.rows == {"unparsed": len(data)}


def test_joined_late_a_first_frame_that_ends_inside_of_a_segment_is_not_believed() -> None:
    """What looks like a frame, in the middle of another one, may end just where that one ends."""
    talk = Talk(upgraded(), fresh=False)
    inside = frame(frame(b"?", 0x82), 0x82)[2:]
    talk.feed(SERVER, inside + frame(b"second", 0x82) + frame(b"third", 0x82))
    assert [message.body for message in talk.take()] == [b"second", b"third"]
    assert talk.rows == {"unparsed": len(inside), "recorded": len(frame(b"second") + frame(b"third"))}


def test_joined_late_between_fragments_only_whole_messages_come() -> None:
    talk = Talk(upgraded(), fresh=False)
    talk.feed(SERVER, frame(b"", 0x89) + frame(b"rest of", 0x00) + frame(b" it", 0x80) + frame(b"whole"))
    # Not the ping: it may be the middle of a frame that ends there.
    assert [message.body for message in talk.take()] == [b"whole"]
    assert talk.rows == {"recorded": 7, "unparsed": 16}


def test_joined_late_a_message_that_was_not_seen_ends_once() -> None:
    talk = Talk(upgraded(), fresh=False)
    talk.feed(SERVER, frame(b"?", 0x89) + frame(b"rest", 0x80))
    assert talk.feed(SERVER, frame(b"no more", 0x80) + frame(b"lost")) == "unparsed"
    talk.feed(SERVER, frame(b"found"))
    assert [message.body for message in talk.take()] == [b"found"]
    assert talk.rows == {"recorded": 7, "unparsed": talk.fed - 7}


def test_joined_late_a_compressed_message_has_a_body_only_where_it_stands_alone() -> None:
    talk = Talk(upgraded(DEFLATE), fresh=False)
    compressor = zlib.compressobj(wbits=-15)
    deflated(b"something to repeat", compressor)
    needs = deflated(b"something to repeat", compressor)
    talk.feed(SERVER, frame(needs, 0xC1), frame(b"plain"), frame(deflated(b"alone"), 0xC1))
    got = [(message.body, message.body_bytes, message.completeness) for message in talk.take()]
    assert got[0] == (b"", len(needs), Completeness.TRUNCATED)
    assert got[1][0] == b"plain"
    assert got[2] == (b"alone", 7, Completeness.COMPLETE)


# --- bytes that nobody saw -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reason", "row"), [("ring_full", "gap"), ("sendfile", "recorded")])
def test_a_gap_inside_of_a_payload(reason: str, row: str) -> None:
    talk = Talk(upgraded())
    data = frame(b"abcdefghij", 0x82, KEY)
    talk.feed(CLIENT, data[:9])
    talk.missing(CLIENT, 4, reason)
    talk.feed(CLIENT, data[13:] + frame(b"next", key=KEY))
    gap, following = talk.take()
    assert (gap.body, gap.body_bytes, gap.stream_bytes) == (b"abc", 10, 16)
    assert (gap.completeness, gap.missing_bytes, gap.missing_reason) == (Completeness.GAP, 4, reason)
    assert (following.body, following.position) == (b"next", 1016)
    expected = {"recorded": 10}
    expected[row] = expected.get(row, 0) + 12
    assert talk.rows == expected


def test_what_is_over_the_limit_of_a_payload_truncates_it() -> None:
    talk = Talk(upgraded())
    data = frame(b"abcdefghij", 0x82, KEY)
    talk.feed(CLIENT, data[:9])
    talk.missing(CLIENT, 4, "budget")
    talk.feed(CLIENT, data[13:])
    (message,) = talk.take()
    assert (message.body, message.body_bytes, message.stream_bytes) == (b"abc", 10, 16)
    assert (message.completeness, message.missing_bytes, message.missing_reason) == (Completeness.TRUNCATED, 0, "")
    assert talk.rows == {"recorded": 12}


def test_a_gap_to_the_very_end_of_a_payload_leaves_the_framing() -> None:
    talk = Talk(upgraded())
    talk.feed(SERVER, frame(b"abc")[:3])
    talk.missing(SERVER, 2)
    talk.feed(SERVER, frame(b"next")[:1], frame(b"next")[1:])
    assert [(message.body, message.missing_bytes) for message in talk.take()] == [(b"a", 2), (b"next", 0)]


def test_a_gap_over_the_end_of_a_message_leaves_its_sizes() -> None:
    talk = Talk(upgraded())
    talk.feed(SERVER, frame(b"abc")[:3])
    talk.missing(SERVER, 50)
    message = talk.one()
    assert (message.body, message.body_bytes, message.stream_bytes, message.missing_bytes) == (b"a", 3, 5, 2)
    talk.feed(SERVER, b"rest of another", frame(b"next"))
    assert talk.one().body == b"next"
    assert talk.rows == {"gap": 3, "unparsed": 15, "recorded": 6}


def test_a_gap_between_fragments_ends_the_message() -> None:
    talk = Talk(upgraded())
    talk.feed(SERVER, frame(b"one", 0x01) + b"\x00")
    talk.missing(SERVER, 9)
    message = talk.one()
    assert (message.body, message.body_bytes, message.completeness) == (b"one", 3, Completeness.GAP)
    assert (message.missing_bytes, message.missing_reason) == (9, "unknown")
    assert talk.rows == {"gap": 5, "unparsed": 1}


def test_a_gap_in_a_close_frame_leaves_its_code() -> None:
    talk = Talk(upgraded())
    talk.feed(SERVER, frame(b"\x03\xe8because", 0x88)[:6])
    talk.missing(SERVER, 5)
    assert said(talk.one()) == Said("close", 1000)


def test_behind_a_gap_the_window_is_not_known() -> None:
    talk = Talk(upgraded(DEFLATE))
    compressor = zlib.compressobj(wbits=-15)
    payloads = [deflated(b"something to repeat", compressor) for _ in range(3)]
    data = frame(payloads[1], 0xC1)
    talk.feed(SERVER, frame(payloads[0], 0xC1), data[:-2])
    talk.missing(SERVER, 1)
    talk.feed(SERVER, data[-1:], frame(payloads[2], 0xC1))
    _, gap, after = talk.take()
    assert (gap.completeness, gap.body_bytes) == (Completeness.GAP, len(payloads[1]))
    assert b"something to repeat".startswith(gap.body)
    assert (after.body, after.body_bytes, after.completeness) == (b"", len(payloads[2]), Completeness.TRUNCATED)


@pytest.mark.parametrize("lost_by_error", [False, True])
def test_where_messages_may_be_missing_the_window_is_not_known(lost_by_error: bool) -> None:
    talk = Talk(upgraded(DEFLATE))
    compressor = zlib.compressobj(wbits=-15)
    first, second, third = (deflated(b"to repeat: %d" % n * 9, compressor) for n in (1, 2, 2))
    talk.feed(SERVER, frame(first, 0xC1))
    if lost_by_error:
        talk.feed(SERVER, b"\xff" + frame(second, 0xC1))
    else:
        talk.missing(SERVER, len(frame(second, 0xC1)))
    talk.feed(SERVER, frame(third, 0xC1), frame(b"plain"))
    _, repeated, plain = talk.take()
    assert (repeated.body, repeated.body_bytes, repeated.completeness) == (b"", len(third), Completeness.TRUNCATED)
    assert plain.body == b"plain"


# --- time and ends ---------------------------------------------------------------------------------------------------


def test_a_long_message_gives_one_interim_record() -> None:
    talk = Talk(upgraded())
    assert not talk.waits()
    talk.feed(SERVER, frame(b"abcdef")[:4])
    assert talk.waits()
    talk.conversation.tick(talk.now_ns + talk.shared.stream_interval_ns)
    assert not talk.take()
    talk.conversation.tick(talk.now_ns + talk.shared.stream_interval_ns + 1)
    interim = talk.one()
    assert (interim.completeness, interim.body, said(interim).opcode) == (Completeness.OPEN, b"ab", "text")
    assert not talk.waits()
    talk.conversation.tick(talk.now_ns + 9 * talk.shared.stream_interval_ns)
    assert not talk.take()
    talk.feed(SERVER, b"cdef")
    final = talk.one()
    assert (final.completeness, final.body, final.position) == (Completeness.COMPLETE, b"abcdef", interim.position)
    assert (interim.body, interim.body_bytes) == (b"ab", 2)


def test_without_an_interval_there_is_no_interim_record() -> None:
    talk = Talk(upgraded())
    talk.shared.stream_interval_ns = 0
    talk.feed(SERVER, frame(b"abcdef")[:4])
    assert not talk.waits()
    talk.conversation.tick(10**15)
    assert not talk.take()


def test_what_is_under_way_at_the_end_is_partial() -> None:
    talk = Talk(upgraded())
    talk.feed(SERVER, frame(b"one", 0x01) + frame(b"pong", 0x8A)[:4])
    talk.feed(CLIENT, b"\x81\x85")
    talk.end()
    got = [(said(m).opcode, m.body, m.completeness) for m in talk.take()]
    assert got == [("pong", b"po", Completeness.PARTIAL), ("text", b"one", Completeness.PARTIAL)]
    assert talk.rows == {"partial": 9, "unparsed": 2}
    talk.end()
    assert talk.rows == {"partial": 9, "unparsed": 2}


def test_wsproto_agrees_on_what_it_sends() -> None:
    extension = PerMessageDeflate()
    extension.finalize(DEFLATE)
    sender = FrameProtocol(client=True, extensions=[extension])
    talk = Talk(upgraded(DEFLATE))
    talk.feed(CLIENT, bytes(sender.send_data("héllo", fin=False) + sender.ping(b"?") + sender.send_data(" you")))
    talk.feed(CLIENT, bytes(sender.close(1001, "gone")))
    got = [(said(message).opcode, message.body) for message in talk.take()]
    assert got == [("ping", b"?"), ("text", "héllo you".encode()), ("close", b"\x03\xe9gone")]
