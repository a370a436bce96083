"""HTTP/2: each rule of framing, of streams and of what is not known, by one small conversation."""

from __future__ import annotations

import time
from dataclasses import asdict

import pytest

from netprofiler.exchange import Completeness, Grpc, Message, Role
from netprofiler.protocols import http2
from netprofiler.protocols.http2 import PREFACE, looks_like_frames
from tests.unit.protocols.http2_frames import (
    RECV,
    SEND,
    Talk,
    data,
    go_away,
    headers,
    literal,
    ping,
    priority,
    request,
    reset,
    response,
    settings,
    settings_ack,
    window_update,
)

GET = headers(1, literal(request()), ends=True)
POST = headers(1, literal(request("/up", "POST")))
OK = headers(1, literal(response()))


def only(messages: list[Message]) -> Message:
    assert len(messages) == 1
    return messages[0]


def pair(messages: list[Message]) -> tuple[Message, Message]:
    assert [message.head.is_request for message in messages] == [True, False]
    return messages[0], messages[1]


# --- a message -------------------------------------------------------------------------------------------------------


def test_a_message_says_all_that_was_sent() -> None:
    talk = Talk()
    block = literal(request("/p?q=1", "POST", ("content-encoding", "gzip, br"), ("content-length", "5"), ("x", "y")))
    frames = headers(1, block)
    begin = talk.positions[SEND]
    assert talk.say(SEND, frames + data(1, b"he"), tid=71) == "recorded"
    assert talk.say(SEND, data(1, b"llo", ends=True), tid=72) == "recorded"
    message = only(talk.take())
    head, fields = message.head, message.head.fields
    assert (head.is_request, head.version, head.method, head.target, head.status) == (
        True,
        "HTTP/2",
        "POST",
        "/p?q=1",
        0,
    )
    assert (head.reason, head.start_line, head.plain_length, head.size) == ("", "", -1, len(frames))
    assert fields.headers[:2] == ((":scheme", "http"), (":authority", "a"))
    assert fields.headers[2:] == (("content-encoding", "gzip, br"), ("content-length", "5"), ("x", "y"))
    assert (fields.content_encoding, fields.content_length, fields.raw, fields.unknown) == (("gzip", "br"), 5, "", 0)
    assert (message.body, message.body_bytes) == (b"hello", 5)
    assert message.stream_bytes == len(frames) + 9 + 2 + 9 + 3
    assert message.process is talk.shared.processes[7]
    assert (message.pid, message.tid, message.position) == (7, 71, begin)
    assert (message.time_ns, message.end_ns) == (3000, 4000)
    assert (message.number, message.direction, message.link) == (1, SEND, talk.link)
    assert message.completeness is Completeness.COMPLETE
    assert talk.row("recorded") == message.stream_bytes


def test_a_response_answers_the_request_of_its_stream_whatever_the_order() -> None:
    talk = Talk()
    for stream in (1, 3, 5):
        talk.ask(headers(stream, literal(request(f"/{stream}")), ends=True))
    for stream in (5, 1, 3):
        talk.answer(headers(stream, literal(response(200, ("x-of", str(stream)))), ends=True))
    answers = talk.end()[3:]
    assert [(each.request.head.target, each.head.fields.headers) for each in answers if each.request] == [
        (f"/{stream}", (("x-of", str(stream)),)) for stream in (5, 1, 3)
    ]
    assert [each.number for each in answers] == [3, 1, 2]


def test_connect_has_its_authority_as_target() -> None:
    talk = Talk()
    talk.ask(headers(1, literal([(":method", "CONNECT"), (":authority", "a:443")])))
    assert only(talk.end()).head.target == "a:443"


def test_an_extended_connect_has_its_path_as_target_and_shows_its_protocol() -> None:
    talk = Talk()
    fields = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/ws")]
    talk.ask(headers(1, literal(fields)))
    head = only(talk.end()).head
    assert (head.target, head.fields.headers) == ("/ws", ((":protocol", "websocket"), (":scheme", "http")))


def test_a_body_over_the_limit_is_truncated() -> None:
    talk = Talk(body_limit=4)
    talk.ask(POST + data(1, b"abc") + data(1, b"defg") + data(1, b"", ends=True))
    message = only(talk.end())
    assert (message.body, message.body_bytes, message.completeness) == (b"abcd", 7, Completeness.TRUNCATED)


def test_equal_heads_are_one_object() -> None:
    talk = Talk()
    block = talk.asking(request())
    talk.ask(headers(1, block, ends=True))
    for stream in (3, 5):
        talk.ask(headers(stream, talk.asking(request()), ends=True))
    first, second, third = talk.end()
    assert second.head is third.head
    assert first.head.fields is second.head.fields


