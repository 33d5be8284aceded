/* SPDX-License-Identifier: LGPL-2.1-only */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
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

void control_link(int pid)
{
	char path[PATH_MAX], new[PATH_MAX], target[32];

	snprintf(target, sizeof(target), "ctl%d", (int)getpid());
	if (pid == getpid() || run_path(path, sizeof(path), "ctl%d", pid) ||
	    run_path(new, sizeof(new), "ctl%d.%d", pid, (int)getpid()))
		return;
	unlink(new);
	if (symlink(target, new) || rename(new, path))
		log_warn("tap-ctl will not find us as tapdisk %d err=%d", pid,
			 errno);
}

static int link_target(int pid)
{
	char path[PATH_MAX], text[32] = "";
	int heir;
	char c;

	if (run_path(path, sizeof(path), "ctl%d", pid) ||
	    readlink(path, text, sizeof(text) - 1) < 0 ||
	    sscanf(text, "ctl%d%c", &heir, &c) != 1 || heir <= 0)
		return 0;
	return heir;
}

int control_heir(int pid)
{
	int heir = link_target(pid);

	return heir ? heir : pid;
}

void control_unlink_all(void)
{
	DIR *dir = opendir(run_dir());
	const struct dirent *entry;
	int pid;
	char c;

	while (dir && (entry = readdir(dir)))
		if (sscanf(entry->d_name, "ctl%d%c", &pid, &c) == 1 &&
		    link_target(pid) == getpid())
			unlinkat(dirfd(dir), entry->d_name, 0);
	if (dir)
		closedir(dir);
}
