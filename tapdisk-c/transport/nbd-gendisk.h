/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The gendisk of a minor that the kernel's nbd client makes: /dev/nbd<N>, N being
 * NBD_FIRST_INDEX + minor, so that those below stay other programs'. The kernel
 * keeps the name of its backend with it, by which it is known to be ours
 * (/sys/block/nbd<N>/backend).
 */
#ifndef XENBLK_NBD_GENDISK_H
#define XENBLK_NBD_GENDISK_H

#include <stdbool.h>
#include <stdint.h>

#include "transport/gendisk.h"
#include "transport/nbd-netlink.h"

#define NBD_FIRST_INDEX 1024

struct nbd_gendisk {
	struct nbd_link link;
	char name[16];			/* nbd<index> */
	char backend[32];
};

/* Who it would be; says nothing of whether it is there. link.backend points into it. */
void nbd_gendisk_of(struct nbd_gendisk *disk, int minor);

/* It is there, and ours: connected, or holding requests until it is again. */
bool nbd_gendisk_ours(const struct nbd_gendisk *disk);

/* It has a connection, whosever it is. */
bool nbd_gendisk_connected(const struct nbd_gendisk *disk);

/* A number in /sys/block/nbd<N>/. */
int nbd_gendisk_read(const struct nbd_gendisk *disk, const char *attribute,
		     uint64_t *value);
int nbd_gendisk_write(const struct nbd_gendisk *disk, const char *attribute,
		      uint64_t value);

extern const struct gendisk_kind nbd_gendisk;

#endif
