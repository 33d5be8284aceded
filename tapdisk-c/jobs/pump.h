/* SPDX-License-Identifier: LGPL-2.1-only */
/* Copies what holds data from one open image to another. */
#ifndef XENBLK_PUMP_H
#define XENBLK_PUMP_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "drivers/image.h"

/* Transfers under way at once, each of at most PUMP_BYTES. */
#define PUMP_SLOTS	32u
#define PUMP_BYTES	(1u << 20)

struct pump {
	struct image *from, *to;	/* of one engine; max_requests of both: PUMP_SLOTS */
	const char *from_name, *to_name;	/* for messages */
	bool skip_zeros;		/* to reads as zeros, so that zeros need not be written */
	uint64_t flush_bytes;		/* a flush whenever so much has been written; 0: at the end only */
	const volatile sig_atomic_t *stop;	/* NULL, or: not 0 ends the copy */
	/* NULL, or: bytes of the disk that are dealt with, of its size. Called now and then. */
	void (*progress)(void *priv, uint64_t done, uint64_t total);
	void *priv;
	uint64_t *written;		/* NULL, or: gets what was written added, sectors */
};

/*
 * Writes to sectors of to what from says it holds, and nothing where it has
 * holes, but with skip_zeros zeros into small ones; then flushes. The order of the writes is not that of the sectors. Runs
 * the engine itself; nothing is in flight on return. -ENOSPC, before anything is
 * written, if to is smaller; -ECANCELED if it was stopped; else the first error,
 * with the side and the place in the message.
 */
int pump_run(const struct pump *pump, struct error *err);

#endif
