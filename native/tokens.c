/* Reading packed token vectors, row by row and slowly: queries, and the tails of what kernels do. */
#include "tokens.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static uint32_t
little_endian(const uint8_t *bytes, int size)
{
	uint32_t	value = 0;

	for (int i = 0; i < size; i++)
		value |= (uint32_t) bytes[i] << (8 * i);
	return value;
}

static float
float_of_bits(uint32_t bits)
{
	float		value;

	memcpy(&value, &bits, sizeof value);
	return value;
}

static bool
check_scale(const pgr_tokens *tokens, char *error)
{
	float		largest = tokens->scale * (tokens->dtype == PGR_INT8 ? 127 : 1);

	if (!(tokens->scale > 0 && largest <= FLT_MAX))
		snprintf(error, PGR_ERROR_BYTES, "packed tokens: expected a finite scale above zero, not %g", tokens->scale);
	else if (tokens->dtype == PGR_FLOAT16 && tokens->scale != 1)
		snprintf(error, PGR_ERROR_BYTES, "packed tokens: expected scale 1 with float16, not %g", tokens->scale);
	else
		return true;
	return false;
}

static size_t
bytes_of_row(pgr_dtype dtype, uint32_t dims)
{
	return dtype == PGR_FLOAT16 ? 2 * (size_t) dims : dtype == PGR_INT8 ? dims : (dims + 7) / 8;
}

bool
pgr_tokens_parse(const uint8_t *bytes, size_t size, pgr_tokens *tokens, size_t *taken, char error[PGR_ERROR_BYTES])
{
	static const char *const names[] = {"", "float16", "int8", "bit"};
	uint64_t	wanted;

	if (size < PGR_HEADER_BYTES)
	{
		snprintf(error, PGR_ERROR_BYTES, "packed tokens: expected a header of %d bytes, not %zu",
				 PGR_HEADER_BYTES, size);
		return false;
	}
	if (memcmp(bytes, "pgrt", 4) != 0)
	{
		snprintf(error, PGR_ERROR_BYTES, "packed tokens: expected magic 70677274, not %02x%02x%02x%02x",
				 bytes[0], bytes[1], bytes[2], bytes[3]);
		return false;
	}
	if (bytes[4] != 1)
	{
		snprintf(error, PGR_ERROR_BYTES, "packed tokens: expected version 1, not %u", bytes[4]);
		return false;
	}
	if (bytes[5] < PGR_FLOAT16 || bytes[5] > PGR_BIT)
	{
		snprintf(error, PGR_ERROR_BYTES, "packed tokens: expected a dtype of 1 to 3, not %u", bytes[5]);
		return false;
	}
	tokens->dtype = (pgr_dtype) bytes[5];
	tokens->dims = little_endian(bytes + 6, 2);
	tokens->count = little_endian(bytes + 8, 4);
	tokens->scale = float_of_bits(little_endian(bytes + 12, 4));
	tokens->row_bytes = bytes_of_row(tokens->dtype, tokens->dims);
	tokens->rows = bytes + PGR_HEADER_BYTES;
	if (tokens->dims < 1 || tokens->count < 1)
	{
		snprintf(error, PGR_ERROR_BYTES, "packed tokens: expected rows and dimensions, not %u by %u",
				 tokens->count, tokens->dims);
		return false;
	}
	if (!check_scale(tokens, error))
		return false;
	/* At most 2^32 rows of 2^17 bytes: no overflow in 64 bits. */
	wanted = PGR_HEADER_BYTES + (uint64_t) tokens->count * tokens->row_bytes;
	if (size < wanted)
	{
		snprintf(error, PGR_ERROR_BYTES,
				 "packed tokens: expected %llu bytes for %u rows of %u dimensions in %s, not %zu",
				 (unsigned long long) wanted, tokens->count, tokens->dims, names[tokens->dtype], size);
		return false;
	}
	*taken = (size_t) wanted;
	return true;
}

void
pgr_tokens_malformed(const pgr_tokens *tokens, char error[PGR_ERROR_BYTES])
{
	switch (tokens->dtype)
	{
		case PGR_FLOAT16:
			snprintf(error, PGR_ERROR_BYTES, "packed tokens: expected finite float16, not NaN or infinity");
			break;
		case PGR_INT8:
			snprintf(error, PGR_ERROR_BYTES, "packed tokens: expected int8 of -127 to 127, not -128");
			break;
		case PGR_BIT:
			snprintf(error, PGR_ERROR_BYTES, "packed tokens: expected no bit beyond dimension %u", tokens->dims);
			break;
	}
}

/* One row without its scale; false if it is malformed. */
static bool
read_row(const pgr_tokens *tokens, const uint8_t *row, float *values)
{
	bool		sound = true;

	for (uint32_t i = 0; i < tokens->dims; i++)
	{
		switch (tokens->dtype)
		{
			case PGR_FLOAT16:
				values[i] = pgr_half_to_float((uint16_t) little_endian(row + 2 * (size_t) i, 2));
				sound &= isfinite(values[i]) != 0;
				break;
			case PGR_INT8:
				values[i] = (int8_t) row[i];
				sound &= row[i] != 0x80;
				break;
			case PGR_BIT:
				values[i] = (row[i / 8] >> (i % 8)) & 1 ? 1 : -1;
				break;
		}
	}
	if (tokens->dtype == PGR_BIT && tokens->dims % 8 != 0)
		sound &= row[tokens->row_bytes - 1] >> (tokens->dims % 8) == 0;
	return sound;
}

bool
pgr_tokens_read(const pgr_tokens *tokens, float *matrix, char error[PGR_ERROR_BYTES])
{
	for (uint32_t row = 0; row < tokens->count; row++)
	{
		float	   *values = matrix + (size_t) row * tokens->dims;

		if (!read_row(tokens, tokens->rows + row * tokens->row_bytes, values))
		{
			pgr_tokens_malformed(tokens, error);
			return false;
		}
		for (uint32_t i = 0; i < tokens->dims; i++)
			values[i] *= tokens->scale;
	}
	return true;
}
