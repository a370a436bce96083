/*
 * calls: an HTTP/1.1 client and server that send and receive with exactly the
 * system calls they are told to use, and print the truth about each exchange.
 *
 *   calls serve   ADDRESS [OPTION...]        prints "listening PORT" first
 *   calls request ADDRESS [OPTION...]
 *   calls pair    [CLIENT OPTION...] -- [SERVER OPTION...]   over a socketpair
 *
 * ADDRESS is 127.0.0.1:PORT, [::1]:PORT, [::ffff:127.0.0.1]:PORT, unix:/PATH or
 * unix:@ABSTRACT. One JSON object a finished exchange goes to standard output.
 *
 * The answer's size comes from "bytes=N" in the target (default 17), its status
 * from "status=N". Bodies are made by pattern(), so that a reader in Python can
 * tell every byte: 'q' lines in requests, 'a' lines in answers.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	LIFETIME_SECONDS = 90, /* nothing that a test starts outlives it */
	IOVECS_MAX = 1024,     /* UIO_MAXIOV: more is EINVAL */
	MESSAGES_MAX = 512, /* of one sendmmsg or recvmmsg */
	BUFFER_BYTES = 4 << 20,
	HEAD_BYTES = 4096,
	PIPE_BYTES = 65536,
	MESSAGES_USUAL = 16,
};

enum call {
	CALL_WRITE,
	CALL_WRITEV,
	CALL_PWRITEV2,
	CALL_SENDTO,
	CALL_SENDMSG,
	CALL_SENDMMSG,
	CALL_SENDFILE,
	CALL_READ,
	CALL_READV,
	CALL_PREADV2,
	CALL_RECVFROM,
	CALL_RECVMSG,
	CALL_RECVMMSG,
	CALL_SPLICE,
};

static const struct {
	const char *name;
	enum call call;
} call_names[] = {
	{"write", CALL_WRITE},       {"writev", CALL_WRITEV},     {"pwritev2", CALL_PWRITEV2},
	{"sendto", CALL_SENDTO},     {"sendmsg", CALL_SENDMSG},   {"sendmmsg", CALL_SENDMMSG},
	{"sendfile", CALL_SENDFILE}, {"read", CALL_READ},         {"readv", CALL_READV},
	{"preadv2", CALL_PREADV2},   {"recvfrom", CALL_RECVFROM}, {"recvmsg", CALL_RECVMSG},
	{"recvmmsg", CALL_RECVMMSG}, {"splice", CALL_SPLICE},
};

/* How one process sends and receives. */
struct side {
	enum call send;
	enum call receive;
	size_t send_bytes;       /* most of one send call; 0: all there is */
	size_t receive_bytes;    /* most of one receive call; 0: what the buffer holds */
	size_t iovec_bytes;      /* of each iovec; 0: head and body (send), two halves (receive) */
	bool empty_iovecs;       /* {NULL, 0} before each iovec that holds something */
	bool peek;               /* MSG_PEEK before every receive */
	bool nonblocking;        /* O_NONBLOCK, and a first try that finds nothing */
	bool dontwait;           /* MSG_DONTWAIT on a blocking socket */
	bool waitall;            /* MSG_WAITALL for bodies */
	bool trunc;              /* MSG_TRUNC for bodies: TCP discards them uncopied */
	bool small_buffers;      /* SO_SNDBUF of 4 KiB */
	bool zerocopy;           /* MSG_ZEROCOPY, and its notice read from the error queue */
	bool more;               /* MSG_MORE on the head, which goes by itself */
	bool exact_head;         /* learn by peeking where a head ends; receive it and no more */
	const char *file;        /* sendfile and splice: where the body lies */
	size_t file_offset;      /* bytes of rubbish before it */
	bool offset_pointer;     /* sendfile and splice: give the offset, not the file position */
	bool whole_file;         /* head from the file too */
	bool spoil_file;         /* overwrite the file as soon as it was sent */
	unsigned delay_ms;       /* server: before each answer */
	unsigned body_delay_ms;  /* between head and body */
	bool close_framing;      /* server: no Content-Length, close ends the body */
	int connections;         /* server: ends after so many */
	int messages;            /* most of one sendmmsg or recvmmsg */
	bool wait_messages;      /* recvmmsg: each message waits for bytes of its own */
	bool reset;              /* server: a reset, not an end, closes the connection */
	unsigned file_age_ms;    /* between writing and sending a file */
	unsigned read_delay_ms;  /* client: between request and the first receive */
	int requests;            /* client: on its one connection */
	int special_request;     /* client: the only request that --send is used for; others write */
	bool shutdown;           /* client: SHUT_WR after the last request */
	bool nonblocking_connect;
	const char *method;
	const char *target;
	size_t body_bytes;
	const char *comm;
};

