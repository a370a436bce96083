"""Secrets in all the forms in which HTTP carries them, each once and nowhere else, and look-alikes that must stay readable.

A plant is bytes of one fresh connection: what the client sends and what the server answers. So the same plants go through the pipeline
alone and over real sockets.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

import brotli
import hpack
import zstandard
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame

_RANDOM = random.Random(8)
WINDOW = 9
"""Characters in a row of a secret that nobody may see: less than half of the shortest."""
GZIP = b"\x1f\x8b\x08"
"""How each gzip member begins (RFC 1952, section 2.3)."""
_LETTERS = "bcdfghjklmnpqrstvwxz"


def word(length: int = 22) -> str:
    """What no look-alike and no other secret has."""
    return "".join(_RANDOM.choice(_LETTERS + _LETTERS.upper() + "23456789") for _ in range(length))


def jwt() -> str:
    """RFC 7519: header, claims and signature are all of the secret; the header is the same in many, so it is not looked for."""
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    claims = base64.urlsafe_b64encode(json.dumps({"sub": word(8), "n": word(12)}).encode()).decode().rstrip("=")
    return f"{head}.{claims}.{word(43)}"


def card(prefix: str, length: int) -> str:
    """A number that passes the Luhn formula."""
    digits = prefix + "".join(_RANDOM.choice("0123456789") for _ in range(length - len(prefix) - 1))
    total = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(reversed(digits)))
    return digits + str(-total % 10)


@dataclass(frozen=True)
class Plant:
    form: str
    secret: str
    up: bytes
    down: bytes
    piece: int | None = None
    """Bytes of one write; None: all."""
    looked_for: str = ""
    """The part of the secret that is nobody else's; empty: all of it."""
    names: tuple[str, ...] = ()
    """Some of what `redacted` must say."""

    @property
    def windows(self) -> list[str]:
        text = self.looked_for or self.secret
        return [text[at : at + WINDOW] for at in range(len(text) - WINDOW + 1)]


def steps(up: bytes, down: bytes) -> tuple[tuple[bool, bytes], ...]:
    """What crosses the connection, in its order; True: from the client. A WebSocket message follows the answer to the upgrade."""
    head, end, rest = up.partition(b"\r\n\r\n") if b"websocket" in up else (up, b"", b"")
    return tuple((is_up, data) for is_up, data in ((True, head + end), (False, down), (True, rest)) if data)


OK = b"HTTP/1.1 204 No Content\r\n\r\n"


def request(target: str = "/", headers: str = "", body: bytes = b"", method: str = "POST") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {target} HTTP/1.1\r\nHost: planted\r\n{headers}{length}\r\n".encode() + body


def response(body: bytes = b"", headers: str = "", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def chunked(body: bytes, size: int, trailers: str = "") -> bytes:
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + f"0\r\n{trailers}\r\n".encode()


def _header(template: str, name: str, *, answer: bool = False) -> Plant:
    secret = word()
    line = template.format(secret) + "\r\n"
    up, down = (request(), response(headers=line)) if answer else (request(headers=line, method="GET"), OK)
    return Plant("header", secret, up, down, names=(name,))


def _target(form: str, template: str, name: str) -> Plant:
    secret = word()
    return Plant(form, secret, request(template.format(secret), method="GET"), OK, names=(name,))


def _body(
    form: str, template: str, name: str, kind: str = "application/json", *, secret: str = "", piece: int | None = None
) -> Plant:
    secret = secret or word()
    body = template.replace("{}", secret).encode()
    return Plant(form, secret, request("/", f"Content-Type: {kind}\r\n", body), OK, piece, names=(name,))


def _coded(coding: str, code: Callable[[bytes], bytes]) -> Plant:
    secret = word()
    body = code(json.dumps({"a": "b" * 40, "refresh_token": secret}).encode())
    return Plant(
        f"coded by {coding}",
        secret,
        request(method="GET"),
        response(body, f"Content-Encoding: {coding}\r\n"),
        names=("refresh_token",),
    )


def _chunked(size: int, coded: bool) -> Plant:
    secret = word()
    body = json.dumps({"user": "reader", "password": secret}).encode()
    coding = "Content-Encoding: gzip\r\n" if coded else ""
    if coded:
        body = gzip.compress(body, 0)  # stored: its text is in there as it was
    head = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{coding}\r\n".encode()
    return Plant("chunked", secret, request(method="GET"), head + chunked(body, size), names=("password",))


def _trailer() -> Plant:
    secret = word()
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Auth-Token\r\n\r\n"
    down = head + chunked(b"nothing here", 5, f"X-Auth-Token: {secret}\r\n")
    return Plant("trailers", secret, request(method="GET"), down, names=("X-Auth-Token",))


def _cut(tail: str, secret: str, name: str, visible: int) -> Plant:
    """The default limit of 4,096 bytes cuts the body `visible` bytes behind the secret's beginning."""
    before = tail.partition("{}")[0]
    filler = "x" * (4096 - len(before) - visible - len('{"a":"",'))
    body = ('{"a":"' + filler + '",' + tail.replace("{}", secret)).encode() + b" " * 4096
    return Plant("cut by the limit", secret, request("/", "Content-Type: text/plain\r\n", body), OK, names=(name,))


def _multipart(part: bytes, secret: str, name: str) -> Plant:
    body = b'--xyz\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n--xyz\r\n' + part + b"\r\n--xyz--\r\n"
    return Plant(
        "multipart",
        secret,
        request("/", "Content-Type: multipart/form-data; boundary=xyz\r\n", body),
        OK,
        names=(name,),
    )


# ---- HTTP/2 ----


def http2(
    fields: list[tuple[str, str]],
    data: bytes = b"",
    answer: list[tuple[str, str]] | None = None,
    trailers: list[tuple[str, str]] | None = None,
) -> tuple[bytes, bytes]:
    """One exchange on stream 1."""
    up, down = hpack.Encoder(), hpack.Encoder()
    to_server = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
    flags = ["END_HEADERS"] if data else ["END_HEADERS", "END_STREAM"]
    to_server += HeadersFrame(1, up.encode(fields), flags=flags).serialize()
    if data:
        to_server += DataFrame(1, data, flags=["END_STREAM"]).serialize()
    to_client = SettingsFrame(0).serialize()
    answer = answer or [(":status", "200"), ("content-type", "application/grpc")]
    flags = ["END_HEADERS"] if trailers else ["END_HEADERS", "END_STREAM"]
    to_client += HeadersFrame(1, down.encode(answer), flags=flags).serialize()
    if trailers:
        to_client += HeadersFrame(1, down.encode(trailers), flags=["END_HEADERS", "END_STREAM"]).serialize()
    return to_server, to_client


def _fields(*more: tuple[str, str], path: str = "/", grpc: bool = False) -> list[tuple[str, str]]:
    kind = [("content-type", "application/grpc"), ("te", "trailers")] if grpc else []
    return [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "planted"), *kind, *more]


