// One end of TLS connections by OpenSSL, led by lines on standard input: CERTIFICATE KEY. Each command is answered by one line, "ok ..." or
// "failed ...". What is sent is read from a file; what is received is written to one, so that the script can hold plaintext of any size.
//
//   listen PORT
//   accept | connect PORT      a TCP connection
//   version V | cipher C | alpn P | max_early N    of the connections made after it (1.2 or 1.3; OpenSSL's name; a protocol)
//   nonblocking                the sockets made after it; with it `send` polls and repeats with the same arguments
//   handshake                  answers: version cipher resumed(0|1) alpn local-port early(none|accepted|rejected)
//   send FILE [PIECE]          SSL_write, PIECE bytes a call; answers: bytes, and how often it had to be repeated
//   send_ex FILE | early FILE  SSL_write_ex | SSL_write_early_data
//   receive N FILE [PIECE]     SSL_read until N bytes
//   receive_ex N FILE | receive_early FILE      SSL_read_ex | SSL_read_early_data until its end
//   receive_until WORD FILE    SSL_read until what came ends with WORD
//   peek N                     SSL_peek; answers with how many bytes
//   ktls                       the connections made after it use the kernel's TLS, where there is one
//   sendfile FILE              SSL_sendfile; answers with its result
//   renegotiate | key_update   and the handshake that goes with it, where the other end takes part (it must be in `receive`)
//   shutdown                   close_notify, and no wait for the other's
//   end                        reads to the other's close_notify; answers with what SSL_get_error says
//   resume                     connections made after it take up the last session
//   close
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static SSL_CTX *context;
static SSL *ssl;
static SSL_SESSION *session;
static int listener = -1, fd = -1, nonblocking, resume;
static unsigned retries;

static int fail(const char *what, int result) {
	unsigned long code = ERR_get_error();
	printf("failed %s: SSL_get_error %d, %s\n", what, ssl ? SSL_get_error(ssl, result) : 0,
	       ERR_error_string(code, NULL));
	ERR_clear_error();
	return 0;
}

// Whether the call is to be repeated, once the socket is ready for it.
static int again(int result) {
	int error = SSL_get_error(ssl, result);
	if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE)
		return 0;
	struct pollfd ready = {.fd = fd, .events = error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT};
	retries++;
	return poll(&ready, 1, 20000) == 1;
}

static int new_session(SSL *of, SSL_SESSION *fresh) {
	SSL_SESSION_free(session);
	session = fresh;
	return 1;
}

static int set_socket(int server) {
	int on = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	if (nonblocking) {
		int small = 16384; // so that a slow reader is felt
		fcntl(fd, F_SETFL, O_NONBLOCK);
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
	}
	ssl = SSL_new(context);
	SSL_set_fd(ssl, fd);
	if (server) {
		SSL_set_accept_state(ssl);
	} else {
		SSL_set_connect_state(ssl);
		SSL_set_tlsext_host_name(ssl, "localhost");
		if (resume && session)
			SSL_set_session(ssl, session);
	}
	return printf("ok\n");
}

static int do_listen(int port) {
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				      .sin_port = htons((unsigned short)port)};
	socklen_t size = sizeof address;
	int on = 1;
	listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	return bind(listener, (void *)&address, size) || listen(listener, 16) ? fail("listen", 0) : printf("ok\n");
}

static int do_connect(int port) {
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				      .sin_port = htons((unsigned short)port)};
	fd = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(fd, (void *)&address, sizeof address))
		return fail("connect", 0);
	return set_socket(0);
}

static int tell_handshake(void) {
	struct sockaddr_in address;
	socklen_t size = sizeof address;
	getsockname(fd, (void *)&address, &size);
	const unsigned char *alpn;
	unsigned alpn_bytes;
	SSL_get0_alpn_selected(ssl, &alpn, &alpn_bytes);
	int early = SSL_get_early_data_status(ssl);
	return printf("ok %s %s %d %.*s %d %s\n", SSL_get_version(ssl), SSL_get_cipher_name(ssl),
		      SSL_session_reused(ssl), alpn_bytes ? (int)alpn_bytes : 1, alpn_bytes ? (const char *)alpn : "-",
		      ntohs(address.sin_port),
		      early == SSL_EARLY_DATA_ACCEPTED   ? "accepted"
		      : early == SSL_EARLY_DATA_REJECTED ? "rejected"
							 : "none");
}