def test_the_same_bytes_mean_something_else_when_the_table_has_changed() -> None:
    talk = Talk()
    again = b"\x82\x86\x84\xbe"
    talk.ask(headers(1, b"\x82\x86\x84\x40\x01a\x011", ends=True) + headers(3, again, ends=True))
    talk.ask(headers(5, b"\x82\x86\x84\x40\x01b\x012", ends=True) + headers(7, again, ends=True))
    assert [each.head.fields.headers[-1] for each in talk.end()] == [("a", "1"), ("a", "1"), ("b", "2"), ("b", "2")]


def test_a_head_has_the_size_of_the_frames_that_it_came_in() -> None:
    talk = Talk()
    block = literal(request())
    plain, weighty = headers(1, block, ends=True), headers(3, block, ends=True, weight=3)
    again = headers(5, block, ends=True)
    talk.ask(plain + weighty + again)
    assert [message.head.size for message in talk.end()] == [len(plain), len(weighty), len(plain)]


# --- frames ----------------------------------------------------------------------------------------------------------


def test_padding_is_counted_and_is_no_body() -> None:
    talk = Talk()
    frames = headers(1, literal(request()), padding=10, weight=3) + data(1, b"abc", padding=200, ends=True)
    talk.ask(frames)
    message = only(talk.end())
    assert (message.body, message.body_bytes, message.stream_bytes) == (b"abc", 3, len(frames))


@pytest.mark.parametrize("padding", [None, 0, 4])
def test_frames_in_single_bytes_are_the_same_frames(padding: int | None) -> None:
    talk = Talk()
    frames = headers(1, literal(request()), pieces=3, padding=padding) + data(1, b"abc", padding=padding, ends=True)
    for at in range(len(frames)):
        talk.say(SEND, frames[at : at + 1], tid=100 + at)
    message = only(talk.end())
    assert (message.body, message.stream_bytes, message.tid) == (b"abc", len(frames), 100)
    assert (message.time_ns, message.end_ns) == (3000, 2000 + 1000 * len(frames))


def test_the_first_byte_of_a_frame_says_when_and_by_whom() -> None:
    talk = Talk()
    talk.say(SEND, ping() + GET[:4], tid=71)
    begin = talk.positions[SEND] - 4
    talk.say(SEND, GET[4:], tid=72)
    message = only(talk.end())
    assert (message.tid, message.position, message.time_ns, message.end_ns) == (71, begin, 3000, 4000)


def test_what_follows_a_split_frame_in_its_last_segment_belongs_to_that_segment() -> None:
    talk = Talk()
    last = data(1, b"x", ends=True)
    talk.say(SEND, POST + last[:4], tid=71)
    talk.say(SEND, last[4:] + headers(3, literal(request()), ends=True), tid=72)
    assert [(message.tid, message.time_ns) for message in talk.end()] == [(71, 3000), (72, 4000)]


def test_a_position_wraps() -> None:
    talk = Talk(base=2**32 - 2 - len(PREFACE + settings()))
    talk.ask(ping() + GET)
    assert only(talk.end()).position == len(ping()) - 2


def test_a_header_block_may_come_in_many_frames() -> None:
    talk = Talk()
    frames = headers(1, literal(request("/" + "x" * 100)), ends=True, pieces=40)
    talk.ask(frames)
    message = only(talk.end())
    assert (message.head.target, message.stream_bytes, message.head.size) == ("/" + "x" * 100, len(frames), len(frames))


def test_frames_that_are_no_message_are_counted_as_control() -> None:
    talk = Talk()
    before = talk.row("control")
    assert before == len(PREFACE + settings() * 2)
    frames = settings_ack() + ping() + window_update() + window_update(1) + priority(1) + go_away(2**31 - 1)
    unknown = b"\0\0\3\xf0\xff\0\0\0\1abc"
    assert talk.ask(frames + unknown + reset(9)) == "control"
    talk.ask(unknown[:5])
    talk.ask(unknown[5:])
    assert talk.row("control") == before + len(frames + unknown * 2 + reset(9))
    assert talk.end() == []


def test_a_frame_of_a_megabyte_is_followed() -> None:
    talk = Talk()
    body = bytes(1 << 20)
    frames = POST + (1 << 20).to_bytes(3, "big") + b"\0\1\0\0\0\1" + body
    for at in range(0, len(frames), 16384):
        talk.ask(frames[at : at + 16384])
    message = only(talk.end())
    assert (message.body_bytes, message.stream_bytes) == (1 << 20, len(frames))


