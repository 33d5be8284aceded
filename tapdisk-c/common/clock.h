/* SPDX-License-Identifier: LGPL-2.1-only */
/* The clock of deadlines and durations. */
#ifndef XENBLK_CLOCK_H
#define XENBLK_CLOCK_H

#include <stdint.h>
#include <time.h>

/* CLOCK_MONOTONIC, nanoseconds */
static inline uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

#endif
