/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The NBD transport: a VBD on a unix socket of its own, for any number of
 * clients up to NBD_MAX_CLIENTS at once, the others wait to be accepted. A
 * flush of one covers what was answered to all.
 */
#ifndef XENBLK_NBD_H
#define XENBLK_NBD_H

#include "transport/transport.h"
#include "vbd.h"

/*
 * The socket, mode 0600, is at path between start and stop: it takes connections
 * as soon as it is there. What a dead process left there is replaced. Until then it
 * is at path.PID, which must fit in a socket's address too. If it can't be made,
 * start fails if required, else says so in the log and the disk goes without.
 */
int nbd_open(struct transport **transport, struct vbd *vbd,
	     struct engine *engine, const char *path, bool required,
	     struct error *err);

#endif