struct counts {
	long sends, receives, again, short_sends, peeks, notices;
};

static struct counts counts;
static char local_ip[64], peer_ip[64];
static unsigned local_port, peer_port;

static void die(const char *format, ...) {
	int error = errno;
	va_list arguments;

	va_start(arguments, format);
	fprintf(stderr, "calls[%d]: ", (int)getpid());
	vfprintf(stderr, format, arguments);
	fprintf(stderr, ": %s\n", strerror(error));
	va_end(arguments);
	exit(1);
}

static void sleep_ms(unsigned ms) {
	if (ms)
		usleep(ms * 1000);
}

static void wait_for(int fd, short events) {
	struct pollfd entry = {.fd = fd, .events = events};

	if (poll(&entry, 1, LIFETIME_SECONDS * 1000) < 0)
		die("poll");
}

/* Eight bytes a line; the number tells request and place. */
static void pattern(char *into, size_t bytes, char tag, int exchange) {
	char line[16];

	for (size_t at = 0; at < bytes; at += 8) {
		snprintf(line, sizeof line, "%c%06u\n", tag, (unsigned)((exchange * 10000u + at / 8) % 1000000u));
		memcpy(into + at, line, bytes - at < 8 ? bytes - at : 8);
	}
}

/* ---- sending ---- */

static int lay_iovecs(const struct side *side, char *data, size_t from, size_t to, size_t split, struct iovec *iovecs) {
	int n = 0;

	while (from < to && n + 2 <= IOVECS_MAX) {
		size_t end = side->iovec_bytes ? from + side->iovec_bytes : (from < split ? split : to);

		if (end > to)
			end = to;
		if (side->empty_iovecs)
			iovecs[n++] = (struct iovec){NULL, 0};
		iovecs[n++] = (struct iovec){data + from, end - from};
		from = end;
	}
	return n;
}

static ssize_t send_messages(int fd, const struct side *side, int flags, struct iovec *iovecs, int n) {
	struct mmsghdr messages[MESSAGES_MAX] = {0};
	int each = (n + side->messages - 1) / side->messages, used = 0, sent;
	ssize_t bytes = 0;

	if (each < 2 && side->messages <= MESSAGES_USUAL)
		each = 2;
	for (int at = 0; at < n; at += each) {
		messages[used].msg_hdr.msg_iov = iovecs + at;
		messages[used].msg_hdr.msg_iovlen = n - at < each ? n - at : each;
		used++;
	}
	sent = sendmmsg(fd, messages, used, flags);
	if (sent < 0)
		return -1;
	for (int at = 0; at < sent; at++)
		bytes += messages[at].msg_len;
	return bytes;
}

static ssize_t send_once(int fd, const struct side *side, enum call call, char *data, size_t from, size_t to,
			 size_t split) {
	static struct iovec iovecs[IOVECS_MAX];
	int flags = MSG_NOSIGNAL | (side->dontwait ? MSG_DONTWAIT : 0) | (side->zerocopy ? MSG_ZEROCOPY : 0) |
		    (side->more && to == split ? MSG_MORE : 0);
	struct msghdr message = {.msg_iov = iovecs};
	int n;

	if (side->send_bytes && to - from > side->send_bytes)
		to = from + side->send_bytes;
	n = lay_iovecs(side, data, from, to, split, iovecs);
	message.msg_iovlen = n;
	counts.sends++;
	switch (call) {
	case CALL_WRITE:
		return write(fd, data + from, to - from);
	case CALL_SENDTO:
		return sendto(fd, data + from, to - from, flags, NULL, 0);
	case CALL_WRITEV:
		return writev(fd, iovecs, n);
	case CALL_PWRITEV2:
		return pwritev2(fd, iovecs, n, -1, 0);
	case CALL_SENDMSG:
		return sendmsg(fd, &message, flags);
	case CALL_SENDMMSG:
		return send_messages(fd, side, flags, iovecs, n);
	default:
		errno = EINVAL;
		die("not a call that sends memory");
	}
	return -1;
}

static void send_range(int fd, const struct side *side, enum call call, char *data, size_t from, size_t to,
		       size_t split) {
	while (from < to) {
		ssize_t n = send_once(fd, side, call, data, from, to, split);

		if (n < 0) {
			if (errno != EAGAIN)
				die("send");
			counts.again++;
			wait_for(fd, POLLOUT);
			continue;
		}
		if ((size_t)n < to - from)
			counts.short_sends++;
		from += n;
	}
}

