"""The terminal view: one line an exchange, as it happens.

    12:01:07.123 traffic[1234] → GET 127.0.0.1:8080/slow?ms=200  200  201.4 ms  0 B ↑ 17 B ↓

The arrow says which side the process is on: → it asks (client), ← it answers (server). A request whose response never
came has no line; a response without a request has one that says so. Colours go by the status, and are left out where
NO_COLOR is set or the output is no terminal.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from typing import Final, TextIO

from netprofiler.counters import Counters
from netprofiler.exchange import Completeness, Message, Role
from netprofiler.redaction import Redactor
from netprofiler.sinks.base import OutputClosed

_RESET: Final = "\x1b[0m"
_DIM: Final = "\x1b[2m"
_COLOURS: Final = {1: "\x1b[36m", 2: "\x1b[32m", 3: "\x1b[36m", 4: "\x1b[33m", 5: "\x1b[31m"}
_TARGET_CHARACTERS: Final = 96


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


class Terminal:
    """See above."""

    def __init__(
        self, stream: TextIO, redactor: Redactor, counters: Counters, *, wall_offset_ns: int, colour: bool | None = None
    ) -> None:
        self._stream = stream
        self._redactor = redactor
        self._counters = counters
        self._wall_offset_ns = wall_offset_ns
        self._colour = (stream.isatty() and not os.environ.get("NO_COLOR")) if colour is None else colour
        self._paint: Callable[[str, str], str] = (
            (lambda text, code: f"{code}{text}{_RESET}") if self._colour else (lambda text, _code: text)
        )

    def line(self, response: Message) -> str:
        link = response.link
        moment = datetime.fromtimestamp(
            ((response.request or response).time_ns + self._wall_offset_ns) / 1e9
        ).astimezone()
        if link.passive:
            who = f"{link.local_ip}:{link.local_port}"
        else:
            who = f"{_printable(response.process.comm) if response.process is not None else '?'}[{response.pid}]"
        arrow = "→" if link.role is Role.CLIENT else "←"
        status = str(response.head.status)
        status = self._paint(status, _COLOURS.get(response.head.status // 100, ""))
        request = response.request
        if request is None:
            what, duration, sent = "(request not seen)", "", ""
        else:
            target, _ = self._redactor.target(request.head.target)
            host = ""
            if target.startswith("/"):
                host = next((value for key, value in request.head.fields.headers if key.lower() == "host"), "")
            target = _printable(host + target)
            if len(target) > _TARGET_CHARACTERS:
                target = target[: _TARGET_CHARACTERS - 1] + "…"
            what = f"{_printable(request.head.method)} {target}"
            duration = f"  {max(0, response.end_ns - request.time_ns) / 1e6:.1f} ms"
            sent = f"  {size_text(request.body_bytes)} ↑"
        text = (
            f"{self._paint(moment.strftime('%H:%M:%S.%f')[:-3], _DIM)} {who} {arrow} {what}"
            f"  {status}{duration}{sent} {size_text(response.body_bytes)} ↓"
        )
        if response.completeness not in (Completeness.COMPLETE, Completeness.TRUNCATED):
            text += f"  {self._paint(response.completeness.value, _DIM)}"
        return text

    def emit(self, messages: list[Message]) -> None:
        lines = [
            self.line(message)
            for message in messages
            if not message.head.is_request and message.completeness is not Completeness.OPEN
        ]
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