static int do_handshake(void) {
	int result;
	while ((result = SSL_do_handshake(ssl)) <= 0)
		if (!again(result))
			return fail("handshake", result);
	return tell_handshake();
}

static char *contents(const char *path, size_t *size) {
	int file = open(path, O_RDONLY);
	struct stat status;
	if (file < 0 || fstat(file, &status))
		return NULL;
	char *data = malloc((size_t)status.st_size + 1);
	*size = 0;
	for (ssize_t got; (got = read(file, data + *size, (size_t)status.st_size - *size)) > 0;)
		*size += (size_t)got;
	close(file);
	return data;
}

static int do_send(const char *path, size_t piece, const char *how) {
	size_t size = 0, sent = 0;
	char *data = contents(path, &size);
	if (!data)
		return fail(path, 0);
	retries = 0;
	while (sent < size) {
		size_t length = piece && piece < size - sent ? piece : size - sent, written = 0;
		int result = !strcmp(how, "send")      ? SSL_write(ssl, data + sent, (int)length)
			     : !strcmp(how, "send_ex") ? SSL_write_ex(ssl, data + sent, length, &written)
						       : SSL_write_early_data(ssl, data + sent, length, &written);
		if (result <= 0) {
			if (again(result))
				continue;
			free(data);
			return fail(how, result);
		}
		sent += !strcmp(how, "send") ? (size_t)result : written;
	}
	free(data);
	return printf("ok %zu %u\n", sent, retries);
}

static int do_receive(size_t wanted, const char *path, size_t piece, const char *how) {
	static char data[1 << 16];
	FILE *file = fopen(path, "wb");
	size_t received = 0;
	if (!piece || piece > sizeof data)
		piece = sizeof data;
	retries = 0;
	while (received < wanted) {
		size_t length = piece < wanted - received ? piece : wanted - received, got = 0;
		int result = !strcmp(how, "receive")      ? SSL_read(ssl, data, (int)length)
			     : !strcmp(how, "receive_ex") ? SSL_read_ex(ssl, data, length, &got)
							  : SSL_read_early_data(ssl, data, sizeof data, &got);
		if (!strcmp(how, "receive_early")) {
			if (result == SSL_READ_EARLY_DATA_ERROR) {
				if (again(result))
					continue;
				fclose(file);
				return fail(how, result);
			}
			if (result == SSL_READ_EARLY_DATA_FINISH)
				break;
		} else if (result <= 0) {
			if (again(result))
				continue;
			fclose(file);
			return fail(how, result);
		}
		if (!strcmp(how, "receive"))
			got = (size_t)result;
		fwrite(data, 1, got, file);
		received += got;
	}
	fclose(file);
	return printf("ok %zu %u\n", received, retries);
}

static int do_receive_until(const char *word, const char *path) {
	static char data[1 << 16];
	size_t received = 0, length = strlen(word);
	while (received < length || memcmp(data + received - length, word, length)) {
		int got = SSL_read(ssl, data + received, (int)(sizeof data - received));
		if (got > 0)
			received += (size_t)got;
		else if (!again(got))
			return fail("receive_until", got);
	}
	FILE *file = fopen(path, "wb");
	fwrite(data, 1, received, file);
	fclose(file);
	return printf("ok %zu\n", received);
}

static int do_sendfile(const char *path) {
	int file = open(path, O_RDONLY);
	struct stat status;
	fstat(file, &status);
	long sent = SSL_sendfile(ssl, file, 0, (size_t)status.st_size, 0);
	close(file);
	ERR_clear_error();
	return printf("ok %ld\n", sent);
}

static int renegotiate(int key_update) {
	int result = key_update ? SSL_key_update(ssl, SSL_KEY_UPDATE_REQUESTED) : SSL_renegotiate(ssl);
	if (result == 1)
		result = SSL_do_handshake(ssl);
	return result == 1 ? printf("ok\n") : fail("renegotiate", result);
}

static int select_alpn(SSL *of, const unsigned char **out, unsigned char *size, const unsigned char *in,
		       unsigned in_bytes, void *argument) {
	const unsigned char *mine = argument;
	int found = SSL_select_next_proto((unsigned char **)out, size, mine, 1u + mine[0], in, in_bytes);
	return found == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_NOACK;
}