/* The zero-copy notice is read from the socket, but is no data. */
static void read_notice(int fd) {
	char control[256];
	struct msghdr message = {.msg_control = control, .msg_controllen = sizeof control};

	wait_for(fd, 0);
	if (recvmsg(fd, &message, MSG_ERRQUEUE) >= 0)
		counts.notices++;
}

static void send_file(int fd, const struct side *side, enum call call, const char *data, size_t bytes) {
	int file = open(side->file, O_RDWR | O_CREAT | O_TRUNC, 0600);
	off_t offset = side->file_offset;
	size_t left = bytes;
	int ends[2];

	if (file < 0)
		die("%s", side->file);
	for (size_t at = 0; at < side->file_offset; at++)
		if (write(file, "#", 1) != 1)
			die("%s", side->file);
	if (write(file, data, bytes) != (ssize_t)bytes)
		die("%s", side->file);
	if (lseek(file, side->file_offset, SEEK_SET) < 0)
		die("lseek");
	sleep_ms(side->file_age_ms);
	if (pipe(ends) < 0)
		die("pipe");
	while (left) {
		off_t *at = side->offset_pointer ? &offset : NULL;
		size_t most = side->send_bytes && left > side->send_bytes ? side->send_bytes : left;
		ssize_t n;

		counts.sends++;
		if (call == CALL_SENDFILE) {
			n = sendfile(fd, file, at, most);
			if (n < 0 && errno == EAGAIN) {
				counts.again++;
				wait_for(fd, POLLOUT);
				continue;
			}
			if (n <= 0)
				die("sendfile");
			left -= n;
			continue;
		}
		n = splice(file, at, ends[1], NULL, most > PIPE_BYTES ? PIPE_BYTES : most, 0);
		if (n <= 0)
			die("splice from the file");
		left -= n;
		while (n) {
			ssize_t out = splice(ends[0], NULL, fd, NULL, n, SPLICE_F_MOVE);

			if (out < 0 && errno == EAGAIN) {
				counts.again++;
				wait_for(fd, POLLOUT);
				continue;
			}
			if (out <= 0)
				die("splice to the socket");
			n -= out;
		}
	}
	if (side->spoil_file) {
		static char rubbish[4096];

		memset(rubbish, 'X', sizeof rubbish);
		if (lseek(file, 0, SEEK_SET) < 0)
			die("lseek");
		for (size_t at = 0; at < bytes + side->file_offset; at += sizeof rubbish)
			if (write(file, rubbish, sizeof rubbish) < 0)
				die("%s", side->file);
	}
	close(ends[0]);
	close(ends[1]);
	close(file);
}

static void send_message(int fd, const struct side *side, enum call call, char *data, size_t split, size_t total) {
	bool from_file = call == CALL_SENDFILE || call == CALL_SPLICE;

	if (from_file && side->whole_file) {
		send_file(fd, side, call, data, total);
	} else if (from_file) {
		send_range(fd, side, CALL_WRITE, data, 0, split, split);
		sleep_ms(side->body_delay_ms);
		if (total > split)
			send_file(fd, side, call, data + split, total - split);
	} else if (side->body_delay_ms || side->more) {
		send_range(fd, side, call, data, 0, split, split);
		sleep_ms(side->body_delay_ms);
		send_range(fd, side, call, data, split, total, total);
	} else {
		send_range(fd, side, call, data, 0, total, split);
	}
	if (side->zerocopy)
		read_notice(fd);
}

/* ---- receiving ---- */

static ssize_t receive_messages(int fd, const struct side *side, int flags, char *into, size_t want) {
	struct mmsghdr messages[MESSAGES_MAX] = {0};
	struct iovec iovecs[MESSAGES_MAX * 2];
	size_t each = side->iovec_bytes ? side->iovec_bytes : 1000, at = 0;
	ssize_t bytes = 0;
	int used = 0, got;

	while (used < side->messages && at < want) {
		struct msghdr *header = &messages[used].msg_hdr;

		header->msg_iov = iovecs + used * 2;
		while (header->msg_iovlen < 2 && at < want) {
			size_t length = want - at < each ? want - at : each;

			header->msg_iov[header->msg_iovlen++] = (struct iovec){into + at, length};
			at += length;
		}
		used++;
	}
	got = recvmmsg(fd, messages, used, flags | (side->wait_messages ? 0 : MSG_WAITFORONE), NULL);
	if (got < 0)
		return -1;
	for (int index = 0; index < got; index++) { /* close the holes that short ones left */
		size_t left = messages[index].msg_len;

		for (size_t part = 0; part < messages[index].msg_hdr.msg_iovlen; part++) {
			struct iovec *iovec = &messages[index].msg_hdr.msg_iov[part];
			size_t n = left < iovec->iov_len ? left : iovec->iov_len;

			memmove(into + bytes, iovec->iov_base, n);
			bytes += n;
			left -= n;
		}
	}
	return bytes;
}

