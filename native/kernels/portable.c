/* Plain C, for machines that have none of the others. */
#include "kernel.h"

#include <string.h>

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

/* Compilers make one instruction of eight such products where they can. */
static int32_t
product(const int16_t *a, const int16_t *b, uint32_t dims)
{
	int32_t		sum = 0;

	for (uint32_t i = 0; i < dims; i++)
		sum += a[i] * b[i];
	return sum;
}

static void
best_integers(const pgr_query *query, uint32_t rows)
{
	for (uint32_t v = 0; v < query->count; v++)
		for (uint32_t row = 0; row < rows; row++)
		{
			int32_t		found = product((const int16_t *) query->integers + (size_t) v * query->width,
										(const int16_t *) query->block + (size_t) row * query->width, query->dims);

			query->best_integers[v] = found > query->best_integers[v] ? found : query->best_integers[v];
		}
}

/* Four lanes of whatever the machine has: compilers split or join them. */
typedef float four_floats __attribute__((vector_size(16)));

static void
raise_floats(float *best, four_floats found)
{
	for (int lane = 0; lane < 4; lane++)
		best[lane] = found[lane] > best[lane] ? found[lane] : best[lane];
}

static void
best_floats(const pgr_query *query, uint32_t rows)
{
	for (uint32_t group = 0; group < query->groups; group++)
	{
		const four_floats *vectors = (const four_floats *) (query->floats + (size_t) group * query->dims * PGR_LANES);
		float	   *best = query->best_floats + group * PGR_LANES;

		for (uint32_t row = 0; row < rows; row++)
		{
			const float *values = (const float *) query->block + (size_t) row * query->width;
			four_floats first = {0}, second = {0}, third = {0}, fourth = {0};

			for (uint32_t i = 0; i < query->dims; i++)
			{
				first += vectors[(size_t) i * 4] * values[i];
				second += vectors[(size_t) i * 4 + 1] * values[i];
				third += vectors[(size_t) i * 4 + 2] * values[i];
				fourth += vectors[(size_t) i * 4 + 3] * values[i];
			}
			raise_floats(best, first);
			raise_floats(best + 4, second);
			raise_floats(best + 8, third);
			raise_floats(best + 12, fourth);
		}
	}
}

const pgr_kernel pgr_kernel_portable = {
	.name = "portable", .available = available, .layout = PGR_ROWS, .bias = 0, .rows = 1,
	.unpack_int8 = unpack_int8, .unpack_bit = unpack_bit, .unpack_float16 = unpack_float16,
	.best_integers = best_integers, .best_floats = best_floats
};
