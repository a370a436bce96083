"""netprofiler shows every HTTP exchange of a Linux host, of processes that nobody changed, restarted or proxied.

The map, in the order in which bytes travel:

    bpf/*.h                the kernel side: call -> socket -> verdict -> ring buffer (bpf/events.h is the ABI)
    sources/kernel.py      loads and attaches it, reads the ring: yields batches of raw records, as the kernel wrote them
    sources/recording.py   the same batches from a file;  sources/pcap.py makes such batches from a packet capture
    wire.py                raw records <-> events; the only mirror of bpf/events.h
    pipeline.py            feed(batch), tick(now), drain(): all connections, bounded
    connection.py          one socket: two directions, a reader each, pairing
    streams.py             one direction's bytes in order of position; reports gaps, never fills them
    protocols/http1.py     heads (h11, with caches) and bodies: bytes in, message parts out
    pairing.py             which response belongs to which request; says so when it cannot know
    exchange.py            Head, Message: what the sinks get
    sinks/                 jsonlines.py, terminal.py: messages -> somewhere
    counters.py            the ledger: what became of every byte that the kernel side saw
    commands/, cli.py      one verb, one file; the command line

Imports go one way (import-linter, see pyproject.toml); everything from pipeline.py down does no I/O and reads no clock.
docs/architecture.md tells the same at length.
"""

__version__ = "0.1.0"