static ssize_t receive_splice(int fd, char *into, size_t want) {
	static int ends[2];
	ssize_t n;

	if (!ends[1] && pipe(ends) < 0)
		die("pipe");
	n = splice(fd, NULL, ends[1], NULL, want > PIPE_BYTES ? PIPE_BYTES : want, SPLICE_F_MOVE);
	for (ssize_t at = 0; at < n;) {
		ssize_t got = read(ends[0], into + at, n - at);

		if (got <= 0)
			die("read of the pipe");
		at += got;
	}
	return n;
}

static ssize_t receive_once(int fd, const struct side *side, enum call call, int flags, char *into, size_t want) {
	static struct iovec iovecs[IOVECS_MAX];
	struct msghdr message = {.msg_iov = iovecs};
	int n = lay_iovecs(side, into, 0, want, want / 2, iovecs);

	message.msg_iovlen = n;
	if (side->dontwait)
		flags |= MSG_DONTWAIT;
	if ((flags & MSG_PEEK) && call != CALL_RECVMSG && call != CALL_RECVMMSG)
		call = CALL_RECVFROM;
	switch (call) {
	case CALL_READ:
		return read(fd, into, want);
	case CALL_READV:
		return readv(fd, iovecs, n);
	case CALL_PREADV2:
		return preadv2(fd, iovecs, n, -1, 0);
	case CALL_RECVFROM:
		return recvfrom(fd, into, want, flags, NULL, NULL);
	case CALL_RECVMSG:
		return recvmsg(fd, &message, flags);
	case CALL_RECVMMSG:
		return receive_messages(fd, side, flags, into, want);
	case CALL_SPLICE:
		return receive_splice(fd, into, want);
	default:
		errno = EINVAL;
		die("not a call that receives");
	}
	return -1;
}

static ssize_t receive(int fd, const struct side *side, enum call call, int flags, char *into, size_t want) {
	for (;;) {
		ssize_t n = receive_once(fd, side, call, flags, into, want);

		if (n < 0 && errno == EAGAIN) {
			counts.again++;
			wait_for(fd, POLLIN);
			continue;
		}
		if (n < 0 && errno == ECONNRESET)
			return 0;
		if (n < 0)
			die("receive");
		if (flags & MSG_PEEK)
			counts.peeks++;
		else
			counts.receives++;
		return n;
	}
}

struct message {
	char *data;        /* BUFFER_BYTES */
	size_t have;       /* bytes received */
	size_t head_bytes; /* 0: end of head not seen */
	size_t total;      /* of the message; SIZE_MAX: until close */
};

static bool find_head(struct message *message) {
	char *end, *length;

	message->data[message->have] = 0;
	end = strstr(message->data, "\r\n\r\n");
	if (!end)
		return false;
	message->head_bytes = end + 4 - message->data;
	length = strcasestr(message->data, "\r\ncontent-length:");
	if (length && length < end)
		message->total = message->head_bytes + strtoul(length + 17, NULL, 10);
	else if (!strncmp(message->data, "HTTP/", 5))
		message->total = SIZE_MAX;
	else
		message->total = message->head_bytes;
	return true;
}

/* Bytes that are in the socket up to the end of a head; peeks until it is there. */
static size_t peek_head(int fd) {
	static char copy[HEAD_BYTES + 1];

	for (;;) {
		ssize_t n = recv(fd, copy, HEAD_BYTES, MSG_PEEK);
		char *end;

		if (n < 0 && errno == EAGAIN) {
			wait_for(fd, POLLIN);
			continue;
		}
		if (n <= 0)
			return 0;
		counts.peeks++;
		copy[n] = 0;
		end = strstr(copy, "\r\n\r\n");
		if (end)
			return end + 4 - copy;
		usleep(1000);
	}
}

