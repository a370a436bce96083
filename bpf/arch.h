/* All that depends on the architecture: where a call's number and arguments are, and the call numbers.
 *
 * Inside of a call and at sys_exit the argument registers still hold what the caller passed (the kernel restores or never
 * touches them), so sys_enter needs no program. What lies side by side in pt_regs is read at once.
 */
#ifndef NETPROFILER_ARCH_H
#define NETPROFILER_ARCH_H

#define __always_inline inline __attribute__((always_inline))

/* The compiler knows some bounds that the verifier does not, and leaves our checks out: not behind this. */
#define KEEP_CHECK(value) asm volatile("" : "+r"(value))

#if defined(__x86_64__)

/* arch/x86: struct pt_regs ... r10, r9, r8, ax, cx, dx, si, di, orig_ax from 56 on. */
#define REGISTERS_OFFSET 56
#define NUMBER_OFFSET 120
struct call_registers {
	u64 fourth;
	u64 r9;
	u64 fifth;
	u64 unused[2]; /* ax, cx */
	u64 third;
	u64 second;
	u64 first;
	u64 number;
};

#define CALL_READ 0
#define CALL_WRITE 1
#define CALL_MMAP 9
#define CALL_READV 19
#define CALL_WRITEV 20
#define CALL_SENDFILE 40
#define CALL_CONNECT 42
#define CALL_ACCEPT 43
#define CALL_SENDTO 44
#define CALL_RECVFROM 45
#define CALL_SENDMSG 46
#define CALL_RECVMSG 47
#define CALL_SHUTDOWN 48
#define CALL_SPLICE 275
#define CALL_ACCEPT4 288
#define CALL_RECVMMSG 299
#define CALL_SENDMMSG 307
#define CALL_PREADV2 327
#define CALL_PWRITEV2 328

#elif defined(__aarch64__)

/* arch/arm64: regs[0] holds the result by now, so the first argument is orig_x0; syscallno follows it.
 * user_pt_regs is 272 bytes (x0..x30, sp, pc, pstate), then orig_x0 and syscallno. */
#define REGISTERS_OFFSET 8 /* x1, x2, x3, x4 */
#define FIRST_ARGUMENT_OFFSET 272
#define NUMBER_OFFSET 280
struct call_registers {
	u64 second;
	u64 third;
	u64 fourth;
	u64 fifth;
	u64 first;
	u64 number; /* s32 syscallno and padding */
};

#define CALL_ACCEPT 202
#define CALL_CONNECT 203
#define CALL_SENDTO 206
#define CALL_RECVFROM 207
#define CALL_SHUTDOWN 210
#define CALL_SENDMSG 211
#define CALL_RECVMSG 212
#define CALL_ACCEPT4 242
#define CALL_RECVMMSG 243
#define CALL_SENDMMSG 269
#define CALL_READ 63
#define CALL_WRITE 64
#define CALL_READV 65
#define CALL_WRITEV 66
#define CALL_SENDFILE 71
#define CALL_SPLICE 76
#define CALL_PREADV2 286
#define CALL_PWRITEV2 287
#define CALL_MMAP 222

#else
#error "netprofiler knows x86-64 and arm64"
#endif

/* bpf_probe_read_user under another name: at each call of that one BCC (0.26, bcc_symcache_resolve_name) hashes all symbols
 * of the kernel anew to see whether the helper is there, which takes some 50 ms. It is there since Linux 5.5. */
static int (*copy_from_user)(void *to, u32 size, const void *from) = (void *)112; /* BPF_FUNC_probe_read_user */
/* And its sisters, for which BCC takes an older helper where it may not read the kernel's symbols. */
static int (*copy_from_kernel)(void *to, u32 size, const void *from) = (void *)113;
static int (*copy_string_from_kernel)(void *to, u32 size, const void *from) = (void *)115;

/* Kernel memory, read in one of two ways. A bpf_probe_read_kernel costs some 35 ns (measured, docs/benchmarks.md), and a
 * call takes many. From a pointer whose type the verifier knows (bpf_get_current_task_btf, Linux 5.11) it takes plain loads, of 1 ns: DIRECT_READS, where sources/kernel.py found that such a program loads. In assembly,
 * because BCC would make a bpf_probe_read of it. */
#ifdef DIRECT_READS
static void *(*get_current_task_btf)(void) = (void *)158; /* BPF_FUNC_get_current_task_btf */

