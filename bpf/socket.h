/* From a file descriptor to its socket: identity, family, ports, addresses, positions.
 *
 * Nothing here needs connect or accept to have been seen: it is all read from the kernel's own structures, whose offsets
 * are -D'd from BTF at start (netprofiler/sources/btf.py: OFFSET_<struct>__<member>).
 */
#ifndef NETPROFILER_SOCKET_H
#define NETPROFILER_SOCKET_H

#define S_IFMT 00170000
#define S_IFSOCK 0140000
#define SOCK_STREAM 1
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262 /* a listener of Go 1.24 or newer has it by default */
#define TCP_ESTABLISHED 1
#define TCP_FIN_WAIT1 4
#define TCP_FIN_WAIT2 5
#define TCP_CLOSE 7
#define TCP_LAST_ACK 9
#define TCP_CLOSING 11
#define SOCK_DONE 1
#define SHUTDOWN_SEND 2
#define SHUTDOWN_BOTH 3

/* sock_common begins with the IPv4 addresses, the ports and the family: one read (checked against BTF by a test). */
struct socket_facts {
	u32 remote_address; /* network order */
	u32 local_address;
	u32 hash;
	u16 remote_port; /* network order */
	u16 local_port;  /* host order */
	u16 family;
	u8 state;
	u8 reserved;
};
#define SOCKET_FACTS_BYTES 20

static __always_inline void *read_pointer(const void *at) {
	void *value = 0;

	copy_from_kernel(&value, sizeof(value), at);
	return value;
}

static __always_inline u32 read_u32(const void *at) {
	u32 value = 0;

	copy_from_kernel(&value, sizeof(value), at);
	return value;
}

static __always_inline u8 read_u8(const void *at) {
	u8 value = 0;

	copy_from_kernel(&value, sizeof(value), at);
	return value;
}

static __always_inline u64 read_u64(const void *at) {
	u64 value = 0;

	copy_from_kernel(&value, sizeof(value), at);
	return value;
}

static __always_inline void *find_file(void *task, u32 descriptor) {
	void *files = (void *)LOAD_U64(task, OFFSET_task_struct__files);
	void *table = (void *)LOAD_U64(files, OFFSET_files_struct__fdt);
	u64 at;

	if (descriptor >= LOAD_U32(table, OFFSET_fdtable__max_fds))
		return 0;
	at = LOAD_U64(table, OFFSET_fdtable__fd) + (u64)descriptor * 8;
#ifdef SOCKET_EVENTS
	return (void *)LOAD_U64(AS(at, list_head), 0); /* some structure that begins with a pointer */
#else
	return read_pointer((void *)at);
#endif
}

/* Members of a TCP sock. */
#ifdef SOCKET_EVENTS
#define SOCK_U32(sk, offset) LOAD_U32(AS(sk, tcp_sock), offset)
#define SOCK_U64(sk, offset) LOAD_U64(AS(sk, tcp_sock), offset)
#define SOCK_U16(sk, offset) LOAD_U16(AS(sk, tcp_sock), offset)
#define SOCK_U8(sk, offset) LOAD_U8(AS(sk, tcp_sock), offset)
#else
#define SOCK_U32(sk, offset) read_u32((sk) + (offset))
#define SOCK_U64(sk, offset) read_u64((sk) + (offset))
#define SOCK_U8(sk, offset) read_u8((sk) + (offset))
#endif

/* The inode number of the socket behind a descriptor, and its struct socket; 0 when it is none (a file, a pipe). */
static __always_inline u64 find_socket(void *task, void **socket, u32 descriptor) {
	void *file = find_file(task, descriptor);
	void *inode;

	if (!file)
		return 0;
#if OFFSET_file__f_inode == OFFSET_file__private_data + 8
	{
		void *both[2] = {};

		copy_from_kernel(both, sizeof(both), file + OFFSET_file__private_data);
		*socket = both[0];
		inode = both[1];
	}
#else
	*socket = read_pointer(file + OFFSET_file__private_data);
	inode = read_pointer(file + OFFSET_file__f_inode);
#endif
#if OFFSET_inode__i_mode == 0 && OFFSET_inode__i_ino <= 64
	{
		u64 start[OFFSET_inode__i_ino / 8 + 1] = {};

		copy_from_kernel(start, sizeof(start), inode);
		return ((u16)start[0] & S_IFMT) == S_IFSOCK ? start[OFFSET_inode__i_ino / 8] : 0;
	}
#else
	{
		u16 mode = 0;

		copy_from_kernel(&mode, sizeof(mode), inode + OFFSET_inode__i_mode);
		return (mode & S_IFMT) == S_IFSOCK ? read_u64(inode + OFFSET_inode__i_ino) : 0;
	}
#endif
}

