/* A client that, between the two halves of its request, makes a 32-bit system call (int 0x80) whose number and registers
 * would mean something else to a 64-bit reader: i386's 20 is getpid, which returns a pid; x86-64's is writev, which
 * returns bytes written. The registers name the socket and a vector of bytes that were never sent.
 *
 *     i386 PORT      prints the answer's status line
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static const char FIRST[] = "POST /halves HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
static const char SECOND[] = "Content-Length: 5\r\n\r\nhello";
static char never_sent[1 << 20];

int main(int argc, char **argv) {
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct iovec vector = {never_sent, sizeof(never_sent)};
	char answer[4096];
	ssize_t length, used = 0;
	long result;
	int fd;

	if (argc != 2)
		return 2;
	address.sin_port = htons(atoi(argv[1]));
	fd = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		return 1;
	memset(never_sent, 'x', sizeof(never_sent));
	if (write(fd, FIRST, sizeof(FIRST) - 1) != sizeof(FIRST) - 1)
		return 1;
	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(20), "D"((long)fd), "S"(&vector), "d"(1L)
			 : "memory", "r8", "r9", "r10", "r11");
	if (result != getpid())
		return 3; /* this kernel has no 32-bit calls */
	if (write(fd, SECOND, sizeof(SECOND) - 1) != sizeof(SECOND) - 1)
		return 1;
	while ((length = read(fd, answer + used, sizeof(answer) - used)) > 0)
		used += length;
	if (!used || length < 0)
		return 1;
	printf("%.*s\n", (int)strcspn(answer, "\r"), answer);
	return 0;
}
