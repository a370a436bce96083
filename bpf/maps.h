/* Maps and the state they hold. Sizes are -D from netprofiler/sources/kernel.py, which argues them.
 *
 * RING_PAGES, WAKEUP_BYTES, CPUS, CONNECTIONS_MAX, PROCESSES_MAX, TLS_PROBES, LAYOUTS_MAX, SESSIONS_MAX, FILES_MAX, NOTICE_PAGES,
 * STEPS_MAX, INODES_BATCH; with TALLY also TALLIES_MAX, TALLY_SUMS_MAX
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
/* Segments looked at of one call: a program handles STEPS of them and then calls itself again (32 times at most); as many as
 * a call can have (IOV_MAX is 1024). */
#define STEPS 32
#define CHAIN_MAX 32

/* Of a TLS connection's ciphertext, a direction: the hellos, with a second one, and post-quantum key shares in them. */
#define HELLO_BYTES 6144

/* Calls behind a proxy's CONNECT of which the first bytes are looked at: is it TLS? */
#define TUNNEL_LOOKS 8

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
	u8 fresh;     /* seen from its first byte: that decides for good */
	u8 tcp;       /* positions are TCP sequence numbers; 0: UNIX or MPTCP, where we count */
	u8 based;     /* base holds */
	u8 filtered;  /* by port */
	u8 prefix_length[2];
	u32 owner;    /* process for which the connection was announced; 0: not yet */
	u32 count[2]; /* where we count: bytes so far; TCP: where the last receive that was seen ended */
	u32 prefix_end[2];
	u32 base[2]; /* where each direction's bytes begin for us */
	u8 lost;     /* a bit a direction: something of it found the ring full */
	u8 records;  /* joined late: calls that began with the header of a TLS record; a second one decides */
	u8 library;  /* LIBRARY_, of plaintext, and of a socket whose plaintext is read */
	u8 named;    /* plaintext: positions name the same bytes at the other end */
	u8 announced; /* TLS: something of its handshake was sent up */
	u8 shut; /* UNIX: that nothing will be sent any more was told */
	u16 hello_left[2]; /* TLS: how much of the handshake is still sent up */
	u64 since_ns; /* fresh: when it began for us */
	u64 peer;     /* UNIX, where socket_events.h looks for it: the inode of the other end */
	u64 prefix[2][PREFIX_BYTES / 8];
};

/* What the user side decided for a connection. */
#define CONTROL_IGNORE 1     /* a tunnel, or not HTTP after all */
#define CONTROL_SKIP_SEND 2  /* skip_until[0] holds */
#define CONTROL_SKIP_RECV 4
#define CONTROL_TALLY 8      /* at skip_until two exchanges have met (tally.h) */
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
#define ROW_TUNNEL 5
#define ROW_OVER_LIMIT 6
#define ROW_LOST 7
#define ROW_UNREADABLE 8
#define ROW_TALLIED 9
#define ROW_BUDGET 10
#define ROWS 11
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
	u64 already;  /* bytes that the same system call moved before */
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
	u8 probe; /* plaintext from a probe */
	u8 reserved[7];
};

struct workspace {
	struct call call;
	u64 anew; /* tally.h */
	struct data_record record;
	u8 payload[2 * PIECE_BYTES] __attribute__((aligned(8)));
};

BPF_RINGBUF_OUTPUT(events, RING_PAGES);
BPF_TABLE("lru_hash", u64, struct connection, connections, CONNECTIONS_MAX);
BPF_TABLE("lru_hash", u64, struct control, controls, CONNECTIONS_MAX);
BPF_TABLE("lru_hash", u32, struct process, processes, PROCESSES_MAX);
/* Files that a sendfile named lately (inode -> when): the names are not read again. */
BPF_TABLE("lru_hash", u64, u64, described_files, 1024);

/* What a program works in, by CPU; not per-CPU maps: a value of those is limited to 32 KiB. The first place is that of the
 * programs behind tracepoints, which run with preemption off. A probe's program can be preempted by another one on its CPU
 * (migration is off, preemption is not), so it takes one of the others and gives it back. A ledger goes with each place. */
