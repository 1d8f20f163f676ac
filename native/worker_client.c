/* What sql/80_worker.sql and sql/81_request.sql call to ask a worker: _worker_connect, _worker_send, _worker_wait,
 * _worker_take and so on.
 */
#include "worker_connection.h"

#include "access/htup_details.h"
#include "catalog/pg_foreign_server.h"
#include "commands/defrem.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"

#define SERVERS "pgrerank_worker"	/* what the names of pgrerank's foreign servers begin with */
#define MOST_BYTES (512 * 1024 * 1024)	/* of an answer, whoever asks */
#define SILENCE 400				/* milliseconds; a worker says ten times a second that it is at work */
#define LOOK 50					/* how often to look again whether another worker is there, in milliseconds */
#define BYTES_A_VALUE 64			/* of the most bytes, as a value takes jsonb a hundred bytes of memory, and time */

static const char *
option(List *options, const char *name)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *element = (DefElem *) lfirst(cell);

		if (strcmp(element->defname, name) == 0)
			return defGetString(element);
	}
	return NULL;
}

/* The options of a server of pgrerank's, and of the current user's mapping, who must be allowed to use it. */
static List *
options_of(const char *name)
{
	ForeignServer *server = GetForeignServerByName(name, false);
	AclResult	right;

#if PG_VERSION_NUM >= 160000
	right = object_aclcheck(ForeignServerRelationId, server->serverid, GetUserId(), ACL_USAGE);
#else
	right = pg_foreign_server_aclcheck(server->serverid, GetUserId(), ACL_USAGE);
#endif
	if (right != ACLCHECK_OK)
		aclcheck_error(right, OBJECT_FOREIGN_SERVER, name);
	if (strncmp(name, SERVERS, strlen(SERVERS)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE), errmsg("server \"%s\" is no worker of pgrerank's", name)));
	return list_concat(list_copy(server->options), GetUserMapping(GetUserId(), server->serverid)->options);
}

static void
append_option(const char *name, const char *value)
{
	appendBinaryStringInfo(&pgr_worker.out, name, strlen(name) + 1);
	appendBinaryStringInfo(&pgr_worker.out, value, strlen(value) + 1);
}

static void
start_up(const char *user, const char *database, const char *application)
{
	uint32		version = pg_hton32(0x30000);

	pgr_begin_message(0);
	appendBinaryStringInfo(&pgr_worker.out, (const char *) &version, sizeof(version));
	append_option("user", user);
	append_option("database", database);
	append_option("application_name", application == NULL ? "pgrerank" : application);
	append_option("client_encoding", "UTF8");
	appendStringInfoChar(&pgr_worker.out, 0);
	pgr_end_message();
}

static void
await_ready(TimestampTz until)
{
	pgr_message message;
	int			code;

	while ((message = pgr_await_message(until)).kind != 'Z')
		if (message.kind == 'E')
		{
			char	   *why = pgr_error_message(&message, &code);

			pgr_fail(PGR_UNREACHABLE, "no worker can be reached: it refused: %s", why);
		}
}

/* Connects the session to a worker, given its number and the name of its server. */
PG_FUNCTION_INFO_V1(pgrerank_worker_connect);
Datum
pgrerank_worker_connect(PG_FUNCTION_ARGS)
{
	List	   *options = options_of(NameStr(*PG_GETARG_NAME(1)));
	TimestampTz until = PG_GETARG_TIMESTAMPTZ(2);
	const char *host = option(options, "hostaddr");
	const char *port = option(options, "port");
	const char *user = option(options, "user");
	const char *password = option(options, "password");
	const char *database = option(options, "dbname");

	if (host == NULL)
		host = option(options, "host");
	if (host == NULL || port == NULL || user == NULL || password == NULL)
		ereport(ERROR, (errcode(PGR_UNREACHABLE),
						errmsg("no worker can be reached: its server lacks host, port, user or password")));
	pgr_disconnect();
	PG_TRY();
	{
		pgr_dial(host, port, until);
		pgr_worker.worker = PG_GETARG_INT32(0);
		start_up(user, database == NULL ? user : database, option(options, "application_name"));
		pgr_authenticate(password, until);
		await_ready(until);
	}
	PG_CATCH();
	{
		pgr_disconnect();
		PG_RE_THROW();
	}
	PG_END_TRY();
	PG_RETURN_VOID();
}

/* The number of the worker that the session is connected to; NULL where there is none. */
PG_FUNCTION_INFO_V1(pgrerank_worker_connected);
Datum
pgrerank_worker_connected(PG_FUNCTION_ARGS)
{
	if (pgr_worker.socket == PGINVALID_SOCKET)
		PG_RETURN_NULL();
	PG_RETURN_INT32(pgr_worker.worker);
}

PG_FUNCTION_INFO_V1(pgrerank_worker_disconnect);
Datum
pgrerank_worker_disconnect(PG_FUNCTION_ARGS)
{
	pgr_disconnect();
	PG_RETURN_VOID();
}

static void
check_connected(bool is_asked)
{
	if (pgr_worker.socket == PGINVALID_SOCKET || pgr_worker.is_asked != is_asked)
		pgr_fail(PGR_UNREACHABLE, "the connection to the worker broke");
}

