"""Secrets are replaced before they reach any output (docs/redaction.md has the names and the shapes).

Contract: what is given here belongs to a whole message, decoded: split, chunked and compressed secrets are whole again. Every
function takes text and gives text of the same meaning with `PLACEHOLDER` for each secret value, and the names of what was
replaced. Nothing raises, whatever the text; time is about linear in it.

Two steps, because nearly no message holds a secret: `suspicious` looks at bytes once, by Hyperscan (0.3 us and 0.3 us/KiB);
only where it finds what could be a secret, the rules below look for where it begins and ends (some 30 us/KiB). A rule finds
`_Span`s of the original text; what they cover together is replaced. So no rule has to know of another, and a form in a JSON
string in a form loses its secret all the same.

A text that was cut (`cut`) may end in the middle of a secret: whatever could be the beginning of one is replaced, too.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple
from urllib.parse import unquote_plus

import hyperscan

PLACEHOLDER: Final = "[redacted]"

_HEADERS: Final = frozenset(
    (
        "authorization",
        "proxy-authorization",
        "authentication",
        "cookie",
        "set-cookie",
        "x-api-key",
        "api-key",
        "apikey",
        "x-auth-token",
        "x-access-token",
        "x-amz-security-token",
        "x-csrf-token",
        "x-xsrf-token",
        "x-goog-api-key",
        "x-vault-token",
        "x-functions-key",
        "private-token",
    )
)
# Names of fields, compared without regard to case, dashes, underscores, and digits at their end.
_EXACT: Final = frozenset(
    (
        "auth",
        "authorization",
        "cookie",
        "cookies",
        "key",
        "otp",
        "pass",
        "session",
        "setcookie",
        "sid",
        "sig",
        "signature",
        "xamzsignature",
        "xamzcredential",
    )
)
# What a name ends with, in the same way: those that are secrets whatever is before them. In parts, between which - or _ may be.
_ENDINGS: Final = (
    "token",
    "password",
    "passwd",
    "pwd",
    "passphrase",
    "passcode",
    "password confirmation",
    "password confirm",
    "secret",
    "credential",
    "credentials",
    "jwt",
    "cvv",
    "cvc",
    "card number",
    "api key",
    "access key",
    "auth key",
    "secret key",
    "private key",
    "signing key",
    "encryption key",
    "master key",
    "shared key",
    "session key",
    "subscription key",
    "session id",
    "sess id",
)
_READABLE: Final = frozenset(("continuationtoken", "nexttoken", "nextpagetoken", "pagetoken", "prevpagetoken"))
"""Where a listing goes on: they end like secrets, and are none."""

_NAMES_MAX: Final = 4096
"""Names that are remembered with what they are; the names in traffic are few, unless somebody makes them up."""
_COMMAND_LINES_MAX: Final = 512
"""The same of processes; each is at most 4 KiB."""
_NAME_MAX: Final = 128
"""No field has a longer name that means something."""
_DEPTH_MAX: Final = 3
"""Texts that are percent-encoded inside of each other."""
_CARD_DIGITS_MIN, _CARD_DIGITS_MAX = 13, 19
"""ISO/IEC 7812: primary account numbers in use."""
_CARD_START_MIN: Final = 7
"""Digits at the end of a text that was cut that could be the beginning of a card number: six may be shown (PCI DSS 3.4)."""

# ---- rules: what the texts look like ----

_IN_NAME: Final = r"[\w.%\[\]$+-]"
_MEMBERS: Final = tuple(re.compile(rf"{quote}([^{quote}]{{1,{_NAME_MAX}}}+){quote}\s*(?::|=>)\s*") for quote in "\"'")
"""``"name": ``; inside of a string there is a backslash before each quote, the last of which is taken for a part of the name."""
_BARE_VALUE: Final = re.compile(r""":\s*(\\*["'])""")
_BARE_NAME: Final = re.compile(r"[\w$]+\Z")
"""``name: "`` of JavaScript and GraphQL."""
_LITERAL: Final = re.compile(r"""[^\s,}\]"'\\]+""")
_BRACKETS: Final = re.compile(r"""["{}\[\]]""")
_PAIR: Final = re.compile(rf"""(?<![\w.%\[\]$+/-])({_IN_NAME}{{1,{_NAME_MAX}}})=("[^"]*"?|'[^']*'?|[^&\s"'<>#\\]+)""")
"""``name=value`` in a URL, an attribute, a line of settings."""
_PATH_PARAMETER: Final = re.compile(r";([^=;/]+)=([^;/]+)")
_FORM_START: Final = re.compile(rf"{_IN_NAME}{{1,{_NAME_MAX}}}=")
_LINE: Final = re.compile(r"(?m)^[ \t]*(?:- )?([A-Za-z][\w.-]{0,63})[ \t]*:[ \t]*(?![ \t])([^\r\n]+)")
"""``name: value``, of YAML, or of a message in a message."""
_ELEMENT: Final = re.compile(
    rf"<([A-Za-z_][\w.:-]{{0,{_NAME_MAX}}})(?:\s[^<>]*)?>\s*([^<\s][^<]*|<!\[CDATA\[.*?(?:\]\]>|\Z))", re.DOTALL
)
_PART: Final = re.compile(r"""(?i)content-disposition:[ \t]*form-data;[^\r\n]*?\bname="?([^";\r\n]+)[^\r\n]*""")
_PART_HEAD_END: Final = re.compile(r"\r?\n(?:[^\r\n]+\r?\n)*?\r?\n")
_SCHEME: Final = re.compile(r"(?i)\b(bearer|basic)(?:\s|%20|\+)+([A-Za-z0-9._~+/=-]+)")
_WORD: Final = re.compile(r"[A-Za-z]?[a-z]{0,23}[.,]?\Z")
"""What may follow `bearer` in a sentence."""
_PARAMETER: Final = re.compile(r"[a-z_]+=\Z")
"""What may follow it in a challenge: ``Bearer realm="…"``."""
_JWT: Final = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*){0,4}")
_CARD: Final = re.compile(r"(?<!\d)(?<!\d\.)[2-68](?:[ -]?\d){12,18}(?!\d)")
_AS_NUMBER: Final = re.compile(r"[:\[,]\s*\Z")
_CARD_START: Final = re.compile(
    rf"(?<!\d)(?<!\d\.)[2-68](?:[ -]?\d){{{_CARD_START_MIN - 1},{_CARD_DIGITS_MAX - 1}}}[ -]?\Z"
)
_ISSUER: Final = re.compile(r"4|5[1-5]|2[2-7]|3[04-9]|6[0245]|8[16]")
"""Visa, Mastercard, American Express, Diners, JCB, Discover, Maestro, UnionPay: a number of another beginning is no card."""
_USERINFO: Final = re.compile(r"""://[^/\s:@"'<>]{0,256}:([^/\s@"'<>]{1,512})(?:@|\Z)""")
_ESCAPE: Final = re.compile(r"\\u([0-9a-fA-F]{4})")
_PARTS: Final = re.compile(r"[^-_ ]+")
_LAST_PART: Final = re.compile(r"[^.\[\]$:/@]+")

