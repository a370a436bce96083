"""Sinks: messages -> somewhere. `base.Sink` is the whole contract."""
