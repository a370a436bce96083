"""The terminal view: one line an exchange, and one a WebSocket message, as it happens.

    12:01:07.123 traffic[1234] → GET 127.0.0.1:8080/slow?ms=200  200  201.4 ms  0 B ↑ 17 B ↓
    12:01:07.501 orders[77] ← POST shop:50051/shop.Orders/Get  200 NOT_FOUND  1.2 ms  9 B ↑ 0 B ↓
    12:01:08.002 chat[1300] → websocket text  5 B  hello

The arrow of an exchange says which side the process is on: → it asks (client), ← it answers (server); that of a WebSocket
message whether the process sends → or receives ← it. A request whose response never came has no line; a response without a
request has one that says so. ``?`` stands for what is not known. Colours go by the status, and are left out where
NO_COLOR is set or the output is no terminal.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from typing import Final, TextIO

from netprofiler.counters import Counters
from netprofiler.exchange import Completeness, Direction, Grpc, Message, Role, WebSocket
from netprofiler.redaction import Redactor
from netprofiler.sinks.base import OutputClosed

_RESET: Final = "\x1b[0m"
_DIM: Final = "\x1b[2m"
_COLOURS: Final = {1: "\x1b[36m", 2: "\x1b[32m", 3: "\x1b[36m", 4: "\x1b[33m", 5: "\x1b[31m"}
_TARGET_CHARACTERS: Final = 96
_TEXT_CHARACTERS: Final = 60
"""Of a WebSocket message: a line stays a line."""
_GRPC_STATUS: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""By their number: gRPC's "Status codes and their use in gRPC"."""


def size_text(count: int) -> str:
    """Bytes, for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _printable(text: str) -> str:
    """Traffic must not drive the terminal: control characters are shown, not obeyed."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def grpc_status_text(status: int) -> str:
    """Its name, or its number where it has none."""
    return _GRPC_STATUS[status] if 0 <= status < len(_GRPC_STATUS) else str(status)


class Terminal:
    """See above."""

    def __init__(
        self,
        stream: TextIO,
        redactor: Redactor,
        counters: Counters,
        *,
        wall_offset_ns: int,
        colour: bool | None = None,
        mask: Callable[[str], str] | None = None,
    ) -> None:
        self._mask = mask
        self._stream = stream
        self._redactor = redactor
        self._counters = counters
        self._wall_offset_ns = wall_offset_ns
        self._colour = (stream.isatty() and not os.environ.get("NO_COLOR")) if colour is None else colour
        self._paint: Callable[[str, str], str] = (
            (lambda text, code: f"{code}{text}{_RESET}") if self._colour else (lambda text, _code: text)
        )

    def line(self, message: Message) -> str:
        """Of a response, with what it answers; or of a WebSocket message."""
        extra = message.extra
        text = self._websocket(message, extra) if isinstance(extra, WebSocket) else self._exchange(message)
        if message.completeness not in (Completeness.COMPLETE, Completeness.TRUNCATED):
            text += f"  {self._paint(message.completeness.value, _DIM)}"
        return text

    def _exchange(self, response: Message) -> str:
        arrow = "→" if response.link.role is Role.CLIENT else "←"
        status = str(response.head.status or "?")
        status = self._paint(status, _COLOURS.get(response.head.status // 100, ""))
        if isinstance(response.extra, Grpc) and response.extra.status is not None:
            code = response.extra.status
            status += f" {self._paint(grpc_status_text(code), _COLOURS[4 if code else 2])}"
        request = response.request
        if request is None:
            what, duration, sent = "(request not seen)", "", ""
        else:
            target, _ = self._redactor.target(request.head.target or "?")
            host = ""
            if target.startswith("/"):
                fields = request.head.fields.headers
                host = next((value for key, value in fields if key.lower() in ("host", ":authority")), "")
                host = self._redactor.text(host)[0]
            what = f"{_printable(request.head.method or '?')} {_cut(_printable(host + target), _TARGET_CHARACTERS)}"
            duration = f"  {max(0, response.end_ns - request.time_ns) / 1e6:.1f} ms"
            sent = f"  {size_text(request.body_bytes)} ↑"
        begin = self._begin(response, (response.request or response).time_ns)
        return f"{begin} {arrow} {what}  {status}{duration}{sent} {size_text(response.body_bytes)} ↓"

    def _websocket(self, message: Message, websocket: WebSocket) -> str:
        arrow = "→" if message.direction == Direction.SEND else "←"
        text = f"{self._begin(message, message.time_ns)} {arrow} websocket {websocket.opcode}"
        if websocket.opcode == "close":
            words = ("" if websocket.close_code is None else str(websocket.close_code), websocket.close_reason or "")
            detail, _ = self._redactor.text(" ".join(filter(None, words)))
        else:
            text += f"  {size_text(message.body_bytes)}"
            # As many bytes as may be needed for more characters than are shown.
            beginning = message.body[: 4 * (_TEXT_CHARACTERS + 1)] if websocket.opcode == "text" else b""
            cut = len(beginning) < len(message.body) or message.completeness is not Completeness.COMPLETE
            detail, _ = self._redactor.text(beginning.decode("utf-8", "replace"), cut=cut)
        return f"{text}  {_cut(_printable(detail), _TEXT_CHARACTERS)}" if detail else text

    def _begin(self, message: Message, time_ns: int) -> str:
        """When, and who."""
        link = message.link
        moment = datetime.fromtimestamp((time_ns + self._wall_offset_ns) / 1e9).astimezone()
        if link.passive:
            who = f"{link.local_ip}:{link.local_port}"
        else:
            who = f"{_printable(message.process.comm) if message.process is not None else '?'}[{message.pid}]"
        return f"{self._paint(moment.strftime('%H:%M:%S.%f')[:-3], _DIM)} {who}"

    def emit(self, messages: list[Message]) -> None:
        lines = [
            self.line(message)
            for message in messages
            if (not message.head.is_request or isinstance(message.extra, WebSocket))
            and message.completeness is not Completeness.OPEN
        ]
        if self._mask is not None:
            lines = list(map(self._mask, lines))
        try:
            if lines:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()
        except BrokenPipeError as error:
            self._counters.output_failed += len(messages)
            raise OutputClosed from error
        except OSError:
            self._counters.output_failed += len(messages)
            return
        self._counters.written += len(messages)

    def flush(self) -> None:
        """Every round is flushed."""

    def reopen(self) -> None:
        """There is no file."""

    def set_wall_offset(self, offset_ns: int) -> None:
        self._wall_offset_ns = offset_ns

    def close(self) -> None:
        """The stream is not ours."""
