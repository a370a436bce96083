/* Plaintext where the TLS libraries have it: what a session wrote or read, and on which socket.
 *
 * One program behind every probe; its cookie says what the instruction tells (netprofiler/sources/probes.py). From the
 * socket on all is as behind sys_exit: filters, verdict, copy, ledger (syscalls.h). Never a guess: a session's socket is known
 * by the random of its ClientHello, which passed in the clear; by the descriptor in its socket BIO or *net.TCPConn; or by the
 * system calls that were made inside of a call on it. Where none of them tells, the plaintext goes up without addresses.
 */
#ifndef NETPROFILER_TLS_H
#define NETPROFILER_TLS_H

#ifdef NO_COOKIES
static __always_inline u64 get_attach_cookie(void *ctx) {
	u32 zero = 0;
	u64 *cookie = probe_cookie.lookup(&zero);

	return cookie ? *cookie : 0;
}
#else
static u64 (*get_attach_cookie)(void *) = (void *)174; /* BPF_FUNC_get_attach_cookie, Linux 5.15 */
#endif

#define PURPOSE_ENTER 1
#define PURPOSE_LEAVE 2
#define PURPOSE_FREE 3
#define PURPOSE_GO_WRITE 4
#define PURPOSE_GO_READ 5
#define PURPOSE_GO_DECRYPTED 6
#define PURPOSE_GO_READ_CALL 7
#define PURPOSE_GO_READ_RETURN 8
#define PURPOSE_GO_HANDSHAKE 9

#define TLS_CALL_WRITE 1
#define TLS_CALL_READ 2
#define TLS_CALL_OTHER 3
#define TLS_CALL_SENDFILE 4
#define TLS_CALL_WRITE_VECTOR 5

#define RESULT_AX 1
#define RESULT_STACK 2
#define RESULT_POINTER 3
#define RESULT_AX_LONG 4

#define HANDSHAKE 22
#define APPLICATION_DATA 23
#define CLIENT_HELLO 1
#define SERVER_HELLO 2
#define BIO_TYPE_SOCKET 0x505
#define BIO_TYPE_MEMORY 0x401 /* Node's and Apache's own as well */
#define GNUTLS_E_INTERRUPTED -52
#define GNUTLS_E_AGAIN -28
#define GNUTLS_RECORD_BYTES 16384

struct probe_hit {
	struct probe_registers registers;
	struct tls_layout *layout;
	void *task;
	u32 pid;
	u32 tid;
	u16 layout_index;
	s16 displacement;
	u8 purpose;
	u8 call;
	u8 result;
};

/* What a call has moved; nothing while `length` is 0. */
struct plaintext {
	u64 session;
	u64 inode; /* of its socket; 0: not known */
	u64 buffer;
	u64 length;
	u64 ended; /* number of the socket whose plaintext the peer has ended */
	struct connection *connection; /* of `inode`, where it was looked up already */
	u32 count; /* KIND_VECTOR: how many segments */
	u8 named; /* nothing of it was missed: its position means something */
	u8 direction;
	u8 kind;
};

static __always_inline u64 read_user_u64(u64 at) {
	u64 value = 0;

	copy_from_user(&value, sizeof(value), (void *)at);
	return value;
}

static __always_inline u32 read_user_u32(u64 at) {
	u32 value = 0;

	copy_from_user(&value, sizeof(value), (void *)at);
	return value;
}

static __always_inline void count_found(u32 way) {
	u32 zero = 0;
	struct tls_counters *counters = tls_counts.lookup(&zero);

	if (counters && way < FOUND_WAYS)
		lock_xadd(&counters->found[way], 1);
}

/* --- which socket -------------------------------------------------------------------------------------------------- */

/* The descriptor's socket, remembered as a connection. */
static __always_inline u64 socket_of_descriptor(const struct probe_hit *hit, u32 descriptor) {
	void *socket, *sk;
	u64 inode = find_socket(hit->task, &socket, descriptor);

	if (inode && !connections.lookup(&inode)) {
		sk = stream_sock(socket);
#ifdef SOCKET_EVENTS
		/* A handshake begins before the first call on its socket. */
		if (!sk || !remember_event(inode, AS(sk, tcp_sock), SOCK_U16(sk, OFFSET_sock_common__skc_family),
					   DIRECTION_RECV, 0))
			return 0;
#else
		if (!sk || !remember(inode, sk, ROLE_UNKNOWN, 0))
			return 0;
#endif
	}
	return inode;
}

