/* Packed token vectors: docs/reference/packed-tokens.md. Knows nothing of Postgres; trusts no byte. */
#ifndef PGR_TOKENS_H
#define PGR_TOKENS_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PGR_HEADER_BYTES 16
#define PGR_ERROR_BYTES 160

typedef enum
{
	PGR_FLOAT16 = 1,
	PGR_INT8 = 2,
	PGR_BIT = 3
} pgr_dtype;

/* A matrix whose header has been checked; the elements have not. */
typedef struct
{
	pgr_dtype	dtype;
	uint32_t	dims;			/* 1 to 65535 */
	uint32_t	count;			/* rows, 1 or more */
	float		scale;
	size_t		row_bytes;
	const uint8_t *rows;		/* count * row_bytes bytes, of no alignment */
} pgr_tokens;

/*
 * All return false and write a message when a byte could not have come from pgrerank.tokens.pack.
 *
 * A document is one matrix or several, one after another. pgr_tokens_parse checks the header of the first and gives the
 * bytes that it takes with its rows; pgr_tokens_read writes all elements of a matrix: float [count][dims].
 */
bool		pgr_tokens_parse(const uint8_t *bytes, size_t size, pgr_tokens *tokens, size_t *taken,
							 char error[PGR_ERROR_BYTES]);
bool		pgr_tokens_read(const pgr_tokens *tokens, float *matrix, char error[PGR_ERROR_BYTES]);

/* What is wrong with a matrix that a kernel refused. */
void		pgr_tokens_malformed(const pgr_tokens *tokens, char error[PGR_ERROR_BYTES]);

/*
 * IEEE 754 binary16 to binary32: exact, by a multiplication instead of branches, which changes the exponent's bias from
 * 15 to 127. NaN becomes an infinity.
 */
static inline float
pgr_half_to_float(uint16_t half)
{
	uint32_t	bits = (uint32_t) (half & 0x7fff) << 13;
	float		magnitude;

	memcpy(&magnitude, &bits, sizeof magnitude);
	magnitude = bits < 0x7c00u << 13 ? magnitude * 0x1p112f : INFINITY;
	return half & 0x8000 ? -magnitude : magnitude;
}

#endif
