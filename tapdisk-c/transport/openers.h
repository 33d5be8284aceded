/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Who has a block device open, for kernels that don't tell and remove what is
 * open. What is found may have changed when it is told.
 */
#ifndef XENBLK_TRANSPORT_OPENERS_H
#define XENBLK_TRANSPORT_OPENERS_H

#include "common/error.h"

/*
 * -EBUSY if a mount, swap, a device on top of it, blkback, a loop device or a process
 * that this one may look at has /dev/<name> open; the message calls it device. 0 if
 * none has, or there is no such node. Opens it for a moment: not for who serves it.
 */
int openers_check(const char *name, const char *device, struct error *err);

#endif
