"""What discovery reads of other processes, of the linker's cache and of file handles: any bytes give an answer."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from netprofiler.sources import mapped_files
from netprofiler.sources.mapped_files import parse_linker_cache, parse_maps
from tests.unit.sources.test_mapped_files import ENTRIES, MAPS, make_cache


@given(st.binary() | st.text("0123456789abcdef-rwxps: /\n").map(str.encode))
@example(MAPS[:-40])
@example(MAPS.replace(b" ", b"  "))
def test_any_bytes_for_maps(text: bytes) -> None:
    for mapping in parse_maps(text):
        assert mapping.path.startswith("/")
        assert mapping.key[1] > 0


@given(st.binary(max_size=128))
def test_any_bytes_for_a_handle(handle: bytes) -> None:
    inode = mapped_files._below_overlays(0xF8, handle, (1, 2))
    assert inode.same(inode)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_for_the_linker_cache(noise: bytes, position: int) -> None:
    cache = bytearray(make_cache(ENTRIES))
    cache[position : position + len(noise)] = noise
    for name, path in parse_linker_cache(bytes(cache)):
        assert isinstance(name, str)
        assert len(path) < 4096
