"""TLS: what the first bytes of a connection's ciphertext tell: version, cipher, server name, application protocols.

Contract: `Handshake.feed(from_client, data)` takes what each direction of one connection begins with, in order and
without a hole, in pieces of any size. `facts` is what that tells so far; when `done`, no byte can add to it. Nothing
raises for any input: what is no handshake, or a damaged one, is absence. At most `DIRECTION_BYTES_MAX` of a direction
are looked at, and the facts do not depend on how the bytes were split.

1. Only the hellos are read. What follows is encrypted in TLS 1.3; before, it says nothing that is wanted here.
2. The first ClientHello counts. After a HelloRetryRequest the client repeats it with the same random, name and protocols
   (RFC 8446, section 4.1.2); the server's facts are those of the ServerHello that comes then.
3. The facts are those on the wire. With Encrypted Client Hello that is the outer ClientHello: `sni` is the public name of
   the provider, and `client_random` is not that of the connection that the two ends then have.
4. A connection that was joined late begins with other records, or within one, and has no facts: an encrypted handshake
   message does not begin with the type of a hello, but for one in 256, which then must be a whole hello too. An
   SSLv2-compatible ClientHello (RFC 5246, appendix E.2) is no record: no facts of the client.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import dpkt
from dpkt import ssl as dpkt_ssl
from dpkt import ssl_ciphersuites

DIRECTION_BYTES_MAX: Final = 16 * 1024
"""A ClientHello with post-quantum key shares, tickets and padding has 2 to 4 KiB; a ServerHello, and a
HelloRetryRequest before it, a few hundred bytes."""

# RFC 8446, section 5.1, and RFC 5246, section 6.2.1
_RECORD_HEADER: Final = struct.Struct(">BBxH")
_RECORD_BYTES_MAX: Final = 2**14
_HANDSHAKE: Final = 22
_PASSED: Final = {20: 1, 21: 2}
"""Records that may come before a hello, and their length in the clear: change_cipher_spec behind a HelloRetryRequest
(RFC 8446, appendix D.4), an alert that is only a warning (unrecognized_name: RFC 6066, section 3)."""

_MESSAGE_HEADER_BYTES: Final = 4
_CLIENT_HELLO: Final = 1
_SERVER_HELLO: Final = 2

# RFC 8446, section 4.1.3: SHA-256 of "HelloRetryRequest"
_RETRY_RANDOM: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")

_SERVER_NAME: Final = 0
_PROTOCOLS: Final = 16
_SUPPORTED_VERSIONS: Final = 43

_VERSIONS: Final = {0x0301: "1.0", 0x0302: "1.1", 0x0303: "1.2", 0x0304: "1.3"}

_GREASE_PROTOCOLS: Final = frozenset(bytes([high << 4 | 0xA] * 2) for high in range(16))
"""RFC 8701: offered to keep servers tolerant, and meant by nobody."""

_CIPHERS: Final = {
    # GREASE and the numbers that drafts had are named otherwise there; a signalling value is never negotiated.
    **{
        suite.code: suite.name
        for suite in ssl_ciphersuites.CIPHERSUITES
        if suite.name.startswith("TLS_") and suite.code not in {0x00FF, 0x5600}
    },
    0x00C6: "TLS_SM4_GCM_SM3",
    0x00C7: "TLS_SM4_CCM_SM3",
    0x1306: "TLS_AEGIS_256_SHA512",
    0x1307: "TLS_AEGIS_128L_SHA256",
    0xC070: "TLS_ECDHE_PSK_WITH_ARIA_128_CBC_SHA256",  # there GCM
    0xC071: "TLS_ECDHE_PSK_WITH_ARIA_256_CBC_SHA384",
    0xC0AA: "TLS_PSK_DHE_WITH_AES_128_CCM_8",  # RFC 6655 has these two that way round
    0xC0AB: "TLS_PSK_DHE_WITH_AES_256_CCM_8",
    0xC0B0: "TLS_ECCPWD_WITH_AES_128_GCM_SHA256",
    0xC0B1: "TLS_ECCPWD_WITH_AES_256_GCM_SHA384",
    0xC0B2: "TLS_ECCPWD_WITH_AES_128_CCM_SHA256",
    0xC0B3: "TLS_ECCPWD_WITH_AES_256_CCM_SHA384",
    0xC0B4: "TLS_SHA256_SHA256",
    0xC0B5: "TLS_SHA384_SHA384",
    0xC100: "TLS_GOSTR341112_256_WITH_KUZNYECHIK_CTR_OMAC",
    0xC101: "TLS_GOSTR341112_256_WITH_MAGMA_CTR_OMAC",
    0xC102: "TLS_GOSTR341112_256_WITH_28147_CNT_IMIT",
    0xC103: "TLS_GOSTR341112_256_WITH_KUZNYECHIK_MGM_L",
    0xC104: "TLS_GOSTR341112_256_WITH_MAGMA_MGM_L",
    0xC105: "TLS_GOSTR341112_256_WITH_KUZNYECHIK_MGM_S",
    0xC106: "TLS_GOSTR341112_256_WITH_MAGMA_MGM_S",
    0xD001: "TLS_ECDHE_PSK_WITH_AES_128_GCM_SHA256",
    0xD002: "TLS_ECDHE_PSK_WITH_AES_256_GCM_SHA384",
    0xD003: "TLS_ECDHE_PSK_WITH_AES_128_CCM_8_SHA256",
    0xD005: "TLS_ECDHE_PSK_WITH_AES_128_CCM_SHA256",
}
"""IANA's names: dpkt's table, mended and completed."""

_DAMAGE: Final = (dpkt.Error, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error)
"""What dpkt raises for a hello that is not what it says."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the hellos said; None where they did not, or were not seen."""

    version: str | None = None
    """Negotiated: ``1.0``, ``1.1``, ``1.2``, ``1.3``; None for SSL 3.0 and for drafts."""
    cipher: str | None = None
    """Negotiated: IANA's name."""
    sni: str | None = None
    """The server's name as the client asked for it."""
    alpn_offered: tuple[str, ...] = ()
    """By the client, in its order."""
    alpn_selected: str | None = None
    """By the server, up to TLS 1.2. In TLS 1.3 the answer is encrypted: not known."""
    client_random: bytes | None = None
    """32 bytes. It names the connection for the libraries that keep it."""


