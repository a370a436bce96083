"""Which kind of capture a file is: by its content, never by its name."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from netprofiler.errors import CommandError, ExitCode
from netprofiler.sources import recording
from netprofiler.sources.base import StoredCapture
from netprofiler.sources.packets import MAGICS
from netprofiler.sources.pcap import PacketCapture
from netprofiler.sources.recording import Recording


def open_capture(path: str) -> StoredCapture:
    """A recording or a packet capture, with its header checked; CommandError (exit status 2) where it is neither."""

    def refuse(reason: str, remedy: str | None = None) -> CommandError:
        return CommandError(f"{path}: {reason}", ExitCode.USAGE, remedy=remedy)

    file: BinaryIO | None = None
    try:
        file = Path(path).open("rb", buffering=1024 * 1024)  # noqa: SIM115 - the capture closes it
        head = file.read(4)
        if head and recording.MAGIC.startswith(head):
            return Recording(path, head, file)
        if head in MAGICS:
            return PacketCapture(path, head, file)
    except OSError as error:
        if file is not None:
            file.close()
        raise refuse(error.strerror or str(error)) from error
    except ValueError as error:
        raise refuse("is no name of a file") from error
    except CommandError:
        if file is not None:
            file.close()
        raise
    file.close()
    if not head:
        raise refuse("is empty", "record again")
    raise refuse(
        "is neither a recording of netprofiler nor a packet capture (.pcap, .pcapng)",
        "make one by `netprofiler record FILE` or `tcpdump -w FILE`",
    )
