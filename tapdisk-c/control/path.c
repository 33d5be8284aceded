/* SPDX-License-Identifier: LGPL-2.1-only */
#include <errno.h>

#include "common/rundir.h"
#include "control/control.h"

const char *control_dir(void)
{
	return run_dir();
}

int control_socket_path(char *path, size_t size, int pid, struct error *err)
{
	if (run_path(path, size, "ctl%d", pid))
		return error_set(err, -ENAMETOOLONG, "%s: too long for the "
				 "path of a socket", control_dir());
	return 0;
}
