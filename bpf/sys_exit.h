/* Calls as they leave the kernel: raw tracepoint sys_exit, which is there on every kernel that we run on.
 *
 * Where a tracepoint on system calls is attached, every system call of every process takes a longer way in and out of the
 * kernel (0.1 us, docs/benchmarks.md), whatever the program then does: used where socket_events.h cannot be.
 */
#ifndef NETPROFILER_SYS_EXIT_H
#define NETPROFILER_SYS_EXIT_H
#ifndef SOCKET_EVENTS

/* connect and accept: from here on we know the connection from its first byte, and who is the client. */
static __always_inline int on_opened(void *task, u32 descriptor, u8 role) {
	void *socket, *sk;
	u64 inode = find_socket(task, &socket, descriptor);

	sk = inode ? stream_sock(socket) : 0;
	if (sk)
		remember(inode, sk, role, 1);
	return 0;
}

static __always_inline int on_shutdown(void *task, u32 descriptor, u64 how) {
	u8 direction = how == 0 ? DIRECTION_RECV : how == 1 ? DIRECTION_SEND : DIRECTION_BOTH;
	void *socket;
	u64 inode = find_socket(task, &socket, descriptor);
	struct connection *connection = inode ? connections.lookup(&inode) : 0;

	/* TCP: see on_set_state. */
	if (connection && !connection->tcp && connection->owner && how <= SHUTDOWN_BOTH - 1)
		send_closed(inode, bpf_ktime_get_ns(), direction, 0, connection->count[how == 0]);
	return 0;
}

/* mmap of a file that is to be executed. */
static __always_inline int on_mapping(u64 address, u64 protection, u32 descriptor) {
	void *file;

	if (!(protection & PROT_EXEC))
		return 0;
	file = find_file(CURRENT_TASK(), descriptor);
	if (file)
		send_notice(NOTICE_MAPPED, file, address, 1);
	return 0;
}

/* What a call moved, and in how many segments or messages. */
struct messages {
	u64 bytes;
	u64 segments;
};

/* The result of sendmmsg and recvmmsg is a count of messages; their lengths stand behind each. */
static __always_inline void add_messages(struct messages *to, u64 at, u32 count) {
	struct messages sum = {.segments = count};
	u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < MESSAGES_MAX; i++) {
		u32 length = 0;

		if (i >= count)
			break;
		copy_from_user(&length, sizeof(length), (void *)at + (u64)i * MESSAGE_BYTES + MESSAGE_LENGTH);
		sum.bytes += length;
	}
	/* So that verifiers know nothing of either: else they look at all that follows once for each number of messages. */
	copy_from_kernel(to, sizeof(*to), &sum);
}

int on_sys_exit(struct bpf_raw_tracepoint_args *ctx) {
	long result = (long)ctx->args[1];
	void *task, *socket, *sk;
	struct call_registers arguments = {};
	struct shape shape;
	struct moved moved = {};
	struct connection *connection;
	struct messages messages;
	u32 pid;
	u64 inode;

	if (result < 0 && result != -EINPROGRESS)
		return 0;
	read_call_registers(&arguments, (const void *)ctx->args[0]);
	if (!find_shape(&arguments, &shape)) {
		if (arguments.number != CALL_MMAP && arguments.number != CALL_CONNECT &&
		    arguments.number != CALL_ACCEPT && arguments.number != CALL_ACCEPT4 &&
		    arguments.number != CALL_SHUTDOWN)
			return 0;
		task = CURRENT_TASK();
		if (LOAD_U32(task, OFFSET_task_struct__tgid) == AGENT_PID)
			return 0;
		if (arguments.number == CALL_CONNECT)
			return on_opened(task, shape.descriptor, ROLE_CLIENT);
		if (result < 0)
			return 0;
		if (arguments.number == CALL_MMAP)
			return on_mapping(result, arguments.third, arguments.fifth);
		if (arguments.number == CALL_SHUTDOWN)
			return on_shutdown(task, shape.descriptor, shape.at);
		return on_opened(task, result, ROLE_SERVER);
	}
	if (result < 0 || (shape.flags & (MSG_PEEK | MSG_ERRQUEUE)))
		return 0;
	messages.bytes = result;
	messages.segments = shape.kind == KIND_MESSAGE ? 1 : arguments.third;
	if (shape.kind == KIND_MESSAGES)
		add_messages(&messages, shape.at, result);
	task = CURRENT_TASK();
	pid = LOAD_U32(task, OFFSET_task_struct__tgid);
	if (pid == AGENT_PID)
		return 0;
	inode = find_socket(task, &socket, shape.descriptor);
	if (!inode && arguments.number == CALL_SPLICE) {
		/* One of the two is the socket. */
		shape.direction = DIRECTION_RECV;
		inode = find_socket(task, &socket, arguments.first);
	}
	if (!inode)
		return 0;
	connection = connections.lookup(&inode);
	if (!connection) {
		sk = messages.bytes ? stream_sock(socket) : 0;
		connection = sk ? remember(inode, sk, ROLE_UNKNOWN, 0) : 0;
		if (!connection)
			return 0;
	}
	if (is_compat_call(task))
		return 0;
	moved.task = task;
	moved.registers = (const void *)ctx->args[0];
	moved.inode = inode;
	moved.third = arguments.third;
	moved.pid = pid;
	moved.bytes = messages.bytes;
	moved.segments = messages.segments;
	take_call(ctx, &shape, &moved, connection);
	return 0;
}

#endif
#endif
