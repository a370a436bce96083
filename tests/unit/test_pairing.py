"""netprofiler.pairing: who answers whom, and when that is not known."""

from __future__ import annotations

from netprofiler.exchange import Fields, Head, Link, Message
from netprofiler.pairing import QUIET_NS, WAITING_MAX, Pairing

HEAD = Head(True, "HTTP/1.1", "GET", "/", 0, "", Fields((), None, False, False, (), False, ""), "", 0, 0)


class Line:
    """A pairing, and what comes by it."""

    def __init__(self, fresh: bool = True) -> None:
        self.pairing = Pairing(fresh)

    def ask(self, quiet_ns: int = 0, under_way: bool = False) -> Message:
        self.pairing.count += 1
        message = Message(Link("a"), 0, HEAD, None, 1, 1, 0, 0, self.pairing.count, 0, 0, b"", 0)
        self.pairing.request(message, quiet_ns, under_way)
        return message

    def answer(self, final: bool = True) -> Message | None:
        return self.pairing.response(final)


def test_in_order() -> None:
    line = Line()
    asked = [line.ask() for _ in range(3)]
    assert [line.answer() for _ in range(3)] == asked
    assert line.answer() is None


def test_an_interim_response_leaves_its_request_waiting() -> None:
    line = Line()
    asked = line.ask()
    assert [line.answer(final=False), line.answer(final=False), line.answer()] == [asked] * 3


def test_after_a_hole_in_the_requests_those_before_it_are_answered_and_no_other() -> None:
    line = Line()
    before = line.ask()
    line.pairing.lost(requests=True)
    line.ask()
    assert line.answer() is before
    assert line.answer() is None
    assert line.answer() is None


def test_after_a_hole_in_the_responses_nobody_waits() -> None:
    line = Line()
    line.ask()
    line.pairing.lost(requests=False)
    assert line.answer() is None


def test_quiet_makes_certain() -> None:
    line = Line()
    line.pairing.lost(requests=False)
    line.ask(QUIET_NS - 1)
    assert line.answer() is None
    asked = line.ask(QUIET_NS)
    assert line.answer() is asked


def test_quiet_is_not_enough_while_an_answer_is_under_way_or_owed() -> None:
    line = Line()
    line.pairing.lost(requests=False)
    line.ask(QUIET_NS, under_way=True)
    assert line.answer() is None
    line.ask()
    # A slow server: this request is not answered yet, so the next answer is not that of the next request.
    line.ask(QUIET_NS)
    assert line.answer() is None
    assert line.answer() is None
    asked = line.ask(QUIET_NS)
    assert line.answer() is asked


def test_joined_with_an_answer_turn_taking_is_enough() -> None:
    line = Line(fresh=False)
    assert line.answer() is None
    line.pairing.joined()
    asked = line.ask()
    assert line.answer() is asked


def test_joined_at_a_client_that_does_not_wait() -> None:
    """Three are under way, of which we see the third; nothing may take it for the first."""
    line = Line(fresh=False)
    line.ask()
    line.ask()
    assert [line.answer() for _ in range(4)] == [None] * 4


def test_joined_at_two_answers_turn_taking_is_not_enough() -> None:
    line = Line(fresh=False)
    assert line.answer() is None
    line.pairing.joined()
    assert line.answer() is None
    line.ask()
    assert line.answer() is None


def test_pipelining_on_a_joined_connection_that_has_shown_itself() -> None:
    line = Line(fresh=False)
    first = line.ask()
    assert line.answer() is first
    asked = [line.ask() for _ in range(3)]
    assert [line.answer() for _ in range(3)] == asked


def test_a_request_may_come_late_but_not_from_before_we_joined() -> None:
    assert Line().pairing.may_come_late
    line = Line(fresh=False)
    assert not line.pairing.may_come_late
    line.ask()
    assert line.pairing.may_come_late


def test_too_many_wait() -> None:
    line = Line()
    for _ in range(WAITING_MAX + 1):
        line.ask()
    assert not line.pairing.waiting
    assert line.answer() is None
