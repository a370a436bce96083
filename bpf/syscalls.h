/* What system calls send and receive on sockets: by whom, at which position of the stream, and its bytes.
 *
 * The way of a call: seen (socket_events.h, or sys_exit.h) -> shape of its arguments -> filters -> verdict of the connection
 * -> copy. Whoever leaves early has filled a row of the ledger, once a stream socket and a count of bytes are known.
 */
#ifndef NETPROFILER_SYSCALLS_H
#define NETPROFILER_SYSCALLS_H

#define MSG_PEEK 0x02
#define MSG_TRUNC 0x20
#define MSG_ERRQUEUE 0x2000
#define EINPROGRESS 115

struct user_vector {
	u64 base;
	u64 length;
};

/* struct user_msghdr from msg_iov on. */
#define MESSAGE_VECTORS 16
#define MESSAGE_BYTES 64 /* struct mmsghdr: user_msghdr (56), msg_len, padding */
#define MESSAGE_LENGTH 56
#define MESSAGES_MAX 1024 /* UIO_MAXIOV: the kernel takes no more of one call */

/* --- processes -------------------------------------------------------------------------------------------------- */

static __always_inline int passes(u32 flags_seen, u32 includes) {
	if (flags_seen & FILTER_EXCLUDE)
		return 0;
	return !includes || (flags_seen & FILTER_INCLUDE);
}

static __always_inline int process_watched(void *task, u32 pid) {
	int watched = 1;

#ifdef FILTER_PID
	{
		u32 *flags = watched_pids.lookup(&pid);

		watched = watched && passes(flags ? *flags : 0, FILTER_PID & FILTER_INCLUDE);
	}
#endif
#ifdef FILTER_COMM
	{
		void *leader = read_pointer(task + OFFSET_task_struct__group_leader);
		u64 name[2] = {};
		u32 seen = 0, i;

		copy_from_kernel(name, sizeof(name), leader + OFFSET_task_struct__comm);
#pragma unroll
		for (i = 0; i < FILTER_COMM_COUNT; i++) {
			u32 index = i;
			struct comm_filter *filter = watched_comms.lookup(&index);

			if (filter && filter->name[0] == name[0] && filter->name[1] == name[1])
				seen |= filter->flags;
		}
		watched = watched && passes(seen, FILTER_COMM & FILTER_INCLUDE);
	}
#endif
#ifdef FILTER_EXECUTABLE
	{
		void *mm = read_pointer(task + OFFSET_task_struct__mm);
		void *file = read_pointer(mm + OFFSET_mm_struct__exe_file);
		void *inode = read_pointer(file + OFFSET_file__f_inode);
		void *super = read_pointer(inode + OFFSET_inode__i_sb);
		u64 number = read_u64(inode + OFFSET_inode__i_ino);
		u32 device = read_u32(super + OFFSET_super_block__s_dev);
		u32 seen = 0, i;

#pragma unroll
		for (i = 0; i < FILTERS_MAX; i++) {
			u32 index = i;
			struct executable_filter *filter = watched_executables.lookup(&index);

			if (filter && filter->inode == number && filter->device == device)
				seen |= filter->flags;
		}
		watched = watched && passes(seen, FILTER_EXECUTABLE & FILTER_INCLUDE);
	}
#endif
	return watched;
}

#define RECHECK_NS 1000000000ULL /* comm may change, and an executable may be replaced, without an exec */

static __always_inline struct process *find_process(u32 pid, u64 now) {
	struct process *process = processes.lookup(&pid);
	struct process fresh = {};

	if (process) {
#if defined(FILTER_COMM) || defined(FILTER_EXECUTABLE)
		if (now - process->checked_ns > RECHECK_NS) {
			process->watched = process_watched((void *)bpf_get_current_task(), pid);
			process->checked_ns = now;
		}
#endif
		return process;
	}
	fresh.checked_ns = now;
	fresh.watched = process_watched((void *)bpf_get_current_task(), pid);
	processes.update(&pid, &fresh);
	return processes.lookup(&pid);
}

#ifdef FILTER_PROCESS
static __always_inline int current_watched(u32 pid) {
#if defined(FILTER_COMM) || defined(FILTER_EXECUTABLE)
	struct process *process = find_process(pid, bpf_ktime_get_ns());

	return process && process->watched;
#else
	/* By pid alone there is nothing to remember. */
	return process_watched(0, pid);
#endif
}
#endif

/* --- sending up -------------------------------------------------------------------------------------------------- */

/* Once for each process. Returns 0 when the ring was full. */
static __always_inline int announce_process(struct workspace *w, struct ledger *ledger) {
	struct process *process = find_process(w->call.pid, w->call.time_ns);
	struct process_record *record = (struct process_record *)w->payload;
	void *task = (void *)bpf_get_current_task();
	void *leader, *mm;
	u64 start, length;

	if (!process || process->announced)
		return 1;
	leader = read_pointer(task + OFFSET_task_struct__group_leader);
	mm = read_pointer(task + OFFSET_task_struct__mm);
	start = read_u64(mm + OFFSET_mm_struct__arg_start);
	length = read_u64(mm + OFFSET_mm_struct__arg_end) - start;
	__builtin_memset(record, 0, sizeof(*record));
	record->kind = RECORD_PROCESS;
	record->pid = w->call.pid;
	record->time_ns = w->call.time_ns;
	record->start_ns = read_u64(leader + OFFSET_task_struct__start_boottime);
	record->user = bpf_get_current_uid_gid();
	copy_from_kernel(record->comm, COMM_BYTES, leader + OFFSET_task_struct__comm);
	KEEP_CHECK(length);
	if (length > ARGUMENTS_BYTES)
		length = ARGUMENTS_BYTES;
	if (copy_from_user(w->payload + sizeof(*record), length, (void *)start))
		length = 0;
	record->arguments_length = length;
	if (send_up(ledger, record, sizeof(*record) + length)) {
		ledger->announcements_lost++;
		return 0;
	}
	process->announced = 1;
	return 1;
}

