/* What the native client's fuzzer sees of the backend that it stands in for. */
#ifndef PGR_FUZZ_BACKEND_H
#define PGR_FUZZ_BACKEND_H

#include "postgres.h"

#include "utils/timestamp.h"

#define PGR_MOST_SAID 4096

extern size_t backend_bytes;	/* that are allocated */
extern int	backend_code;		/* the SQLSTATE of the last error */
extern TimestampTz backend_now; /* microseconds */

/* Frees what was allocated in no context of its own. */
extern void backend_end_call(void);

/* Whether there is nothing to be received, now or later. */
extern bool backend_is_silent(void);

#endif
