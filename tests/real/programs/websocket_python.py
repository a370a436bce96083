"""One end of a WebSocket conversation, by the ``websockets`` library: ROLE PORT MODE CLOSER PLAN_FILE [CERTIFICATE KEY | CA].

ROLE is ``server`` or ``client``. Both ends send their part of the plan at once, and wait for the other's; then CLOSER closes with the
code and reason of the plan. MODE is ``off``, or what permessage-deflate keeps: ``takeover`` (the window of earlier messages) or ``fresh``.
For each conversation a line of JSON tells what came out of the library (``got``), and all bytes that it wrote and read, in base64.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, ServerPerMessageDeflateFactory
from websockets.protocol import Protocol

NAME = "localhost"


class Wire:
    """What crosses one connection."""

    def __init__(self, protocol: Protocol) -> None:
        self.sent = bytearray()
        self.received = bytearray()
        give, take = protocol.data_to_send, protocol.receive_data

        def data_to_send() -> list[bytes]:
            chunks = give()
            self.sent += b"".join(chunks)
            return chunks

        def receive_data(data: bytes | bytearray) -> None:
            self.received += data
            take(data)

        protocol.data_to_send = data_to_send  # type: ignore[method-assign]
        protocol.receive_data = receive_data  # type: ignore[method-assign]


class TappedClient(ClientConnection):
    def __init__(self, protocol: Any, **options: Any) -> None:
        self.wire = Wire(protocol)
        super().__init__(protocol, **options)


class TappedServer(ServerConnection):
    def __init__(self, protocol: Any, *arguments: Any, **options: Any) -> None:
        self.wire = Wire(protocol)
        super().__init__(protocol, *arguments, **options)


def text(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode("ascii")


async def send(connection: ClientConnection | ServerConnection, part: Sequence[dict[str, Any]]) -> None:
    waiting = []

    async def fragments(message: dict[str, Any]) -> AsyncIterator[bytes]:
        for number, fragment in enumerate(message["fragments"]):
            if number == 1 and "between" in message:
                waiting.append(await connection.ping(base64.b64decode(message["between"])))
            yield base64.b64decode(fragment)

    for message in part:
        if message["kind"] == "ping":
            waiting.append(await connection.ping(base64.b64decode(message["fragments"][0])))
        elif len(message["fragments"]) == 1:
            await connection.send(base64.b64decode(message["fragments"][0]), text=message["kind"] == "text")
        else:
            await connection.send(fragments(message), text=message["kind"] == "text")
    await asyncio.gather(*waiting)


async def converse(connection: TappedClient | TappedServer, role: str, closer: str, plan: dict[str, Any]) -> None:
    other = "client" if role == "server" else "server"
    left = sum(message["kind"] != "ping" for message in plan[other])
    ports = [connection.local_address[1], connection.remote_address[1]]
    handshake = connection.transport.get_extra_info("ssl_object")
    tls = {"version": handshake.version(), "cipher": handshake.cipher()[0]} if handshake else {}
    sending = asyncio.create_task(send(connection, plan[role]))
    got = []
    with contextlib.suppress(ConnectionClosedError):  # any close but 1000 and 1001 is an error to the library
        async for data in connection:
            got.append(["text", text(data.encode())] if isinstance(data, str) else ["binary", text(data)])
            left -= 1
            if left == 0:
                await sending
                if closer == role:
                    await connection.close(*plan["close"])
    await connection.wait_closed()
    told = {
        "got": got,
        "close": [connection.close_code, connection.close_reason],
        "sent": text(connection.wire.sent),
        "received": text(connection.wire.received),
        "ports": ports,
    }
    print(json.dumps(told | tls), flush=True)


def deflating(mode: str, fresh: Any) -> dict[str, Any]:
    """Options of both ends; ``fresh`` makes the extension without windows that are kept."""
    found: dict[str, Any] = {"compression": None if mode == "off" else "deflate", "ping_interval": None}
    if mode == "fresh":
        found["extensions"] = [fresh(server_no_context_takeover=True, client_no_context_takeover=True)]
    return found


async def talk_as_client(port: int, mode: str, closer: str, plan: dict[str, Any], files: list[str]) -> None:
    tls = ssl.create_default_context(cafile=files[0]) if files else None
    async with connect(
        f"{'wss' if tls else 'ws'}://{NAME}:{port}/talk?mode={mode}",
        host="127.0.0.1",
        ssl=tls,
        proxy=None,
        create_connection=TappedClient,
        **deflating(mode, ClientPerMessageDeflateFactory),
    ) as connection:
        assert isinstance(connection, TappedClient)
        await converse(connection, "client", closer, plan)


async def talk_as_server(port: int, mode: str, closer: str, plan: dict[str, Any], files: list[str]) -> None:
    tls = None
    if files:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*files)

    async def handle(connection: ServerConnection) -> None:
        assert isinstance(connection, TappedServer)
        await converse(connection, "server", closer, plan)

    async with serve(
        handle,
        "127.0.0.1",
        port,
        ssl=tls,
        create_connection=TappedServer,
        **deflating(mode, ServerPerMessageDeflateFactory),
    ) as server:
        await server.serve_forever()


def main() -> None:
    role, port, mode, closer, path, *files = sys.argv[1:]
    plan = json.loads(Path(path).read_text())
    talk = talk_as_client if role == "client" else talk_as_server
    asyncio.run(talk(int(port), mode, closer, plan, files))


if __name__ == "__main__":
    main()
