/*
 * Fuzzes what reads bytes: a query and a document, scored by every kernel that the machine can run. All must agree on
 * whether the bytes are sound; those that score in integers must agree on the score.
 *
 * Input: two bytes, the query's length, the lower first; the query; the document.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "packed.h"

/* A copy with nothing behind it, so that the sanitizer sees a byte read too many. */
static uint8_t *
copy(const uint8_t *bytes, size_t size)
{
	uint8_t    *own = malloc(size ? size : 1);

	if (own == NULL)
		abort();
	memcpy(own, bytes, size);
	return own;
}

static bool
score(const pgr_kernel *kernel, const uint8_t *given, size_t given_size, const uint8_t *document, size_t size,
	  float *found)
{
	char		error[PGR_ERROR_BYTES];
	uint64_t	count;
	uint32_t	dims;
	size_t		bytes;
	void	   *memory;
	pgr_query  *query;
	bool		sound;

	if (!pgr_packed_measure(given, given_size, &count, &dims, error))
		return false;
	bytes = pgr_query_bytes(count, dims);
	if (bytes == 0)
		return false;
	memory = malloc(bytes);
	if (memory == NULL)
		abort();
	query = pgr_query_init(memory, kernel, (uint32_t) count, dims);
	pgr_no_best(query, query->best);
	sound = pgr_packed_fill(query, given, given_size, error)
		&& pgr_packed_raise(query, document, size, query->best, error)
		&& pgr_sum_best(query->best, query->count, found, error);
	free(memory);
	return sound;
}

static bool
has_floats(const uint8_t *document, size_t size)
{
	pgr_tokens	matrix;
	size_t		taken;
	char		error[PGR_ERROR_BYTES];

	for (; size > 0; document += taken, size -= taken)
		if (!pgr_tokens_parse(document, size, &matrix, &taken, error) || matrix.dtype == PGR_FLOAT16)
			return true;
	return false;
}

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t		query_size = size < 2 ? 0 : data[0] | (size_t) data[1] << 8;
	uint8_t    *query;
	uint8_t    *document;
	float		first = 0;
	int			sound = -1;

	if (size < 2 || query_size > size - 2)
		return 0;
	size -= 2 + query_size;
	query = copy(data + 2, query_size);
	document = copy(data + 2 + query_size, size);
	for (int i = 0; i < PGR_KERNELS; i++)
	{
		const pgr_kernel *kernel = pgr_kernels[i];
		float		found = 0;
		bool		this_sound;

		if (kernel == NULL || !kernel->available())
			continue;
		this_sound = score(kernel, query, query_size, document, size, &found);
		if (sound < 0)
		{
			sound = this_sound;
			first = found;
		}
		if (this_sound != sound || (sound && !isfinite(found)))
		{
			fprintf(stderr, "%s: sound %d, score %g; before it %d, %g\n",
					kernel->name, this_sound, found, sound, first);
			abort();
		}
		if (sound && found != first && !has_floats(document, size))
		{
			fprintf(stderr, "%s: score %.9g, before it %.9g\n", kernel->name, found, first);
			abort();
		}
	}
	free(query);
	free(document);
	return 0;
}