static __always_inline u64 client_random(const struct probe_hit *hit, u64 session) {
	const struct tls_layout *layout = hit->layout;

	if (layout->random == ABSENT)
		return 0;
	if (layout->random_pointer != ABSENT) {
		session = read_user_u64(session + layout->random_pointer);
		if (!session)
			return 0;
	}
	return read_user_u64(session + layout->random);
}

static __always_inline u64 socket_of_hello(const struct probe_hit *hit, u64 session, u64 random) {
	struct tls_hello hello = {.random = random, .pid = hit->pid};
	u64 *socket;

	if (!random || hit->layout->server == ABSENT)
		return 0;
	hello.direction = read_user_u32(session + hit->layout->server) ? DIRECTION_RECV : DIRECTION_SEND;
	socket = tls_hellos.lookup(&hello);
	return socket ? *socket : 0;
}

/* OpenSSL: the type of rbio, and its descriptor. */
static __always_inline u32 read_bio(const struct probe_hit *hit, u64 session, u32 *descriptor) {
	const struct tls_layout *layout = hit->layout;
	u64 bio;

	if (layout->read_bio == ABSENT || layout->bio_method == ABSENT || layout->bio_number == ABSENT)
		return 0;
	bio = read_user_u64(session + layout->read_bio);
	if (!bio)
		return 0;
	*descriptor = read_user_u32(bio + layout->bio_number);
	return read_user_u32(read_user_u64(bio + layout->bio_method));
}

static __always_inline int is_tls_socket(u64 inode) {
	struct connection *connection = connections.lookup(&inode);

	/* Joined late, two calls have to begin as records do before it is for good; inside of a TLS call, one will do. */
	return connection && (connection->verdict == VERDICT_TLS ||
			      (connection->verdict == VERDICT_UNDECIDED && connection->records));
}

/* C: the socket of the session of a call that has just ended; 0: not known. `inside`: of the system calls in it. */
static __always_inline u64 find_session_socket(const struct probe_hit *hit, u64 session, u64 inside, u8 call, u8 *named,
					       u8 unknown_bytes) {
	struct tls_session_id id = {.session = session, .pid = hit->pid};
	struct tls_session fresh = {}, *known = tls_sessions.lookup(&id);
	u64 random = client_random(hit, session), socket = 0;
	u32 descriptor = 0, bio, way = FOUND_SESSION;

	if (inside == NO_SOCKET)
		inside = 0;
	*named = 1;
	if (known && known->socket && known->random == random && (!inside || inside == known->socket || random)) {
		socket = known->socket;
		if (connections.lookup(&socket)) {
			*named = !known->missed;
			count_found(way);
			return socket;
		}
		socket = 0;
	}
	if (known && known->random == random)
		fresh.missed = known->missed;
	socket = socket_of_hello(hit, session, random);
	way = FOUND_HELLO;
	if (!socket) {
		bio = read_bio(hit, session, &descriptor);
		if (bio == BIO_TYPE_SOCKET) {
			socket = socket_of_descriptor(hit, descriptor);
			way = FOUND_DESCRIPTOR;
		} else if (inside && is_tls_socket(inside) && (bio != BIO_TYPE_MEMORY || call == TLS_CALL_READ)) {
			/* What runs inside of a call on a memory BIO (a callback) may send elsewhere, but does not receive. */
			socket = inside;
			way = FOUND_CALL;
		}
	}
	if (!socket) {
		if (unknown_bytes) {
			count_found(FOUND_NOT);
			fresh.missed = 1;
			fresh.random = random;
			tls_sessions.update(&id, &fresh);
		}
		*named = 0;
		return 0;
	}
	if (unknown_bytes)
		count_found(way);
	fresh.socket = socket;
	fresh.random = random;
	*named = !fresh.missed;
	tls_sessions.update(&id, &fresh);
	return socket;
}