/* What a reader must know before the first bytes: the process and the connection. Returns 0 when the ring was full. */
static __always_inline int announce(struct workspace *w, struct ledger *ledger, struct connection *connection,
				    u8 fresh) {
	struct opened_record *opened = (struct opened_record *)w->payload;

	if (!announce_process(w, ledger))
		return 0;
	__builtin_memset(opened, 0, sizeof(*opened));
	opened->kind = RECORD_OPENED;
	opened->role = connection->role;
	opened->fresh = fresh;
	opened->pid = w->call.pid;
	opened->time_ns = w->call.time_ns;
	opened->socket = w->call.socket;
	opened->send_position = connection->base[DIRECTION_SEND];
	opened->recv_position = connection->base[DIRECTION_RECV];
	opened->counted = !connection->tcp && !connection->named;
	opened->library = connection->library;
	if (connection->sk)
		describe(opened, connection->sk);
	if (send_up(ledger, opened, sizeof(*opened))) {
		ledger->announcements_lost++;
		return 0;
	}
	connection->owner = w->call.pid;
	return 1;
}

/* Send `captured` payload bytes that stand for `length` bytes of the stream, and account for them. */
static __always_inline void send_piece(struct workspace *w, struct ledger *ledger, u32 captured, u32 length, u8 reason,
				       u8 flags) {
	struct call *call = &w->call;
	struct data_record *record = &w->record;
	u64 size = captured;

	KEEP_CHECK(size);
	if (size > 2 * PIECE_BYTES)
		return;
	record->kind = RECORD_DATA;
	record->direction = call->direction;
	record->flags = flags | (call->first_sent || call->first_lost ? 0 : DATA_FIRST);
	record->reason = reason;
	record->captured = captured;
	record->time_ns = call->time_ns;
	record->socket = call->socket;
	record->pid = call->pid;
	record->tid = call->tid;
	record->position = call->first_position + call->done;
	record->length = length;
	call->done += length;
	if (call->after_loss)
		record->flags |= DATA_AFTER_LOSS;
	if (send_up(ledger, record, sizeof(*record) + size)) {
		struct connection *connection = connections.lookup(&call->socket);

		if (connection)
			connection->lost |= 1 << call->direction;
		account(ledger, ROW_LOST, !(call->first_sent || call->first_lost), length);
		call->first_lost |= !call->first_sent;
	} else {
		call->after_loss = 0;
		account(ledger, ROW_DELIVERED, !(call->first_sent || call->first_lost), length);
		call->first_sent |= !call->first_lost;
	}
}

static __always_inline void flush_payload(struct workspace *w, struct ledger *ledger) {
	u32 filled = w->call.filled;

	w->call.filled = 0;
	if (filled > 0 && filled <= 2 * PIECE_BYTES)
		send_piece(w, ledger, filled, filled, REASON_NONE, 0);
}

/* A call whose bytes go to the other programs; where they are is still to be said. */
static __always_inline void begin_call(struct call *call, u64 socket, u32 total, u8 direction) {
	call->socket = socket;
	call->total = total;
	call->done = 0;
	call->filled = 0;
	call->chain = 0;
	call->direction = direction;
	call->first_sent = 0;
	call->first_lost = 0;
	call->contiguous = 0;
}

/* The next segment of the call; 0 when there is none (or it cannot be read). A segment counts for no more than its
 * message got. */
static __always_inline int next_segment(struct call *call) {
	struct user_vector vector = {};
	u32 length = 0;

	if (!call->segments_left || !call->message_left) {
		if (!call->messages_left)
			return 0;
		call->messages_left--;
		/* msg_iov and msg_iovlen of the next message, and how much of it was used. */
		if (copy_from_user(&vector, sizeof(vector), (void *)call->messages + MESSAGE_VECTORS))
			return 0;
		call->message_left = call->total;
		if (call->counted) {
			if (copy_from_user(&length, sizeof(length), (void *)call->messages + MESSAGE_LENGTH))
				return 0;
			call->message_left = length;
		}
		call->messages += MESSAGE_BYTES;
		call->segments = vector.base;
		call->segments_left = vector.length;
		call->left = 0;
		if (!call->segments_left || !call->message_left)
			return 1;
	}
	if (copy_from_user(&vector, sizeof(vector), (void *)call->segments))
		return 0;
	if (call->probe) /* a PRIOVec has an int there, and 4 bytes of anything behind it */
		vector.length = (u32)vector.length;
	call->segments_left--;
	call->segments += sizeof(vector);
	call->at = vector.base;
	call->left = vector.length < call->message_left ? vector.length : call->message_left;
	call->message_left -= call->left;
	return 1;
}

/* Back to the first segment of the call. */
static __always_inline void first_segment(struct call *call) {
	call->left = 0;
	call->segments_left = 0;
	call->messages_left = 0;
	call->message_left = call->total;
	call->counted = call->kind == KIND_MESSAGES;
	if (call->kind == KIND_BUFFER) {
		call->at = call->second;
		call->left = call->total;
	} else if (call->kind == KIND_VECTOR) {
		call->segments = call->second;
		call->segments_left = call->count;
	} else if (call->kind != KIND_NO_BYTES) {
		call->messages = call->second;
		call->messages_left = call->count;
	}
}

