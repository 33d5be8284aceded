/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * What the blktap driver may do without us: extents, kernel-patches/src/blktap.h.
 *
 * After a request that the kernel could have served in a file, the run that has
 * it becomes an extent. When the image says that sectors have moved, theirs are
 * withdrawn, at once; before the image rests or is closed, all are, and what the
 * kernel was doing is waited for.
 */
#ifndef XENBLK_BLKTAP_DIRECT_H
#define XENBLK_BLKTAP_DIRECT_H

#include <blktap.h>
#include <stdbool.h>
#include <stdint.h>

#include "drivers/image.h"

#define DIRECT_BATCH	32u

struct blktap_direct {
	int fd;				/* the ring; -1: off */
	int minor;
	struct image *image;		/* NULL: at rest */
	struct image_watcher watcher;
	bool draining;			/* the kernel's I/O is waited for */
	uint64_t sectors;
	uint8_t *granules;		/* a bit for each: has extents */
	size_t granule_bytes;
	int file[BLKTAP_MAX_FILES];	/* descriptor by number, -1: none */
	struct blktap_extent batch[DIRECT_BATCH];
	unsigned int nr;
};

void direct_init(struct blktap_direct *d, int minor);
/* The ring is set up and grants files. Without memory it stays off. */
void direct_on(struct blktap_direct *d, int fd);
/* The ring is closed, and all has gone with it. */
void direct_off(struct blktap_direct *d);

/* The image is open and serves. */
void direct_start(struct blktap_direct *d, struct image *image);
/*
 * It rests from now on: the kernel begins nothing more. draining is set while it
 * has something left to end; then wait for POLLOUT on the ring.
 */
void direct_rest(struct blktap_direct *d);

/* A read or write has come from the driver, and was answered without error. */
void direct_learn(struct blktap_direct *d, uint64_t sector, uint32_t count,
		  bool write);
/* The kernel met an error there. */
void direct_refuse(struct blktap_direct *d, uint64_t sector, uint32_t count);
/* Hands over what was learnt; once a round. */
void direct_push(struct blktap_direct *d);

#endif
