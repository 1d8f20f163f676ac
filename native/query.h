/* A query, prepared once, and documents scored against it. Knows nothing of Postgres. */
#ifndef PGR_QUERY_H
#define PGR_QUERY_H

#include "kernel.h"

/* Elements of the largest query that is scored: 65536 vectors of 256 dimensions. */
#define PGR_MAX_QUERY_ELEMENTS (1u << 24)

/* Bytes that pgr_query_init needs for count vectors of dims dimensions; 0 when there are too many. */
size_t		pgr_query_bytes(uint64_t count, uint32_t dims);

/* Makes a query in memory of that size and any alignment. Its matrix [count][dims] is then the caller's to fill. */
pgr_query  *pgr_query_init(void *memory, const pgr_kernel *kernel, uint32_t count, uint32_t dims);

/* To be called when the matrix is filled, with finite values. */
void		pgr_query_ready(pgr_query *query);

/*
 * Scoring a document that comes in several matrices: the best products start at pgr_no_best, each matrix raises them,
 * MaxSim is their sum. best is double [query->count]. A matrix must have the query's dimensions. False with a message:
 * for a malformed one, or a score that float32 can't hold.
 */
void		pgr_no_best(const pgr_query *query, double *best);
bool		pgr_raise_best(pgr_query *query, const pgr_tokens *matrix, double *best, char error[PGR_ERROR_BYTES]);
bool		pgr_sum_best(const double *best, uint32_t count, float *score, char error[PGR_ERROR_BYTES]);

/* The same with count rows given by a function which writes row number `row` of dims floats. */
typedef void (*pgr_row_reader) (const void *rows, uint32_t row, float *values);
void		pgr_raise_best_floats(pgr_query *query, pgr_row_reader read, const void *rows, uint32_t count,
								  double *best);

#endif
