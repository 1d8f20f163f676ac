/* Queries and documents as bytes: one packed matrix or several, one after another. Knows nothing of Postgres. */
#ifndef PGR_PACKED_H
#define PGR_PACKED_H

#include "query.h"

/* All return false with a message for bytes that are malformed, do not fit, or are too many. */

/* How many vectors of which dimensions a query has. */
bool		pgr_packed_measure(const uint8_t *bytes, size_t size, uint64_t *count, uint32_t *dims,
							   char error[PGR_ERROR_BYTES]);

/* Makes an initialised query of that size ready. */
bool		pgr_packed_fill(pgr_query *query, const uint8_t *bytes, size_t size, char error[PGR_ERROR_BYTES]);

/* Raises the best products by all matrices of a document, or of a part of one. */
bool		pgr_packed_raise(pgr_query *query, const uint8_t *bytes, size_t size, double *best,
							 char error[PGR_ERROR_BYTES]);

#endif
