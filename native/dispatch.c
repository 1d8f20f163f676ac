/* Which kernels this machine can run. */
#include <string.h>

#include "kernel.h"

/* The fastest first. */
static const pgr_kernel *const kernels[] = {
#if defined(__x86_64__)
#if defined(__linux__)
	&pgr_kernel_amx,
#endif
	&pgr_kernel_avx512,
	&pgr_kernel_avx2,
#elif defined(PGR_NEON)
	&pgr_kernel_neon,
#endif
	&pgr_kernel_portable,
};

const pgr_kernel *
pgr_kernel_find(const char *name)
{
	for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
		if ((name == NULL || strcmp(kernels[i]->name, name) == 0) && kernels[i]->available())
			return kernels[i];
	return NULL;
}