def _http2() -> Iterator[Plant]:
    secret = word()
    yield Plant("HTTP/2", secret, *http2(_fields(("authorization", f"Bearer {secret}"))), names=("authorization",))
    secret = word()
    yield Plant("HTTP/2", secret, *http2(_fields(path=f"/a?access_token={secret}")), names=("access_token",))
    secret = word()
    body = json.dumps({"client_secret": secret}).encode()
    yield Plant("HTTP/2", secret, *http2(_fields(), body), names=("client_secret",))


def _grpc() -> Iterator[Plant]:
    def plant(
        secret: str,
        name: str,
        *more: tuple[str, str],
        message: str = "",
        status: str = "",
        looked: str = "",
        compress: Callable[[bytes], bytes] | None = None,
    ) -> Plant:
        text = message.encode()
        payload = b"\x0a" + bytes([len(text)]) + text if text else b""
        if compress is not None:
            payload = compress(payload)
        data = bytes([compress is not None]) + len(payload).to_bytes(4, "big") + payload
        trailers = [("grpc-status", "16" if status else "0"), *([("grpc-message", status)] if status else [])]
        exchange = http2(_fields(*more, path="/pkg.Service/Call", grpc=True), data, trailers=trailers)
        return Plant("gRPC", secret, *exchange, looked_for=looked, names=(name,))

    secret = word()
    yield plant(secret, "x-session-token", ("x-session-token", secret))
    secret = word()
    yield plant(secret, "grpc-message", status=quote(f"refused: Bearer {secret}"))
    secret = card("5425", 16)
    yield plant(secret, "card", message=f"pay by {secret}")
    secret = jwt()
    claims = secret.partition(".")[2]
    yield plant(secret, "jwt", ("grpc-encoding", "gzip"), message=secret, looked=claims, compress=gzip.compress)
    secret = word()  # in a coding that nobody knows, but us: it is left out whatever is in it
    yield plant(secret, "compressed", ("grpc-encoding", "x-gz"), message=f"my {secret}", compress=gzip.compress)


# ---- WebSocket ----

_UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
_SWITCH = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"


def _frame(payload: bytes, first: int, mask: bytes = b"") -> bytes:
    assert len(payload) < 126
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if mask else payload
    return bytes([first, len(payload) | (0x80 if mask else 0)]) + mask + masked


