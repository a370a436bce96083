// An HTTPS client by NSS: PORT NAME REQUESTS_FILE. The file has a line for each request, "METHOD TARGET". One connection, one request after the
// other, by PR_Write and PR_Read in turn with PR_Send and PR_Recv. Prints a JSON line for each exchange with what was negotiated.
#define _GNU_SOURCE // strcasestr
#include <nspr.h>
#include <nss.h>
#include <ssl.h>
#include <sslproto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static void fail(const char *what) {
	fprintf(stderr, "%s: NSPR error %d\n", what, PR_GetError());
	exit(1);
}

// The certificate is the test's own: nothing here tests NSS.
static SECStatus accept_any(void *argument, PRFileDesc *fd, PRBool check, PRBool is_server) {
	return SECSuccess;
}

static PRFileDesc *connect_tls(int port, const char *name) {
	PRFileDesc *tcp = PR_OpenTCPSocket(PR_AF_INET);
	PRNetAddr address;
	if (!tcp || PR_InitializeNetAddr(PR_IpAddrLoopback, (PRUint16)port, &address) != PR_SUCCESS)
		fail("socket");
	PRFileDesc *tls = SSL_ImportFD(NULL, tcp);
	if (!tls || SSL_AuthCertificateHook(tls, accept_any, NULL) != SECSuccess)
		fail("SSL_ImportFD");
	static const unsigned char offer[] = "\x08http/1.1";
	if (SSL_SetURL(tls, name) != SECSuccess)
		fail("SSL_SetURL");
	if (SSL_SetNextProtoNego(tls, offer, sizeof offer - 1) != SECSuccess)
		fail("SSL_SetNextProtoNego");
	if (PR_Connect(tls, &address, PR_SecondsToInterval(10)) != PR_SUCCESS)
		fail("PR_Connect");
	return tls;
}

static int receive(PRFileDesc *tls, char *buffer, int size, int number) {
	int got = number % 2 ? PR_Recv(tls, buffer, size, 0, PR_SecondsToInterval(10)) : PR_Read(tls, buffer, size);
	if (got <= 0)
		fail("the stream ended");
	return got;
}

int main(int count, char **arguments) {
	if (count != 4 || NSS_NoDB_Init(NULL) != SECSuccess || NSS_SetDomesticPolicy() != SECSuccess)
		fail("NSS");
	PRFileDesc *tls = connect_tls(atoi(arguments[1]), arguments[2]);
	FILE *plan = fopen(arguments[3], "r");
	char method[16], target[1024];
	static char buffer[1 << 20];
	for (int number = 0; plan && fscanf(plan, "%15s %1023s", method, target) == 2; number++) {
		char request[2048];
		int length = snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: %s\r\n\r\n", method, target,
				      arguments[2]);
		int sent = number % 2 ? PR_Send(tls, request, length, 0, PR_SecondsToInterval(10))
				      : PR_Write(tls, request, length);
		if (sent != length)
			fail("write");
		int have = 0;
		char *end = NULL;
		while (!end) {
			have += receive(tls, buffer + have, (int)sizeof buffer - 1 - have, number);
			buffer[have] = 0;
			end = strstr(buffer, "\r\n\r\n");
		}
		char *field = strcasestr(buffer, "\r\ncontent-length:");
		int body = strcmp(method, "HEAD") && field && field < end ? atoi(field + 17) : 0;
		int whole = (int)(end + 4 - buffer) + body;
		while (have < whole)
			have += receive(tls, buffer + have, (int)sizeof buffer - 1 - have, number);
		SSLChannelInfo channel;
		SSLCipherSuiteInfo suite;
		SSLNextProtoState state;
		unsigned char protocol[64];
		unsigned int protocol_bytes = 0;
		if (SSL_GetChannelInfo(tls, &channel, sizeof channel) != SECSuccess)
			fail("SSL_GetChannelInfo");
		if (SSL_GetCipherSuiteInfo(channel.cipherSuite, &suite, sizeof suite) != SECSuccess)
			fail("cipher suite");
		if (SSL_GetNextProto(tls, &state, protocol, &protocol_bytes, sizeof protocol) != SECSuccess)
			fail("ALPN");
		printf("{\"method\":\"%s\",\"target\":\"%s\",\"status\":%d,\"response_body_bytes\":%d,\"request_body_"
		       "bytes\":0,"
		       "\"version\":\"TLSv1.%d\",\"cipher\":\"%s\",\"alpn\":\"%.*s\",\"sni\":\"%s\"}\n",
		       method, target, atoi(buffer + 9), body, (channel.protocolVersion & 0xff) - 1,
		       suite.cipherSuiteName, (int)protocol_bytes, protocol, arguments[2]);
	}
	PR_Close(tls);
	return 0;
}