/* Begins to send a request, whose answer may have so many bytes. */
PG_FUNCTION_INFO_V1(pgrerank_worker_send);
Datum
pgrerank_worker_send(PG_FUNCTION_ARGS)
{
	text	   *request = PG_GETARG_TEXT_PP(0);

	check_connected(false);
	pgr_worker.is_asked = true;
	pgr_worker.most = Min(PG_GETARG_INT32(1), MOST_BYTES);
	pgr_worker.heard = GetCurrentTimestamp();
	pgr_begin_message('Q');
	appendBinaryStringInfo(&pgr_worker.out, VARDATA_ANY(request), VARSIZE_ANY_EXHDR(request));
	appendStringInfoChar(&pgr_worker.out, 0);
	pgr_end_message();
	PG_RETURN_VOID();
}

static void
check_values(const char *json, int length)
{
	int			values = 0;
	int			most = pgr_worker.most / BYTES_A_VALUE;

	for (int i = 0; i < length; i++)
		values += json[i] == ',' || json[i] == '[' || json[i] == '{';
	if (values > most)
		pgr_fail(PGR_REFUSED, "the worker answered %d values: it may answer %d", values, most);
}

/* Keeps the one column of the one row. */
static void
keep_row(const pgr_message *row)
{
	const char *value = row->body + 6;
	uint16		columns = 0;
	uint32		length = 0;

	if (row->length >= 6)
	{
		memcpy(&columns, row->body, sizeof(columns));
		memcpy(&length, row->body + 2, sizeof(length));
		length = pg_ntoh32(length);
	}
	if (pg_ntoh16(columns) != 1 || length != (uint32) (row->length - 6) || pgr_worker.answer != NULL)
		pgr_fail(PGR_REFUSED, "the worker answered something else than one text");
	if (!pg_verify_mbstr(PG_UTF8, value, length, true))
		pgr_fail(PGR_REFUSED, "the worker answered bytes that are no UTF-8");
	check_values(value, length);
	pgr_worker.answer = MemoryContextAlloc(pgr_worker.context, VARHDRSZ + length);
	SET_VARSIZE(pgr_worker.answer, VARHDRSZ + length);
	memcpy(VARDATA(pgr_worker.answer), value, length);
}

static void
keep_error(const pgr_message *message)
{
	char	   *error = pgr_error_message(message, &pgr_worker.code);

	pgr_worker.error = MemoryContextStrdup(pgr_worker.context, error);
}

/* Whether it has refused a request, and is ready for others. After any other error it may close. */
static bool
has_too_much_to_do(void)
{
	return pgr_worker.error != NULL && pgr_worker.code == ERRCODE_TOO_MANY_CONNECTIONS;
}

/* Reads what has come; true once the answer or an error is whole. */
static bool
is_answered(void)
{
	pgr_message message;

	while ((pgr_worker.error == NULL || has_too_much_to_do()) && pgr_next_message(&message))
		if (message.kind == 'Z' && (pgr_worker.answer != NULL || pgr_worker.error != NULL))
		{
			pgr_free_read();
			return true;
		}
		else if (message.kind == 'D')
			keep_row(&message);
		else if (message.kind == 'E' && pgr_worker.error == NULL)
			keep_error(&message);
		else if (message.kind == 0 || strchr("ACNST", message.kind) == NULL)
			pgr_fail(PGR_REFUSED, "the worker answered no row, but a message of type %d", message.kind);
	return pgr_worker.error != NULL && !has_too_much_to_do();
}

/* Waits for the answer; false if the worker has been silent for so long that another may be asked. */
PG_FUNCTION_INFO_V1(pgrerank_worker_wait);
Datum
pgrerank_worker_wait(PG_FUNCTION_ARGS)
{
	TimestampTz deadline = PG_GETARG_TIMESTAMPTZ(0);
	TimestampTz look = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOK);

	check_connected(true);
	while (!is_answered())
	{
		TimestampTz silent = TimestampTzPlusMilliseconds(pgr_worker.heard, SILENCE);

		if (pgr_is_past(deadline))
			pgr_fail(PGR_LATE, "the deadline passed before the worker answered");
		if (pgr_is_past(Max(silent, look)))
			PG_RETURN_BOOL(false);
		pgr_progress(Min(deadline, Max(silent, look)));
	}
	PG_RETURN_BOOL(true);
}

/* The answer, or the worker's error. */
PG_FUNCTION_INFO_V1(pgrerank_worker_take);
Datum
pgrerank_worker_take(PG_FUNCTION_ARGS)
{
	Datum		answer;

	check_connected(true);
	if (pgr_worker.error != NULL)
	{
		int			code = pgr_worker.code;
		char	   *error = pstrdup(pgr_worker.error);

		if (!has_too_much_to_do() || pgr_worker.answer != NULL)
			pgr_fail(code, "%s", error);
		pfree(pgr_worker.error);
		pgr_worker.error = NULL;
		pgr_worker.is_asked = false;
		ereport(ERROR, (errcode(code), errmsg("%s", error)));
	}
	if (pgr_worker.answer == NULL)
		pgr_fail(PGR_UNREACHABLE, "the connection to the worker broke");
	answer = datumCopy(PointerGetDatum(pgr_worker.answer), false, -1);
	pfree(pgr_worker.answer);
	pgr_worker.answer = NULL;
	pgr_worker.is_asked = false;
	return answer;
}