/* To its first segment with bytes: most calls have one; some begin with an empty one, or with the header of a message. */
static __always_inline void first_bytes(struct call *call) {
	first_segment(call);
	if (!call->left)
		next_segment(call);
	if (!call->left)
		next_segment(call);
}

/* Calls of many segments, or of more bytes than one piece. State is in the workspace, so that the verifier sees small
 * loops and the program can go on by calling itself. */
static __always_inline void continue_long_call(void *ctx, struct workspace *w, struct ledger *ledger) {
	struct call *call = &w->call;
	u8 reason = REASON_UNREADABLE;
	u32 step;

#pragma clang loop unroll(disable)
	for (step = 0; step < STEPS; step++) {
		u64 filled = call->filled, rest, n;

		rest = call->total - call->done - filled;
		if (!rest || filled >= PIECE_BYTES)
			break;
		if (!call->left) {
			if (!next_segment(call))
				goto unreadable;
			if (!call->left)
				continue;
		}
		n = PIECE_BYTES;
		if (n > rest)
			n = rest;
		if (n > call->left)
			n = call->left;
		KEEP_CHECK(n);
		KEEP_CHECK(filled);
		if (n > PIECE_BYTES || filled > PIECE_BYTES)
			return;
		if (copy_from_user(w->payload + filled, n, (void *)call->at))
			goto unreadable;
		call->at += n;
		call->left -= n;
		filled += n;
		call->filled = filled;
		if (filled >= PIECE_BYTES) {
			flush_payload(w, ledger);
			rest = call->total - call->done;
			if (call->contiguous && call->done >= CALL_COPY_BYTES && rest > TAIL_BYTES) {
				/* The end of a write holds framing: skip to it. */
				u32 skipped = rest - TAIL_BYTES;

				send_piece(w, ledger, 0, skipped, REASON_OVER_LIMIT, 0);
				call->at += skipped;
				call->left -= skipped;
			}
		}
	}
	reason = REASON_OVER_LIMIT;
	if (call->done + call->filled < call->total && call->chain++ < CHAIN_MAX)
		programs.call(ctx, PROGRAM_LONG_CALL);
unreadable:
	flush_payload(w, ledger);
	if (call->done < call->total)
		send_piece(w, ledger, 0, call->total - call->done, reason, 0);
}

int on_long_call(struct bpf_raw_tracepoint_args *ctx) {
	struct place place;

	if (find_place(&place)) {
		continue_long_call(ctx, place.w, place.ledger);
		give_back(&place);
	}
	return 0;
}

#define DESCRIBE_AGAIN_NS 500000000ULL /* the user side remembers a file for twice as long (sources/sent_files.py) */

/* From the offset of a sendfile (its caller's, or the file's) to that of the first byte sent. */
static __always_inline u64 start_of_file(const struct call *call, u64 at) {
#ifdef SOCKET_EVENTS
	return at + call->already; /* it moves when the call is over */
#else
	return at - call->total;
#endif
}

/* Which part of which file: so that the user side can read the start of it back. */
static __always_inline u32 describe_file(struct workspace *w, u32 descriptor, u64 offset_pointer) {
	struct file_source *source = (struct file_source *)w->payload;
	u8(*name)[FILE_NAME_BYTES] = (void *)(w->payload + sizeof(*source));
	void *file = find_file(CURRENT_TASK(), descriptor);
	void *inode = read_pointer(file + OFFSET_file__f_inode);
	void *super = read_pointer(inode + OFFSET_inode__i_sb);
	void *dentry = read_pointer(file + OFFSET_file__f_path + OFFSET_path__dentry);
	u64 at = 0, *described;
	u32 i;

	__builtin_memcpy(source->magic, "npfile\x01\x02", 8);
	if (!offset_pointer || copy_from_user(&at, sizeof(at), (void *)offset_pointer))
		at = read_u64(file + OFFSET_file__f_pos);
	source->offset = start_of_file(&w->call, at);
	source->inode = read_u64(inode + OFFSET_inode__i_ino);
	source->device = read_u32(super + OFFSET_super_block__s_dev);
	source->descriptor = descriptor;
	source->pid = w->call.pid;
	source->names = 0;
	described = described_files.lookup(&source->inode);
	if (described && w->call.time_ns - *described < DESCRIBE_AGAIN_NS)
		return sizeof(*source);
	described_files.update(&source->inode, &w->call.time_ns);
#pragma clang loop unroll(disable)
	for (i = 0; i < FILE_NAMES; i++) {
		void *parent = read_pointer(dentry + OFFSET_dentry__d_parent);
		void *text = read_pointer(dentry + OFFSET_dentry__d_name + OFFSET_qstr__name);

		name[i][0] = 0;
		if (parent == dentry)
			break;
		copy_string_from_kernel(name[i], FILE_NAME_BYTES, text);
		source->names = i + 1;
		dentry = parent;
	}
	return sizeof(*source) + FILE_NAMES * FILE_NAME_BYTES;
}

/* --- the verdict --------------------------------------------------------------------------------------------------- */

/* Up to PREFIX_BYTES of the call, behind what is already held of its direction. Uses up segments. */
static __always_inline u32 gather_prefix(struct call *call, u8 *text, u32 held) {
	u32 have, i;

	call->judged = 0;
#pragma clang loop unroll(disable)
	for (i = 0; i < PREFIX_BYTES + 4; i++) {
		u64 wanted, to;

		have = call->judged;
		wanted = PREFIX_BYTES - have;
		to = held + have;
		if (have >= PREFIX_BYTES || have >= call->total)
			break;
		if (!call->left) {
			if (!next_segment(call))
				break;
			continue;
		}
		if (wanted > call->left)
			wanted = call->left;
		KEEP_CHECK(wanted);
		if (wanted > PREFIX_BYTES)
			break;
		KEEP_CHECK(to);
		if (to >= 2 * PREFIX_BYTES)
			break;
		if (copy_from_user(text + to, wanted, (void *)call->at))
			return 0;
		call->at += wanted;
		call->left -= wanted;
		call->judged = have + wanted;
	}
	return call->judged;
}

