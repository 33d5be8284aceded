/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Minors: a number for each disk of this host, whoever makes its gendisk.
 *
 * The blktap driver knows its own minors. One of another transport is a file
 * minor<N> in the run directory (common/rundir.h), which holds the transport's
 * name; the tapdisk that has it holds a lock on the file (flock), which ends
 * with the process. Minors are given under a lock on the directory.
 */
#ifndef XENBLK_TRANSPORT_MINOR_H
#define XENBLK_TRANSPORT_MINOR_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "transport/gendisk.h"

/* transports: as gendisk_choose() takes them. */
int minor_allocate(const char *transports, int *minor, struct error *err);

/*
 * Removes the gendisk that a dead tapdisk has left, too. Waits a moment while a
 * tapdisk lets go of it; -EBUSY if it does not.
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
/* 0: none, or a driver that has none. */
unsigned int minor_dead_timeout(int minor);
/* That, now: -EBUSY while a tapdisk serves it. */
int minor_fail(int minor, struct error *err);

/* One of the transports is to be had here. */
int minor_check(const char *transports, struct error *err);

/*
 * For tapdisk: *kind is who makes the gendisk. From now on the minor is this
 * process's, until *fd is closed; blktap has a lock of its own, and *fd is -1.
 * -EBUSY: another one has it.
 */
int minor_claim(int minor, const struct gendisk_kind **kind, int *fd,
		struct error *err);

/* NULL: nobody has given it. */
const struct gendisk_kind *minor_kind(int minor);

/* Sets given[minor], of BLKTAP_MAX_MINORS, for each that has been given. */
void minors_given(bool *given);

#endif
