"""Many TLS connections in one thread, by aiohttp: BASE_URL CA CONNECTIONS TURNS. Each has its turn while others are under way.

What is asked for holds the connection's own number, of what length depends on both numbers; one JSON object an exchange, with the client's own port.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
import sys

import aiohttp
from aiohttp.connector import AddrInfoType

SEED = 23


async def one(base: str, context: ssl.SSLContext, number: int, turns: int) -> None:
    chance = random.Random(SEED + number)
    opened: list[socket.socket] = []

    def make_socket(address: AddrInfoType) -> socket.socket:
        opened.append(socket.socket(*address[:3]))
        return opened[-1]

    connector = aiohttp.TCPConnector(ssl=context, limit=1, socket_factory=make_socket)
    async with aiohttp.ClientSession(connector=connector) as session:
        for turn in range(turns):
            await asyncio.sleep(chance.random() / 20)
            token = f"token-{number}-{turn};"
            body = token * chance.choice((1, 1, 10, 100, 3000))
            target = f"/echo?{token}"
            async with session.post(base + target, data=body) as response:
                assert await response.text() == body
                port = opened[-1].getsockname()[1]
                size = len(body)
                entry = {"method": "POST", "target": target, "status": response.status, "response_body_bytes": size}
                print(json.dumps(entry | {"request_body_bytes": size, "port": port}), flush=True)


async def main() -> None:
    base, ca, connections, turns = sys.argv[1:]
    context = ssl.create_default_context(cafile=ca)
    await asyncio.gather(*(one(base, context, number, int(turns)) for number in range(int(connections))))


if __name__ == "__main__":
    asyncio.run(main())