/* How far a direction is: behind what was moved last. */
static __always_inline u32 current_position(const struct connection *connection, u8 direction) {
	return connection->tcp ? position_after(connection->sk, direction) : connection->count[direction & 1];
}

static __always_inline int is_http(const struct connection *connection) {
	return connection->verdict == VERDICT_HTTP1 || connection->verdict == VERDICT_HTTP2;
}

static __always_inline u32 uncopied_row(const struct connection *connection) {
	return connection->verdict == VERDICT_TLS ? ROW_TLS : ROW_NOT_HTTP;
}

/* Of a call on a connection of which it is not known what it speaks, nor will be by this call. */
static __always_inline u32 undecided_row(const struct connection *connection, u8 reason) {
	return reason >= REASON_UNREADABLE && connection->verdict == VERDICT_UNDECIDED ? ROW_UNREADABLE
										       : uncopied_row(connection);
}

/* Look at the first bytes of what was sent or received; may decide what the connection speaks.
 * Returns 1 when the bytes are to be copied (HTTP, or so few that it cannot be told yet). */
static __always_inline int judge(struct workspace *w, struct connection *connection) {
	struct call *call = &w->call;
	u8 direction = call->direction & 1;
	u8 *text = w->payload; /* nothing lies there yet */
	u32 held = connection->prefix_length[direction];
	u32 have;
	int looks;

	if (held >= PREFIX_BYTES || connection->prefix_end[direction] != call->first_position)
		held = 0;
	__builtin_memset(text, 0, 2 * PREFIX_BYTES);
	if (held) {
		((u64 *)text)[0] = connection->prefix[direction][0];
		((u64 *)text)[1] = connection->prefix[direction][1];
	}
	have = gather_prefix(call, text, held);
	if (!have)
		return 0;
	looks = looks_like(text, held + have);
	connection->prefix_length[direction] = 0;
	if (looks == LOOKS_HTTP1) {
		connection->verdict = VERDICT_HTTP1;
		return 1;
	}
	if (looks == LOOKS_SHORT && held + have < PREFIX_BYTES && have == call->total) {
		connection->prefix_length[direction] = held + have;
		connection->prefix_end[direction] = call->first_position + have;
		connection->prefix[direction][0] = ((u64 *)text)[0];
		connection->prefix[direction][1] = ((u64 *)text)[1];
		return 1;
	}
	if (looks == LOOKS_TLS && !call->probe) {
		connection->hello_left[0] = HELLO_BYTES;
		connection->hello_left[1] = HELLO_BYTES;
	}
	if (looks == LOOKS_HTTP2 || (!connection->fresh && begins_frame(text, held + have))) {
		connection->verdict = VERDICT_HTTP2;
		return 1;
	}
	if (connection->fresh)
		connection->verdict = looks == LOOKS_TLS ? VERDICT_TLS : VERDICT_OTHER;
	else if (begins_record(text, held + have) && ++connection->records > 1)
		connection->verdict = VERDICT_TLS;
	return 0;
}

#ifdef FILTER_PORT
static __always_inline int port_watched(const struct socket_facts *facts) {
	u16 local = facts->local_port, remote = __builtin_bswap16(facts->remote_port);
	u32 *flags, seen = 0;

	if (facts->family != AF_UNIX) {
		flags = watched_ports.lookup(&local);
		if (flags)
			seen |= *flags;
		flags = watched_ports.lookup(&remote);
		if (flags)
			seen |= *flags;
	}
	return passes(seen, FILTER_PORT & FILTER_INCLUDE);
}
#endif

/* A stream socket that we see for the first time: 0 when it is of no family that we know. */
static __always_inline struct connection *remember(u64 inode, void *sk, u8 role, u8 fresh) {
	struct socket_facts facts = {};
	struct connection new = {};
	u16 protocol = 0;

	new.sk = sk;
	copy_from_kernel(&facts, SOCKET_FACTS_BYTES, sk);
	if (facts.family == AF_INET || facts.family == AF_INET6) {
		copy_from_kernel(&protocol, sizeof(protocol), sk + OFFSET_sock__sk_protocol);
		if (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP)
			return 0;
		new.tcp = protocol == IPPROTO_TCP;
	} else if (facts.family != AF_UNIX) {
		return 0;
	}
#ifdef FILTER_PORT
	new.filtered = !port_watched(&facts);
#endif
	new.role = role;
	new.fresh = fresh;
	if (fresh) {
		new.since_ns = bpf_ktime_get_ns();
		connections.update(&inode, &new); /* the number may have been another socket's */
	} else {
		connections.insert(&inode, &new); /* another thread may have, meanwhile */
	}
	return connections.lookup(&inode);
}

/* The stream sock of a struct socket; 0 where it is none. */
static __always_inline void *stream_sock(const void *socket) {
	u16 type = 0;

	copy_from_kernel(&type, sizeof(type), socket + OFFSET_socket__type);
	return type == SOCK_STREAM ? read_pointer(socket + OFFSET_socket__sk) : 0;
}

static __always_inline void end_tally(u64 socket);

static __always_inline void send_closed(u64 socket, u64 now, u8 direction, u8 gone, u32 position) {
	struct closed_record record = {};
	struct ledger *ledger = find_ledger();

	record.kind = RECORD_CLOSED;
	record.direction = direction;
	record.gone = gone;
	record.position = position;
	record.time_ns = now;
	record.socket = socket;
	if (ledger && send_up(ledger, &record, sizeof(record)))
		ledger->announcements_lost++;
}

