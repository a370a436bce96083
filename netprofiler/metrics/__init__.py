"""Prometheus metrics: exchanges counted, and the agent's own state, served over HTTP.

    messages ─→ sink.py ─→ series.py (tables) ─→ collector.py ─→ web.py ─→ Prometheus
                │ routes.py      services.py ▲        ▲ health.py          web_config.py: TLS, basic auth

The main thread counts; a thread of web.py reads the tables, under their lock, when it is asked. A third one (services.py)
finds out what processes are called. docs/metrics.md tells what each metric means.
"""
