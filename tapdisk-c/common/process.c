/* SPDX-License-Identifier: LGPL-2.1-only */
#include "common/process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* /proc/PID/stat behind the name, which is in parentheses, and may hold some: "S 1 ...". NULL: -errno in err. */
static const char *read_stat(int pid, char *text, size_t size, int *err)
{
	char path[64];
	const char *end;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, size - 1);
	*err = n < 0 ? -errno : 0;
	if (fd >= 0)
		close(fd);
	text[n < 0 ? 0 : n] = 0;
	end = strrchr(text, ')');
	return end && end[1] == ' ' ? end + 2 : NULL;
}

bool process_ended(int pid)
{
	char text[512];
	const char *stat;
	int err;

	if (kill(pid, 0) && errno == ESRCH)
		return true;
	stat = read_stat(pid, text, sizeof(text), &err);
	if (!stat)
		return err == -ENOENT || err == -ESRCH;
	return *stat == 'Z' || *stat == 'X';
}

/* proc(5): state is field 3, starttime 22. */
uint64_t process_born(int pid)
{
	char text[512];
	const char *stat;
	int err;

	stat = read_stat(pid, text, sizeof(text), &err);
	for (int field = 3; stat && field < 22; field++) {
		stat = strchr(stat, ' ');
		if (stat)
			stat++;
	}
	return stat ? strtoull(stat, NULL, 10) : 0;
}
