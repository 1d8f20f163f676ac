/*
 * Fuzzes what a worker, or whoever stands in its place, can answer the native client: authentication, and answers to
 * requests. No answer may break the session, keep more memory than was allowed, or end it with an SQLSTATE that would
 * cancel it.
 *
 * Input: a byte of what goes on (bit 0: authentication first; bit 1: in the end the worker closes, else it is silent;
 * bits 2 and 3: how many bytes come at a time); a byte, the most bytes of an answer in units of 64; what the worker
 * sends.
 */
#include "backend.h"

#include <sys/socket.h>
#include <unistd.h>

#define recv client_recv
#define send client_send
#define close client_close

static ssize_t client_recv(int socket, void *bytes, size_t size, int flags);
static ssize_t client_send(int socket, const void *bytes, size_t size, int flags);
static int	client_close(int socket);

#include "../worker_connection.c"
#include "../worker_authentication.c"
#include "../worker_client.c"

#define REQUESTS 4
#define SECOND 1000000
#define MOST_KEPT (512 * 1024)	/* of memory: two buffers of up to two chunks, and an answer of 16 KB at most */

static const int chunks[] = {1, 7, 100, CHUNK};
static const uint8_t *coming;
static size_t left;
static int	flags;

bool
backend_is_silent(void)
{
	return left == 0 && !(flags & 2);
}

static ssize_t
client_recv(int socket, void *bytes, size_t size, int unused)
{
	size_t		count = Min(Min(size, left), chunks[flags >> 2 & 3]);

	if (backend_is_silent())
	{
		errno = EAGAIN;
		return -1;
	}
	memcpy(bytes, coming, count);
	coming += count;
	left -= count;
	return count;
}

static ssize_t
client_send(int socket, const void *bytes, size_t size, int unused)
{
	return size;
}

static int
client_close(int socket)
{
	return 0;
}

static void
connect_to_bytes(void)
{
	MemoryContext before;

	pgr_worker.socket = 0;
	pgr_worker.context = AllocSetContextCreate(TopMemoryContext, "pgrerank worker", ALLOCSET_DEFAULT_SIZES);
	before = MemoryContextSwitchTo(pgr_worker.context);
	initStringInfo(&pgr_worker.in);
	initStringInfo(&pgr_worker.out);
	MemoryContextSwitchTo(before);
}

static Datum
call_one(PGFunction function, Datum first, Datum second)
{
	LOCAL_FCINFO(call, 2);

	memset(call, 0, SizeForFunctionCallInfo(2));
	call->nargs = 2;
	call->args[0].value = first;
	call->args[1].value = second;
	return function(call);
}

static void
ask(int most)
{
	text	   *request = palloc(VARHDRSZ + 4);
	Datum		deadline = TimestampTzGetDatum(backend_now + SECOND);

	SET_VARSIZE(request, VARHDRSZ + 4);
	memcpy(VARDATA(request), "PING", 4);
	call_one(pgrerank_worker_send, PointerGetDatum(request), Int32GetDatum(most));
	while (!DatumGetBool(call_one(pgrerank_worker_wait, deadline, 0)))
		;
	if (VARSIZE_ANY_EXHDR(DatumGetPointer(call_one(pgrerank_worker_take, 0, 0))) > Max(most, PGR_SMALL))
		abort();
}

static void
converse(int most)
{
	if (flags & 1)
	{
		pgr_authenticate("secret", backend_now + SECOND / 10);
		await_ready(backend_now + SECOND);
	}
	for (int i = 0; i < REQUESTS; i++)
		ask(most);
}

/* Whatever came, the session goes on: it has no connection, or one that is ready. */
static void
check_end(void)
{
	if (backend_bytes > MOST_KEPT || backend_code == ERRCODE_QUERY_CANCELED ||
		backend_code == ERRCODE_ASSERT_FAILURE || backend_code == ERRCODE_SUCCESSFUL_COMPLETION)
		abort();
	pgr_disconnect();
	backend_end_call();
	if (backend_bytes != 0)
		abort();
}

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	sigjmp_buf	jump;

	if (size < 2)
		return 0;
	flags = data[0];
	coming = data + 2;
	left = size - 2;
	backend_now = 0;
	backend_code = ERRCODE_INTERNAL_ERROR;
	connect_to_bytes();
	PG_exception_stack = &jump;
	if (sigsetjmp(jump, 0) == 0)
		converse((data[1] + 1) * 64);
	PG_exception_stack = NULL;
	check_end();
	return 0;
}
