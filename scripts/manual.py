#!/usr/bin/env python3
"""Writes docs/netprofiler.1 and docs/netprofiler.bash (the man page and the completion of bash) from the verbs' own
parsers, which read netprofiler.config.OPTIONS: so there is one table of options. tests/unit/test_docs.py fails when the
two files are not what this writes.

    .venv/bin/python scripts/manual.py
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from netprofiler import __version__
from netprofiler.cli import VERBS

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
MAN: Final = DOCS / "netprofiler.1"
COMPLETION: Final = DOCS / "netprofiler.bash"

_BEFORE_VERBS: Final = r""".SH NAME
netprofiler \- show every HTTP exchange of this host
.SH SYNOPSIS
.B netprofiler
.RI [ VERB ]
.RI [ OPTION ...]
.RB [ \-\- " \fICOMMAND\fP..." ]
.SH DESCRIPTION
.B netprofiler
watches the socket system calls of all processes of a Linux host by eBPF and writes one record for every HTTP request and
response (HTTP/1.0, HTTP/1.1, HTTP/2 with gRPC) and every WebSocket message that one of them sends or receives over TCP or a UNIX
stream socket. The processes are not changed, restarted or proxied. Without a verb it captures; with
.B \-\-
it starts COMMAND, watches it and its children alone, and ends with its exit status.
.PP
What is inside of TLS is read by probes in the TLS libraries: Go's crypto/tls, OpenSSL, BoringSSL, GnuTLS, NSS (x86-64).
.B netprofiler explain
says of a process what is read of it, and why what is not. QUIC (HTTP/3) and io_uring are not seen at all.
"""

_AFTER_VERBS: Final = r""".SH SIGNALS
.TP
.BR SIGINT ", " SIGTERM
End the capture: the probes are removed, what is buffered is written, the ledger is printed on standard error. A second
one ends at once.
.TP
.B SIGHUP
Open the output again (for logrotate).
.SH EXIT STATUS
.TP
.B 0
fine
.TP
.B 1
the agent failed
.TP
.B 2
bad usage or configuration; an output that is a directory or a symbolic link too
.TP
.B 3
this host cannot do it: no root, no BPF, no BTF, no BCC. One line says what is missing and what mends it;
.B netprofiler doctor
says more.
.PP
With
.B \-\-
.I COMMAND
the status is COMMAND's, or 128 and the number of the signal that ended it.
.SH ENVIRONMENT
.TP
.B NETPROFILER_OPTION
The value of
.BR \-\-option ,
in capitals and with underscores (NETPROFILER_BODY_LIMIT); repeated ones separated by commas. The command line wins over
it, and it wins over the file of
.BR \-\-config .
.TP
.B OUTPUT_PATH
As
.BR NETPROFILER_OUTPUT ,
where that is not set.
.TP
.B NO_COLOR
When set, the terminal view has no colours.
.TP
.B NOTIFY_SOCKET
When set (by systemd), READY=1 is sent there.
.SH EXAMPLES
.nf
sudo netprofiler \-\-output http.log
sudo netprofiler \-\-port 8080
sudo netprofiler \-\-port 443
sudo netprofiler \-o \- \-\- curl \-s http://127.0.0.1:8080/
.fi
.SH SEE ALSO
.BR ss (8),
.BR tcpdump (8),
.BR bpf (2)
"""


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each verb's own, of those that there are."""
    for verb in VERBS:
        module = f"netprofiler.commands.{verb}"
        if importlib.util.find_spec(module) is not None:
            parser = argparse.ArgumentParser(prog=f"netprofiler {verb}", add_help=False)
            importlib.import_module(module).add_arguments(parser)
            yield verb, parser


def _escape(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def _entries(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        placeholder = action.metavar if isinstance(action.metavar, str) else action.dest
        if action.option_strings:
            value = "" if action.nargs == 0 else f" \\fI{_escape(placeholder)}\\fP"
            names = ", ".join(f"\\fB{_escape(name)}\\fP{value}" for name in action.option_strings)
        else:
            names = f"\\fI{_escape(placeholder)}\\fP"
        yield f".TP\n{names}\n{_escape(action.help or '')}\n"


def man_page() -> str:
    found = dict(parsers())
    out = [
        f'.\\" Written by scripts/manual.py: change that, or netprofiler/config.py.\n.TH NETPROFILER 1 "" "netprofiler {__version__}"\n'
    ]
    out.append(_BEFORE_VERBS)
    out.append(".SH VERBS\n")
    out.extend(f".TP\n.B {verb}\n{_escape(text)}\n" for verb, text in VERBS.items())
    for verb, parser in found.items():
        out.append(f".SH OPTIONS OF {verb.upper()}\n")
        out.extend(_entries(parser))
    out.append(_AFTER_VERBS)
    return "".join(out)


def completion() -> str:
    cases = []
    files: set[str] = set()
    values: set[str] = set()
    for verb, parser in parsers():
        names: list[str] = []
        for action in parser._actions:
            names += action.option_strings
            if action.option_strings and action.nargs != 0:
                (files if action.metavar in ("FILE", "PATH") else values).update(action.option_strings)
        cases.append(f'        {verb}) options="{" ".join((*names, "--help"))}" ;;\n')
    return f"""\
# Completion of bash for netprofiler. Written by scripts/manual.py: change that, or netprofiler/config.py.

_netprofiler() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} verb=run options=""
    local verbs="{" ".join(VERBS)}"
    COMPREPLY=()
    case " $verbs " in *" ${{COMP_WORDS[1]}} "*) verb=${{COMP_WORDS[1]}} ;; esac
    case $verb in
{"".join(cases)}    esac
    case $before in
        {"|".join(sorted(files))})
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        {"|".join(sorted(values))})
            return ;;
    esac
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
    elif (( COMP_CWORD == 1 )); then
        mapfile -t COMPREPLY < <(compgen -W "$verbs" -- "$word")
    else
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
    fi
}}
complete -o filenames -F _netprofiler netprofiler
"""


if __name__ == "__main__":
    MAN.write_text(man_page(), encoding="utf-8")
    COMPLETION.write_text(completion(), encoding="utf-8")