/* One whole message; false at the end of the stream. */
static bool receive_message(int fd, const struct side *side, enum call head_call, enum call body_call,
			    struct message *message) {
	bool exact = side->exact_head || side->waitall || side->trunc;
	size_t head_bytes = 0;

	message->have = message->head_bytes = message->total = 0;
	while (!message->head_bytes || message->have < message->total) {
		bool body = message->head_bytes != 0;
		size_t want = BUFFER_BYTES - 1 - message->have;
		int flags = 0;
		ssize_t n;

		if (exact && !body) {
			if (!message->have)
				head_bytes = peek_head(fd);
			if (!head_bytes)
				return false;
			want = head_bytes - message->have;
		}
		if (exact && body && message->total != SIZE_MAX)
			want = message->total - message->have;
		if (side->receive_bytes && want > side->receive_bytes)
			want = side->receive_bytes;
		if (body && side->waitall)
			flags |= MSG_WAITALL;
		if (body && side->trunc) {
			flags |= MSG_TRUNC;
			/* what the kernel must not copy and nobody may take for the body */
			memset(message->data + message->have, 'S', want);
		}
		if (side->peek)
			receive(fd, side, body_call, MSG_PEEK, message->data + message->have, want);
		n = receive(fd, side, body ? body_call : head_call, flags, message->data + message->have, want);
		if (!n)
			return message->head_bytes && message->total == SIZE_MAX;
		message->have += n;
		if (!body)
			find_head(message);
	}
	return true;
}

/* ---- addresses ---- */

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
	struct sockaddr_un local;
};

static socklen_t parse_address(const char *text, union address *address) {
	char host[64] = "";
	unsigned port;

	memset(address, 0, sizeof *address);
	if (!strncmp(text, "unix:", 5)) {
		size_t length = strlen(text + 5);

		address->local.sun_family = AF_UNIX;
		memcpy(address->local.sun_path, text + 5, length);
		if (text[5] == '@') {
			address->local.sun_path[0] = 0;
			return offsetof(struct sockaddr_un, sun_path) + length;
		}
		return sizeof address->local;
	}
	if (sscanf(text, "[%63[^]]]:%u", host, &port) == 2) {
		address->v6.sin6_family = AF_INET6;
		address->v6.sin6_port = htons(port);
		if (inet_pton(AF_INET6, host, &address->v6.sin6_addr) == 1)
			return sizeof address->v6;
	} else if (sscanf(text, "%63[^:]:%u", host, &port) == 2) {
		address->v4.sin_family = AF_INET;
		address->v4.sin_port = htons(port);
		if (inet_pton(AF_INET, host, &address->v4.sin_addr) == 1)
			return sizeof address->v4;
	}
	errno = EINVAL;
	die("%s", text);
	return 0;
}

static unsigned print_address(const union address *address, char *into, size_t bytes) {
	into[0] = 0;
	if (address->any.sa_family == AF_INET) {
		inet_ntop(AF_INET, &address->v4.sin_addr, into, bytes);
		return ntohs(address->v4.sin_port);
	}
	if (address->any.sa_family == AF_INET6) {
		inet_ntop(AF_INET6, &address->v6.sin6_addr, into, bytes);
		return ntohs(address->v6.sin6_port);
	}
	return 0;
}

/* Asked when the connection is new: a closed one has forgotten its peer. */
static void learn_addresses(int fd) {
	union address address;
	socklen_t bytes = sizeof address;

	memset(&address, 0, sizeof address);
	getsockname(fd, &address.any, &bytes);
	local_port = print_address(&address, local_ip, sizeof local_ip);
	memset(&address, 0, sizeof address);
	bytes = sizeof address;
	getpeername(fd, &address.any, &bytes);
	peer_port = print_address(&address, peer_ip, sizeof peer_ip);
}

static void prepare(int fd, const struct side *side) {
	int small = 4096, on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	if (side->small_buffers) {
		if (setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small) < 0)
			die("SO_SNDBUF");
	}
	if (side->zerocopy && setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on) < 0)
		die("SO_ZEROCOPY");
	if (side->wait_messages) {
		struct timeval timeout = {.tv_sec = 2}; /* should two messages have come as one */

		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
	}
	if (side->nonblocking && fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		die("O_NONBLOCK");
}