# On a command line, beside what is anywhere.
_OPTION: Final = re.compile(r"(?<!\S)--?([A-Za-z][\w-]{0,63})[ =]([^\s-]\S*)")
_USER: Final = re.compile(r"(?<!\S)(?:-u|-U|--user|--proxy-user)[ =]?[^\s:]*:(\S+)")
_HEADER_ARGUMENT: Final = re.compile(r"(?<!\S)([A-Za-z][\w-]{0,63}):\s*((?:(?:\S+;|Basic|Bearer|Digest|Token)\s+)*\S+)")


# What `Redactor.suspicious` tells apart, as bits.
_NAMES: Final = 1
_ENCODED: Final = 2
_FORM_DATA: Final = 4
_SCHEMES: Final = 8
_JWTS: Final = 16
_CARDS: Final = 32
_USERINFOS: Final = 64


class _Span(NamedTuple):
    start: int
    end: int
    name: str
    replacement: str = PLACEHOLDER


class Redactor:
    """`extra`: more names, of headers and fields alike. `enabled=False`: nothing is replaced."""

    def __init__(self, extra: Iterable[str] = (), *, enabled: bool = True) -> None:
        extra = tuple(extra)
        self.enabled = enabled
        self._headers = _HEADERS | {name.lower() for name in extra}
        self._exact = _EXACT | {_plain(name) for name in (*_HEADERS, *extra)}
        self._endings = tuple(ending.replace(" ", "") for ending in _ENDINGS)
        self._known: dict[str, bool] = {}
        self._known_headers: dict[str, bool] = {}
        self._known_command_lines: dict[str, tuple[str, bool]] = {}
        database, self._bits = _database(extra)
        self._scan: Callable[..., None] = database.scan
        self._found = 0

    # ---- names ----

    def is_secret_header(self, name: str) -> bool:
        known = self._known_headers.get(name)
        if known is None:
            lower = name.lower()
            known = self.enabled and (lower in self._headers or self._ends_secret(_plain(lower.removesuffix("-bin"))))
            if len(self._known_headers) >= _NAMES_MAX:
                self._known_headers.clear()
            self._known_headers[name] = known
        return known

    def is_secret_field(self, name: str) -> bool:
        """Of a query, a form or a structured body, however it is written: of ``user[password]`` it is the last part."""
        known = self._known.get(name)
        if known is None:
            parts = _LAST_PART.findall(name)
            plain = _plain(parts[-1]) if parts else ""
            known = self.enabled and (plain in self._exact or self._ends_secret(plain))
            if len(self._known) >= _NAMES_MAX:
                self._known.clear()
            self._known[name] = known
        return known

    def _ends_secret(self, plain: str) -> bool:
        return plain.endswith(self._endings) and plain not in _READABLE

    # ---- what sinks ask ----

    def suspicious(self, data: bytes, *, cut: bool = False) -> int:
        """What could be in it; 0 is certain: no secret."""
        if not self.enabled:
            return 0
        self._scan(data, match_event_handler=self._hit)
        found, self._found = self._found, 0
        if cut and _CARD_START.search(data[-2 * _CARD_DIGITS_MAX :].decode("latin-1")) is not None:
            found |= _CARDS
        return found

    def _hit(self, expression: int, *_: object) -> None:
        self._found |= self._bits[expression]

    def text(self, text: str, *, cut: bool = False) -> tuple[str, tuple[str, ...]]:
        """A body, or any other text → the same without secrets, and the names of these."""
        return _replace(text, self._spans(text, cut=cut))

    def octets(self, data: bytes, *, cut: bool = False) -> tuple[bytes, tuple[str, ...]]:
        """The same for what is no text."""
        text, names = self.text(data.decode("latin-1"), cut=cut) if self.suspicious(data, cut=cut) else ("", ())
        return (text.encode("latin-1"), names) if names else (data, ())

    def target(self, target: str) -> tuple[str, tuple[str, ...]]:
        """A request target."""
        found = self.suspicious(target.encode("utf-8", "replace"))
        if not found:
            return target, ()
        spans = list(_shapes(target, found, cut=False))
        path, mark, query = target.partition("?")
        spans += (
            _Span(match.start(2), match.end(2), match[1])
            for match in _PATH_PARAMETER.finditer(path)
            if self.is_secret_field(_unescaped(match[1]))
        )
        if mark:
            spans += self._form(query.partition("#")[0], len(path) + 1, "&;", 0)
        return _replace(target, spans)

    def field(self, name: str, value: str) -> tuple[str, bool]:
        """A header field's value, and whether something in it was replaced: all of it, by its name; or a part."""
        if not self.enabled:
            return value, False
        if self.is_secret_header(name):
            return PLACEHOLDER, True
        shown, names = _replace(value, self._spans(value, lines=False))
        if "%" in value and any(self._spans(unquote_plus(value), lines=False)):
            return PLACEHOLDER, True
        return shown, bool(names)

    def fields(self, fields: Iterable[tuple[str, str]]) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
        """Header fields, and the names of those in which something was replaced."""
        shown = list(fields)
        if not self.enabled:
            return tuple(shown), ()
        # One look at all values: that of a field by itself costs as much.
        found = self.suspicious("\n".join([value for _, value in shown]).encode("utf-8", "replace"))
        names: dict[str, None] = {}
        for index, (name, value) in enumerate(shown):
            if found or self.is_secret_header(name):
                redacted, hit = self.field(name, value)
                if hit:
                    shown[index] = (name, redacted)
                    names[name] = None
        return tuple(shown), tuple(names)

    def block(self, raw: str) -> str:
        """A block of header lines as text → the same without secrets."""
        if not self.enabled:
            return raw
        out: list[str] = []
        for line in _unfolded(raw):
            name, colon, value = line.partition(":")
            content = value.strip("\r\n \t")
            redacted, hit = self.field(name.strip(), content) if colon else (content, False)
            if not hit:
                out.append(line)
            elif redacted == PLACEHOLDER:
                out.append(f"{name}: {PLACEHOLDER}{_line_end(line)}")
            else:
                out.append(f"{name}:{value.replace(content, redacted)}")
        return "".join(out)

    def command_line(self, text: str) -> tuple[str, bool]:
        """Arguments joined by spaces, and whether something in them was replaced."""
        if not self.enabled or not text:
            return text, False
        known = self._known_command_lines.get(text)
        if known is None:
            if len(self._known_command_lines) >= _COMMAND_LINES_MAX:
                self._known_command_lines.clear()
            known = self._known_command_lines[text] = self._command_line(text)
        return known

    def _command_line(self, text: str) -> tuple[str, bool]:
        spans = list(self._spans(text, cut=False, depth=0))
        spans += (
            _Span(match.start(2), match.end(2), match[1])
            for pattern, is_secret in ((_OPTION, self.is_secret_field), (_HEADER_ARGUMENT, self.is_secret_header))
            for match in pattern.finditer(text)
            if is_secret(match[1])
        )
        spans += (_Span(match.start(1), match.end(1), "user") for match in _USER.finditer(text))
        shown, names = _replace(text, spans)
        return shown, bool(names)

    # ---- rules: where secrets are ----

    def _spans(self, text: str, *, cut: bool = False, lines: bool = True, depth: int = 0) -> Iterator[_Span]:
        """`lines`: it may be lines of a name and a value. `depth`: of percent-encodings around it."""
        found = self.suspicious(text.encode("utf-8", "replace"), cut=cut)
        if not found:
            return
        yield from _shapes(text, found, cut=cut)
        if not found & (_NAMES | _ENCODED | _FORM_DATA):
            return
        yield from self._members(text)
        if "=" in text:
            if _FORM_START.match(text):
                yield from self._form(text, 0, "&", depth)
            for match in _PAIR.finditer(text):
                if self.is_secret_field(_unescaped(match[1])):
                    yield _Span(match.start(2), match.end(2), match[1])
        if lines and ":" in text:
            for match in _LINE.finditer(text):
                if self._ends_secret(_plain(match[1])) or match[1].lower() in self._headers:
                    yield _Span(match.start(2), match.end(2), match[1])
        if "</" in text or cut:
            for match in _ELEMENT.finditer(text):
                if self.is_secret_field(match[1]):
                    yield _Span(match.start(2), match.end(2), match[1])
        if found & _FORM_DATA:
            yield from self._parts(text)

    def _members(self, text: str) -> Iterator[_Span]:
        """JSON and its relatives, whole or not."""
        for pattern in _MEMBERS:
            covered = 0  # what is in a value that is replaced need not be looked at again
            for match in pattern.finditer(text):
                if match.start() < covered:
                    continue
                name = match[1]
                quote = match[0][0]
                if "\\" in name:
                    plain = name.rstrip("\\")
                    quote = name[len(plain) :] + quote
                    name = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), plain)
                if self.is_secret_field(name):
                    for span in _value(text, match.end(), quote, name):
                        covered = span.end
                        yield span
        covered = 0
        for match in _BARE_VALUE.finditer(text):
            if match.start() >= covered and text[match.start() - 1 : match.start()] not in ('"', "'"):
                name_match = _BARE_NAME.search(text[max(0, match.start() - _NAME_MAX) : match.start()])
                if name_match is not None and self.is_secret_field(name_match[0]):
                    for span in _value(text, match.start(1), match[1], name_match[0]):
                        covered = span.end
                        yield span

    def _form(self, text: str, at: int, separators: str, depth: int) -> Iterator[_Span]:
        """application/x-www-form-urlencoded. `at`: where `text` begins."""
        for match in re.finditer(f"[^{separators}]+", text):
            name, _, value = match[0].partition("=")
            if not value:
                continue
            start = at + match.start() + len(name) + 1
            if self.is_secret_field(unquote_plus(name)):
                # A separator that should have been encoded does not end it.
                end = text.find("&", match.start())
                yield _Span(start, at + (len(text) if end < 0 else end), name)
            elif depth < _DEPTH_MAX and "%" in value and any(self._spans(unquote_plus(value), depth=depth + 1)):
                yield _Span(start, at + match.end(), name)

    def _parts(self, text: str) -> Iterator[_Span]:
        """multipart/form-data (RFC 7578)."""
        covered = 0
        for match in _PART.finditer(text):
            if match.start() < covered or not self.is_secret_field(match[1]):
                continue
            head = _PART_HEAD_END.match(text, match.end())
            if head is not None:
                end = text.find("\n--", head.end() - 1)
                end = len(text) if end < 0 else end - (text[end - 1] == "\r")
                if end > head.end():
                    covered = end
                    yield _Span(head.end(), end, match[1])


