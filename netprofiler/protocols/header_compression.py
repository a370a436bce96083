"""HPACK (RFC 7541) for somebody who only listens, and may have come late.

Contract: a `Decoder` reads the header blocks of one direction of one connection, in order. What a block says by itself
(literals, the static table) is always known. A reference to the dynamic table is known where the entry was inserted
before our eyes; else the field is absent and counted, never half there. Nothing raises, and nothing is guessed:

- An index counts insertions backwards (section 2.3.3), so the n-th latest insertion that we saw is what it refers to,
  whatever the table held before we came and however much of it was evicted since. An entry whose size we do not know
  takes a place like any other. One that is too large for the table (section 4.4) takes none, but empties the table:
  what it would displace by one cannot be referred to again.
- Eviction only says what is forgotten. Where the encoder's table may be smaller than ours, we remember entries that no
  correct encoder refers to; where it may be larger, we say `unknown`.
- How large the table is follows from the updates in the stream alone (section 4.2): a setting of the other side takes
  effect by such an update.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Final, NamedTuple

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from netprofiler.protocols.http1 import field_text

DECODED_BYTES_MAX: Final = 256 * 1024
"""Of one block, as RFC 9113, section 10.5.1, counts them (32 bytes a field besides name and value): a byte may stand for
a field of 4 KiB. As much as a head of HTTP/1 may have."""

DEFAULT_TABLE_BYTES: Final = 4096
"""RFC 9113, section 6.5.2: the table of a new connection."""

TABLE_BYTES_MAX: Final = 64 * 1024
"""Remembered of one table: browsers offer this much, nearly everybody uses DEFAULT_TABLE_BYTES."""

ENTRY_OVERHEAD: Final = 32
"""RFC 7541, section 4.1."""

_INTEGER_BYTES_MAX: Final = 5
"""Behind the prefix: more than 2**32 is no length and no index."""
CACHED_STRINGS: Final = 4096
_CACHED_STRING_BYTES: Final = 128
"""Huffman-coded strings that are decoded once: paths, tokens and names come again, at 0.3 µs a byte. Under 1 MiB."""

HeaderField = tuple[str, str]
"""Name and value."""


class _Entry(NamedTuple):
    field: HeaderField | None
    """None: it is there, and not known."""
    name_bytes: int
    size: int
    """As section 4.1 counts; of an unknown one the least that it can be."""


class Block(NamedTuple):
    """What a header block says."""

    fields: tuple[HeaderField, ...]
    """In order, without the unknown ones."""
    unknown: int
    """Fields that are not among them; what is malformed, or was cut, counts as one at least."""
    begins_known: bool
    """The first field is among them."""
    was_cut: bool
    """It is longer than DECODED_BYTES_MAX: the rest is among the unknown."""
    changed: bool
    """The same bytes may mean something else now."""


class _MalformedBlock(Exception):
    """What follows cannot be read."""


def _make_static_table() -> tuple[_Entry, ...]:
    entries = [_Entry(None, 0, 0)]  # index 0 is none
    for name, value in HeaderTable.STATIC_TABLE:
        size = len(name) + len(value) + ENTRY_OVERHEAD
        entries.append(_Entry((field_text(name), field_text(value)), len(name), size))
    return tuple(entries)


_STATIC: Final = _make_static_table()
_FIRST_DYNAMIC: Final = len(_STATIC)
_UNKNOWN: Final = _Entry(None, 0, ENTRY_OVERHEAD)


def _decode_huffman(raw: bytes) -> tuple[str, int] | None:
    """Text, and its length in bytes (section 5.2); None: it is no Huffman code."""
    try:
        plain = bytes(decode_huffman(raw))
    except HPACKDecodingError:
        return None
    return field_text(plain), len(plain)


_decode_huffman_once = lru_cache(CACHED_STRINGS)(_decode_huffman)


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """Section 5.1, where the prefix bits are all ones; `at` is behind them → number, offset behind it."""
    number = prefix
    shift = 0
    for byte in block[at : at + _INTEGER_BYTES_MAX]:
        at += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise _MalformedBlock


def _string(block: bytes, at: int) -> tuple[tuple[str, int] | None, int]:
    """Section 5.2 → text and its length in bytes (None: not readable), offset behind it."""
    if at >= len(block):
        raise _MalformedBlock
    first = block[at]
    length = first & 0x7F
    at += 1
    if length == 0x7F:
        length, at = _integer(block, at, length)
    end = at + length
    if end > len(block):
        raise _MalformedBlock
    raw = block[at:end]
    if first < 0x80:
        return (field_text(raw), length), end
    if length <= _CACHED_STRING_BYTES:
        return _decode_huffman_once(raw), end
    return _decode_huffman(raw), end


class Decoder:
    """The dynamic table of one direction. `fresh`: its first block is still to come."""

    __slots__ = ("_entries", "_limit", "table_bytes")

    def __init__(self, *, fresh: bool) -> None:
        self._entries: deque[_Entry] = deque()
        """The latest first."""
        self.table_bytes = 0
        """Size of the table, as section 4.1 counts; of unknown entries the least that they can have."""
        self._limit = DEFAULT_TABLE_BYTES if fresh else TABLE_BYTES_MAX

    def forget(self) -> None:
        """Blocks were missed: what is in the table nobody knows, nor how large it is."""
        self._entries.clear()
        self.table_bytes = 0
        self._limit = TABLE_BYTES_MAX

    def decode(self, block: bytes, *, whole: bool = True) -> Block:
        """The next block. Not `whole`: only its beginning is there, and what it did to the table is not known."""
        fields: list[HeaderField] = []
        unknown = 0
        begins_known = False
        first = True
        changed = False
        room = DECODED_BYTES_MAX
        entries = self._entries
        at = 0
        size = len(block)
        try:
            while at < size:
                byte = block[at]
                at += 1
                if byte >= 0x80:  # section 6.1: indexed
                    index = byte & 0x7F
                    if index == 0x7F:
                        index, at = _integer(block, at, index)
                    entry = self._find(index)
                elif 0x20 <= byte < 0x40:  # section 6.3: size update
                    limit = byte & 0x1F
                    if limit == 0x1F:
                        limit, at = _integer(block, at, limit)
                    self._limit = min(limit, TABLE_BYTES_MAX)
                    self._evict()
                    changed = True
                    continue
                else:  # section 6.2: literal
                    inserts = byte >= 0x40
                    mask = 0x3F if inserts else 0x0F
                    index = byte & mask
                    if index == mask:
                        index, at = _integer(block, at, index)
                    name: str | None = None
                    name_bytes = 0
                    if index:
                        named = self._find(index)
                        if named.field is not None:
                            name = named.field[0]
                            name_bytes = named.name_bytes
                    else:
                        text, at = _string(block, at)
                        if text is not None:
                            name, name_bytes = text
                    text, at = _string(block, at)
                    if name is not None and text is not None:
                        entry = _Entry((name, text[0]), name_bytes, name_bytes + text[1] + ENTRY_OVERHEAD)
                    else:
                        entry = _Entry(None, 0, ENTRY_OVERHEAD + name_bytes + (text[1] if text is not None else 0))
                    if inserts:
                        entries.appendleft(entry)
                        self.table_bytes += entry.size
                        self._evict()
                        changed = True
                room -= entry.size
                if entry.field is None or room < 0:
                    unknown += 1
                else:
                    fields.append(entry.field)
                    begins_known = begins_known or first
                first = False
        except _MalformedBlock:
            unknown += 1
            whole = False
        if not whole:
            self.forget()
            changed = True
        return Block(tuple(fields), unknown, begins_known, room < 0, changed)

    def _find(self, index: int) -> _Entry:
        if index < _FIRST_DYNAMIC:
            if not index:
                raise _MalformedBlock  # section 6.1
            return _STATIC[index]
        index -= _FIRST_DYNAMIC
        return self._entries[index] if index < len(self._entries) else _UNKNOWN

    def _evict(self) -> None:
        """Section 4.3: the oldest go until the rest has room. One that is too large goes too, and takes all with it."""
        while self.table_bytes > self._limit:
            self.table_bytes -= self._entries.pop().size
