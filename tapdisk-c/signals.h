/* SPDX-License-Identifier: LGPL-2.1-only */
#ifndef XENBLK_SIGNALS_H
#define XENBLK_SIGNALS_H

#include "guardian.h"
#include "server.h"

struct signals {
	struct io_watch watch;
	struct server *server;
	struct guardian *guardian;	/* NULL: none */
};

/*
 * SIGTERM and SIGINT call server_terminate() from the server's engine, and what
 * they don't bring about, SIGKILL may: the guardian is dismissed. They stay
 * blocked. SIGPIPE and SIGXFSZ are ignored: they are errors of one call.
 */
int signals_open(struct signals *signals, struct server *server,
		 struct guardian *guardian, struct error *err);

#endif
