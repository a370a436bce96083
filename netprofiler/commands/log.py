"""The agent's own log, on standard error: text, or one JSON object a line."""

from __future__ import annotations

import json
import sys
import time

from netprofiler.config import Config


class Log:
    """Every line is flushed: somebody may be waiting for it."""

    def __init__(self, config: Config) -> None:
        self._json = config.log_format == "json"
        self._verbose = config.verbose

    def _write(self, level: str, text: str, prefix: str = "netprofiler: ") -> None:
        line = json.dumps({"time": time.time(), "level": level, "message": text}) if self._json else f"{prefix}{text}"
        print(line, file=sys.stderr, flush=True)

    def ready(self, text: str) -> None:
        """The line that scripts wait for begins with `ready`, in either format."""
        print(f"ready: {text}", file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        self._write("warning", text)

    def detail(self, text: str) -> None:
        """Only with --verbose."""
        if self._verbose:
            self._write("info", text)