def _shapes(text: str, found: int, *, cut: bool) -> Iterator[_Span]:
    """What is a secret whatever its name."""
    if found & _SCHEMES:
        for match in _SCHEME.finditer(text):
            at_end = cut and match.end() == len(text)
            challenge = text.startswith('"', match.end()) and _PARAMETER.match(match[2])
            if at_end or (_is_credential(match[1], match[2]) and not challenge):
                yield _Span(match.start(2), match.end(2), match[1].lower())
    if found & _JWTS:
        for match in _JWT.finditer(text):
            if _is_jwt(match[0]) or (cut and match.end() == len(text)):
                yield _Span(match.start(), match.end(), "jwt")
    if found & _CARDS:
        for match in _CARD.finditer(text):
            if _is_card(re.sub(r"\D", "", match[0])):
                yield _Span(match.start(), match.end(), "card", _quoted_as(text, match.start(), match.end()))
        start = _CARD_START.search(text, max(0, len(text) - 2 * _CARD_DIGITS_MAX)) if cut else None
        if start is not None and _ISSUER.match(start[0]):
            yield _Span(start.start(), len(text), "card")
    if found & _USERINFOS:
        for match in _USERINFO.finditer(text):
            # Where the text is cut it could be the port of a host as well.
            if match[0].endswith("@") or (cut and not match[1].isdigit()):
                yield _Span(match.start(1), match.end(1), "userinfo")


