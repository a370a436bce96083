"""Processes that begin to run a program, told by the kernel's process connector as it happens.

Contract: `Births(executed, idle)` has a thread that calls `executed(pid)` some 100 us after each execve, and `idle()` at
least every IDLE_SECONDS. `start()` is False where there is no connector (CONFIG_PROC_EVENTS), or not for us: it takes
CAP_NET_ADMIN and the host's network namespace. Linux, drivers/connector/cn_proc.c; <linux/cn_proc.h>.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Final

IDLE_SECONDS: Final = 0.05
RECEIVE_BYTES: Final = 1024 * 1024
"""Of the socket: some 4,000 processes that begin while we do not look."""

_NETLINK_CONNECTOR: Final = 11
_CN_IDX_PROC: Final = 1
_CN_VAL_PROC: Final = 1
_LISTEN: Final = 1
_EXEC: Final = 0x00000002
_SO_ATTACH_FILTER: Final = 26
_SO_RCVBUFFORCE: Final = 33
_NLMSG_DONE: Final = 3

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_CONNECTOR: Final = struct.Struct("=IIIIHH")  # struct cn_msg
_EVENT: Final = struct.Struct("=IIQII")  # struct proc_event, of an exec: what, cpu, time, thread, process
_EVENT_AT: Final = _HEADER.size + _CONNECTOR.size

# Classic BPF (<linux/filter.h>): load the word `what`, which comes in network order; an exec passes, whole.
_FILTER: Final = struct.Struct("HBBI")
_LOAD_WORD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_RETURN: Final = 0x06


class Births:
    """See above."""

    def __init__(self, executed: Callable[[int], None], idle: Callable[[], None], lost: Callable[[], None]) -> None:
        self._executed = executed
        self._idle = idle
        self._lost = lost
        """Some were not told: whoever runs has to be looked for."""
        self._stop = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="births", daemon=True)

    def start(self) -> bool:
        """The thread runs in any case, for `idle`."""
        with contextlib.suppress(OSError):
            self._socket = _open()
        self._thread.start()
        return self._socket is not None

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=1.0)
        if self._socket is not None:
            self._socket.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._socket is None:
                self._stop.wait(IDLE_SECONDS)
            else:
                self._receive(self._socket)
            self._idle()

    def _receive(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(4096)
        except TimeoutError:
            return
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self._lost()
            else:
                self._stop.wait(IDLE_SECONDS)
            return
        if len(data) >= _EVENT_AT + _EVENT.size:
            what, _, _, _, pid = _EVENT.unpack_from(data, _EVENT_AT)
            if what == _EXEC:
                self._executed(pid)


def _open() -> socket.socket:
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_CONNECTOR)
    try:
        # Forks and exits are many times as many, and wake nobody.
        what = int.from_bytes(_EXEC.to_bytes(4, sys.byteorder), "big")
        code = b"".join(
            (
                _FILTER.pack(_LOAD_WORD, 0, 0, _EVENT_AT),
                _FILTER.pack(_JUMP_EQUAL, 0, 1, what),
                _FILTER.pack(_RETURN, 0, 0, 0xFFFFFFFF),
                _FILTER.pack(_RETURN, 0, 0, 0),
            )
        )
        buffer = ctypes.create_string_buffer(code)
        program = struct.pack("HxxxxxxQ", len(code) // _FILTER.size, ctypes.addressof(buffer))
        connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BYTES)
        connection.settimeout(IDLE_SECONDS)
        connection.bind((0, _CN_IDX_PROC))
        operation = struct.pack("=I", _LISTEN)
        message = _CONNECTOR.pack(_CN_IDX_PROC, _CN_VAL_PROC, 0, 0, len(operation), 0) + operation
        connection.send(_HEADER.pack(_HEADER.size + len(message), _NLMSG_DONE, 0, 0, os.getpid()) + message)
    except OSError:
        connection.close()
        raise
    return connection