/* The inode of a sock that is still attached to its socket; 0 when it is not. */
static __always_inline u64 inode_of_sock(const void *sk) {
	void *socket = read_pointer(sk + OFFSET_sock__sk_socket);

	if (!socket)
		return 0;
	return read_u64(socket + OFFSET_socket_alloc__vfs_inode + OFFSET_inode__i_ino);
}

/* SOCK_DONE is set when a FIN arrives (tcp_fin), and not by a reset. */
static __always_inline int fin_received(const void *sk) {
	return (SOCK_U64(sk, OFFSET_sock_common__skc_flags) >> SOCK_DONE) & 1;
}

/* TCP: sequence number after the last byte that this call sent or received. */
static __always_inline u32 position_after(const void *sk, u8 direction) {
	u32 position;

	if (direction == DIRECTION_SEND)
		return SOCK_U32(sk, OFFSET_tcp_sock__write_seq);
	position = SOCK_U32(sk, OFFSET_tcp_sock__copied_seq);
	/* A receive that meets the FIN has counted it (net/ipv4/tcp.c: found_fin_ok). */
	if (SOCK_U8(sk, OFFSET_sock_common__skc_state) != TCP_ESTABLISHED && fin_received(sk) &&
	    position == SOCK_U32(sk, OFFSET_tcp_sock__rcv_nxt))
		position--;
	return position;
}

static __always_inline void map_ipv4(u8 *address, u32 ipv4) {
	__builtin_memset(address, 0, 10);
	address[10] = 0xff;
	address[11] = 0xff;
	__builtin_memcpy(address + 12, &ipv4, 4);
}

/* Everything about the connection into the record. The UNIX path is the listener's: our own name or our peer's. */
static __always_inline void describe(struct opened_record *record, const void *sk) {
	struct socket_facts facts = {};
	u32 length = 0;
	void *address, *net;

	copy_from_kernel(&facts, SOCKET_FACTS_BYTES, sk);
	record->family = facts.family;
	record->local_port = facts.local_port;
	record->remote_port = __builtin_bswap16(facts.remote_port);
	net = read_pointer(sk + OFFSET_sock_common__skc_net);
	record->network_namespace = read_u32(net + OFFSET_net__ns + OFFSET_ns_common__inum);
	record->path_length = 0;
	if (facts.family == AF_INET) {
		map_ipv4(record->local_address, facts.local_address);
		map_ipv4(record->remote_address, facts.remote_address);
	} else if (facts.family == AF_INET6) {
		copy_from_kernel(record->local_address, 16, sk + OFFSET_sock_common__skc_v6_rcv_saddr);
		copy_from_kernel(record->remote_address, 16, sk + OFFSET_sock_common__skc_v6_daddr);
	} else {
		record->local_port = 0;
		record->remote_port = 0;
		address = read_pointer(sk + OFFSET_unix_sock__addr);
		if (!address) {
			void *peer = read_pointer(sk + OFFSET_unix_sock__peer);

			if (peer)
				address = read_pointer(peer + OFFSET_unix_sock__addr);
		}
		if (address) {
			length = read_u32(address + OFFSET_unix_address__len);
			if (length > 2 && length <= 2 + UNIX_PATH_BYTES) {
				record->path_length = length - 2; /* behind sun_family */
				copy_from_kernel(record->path, UNIX_PATH_BYTES,
						 address + OFFSET_unix_address__name + 2);
			}
		}
	}
}

#endif
