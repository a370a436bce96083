"""HTTP/2 that knows the truth about itself: however it is split, joined or cut, what comes out is true."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import hpack
from hypothesis import given, settings
from hypothesis import strategies as st

from netprofiler.connection import Shared
from netprofiler.exchange import Completeness, Link, Message
from netprofiler.protocols.http2 import PREFACE, Http2, looks_like_frames
from netprofiler.streams import Segment
from tests.unit.protocols import http2_frames as h2
from tests.unit.protocols.http2_frames import RECV, SEND, Field

SEEDS = st.integers(0, 2**32 - 1)
BASE = (100, 7000)
BODY_LIMIT = 4096


@dataclass
class Truth:
    """One message as it was."""

    direction: int
    position: int
    fields: list[Field]
    """With pseudo fields."""
    plain: bool
    """It says everything by itself."""
    stream: int = 0
    body: bytes = b""
    trailers: list[Field] = field(default_factory=list)
    whole: bool = False
    size: int = 0
    first: int = 0
    """Index of its first frame."""
    request: Truth | None = None

    @property
    def pseudo(self) -> dict[str, str]:
        return dict(self.fields)

    @property
    def headers(self) -> tuple[Field, ...]:
        return tuple(each for each in self.fields if each[0] not in (":method", ":path", ":status"))


class Conversation:
    """Interleaved streams, as a server's side or a client's sees them. All from one seed."""

    def __init__(self, seed: int, streams: int = 6, client: int = SEND) -> None:
        self.random = random.Random(seed)
        self.client = client
        self.frames: list[tuple[int, bytes]] = []
        self.sizes = [0, 0]
        self.encoders = (hpack.Encoder(), hpack.Encoder())
        self.truths: dict[tuple[int, int], Truth] = {}
        self.promised = 0
        self.add(client, PREFACE)
        self.add(client, h2.settings({1: 4096}))
        self.add(1 - client, h2.settings())
        self.add(1 - client, h2.settings_ack())
        steps = [self.exchange(2 * index + 1) for index in range(streams)]
        started = 0
        running: list[Iterable[None]] = []
        while started < len(steps) or running:
            if started < len(steps) and (not running or self.random.random() < 0.4):
                running.append(iter(steps[started]))
                started += 1
                next(running[-1])  # type: ignore[call-overload]  # requests begin in the order of their streams
                continue
            which = self.random.choice(running)
            if next(which, self) is self:  # type: ignore[call-overload]
                running.remove(which)
            if self.random.random() < 0.2:
                noise = self.random.choice([h2.ping(), h2.window_update(), h2.priority(3), b"\0\0\2\x0c\0\0\0\0\0ab"])
                self.add(self.random.randrange(2), noise)

    def add(self, direction: int, payload: bytes) -> int:
        """Returns the position of its first byte."""
        position = BASE[direction] + self.sizes[direction]
        self.frames.append((direction, payload))
        self.sizes[direction] += len(payload)
        return position

    def block(self, direction: int, fields: list[Field], plain: bool) -> bytes:
        if plain:
            return h2.literal(fields)
        encoder = self.encoders[direction]
        if self.random.random() < 0.05:
            encoder.header_table_size = self.random.choice([0, 100, 4096])
        return bytes(encoder.encode(fields, huffman=self.random.random() < 0.7))

    def head(self, direction: int, stream: int, fields: list[Field], *, ends: bool, promised: int = 0) -> Truth:
        choose = self.random
        plain = choose.random() < 0.4
        raw = h2.headers(
            stream,
            self.block(direction, fields, plain),
            ends=ends,
            pieces=choose.choice([1, 1, 1, 2, 5]),
            padding=choose.choice([None, None, 0, 7]),
            weight=choose.choice([None, None, 15]),
            promised=promised,
        )
        truth = Truth(direction, 0, fields, plain, stream=promised or stream, size=len(raw), first=len(self.frames))
        truth.position = self.add(direction, raw)
        truth.whole = ends
        self.truths[direction, truth.position] = truth
        return truth

    def body(self, truth: Truth, stream: int) -> Iterable[None]:
        choose = self.random
        trailers = choose.random() < 0.3
        for _ in range(choose.randrange(3)):
            self.data(truth, stream, ends=False)
            yield
        if trailers:
            truth.trailers = [("grpc-status", "0"), ("x-sum", str(choose.randrange(3)))]
            # Never by the table alone where they have to be known.
            raw = h2.headers(stream, self.block(truth.direction, truth.trailers, truth.plain), ends=True)
            self.add(truth.direction, raw)
            truth.size += len(raw)
        else:
            self.data(truth, stream, ends=True)
        truth.whole = True

    def data(self, truth: Truth, stream: int, *, ends: bool) -> None:
        body = bytes(self.random.choices(b"abcdefgh", k=self.random.choice([0, 1, 5, 30, 300])))
        raw = h2.data(stream, body, ends=ends, padding=self.random.choice([None, None, 0, 9]))
        self.add(truth.direction, raw)
        truth.body += body
        truth.size += len(raw)

    def exchange(self, stream: int) -> Iterable[None]:
        choose = self.random
        token = f"t{stream}x"
        hot = [("user-agent", "someone/1.0"), ("x-again", "same"), ("x-token", token)]
        fields = h2.request(f"/{token}", choose.choice(["GET", "POST", "PUT"]), *hot)
        asked = self.head(self.client, stream, fields, ends=choose.random() < 0.5)
        yield
        if not asked.whole:
            yield from self.body(asked, stream)
            yield
        for _ in range(choose.choice([0, 0, 1])):
            interim = self.head(
                1 - self.client, stream, h2.response(choose.choice([100, 103]), ("link", token)), ends=False
            )
            interim.request = asked
            interim.whole = True
            yield
        if choose.random() < 0.1:
            self.add(choose.randrange(2), h2.reset(stream))
            return
        pushed = None
        if choose.random() < 0.15:
            self.promised += 2
            fields = h2.request(f"/pushed{self.promised}")
            pushed = self.head(1 - self.client, stream, fields, ends=True, promised=self.promised)
            yield
        fields = h2.response(choose.choice([200, 200, 204, 302, 503]), ("server", "s"), ("x-token", token))
        ends = choose.random() < 0.2
        answered = self.head(1 - self.client, stream, fields, ends=ends)
        answered.request = asked
        yield
        if not ends:
            if choose.random() < 0.1:
                self.data(answered, stream, ends=False)
                yield
                self.add(choose.randrange(2), h2.reset(stream))
            else:
                yield from self.body(answered, stream)
        if pushed is not None:
            yield
            response = self.head(1 - self.client, pushed.stream, h2.response(200, ("x-pushed", token)), ends=False)
            response.request = pushed
            yield
            yield from self.body(response, pushed.stream)


def new(client: int | None, *, fresh: bool) -> tuple[Shared, Http2]:
    shared = Shared(body_limit=BODY_LIMIT)
    return shared, Http2(shared, Link("s"), client_direction=client, fresh=fresh, number=0, upgraded=None)


def finish(shared: Shared, http2: Http2, fed: int) -> list[Message]:
    for direction in (SEND, RECV):
        http2.end(direction, 0, finished=True)
    assert sum(row.bytes for row in shared.counters.rows.values()) == fed
    assert not http2.waits
    return shared.out


def segment(position: int, payload: bytes) -> Segment:
    return Segment(position, len(payload), payload, 0, 0, 1, 1)


def check(message: Message, conversation: Conversation, *, whole: bool) -> Truth:
    """Everything that the record says is true. `whole`: it has to be all."""
    truth = conversation.truths[int(message.direction), message.position]
    head, pseudo = message.head, truth.pseudo
    assert head.method in ("", pseudo.get(":method", ""))
    assert head.target in ("", pseudo.get(":path", ""))
    assert head.status in (0, int(pseudo.get(":status", "0")))
    rest = iter(truth.headers)
    assert all(each in rest for each in head.fields.headers), "known fields, in order"
    assert all(each in truth.trailers for each in message.trailers)
    known = len(head.fields.headers) + (head.method != "") + (head.target != "") + (head.status != 0)
    # Where the status is not known and no content came, what comes next may be trailers, or behind an interim response.
    in_doubt = not head.is_request and not head.status and not truth.body
    is_cut = message.completeness is Completeness.PARTIAL and not head.fields.unknown
    if truth.whole and message.completeness is not Completeness.GAP and not is_cut and not in_doubt:
        all_of_it = len(truth.fields) + len(truth.trailers)
        assert known + len(message.trailers) + head.fields.unknown == all_of_it
    assert truth.body.startswith(message.body)
    assert message.body_bytes <= len(truth.body)
    if message.request is not None:
        assert truth.request is not None
        assert message.request.position == truth.request.position
        assert message.number == message.request.number
    if message.completeness is Completeness.COMPLETE or whole:
        assert message.completeness is (Completeness.COMPLETE if truth.whole else Completeness.PARTIAL)
        assert (head.method, head.target) == (pseudo.get(":method", ""), pseudo.get(":path", ""))
        assert head.status == int(pseudo.get(":status", "0"))
        assert head.fields.headers == truth.headers
        assert message.trailers == (tuple(truth.trailers) if truth.whole else ())
        assert message.body == truth.body
        assert message.body_bytes == len(truth.body)
        assert message.stream_bytes == truth.size
    return truth


def is_cut_by_reset(truth: Truth, conversation: Conversation) -> bool:
    """Its stream was reset while it, or the other one, was under way: where it ended depends on the order."""
    raw = h2.reset(truth.stream)
    return any(payload == raw for _, payload in conversation.frames)


@given(SEEDS, st.sampled_from([SEND, RECV]), SEEDS)
def test_any_split_gives_the_messages_that_were_sent(seed: int, client: int, split_seed: int) -> None:
    conversation = Conversation(seed, client=client)
    choose = random.Random(split_seed)
    shared, http2 = new(client if choose.random() < 0.7 else None, fresh=True)
    largest = choose.choice([1, 3, 20, 200, 10**6])
    at = list(BASE)
    runs: list[tuple[int, bytes]] = []
    for direction, payload in conversation.frames:
        if runs and runs[-1][0] == direction and choose.random() < 0.5:
            runs[-1] = (direction, runs[-1][1] + payload)
        else:
            runs.append((direction, payload))
    for direction, payload in runs:
        while payload:
            size = choose.randint(1, largest)
            http2.feed(direction, segment(at[direction], payload[:size]))
            at[direction] += len(payload[:size])
            payload = payload[size:]
    out = finish(shared, http2, sum(conversation.sizes))
    found = {(int(message.direction), message.position) for message in out}
    assert found == set(conversation.truths)
    assert len(out) == len(found)
    for message in out:
        truth = check(message, conversation, whole=True)
        assert (message.request is None) == (truth.request is None)
    assert shared.counters.rows["unparsed"].bytes == 0
    assert shared.counters.unpaired == 0


@given(SEEDS, st.sampled_from([SEND, RECV]), st.floats(0, 1), st.booleans())
def test_started_at_any_frame_nothing_is_wrong_and_what_says_all_by_itself_is_there(
    seed: int, client: int, where: float, told: bool
) -> None:
    conversation = Conversation(seed, client=client)
    shared, http2 = new(client if told else None, fresh=False)
    start = 1 + int(where * (len(conversation.frames) - 2))
    at = list(BASE)
    fed = 0
    for index, (direction, payload) in enumerate(conversation.frames):
        if index >= start:
            http2.feed(direction, segment(at[direction], payload))
            fed += len(payload)
        at[direction] += len(payload)
    out = finish(shared, http2, fed)
    found = set()
    for message in out:
        truth = check(message, conversation, whole=False)
        assert truth.first >= start
        if truth.plain:
            check(message, conversation, whole=True)
        found.add((truth.direction, truth.position))
    assert len(found) == len(out)
    for key, truth in conversation.truths.items():
        if truth.plain and truth.first >= start and not is_cut_by_reset(truth, conversation):
            assert key in found


@given(SEEDS, st.sampled_from([SEND, RECV]), SEEDS)
def test_a_gap_anywhere_makes_nothing_wrong(seed: int, client: int, gap_seed: int) -> None:
    conversation = Conversation(seed, client=client)
    choose = random.Random(gap_seed)
    shared, http2 = new(client, fresh=True)
    lossy = choose.randrange(2)
    begin = BASE[lossy] + choose.randrange(conversation.sizes[lossy])
    end = begin + choose.choice([1, 5, 40, 400])
    at = list(BASE)
    fed = 0
    for direction, payload in conversation.frames:
        cuts = sorted({0, len(payload), *(choose.randint(0, len(payload)) for _ in range(choose.choice([0, 0, 2])))})
        if direction == lossy:
            cuts = sorted(
                {*cuts, *(each - at[direction] for each in (begin, end) if 0 < each - at[direction] < len(payload))}
            )
        for low, high in pairwise(cuts):
            position = at[direction] + low
            if direction == lossy and begin <= position < end:
                http2.missing(direction, high - low, "unknown", 0)
            else:
                http2.feed(direction, segment(position, payload[low:high]))
                fed += high - low
        at[direction] += len(payload)
    out = finish(shared, http2, fed)
    for message in out:
        truth = check(message, conversation, whole=False)
        # The end of the stream is in its last frame, which lies before the gap, or the message is cut.
        if truth.direction != lossy:
            check(message, conversation, whole=True)
    found = {(int(message.direction), message.position) for message in out}
    assert len(found) == len(out)
    for key, truth in conversation.truths.items():
        if truth.direction != lossy:
            assert key in found


WORDS = st.one_of(
    st.binary(max_size=20),
    st.sampled_from(
        [
            PREFACE,
            h2.settings(),
            h2.settings_ack(),
            h2.headers(1, h2.literal(h2.request())),
            h2.headers(1, h2.literal(h2.response()), ends=True),
            h2.headers(3, b"\xff\xff\xff\xff\xff\xff"),
            h2.headers(3, h2.literal(h2.request()), pieces=3),
            h2.data(1, b"x", ends=True),
            h2.data(1, b"x", padding=3),
            h2.reset(1),
            h2.go_away(0),
            h2.headers(1, h2.literal(h2.request()), promised=2),
            h2.headers(2, h2.literal(h2.response())),
            b"\xff\xff\xff\0\0\0\0\0\1",
            b"\0\0\0\x09\4\0\0\0\1",
        ]
    ),
)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.one_of(WORDS, st.integers(1, 300))), max_size=40),
    st.sampled_from([None, SEND, RECV]),
    st.booleans(),
)
def test_whatever_comes_nothing_raises_and_every_byte_is_in_a_row(
    pieces: list[tuple[int, bytes | int]], client: int | None, fresh: bool
) -> None:
    shared, http2 = new(client, fresh=fresh)
    fed = 0
    at = list(BASE)
    for direction, piece in pieces:
        if isinstance(piece, int):
            http2.missing(direction, piece, "unknown", 0)
            at[direction] += piece
        else:
            row = http2.feed(direction, segment(at[direction], piece))
            assert row in shared.counters.rows
            at[direction] += len(piece)
            fed += len(piece)
        http2.tick(0)
    finish(shared, http2, fed)


@given(st.binary(max_size=100))
@settings(max_examples=50)
def test_a_beginning_of_frames_is_never_denied(more: bytes) -> None:
    whole = h2.settings({3: 100}) + h2.window_update() + h2.headers(1, h2.literal(h2.request("/" + "x" * 20)))
    for cut in range(len(whole)):
        assert looks_like_frames(whole[:cut]) is not False
    assert looks_like_frames(whole) is True
    assert looks_like_frames(b"\x17\x03" + more) is not True
