/*
 * What an instruction set must bring to score documents, and the query as kernels want it.
 *
 * Sixteen query vectors lie across the lanes; of a document row each element (or group of elements) is broadcast to all
 * of them. So there are no horizontal sums, and the maximum over the document's rows is taken lane by lane.
 *
 * int8 and bit documents are scored in integers against a query of 8 bits a dimension with a scale for each of its
 * vectors; all kernels give the same integers. float16 documents are scored in float32.
 */
#ifndef PGR_KERNEL_H
#define PGR_KERNEL_H

#include "tokens.h"

#define PGR_LANES 16			/* query vectors side by side: a group */
#define PGR_BLOCK_ROWS 128		/* document rows unpacked at a time */
#define PGR_FLOAT_ROWS 16		/* the same of floats; they take as much room as twice as many int16 */
#define PGR_WIDTH_STEP 64		/* unpacked rows are this many elements, or a multiple, with zeros at their end */

typedef struct pgr_kernel pgr_kernel;

typedef struct
{
	const pgr_kernel *kernel;
	uint32_t	count;			/* vectors, without those that fill the last group */
	uint32_t	dims;
	uint32_t	groups;			/* of PGR_LANES vectors */
	uint32_t	width;			/* dims rounded up to PGR_WIDTH_STEP */
	float		largest;		/* magnitude in the query */
	bool		has_integers;	/* laid out when first needed, as is floats */
	bool		has_floats;
	float	   *matrix;			/* [count][dims], as given */
	void	   *integers;		/* [groups] of the kernel's layout */
	float	   *floats;			/* [groups][dims][PGR_LANES] */
	float	   *scales;			/* [count], of integers */
	int32_t    *biases;			/* [count], what the kernel's bias adds to each product */
	void	   *block;			/* [PGR_BLOCK_ROWS][width] unpacked elements */
	int32_t    *best_integers;	/* [groups * PGR_LANES] */
	float	   *best_floats;
	double	   *best;			/* [count], for whoever scores */
} pgr_query;

typedef enum
{
	PGR_QUADS,					/* int8 [width / 4][PGR_LANES][4], rows unpacked to bytes */
	PGR_PAIRS,					/* int16 [width / 2][PGR_LANES][2], rows unpacked to int16 */
	PGR_ROWS					/* int16 [PGR_LANES][width], rows unpacked to int16 */
} pgr_layout;

struct pgr_kernel
{
	const char *name;
	bool		(*available) (void);
	pgr_layout	layout;
	int			bias;			/* added to each unpacked integer, to make it unsigned */
	uint32_t	rows;			/* best_* want a multiple of so many; the last row is repeated */

	/* Unpack rows of dims elements to rows of width; false if malformed. */
	bool		(*unpack_int8) (const uint8_t *stored, uint32_t rows, const pgr_query *query);
	bool		(*unpack_bit) (const uint8_t *stored, uint32_t rows, const pgr_query *query);
	bool		(*unpack_float16) (const uint8_t *stored, uint32_t rows, const pgr_query *query);

	/* Raise the best products of all query vectors by those of the block's rows. */
	void		(*best_integers) (const pgr_query *query, uint32_t rows);
	void		(*best_floats) (const pgr_query *query, uint32_t rows);
};

/* Before clang 16 the header has the dot product only where all of the program may use it. */
#if defined(__aarch64__) && (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD))
#define PGR_NEON
#endif

extern const pgr_kernel pgr_kernel_amx;
extern const pgr_kernel pgr_kernel_avx512;
extern const pgr_kernel pgr_kernel_avx2;
extern const pgr_kernel pgr_kernel_neon;
extern const pgr_kernel pgr_kernel_portable;

/* Those of this architecture, the fastest first; NULL where there are fewer. The last runs on any machine. */
#define PGR_KERNELS 4
extern const pgr_kernel *const pgr_kernels[PGR_KERNELS];

/* Before a loop of constant length whose array must stay in registers. */
#if defined(__clang__)
#define PGR_UNROLL _Pragma("clang loop unroll(full)")
#else
#define PGR_UNROLL _Pragma("GCC unroll 16")
#endif

/* Whether the bits of a row beyond its dimensions are zero, as they must be. */
static inline bool
pgr_no_bit_beyond(const uint8_t *row, uint32_t dims)
{
	return dims % 8 == 0 || row[dims / 8] >> (dims % 8) == 0;
}

#endif
