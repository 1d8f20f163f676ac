/*
 * The little of Postgres' backend that the native client calls, for its fuzzer: memory contexts that count, errors
 * that jump, a clock that only work moves on. The rest comes from libpgcommon and libpgport.
 */
#include "backend.h"

#include "common/cryptohash.h"
#include "common/hmac.h"
#include "common/saslprep.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

#undef malloc
#undef free

/* A piece of memory, in the list of its context. */
typedef struct block
{
	struct block *next;
	struct block **link;		/* what points here */
	size_t		size;
	max_align_t bytes[];
} block;

typedef struct
{
	MemoryContextData postgres;
	block	   *blocks;
} context;

static context top, call;
size_t		backend_bytes;
int			backend_code;
TimestampTz backend_now;

MemoryContext TopMemoryContext = &top.postgres;
MemoryContext CurrentMemoryContext = &call.postgres;
sigjmp_buf *PG_exception_stack;
ErrorContextCallback *error_context_stack;
volatile sig_atomic_t InterruptPending;
struct Latch *MyLatch;

/* Memory */

static void
link_block(block *one, block **first)
{
	one->next = *first;
	one->link = first;
	if (one->next != NULL)
		one->next->link = &one->next;
	*first = one;
}

void *
MemoryContextAlloc(MemoryContext memory, Size size)
{
	block	   *one = malloc(sizeof(block) + size);

	if (one == NULL || size > MaxAllocSize)
		abort();
	one->size = size;
	link_block(one, &((context *) memory)->blocks);
	backend_bytes += size;
	return one->bytes;
}

void
pfree(void *pointer)
{
	block	   *one = (block *) ((char *) pointer - offsetof(block, bytes));

	*one->link = one->next;
	if (one->next != NULL)
		one->next->link = one->link;
	backend_bytes -= one->size;
	free(one);
}

static void
empty(context *memory)
{
	while (memory->blocks != NULL)
		pfree(memory->blocks->bytes);
}

MemoryContext
AllocSetContextCreateInternal(MemoryContext parent, const char *name, Size least, Size first, Size most)
{
	context    *memory = MemoryContextAlloc(parent, sizeof(context));

	memset(memory, 0, sizeof(context));
	return &memory->postgres;
}

void
MemoryContextDelete(MemoryContext memory)
{
	empty((context *) memory);
	pfree(memory);
}

void
backend_end_call(void)
{
	empty(&call);
}

void *
palloc(Size size)
{
	return MemoryContextAlloc(CurrentMemoryContext, size);
}

/* Always elsewhere, so that the sanitizer sees who still reads the old place. */
void *
repalloc(void *pointer, Size size)
{
	block	   *one = (block *) ((char *) pointer - offsetof(block, bytes));
	block	   *grown = malloc(sizeof(block) + size);

	if (grown == NULL || size > MaxAllocSize)
		abort();
	memcpy(grown->bytes, one->bytes, Min(one->size, size));
	grown->size = size;
	link_block(grown, one->link);
	*grown->link = grown;
	backend_bytes += size;
	grown->next = one;
	one->link = &grown->next;
	pfree(pointer);
	return grown->bytes;
}

char *
pnstrdup(const char *string, Size length)
{
	char	   *copy;

	length = strnlen(string, length);
	copy = palloc(length + 1);
	memcpy(copy, string, length);
	copy[length] = 0;
	return copy;
}

char *
pstrdup(const char *string)
{
	return pnstrdup(string, strlen(string));
}

char *
MemoryContextStrdup(MemoryContext memory, const char *string)
{
	return strcpy(MemoryContextAlloc(memory, strlen(string) + 1), string);
}

Datum
datumCopy(Datum value, bool is_by_value, int length)
{
	size_t		size = VARSIZE_ANY(DatumGetPointer(value));

	return PointerGetDatum(memcpy(palloc(size), DatumGetPointer(value), size));
}

struct varlena *
pg_detoast_datum_packed(struct varlena *datum)
{
	return datum;
}

/* Errors */

bool
errstart(int level, const char *domain)
{
	backend_code = ERRCODE_INTERNAL_ERROR;
	return true;
}

