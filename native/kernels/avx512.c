/* AVX-512 with VNNI: Ice Lake, Zen 4 and later. */
#include "kernel.h"

#if defined(__x86_64__)

#include <float.h>
#include <immintrin.h>
#include <string.h>

#include "kernels/avx512.h"

#define TILE 8					/* document rows at a time with two groups of query vectors, twice as many with one */
#define ALWAYS_INLINE static inline __attribute__((always_inline, target(PGR_AVX512)))

bool
pgr_avx512_available(void)
{
	__builtin_cpu_init();
	return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
		&& __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

/* VNNI multiplies unsigned by signed bytes, so the document's are raised by 128. */
PGR_AVX512_ISA static bool
unpack_int8(const uint8_t *stored, uint32_t rows, const pgr_query *query)
{
	return pgr_avx512_copy_int8(stored, rows, query, (char) 0x80);
}

PGR_AVX512_ISA static bool
unpack_bit(const uint8_t *stored, uint32_t rows, const pgr_query *query)
{
	return pgr_avx512_spread_bits(stored, rows, query, (char) (128 + 1), (char) (128 - 1));
}

PGR_AVX512_ISA bool
pgr_avx512_unpack_float16(const uint8_t *stored, uint32_t rows, const pgr_query *query)
{
	__mmask16	malformed = 0;

	for (uint32_t row = 0; row < rows; row++)
	{
		float	   *values = (float *) query->block + (size_t) row * query->width;
		const uint8_t *halves = stored + (size_t) row * query->dims * 2;

		for (uint32_t i = 0; i < query->dims; i += 16)
		{
			__m256i		chunk = _mm256_maskz_loadu_epi16((__mmask16) pgr_first_lanes(query->dims - i),
														 halves + 2 * (size_t) i);
			__m512		floats = _mm512_cvtph_ps(chunk);

			malformed |= _mm512_cmp_ps_mask(_mm512_abs_ps(floats), _mm512_set1_ps(FLT_MAX), _CMP_NLE_UQ);
			_mm512_store_ps(values + i, floats);
		}
	}
	return malformed == 0;
}

ALWAYS_INLINE void
tile_integers(const pgr_query *query, const uint8_t *block, uint32_t group, const int tile, const int groups)
{
	const int8_t *vectors = (const int8_t *) query->integers + (size_t) group * query->width * PGR_LANES;
	size_t		group_bytes = (size_t) query->width * PGR_LANES;
	uint32_t	quads = (query->dims + 3) / 4;
	__m512i    *best = (__m512i *) (query->best_integers + group * PGR_LANES);
	__m512i		sums[2 * TILE][2];

	PGR_UNROLL
	for (int i = 0; i < tile; i++)
		sums[i][0] = sums[i][1] = _mm512_setzero_si512();
	for (uint32_t quad = 0; quad < quads; quad++)
	{
		__m512i		first = _mm512_load_si512(vectors + (size_t) quad * 64);
		__m512i		second = groups == 2 ? _mm512_load_si512(vectors + group_bytes + (size_t) quad * 64) : first;

		PGR_UNROLL
		for (int i = 0; i < tile; i++)
		{
			int32_t		four;
			__m512i		element;

			memcpy(&four, block + (size_t) i * query->width + 4 * (size_t) quad, sizeof four);
			element = _mm512_set1_epi32(four);
			sums[i][0] = _mm512_dpbusd_epi32(sums[i][0], element, first);
			if (groups == 2)
				sums[i][1] = _mm512_dpbusd_epi32(sums[i][1], element, second);
		}
	}
	PGR_UNROLL
	for (int i = 0; i < tile; i++)
	{
		best[0] = _mm512_max_epi32(best[0], sums[i][0]);
		if (groups == 2)
			best[1] = _mm512_max_epi32(best[1], sums[i][1]);
	}
}

PGR_AVX512_ISA static void
best_integers(const pgr_query *query, uint32_t rows)
{
	uint32_t	group = 0;

	for (; group + 1 < query->groups; group += 2)
		for (uint32_t row = 0; row < rows; row += TILE)
			tile_integers(query, (const uint8_t *) query->block + (size_t) row * query->width, group, TILE, 2);
	if (group < query->groups)
		for (uint32_t row = 0; row < rows; row += 2 * TILE)
			tile_integers(query, (const uint8_t *) query->block + (size_t) row * query->width, group, 2 * TILE, 1);
}

ALWAYS_INLINE void
tile_floats(const pgr_query *query, const float *block, uint32_t group, const int tile, const int groups)
{
	const float *vectors = query->floats + (size_t) group * query->dims * PGR_LANES;
	size_t		group_floats = (size_t) query->dims * PGR_LANES;
	__m512	   *best = (__m512 *) (query->best_floats + group * PGR_LANES);
	__m512		sums[2 * TILE][2];

	PGR_UNROLL
	for (int i = 0; i < tile; i++)
		sums[i][0] = sums[i][1] = _mm512_setzero_ps();
	for (uint32_t i = 0; i < query->dims; i++)
	{
		__m512		first = _mm512_load_ps(vectors + (size_t) i * PGR_LANES);
		__m512		second = groups == 2 ? _mm512_load_ps(vectors + group_floats + (size_t) i * PGR_LANES) : first;

		PGR_UNROLL
		for (int j = 0; j < tile; j++)
		{
			__m512		element = _mm512_set1_ps(block[(size_t) j * query->width + i]);

			sums[j][0] = _mm512_fmadd_ps(first, element, sums[j][0]);
			if (groups == 2)
				sums[j][1] = _mm512_fmadd_ps(second, element, sums[j][1]);
		}
	}
	PGR_UNROLL
	for (int j = 0; j < tile; j++)
	{
		best[0] = _mm512_max_ps(best[0], sums[j][0]);
		if (groups == 2)
			best[1] = _mm512_max_ps(best[1], sums[j][1]);
	}
}

PGR_AVX512_ISA void
pgr_avx512_best_floats(const pgr_query *query, uint32_t rows)
{
	uint32_t	group = 0;

	for (; group + 1 < query->groups; group += 2)
		for (uint32_t row = 0; row < rows; row += TILE)
			tile_floats(query, (const float *) query->block + (size_t) row * query->width, group, TILE, 2);
	if (group < query->groups)
		for (uint32_t row = 0; row < rows; row += 2 * TILE)
			tile_floats(query, (const float *) query->block + (size_t) row * query->width, group, 2 * TILE, 1);
}

const pgr_kernel pgr_kernel_avx512 = {
	.name = "avx512", .available = pgr_avx512_available, .layout = PGR_QUADS, .bias = 128, .rows = 2 * TILE,
	.unpack_int8 = unpack_int8, .unpack_bit = unpack_bit, .unpack_float16 = pgr_avx512_unpack_float16,
	.best_integers = best_integers, .best_floats = pgr_avx512_best_floats
};

#else
typedef int pgr_not_this_architecture;
#endif
