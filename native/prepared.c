/* Preparing a statement's query, and scoring with errors that are raised. */
#include "postgres.h"

#include "fmgr.h"
#include "nodes/primnodes.h"
#include "utils/memutils.h"

#include "instructions.h"
#include "prepared.h"

void
pgr_raise(const char *message)
{
	ereport(ERROR, (errcode(ERRCODE_DATA_EXCEPTION), errmsg("%s", message)));
	pg_unreachable();
}

pgr_query *
pgr_make_query(uint64 count, uint32 dims, MemoryContext context)
{
	Size		bytes = pgr_query_bytes(count, dims);

	if (bytes == 0)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("query of " UINT64_FORMAT " token vectors of %u dimensions is too large", count, dims),
				 errdetail("It may have %u elements.", PGR_MAX_QUERY_ELEMENTS)));
	return pgr_query_init(MemoryContextAlloc(context, bytes), pgr_chosen_kernel(), (uint32) count, dims);
}

typedef struct
{
	MemoryContext context;		/* of query and given */
	bool		stable;			/* the argument is the same for all rows */
	void	   *query;
	struct varlena *given;		/* what it was made of, if it may change */
} Prepared;

static void
prepare_anew(Prepared *prepared, struct varlena *given, pgr_prepare prepare)
{
	prepared->query = NULL;
	MemoryContextReset(prepared->context);
	if (!prepared->stable)
	{
		prepared->given = MemoryContextAlloc(prepared->context, VARSIZE_ANY(given));
		memcpy(prepared->given, given, VARSIZE_ANY(given));
	}
	prepared->query = prepare(given, prepared->context);
}

/* Whether an argument is the same for all rows. An aggregate's function sees its own expression, not the caller's. */
static bool
is_stable(FunctionCallInfo fcinfo, int argument)
{
	Aggref	   *aggregate = AggGetAggref(fcinfo);
	Node	   *given;

	if (aggregate == NULL)
		return get_fn_expr_arg_stable(fcinfo->flinfo, argument);
	given = (Node *) ((TargetEntry *) list_nth(aggregate->args, argument - 1))->expr;
	return IsA(given, Const) || (IsA(given, Param) && ((Param *) given)->paramkind == PARAM_EXTERN);
}

void *
pgr_prepared(FunctionCallInfo fcinfo, int argument, pgr_prepare prepare)
{
	FmgrInfo   *function = fcinfo->flinfo;
	Prepared   *prepared = function->fn_extra;
	struct varlena *given;

	if (prepared == NULL)
	{
		prepared = MemoryContextAllocZero(function->fn_mcxt, sizeof(Prepared));
		prepared->context = AllocSetContextCreate(function->fn_mcxt, "pgrerank query", ALLOCSET_DEFAULT_SIZES);
		prepared->stable = is_stable(fcinfo, argument);
		function->fn_extra = prepared;
	}
	if (prepared->query != NULL && prepared->stable)
		return prepared->query;
	given = PG_DETOAST_DATUM(PG_GETARG_DATUM(argument));
	if (prepared->query == NULL || VARSIZE_ANY(given) != VARSIZE_ANY(prepared->given)
		|| memcmp(given, prepared->given, VARSIZE_ANY(given)) != 0)
		prepare_anew(prepared, given, prepare);
	PG_FREE_IF_COPY(given, argument);
	return prepared->query;
}

void *
pgr_prepare_packed(struct varlena *given, MemoryContext context)
{
	const uint8 *bytes = (const uint8 *) VARDATA_ANY(given);
	Size		size = VARSIZE_ANY_EXHDR(given);
	char		error[PGR_ERROR_BYTES];
	pgr_query  *query;
	uint64_t	count;
	uint32_t	dims;

	if (!pgr_packed_measure(bytes, size, &count, &dims, error))
		pgr_raise(error);
	query = pgr_make_query(count, dims, context);
	if (!pgr_packed_fill(query, bytes, size, error))
		pgr_raise(error);
	return query;
}

void
pgr_raise_best_packed(pgr_query *query, const struct varlena *packed, double *best)
{
	char		error[PGR_ERROR_BYTES];

	if (!pgr_packed_raise(query, (const uint8 *) VARDATA_ANY(packed), VARSIZE_ANY_EXHDR(packed), best, error))
		pgr_raise(error);
}

float
pgr_score(const double *best, uint32 count)
{
	char		error[PGR_ERROR_BYTES];
	float		score;

	if (!pgr_sum_best(best, count, &score, error))
		pgr_raise(error);
	return score;
}
