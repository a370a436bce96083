"""Any split and any order give the same messages; any loss gives less, and nothing wrong."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from netprofiler import wire
from netprofiler.testing import Script, Step, Tick
from tests.property.traffic import (
    Schedule,
    Truth,
    by_direction,
    check_against,
    exchanges,
    peer_of,
    perform,
    schedules,
    token_of,
    whole,
)

ROLES = st.sampled_from([wire.ROLE_CLIENT, wire.ROLE_SERVER])
FAMILIES = st.sampled_from([wire.FAMILY_IPV4, wire.FAMILY_IPV4, wire.FAMILY_UNIX])
LIMITS = st.sampled_from([4096, 4096, 0, 1, 7, 100])

Scheduled = tuple[list[Truth], Schedule]


@st.composite
def conversations(draw: st.DrawFn, pipelined: bool = True) -> Scheduled:
    truths = draw(exchanges())
    return truths, draw(schedules(truths, pipelined))


@given(conversations(), ROLES, FAMILIES, LIMITS)
def test_any_split_gives_the_same_messages(conversation: Scheduled, role: int, family: int, limit: int) -> None:
    truths, schedule = conversation
    script, reference = Script(), Script()
    perform(schedule, peer_of(script, role, family))
    perform(whole(truths), peer_of(reference, role, family))
    played, expected = script.play(body_limit=limit), reference.play(body_limit=limit)
    assert by_direction(played.messages) == by_direction(expected.messages)
    assert played.rows() == expected.rows()
    assert set(played.rows()) == {"recorded"}
    # And what both say is what was.
    assert [token_of(m) for m in played.requests] == [t.token for t in truths]
    final = [m for m in played.responses if m.head.status >= 200]
    assert [m.head.status for m in final] == [t.status for t in truths]
    assert [m.body for m in final] == [t.response_body[:limit] for t in truths]
    assert [m.body for m in played.requests] == [t.request_body[:limit] for t in truths]
    assert all(m.request is not None for m in played.responses)
    check_against(truths, played.messages)


@given(conversations(), FAMILIES, st.data())
def test_a_response_may_overtake_its_request_to_the_ring(
    conversation: Scheduled, family: int, data: st.DataObject
) -> None:
    """A send is seen when it returns: at a client, any response may come some events too early."""
    truths, schedule = conversation
    script, reference = Script(), Script()
    perform(schedule, peer_of(script, wire.ROLE_CLIENT, family))
    perform(whole(truths), peer_of(reference, wire.ROLE_CLIENT, family))
    steps = list(script.steps)
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(1, max(1, len(steps) - 3)))
        first, second = steps[at : at + 2] if at + 2 < len(steps) else (steps[0], steps[0])
        if isinstance(first, wire.DataCaptured) and isinstance(second, wire.DataCaptured):
            steps[at], steps[at + 1] = second, first
    played, expected = script.play(steps), reference.play()
    assert by_direction(played.messages) == by_direction(expected.messages)
    assert played.rows() == expected.rows()


@st.composite
def mutations(draw: st.DrawFn, steps: list[Step], *, keep: int = 1) -> list[Step]:
    """Events left out, twice, at another place, with time that passes between. The first `keep` stay."""
    out = list(steps[keep:])
    for _ in range(draw(st.integers(1, 5))):
        if not out:
            break
        at = draw(st.integers(0, len(out) - 1))
        match draw(st.sampled_from(["delete", "delete", "delete", "move", "twice", "tick", "late", "unseen"])):
            case "delete":
                del out[at]
            case "move":
                out.insert(draw(st.integers(0, len(out) - 1)), out.pop(at))
            case "twice":
                out.insert(draw(st.integers(0, len(out))), out[at])
            case "tick":
                out.insert(at, Tick(out[at].time_ns + draw(st.sampled_from([0, 300_000_000]))))
            case "unseen":
                step = out[at]
                if isinstance(step, wire.DataCaptured):
                    # A file is part of a body; what is over the limit, or cannot be read, may be anything.
                    body = step.payload.startswith(b"<")
                    kept = step.payload[: draw(st.sampled_from([0, 3]))] if body else b""
                    reasons = (wire.REASON_SENDFILE, wire.REASON_SPLICE) if body else ()
                    unseen = (wire.REASON_OVER_LIMIT, wire.REASON_UNREADABLE)
                    reason = wire.REASON_SENDFILE if kept else draw(st.sampled_from([*unseen, *reasons]))
                    out[at] = replace(step, payload=kept, reason=reason)
            case _:
                del out[: at // 2]
    return steps[:keep] + out


def _check_ledger(rows: dict[str, int]) -> None:
    assert all(count > 0 for count in rows.values()), rows
    assert "pending" not in rows


@given(conversations(), ROLES, FAMILIES, LIMITS, st.data())
def test_loss_gives_nothing_wrong(
    conversation: Scheduled, role: int, family: int, limit: int, data: st.DataObject
) -> None:
    truths, schedule = conversation
    script = Script()
    perform(schedule, peer_of(script, role, family), close=data.draw(st.booleans()))
    played = script.play(data.draw(mutations(script.steps)), body_limit=limit)
    check_against(truths, played.messages)
    _check_ledger(played.rows())
    _check_ledger(played.rows("calls"))


@given(conversations(pipelined=False), ROLES, FAMILIES, st.booleans(), st.data())
def test_joining_in_the_middle_gives_nothing_wrong(
    conversation: Scheduled, role: int, family: int, announced: bool, data: st.DataObject
) -> None:
    """Who joins sees a suffix of the events; the kernel side announces the connection with the positions of that time."""
    truths, schedule = conversation
    skipped = data.draw(st.integers(0, len(schedule.pieces)))
    script = Script()
    peer = peer_of(script, role, family, fresh=False)
    script.steps.clear()
    requested = sum(len(piece) for is_request, piece in schedule.pieces[:skipped] if is_request)
    answered = sum(len(piece) for is_request, piece in schedule.pieces[:skipped] if not is_request)
    base = [0, 0]
    base[peer.request_direction], base[1 - peer.request_direction] = requested, answered
    joined = script.open(
        role, fresh=False, announced=announced, family=family, positions=(1000 + base[0], 5000 + base[1])
    )
    perform(Schedule(schedule.pieces[skipped:]), joined)
    steps = script.steps
    if announced:
        steps = data.draw(mutations(steps)) if data.draw(st.booleans()) else steps
    played = script.play(steps)
    check_against(truths, played.messages)
    _check_ledger(played.rows())


@given(exchanges(at_most=5, last_may_close=False), ROLES, FAMILIES, st.integers(0, 8))
def test_whoever_joins_between_two_messages_has_all_that_follow(
    truths: list[Truth], role: int, family: int, skipped: int
) -> None:
    script = Script()
    pieces = whole(truths).pieces
    skipped = min(skipped, len(pieces))
    # An answer to a HEAD that nobody saw: whether a body comes, only the next answer shows.
    assume(skipped % 2 == 0 or truths[skipped // 2].method != "HEAD")
    perform(Schedule(pieces[skipped:]), peer_of(script, role, family, fresh=False))
    played = script.play()
    tokens = [t.token for t in truths]
    assert [token_of(m) for m in played.requests] == tokens[(skipped + 1) // 2 :]
    final = [m for m in played.responses if m.head.status >= 200]
    assert [token_of(m) for m in final] == tokens[skipped // 2 :]
    # The first answer belongs to a request from before; all others have theirs.
    assert [m.request is None for m in final] == [skipped % 2 == 1 and not index for index in range(len(final))]
    check_against(truths, played.messages)
