/* Exchanges that are added up where they happen, for who wants numbers only (`--no-output`).
 *
 * What is simple is done here: a request whole in one segment of one call, or in several that follow each other, of at most
 * HELD_BYTES; its response, whose head is in one segment, with a Content-Length or without a body. Everything else goes to the
 * user side from its first byte on, which is why a request is held until its response has begun. From there on the connection is
 * the user side's, and is followed here without counting (`dry`): the user side says where two exchanges have met
 * (CONTROL_TALLY); if that is where they seemed to meet here, too, and all since was simple, then the next exchange is counted
 * here again. Each exchange is counted by one of the two, never by both: whose it is is decided by positions.
 *
 * With a log that is to cost no more than so much (`--max-cpu`, BUDGET), this is done to the connections that are left out of it.
 *
 * -D: TALLY, TALLIES_MAX, TALLY_SUMS_MAX, COUNT_BELOW(x) (how many bounds of the histogram are less than x).
 */
#ifndef NETPROFILER_TALLY_H
#define NETPROFILER_TALLY_H
#ifdef TALLY

/* tally.state */
#define TALLY_IDLE 0    /* between two exchanges */
#define TALLY_PART 1    /* the beginning of a request is held */
#define TALLY_WAITING 2 /* a request is held */
#define TALLY_BODY 3    /* in the body of a response */
#define TALLY_LAST 4    /* so, and what comes behind it is the user side's, as the other direction is */
#define TALLY_UNKNOWN 5 /* dry: somewhere */

/* While another CPU is at work on the same connection: some 10 us where it gives it to the user side, which is when a response was
 * sent, but is not seen before the next request; longer where the other CPU is interrupted. These take 0.5 ms. */
#define SPINS 100000
#define SCAN_STEPS 176 /* of up to 8 bytes, and one for each line */
#define LENGTH_DIGITS 9

#ifdef BUDGET
#define ROW_SUMMED ROW_BUDGET
#define SHARE_FACTOR 0x9e3779b1 /* netprofiler/budget.py */
#else
#define ROW_SUMMED ROW_TALLIED
#endif

#define ONES 0x0101010101010101ULL
#define SMALL_LETTERS 0x2020202020202020ULL
#define LOW_BYTES(count) ((1ULL << 8 * (count)) - 1)
#define TEXT8(a, b, c, d, e, f, g, h)                                                                                  \
	((u64)(a) | (u64)(b) << 8 | (u64)(c) << 16 | (u64)(d) << 24 | (u64)(e) << 32 | (u64)(f) << 40 |                \
	 (u64)(g) << 48 | (u64)(h) << 56)

/* A bit in each byte that is 0; only the lowest one counts. */
static __always_inline u64 zero_bytes(u64 word) {
	return (word - ONES) & ~word & (ONES << 7);
}

/* Bytes up to the lowest mark, with its own; 8 where there is none. */
static __always_inline u64 bytes_through(u64 marks) {
	return ((((marks & -marks) - 1) & ONES) * ONES) >> 56;
}

static __always_inline u64 load_text(const u8 *text, u64 at) {
	KEEP_CHECK(at);
	return *(u64 *)(text + (at & (HELD_BYTES - 1)));
}

/* A value of which the verifier knows nothing any more: else it goes through what follows once for each that it could have. */
static __always_inline u64 anew(struct workspace *w, u64 value) {
	*(volatile u64 *)&w->anew = value;
	return *(volatile u64 *)&w->anew;
}

/* What a head says of its message. Offsets are of the byte behind; 0: there is none. */
struct framing {
	u64 line; /* first line */
	u64 end; /* head */
	u64 length; /* "Content-Length:" */
	u64 host; /* "Host:" */
	u64 odd; /* something that is not for us to understand */
};

