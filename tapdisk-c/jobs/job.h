/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Long work on images: an engine of its own, one image that is read and one
 * that is written.
 */
#ifndef XENBLK_JOB_H
#define XENBLK_JOB_H

#include <stdbool.h>
#include <stdint.h>

#include "common/config.h"
#include "common/error.h"
#include "common/watch.h"
#include "drivers/image.h"

struct job {
	const struct config *cfg;
	const struct job_watch *watch;
	struct engine *engine;
	struct io_stream stream;
	struct image *from, *to;
	bool in_place;			/* set before to is opened: its file has space for nearly all that comes */
	const char *from_name, *to_name;
};

/* Zeroed before. The engine is the configured one, or where uring is forbidden posix. */
int job_open(struct job *job, const struct config *cfg,
	     const struct job_watch *watch, struct error *err);
/*
 * args has what is special: path, readonly, alone, child, any_sector. What is written
 * is mostly buffered, all else is if it can't be direct.
 */
int job_image(struct job *job, struct image **image,
	      const struct image_driver *driver, struct image_open_args args,
	      struct error *err);
/* Pumps from into to, and closes both: 0 means that all is durable. */
int job_copy(struct job *job, bool skip_zeros, struct error *err);
/* Closes what is open. */
void job_close(struct job *job);

/*
 * coalesce.c: what the VHD at path holds itself goes into its parent. The child
 * stays as it is, and so does what is read through it, at any moment; cut off
 * and run again it comes to the same. -EBUSY if the parent is in use or has
 * another child, -ENOSPC if it is smaller.
 */
int job_coalesce(const char *path, const struct config *cfg,
		 const struct job_watch *watch, struct error *err);

/*
 * convert.c: a new image that reads as the source does, without a parent. Both are
 * TYPE:PATH (image_parse()); the target is raw: or vhd:, a file that does not
 * exist. It has its name only when it is whole and durable. Or it is an NBD export, at
 * least as large, whose content is replaced; after a failure that is anything.
 */
int job_convert(const char *source, const char *target,
		const struct config *cfg, const struct job_watch *watch,
		struct error *err);

#endif
