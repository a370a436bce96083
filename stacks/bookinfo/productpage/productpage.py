"""The product page: asks details (over TLS) and one version of reviews for every view."""

import itertools
import json
import os
import socket
import ssl
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DETAILS = os.environ.get("DETAILS_URL", "https://details:9443")
REVIEWS = os.environ.get("REVIEWS_URLS", "http://reviews-v1:9080 http://reviews-v2:9080 http://reviews-v3:9080").split()
PORT = int(os.environ.get("PORT", "9080"))

# The certificate of details is made when it starts, and signed by nobody else.
TLS = ssl.create_default_context()
TLS.check_hostname = False
TLS.verify_mode = ssl.CERT_NONE

_views = itertools.count()
_lock = threading.Lock()


def fetch(url: str) -> tuple[int, dict[str, object]]:
    """Status and body."""
    try:
        with urllib.request.urlopen(url, timeout=20, context=TLS if url.startswith("https") else None) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, {}


def listens(url: str) -> bool:
    """Without asking anything of it."""
    address = urllib.parse.urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), timeout=2).close()
    except OSError:
        return False
    return True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            missing = [url for url in (DETAILS, *REVIEWS) if not listens(url)]
            self.answer(503 if missing else 200, {"missing": missing}, log=False)
            return
        if not self.path.startswith("/productpage"):
            self.answer(404, {"error": "there is no such page"})
            return
        # In turn: v1, v2, v3.
        with _lock:
            reviews = REVIEWS[next(_views) % len(REVIEWS)]
        details_status, details = fetch(f"{DETAILS}/details/0")
        reviews_status, opinions = fetch(f"{reviews}/reviews/0")
        status = 200 if details_status == reviews_status == 200 else 502
        self.answer(status, {"product": "The Comedy of Errors", "details": details, "reviews": opinions})

    def answer(self, status: int, content: dict[str, object], *, log: bool = True) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if log:
            line = {"service": "productpage", "method": self.command, "path": self.path, "status": status}
            print(json.dumps(line), flush=True)

    def log_message(self, format: str, *args: object) -> None:
        """We write lines of our own."""


if __name__ == "__main__":
    print(f"productpage listens on {PORT}", file=sys.stderr, flush=True)
    ThreadingHTTPServer(("", PORT), Handler).serve_forever()
