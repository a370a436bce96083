/* The ABI between the kernel side and the user side: what a raw record looks like.
 *
 * netprofiler/wire.py is the only mirror of this file; tests/unit/test_wire.py compiles it and compares every offset.
 * Rules: fixed-width members, padding written out, 8-byte alignment, little surprise. Any change raises ABI_VERSION.
 * Times are CLOCK_MONOTONIC nanoseconds. Ports are in host order, addresses in network order, 16 bytes each
 * (IPv4 as IPv4-mapped IPv6).
 */
#ifndef NETPROFILER_EVENTS_H
#define NETPROFILER_EVENTS_H

#define ABI_VERSION 3

/* record_header.kind; from RECORD_USER on they are made by the user side and never come from the kernel. */
#define RECORD_OPENED 1
#define RECORD_DATA 2
#define RECORD_CLOSED 3
#define RECORD_PROCESS 4
#define RECORD_HANDSHAKE                                                                                               \
	5 /* a data_record: the first bytes of a TLS connection, as they are on the socket; none: its
			    * plaintext is read */
#define RECORD_USER 128
#define RECORD_PASSIVE 128 /* an opened_record: a connection seen from outside, in a packet capture; nobody's socket */

#define DIRECTION_SEND 0
#define DIRECTION_RECV 1
#define DIRECTION_BOTH 2

/* A TLS connection has two identities: that of its socket (its inode), and with this bit that of the plaintext inside. */
#define SOCKET_TLS (1ULL << 63)
/* With SOCKET_TLS: the socket is not known; the other bits are made of process and session. */
#define SOCKET_UNKNOWN (1ULL << 62)

/* opened_record.library, as in netprofiler/sources/probes.py; 0: the bytes are the socket's own */
#define LIBRARY_GO 1
#define LIBRARY_OPENSSL 2
#define LIBRARY_BORINGSSL 3
#define LIBRARY_GNUTLS 4
#define LIBRARY_NSS 5

/* data_record.flags */
#define DATA_FIRST 1 /* the first record of its system call */
#define DATA_FILE 2 /* the payload is a file_source, not bytes of the stream */

#define DATA_AFTER_LOSS 4 /* what is missing before it in this direction found the ring full */

/* data_record.reason: why `captured` is less than `length` */
#define REASON_NONE 0
#define REASON_OVER_LIMIT 1 /* more than is copied of one call, or in a part that the user side said to skip */
#define REASON_SENDFILE 2
#define REASON_SPLICE 3
#define REASON_UNREADABLE 4 /* not readable memory, data that the call discarded (MSG_TRUNC), a 32-bit program */
#define REASON_IO_URING 5 /* moved for the thread (io_uring, aio), not by the call that it is in */

#define ROLE_UNKNOWN 0
#define ROLE_CLIENT 1
#define ROLE_SERVER 2

/* opened_record.fresh */
#define FRESH 1
#define RESUMED 2 /* what came before was added up by the kernel side (tally.h), whole exchanges; in no recording */

#define FAMILY_UNIX 1
#define FAMILY_IPV4 2
#define FAMILY_IPV6 10

#define UNIX_PATH_BYTES 108
#define COMM_BYTES 16
#define ARGUMENTS_BYTES 4096
#define FILE_NAME_BYTES 64
#define FILE_NAMES 12

/* Once a connection, before its first data_record; again when another process takes it over. */
struct opened_record {
	unsigned char kind;
	unsigned char family;
	unsigned char role;
	unsigned char fresh; /* FRESH: seen from its first byte on; RESUMED */
	unsigned int pid;
	unsigned long long time_ns;
	unsigned long long socket; /* inode of the socket; with SOCKET_TLS the plaintext inside */
	unsigned int network_namespace;
	unsigned short local_port;
	unsigned short remote_port;
	unsigned char local_address[16];
	unsigned char remote_address[16];
	unsigned int send_position; /* of the first byte of each direction that is worth waiting for */
	unsigned int recv_position;
	/* Positions do not name the same bytes at the other end. TCP: 0, they are sequence numbers; in TLS that was seen from its
	 * beginning, also 0: the connection's first sequence number and the plaintext before them. */
	unsigned int counted;
	unsigned int path_length; /* UNIX: bytes of path used; an abstract name begins with 0 */
	unsigned char path[UNIX_PATH_BYTES];
	unsigned int library; /* LIBRARY_: whose plaintext */
};

/* One piece of one system call; `captured` payload bytes follow. */
struct data_record {
	unsigned char kind;
	unsigned char direction;
	unsigned char flags;
	unsigned char reason;
	unsigned int captured; /* payload bytes that follow */
	unsigned long long time_ns;
	unsigned long long socket;
	unsigned int pid;
	unsigned int tid;
	unsigned int position; /* of the first byte: TCP sequence number, or a count of our own (UNIX) */
	unsigned int length; /* bytes of the stream that this stands for */
};

/* A direction has ended at `position`: shutdown, close, or the end of the stream was read. */
struct closed_record {
	unsigned char kind;
	unsigned char direction;
	unsigned char gone; /* the socket itself is gone */
	unsigned char reserved;
	unsigned int position;
	unsigned long long time_ns;
	unsigned long long socket;
};

/* Once a process (and again after exec), before its first data_record. `arguments_length` bytes follow. */
struct process_record {
	unsigned char kind;
	unsigned char reserved[3];
	unsigned int pid;
	unsigned long long time_ns;
	unsigned long long start_ns; /* boot time clock */
	unsigned int user;
	unsigned int arguments_length; /* NUL-separated, as /proc/PID/cmdline */
	unsigned char comm[COMM_BYTES];
};

/* Payload of a data_record with DATA_FILE: which part of which file went out by sendfile. Behind it stand FILE_NAMES places
 * of FILE_NAME_BYTES, of which `names` hold the file's name and its parents', innermost first, as far as they were read;
 * or nothing, with `names` 0, where they were told lately. */
struct file_source {
	unsigned char magic[8]; /* "npfile\x01\x02" */
	unsigned long long offset;
	unsigned long long inode;
	unsigned int device; /* the kernel's dev_t */
	unsigned int descriptor;
	unsigned int pid; /* as the agent sees it */
	unsigned int names;
};

/* In the ring `notices`, which is not part of a recording: what happens to processes, for whoever attaches the probes. */
#define NOTICE_EXECUTED 1 /* pid runs this file now */
#define NOTICE_MAPPED 2 /* pid has mapped this file at address, to execute it */
#define NOTICE_EXITED 3
#define NOTICE_FORKED 4 /* filters by pid: a process that is watched has a child now */
struct notice {
	unsigned int kind;
	unsigned int pid;
	unsigned long long inode;
	unsigned long long address;
	unsigned int device; /* the kernel's dev_t */
	unsigned int reserved;
};

#endif