/* Of what is in the payload. What a line is is told without branches, of which the verifier would follow each. */
static __always_inline void scan_head(struct workspace *w, u64 size, struct framing *found) {
	const u8 *text = w->payload;
	u64 at = 0, length = 0, host = 0, odd = 0, first = 0, end = 0;
	struct loop loop;

	begin_loop(&loop, 0, SCAN_STEPS);
	while (next_round(&loop)) {
		u64 marks = zero_bytes(load_text(text, at) ^ ONES * '\n'), line, next, is;

		at = anew(w, at + bytes_through(marks));
		if (at >= size)
			break;
		if (!marks)
			continue;
		first |= at & -is_zero(first);
		odd |= 1 ^ is_zero((u8)load_text(text, at - 2) ^ '\r');
		line = load_text(text, at);
		if ((u16)line == ('\r' | '\n' << 8)) {
			end = at + 2;
			break;
		}
		/* A line that goes on with the one before it. */
		odd |= is_zero((u8)line ^ ' ') | is_zero((u8)line ^ '\t');
		line |= SMALL_LETTERS;
		next = load_text(text, at + 8) | SMALL_LETTERS;
		is = is_zero(line ^ TEXT8('c', 'o', 'n', 't', 'e', 'n', 't', '-')) &
		     is_zero((next ^ TEXT8('l', 'e', 'n', 'g', 't', 'h', 0, 0)) & LOW_BYTES(6));
		odd |= is & (1 ^ (is_zero(length) & is_zero((next >> 48 & 0xff) ^ ':')));
		length |= (at + 15) & -is;
		is = is_zero((line ^ TEXT8('h', 'o', 's', 't', ':', 0, 0, 0)) & LOW_BYTES(5));
		odd |= is & (1 ^ is_zero(host));
		host |= (at + 5) & -is;
		odd |= is_zero(line ^ TEXT8('t', 'r', 'a', 'n', 's', 'f', 'e', 'r')) |
		       is_zero((line ^ TEXT8('u', 'p', 'g', 'r', 'a', 'd', 'e', 0)) & LOW_BYTES(7)) |
		       is_zero((line ^ TEXT8('e', 'x', 'p', 'e', 'c', 't', 0, 0)) & LOW_BYTES(6));
	}
	end_loop(&loop);
	found->line = first;
	found->end = end <= size ? end : 0;
	found->length = length;
	found->host = host;
	found->odd = odd;
}

/* Content-Length, by the offset behind its colon; -1: not a plain number of at most LENGTH_DIGITS digits. */
static __always_inline s64 read_length(const u8 *text, u64 at) {
	u64 value = 0, digits = 0;
	u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < LENGTH_DIGITS + 2; i++) {
		u8 c = load_text(text, at + i);

		if (c == ' ' && !digits)
			continue;
		if (c < '0' || c > '9')
			return digits && c == '\r' ? (s64)value : -1;
		value = value * 10 + c - '0';
		digits++;
	}
	return -1;
}

static __always_inline u64 mix(u64 hash, u64 word) {
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 29;
}

/* The first `size` bytes at `at`, and zeros behind them, into `words` words. */
static __always_inline u64 take_text(const u8 *text, u64 at, u64 size, u64 *to, u32 words, u64 hash) {
	u32 i;

	__builtin_memset(to, 0, 8 * words);
	KEEP_CHECK(size);
	if (size <= 8 * words)
		copy_from_kernel(to, size, text + (at & (HELD_BYTES - 1)));
#pragma unroll
	for (i = 0; i < words; i++)
		hash = mix(hash, to[i]);
	return hash;
}

/* The offset of the second blank, or question mark, of a request line; 0: not within LINE_BYTES. */
static __always_inline u64 find_query(const u8 *text) {
	u64 at = 0, delimiters = 0;
	u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < LINE_BYTES / 8 + 3; i++) {
		u64 word = load_text(text, at);
		u64 blank = bytes_through(zero_bytes(word ^ ONES * ' ')), query, step;
		u64 found;

		query = bytes_through(zero_bytes(word ^ ONES * '?'));
		step = blank < query ? blank : query;
		found = load_text(text, at + step - 1) & 0xff;
		at += step;
		if (found == ' ' || found == '?')
			delimiters++;
		if (delimiters == 1 && found == '?')
			return 0;
		if (delimiters == 2)
			return at - 1 <= LINE_BYTES ? at - 1 : 0;
	}
	return 0;
}

/* --- one connection --------------------------------------------------------------------------------------------- */