static void report(int fd, const char *method, const char *target, int status, const struct message *in, size_t sent,
		   size_t sent_head) {
	char comm[17] = "";
	struct stat inode;

	prctl(PR_GET_NAME, comm);
	fstat(fd, &inode);
	printf("{\"pid\":%d,\"tid\":%d,\"comm\":\"%s\",\"inode\":%lu,\"local_ip\":\"%s\","
	       "\"local_port\":%u,\"peer_ip\":\"%s\",\"peer_port\":%u,\"method\":\"%s\","
	       "\"target\":\"%s\",\"status\":%d,\"sent\":%zu,\"sent_body\":%zu,\"received\":%zu,"
	       "\"received_body\":%zu,\"sends\":%ld,\"receives\":%ld,\"again\":%ld,"
	       "\"short_sends\":%ld,\"peeks\":%ld,\"notices\":%ld}\n",
	       (int)getpid(), (int)syscall(SYS_gettid), comm, (unsigned long)inode.st_ino, local_ip, local_port,
	       peer_ip, peer_port, method, target, status, sent, sent - sent_head, in->have, in->have - in->head_bytes,
	       counts.sends, counts.receives, counts.again, counts.short_sends, counts.peeks, counts.notices);
	fflush(stdout);
	memset(&counts, 0, sizeof counts);
}

/* ---- the two roles ---- */

static enum call head_call(const struct side *side) {
	return side->receive == CALL_SPLICE && !side->whole_file ? CALL_READ : side->receive;
}

static void answer_connection(int fd, const struct side *side) {
	static char out[BUFFER_BYTES], in[BUFFER_BYTES];
	struct message message = {.data = in};

	learn_addresses(fd);
	prepare(fd, side);
	for (int exchange = 0; receive_message(fd, side, head_call(side), side->receive, &message); exchange++) {
		char method[32] = "", target[512] = "", *size, *number;
		size_t body, head;
		int status;

		sscanf(in, "%31s %511s", method, target);
		size = strstr(target, "bytes=");
		number = strstr(target, "status=");
		body = size ? strtoul(size + 6, NULL, 10) : 17;
		status = number ? atoi(number + 7) : 200;
		if (side->close_framing)
			head = snprintf(out, HEAD_BYTES,
					"HTTP/1.1 %d Done\r\nContent-Type: text/plain\r\nConnection: close\r\n"
					"X-Exchange: %d\r\n\r\n",
					status, exchange);
		else
			head = snprintf(out, HEAD_BYTES,
					"HTTP/1.1 %d Done\r\nContent-Type: text/plain\r\n"
					"Content-Length: %zu\r\nX-Exchange: %d\r\n\r\n",
					status, body, exchange);
		pattern(out + head, body, 'a', exchange);
		sleep_ms(side->delay_ms);
		send_message(fd, side, side->send, out, head, head + body);
		report(fd, method, target, status, &message, head + body, head);
		if (side->close_framing || side->reset)
			break;
	}
	if (side->reset) {
		struct linger linger = {.l_onoff = 1};

		setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
	}
}

static void make_requests(int fd, const struct side *side) {
	static char out[BUFFER_BYTES], in[BUFFER_BYTES];
	struct message message = {.data = in};

	learn_addresses(fd);
	prepare(fd, side);
	for (int exchange = 0; exchange < side->requests; exchange++) {
		bool special = side->special_request < 0 || side->special_request == exchange;
		size_t head;

		if (side->body_bytes)
			head = snprintf(out, HEAD_BYTES,
					"%s %s HTTP/1.1\r\nHost: calls\r\nX-Exchange: %d\r\n"
					"Content-Type: text/plain\r\nContent-Length: %zu\r\n\r\n",
					side->method, side->target, exchange, side->body_bytes);
		else
			head = snprintf(out, HEAD_BYTES, "%s %s HTTP/1.1\r\nHost: calls\r\nX-Exchange: %d\r\n\r\n",
					side->method, side->target, exchange);
		pattern(out + head, side->body_bytes, 'q', exchange);
		send_message(fd, side, special ? side->send : CALL_WRITE, out, head, head + side->body_bytes);
		if (side->shutdown && exchange + 1 == side->requests && shutdown(fd, SHUT_WR) < 0)
			die("shutdown");
		sleep_ms(side->read_delay_ms);
		if (!receive_message(fd, side, special ? head_call(side) : CALL_READ,
				     special ? side->receive : CALL_READ, &message)) {
			errno = EPIPE;
			die("no answer");
		}
		report(fd, side->method, side->target, atoi(in + 9), &message, head + side->body_bytes, head);
	}
}

