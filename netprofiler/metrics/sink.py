"""Messages → numbers: the sink behind `--metrics-address`.

Contract: `emit` counts each exchange once at each end that was seen: when its final response has ended, under the process that
received it (a client) or sent it (a server). What is not an exchange is counted for itself: a request whose connection ended
without a response (`unanswered`), a response whose request is not known (`unpaired`). `tick` lets time pass; `add_counts`
merges what was added up elsewhere. These three are for one thread, the main one; `snapshot` is for any.

A message costs a look-up of its connection; a response one more, of what it is (target, method, status), and a few additions.
What is looked up first is made by the long way: names (services.py), routes (routes.py), tables (series.py).

Held, each with a bound: an `_End` for each connection, ENDS_MAX; the short way's CACHE_MAX; for a process whose name is not
known yet, a fraction of a second, BACKLOG_MAX messages; EARLY_MAX requests that end after their responses.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from netprofiler.exchange import Completeness, Direction, Fields, Grpc, Head, Link, Message, Process, Role, WebSocket
from netprofiler.metrics.health import Health
from netprofiler.metrics.routes import RoutePatterns, authority_of, guess_route, path_of
from netprofiler.metrics.series import BUCKETS, DURATION_BOUNDS_NS, OTHER, Place, Series, Tables
from netprofiler.metrics.services import Owner, Service, ServiceNames, clean, without_looking
from netprofiler.sources.tallies import Asker, Tally

ENDS_MAX: Final = 131_072
"""Twice the connections of the pipeline: those that are gone stay until the next `tick` that looks."""
CACHE_MAX: Final = 8_192
CACHED_TARGET_MAX: Final = 256
"""Characters of a target that is worth remembering: 2 MB in all."""
PLACES_MAX: Final = 8_192
BACKLOG_MAX: Final = 4_096
EARLY_MAX: Final = 1_024
NAME_PATIENCE_NS: Final = 1_000_000_000
"""A name that takes longer than this to find out is not waited for."""
SWEEP_NS: Final = 1_000_000_000

_OPEN: Final = Completeness.OPEN
_PARTIAL: Final = Completeness.PARTIAL
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
"""RFC 9110, section 7.2: what a Host that is one looks like."""
_NO_FIELDS: Final = Fields((), None, False, False, (), False, "")


class _End:
    """One connection as its process uses it."""

    __slots__ = ("answered", "asked", "client_fields", "is_server", "link", "owner", "pid", "place", "process")

    def __init__(self, link: Link, owner: Owner) -> None:
        self.link = link
        self.pid = -1
        self.process: Process | None = None
        self.owner = owner
        self.is_server = False
        self.place: Place | None = None
        self.client_fields: Fields | None = None
        """Of a client: the header fields whose Host `place` is of."""
        self.asked = 0
        self.answered = 0


@dataclass(frozen=True, slots=True)
class SeriesSnapshot:
    """One `Series` as of a moment."""

    family: str
    service: Service
    labels: tuple[tuple[str, str], ...]
    buckets: tuple[int, ...]
    sum_ns: int
    requests: int
    request_bytes: int
    response_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that was counted, as of a moment."""

    series: list[SeriesSnapshot]
    unanswered: list[tuple[Service, str, int]]
    """Service, ``client`` or ``server``, requests."""
    unpaired: list[tuple[Service, str, int]]
    other: dict[str, int]
    """Exchanges counted under OTHER, by the label that was over its bound; ``series``: by the bound of series."""
    dropped: int
    """Series that made room."""
    messages: int
    health: Health | None


