"""The application that uvicorn serves: answers like ``http_server.py``, and tells of each exchange."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from tests.real.programs.http_server import answer


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    received = b""
    more = True
    while more:
        event = await receive()
        received += event.get("body", b"")
        more = event.get("more_body", False)
    query = scope["query_string"].decode()
    target = scope["raw_path"].decode() + (f"?{query}" if query else "")
    status, body = answer(scope["method"], target, received)
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if scope["method"] == "HEAD":
        body = b""
    await send({"type": "http.response.body", "body": body})
    entry = {
        "method": scope["method"],
        "target": target,
        "status": status,
        "response_body_bytes": len(body),
        "request_body_bytes": len(received),
        "peer_port": scope["client"][1],
    }
    print(json.dumps(entry), flush=True)
