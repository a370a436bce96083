"""A client that keeps its connection: KIND PORT CA PLAN_FILE BEFORE.

KIND: ``ssl``, where OpenSSL has the socket, or ``asyncio``, where it has memory BIOs. The first BEFORE exchanges of the plan are done at once; then it says
``open``, and the others are done after a line on standard input. They are answered by one line, a JSON array; after one more line it closes.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

NAME = "localhost"
Send = Callable[[bytes], Coroutine[Any, Any, bytes]]
"""Sends a request; the whole response."""


def size_of(head: bytes) -> int:
    [line] = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return int(line.split(b":")[1])


def request(method: str, target: str, body: str) -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


async def converse(send: Send, plan: list[tuple[str, str, str]], before: int) -> None:
    told = []
    loop = asyncio.get_running_loop()
    for number, (method, target, body) in enumerate(plan):
        if number == before:
            print("open", flush=True)
            await loop.run_in_executor(None, sys.stdin.readline)
        response = await send(request(method, target, body))
        entry = {"method": method, "target": target, "status": int(response.split(b" ")[1])}
        entry |= {"response_body_bytes": len(response.partition(b"\r\n\r\n")[2]), "request_body_bytes": len(body)}
        if number >= before:
            told.append(entry)
    print(json.dumps(told), flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)


async def by_ssl(port: int, context: ssl.SSLContext, plan: list[tuple[str, str, str]], before: int) -> None:
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname=NAME) as connection:

        async def send(data: bytes) -> bytes:
            connection.sendall(data)
            got = b""
            while b"\r\n\r\n" not in got:
                got += connection.recv(65536)
            head = got.partition(b"\r\n\r\n")[0]
            while len(got) < len(head) + 4 + size_of(head):
                got += connection.recv(65536)
            return got

        await converse(send, plan, before)


async def by_asyncio(port: int, context: ssl.SSLContext, plan: list[tuple[str, str, str]], before: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=NAME)

    async def send(data: bytes) -> bytes:
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        return head + await reader.readexactly(size_of(head))

    await converse(send, plan, before)
    writer.close()


def main() -> None:
    kind, port, ca, path, before = sys.argv[1:]
    context = ssl.create_default_context(cafile=ca)
    talk = by_asyncio if kind == "asyncio" else by_ssl
    plan = [(method, target, body) for method, target, body in json.loads(Path(path).read_text())]
    asyncio.run(talk(int(port), context, plan, int(before)))


if __name__ == "__main__":
    main()
