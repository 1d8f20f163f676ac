/* AMX: tiles of 16 document rows times 16 query vectors in one instruction; Sapphire Rapids and later, on Linux. */
#include "kernel.h"

#if defined(__x86_64__) && defined(__linux__)

#include <cpuid.h>
#include <immintrin.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/avx512.h"

#define ISA __attribute__((target(PGR_AVX512 ",amx-tile,amx-int8")))
#define TILE 16					/* rows of a tile; a row is 64 bytes */
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_TILE_DATA 18

/* A process must ask Linux for the tiles' state; what is granted stays granted. */
static bool
available(void)
{
	static int	known = -1;
	unsigned	eax,
				ebx,
				ecx,
				edx;

	if (known < 0)
		known = pgr_avx512_available()
			&& __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)
			&& (edx >> 24 & 1) && (edx >> 25 & 1)
			&& syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILE_DATA) == 0;
	return known != 0;
}

ISA static bool
unpack_int8(const uint8_t *stored, uint32_t rows, const pgr_query *query)
{
	return pgr_avx512_copy_int8(stored, rows, query, 0);
}

ISA static bool
unpack_bit(const uint8_t *stored, uint32_t rows, const pgr_query *query)
{
	return pgr_avx512_spread_bits(stored, rows, query, 1, -1);
}

ISA static void
raise_best(int32_t *best, const int32_t products[TILE][PGR_LANES])
{
	__m512i		largest = _mm512_load_si512(best);

	for (int row = 0; row < TILE; row++)
		largest = _mm512_max_epi32(largest, _mm512_load_si512(products[row]));
	_mm512_store_si512(best, largest);
}

/*
 * Products of 32 document rows and 32 query vectors: tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 vectors. With fewer
 * than 17 of either, half of them stay at rest.
 */
ISA static inline __attribute__((always_inline)) void
multiply(const pgr_query *query, const uint8_t *rows, const uint8_t *vectors, const bool lower, const bool right,
		 int32_t products[4][TILE][PGR_LANES])
{
	size_t		width = query->width;

	_tile_zero(0);
	_tile_zero(1);
	_tile_zero(2);
	_tile_zero(3);
	for (size_t i = 0; i < width; i += 64)
	{
		_tile_loadd(4, rows + i, width);
		_tile_loadd(6, vectors + i * PGR_LANES, 64);
		_tile_dpbssd(0, 4, 6);
		if (lower)
		{
			_tile_loadd(5, rows + TILE * width + i, width);
			_tile_dpbssd(1, 5, 6);
		}
		if (right)
		{
			_tile_loadd(7, vectors + (width + i) * PGR_LANES, 64);
			_tile_dpbssd(2, 4, 7);
		}
		if (lower && right)
			_tile_dpbssd(3, 5, 7);
	}
	_tile_stored(0, products[0], 64);
	if (lower)
		_tile_stored(1, products[1], 64);
	if (right)
		_tile_stored(2, products[2], 64);
	if (lower && right)
		_tile_stored(3, products[3], 64);
}

ISA static void
best_integers(const pgr_query *query, uint32_t rows)
{
	static const struct
	{
		uint8_t		palette;
		uint8_t		start_row;
		uint8_t		reserved[14];
		uint16_t	row_bytes[16];
		uint8_t		rows[16];
	}			shape __attribute__((aligned(64))) = {
		.palette = 1,
		.row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
		.rows = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE}
	};
	int32_t		products[4][TILE][PGR_LANES] __attribute__((aligned(64)));

	_tile_loadconfig(&shape);
	for (uint32_t row = 0; row < rows; row += 2 * TILE)
		for (uint32_t group = 0; group < query->groups; group += 2)
		{
			const uint8_t *block = (const uint8_t *) query->block + (size_t) row * query->width;
			const uint8_t *vectors = (const uint8_t *) query->integers + (size_t) group * query->width * PGR_LANES;
			bool		lower = row + TILE < rows;
			bool		right = group + 1 < query->groups;

			if (lower && right)
				multiply(query, block, vectors, true, true, products);
			else
				multiply(query, block, vectors, lower, right, products);
			for (int tile = 0; tile < 4; tile++)
				if ((lower || tile % 2 == 0) && (right || tile < 2))
					raise_best(query->best_integers + (group + tile / 2) * PGR_LANES, products[tile]);
		}
	_tile_release();
}

const pgr_kernel pgr_kernel_amx = {
	.name = "amx", .available = available, .layout = PGR_QUADS, .bias = 0, .rows = TILE,
	.unpack_int8 = unpack_int8, .unpack_bit = unpack_bit, .unpack_float16 = pgr_avx512_unpack_float16,
	.best_integers = best_integers, .best_floats = pgr_avx512_best_floats
};

#else
typedef int pgr_not_this_architecture;
#endif
