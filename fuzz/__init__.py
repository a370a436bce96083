"""Coverage-guided fuzzing of all that reads what others wrote (docs/reliability.md, "Fuzzing").

`targets.py` has the targets: functions of bytes that raise for what must not be. `run.py` gives them to atheris. `corpus/` has
what earlier runs found worth keeping, which tests/fuzz puts through the targets with every test run.
"""
