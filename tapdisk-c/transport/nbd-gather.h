/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * How long to let requests gather before they are looked at.
 *
 * A client with many requests under way that is slower than the server wakes it
 * for each one; three system calls then serve one request. It loses nothing if
 * the server sleeps while a part of its depth comes together. A client that
 * waits for our answer would lose: so the depth must be known. It is seen when
 * all of it is here at once, which hiccups bring about, and a longer sleep now
 * and then, which takes a client of depth 1 less than a thousandth of its time.
 */
#ifndef XENBLK_NBD_GATHER_H
#define XENBLK_NBD_GATHER_H

#include <stdbool.h>
#include <stdint.h>

struct nbd_gather {
	uint64_t epoch_ns;		/* when the epoch began */
	unsigned int epochs;
	unsigned int requests, peak;	/* of this epoch: all; at once */
	unsigned int depth;		/* of the client, as far as is known */
	bool probe;			/* it is time to look for the depth */
	uint64_t interval_ns;		/* between two requests, of the last epoch */
};

/* So many requests came in a round; before: those not answered when it began. */
void nbd_gather_count(struct nbd_gather *g, uint64_t now, unsigned int came,
		      unsigned int before);

/*
 * How long the wait that follows a round may be, ns; 0: it ends with the first
 * event. waiting: the requests not answered yet.
 */
uint64_t nbd_gather_ns(struct nbd_gather *g, unsigned int waiting);

#endif
