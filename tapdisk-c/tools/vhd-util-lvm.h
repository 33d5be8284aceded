/* SPDX-License-Identifier: LGPL-2.1-only */
/* The volumes of an LVM group, as LVM's own commands list them. */
#ifndef XENBLK_VHD_UTIL_LVM_H
#define XENBLK_VHD_UTIL_LVM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

/* What of a volume lies in one run on a physical volume, all in bytes. */
struct lvm_piece {
	char *device;
	uint64_t at;			/* on the device */
	uint64_t start, length;		/* in the volume */
};

struct lvm_volume {
	char *name;
	uint64_t size;			/* bytes */
	bool active;			/* there is /dev/GROUP/NAME */
	bool linear;			/* the pieces are all of it */
	struct lvm_piece *piece;
	size_t nr_pieces;
};

struct lvm_group {
	const char *name;
	struct lvm_volume *volume;	/* by name */
	size_t nr;
};

/* Runs lvs and pvs, whose own messages go to stderr. group is zeroed before. */
int lvm_group_load(struct lvm_group *group, const char *name,
		   struct error *err);
void lvm_group_dispose(struct lvm_group *group);
/* NULL: none of that name. */
const struct lvm_volume *lvm_find(const struct lvm_group *group,
				  const char *name);
/*
 * The name of a volume of the group, malloc'ed, from that of its device:
 * /dev/mapper/group-a--b and /dev/group/a-b are a-b.
 */
char *lvm_name_of(const struct lvm_group *group, const char *path);
/*
 * A file in memory of the volume's size, with what an image in it begins and ends with:
 * its metadata, without its data. Read past the caches, from the physical volumes.
 */
int lvm_copy_metadata(int *fd, const struct lvm_volume *volume,
		      struct error *err);

#endif
