/* The setting pgrerank.instructions. */
#ifndef PGR_INSTRUCTIONS_H
#define PGR_INSTRUCTIONS_H

#include "kernel.h"

/* The kernel that the session has chosen. */
const pgr_kernel *pgr_chosen_kernel(void);

#endif
