/* AVX2 with FMA and F16C: x86-64 from Haswell and Zen on. */
#include "kernel.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <float.h>
#include <immintrin.h>
#include <string.h>

#define ISA __attribute__((target("avx2,fma,f16c")))
#define TILE 4					/* document rows at a time: with two registers of query vectors, 8 sums */

static bool
available(void)
{
	unsigned	eax,
				ebx,
				ecx,
				edx;

	__builtin_cpu_init();		/* also asks whether the system keeps the registers */
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
		&& __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

ISA static bool
unpack_int8(const uint8_t *stored, uint32_t rows, const pgr_query *query)
{
	__m128i		malformed = _mm_setzero_si128();

	for (uint32_t row = 0; row < rows; row++)
	{
		int16_t    *values = (int16_t *) query->block + (size_t) row * query->width;
		const uint8_t *bytes = stored + (size_t) row * query->dims;

		for (uint32_t i = 0; i < query->dims; i += 16)
		{
			__m128i		chunk = _mm_setzero_si128();

			if (query->dims - i >= 16)
				chunk = _mm_loadu_si128((const __m128i *) (bytes + i));
			else
				memcpy(&chunk, bytes + i, query->dims - i);
			malformed = _mm_or_si128(malformed, _mm_cmpeq_epi8(chunk, _mm_set1_epi8(-128)));
			_mm256_store_si256((__m256i *) (values + i), _mm256_cvtepi8_epi16(chunk));
		}
	}
	return _mm_testz_si128(malformed, malformed);
}

ISA static bool
unpack_bit(const uint8_t *stored, uint32_t rows, const pgr_query *query)
{
	const __m256i each = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128,
										   256, 512, 1024, 2048, 4096, 8192, 16384, (short) 0x8000);
	const __m256i one = _mm256_set1_epi16(1);
	uint32_t	row_bytes = (query->dims + 7) / 8;

	for (uint32_t row = 0; row < rows; row++)
	{
		int16_t    *values = (int16_t *) query->block + (size_t) row * query->width;
		const uint8_t *bits = stored + (size_t) row * row_bytes;

		if (!pgr_no_bit_beyond(bits, query->dims))
			return false;
		for (uint32_t i = 0; i < row_bytes; i += 2)
		{
			uint16_t	chunk = (uint16_t) (bits[i] | (i + 1 < row_bytes ? bits[i + 1] << 8 : 0));
			__m256i		set = _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16((short) chunk), each), each);

			/* All ones where set: 2 * 1 - 1; else 0 - 1. */
			set = _mm256_sub_epi16(_mm256_and_si256(set, _mm256_add_epi16(one, one)), one);
			_mm256_store_si256((__m256i *) (values + 8 * (size_t) i), set);
		}
	}
	return true;
}

ISA static bool
unpack_float16(const uint8_t *stored, uint32_t rows, const pgr_query *query)
{
	const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
	__m256		malformed = _mm256_setzero_ps();

	for (uint32_t row = 0; row < rows; row++)
	{
		float	   *values = (float *) query->block + (size_t) row * query->width;
		const uint8_t *halves = stored + (size_t) row * query->dims * 2;

		for (uint32_t i = 0; i < query->dims; i += 8)
		{
			__m128i		chunk = _mm_setzero_si128();
			__m256		floats;

			if (query->dims - i >= 8)
				chunk = _mm_loadu_si128((const __m128i *) (halves + 2 * (size_t) i));
			else
				memcpy(&chunk, halves + 2 * (size_t) i, 2 * (query->dims - i));
			floats = _mm256_cvtph_ps(chunk);
			malformed = _mm256_or_ps(malformed, _mm256_cmp_ps(_mm256_and_ps(floats, magnitude), _mm256_set1_ps(FLT_MAX),
															  _CMP_NLE_UQ));
			_mm256_store_ps(values + i, floats);
		}
	}
	return _mm256_movemask_ps(malformed) == 0;
}

ISA static void
best_integers(const pgr_query *query, uint32_t rows)
{
	uint32_t	pairs = (query->dims + 1) / 2;

	for (uint32_t group = 0; group < query->groups; group++)
	{
		const int16_t *vectors = (const int16_t *) query->integers + (size_t) group * query->width * PGR_LANES;
		__m256i    *best = (__m256i *) (query->best_integers + group * PGR_LANES);

		for (uint32_t row = 0; row < rows; row += TILE)
		{
			const int16_t *values = (const int16_t *) query->block + (size_t) row * query->width;
			__m256i		sums[TILE][2] = {{_mm256_setzero_si256()}};

			for (uint32_t pair = 0; pair < pairs; pair++)
			{
				__m256i		low = _mm256_load_si256((const __m256i *) (vectors + (size_t) pair * 2 * PGR_LANES));
				__m256i		high = _mm256_load_si256((const __m256i *) (vectors + (size_t) pair * 2 * PGR_LANES + 16));

				PGR_UNROLL
				for (int i = 0; i < TILE; i++)
				{
					int32_t		two;
					__m256i		element;

					memcpy(&two, values + (size_t) i * query->width + 2 * (size_t) pair, sizeof two);
					element = _mm256_set1_epi32(two);
					sums[i][0] = _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(low, element));
					sums[i][1] = _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(high, element));
				}
			}
			for (int i = 0; i < TILE; i++)
			{
				best[0] = _mm256_max_epi32(best[0], sums[i][0]);
				best[1] = _mm256_max_epi32(best[1], sums[i][1]);
			}
		}
	}
}

ISA static void
best_floats(const pgr_query *query, uint32_t rows)
{
	for (uint32_t group = 0; group < query->groups; group++)
	{
		const float *vectors = query->floats + (size_t) group * query->dims * PGR_LANES;
		__m256	   *best = (__m256 *) (query->best_floats + group * PGR_LANES);

		for (uint32_t row = 0; row < rows; row += TILE)
		{
			const float *values = (const float *) query->block + (size_t) row * query->width;
			__m256		sums[TILE][2] = {{_mm256_setzero_ps()}};

			for (uint32_t i = 0; i < query->dims; i++)
			{
				__m256		low = _mm256_load_ps(vectors + (size_t) i * PGR_LANES);
				__m256		high = _mm256_load_ps(vectors + (size_t) i * PGR_LANES + 8);

				PGR_UNROLL
				for (int j = 0; j < TILE; j++)
				{
					__m256		element = _mm256_set1_ps(values[(size_t) j * query->width + i]);

					sums[j][0] = _mm256_fmadd_ps(low, element, sums[j][0]);
					sums[j][1] = _mm256_fmadd_ps(high, element, sums[j][1]);
				}
			}
			for (int j = 0; j < TILE; j++)
			{
				best[0] = _mm256_max_ps(best[0], sums[j][0]);
				best[1] = _mm256_max_ps(best[1], sums[j][1]);
			}
		}
	}
}

const pgr_kernel pgr_kernel_avx2 = {
	.name = "avx2", .available = available, .layout = PGR_PAIRS, .bias = 0, .rows = TILE,
	.unpack_int8 = unpack_int8, .unpack_bit = unpack_bit, .unpack_float16 = unpack_float16,
	.best_integers = best_integers, .best_floats = best_floats
};

#else
typedef int pgr_not_this_architecture;
#endif
