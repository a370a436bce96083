/* Calls as the sockets see them: raw tracepoints sock_send_length and sock_recv_length (Linux 6.3), which say the sock and the
 * length, from inside of the system call. What is no stream socket's costs nothing here.
 *
 * Two ways of receiving pass them by. What is spliced out of a TCP socket is seen at tcp_rcv_space_adjust. What is spliced out
 * of a UNIX socket is found missing at the next call on it (find_skipped).
 */
#ifndef NETPROFILER_SOCKET_EVENTS_H
#define NETPROFILER_SOCKET_EVENTS_H
#ifdef SOCKET_EVENTS

#define QUEUE_MAX 32 /* buffers in a UNIX socket's queue that are looked at */
#define VECTORS_MAX 1024 /* UIO_MAXIOV: segments of a message */
#define MAP_PRIVATE 2
#define MAP_DENYWRITE 0x800 /* no more than a sign of glibc's loader */

/* The socket's inode and file; 0 when it is the kernel's own, or gone. */
static __always_inline u64 find_inode(void *sk, void **file) {
	void *socket = (void *)LOAD_U64(sk, OFFSET_sock__sk_socket);

	*file = (void *)LOAD_U64(socket, OFFSET_socket__file);
	if (!*file)
		return 0;
	return LOAD_U64((void *)LOAD_U64(*file, OFFSET_file__f_inode), OFFSET_inode__i_ino);
}

/* --- is it new? ---------------------------------------------------------------------------------------------------- */

static __always_inline int is_new_socket(u64 inode) {
	u32 zero = 0, batch = (u32)inode / INODES_BATCH, *begun;
	u64 *first = first_new_inode.lookup(&zero);

	if (!first || !*first)
		return 0;
	if ((int)((u32)inode - (u32)*first) >= 0)
		return 1;
	begun = begun_batches.lookup(&batch);
	return begun && (u32)inode >= *begun;
}

/* The sequence number of the first byte that was read of a TCP sock. What arrives meanwhile changes two counters, one after the
 * other. */
static __always_inline u32 first_read(void *sk) {
	u32 next = LOAD_U32(sk, OFFSET_tcp_sock__rcv_nxt), received = LOAD_U64(sk, OFFSET_tcp_sock__bytes_received);
	u32 again = LOAD_U32(sk, OFFSET_tcp_sock__rcv_nxt);

	if (again != next) {
		next = again;
		received = LOAD_U64(sk, OFFSET_tcp_sock__bytes_received);
	}
	return next - received;
}

/* And of the first that was written; of a client, its SYN. */
static __always_inline u32 first_written(void *sk) {
	u32 first = LOAD_U32(sk, OFFSET_tcp_sock__snd_una), acked = LOAD_U64(sk, OFFSET_tcp_sock__bytes_acked);
	u32 again = LOAD_U32(sk, OFFSET_tcp_sock__snd_una);

	if (again != first) {
		first = again;
		acked = LOAD_U64(sk, OFFSET_tcp_sock__bytes_acked);
	}
	return first - acked;
}

/* A connection that was not known. It is seen from its first byte where nothing was moved before these bytes: TCP counts;
 * of UNIX sockets the new ones are. */
