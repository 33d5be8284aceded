/* SPDX-License-Identifier: LGPL-2.1-only */
/* Looking at an image for what vhd_open() lets pass. */
#ifndef XENBLK_VHD_CHECK_H
#define XENBLK_VHD_CHECK_H

#include "vhd/vhd.h"

#define VHD_CHECK_MAX_WARNINGS 32

struct vhd_check_options {
	bool bitmaps;			/* read all of them */
	bool ignore_footer;		/* a missing footer at the end is no news */
	bool ignore_timestamps;
	const struct job_watch *watch;	/* of blocks whose bitmaps are read; NULL: nobody does */
};

struct vhd_check_result {
	char *warning[VHD_CHECK_MAX_WARNINGS];	/* without the file's name */
	unsigned int nr_warnings;
	uint64_t sectors_allocated;
	uint64_t sectors_written;		/* by the bitmaps; 0 if not read */
};

/*
 * Checks an image that vhd_open() has accepted. Warnings are for what is
 * unusual or can be repaired; -EUCLEAN is for what makes its data wrong. The
 * caller disposes of result in either case.
 */
int vhd_check(const struct vhd_image *image,
	      const struct vhd_check_options *options,
	      struct vhd_check_result *result, struct error *err);
void vhd_check_result_dispose(struct vhd_check_result *result);

#endif
