"""A real Prometheus that scrapes an agent, and what PromQL says."""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType

from tests.real.harness.programs import Program, free_port, require, wait_until

ROUND_SECONDS = 0.25
"""The agent has counted what happened so long ago: some of its rounds of 40 ms, if it gets a CPU."""
PATIENCE_SECONDS = 5.0
CONFIG = """
global: {{scrape_interval: 400ms, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: netprofiler
    honor_labels: true
    static_configs: [{{targets: ["127.0.0.1:{target}"]}}]
"""

Labels = tuple[str, ...]


class Prometheus:
    """``with Prometheus(directory, port) as prometheus:`` `port`: where the agent serves its metrics."""

    def __init__(self, directory: Path, target: int, rules: Path) -> None:
        [binary] = require("prometheus")
        self.port = free_port()
        config = directory / "prometheus.yml"
        config.write_text(CONFIG.format(target=target, rules=rules))
        self._program = Program(
            [
                *(binary, f"--config.file={config}", f"--storage.tsdb.path={directory / 'tsdb'}"),
                *(f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"),
            ],
            directory,
            name="prometheus",
            address=("127.0.0.1", self.port),
        )

    def __enter__(self) -> Prometheus:
        self._program.__enter__()
        try:
            wait_until(self._is_ready, "Prometheus is ready")
            wait_until(lambda: self.values("up") == {(): 1.0}, "Prometheus has scraped the agent")
        except BaseException:
            self._program.__exit__()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._program.__exit__()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=10):
                return True
        except urllib.error.HTTPError:
            return False

    def get(self, path: str, **parameters: str) -> object:
        """The ``data`` of an answer of the HTTP API."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                content = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        assert content["status"] == "success" and not content.get("warnings"), content
        data: object = content["data"]
        return data

    def values(self, query: str, *labels: str, at: float | None = None) -> dict[Labels, float]:
        """An instant query: values by these labels; NaN left out. `at`: UNIX time; default: now."""
        data = self.get("query", query=query, time=str(at or time.time()))
        assert isinstance(data, dict)
        rows = data["result"] if data["resultType"] == "vector" else [{"metric": {}, "value": data["result"]}]
        pairs = [(tuple(row["metric"].get(label, "") for label in labels), float(row["value"][1])) for row in rows]
        found = {key: value for key, value in pairs if not math.isnan(value)}
        assert len({key for key, _ in pairs}) == len(pairs), f"{query}: rows that {labels} do not tell apart"
        return found

    def await_values(self, expected: dict[Labels, float], query: str, *labels: str) -> None:
        """The test fails where it does not say so soon, with what it says then: a machine may be busy."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (found := self.values(query, *labels)) != expected and time.monotonic() < deadline:
            time.sleep(0.1)
        assert found == expected, query

    def value(self, query: str, *, at: float | None = None) -> float:
        """Of a query with one row; 0 where it has none."""
        values = list(self.values(query, at=at).values())
        assert len(values) <= 1
        return values[0] if values else 0.0

    def next_scrape(self) -> None:
        """Until what has happened by now was counted and scraped."""
        now = time.time() + ROUND_SECONDS
        wait_until(lambda: self.value("max(timestamp(netprofiler_build_info))") > now, "another scrape", seconds=10)
