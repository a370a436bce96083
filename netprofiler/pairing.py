"""Which response answers which request.

Contract: HTTP/1 answers in order, so the next response belongs to the request that waits longest, as long as every
request and every response was seen. `Pairing.certain` says whether that holds. Once it does not, nothing is paired
until it holds again; a response without a request is a record without partner, never somebody else's.

How certainty is lost and found:

1. Bytes are lost where a message may have begun (`lost`): requests that waited before a hole in the *request* stream
   still get their responses; after a hole in the *response* stream nobody waits any more. Certain again when a request
   comes after both directions were silent for QUIET_NS, and all requests seen since have been answered: nothing is then
   under way. Turn-taking alone would not do: a client that keeps two requests under way looks just like one that
   waits, when one of the two was lost.
2. The connection was joined after its beginning, and the first thing seen was an answer, or the middle of something
   (`joined`): certain again when a request comes while no response is under way.
3. On a joined connection turn-taking has to do, or a busy one would never pair: nearly all clients wait. What shows
   that this one does not (a second request, before the first that we believed in is answered; two answers to what we
   have not seen) makes it uncertain as in 1.
4. More than WAITING_MAX requests wait: nobody pipelines that deep, so we misunderstand something; as 1.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from netprofiler.exchange import Message

QUIET_NS: Final = 1_000_000_000
WAITING_MAX: Final = 4096


class Pairing:
    """The requests of one connection that wait for their responses."""

    __slots__ = ("_asked", "_believed", "_joined", "_unexplained", "certain", "count", "waiting")

    def __init__(self, fresh: bool) -> None:
        self.waiting: deque[Message] = deque()
        self.certain = True
        self.count = 0
        """Exchanges so far: the next one's number is one more."""
        self._joined = not fresh
        """Turn-taking is enough to become certain."""
        self._believed = 0 if fresh else 1
        """Number of the request with which we became certain by turn-taking alone."""
        self._asked = 0
        """Requests seen in uncertainty and not answered yet."""
        self._unexplained = 0
        """Answers to nothing that we saw."""

    @property
    def may_come_late(self) -> bool:
        """A response is there and nobody waits: can it be that its request only reaches us later? Not where we joined
        and have not seen any: then it was sent before we came.
        """
        return self.certain and not (self._joined and not self.count)

    def lost(self, requests: bool) -> None:
        """A hole in the stream of requests (or of responses) that may hide whole messages."""
        self.certain = False
        self._joined = False
        if not requests:
            self.waiting.clear()
            self._asked = 0

    def joined(self) -> None:
        """What came first was not the beginning of an exchange."""
        if self.certain:
            self.certain = False
            self.waiting.clear()

    def request(self, message: Message, quiet_ns: int, response_under_way: bool) -> None:
        """A request's head is there. `quiet_ns`: how long both directions had been silent before it."""
        waiting = self.waiting
        if not self.certain:
            quiet = quiet_ns >= QUIET_NS
            if (quiet or self._joined) and not (waiting or response_under_way or self._asked):
                self.certain = True
                self._believed = 0 if quiet else message.number
            else:
                self._asked += 1
        elif waiting and waiting[0].number == self._believed:
            self.lost(requests=False)
            self._asked = 2
        if self.certain:
            waiting.append(message)
            if len(waiting) > WAITING_MAX:
                self.lost(requests=False)

    def response(self, final: bool) -> Message | None:
        """The request that the response which begins now answers; a final one takes it out of the queue."""
        waiting = self.waiting
        if waiting:
            return waiting.popleft() if final else waiting[0]
        if final:
            if self._asked:
                self._asked -= 1
            else:
                self._unexplained += 1
                if self._unexplained > 1:
                    self._joined = False
        return None
