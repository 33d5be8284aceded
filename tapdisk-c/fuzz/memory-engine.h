/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * An engine for the data path over files in memory, in place of io/engine.c: one
 * request at a time, in an order that a seed decides.
 */
#ifndef XENBLK_MEMORY_ENGINE_H
#define XENBLK_MEMORY_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "io/engine.h"

struct engine {
	struct list pending, timers, plugs;
	unsigned int nr_pending;
	uint64_t rng;
	bool no_punch, no_zero;		/* what the file system can't do */
};

void memory_engine_init(struct engine *e, uint64_t seed);
uint64_t memory_random(struct engine *e);
unsigned int memory_below(struct engine *e, unsigned int n);
/* Runs all to its end. */
void memory_engine_run(struct engine *e);

#endif
