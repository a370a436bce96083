"""The file that says how metrics are served: TLS, basic auth, headers; in the format of Prometheus' exporter-toolkit.

Contract: `load(path)` → `WebConfig`; what is wrong, or not supported here, raises `CommandError` (exit status 2) that names it. As
there, files are relative to the directory of the file, names that do not exist are errors, and what is not said is off.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import bcrypt
import yaml

from netprofiler.errors import CommandError, ExitCode

FILE_MAX_BYTES: Final = 1024 * 1024
_CLIENT_AUTH: Final = {
    "": ssl.CERT_NONE,
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
"""RequestClientCert and RequireAnyClientCert ask for a certificate that nobody verifies: Python's ssl has no such thing."""
_VERSIONS: Final = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
_NOBODY: Final = b"$2b$10$XoXYZm0/A0QlXk0weHfgF.pNpnLI0oYgL0s4zXtfy0KhfUUv/Auoy"
"""Of nobody's password: compared with where the user does not exist, so that nobody learns that from the time it takes."""
_HEADERS: Final = frozenset(
    (
        "Content-Security-Policy",
        "X-Frame-Options",
        "X-Content-Type-Options",
        "X-XSS-Protection",
        "Strict-Transport-Security",
    )
)
_BCRYPT: Final = re.compile(r"\$2[abxy]\$[0-9]{2}\$[./A-Za-z0-9]{53}")
_TLS_KEYS: Final = (
    "cert_file", "key_file", "client_auth_type", "client_ca_file", "min_version", "max_version", "prefer_server_cipher_suites",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WebConfig:
    """What the file says."""

    tls: ssl.SSLContext | None = None
    users: Mapping[str, bytes] = field(default_factory=dict)
    """User → bcrypt hash; empty: no authentication."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """With every response."""
    files: tuple[str, ...] = ()
    """That it was made of."""


def load(path: str) -> WebConfig:
    """Reads the file, and those that it names."""

    def wrong(what: str) -> CommandError:
        return CommandError(f"--metrics-config {path}: {what}", ExitCode.USAGE)

    try:
        with open(path, "rb") as file:
            text = file.read(FILE_MAX_BYTES)
        content = yaml.safe_load(text)
    except OSError as error:
        raise wrong(error.strerror or str(error)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise wrong("is not YAML") from error
    content = {} if content is None else content
    sections = _table(content, ("tls_server_config", "http_server_config", "basic_auth_users"), "", wrong)
    tls, files = _tls(sections.get("tls_server_config"), os.path.dirname(path), wrong)
    http = _table(sections.get("http_server_config"), ("http2", "headers"), "http_server_config", wrong)
    headers = _table(http.get("headers"), _HEADERS, "headers", wrong)
    for name, value in headers.items():
        if not isinstance(value, str) or not value.isprintable() or not value.isascii():
            raise wrong(f"headers: {name}: is no header value")
    users = sections.get("basic_auth_users") or {}
    if not isinstance(users, dict):
        raise wrong("basic_auth_users: write a user and a bcrypt hash on each line")
    for user, digest in users.items():
        if not isinstance(user, str) or ":" in user or not isinstance(digest, str) or not _BCRYPT.fullmatch(digest):
            raise wrong(f"basic_auth_users: {user}: is no user with a bcrypt hash (htpasswd -nBC 10 USER)")
    return WebConfig(tls, {user: digest.encode() for user, digest in users.items()}, dict(headers), (path, *files))


def _table(content: Any, known: Any, name: str, wrong: Any) -> dict[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise wrong(f"{name or 'the file'}: is no table")
    for key in content:
        if key not in known:
            raise wrong(
                f"{name}{': ' if name else ''}{key}: there is no such setting here; there is {', '.join(sorted(known))}"
            )
    return content


def _tls(content: Any, directory: str, wrong: Any) -> tuple[ssl.SSLContext | None, tuple[str, ...]]:
    settings = _table(content, _TLS_KEYS, "tls_server_config", wrong)
    if not settings:
        return None, ()

    def file(key: str) -> str:
        value = settings.get(key, "")
        if not isinstance(value, str):
            raise wrong(f"tls_server_config: {key}: is no path")
        return os.path.join(directory, value) if value else ""

    cert, key, ca = file("cert_file"), file("key_file"), file("client_ca_file")
    if not cert or not key:
        raise wrong("tls_server_config: cert_file and key_file go together")
    auth = settings.get("client_auth_type") or ""
    if auth not in _CLIENT_AUTH:
        raise wrong(
            f"tls_server_config: client_auth_type: {auth}: it is one of {', '.join(filter(None, _CLIENT_AUTH))}"
        )
    if bool(ca) is not (_CLIENT_AUTH[auth] is not ssl.CERT_NONE):
        raise wrong("tls_server_config: client_ca_file and a client_auth_type that verifies go together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
        if ca:
            context.load_verify_locations(ca)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise wrong(f"tls_server_config: certificate, key or client CA: {error}") from error
    context.verify_mode = _CLIENT_AUTH[auth]
    for setting, attribute, default in (
        ("min_version", "minimum_version", "TLS12"),
        ("max_version", "maximum_version", "TLS13"),
    ):
        version = settings.get(setting) or default
        if version not in _VERSIONS:
            raise wrong(f"tls_server_config: {setting}: {version}: it is one of {', '.join(_VERSIONS)}")
        setattr(context, attribute, _VERSIONS[version])
    return context, tuple(filter(None, (cert, key, ca)))


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def is_password(password: bytes, digest: bytes | None) -> bool:
    """`digest` None: there is no such user, which takes as long to find out. bcrypt reads 72 bytes, and no NUL."""
    fits = len(password) <= 72 and b"\0" not in password
    return bcrypt.checkpw(password if fits else b"", digest or _NOBODY) and fits and digest is not None
