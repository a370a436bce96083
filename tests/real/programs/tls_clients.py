"""Python's HTTP clients over TLS: KIND CA PLAN_FILE BASE_URL...

KIND: ``requests``, ``http.client``, ``urllib3``, ``aiohttp``, ``httpx`` or ``httpx-async``. The plan is done once for each BASE_URL, one request
after the other, on as few connections as the library takes. One JSON object an exchange, with the handshake where the library lets one see it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx
import requests
import urllib3
from yarl import URL

Plan = list[tuple[str, str, str]]
TIMEOUT_SECONDS = 20


def tell(base: str, ask: tuple[str, str, str], status: int, size: int, connection: Any = None) -> None:
    method, target, body = ask
    entry: dict[str, object] = {
        "base": base,
        "method": method,
        "target": target,
        "status": status,
        "response_body_bytes": size,
        "request_body_bytes": len(body),
    }
    if connection is not None:
        entry |= {
            "version": connection.version(),
            "cipher": connection.cipher()[0],
            "alpn": connection.selected_alpn_protocol(),
            "sni": connection.server_hostname,
        }
    print(json.dumps(entry), flush=True)


def by_requests(base: str, plan: Plan, ca: str) -> None:
    with requests.Session() as session:
        session.trust_env = False
        session.verify = ca
        for method, target, body in plan:
            with session.request(
                method, base + target, data=body or None, timeout=TIMEOUT_SECONDS, stream=True
            ) as response:
                connection = getattr(response.raw.connection, "sock", None)
                tell(base, (method, target, body), response.status_code, len(response.content), connection)


def by_http_client(base: str, plan: Plan, ca: str) -> None:
    host, port = urlsplit(base).hostname, urlsplit(base).port
    assert host is not None
    context = ssl.create_default_context(cafile=ca)
    connection = http.client.HTTPSConnection(host, port, context=context, timeout=TIMEOUT_SECONDS)
    for method, target, body in plan:
        connection.request(method, target, body=body or None)
        response = connection.getresponse()
        tell(base, (method, target, body), response.status, len(response.read()), connection.sock)
    connection.close()


def by_urllib3(base: str, plan: Plan, ca: str) -> None:
    with urllib3.PoolManager(ca_certs=ca, retries=False, timeout=TIMEOUT_SECONDS) as pool:
        for method, target, body in plan:
            response = pool.request(method, base + target, body=body or None, preload_content=False)
            connection = getattr(response.connection, "sock", None)
            tell(base, (method, target, body), response.status, len(response.read()), connection)
            response.release_conn()


async def by_aiohttp(base: str, plan: Plan, ca: str) -> None:
    context = ssl.create_default_context(cafile=ca)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for method, target, body in plan:
            url = URL(base + target, encoded=True)
            async with session.request(method, url, data=body.encode() or None, ssl=context) as response:
                transport = response.connection.transport if response.connection else None
                connection = transport.get_extra_info("ssl_object") if transport else None
                tell(base, (method, target, body), response.status, len(await response.read()), connection)


def by_httpx(base: str, plan: Plan, ca: str) -> None:
    context = ssl.create_default_context(cafile=ca)
    with httpx.Client(verify=context, trust_env=False, timeout=TIMEOUT_SECONDS) as client:
        for method, target, body in plan:
            with client.stream(method, base + target, content=body.encode() or None) as response:
                connection = response.extensions["network_stream"].get_extra_info("ssl_object")
                tell(base, (method, target, body), response.status_code, len(response.read()), connection)


async def by_httpx_async(base: str, plan: Plan, ca: str) -> None:
    context = ssl.create_default_context(cafile=ca)
    async with httpx.AsyncClient(verify=context, trust_env=False, timeout=TIMEOUT_SECONDS) as client:
        for method, target, body in plan:
            async with client.stream(method, base + target, content=body.encode() or None) as response:
                connection = response.extensions["network_stream"].get_extra_info("ssl_object")
                tell(base, (method, target, body), response.status_code, len(await response.aread()), connection)


def main() -> None:
    kind, ca, path, *bases = sys.argv[1:]
    plan: Plan = [(method, target, body) for method, target, body in json.loads(Path(path).read_text())]
    for base in bases:
        match kind:
            case "requests":
                by_requests(base, plan, ca)
            case "http.client":
                by_http_client(base, plan, ca)
            case "urllib3":
                by_urllib3(base, plan, ca)
            case "aiohttp":
                asyncio.run(by_aiohttp(base, plan, ca))
            case "httpx":
                by_httpx(base, plan, ca)
            case "httpx-async":
                asyncio.run(by_httpx_async(base, plan, ca))
            case _:
                sys.exit(f"no client named {kind}")


if __name__ == "__main__":
    main()
