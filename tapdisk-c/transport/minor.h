/* SPDX-License-Identifier: LGPL-2.1-only */
/* Minors of the blktap driver, by its control device. Never opens a ring. */
#ifndef XENBLK_TRANSPORT_MINOR_H
#define XENBLK_TRANSPORT_MINOR_H

#include "common/error.h"

int minor_allocate(int *minor, struct error *err);

/*
 * Removes the device that a dead tapdisk has left, too. Waits a moment while a
 * tapdisk lets go of the ring; -EBUSY if it does not.
 */
int minor_free(int minor, struct error *err);

/* The driver is loaded and has this interface. */
int minor_check(struct error *err);

#endif