/* --- the programs behind sys_exit ---------------------------------------------------------------------------------- */

/* `length` bytes in the payload of what a TLS connection is on its socket; none: its plaintext is read. */
static __always_inline void send_handshake_record(struct workspace *w, struct ledger *ledger, u64 socket, u8 direction,
						  u64 length) {
	struct data_record *record = &w->record;

	record->kind = RECORD_HANDSHAKE;
	record->direction = direction;
	record->flags = 0;
	record->reason = 0;
	record->captured = length;
	record->time_ns = w->call.time_ns;
	record->socket = socket;
	record->pid = w->call.pid;
	record->tid = w->call.tid;
	record->position = 0;
	record->length = length;
	if (send_up(ledger, record, sizeof(*record) + length))
		ledger->announcements_lost++;
}

/* What a TLS connection begins with goes up until enough was seen; the client's random is remembered, for it names the
 * session (tls.h). Short: the first segment with bytes only. */
static __always_inline void send_handshake(struct workspace *w, struct ledger *ledger, struct connection *connection) {
	struct call *call = &w->call;
	u8 direction = call->direction & 1;
	u64 wanted = connection->hello_left[direction], offset = HELLO_BYTES - wanted;
	u8 *text = w->payload;

	first_segment(call);
	if (!call->left)
		next_segment(call);
	if (wanted > call->left)
		wanted = call->left;
	KEEP_CHECK(wanted);
	/* Nothing wanted: asked last, because of both bounds in one place the compiler makes one that old verifiers do not see. */
	if (wanted > HELLO_BYTES || copy_from_user(text, wanted, (void *)call->at) || !wanted) {
		connection->hello_left[direction] = 0;
		return;
	}
	connection->hello_left[direction] -= wanted;
	if (call->left < call->total)
		connection->hello_left[direction] = 0; /* what comes next would not follow */
	/* A ClientHello: header of the record (5 bytes, which some read on their own), of the message (4), version (2). */
	if ((offset == 0 && wanted >= 43 && text[5] == 1) || (offset == 5 && wanted >= 38 && text[0] == 1)) {
		struct tls_hello hello = {};

		hello.random = *(u64 *)(text + (offset ? 6 : 11));
		hello.pid = call->pid;
		hello.direction = direction;
		tls_hellos.update(&hello, &call->socket);
	}
	connection->announced = 1;
	send_handshake_record(w, ledger, call->socket, direction, wanted);
}

/* From this call on, whose first byte is the first of TLS, both directions hold a handshake. */
static __always_inline void expect_handshake(struct call *call, struct connection *connection) {
	u8 other = !(call->direction & 1);

	connection->hello_left[0] = HELLO_BYTES;
	connection->hello_left[1] = HELLO_BYTES;
	if (connection->tcp) {
		connection->base[call->direction & 1] = call->first_position;
		connection->base[other] = position_after(connection->sk, other);
	}
}

/* The ring is filling: how much of this call goes up, which is what a message may begin with. It is in the payload. */
static __always_inline u64 copy_head(struct workspace *w) {
	struct call *call = &w->call;
	u64 copied = call->left < call->total ? call->left : call->total;

	if (copy_from_user(w->payload, PREFIX_BYTES, (void *)call->at) ||
	    looks_like(w->payload, PREFIX_BYTES) != LOOKS_HTTP1)
		return 0;
	if (copied > HEAD_BYTES)
		copied = HEAD_BYTES;
	/* Not a comparison: that would be of one copy of it and hold, for old verifiers, for that one alone. */
	KEEP_CHECK(copied);
	copied &= 2 * HEAD_BYTES - 1;
	if (copy_from_user(w->payload, copied, (void *)call->at))
		return 0;
	return copied;
}

/* A call on a connection that speaks HTTP, or may do so: it goes up, unless the user side said otherwise. */
static __always_inline void deliver(void *ctx, struct workspace *w, struct ledger *ledger) {
	struct call *call = &w->call;
	struct connection *connection;
	struct control *control;
	u32 total = call->total, length = total, captured = 0;
	u8 reason = REASON_NONE, flags = 0;

	connection = connections.lookup(&call->socket);
	if (!connection) { /* closed by another thread meanwhile */
		account(ledger, ROW_LOST, 1, total);
		return;
	}
	control = controls.lookup(&call->socket);
	if (control) {
		u8 direction = call->direction & 1;

		if (control->flags & CONTROL_IGNORE) {
			account(ledger, ROW_TUNNEL, 1, total);
			/* The proxy's answer may have been parsed before the hello is sent. */
			if (!connection->announced && !call->probe && call->kind != KIND_NO_BYTES &&
			    connection->records < TUNNEL_LOOKS) {
				connection->records++;
				first_segment(call);
				if (!call->left)
					next_segment(call);
				if (call->left >= 10 && !copy_from_user(w->payload, 10, (void *)call->at) &&
				    begins_hello(w->payload))
					expect_handshake(call, connection);
			}
			goto handshake;
		}
		if ((control->flags & (direction == DIRECTION_SEND ? CONTROL_SKIP_SEND : CONTROL_SKIP_RECV)) &&
		    (int)(call->first_position + total - control->skip_until[direction]) < 0) {
			account(ledger, ROW_OVER_LIMIT, 1, total);
			return;
		}
	}
	if (connection->owner != call->pid && !announce(w, ledger, connection, connection->fresh)) {
		connection->lost |= 1 << call->direction;
		account(ledger, ROW_LOST, 1, total);
		return;
	}
	call->after_loss = connection->lost & (1 << call->direction);
	connection->lost &= ~(1 << call->direction);
	first_bytes(call);
	if (call->kind == KIND_NO_BYTES) {
		reason = call->reason;
		if (reason == REASON_SENDFILE && !call->probe)
			captured = describe_file(w, call->second, call->third);
		flags = captured ? DATA_FILE : 0;
	} else if (total > SMALL_BYTES && connection->verdict != VERDICT_HTTP2 && ring_is_filling()) {
		captured = copy_head(w);
		if (captured)
			length = captured;
		else
			reason = REASON_OVER_LIMIT;
	} else if (call->left >= total && total <= PIECE_BYTES) {
		u64 whole = total;

		KEEP_CHECK(whole);
		if (whole > PIECE_BYTES)
			return;
		if (copy_from_user(w->payload, whole, (void *)call->at))
			reason = REASON_UNREADABLE;
		else
			captured = whole;
		if (captured > 9 && !call->probe && begins_hello(w->payload))
			expect_handshake(call, connection); /* behind a proxy's CONNECT */
	} else {
		call->contiguous = call->left >= total;
		programs.call(ctx, PROGRAM_LONG_CALL);
		account(ledger, ROW_LOST, 1, total);
		return;
	}
	send_piece(w, ledger, captured, length, reason, flags);
	if (length < total)
		send_piece(w, ledger, 0, total - length, REASON_OVER_LIMIT, 0);
handshake:
	if (connection->hello_left[call->direction & 1] && !call->probe && call->kind != KIND_NO_BYTES)
		send_handshake(w, ledger, connection);
}

