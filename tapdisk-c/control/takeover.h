/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Taking over the disks of tapdisks that have died, or have left them to us:
 * those whose disk.<minor> names them. What can't be had at once, the ring or
 * the image, is tried again until it can or the disk is gone.
 */
#ifndef XENBLK_CONTROL_TAKEOVER_H
#define XENBLK_CONTROL_TAKEOVER_H

#include <stdbool.h>

#include "common/error.h"
#include "control/owner.h"
#include "io/engine.h"
#include "server.h"

#define TAKEOVER_PIDS 64

struct takeover {
	struct server *server;
	struct owners *owners;
	int pids[TAKEOVER_PIDS];
	unsigned int nr;
	struct io_timer timer;
	unsigned int tries;
	bool left;			/* all that was here is left to another one, which may give it back */
	bool again;			/* something is to be tried again, as last looked */
	int alive;			/* of pids, one that lives, and has left its disks to us; 0: none */
	int rc;				/* of what can't be had, the last */
	int said;			/* the last that was told of */
	struct error err;
	/* Once there is nothing left to try. */
	void (*done)(void *priv);
	void *priv;
};

void takeover_open(struct takeover *t, struct server *server,
		   struct owners *owners);
void takeover_close(struct takeover *t);

/*
 * The disks that pid, which lives, has left: all at once, or -errno; then
 * what was taken still is.
 */
int takeover_now(struct takeover *t, int pid, struct error *err);

/*
 * Begins with the next round of the engine. The server stops if nothing was left
 * to take.
 */
void takeover_begin(struct takeover *t, const int *pids, unsigned int nr);

/* Opens the images of disks of our own that are to go on (VBD_REOPENING): what can't be opened now, until it can. */
void takeover_reopen(struct takeover *t);

#endif
