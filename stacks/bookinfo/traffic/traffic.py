"""Looks at the product page VIEWS times, DELAY_MS apart, and says how it went; exit status 1 when a view failed."""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request

URL = os.environ.get("URL", "https://gateway:8443/productpage")
VIEWS = int(os.environ.get("VIEWS", "23"))
DELAY_SECONDS = int(os.environ.get("DELAY_MS", "100")) / 1000
WAIT_SECONDS = int(os.environ.get("WAIT_SECONDS", "60"))

TLS = ssl.create_default_context()
TLS.check_hostname = False
TLS.verify_mode = ssl.CERT_NONE


def status_of(url: str) -> int:
    """0: there was no answer."""
    try:
        with urllib.request.urlopen(url, timeout=30, context=TLS) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def main() -> int:
    """Returns the exit status."""
    health = URL.rpartition("/")[0] + "/health"
    until = time.monotonic() + WAIT_SECONDS
    while status_of(health) != 200:
        if time.monotonic() > until:
            print(f"no answer from {health}", file=sys.stderr)
            return 1
        time.sleep(0.2)
    statuses: dict[int, int] = {}
    for _ in range(VIEWS):
        status = status_of(URL)
        statuses[status] = statuses.get(status, 0) + 1
        time.sleep(DELAY_SECONDS)
    print(json.dumps({"service": "traffic", "views": VIEWS, "statuses": statuses}), flush=True)
    return 0 if statuses == {200: VIEWS} else 1


if __name__ == "__main__":
    sys.exit(main())
