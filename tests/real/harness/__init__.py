"""What the tests against real programs share.

    agent.py     starts the installed ``netprofiler``, ends it, reads its log and its ledger
    checks.py    what every record, every exchange and every ledger must satisfy; knows no agent and no program
    truth.py     what the servers' access logs and the clients' outputs say happened
    programs.py  starts servers and clients, ends them by pid
    wire.py      one connection of which the test itself holds both ends
    lab.py       one agent shared by the tests of a module, over many such connections

``checks`` is pure, and ``tests/unit/test_real_harness.py`` feeds it logs that are wrong.
"""
