"""What really happened, according to the programs themselves: an access log or a client's output, one ``Truth`` an exchange."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Truth:
    """One exchange as one program reports it."""

    method: str
    target: str
    """The request target as it is in the request line."""
    status: int
    response_bytes: int | None
    """Bytes of the response's body, without chunk framing; None where the program does not say."""
    request_bytes: int | None = None
    """Bytes of the request's body; None where the program does not say."""
    response_start: str | None = None
    """The first 4096 characters of the (ASCII) response body, where the test knows them."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One exchange as the test plans it: what to send, and what must come back."""

    method: str
    target: str
    status: int
    response: bytes | None = None
    """The whole body of the response; None where the server decides (its error pages)."""
    request: bytes = b""

    @property
    def response_bytes(self) -> int | None:
        return None if self.response is None else len(self.response)


def pattern(size_bytes: int, seed: str) -> bytes:
    """ASCII that depends on the seed at every place, so that a swapped or shifted body never looks right."""
    count = size_bytes // (len(seed) + 8) + 1
    return "".join(f"{seed}:{number:06d}\n" for number in range(count)).encode()[:size_bytes]


def from_json_log(text: str) -> list[Truth]:
    """Access logs of our servers and outputs of our clients: one JSON object a line with ``method`` and ``target`` (or ``url``, or the
    whole request ``line``), ``status``, and perhaps ``response_body_bytes`` and ``request_body_bytes`` (numbers, or strings of digits)."""
    found = []
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        entry: dict[str, Any] = json.loads(line)
        if "line" in entry:
            entry["method"], entry["target"], _ = str(entry["line"]).split(" ")
        if "method" not in entry:
            continue
        found.append(
            Truth(
                method=str(entry["method"]),
                target=str(entry["target"]) if "target" in entry else target_of(str(entry["url"])),
                status=int(entry["status"]),
                response_bytes=_number(entry.get("response_body_bytes")),
                request_bytes=_number(entry.get("request_body_bytes")),
            )
        )
    return found


def target_of(url: str) -> str:
    return "/" + url.partition("://")[2].partition("/")[2]


def _number(value: Any) -> int | None:
    return None if value in ("", "-", None) else int(value)


def agreed(asks: Sequence[Ask], *told: Sequence[Truth]) -> list[Truth]:
    """The one truth in which the plan and every program agree, in the order of the plan.

    Sizes that the plan leaves open (a server's error pages) come from the programs; a program that disagrees with the
    plan or with another program fails the test before the agent is looked at.
    """
    wanted = Counter((ask.method, ask.target, ask.status) for ask in asks)
    sizes: dict[tuple[str, str, int], set[int]] = {}
    for ask in asks:
        if ask.response_bytes is not None:
            sizes.setdefault((ask.method, ask.target, ask.status), set()).add(ask.response_bytes)
    for number, truth in enumerate(told):
        seen = Counter((t.method, t.target, t.status) for t in truth)
        assert seen == wanted, (
            f"program {number} tells another story than the plan: missing {wanted - seen}, extra {seen - wanted}"
        )
        for t in truth:
            if t.response_bytes is not None:
                sizes.setdefault((t.method, t.target, t.status), set()).add(t.response_bytes)
    found = []
    for ask in asks:
        known = sizes.get((ask.method, ask.target, ask.status), set())
        assert len(known) == 1, f"{ask.method} {ask.target}: the size of the response is {known or 'not known'}"
        found.append(
            Truth(
                ask.method,
                ask.target,
                ask.status,
                min(known),
                len(ask.request),
                None if ask.response is None else ask.response[:4096].decode("ascii"),
            )
        )
    return found


def app_plan() -> list[Ask]:
    """23 exchanges for the small servers in ``programs/``, which all answer alike:

    ``/bytes/N`` with N bytes of ``pattern``, ``/echo`` with what it was sent, anything else with 404.
    """

    def get(size: int, query: str = "") -> Ask:
        return Ask("GET", f"/bytes/{size}{query}", 200, pattern(size, f"/bytes/{size}"))

    sizes = (0, 1, 17, 100, 1000, 4095, 4096, 4097, 10_000, 65_536, 200_000)
    plan = [get(size) for size in sizes]
    plan += [get(300, "?q=a%20b&c=%C3%A9"), get(2000, "?again")]
    plan += [Ask("HEAD", "/bytes/1000", 200, b""), Ask("HEAD", "/missing", 404, b"")]
    plan += [Ask("GET", target, 404, b"no such thing\n") for target in ("/missing?x=1", "/missing/too")]
    for number, (method, size) in enumerate(
        (("POST", 1), ("POST", 1000), ("PUT", 5000), ("POST", 200_000), ("PUT", 60))
    ):
        body = pattern(size, f"{method}{number}")
        plan.append(Ask(method, f"/echo?{number}", 200, body, body))
    plan.append(Ask("POST", "/missing", 404, b"no such thing\n", b"ten bytes."))
    assert len(plan) == 23
    # Sizes mixed, so that a large body stands between small ones on one connection.
    return plan[::3] + plan[1::3] + plan[2::3]


GO_PATTERN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-\n"


def go_plan() -> list[Ask]:
    """23 exchanges for ``server/`` of this repository."""

    def get(size: int, query: str = "") -> Ask:
        return Ask("GET", f"/bytes/{size}{query}", 200, (GO_PATTERN * (size // 64 + 1))[:size])

    plan = [get(size) for size in (0, 1, 17, 100, 1000, 4095, 4096, 4097, 10_000, 65_536, 200_000)]
    plan += [Ask("GET", "/", 200), Ask("GET", "/healthz?probe=1", 200), Ask("HEAD", "/bytes/1000", 200, b"")]
    plan += [Ask("GET", "/missing?x=1", 404), Ask("GET", "/status/503", 503), Ask("GET", "/status/204", 204, b"")]
    for number, (method, size) in enumerate((("POST", 1), ("POST", 1000), ("PUT", 5000), ("POST", 200_000))):
        body = pattern(size, f"{method}{number}")
        plan.append(Ask(method, f"/echo?{number}", 200, body, body))
    plan += [Ask("POST", "/status/404", 404, None, b"ten bytes."), Ask("GET", "/echo?word=cup", 200, b"word=cup")]
    assert len(plan) == 23
    return plan[::3] + plan[1::3] + plan[2::3]
