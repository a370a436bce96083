#!/usr/bin/env python3
"""Make the golden files anew, and show what changes in the lines: `make golden`, then read the diff.

    scripts/golden.py [--recordings]

The lines (`.jsonl`) are made of every recording and packet capture in tests/golden; with --recordings, those of
tests/golden/situations.py are made anew first: needed when the format or the ABI changes.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.golden.situations import SITUATIONS, make_recording  # noqa: E402
from tests.golden.test_golden import CAPTURES, GOLDEN, expected_path, replayed  # noqa: E402


def main() -> None:
    for name, situation in SITUATIONS.items():
        path = GOLDEN / f"{name}.recording"
        if "--recordings" in sys.argv[1:] or not path.exists():
            path.write_bytes(make_recording(situation))
    changed = 0
    for path in sorted({*CAPTURES, *GOLDEN.glob("*.recording")}):
        expected = expected_path(path)
        before = expected.read_text() if expected.exists() else ""
        after, _ = replayed(path)
        if before == after:
            continue
        changed += 1
        expected.write_text(after)
        sys.stdout.writelines(
            difflib.unified_diff(
                before.splitlines(keepends=True),
                after.splitlines(keepends=True),
                f"a/{path.stem}",
                f"b/{path.stem}",
                n=0,
            )
        )
    print(
        f"golden: {changed} files changed: is every line of the diff as it should be?"
        if changed
        else "golden: no change"
    )


if __name__ == "__main__":
    main()