/* Go: conn is a net.Conn (an interface: itab and data). When it is a *net.TCPConn, its descriptor is in reach. */
static __always_inline u64 go_socket(const struct probe_hit *hit, u64 conn, s64 type_from_here) {
	u64 interface[2] = {}, descriptor_at;

	if (!type_from_here || copy_from_user(interface, sizeof(interface), (void *)conn) || !interface[0])
		return 0;
	if (read_user_u64(interface[0] + hit->layout->conn_itab_type) != hit->registers.address + type_from_here)
		return 0;
	descriptor_at = read_user_u64(interface[1]);
	if (!descriptor_at)
		return 0;
	return socket_of_descriptor(hit, read_user_u32(descriptor_at + hit->layout->descriptor));
}

/* Go has no random to tell a session by; this tells a process from one that has its pid, or has had it before an exec. */
static __always_inline u64 identity_of_process(const struct probe_hit *hit) {
	void *leader = (void *)LOAD_U64(hit->task, OFFSET_task_struct__group_leader);

	return LOAD_U64(leader, OFFSET_task_struct__start_boottime) +
	       LOAD_U64(leader, OFFSET_task_struct__self_exec_id);
}

static __always_inline void go_remember(const struct probe_hit *hit, u64 conn, u64 inode) {
	struct tls_session_id id = {.session = conn, .pid = hit->pid};
	struct tls_session fresh = {.socket = inode, .random = identity_of_process(hit)};

	tls_sessions.update(&id, &fresh);
}

/* What was remembered of this conn: until its hello, where GO_HANDSHAKE is, for then no conn begins unseen. */
static __always_inline u64 go_remembered(const struct probe_hit *hit, u64 conn) {
	struct tls_session_id id = {.session = conn, .pid = hit->pid};
	struct tls_session *known = tls_sessions.lookup(&id);

	return known && known->random == identity_of_process(hit) ? known->socket : 0;
}

/* Go, another net.Conn: the socket that its handshake was on, or that of the system calls `inside` of this read. */
static __always_inline u64 go_session_socket(const struct probe_hit *hit, u64 conn, u64 inside, u8 *named) {
	u64 known = go_remembered(hit, conn);

	if (inside && inside != NO_SOCKET) {
		if (known != inside)
			go_remember(hit, conn, inside);
		count_found(FOUND_CALL);
		return inside;
	}
	if (known && connections.lookup(&known)) {
		count_found(FOUND_SESSION);
		return known;
	}
	count_found(FOUND_NOT);
	*named = 0;
	return 0;
}

/* --- plaintext ------------------------------------------------------------------------------------------------------ */

/* The connection inside of a socket: what it speaks is decided anew. */
static __always_inline struct connection *remember_plaintext(const struct probe_hit *hit, u64 inside, u64 inode,
							     u8 named) {
	struct connection new = {}, *outside = inode ? connections.lookup(&inode) : 0;

	new.library = hit->layout->library;
	if (outside) {
		new.sk = outside->sk;
		new.role = outside->role;
		new.filtered = outside->filtered;
		outside->library = new.library; /* its session is known: no need to watch its system calls for that */
		new.fresh = outside->fresh && outside->since_ns >= hit->layout->attached_ns &&
			    hit->layout->attached_ns &&named;
		if (new.fresh && outside->tcp) {
			/* Early data is written before anything is sent. */
			new.named = 1;
			new.count[DIRECTION_SEND] = outside->based ? outside->base[DIRECTION_SEND]
								   : position_after(outside->sk, DIRECTION_SEND);
			new.count[DIRECTION_RECV] = outside->based ? outside->base[DIRECTION_RECV]
								   : position_after(outside->sk, DIRECTION_RECV);
		}
	}
	/* Here, before anything is counted: both directions may begin at once, in two threads. */
	new.based = 1;
	new.base[DIRECTION_SEND] = new.count[DIRECTION_SEND];
	new.base[DIRECTION_RECV] = new.count[DIRECTION_RECV];
	connections.insert(&inside, &new); /* another thread may have, meanwhile: HTTP/2's two ends speak at once */
	return connections.lookup(&inside);
}

/* The number under which a session's plaintext goes: its socket's, or one of its own. */
static __always_inline u64 socket_number(const struct probe_hit *hit, u64 session, u64 inode) {
	if (inode)
		return inode | SOCKET_TLS;
	return SOCKET_TLS | SOCKET_UNKNOWN | (session >> 4 & ((1ULL << 43) - 1)) | (u64)(hit->pid & 0x7ffff) << 43;
}