def _websocket() -> Iterator[Plant]:
    mask = b"\x11\x22\x33\x44"
    secret = word()
    text = json.dumps({"type": "login", "password": secret}).encode()
    up = request("/ws", _UPGRADE, method="GET") + _frame(text, 0x81, mask)
    yield Plant("WebSocket", secret, up, f"{_SWITCH}\r\n".encode(), names=("password",))
    secret = word()
    text = json.dumps({"session_id": secret}).encode()
    down = f"{_SWITCH}\r\n".encode() + _frame(text[:20], 0x01) + _frame(text[20:30], 0x00) + _frame(text[30:], 0x80)
    yield Plant("WebSocket", secret, request("/ws", _UPGRADE, method="GET"), down, names=("session_id",))
    secret = word()
    deflated = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflated.compress(json.dumps({"apiKey": secret}).encode()) + deflated.flush(zlib.Z_SYNC_FLUSH)
    extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
    up = request("/ws", _UPGRADE + extension, method="GET") + _frame(packed[:-4], 0xC1, mask)
    yield Plant("WebSocket", secret, up, f"{_SWITCH}{extension}\r\n".encode(), names=("apiKey",))


def _planted() -> Iterator[Plant]:
    yield _header("Authorization: Bearer {}", "Authorization")
    basic = base64.b64encode(f"reader:{word()}".encode()).decode()
    yield Plant("header", basic, request(headers=f"AUTHORIZATION: Basic {basic}\r\n"), OK, looked_for=basic[10:])
    yield _header("Proxy-Authorization: Digest username=reader, response={}", "Proxy-Authorization")
    yield _header("Cookie: theme=dark; sid={}", "Cookie")
    yield _header("Set-Cookie: sid={}; HttpOnly", "Set-Cookie", answer=True)
    yield _header("set-cookie: a=b\r\nset-cookie: c={}", "set-cookie", answer=True)
    yield _header("X-API-Key: {}", "X-API-Key")
    yield _header("Ocp-Apim-Subscription-Key: {}", "Ocp-Apim-Subscription-Key")
    yield _header("X-My-Session-Token: {}", "X-My-Session-Token")
    yield _header("Location: https://h/cb?code=1&access_token={}", "Location", answer=True)
    yield _header("Referer: https://h/?sessionid={}#top", "Referer")
    yield _header("X-Note: https://reader:{}@h/", "X-Note")

    yield _target("query", "/a?b=c&token={}&d=e", "token")
    yield _target("query", "/a?X-Amz-Signature={}", "X-Amz-Signature")
    yield _target("query", "/a?api-key={}", "api-key")
    yield _target("query, encoded", "/a?to%6ben={}", "to%6ben")
    yield _target("query, encoded", "/a?back=https%3A%2F%2Fh%2F%3Fpassword%3D{}", "back")
    yield _target("query, encoded", "/a?a=1;Session={}", "Session")
    yield _target("path", "/a;jsessionid={}?b=c", "jsessionid")
    yield _target("path", "http://reader:{}@planted/a", "userinfo")
    secret = jwt()
    yield Plant("path", secret, request(f"/verify/{secret}"), OK, looked_for=secret.partition(".")[2], names=("jwt",))

    yield _body("JSON", '{"user":"reader","password":"{}"}', "password")
    yield _body("JSON", '{"session":{"a":[1,{"b":"]}"}],"c":"{}"},"d":1}', "session")
    yield _body("JSON", '{"items":[{"Client-Secret" : "a\\"b{}"}]}', "Client-Secret")
    yield _body("JSON in a string", '{"event":"{\\"data\\":{\\"accessToken\\":\\"{}\\"}}"}', "accessToken")
    yield _body("JSON in a string", '{"pass\\u0077ord":"{}"}', "password")
    yield _body("JSON in a string", '{"query":"mutation { login(password: \\"{}\\") { ok } }"}', "password")
    yield _body("form", "user=reader&passwd={}&go=1", "passwd", "application/x-www-form-urlencoded")
    yield _body(
        "form", "user%5Bpassword%5D={} with; spaces&go=1", "user%5Bpassword%5D", "application/x-www-form-urlencoded"
    )
    yield _body("form", "payload=%7B%22secret%22%3A%22{}%22%7D&go=1", "payload", "application/x-www-form-urlencoded")
    secret = word()
    yield _multipart(b'Content-Disposition: form-data; name="password"\r\n\r\n' + secret.encode(), secret, "password")
    secret = word()
    yield _multipart(
        b'Content-Disposition: form-data; name="api_key"\r\nContent-Type: text/plain\r\n\r\nfirst\r\n'
        + secret.encode(),
        secret,
        "api_key",
    )
    secret = word()
    yield _multipart(
        b'Content-Disposition: form-data; name="f"; filename="a"\r\n\r\n\x89\x00\xff\xfe {"token":"'
        + secret.encode()
        + b'"}',
        secret,
        "token",
    )
    yield _body("XML", "<a><ns:Password type='x'>{}</ns:Password></a>", "ns:Password", "text/xml")
    yield _body("XML", "<login password=\"{}\" user='reader'/>", "password", "text/xml")
    yield _body("XML", "<secret><![CDATA[{}]]></secret>", "secret", "text/xml")
    yield _body("lines", 'event: x\ndata: {"id":1}\n\ndata: {"id_token":"{}"}\n\n', "id_token", "text/event-stream")
    yield _body("lines", "host: h\ndb_password: {}\nport: 5432\n", "db_password", "application/yaml")
    yield _body("lines", "[db]\nuser=reader\nsecret_key={}\n", "secret_key", "text/plain")

    secret = jwt()
    yield Plant(
        "shape",
        secret,
        request(),
        response(f"see {secret}, thank you".encode()),
        looked_for=secret.partition(".")[2],
        names=("jwt",),
    )
    yield _body("shape", "curl -H 'authorization: bearer {}'", "bearer", "text/plain")
    yield _body("shape", '{"dsn":"postgres://reader:{}@db:5432/x"}', "userinfo")
    yield _body("card", '{"number":{}}', "card", secret=card("4", 16))
    number = card("51", 16)
    yield _body(
        "card", "card " + "{}", "card", "text/plain", secret=" ".join(number[at : at + 4] for at in range(0, 16, 4))
    )
    number = card("37", 15)
    yield _body("card", "{}", "card", "text/plain", secret=f"{number[:4]}-{number[4:10]}-{number[10:]}")

    for coding, code in (("gzip", gzip.compress), ("br", brotli.compress), ("zstd", zstandard.compress)):
        yield _coded(coding, code)
    yield _chunked(7, coded=False)
    yield _chunked(1000, coded=True)
    yield _trailer()
    yield _cut('"token":"{}"', word(), "token", 12)
    secret = jwt()
    yield _cut("see {}", secret, "jwt", 60)
    yield _cut("card {}", card("4", 16), "card", 11)
    yield _body("one byte a write", '{"authToken":"{}"}', "authToken", piece=1)
    yield _body("one byte a write", "a=b&password={}", "password", piece=1)
    secret = word()
    yield Plant("one byte a write", secret, request("/a", f"Cookie: a={secret}\r\n"), OK, piece=1, names=("Cookie",))
    yield from _http2()
    yield from _grpc()
    yield from _websocket()