bool
errstart_cold(int level, const char *domain)
{
	return errstart(level, domain);
}

int
errcode(int code)
{
	backend_code = code;
	return 0;
}

/* Formatted, so that the sanitizer sees what is read for it. */
static int
format_message(const char *format, va_list values)
{
	static char said[PGR_MOST_SAID];

	return vsnprintf(said, sizeof(said), format, values);
}

int
errmsg(const char *format,...)
{
	va_list		values;

	va_start(values, format);
	format_message(format, values);
	va_end(values);
	return 0;
}

int
errmsg_internal(const char *format,...)
{
	va_list		values;

	va_start(values, format);
	format_message(format, values);
	va_end(values);
	return 0;
}

void
errfinish(const char *file, int line, const char *function)
{
	pg_re_throw();
}

void
pg_re_throw(void)
{
	if (PG_exception_stack == NULL)
		abort();
	siglongjmp(*PG_exception_stack, 1);
}

/* Characters */

bool
pg_verify_mbstr(int encoding, const char *string, int length, bool is_silent)
{
	return pg_encoding_verifymbstr(encoding, string, length) == length;
}

int
pg_encoding_mbcliplen(int encoding, const char *string, int length, int limit)
{
	int			clipped = 0;

	while (clipped < length && string[clipped] != 0)
	{
		int			one = pg_encoding_mblen(encoding, string + clipped);

		if (clipped + one > limit)
			break;
		clipped += one;
	}
	return clipped;
}

/* Time. Without more bytes to come, waiting lasts until its end. */

TimestampTz
GetCurrentTimestamp(void)
{
	return backend_now;
}

long
TimestampDifferenceMilliseconds(TimestampTz from, TimestampTz to)
{
	return to <= from ? 0 : (to - from + 999) / 1000;
}

int
WaitLatchOrSocket(Latch *latch, int events, pgsocket socket, long milliseconds, uint32 why)
{
	if (events & WL_SOCKET_WRITEABLE || !backend_is_silent())
		return events & (WL_SOCKET_WRITEABLE | WL_SOCKET_READABLE);
	backend_now += milliseconds * 1000;
	return WL_TIMEOUT;
}

void
ResetLatch(Latch *latch)
{
}

void
ProcessInterrupts(void)
{
}

bool
AcquireExternalFD(void)
{
	return true;
}

void
ReleaseExternalFD(void)
{
}

/* Cryptography that anyone can foresee, so that the fuzzer gets past it. A round of it takes ten microseconds. */

pg_hmac_ctx *
pg_hmac_create(pg_cryptohash_type type)
{
	return (pg_hmac_ctx *) &backend_now;
}

int
pg_hmac_init(pg_hmac_ctx *hmac, const uint8 *key, size_t length)
{
	backend_now += 10;
	return 0;
}

int
pg_hmac_update(pg_hmac_ctx *hmac, const uint8 *data, size_t length)
{
	return 0;
}

int
pg_hmac_final(pg_hmac_ctx *hmac, uint8 *result, size_t length)
{
	memset(result, 0, length);
	return 0;
}

void
pg_hmac_free(pg_hmac_ctx *hmac)
{
}

pg_cryptohash_ctx *
pg_cryptohash_create(pg_cryptohash_type type)
{
	return (pg_cryptohash_ctx *) &backend_now;
}

int
pg_cryptohash_init(pg_cryptohash_ctx *hash)
{
	return 0;
}

int
pg_cryptohash_update(pg_cryptohash_ctx *hash, const uint8 *data, size_t length)
{
	return 0;
}

int
pg_cryptohash_final(pg_cryptohash_ctx *hash, uint8 *result, size_t length)
{
	memset(result, 0, length);
	return 0;
}

void
pg_cryptohash_free(pg_cryptohash_ctx *hash)
{
}

pg_saslprep_rc
pg_saslprep(const char *password, char **prepared)
{
	*prepared = pstrdup(password);
	return SASLPREP_SUCCESS;
}

bool
pg_strong_random(void *bytes, size_t length)
{
	memset(bytes, 0, length);
	return true;
}
