/* The socket to a worker, and the framing of messages. */
#include "worker_connection.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_bswap.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#define CHUNK 65536
#define MOST_ADDRESSES 8

pgr_connection pgr_worker = {.socket = PGINVALID_SOCKET};

/* Nothing in it waits. A worker drops the requests of who leaves. */
void
pgr_disconnect(void)
{
	if (pgr_worker.socket == PGINVALID_SOCKET)
		return;
	close(pgr_worker.socket);
	ReleaseExternalFD();
	if (pgr_worker.context != NULL)
		MemoryContextDelete(pgr_worker.context);
	pgr_worker = (pgr_connection) {.socket = PGINVALID_SOCKET};
}

bool
pgr_is_past(TimestampTz time)
{
	return GetCurrentTimestamp() >= time;
}

static void
wait_for(int events, TimestampTz until)
{
	long		milliseconds = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);

	if (WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH | events, pgr_worker.socket,
						  milliseconds, PG_WAIT_EXTENSION) & WL_LATCH_SET)
		ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

static void
open_socket(int family)
{
	int			on = 1;
	MemoryContext before;

	if (!AcquireExternalFD())
		ereport(ERROR, (errcode(PGR_UNREACHABLE), errmsg("no worker can be reached: %m")));
	pgr_worker.socket = socket(family, SOCK_STREAM, 0);
	if (pgr_worker.socket == PGINVALID_SOCKET)
	{
		ReleaseExternalFD();
		ereport(ERROR, (errcode(PGR_UNREACHABLE), errmsg("no worker can be reached: %m")));
	}
	pgr_worker.context = AllocSetContextCreate(TopMemoryContext, "pgrerank worker", ALLOCSET_DEFAULT_SIZES);
	before = MemoryContextSwitchTo(pgr_worker.context);
	initStringInfo(&pgr_worker.in);
	initStringInfo(&pgr_worker.out);
	MemoryContextSwitchTo(before);
	if (!pg_set_noblock(pgr_worker.socket) || fcntl(pgr_worker.socket, F_SETFD, FD_CLOEXEC) < 0)
		pgr_fail(PGR_UNREACHABLE, "no worker can be reached: %m");
	setsockopt(pgr_worker.socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

/* Why an address leads nowhere, as an errno; 0 where it has been connected to. */
static int
connect_to(const struct sockaddr *address, socklen_t length, TimestampTz until)
{
	int			error = 0;
	socklen_t	size = sizeof(error);

	open_socket(address->sa_family);
	if (connect(pgr_worker.socket, address, length) == 0)
		return 0;
	if (errno != EINPROGRESS && errno != EINTR)
		return errno;
	for (;;)
	{
		struct sockaddr_storage peer;
		socklen_t	peer_size = sizeof(peer);

		wait_for(WL_SOCKET_WRITEABLE, until);
		if (getsockopt(pgr_worker.socket, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
			return errno;
		if (error != 0 || getpeername(pgr_worker.socket, (struct sockaddr *) &peer, &peer_size) == 0)
			return error;
		if (pgr_is_past(until))
			return ETIMEDOUT;
	}
}

/* Connects to the first address of a host that can be. Names are resolved by the system, which may take its time. */
void
pgr_dial(const char *host, const char *port, TimestampTz until)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
	struct addrinfo *found;
	struct sockaddr_storage addresses[MOST_ADDRESSES];
	socklen_t	lengths[MOST_ADDRESSES];
	int			count = 0;
	int			error = getaddrinfo(host, port, &hints, &found);

	if (error != 0)
		ereport(ERROR,
				(errcode(PGR_UNREACHABLE), errmsg("no worker can be reached: %s: %s", host, gai_strerror(error))));
	for (struct addrinfo *a = found; a != NULL && count < MOST_ADDRESSES; a = a->ai_next)
	{
		lengths[count] = a->ai_addrlen;
		memcpy(&addresses[count++], a->ai_addr, a->ai_addrlen);
	}
	freeaddrinfo(found);
	for (int i = 0; i < count; i++)
	{
		error = connect_to((struct sockaddr *) &addresses[i], lengths[i], until);
		if (error == 0)
			return;
		pgr_disconnect();
	}
	errno = error;
	ereport(ERROR, (errcode(PGR_UNREACHABLE), errmsg("no worker can be reached: %s port %s: %m", host, port)));
}

static bool
would_wait(void)
{
	return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

static void
send_some(void)
{
	StringInfo	out = &pgr_worker.out;

	while (out->cursor < out->len)
	{
		ssize_t		sent = send(pgr_worker.socket, out->data + out->cursor, out->len - out->cursor, 0);

		if (sent < 0 && would_wait())
			return;
		if (sent < 0)
			pgr_fail(PGR_UNREACHABLE, "the connection to the worker broke: %m");
		out->cursor += sent;
		pgr_worker.heard = GetCurrentTimestamp();
		CHECK_FOR_INTERRUPTS();
	}
}

/* At most one chunk at a time, so that whoever reads messages sees early what is announced. */
static void
take_some(void)
{
	StringInfo	in = &pgr_worker.in;
	ssize_t		taken;

	if (in->cursor > 0)
	{
		memmove(in->data, in->data + in->cursor, in->len - in->cursor);
		in->len -= in->cursor;
		in->cursor = 0;
	}
	enlargeStringInfo(in, CHUNK);
	taken = recv(pgr_worker.socket, in->data + in->len, CHUNK, 0);
	if (taken < 0 && would_wait())
		return;
	if (taken < 0)
		pgr_fail(PGR_UNREACHABLE, "the connection to the worker broke: %m");
	if (taken == 0)
		pgr_fail(PGR_UNREACHABLE, "the connection to the worker broke: it was closed");
	in->len += taken;
	pgr_worker.heard = GetCurrentTimestamp();
}

/* Sends and takes what can be; false once the time has come. Interruptible. */
bool
pgr_progress(TimestampTz until)
{
	send_some();
	wait_for(WL_SOCKET_READABLE | (pgr_worker.out.cursor < pgr_worker.out.len ? WL_SOCKET_WRITEABLE : 0), until);
	take_some();
	return !pgr_is_past(until);
}

static void
free_large(StringInfo string)
{
	if (string->maxlen <= 2 * CHUNK)
		return;
	string->len -= string->cursor;
	memmove(string->data, string->data + string->cursor, string->len);
	string->cursor = 0;
	string->maxlen = Max(string->len + 1, CHUNK);
	string->data = repalloc(string->data, string->maxlen);
}

/* Gives back the memory of a large request and its answer, both of which are done with. */
void
pgr_free_read(void)
{
	free_large(&pgr_worker.in);
	free_large(&pgr_worker.out);
}

/* What the caller appends to pgr_worker.out in between is the message's body. A start-up message has no kind. */
void
pgr_begin_message(char kind)
{
	static const char no_length[4];

	resetStringInfo(&pgr_worker.out);
	if (kind != 0)
		appendStringInfoChar(&pgr_worker.out, kind);
	appendBinaryStringInfo(&pgr_worker.out, no_length, sizeof(no_length));
}

void
pgr_end_message(void)
{
	StringInfo	out = &pgr_worker.out;
	int			start = out->data[0] == 0 ? 0 : 1;
	uint32		length = pg_hton32(out->len - start);

	memcpy(out->data + start, &length, sizeof(length));
}

/* Takes a message off what has come, if there is a whole one. Only a row may be large. */
bool
pgr_next_message(pgr_message *message)
{
	StringInfo	in = &pgr_worker.in;
	const char *start = in->data + in->cursor;
	uint32		length;
	int			most;

	if (in->len - in->cursor < 5)
		return false;
	memcpy(&length, start + 1, sizeof(length));
	length = pg_ntoh32(length);
	most = start[0] == 'D' && pgr_worker.is_asked ? Max(pgr_worker.most, PGR_SMALL) : PGR_SMALL;
	if (length < 4 || length > (uint32) most)
		pgr_fail(pgr_worker.is_asked ? PGR_REFUSED : PGR_UNREACHABLE,
				 "the worker answered a message of %u bytes: it may have %d", length, most);
	if (in->len - in->cursor < (int) length + 1)
		return false;
	*message = (pgr_message) {.kind = start[0], .body = start + 5, .length = length - 4};
	in->cursor += length + 1;
	return true;
}

pgr_message
pgr_await_message(TimestampTz until)
{
	pgr_message message;

	while (!pgr_next_message(&message))
		if (!pgr_progress(until))
			pgr_fail(PGR_UNREACHABLE, "no worker can be reached: it did not answer in time");
	return message;
}

static bool
is_sqlstate(const char *field, int length)
{
	return length == 5 && strspn(field, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") == 5;
}

/* The text and SQLSTATE of an error, which belong to the caller; XX000 for what no handler in SQL would see. */
char *
pgr_error_message(const pgr_message *message, int *code)
{
	const char *field = message->body;
	const char *end = message->body + message->length;
	const char *said = NULL;
	int			length = 0;

	*code = ERRCODE_INTERNAL_ERROR;
	while (field < end && *field != 0)
	{
		const char *zero = memchr(field + 1, 0, end - field - 1);

		if (zero == NULL)
			break;
		if (*field == 'C' && is_sqlstate(field + 1, zero - field - 1))
			*code = MAKE_SQLSTATE(field[1], field[2], field[3], field[4], field[5]);
		if (*field == 'M')
		{
			said = field + 1;
			length = zero - said;
		}
		field = zero + 1;
	}
	if (*code == ERRCODE_QUERY_CANCELED || *code == ERRCODE_ASSERT_FAILURE || *code == ERRCODE_SUCCESSFUL_COMPLETION)
		*code = ERRCODE_INTERNAL_ERROR;
	if (said == NULL || !pg_verify_mbstr(PG_UTF8, said, length, true))
		return pstrdup("no reason that can be read");
	return pnstrdup(said, pg_encoding_mbcliplen(PG_UTF8, said, length, 1000));
}
