/* SPDX-License-Identifier: LGPL-2.1-only */
#include "common/rundir.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define RUN_DIR "/run/blktap-control"

const char *run_dir(void)
{
	const char *dir = secure_getenv("XENBLK_CONTROL_DIR");

	return dir && *dir ? dir : RUN_DIR;
}

int run_path(char *path, size_t size, const char *fmt, ...)
{
	int n = snprintf(path, size, "%s/", run_dir()), m;
	va_list ap;

	if (n < 0 || (size_t)n >= size)
		return -ENAMETOOLONG;
	va_start(ap, fmt);
	m = vsnprintf(path + n, size - (size_t)n, fmt, ap);
	va_end(ap);
	return m < 0 || (size_t)m >= size - (size_t)n ? -ENAMETOOLONG : 0;
}
