"""netprofiler.streams: order by position."""

from __future__ import annotations

import pytest

from netprofiler.streams import HELD_BYTES_MAX, HELD_SEGMENTS_MAX, Gap, Holding, Segment, distance


def segment(position: int, payload: bytes, time_ns: int = 7) -> Segment:
    return Segment(position, len(payload), payload, 0, time_ns, 1, 2)


def shown(items: list[Segment | Gap]) -> list[tuple[int, bytes] | int]:
    return [item.length if isinstance(item, Gap) else (item.position, item.payload) for item in items]


@pytest.mark.parametrize(
    ("later", "earlier", "expected"),
    [
        (5, 3, 2),
        (3, 5, -2),
        (2, 0xFFFFFFFF, 3),
        (0xFFFFFFFF, 2, -3),
        (0x7FFFFFFF, 0, 0x7FFFFFFF),
        (0x80000000, 0, -0x80000000),
    ],
)
def test_distance_wraps(later: int, earlier: int, expected: int) -> None:
    assert distance(later, earlier) == expected


def test_what_came_early_comes_out_in_order() -> None:
    holding = Holding()
    for each in (segment(14, b"ef"), segment(10, b"ab"), segment(12, b"cd")):
        holding.add(each)
    items, twice = holding.release(10, force=False)
    assert shown(items) == [(10, b"ab"), (12, b"cd"), (14, b"ef")]
    assert twice == 0
    assert holding.segments == []
    assert holding.bytes == 0


def test_what_is_still_early_stays_until_it_is_forced_out_behind_a_gap() -> None:
    holding = Holding()
    holding.add(segment(10, b"ab", 1))
    holding.add(segment(15, b"ef", 2))
    holding.add(segment(20, b"gh", 3))
    items, _ = holding.release(10, force=False)
    assert shown(items) == [(10, b"ab")]
    assert holding.bytes == 4
    assert holding.since_ns == 2
    items, _ = holding.release(12, force=True)
    assert shown(items) == [3, (15, b"ef"), 3, (20, b"gh")]
    assert [item.time_ns for item in items if isinstance(item, Gap)] == [2, 3]


def test_what_comes_twice_is_cut_away_and_counted() -> None:
    holding = Holding()
    holding.add(segment(10, b"abcd"))
    holding.add(segment(12, b"cdef"))
    holding.add(segment(11, b"bc"))
    items, twice = holding.release(11, force=False)
    assert b"".join(item.payload for item in items if isinstance(item, Segment)) == b"bcdef"
    assert twice == 1 + 2 + 2


def test_the_start_of_a_file_is_cut_with_its_segment() -> None:
    part = Segment(10, 1000, b"begin", 2, 7, 1, 2).without_start(3)
    assert (part.position, part.length, part.payload, part.reason) == (13, 997, b"in", 2)


def test_positions_wrap_inside_a_segment() -> None:
    holding = Holding()
    holding.add(segment(0xFFFFFFFE, b"abcd"))
    holding.add(segment(2, b"ef"))
    items, _ = holding.release(0xFFFFFFFE, force=False)
    assert shown(items) == [(0xFFFFFFFE, b"abcd"), (2, b"ef")]


@pytest.mark.parametrize(
    ("sizes", "full"),
    [
        ([HELD_BYTES_MAX], False),
        ([HELD_BYTES_MAX, 1], True),
        ([1] * HELD_SEGMENTS_MAX, False),
        ([1] * (HELD_SEGMENTS_MAX + 1), True),
    ],
)
def test_full_by_bytes_or_by_pieces(sizes: list[int], full: bool) -> None:
    holding = Holding()
    for size in sizes:
        holding.add(segment(10, bytes(size)))
    assert holding.full is full
