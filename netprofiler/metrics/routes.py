"""Request target → route: a path with what varies taken out, so that it can be a label.

Contract: pure functions, and `RoutePatterns`, which holds what `--route` names. Nothing raises for any target, and what comes
out has at most SEGMENTS_MAX segments of at most SEGMENT_MAX_CHARACTERS. How many routes there may be is the caller's matter
(series.py): paths of words are routes, and anybody can make them up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from netprofiler.errors import CommandError, ExitCode

VARIABLE: Final = "{id}"
REST: Final = "*"
SEGMENTS_MAX: Final = 8
"""Deeper paths end with REST: file trees."""
SEGMENT_MAX_CHARACTERS: Final = 32
"""Names that people give are shorter; longer ones are tokens, or titles of which there are many."""
DIGITS_MAX: Final = 3
"""`v1`, `oauth2`, `s3`, `iso8601` have up to 4 digits, but only the last more than this."""
PATTERNS_MAX: Final = 256

_WORD: Final = re.compile(r"[A-Za-z0-9._~!$'()+,;=:-]*")
_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}-?(?:[0-9A-Fa-f]{4}-?){3}[0-9A-Fa-f]{12}")
_HEX: Final = re.compile(r"(?=[^0-9]*[0-9])[0-9A-Fa-f]{6,}")
_PARTS: Final = re.compile(r"[._~-]")
_MIXED: Final = re.compile(r"(?=.*[0-9])(?=.*[a-z])(?=.*[A-Z])")
_MIXED_MIN_CHARACTERS: Final = 8
"""`aB3xY7kQ`: digits, upper and lower case in so many characters are no word."""


def path_of(target: str) -> str:
    """The path of a request target (RFC 9112, section 3.2); empty for `*` and the authority-form of CONNECT."""
    path = target
    if not path.startswith("/"):
        _, found, rest = path.partition("://")
        if not found:
            return ""
        slash = rest.find("/")
        path = rest[slash:] if slash >= 0 else "/"
    for mark in "?#":
        at = path.find(mark)
        if at >= 0:
            path = path[:at]
    return path


def authority_of(target: str) -> str:
    """Host and port in the absolute-form of a target, without user information; else empty."""
    if target.startswith("/"):
        return ""
    _, found, rest = target.partition("://")
    return re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2] if found else ""


def _varies(segment: str) -> bool:
    """Is this a number, a UUID, a hash, a token, an address, rather than a name?"""
    if len(segment) > SEGMENT_MAX_CHARACTERS or not _WORD.fullmatch(segment):
        return True
    digits = sum(character.isdigit() for character in segment)
    if not digits:
        return False
    if digits == sum(character.isalnum() for character in segment) or digits > DIGITS_MAX:
        return True
    if _UUID.fullmatch(segment):
        return True
    parts = _PARTS.split(segment)
    return any(
        part.isdigit() or _HEX.fullmatch(part) or (len(part) >= _MIXED_MIN_CHARACTERS and _MIXED.match(part))
        for part in parts
        if part and not (len(parts) > 1 and part.isdigit() and len(part) == 1)  # `jquery-3.min.js`, `v1.2`
    )


def guess_route(path: str) -> str:
    """`/users/4711/orders?…` → `/users/{id}/orders`. `path`: as `path_of` gives it; empty → empty."""
    if not path:
        return ""
    segments = path.split("/", SEGMENTS_MAX + 1)[1:]
    out = [VARIABLE if segment and _varies(segment) else segment for segment in segments[:SEGMENTS_MAX]]
    if len(segments) > SEGMENTS_MAX:
        out.append(REST)
    return "/" + "/".join(out)


class RoutePatterns:
    """What `--route` names: `/users/{id}`, `/users/:id`, `/static/*`. The first that fits names the route.

    A segment `{…}`, `:…` or `*` stands for any one; a `*` at the end for all that follows. Raises `CommandError` for what is no
    path.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        if len(patterns) > PATTERNS_MAX:
            raise CommandError(f"--route: at most {PATTERNS_MAX} patterns", ExitCode.USAGE)
        self._patterns = [(self._compile(pattern), pattern) for pattern in patterns]

    @staticmethod
    def _compile(pattern: str) -> re.Pattern[str]:
        if not pattern.startswith("/"):
            raise CommandError(f"--route {pattern}: a pattern begins with /", ExitCode.USAGE)
        *segments, last = pattern[1:].split("/")
        expression = ""
        for segment in segments:
            expression += "/" + RoutePatterns._segment(segment)
        if last == REST:
            expression += "(?:/.*)?"
        else:
            expression += "/" + RoutePatterns._segment(last)
        return re.compile(expression, re.DOTALL)

    @staticmethod
    def _segment(segment: str) -> str:
        variable = segment == REST or segment.startswith(":") or (segment.startswith("{") and segment.endswith("}"))
        return "[^/]+" if variable else re.escape(segment)

    def match(self, path: str) -> str | None:
        for expression, pattern in self._patterns:
            if expression.fullmatch(path):
                return pattern
        return None
