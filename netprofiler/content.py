"""Content codings undone: gzip, deflate, br, zstd (RFC 9110, section 8.4.1).

Contract: `decode(body, codings, limit)` gives at most `limit` bytes and whether that is all there is; what cannot be
undone (an unknown coding, damaged data) gives None. A body that was kept only in part gives the part that it holds.
Output is bounded while decoding, so that a small body cannot become a large one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

import brotli
import zstandard

CODINGS_MAX: Final = 4
"""Codings on top of each other; in practice one."""
ZSTD_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""RFC 9659: more than this no HTTP body may ask for."""


def _inflate(body: bytes, window_bits: int, limit: int) -> tuple[bytes, bool]:
    decoder = zlib.decompressobj(window_bits)
    out = decoder.decompress(body, limit + 1)
    return out[:limit], len(out) <= limit


def _gzip(body: bytes, limit: int) -> tuple[bytes, bool]:
    # RFC 1952, section 2.2: members one after the other; what follows the last and is none is padding.
    out = b""
    while True:
        decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
        out += decoder.decompress(body, limit + 1 - len(out))
        body = decoder.unused_data
        if len(out) > limit or not body.startswith(b"\x1f\x8b"):
            return out[:limit], len(out) <= limit


def _deflate(body: bytes, limit: int) -> tuple[bytes, bool]:
    # RFC 9110, section 8.4.1.2: zlib format; some send the bare deflate stream.
    try:
        return _inflate(body, zlib.MAX_WBITS, limit)
    except zlib.error:
        return _inflate(body, -zlib.MAX_WBITS, limit)


def _brotli(body: bytes, limit: int) -> tuple[bytes, bool]:
    decoder = brotli.Decompressor()
    out: bytes = decoder.process(body, output_buffer_limit=limit + 1)
    # The limit is looked at block by block (32 KiB, then more): what comes out may be somewhat longer.
    return out[:limit], len(out) <= limit and (decoder.is_finished() or decoder.can_accept_more_data())


def _zstd(body: bytes, limit: int) -> tuple[bytes, bool]:
    with zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).stream_reader(
        body, read_across_frames=True
    ) as reader:
        out = reader.read(limit + 1)
    return out[:limit], len(out) <= limit


_DECODERS: Final[dict[str, Callable[[bytes, int], tuple[bytes, bool]]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}


def decode(body: bytes, codings: tuple[str, ...], limit: int) -> tuple[bytes, bool] | None:
    """`codings` in the order in which they were applied."""
    if len(codings) > CODINGS_MAX:
        return None
    whole = True
    for coding in reversed(codings):
        decoder = _DECODERS.get(coding)
        if decoder is None:
            return None
        try:
            body, all_of_it = decoder(body, limit)
        except (zlib.error, brotli.error, zstandard.ZstdError):
            return None
        whole = whole and all_of_it
    return body, whole
