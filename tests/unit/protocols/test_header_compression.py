"""HPACK: the RFC's examples, and what is known by somebody who came late."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import hpack
import pytest

from netprofiler.protocols.header_compression import DECODED_BYTES_MAX, TABLE_BYTES_MAX, Block, Decoder

GOLDEN = sorted((Path(__file__).parents[2] / "golden" / "hpack").glob("*.json"))
FIRST_DYNAMIC = 62


def table(decoder: Decoder, entries: int) -> list[list[str] | None]:
    """The dynamic table, by references to it: these do not change it. What is not known is None."""
    out: list[list[str] | None] = []
    for index in range(entries):
        fields = decoder.decode(bytes((0x80 | FIRST_DYNAMIC + index,))).fields
        out.append(list(fields[0]) if fields else None)
    return out


def size_update(size: int) -> bytes:
    return bytes((0x3F,)) + bytes(((size - 31) & 0x7F | 0x80, (size - 31) >> 7 & 0x7F | 0x80, (size - 31) >> 14))


def inserted(name: str, value: str) -> bytes:
    return bytes((0x40, len(name))) + name.encode() + bytes((len(value),)) + value.encode()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_examples_of_rfc_7541_decode_to_its_fields_and_leave_its_table(path: Path) -> None:
    example: dict[str, Any] = json.loads(path.read_text())
    decoder = Decoder(fresh=True)
    decoder.decode(size_update(example["table_limit"]))
    for step in example["blocks"]:
        block = decoder.decode(bytes.fromhex(step["block"]))
        assert [list(each) for each in block.fields] == step["fields"]
        assert (block.unknown, block.was_cut) == (0, False)
        assert table(decoder, len(step["table"]) + 1) == [*step["table"], None]
        assert decoder.table_bytes == step["table_bytes"]


def test_all_the_examples_are_there() -> None:
    assert len(GOLDEN) == 8


def test_who_came_late_knows_the_static_table_literals_and_what_was_inserted_since() -> None:
    encoder = hpack.Encoder()
    encoder.encode([("x-old", "1"), ("x-older", "2")])
    decoder = Decoder(fresh=False)
    first = decoder.decode(encoder.encode([(":method", "GET"), ("x-old", "1"), ("x-new", "3")]))
    assert first == Block(((":method", "GET"), ("x-new", "3")), 1, True, False, True)
    second = decoder.decode(encoder.encode([("x-older", "2"), ("x-new", "3")]))
    assert second == Block((("x-new", "3"),), 1, False, False, False)


def test_a_value_whose_name_is_not_known_is_not_shown_and_takes_its_place_in_the_table() -> None:
    decoder = Decoder(fresh=False)
    decoder.decode(inserted("a", "first"))
    named_by_unknown = bytes((0x40 | 0x3F, FIRST_DYNAMIC + 5 - 0x3F)) + b"\x05value"
    assert decoder.decode(named_by_unknown) == Block((), 1, False, False, True)
    assert table(decoder, 3) == [None, ["a", "first"], None]
    decoder.decode(inserted("b", "last"))
    assert table(decoder, 4) == [["b", "last"], None, ["a", "first"], None]


def test_an_unreadable_string_makes_its_field_unknown_and_the_next_one_is_read() -> None:
    decoder = Decoder(fresh=True)
    bad_huffman = b"\x40\x01a\x81\x00"  # no padding of ones
    assert decoder.decode(bad_huffman + b"\x82") == Block(((":method", "GET"),), 1, False, False, True)
    assert table(decoder, 2) == [None, None]


def test_what_is_larger_than_the_table_empties_it() -> None:
    decoder = Decoder(fresh=True)
    decoder.decode(size_update(100) + inserted("a", "1"))
    assert decoder.decode(inserted("b", "x" * 100)).fields == (("b", "x" * 100),)
    assert table(decoder, 1) == [None]
    decoder.decode(inserted("c", "2"))
    assert table(decoder, 2) == [["c", "2"], None]


def test_a_smaller_table_forgets_the_oldest_and_a_larger_one_brings_nothing_back() -> None:
    decoder = Decoder(fresh=True)
    decoder.decode(inserted("a", "1") + inserted("b", "2") + inserted("c", "3"))
    decoder.decode(size_update(70))
    assert table(decoder, 3) == [["c", "3"], ["b", "2"], None]
    decoder.decode(size_update(4096))
    assert table(decoder, 3) == [["c", "3"], ["b", "2"], None]


def test_a_table_holds_no_more_than_the_bound_whatever_size_it_says() -> None:
    decoder = Decoder(fresh=True)
    decoder.decode(b"\x3f\xff\xff\xff\x7f")
    for index in range(3000):
        decoder.decode(inserted(f"n{index}", "x" * 100))
    assert TABLE_BYTES_MAX - 200 < decoder.table_bytes <= TABLE_BYTES_MAX


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xff\xff\xff\xff\xff\xff\xff\xff",  # a number that does not end
        b"\xff",
        b"\x40\x05a",  # a string that does
        b"\x40\x01a",
        b"\x40",
    ],
)
def test_a_malformed_block_ends_what_is_known_of_the_table(block: bytes) -> None:
    decoder = Decoder(fresh=True)
    decoder.decode(inserted("a", "1"))
    assert decoder.decode(b"\x82" + block + b"") == Block(((":method", "GET"),), 1, True, False, True)
    assert table(decoder, 1) == [None]


def test_the_beginning_of_a_block_gives_its_fields_and_ends_what_is_known_of_the_table() -> None:
    decoder = Decoder(fresh=True)
    assert decoder.decode(inserted("a", "1") + b"\x82", whole=False).fields == (("a", "1"), (":method", "GET"))
    assert table(decoder, 1) == [None]


def test_bytes_that_are_not_utf_8_are_latin_1() -> None:
    assert Decoder(fresh=True).decode(b"\x00\x01a\x02\xc3\xa9\x00\x01b\x01\xe9").fields == (("a", "é"), ("b", "é"))


def test_a_bomb_is_cut_in_time_and_the_table_stays_right() -> None:
    decoder = Decoder(fresh=True)
    decoder.decode(b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000)
    bomb = b"\xbe" * (200 * 1024)
    began = time.process_time()
    block = decoder.decode(bomb + inserted("b", "behind"))
    assert time.process_time() - began < 1
    assert block.was_cut
    assert sum(len(name) + len(value) + 32 for name, value in block.fields) <= DECODED_BYTES_MAX
    assert len(block.fields) + block.unknown == 200 * 1024 + 1
    assert len(block.fields) == DECODED_BYTES_MAX // 4033
    assert table(decoder, 1) == [["b", "behind"]]
