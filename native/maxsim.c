/* pgrerank.maxsim(bytea, bytea), and what the functions over arrays share with it. */
#include "postgres.h"

#include "fmgr.h"
#include "nodes/primnodes.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "prepared.h"

PG_MODULE_MAGIC;

/* The setting pgrerank.instructions; the first is the fastest there is. */
static const struct config_enum_entry instruction_sets[] = {
	{"auto", 0, false},
	{"amx", 1, false},
	{"avx512", 2, false},
	{"avx2", 3, false},
	{"neon", 4, false},
	{"portable", 5, false},
	{NULL, 0, false}
};
static int	instructions = 0;

static const pgr_kernel *
kernel_of(int setting)
{
	return pgr_kernel_find(setting == 0 ? NULL : instruction_sets[setting].name);
}

static bool
check_instructions(int *setting, void **extra, GucSource source)
{
	if (kernel_of(*setting) != NULL)
		return true;
	GUC_check_errdetail("This machine can't run \"%s\".", instruction_sets[*setting].name);
	return false;
}

void		_PG_init(void);

void
_PG_init(void)
{
	DefineCustomEnumVariable("pgrerank.instructions",
							 "Instruction set that maxsim uses.",
							 "By default the fastest that the machine can run.",
							 &instructions, 0, instruction_sets, PGC_USERSET, 0,
							 check_instructions, NULL, NULL);
}

PG_FUNCTION_INFO_V1(pgrerank_maxsim_instructions);
Datum
pgrerank_maxsim_instructions(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(kernel_of(instructions)->name));
}

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
	return pgr_query_init(MemoryContextAlloc(context, bytes), kernel_of(instructions), (uint32) count, dims);
}

typedef struct
{
	MemoryContext context;		/* of query and given */
	bool		stable;			/* the argument is the same for all rows */
	pgr_query  *query;
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

/* Whether an argument is the same for all rows. An aggregate's function sees its own expression only, not the caller's. */
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

pgr_query *
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

pgr_query *
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

PG_FUNCTION_INFO_V1(pgrerank_maxsim_packed);
Datum
pgrerank_maxsim_packed(PG_FUNCTION_ARGS)
{
	pgr_query  *query = pgr_prepared(fcinfo, 0, pgr_prepare_packed);
	struct varlena *packed = PG_DETOAST_DATUM_PACKED(PG_GETARG_DATUM(1));

	pgr_no_best(query, query->best);
	pgr_raise_best_packed(query, packed, query->best);
	PG_FREE_IF_COPY(packed, 1);
	PG_RETURN_FLOAT4(pgr_score(query->best, query->count));
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
