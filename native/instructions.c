/* The setting pgrerank.instructions: which of the kernels that this machine can run is used. */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#include "instructions.h"

PG_MODULE_MAGIC;

/* What the setting's values mean: 0, auto, is the fastest; the others follow, each once. */
static const pgr_kernel *available[1 + PGR_KERNELS];
static struct config_enum_entry choices[1 + PGR_KERNELS + 1] = {{"auto", 0, false}};
static int	choice = 0;

static void
find_available(void)
{
	int			count = 0;

	for (int i = 0; i < PGR_KERNELS && pgr_kernels[i] != NULL; i++)
		if (pgr_kernels[i]->available())
		{
			count++;
			available[count] = pgr_kernels[i];
			choices[count] = (struct config_enum_entry) {pgr_kernels[i]->name, count, false};
		}
	available[0] = available[1];
}

void		_PG_init(void);

void
_PG_init(void)
{
	find_available();
	DefineCustomEnumVariable("pgrerank.instructions",
							 "Instruction set that maxsim uses.",
							 "By default the fastest that the machine can run.",
							 &choice, 0, choices, PGC_USERSET, 0, NULL, NULL, NULL);
}

const pgr_kernel *
pgr_chosen_kernel(void)
{
	return available[choice];
}

PG_FUNCTION_INFO_V1(pgrerank_maxsim_instructions);
Datum
pgrerank_maxsim_instructions(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(pgr_chosen_kernel()->name));
}