#define PLACES 4
struct workspaces {
	u64 taken[PLACES];
	u64 owner[PLACES];
	struct workspace at[PLACES];
};
BPF_TABLE("array", u32, struct workspaces, workspaces, CPUS);
BPF_TABLE("array", u32, struct ledger, ledgers, CPUS *PLACES);
/* The programs behind what sees a call. They stand behind the probes, too: loaded again, as programs of that type, with
 * `probe_programs` in place of `programs` (sources/kernel.py), because a prog array holds one type only. */
BPF_PROG_ARRAY(programs, 4);
BPF_PROG_ARRAY(probe_programs, 5);
#define PROGRAM_DELIVER 0
#define PROGRAM_JUDGE 1
#define PROGRAM_LONG_CALL 2
#define PROGRAM_TALLY 3
#define PROGRAM_PROBE 4 /* on_probe, where each probe has a program before it (sources/uprobes.py: Jumps) */
/* Where a call on a connection that speaks HTTP goes first. */
#ifdef TALLY
#define PROGRAM_HTTP PROGRAM_TALLY
#else
#define PROGRAM_HTTP PROGRAM_DELIVER
#endif

#ifdef NO_COOKIES
/* Where the program before on_probe leaves what a cookie would say. */
BPF_PERCPU_ARRAY(probe_cookie, u64, 1);
#endif

#ifdef SOCKET_EVENTS
/* System calls that move bytes in several steps (sendfile, sendmmsg, recvmmsg), by thread: what was seen of the last one. */
struct steps {
	u64 socket;
	u64 at;       /* the vector of messages; sendfile: the offset that it began at */
	u64 already;  /* sendfile: bytes */
	u32 next;     /* of the messages */
	u32 count;
	u32 reserved;
	u32 position; /* sendfile: where in the stream its next bytes would be */
};
BPF_TABLE("lru_hash", u64, struct steps, steps, STEPS_MAX);

/* The sockets that were made since the probes were attached have inode numbers from this one on (0: not known yet), and those
 * of the batches that CPUs had begun by then: batch -> its first number that is new. */
BPF_ARRAY(first_new_inode, u64, 1);
BPF_HASH(begun_batches, u32, u32, CPUS);
#endif

#ifdef TALLY
/* --- tally.h --- */

#define HELD_BYTES 1024 /* of a request, so that it can still be sent up: head and body */
#define LINE_BYTES 128  /* of a request line, up to its query */
#define HOST_BYTES 64
#define TEXT_WORDS ((LINE_BYTES + HOST_BYTES) / 8)
#define BUCKETS_MAX 24
#define BOUNDARIES 16

/* Who is at which end of which connection. */
struct tally_place {
	u64 start_ns; /* of the process */
	u32 pid;
	u16 port; /* the server's */
	u8 is_server;
	u8 is_tls;
	u8 address[16]; /* the server's, as this end has it; IPv4 as IPv4-mapped */
};

/* A connection. */
struct tally {
	struct data_record record; /* of what is held, which follows it */
	u8 held[HELD_BYTES];
	u64 text[TEXT_WORDS];
	struct tally_place place;
	u64 place_hash;
	u64 left; /* of the body of the response */
	u64 request_bytes; /* of bodies */
	u64 response_bytes;
	u64 sum; /* key */
	u32 expected[2]; /* the position that comes next */
	u32 busy;
	u32 held_calls;
	u16 status;
	u8 version; /* the digit behind "HTTP/1." */
	u8 state;
	u8 request_direction;
	u8 is_head;
	u8 dry; /* the user side's: nothing is counted here */
	u8 reserved;
	u32 share;
	u32 boundary; /* number of the next one */
	u32 boundaries[BOUNDARIES][2]; /* dry: where two exchanges met, as far as it can be told here; sent, received */
};

struct tally_numbers {
	u64 buckets[BUCKETS_MAX];
	u64 duration_ns;
	u64 request_bytes;
	u64 response_bytes;
};

/* What was added up: for one place, request line, host and status. */
struct tally_sum {
	struct tally_place place;
	u64 text[TEXT_WORDS];
	u16 status;
	u8 version;
	u8 reserved[5];
	struct tally_numbers whole;
	struct tally_numbers cut; /* responses that were cut short */
};
/* Entries are allocated as they come (BPF_F_NO_PREALLOC). */
BPF_F_TABLE("hash", u64, struct tally, tallies, TALLIES_MAX, 1);
BPF_F_TABLE("hash", u64, struct tally_sum, tally_sums, TALLY_SUMS_MAX, 1);
BPF_ARRAY(no_tally, struct tally, 1); /* nothing but zeros */

