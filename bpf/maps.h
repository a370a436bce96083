/* Maps and the state they hold. Sizes are -D from netprofiler/sources/kernel.py, which argues them.
 *
 * RING_PAGES, WAKEUP_BYTES, CPUS, CONNECTIONS_MAX, PROCESSES_MAX
 */
#ifndef NETPROFILER_MAPS_H
#define NETPROFILER_MAPS_H

/* One piece of payload; a call of at most this many contiguous bytes takes the short way. */
#define PIECE_BYTES 16384
/* Copied of one call at the most; of a longer one, the last TAIL_BYTES as well, because framing (the next chunk's
 * size, the next head) is at the end of a write. */
#define CALL_COPY_BYTES (1024 * 1024)
#define TAIL_BYTES PIECE_BYTES
/* While the ring is filling: calls of more than SMALL_BYTES are left out, but for what may hold a head. */
#define SMALL_BYTES 2048
#define HEAD_BYTES 8192
/* Segments looked at of one call: a program handles STEPS of them and then calls itself again (32 times at most). */
#define STEPS 8
#define CHAIN_MAX 32

#define PREFIX_BYTES 16 /* enough for the longest method we take for one, and a target's first byte */

#define VERDICT_UNDECIDED 0
#define VERDICT_HTTP1 1
#define VERDICT_HTTP2 2
#define VERDICT_TLS 3
#define VERDICT_OTHER 4

struct connection {
	void *sk;
	u8 verdict;
	u8 role;
	u8 fresh;     /* accept or connect was seen: the first bytes decide for good */
	u8 tcp;       /* positions are TCP sequence numbers; 0: UNIX or MPTCP, where we count */
	u8 based;     /* base holds */
	u8 filtered;  /* by port */
	u8 prefix_length[2];
	u32 owner;    /* process for which the connection was announced; 0: not yet */
	u32 count[2]; /* where we count: bytes so far */
	u32 prefix_end[2];
	u32 base[2]; /* where each direction's bytes begin for us */
	u8 lost;     /* a bit a direction: something of it found the ring full */
	u8 reserved[3];
	u64 prefix[2][PREFIX_BYTES / 8];
};

/* What the user side decided for a connection. */
#define CONTROL_IGNORE 1     /* a tunnel, or not HTTP after all */
#define CONTROL_SKIP_SEND 2  /* skip_until[0] holds */
#define CONTROL_SKIP_RECV 4
struct control {
	u32 flags;
	u32 skip_until[2];
	u32 reserved;
};

/* Of a process that has used a socket; forgotten when it executes another program or ends. */
struct process {
	u64 checked_ns;
	u8 announced;
	u8 watched;
	u8 reserved[6];
};

/* Rows of the ledger that the kernel side fills. netprofiler/counters.py names them in this order. */
#define ROW_TOTAL 0
#define ROW_DELIVERED 1
#define ROW_FILTERED 2
#define ROW_NOT_HTTP 3
#define ROW_TLS 4
#define ROW_HTTP2 5
#define ROW_TUNNEL 6
#define ROW_OVER_LIMIT 7
#define ROW_LOST 8
#define ROWS 9
struct row {
	u64 calls;
	u64 bytes;
};
struct ledger {
	struct row rows[ROWS];
	u64 announcements_lost; /* opened, closed and process records that found the ring full */
	u64 unread; /* bytes put into the ring by this CPU since it last woke the reader */
};

#define KIND_BUFFER 0
#define KIND_VECTOR 1
#define KIND_MESSAGE 2
#define KIND_MESSAGES 3
#define KIND_NO_BYTES 4 /* sendfile, splice, discarded: a length without bytes */