int on_deliver(struct bpf_raw_tracepoint_args *ctx) {
	struct place place;

	if (find_place(&place)) {
		deliver(ctx, place.w, place.ledger);
		give_back(&place);
	}
	return 0;
}

/* A call on a connection of which it is not known what it speaks. */
static __always_inline void decide(void *ctx, struct workspace *w, struct ledger *ledger) {
	struct connection *connection = connections.lookup(&w->call.socket);

	if (!connection) {
		account(ledger, ROW_NOT_HTTP, 1, w->call.total);
		return;
	}
	first_segment(&w->call);
	if (connection->verdict == VERDICT_UNDECIDED && w->call.kind != KIND_NO_BYTES && judge(w, connection)) {
		programs.call(ctx, PROGRAM_HTTP);
		account(ledger, ROW_LOST, 1, w->call.total);
		return;
	}
	account(ledger, undecided_row(connection, w->call.reason), 1, w->call.total);
	if (!w->call.probe && connection->hello_left[w->call.direction & 1] && w->call.kind != KIND_NO_BYTES)
		send_handshake(w, ledger, connection);
}

int on_undecided(struct bpf_raw_tracepoint_args *ctx) {
	struct place place;

	if (find_place(&place)) {
		decide(ctx, place.w, place.ledger);
		give_back(&place);
	}
	return 0;
}

/* A system call on a socket, made inside of a library's call: that is the session's socket. */
static __always_inline void note_socket(const void *registers, u32 pid, u32 tid, u64 inode) {
	struct tls_caller caller = {.id = tid, .pid = pid};
	struct tls_call *inside = tls_calls.lookup(&caller);
	struct tls_frame *frame;

	if (!inside || !inside->depth) {
		if (!wrapped_processes.lookup(&pid))
			return;
		caller.id = goroutine_of_call(registers);
		inside = tls_calls.lookup(&caller);
		if (!inside || !inside->depth)
			return;
	}
	frame = &inside->frames[(inside->depth - 1) & (FRAMES - 1)];
	if (!frame->socket)
		frame->socket = inode;
	else if (frame->socket != inode)
		frame->socket = NO_SOCKET;
}

/* `urgent`: what is told of no file, or of one that was not told before, is told at once. */
static __always_inline void send_notice(u32 kind, void *file, u64 address, int urgent) {
	struct notice notice = {};
	void *inode = file ? read_pointer(file + OFFSET_file__f_inode) : 0;
	u64 flags = urgent && !file ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;

	notice.kind = kind;
	notice.pid = bpf_get_current_pid_tgid() >> 32;
	notice.address = address;
	if (inode) {
		notice.inode = read_u64(inode + OFFSET_inode__i_ino);
		notice.device = read_u32(read_pointer(inode + OFFSET_inode__i_sb) + OFFSET_super_block__s_dev);
	}
	if (inode) {
		struct file_id id = {.inode = notice.inode, .device = notice.device};
		u32 generation = read_u32(inode + OFFSET_inode__i_generation), *told = told_files.lookup(&id);

		if (!told || *told != generation) {
			told_files.update(&id, &generation);
			if (urgent) /* it may have to be probed before it says anything */
				flags = BPF_RB_FORCE_WAKEUP;
		} else if (kind == NOTICE_MAPPED) {
			return;
		}
	}
	if (notices.ringbuf_output(&notice, sizeof(notice), flags)) {
		u32 zero = 0;
		struct tls_counters *counters = tls_counts.lookup(&zero);

		if (counters)
			lock_xadd(&counters->notices_lost, 1);
	}
}

#define PROT_EXEC 4

/* --- one call, however it was seen ---------------------------------------------------------------------------------- */

/* Where a call has its bytes, by its number and arguments. */
struct shape {
	u64 at;
	u32 descriptor;
	u32 kind;
	u32 flags; /* MSG_ */
	u8 direction;
	u8 reason;
};

