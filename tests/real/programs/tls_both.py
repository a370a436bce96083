"""A process that is client and server at once, of itself, in one thread: PORT CERTIFICATE KEY CA COUNT.

Each ``GET /outer/N`` that it asks of itself, it answers with what it gets from itself for ``GET /inner/N``. When COUNT are done it waits for a line.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys

from tests.real.programs.http_server import pattern

NAME = "localhost"


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> bytes:
    writer.write(f"GET {target} HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
    entry = {"method": "GET", "target": target, "status": int(head.split(b" ")[1]), "response_body_bytes": len(body)}
    print(json.dumps(entry | {"request_body_bytes": 0}), flush=True)
    return body


async def main() -> None:
    port, certificate, key, ca, count = sys.argv[1:]
    as_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    as_server.load_cert_chain(certificate, key)
    as_client = ssl.create_default_context(cafile=ca)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = None
        try:
            while True:
                target = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
                number = int(target.rpartition("/")[2])
                if target.startswith("/outer/"):
                    if inner is None:
                        inner = await asyncio.open_connection("127.0.0.1", port, ssl=as_client, server_hostname=NAME)
                    body = await ask(*inner, f"/inner/{number}")
                else:
                    body = pattern(number * 300, target)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        except asyncio.IncompleteReadError:
            if inner is not None:
                inner[1].close()
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", int(port), ssl=as_server):
        outer = await asyncio.open_connection("127.0.0.1", port, ssl=as_client, server_hostname=NAME)
        for number in range(int(count)):
            await ask(*outer, f"/outer/{number}")
        outer[1].close()
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    asyncio.run(main())
