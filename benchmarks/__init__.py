"""What netprofiler costs, measured: `make bench`, or `benchmarks/run.py --help`.

    run.py         the plan: which measures, how long, how often; the command line
    host.py        facts about this machine; CPU and memory of processes; who else was busy
    noise.py       values over rounds -> median and spread; on/off pairs -> ratios
    programs.py    the agent, servers and clients: start, wait until ready, end
    trial.py       one load with or without the agent, all that is looked at around it; rounds of them, interleaved
    live.py        the measures that need the kernel: fixed rate, saturation, shapes of traffic, life, idle connections
    tls.py         those of TLS: cost beside reference_probes.py, attaching and detaching
    canned.py      the pipeline alone, in this process, on batches made here
    report.py      results -> docs/benchmarks.md (between its markers) and JSON
    load/          the client, the echo server and the TLS server, in Go
    reference_probes.py  TLS as it is usually probed, for comparison; a program by itself

Rules: loads run on loopback; on and off alternate within one run, in an order that turns with each round; nothing is
asserted: what failed is written down as it failed.
"""