static __always_inline void end_plaintext(u64 inside) {
	struct connection *connection = connections.lookup(&inside);

	if (connection && connection->owner)
		send_closed(inside, bpf_ktime_get_ns(), DIRECTION_RECV, 0, connection->count[DIRECTION_RECV]);
}

/* Plaintext that was written or read goes on to the other programs. */
static __always_inline void emit(struct pt_regs *ctx, const struct probe_hit *hit, const struct plaintext *plaintext) {
	u64 inside = socket_number(hit, plaintext->session, plaintext->inode), length = plaintext->length;
	u8 direction = plaintext->direction, kind = plaintext->kind, first;
	struct connection *connection;
	struct place place = {};
	struct ledger *ledger;
	struct call *call;

	if (length > 0x7fffffff)
		return;
	connection = plaintext->connection ? plaintext->connection : connections.lookup(&inside);
	first = !connection;
	if (first)
		connection = remember_plaintext(hit, inside, plaintext->inode, plaintext->named);
	if (!connection)
		return;
	if (!take_place(&place)) {
		u32 zero = 0;
		struct tls_counters *counters = tls_counts.lookup(&zero);

		if (counters) {
			lock_xadd(&counters->crowded, 1);
			lock_xadd(&counters->crowded_bytes, length);
		}
		lock_xadd(&connection->count[direction & 1], (u32)length);
		return;
	}
	ledger = place.ledger;
	account(ledger, ROW_TOTAL, 1, length);
	call = &place.w->call;
	call->first_position = connection->count[direction & 1];
	lock_xadd(&connection->count[direction & 1], (u32)length);
#ifdef FILTER_PORT
	/* Where the socket is not known, neither is its port. */
	if (connection->filtered || !plaintext->inode) {
		account(ledger, ROW_FILTERED, 1, length);
		goto done;
	}
#endif
	if (connection->verdict > VERDICT_HTTP2) {
		account(ledger, uncopied_row(connection), 1, length);
		goto done;
	}
	call->time_ns = bpf_ktime_get_ns();
	call->pid = hit->pid;
	call->tid = hit->tid;
	if (first && plaintext->inode)
		send_handshake_record(place.w, ledger, plaintext->inode, direction,
				      0); /* it is read, whatever it speaks */
	begin_call(call, inside, length, direction);
	call->kind = kind;
	call->reason = kind == KIND_NO_BYTES ? REASON_SENDFILE : REASON_NONE;
	call->probe = 1;
	call->second = plaintext->buffer;
	call->third = 0;
	call->count = plaintext->count;
	probe_programs.call(ctx, is_http(connection) ? PROGRAM_HTTP : PROGRAM_JUDGE);
	account(ledger, ROW_LOST, 1, length);
done:
	give_back(&place);
}

static __always_inline struct tls_call *first_call(struct tls_caller *caller) {
	u32 zero = 0;
	struct tls_call *nothing = no_calls.lookup(&zero);

	if (!nothing)
		return 0;
	tls_calls.update(caller, nothing);
	return tls_calls.lookup(caller);
}

/* --- C libraries ---------------------------------------------------------------------------------------------------- */

static __always_inline void on_enter(const struct probe_hit *hit, u64 id) {
	struct tls_caller caller = {.id = id, .pid = hit->pid};
	struct tls_call *calls = tls_calls.lookup(&caller);
	struct tls_frame *frame;
	u64 depth;
	u32 i;

	if (!calls) {
		calls = first_call(&caller);
		if (!calls)
			return;
	}
	depth = calls->depth;
	/* Calls that were left by a longjmp or an exception lie deeper in the stack than this one. */
#pragma clang loop unroll(disable)
	for (i = 0; i < FRAMES; i++) {
		if (depth > 0 && calls->frames[(depth - 1) & (FRAMES - 1)].stack <= hit->registers.stack)
			depth--;
	}
	if (depth >= FRAMES)
		depth = 0; /* too deep: begin again */
	frame = &calls->frames[depth & (FRAMES - 1)];
	frame->session = hit->registers.first;
	frame->buffer = hit->registers.second;
	frame->length = hit->registers.third;
	frame->counted = hit->registers.fourth;
	frame->stack = hit->registers.stack;
	frame->socket = 0;
	frame->layout = hit->layout_index;
	frame->call = hit->call;
	calls->depth = depth + 1;
}