#ifdef BUDGET
/* Of shares, those below this number are logged; the others are added up. */
BPF_ARRAY(kept_shares, u32, 1);
#endif

/* Requests whose connection ended before a response. */
struct tally_asker {
	u64 start_ns;
	u32 pid;
	u32 is_server;
};
BPF_F_TABLE("hash", struct tally_asker, u64, tally_unanswered, PROCESSES_MAX, 1);
#endif

/* --- TLS --- */

/* How to read the objects of a library in one file: netprofiler/sources/probes.py's Layout, and when it was attached. */
#define ABSENT -32768
struct tls_layout {
	u32 library; /* LIBRARY_ */
	s16 random_pointer;
	s16 random;
	s16 read_bio;
	s16 bio_method;
	s16 bio_number;
	s16 server;
	s64 conn_type_from_write;
	s64 conn_type_from_read;
	s64 conn_type_from_handshake;
	s32 conn_itab_type;
	s32 descriptor;
	u64 attached_ns; /* 0: not yet */
};
BPF_ARRAY(tls_layouts, struct tls_layout, LAYOUTS_MAX);

/* Calls into a library that have not returned, by thread, or by goroutine. Node calls SSL_write inside of SSL_read. */
#define FRAMES 4
struct tls_caller {
	u64 id; /* tid, or address of the goroutine */
	u64 pid;
};
struct tls_frame {
	u64 session;
	u64 buffer;
	u64 length;
	u64 counted; /* where the count of bytes goes */
	u64 stack;
	u64 socket; /* inode: that of the system calls inside; 0: none yet, NO_SOCKET: several */
	u16 layout;
	u8 call;
	u8 reserved[5];
};
#define NO_SOCKET (~0ULL)
struct tls_call {
	u64 depth;
	struct tls_frame frames[FRAMES];
};
BPF_TABLE("lru_hash", struct tls_caller, struct tls_call, tls_calls, SESSIONS_MAX);
BPF_ARRAY(no_calls, struct tls_call, 1); /* nothing but zeros: too large for the stack */

/* Which socket a session (SSL *, gnutls_session_t, PRFileDesc *, *tls.Conn) is on. */
struct tls_session_id {
	u64 session;
	u64 pid;
};
struct tls_session {
	u64 socket;
	u64 random; /* of the client's hello, its first 8 bytes, by which a reused address is noticed; 0: not known. Go: of the
		       process (tls.h) */
	u8 missed; /* plaintext was seen before the socket was known */
	u8 committed; /* GnuTLS: what a repeated call will report as sent has been accounted for */
	u8 reserved[6];
};
BPF_TABLE("lru_hash", struct tls_session_id, struct tls_session, tls_sessions, SESSIONS_MAX);

/* ClientHellos: their random -> the socket. Both ends may be in one process. */
struct tls_hello {
	u64 random;
	u32 pid;
	u32 direction;
};
BPF_TABLE("lru_hash", struct tls_hello, u64, tls_hellos, SESSIONS_MAX);

/* Go processes whose TLS is not on a *net.TCPConn: there the goroutine of each system call is looked at. */
BPF_TABLE("lru_hash", u32, u8, wrapped_processes, PROCESSES_MAX);

/* Files that were told, as executed or mapped: a mapping is not told again, until the user side forgets the file, or its inode's number has been
 * given to another one (which has another generation). */
struct file_id {
	u64 inode;
	u64 device;
};
BPF_TABLE("lru_hash", struct file_id, u32, told_files, FILES_MAX);
BPF_RINGBUF_OUTPUT(notices, NOTICE_PAGES);

/* How the socket of a call with plaintext was found. netprofiler/counters.py names them in this order. */
#define FOUND_SESSION 0 /* as before */
#define FOUND_HELLO 1
#define FOUND_DESCRIPTOR 2
#define FOUND_CALL 3
#define FOUND_NOT 4
#define FOUND_WAYS 5
struct tls_counters {
	u64 found[FOUND_WAYS];
	u64 crowded; /* no workspace was free: lost */
	u64 crowded_bytes;
	u64 notices_lost;
};
BPF_PERCPU_ARRAY(tls_counts, struct tls_counters, 1);

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

