r"""`netprofiler decode FILE`: a recording's raw records, one line each, for "why is my exchange missing?".

    # a recording by netprofiler 0.1.0, ABI 1, on Linux 6.1.0 x86_64, started 2026-11-21T04:18:20Z
    04:18:24.123456789 process sock=-          pid=1234 traffic: /bin/traffic --requests 10
    04:18:24.123460001 opened  sock=48213      pid=1234 client fresh 127.0.0.1:54321 > 127.0.0.1:8080 send@101 recv@900
    04:18:24.123461020 data    sock=48213      pid=1234 tid=1236 send @101 189/189 first  POST /echo HTTP/1.1\r\nHost: 1
    04:18:24.130000000 closed  sock=48213      both gone @290

Times are UTC. `189/189`: bytes captured of bytes in the stream; where less was captured, the reason follows. What was
sent is escaped: nothing in a recording can drive the terminal. Nothing is redacted: a recording holds what was said.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from typing import Final, assert_never

from netprofiler import wire
from netprofiler.errors import ExitCode
from netprofiler.sources.base import Batch, ClockSet, DamagedCaptureError, End, Rounds
from netprofiler.sources.files import open_capture

SHOWN_BYTES: Final = 64
_DIRECTIONS: Final = ("send", "recv", "both")
_ROLES: Final = ("role?", "client", "server")
_ESCAPES: Final = {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x5C: "\\\\"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For the command line."""
    parser.add_argument("file", metavar="FILE", help="a recording, .pcap or .pcapng; known by its content")


def escaped_bytes(data: bytes) -> str:
    """Printable ASCII as it is, the rest escaped."""
    return "".join(_ESCAPES.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}") for byte in data)


def escaped(text: str) -> str:
    """Printable text as it is, the rest escaped."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def time_text(wall_ns: int) -> str:
    """The time of day, UTC, to the nanosecond."""
    seconds, nanoseconds = divmod(wall_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S}.{nanoseconds:09d}"


def _place(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def describe(event: wire.Event) -> str:
    """All of a record but its time."""
    match event:
        case wire.ConnectionOpened():
            if event.family == wire.FAMILY_UNIX:
                where = f"unix {escaped(event.unix_path) or 'without a name'}"
            else:
                where = f"{_place(event.local_ip, event.local_port)} > {_place(event.remote_ip, event.remote_port)}"
            who = "seen from outside" if event.passive else f"pid={event.pid}"
            role = _ROLES[event.role] if event.role < len(_ROLES) else f"role={event.role}"
            inside = f" tls={wire.LIBRARIES[event.library]}" if event.library else ""
            return (
                f"opened  {_socket(event.socket)} {who} {role} {'fresh' if event.fresh else 'joined'} {where} "
                f"send@{event.send_position} recv@{event.recv_position}{' counted' if event.counted else ''}{inside}"
            )
        case wire.DataCaptured():
            words = [
                f"data    {_socket(event.socket)}",
                f"pid={event.pid} tid={event.tid}" if event.pid else "",
                f"{_DIRECTIONS[event.direction]} @{event.position} {len(event.payload)}/{event.length}",
                "first" if event.flags & wire.DATA_FIRST else "more",
                "after a loss" if event.flags & wire.DATA_AFTER_LOSS else "",
                wire.REASONS[event.reason],
            ]
            if event.flags & wire.DATA_FILE:
                words.append("(where the file is)")
            elif event.payload:
                words.append(f" {escaped_bytes(event.payload[:SHOWN_BYTES])}")
            return " ".join(word for word in words if word)
        case wire.HandshakeCaptured():
            what = f"{len(event.payload)} bytes of a handshake" if event.payload else "its plaintext is read"
            return f"tls     {_socket(event.socket)} pid={event.pid} {_DIRECTIONS[event.direction]} {what}"
        case wire.ConnectionClosed():
            direction = _DIRECTIONS[event.direction] if event.direction < len(_DIRECTIONS) else "?"
            return f"closed  {_socket(event.socket)} {direction} {'gone ' if event.gone else ''}@{event.position}"
        case wire.ProcessSeen():
            return f"process {_socket(None)} pid={event.pid} {escaped(event.comm)}: {escaped(event.cmdline)}"
        case _:
            assert_never(event)


def _socket(number: int | None) -> str:
    """``tls=`` is the plaintext inside of the socket of that number."""
    if number is not None and number & wire.SOCKET_TLS:
        return f"tls={number & ~wire.SOCKET_TLS:<11}"
    return f"sock={'-' if number is None else number:<10}"


def execute(arguments: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Returns the exit status."""
    capture = open_capture(arguments.file)
    out = sys.stdout
    try:
        offset = capture.wall_offset_ns
        out.write(f"# {escaped(capture.description)}\n")
        for frame in capture.frames():
            match frame:
                case Batch():
                    for record in wire.records(frame.data):
                        event = wire.parse(record)
                        out.write(f"{time_text(event.time_ns + offset)} {describe(event)}\n")
                case Rounds():
                    pass
                case ClockSet():
                    offset = frame.wall_offset_ns
                    out.write(f"{time_text(frame.time_ns + offset)} clock   was set: wall clock is {offset} ns ahead\n")
                case End():
                    rows = ", ".join(f"{name} {row.bytes}" for name, row in frame.rows.items() if row.bytes)
                    out.write(
                        f"{time_text(frame.time_ns + offset)} end     bytes: {rows or 'none'}; "
                        f"announcements lost: {frame.announcements_lost}\n"
                    )
                case _:
                    assert_never(frame)
        for note in capture.notes():
            out.write(f"# {escaped(note)}\n")
    except wire.MalformedRecord as error:
        raise DamagedCaptureError(f"{arguments.file}: holds {error}", remedy="what is before it is shown") from error
    finally:
        capture.close()
        out.flush()
    return ExitCode.OK