class Handshake:
    """The facts of one connection."""

    __slots__ = ("_client", "_server", "facts")

    def __init__(self) -> None:
        self._client = _Beginning(_CLIENT_HELLO)
        self._server = _Beginning(_SERVER_HELLO)
        self.facts = Facts()

    @property
    def done(self) -> bool:
        """Nothing more can be learnt: of each direction the hello was read, or it cannot come any more."""
        return self._client.over and self._server.over

    def feed(self, from_client: bool, data: bytes) -> None:
        beginning = self._client if from_client else self._server
        for body in beginning.hellos(data):
            if from_client:
                beginning.over = True
                self._client_hello(body)
            elif body[2:34] != _RETRY_RANDOM:
                beginning.over = True
                self._server_hello(body)

    def _client_hello(self, body: bytes) -> None:
        try:
            hello = dpkt_ssl.TLSClientHello(body)
            extensions = _extensions(hello)
            self.facts = replace(
                self.facts,
                sni=_server_name(extensions.get(_SERVER_NAME, b"")),
                alpn_offered=_protocols(extensions.get(_PROTOCOLS, b"")),
                client_random=hello.random,
            )
        except _DAMAGE:
            return

    def _server_hello(self, body: bytes) -> None:
        try:
            hello = dpkt_ssl.TLSServerHello(body)
            extensions = _extensions(hello)
            # RFC 8446, section 4.1.3: TLS 1.3 calls itself 1.2 in the field of old. What is neither (a draft) is unknown.
            number = int.from_bytes(extensions.get(_SUPPORTED_VERSIONS, hello.version.to_bytes(2)))
            version = _VERSIONS.get(number)
            selected = _protocols(extensions.get(_PROTOCOLS, b"")) if number <= 0x0303 else ()
            self.facts = replace(
                self.facts,
                version=version,
                cipher=_CIPHERS.get(hello.ciphersuite.code),
                alpn_selected=selected[0] if len(selected) == 1 else None,
            )
        except _DAMAGE:
            return