def test_the_table_follows_the_updates_in_the_stream_whatever_the_settings() -> None:
    talk = Talk()
    talk.answer(settings({1: 100}))
    talk.encoders[SEND].header_table_size = 100
    for stream in (1, 3, 5, 7):
        talk.ask(headers(stream, talk.asking(request("/", "GET", (f"x-{stream}", "y" * 40), ("x-a", "b"))), ends=True))
    assert [each.head.fields.headers[2:] for each in talk.end()] == [
        ((f"x-{stream}", "y" * 40), ("x-a", "b")) for stream in (1, 3, 5, 7)
    ]


# --- streams ---------------------------------------------------------------------------------------------------------


def test_trailers_end_a_message() -> None:
    talk = Talk()
    talk.ask(GET)
    answer = OK + data(1, b"abc") + headers(1, literal([("x-sum", "1"), ("x-sum", "2")]), ends=True)
    talk.answer(answer)
    _, message = pair(talk.end())
    assert message.trailers == (("x-sum", "1"), ("x-sum", "2"))
    assert (message.completeness, message.stream_bytes) == (Completeness.COMPLETE, len(answer))


def test_interim_responses_are_records_of_their_own() -> None:
    talk = Talk()
    talk.ask(GET)
    early = headers(1, literal(response(103, ("link", "l"))))
    talk.answer(early + OK + data(1, b"x", ends=True))
    asked, interim, final = talk.end()
    assert (interim.head.status, interim.request, interim.stream_bytes) == (103, asked, len(early))
    assert (final.head.status, final.request, final.body) == (200, asked, b"x")
    assert asked.number == interim.number == final.number


def test_a_push_is_a_request_of_the_server_and_pairs_with_its_response() -> None:
    talk = Talk()
    talk.ask(GET)
    talk.answer(headers(1, literal(request("/style")), promised=2) + OK + data(1, b"", ends=True))
    talk.answer(headers(2, literal(response())) + data(2, b"css", ends=True))
    asked, promised, _, pushed = talk.end()
    assert (promised.head.is_request, promised.head.target, promised.direction) == (True, "/style", RECV)
    assert (pushed.request, pushed.body, pushed.direction) == (promised, b"css", RECV)
    assert pushed.number == promised.number != asked.number


def test_a_reset_makes_what_is_under_way_partial() -> None:
    talk = Talk()
    talk.ask(GET)
    talk.answer(OK + data(1, b"abc"))
    talk.ask(reset(1))
    asked, answered = pair(talk.take())
    assert asked.completeness is Completeness.COMPLETE
    assert (answered.completeness, answered.body) == (Completeness.PARTIAL, b"abc")
    assert talk.row("partial") == answered.stream_bytes
    before = talk.row("control")
    late = data(1, b"late") + headers(1, literal(response()), ends=True)
    talk.answer(late)
    assert talk.end() == []
    assert talk.shared.counters.unpaired == 0
    assert (talk.row("control") - before, talk.row("unparsed")) == (len(late), 0)


def test_what_was_read_to_its_length_is_whole_when_it_is_reset() -> None:
    """curl does not wait for the end of the stream."""
    talk = Talk()
    talk.ask(GET)
    talk.answer(headers(1, literal([*response(), ("content-length", "3")])) + data(1, b"abc"))
    talk.ask(reset(1))
    _, answered = pair(talk.take())
    assert (answered.completeness, answered.body) == (Completeness.COMPLETE, b"abc")
    assert talk.row("partial") == 0
    talk.answer(data(1, b"", ends=True))
    assert talk.end() == []
    assert talk.row("unparsed") == 0


@pytest.mark.parametrize(
    ("lengths", "completeness"),
    [(["3", "3"], Completeness.COMPLETE), (["3, 3"], Completeness.COMPLETE), (["5", "3"], Completeness.PARTIAL)],
    ids=str,
)
def test_of_several_lengths_none_counts_but_where_they_are_the_same(
    lengths: list[str], completeness: Completeness
) -> None:
    """RFC 9110, section 8.6."""
    talk = Talk()
    talk.ask(GET)
    fields = [("content-length", length) for length in lengths]
    talk.answer(headers(1, literal([*response(), *fields])) + data(1, b"abc"))
    talk.ask(reset(1))
    _, answered = pair(talk.take())
    assert (answered.completeness, answered.body) == (completeness, b"abc")


def test_a_reset_before_any_answer_leaves_the_request_alone() -> None:
    talk = Talk()
    talk.ask(GET)
    talk.answer(reset(1))
    talk.answer(headers(1, literal(response()), ends=True))
    assert only(talk.end()).completeness is Completeness.COMPLETE


