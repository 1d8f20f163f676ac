/* A statement's query: prepared at the first row and kept for the others. */
#ifndef PGR_PREPARED_H
#define PGR_PREPARED_H

#include "postgres.h"
#include "fmgr.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

#include "packed.h"

/* Makes a query, or several, of an argument, detoasted, in the given memory context. */
typedef void *(*pgr_prepare) (struct varlena *given, MemoryContext context);

void	   *pgr_prepared(FunctionCallInfo fcinfo, int argument, pgr_prepare prepare);

/* A query without its matrix, or an error if that would be too large. */
pgr_query  *pgr_make_query(uint64 count, uint32 dims, MemoryContext context);

/* A query from packed tokens, and the best products raised by all matrices of a document, or of a part of one. */
void	   *pgr_prepare_packed(struct varlena *given, MemoryContext context);
void		pgr_raise_best_packed(pgr_query *query, const struct varlena *packed, double *best);

/* MaxSim from the best products, or an error. */
float		pgr_score(const double *best, uint32 count);

void		pgr_raise(const char *message) __attribute__((noreturn));

#endif
