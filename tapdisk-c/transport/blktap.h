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

struct blktap;

/* Opens the ring of minor: exclusive, -EBUSY if another server has it. */
int blktap_open(struct blktap **tap, struct vbd *vbd, struct engine *engine,
		int minor, struct error *err);
void blktap_close(struct blktap *tap);

/*
 * Makes the gendisk, or takes over one that a dead tapdisk has left, and
 * begins to fetch.
 */
int blktap_start(struct blktap *tap, const struct image_info *info,
		 bool readonly, struct error *err);

/*
 * Removes the gendisk; no request is fetched afterwards, those in flight may
 * still be answered. -EBUSY while it is open, unless force.
 */
int blktap_stop(struct blktap *tap, bool force, struct error *err);

/* Back to the state after blktap_open(). Nothing is in flight. */
int blktap_reset(struct blktap *tap, struct error *err);

/* Requests stay in the driver from now on. */
void blktap_hold(struct blktap *tap);
/* Tells the driver the new geometry and fetches again. */
int blktap_release(struct blktap *tap, const struct image_info *info,
		   bool readonly, struct error *err);

/*
 * One system call for all completions and new requests, none if there is
 * nothing to do. True if some were answered at once and another round is due.
 */
bool blktap_round(struct blktap *tap);

/* Rounds that carried requests. */
unsigned int blktap_batches(const struct blktap *tap);

#endif
