"""The text of a running process against that of its file: a probe is a breakpoint there, and whoever leaves one leaves a difference.

This asks nobody: it works on every kernel, and after whoever put the probes in has died. It cannot tell whose a probe is;
where the kernel shows that (Linux 6.17), `probed_files` does.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

INT3 = 0xCC
CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class _Mapping:
    start: int
    end: int
    offset: int
    device: str
    inode: int


def _text_mappings(pid: int) -> dict[str, list[_Mapping]]:
    found: dict[str, list[_Mapping]] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6 and "x" in words[1] and words[5].startswith("/"):
            start, _, end = words[0].partition("-")
            mapping = _Mapping(int(start, 16), int(end, 16), int(words[2], 16), words[3], int(words[4]))
            found.setdefault(words[5], []).append(mapping)
    return found


def breakpoints(pid: int, part_of_path: str = "") -> dict[str, list[int]]:
    """By path of each mapped file that has any (and ``part_of_path`` in its path): the file offsets of breakpoints in it.

    Any other difference between the two is an error: nothing but a probe changes the text of what runs here.
    """
    found: dict[str, list[int]] = {}
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for path, mappings in _text_mappings(pid).items():
            if part_of_path not in path:
                continue
            for mapping in mappings:
                # map_files, not the path: the file may have been replaced, or lie in another mount namespace.
                with open(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}", "rb", buffering=0) as file:
                    found.setdefault(path, []).extend(_differences(memory.fileno(), file.fileno(), mapping, path))
    return {path: offsets for path, offsets in found.items() if offsets}


def _differences(memory: int, file: int, mapping: _Mapping, path: str) -> list[int]:
    offsets = []
    for at in range(0, mapping.end - mapping.start, CHUNK):
        stored = os.pread(file, min(CHUNK, mapping.end - mapping.start - at), mapping.offset + at)
        running = os.pread(memory, len(stored), mapping.start + at)
        if running == stored:
            continue
        for index, (now, then) in enumerate(zip(running, stored, strict=True)):
            if now != then:
                assert now == INT3, f"{path} at {mapping.offset + at + index:#x} is {now:#x}, was {then:#x}"
                offsets.append(mapping.offset + at + index)
    return offsets


def probed_files(pid: int) -> set[str] | None:
    """The files that this process, an agent, has probes in; None where the kernel does not show it, or there are none."""
    found = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # closed meanwhile
            text = info.read_text()
            if "link_type:\tuprobe_multi" in text:
                found |= {line.removeprefix("path:\t") for line in text.splitlines() if line.startswith("path:\t")}
    return found or None


def is_probed(pid: int, path: Path, agent_pid: int) -> bool:
    """Whether the process of this executable is probed; by this agent, as far as the kernel tells: another may run here."""
    ours = probed_files(agent_pid)
    return bool(breakpoints(pid, str(path))) and (ours is None or str(path) in ours)


def orphans(pid: int) -> dict[str, list[int]]:
    """The breakpoints in a process that are of nobody who lives, as far as the kernel tells: another agent may run here."""
    owned: set[str] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # ended meanwhile, or not ours to look at
                owned |= probed_files(int(entry.name)) or set()
    return {path: offsets for path, offsets in breakpoints(pid).items() if path not in owned}
