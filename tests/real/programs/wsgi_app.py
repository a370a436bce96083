"""The application that gunicorn serves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tests.real.programs.http_server import answer

REASONS = {200: "200 OK", 404: "404 Not Found"}


def app(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    request_body = environ["wsgi.input"].read()
    status, body = answer(environ["REQUEST_METHOD"], environ["RAW_URI"], request_body)
    start_response(REASONS[status], [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
