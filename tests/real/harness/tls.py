"""What TLS adds to the truth and to the checks: certificates of our own, and what both ends negotiated."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.real.harness.checks import Exchange, Record, brief
from tests.real.harness.programs import SCRIPTS, require

NAME = "localhost"
"""What the clients ask for: a name, because an address is never sent as SNI (RFC 6066, 3)."""

EXTENSIONS = """
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, DNS:other.test, IP:127.0.0.1
"""


@dataclass(frozen=True, slots=True)
class Certificates:
    """A certification authority and a server's certificate from it, as PEM files that www-data can read, too."""

    ca: Path
    certificate: Path
    key: Path
    both: Path
    """Certificate and key in one file, as HAProxy wants it."""
    pkcs12: Path
    """The same for NSS; the password is empty."""


def make_certificates(directory: Path) -> Certificates:
    def openssl(*args: str | Path) -> None:
        [binary] = require("openssl")
        done = subprocess.run([binary, *args], cwd=directory, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, f"openssl {args[0]}: {done.stderr}"

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    (directory / "extensions").write_text(EXTENSIONS)
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=netprofiler tests")
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"),
        *("-extfile", "extensions", "-out", "server.pem"),
    )
    openssl(
        *("pkcs12", "-export", "-in", "server.pem", "-inkey", "server.key", "-name", "server", "-passout", "pass:"),
        *("-certfile", "ca.pem", "-out", "server.p12"),
    )
    both = directory / "both.pem"
    both.write_text((directory / "server.pem").read_text() + (directory / "server.key").read_text())
    directory.chmod(0o755)
    for path in directory.iterdir():
        path.chmod(0o644)
    return Certificates(
        directory / "ca.pem", directory / "server.pem", directory / "server.key", both, directory / "server.p12"
    )


@functools.cache
def _iana_names() -> dict[str, str]:
    """OpenSSL's own table from its names to IANA's."""
    [binary] = require("openssl")
    table = subprocess.run(
        [binary, "ciphers", "-stdname", "ALL:COMPLEMENTOFALL"], capture_output=True, text=True, timeout=20, check=True
    ).stdout
    return {words[2]: words[0] for words in (line.split() for line in table.splitlines())}


def iana(cipher: str) -> str:
    """The IANA name of a cipher suite, which a program may have told by OpenSSL's name."""
    names = _iana_names()
    return names.get(cipher) or next(name for name in names.values() if name == cipher)


@dataclass(frozen=True, slots=True)
class Negotiated:
    """One handshake as one program tells it. None: the program does not say; "": it says that there was none."""

    version: str | None = None
    """``1.2`` or ``1.3``."""
    cipher: str | None = None
    """IANA's name."""
    sni: str | None = None
    alpn: str | None = None


def negotiated(entry: dict[str, Any]) -> Negotiated:
    """From a line of a program: ``version`` (``TLSv1.3``), ``cipher``, ``sni``, ``alpn``, each absent where it does not say."""

    def text(name: str) -> str | None:
        value = entry.get(name)
        return None if name not in entry else "" if value in (None, False, "-") else str(value)

    version, cipher = text("version"), text("cipher")
    return Negotiated(
        version and version.removeprefix("TLSv").removeprefix("TLS"),
        cipher and iana(cipher),
        text("sni"),
        text("alpn"),
    )


def tls_lines(text: str) -> list[dict[str, Any]]:
    """The lines of an access log or an output that tell of a handshake."""
    entries = (json.loads(line) for line in text.splitlines() if line.startswith("{"))
    return [entry for entry in entries if "version" in entry]


def one_story(*told: Iterable[Negotiated]) -> Negotiated:
    """What all programs, on all their connections, agree on."""
    stories = [one for group in told for one in group]
    found: dict[str, str | None] = {}
    for name in ("version", "cipher", "sni", "alpn"):
        values = {getattr(one, name) for one in stories} - {None}
        assert len(values) <= 1, f"the programs disagree on {name}: {values}"
        found[name] = values.pop() if values else None
    return Negotiated(**found)


def assert_tls(
    exchanges: Sequence[Exchange], library: str, truth: Negotiated, *, offered: bool = False, early: bool = False
) -> None:
    """Every record tells the handshake as the programs did.

    ``offered``: the client offered ALPN. In TLS 1.3 what the server chose is encrypted; the record then has the offer that is spoken.
    ``early``: a request may be early data, written before the hello is sent and the server has said what it chose.
    """
    assert truth.version is not None and truth.cipher is not None and truth.sni is not None, truth
    expected = {"library": library, "version": truth.version, "cipher": truth.cipher}
    if truth.sni:
        expected["sni"] = truth.sni
    if truth.alpn or (offered and truth.version == "1.3"):
        expected["alpn"] = truth.alpn or "http/1.1"
    assert exchanges, "no exchanges"
    for e in exchanges:
        for record in (e.request, *e.interim, e.response):
            if (
                early
                and record is e.request
                and record.get("tls")
                in (
                    {"library": library},
                    {"library": library, "sni": truth.sni},
                )
            ):
                continue
            assert record.get("tls") == expected, f"tls is {record.get('tls')}, not {expected}: {brief(record)}"


def messages(exchanges: Iterable[Exchange]) -> list[Record]:
    return [record for e in exchanges for record in (e.request, *e.interim, e.response)]


def build_c(name: str, directory: Path, *options: str) -> Path:
    """A program of ours in C."""
    [compiler] = require("gcc")
    binary = directory / name
    strict = ("-O1", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror")
    done = subprocess.run(
        [compiler, *strict, "-o", binary, SCRIPTS / f"{name}.c", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return binary
