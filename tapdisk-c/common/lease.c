/* SPDX-License-Identifier: LGPL-2.1-only */
#include "common/lease.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"

#define PATIENCE_NS 10000000000ull

static const struct timespec wait_step = { .tv_nsec = 5000000 };

int lease_open(int dir, const char *path, int flags)
{
	uint64_t end = now_ns() + PATIENCE_NS;
	int fd;

	for (;;) {
		fd = dir == AT_FDCWD ? open(path, flags | O_NONBLOCK) :
				       openat(dir, path, flags | O_NONBLOCK);
		if (fd >= 0)
			return fd;
		if (errno != EAGAIN || now_ns() >= end)
			return -errno;
		nanosleep(&wait_step, NULL);
	}
}

const char *lease_strerror(int rc)
{
	return rc == -EAGAIN ?
	       "a client of this NFS server, or another program, has a lease on it and does not give it up; try again when that has closed it" :
	       strerror(-rc);
}