static int set_alpn(const char *name) {
	static unsigned char wire[256];
	wire[0] = (unsigned char)strlen(name);
	memcpy(wire + 1, name, wire[0]);
	SSL_CTX_set_alpn_protos(context, wire, 1u + wire[0]);
	SSL_CTX_set_alpn_select_cb(context, select_alpn, wire);
	return printf("ok\n");
}

static int do_close(void) {
	SSL_free(ssl);
	close(fd);
	ssl = NULL;
	fd = -1;
	return printf("ok\n");
}

static int command(char *line) {
	char word[32] = "", first[512] = "", second[512] = "", third[32] = "";
	sscanf(line, "%31s %511s %511s %31s", word, first, second, third);
	int version = !strcmp(first, "1.2") ? TLS1_2_VERSION : TLS1_3_VERSION;
	if (!strcmp(word, "listen"))
		return do_listen(atoi(first));
	if (!strcmp(word, "accept"))
		return (fd = accept(listener, NULL, NULL)) < 0 ? fail(word, 0) : set_socket(1);
	if (!strcmp(word, "connect"))
		return do_connect(atoi(first));
	if (!strcmp(word, "version")) {
		SSL_CTX_set_min_proto_version(context, version);
		return SSL_CTX_set_max_proto_version(context, version) ? printf("ok\n") : fail(word, 0);
	}
	if (!strcmp(word, "cipher"))
		return SSL_CTX_set_cipher_list(context, first) ? printf("ok\n") : fail(word, 0);
	if (!strcmp(word, "alpn"))
		return set_alpn(first);
	if (!strcmp(word, "max_early")) {
		SSL_CTX_set_options(context, SSL_OP_NO_ANTI_REPLAY);
		return SSL_CTX_set_max_early_data(context, (unsigned)atoi(first)) ? printf("ok\n") : fail(word, 0);
	}
	if (!strcmp(word, "ktls"))
		return SSL_CTX_set_options(context, SSL_OP_ENABLE_KTLS), printf("ok\n");
	if (!strcmp(word, "nonblocking"))
		return nonblocking = 1, printf("ok\n");
	if (!strcmp(word, "handshake"))
		return do_handshake();
	if (!strcmp(word, "send") || !strcmp(word, "send_ex") || !strcmp(word, "early"))
		return do_send(first, (size_t)atol(second), word);
	if (!strcmp(word, "receive") || !strcmp(word, "receive_ex"))
		return do_receive((size_t)atol(first), second, (size_t)atol(third), word);
	if (!strcmp(word, "receive_early"))
		return do_receive((size_t)-1, first, 0, word);
	if (!strcmp(word, "receive_until"))
		return do_receive_until(first, second);
	if (!strcmp(word, "peek")) {
		static char data[1 << 16];
		int got = SSL_peek(ssl, data, atoi(first));
		return got > 0 ? printf("ok %d\n", got) : fail(word, got);
	}
	if (!strcmp(word, "sendfile"))
		return do_sendfile(first);
	if (!strcmp(word, "renegotiate") || !strcmp(word, "key_update"))
		return renegotiate(word[0] == 'k');
	if (!strcmp(word, "shutdown"))
		return printf("ok %d\n", SSL_shutdown(ssl));
	if (!strcmp(word, "end")) {
		char byte;
		int got = SSL_read(ssl, &byte, 1);
		return printf("ok %d\n", SSL_get_error(ssl, got));
	}
	if (!strcmp(word, "resume"))
		return resume = 1, session ? printf("ok\n") : fail("no session", 0);
	if (!strcmp(word, "close"))
		return do_close();
	return printf("failed no command %s\n", word);
}

int main(int count, char **arguments) {
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	context = SSL_CTX_new(TLS_method());
	if (count != 3 || SSL_CTX_use_certificate_file(context, arguments[1], SSL_FILETYPE_PEM) != 1 ||
	    SSL_CTX_use_PrivateKey_file(context, arguments[2], SSL_FILETYPE_PEM) != 1)
		return 2;
	SSL_CTX_set_options(context, SSL_OP_ALLOW_CLIENT_RENEGOTIATION);
	SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_BOTH);
	SSL_CTX_sess_set_new_cb(context, new_session);
	SSL_CTX_set_session_id_context(context, (const unsigned char *)"actor", 5);
	char line[2048];
	while (fgets(line, sizeof line, stdin))
		command(line);
	return 0;
}