static __always_inline u64 count_of(const struct probe_hit *hit, const struct tls_frame *frame, s64 *error) {
	int result = hit->registers.result;
	u64 length = 0;

	if (hit->result == RESULT_AX_LONG) {
		s64 wide = hit->registers.result;

		if (wide < 0)
			*error = wide;
		return wide > 0 ? wide : 0;
	}
	if (result <= 0)
		return 0;
	if (hit->result == RESULT_AX)
		return result;
	if (hit->result == RESULT_STACK)
		length = read_user_u64(hit->registers.stack + hit->displacement);
	else if (hit->result == RESULT_POINTER)
		length = read_user_u64(frame->counted);
	return length;
}

/* GnuTLS has taken the data of a call that ends in EAGAIN: it will be asked again with the same data, or with none. */
static __always_inline u64 committed_once(const struct probe_hit *hit, const struct tls_frame *frame, u64 length,
					  s64 error) {
	struct tls_session_id id = {.session = frame->session, .pid = hit->pid};
	struct tls_session *session;

	if (hit->layout->library != LIBRARY_GNUTLS || frame->call != TLS_CALL_WRITE)
		return length;
	session = tls_sessions.lookup(&id);
	if (!session)
		return length;
	if (error == GNUTLS_E_AGAIN || error == GNUTLS_E_INTERRUPTED) {
		if (session->committed || !frame->buffer)
			return 0;
		session->committed = 1;
		return frame->length < GNUTLS_RECORD_BYTES ? frame->length : GNUTLS_RECORD_BYTES;
	}
	if (session->committed) {
		session->committed = 0;
		return 0;
	}
	return length;
}

static __always_inline void on_leave(const struct probe_hit *hit, struct plaintext *plaintext) {
	struct tls_caller caller = {.id = hit->tid, .pid = hit->pid};
	struct tls_call *calls = tls_calls.lookup(&caller);
	struct tls_frame frame = {};
	u64 depth, length, inode;
	s64 error = 0;
	u8 named, moves, found = 0;
	u32 i;

	depth = calls ? calls->depth : 0;
#pragma clang loop unroll(disable)
	for (i = 0; calls && i < FRAMES; i++) {
		struct tls_frame *at = &calls->frames[(depth - 1) & (FRAMES - 1)];

		if (!depth)
			break;
		depth--;
		if (at->layout == hit->layout_index && at->call == hit->call) {
			found = 1;
			break;
		}
	}
	if (!found) {
		/* The call began before the probes were there. */
		if (hit->call != TLS_CALL_OTHER && (int)hit->registers.result > 0)
			count_found(FOUND_NOT);
		return;
	}
	calls->depth = depth;
	__builtin_memcpy(&frame, &calls->frames[depth & (FRAMES - 1)], sizeof(frame));
	if (!frame.session)
		return;
	length = frame.call == TLS_CALL_OTHER ? 0 : count_of(hit, &frame, &error);
	if (depth > 0) {
		struct tls_frame *outer = &calls->frames[(depth - 1) & (FRAMES - 1)];

		if (outer->session == frame.session) {
			/* The outer call's system calls are those of the inner one. */
			if (!outer->socket)
				outer->socket = frame.socket;
			/* gnutls_record_uncork writes again what was written while it was corked. */
			if (outer->call == TLS_CALL_OTHER && hit->layout->library == LIBRARY_GNUTLS)
				length = 0;
		}
	}
	length = committed_once(hit, &frame, length, error);
	moves = length > 0;
	inode = find_session_socket(hit, frame.session, frame.socket, frame.call, &named, moves);
	if (!moves) {
		/* The peer has said that it sends no more. (The calls that count by a pointer do not tell it from "try again".) */
		if (frame.call == TLS_CALL_READ && frame.length && !hit->registers.result &&
		    hit->result != RESULT_POINTER)
			plaintext->ended = socket_number(hit, frame.session, inode);
		return;
	}
	/* NSPR's calls are for every descriptor: what is not on a TLS socket is no plaintext of TLS. */
	if (hit->layout->library == LIBRARY_NSS && (!inode || !is_tls_socket(inode)))
		return;
	plaintext->session = frame.session;
	plaintext->inode = inode;
	plaintext->named = named;
	plaintext->direction = frame.call == TLS_CALL_READ ? DIRECTION_RECV : DIRECTION_SEND;
	plaintext->kind = frame.call == TLS_CALL_SENDFILE       ? KIND_NO_BYTES
			  : frame.call == TLS_CALL_WRITE_VECTOR ? KIND_VECTOR
								: KIND_BUFFER;
	plaintext->count = frame.length;
	plaintext->buffer = frame.buffer;
	plaintext->length = length;
}

