/* What do the first bytes speak? Decided here, so that what is not HTTP is never copied.
 *
 * Loose on purpose (a method is up to 15 capitals and dashes before " /", " *" or " http"): the user side is strict, and
 * tells us to ignore what it finds not to be HTTP. Strictness here would lose WebDAV's and private methods.
 */
#ifndef NETPROFILER_DETECT_H
#define NETPROFILER_DETECT_H

#define LOOKS_OTHER 0
#define LOOKS_SHORT 1 /* so far it could be HTTP/1: more bytes will tell */
#define LOOKS_HTTP1 2
#define LOOKS_HTTP2 3
#define LOOKS_TLS 4

/* The header of a TLS record, of any type: what begins a call on a TLS connection that was joined late. */
static __always_inline int begins_record(const u8 *text, u32 length) {
	return length >= 5 && text[0] >= 0x14 && text[0] <= 0x17 && text[1] == 3 && text[2] <= 4 && text[3] <= 0x48;
}

/* A ClientHello, by the first 6 bytes of its record. */
static __always_inline int begins_hello(const u8 *text) {
	return text[0] == 0x16 && text[1] == 3 && text[5] == 1;
}

/* The header of an HTTP/2 frame (RFC 9113, section 6) that carries something: what begins a call on a connection that was
 * joined late. Of the flags, those that its type knows. */
static __always_inline int begins_frame(const u8 *text, u32 length) {
	u32 size, stream;

	if (length < 9)
		return 0;
	size = text[0] << 16 | text[1] << 8 | text[2];
	stream = text[5] << 24 | text[6] << 16 | text[7] << 8 | text[8];
	if (stream >> 31)
		return 0;
	switch (text[3]) {
	case 0: /* DATA: END_STREAM, PADDED */
		return stream && !(text[4] & ~0x09);
	case 1: /* HEADERS: those, END_HEADERS, PRIORITY */
		return stream && size && !(text[4] & ~0x2d);
	case 3: /* RST_STREAM */
		return stream && size == 4 && !text[4];
	case 4: /* SETTINGS: ACK */
		return !stream && size < 256 && !(text[4] & ~0x01);
	case 6: /* PING: ACK */
		return !stream && size == 8 && !(text[4] & ~0x01);
	case 7: /* GOAWAY */
		return !stream && size >= 8 && size < 1024 && !text[4];
	case 8: /* WINDOW_UPDATE */
		return size == 4 && !text[4];
	}
	return 0;
}

static __always_inline int looks_like(const u8 *text, u32 length) {
	u32 i;

	/* A SETTINGS frame of stream 0: an HTTP/2 server may speak before it has read the preface. */
	if (length >= 9 && !text[0] && text[3] == 4 && !text[4] && !text[5] && !text[6] && !text[7] && !text[8])
		return LOOKS_HTTP2;
	if (length >= 3 && text[0] == 0x16 && text[1] == 3 && text[2] <= 4)
		return LOOKS_TLS;
	if (text[0] == 'H' && length >= 2 && text[1] == 'T') {
		const char version[] = "HTTP/1.";

#pragma unroll
		for (i = 0; i < 7; i++) {
			if (i >= length)
				return LOOKS_SHORT;
			if (text[i] != version[i])
				return LOOKS_OTHER;
		}
		return LOOKS_HTTP1;
	}
#pragma clang loop unroll(disable)
	for (i = 0; i < PREFIX_BYTES; i++) {
		u8 c;

		if (i >= length)
			return LOOKS_SHORT;
		c = text[i];
		if ((c >= 'A' && c <= 'Z') || (c == '-' && i > 0))
			continue;
		if (c != ' ' || i < 3)
			return LOOKS_OTHER;
		if (i == 7 && text[0] == 'C' && text[1] == 'O' && text[2] == 'N' && text[6] == 'T')
			return LOOKS_HTTP1; /* CONNECT host:port */
		if (i == PREFIX_BYTES - 1)
			return LOOKS_OTHER;
		if (i + 1 >= length)
			return LOOKS_SHORT;
		c = text[i + 1];
		if (c == '*' && i == 3 && text[0] == 'P' && text[1] == 'R' && text[2] == 'I')
			return LOOKS_HTTP2; /* the preface */
		if (c == '/' || c == '*' || c == 'h' || c == 'H')
			return LOOKS_HTTP1;
		return LOOKS_OTHER;
	}
	return LOOKS_OTHER;
}

#endif