/* Returns 0 for a call that moves no bytes of sockets. */
static __always_inline int find_shape(const struct call_registers *arguments, struct shape *shape) {
	shape->at = arguments->second;
	shape->descriptor = arguments->first;
	shape->kind = KIND_BUFFER;
	shape->flags = 0;
	shape->direction = DIRECTION_RECV;
	shape->reason = REASON_NONE;
	switch (arguments->number) {
	case CALL_READ:
		break;
	case CALL_WRITE:
	case CALL_SENDTO:
		shape->direction = DIRECTION_SEND;
		break;
	case CALL_RECVFROM:
		shape->flags = arguments->fourth;
		break;
	case CALL_READV:
	case CALL_PREADV2:
		shape->kind = KIND_VECTOR;
		break;
	case CALL_WRITEV:
	case CALL_PWRITEV2:
		shape->direction = DIRECTION_SEND, shape->kind = KIND_VECTOR;
		break;
	case CALL_RECVMSG:
		shape->kind = KIND_MESSAGE;
		shape->flags = arguments->third;
		break;
	case CALL_SENDMSG:
		shape->direction = DIRECTION_SEND, shape->kind = KIND_MESSAGE;
		break;
	case CALL_RECVMMSG:
		shape->kind = KIND_MESSAGES;
		shape->flags = arguments->fourth;
		break;
	case CALL_SENDMMSG:
		shape->direction = DIRECTION_SEND, shape->kind = KIND_MESSAGES;
		break;
	case CALL_SENDFILE:
		shape->direction = DIRECTION_SEND, shape->kind = KIND_NO_BYTES, shape->reason = REASON_SENDFILE;
		break;
	case CALL_SPLICE: /* (in, offset, out, ...) */
		shape->direction = DIRECTION_SEND, shape->kind = KIND_NO_BYTES, shape->reason = REASON_SPLICE;
		shape->descriptor = arguments->third;
		break;
	default:
		return 0;
	}
	return 1;
}

/* What a call is apart from its shape. */
struct moved {
	void *task;
	const void *registers;
	u64 inode;
	u64 third; /* argument */
	u64 already; /* bytes that the same call moved before */
	u32 pid;
	u32 bytes; /* 0: the end of what the peer sends */
	u32 segments; /* vectors or messages */
	u32 skipped; /* bytes that were taken out of the socket before, unseen */
};

#ifdef SOCKET_EVENTS
static __always_inline void take_skipped(struct workspace *w, struct ledger *ledger, struct connection *connection,
					 const struct moved *moved) {
	begin_call(&w->call, moved->inode, moved->skipped, DIRECTION_RECV);
	w->call.first_position = connection->count[DIRECTION_RECV];
	w->call.after_loss = 0;
	lock_xadd(&connection->count[DIRECTION_RECV], moved->skipped);
	if (connection->owner)
		send_piece(w, ledger, 0, moved->skipped, REASON_SPLICE, 0);
	else
		account(ledger, ROW_NOT_HTTP, 1, moved->skipped);
}
#define SKIPPED(moved) ((moved)->skipped)
#else
#define SKIPPED(moved) 0
#endif

static __always_inline void account_all(struct ledger *ledger, u32 row, const struct moved *moved) {
	account(ledger, row, (moved->bytes > 0) + (SKIPPED(moved) > 0), moved->bytes + SKIPPED(moved));
}

/* Ends by calling another program, or when all is accounted for. */
static __always_inline void take_call_in(void *ctx, const struct shape *shape, const struct moved *moved,
					 struct connection *connection, struct workspace *w, struct ledger *ledger) {
	struct call *call;
	u8 direction = shape->direction;
	u32 kind = shape->kind, result = moved->bytes;
	u64 inode = moved->inode;
	u8 reason = shape->reason;

	if (TLS_PROBES && !connection->library && result > 0 &&
	    (connection->verdict == VERDICT_TLS || connection->verdict == VERDICT_UNDECIDED))
		note_socket(moved->registers, moved->pid, LOAD_U32(moved->task, OFFSET_task_struct__pid), inode);
	call = &w->call;
	account_all(ledger, ROW_TOTAL, moved);
#ifdef FILTER_PROCESS
	if (!current_watched(moved->pid)) {
		account_all(ledger, ROW_FILTERED, moved);
		return;
	}
#endif
#ifdef FILTER_PORT
	if (connection->filtered) {
		account_all(ledger, ROW_FILTERED, moved);
		return;
	}
#endif
	if (connection->verdict > VERDICT_HTTP2 && !connection->hello_left[direction & 1]) {
		account_all(ledger, uncopied_row(connection), moved);
		return;
	}
	call->time_ns = bpf_ktime_get_ns();
	call->pid = moved->pid;
	call->tid = LOAD_U32(moved->task, OFFSET_task_struct__pid);
#ifdef SOCKET_EVENTS
	if (moved->skipped)
		take_skipped(w, ledger, connection, moved);
#endif
	if (connection->tcp) {
		call->first_position = position_after(connection->sk, direction) - result;
	} else {
		call->first_position = connection->count[direction & 1];
		lock_xadd(&connection->count[direction & 1], result);
	}
	if (!result) {
		/* End of the stream; not so when nothing was asked for. */
		if (direction == DIRECTION_RECV && connection->owner && (kind != KIND_BUFFER || moved->third))
			send_closed(inode, call->time_ns, DIRECTION_RECV, 0, call->first_position);
		return;
	}

	/* Joined in the middle, it begins with the call that shows that it is HTTP. */
	if (!connection->owner && (!connection->based || !connection->fresh)) {
		connection->based = 1;
		connection->base[direction & 1] = call->first_position;
		connection->base[!(direction & 1)] = current_position(connection, !(direction & 1));
	}

	begin_call(call, inode, result, direction);
	/* TCP discards what it would have copied; UNIX sockets know no such flag. */
	if (direction == DIRECTION_RECV && (shape->flags & MSG_TRUNC) && connection->tcp)
		kind = KIND_NO_BYTES, reason = REASON_UNREADABLE;
	call->kind = kind;
	call->reason = reason;
	call->probe = 0;
	call->second = shape->at;
	call->third = moved->third;
	call->already = moved->already;
	call->count = moved->segments;
	programs.call(ctx, is_http(connection) ? PROGRAM_HTTP : PROGRAM_JUDGE);
	account(ledger, ROW_LOST, 1, result); /* the call above does not come back */
}

