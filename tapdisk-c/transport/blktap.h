/* SPDX-License-Identifier: LGPL-2.1-only */
/* The ring of the blktap driver: kernel-patches/src/blktap.h. */
#ifndef XENBLK_TRANSPORT_BLKTAP_H
#define XENBLK_TRANSPORT_BLKTAP_H

#include "vbd.h"

/*
 * Requests in flight, and the size of one. Their product is the buffer pool of
 * a VBD, 16 MiB, of which only what has been used is resident.
 */
#define BLKTAP_ENTRIES		64u
#define BLKTAP_MAX_IO_BYTES	(256u << 10)

/*
 * Opens the ring of minor: exclusive, -EBUSY if another server has it. start
 * makes the gendisk, or takes over one that a dead tapdisk has left; stop
 * removes it, -EBUSY while it is open; release tells the driver the new size.
 * Each round is one system call for all completions and new requests, none if
 * there is nothing to do. kernel_io: the driver may serve requests by itself.
 */
int blktap_open(struct transport **transport, struct vbd *vbd,
		struct engine *engine, int minor, bool kernel_io,
		struct error *err);

#endif