static __always_inline struct connection *remember_event(u64 inode, void *sk, u16 family, u8 direction, u32 moved) {
	u8 role = ROLE_UNKNOWN, fresh = 0, tells_beginning = 0;
	u32 read, written, first[2] = {};
	struct connection *connection;

	if (family == AF_UNIX) {
		/* The accepted end has the listener's address. */
		void *end = AS(sk, unix_sock);
		void *peer = (void *)LOAD_U64(end, OFFSET_unix_sock__peer);
		u64 own = LOAD_U64(end, OFFSET_unix_sock__addr);
		u64 other = LOAD_U64(AS(peer, unix_sock), OFFSET_unix_sock__addr);

		fresh = is_new_socket(inode);
		if (own && !other)
			role = ROLE_SERVER;
		else if (other && !own)
			role = ROLE_CLIENT;
	} else if (LOAD_U16(sk, OFFSET_sock__sk_protocol) == IPPROTO_TCP) {
		first[DIRECTION_RECV] = first_read(sk);
		first[DIRECTION_SEND] = first_written(sk);
		read = LOAD_U32(sk, OFFSET_tcp_sock__copied_seq) - first[DIRECTION_RECV];
		written = LOAD_U32(sk, OFFSET_tcp_sock__write_seq) - first[DIRECTION_SEND];
		if (direction == DIRECTION_RECV)
			read -= moved;
		else
			written -= moved;
		/* A FIN counts as one. */
		fresh = read <= 1 && written <= 1;
		if (fresh && LOAD_U8(sk, OFFSET_sock_common__skc_state) == TCP_ESTABLISHED) {
			role = written ? ROLE_CLIENT : ROLE_SERVER;
			first[DIRECTION_SEND] += written;
			first[direction & 1] = position_after(sk, direction) - moved;
			tells_beginning = 1;
		}
	} else {
		fresh = is_new_socket(inode);
	}
	connection = remember(inode, sk, role, fresh);
	if (connection && tells_beginning) {
		/* Of the other direction, some may have been moved by now, by another thread whose call is not seen yet. */
		connection->base[DIRECTION_SEND] = first[DIRECTION_SEND];
		connection->base[DIRECTION_RECV] = first[DIRECTION_RECV];
		connection->based = 1;
	}
	return connection;
}

/* --- calls in several steps ---------------------------------------------------------------------------------------- */

/* Bytes that the message at `at` has in all. */
static __always_inline u64 message_bytes(u64 at) {
	struct user_vector vector = {}, segment;
	u64 sum = 0;
	u32 i;

	copy_from_user(&vector, sizeof(vector), (void *)at + MESSAGE_VECTORS);
#pragma clang loop unroll(disable)
	for (i = 0; i < VECTORS_MAX; i++) {
		if (i >= vector.length)
			break;
		segment.length = 0;
		copy_from_user(&segment, sizeof(segment), (void *)vector.base + i * sizeof(segment));
		sum += segment.length;
	}
	return sum;
}

/* Of a sendmmsg or recvmmsg: which of its messages this is. One that is not moved whole, or fails, is the last. */
static __always_inline u64 next_message(u64 thread, u64 inode, const struct call_registers *arguments, u8 direction,
					long result) {
	struct steps *last = steps.lookup(&thread), now = {};
	u64 at;

	if (result < 0) {
		if (last)
			steps.delete(&thread);
		return 0;
	}
	now.socket = inode;
	now.at = arguments->second;
	now.count = arguments->third;
	if (last && last->socket == inode && last->at == now.at && last->count == now.count && last->next < now.count)
		now.next = last->next;
	at = now.at + (u64)now.next * MESSAGE_BYTES;
	now.next++;
	if (!result || (direction == DIRECTION_SEND && (u64)result < message_bytes(at)))
		now.next = now.count;
	steps.update(&thread, &now);
	return at;
}

/* Of a sendfile: how many bytes it has sent before these. Its offset stays what it was until it ends. */
static __always_inline u64 sent_before(u64 thread, u64 inode, void *task, const struct call_registers *arguments,
				       u32 first, u32 length) {
	struct steps *last = steps.lookup(&thread), now = {};

	now.socket = inode;
	if (!arguments->third || copy_from_user(&now.at, sizeof(now.at), (void *)arguments->third))
		now.at = read_u64(find_file(task, arguments->second) + OFFSET_file__f_pos);
	if (last && last->socket == inode && last->at == now.at && last->position == first &&
	    last->already + length <= arguments->fourth)
		now.already = last->already;
	now.position = first + length;
	now.already += length;
	steps.update(&thread, &now);
	return now.already - length;
}

/* --- sock_send_length, sock_recv_length ----------------------------------------------------------------------------- */

