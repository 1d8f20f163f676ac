/* The walk over the matrices of a query or a document. */
#include "packed.h"

#include <stdio.h>

/* The matrix at the beginning, which is then taken off. One at least is wanted, of dims dimensions unless that is 0. */
static bool
next_matrix(const uint8_t **bytes, size_t *size, uint32_t dims, pgr_tokens *matrix, char error[PGR_ERROR_BYTES])
{
	size_t		taken;

	if (!pgr_tokens_parse(*bytes, *size, matrix, &taken, error))
		return false;
	if (dims != 0 && matrix->dims != dims)
	{
		snprintf(error, PGR_ERROR_BYTES, "expected %u dimensions, not %u", dims, matrix->dims);
		return false;
	}
	*bytes += taken;
	*size -= taken;
	return true;
}

bool
pgr_packed_measure(const uint8_t *bytes, size_t size, uint64_t *count, uint32_t *dims, char error[PGR_ERROR_BYTES])
{
	pgr_tokens	matrix;

	*count = 0;
	*dims = 0;
	do
	{
		if (!next_matrix(&bytes, &size, *dims, &matrix, error))
			return false;
		*count += matrix.count;
		*dims = matrix.dims;
	} while (size > 0);
	return true;
}

bool
pgr_packed_fill(pgr_query *query, const uint8_t *bytes, size_t size, char error[PGR_ERROR_BYTES])
{
	float	   *place = query->matrix;
	pgr_tokens	matrix;

	do
	{
		if (!next_matrix(&bytes, &size, query->dims, &matrix, error) || !pgr_tokens_read(&matrix, place, error))
			return false;
		place += (size_t) matrix.count * matrix.dims;
	} while (size > 0);
	pgr_query_ready(query);
	return true;
}

bool
pgr_packed_raise(pgr_query *query, const uint8_t *bytes, size_t size, double *best, char error[PGR_ERROR_BYTES])
{
	pgr_tokens	matrix;

	do
	{
		if (!next_matrix(&bytes, &size, query->dims, &matrix, error) || !pgr_raise_best(query, &matrix, best, error))
			return false;
	} while (size > 0);
	return true;
}