static void serve(const char *address_text, const struct side *side) {
	union address address;
	socklen_t bytes = parse_address(address_text, &address);
	int listener = socket(address.any.sa_family, SOCK_STREAM, 0), on = 1;
	char ip[64];

	if (listener < 0)
		die("socket");
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(listener, &address.any, bytes) < 0)
		die("bind %s", address_text);
	if (listen(listener, 64) < 0)
		die("listen");
	bytes = sizeof address;
	getsockname(listener, &address.any, &bytes);
	printf("listening %u\n", print_address(&address, ip, sizeof ip));
	fflush(stdout);
	for (int connection = 0; connection < side->connections; connection++) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			die("accept");
		answer_connection(fd, side);
		close(fd);
	}
}

static void request(const char *address_text, const struct side *side) {
	union address address;
	socklen_t bytes = parse_address(address_text, &address);
	int fd = socket(address.any.sa_family, SOCK_STREAM, 0);

	if (fd < 0)
		die("socket");
	if (side->nonblocking_connect) {
		int error = 0;
		socklen_t length = sizeof error;

		fcntl(fd, F_SETFL, O_NONBLOCK);
		if (!connect(fd, &address.any, bytes) || errno != EINPROGRESS)
			die("connect: in progress");
		wait_for(fd, POLLOUT);
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
		errno = error;
		if (error)
			die("connect %s", address_text);
		if (!side->nonblocking)
			fcntl(fd, F_SETFL, 0);
	} else if (connect(fd, &address.any, bytes) < 0) {
		die("connect %s", address_text);
	}
	make_requests(fd, side);
	close(fd);
}

/* ---- command line ---- */

static enum call parse_call(const char *name) {
	for (size_t at = 0; at < sizeof call_names / sizeof call_names[0]; at++)
		if (!strcmp(call_names[at].name, name))
			return call_names[at].call;
	errno = EINVAL;
	die("no call %s", name);
	return CALL_WRITE;
}

enum option_code {
	FLAG = 0,
	SEND = 256,
	RECEIVE,
	SEND_BYTES,
	RECEIVE_BYTES,
	IOVEC_BYTES,
	FILE_PATH,
	FILE_OFFSET,
	DELAY,
	BODY_DELAY,
	CONNECTIONS,
	REQUESTS,
	SPECIAL,
	METHOD,
	TARGET,
	BODY,
	COMM,
	MESSAGES,
	READ_DELAY,
	FILE_AGE
};

static struct side parse_side(int argc, char **argv) {
	static int flags[18];
	static const struct option options[] = {
		{"send", 1, NULL, SEND},
		{"receive", 1, NULL, RECEIVE},
		{"send-bytes", 1, NULL, SEND_BYTES},
		{"receive-bytes", 1, NULL, RECEIVE_BYTES},
		{"iovec-bytes", 1, NULL, IOVEC_BYTES},
		{"file", 1, NULL, FILE_PATH},
		{"file-offset", 1, NULL, FILE_OFFSET},
		{"delay-ms", 1, NULL, DELAY},
		{"body-delay-ms", 1, NULL, BODY_DELAY},
		{"connections", 1, NULL, CONNECTIONS},
		{"requests", 1, NULL, REQUESTS},
		{"special-request", 1, NULL, SPECIAL},
		{"method", 1, NULL, METHOD},
		{"target", 1, NULL, TARGET},
		{"body-bytes", 1, NULL, BODY},
		{"comm", 1, NULL, COMM},
		{"messages", 1, NULL, MESSAGES},
		{"read-delay-ms", 1, NULL, READ_DELAY},
		{"file-age-ms", 1, NULL, FILE_AGE},
		{"empty-iovecs", 0, &flags[0], 1},
		{"peek", 0, &flags[1], 1},
		{"nonblocking", 0, &flags[2], 1},
		{"dontwait", 0, &flags[3], 1},
		{"waitall", 0, &flags[4], 1},
		{"trunc", 0, &flags[5], 1},
		{"small-buffers", 0, &flags[6], 1},
		{"zerocopy", 0, &flags[7], 1},
		{"more", 0, &flags[8], 1},
		{"exact-head", 0, &flags[9], 1},
		{"offset-pointer", 0, &flags[10], 1},
		{"whole-file", 0, &flags[11], 1},
		{"spoil-file", 0, &flags[12], 1},
		{"close-framing", 0, &flags[13], 1},
		{"shutdown", 0, &flags[14], 1},
		{"nonblocking-connect", 0, &flags[15], 1},
		{"wait-messages", 0, &flags[16], 1},
		{"reset", 0, &flags[17], 1},
		{NULL, 0, NULL, 0},
	};
	struct side side = {.send = CALL_WRITE,
			    .receive = CALL_READ,
			    .method = "GET",
			    .target = "/",
			    .requests = 1,
			    .connections = 1,
			    .special_request = -1,
			    .messages = MESSAGES_USUAL,
			    .iovec_bytes = 100};
	int code;