def _quoted_as(text: str, start: int, end: int) -> str:
    """A number in JSON becomes a string."""
    is_number = text[end : end + 1] in (",", "}", "]") and _AS_NUMBER.search(text, max(0, start - 8), start)
    return f'"{PLACEHOLDER}"' if is_number else PLACEHOLDER


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "").rstrip("0123456789")


def _unescaped(name: str) -> str:
    return unquote_plus(name) if "%" in name else name


def _unfolded(raw: str) -> Iterator[str]:
    """Lines with their ends; one that goes on in the next (RFC 9112, section 5.2) is one."""
    kept = ""
    for line in raw.splitlines(keepends=True) if "\n" in raw else [raw]:
        if line[:1] in (" ", "\t") or not kept.endswith("\n"):
            kept += line
            continue
        yield kept
        kept = line
    yield kept


def _line_end(line: str) -> str:
    return "\r\n" if line.endswith("\r\n") else "\n" if line.endswith("\n") else ""


def _replace(text: str, spans: Iterable[_Span]) -> tuple[str, tuple[str, ...]]:
    out: list[str] = []
    names: dict[str, None] = {}
    at = 0
    for span in sorted(spans):
        names[span.name] = None
        if span.start >= at:
            out += (text[at : span.start], span.replacement)
        at = max(at, span.end)
    if not names:
        return text, ()
    out.append(text[at:])
    return "".join(out), tuple(names)