/* The session is gone: its address may become that of another one. */
static __always_inline void forget_session(const struct probe_hit *hit, u64 session) {
	struct tls_session_id id = {.session = session, .pid = hit->pid};
	u64 unknown = socket_number(hit, id.session, 0);
	struct connection *connection = connections.lookup(&unknown);

	tls_sessions.delete(&id);
	if (connection) {
		send_closed(unknown, bpf_ktime_get_ns(), DIRECTION_BOTH, 1, connection->count[DIRECTION_SEND]);
		connections.delete(&unknown);
		controls.delete(&unknown);
	}
}

/* --- Go ------------------------------------------------------------------------------------------------------------- */

#define GO_DESCRIPTOR 1 /* tls_frame.call: `socket` is that of the conn's descriptor */

/* From here on the goroutine is in a call that reads from this conn; `inode`: its descriptor's. */
static __always_inline void go_enter(const struct probe_hit *hit, u64 conn, u64 inode, u64 buffer) {
	struct tls_caller caller = {.id = hit->registers.goroutine, .pid = hit->pid};
	struct tls_call *call = tls_calls.lookup(&caller);

	if (!inode) {
		u32 pid = hit->pid;
		u8 one = 1;

		wrapped_processes.update(&pid, &one);
	}
	if (!call) {
		call = first_call(&caller);
		if (!call)
			return;
	}
	/* TLS inside of TLS in one goroutine: the outer conn's read comes later, and is taken anew for each record. */
	call->frames[0].session = conn;
	call->frames[0].buffer = buffer;
	call->frames[0].socket = inode;
	call->frames[0].call = inode ? GO_DESCRIPTOR : 0;
	call->depth = 1;
}

/* It has read `length` bytes, or a record of the handshake (0). */
static __always_inline void go_received(const struct probe_hit *hit, struct plaintext *plaintext, u64 buffer,
					u64 length) {
	struct tls_caller caller = {.id = hit->registers.goroutine, .pid = hit->pid};
	struct tls_call *call = tls_calls.lookup(&caller);

	if (!call || !call->depth)
		return;
	call->depth = 0;
	plaintext->session = call->frames[0].session;
	plaintext->inode = call->frames[0].socket;
	plaintext->buffer = buffer ? buffer : call->frames[0].buffer;
	plaintext->length = length;
	if (call->frames[0].call == GO_DESCRIPTOR)
		count_found(FOUND_DESCRIPTOR);
	else
		plaintext->inode = go_session_socket(hit, plaintext->session, plaintext->inode, &plaintext->named);
}

/* A record of the handshake. With a hello a session begins: what is known of the conn's address is of another one, unless the
 * system calls tell. Nothing is read ahead before the first record, so it came by those that the goroutine has made since it
 * began to read this message. A socket whose plaintext is read already is that of a TLS outside of this one. */
static __always_inline void go_hello(const struct probe_hit *hit, u64 conn, u64 inode, u64 message, u64 length) {
	struct tls_caller caller = {.id = hit->registers.goroutine, .pid = hit->pid};
	struct connection *outside;
	struct tls_call *call;
	u64 inside;
	u8 head[6] = {}; /* type, length (3 bytes), version */

	if (length < sizeof(head) || copy_from_user(head, sizeof(head), (void *)message))
		return;
	if ((head[0] != CLIENT_HELLO && head[0] != SERVER_HELLO) || head[1] || head[4] != 3)
		return;
	forget_session(hit, conn);
	call = inode ? 0 : tls_calls.lookup(&caller);
	if (call && call->depth && call->frames[0].session == conn) {
		call->depth = 0;
		inside = call->frames[0].socket;
		outside = connections.lookup(&inside);
		if (outside && !outside->library && is_tls_socket(inside))
			go_remember(hit, conn, inside);
	}
}

