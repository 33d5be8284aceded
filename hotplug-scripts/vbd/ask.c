/* SPDX-License-Identifier: LGPL-2.1-only */
/* What other users' files are, though the file server of one may not answer. */
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "vbd.h"

static bool hosts_share(const char *fs_type)
{
	static const char *const types[] = { "nfs", "cifs", "smb", "fuse", "ceph", "9p" };

	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
		if (!strncmp(fs_type, types[i], strlen(types[i])))
			return true;
	return false;
}

/* By its name alone, on a file system that other hosts serve and that device is not. */
static bool is_on_another_server(const char *path, dev_t device)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL, mount[PATH_MAX];
	unsigned int major, minor;
	size_t size = 0, best = 0;
	bool another = false;

	while (f && getline(&line, &size, f) > 0) {
		const char *type = strstr(line, " - ");
		size_t length;

		/* Of several at one place the last is what is seen. */
		if (!type || sscanf(line, "%*d %*d %u:%u %*s %4095s", &major, &minor, mount) != 3)
			continue;
		length = strlen(mount);
		if (length < best || strncmp(path, mount, length) ||
		    (path[length] != '/' && mount[length - 1] != '/'))
			continue;
		best = length;
		another = hosts_share(type + 3) && makedev(major, minor) != device;
	}
	free(line);
	if (f)
		fclose(f);
	return another;
}

/* How long file servers are waited for that have nothing to do with our image, all told. */
static int patience_ms = 4000;

/* By another process, since a stat of what hangs does not end. False, too, if there is no answer: ours has answered. */
static bool stat_in_time(const char *path, struct stat *st)
{
	struct pollfd answer = { .events = POLLIN };
	struct timespec begun, ended;
	bool answered;
	int fds[2];
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC))
		return false;
	clock_gettime(CLOCK_MONOTONIC, &begun);
	pid = fork();
	if (!pid) {
		if (!stat(path, st) && write(fds[1], st, sizeof(*st)) < 0)
			_exit(1);
		_exit(0);
	}
	close(fds[1]);
	answer.fd = fds[0];
	answered = pid > 0 && poll(&answer, 1, patience_ms) == 1 &&
		   read(fds[0], st, sizeof(*st)) == (ssize_t)sizeof(*st);
	close(fds[0]);
	if (pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, WNOHANG);
	}
	clock_gettime(CLOCK_MONOTONIC, &ended);
	patience_ms -= (int)((ended.tv_sec - begun.tv_sec) * 1000 +
			     (ended.tv_nsec - begun.tv_nsec) / 1000000);
	if (patience_ms < 0)
		patience_ms = 0;
	return answered;
}

bool ask_stat(const char *path, dev_t device, struct stat *st)
{
	return is_on_another_server(path, device) ? stat_in_time(path, st) :
						    !stat(path, st);
}