/* Whose end this is. */
static __always_inline void set_place(struct workspace *w, struct ledger *ledger, struct connection *connection,
				      struct tally *t, u8 is_server) {
	struct tally_place *place = &t->place;
	struct socket_facts facts = {};
	void *task = CURRENT_TASK(), *leader = (void *)LOAD_U64(task, OFFSET_task_struct__group_leader);
	u64 hash = 0;
	u32 i;

	announce_process(w, ledger);
	__builtin_memset(place, 0, sizeof(*place));
	place->start_ns = LOAD_U64(leader, OFFSET_task_struct__start_boottime);
	place->pid = w->call.pid;
	place->is_server = is_server;
	place->is_tls = connection->library != 0;
	copy_from_kernel(&facts, SOCKET_FACTS_BYTES, connection->sk);
	place->port = is_server ? facts.local_port : __builtin_bswap16(facts.remote_port);
	if (facts.family == AF_INET)
		map_ipv4(place->address, is_server ? facts.local_address : facts.remote_address);
	else
		copy_from_kernel(place->address, 16,
				 connection->sk + (is_server ? OFFSET_sock_common__skc_v6_rcv_saddr
							     : OFFSET_sock_common__skc_v6_daddr));
#pragma unroll
	for (i = 0; i < sizeof(*place) / 8; i++)
		hash = mix(hash, ((u64 *)place)[i]);
	t->place_hash = hash;
	t->request_direction = is_server ? DIRECTION_RECV : DIRECTION_SEND;
}

/* The sum of an exchange, made if it is not there. 0: there is no room, or another one has this hash. */
static __always_inline struct tally_sum *find_sum(struct workspace *w, struct tally *t) {
	struct tally_sum *sum = tally_sums.lookup(&t->sum), *fresh = (struct tally_sum *)(w->payload + PIECE_BYTES);
	u64 differs = 0;
	u32 i;

	if (!sum) {
		__builtin_memset(&fresh->whole, 0, sizeof(fresh->whole));
		__builtin_memset(&fresh->cut, 0, sizeof(fresh->cut));
		fresh->place = t->place;
		fresh->status = t->status;
		fresh->version = t->version;
		__builtin_memset(fresh->reserved, 0, sizeof(fresh->reserved));
#pragma unroll
		for (i = 0; i < TEXT_WORDS; i++)
			fresh->text[i] = t->text[i];
		tally_sums.insert(&t->sum, fresh); /* another CPU may have, meanwhile */
		sum = tally_sums.lookup(&t->sum);
		if (!sum)
			return 0;
	}
#pragma unroll
	for (i = 0; i < sizeof(sum->place) / 8; i++)
		differs |= ((u64 *)&sum->place)[i] ^ ((u64 *)&t->place)[i];
#pragma unroll
	for (i = 0; i < TEXT_WORDS; i++)
		differs |= sum->text[i] ^ t->text[i];
	differs |= (sum->status ^ t->status) | (sum->version ^ t->version);
	return differs ? 0 : sum;
}

/* The exchange has ended. */
static __always_inline void add_up(struct tally *t, struct tally_numbers *numbers, u64 now) {
	u64 duration = now > t->record.time_ns ? now - t->record.time_ns : 0, bucket = COUNT_BELOW(duration);

	KEEP_CHECK(bucket);
	if (bucket >= BUCKETS_MAX)
		return;
	lock_xadd(&numbers->buckets[bucket], 1);
	lock_xadd(&numbers->duration_ns, duration);
	lock_xadd(&numbers->request_bytes, t->request_bytes);
	lock_xadd(&numbers->response_bytes, t->response_bytes);
}

static __always_inline void finish(struct workspace *w, struct tally *t, int is_whole, u64 now) {
	struct tally_sum *sum = find_sum(w, t); /* the user side deletes what was not used for long */

	if (sum)
		add_up(t, is_whole ? &sum->whole : &sum->cut, now);
	t->dry = t->state == TALLY_LAST;
	t->state = t->dry ? TALLY_UNKNOWN : TALLY_IDLE;
}

/* The call's first segment with bytes, up to HELD_BYTES of it, behind `held` bytes of the payload. Returns how many. */
static __always_inline u64 take_start(struct workspace *w, u64 held) {
	struct call *call = &w->call;
	u64 size;

	first_bytes(call);
	size = call->left < call->total ? call->left : call->total;
	if (size > HELD_BYTES)
		size = HELD_BYTES;
	KEEP_CHECK(size);
	KEEP_CHECK(held);
	if (!size || size > HELD_BYTES || held > HELD_BYTES ||
	    copy_from_user(w->payload + held, size, (void *)call->at))
		return 0;
	held += size;
	KEEP_CHECK(held);
	if (held > 2 * HELD_BYTES)
		return 0;
	/* What lies there is of another call. */
	*(u64 *)(w->payload + held) = 0;
	*(u64 *)(w->payload + held + 8) = 0;
	return size;
}

