// Processes that come and go: for each number that it reads, so many children, one after the other, each of which asks
// 127.0.0.1:PORT for /forked and ends.   forks PORT
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static const char REQUEST[] = "GET /forked HTTP/1.1\r\nHost: a\r\n\r\n";

static void ask(unsigned short port) {
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	char answer[1000];
	int ends = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(ends, (struct sockaddr *)&address, sizeof(address)) != 0)
		_exit(1);
	if (send(ends, REQUEST, strlen(REQUEST), 0) < 0 || recv(ends, answer, sizeof(answer), 0) <= 0)
		_exit(1);
	_exit(0);
}

int main(int argc, char **argv) {
	char line[32];
	if (argc != 2)
		return 2;
	while (fgets(line, sizeof(line), stdin) != NULL) {
		for (int left = atoi(line); left > 0; left--) {
			int status;
			pid_t child = fork();
			if (child == 0)
				ask((unsigned short)atoi(argv[1]));
			if (waitpid(child, &status, 0) < 0 || status != 0)
				return 1;
		}
	}
	return 0;
}