/* Bytes in the queue of a UNIX socket; -1: too many buffers. */
static __always_inline int queued_bytes(void *sk) {
	u64 end = (u64)sk + OFFSET_sock__sk_receive_queue, at = LOAD_U64(sk, OFFSET_sock__sk_receive_queue);
	int sum = 0;
	u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < QUEUE_MAX; i++) {
		void *buffer, *parameters;

		if (at == end || !at)
			return sum;
		buffer = AS(at, sk_buff);
		parameters = AS(at + OFFSET_sk_buff__cb, unix_skb_parms);
		sum += LOAD_U32(buffer, OFFSET_sk_buff__len) - LOAD_U32(parameters, OFFSET_unix_skb_parms__consumed);
		at = LOAD_U64(buffer, OFFSET_sk_buff__next);
	}
	return -1;
}

/* UNIX: bytes that were taken out of the socket without a call that is seen: what the peer has sent, less what is queued, and
 * what was received. Only where both ends were seen from their first byte. */
static __always_inline u32 find_skipped(void *sk, struct connection *connection, u32 received) {
	void *peer = (void *)LOAD_U64(AS(sk, unix_sock), OFFSET_unix_sock__peer);
	struct connection *other;
	void *file;
	u32 sent;
	int queued, skipped;

	if (!connection->fresh || !peer)
		return 0;
	if (!connection->peer)
		connection->peer = find_inode(AS(peer, tcp_sock), &file);
	other = connections.lookup(&connection->peer);
	if (!other || !other->fresh || other->sk != peer)
		return 0;
	/* In this order: what is sent meanwhile is in the queue. */
	sent = *(volatile u32 *)&other->count[DIRECTION_SEND];
	queued = queued_bytes(sk);
	skipped = sent - queued - received - connection->count[DIRECTION_RECV];
	return queued >= 0 && skipped > 0 ? skipped : 0;
}

/* UNIX: the other end was closed, and has left nothing unread. Whatever it did not receive by a call, it was given. */
static __always_inline void settle_peer(void *sk, const struct connection *connection) {
	void *peer = (void *)LOAD_U64(AS(sk, unix_sock), OFFSET_unix_sock__peer);
	struct moved moved = {.inode = connection->peer};
	struct connection *other;
	struct place place = {};

	if (!connection->fresh || !moved.inode || LOAD_U64(AS(peer, tcp_sock), OFFSET_sock__sk_socket))
		return;
	other = connections.lookup(&moved.inode);
	if (!other || !other->fresh || other->sk != peer || !other->owner)
		return;
	moved.skipped = connection->count[DIRECTION_SEND] - other->count[DIRECTION_RECV];
	if ((int)moved.skipped <= 0)
		return;
	if (!begin_work(&place)) {
		count_crowded(moved.skipped);
		return;
	}
	account(place.ledger, ROW_TOTAL, 1, moved.skipped);
	place.w->call.time_ns = bpf_ktime_get_ns();
	place.w->call.pid = other->owner;
	place.w->call.tid = other->owner;
	take_skipped(place.w, place.ledger, other, &moved);
	end_work(&place);
}

/* UNIX: what is to be told before this call. Returns what was skipped. */
static __always_inline u32 before_unix_call(void *sk, struct connection *connection, u64 inode, u8 direction,
					    u32 moved) {
	u8 shutdown = LOAD_U8(sk, OFFSET_sock__sk_shutdown);

	/* Its own shutdown was not seen, nor the peer's close. */
	if (direction == DIRECTION_RECV && (shutdown & SHUTDOWN_SEND) && !connection->shut && connection->owner) {
		connection->shut = 1;
		send_closed(inode, bpf_ktime_get_ns(), DIRECTION_SEND, 0, connection->count[DIRECTION_SEND]);
	}
	if (direction == DIRECTION_RECV && !moved)
		settle_peer(sk, connection);
	return find_skipped(sk, connection, direction == DIRECTION_RECV ? moved : 0);
}

