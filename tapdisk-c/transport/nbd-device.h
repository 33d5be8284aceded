/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A VBD as a gendisk that the kernel's nbd client makes (transport/nbd-gendisk.h),
 * whose server is this process, over a pair of sockets.
 *
 * While there is no tapdisk the kernel holds its requests, and sends to the next
 * one what was not answered: what it had sent before, within NBD_RESEND_MS of the
 * time when that was sent or looked at last.
 */
#ifndef XENBLK_NBD_DEVICE_H
#define XENBLK_NBD_DEVICE_H

#include "vbd.h"

/*
 * How often the kernel looks at requests that have no answer. It can't be told that
 * they go again, and logs a line for each when it looks.
 */
#define NBD_RESEND_MS 10000u

/* Of a minor that is claimed. start, stop: transport/open.h. */
int nbd_device_open(struct transport **transport, struct vbd *vbd,
		    struct engine *engine, int minor, struct error *err);

#endif
