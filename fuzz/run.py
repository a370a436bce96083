"""`python -m fuzz.run TARGET [LIBFUZZER OPTION…]`: one target, with what is in fuzz/corpus and what build/fuzz has from before.

`python -m fuzz.run --all SECONDS [LIBFUZZER OPTION…]`: all targets, one after the other. Ends with the number of executions; a crash, a run of
more than a second, or more memory than the bound ends it with the input in build/fuzz/crashes.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
CORPUS: Final = ROOT / "fuzz" / "corpus"
FOUND: Final = ROOT / "build" / "fuzz"
SECONDS_MAX: Final = 2
"""Of one execution (libFuzzer counts in whole seconds), instrumented, on a machine that may be busy."""
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
        f"-timeout={SECONDS_MAX}",
        f"-rss_limit_mb={MEMORY_MIB_MAX}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-artifact_prefix={FOUND / 'crashes' / name}-",
        "-print_final_stats=1",
        *options,
        str(found),
        str(CORPUS / name),
    ]
    atheris.Setup(arguments, TARGETS[name])
    atheris.Fuzz()


def run_all(seconds: int, options: list[str]) -> int:
    """Returns the exit status. Each target in a child of its own: what is instrumented once, is so for all."""
    atheris = load()
    from fuzz.targets import TARGETS  # noqa: PLC0415

    status = executions = 0
    for name in TARGETS:
        with tempfile.TemporaryFile() as said:
            child = os.fork()
            if not child:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                fuzz(atheris, name, [f"-max_total_time={seconds}", *options])
            failed = os.waitpid(child, 0)[1]
            said.seek(0)
            text = said.read().decode(errors="replace")
        count = re.search(r"number_of_executed_units: (\d+)", text)
        coverage = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text)
        executions += int(count[1]) if count else 0
        edges, features, kept = coverage[-1] if coverage else ("?", "?", "?")
        print(
            f"{name:15} {count[1] if count else '?':>9} executions, {edges} edges, {features} features, corpus {kept}"
        )
        if failed or not count:
            status = 1
            print(text[-6000:])
    print(f"fuzz: {executions} executions")
    return status


if __name__ == "__main__":
    if sys.argv[1:2] == ["--all"]:
        sys.exit(run_all(int(sys.argv[2]), sys.argv[3:]))
    fuzz(load(), sys.argv[1], sys.argv[2:])
