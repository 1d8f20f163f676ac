/* NEON with the dot-product instructions of Armv8.2: Graviton 2, Apple M1 and later. */
#include "kernel.h"

#if defined(PGR_NEON)

#include <arm_neon.h>
#include <float.h>
#include <string.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#if defined(__clang__)
#define ISA __attribute__((target("dotprod")))
#else
#define ISA __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define TILE 4					/* document rows at a time: with four registers of query vectors, 16 sums */
#define HWCAP_DOT_PRODUCT (1ul << 20)

static bool
available(void)
{
#if defined(__linux__)
	return (getauxval(AT_HWCAP) & HWCAP_DOT_PRODUCT) != 0;
#else
	return true;				/* every 64-bit Apple machine that runs Postgres has it */
#endif
}

static bool
unpack_int8(const uint8_t *stored, uint32_t rows, const pgr_query *query)
{
	uint8x16_t	malformed = vdupq_n_u8(0);

	for (uint32_t row = 0; row < rows; row++)
	{
		int8_t	   *values = (int8_t *) query->block + (size_t) row * query->width;
		const uint8_t *bytes = stored + (size_t) row * query->dims;

		for (uint32_t i = 0; i < query->dims; i += 16)
		{
			uint8x16_t	chunk = vdupq_n_u8(0);

			if (query->dims - i >= 16)
				chunk = vld1q_u8(bytes + i);
			else
				memcpy(&chunk, bytes + i, query->dims - i);
			malformed = vorrq_u8(malformed, vceqq_u8(chunk, vdupq_n_u8(0x80)));
			vst1q_s8(values + i, vreinterpretq_s8_u8(chunk));
		}
	}
	return vmaxvq_u8(malformed) == 0;
}

static bool
unpack_bit(const uint8_t *stored, uint32_t rows, const pgr_query *query)
{
	const uint8x8_t each = vcreate_u8(UINT64_C(0x8040201008040201));
	uint32_t	row_bytes = (query->dims + 7) / 8;

	for (uint32_t row = 0; row < rows; row++)
	{
		int8_t	   *values = (int8_t *) query->block + (size_t) row * query->width;
		const uint8_t *bits = stored + (size_t) row * row_bytes;

		if (!pgr_no_bit_beyond(bits, query->dims))
			return false;
		for (uint32_t i = 0; i < row_bytes; i++)
		{
			uint8x8_t	set = vtst_u8(vdup_n_u8(bits[i]), each);

			vst1_s8(values + 8 * (size_t) i, vbsl_s8(set, vdup_n_s8(1), vdup_n_s8(-1)));
		}
	}
	return true;
}

static bool
unpack_float16(const uint8_t *stored, uint32_t rows, const pgr_query *query)
{
	uint32x4_t	malformed = vdupq_n_u32(0);

	for (uint32_t row = 0; row < rows; row++)
	{
		float	   *values = (float *) query->block + (size_t) row * query->width;
		const uint8_t *halves = stored + (size_t) row * query->dims * 2;

		for (uint32_t i = 0; i < query->dims; i += 4)
		{
			uint16x4_t	chunk = vdup_n_u16(0);
			float32x4_t floats;

			memcpy(&chunk, halves + 2 * (size_t) i, query->dims - i >= 4 ? 8 : 2 * (query->dims - i));
			floats = vcvt_f32_f16(vreinterpret_f16_u16(chunk));
			malformed = vorrq_u32(malformed, vmvnq_u32(vcleq_f32(vabsq_f32(floats), vdupq_n_f32(FLT_MAX))));
			vst1q_f32(values + i, floats);
		}
	}
	return vmaxvq_u32(malformed) == 0;
}

ISA static void
best_integers(const pgr_query *query, uint32_t rows)
{
	uint32_t	quads = (query->dims + 3) / 4;

	for (uint32_t group = 0; group < query->groups; group++)
	{
		const int8_t *vectors = (const int8_t *) query->integers + (size_t) group * query->width * PGR_LANES;
		int32_t    *best = query->best_integers + group * PGR_LANES;

		for (uint32_t row = 0; row < rows; row += TILE)
		{
			const int8_t *values = (const int8_t *) query->block + (size_t) row * query->width;
			int32x4_t	sums[TILE][4];

			for (int i = 0; i < TILE; i++)
				for (int part = 0; part < 4; part++)
					sums[i][part] = vdupq_n_s32(0);
			for (uint32_t quad = 0; quad < quads; quad++)
				for (int i = 0; i < TILE; i++)
				{
					int32_t		four;
					int8x16_t	element;

					memcpy(&four, values + (size_t) i * query->width + 4 * (size_t) quad, sizeof four);
					element = vreinterpretq_s8_s32(vdupq_n_s32(four));
					for (int part = 0; part < 4; part++)
						sums[i][part] = vdotq_s32(sums[i][part],
												  vld1q_s8(vectors + (size_t) quad * 64 + 16 * part), element);
				}
			for (int i = 0; i < TILE; i++)
				for (int part = 0; part < 4; part++)
					vst1q_s32(best + 4 * part, vmaxq_s32(vld1q_s32(best + 4 * part), sums[i][part]));
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

		for (uint32_t row = 0; row < rows; row += TILE)
		{
			const float *values = (const float *) query->block + (size_t) row * query->width;
			float32x4_t sums[TILE][4];

			for (int j = 0; j < TILE; j++)
				for (int part = 0; part < 4; part++)
					sums[j][part] = vdupq_n_f32(0);
			for (uint32_t i = 0; i < query->dims; i++)
				for (int j = 0; j < TILE; j++)
					for (int part = 0; part < 4; part++)
						sums[j][part] = vfmaq_n_f32(sums[j][part],
													vld1q_f32(vectors + (size_t) i * PGR_LANES + 4 * part),
													values[(size_t) j * query->width + i]);
			for (int j = 0; j < TILE; j++)
				for (int part = 0; part < 4; part++)
					vst1q_f32(best + 4 * part, vmaxq_f32(vld1q_f32(best + 4 * part), sums[j][part]));
		}
	}
}

const pgr_kernel pgr_kernel_neon = {
	.name = "neon", .available = available, .layout = PGR_QUADS, .bias = 0, .rows = TILE,
	.unpack_int8 = unpack_int8, .unpack_bit = unpack_bit, .unpack_float16 = unpack_float16,
	.best_integers = best_integers, .best_floats = best_floats
};

#else
typedef int pgr_not_this_architecture;
#endif
