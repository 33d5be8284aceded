// SPDX-License-Identifier: GPL-2.0-only
#include "roles.h"

#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blktap.h"

_Thread_local unsigned int seed;

unsigned int any(unsigned int below)
{
	return (unsigned int)rand_r(&seed) % below;
}

bool chance(unsigned int percent)
{
	return any(100) < percent;
}

time_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec;
}

int open_node(const char *format, unsigned int minor, int flags)
{
	char path[64];

	/* an integer's worth of path: the formats are ours */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
	snprintf(path, sizeof(path), format, minor);
#pragma GCC diagnostic pop
	return open(path, flags | O_CLOEXEC);
}

int open_control(void)
{
	int fd = open(BLKTAP_CONTROL_PATH, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		err(1, "%s", BLKTAP_CONTROL_PATH);
	return fd;
}

pid_t start(void (*role)(void), unsigned int child_seed)
{
	pid_t pid = fork();

	if (pid < 0)
		err(1, "fork");
	if (pid == 0) {
		seed = child_seed;
		role();
		_exit(0);
	}
	return pid;
}

int reap(const pid_t *pids, size_t n, int stuck_seconds)
{
	time_t deadline = now() + stuck_seconds;

	for (size_t i = 0; i < n; i++)
		while (waitpid(pids[i], NULL, WNOHANG) == 0) {
			if (now() > deadline) {
				printf("process %d (%zu) is stuck\n", pids[i], i);
				return 1;
			}
			usleep(10000);
		}
	return 0;
}
