/* SPDX-License-Identifier: LGPL-2.1-only */
/* tapdisk without tap-ctl: one image, on an NBD socket, in the foreground. */
#ifndef XENBLK_STANDALONE_H
#define XENBLK_STANDALONE_H

#include <stdbool.h>

#include "common/config.h"

#define STANDALONE_GRACE_S 10u

struct standalone {
	const char *spec;		/* TYPE:PATH, PATH may be relative */
	bool readonly;
	const char *socket;		/* NULL: a private one, for command */
	const char *command;		/* of the shell, with $uri and $unixsocket; or NULL */
	unsigned int grace_s;		/* from the command's SIGTERM to SIGKILL */
};

/*
 * Serves until a signal, or the end of the command, which is told to end after a
 * signal. Returns the exit status: the command's, or 1 after a message on
 * standard error.
 */
int standalone_run(const struct standalone *args, const struct config *cfg);

#endif