#define LOAD(type, from, offset)                                                                                       \
	({                                                                                                             \
		u64 loaded;                                                                                            \
		asm volatile("%0 = *(" #type " *)(%1 + %2)" : "=r"(loaded) : "r"(from), "i"(offset));                  \
		(type) loaded;                                                                                         \
	})
#define CURRENT_TASK() get_current_task_btf()
#else
#define LOAD(type, from, offset)                                                                                       \
	({                                                                                                             \
		type loaded = 0;                                                                                       \
		copy_from_kernel(&loaded, sizeof(loaded), (void *)(from) + (offset));                                  \
		loaded;                                                                                                \
	})
#define CURRENT_TASK() ((void *)bpf_get_current_task())
#endif
#define LOAD_U64(from, offset) LOAD(u64, from, offset)
#define LOAD_U32(from, offset) LOAD(u32, from, offset)
#define LOAD_U16(from, offset) LOAD(u16, from, offset)
#define LOAD_U8(from, offset) LOAD(u8, from, offset)

#ifdef SOCKET_EVENTS
/* bpf_rdonly_cast (Linux 6.2): any address as one of a structure, from which plain loads are taken as above; it costs nothing.
 * It is a function of the kernel, not a helper: sources/kernel.py puts the right call in place of this number, and of those
 * behind it. */
static void *(*typed)(const void *address, u32 type) = (void *)FUNCTION_MARKER;
static void *(*task_registers)(void *task) = (void *)175; /* BPF_FUNC_task_pt_regs, Linux 5.15 */
/* bpf_iter_num_new, _next, _destroy (Linux 6.4): a loop of which the verifier looks at one round, not at each. */
struct loop {
	u64 opaque;
};
static int (*begin_loop)(struct loop *loop, int start, int end) = (void *)(FUNCTION_MARKER + 1);
static int *(*next_round)(struct loop *loop) = (void *)(FUNCTION_MARKER + 2);
static void (*end_loop)(struct loop *loop) = (void *)(FUNCTION_MARKER + 3);
#define AS(address, type) typed((const void *)(address), BTF_ID_##type)

/* The system call that this thread is in. */
static __always_inline void load_call_registers(struct call_registers *call, void *registers) {
#if defined(__x86_64__)
	call->fourth = LOAD_U64(registers, REGISTERS_OFFSET);
	call->fifth = LOAD_U64(registers, REGISTERS_OFFSET + 16);
	call->third = LOAD_U64(registers, REGISTERS_OFFSET + 40);
	call->second = LOAD_U64(registers, REGISTERS_OFFSET + 48);
	call->first = LOAD_U64(registers, REGISTERS_OFFSET + 56);
	call->number = LOAD_U64(registers, NUMBER_OFFSET);
#elif defined(__aarch64__)
	call->second = LOAD_U64(registers, REGISTERS_OFFSET);
	call->third = LOAD_U64(registers, REGISTERS_OFFSET + 8);
	call->fourth = LOAD_U64(registers, REGISTERS_OFFSET + 16);
	call->fifth = LOAD_U64(registers, REGISTERS_OFFSET + 24);
	call->first = LOAD_U64(registers, FIRST_ARGUMENT_OFFSET);
	call->number = LOAD_U32(registers, NUMBER_OFFSET);
#endif
}
#endif

static __always_inline void read_call_registers(struct call_registers *call, const void *registers) {
	copy_from_kernel(call, sizeof(*call), registers + REGISTERS_OFFSET);
#if defined(__aarch64__)
	copy_from_kernel(&call->first, 16, registers + FIRST_ARGUMENT_OFFSET);
	call->number = (u32)call->number;
#endif
}

/* What a probe in a library finds in the registers. Arguments and result are C's; `go` are the first five of Go's, and
 * `goroutine` is its g. */
struct probe_registers {
	u64 first, second, third, fourth, result;
	u64 go[5];
	u64 goroutine, stack, address;
};

/* Once, at the beginning, into locals: the verifier rejects a context that the compiler has moved. */
static __always_inline void read_probe_registers(struct probe_registers *to, const volatile struct pt_regs *from) {
#if defined(__x86_64__)
	to->first = from->di;
	to->second = from->si;
	to->third = from->dx;
	to->fourth = from->cx;
	to->result = from->ax;
	to->go[0] = from->ax;
	to->go[1] = from->bx;
	to->go[2] = from->cx;
	to->go[3] = from->di;
	to->go[4] = from->si;
	to->goroutine = from->r14;
	to->stack = from->sp;
	to->address = from->ip;
#elif defined(__aarch64__)
	to->first = from->regs[0];
	to->second = from->regs[1];
	to->third = from->regs[2];
	to->fourth = from->regs[3];
	to->result = from->regs[0];
	to->go[0] = from->regs[0];
	to->go[1] = from->regs[1];
	to->go[2] = from->regs[2];
	to->go[3] = from->regs[3];
	to->go[4] = from->regs[4];
	to->goroutine = from->regs[28];
	to->stack = from->sp;
	to->address = from->pc;
#endif
}

/* The goroutine in which a system call was made: Go keeps g in a register, and its calls leave it there. */
static __always_inline u64 goroutine_of_call(const void *registers) {
	u64 goroutine = 0;

#if defined(__x86_64__)
	copy_from_kernel(&goroutine, sizeof(goroutine), registers + 8); /* r14 */
#elif defined(__aarch64__)
	copy_from_kernel(&goroutine, sizeof(goroutine), registers + 28 * 8);
#endif
	return goroutine;
}

/* Is this a call of a 32-bit program, whose numbers and registers mean something else? */
static __always_inline int is_compat_call(void *task) {
#if defined(__x86_64__)
	return LOAD_U32(task, OFFSET_task_struct__thread_info + OFFSET_thread_info__status) & 2; /* TS_COMPAT */
#else
	u64 flags = LOAD_U64(task, OFFSET_task_struct__thread_info + OFFSET_thread_info__flags);

	return (flags >> 22) & 1; /* TIF_32BIT */
#endif
}

#endif