def test_a_goaway_ends_the_streams_that_will_not_be_served() -> None:
    talk = Talk()
    talk.ask(POST + headers(3, literal(request("/3", "POST"))))
    talk.answer(go_away(1))
    assert [(each.head.target, each.completeness) for each in talk.take()] == [("/3", Completeness.PARTIAL)]
    talk.ask(data(1, b"", ends=True))
    talk.answer(OK + data(1, b"", ends=True))
    assert [each.completeness for each in talk.end()] == [Completeness.COMPLETE] * 2


def test_a_clients_goaway_ends_no_stream_of_its_own() -> None:
    talk = Talk()
    talk.ask(POST + go_away(0) + data(1, b"", ends=True))
    talk.answer(OK + data(1, b"", ends=True))
    assert [each.completeness for each in talk.end()] == [Completeness.COMPLETE] * 2


def test_the_end_of_a_direction_makes_what_is_under_way_in_it_partial() -> None:
    talk = Talk()
    talk.ask(POST + data(1, b"ab"))
    talk.http2.end(SEND, 0, finished=True)
    assert (only(talk.take()).completeness, talk.row("partial")) == (Completeness.PARTIAL, len(POST) + 11)
    talk.answer(OK + data(1, b"x", ends=True))
    answered = only(talk.end())
    assert (answered.completeness, answered.request is not None) == (Completeness.COMPLETE, True)


def test_thousands_of_streams_are_open_at_a_time_and_over_the_bound_the_oldest_ends() -> None:
    talk = Talk()
    block = literal(request("/", "POST"))
    for index in range(http2.STREAMS_MAX):
        talk.ask(headers(2 * index + 1, block))
    assert talk.take() == []
    talk.ask(headers(2 * http2.STREAMS_MAX + 1, block))
    oldest = only(talk.take())
    assert (oldest.number, oldest.completeness) == (1, Completeness.PARTIAL)
    assert len(talk.end()) == http2.STREAMS_MAX


def test_a_stream_that_was_used_begins_no_request_again() -> None:
    talk = Talk()
    talk.ask(GET)
    talk.answer(headers(1, literal(response()), ends=True))
    talk.take()
    talk.ask(GET)
    assert talk.end() == []
    assert talk.row("unparsed") == len(GET)


def test_an_upgraded_request_is_answered_on_stream_1() -> None:
    before = Talk()
    before.ask(GET)
    asked = only(before.take())
    asked.number = 4
    talk = Talk(number=4, upgraded=asked)
    talk.answer(OK + data(1, b"up", ends=True))
    talk.ask(headers(3, literal(request()), ends=True))
    answered, more = talk.end()
    assert (answered.request, answered.number, answered.body) == (asked, 4, b"up")
    assert (more.number, talk.http2.count) == (5, 5)


# --- a response before its request -----------------------------------------------------------------------------------


def test_a_response_that_is_seen_before_its_request_waits_for_it() -> None:
    talk = Talk()
    talk.answer(OK + data(1, b"fast", ends=True))
    assert talk.take() == []
    assert talk.http2.waits
    talk.ask(GET)
    asked, answered = pair(talk.end())
    assert (answered.request, answered.number, answered.body) == (asked, asked.number, b"fast")
    assert talk.shared.counters.unpaired == 0


def test_a_response_that_is_under_way_when_its_request_shows_up_pairs_too() -> None:
    talk = Talk()
    talk.answer(OK + data(1, b"fa"))
    talk.ask(GET)
    talk.answer(data(1, b"st", ends=True))
    asked, answered = pair(talk.end())
    assert (answered.request, answered.number) == (asked, asked.number)


def test_an_early_response_whose_stream_the_server_resets_pairs_too() -> None:
    talk = Talk()
    talk.answer(OK + data(1, b"no more") + reset(1))
    talk.ask(POST)
    answered = only(talk.take())
    assert answered.request is not None
    assert (answered.request.head.target, answered.completeness) == ("/up", Completeness.PARTIAL)


def test_a_response_waits_no_longer_than_a_moment() -> None:
    talk = Talk()
    talk.answer(OK + data(1, b"", ends=True))
    talk.http2.tick(talk.now_ns + http2.LATE_NS + 1)
    assert only(talk.take()).request is None
    assert talk.shared.counters.unpaired == 1
    assert not talk.http2.waits


def test_a_servers_response_is_never_early() -> None:
    talk = Talk(client=RECV)
    talk.answer(OK + data(1, b"", ends=True))
    assert only(talk.take()).request is None
    assert talk.shared.counters.unpaired == 1


