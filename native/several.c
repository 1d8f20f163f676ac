/* pgrerank._maxsim_each(queries, numbers, part): MaxSim of some of many queries and a document stored in parts. */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "utils/array.h"

#include "prepared.h"

typedef struct
{
	int			count;
	pgr_query  *queries[FLEXIBLE_ARRAY_MEMBER];
} Several;

/* The best products of a document and the queries that are asked for, one query's after the other's. */
typedef struct
{
	int			count;			/* queries */
	uint32	   *sizes;			/* of each, its vectors */
	double	   *best;
} State;

static void *
prepare_several(struct varlena *given, MemoryContext context)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	Several    *several;

	deconstruct_array((ArrayType *) given, BYTEAOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	several = MemoryContextAlloc(context, offsetof(Several, queries) + count * sizeof(pgr_query *));
	several->count = count;
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			pgr_raise("_maxsim_each: a query is NULL");
		several->queries[i] = pgr_prepare_packed(PG_DETOAST_DATUM(elements[i]), context);
	}
	return several;
}

/* The numbers, from 1, of queries that are asked for. */
static const int32 *
numbers_of(ArrayType *numbers, const Several *several, int *count)
{
	const int32 *values = (const int32 *) ARR_DATA_PTR(numbers);

	if (ARR_NDIM(numbers) > 1 || array_contains_nulls(numbers))
		pgr_raise("_maxsim_each: expected a plain list of numbers");
	*count = ArrayGetNItems(ARR_NDIM(numbers), ARR_DIMS(numbers));
	for (int i = 0; i < *count; i++)
		if (values[i] < 1 || values[i] > several->count)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_EXCEPTION),
					 errmsg("_maxsim_each: expected a query's number from 1 to %d, not %d",
							several->count, values[i])));
	return values;
}

static State *
make_state(FunctionCallInfo fcinfo, const Several *several, const int32 *numbers, int count)
{
	MemoryContext context;
	State	   *state;
	Size		vectors = 0;

	if (!AggCheckCallContext(fcinfo, &context))
		elog(ERROR, "_maxsim_each's functions can only be called by the aggregate");
	state = MemoryContextAlloc(context, sizeof(State));
	state->count = count;
	state->sizes = MemoryContextAlloc(context, count * sizeof(uint32));
	for (int i = 0; i < count; i++)
		vectors += state->sizes[i] = several->queries[numbers[i] - 1]->count;
	state->best = MemoryContextAllocHuge(context, vectors * sizeof(double));
	vectors = 0;
	for (int i = 0; i < count; i++)
	{
		pgr_no_best(several->queries[numbers[i] - 1], state->best + vectors);
		vectors += state->sizes[i];
	}
	return state;
}

PG_FUNCTION_INFO_V1(pgrerank_maxsim_add_each);
Datum
pgrerank_maxsim_add_each(PG_FUNCTION_ARGS)
{
	State	   *state = PG_ARGISNULL(0) ? NULL : (State *) PG_GETARG_POINTER(0);
	const Several *several;
	const int32 *numbers;
	int			count;
	double	   *best;
	struct varlena *packed;

	if (PG_ARGISNULL(1) || PG_ARGISNULL(2) || PG_ARGISNULL(3))
		PG_RETURN_POINTER(state);
	several = pgr_prepared(fcinfo, 1, prepare_several);
	numbers = numbers_of(PG_GETARG_ARRAYTYPE_P(2), several, &count);
	if (state == NULL)
		state = make_state(fcinfo, several, numbers, count);
	if (state->count != count)
		pgr_raise("_maxsim_each: expected the same numbers for all parts of a document");
	best = state->best;
	packed = PG_DETOAST_DATUM_PACKED(PG_GETARG_DATUM(3));
	for (int i = 0; i < count; i++)
	{
		pgr_query  *query = several->queries[numbers[i] - 1];

		if (query->count != state->sizes[i])
			pgr_raise("_maxsim_each: expected the same numbers for all parts of a document");
		pgr_raise_best_packed(query, packed, best);
		best += query->count;
	}
	PG_FREE_IF_COPY(packed, 3);
	PG_RETURN_POINTER(state);
}

/* In the order of the numbers. NULL for a document without token vectors. */
PG_FUNCTION_INFO_V1(pgrerank_maxsim_sum_each);
Datum
pgrerank_maxsim_sum_each(PG_FUNCTION_ARGS)
{
	const State *state = PG_ARGISNULL(0) ? NULL : (State *) PG_GETARG_POINTER(0);
	const double *best;
	Datum	   *scores;

	if (state == NULL)
		PG_RETURN_NULL();
	best = state->best;
	scores = palloc(state->count * sizeof(Datum));
	for (int i = 0; i < state->count; i++)
	{
		scores[i] = Float4GetDatum(pgr_score(best, state->sizes[i]));
		best += state->sizes[i];
	}
	PG_RETURN_ARRAYTYPE_P(construct_array(scores, state->count, FLOAT4OID, sizeof(float4), true, TYPALIGN_INT));
}