class Metrics:
    """See above. A `Sink` (sinks/base.py)."""

    def __init__(self, names: ServiceNames, routes: Sequence[str] = ()) -> None:
        self._names = names
        self._patterns = RoutePatterns(routes)
        self._lock = threading.Lock()
        self._tables = Tables()
        self._epoch = 0
        self._ends: dict[Link, _End] = {}
        self._cache: dict[tuple[object, ...], Series] = {}
        self._places: dict[tuple[object, ...], Place] = {}
        self._waiting: list[Owner] = []
        self._backlog = 0
        self._early: dict[Message, Series] = {}
        self._messages = 0
        self._now_ns = 0
        self._sweep_ns = 0
        self._look_at_health: Callable[[], Health | None] | None = None
        self._health: Health | None = None
        self._ticked_ns = 0

    @property
    def instance(self) -> str:
        return self._names.instance

    @property
    def is_ready(self) -> bool:
        """Probes are attached, and rounds go by."""
        return self._health is not None

    @property
    def ticked_ns(self) -> int:
        """When the main thread was last here (monotonic clock); 0: it was not yet."""
        return self._ticked_ns

    def watch(self, health: Callable[[], Health | None]) -> None:
        """Ask this, about once a second, how the capture is; None: it is not attached."""
        self._look_at_health = health

    # --- counting ----------------------------------------------------------------------------------------------------

    def emit(self, messages: list[Message]) -> None:
        """The hot path."""
        ends = self._ends
        cache = self._cache
        with self._lock:
            self._messages += len(messages)
            for message in messages:
                end = ends.get(message.link)
                if end is None or end.pid != message.pid or end.process is not message.process:
                    if message.link.passive:
                        continue
                    end = self._adopt(message, end)
                extra = message.extra
                if message.completeness is _OPEN or extra.__class__ is WebSocket:
                    continue
                head = message.head
                if head.is_request:
                    end.asked += 1
                    if self._early:
                        self._end_early(message)
                    continue
                status = head.status
                if status < 200 and status not in (0, 101):
                    continue  # interim
                request = message.request
                if request is None:
                    self._unpaired(end.owner, end.is_server, message.end_ns)
                    continue
                end.answered += 1
                asked = request.head
                place = end.place
                if place is None or (end.client_fields is not None and end.client_fields is not asked.fields):
                    if end.owner.service is None:
                        self._count_long(end, message, request)
                        continue
                    place = self._place_of(end, end.owner, asked)
                if extra is not None:
                    self._count_long(end, message, request)
                    continue
                series = cache.get((place, asked.target, asked.method, status, asked.version))
                if series is None or message.completeness is _PARTIAL:
                    self._count_long(end, message, request)
                    continue
                duration = message.end_ns - request.time_ns
                if duration <= 0:
                    duration = 0
                    series.buckets[0] += 1
                else:
                    series.buckets[bisect_left(DURATION_BOUNDS_NS, duration)] += 1
                    series.sum_ns += duration
                series.response_bytes += message.body_bytes
                series.last_ns = message.end_ns
                if end.answered <= end.asked:
                    series.requests += 1
                    series.request_bytes += request.body_bytes
                else:
                    self._count_request(end, request, series)

    def add_counts(
        self,
        pid: int,
        role: Role,
        method: str,
        status: int,
        path: str,
        protocol: str,
        count: int,
        duration_bucket_counts: Sequence[int],
        duration_sum_ns: int,
        request_bytes_sum: int,
        response_bytes_sum: int,
        *,
        process: Process | None = None,
        address: str = "",
        port: int = 0,
        scheme: str = "http",
        incomplete: bool = False,
        now_ns: int = 0,
    ) -> None:
        """Exchanges that were added up elsewhere: `count` of them, all with these labels. `duration_bucket_counts`: one more than
        DURATION_BOUNDS_NS, not cumulated, `count` in sum. `path`: the request target, or its start. `protocol`: as in `Head`.
        `address`, `port`: the server's.
        """
        if len(duration_bucket_counts) != BUCKETS or sum(duration_bucket_counts) != count:
            raise ValueError("buckets that are not those of DURATION_BOUNDS_NS, or do not hold `count` exchanges")
        with self._lock:
            self._messages += 2 * count
            now_ns = max(now_ns, self._now_ns)
            owner = self._names.owner(pid, process)
            self._merge(
                owner,
                now_ns,
                (role is Role.SERVER, address, port, scheme),
                (method, status, path, protocol, incomplete),
                tuple(duration_bucket_counts),
                (duration_sum_ns, request_bytes_sum, response_bytes_sum),
            )

    def _merge(
        self,
        owner: Owner,
        now_ns: int,
        where: tuple[bool, str, int, str],
        what: tuple[str, int, str, str, bool],
        counts: Sequence[int],
        sums: tuple[int, int, int],
    ) -> None:
        """`where`: is it a server, address, port, scheme; `what`: method, status, target, version, was it cut short; `sums`: durations, sizes."""
        merge = partial(self._merge, owner, now_ns, where, what, counts, sums)
        if owner.service is None and self._wait(owner, merge, now_ns):
            return
        assert owner.service is not None
        method, status, path, protocol, incomplete = what
        series = self._tables.find_http(
            self._place(owner.service, *where),
            method,
            status,
            self._route(path),
            protocol,
            now_ns,
            incomplete=incomplete,
        )
        self._check_epoch()
        for index, more in enumerate(counts):
            series.buckets[index] += more
        sum_ns, request_bytes, response_bytes = sums
        series.sum_ns += sum_ns
        series.requests += sum(counts)
        series.request_bytes += request_bytes
        series.response_bytes += response_bytes
        series.last_ns = now_ns

    def add_tally(self, tally: Tally, process: Process | None) -> None:
        """What the kernel side has added up: as `emit` would have counted it."""
        host, port = host_and_port(tally.host or authority_of(tally.target)) if not tally.asker.is_server else ("", 0)
        counts = tally.buckets[:BUCKETS]
        self.add_counts(
            tally.asker.pid,
            Role.SERVER if tally.asker.is_server else Role.CLIENT,
            tally.method,
            tally.status,
            tally.target,
            tally.version,
            sum(counts),
            counts,
            tally.duration_ns,
            tally.request_bytes,
            tally.response_bytes,
            process=process,
            address=host or tally.address,
            port=(port or tally.port) if host else tally.port,
            scheme="https" if tally.is_tls else "http",
            incomplete=tally.incomplete,
        )

    def add_unanswered(self, asker: Asker, count: int, process: Process | None) -> None:
        """Requests whose connection ended before a response, as the kernel side has added them up."""
        with self._lock:
            self._messages += count
            self._unanswered(self._names.owner(asker.pid, process), asker.is_server, count, self._now_ns)

    def _adopt(self, message: Message, end: _End | None) -> _End:
        """The connection is new, or another process has it now."""
        link = message.link
        owner = self._names.owner(message.pid, message.process)
        if end is None:
            if len(self._ends) >= ENDS_MAX:
                self._ends.clear()
            end = self._ends[link] = _End(link, owner)
        end.owner = owner
        end.pid = message.pid
        end.process = message.process
        if link.role is None:
            end.is_server = message.head.is_request == (message.direction == Direction.RECV)
        else:
            end.is_server = link.role is Role.SERVER
        end.place = None
        end.client_fields = None if end.is_server else _NO_FIELDS
        return end

    def _count_long(self, end: _End, message: Message, request: Message) -> None:
        now_ns = message.end_ns
        owner = end.owner
        if owner.service is None and self._wait(owner, partial(self._recount, end, owner, message, request), now_ns):
            return
        place = self._place_of(end, owner, request.head)
        head, asked = message.head, request.head
        incomplete = message.completeness is _PARTIAL and not head.fields.unknown
        extra = message.extra if isinstance(message.extra, Grpc) else request.extra
        if isinstance(extra, Grpc):
            status = message.extra.status if isinstance(message.extra, Grpc) else None
            service, method = extra.service, extra.method
            if isinstance(request.extra, Grpc):
                service, method = request.extra.service, request.extra.method
            key = (place, asked.target, status, head.status, incomplete)
            known = self._cache.get(key)
            if known is None:
                known = self._tables.find_rpc(
                    place, service, method, status, head.status, now_ns, incomplete=incomplete
                )
                self._check_epoch()
                self._remember(key, known, asked.target)
            series = known
        else:
            series = self._tables.find_http(
                place,
                asked.method,
                head.status,
                "" if asked.method == "CONNECT" else self._route(asked.target),
                asked.version,
                now_ns,
                incomplete=incomplete,
            )
            self._check_epoch()
            if not incomplete:
                self._remember((place, asked.target, asked.method, head.status, asked.version), series, asked.target)
        duration = max(0, message.end_ns - request.time_ns)
        series.buckets[bisect_left(DURATION_BOUNDS_NS, duration)] += 1
        series.sum_ns += duration
        series.response_bytes += message.body_bytes
        series.last_ns = now_ns
        self._count_request(end, request, series)

    def _remember(self, key: tuple[object, ...], series: Series, target: str) -> None:
        if len(target) <= CACHED_TARGET_MAX:
            if len(self._cache) >= CACHE_MAX:
                self._cache.clear()
            self._cache[key] = series

    def _count_request(self, end: _End, request: Message, series: Series) -> None:
        """Its size: now or, if it is not over yet (an answer to half an upload), when it is. Of HTTP/2's streams side by side
        that cannot be told; there it is what has come by now.
        """
        if end.answered > end.asked and len(self._early) < EARLY_MAX:
            self._early[request] = series
        else:
            series.requests += 1
            series.request_bytes += request.body_bytes

    def _end_early(self, request: Message) -> None:
        """A request has ended: was it one whose response ended before?"""
        series = self._early.pop(request, None)
        if series is not None:
            series.requests += 1
            series.request_bytes += request.body_bytes

    def _unpaired(self, owner: Owner, is_server: bool, now_ns: int) -> None:
        if owner.service is None and self._wait(owner, partial(self._unpaired, owner, is_server, now_ns), now_ns):
            return
        assert owner.service is not None
        self._tables.shelf(owner.service, now_ns).unpaired[is_server] += 1

    # --- labels ------------------------------------------------------------------------------------------------------

    def _route(self, target: str) -> str:
        path = path_of(target)
        return self._patterns.match(path) or guess_route(path)

    def _place(self, service: Service, is_server: bool, address: str, port: int, scheme: str) -> Place:
        key = (service, is_server, address, port, scheme)
        place = self._places.get(key)
        if place is None:
            if len(self._places) >= PLACES_MAX:
                self._places.clear()
            place = self._places[key] = Place(service, is_server, address, port, scheme)
        return place

    def _place_of(self, end: _End, owner: Owner, asked: Head) -> Place:
        """Sets `end.place`, for the short way. A server's address is where it was reached; a client's, whom it asked for."""
        link = end.link
        if end.is_server:
            if end.place is not None:
                return end.place
            address, port = link.local_ip or clean(link.unix_path or ""), link.local_port
        else:
            address, port = link.remote_ip or clean(link.unix_path or ""), link.remote_port
            host, host_port = host_of(asked)
            if host:
                address, port = host, host_port or port
            end.client_fields = asked.fields
        assert owner.service is not None
        end.place = self._place(owner.service, end.is_server, address, port, "http" if link.tls is None else "https")
        return end.place

    def _check_epoch(self) -> None:
        """Series were dropped: what remembers them must not."""
        if self._epoch != self._tables.epoch:
            self._epoch = self._tables.epoch
            self._cache.clear()

    # --- names that are not known yet --------------------------------------------------------------------------------

    def _wait(self, owner: Owner, count: Callable[[], None], now_ns: int) -> bool:
        """Call `count` once the name is known. False: there is no more room, and a name has been given."""
        if self._backlog >= BACKLOG_MAX:
            owner.service = owner.service or without_looking(owner.process)
            return False
        if not owner.backlog:
            owner.since_ns = now_ns
            self._waiting.append(owner)
        owner.backlog.append(count)
        self._backlog += 1
        return True

    def _count_waiting(self, now_ns: int, *, patient: bool = True) -> None:
        still = []
        for owner in self._waiting:
            if owner.service is None:
                if patient and now_ns - owner.since_ns < NAME_PATIENCE_NS:
                    still.append(owner)
                    continue
                owner.service = without_looking(owner.process)
            counts, owner.backlog = owner.backlog, []
            self._backlog -= len(counts)
            for count in counts:
                count()
        self._waiting = still

    def _recount(self, end: _End, owner: Owner, message: Message, request: Message) -> None:
        """As if the message came now, from the process that it came from."""
        if end.owner is owner:
            self._count_long(end, message, request)
            return
        before = _End(end.link, owner)
        before.pid, before.process = message.pid, message.process
        before.is_server = end.is_server
        before.client_fields = end.client_fields
        before.asked = before.answered = 1
        self._count_long(before, message, request)

    # --- time --------------------------------------------------------------------------------------------------------

    def tick(self, now_ns: int, open_links: Callable[[], Container[Link]]) -> None:
        """The end of a round. `open_links`: the connections that may still bring messages; asked about once a second."""
        self._now_ns = self._ticked_ns = now_ns
        if self._waiting:
            with self._lock:
                self._count_waiting(now_ns)
        if now_ns < self._sweep_ns:
            return
        self._sweep_ns = now_ns + SWEEP_NS
        if self._look_at_health is not None:
            self._health = self._look_at_health()
        links = open_links()
        gone = []
        for link, end in self._ends.items():
            if link not in links:
                gone.append(end)
            elif end.place is not None and end.place.service is not end.owner.service:
                end.place = None  # more is known of the process by now
        with self._lock:
            for end in gone:
                self._gone(end, now_ns)

    def _gone(self, end: _End, now_ns: int) -> None:
        del self._ends[end.link]
        for request in [request for request in self._early if request.link is end.link]:
            self._end_early(request)
        if end.asked > end.answered:
            self._unanswered(end.owner, end.is_server, end.asked - end.answered, now_ns)

    def _unanswered(self, owner: Owner, is_server: bool, count: int, now_ns: int) -> None:
        if owner.service is None and self._wait(
            owner, partial(self._unanswered, owner, is_server, count, now_ns), now_ns
        ):
            return
        assert owner.service is not None
        self._tables.shelf(owner.service, now_ns).unanswered[is_server] += count

    def flush(self) -> None:
        """What waits for a name is counted without it."""
        with self._lock:
            self._count_waiting(self._now_ns, patient=False)

    def reopen(self) -> None:
        """Nothing is written to a file."""

    def set_wall_offset(self, offset_ns: int) -> None:
        """Nothing here has a date."""

    def close(self) -> None:
        self.flush()
        self._names.close()

    # --- reading -----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """For any thread."""
        with self._lock:
            other: Counter[str] = Counter(self._tables.dropped_other)
            series = []
            for each in self._tables.series():
                series.append(
                    SeriesSnapshot(
                        each.family,
                        each.service,
                        each.labels,
                        tuple(each.buckets),
                        each.sum_ns,
                        each.requests,
                        each.request_bytes,
                        each.response_bytes,
                    )
                )
                for label in each.other:
                    other[label] += each.count
            unanswered, unpaired = [], []
            for service, shelf in self._tables.shelves.items():
                for is_server, role in enumerate((Role.CLIENT, Role.SERVER)):
                    unanswered.append((service, role.value, shelf.unanswered[is_server]))
                    unpaired.append((service, role.value, shelf.unpaired[is_server]))
            return Snapshot(
                series=series,
                unanswered=unanswered,
                unpaired=unpaired,
                other=dict(other),
                dropped=self._tables.dropped,
                messages=self._messages,
                health=self._health,
            )


def host_of(asked: Head) -> tuple[str, int]:
    """Whom a request is for: host and port (0: it does not say); OTHER for what is no host. Empty: it does not say either."""
    authority = next((value for name, value in asked.fields.headers if name.lower() in ("host", ":authority")), "")
    return host_and_port(authority or authority_of(asked.target))


def host_and_port(authority: str) -> tuple[str, int]:
    """As `host_of`."""
    if not authority:
        return "", 0
    match = _HOST.fullmatch(authority)
    if match is None:
        return OTHER, 0
    port = int(match[2] or 0)
    return match[1].strip("[]").lower(), port if port <= 65_535 else 0
