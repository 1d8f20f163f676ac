/* The kernels that are compiled for this architecture. */
#include "kernel.h"

const pgr_kernel *const pgr_kernels[PGR_KERNELS] = {
#if defined(__x86_64__)
#if defined(__linux__)
	&pgr_kernel_amx,
#endif
	&pgr_kernel_avx512,
	&pgr_kernel_avx2,
#elif defined(PGR_NEON)
	&pgr_kernel_neon,
#endif
	&pgr_kernel_portable
};