class _Beginning:
    """One direction, up to its hello: records -> handshake messages of one type."""

    __slots__ = ("_left", "_message", "_raw", "_record", "_room", "_type", "over")

    def __init__(self, message_type: int) -> None:
        self._type = message_type
        self._room = DIRECTION_BYTES_MAX
        self._raw = bytearray()
        """What came and was not looked at: part of a record's header, or nothing."""
        self._record = 0
        """The type of the record that `_raw` goes on with, and how much of it is to come."""
        self._left = 0
        self._message = bytearray()
        """Handshake messages go over the borders of records."""
        self.over = False

    def hellos(self, data: bytes) -> Iterator[bytes]:
        """The bodies of the hellos that end in these bytes; who has what he wants sets `over`."""
        if self.over:
            return
        data = data[: self._room]
        self._room -= len(data)
        self._raw += data
        while self._raw and not self.over and self._next_piece():
            message = self._message
            while len(message) >= _MESSAGE_HEADER_BYTES and not self.over:
                length = int.from_bytes(message[1:_MESSAGE_HEADER_BYTES])
                end = _MESSAGE_HEADER_BYTES + length
                if message[0] != self._type or end > DIRECTION_BYTES_MAX:
                    self.over = True
                elif len(message) < end:
                    break
                else:
                    body = bytes(message[_MESSAGE_HEADER_BYTES:end])
                    del message[:end]
                    yield body
        if not self._room:
            self.over = True
        if self.over:
            self._raw = self._message = bytearray()

    def _next_piece(self) -> bool:
        """Move what is there of one record; False when its header is not whole, or is none."""
        raw = self._raw
        if not self._left:
            if len(raw) < _RECORD_HEADER.size:
                return False
            self._record, major, self._left = _RECORD_HEADER.unpack_from(raw)
            known = (
                0 < self._left <= _RECORD_BYTES_MAX
                if self._record == _HANDSHAKE
                else self._left == _PASSED.get(self._record)
            )
            if major != 3 or not known:
                self.over = True
                return False
            del raw[: _RECORD_HEADER.size]
        piece = raw[: self._left]
        del raw[: self._left]
        self._left -= len(piece)
        if self._record == _HANDSHAKE:
            self._message += piece
        return True


def _extensions(hello: Any) -> dict[int, bytes]:
    """By type. Of two of one type, which RFC 8446, section 4.2, forbids, the first."""
    return dict(reversed(getattr(hello, "extensions", [])))


def _server_name(data: bytes) -> str | None:
    """RFC 6066, section 3: a list of names with a type each; 0 is a host's."""
    at = 2
    while at + 3 <= len(data):
        length = int.from_bytes(data[at + 1 : at + 3])
        name = data[at + 3 : at + 3 + length]
        if len(name) < length:
            return None
        if data[at] == 0:
            return _text(name)
        at += 3 + length
    return None


def _protocols(data: bytes) -> tuple[str, ...]:
    """RFC 7301, section 3.1: names of 1 to 255 bytes. A list that does not add up says nothing."""
    names = []
    at = 2
    while at < len(data):
        name = data[at + 1 : at + 1 + data[at]]
        if not name or len(name) < data[at]:
            return ()
        if name not in _GREASE_PROTOCOLS and (text := _text(name)):
            names.append(text)
        at += 1 + len(name)
    return tuple(names)


def _text(raw: bytes) -> str | None:
    """A name as it was sent, bytes that are no UTF-8 escaped. With control characters it is no name."""
    text = raw.decode(errors="backslashreplace")
    return text if text and text.isprintable() else None