/* What neither is copied nor tells anything: no more than counted. Returns 0 where there is more to do. */
static __always_inline int is_only_counted(struct connection *connection, void *sk, u32 moved, u8 direction) {
	struct ledger *ledger = find_ledger();
	u32 row = ROW_FILTERED;

	if (!ledger)
		return 0;
#ifdef FILTER_PROCESS
	if (current_watched(bpf_get_current_pid_tgid() >> 32))
#endif
	{
		if (connection->verdict <= VERDICT_HTTP2 || connection->hello_left[direction & 1] ||
		    (TLS_PROBES && connection->verdict == VERDICT_TLS && !connection->library))
			return 0;
#ifdef FILTER_PORT
		if (connection->filtered)
			return 0;
#endif
		row = uncopied_row(connection);
	}
	if (direction == DIRECTION_RECV)
		connection->count[DIRECTION_RECV] = position_after(sk, DIRECTION_RECV);
	account(ledger, ROW_TOTAL, moved > 0, moved);
	account(ledger, row, moved > 0, moved);
	return 1;
}

static __always_inline int on_socket_call(void *ctx, void *sock, int result, u32 flags, u8 direction) {
	void *sk = AS(sock, tcp_sock), *file;
	struct call_registers arguments;
	struct shape shape;
	struct moved moved = {};
	struct connection *connection;
	u64 thread;
	u16 family;
	u8 is_known, is_compat;

	family = LOAD_U16(sk, OFFSET_sock_common__skc_family);
	moved.inode = find_inode(sk, &file);
	if (!moved.inode)
		return 0;
	connection = connections.lookup(&moved.inode);
	if (connection && connection->sk == sock && connection->tcp && result >= 0 &&
	    !(flags & (MSG_PEEK | MSG_ERRQUEUE)) && is_only_counted(connection, sk, result, direction))
		return 0;
	moved.task = CURRENT_TASK();
	moved.registers = task_registers(moved.task);
	load_call_registers(&arguments, (void *)moved.registers);
	/* A failure matters to who counts messages alone, and a look ahead only when it meets the end. */
	if ((result < 0 && arguments.number != CALL_SENDMMSG && arguments.number != CALL_RECVMMSG) ||
	    (flags & MSG_ERRQUEUE) || ((flags & MSG_PEEK) && (result || family != AF_UNIX)) ||
	    LOAD_U16(sk, OFFSET_sock__sk_type) != SOCK_STREAM)
		return 0;
	moved.pid = LOAD_U32(moved.task, OFFSET_task_struct__tgid);
	if (moved.pid == AGENT_PID)
		return 0;
	/* The kernel may work on a socket for another one than the calling thread: io_uring, aio. Of a 32-bit program the
	 * registers mean something else. */
	is_compat = is_compat_call(moved.task);
	is_known = find_shape(&arguments, &shape) && shape.direction == direction && !is_compat &&
		   find_file(moved.task, shape.descriptor) == file;
	thread = (u64)moved.pid << 32 | LOAD_U32(moved.task, OFFSET_task_struct__pid);
	moved.segments = arguments.third;
	if (is_known && shape.kind == KIND_MESSAGES) {
		shape.at = next_message(thread, moved.inode, &arguments, direction, result);
		shape.kind = KIND_MESSAGE;
	}
	if (result < 0)
		return 0;
	if (shape.kind == KIND_MESSAGE)
		moved.segments = 1;
	if (!connection || connection->sk != sock) {
		if (!result)
			return 0;
		if (connection) /* of another socket, which had this number */
			connections.delete(&moved.inode);
		connection = remember_event(moved.inode, sk, family, direction, result);
		if (!connection)
			return 0;
	}
	if (flags & MSG_PEEK) {
		settle_peer(sk, connection);
		return 0;
	}
	if (!is_known) {
		shape.kind = KIND_NO_BYTES;
		shape.reason = is_compat ? REASON_UNREADABLE : REASON_IO_URING;
		shape.direction = direction;
	}
	shape.flags = flags;
	moved.bytes = result;
	moved.third = arguments.third;
	if (family == AF_UNIX)
		moved.skipped = before_unix_call(sk, connection, moved.inode, direction, result);
	else if (direction == DIRECTION_RECV)
		connection->count[DIRECTION_RECV] = position_after(sk, DIRECTION_RECV);
	if (is_known && shape.reason == REASON_SENDFILE)
		moved.already = sent_before(thread, moved.inode, moved.task, &arguments,
					    connection->tcp ? position_after(sk, DIRECTION_SEND) - result
							    : connection->count[DIRECTION_SEND],
					    result);
	take_call(ctx, &shape, &moved, connection);
	return 0;
}

