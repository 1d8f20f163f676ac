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

/* MaxSim; false with a message if the document does not fit, is malformed, or its score is beyond float32. */
bool		pgr_score_tokens(pgr_query *query, const pgr_tokens *document, float *score, char error[PGR_ERROR_BYTES]);

/* MaxSim with rows given by a function which writes row number `row` of dims floats. */
typedef void (*pgr_row_reader) (const void *rows, uint32_t row, float *values);
bool		pgr_score_floats(pgr_query *query, pgr_row_reader read, const void *rows, uint32_t count, float *score, char error[PGR_ERROR_BYTES]);

#endif