def _value(text: str, at: int, quote: str, name: str) -> Iterator[_Span]:
    """What follows ``"name":``. `quote`: how a string of this level begins."""
    if text.startswith(quote, at):
        start = at + len(quote)
        end = _string_end(text, start, quote)
        if end > start:
            yield _Span(start, end, name)
        return
    if text[at : at + 1] in ("{", "["):
        depth = 0
        end = len(text)
        skip_to = at
        for match in _BRACKETS.finditer(text, at):
            if match.start() < skip_to:
                continue
            if match[0] == '"':
                skip_to = _string_end(text, match.end(), quote) + len(quote)
            else:
                depth += 1 if match[0] in "{[" else -1
                if not depth:
                    end = match.end()
                    break
        if end > at + 2:  # not {} nor []
            yield _Span(at, end, name, f"{quote}{PLACEHOLDER}{quote}")
        return
    literal = _LITERAL.match(text, at)
    if literal is not None and literal[0] not in ("true", "false", "null", "None", "True", "False"):
        yield _Span(at, literal.end(), name, f"{quote}{PLACEHOLDER}{quote}")


def _string_end(text: str, at: int, quote: str) -> int:
    """Where the string ends that begins at `at`; the end of the text where it does not."""
    level = len(quote) - 1
    mark = quote[-1]
    while True:
        at = text.find(mark, at)
        if at < 0:
            return len(text)
        backslashes = 0
        while text[at - 1 - backslashes : at - backslashes] == "\\":
            backslashes += 1
        # A string in a string: each level doubles the backslashes, and adds one before a quote.
        depth, left = level, backslashes
        while depth and left % 2:
            depth, left = depth >> 1, left >> 1
        if left % 2 == 0:
            return at - level if backslashes >= level else at - backslashes
        at += 1


