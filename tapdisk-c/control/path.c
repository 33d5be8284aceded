/* SPDX-License-Identifier: LGPL-2.1-only */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "control/control.h"

#define CONTROL_DIR "/run/blktap-control"

const char *control_dir(void)
{
	const char *dir = secure_getenv("XENBLK_CONTROL_DIR");

	return dir && *dir ? dir : CONTROL_DIR;
}

int control_socket_path(char *path, size_t size, int pid, struct error *err)
{
	int n = snprintf(path, size, "%s/ctl%d", control_dir(), pid);

	if (n < 0 || (size_t)n >= size)
		return error_set(err, -ENAMETOOLONG, "%s: too long for the "
				 "path of a socket", control_dir());
	return 0;
}
