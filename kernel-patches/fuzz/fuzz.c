// SPDX-License-Identifier: GPL-2.0-only
#include <stdio.h>

#include "kernel.h"

unsigned int fuzz_locked;
u32 fuzz_no_memory;

_Noreturn void fuzz_fail(const char *file, int line, const char *cond)
{
	fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, cond);
	abort();
}
