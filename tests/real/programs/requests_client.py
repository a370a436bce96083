"""``requests``, one session, over TCP or a UNIX socket: BASE_URL|SOCKET_PATH PLAN_FILE."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.poolmanager import PoolManager


class UnixConnection(HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(sys.argv[1])


class UnixPool(HTTPConnectionPool):
    ConnectionCls = UnixConnection


class UnixAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        manager: PoolManager = self.poolmanager
        manager.pool_classes_by_scheme = {"http": UnixPool}


def main() -> None:
    base = sys.argv[1]
    with requests.Session() as session:
        session.trust_env = False
        if not base.startswith("http://"):
            base = "http://localhost"
            session.mount("http://", UnixAdapter())
        for method, target, body in json.loads(Path(sys.argv[2]).read_text()):
            response = session.request(method, base + target, data=body or None, timeout=20)
            entry = {
                "method": method,
                "target": target,
                "status": response.status_code,
                "response_body_bytes": len(response.content),
                "request_body_bytes": len(body),
            }
            print(json.dumps(entry), flush=True)


if __name__ == "__main__":
    main()