PLANTS = tuple(_planted())

READABLE = (
    # Headers
    "X-Token-Count: 17", "Idempotency-Key: 8e03978e-40d5-43e8-bc93-6894a57f9324", "WWW-Authenticate: Bearer realm=\"planted\"",
    "X-Author: Token Ring", "Sec-Fetch-Site: same-origin", "Location: https://h/keys?page=2",
    # Targets
    "/keys/primary?sort=key&order=asc", "/tokens?tokens=3&max_tokens=50", "/token=a/b", "/a?author=session-musician",
    "/passwords/reset?monkey=banana", "/a?t=1763712000123456789&id=4242424242424241",
    # Bodies
    '{"author":"secretary","monkey":"key","tokens":[1,2],"max_tokens":50}',
    '{"password":null,"token":"","has_password":true,"passwords":0,"keyboard":"qwerty"}',
    '{"next_page_token":"CAUQAA","token_type":"Bearer","expires_in":3600}',
    "the bearer of good news, basic instincts, and a secret: none",
    "order 4111111111111112, version 1.4111111111111111, trace 00004111111111111111",
    "a=b&tokens=7&design=session-musician&side=b", "<author>key</author><p>password</p>",
    "eyJafjallajokull.is.a.volcano", "http://host:8080/a@b and 2026-11-21T10:00:00.123456789Z",
    "key ring, pass the salt, signature dish, session ended",
)  # fmt: skip
"""Each must be in the log as it is."""


def look_alikes() -> Iterator[tuple[str, bytes, bytes]]:
    """Text, request, response."""
    for text in READABLE:
        name, colon, _ = text.partition(": ")
        if colon and name.replace("-", "").isalpha() and name[0].isupper():
            yield text, request(), response(headers=f"{text}\r\n")
        elif text.startswith("/"):
            yield text, request(text, method="GET"), OK
        else:
            yield text, request("/", "Content-Type: text/plain\r\n", text.encode()), response(text.encode())


def found_in(plants: tuple[Plant, ...], text: str) -> list[str]:
    """Forms of which something is in the text; base64 bodies are looked into, and what is gzip inside of them."""
    for encoded in set(_base64_bodies(text)):
        body = base64.b64decode(encoded)
        text += "\n" + body.decode("latin-1")
        for member in body.split(GZIP)[1:]:
            text += "\n" + zlib.decompressobj(zlib.MAX_WBITS + 16).decompress(GZIP + member).decode("latin-1")
    return [
        f"{plant.form}: {window} of {plant.secret}" for plant in plants for window in plant.windows if window in text
    ]


def _base64_bodies(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if '"body_encoding":"base64"' in line:
            yield json.loads(line)["body"]
