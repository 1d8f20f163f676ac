/* What the kernels on AVX-512 have in common. Include after <immintrin.h>. */
#ifndef PGR_AVX512_H
#define PGR_AVX512_H

#define PGR_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c"
#define PGR_AVX512_ISA __attribute__((target(PGR_AVX512)))

bool		pgr_avx512_available(void);
bool		pgr_avx512_unpack_float16(const uint8_t *stored, uint32_t rows, const pgr_query *query);
void		pgr_avx512_best_floats(const pgr_query *query, uint32_t rows);

/* Lanes 0 to n - 1, of 64. */
static inline uint64_t
pgr_first_lanes(uint32_t n)
{
	return n >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << n) - 1;
}

/* Bytes to bytes, each exclusive-ored with flip; false where one is -128. */
PGR_AVX512_ISA static inline bool
pgr_avx512_copy_int8(const uint8_t *stored, uint32_t rows, const pgr_query *query, char flip)
{
	uint64_t	malformed = 0;

	for (uint32_t row = 0; row < rows; row++)
	{
		uint8_t    *values = (uint8_t *) query->block + (size_t) row * query->width;
		const uint8_t *bytes = stored + (size_t) row * query->dims;

		for (uint32_t i = 0; i < query->dims; i += 64)
		{
			__m512i		chunk = _mm512_maskz_loadu_epi8(pgr_first_lanes(query->dims - i), bytes + i);

			malformed |= _mm512_cmpeq_epi8_mask(chunk, _mm512_set1_epi8(-128));
			_mm512_store_si512(values + i, _mm512_xor_si512(chunk, _mm512_set1_epi8(flip)));
		}
	}
	return malformed == 0;
}

/* Bits to bytes: one value where set, another where not. */
PGR_AVX512_ISA static inline bool
pgr_avx512_spread_bits(const uint8_t *stored, uint32_t rows, const pgr_query *query, char set, char unset)
{
	uint32_t	row_bytes = (query->dims + 7) / 8;

	for (uint32_t row = 0; row < rows; row++)
	{
		uint8_t    *values = (uint8_t *) query->block + (size_t) row * query->width;
		const uint8_t *bits = stored + (size_t) row * row_bytes;

		if (!pgr_no_bit_beyond(bits, query->dims))
			return false;
		for (uint32_t i = 0; i < row_bytes; i += 8)
		{
			uint64_t	chunk = 0;

			if (row_bytes - i >= 8)
				memcpy(&chunk, bits + i, 8);
			else
				memcpy(&chunk, bits + i, row_bytes - i);
			_mm512_store_si512(values + 8 * (size_t) i,
							   _mm512_mask_blend_epi8(chunk, _mm512_set1_epi8(unset), _mm512_set1_epi8(set)));
		}
	}
	return true;
}

#endif