int on_sock_send_length(struct bpf_raw_tracepoint_args *ctx) {
	return on_socket_call(ctx, (void *)ctx->args[0], ctx->args[1], 0, DIRECTION_SEND);
}

int on_sock_recv_length(struct bpf_raw_tracepoint_args *ctx) {
	return on_socket_call(ctx, (void *)ctx->args[0], ctx->args[1], ctx->args[2], DIRECTION_RECV);
}

/* --- splice out of a TCP socket ---------------------------------------------------------------------------------------- */

/* tcp_rcv_space_adjust(sk): behind every receive; behind one by splice or sendfile, nothing else is said of it. How much it
 * was is what comes behind the last receive. */
int on_tcp_read(struct bpf_raw_tracepoint_args *ctx) {
	void *sock = (void *)ctx->args[0], *sk = AS(sock, tcp_sock), *file;
	struct call_registers arguments;
	struct shape shape = {.kind = KIND_NO_BYTES, .reason = REASON_SPLICE, .direction = DIRECTION_RECV};
	struct moved moved = {};
	struct connection *connection;
	u32 position, descriptor;

	moved.task = CURRENT_TASK();
	moved.registers = task_registers(moved.task);
	load_call_registers(&arguments, (void *)moved.registers);
	if (arguments.number == CALL_SPLICE)
		descriptor = arguments.first;
	else if (arguments.number == CALL_SENDFILE)
		descriptor = arguments.second;
	else
		return 0;
	moved.pid = LOAD_U32(moved.task, OFFSET_task_struct__tgid);
	moved.inode = find_inode(sk, &file);
	if (moved.pid == AGENT_PID || !moved.inode || is_compat_call(moved.task) ||
	    find_file(moved.task, descriptor) != file)
		return 0;
	position = position_after(sk, DIRECTION_RECV);
	connection = connections.lookup(&moved.inode);
	if (!connection || connection->sk != sock) {
		/* On a new socket everything was read by this call; else it is not known. */
		u32 read = 0;

		if (is_new_socket(moved.inode))
			read = LOAD_U32(sk, OFFSET_tcp_sock__copied_seq) - first_read(sk);

		connection = remember_event(moved.inode, sk, AF_INET, DIRECTION_RECV, read);
		if (!connection)
			return 0;
		connection->count[DIRECTION_RECV] = position - read;
	} else if (!connection->count[DIRECTION_RECV]) {
		connection->count[DIRECTION_RECV] = connection->base[DIRECTION_RECV];
	}
	moved.bytes = position - connection->count[DIRECTION_RECV];
	connection->count[DIRECTION_RECV] = position;
	if (moved.bytes)
		take_call(ctx, &shape, &moved, connection);
	return 0;
}

/* --- mappings -------------------------------------------------------------------------------------------------------- */

/* vm_unmapped_area(address, ...): a place was found for a mapping. Loaders map a whole library before they map those of its
 * parts that are to be executed, at fixed places, which are not told. */
int on_unmapped_area(struct bpf_raw_tracepoint_args *ctx) {
	void *task = CURRENT_TASK(), *file;
	struct call_registers arguments;

	load_call_registers(&arguments, task_registers(task));
	if (arguments.number != CALL_MMAP || !(arguments.fourth & MAP_PRIVATE) || is_compat_call(task) ||
	    LOAD_U32(task, OFFSET_task_struct__tgid) == AGENT_PID)
		return 0;
	file = find_file(task, arguments.fifth);
	if (file)
		send_notice(NOTICE_MAPPED, file, ctx->args[0],
			    (arguments.fourth & MAP_DENYWRITE) || (arguments.third & PROT_EXEC));
	return 0;
}

#endif
#endif
