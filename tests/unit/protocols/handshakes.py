"""TLS handshakes to feed: real ones, of Python's ssl with itself in memory, and made by hand what it does not make."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KEY_AND_CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgluLZ4o7RC7fL6c8p
6syVxnw0ivjzTTI1/wmvM2aK/86hRANCAAQUN87QCH1TaegNTCNn8CUmyXr9HBxk
zfKPxHud/1O5dVsrzgDC1jrR5NnFGVBY3rWXNAXptyAyxr2qi5VS37c0
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBfjCCASWgAwIBAgIUfzgqLRorYhJnZHBD6zaz9iwyMvUwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTEyMDc0MloYDzIxMjYxMDI4
MTIwNzQyWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQUN87QCH1TaegNTCNn8CUmyXr9HBxkzfKPxHud/1O5dVsrzgDC1jrR
5NnFGVBY3rWXNAXptyAyxr2qi5VS37c0o1MwUTAdBgNVHQ4EFgQUXmizG8adu1r/
UT1WhgPbBNNxL8EwHwYDVR0jBBgwFoAUXmizG8adu1r/UT1WhgPbBNNxL8EwDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNHADBEAiBtQ5YjdMEcm6t4RIbmSYJu
5XhYuk/SflWBznXgyAMksgIgPzWFQ5Simy8QGX3SQzx0jLoZgBBDRumiOiFt5sai
F/c=
-----END CERTIFICATE-----
"""
"""Nobody's: P-256, CN=localhost, until 2126, for these tests alone."""

RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
RANDOM = bytes(range(32))


# --- real ones --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Talk:
    """One connection as it was on the wire, and what its two ends say of it."""

    flights: Sequence[tuple[bool, bytes]]
    """In the order in which they went; True: the client's."""
    version: str | None
    """As ssl has it: ``TLSv1.3``."""
    cipher: str
    """As OpenSSL has it: ``ECDHE-ECDSA-AES128-GCM-SHA256``; of TLS 1.3 IANA's name."""
    alpn: str | None
    client_random: bytes
    """From the key log."""
    resumed: bool
    session: ssl.SSLSession | None

    def sent(self, *, from_client: bool) -> bytes:
        return b"".join(data for client, data in self.flights if client == from_client)


class Ends:
    """The settings of a client and a server, for as many connections as are wanted."""

    def __init__(
        self,
        *,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        offered: Sequence[str] = (),
        accepted: Sequence[str] = (),
        ciphers: str = "",
        server_curve: str = "",
    ) -> None:
        self._client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client.check_hostname = False
        self._client.verify_mode = ssl.CERT_NONE
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(KEY_AND_CERTIFICATE)
            file.flush()
            self._server.load_cert_chain(file.name)
        self._client.maximum_version = version
        if ciphers:
            for context in (self._client, self._server):
                context.set_ciphers(ciphers)
        if offered:
            self._client.set_alpn_protocols(list(offered))
        if accepted:
            self._server.set_alpn_protocols(list(accepted))
        if server_curve:
            self._server.set_ecdh_curve(server_curve)

    def talk(self, name: str | None = "localhost", session: ssl.SSLSession | None = None) -> Talk:
        """A handshake, and a few bytes each way."""
        flights = []
        client_in, client_out, server_in, server_out = (ssl.MemoryBIO() for _ in range(4))

        def carry() -> None:
            for from_client, source, target in ((True, client_out, server_in), (False, server_out, client_in)):
                if data := source.read():
                    flights.append((from_client, data))
                    target.write(data)

        with tempfile.TemporaryDirectory() as directory:
            keys = Path(directory) / "keys"
            self._client.keylog_filename = str(keys)
            client = self._client.wrap_bio(client_in, client_out, server_hostname=name, session=session)
            server = self._server.wrap_bio(server_in, server_out, server_side=True)
            waiting = [client, server]
            while waiting:
                for end in tuple(waiting):
                    try:
                        end.do_handshake()
                    except ssl.SSLWantReadError:
                        pass
                    else:
                        waiting.remove(end)
                    carry()
            for sender, receiver in ((client, server), (server, client)):
                sender.write(b"twenty-three bytes more")
                carry()
                assert receiver.read(100) == b"twenty-three bytes more"
            _, client_random, _ = keys.read_text().splitlines()[-1].split()
        cipher = client.cipher()
        assert cipher is not None
        return Talk(
            flights,
            client.version(),
            cipher[0],
            client.selected_alpn_protocol(),
            bytes.fromhex(client_random),
            bool(client.session_reused),
            client.session,
        )


# --- made by hand -----------------------------------------------------------------------------------------------------


def record(payload: bytes, kind: int = 22, version: int = 0x0303) -> bytes:
    return bytes([kind]) + version.to_bytes(2) + len(payload).to_bytes(2) + payload


def message(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3) + body


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2) + len(body).to_bytes(2) + body


def server_name(*names: bytes, kind: int = 0) -> bytes:
    entries = b"".join(bytes([kind]) + len(name).to_bytes(2) + name for name in names)
    return extension(0, len(entries).to_bytes(2) + entries)


def protocols(*names: bytes) -> bytes:
    entries = b"".join(bytes([len(name)]) + name for name in names)
    return extension(16, len(entries).to_bytes(2) + entries)


def client_hello(*extensions: bytes, random: bytes = RANDOM, ciphers: Sequence[int] = (0x1301, 0xC02F)) -> bytes:
    """A handshake message, without a record."""
    suites = b"".join(code.to_bytes(2) for code in ciphers)
    return message(
        1,
        b"\x03\x03" + random + b"\0" + len(suites).to_bytes(2) + suites + b"\x01\0" + _block(extensions),
    )


def server_hello(*extensions: bytes, cipher: int = 0xC02F, version: int = 0x0303, random: bytes = RANDOM) -> bytes:
    return message(2, version.to_bytes(2) + random + b"\0" + cipher.to_bytes(2) + b"\0" + _block(extensions))


def _block(extensions: Sequence[bytes]) -> bytes:
    joined = b"".join(extensions)
    return len(joined).to_bytes(2) + joined if joined else b""
