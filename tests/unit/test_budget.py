"""The share of connections that are logged follows the agent's CPU time, and is the same at both ends."""

from __future__ import annotations

import pytest

from netprofiler.budget import SHARES, Budget, share_of

SECOND = 1_000_000_000


def run(budget: Budget, cost: float, seconds: int) -> list[int]:
    """An agent that uses this much of a core when everything is logged, and as much less as is left out."""
    kept, cpu_ns, out = SHARES, 0, []
    for second in range(seconds):
        kept = budget.update(second * SECOND, cpu_ns)
        cpu_ns += int(cost * kept / SHARES * SECOND)
        out.append(kept)
    return out


def test_within_its_budget_nothing_is_left_out() -> None:
    assert set(run(Budget(50), 0.45, 30)) == {SHARES}


@pytest.mark.parametrize("cost", [0.6, 1.0, 5.0])
def test_over_it_as_much_is_left_out_as_is_needed(cost: float) -> None:
    last = run(Budget(50), cost, 60)[20:]
    used = [cost * kept / SHARES for kept in last]
    assert max(used) <= 0.5 * 1.25 + 0.01
    assert sum(used) / len(used) == pytest.approx(0.45, abs=0.08)


def test_with_the_load_gone_everything_is_logged_again() -> None:
    budget = Budget(10)
    assert run(budget, 50.0, 40)[-1] < SHARES / 100
    assert [budget.update(second * SECOND, 0) for second in range(40, 120)][-1] == SHARES


def test_what_cannot_be_afforded_at_all_is_none() -> None:
    assert min(run(Budget(0.01), 90.0, 10)) == 0


def test_a_clock_that_stands_still_is_no_error() -> None:
    budget = Budget(10)
    assert [budget.update(5, cpu_ns) for cpu_ns in (0, 10, 20)] == [SHARES] * 3


@pytest.mark.parametrize("addresses", [("127.0.0.1", "10.1.2.3"), ("::1", "fe80::2"), ("2001:db8::1", "2001:db8::9")])
def test_both_ends_have_the_same_share(addresses: tuple[str, str]) -> None:
    here, there = addresses
    shares = set()
    for port in range(40_000, 41_000):
        share = share_of(here, port, there, 8080)
        assert share == share_of(there, 8080, here, port)
        assert 0 <= share < SHARES
        shares.add(share)
    assert len(shares) > 900, "and others have others"
    assert 350 < sum(share < SHARES // 2 for share in shares) < 650
