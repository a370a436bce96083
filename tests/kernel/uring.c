/* An HTTP client that sends and receives through io_uring alone: uring PORT. Prints how many bytes it sent and received. */
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static int ring;
static unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
static struct io_uring_sqe *sqes;
static struct io_uring_cqe *cqes;

static void die(const char *what) {
	perror(what);
	exit(1);
}

static void set_up(void) {
	struct io_uring_params p = {0};
	char *sq, *cq;

	ring = syscall(SYS_io_uring_setup, 4, &p);
	if (ring < 0)
		die("io_uring_setup");
	sq = mmap(NULL, p.sq_off.array + p.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE, MAP_SHARED, ring,
		  IORING_OFF_SQ_RING);
	cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(*cqes), PROT_READ | PROT_WRITE, MAP_SHARED, ring,
		  IORING_OFF_CQ_RING);
	sqes = mmap(NULL, p.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || sqes == MAP_FAILED)
		die("mmap");
	sq_tail = (unsigned *)(sq + p.sq_off.tail);
	sq_mask = (unsigned *)(sq + p.sq_off.ring_mask);
	sq_array = (unsigned *)(sq + p.sq_off.array);
	cq_head = (unsigned *)(cq + p.cq_off.head);
	cq_tail = (unsigned *)(cq + p.cq_off.tail);
	cq_mask = (unsigned *)(cq + p.cq_off.ring_mask);
	cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
}

static int move(int operation, int fd, char *data, unsigned length) {
	unsigned tail = *sq_tail, at = tail & *sq_mask;
	int result;

	sqes[at] = (struct io_uring_sqe){.opcode = operation, .fd = fd, .addr = (unsigned long)data, .len = length};
	sq_array[at] = at;
	__atomic_store_n(sq_tail, tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		die("io_uring_enter");
	while (__atomic_load_n(cq_tail, __ATOMIC_ACQUIRE) == *cq_head)
		;
	result = cqes[*cq_head & *cq_mask].res;
	__atomic_store_n(cq_head, *cq_head + 1, __ATOMIC_RELEASE);
	if (result < 0)
		die("operation");
	return result;
}

int main(int count, char **arguments) {
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	static char text[65536];
	int fd = socket(AF_INET, SOCK_STREAM, 0), sent, received = 0, n;

	if (count != 2)
		return 2;
	address.sin_port = htons(atoi(arguments[1]));
	if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		die("connect");
	set_up();
	strcpy(text, "GET /uring HTTP/1.1\r\nHost: calls\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
	sent = move(IORING_OP_SEND, fd, text, strlen(text));
	while ((n = move(IORING_OP_RECV, fd, text, sizeof text)))
		received += n;
	printf("%d %d\n", sent, received);
	return 0;
}
