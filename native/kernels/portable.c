/* Plain C, for machines that have none of the others. */
#include "kernel.h"

#include <math.h>

static bool
available(void)
{
	return true;
}

static bool
unpack_int8(const uint8_t *stored, uint32_t rows, const pgr_query *query)
{
	bool		malformed = false;

	for (uint32_t row = 0; row < rows; row++)
	{
		int16_t    *values = (int16_t *) query->block + (size_t) row * query->width;
		const int8_t *bytes = (const int8_t *) stored + (size_t) row * query->dims;

		for (uint32_t i = 0; i < query->dims; i++)
		{
			values[i] = bytes[i];
			malformed |= bytes[i] == -128;
		}
	}
	return !malformed;
}

static bool
unpack_bit(const uint8_t *stored, uint32_t rows, const pgr_query *query)
{
	for (uint32_t row = 0; row < rows; row++)
	{
		int16_t    *values = (int16_t *) query->block + (size_t) row * query->width;
		const uint8_t *bits = stored + (size_t) row * ((query->dims + 7) / 8);

		if (!pgr_no_bit_beyond(bits, query->dims))
			return false;
		for (uint32_t i = 0; i < query->dims; i++)
			values[i] = (int16_t) (2 * ((bits[i / 8] >> (i % 8)) & 1) - 1);
	}
	return true;
}

static bool
unpack_float16(const uint8_t *stored, uint32_t rows, const pgr_query *query)
{
	bool		malformed = false;

	for (uint32_t row = 0; row < rows; row++)
	{
		float	   *values = (float *) query->block + (size_t) row * query->width;
		const uint8_t *halves = stored + (size_t) row * query->dims * 2;

		for (uint32_t i = 0; i < query->dims; i++)
		{
			uint16_t	half = (uint16_t) (halves[2 * i] | halves[2 * i + 1] << 8);

			values[i] = pgr_half_to_float(half);
			malformed |= (half & 0x7c00) == 0x7c00;
		}
	}
	return !malformed;
}

static void
best_integers(const pgr_query *query, uint32_t rows)
{
	uint32_t	pairs = (query->dims + 1) / 2;

	for (uint32_t group = 0; group < query->groups; group++)
	{
		const int16_t *vectors = (const int16_t *) query->integers + (size_t) group * query->width * PGR_LANES;
		int32_t    *best = query->best_integers + group * PGR_LANES;

		for (uint32_t row = 0; row < rows; row++)
		{
			const int16_t *values = (const int16_t *) query->block + (size_t) row * query->width;
			int32_t		products[PGR_LANES] = {0};

			for (uint32_t pair = 0; pair < pairs; pair++)
				for (int lane = 0; lane < PGR_LANES; lane++)
				{
					const int16_t *element = vectors + ((size_t) pair * PGR_LANES + lane) * 2;

					products[lane] += element[0] * values[2 * pair] + element[1] * values[2 * pair + 1];
				}
			for (int lane = 0; lane < PGR_LANES; lane++)
				best[lane] = products[lane] > best[lane] ? products[lane] : best[lane];
		}
	}
}

static void
best_floats(const pgr_query *query, uint32_t rows)
{
	for (uint32_t group = 0; group < query->groups; group++)
	{
		const float *vectors = query->floats + (size_t) group * query->dims * PGR_LANES;
		float	   *best = query->best_floats + group * PGR_LANES;

		for (uint32_t row = 0; row < rows; row++)
		{
			const float *values = (const float *) query->block + (size_t) row * query->width;
			float		products[PGR_LANES] = {0};

			for (uint32_t i = 0; i < query->dims; i++)
				for (int lane = 0; lane < PGR_LANES; lane++)
					products[lane] += vectors[(size_t) i * PGR_LANES + lane] * values[i];
			for (int lane = 0; lane < PGR_LANES; lane++)
				best[lane] = products[lane] > best[lane] ? products[lane] : best[lane];
		}
	}
}

const pgr_kernel pgr_kernel_portable = {
	.name = "portable", .available = available, .layout = PGR_PAIRS, .bias = 0, .rows = 1,
	.unpack_int8 = unpack_int8, .unpack_bit = unpack_bit, .unpack_float16 = unpack_float16,
	.best_integers = best_integers, .best_floats = best_floats
};
