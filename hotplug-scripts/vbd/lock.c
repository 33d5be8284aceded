/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The protocol, and why it holds, is told in Xen's locking.sh: whoever has the
 * file open that the name leads to, and locked it, has the lock, and alone may
 * remove the name.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vbd.h"

#define LOCKS 3

static struct {
	char path[PATH_MAX];
	int fd;
} held[LOCKS];
static unsigned int nr_held;

static const char *directory(void)
{
	const char *given = getenv("XENBLK_LOCK_DIR");

	return given ? given : "/var/run/xen-hotplug";
}

static int failed(const char *path, struct error *err)
{
	return error_set(err, -errno, "%s: %s", path, strerror(errno));
}

int lock_named(const char *name, struct error *err)
{
	struct stat ours, now;
	char *path;
	int fd, n;

	if (nr_held == LOCKS)
		return error_set(err, -ENOLCK, "%s: too many locks", name);
	if (mkdir(directory(), 0755) && errno != EEXIST)
		return failed(directory(), err);
	path = held[nr_held].path;
	n = snprintf(path, PATH_MAX, "%s/%s", directory(), name);
	if (n >= PATH_MAX)
		return error_set(err, -ENAMETOOLONG, "%s: too long for a lock", name);
	for (;;) {
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
		if (fd < 0)
			return failed(path, err);
		while (flock(fd, LOCK_EX))
			if (errno != EINTR)
				goto out;
		if (fstat(fd, &ours))
			goto out;
		if (!stat(path, &now) && now.st_dev == ours.st_dev &&
		    now.st_ino == ours.st_ino)
			break;
		close(fd);
	}
	held[nr_held++].fd = fd;
	return 0;
out:
	n = failed(path, err);
	close(fd);
	return n;
}

void unlock_last(void)
{
	nr_held--;
	unlink(held[nr_held].path);
	close(held[nr_held].fd);
}

void unlock_all(void)
{
	while (nr_held)
		unlock_last();
}
