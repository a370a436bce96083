"""What to probe in a file: the table that the analysis of binaries makes and that the kernel side is attached by.

Contract: pure data, mirrored by bpf/tls.h (tests/unit/sources/test_probes.py compares). A `Finding` is one TLS library
found in one file: where its probes go, and how the kernel side reads its objects there; or why it cannot be read.
Offsets of probes are file offsets of instructions; offsets of members are bytes.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import Final

ABSENT: Final = -32768
"""A member whose offset is not known."""


class Library(enum.IntEnum):
    """The record's `tls.library`, in lower case."""

    GO = 1
    OPENSSL = 2
    BORINGSSL = 3
    GNUTLS = 4
    NSS = 5


class Purpose(enum.IntEnum):
    """What the instruction of a probe tells: which values are where. x86-64; other architectures have the same by name."""

    ENTER = 1
    """C: arguments live: DI session, SI buffer, DX length, CX where the count of bytes goes (`Call.COUNTED` only)."""
    LEAVE = 2
    """C: the result is known: see `Result`."""
    FREE = 3
    """C: DI is a session that is about to be freed or reset."""
    GO_WRITE = 4
    """Go, behind the stack check of crypto/tls.(*Conn).Write: AX conn, BX data, CX length, R14 goroutine."""
    GO_READ = 5
    """Go, behind the stack check of crypto/tls.(*Conn).readRecordOrCCS: AX conn, R14 goroutine. Only where GO_DECRYPTED has no
    conn."""
    GO_DECRYPTED = 6
    """Go, in readRecordOrCCS, on the jump behind the call of (*halfConn).decrypt: AX data, BX length, DI (8 bits) the type of
    record, SI error (nil when good), R14 goroutine; conn is the word at SP + `displacement`, unless that is 0."""
    GO_READ_CALL = 7
    """Go, fall-back: entry of crypto/tls.(*Conn).Read: AX conn, BX buffer, CX length, R14 goroutine."""
    GO_READ_RETURN = 8
    """Go, fall-back: a `RET` of (*Conn).Read: AX count, R14 goroutine."""
    GO_HANDSHAKE = 9
    """Go, behind the stack check of crypto/tls.(*Conn).readHandshake: AX conn, R14 goroutine."""


class Call(enum.IntEnum):
    """C: which function a probe of `ENTER` or `LEAVE` is in."""

    NONE = 0
    WRITE = 1
    """SSL_write, gnutls_record_send, PR_Write, PR_Send, or what they share inside."""
    READ = 2
    OTHER = 3
    """A call that moves no plaintext but may use the socket: handshake, shutdown, peek, uncork. It tells which socket is
    the session's."""
    WRITE_VECTOR = 5
    """PR_Writev(fd, vectors, how many, …)."""
    SENDFILE = 4
    """SSL_sendfile(session, descriptor, offset, size, flags): a length without bytes."""


class Result(enum.IntEnum):
    """C, at `LEAVE`: what the call came to."""

    NONE = 0
    AX = 1
    """EAX (signed) is the count of bytes; 0 or less: none."""
    STACK = 2
    """EAX above 0 means success; the count is the size_t at SP + `displacement`."""
    POINTER = 3
    """EAX above 0 means success; the count is the size_t that the argument CX pointed to."""
    AX_LONG = 4
    """RAX (signed, 64 bits) is the count of bytes."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One instruction, and what it tells the kernel side."""

    offset: int
    """Of the instruction in the file."""
    purpose: Purpose
    call: Call = Call.NONE
    result: Result = Result.NONE
    displacement: int = 0
    """`Result.STACK`, GO_DECRYPTED: bytes from SP. Fits 16 bits, signed."""
    on_return: bool = False
    """A uretprobe of the function that begins at `offset`: the last resort, never for Go."""
    emulated: bool = True
    """The kernel emulates the instruction; else it single-steps it, which costs ten times as much."""
    function: str = ""
    """Its name, for `explain`."""

    def cookie(self, layout: int) -> int:
        """What the kernel side gets with each hit; `layout` is the index of the file's `Layout` in the kernel's map."""
        return self.purpose | self.call << 8 | self.result << 16 | (self.displacement & 0xFFFF) << 32 | layout << 48


@dataclass(frozen=True, slots=True)
class Layout:
    """How the kernel side reads the library's objects. ABSENT where the analysis could not tell."""

    library: Library
    random_pointer: int = ABSENT
    """OpenSSL, BoringSSL: offset in the SSL of the pointer that `random` is relative to; ABSENT: `random` is in the SSL."""
    random: int = ABSENT
    """Offset of client_random (32 bytes)."""
    read_bio: int = ABSENT
    """OpenSSL, BoringSSL: offset in the SSL of rbio."""
    bio_method: int = ABSENT
    """Offset in the BIO of its method (whose first int is the type)."""
    bio_number: int = ABSENT
    """Offset in the BIO of num, the descriptor of a socket BIO."""
    server: int = ABSENT
    """Offset in the SSL of the int that says that it is a server's."""
    conn_type_from_write: int = 0
    """Go: address of the type *net.TCPConn minus that of the probe GO_WRITE; 0: not known, sockets are found by the calls."""
    conn_type_from_read: int = 0
    """The same from the probe that has the conn of a read: GO_DECRYPTED, GO_READ or GO_READ_CALL."""
    conn_type_from_handshake: int = 0
    """The same from GO_HANDSHAKE."""
    conn_itab_type: int = 8
    """Go: offset in an itab of the concrete type."""
    descriptor: int = 16
    """Go: offset in net.netFD of the descriptor."""

    _FORMAT = struct.Struct("<I6h3qii8x")

    def pack(self) -> bytes:
        """As `struct tls_layout` of bpf/tls.h."""
        return self._FORMAT.pack(
            self.library,
            self.random_pointer,
            self.random,
            self.read_bio,
            self.bio_method,
            self.bio_number,
            self.server,
            self.conn_type_from_write,
            self.conn_type_from_read,
            self.conn_type_from_handshake,
            self.conn_itab_type,
            self.descriptor,
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """One TLS library in one file."""

    library: Library
    version: str = ""
    """As far as the file tells: ``3.0.17``, ``go1.26.8``."""
    probes: tuple[Probe, ...] = ()
    layout: Layout | None = None
    notes: tuple[str, ...] = ()
    """For `explain`: what had to be done another way, and why; one sentence each."""
    problem: str = ""
    """Why it cannot be read; empty where it can."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """Of one file."""

    build_id: str = ""
    findings: tuple[Finding, ...] = field(default=())
    blind: tuple[str, ...] = ()
    """TLS implementations in it that netprofiler cannot read (rustls, Java's, s2n, wolfSSL, mbed TLS), by name."""
    problem: str = ""
    """Why the file could not be analysed (damaged, not ELF, another architecture, over a bound); empty where it could."""
