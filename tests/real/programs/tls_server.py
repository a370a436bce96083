"""The small server of ``http_server.py`` over TLS: KIND PORT CERTIFICATE KEY VERSION ALPN.

KIND: ``http.server``, where OpenSSL has the socket, or ``asyncio``, where it has memory BIOs. VERSION: ``1.2``, ``1.3`` or nothing.
ALPN: names joined by commas, or nothing. One JSON object an exchange, with the handshake and the client's port. ``/chunked/N`` is answered in
chunks of 1000 bytes.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.real.programs.http_server import answer, pattern

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
REASONS = {200: "OK", 404: "Not Found"}
CHUNK_BYTES = 1000


def make_context(certificate: str, key: str, version: str, alpn: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if version:
        context.minimum_version = context.maximum_version = VERSIONS[version]
    if alpn:
        context.set_alpn_protocols(alpn.split(","))
    context.sni_callback = remember_name
    return context


def remember_name(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
    """A callback is the only way in which Python tells a server the SNI."""
    connection.__dict__["sni"] = name


def tell(
    connection: ssl.SSLSocket | ssl.SSLObject,
    peer_port: int,
    line: tuple[str, str],
    status: int,
    sent: int,
    received: int,
) -> None:
    cipher = connection.cipher()
    assert cipher is not None
    entry = {
        "method": line[0],
        "target": line[1],
        "status": status,
        "response_body_bytes": sent,
        "request_body_bytes": received,
        "peer_port": peer_port,
        "version": connection.version(),
        "cipher": cipher[0],
        "sni": connection.__dict__.get("sni"),
        "alpn": connection.selected_alpn_protocol(),
        "resumed": connection.session_reused,
    }
    print(json.dumps(entry), flush=True)


def chunks(body: bytes) -> list[bytes]:
    pieces = [body[start : start + CHUNK_BYTES] for start in range(0, len(body), CHUNK_BYTES)]
    return [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    connection: ssl.SSLSocket

    def do_GET(self) -> None:
        received = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, body = answer(self.command, self.path, received)
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            body = b""
        self.wfile.write(body)
        port = self.connection.getpeername()[1]
        tell(self.connection, port, (self.command, self.path), status, len(body), len(received))

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return body


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("ssl_object")
    port = writer.get_extra_info("peername")[1]
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, target, _ = head.partition("\r\n")[0].split(" ")
            pairs = (line.partition(": ") for line in head.split("\r\n")[1:-2])
            received = await read_body(reader, {name.lower(): value for name, _, value in pairs})
            if target.startswith("/chunked/"):
                status, body = 200, pattern(int(target.removeprefix("/chunked/")), target)
                framing, pieces = "Transfer-Encoding: chunked", chunks(body)
            else:
                status, body = answer(method, target, received)
                framing, pieces = f"Content-Length: {len(body)}", [body]
            if method == "HEAD":
                body, pieces = b"", []
            writer.write(
                f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: text/plain\r\n{framing}\r\n\r\n".encode()
            )
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            tell(connection, port, (method, target), status, len(body), len(received))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def serve(port: int, context: ssl.SSLContext) -> None:
    server = await asyncio.start_server(converse, "127.0.0.1", port, ssl=context)
    async with server:
        await server.serve_forever()


def main() -> None:
    kind, port, certificate, key, version, alpn = sys.argv[1:]
    context = make_context(certificate, key, version, alpn)
    if kind == "asyncio":
        asyncio.run(serve(int(port), context))
    else:
        server = Server(("127.0.0.1", int(port)), Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
