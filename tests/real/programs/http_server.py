"""Python's own ``http.server`` with an access log in JSON: PORT PROTOCOL (``HTTP/1.0`` or ``HTTP/1.1``)."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def pattern(size_bytes: int, seed: str) -> bytes:
    count = size_bytes // (len(seed) + 8) + 1
    return "".join(f"{seed}:{number:06d}\n" for number in range(count)).encode()[:size_bytes]


def answer(method: str, target: str, body: bytes) -> tuple[int, bytes]:
    path = target.partition("?")[0]
    if path.startswith("/bytes/") and method in ("GET", "HEAD"):
        return 200, pattern(int(path.removeprefix("/bytes/")), path)
    if path == "/echo" and method in ("POST", "PUT"):
        return 200, body
    return 404, b"no such thing\n"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        request_body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, body = answer(self.command, self.path, request_body)
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        if self.protocol_version == "HTTP/1.1":  # in HTTP/1.0 the end of the connection ends the body
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            body = b""
        self.wfile.write(body)
        entry = {
            "method": self.command,
            "target": self.path,
            "status": status,
            "response_body_bytes": len(body),
            "request_body_bytes": len(request_body),
        }
        print(json.dumps(entry), flush=True)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True


if __name__ == "__main__":
    Handler.protocol_version = sys.argv[2]
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
