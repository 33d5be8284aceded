/* SPDX-License-Identifier: LGPL-2.1-only */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"
#include "common/process.h"
#include "common/rundir.h"
#include "control/control.h"

/* Of who holds the lock too long: stopped, or of another use of the directory's lock. */
#define LOCK_TRIES	100u
#define LOCK_WAIT_US	1000u

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

/*
 * Without it a name could be removed that has just been led to another tapdisk.
 * A descriptor, to be closed; -1: not to be had.
 */
static int lock_names(void)
{
	int fd = open(run_dir(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	for (unsigned int i = 0; fd >= 0 && i < LOCK_TRIES; i++) {
		if (!flock(fd, LOCK_EX | LOCK_NB))
			return fd;
		usleep(LOCK_WAIT_US);
	}
	if (fd >= 0)
		close(fd);
	return -1;
}

static void unlock_names(int lock)
{
	if (lock >= 0)
		close(lock);
}

void control_link(int pid)
{
	char path[PATH_MAX], new[PATH_MAX], target[32];
	int lock;

	snprintf(target, sizeof(target), "ctl%d", (int)getpid());
	if (pid == getpid() || run_path(path, sizeof(path), "ctl%d", pid) ||
	    run_path(new, sizeof(new), "ctl%d.%d", pid, (int)getpid()))
		return;
	lock = lock_names();
	unlink(new);
	if (symlink(target, new) || rename(new, path))
		log_warn("tap-ctl will not find us as tapdisk %d err=%d", pid,
			 errno);
	unlock_names(lock);
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

bool control_has_name(int pid)
{
	char path[PATH_MAX];
	struct stat st;

	return !run_path(path, sizeof(path), "ctl%d", pid) &&
	       !lstat(path, &st) && S_ISSOCK(st.st_mode) && !process_ended(pid);
}

void control_forget(int pid)
{
	char path[PATH_MAX];
	int lock = lock_names();

	if (lock >= 0 && process_ended(control_heir(pid)) &&
	    !run_path(path, sizeof(path), "ctl%d", pid))
		unlink(path);
	unlock_names(lock);
}

void control_unlink_all(void)
{
	int lock = lock_names();
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
	unlock_names(lock);
}
