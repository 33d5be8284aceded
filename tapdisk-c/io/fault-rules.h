/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The rules of the fault engine. One a line, words separated by blanks; '#'
 * begins a comment. First the operations, joined by '+': read, write, sync, punch,
 * zero, or any. Then what else must match:
 *
 *   file=GLOB    the file's path, or its last part if GLOB has no '/' (no blanks)
 *   from=BYTE    the request ends behind this offset (not for sync)
 *   to=BYTE      the request begins before this offset (not for sync)
 *   after=N      the first N that match are let through
 *   times=N      N times, then no more (else: for ever)
 *   chance=P     so many of 100, by a generator that seed=S starts
 *
 * and what happens, at least one:
 *
 *   errno=NAME   fails, without having been done (a name such as EIO, or a number)
 *   reached      with errno: has been done all the same
 *   short=BYTES  read and write: so much is transferred at most; with errno: and then fails
 *   delay=MS     happens so much later
 *   stuck        does not happen until the rules change
 *
 * The first rule that applies is the one: those behind it don't see the request.
 */
#ifndef XENBLK_FAULT_RULES_H
#define XENBLK_FAULT_RULES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "io/engine.h"

#define FAULT_MAX_RULES 64
#define FAULT_GLOB_MAX  256

struct fault_rule {
	unsigned int ops;		/* 1 << enum io_op */
	char file[FAULT_GLOB_MAX];	/* "": any */
	uint64_t from, to;		/* bytes */
	uint64_t after, times;
	unsigned int chance;		/* of 100 */
	uint64_t rng;

	int err;			/* positive, 0: none */
	bool reached;
	bool is_short;
	bool stuck;
	uint64_t shorten;		/* bytes */
	uint64_t delay_ns;
};

struct fault_rules {
	char path[4096];
	struct stat seen;		/* of the file, as last read; zeros: there was none */
	unsigned int generation;	/* grows when the rules change */
	unsigned int nr;
	struct fault_rule rule[FAULT_MAX_RULES];
};

/*
 * Reads the file again if it has changed; without one there are no rules. On an
 * error the rules stay as they were until the file changes again.
 */
int fault_rules_reload(struct fault_rules *rules, struct error *err);

/* The rule that applies now, counted; NULL: none does. */
const struct fault_rule *fault_rules_match(struct fault_rules *rules,
					   const struct io_req *req);

/* Of the transfer that is left. */
uint64_t fault_offset(const struct io_req *req);
uint64_t fault_length(const struct io_req *req);
const char *fault_op_name(enum io_op op);

#endif
