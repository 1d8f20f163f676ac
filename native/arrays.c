/* pgrerank.maxsim over arrays of pgvector's vector and halfvec. */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "utils/array.h"

#include "prepared.h"

/* How both types of pgvector lie in memory; the elements are float or half. */
typedef struct
{
	int32		vl_len_;
	int16		dims;
	int16		unused;
	char		elements[FLEXIBLE_ARRAY_MEMBER];
} Vector;

typedef struct
{
	uint32		count;
	uint32		dims;
	const Vector **vectors;
} Vectors;

static const Vector *
checked_vector(Datum element, Size element_bytes, uint32 dims)
{
	const Vector *vector = (const Vector *) PG_DETOAST_DATUM(element);
	Size		wanted = offsetof(Vector, elements);

	if (VARSIZE(vector) < wanted || vector->dims < 1 || VARSIZE(vector) != wanted + vector->dims * element_bytes)
		pgr_raise("malformed vector in an array of token vectors");
	if (dims != 0 && (uint32) vector->dims != dims)
		ereport(ERROR, (errcode(ERRCODE_DATA_EXCEPTION), errmsg("expected %u dimensions, not %d", dims, vector->dims)));
	return vector;
}

/* All of one length: that given, or, where it is 0, the first one's. */
static Vectors
vectors_of(struct varlena *given, Size element_bytes, uint32 dims)
{
	ArrayType  *array = (ArrayType *) given;
	Vectors		found = {0, dims, NULL};
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("expected an array of 1 dimension, not %d", ARR_NDIM(array))));
	deconstruct_array(array, ARR_ELEMTYPE(array), -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	found.count = count;
	found.vectors = palloc(sizeof(Vector *) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("token vector %d is NULL", i + 1)));
		found.vectors[i] = checked_vector(elements[i], element_bytes, found.dims);
		found.dims = found.vectors[i]->dims;
	}
	pfree(elements);
	pfree(nulls);
	return found;
}

static void
read_floats(const void *rows, uint32 row, float *values)
{
	const Vectors *vectors = rows;

	memcpy(values, vectors->vectors[row]->elements, vectors->dims * sizeof(float));
}

static void
read_halves(const void *rows, uint32 row, float *values)
{
	const Vectors *vectors = rows;
	const char *halves = vectors->vectors[row]->elements;

	for (uint32 i = 0; i < vectors->dims; i++)
	{
		uint16		half;

		memcpy(&half, halves + 2 * i, sizeof half);
		values[i] = pgr_half_to_float(half);
	}
}

static void *
prepare_array(struct varlena *given, MemoryContext context, Size element_bytes, pgr_row_reader read)
{
	Vectors		vectors = vectors_of(given, element_bytes, 0);
	pgr_query  *query = pgr_make_query(vectors.count, vectors.dims, context);

	for (uint32 i = 0; i < vectors.count; i++)
		read(&vectors, i, query->matrix + (Size) i * vectors.dims);
	pgr_query_ready(query);
	return query;
}

static void *
prepare_vectors(struct varlena *given, MemoryContext context)
{
	return prepare_array(given, context, sizeof(float), read_floats);
}

static void *
prepare_halfvecs(struct varlena *given, MemoryContext context)
{
	return prepare_array(given, context, sizeof(uint16), read_halves);
}

/* NULL where either side has no vectors. */
static Datum
score_array(FunctionCallInfo fcinfo, pgr_prepare prepare, Size element_bytes, pgr_row_reader read)
{
	pgr_query  *query = pgr_prepared(fcinfo, 0, prepare);
	struct varlena *given = PG_DETOAST_DATUM(PG_GETARG_DATUM(1));
	Vectors		document = vectors_of(given, element_bytes, query->dims);

	if (query->count == 0 || document.count == 0)
		PG_RETURN_NULL();
	pgr_no_best(query, query->best);
	pgr_raise_best_floats(query, read, &document, document.count, query->best);
	pfree(document.vectors);
	PG_FREE_IF_COPY(given, 1);
	PG_RETURN_FLOAT4(pgr_score(query->best, query->count));
}

PG_FUNCTION_INFO_V1(pgrerank_maxsim_vector);
Datum
pgrerank_maxsim_vector(PG_FUNCTION_ARGS)
{
	return score_array(fcinfo, prepare_vectors, sizeof(float), read_floats);
}

PG_FUNCTION_INFO_V1(pgrerank_maxsim_halfvec);
Datum
pgrerank_maxsim_halfvec(PG_FUNCTION_ARGS)
{
	return score_array(fcinfo, prepare_halfvecs, sizeof(uint16), read_halves);
}
