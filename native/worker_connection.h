/*
 * A connection to a worker: bytes there and back, framed as messages of the Postgres protocol, without ever waiting
 * beyond a given time, and without keeping more of what comes than was allowed.
 *
 * libpq is not used: it reads as long as bytes come, up to a message of 2 GB, and computes as many rounds of PBKDF2 as
 * it is told to, while nothing interrupts it.
 */
#ifndef PGR_WORKER_CONNECTION_H
#define PGR_WORKER_CONNECTION_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "port.h"
#include "utils/timestamp.h"

/* What _raise in sql/10_schema.sql lists. */
#define PGR_UNREACHABLE MAKE_SQLSTATE('P', 'G', 'R', '0', '1')
#define PGR_LATE MAKE_SQLSTATE('P', 'G', 'R', '0', '2')
#define PGR_REFUSED MAKE_SQLSTATE('P', 'G', 'R', '0', '3')

/* The longest message but for rows: names, errors, authentication. */
#define PGR_SMALL 65536

typedef struct
{
	pgsocket	socket;			/* PGINVALID_SOCKET where there is no connection */
	int			worker;
	bool		is_asked;		/* a request was sent, and its answer is not complete */
	int			most;			/* bytes of the answer */
	TimestampTz heard;			/* when bytes went last, in either direction */
	text	   *answer;			/* the row that has come, or NULL */
	char	   *error;			/* that has come, or NULL, and its SQLSTATE */
	int			code;
	StringInfoData in;			/* bytes that have come, of which those up to its cursor are read */
	StringInfoData out;			/* bytes to be sent, of which those up to its cursor are gone */
	MemoryContext context;		/* of all that is pointed to */
} pgr_connection;

typedef struct
{
	char		kind;
	const char *body;			/* valid until more bytes are taken */
	int			length;
} pgr_message;

/* The session's own. A request that an error ended in the middle leaves is_asked set, and the connection unusable. */
extern pgr_connection pgr_worker;

/* Ends the connection, if there is one, and raises an error. */
#define pgr_fail(code, ...) \
	do { int sqlstate = (code); pgr_disconnect(); ereport(ERROR, (errcode(sqlstate), errmsg(__VA_ARGS__))); } while (0)

extern void pgr_dial(const char *host, const char *port, TimestampTz until);
extern void pgr_disconnect(void);
extern bool pgr_is_past(TimestampTz time);
extern bool pgr_progress(TimestampTz until);
extern void pgr_free_read(void);
extern void pgr_begin_message(char kind);
extern void pgr_end_message(void);
extern bool pgr_next_message(pgr_message *message);
extern char *pgr_error_message(const pgr_message *message, int *code);

extern pgr_message pgr_await_message(TimestampTz until);

extern void pgr_authenticate(const char *password, TimestampTz until);

#endif
