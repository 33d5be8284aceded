/* SPDX-License-Identifier: LGPL-2.1-only */
/* What the two files of resize share. */
#ifndef XENBLK_VHD_RESIZE_H
#define XENBLK_VHD_RESIZE_H

#include "vhd/vhd-internal.h"

/* resize.c: data_end anew, from the metadata and the blocks in the BAT. */
int vhd_find_data_end(struct vhd_image *image, struct error *err);

/*
 * resize-parent.c: -EINVAL if a larger disk, of size bytes, would show what its
 * parents have behind the end that it has now. The image is locked.
 */
int vhd_check_behind(const struct vhd_image *image, uint64_t size,
		     const struct config *cfg, struct error *err);
/*
 * resize-tables.c: a BAT of at least entries, and a batmap where there is one,
 * in place of those that are too small. The disk's size stays. watch: NULL, or
 * told of blocks that move.
 */
int vhd_grow_tables(struct vhd_image *image, uint32_t entries,
		    const struct job_watch *watch, struct error *err);
/* The map in memory gets at least covered bytes, zeros. */
int vhd_batmap_extend(struct vhd_image *image, uint32_t covered,
		      struct error *err);

#endif