/* A call in the direction of requests. Returns 0 when it is not for us. */
static __always_inline int take_request(struct workspace *w, struct tally *t) {
	struct call *call = &w->call;
	struct framing head = {};
	u64 held = t->state == TALLY_PART ? t->record.length : 0, size, query, host_size = 0, hash;
	const u8 *text = w->payload;
	s64 length = 0;
	u8 c;

	if (t->state > TALLY_PART)
		return 0;
	KEEP_CHECK(held);
	if (held > HELD_BYTES || (held && copy_from_kernel(w->payload, held, t->held)))
		return 0;
	size = take_start(w, held);
	if (size < call->total || held + size > HELD_BYTES)
		return 0;
	size = anew(w, size + held);
	/* Held from here on, whatever it turns out to be. */
	if (!held) {
		t->record.kind = RECORD_DATA;
		t->record.direction = call->direction;
		t->record.flags = DATA_FIRST;
		t->record.reason = REASON_NONE;
		t->record.time_ns = call->time_ns;
		t->record.socket = call->socket;
		t->record.pid = call->pid;
		t->record.tid = call->tid;
		t->record.position = call->first_position;
		t->held_calls = 0;
	}
	scan_head(w, size, &head);
	if (head.odd || load_text(text, 0) == TEXT8('C', 'O', 'N', 'N', 'E', 'C', 'T', ' ') ||
	    (u32)load_text(text, 0) == (u32)TEXT8('H', 'T', 'T', 'P', 0, 0, 0, 0))
		return 0;
	KEEP_CHECK(size);
	if (!size || size > HELD_BYTES || copy_from_kernel(t->held, size, text))
		return 0;
	t->record.captured = size;
	t->record.length = size;
	t->held_calls++;
	t->state = TALLY_PART;
	if (!head.end)
		return 1;
	/* "... HTTP/1.x\r\n" */
	t->version = load_text(text, head.line - 3);
	query = anew(w, find_query(text));
	if (head.line < 14 || !query ||
	    (load_text(text, head.line - 11) ^ TEXT8(' ', 'H', 'T', 'T', 'P', '/', '1', '.')) ||
	    (t->version != '0' && t->version != '1') || (u8)load_text(text, head.line - 2) != '\r')
		goto undo;
	if (head.length)
		length = anew(w, read_length(text, head.length));
	if (length < 0 || head.end + length < size)
		goto undo;
	if (head.end + length > size)
		return 1; /* the rest of its body comes */
	hash = take_text(text, 0, query, t->text, LINE_BYTES / 8, t->place_hash);
	if (!t->place.is_server && head.host) {
		/* Without the blanks around it. */
		u64 at = head.host + is_zero((u8)load_text(text, head.host) ^ ' ');
		u32 i;

#pragma clang loop unroll(disable)
		for (i = 0; i <= HOST_BYTES; i += 8) {
			u64 step = bytes_through(zero_bytes(load_text(text, at + i) ^ ONES * '\r'));

			host_size += step;
			if (step < 8 || (u8)load_text(text, at + i + 7) == '\r')
				break;
		}
		host_size = anew(w, host_size - 1);
		if (host_size > HOST_BYTES)
			goto undo;
		hash = take_text(text, at, host_size, t->text + LINE_BYTES / 8, HOST_BYTES / 8, hash);
	} else {
		__builtin_memset(t->text + LINE_BYTES / 8, 0, HOST_BYTES);
	}
	c = load_text(text, 4);
	t->is_head = (u32)load_text(text, 0) == ('H' | 'E' << 8 | 'A' << 16 | 'D' << 24) && c == ' ';
	t->sum = hash;
	t->request_bytes = length;
	t->state = TALLY_WAITING;
	return 1;
undo:
	/* This call has to go up by itself. */
	t->held_calls--;
	t->record.captured = held;
	t->record.length = held;
	if (!held)
		t->state = TALLY_IDLE;
	return 0;
}

