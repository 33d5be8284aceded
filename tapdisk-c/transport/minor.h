/* SPDX-License-Identifier: LGPL-2.1-only */
/* Minors of the blktap driver, by its control device. Never opens a ring. */
#ifndef XENBLK_TRANSPORT_MINOR_H
#define XENBLK_TRANSPORT_MINOR_H

#include <stdint.h>

#include "common/error.h"

int minor_allocate(int *minor, struct error *err);

/*
 * Removes the device that a dead tapdisk has left, too. Waits a moment while a
 * tapdisk lets go of the ring; -EBUSY if it does not.
 */
int minor_free(int minor, struct error *err);
/* Although a tapdisk has the ring, which hangs: its device is failed and removed. */
int minor_free_now(int minor, struct error *err);

/*
 * What tells a minor from all others that had or will have its number since the
 * machine was booted; 0 if the driver does not say. Stays while a ring is open.
 */
uint64_t minor_id(int minor);

/* What the driver is to do after that many seconds without a tapdisk: sysfs-class-blktap2. */
void minor_set_dead_timeout(int minor, unsigned int seconds);
/* That, now: -EBUSY while a tapdisk serves it. */
int minor_fail(int minor, struct error *err);

/* The driver is loaded and has this interface. */
int minor_check(struct error *err);

#endif
