"""Secrets are replaced before they reach any output.

Contract: header fields and query parameters whose name is that of a secret lose their value, in the record's fields
and in the raw payload alike; the names are reported. Of bodies only those that `--proto` decodes are looked into
(docs/redaction.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

PLACEHOLDER: Final = "[redacted]"

_HEADERS: Final = frozenset(
    (
        "authorization",
        "proxy-authorization",
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
        "private-token",
    )
)
# As they stand in a query, without dashes and underscores.
_PARAMETERS: Final = frozenset(
    (
        "token",
        "accesstoken",
        "refreshtoken",
        "idtoken",
        "authtoken",
        "password",
        "passwd",
        "pwd",
        "pass",
        "secret",
        "clientsecret",
        "apikey",
        "key",
        "auth",
        "authorization",
        "session",
        "sessionid",
        "sid",
        "sig",
        "signature",
        "credential",
        "xamzsignature",
        "xamzcredential",
        "xamzsecuritytoken",
    )
)

_QUERY_PARAMETER: Final = re.compile(r"(?<=[?&;])([^=&;#]+)=([^&;#]+)")


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


class Redactor:
    """`extra`: more names, of headers and parameters alike. `enabled=False`: nothing is replaced."""

    def __init__(self, extra: Iterable[str] = (), *, enabled: bool = True) -> None:
        extra = tuple(extra)
        self.enabled = enabled
        self._headers = _HEADERS | {name.lower() for name in extra}
        self._parameters = _PARAMETERS | {_plain(name) for name in extra}
        self._fields = self._parameters | {_plain(name) for name in self._headers}

    def is_secret_header(self, name: str) -> bool:
        return self.enabled and name.lower() in self._headers

    def is_secret_field(self, name: str) -> bool:
        """Of a structured body: what is a secret as a header or as a parameter, however it is written."""
        return self.enabled and _plain(name) in self._fields

    def target(self, target: str) -> tuple[str, tuple[str, ...]]:
        """A request target → the same without secret parameters' values, and their names."""
        if not self.enabled or "=" not in target:
            return target, ()
        names: list[str] = []

        def replace(match: re.Match[str]) -> str:
            if _plain(unquote(match[1])) not in self._parameters:
                return match[0]
            names.append(match[1])
            return f"{match[1]}={PLACEHOLDER}"

        return _QUERY_PARAMETER.sub(replace, target), tuple(names)

    def block(self, raw: str) -> str:
        """A block of header lines as text → the same without secret values."""
        if not self.enabled:
            return raw
        lines: list[str] = []
        secret = False
        for line in raw.split("\n"):
            if secret and line[:1] in (" ", "\t"):
                continue  # RFC 9112, section 5.2: the value goes on
            name, colon, _ = line.partition(":")
            secret = bool(colon) and name.strip().lower() in self._headers
            lines.append(f"{name}: {PLACEHOLDER}" + ("\r" if line.endswith("\r") else "") if secret else line)
        return "\n".join(lines)
