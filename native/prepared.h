/* A statement's query: prepared at the first row and kept for the others. */
#ifndef PGR_PREPARED_H
#define PGR_PREPARED_H

#include "postgres.h"
#include "fmgr.h"

#include "query.h"

/* Makes a query of the function's first argument, detoasted, in the given memory context. */
typedef pgr_query *(*pgr_prepare) (struct varlena *given, MemoryContext context);

pgr_query  *pgr_prepared(FunctionCallInfo fcinfo, pgr_prepare prepare);

/* A query without its matrix, or an error if that would be too large. */
pgr_query  *pgr_make_query(uint64 count, uint32 dims, MemoryContext context);

void		pgr_raise(const char *message) pg_attribute_noreturn();

#endif
