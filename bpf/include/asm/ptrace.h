/* struct pt_regs of each architecture: helpers.h's PT_REGS_* macros and our arch.h name its members. */
#ifndef NETPROFILER_STUB_ASM_PTRACE_H
#define NETPROFILER_STUB_ASM_PTRACE_H

#if defined(__x86_64__)

/* In the order in which the entry code pushes them; part of the kernel's ABI (ptrace), so the same on every version. */
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx;
	unsigned long r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax;
	unsigned long ip, cs, flags, sp, ss;
};

#elif defined(__aarch64__)

/* The first four members are ABI (user_pt_regs); orig_x0 and syscallno have followed them since 4.15. */
struct user_pt_regs {
	unsigned long long regs[31];
	unsigned long long sp;
	unsigned long long pc;
	unsigned long long pstate;
};

struct pt_regs {
	union {
		struct user_pt_regs user_regs;
		struct {
			unsigned long long regs[31];
			unsigned long long sp;
			unsigned long long pc;
			unsigned long long pstate;
		};
	};
	unsigned long long orig_x0;
	int syscallno;
	unsigned int unused2;
};

#else
#error "netprofiler knows the registers of x86_64 and aarch64 only"
#endif

#endif
