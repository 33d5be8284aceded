/* SPDX-License-Identifier: LGPL-2.1-only */
#include "common/holder.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* Asks no file server, which may be why somebody looks. */
static bool same_file(int dir, const char *name, const struct statx *file)
{
	struct statx stx;

	return !statx(dir, name, AT_STATX_DONT_SYNC, STATX_INO, &stx) &&
	       stx.stx_ino == file->stx_ino &&
	       stx.stx_dev_major == file->stx_dev_major &&
	       stx.stx_dev_minor == file->stx_dev_minor;
}

/* "lock:\t1: OFDLCK  ADVISORY  READ -1 08:01:131 300 300"; the end may be EOF. */
static bool covers(const char *line, off_t at)
{
	long long start, end;
	int n;

	if (strncmp(line, "lock:", 5) || !strstr(line, "OFDLCK"))
		return false;
	n = sscanf(line, "lock: %*s OFDLCK %*s %*s %*s %*s %lld %lld", &start,
		   &end);
	return n >= 1 && start <= at && (n == 1 || at <= end);
}

/* fdinfo lists the locks of that open file description, a line each. */
static bool has_lock(int pid, const char *fd, off_t at)
{
	char path[64], line[256];
	bool found = false;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%.20s", pid, fd);
	f = fopen(path, "re");
	while (f && !found && fgets(line, sizeof(line), f))
		found = covers(line, at);
	if (f)
		fclose(f);
	return found;
}

static bool holds(int pid, const struct statx *file, off_t at)
{
	const struct dirent *entry;
	bool found = false;
	char path[64];
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	while (dir && !found && (entry = readdir(dir)))
		found = isdigit((unsigned char)*entry->d_name) &&
			same_file(dirfd(dir), entry->d_name, file) &&
			has_lock(pid, entry->d_name, at);
	if (dir)
		closedir(dir);
	return found;
}

static void read_name(int pid, char *name, size_t size)
{
	char path[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? 0 : read(fd, name, size - 1);
	if (fd >= 0)
		close(fd);
	name[n < 0 ? 0 : n] = 0;
	name[strcspn(name, "\n")] = 0;
}

/* The first but except that has a lock, or 0. */
static int find(int fd, off_t at, int except)
{
	const struct dirent *entry;
	struct statx file;
	int pid, found = 0;
	DIR *proc;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_INO, &file))
		return 0;
	proc = opendir("/proc");
	while (proc && !found && (entry = readdir(proc))) {
		pid = atoi(entry->d_name);
		if (pid > 0 && pid != except && holds(pid, &file, at))
			found = pid;
	}
	if (proc)
		closedir(proc);
	return found;
}

int holder_find(int fd, off_t at, char *name, size_t size)
{
	int found = find(fd, at, getpid());

	if (found)
		read_name(found, name, size);
	return found;
}

bool holder_lives(int fd, off_t at)
{
	return find(fd, at, 0);
}
