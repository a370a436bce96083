"""`python -m fuzz.run TARGET [LIBFUZZER OPTION…]`: one target, with what is in fuzz/corpus and what build/fuzz has from before.

`python -m fuzz.run --all SECONDS [LIBFUZZER OPTION…]`: all targets, SECONDS each as a mean: half of it for each, and the other half
in as many turns, each for the target with the fewest executions so far. Ends with the number of executions; a crash, a run of more
than a second, or more memory than the bound ends it with the input in build/fuzz/crashes.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
CORPUS: Final = ROOT / "fuzz" / "corpus"
FOUND: Final = ROOT / "build" / "fuzz"
SECONDS_MAX: Final = 1.0
"""Of processor time, of one execution, instrumented."""
HANG_SECONDS: Final = 20
"""What does not end at all is ended by libFuzzer, by the clock on the wall: the machine may be busy."""
MEMORY_MIB_MAX: Final = 1024
"""Of the whole process, with what atheris and the interpreter need: 150 MiB."""
INPUT_BYTES_MAX: Final = 16 * 1024


def load() -> Any:
    """atheris, with the package instrumented; and so the targets."""
    import atheris  # noqa: PLC0415 - not there for everybody

    with atheris.instrument_imports(include=["netprofiler"]):
        import fuzz.targets  # noqa: F401, PLC0415
    return atheris


def fuzz(atheris: Any, name: str, options: list[str]) -> None:
    """Does not return: libFuzzer ends the process."""
    from fuzz.targets import TARGETS  # noqa: PLC0415

    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    (FOUND / "crashes").mkdir(exist_ok=True)
    arguments = [
        sys.argv[0],
        f"-timeout={HANG_SECONDS}",
        f"-rss_limit_mb={MEMORY_MIB_MAX}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-artifact_prefix={FOUND / 'crashes' / name}-",
        "-print_final_stats=1",
        *options,
        str(found),
        str(CORPUS / name),
    ]
    atheris.Setup(arguments, _timed(TARGETS[name]))
    atheris.Fuzz()


def _timed(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """The same, which raises when it took too long."""

    def run(data: bytes) -> None:
        begun = time.process_time()
        target(data)
        took = time.process_time() - begun
        assert took < SECONDS_MAX, f"{took:.1f} s"

    return run


@dataclass
class Tally:
    """What became of a target so far."""

    executions: int = 0
    coverage: str = ""


def run_all(seconds: int, options: list[str]) -> int:
    """Returns the exit status."""
    atheris = load()
    from fuzz.targets import TARGETS  # noqa: PLC0415

    tallies = {name: Tally() for name in TARGETS}
    whole = True
    for name in TARGETS:
        whole &= _turn(atheris, name, [f"-max_total_time={max(1, seconds // 2)}", *options], tallies[name])
    for _ in TARGETS:
        name = min(tallies, key=lambda name: tallies[name].executions)
        whole &= _turn(atheris, name, [f"-max_total_time={max(1, seconds // 2)}", *options], tallies[name])
    for name, tally in tallies.items():
        print(f"{name:15} {tally.executions:>9} executions, {tally.coverage}")
    print(f"fuzz: {sum(tally.executions for tally in tallies.values())} executions")
    return 0 if whole else 1


def _turn(atheris: Any, name: str, options: list[str], tally: Tally) -> bool:
    """In a child of its own: what is instrumented once, is so for all. Whether nothing was found."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            fuzz(atheris, name, options)
        failed = os.waitpid(child, 0)[1]
        said.seek(0)
        text = said.read().decode(errors="replace")
    count = re.search(r"number_of_executed_units: (\d+)", text)
    coverage = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text)
    if count:
        tally.executions += int(count[1])
    if coverage:
        tally.coverage = "{} edges, {} features, corpus {}".format(*coverage[-1])
    if failed or not count:
        print(f"{name}: {text[-6000:]}")
    return bool(count) and not failed


if __name__ == "__main__":
    if sys.argv[1:2] == ["--all"]:
        sys.exit(run_all(int(sys.argv[2]), sys.argv[3:]))
    fuzz(load(), sys.argv[1], sys.argv[2:])
