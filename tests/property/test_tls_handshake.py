"""Hellos in whatever pieces give the same facts; whatever the bytes, nothing raises and what is kept is bounded."""

from __future__ import annotations

import ssl
import sys

from hypothesis import given
from hypothesis import strategies as st

from netprofiler.protocols.tls_handshake import DIRECTION_BYTES_MAX, Facts, Handshake
from tests.unit.protocols.handshakes import (
    RETRY_RANDOM,
    Ends,
    client_hello,
    extension,
    message,
    protocols,
    record,
    server_hello,
    server_name,
)

BOTH = ["h2", "http/1.1"]
TALKS = [
    Ends(version=ssl.TLSVersion.TLSv1_2, offered=BOTH, accepted=BOTH).talk(),
    Ends(version=ssl.TLSVersion.TLSv1_3, offered=BOTH, accepted=BOTH).talk(),
    Ends(server_curve="secp521r1").talk("retry.example"),
]
CONVERSATIONS = [(talk.sent(from_client=True), talk.sent(from_client=False)) for talk in TALKS]
CONVERSATIONS += [
    (
        b"".join(record(client_hello(server_name(b"parts"), protocols(b"h2"))[at : at + 9]) for at in range(0, 81, 9)),
        record(b"\x01\x70", kind=21)
        + record(server_hello(extension(43, b"\x03\x04"), random=RETRY_RANDOM))
        + record(b"\x01", kind=20)
        + record(server_hello(extension(43, b"\x03\x04"), cipher=0x1303)),
    ),
    (record(client_hello(extension(21, bytes(DIRECTION_BYTES_MAX)))[:9000]) * 2, record(bytes(30), kind=23)),
]

NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 16, 20, 21, 22, 23, 43, 0x7F, 0xFE, 0xFF])
EXTENSIONS = st.lists(
    st.one_of(
        st.builds(extension, st.sampled_from([0, 16, 21, 43, 0x0A0A, 0xFE0D]), st.binary(max_size=12)),
        st.lists(st.binary(max_size=5), max_size=3).map(lambda names: server_name(*names)),
        st.lists(st.binary(max_size=5), max_size=3).map(lambda names: protocols(*names)),
        st.binary(max_size=5),
    ),
    max_size=4,
)
MESSAGES = st.one_of(
    EXTENSIONS.map(lambda extensions: client_hello(*extensions)),
    EXTENSIONS.map(lambda extensions: server_hello(*extensions)),
    EXTENSIONS.map(lambda extensions: server_hello(*extensions, random=RETRY_RANDOM)),
    st.builds(message, st.integers(0, 25), st.binary(max_size=60)),
)
RECORDS = st.one_of(
    MESSAGES.map(record),
    st.builds(record, st.binary(max_size=50), st.integers(19, 25), st.sampled_from([0x0300, 0x0301, 0x0304, 0x0403])),
)


def fed(flights: list[tuple[bool, bytes]]) -> tuple[Facts, bool]:
    handshake = Handshake()
    for from_client, data in flights:
        handshake.feed(from_client, data)
    return handshake.facts, handshake.done


@given(
    st.sampled_from(CONVERSATIONS),
    st.lists(st.tuples(st.booleans(), st.one_of(st.integers(0, 6), st.integers(0, 3000))), max_size=60),
)
def test_any_split_gives_the_same_facts(conversation: tuple[bytes, bytes], sizes: list[tuple[bool, int]]) -> None:
    """And however the two directions come between each other."""
    client, server = conversation
    pieces = []
    for from_client, size in sizes:
        if from_client:
            pieces.append((True, client[:size]))
            client = client[size:]
        else:
            pieces.append((False, server[:size]))
            server = server[size:]
    whole = fed([(True, conversation[0]), (False, conversation[1])])
    assert fed([*pieces, (True, client), (False, server)]) == whole


def test_the_conversations_have_facts() -> None:
    """So that the property above says something."""
    found = [fed([(True, client), (False, server)]) for client, server in CONVERSATIONS]
    assert [(facts.version, facts.sni, done) for facts, done in found] == [
        ("1.2", "localhost", True),
        ("1.3", "localhost", True),
        ("1.3", "retry.example", True),
        ("1.3", "parts", True),
        (None, None, True),
    ]


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=100)), max_size=8))
def test_arbitrary_bytes_are_never_an_exception(flights: list[tuple[bool, bytes]]) -> None:
    fed(flights)


@given(st.lists(st.tuples(st.booleans(), st.one_of(RECORDS, st.binary(max_size=4))), max_size=8))
def test_odd_records_are_never_an_exception(flights: list[tuple[bool, bytes]]) -> None:
    facts, _ = fed(flights)
    by_bytes = [(from_client, bytes([byte])) for from_client, data in flights for byte in data]
    assert fed(by_bytes)[0] == facts


@given(
    st.sampled_from(CONVERSATIONS[:3]),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 600), NUMBERS), min_size=1, max_size=6),
    st.integers(0, 4000),
)
def test_damaged_hellos_are_never_an_exception(
    conversation: tuple[bytes, bytes], of_client: bool, changes: list[tuple[int, int]], end: int
) -> None:
    damaged = bytearray(conversation[0 if of_client else 1])
    for at, value in changes:
        if at < len(damaged):
            damaged[at] = value
    facts, _ = fed([(of_client, bytes(damaged[:end]))])
    if of_client:
        assert (facts.version, facts.cipher, facts.alpn_selected) == (None, None, None)
    else:
        assert (facts.sni, facts.alpn_offered, facts.client_random) == (None, (), None)


@given(st.lists(st.one_of(RECORDS, st.binary(min_size=1, max_size=40)), min_size=1, max_size=4), st.integers(1, 4000))
def test_what_is_kept_is_bounded(pieces: list[bytes], times: int) -> None:
    handshake = Handshake()
    data = (record(b"\x01\x70", kind=21) + b"".join(pieces)) * times
    for from_client in (True, False):
        handshake.feed(from_client, data)
        for beginning in (handshake._client, handshake._server):
            assert sys.getsizeof(beginning._raw) + sys.getsizeof(beginning._message) < 4 * DIRECTION_BYTES_MAX
