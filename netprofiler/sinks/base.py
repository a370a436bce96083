"""What a sink is.

Contract: `emit` gets the messages of one round in order and does not keep them; `flush` brings everything out;
`close` does, too, and ends. A sink that cannot write counts (`Counters.output_failed`), says so once, and goes on.
"""

from __future__ import annotations

from typing import Protocol

from netprofiler.exchange import Message


class Sink(Protocol):
    """See above."""

    def emit(self, messages: list[Message]) -> None: ...

    def flush(self) -> None: ...

    def reopen(self) -> None:
        """SIGHUP: a file that was moved away is made anew."""

    def set_wall_offset(self, offset_ns: int) -> None:
        """What makes wall clock of a message's times has changed: the clock was set."""

    def close(self) -> None: ...


class OutputClosed(Exception):
    """Nobody reads our standard output any more (`| head`): a reason to end, not an error."""
