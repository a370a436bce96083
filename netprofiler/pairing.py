"""Which response answers which request.

Contract: HTTP/1 answers in order, so the next response belongs to the request that waits longest, as long as every
request and every response was seen. `Pairing.certain` says whether that holds. Once it does not, nothing is paired
until it holds again; a response without a request is a record without partner, never somebody else's.

How certainty is lost and found:

1. Bytes are lost where a message may have begun (`lost`): requests that waited before a hole in the *request* stream
   still get their responses; after a hole in the *response* stream nobody waits any more. Certain again when a request
   comes after both directions were silent for QUIET_NS: nothing is then under way. Turn-taking alone would not do: a
   client that keeps two requests under way looks just like one that waits, when one of the two was lost.
2. The connection was joined after its beginning, and the first thing seen was an answer, or the middle of something
   (`joined`): certain again when a request comes while no response is under way, unless pipelining has been seen.
3. More than WAITING_MAX requests wait: nobody pipelines that deep, so we misunderstand something; as 1.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from netprofiler.exchange import Message

QUIET_NS: Final = 1_000_000_000
WAITING_MAX: Final = 4096


class Pairing:
    __slots__ = ("_joined", "certain", "count", "pipelined", "waiting")

    def __init__(self, fresh: bool) -> None:
        self.waiting: deque[Message] = deque()
        self.certain = True
        self.count = 0
        """Exchanges so far: the next one's number is one more."""
        self.pipelined = False
        self._joined = not fresh

    @property
    def may_come_late(self) -> bool:
        """A response is there and nobody waits: can it be that its request only reaches us later? Not where we joined
        and have not seen any: then it was sent before we came."""
        return self.certain and not (self._joined and not self.count)

    def lost(self, requests: bool) -> None:
        """A hole in the stream of requests (or of responses) that may hide whole messages."""
        self.certain = False
        self._joined = False
        if not requests:
            self.waiting.clear()

    def joined(self) -> None:
        """What came first was not the beginning of an exchange."""
        if self.certain:
            self.certain = False
            self.waiting.clear()

    def request(self, message: Message, quiet_ns: int, response_under_way: bool) -> None:
        """A request's head is there. `quiet_ns`: how long both directions had been silent before it."""
        if not self.certain and not self.waiting and not response_under_way:
            self.certain = quiet_ns >= QUIET_NS or (self._joined and not self.pipelined)
        elif self.waiting:
            self.pipelined = True
        if self.certain:
            self.waiting.append(message)
            if len(self.waiting) > WAITING_MAX:
                self.lost(requests=False)

    def response(self, final: bool) -> Message | None:
        """The request that the response which begins now answers; a final one takes it out of the queue."""
        if not self.waiting:
            return None
        return self.waiting.popleft() if final else self.waiting[0]