# --- joined in the middle --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("payload", "direction"), [(GET, SEND), (OK, RECV), (PREFACE + settings(), SEND)])
def test_the_client_is_known_by_what_it_says(payload: bytes, direction: int) -> None:
    talk = Talk(client=None, fresh=False, preface=False)
    talk.link.rendered[1] = "old"
    talk.say(direction, payload)
    assert (talk.link.role, talk.link.rendered) == (Role.CLIENT, {})
    other = Talk(client=None, fresh=False, preface=False)
    other.say(1 - direction, payload)
    assert other.link.role is Role.SERVER


def test_hot_calls_that_are_joined_are_all_there_and_nothing_of_them_is_wrong() -> None:
    talk = Talk(fresh=False, preface=False)
    asked = request("/a.B/C", "POST", ("content-type", "application/grpc"), ("te", "trailers"))
    answered = response(200, ("content-type", "application/grpc"))
    trailers = [("grpc-status", "0")]
    talk.asking(asked), talk.answering(answered), talk.answering(trailers)
    for index in range(23):
        stream = 101 + 2 * index
        talk.ask(headers(stream, talk.asking(asked)) + data(stream, b"\0\0\0\0\0", ends=True))
        end = headers(stream, talk.answering(trailers), ends=True)
        talk.answer(headers(stream, talk.answering(answered)) + data(stream, b"\0\0\0\0\0") + end)
    messages = talk.end()
    assert len(messages) == 46
    for asking, answer in zip(messages[::2], messages[1::2], strict=True):
        assert answer.request is asking
        assert (asking.head.method, asking.head.target, asking.head.fields.headers) == (
            "POST",
            "",
            ((":scheme", "http"),),
        )
        assert asking.head.fields.unknown == 4
        assert (answer.head.status, answer.head.fields.headers, answer.trailers) == (200, (), ())
        assert answer.head.fields.unknown == 2  # content-type and grpc-status
        assert {asking.completeness, answer.completeness} == {Completeness.PARTIAL}
        assert asking.body == answer.body == b"\0\0\0\0\0"


def test_trailers_of_a_response_whose_head_was_not_seen_are_no_message() -> None:
    talk = Talk(fresh=False, preface=False)
    talk.answering([("grpc-status", "0")])
    last = data(7, b"rest") + headers(7, talk.answering([("grpc-status", "0")]), ends=True)
    talk.answer(last + headers(9, literal([("grpc-status", "0")]), ends=True))
    assert talk.end() == []
    assert talk.row("unparsed") == talk.fed


def test_a_response_whose_status_is_not_known_is_there_if_nothing_of_its_stream_was_missed() -> None:
    talk = Talk(fresh=False, preface=False)
    talk.answering(response(302))
    talk.ask(headers(5, literal(request()), ends=True))
    talk.answer(headers(5, talk.answering(response(302)), ends=True))
    asked, answered = pair(talk.end())
    assert (answered.request, answered.head.status, answered.completeness) == (asked, 0, Completeness.PARTIAL)


def test_a_connect_whose_path_is_not_known_has_no_target() -> None:
    talk = Talk(fresh=False, preface=False)
    fields = [(":method", "CONNECT"), (":authority", "a:1"), (":path", "/ws")]
    talk.asking([(":path", "/ws")])
    talk.ask(headers(1, talk.asking(fields)))
    head = only(talk.end()).head
    assert (head.method, head.target, head.fields.unknown) == ("CONNECT", "", 1)


def test_a_preface_in_the_middle_begins_nothing() -> None:
    talk = Talk()
    talk.miss(SEND, 10)
    body = PREFACE + settings() + GET
    assert talk.ask(body) == "unparsed"
    assert talk.end() == []
    assert talk.row("unparsed") == len(body)


def test_what_begins_in_the_middle_of_a_frame_is_not_taken_for_one() -> None:
    talk = Talk(fresh=False, preface=False)
    talk.ask(b"x" * 100)
    talk.ask(GET)
    assert only(talk.end()).head.target == "/"
    assert talk.row("unparsed") == 100


def test_a_long_frame_is_believed_when_another_follows() -> None:
    talk = Talk(fresh=False, preface=False)
    frames = headers(3, literal(request("/", "POST"))) + data(3, b"x" * 10_000)
    talk.ask(frames[:5000])
    talk.ask(frames[5000:] + data(3, b"", ends=True))
    assert only(talk.end()).body_bytes == 10_000


