"""An HTTP/1.1 server of answers that take their time: PORT DIRECTORY [CERTIFICATE KEY].

``/events/COUNT/INTERVAL_MS/SIZE`` sends server-sent events of SIZE bytes, each in a chunk of its own; ``/close/…`` the same without
chunks, until the connection ends. ``/tail/NAME`` follows a file of DIRECTORY that grows, line by line, until a line says ``end``.
A POST is answered when it is over. Each exchange is a line of JSON in the access log.
"""

from __future__ import annotations

import json
import ssl
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

POLL_SECONDS = 0.02


def events(count: int, interval_ms: int, size: int) -> Iterator[bytes]:
    for number in range(count):
        if number:
            time.sleep(interval_ms / 1000)
        head = f"id: {number}\ndata: "
        yield (head + chr(ord("a") + number % 26) * (size - len(head) - 2) + "\n\n").encode()


def lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as log:
        line = b""
        while line != b"end\n":
            line += log.readline()
            if line.endswith(b"\n"):
                yield line
                line = line if line == b"end\n" else b""
            else:
                time.sleep(POLL_SECONDS)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        kind, *words = self.path.partition("?")[0].strip("/").split("/")
        pieces = lines(Path(sys.argv[2]) / words[0]) if kind == "tail" else events(*map(int, words))
        self.send_response(200)
        self.send_header("Content-Type", "text/plain" if kind == "tail" else "text/event-stream")
        self.send_header(*(("Connection", "close") if kind == "close" else ("Transfer-Encoding", "chunked")))
        self.end_headers()
        size = 0
        for piece in pieces:
            self.wfile.write(piece if kind == "close" else b"%x\r\n%s\r\n" % (len(piece), piece))
            size += len(piece)
        if kind != "close":
            self.wfile.write(b"0\r\n\r\n")
        self.tell(size, 0)

    def do_POST(self) -> None:
        size = 0
        while length := int(self.rfile.readline(), 16):
            size += len(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.tell(0, size)

    def tell(self, sent: int, received: int) -> None:
        entry = {"method": self.command, "target": self.path, "status": 200}
        print(json.dumps(entry | {"response_body_bytes": sent, "request_body_bytes": received}), flush=True)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def main() -> None:
    port, _, *files = sys.argv[1:]
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    if files:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*files)
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
