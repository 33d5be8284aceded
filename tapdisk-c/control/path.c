/* SPDX-License-Identifier: LGPL-2.1-only */
#include <errno.h>

#include "common/rundir.h"
#include "control/control.h"

const char *control_dir(void)
{
	return run_dir();
}

static int too_long(struct error *err)
{
	return error_set(err, -ENAMETOOLONG, "%s: too long for the path of a socket",
			 control_dir());
}

int control_socket_path(char *path, size_t size, int pid, struct error *err)
{
	return run_path(path, size, "ctl%d", pid) ? too_long(err) : 0;
}

int control_early_path(char *path, size_t size, int pid, struct error *err)
{
	return run_path(path, size, "ctl%d.%d", pid, pid) ? too_long(err) : 0;
}