/* A call in the other direction. */
static __always_inline int take_response(struct workspace *w, struct tally *t) {
	struct call *call = &w->call;
	struct framing head = {};
	const u8 *text = w->payload;
	u64 size, line;
	s64 length;
	u32 status;

	if (t->state != TALLY_WAITING)
		return 0;
	size = anew(w, take_start(w, 0));
	if (!size)
		return 0;
	scan_head(w, size, &head);
	line = load_text(text, 0);
	if (head.odd || !head.end || (line & ~(1ULL << 56)) != TEXT8('H', 'T', 'T', 'P', '/', '1', '.', '0'))
		return 0;
	line = load_text(text, 8); /* " 200 OK\r" */
	status = (line >> 8 & 15) * 100 + (line >> 16 & 15) * 10 + (line >> 24 & 15);
	if (((line & 0xf0f0f0ffULL) ^ 0x30303020ULL) || status < 200 || status > 999)
		return 0;
	line = line >> 32 & 0xff;
	if (line != ' ' && line != '\r')
		return 0;
	length = head.length ? anew(w, read_length(text, head.length)) : -1;
	if (t->is_head || status == 204 || status == 304)
		length = 0;
	if (length < 0 || head.end + length < call->total)
		return 0;
	t->status = status;
	t->sum = mix(t->sum, status << 8 | t->version);
	if (!t->dry && !find_sum(w, t))
		return 0;
	t->response_bytes = length;
	t->left = head.end + length - call->total;
	t->state = TALLY_BODY;
	return 1;
}

/* Bytes of a response's body, and of nothing else. */
static __always_inline int take_body(struct call *call, struct tally *t) {
	if (call->total > t->left)
		return 0;
	t->left -= call->total;
	return 1;
}

/* The user side has this connection from here on: from what is held, else from this call on; of the direction of responses,
 * from behind the one that is on its way. */
static __always_inline void give(struct workspace *w, struct ledger *ledger, struct connection *connection,
				 struct tally *t) {
	struct call *call = &w->call;
	u8 requests = t->request_direction & 1, is_held = t->state == TALLY_PART || t->state == TALLY_WAITING;
	u64 size = t->record.captured;

	connection->base[requests] = is_held ? t->record.position : t->expected[requests];
	connection->base[!requests] = t->expected[!requests] + (t->state == TALLY_BODY ? (u32)t->left : 0);
	t->dry = t->state != TALLY_BODY || !t->left;
	t->state = t->dry ? TALLY_UNKNOWN : TALLY_LAST;
	if (!announce(w, ledger, connection, RESUMED))
		connection->owner = 0; /* it is tried again with this call */
	if (!is_held)
		return;
	KEEP_CHECK(size);
	if (size > HELD_BYTES)
		return;
	/* On another CPU than it was added to, perhaps: their sum is right. */
	ledger->rows[ROW_SUMMED].calls--;
	ledger->rows[ROW_SUMMED].bytes -= size;
	if (!connection->owner || send_up(ledger, &t->record, sizeof(t->record) + size)) {
		connection->lost |= 1 << requests;
		account(ledger, ROW_LOST, 1, size);
	} else {
		account(ledger, ROW_DELIVERED, 1, size);
	}
}

/* Has the user side said that two exchanges have met at one of the boundaries, behind which all was simple? */
static __always_inline int is_given_back(const struct call *call, struct tally *t) {
	struct control *control = controls.lookup(&call->socket);
	u64 met = 0;
	u32 i;

	if (!control || !(control->flags & CONTROL_TALLY))
		return 0;
#pragma unroll
	for (i = 0; i < BOUNDARIES; i++)
		met |= is_zero((t->boundaries[i][0] ^ control->skip_until[0]) |
			       (t->boundaries[i][1] ^ control->skip_until[1]));
	if (!met)
		return 0;
	control->flags = 0;
	return 1;
}

static __always_inline void note_boundary(struct tally *t) {
	u32 *boundary = t->boundaries[t->boundary++ & (BOUNDARIES - 1)];

	boundary[DIRECTION_SEND] = t->expected[DIRECTION_SEND];
	boundary[DIRECTION_RECV] = t->expected[DIRECTION_RECV];
}

static __always_inline void forget_boundaries(struct tally *t) {
	t->state = TALLY_UNKNOWN;
	__builtin_memset(t->boundaries, 0, sizeof(t->boundaries));
}

