"""netprofiler.counters: rows sum to their total."""

from __future__ import annotations

from netprofiler.counters import KERNEL_ROWS, LEDGER_ROWS, USER_ROWS, Counters, Row, make_ledger


def filled() -> Counters:
    counters = Counters()
    for number, name in enumerate(USER_ROWS, 1):
        counters.rows[name] = Row(number, 10 * number)
    counters.delivered = Row(calls=100, bytes=1000)
    counters.messages, counters.written, counters.output_failed, counters.not_wanted = 9, 5, 3, 1
    return counters


def rows_of(ledger: dict[str, object], unit: str) -> dict[str, int]:
    table = ledger[unit]
    assert isinstance(table, dict)
    assert sum(table["rows"].values()) == table["total"]
    assert list(table["rows"]) == list(LEDGER_ROWS)
    rows: dict[str, int] = table["rows"]
    return rows


def test_a_replay_counts_what_arrived() -> None:
    ledger = make_ledger(filled(), None)
    arrived = sum(range(1, len(USER_ROWS) + 1))
    assert rows_of(ledger, "calls")["pending"] == 100 - arrived
    assert rows_of(ledger, "bytes")["pending"] == 1000 - 10 * arrived
    assert rows_of(ledger, "bytes")["recorded"] == 10


def test_the_kernel_side_adds_its_rows() -> None:
    kernel = {name: Row(calls=2, bytes=20) for name in KERNEL_ROWS}
    kernel["delivered"] = Row(calls=110, bytes=1100)
    others = len(KERNEL_ROWS) - 2
    kernel["total"] = Row(calls=110 + 2 * others, bytes=1100 + 20 * others)
    rows = rows_of(make_ledger(filled(), kernel), "bytes")
    assert rows["over_limit"] == 20 + 10 * (USER_ROWS.index("over_limit") + 1)
    assert rows["lost"] == 20
    arrived = sum(range(1, len(USER_ROWS) + 1))
    # What was delivered and has not arrived here is pending, too.
    assert rows["pending"] == 1100 - 10 * arrived
    rows_of(make_ledger(filled(), kernel), "calls")


def test_records() -> None:
    assert make_ledger(filled(), None)["records"] == {
        "made": 9,
        "rows": {"written": 5, "output_failed": 3, "not_wanted": 1, "budget": 0},
    }


def test_the_row_of_the_hot_path_is_the_row_itself() -> None:
    counters = Counters()
    counters.recorded.bytes += 5
    assert counters.rows["recorded"].bytes == 5
