/* pgrerank.maxsim_agg(query, part): MaxSim of a document that is stored in parts. */
#include "postgres.h"

#include "fmgr.h"

#include "prepared.h"

/* The best products of one document's query vectors so far. */
typedef struct
{
	uint32		count;			/* query vectors */
	double		best[FLEXIBLE_ARRAY_MEMBER];
} State;

static State *
make_state(FunctionCallInfo fcinfo, uint32 count)
{
	MemoryContext context;
	State	   *state;

	if (!AggCheckCallContext(fcinfo, &context))
		elog(ERROR, "maxsim_agg's functions can only be called by the aggregate");
	state = MemoryContextAlloc(context, offsetof(State, best) + count * sizeof(double));
	state->count = count;
	return state;
}

static State *
state_argument(FunctionCallInfo fcinfo, int argument)
{
	return PG_ARGISNULL(argument) ? NULL : (State *) PG_GETARG_POINTER(argument);
}

static void
check_same_query(const State *state, uint32 count)
{
	if (state->count != count)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("maxsim_agg: expected one query for a document, of %u vectors, not another of %u",
						state->count, count)));
}

PG_FUNCTION_INFO_V1(pgrerank_maxsim_add);
Datum
pgrerank_maxsim_add(PG_FUNCTION_ARGS)
{
	State	   *state = state_argument(fcinfo, 0);
	pgr_query  *query;
	struct varlena *packed;

	if (PG_ARGISNULL(1) || PG_ARGISNULL(2))
		PG_RETURN_POINTER(state);
	query = pgr_prepared(fcinfo, 1, pgr_prepare_packed);
	if (state == NULL)
	{
		state = make_state(fcinfo, query->count);
		pgr_no_best(query, state->best);
	}
	check_same_query(state, query->count);
	packed = PG_DETOAST_DATUM_PACKED(PG_GETARG_DATUM(2));
	pgr_raise_best_packed(query, packed, state->best);
	PG_FREE_IF_COPY(packed, 2);
	PG_RETURN_POINTER(state);
}

PG_FUNCTION_INFO_V1(pgrerank_maxsim_combine);
Datum
pgrerank_maxsim_combine(PG_FUNCTION_ARGS)
{
	State	   *state = state_argument(fcinfo, 0);
	const State *other = state_argument(fcinfo, 1);

	if (other == NULL)
		PG_RETURN_POINTER(state);
	if (state == NULL)
	{
		state = make_state(fcinfo, other->count);
		memcpy(state->best, other->best, other->count * sizeof(double));
	}
	check_same_query(state, other->count);
	for (uint32 v = 0; v < state->count; v++)
		state->best[v] = Max(state->best[v], other->best[v]);
	PG_RETURN_POINTER(state);
}

PG_FUNCTION_INFO_V1(pgrerank_maxsim_serialize);
Datum
pgrerank_maxsim_serialize(PG_FUNCTION_ARGS)
{
	const State *state = (State *) PG_GETARG_POINTER(0);
	Size		size = state->count * sizeof(double);
	bytea	   *serialized = palloc(VARHDRSZ + size);

	SET_VARSIZE(serialized, VARHDRSZ + size);
	memcpy(VARDATA(serialized), state->best, size);
	PG_RETURN_BYTEA_P(serialized);
}

PG_FUNCTION_INFO_V1(pgrerank_maxsim_deserialize);
Datum
pgrerank_maxsim_deserialize(PG_FUNCTION_ARGS)
{
	const bytea *serialized = PG_GETARG_BYTEA_PP(0);
	Size		size = VARSIZE_ANY_EXHDR(serialized);
	State	   *state = make_state(fcinfo, size / sizeof(double));

	memcpy(state->best, VARDATA_ANY(serialized), state->count * sizeof(double));
	PG_RETURN_POINTER(state);
}

/* NULL for a document without token vectors. */
PG_FUNCTION_INFO_V1(pgrerank_maxsim_sum);
Datum
pgrerank_maxsim_sum(PG_FUNCTION_ARGS)
{
	const State *state = state_argument(fcinfo, 0);

	if (state == NULL)
		PG_RETURN_NULL();
	PG_RETURN_FLOAT4(pgr_score(state->best, state->count));
}