/* From here on the exchanges of this connection can be told from each other. */
static __always_inline void begin_exchanges(const struct call *call, const struct connection *connection,
					    struct tally *t) {
	u8 direction = call->direction & 1, other = !direction;

	t->expected[direction] = call->first_position;
	t->expected[other] = current_position(connection, other);
	t->state = TALLY_IDLE;
}

#ifdef BUDGET
/* The same at both ends of a connection. */
static __always_inline u32 share_of(const struct connection *connection) {
	struct socket_facts facts = {};
	u32 local[4] = {}, remote[4] = {}, sum;

	copy_from_kernel(&facts, SOCKET_FACTS_BYTES, connection->sk);
	sum = facts.local_port ^ __builtin_bswap16(facts.remote_port);
	if (facts.family == AF_INET)
		return ((sum ^ facts.local_address ^ facts.remote_address) * SHARE_FACTOR) >> 16;
	copy_from_kernel(local, sizeof(local), connection->sk + OFFSET_sock_common__skc_v6_rcv_saddr);
	copy_from_kernel(remote, sizeof(remote), connection->sk + OFFSET_sock_common__skc_v6_daddr);
	if (!local[0] && !local[1] && local[2] == __builtin_bswap32(0xffff)) /* IPv4-mapped */
		return ((sum ^ local[3] ^ remote[3]) * SHARE_FACTOR) >> 16;
	return ((sum ^ local[0] ^ local[1] ^ local[2] ^ local[3] ^ remote[0] ^ remote[1] ^ remote[2] ^ remote[3]) *
		SHARE_FACTOR) >>
	       16;
}
#endif

/* Somebody wants to see the messages of this connection. */
static __always_inline int is_logged(const struct tally *t) {
#ifdef BUDGET
	u32 zero = 0, *kept = kept_shares.lookup(&zero);

	return kept && t->share < *kept;
#else
	return 0;
#endif
}

static __always_inline int take_lock(struct tally *t) {
	struct loop loop;
	int taken = 0;

	begin_loop(&loop, 0, SPINS);
	while (next_round(&loop)) {
		if (*(volatile u32 *)&t->busy)
			continue;
		lock_xadd(&t->busy, 1);
		if (*(volatile u32 *)&t->busy == 1) {
			taken = 1;
			break;
		}
		lock_xadd(&t->busy, -1);
	}
	end_loop(&loop);
	return taken;
}

/* A call whose bytes come where the last ones ended. */
static __always_inline int take_next(struct workspace *w, struct tally *t, int is_request) {
	struct call *call = &w->call;

	if (t->state >= TALLY_BODY && !is_request)
		return take_body(call, t);
	if (t->state == TALLY_LAST || call->kind == KIND_NO_BYTES)
		return 0;
	return is_request ? take_request(w, t) : take_response(w, t);
}

/* Where no side is known, the first to speak is the client. */
static __always_inline u8 is_server_end(const struct call *call, const struct connection *connection) {
	return connection->role ? connection->role == ROLE_SERVER : (call->direction & 1) == DIRECTION_RECV;
}

/* A call on a connection that is the user side's. Returns 1 where it is ours again, from this call on. */
static __always_inline int follow(struct workspace *w, struct ledger *ledger, struct connection *connection,
				  struct tally *t) {
	struct call *call = &w->call;
	u8 direction = call->direction & 1;

	if (t->state == TALLY_UNKNOWN) {
		if (call->pid != t->place.pid || !connection->role)
			set_place(w, ledger, connection, t, is_server_end(call, connection));
		if (direction != t->request_direction)
			return 0;
		begin_exchanges(call, connection, t);
		note_boundary(t);
	}
	if (t->state == TALLY_IDLE && direction == t->request_direction && call->pid == t->place.pid &&
	    call->first_position == t->expected[direction] && is_given_back(call, t)) {
		forget_boundaries(t);
		t->state = TALLY_IDLE;
		t->dry = 0;
		return 1;
	}
	if (call->pid != t->place.pid || call->first_position != t->expected[direction] ||
	    !take_next(w, t, direction == t->request_direction)) {
		forget_boundaries(t);
		return 0;
	}
	t->expected[direction] += call->total;
	if (t->state == TALLY_BODY && !t->left) {
		t->state = TALLY_IDLE;
		note_boundary(t);
	}
	return 0;
}

