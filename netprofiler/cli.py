"""The command line: finds the verb, hands over to its file in commands/, turns a `CommandError` into an exit status.

Contract: `main()` is the only place that ends the process; whatever a user can cause is one line on standard error.
A verb's module is imported when it is called for: BCC and friends are slow to import, and not there for everybody.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from netprofiler import __version__
from netprofiler.errors import CommandError, ExitCode

VERBS: Final = {
    "run": "capture this host's HTTP (this is the default)",
    "record": "write the raw kernel records to a file, parse nothing",
    "replay": "run a recording or a packet capture through the same pipeline",
    "decode": "print a recording's raw records, one line each",
    "doctor": "what this machine offers, what is missing, what mends it",
    "explain": "for one process: what is seen of it, what is not, and why",
    "map": "who calls whom, out of the records of run or replay",
}

_USAGE: Final = """\
usage: netprofiler [VERB] [options] [-- COMMAND…]

Shows every HTTP exchange on this host, of processes that nobody changed,
restarted or proxied.

"""

_EXAMPLES: Final = """
examples:
  sudo netprofiler --output http.log            everything, as JSON Lines
  sudo netprofiler --port 8080                  one port, on the terminal
  sudo netprofiler -o - -- curl -s http://host/ what one command says

`netprofiler VERB --help` has each verb's options. Filters may be repeated: of
one kind they are OR, kinds are AND. Exit status: 0 fine, 1 the agent failed,
2 bad usage or configuration, 3 this host cannot do it (`netprofiler doctor`).
"""


class _Parser(argparse.ArgumentParser):
    """argparse prints its usage and exits by itself: here, bad usage is one line with a remedy."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(message, ExitCode.USAGE, remedy=f"see `{self.prog} --help`")


def _overview() -> str:
    verbs = "".join(f"  {verb:9}{text}\n" for verb, text in VERBS.items())
    return f"{_USAGE}verbs:\n{verbs}{_EXAMPLES}"


def _main(arguments: Sequence[str]) -> int:
    arguments = list(arguments)
    command: tuple[str, ...] = ()
    if "--" in arguments:
        at = arguments.index("--")
        command = tuple(arguments[at + 1 :])
        arguments = arguments[:at]
        if not command:
            raise CommandError("nothing follows `--`", ExitCode.USAGE, remedy="give a command to run")
    if arguments[:1] in (["--help"], ["-h"], ["help"]):
        print(_overview(), end="")
        return 0
    if arguments[:1] == ["--version"]:
        print(f"netprofiler {__version__}")
        return 0
    verb = "run"
    if arguments and not arguments[0].startswith("-"):
        verb = arguments.pop(0)
        if verb not in VERBS:
            raise CommandError(f"there is no verb {verb!r}", ExitCode.USAGE, remedy=f"it is one of {', '.join(VERBS)}")
    if command and verb not in ("run", "record"):
        raise CommandError(f"`netprofiler {verb}` takes no `-- COMMAND`", ExitCode.USAGE)
    module = importlib.import_module(f"netprofiler.commands.{verb}")
    parser = _Parser(prog=f"netprofiler {verb}", description=f"netprofiler {verb}: {VERBS[verb]}", allow_abbrev=False)
    module.add_arguments(parser)
    status: int = module.execute(parser.parse_args(arguments), command)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    try:
        status = _main(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except CommandError as error:
        print(f"netprofiler: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # `netprofiler decode FILE | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except KeyboardInterrupt:
        return 130
    return status
