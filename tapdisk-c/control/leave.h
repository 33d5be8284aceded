/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Leaving all disks to another tapdisk, while their devices hold the requests: all
 * are paused, then let go of, images, rings and all. Who then takes them finds them by
 * their disk.<minor>, which still names us. If one can't be paused in time all go on.
 */
#ifndef XENBLK_CONTROL_LEAVE_H
#define XENBLK_CONTROL_LEAVE_H

#include <blktap.h>
#include <stdbool.h>

#include "common/error.h"
#include "control/owner.h"
#include "control/takeover.h"
#include "io/engine.h"
#include "server.h"

struct leave {
	struct server *server;
	struct owners *owners;
	struct takeover *takeover;
	struct io_timer timer;
	bool busy;
	/*
	 * Whose request it was that all were left, to another one that is still to take them; or
	 * NULL. The end of that connection takes them back.
	 */
	const void *left_by;
	bool notes;			/* nothing is left that the heir would not find */
	unsigned int pausing;		/* verbs under way */
	bool paused[BLKTAP_MAX_MINORS];	/* by us */
	unsigned int refused;		/* pauses that failed */
	bool begun;			/* clients' connections are being ended: no way back */
	int rc;
	struct error err;
	server_done done;
	void *priv;
};

void leave_open(struct leave *leave, struct server *server,
		struct owners *owners, struct takeover *takeover);
void leave_close(struct leave *leave);

/* done as in server.h. */
void leave_begin(struct leave *leave, unsigned int timeout_ms, server_done done,
		 void *priv);

#endif