/* Returns 0 when the call is the user side's. */
static __always_inline int take_exchange(struct workspace *w, struct ledger *ledger, struct connection *connection,
					 struct tally *t) {
	struct call *call = &w->call;
	u8 direction = call->direction & 1, is_request;
	int follows = call->first_position == t->expected[direction];

	if (call->pid != t->place.pid && t->state <= TALLY_WAITING) {
		if (t->state != TALLY_IDLE) {
			give(w, ledger, connection, t);
			return 0;
		}
		set_place(w, ledger, connection, t, is_server_end(call, connection));
	}
	is_request = direction == t->request_direction;
	if (t->state == TALLY_IDLE && is_logged(t)) {
		give(w, ledger, connection, t);
		return 0;
	}
	if (follows && take_next(w, t, is_request)) {
		t->expected[direction] += call->total;
		account(ledger, ROW_SUMMED, 1, call->total);
		if (t->state >= TALLY_BODY && !t->left)
			finish(w, t, 1, call->time_ns);
		return 1;
	}
	if (t->state != TALLY_LAST)
		give(w, ledger, connection, t);
	if (t->state == TALLY_LAST && !is_request)
		finish(w, t, follows, call->time_ns); /* its end, and more, is in this call; or it was not seen */
	return 0;
}

/* Returns 0 when the call is the user side's. */
static __always_inline int tally_call(struct workspace *w, struct ledger *ledger) {
	struct call *call = &w->call;
	struct connection *connection = connections.lookup(&call->socket);
	u32 zero = 0;
	struct tally *t, *nothing;
	u8 direction = call->direction & 1;
	int taken;

	/* Of UNIX sockets nothing tells when they end. */
	if (!connection || connection->verdict != VERDICT_HTTP1 || !connection->sk ||
	    (!connection->tcp && !connection->library))
		return 0;
	t = tallies.lookup(&call->socket);
	if (!t) {
		nothing = no_tally.lookup(&zero);
		if (!nothing)
			return 0;
		tallies.insert(&call->socket, nothing);
		t = tallies.lookup(&call->socket);
		if (!t)
			return 0;
#ifdef BUDGET
		t->share = share_of(connection);
#endif
		/* At its very beginning it is ours. */
		t->dry = is_logged(t) || connection->owner || !connection->fresh ||
			 connection->base[direction] != call->first_position;
		begin_exchanges(call, connection, t);
		if (t->dry)
			t->state = TALLY_UNKNOWN;
	}
	if (t->dry && is_logged(t))
		return 0;
	if (!take_lock(t)) {
		connection->lost |= 1 << call->direction;
		account(ledger, ROW_LOST, 1, call->total);
		return 1;
	}
	taken = t->dry && !follow(w, ledger, connection, t) ? 0 : take_exchange(w, ledger, connection, t);
	lock_xadd(&t->busy, -1);
	return taken;
}

int on_tally(struct bpf_raw_tracepoint_args *ctx) {
	struct place place;

	if (find_place(&place)) {
		if (tally_call(place.w, place.ledger)) {
			give_back(&place);
			return 0;
		}
		programs.call(ctx, PROGRAM_DELIVER);
		account(place.ledger, ROW_LOST, 1, place.w->call.total);
		give_back(&place);
	}
	return 0;
}

/* The socket is gone. */
static __always_inline void end_tally(u64 socket) {
	struct tally *t = tallies.lookup(&socket);
	struct tally_sum *sum;

	if (!t)
		return;
	if (t->dry) {
		tallies.delete(&socket);
		return;
	}
	if (t->state == TALLY_WAITING) {
		struct tally_asker asker = {};
		u64 zero = 0, *count;

		asker.start_ns = t->place.start_ns;
		asker.pid = t->place.pid;
		asker.is_server = t->place.is_server;
		tally_unanswered.insert(&asker, &zero);
		count = tally_unanswered.lookup(&asker);
		if (count)
			lock_xadd(count, 1);
	} else if (t->state == TALLY_BODY || t->state == TALLY_LAST) {
		sum = tally_sums.lookup(&t->sum);
		t->response_bytes -= t->left;
		if (sum)
			add_up(t, &sum->cut, bpf_ktime_get_ns());
	}
	tallies.delete(&socket);
}

#else

static __always_inline void end_tally(u64 socket) {
}

#endif
#endif
