/* SPDX-License-Identifier: LGPL-2.1-only */
/* How far long work is, and how it is stopped. */
#ifndef XENBLK_WATCH_H
#define XENBLK_WATCH_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a job tells and heeds; all may be 0. */
struct job_watch {
	const volatile sig_atomic_t *stop;	/* not 0: ends it with -ECANCELED */
	/* What is dealt with, of all; total is never 0. Called now and then, done only grows. */
	void (*progress)(void *priv, uint64_t done, uint64_t total);
	void *priv;
	uint64_t *written;		/* gets the sectors that were written added */
};

/* watch may be NULL. */
static inline bool job_stopped(const struct job_watch *watch)
{
	return watch && watch->stop && *watch->stop;
}

static inline void job_tell(const struct job_watch *watch, uint64_t done,
			    uint64_t total)
{
	if (watch && watch->progress && total)
		watch->progress(watch->priv, done, total);
}

#endif