def _is_credential(scheme: str, value: str) -> bool:
    if scheme.lower() == "basic":  # RFC 7617: user-id ":" password, in base64
        try:
            return b":" in base64.b64decode(value + "=" * (-len(value) % 4))
        except (binascii.Error, ValueError):
            return False
    return len(value) >= 8 and not _WORD.match(value)


def _is_jwt(text: str) -> bool:
    """RFC 7515, section 3.1: a header, which is JSON with `alg`, and more."""
    head, dot, _ = text.partition(".")
    try:
        return bool(dot) and b'"alg"' in base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))
    except (binascii.Error, ValueError):
        return False


def _is_card(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B: the Luhn formula."""
    if _ISSUER.match(digits) is None or len(set(digits)) < 2:
        return False
    total = 0
    for index, digit in enumerate(reversed(digits)):
        number = int(digit) << (index & 1)
        total += number - 9 if number > 9 else number
    return total % 10 == 0


def _database(extra: tuple[str, ...]) -> tuple[hyperscan.Database, tuple[int, ...]]:
    """What `Redactor.suspicious` looks for, a name with what makes it one behind it, or a shape; and which bit each stands for."""
    endings = "|".join(ending.replace(" ", "[-_ ]?") for ending in _ENDINGS)
    names = {"[-_ ]?".join(map(re.escape, _PARTS.findall(name.lower()))) for name in (*_EXACT, *_HEADERS, *extra)}
    exact = "|".join(sorted(names - {""}))
    behind = r"""[0-9_-]*(["'\s\\\]]|%5d|%22|%27|%20)*([:=>]|%3a|%3d|\s)"""
    before = r"""(^|[^a-z0-9]|%[2-7][0-9a-f])"""
    expressions = (
        (_NAMES, f"({endings}){behind}"),
        (_NAMES, f"{before}({exact}){behind}"),
        (_FORM_DATA, r"form-data"),
        (_ENCODED, r"\\u00[2-7][0-9a-f]"),
        # Letters and digits, which need no encoding; or what is encoded twice.
        (_ENCODED, r"%([46][1-9a-f]|[57][0-9a]|3[0-9]|25)"),
        (_SCHEMES, r"(bearer|basic)(\s|%20|\+)"),
        (_JWTS, r"eyJ[a-z0-9_-]{4}"),
        # Not all that a card number is: each part more takes longer on bodies full of numbers.
        (_CARDS, r"[2-68][0-9]{3}[ -]?[0-9]{4}[0-9 -]{5}"),
        (_USERINFOS, r"://[^/\s@]*:[^/\s@]"),
    )
    database = hyperscan.Database()
    flags = hyperscan.HS_FLAG_CASELESS | hyperscan.HS_FLAG_SINGLEMATCH | hyperscan.HS_FLAG_DOTALL
    database.compile(
        expressions=[expression.encode() for _, expression in expressions],
        ids=list(range(len(expressions))),
        flags=[flags] * len(expressions),
    )
    return database, tuple(bit for bit, _ in expressions)
