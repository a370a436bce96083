"""What `run` adds for `--metrics-address`: the sink, its server, and what the agent says of itself.

It imports what serves metrics for who asks for it only: prometheus-client takes 60 ms, which a start otherwise need not wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from netprofiler.commands.capture import Capture
from netprofiler.config import Config
from netprofiler.counters import make_ledger
from netprofiler.errors import CommandError, ExitCode
from netprofiler.exchange import Link, Process
from netprofiler.metrics.health import Health, Peak
from netprofiler.metrics.services import Names, ServiceNames
from netprofiler.metrics.sink import Metrics
from netprofiler.pipeline import Pipeline
from netprofiler.sources.kernel import RING_BYTES
from netprofiler.sources.tallies import Asker

if TYPE_CHECKING:
    from netprofiler.metrics.web import MetricsServer


TALLIES_NS: Final = 200_000_000
"""What the kernel side has added up is read this often: some 20 us, and 3 us for each set of labels that has changed."""


class Metered:
    """A capture whose exchanges are counted and served."""

    def __init__(self, metrics: Metrics, server: MetricsServer, capture: Capture, pipeline: Pipeline) -> None:
        self.metrics = metrics
        self.server = server
        self._capture = capture
        self._pipeline = pipeline
        self._round_bytes = 0
        self._read_bytes = 0
        self._peak = Peak()
        self._tallies_ns = 0
        metrics.watch(self._health)

    def read(self, size: int) -> None:
        """So many bytes came out of the ring."""
        self._round_bytes += size

    def end_round(self, now_ns: int) -> None:
        self._read_bytes += self._round_bytes
        self._peak.add(self._round_bytes, now_ns)
        self._round_bytes = 0
        if now_ns >= self._tallies_ns:
            self._tallies_ns = now_ns + TALLIES_NS
            self.read_tallies(now_ns)
        self.metrics.tick(now_ns, self._open_links)

    def read_tallies(self, now_ns: int) -> None:
        """What the kernel side has added up."""
        tallies, unanswered = self._capture.tallied(now_ns)
        for tally in tallies:
            self.metrics.add_tally(tally, self._process(tally.asker))
        for asker, count in unanswered:
            self.metrics.add_unanswered(asker, count, self._process(asker))

    def _process(self, asker: Asker) -> Process | None:
        process = self._pipeline.shared.processes.get(asker.pid)
        return process if process is not None and process.start_ns == asker.start_ns else None

    def close(self) -> None:
        self.server.close()
        self.metrics.close()

    def _open_links(self) -> set[Link]:
        return {connection.link for connection in self._pipeline.connections.values()}

    def _health(self) -> Health | None:
        attached = self._capture.attached()
        if attached is None:
            return None
        counters = self._pipeline.counters
        return Health(
            ledger=make_ledger(counters, attached.rows),
            announcements_lost=attached.announcements_lost,
            tls_unread=counters.tls_unread,
            connections=len(self._pipeline.connections),
            probes=attached.probes,
            probed_files=attached.files,
            attach_failures=attached.failures,
            ring_size_bytes=RING_BYTES,
            ring_read_bytes=self._read_bytes,
            ring_peak_bytes=self._peak.value,
        )


def start_metrics(
    config: Config, capture: Capture, pipeline: Pipeline, warn: Callable[[str], None], names: Names | None = None
) -> Metered | None:
    """Listens from here on, and says `not ready` until the capture's first round. `names`: of containers (metrics/services.py)."""
    if config.metrics_address is None:
        if config.metrics_config is not None or config.route:
            raise CommandError("--metrics-config and --route mean nothing without --metrics-address", ExitCode.USAGE)
        return None
    from netprofiler.metrics.web import MetricsServer  # noqa: PLC0415

    service_names = ServiceNames(names)
    metrics = Metrics(service_names, config.route)
    server = MetricsServer(metrics, config.metrics_address, config.metrics_config, warn)
    server.start()
    return Metered(metrics, server, capture, pipeline)
