/* Preparing a query, and the walk over a document's rows. */
#include "query.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define ALIGNMENT 64
#define STEPS 127				/* int8 levels on either side of zero */
#define FLOAT_ROWS (PGR_BLOCK_ROWS / 2)
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
	SELF, MATRIX, INTEGERS, FLOATS, SCALES, BIASES, BLOCK, BEST_INTEGERS, BEST_FLOATS, PARTS
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
	sizes[BLOCK] = FLOAT_ROWS * width * sizeof(float);
	sizes[BEST_INTEGERS] = lanes * sizeof(int32_t);
	sizes[BEST_FLOATS] = lanes * sizeof(float);
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
		.best_integers = (int32_t *) parts[BEST_INTEGERS], .best_floats = (float *) parts[BEST_FLOATS]
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
	size_t		run = query->kernel->layout == PGR_QUADS ? 4 : 2;
	size_t		group = (size_t) (v / PGR_LANES) * query->width * PGR_LANES;

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

/* Fills a block of at most `most` rows up to a multiple of what the kernel takes, with copies of its last row: a maximum
 * doesn't mind. */
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

static bool
finish(double sum, float *score, char error[PGR_ERROR_BYTES])
{
	*score = (float) sum;
	if (isfinite(*score))
		return true;
	snprintf(error, PGR_ERROR_BYTES, "packed tokens: the score is beyond float32; normalise vectors");
	return false;
}

static bool
score_integers(pgr_query *query, const pgr_tokens *document, float *score, char error[PGR_ERROR_BYTES])
{
	const pgr_kernel *kernel = query->kernel;
	size_t		row_bytes = query->width * (kernel->layout == PGR_QUADS ? 1 : 2);
	double		sum = 0;

	if (!query->has_integers)
		lay_integers(query);
	for (uint32_t lane = 0; lane < query->groups * PGR_LANES; lane++)
		query->best_integers[lane] = INT32_MIN;
	for (uint32_t row = 0; row < document->count; row += PGR_BLOCK_ROWS)
	{
		uint32_t	rows = document->count - row < PGR_BLOCK_ROWS ? document->count - row : PGR_BLOCK_ROWS;
		const uint8_t *stored = document->rows + row * document->row_bytes;

		if (!(document->dtype == PGR_INT8 ? kernel->unpack_int8 : kernel->unpack_bit) (stored, rows, query))
		{
			pgr_tokens_malformed(document, error);
			return false;
		}
		kernel->best_integers(query, fill_block(query, rows, PGR_BLOCK_ROWS, row_bytes));
	}
	for (uint32_t v = 0; v < query->count; v++)
		sum += (double) query->scales[v] * ((int64_t) query->best_integers[v] - query->biases[v]);
	return finish(sum * document->scale, score, error);
}

static void
start_floats(pgr_query *query)
{
	if (!query->has_floats)
		lay_floats(query);
	for (uint32_t lane = 0; lane < query->groups * PGR_LANES; lane++)
		query->best_floats[lane] = -INFINITY;
}

static bool
finish_floats(pgr_query *query, float largest, float *score, char error[PGR_ERROR_BYTES])
{
	double		sum = 0;

	/* Where a product may be beyond float32, infinities could have cancelled one another. */
	if ((double) query->largest * largest * query->dims > FLT_MAX)
		return finish(INFINITY, score, error);
	for (uint32_t v = 0; v < query->count; v++)
		sum += query->best_floats[v];
	return finish(sum, score, error);
}

static bool
score_float16(pgr_query *query, const pgr_tokens *document, float *score, char error[PGR_ERROR_BYTES])
{
	start_floats(query);
	for (uint32_t row = 0; row < document->count; row += FLOAT_ROWS)
	{
		uint32_t	rows = document->count - row < FLOAT_ROWS ? document->count - row : FLOAT_ROWS;

		if (!query->kernel->unpack_float16(document->rows + row * document->row_bytes, rows, query))
		{
			pgr_tokens_malformed(document, error);
			return false;
		}
		query->kernel->best_floats(query, fill_block(query, rows, FLOAT_ROWS, query->width * sizeof(float)));
	}
	return finish_floats(query, LARGEST_HALF, score, error);
}

bool
pgr_score_tokens(pgr_query *query, const pgr_tokens *document, float *score, char error[PGR_ERROR_BYTES])
{
	if (document->dims != query->dims)
	{
		snprintf(error, PGR_ERROR_BYTES, "expected %u dimensions, not %u", query->dims, document->dims);
		return false;
	}
	return (document->dtype == PGR_FLOAT16 ? score_float16 : score_integers) (query, document, score, error);
}

bool
pgr_score_floats(pgr_query *query, pgr_row_reader read, const void *document, uint32_t count, float *score, char error[PGR_ERROR_BYTES])
{
	float		largest = 0;

	start_floats(query);
	for (uint32_t row = 0; row < count; row += FLOAT_ROWS)
	{
		uint32_t	rows = count - row < FLOAT_ROWS ? count - row : FLOAT_ROWS;

		for (uint32_t i = 0; i < rows; i++)
		{
			float	   *values = (float *) query->block + (size_t) i * query->width;

			read(document, row + i, values);
			largest = fmaxf(largest, largest_of(values, query->dims));
		}
		query->kernel->best_floats(query, fill_block(query, rows, FLOAT_ROWS, query->width * sizeof(float)));
	}
	return finish_floats(query, largest, score, error);
}