def test_what_may_be_a_long_frame_is_held_up_to_a_bound() -> None:
    talk = Talk(fresh=False, preface=False)
    talk.ask(b"\x0f\xff\xff\0\0\0\0\0\5")
    for _ in range(100):
        talk.ask(b"x" * 10_000)
    assert talk.fed - talk.row("unparsed") <= http2.DOUBTFUL_BYTES_MAX


def test_what_does_not_look_like_http2_for_long_is_lost() -> None:
    talk = Talk(fresh=False, preface=False)
    for _ in range(http2.STRANGE_SEGMENTS_MAX):
        assert not talk.http2.is_lost
        assert talk.ask(b"\x17\x03\x03 something else") == "unparsed"
    assert talk.http2.is_lost
    assert talk.end() == []


def test_a_client_that_begins_with_something_else_is_no_client_of_http2() -> None:
    talk = Talk(preface=False)
    talk.ask(b"GET / HTTP/1.1\r\n\r\n")
    assert talk.end() == []
    assert talk.row("unparsed") == talk.fed


# --- what was missed -------------------------------------------------------------------------------------------------


def test_bytes_missing_inside_of_data_are_a_gap_of_that_message_alone() -> None:
    talk = Talk()
    talk.ask(POST + headers(3, literal(request("/3", "POST"))) + data(1, b"x" * 100)[:59])
    talk.miss(SEND, 30, "ring_full")
    talk.ask(data(1, b"x" * 100)[89:] + data(1, b"", ends=True) + data(3, b"y", ends=True))
    gapped, whole = talk.end()
    assert (gapped.completeness, gapped.missing_bytes, gapped.missing_reason) == (Completeness.GAP, 30, "ring_full")
    assert (gapped.body, gapped.body_bytes, gapped.stream_bytes) == (b"x" * 50, 100, len(POST) + 118)
    assert (whole.completeness, whole.body) == (Completeness.COMPLETE, b"y")
    assert talk.row("gap") == gapped.stream_bytes - 30


def test_bytes_missing_at_the_end_of_a_stream_end_its_message() -> None:
    talk = Talk()
    talk.ask(POST + data(1, b"x" * 100, ends=True)[:59])
    talk.miss(SEND, 50)
    message = only(talk.take())
    assert (message.completeness, message.body_bytes, message.missing_bytes) == (Completeness.GAP, 100, 50)


def test_padding_that_is_missing_makes_no_gap() -> None:
    talk = Talk()
    frames = POST + data(1, b"abc", padding=50, ends=True)
    talk.ask(frames[:-50])
    talk.miss(SEND, 50)
    message = only(talk.take())
    assert (message.completeness, message.body, message.stream_bytes) == (Completeness.COMPLETE, b"abc", len(frames))


def test_a_body_that_a_limit_of_ours_left_uncopied_is_truncated() -> None:
    talk = Talk()
    talk.ask(POST + data(1, b"x" * 100, ends=True)[:59])
    talk.miss(SEND, 50, "budget")
    message = only(talk.end())
    assert (message.completeness, message.body_bytes, message.missing_bytes) == (Completeness.TRUNCATED, 100, 0)


def test_bytes_of_a_sent_file_are_missing_and_the_rest_is_recorded() -> None:
    talk = Talk()
    talk.ask(POST + data(1, b"x" * 100, ends=True)[:9])
    talk.miss(SEND, 100, "sendfile", b"start of it")
    message = only(talk.end())
    assert (message.body, message.body_bytes, message.missing_bytes) == (b"start of it", 100, 100)
    assert (message.completeness, message.missing_reason) == (Completeness.GAP, "sendfile")
    assert talk.row("recorded") == len(POST) + 9


def test_behind_a_gap_between_frames_a_direction_goes_on_without_its_table() -> None:
    talk = Talk()
    talk.ask(headers(1, talk.asking(request("/known", "POST", ("x", "y")))) + data(1, b"ab"))
    talk.ask(headers(3, literal(request("/3")), ends=True))
    talk.miss(SEND, 500, "ring_full")
    cut = talk.take()[-1]
    assert (cut.completeness, cut.body, cut.missing_bytes) == (Completeness.PARTIAL, b"ab", 0)
    talk.ask(data(1, b"cd", ends=True))
    talk.ask(headers(9, talk.asking(request("/known", "GET", ("x", "y"))), ends=True))
    talk.answer(headers(3, literal(response()), ends=True))
    behind, answered = talk.end()
    assert (behind.head.method, behind.head.target, behind.head.fields.unknown) == ("GET", "", 3)
    assert behind.completeness is Completeness.PARTIAL
    assert answered.request is not None
    assert answered.request.head.target == "/3"


