"""The ledger: what became of every byte that the kernel side saw.

Contract: rows sum to their total exactly. The kernel side counts its own rows and one total, independently of them
(bpf/maps.h); what it delivered is divided further here, by what the parser made of it, and what is still in hand when
somebody looks is the row `pending`. docs/ledger.md tells what each row means.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

KERNEL_ROWS: Final = (
    "total",
    "delivered",
    "filtered",
    "not_http",
    "tls",
    "tunnel",
    "over_limit",
    "lost",
    "unreadable",
    "tallied",
    "budget",
)
"""In the order of the ROW_ constants of bpf/maps.h."""

USER_ROWS: Final = (
    "recorded",
    "gap",
    "partial",
    "unparsed",
    "not_http",
    "tunnel",
    "control",
    "over_limit",
    "sendfile",
    "splice",
    "unreadable",
    "filtered",
)
"""What delivered bytes turn out to be. `filtered`: by a replay; live, the kernel side does it."""

LEDGER_ROWS: Final = (
    "recorded",
    "tallied",
    "budget",
    "filtered",
    "not_http",
    "tls",
    "control",
    "tunnel",
    "over_limit",
    "sendfile",
    "splice",
    "unreadable",
    "gap",
    "partial",
    "unparsed",
    "lost",
    "pending",
)


@dataclass(slots=True)
class Row:
    """System calls, and the bytes that they moved."""

    calls: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Counters:
    """What the user side counts. One for a pipeline and its sinks."""

    rows: dict[str, Row] = field(default_factory=lambda: {name: Row() for name in USER_ROWS})
    delivered: Row = field(default_factory=Row)
    """What arrived here: its rows and what is pending sum to it."""
    recorded: Row = field(default_factory=Row)
    """The row `recorded` itself: the hot path's own."""
    messages: int = 0
    """Messages made."""
    written: int = 0
    output_failed: int = 0
    not_wanted: int = 0
    """Messages that no output asked for (`--no-output`), or that came after `--count`."""
    budget: int = 0
    """Messages of connections that are left out of the log (`--max-cpu`)."""
    tls_unread: int = 0
    """TLS connections that have ended and of which no plaintext was seen."""
    unpaired: int = 0
    """Responses whose request is not known."""
    heads_cut: int = 0
    """HTTP/2: header blocks that are too large to be decoded whole."""

    def __post_init__(self) -> None:
        self.rows["recorded"] = self.recorded


def make_ledger(counters: Counters, kernel: dict[str, Row] | None) -> dict[str, object]:
    """The ledger as JSON shows it. `kernel`: the kernel side's rows, or None for a replay, where what arrived is all.

    Where the kernel side delivered more than has arrived here (the ring was not drained to its end, a second SIGINT),
    the difference is `pending` too.
    """
    out: dict[str, object] = {}
    for unit in ("bytes", "calls"):
        rows = dict.fromkeys(LEDGER_ROWS, 0)
        for name, row in counters.rows.items():
            rows[name] += getattr(row, unit)
        arrived = sum(rows.values())
        if kernel is None:
            total = getattr(counters.delivered, unit)
            rows["pending"] = total - arrived
        else:
            for name, row in kernel.items():
                if name not in ("total", "delivered"):
                    rows[name] += getattr(row, unit)
            total = getattr(kernel["total"], unit)
            rows["pending"] = getattr(kernel["delivered"], unit) - arrived
        out[unit] = {"total": total, "rows": rows}
    out["records"] = {
        "made": counters.messages,
        "rows": {
            "written": counters.written,
            "output_failed": counters.output_failed,
            "not_wanted": counters.not_wanted,
            "budget": counters.budget,
        },
    }
    return out