static __always_inline void take_call(void *ctx, const struct shape *shape, const struct moved *moved,
				      struct connection *connection) {
	struct place place = {};

	if (!begin_work(&place)) {
		count_crowded(moved->bytes + SKIPPED(moved));
		return;
	}
	take_call_in(ctx, shape, moved, connection, place.w, place.ledger);
	end_work(&place);
}

/* --- the end of a TCP connection ----------------------------------------------------------------------------------- */

/* The TLS inside of a socket that is gone. What was received has ended only if the peer said so: else it was cut short. */
static __always_inline void close_plaintext(const void *sk, u64 inode) {
	u64 inside = inode | SOCKET_TLS, now = bpf_ktime_get_ns();
	struct connection *connection = connections.lookup(&inside);

	if (!connection)
		return;
	end_tally(inside);
	if (fin_received(sk))
		send_closed(inside, now, DIRECTION_RECV, 0, connection->count[DIRECTION_RECV]);
	send_closed(inside, now, DIRECTION_BOTH, 1, connection->count[DIRECTION_SEND]);
	connections.delete(&inside);
	controls.delete(&inside);
}

/* sock:inet_sock_set_state(sk, old state, new state). A close leaves FIN_WAIT1 or LAST_ACK while the sock still has its
 * socket; a reset goes to CLOSE at once. */
int on_set_state(struct bpf_raw_tracepoint_args *ctx) {
	void *sk = (void *)ctx->args[0];
	int before = ctx->args[1], state = ctx->args[2];
	struct connection *connection;
	u64 inode;
	u8 shutdown = 0, gone;

	if (state != TCP_FIN_WAIT1 && state != TCP_LAST_ACK && state != TCP_CLOSE)
		return 0;
	inode = inode_of_sock(sk);
	if (!inode)
		return 0;
	connection = connections.lookup(&inode);
	if (!connection)
		return 0;
	/* close() sets both before it changes the state. Without it the socket is still there: after a reset, or after
	 * both sides' FIN, what has arrived can still be read. */
	copy_from_kernel(&shutdown, sizeof(shutdown), sk + OFFSET_sock__sk_shutdown);
	gone = (shutdown & SHUTDOWN_BOTH) == SHUTDOWN_BOTH;
	if (state == TCP_CLOSE && (before == TCP_FIN_WAIT2 || before == TCP_CLOSING || before == TCP_LAST_ACK))
		gone = 0; /* it ended by itself; closed ones have no socket any more */
	if (gone) {
		close_plaintext(sk, inode);
		end_tally(inode);
	}
	if (gone && connection->announced)
		send_closed(inode, bpf_ktime_get_ns(), DIRECTION_BOTH, 1, 0);
	else if (connection->owner) {
		u64 now = bpf_ktime_get_ns();

		send_closed(inode, now, gone ? DIRECTION_BOTH : DIRECTION_SEND, gone,
			    read_u32(sk + OFFSET_tcp_sock__write_seq));
		if (state == TCP_CLOSE && !gone)
			send_closed(inode, now, DIRECTION_RECV, 0,
				    read_u32(sk + OFFSET_tcp_sock__rcv_nxt) - fin_received(sk));
	}
	if (gone) {
		connections.delete(&inode);
		controls.delete(&inode);
	}
	return 0;
}

/* --- processes that come and go ------------------------------------------------------------------------------------- */

/* sched:sched_process_exec(task, ...): another program, with another name and other arguments. */
int on_exec(struct bpf_raw_tracepoint_args *ctx) {
	u32 pid = bpf_get_current_pid_tgid() >> 32;

	processes.delete(&pid);
	wrapped_processes.delete(&pid);
	send_notice(
		NOTICE_EXECUTED,
		read_pointer(read_pointer((void *)ctx->args[0] + OFFSET_task_struct__mm) + OFFSET_mm_struct__exe_file),
		0, 1);
	return 0;
}

/* sched:sched_process_exit(task): with its last thread a process is gone, and its pid may be given to another. */
int on_exit(struct bpf_raw_tracepoint_args *ctx) {
	void *signal = read_pointer((void *)ctx->args[0] + OFFSET_task_struct__signal);
	u32 pid = bpf_get_current_pid_tgid() >> 32;

	if (read_u32(signal + OFFSET_signal_struct__live))
		return 0;
	processes.delete(&pid);
	watched_pids.delete(&pid);
	wrapped_processes.delete(&pid);
	send_notice(NOTICE_EXITED, 0, 0, 0);
	return 0;
}

#ifdef FILTER_PID
/* sched:sched_process_fork(parent, child): a watched process' children are watched. */
int on_fork(struct bpf_raw_tracepoint_args *ctx) {
	u32 parent = read_u32((void *)ctx->args[0] + OFFSET_task_struct__tgid);
	u32 child = read_u32((void *)ctx->args[1] + OFFSET_task_struct__tgid);
	u32 *flags = watched_pids.lookup(&parent);

	if (flags && parent != child) {
		u32 copy = *flags;

		watched_pids.update(&child, &copy);
		if (copy & FILTER_INCLUDE)
			send_notice(NOTICE_FORKED, 0, 0, 1);
	}
	return 0;
}
#endif

#endif