def test_behind_a_gap_an_ambiguous_block_is_no_response() -> None:
    talk = Talk()
    talk.answering([("grpc-status", "0")])
    talk.ask(GET)
    talk.miss(RECV, 100)
    trailers = headers(1, talk.answering([("grpc-status", "0")]), ends=True)
    talk.answer(trailers)
    assert only(talk.end()).head.is_request
    assert talk.row("unparsed") == len(trailers)


@pytest.mark.parametrize(
    "malformed",
    [
        b"\0\0\1\0\0\0\0\0\0x",  # DATA of no stream
        b"\0\0\3\3\0\0\0\0\1abc",  # RST_STREAM of three bytes
        b"\0\0\1\x09\4\0\0\0\1x",  # CONTINUATION of nothing
        b"\0\0\2\0\x08\0\0\0\1\x02x",  # more padding than frame
        b"\0\0\0\0\x08\0\0\0\1",
        b"\0\0\2\1\x0c\0\0\0\3\x02x",
        headers(3, literal(request()), pieces=2)[:-20] + ping(),
    ],
)
def test_what_is_no_frame_ends_the_framing_until_a_segment_begins_with_one(malformed: bytes) -> None:
    talk = Talk()
    talk.ask(POST)
    assert talk.ask(malformed + ping() * 3) == "unparsed"
    assert only(talk.take()).completeness is Completeness.PARTIAL
    talk.ask(headers(9, literal(request("/9")), ends=True))
    assert only(talk.end()).head.target == "/9"


def test_a_header_block_without_end_is_cut_and_counted() -> None:
    talk = Talk()
    field = b"\x00\x01a\x7f\x81\x07" + b"x" * 1024
    block = literal(request("/bomb")) + field * 300
    talk.ask(headers(1, block, ends=True, pieces=30))
    talk.ask(headers(3, literal(request("/3")), ends=True))
    bomb, after = talk.end()
    assert (bomb.head.target, bomb.completeness) == ("/bomb", Completeness.PARTIAL)
    assert bomb.head.fields.unknown >= 1
    assert sum(len(value) for _, value in bomb.head.fields.headers) < 256 * 1024
    assert talk.shared.counters.heads_cut == 1
    assert (after.head.target, after.completeness) == ("/3", Completeness.COMPLETE)


def test_a_bomb_of_references_is_cut_in_time_and_counted() -> None:
    talk = Talk()
    talk.ask(headers(1, literal(request()) + b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000, ends=True))
    began = time.process_time()
    for stream in (3, 5):
        talk.ask(headers(stream, literal(request()) + b"\xbe" * 100_000, ends=True, pieces=10))
    assert time.process_time() - began < 1
    _, first, second = talk.end()
    assert first.head.fields.unknown > 99_000
    assert first.completeness is second.completeness is Completeness.PARTIAL
    assert talk.shared.counters.heads_cut == 2


# --- interim records -------------------------------------------------------------------------------------------------


def waits(talk: Talk) -> bool:
    return talk.http2.waits


def test_a_message_that_takes_long_gives_one_picture_of_itself() -> None:
    talk = Talk(interval_ns=1_000_000)
    talk.ask(GET)
    assert not waits(talk)
    talk.answer(OK + data(1, b"one"))
    talk.take()
    assert waits(talk)
    talk.http2.tick(talk.now_ns + 1_000_000)
    assert talk.take() == []
    talk.http2.tick(talk.now_ns + 1_000_001)
    picture = only(talk.take())
    assert (picture.completeness, picture.body, picture.number) == (Completeness.OPEN, b"one", 1)
    assert picture.request is not None
    assert not waits(talk)
    talk.http2.tick(talk.now_ns + 9_000_001)
    talk.answer(data(1, b"two", ends=True))
    assert (only(talk.end()).body, picture.body) == (b"onetwo", b"one")


def test_without_an_interval_nothing_waits() -> None:
    talk = Talk(interval_ns=0)
    talk.ask(POST)
    assert not talk.http2.waits
    talk.http2.tick(10**18)
    assert talk.take() == []


# --- gRPC ------------------------------------------------------------------------------------------------------------

CALL = request("/a.Greeter/Hello", "POST", ("content-type", "application/grpc"), ("grpc-encoding", "gzip"))
ANSWER = response(200, ("content-type", "application/grpc+proto"))


def grpc_of(message: Message) -> dict[str, object]:
    assert isinstance(message.extra, Grpc)
    return asdict(message.extra)


