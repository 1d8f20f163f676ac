/* Preparing a query, and the walk over a document's rows. */
#include "query.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define ALIGNMENT 64
#define STEPS 127				/* int8 levels on either side of zero */
#define LARGEST_HALF 65504.0f

static size_t
aligned(size_t bytes)
{
	return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static uint32_t
groups_of(uint32_t count)
{
	return (count + PGR_LANES - 1) / PGR_LANES;
}

static uint32_t
width_of(uint32_t dims)
{
	return (dims + PGR_WIDTH_STEP - 1) / PGR_WIDTH_STEP * PGR_WIDTH_STEP;
}

/* Sizes of the parts of a query, in the order in which they lie in its memory. */
enum
{
	SELF, MATRIX, INTEGERS, FLOATS, SCALES, BIASES, BLOCK, BEST_INTEGERS, BEST_FLOATS, BEST, PARTS
};

static void
measure_parts(uint32_t count, uint32_t dims, size_t sizes[PARTS])
{
	size_t		lanes = (size_t) groups_of(count) * PGR_LANES;
	size_t		width = width_of(dims);

	sizes[SELF] = sizeof(pgr_query);
	sizes[MATRIX] = (size_t) count * dims * sizeof(float);
	sizes[INTEGERS] = lanes * width * sizeof(int16_t);
	sizes[FLOATS] = lanes * dims * sizeof(float);
	sizes[SCALES] = count * sizeof(float);
	sizes[BIASES] = count * sizeof(int32_t);
	sizes[BLOCK] = PGR_BLOCK_ROWS * width * sizeof(int16_t);
	sizes[BEST_INTEGERS] = lanes * sizeof(int32_t);
	sizes[BEST_FLOATS] = lanes * sizeof(float);
	sizes[BEST] = count * sizeof(double);
}

size_t
pgr_query_bytes(uint64_t count, uint32_t dims)
{
	size_t		sizes[PARTS];
	size_t		total = ALIGNMENT;

	if (count * dims > PGR_MAX_QUERY_ELEMENTS || count > PGR_MAX_QUERY_ELEMENTS)
		return 0;
	measure_parts((uint32_t) count, dims, sizes);
	for (int i = 0; i < PARTS; i++)
		total += aligned(sizes[i]);
	return total;
}

pgr_query *
pgr_query_init(void *memory, const pgr_kernel *kernel, uint32_t count, uint32_t dims)
{
	uint8_t    *place = (uint8_t *) aligned((size_t) memory);
	uint8_t    *parts[PARTS];
	size_t		sizes[PARTS];
	pgr_query  *query;

	measure_parts(count, dims, sizes);
	for (int i = 0; i < PARTS; i++)
	{
		parts[i] = place;
		place += aligned(sizes[i]);
	}
	query = (pgr_query *) parts[SELF];
	*query = (pgr_query)
	{
		.kernel = kernel, .count = count, .dims = dims, .groups = groups_of(count), .width = width_of(dims),
		.matrix = (float *) parts[MATRIX], .integers = parts[INTEGERS], .floats = (float *) parts[FLOATS],
		.scales = (float *) parts[SCALES], .biases = (int32_t *) parts[BIASES], .block = parts[BLOCK],
		.best_integers = (int32_t *) parts[BEST_INTEGERS], .best_floats = (float *) parts[BEST_FLOATS],
		.best = (double *) parts[BEST]
	};
	memset(query->block, 0, sizes[BLOCK]);	/* kernels leave what is beyond dims alone */
	return query;
}

static float
largest_of(const float *values, size_t count)
{
	float		largest = 0;

	for (size_t i = 0; i < count; i++)
		largest = fmaxf(largest, fabsf(values[i]));
	return largest;
}

void
pgr_query_ready(pgr_query *query)
{
	query->largest = largest_of(query->matrix, (size_t) query->count * query->dims);
	query->has_integers = query->has_floats = false;
}

/* Where element i of vector v lies among the integers. */
static size_t
place_of(const pgr_query *query, uint32_t v, uint32_t i)
{
	static const size_t runs[] = {[PGR_QUADS] = 4, [PGR_PAIRS] = 2, [PGR_ROWS] = 0};
	size_t		run = runs[query->kernel->layout];
	size_t		group = (size_t) (v / PGR_LANES) * query->width * PGR_LANES;

	if (run == 0)
		return (size_t) v * query->width + i;
	return group + (i / run * PGR_LANES + v % PGR_LANES) * run + i % run;
}

/* Each vector has a scale of its own: its largest magnitude / 127. */
static void
lay_integers(pgr_query *query)
{
	bool		bytes = query->kernel->layout == PGR_QUADS;

	memset(query->integers, 0, (size_t) query->groups * PGR_LANES * query->width * (bytes ? 1 : 2));
	for (uint32_t v = 0; v < query->count; v++)
	{
		const float *values = query->matrix + (size_t) v * query->dims;
		float		scale = largest_of(values, query->dims) / STEPS;
		int32_t		sum = 0;

		query->scales[v] = scale;
		for (uint32_t i = 0; i < query->dims; i++)
		{
			/* Below the normal range a quotient may round up to more than the 127 levels. */
			int			step = scale > 0 ? (int) fmaxf(-STEPS, fminf(STEPS, rintf(values[i] / scale))) : 0;

			sum += step;
			if (bytes)
				((int8_t *) query->integers)[place_of(query, v, i)] = (int8_t) step;
			else
				((int16_t *) query->integers)[place_of(query, v, i)] = (int16_t) step;
		}
		query->biases[v] = sum * query->kernel->bias;
	}
	query->has_integers = true;
}

static void
lay_floats(pgr_query *query)
{
	memset(query->floats, 0, (size_t) query->groups * PGR_LANES * query->dims * sizeof(float));
	for (uint32_t v = 0; v < query->count; v++)
		for (uint32_t i = 0; i < query->dims; i++)
			query->floats[((size_t) (v / PGR_LANES) * query->dims + i) * PGR_LANES + v % PGR_LANES]
				= query->matrix[(size_t) v * query->dims + i];
	query->has_floats = true;
}

/*
 * Fills a block of at most `most` rows up to a multiple of what the kernel takes, with copies of its last row: a
 * maximum doesn't mind.
 */
static uint32_t
fill_block(const pgr_query *query, uint32_t rows, uint32_t most, size_t row_bytes)
{
	uint8_t    *block = query->block;
	uint32_t	step = query->kernel->rows < most ? query->kernel->rows : most;
	uint32_t	wanted = (rows + step - 1) / step * step;

	for (uint32_t row = rows; row < wanted; row++)
		memcpy(block + row * row_bytes, block + (rows - 1) * row_bytes, row_bytes);
	return wanted;
}

void
pgr_no_best(const pgr_query *query, double *best)
{
	for (uint32_t v = 0; v < query->count; v++)
		best[v] = -INFINITY;
}

bool
pgr_sum_best(const double *best, uint32_t count, float *score, char error[PGR_ERROR_BYTES])
{
	double		sum = 0;

	for (uint32_t v = 0; v < count; v++)
		sum += best[v];
	*score = (float) sum;
	if (isfinite(*score))
		return true;
	snprintf(error, PGR_ERROR_BYTES, "the score is beyond float32; normalise vectors");
	return false;
}

static bool
refuse_malformed(const pgr_tokens *matrix, char error[PGR_ERROR_BYTES])
{
	pgr_tokens_malformed(matrix, error);
	return false;
}

/*
 * Memory is slower than the arithmetic: ask for all that is to be read, so that it comes while the first rows are
 * worked on.
 */
static void
ask_for(const uint8_t *bytes, size_t size)
{
	for (size_t i = 0; i < size && i < 8192; i += 64)
		__builtin_prefetch(bytes + i);
}

static bool
raise_integers(pgr_query *query, const pgr_tokens *matrix, double *best, char error[PGR_ERROR_BYTES])
{
	const pgr_kernel *kernel = query->kernel;
	size_t		row_bytes = query->width * (kernel->layout == PGR_QUADS ? 1 : 2);

	ask_for(matrix->rows, (size_t) matrix->count * matrix->row_bytes);
	if (!query->has_integers)
		lay_integers(query);
	for (uint32_t lane = 0; lane < query->groups * PGR_LANES; lane++)
		query->best_integers[lane] = INT32_MIN;
	for (uint32_t row = 0; row < matrix->count; row += PGR_BLOCK_ROWS)
	{
		uint32_t	rows = matrix->count - row < PGR_BLOCK_ROWS ? matrix->count - row : PGR_BLOCK_ROWS;
		const uint8_t *stored = matrix->rows + row * matrix->row_bytes;

		if (!(matrix->dtype == PGR_INT8 ? kernel->unpack_int8 : kernel->unpack_bit) (stored, rows, query))
			return refuse_malformed(matrix, error);
		kernel->best_integers(query, fill_block(query, rows, PGR_BLOCK_ROWS, row_bytes));
	}
	for (uint32_t v = 0; v < query->count; v++)
	{
		int64_t		integer = (int64_t) query->best_integers[v] - query->biases[v];
		double		product = (double) query->scales[v] * matrix->scale * integer;

		best[v] = product > best[v] ? product : best[v];
	}
	return true;
}

static void
start_floats(pgr_query *query)
{
	if (!query->has_floats)
		lay_floats(query);
	for (uint32_t lane = 0; lane < query->groups * PGR_LANES; lane++)
		query->best_floats[lane] = -INFINITY;
}

/* Where a product may be beyond float32, infinities could have cancelled one another. */
static void
finish_floats(const pgr_query *query, float largest, double *best)
{
	bool		safe = (double) query->largest * largest * query->dims <= FLT_MAX;

	for (uint32_t v = 0; v < query->count; v++)
	{
		double		found = safe ? query->best_floats[v] : INFINITY;

		best[v] = found > best[v] ? found : best[v];
	}
}

static bool
raise_float16(pgr_query *query, const pgr_tokens *matrix, double *best, char error[PGR_ERROR_BYTES])
{
	start_floats(query);
	for (uint32_t row = 0; row < matrix->count; row += PGR_FLOAT_ROWS)
	{
		uint32_t	rows = matrix->count - row < PGR_FLOAT_ROWS ? matrix->count - row : PGR_FLOAT_ROWS;

		if (!query->kernel->unpack_float16(matrix->rows + row * matrix->row_bytes, rows, query))
			return refuse_malformed(matrix, error);
		query->kernel->best_floats(query, fill_block(query, rows, PGR_FLOAT_ROWS, query->width * sizeof(float)));
	}
	finish_floats(query, LARGEST_HALF, best);
	return true;
}

bool
pgr_raise_best(pgr_query *query, const pgr_tokens *matrix, double *best, char error[PGR_ERROR_BYTES])
{
	return (matrix->dtype == PGR_FLOAT16 ? raise_float16 : raise_integers) (query, matrix, best, error);
}

void
pgr_raise_best_floats(pgr_query *query, pgr_row_reader read, const void *given, uint32_t count, double *best)
{
	float		largest = 0;

	start_floats(query);
	for (uint32_t row = 0; row < count; row += PGR_FLOAT_ROWS)
	{
		uint32_t	rows = count - row < PGR_FLOAT_ROWS ? count - row : PGR_FLOAT_ROWS;

		for (uint32_t i = 0; i < rows; i++)
		{
			float	   *values = (float *) query->block + (size_t) i * query->width;

			read(given, row + i, values);
			largest = fmaxf(largest, largest_of(values, query->dims));
		}
		query->kernel->best_floats(query, fill_block(query, rows, PGR_FLOAT_ROWS, query->width * sizeof(float)));
	}
	finish_floats(query, largest, best);
}