/* Behind tracepoints. */
static __always_inline struct ledger *find_ledger(void) {
	u32 first = bpf_get_smp_processor_id() * PLACES;

	return ledgers.lookup(&first);
}

static __always_inline struct workspace *find_workspace(void) {
	u32 cpu = bpf_get_smp_processor_id();
	struct workspaces *all = workspaces.lookup(&cpu);

	return all ? &all->at[0] : 0;
}

static __always_inline u64 is_zero(u64 value) {
	u64 negative = -value;

	KEEP_CHECK(negative);
	value = (value | negative) >> 63;
	KEEP_CHECK(value);
	return value ^ 1;
}

/* Where a program works. */
struct place {
	struct workspaces *all;
	u64 number; /* 0: that of the programs behind tracepoints */
	struct workspace *w;
	struct ledger *ledger;
};

/* The place that this thread has taken in a probe, or the first. Returns 0 when there is none. */
static __always_inline int find_place(struct place *place) {
	u32 cpu = bpf_get_smp_processor_id(), index;
	u64 thread = bpf_get_current_pid_tgid();
	struct workspaces *all = workspaces.lookup(&cpu);

	if (!all)
		return 0;
	place->all = all;
	/* Without branches: the verifier would go through all that follows once for each place. */
	place->number = (is_zero(all->owner[1] ^ thread) + 2 * is_zero(all->owner[2] ^ thread) +
			 3 * is_zero(all->owner[3] ^ thread)) &
			(PLACES - 1);
	index = cpu * PLACES + place->number;
	place->w = &all->at[place->number];
	place->ledger = ledgers.lookup(&index);
	return place->ledger != 0;
}

static __always_inline void give_back(const struct place *place) {
	u64 number = place->number;

	if (number && number < PLACES) {
		place->all->owner[number] = 0;
		lock_xadd(&place->all->taken[number], -1);
	}
}

/* Taken only by who finds itself alone: whoever preempts it between adding and looking is not. Returns 0 when none is free. */
static __always_inline int take_place(struct place *place) {
	u32 cpu = bpf_get_smp_processor_id(), i;
	struct workspaces *all = workspaces.lookup(&cpu);

	if (!all)
		return 0;
#pragma unroll
	for (i = 1; i < PLACES; i++) {
		lock_xadd(&all->taken[i], 1);
		if (*(volatile u64 *)&all->taken[i] == 1) {
			all->owner[i] = bpf_get_current_pid_tgid();
			return find_place(place);
		}
		lock_xadd(&all->taken[i], -1);
	}
	return 0;
}

/* The place of a program behind a tracepoint, until `end_work`, or until another program that it calls gives it back. Before
 * Linux 7 the first, for it runs with preemption off; since then (tracepoint_srcu) it can be preempted like one behind a probe. */
static __always_inline int begin_work(struct place *place) {
#ifdef PREEMPTIBLE
	return take_place(place);
#else
	place->w = find_workspace();
	place->ledger = find_ledger();
	return place->w && place->ledger;
#endif
}

static __always_inline void end_work(const struct place *place) {
#ifdef PREEMPTIBLE
	give_back(place);
#endif
}

/* There was none: lost. */
static __always_inline void count_crowded(u32 bytes) {
	u32 zero = 0;
	struct tls_counters *counters = tls_counts.lookup(&zero);

	if (counters) {
		lock_xadd(&counters->crowded, 1);
		lock_xadd(&counters->crowded_bytes, bytes);
	}
}

static __always_inline void account(struct ledger *ledger, u32 row, u32 calls, u32 bytes) {
	ledger->rows[row].calls += calls;
	ledger->rows[row].bytes += bytes;
}

/* With three quarters of the ring waiting to be read, bodies are left out so that heads are not lost. BCC 0.26 has no name for this
 * helper's map argument; it numbers maps -1, -2, ... until they exist, and `events` is the first. Where that does not
 * load (sources/kernel.py tries), all is copied until the ring is full. */
static __always_inline int ring_is_filling(void) {
#ifdef RING_QUERY
	return bpf_ringbuf_query((void *)bpf_pseudo_fd(1, -1), BPF_RB_AVAIL_DATA) > RING_PAGES * PAGE_SIZE / 4 * 3;
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
