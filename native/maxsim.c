/* pgrerank.maxsim(bytea, bytea): MaxSim of packed token vectors. */
#include "postgres.h"

#include "fmgr.h"

#include "prepared.h"

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