static __always_inline void on_go(const struct probe_hit *hit, struct plaintext *plaintext) {
	const struct probe_registers *registers = &hit->registers;
	u64 conn = registers->go[0], buffer = registers->go[1], length = 0;
	s64 type = hit->layout->conn_type_from_read;

	plaintext->direction = DIRECTION_RECV;
	switch (hit->purpose) {
	case PURPOSE_GO_WRITE:
		plaintext->direction = DIRECTION_SEND;
		type = hit->layout->conn_type_from_write;
		length = registers->go[2];
		if (!length)
			return;
		break;
	case PURPOSE_GO_HANDSHAKE:
		type = hit->layout->conn_type_from_handshake;
		break;
	case PURPOSE_GO_DECRYPTED:
		buffer = registers->go[0];
		if ((u8)registers->go[3] == APPLICATION_DATA && !registers->go[4])
			length = registers->go[1];
		if (!hit->displacement) {
			go_received(hit, plaintext, buffer, length);
			return;
		}
		if (!length && ((u8)registers->go[3] != HANDSHAKE || registers->go[4]))
			return;
		conn = read_user_u64(registers->stack + hit->displacement);
		if (!conn)
			return;
		break;
	case PURPOSE_GO_READ_RETURN:
		go_received(hit, plaintext, 0, (s64)registers->go[0] > 0 ? registers->go[0] : 0);
		return;
	}
	plaintext->session = conn;
	plaintext->buffer = buffer;
	plaintext->length = length;
	if (length && hit->layout->conn_type_from_handshake) {
		u64 known = go_remembered(hit, conn), inside = known | SOCKET_TLS;

		/* It goes when the socket does. */
		plaintext->connection = known ? connections.lookup(&inside) : 0;
		if (plaintext->connection) {
			count_found(FOUND_SESSION);
			plaintext->inode = known;
			return;
		}
	}
	plaintext->inode = go_socket(hit, conn, type);
	if (hit->purpose == PURPOSE_GO_HANDSHAKE) {
		if (!plaintext->inode)
			go_enter(hit, conn, 0, 0);
	} else if (hit->purpose == PURPOSE_GO_READ || hit->purpose == PURPOSE_GO_READ_CALL) {
		go_enter(hit, conn, plaintext->inode, hit->purpose == PURPOSE_GO_READ ? 0 : buffer);
	} else if (!length) {
		go_hello(hit, conn, plaintext->inode, buffer, registers->go[1]);
	} else if (plaintext->inode) {
		count_found(FOUND_DESCRIPTOR);
		if (hit->layout->conn_type_from_handshake)
			go_remember(hit, conn, plaintext->inode);
	} else {
		plaintext->inode = go_session_socket(hit, conn, 0, &plaintext->named);
	}
}

/* --- the program ---------------------------------------------------------------------------------------------------- */

int on_probe(struct pt_regs *ctx) {
	struct probe_hit hit = {};
	struct plaintext plaintext = {.kind = KIND_BUFFER, .named = 1};
	u64 cookie = get_attach_cookie(ctx), thread = bpf_get_current_pid_tgid();
	u32 index = cookie >> 48;

	read_probe_registers(&hit.registers, ctx);
	hit.pid = thread >> 32;
	hit.tid = thread;
	if (hit.pid == AGENT_PID)
		return 0;
#ifdef FILTER_PROCESS
	if (!current_watched(hit.pid))
		return 0;
#endif
	hit.layout = tls_layouts.lookup(&index);
	if (!hit.layout)
		return 0;
	hit.task = CURRENT_TASK();
	hit.layout_index = index;
	hit.purpose = cookie;
	hit.call = cookie >> 8;
	hit.result = cookie >> 16;
	hit.displacement = cookie >> 32;
	switch (hit.purpose) {
	case PURPOSE_ENTER:
		on_enter(&hit, hit.tid);
		return 0;
	case PURPOSE_LEAVE:
		on_leave(&hit, &plaintext);
		break;
	case PURPOSE_FREE:
		forget_session(&hit, hit.registers.first);
		return 0;
	default:
		on_go(&hit, &plaintext);
		break;
	}
	if (plaintext.length)
		emit(ctx, &hit, &plaintext);
	else if (plaintext.ended)
		end_plaintext(plaintext.ended);
	return 0;
}

#endif