/* One system call on its way; in the workspace, so that the program for long calls finds it. */
struct call {
	u64 socket;
	u64 time_ns;
	u64 second;   /* the arguments of the call */
	u64 third;
	u64 segments; /* user address of what comes next: iovec or mmsghdr */
	u64 messages;
	u64 at;       /* user address of the segment being copied */
	u64 left;     /* bytes left in it */
	u32 count; /* segments or messages in all */
	u32 segments_left;
	u32 messages_left;
	u32 message_left; /* bytes that the segments still to come hold: a buffer may be larger than what it got */
	u32 judged; /* bytes looked at by judge(); here, so that the verifier sees one state in its loop */
	u32 total;    /* bytes of the call */
	u32 done;     /* bytes of the call already sent up or accounted for */
	u32 filled;   /* bytes waiting in the payload */
	u32 first_position;
	u32 pid;
	u32 tid;
	u32 chain;
	u8 direction;
	u8 contiguous;
	u8 counted;   /* each message says how much of it was used (sendmmsg, recvmmsg) */
	u8 first_sent;
	u8 first_lost;
	u8 after_loss;
	u8 kind;
	u8 reason;
};

struct workspace {
	struct call call;
	struct data_record record;
	u8 payload[2 * PIECE_BYTES] __attribute__((aligned(8)));
};

BPF_RINGBUF_OUTPUT(events, RING_PAGES);
BPF_TABLE("lru_hash", u64, struct connection, connections, CONNECTIONS_MAX);
BPF_TABLE("lru_hash", u64, struct control, controls, CONNECTIONS_MAX);
BPF_TABLE("lru_hash", u32, struct process, processes, PROCESSES_MAX);
/* Files that a sendfile named lately (inode -> when): the names are not read again. */
BPF_TABLE("lru_hash", u64, u64, described_files, 1024);
/* Not per-CPU: a per-CPU value is limited to 32 KiB. Programs here run with preemption off. */
BPF_TABLE("array", u32, struct workspace, workspaces, CPUS);
BPF_PERCPU_ARRAY(ledgers, struct ledger, 1);
BPF_PROG_ARRAY(programs, 3);
#define PROGRAM_DELIVER 0
#define PROGRAM_JUDGE 1
#define PROGRAM_LONG_CALL 2

/* Filters. A bit says what an entry is: FILTER_INCLUDE or FILTER_EXCLUDE. */
#define FILTER_INCLUDE 1
#define FILTER_EXCLUDE 2
#define FILTERS_MAX 16
struct comm_filter {
	u64 name[2];
	u64 flags;
};
struct executable_filter {
	u64 inode;
	u32 device;
	u32 flags;
};
BPF_HASH(watched_pids, u32, u32, PROCESSES_MAX);
BPF_HASH(watched_ports, u16, u32, 256);
BPF_ARRAY(watched_comms, struct comm_filter, FILTERS_MAX);
BPF_ARRAY(watched_executables, struct executable_filter, FILTERS_MAX);

static __always_inline struct ledger *find_ledger(void) {
	u32 zero = 0;

	return ledgers.lookup(&zero);
}

static __always_inline struct workspace *find_workspace(void) {
	u32 cpu = bpf_get_smp_processor_id();

	return workspaces.lookup(&cpu);
}

static __always_inline void account(struct ledger *ledger, u32 row, u32 calls, u32 bytes) {
	ledger->rows[row].calls += calls;
	ledger->rows[row].bytes += bytes;
}

/* With half of the ring waiting to be read, bodies are left out so that heads are not lost. BCC 0.26 has no name for this
 * helper's map argument; it numbers maps -1, -2, ... until they exist, and `events` is the first. Where that does not
 * load (sources/kernel.py tries), all is copied until the ring is full. */
static __always_inline int ring_is_filling(void) {
#ifdef RING_QUERY
	return bpf_ringbuf_query((void *)bpf_pseudo_fd(1, -1), BPF_RB_AVAIL_DATA) > RING_PAGES * PAGE_SIZE / 2;
#else
	return 0;
#endif
}

/* Into the ring. The reader comes by on a timer; it is woken only when much was written meanwhile. */
static __always_inline long send_up(struct ledger *ledger, void *record, u64 size) {
	u64 flags = BPF_RB_NO_WAKEUP;

	ledger->unread += size;
	if (ledger->unread > WAKEUP_BYTES) {
		ledger->unread = 0;
		flags = BPF_RB_FORCE_WAKEUP;
	}
	return events.ringbuf_output(record, size, flags);
}

#endif
