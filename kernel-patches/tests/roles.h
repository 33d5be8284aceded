/* SPDX-License-Identifier: GPL-2.0-only */
/* What hammer and storm share: chance, the driver's nodes, and processes that play a role until they are killed. */
#ifndef BLKTAP_TESTS_ROLES_H
#define BLKTAP_TESTS_ROLES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <time.h>

/* A thread's own, to be set before the first use. */
extern _Thread_local unsigned int seed;

unsigned int any(unsigned int below);
bool chance(unsigned int percent);

/* Seconds that only grow. */
time_t now(void);

/* format: of blktap.h, or a path with one %u or %d; flags: of open(), O_CLOEXEC is added. -1 and errno. */
int open_node(const char *format, unsigned int minor, int flags);
/* Ends the process if it can't be opened. */
int open_control(void);

/* A child with a seed of its own that plays a role; the pid. */
pid_t start(void (*role)(void), unsigned int child_seed);
/* Waits for n children; 1 if one is still there after so many seconds, which is said, else 0. */
int reap(const pid_t *pids, size_t n, int stuck_seconds);

#endif
