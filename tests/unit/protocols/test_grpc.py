"""What is read of a gRPC message."""

from __future__ import annotations

import gzip
from dataclasses import asdict

import pytest

from netprofiler.exchange import Grpc
from netprofiler.protocols.grpc import Call, Prefixes, begin, is_grpc, read_head, read_status, split_path, uncompress


def prefixed(*messages: bytes, compressed: bool = False) -> bytes:
    return b"".join(bytes([compressed]) + len(each).to_bytes(4, "big") + each for each in messages)


@pytest.mark.parametrize(
    ("content_type", "is_one"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("Application/GRPC; charset=utf-8", True),
        ("application/grpc-web", False),
        ("application/grpc-web+proto", False),
        ("application/grpcx", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_grpc_is_known_by_its_content_type(content_type: str, is_one: bool) -> None:
    assert is_grpc(content_type) is is_one


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("/helloworld.Greeter/SayHello", ("helloworld.Greeter", "SayHello")),
        ("/prefix/a.B/C", ("prefix/a.B", "C")),
        ("/nothing", ("", "")),
        ("*", ("", "")),
        ("", ("", "")),
    ],
)
def test_the_path_names_service_and_method(path: str, parts: tuple[str, str]) -> None:
    assert split_path(path) == parts


def test_a_head_gives_encoding_and_a_status_without_body() -> None:
    fields = [("content-type", "application/grpc"), ("grpc-encoding", "gzip"), ("grpc-status", "5")]
    call = read_head([*fields, ("grpc-message", "not%20here%21 \u00e9%E2%82%AC %zz")])
    assert call == Call("gzip", 5, "not here! é€ %zz")
    facts = Grpc("a.B", "C", status=5, message="not here! é€ %zz", encoding="gzip")
    assert asdict(begin(call, "/a.B/C")) == asdict(facts)
    assert read_head([("content-type", "text/html"), ("grpc-status", "5")]) is None


@pytest.mark.parametrize("value", ["", "-1", "x", "1e3", "²", "1" * 30])
def test_a_status_that_is_no_number_is_absent(value: str) -> None:
    assert read_status([("grpc-status", value)]) == (None, None)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_messages_are_counted_across_any_split(size: int) -> None:
    stream = prefixed(b"", b"abc", b"", b"x" * 300, b"y")
    facts = Grpc("", "")
    prefixes = Prefixes(facts)
    for at in range(0, len(stream), size):
        prefixes.feed(stream[at : at + size])
    assert (facts.messages, facts.message_bytes) == (5, 304)


def test_what_is_missing_inside_of_a_message_does_not_end_the_count() -> None:
    facts = Grpc("", "")
    prefixes = Prefixes(facts)
    prefixes.feed(prefixed(b"x" * 100)[:50])
    assert prefixes.skip(55)
    prefixes.feed(prefixed(b"ab"))
    assert (facts.messages, facts.message_bytes) == (2, 102)


def test_what_is_missing_beyond_a_message_ends_the_count() -> None:
    prefixes = Prefixes(Grpc("", ""))
    prefixes.feed(prefixed(b"x" * 100)[:50])
    assert not prefixes.skip(56)
    begun = Prefixes(Grpc("", ""))
    begun.feed(b"\0\0")
    assert not begun.skip(1)


def test_compression_is_undone_message_by_message() -> None:
    packed = gzip.compress(b"two")
    body = prefixed(b"one") + prefixed(packed, compressed=True) + prefixed(b"three") + b"\0\0\0"
    expected = prefixed(b"one") + prefixed(b"two") + prefixed(b"three") + b"\0\0\0"
    assert uncompress(body, "gzip", 4096, b"instead") == (expected, True, False)


@pytest.mark.parametrize("encoding", ["", "identity", "snappy"])
def test_what_cannot_be_undone_is_replaced_or_left(encoding: str) -> None:
    body = prefixed(b"one") + prefixed(b"packed", compressed=True)
    assert uncompress(body, encoding, 4096, b"instead") == (prefixed(b"one") + prefixed(b"instead"), True, True)
    assert uncompress(body, encoding, 4096, None) == (body, True, False)


def test_a_message_that_was_cut_gives_what_it_holds() -> None:
    packed = gzip.compress(b"a" * 1000 + bytes(range(256)), 0)
    found = uncompress(prefixed(packed, compressed=True)[:500], "gzip", 4096, b"instead")
    assert found.body[5:405] == b"a" * 400
    assert not found.unknown


def test_what_becomes_larger_than_the_limit_is_cut() -> None:
    body = prefixed(gzip.compress(b"a" * 100_000), compressed=True) * 3
    found = uncompress(body, "gzip", 4096, b"instead")
    assert len(found.body) < 4096 + 3 * 5
    assert not found.whole


def test_what_is_no_prefix_is_left_as_it_is() -> None:
    assert uncompress(b"\x02abcdefgh", "gzip", 4096, b"instead") == (b"\x02abcdefgh", True, False)
    assert uncompress(b"", "gzip", 4096, b"instead") == (b"", True, False)
