/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The stock kernel's ublk (Documentation/block/ublk.rst): /dev/ublkbN, N being
 * the minor. Requires Linux 6.9 and the engine uring.
 */
#ifndef XENBLK_TRANSPORT_UBLK_H
#define XENBLK_TRANSPORT_UBLK_H

#include "vbd.h"

/*
 * start makes the gendisk, or takes over one that a dead tapdisk has left, with the
 * requests that it holds. Both end later, transport_ops.ready: the loop must run
 * meanwhile, for the kernel may read the disk that it makes. stop removes it.
 */
int ublk_open(struct transport **transport, struct vbd *vbd,
	      struct engine *engine, int minor, struct error *err);

#endif
