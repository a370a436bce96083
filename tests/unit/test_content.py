"""netprofiler.content: content codings undone, within bounds."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard

from netprofiler.content import decode

TEXT = b"The quick brown fox. " * 40


def raw_deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-15)
    return encoder.compress(data) + encoder.flush()


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:100]) + gzip.compress(data[100:])


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


ENCODERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("gzip", two_members),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("br", brotli.compress),
    ("zstd", zstd),
    ("zstd", lambda data: zstd(data[:50]) + zstd(data[50:])),
]
IDS = ["gzip", "x-gzip", "gzip members", "deflate", "raw deflate", "br", "zstd", "zstd frames"]
every_coding = pytest.mark.parametrize(("coding", "encode"), ENCODERS, ids=IDS)


@every_coding
@pytest.mark.parametrize("limit", [len(TEXT), len(TEXT) + 1, 4096])
def test_whole(coding: str, encode: Callable[[bytes], bytes], limit: int) -> None:
    assert decode(encode(TEXT), (coding,), limit) == (TEXT, True)


@every_coding
@pytest.mark.parametrize("limit", [0, 1, len(TEXT) - 1])
def test_cut_at_the_limit(coding: str, encode: Callable[[bytes], bytes], limit: int) -> None:
    assert decode(encode(TEXT), (coding,), limit) == (TEXT[:limit], False)


@every_coding
def test_part_of_a_body_gives_the_part_that_it_holds(coding: str, encode: Callable[[bytes], bytes]) -> None:
    whole = encode(TEXT)
    for size in range(len(whole)):
        decoded = decode(whole[:size], (coding,), 4096)
        assert decoded is not None
        assert TEXT.startswith(decoded[0])


@every_coding
def test_a_damaged_body_is_not_undone(coding: str, encode: Callable[[bytes], bytes]) -> None:
    damaged = bytearray(encode(TEXT))
    damaged[: len(damaged) // 2] = b"\xff" * (len(damaged) // 2)
    assert decode(bytes(damaged), (coding,), 4096) is None


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_bomb_costs_no_more_than_the_limit(coding: str) -> None:
    zeros = bytes(64 * 1024 * 1024)
    bomb = dict(ENCODERS)[coding](zeros) if coding != "zstd" else zstd(zeros)
    del zeros
    tracemalloc.start()
    try:
        decoded = decode(bomb, (coding,), 4096)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert decoded == (bytes(4096), False)
    assert peak < 2 * 1024 * 1024


def test_a_zstd_frame_may_not_ask_for_a_large_window() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    encoder = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = encoder.compress(TEXT) + encoder.flush()
    assert decode(frame, ("zstd",), 4096) is None


def test_codings_on_top_of_each_other_are_undone_from_the_last() -> None:
    assert decode(brotli.compress(gzip.compress(TEXT)), ("gzip", "br"), 4096) == (TEXT, True)
    assert decode(gzip.compress(brotli.compress(TEXT)), ("gzip", "br"), 4096) is None


def test_unknown_or_too_many_codings_are_not_undone() -> None:
    assert decode(TEXT, ("exi",), 4096) is None
    assert decode(TEXT, ("gzip",) * 5, 4096) is None


def test_what_follows_the_last_gzip_member_is_left_out() -> None:
    assert decode(gzip.compress(TEXT) + b"\0\0\0", ("gzip",), 4096) == (TEXT, True)
