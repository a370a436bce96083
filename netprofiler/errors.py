"""The errors that netprofiler raises on purpose.

Contract: whatever a user can cause ends in a `CommandError`, whose text is one line that says what is wrong and what mends it,
and whose `exit_code` scripts may rely on. Only `main()` turns it into an exit. Malformed traffic is never an error: it is data.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """The exit statuses of the program (see `netprofiler --help`)."""

    OK = 0
    FAILED = 1
    """The agent itself failed."""
    USAGE = 2
    """Bad usage or configuration; an output that cannot be written is one of these."""
    HOST = 3
    """This host cannot do it: no root, no BPF, no BTF, no BCC."""


class NetprofilerError(Exception):
    """The base of all errors that netprofiler raises on purpose."""


class CommandError(NetprofilerError):
    """Ends the running command: `str()` is the line for standard error, `exit_code` the exit status."""

    exit_code: Final[int]
    """1, 2 or 3: see `ExitCode`."""

    remedy: Final[str | None]
    """What mends it, usually a command to type; None where nothing is known to."""

    def __init__(self, message: str, exit_code: int = ExitCode.FAILED, *, remedy: str | None = None) -> None:
        text = message if remedy is None else f"{message} (to mend it: {remedy})"
        # One line, whatever a library put into its message.
        super().__init__(" ".join(text.split()))
        self.exit_code = int(exit_code)
        self.remedy = remedy