	memset(flags, 0, sizeof flags);
	optind = 0; /* glibc: start over, for the second side of a pair */
	while ((code = getopt_long(argc, argv, "+", options, NULL)) != -1) {
		switch (code) {
		case FLAG:
			break;
		case SEND:
			side.send = parse_call(optarg);
			break;
		case RECEIVE:
			side.receive = parse_call(optarg);
			break;
		case SEND_BYTES:
			side.send_bytes = strtoul(optarg, NULL, 10);
			break;
		case RECEIVE_BYTES:
			side.receive_bytes = strtoul(optarg, NULL, 10);
			break;
		case IOVEC_BYTES:
			side.iovec_bytes = strtoul(optarg, NULL, 10);
			break;
		case FILE_PATH:
			side.file = optarg;
			break;
		case FILE_OFFSET:
			side.file_offset = strtoul(optarg, NULL, 10);
			break;
		case DELAY:
			side.delay_ms = atoi(optarg);
			break;
		case BODY_DELAY:
			side.body_delay_ms = atoi(optarg);
			break;
		case CONNECTIONS:
			side.connections = atoi(optarg);
			break;
		case REQUESTS:
			side.requests = atoi(optarg);
			break;
		case SPECIAL:
			side.special_request = atoi(optarg);
			break;
		case METHOD:
			side.method = optarg;
			break;
		case TARGET:
			side.target = optarg;
			break;
		case BODY:
			side.body_bytes = strtoul(optarg, NULL, 10);
			break;
		case MESSAGES:
			side.messages = atoi(optarg) < MESSAGES_MAX ? atoi(optarg) : MESSAGES_MAX;
			break;
		case FILE_AGE:
			side.file_age_ms = atoi(optarg);
			break;
		case READ_DELAY:
			side.read_delay_ms = atoi(optarg);
			break;
		case COMM:
			side.comm = optarg;
			break;
		default:
			exit(2);
		}
	}
	if (optind < argc) {
		errno = EINVAL;
		die("%s", argv[optind]);
	}
	side.empty_iovecs = flags[0];
	side.peek = flags[1];
	side.nonblocking = flags[2];
	side.dontwait = flags[3];
	side.waitall = flags[4];
	side.trunc = flags[5];
	side.small_buffers = flags[6];
	side.zerocopy = flags[7];
	side.more = flags[8];
	side.exact_head = flags[9];
	side.offset_pointer = flags[10];
	side.whole_file = flags[11];
	side.spoil_file = flags[12];
	side.close_framing = flags[13];
	side.shutdown = flags[14];
	side.nonblocking_connect = flags[15];
	side.wait_messages = flags[16];
	side.reset = flags[17];
	/* a splice cannot end inside what it has not looked at */
	if (side.receive == CALL_SPLICE && !side.whole_file)
		side.exact_head = true;
	if (side.comm)
		prctl(PR_SET_NAME, side.comm);
	return side;
}

static int pair(int argc, char **argv) {
	int split = 1, ends[2], status;
	pid_t child;

	while (split < argc && strcmp(argv[split], "--"))
		split++;
	if (split == argc) {
		errno = EINVAL;
		die("pair wants --");
	}
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
		die("socketpair");
	child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		struct side side;

		alarm(LIFETIME_SECONDS);
		close(ends[0]);
		side = parse_side(argc - split, argv + split);
		answer_connection(ends[1], &side);
		exit(0);
	}
	close(ends[1]);
	argv[split] = NULL;
	struct side side = parse_side(split, argv);
	make_requests(ends[0], &side);
	close(ends[0]);
	waitpid(child, &status, 0);
	return status ? 1 : 0;
}

int main(int argc, char **argv) {
	alarm(LIFETIME_SECONDS);
	if (argc > 2 && (!strcmp(argv[1], "serve") || !strcmp(argv[1], "request"))) {
		struct side side = parse_side(argc - 2, argv + 2);

		if (argv[1][0] == 's')
			serve(argv[2], &side);
		else
			request(argv[2], &side);
		return 0;
	}
	if (argc > 1 && !strcmp(argv[1], "pair"))
		return pair(argc - 1, argv + 1);
	fprintf(stderr, "usage: calls serve|request ADDRESS [OPTION...]\n"
			"       calls pair [OPTION...] -- [OPTION...]\n");
	return 2;
}
