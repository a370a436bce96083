"""Files for nginx and Apache to serve, and 23 exchanges with them."""

from __future__ import annotations

from pathlib import Path

from tests.real.harness.truth import Ask, pattern

STATIC_SIZES = (0, 1, 17, 100, 1000, 4095, 4096, 4097, 10_000, 65_536, 200_000)
COUNT = 23


def document_root(directory: Path) -> Path:
    """A directory with a file of each size below /f/, readable for everybody."""
    root = directory / "root"
    (root / "f").mkdir(parents=True)
    root.chmod(0o755)
    for size in STATIC_SIZES:
        (root / "f" / str(size)).write_bytes(pattern(size, f"/f/{size}"))
    return root


def get(size: int, query: str = "") -> Ask:
    return Ask("GET", f"/f/{size}{query}", 200, pattern(size, f"/f/{size}"))


def static_plan() -> list[Ask]:
    """None of them writes."""
    plan = [get(size) for size in STATIC_SIZES]
    plan += [get(size, "?again") for size in (0, 100, 4096, 65_536)]
    plan += [get(100, "?q=a%20b&c=%C3%A9")]
    plan += [Ask("HEAD", "/f/1000", 200, b""), Ask("HEAD", "/f/200000?x", 200, b""), Ask("HEAD", "/missing", 404, b"")]
    plan += [Ask("GET", f"/missing?{n}", 404) for n in range(4)]
    assert len(plan) == COUNT
    return plan[::3] + plan[1::3] + plan[2::3]