def test_a_grpc_call_has_its_facts_on_both_messages() -> None:
    talk = Talk()
    talk.ask(headers(1, literal(CALL)) + data(1, b"\1\0\0\0\2ab\0\0"))
    talk.ask(data(1, b"\0\0\1c", ends=True))
    trailers = [("grpc-status", "7"), ("grpc-message", "no%20way")]
    talk.answer(headers(1, literal(ANSWER)) + data(1, b"\0\0\0\0\0") + headers(1, literal(trailers), ends=True))
    asked, answered = pair(talk.end())
    named = {"service": "a.Greeter", "method": "Hello"}
    assert grpc_of(asked) == {
        **named, "messages": 2, "message_bytes": 3, "status": None, "message": None, "encoding": "gzip",
    }  # fmt: skip
    assert grpc_of(answered) == {
        **named, "messages": 1, "message_bytes": 0, "status": 7, "message": "no way", "encoding": "",
    }  # fmt: skip
    assert asked.body == b"\1\0\0\0\2ab\0\0\0\0\1c"


def test_a_grpc_status_may_stand_in_the_head() -> None:
    talk = Talk()
    talk.ask(headers(1, literal(CALL), ends=True))
    talk.answer(headers(1, literal([*ANSWER, ("grpc-status", "12")]), ends=True))
    assert grpc_of(pair(talk.end())[1])["status"] == 12


def test_an_answer_of_another_type_is_not_grpc() -> None:
    talk = Talk()
    talk.ask(headers(1, literal(CALL), ends=True))
    talk.answer(headers(1, literal(response(503, ("content-type", "text/html"))), ends=True))
    assert pair(talk.end())[1].extra is None


def test_an_early_grpc_answer_gets_its_name_from_the_request() -> None:
    talk = Talk()
    talk.answer(headers(1, literal([*ANSWER, ("grpc-status", "0")]), ends=True))
    talk.ask(headers(1, literal(CALL), ends=True))
    answered = next(message for message in talk.end() if not message.head.is_request)
    assert grpc_of(answered)["service"] == "a.Greeter"


def test_a_picture_of_a_call_does_not_change_afterwards() -> None:
    talk = Talk(interval_ns=1)
    talk.ask(headers(1, literal(CALL)) + data(1, b"\0\0\0\0\0"))
    talk.http2.tick(10**9)
    picture = only(talk.take())
    talk.ask(data(1, b"\0\0\0\0\0", ends=True))
    assert (grpc_of(picture)["messages"], grpc_of(only(talk.end()))["messages"]) == (1, 2)


# --- could HTTP/2 begin here? ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        PREFACE,
        PREFACE + b"anything",
        settings(),
        settings_ack() + window_update(),
        GET,
        OK + data(1, b"x" * 100),
        OK + data(1, b"x" * 100)[:20],
        ping() + GET[:12],
        window_update() + ping()[:5],
        headers(1, literal(request()), pieces=3),
        data(5, b"", ends=True),
    ],
)
def test_a_chain_of_frames_looks_like_frames(payload: bytes) -> None:
    assert looks_like_frames(payload) is (None if payload == window_update() + ping()[:5] else True)


@pytest.mark.parametrize("payload", [b"", PREFACE[:10], b"\0", settings()[:8], GET[:12], data(1, b"x" * 50)[:30]])
def test_a_beginning_is_too_short_to_tell(payload: bytes) -> None:
    assert looks_like_frames(payload) is None


@pytest.mark.parametrize(
    "payload",
    [
        b"PRI * HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        bytes(64),
        b"\0\0\1\0\0\0\0\0\0x",  # DATA of no stream
        b"\0\0\0\4\0\0\0\0\1",  # SETTINGS of a stream
        b"\0\0\1\4\0\0\0\0\0x",  # of one byte
        b"\0\0\0\x0a\0\0\0\0\1",  # an unknown type
        b"\0\0\0\0\x40\0\0\0\1",  # an unknown flag
        b"\0\0\0\0\1\x80\0\0\1",  # the reserved bit
        b"\0\0\1\x09\4\0\0\0\1x",  # CONTINUATION of nothing
        headers(1, literal(request()), pieces=2) + b"\0\0\1\x09\4\0\0\0\1x",
        headers(1, literal(request()), pieces=2)[:-20] + ping(),
        GET + b"xxxxxxxxx",
        b"\0\0\0\xff\xff\xff\xff\xff\xff",
        b"\x00\x00\x00\x17ANY\x00\x00\x00\x00\x00",
    ],
)
def test_what_is_no_chain_of_frames_does_not_look_like_one(payload: bytes) -> None:
    assert looks_like_frames(payload) is False
