/* The naive algorithm, and the floor: what reading the same bytes costs. */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "utils/array.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

PG_MODULE_MAGIC;

/* As pgvector's type lies in memory. */
typedef struct
{
	int32		vl_len_;
	int16		dims;
	int16		unused;
	float		values[FLEXIBLE_ARRAY_MEMBER];
} Vector;

static Vector **
vectors_of(ArrayType *array, int *count)
{
	Datum	   *elements;
	bool	   *nulls;

	deconstruct_array(array, ARR_ELEMTYPE(array), -1, false, TYPALIGN_INT, &elements, &nulls, count);
	for (int i = 0; i < *count; i++)
		if (nulls[i])
			elog(ERROR, "NULL in an array of vectors");
	return (Vector **) elements;
}

PG_FUNCTION_INFO_V1(pair_loop);
Datum
pair_loop(PG_FUNCTION_ARGS)
{
	int			queries;
	int			documents;
	Vector	  **query = vectors_of(PG_GETARG_ARRAYTYPE_P(0), &queries);
	Vector	  **document = vectors_of(PG_GETARG_ARRAYTYPE_P(1), &documents);
	float		sum = 0;

	for (int q = 0; q < queries; q++)
	{
		float		best = -INFINITY;

		for (int d = 0; d < documents; d++)
		{
			const float *a = query[q]->values;
			const float *b = document[d]->values;
			int			dims = query[q]->dims;
			float		product = 0;

			if (document[d]->dims != dims)
				elog(ERROR, "expected %d dimensions, not %d", dims, document[d]->dims);
			for (int i = 0; i < dims; i++)
				product += a[i] * b[i];
			best = Max(best, product);
		}
		sum += best;
	}
	PG_RETURN_FLOAT4(sum);
}

PG_FUNCTION_INFO_V1(only_read);
Datum
only_read(PG_FUNCTION_ARGS)
{
	struct varlena *packed = PG_DETOAST_DATUM_PACKED(PG_GETARG_DATUM(0));
	const char *bytes = VARDATA_ANY(packed);
	Size		size = VARSIZE_ANY_EXHDR(packed);
	uint64		sum = 0;

	for (Size i = 0; i + 8 <= size; i += 8)
	{
		uint64		word;

		memcpy(&word, bytes + i, 8);
		sum ^= word;
	}
	PG_FREE_IF_COPY(packed, 0);
	PG_RETURN_FLOAT4((float) (sum & 0xffff));
}
