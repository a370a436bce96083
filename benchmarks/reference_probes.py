"""What tools of this kind usually do to see TLS, as small as it can be, to be measured beside netprofiler.

    reference_probes.py go BINARY       entry and every RET of crypto/tls.(*Conn).Read and Write
    reference_probes.py openssl LIBRARY entry and uretprobe of SSL_read and SSL_write

Says ``ready`` when attached; ends on SIGTERM and prints how much it saw, as JSON. Each message is copied to a ring, 4096 bytes
of it at most, and counted here. It decodes nothing, writes nothing, wakes nobody (the ring is emptied on a timer) and does not ask
which socket it was: what it costs is what its probes cost, and is less than the real tools cost.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import capstone
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from netprofiler.sources.bcc_import import load_bcc
from netprofiler.sources.kernel import find_bpf

DRAIN_SECONDS = 0.025
GO_FUNCTIONS = {"crypto/tls.(*Conn).Write": "write", "crypto/tls.(*Conn).Read": "read"}
C_FUNCTIONS = {"SSL_write": "write", "SSL_read": "read"}

TEXT = """
#include <uapi/linux/ptrace.h>

struct call { u64 session; u64 buffer; };
struct key { u64 process; u64 thread; };
struct message {
    u64 time;
    u64 session;
    u64 process;
    u32 write;
    u32 bytes;
    char data[4096];
};

BPF_HASH(calls, struct key, struct call, 65536);
BPF_PERCPU_ARRAY(scratch, struct message, 1);
BPF_RINGBUF_OUTPUT(messages, 4096);
BPF_ARRAY(lost, u64, 1);

static inline int enter(u64 thread, u64 session, u64 buffer)
{
    struct key key = {.process = bpf_get_current_pid_tgid() >> 32, .thread = thread};
    struct call call = {.session = session, .buffer = buffer};
    calls.update(&key, &call);
    return 0;
}

static inline int leave(u64 thread, s64 result, u32 write)
{
    struct key key = {.process = bpf_get_current_pid_tgid() >> 32, .thread = thread};
    struct call *call = calls.lookup(&key);
    int zero = 0;
    if (!call)
        return 0;
    struct message *message = scratch.lookup(&zero);
    if (message && result > 0) {
        u32 size = result > 4096 ? 4096 : result;
        message->time = bpf_ktime_get_ns();
        message->session = call->session;
        message->process = key.process;
        message->write = write;
        message->bytes = result;
        bpf_probe_read_user(message->data, size, (void *)call->buffer);
        if (messages.ringbuf_output(message, sizeof(*message) - 4096 + size, BPF_RB_NO_WAKEUP)) {
            u64 *count = lost.lookup(&zero);
            if (count)
                __sync_fetch_and_add(count, 1);
        }
    }
    calls.delete(&key);
    return 0;
}

int go_enter(struct pt_regs *ctx) { return enter(ctx->r14, ctx->ax, ctx->bx); }
int go_leave_write(struct pt_regs *ctx) { return leave(ctx->r14, ctx->ax, 1); }
int go_leave_read(struct pt_regs *ctx) { return leave(ctx->r14, ctx->ax, 0); }
int c_enter(struct pt_regs *ctx) { return enter(bpf_get_current_pid_tgid(), ctx->di, ctx->si); }
int c_leave_write(struct pt_regs *ctx) { return leave(bpf_get_current_pid_tgid(), (int)ctx->ax, 1); }
int c_leave_read(struct pt_regs *ctx) { return leave(bpf_get_current_pid_tgid(), (int)ctx->ax, 0); }
"""


def go_sites(binary: str) -> list[tuple[int, bytes]]:
    """Addresses, and the program for each."""
    sites: list[tuple[int, bytes]] = []
    with open(binary, "rb") as file:
        elf = ELFFile(file)
        text, symbols = elf.get_section_by_name(".text"), elf.get_section_by_name(".symtab")
        if text is None or not isinstance(symbols, SymbolTableSection):
            raise SystemExit(f"{binary} has no symbols")
        code = text.data()
        disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        for symbol in symbols.iter_symbols():
            if symbol.name not in GO_FUNCTIONS:
                continue
            start = symbol["st_value"]
            at = start - text["sh_addr"]
            leave = f"go_leave_{GO_FUNCTIONS[symbol.name]}".encode()
            sites.append((start, b"go_enter"))
            instructions = disassembler.disasm(code[at : at + symbol["st_size"]], start)
            sites += [(each.address, leave) for each in instructions if each.mnemonic == "ret"]
    return sites


def attach(bpf: Any, kind: str, path: str) -> int:
    """How many probes."""
    name = path.encode()
    if kind == "go":
        sites = go_sites(path)
        for address, program in sites:
            bpf.attach_uprobe(name=name, addr=address, fn_name=program)
        return len(sites)
    for function, direction in C_FUNCTIONS.items():
        bpf.attach_uprobe(name=name, sym=function.encode(), fn_name=b"c_enter")
        bpf.attach_uretprobe(name=name, sym=function.encode(), fn_name=f"c_leave_{direction}".encode())
    return 2 * len(C_FUNCTIONS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["go", "openssl"])
    parser.add_argument("path", help="the Go binary, or the library")
    arguments = parser.parse_args()
    os.environ["BCC_KERNEL_SOURCE"] = str(find_bpf())
    bpf = load_bcc().BPF(text=TEXT.encode(), cflags=["-DCONFIG_BPF_SYSCALL", f"-DPAGE_SIZE={mmap.PAGESIZE}"])
    seen = [0, 0]

    def count(_context: Any, _data: int, size: int) -> int:
        seen[0] += 1
        seen[1] += size
        return 0

    bpf[b"messages"].open_ring_buffer(count)
    begin = time.monotonic()
    probes = attach(bpf, arguments.kind, arguments.path)
    attached = time.monotonic() - begin
    stop: list[int] = []
    on_signal: Callable[[int, Any], None] = lambda number, _: stop.append(number)  # noqa: E731
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    print("ready", flush=True)
    while not stop:
        time.sleep(DRAIN_SECONDS)
        bpf.ring_buffer_consume()
    begin = time.monotonic()
    # BCC's own way asks tracefs for events that it never made there.
    for descriptor in bpf.uprobe_fds.values():
        os.close(descriptor)
    bpf.uprobe_fds.clear()
    detached = time.monotonic() - begin
    print(
        json.dumps(
            {
                "messages": seen[0],
                "bytes": seen[1],
                "probes": probes,
                "attach_seconds": attached,
                "detach_seconds": detached,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
