/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * null: a disk that reads as zeros and forgets what is written, answered
 * inside submit(). For measuring what is above it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/image.h"

static int null_open(struct image **image, const struct image_open_args *args,
		     struct error *err)
{
	struct image *null = calloc(1, sizeof(*null));

	if (!null)
		return error_set(err, -ENOMEM, "null:%s: out of memory",
				 args->path);
	null->driver = &null_driver;
	null->engine = args->engine;
	null->stream = args->stream;
	null->readonly = args->readonly;
	null->info.sectors = image_size(args->path);
	null->info.sector_size = SECTOR_SIZE;
	null->info.depth = 1;
	null->info.can = IMAGE_CAN_DISCARD | IMAGE_CAN_ZERO | IMAGE_CAN_STATUS;
	*image = null;
	return 0;
}

static int null_close(struct image *image, struct error *err)
{
	(void)err;
	free(image);
	return 0;
}

static void null_submit(struct image *image, struct image_request *req)
{
	(void)image;
	if (req->op == IMAGE_READ)
		memset(req->buf, 0, (size_t)req->count << SECTOR_SHIFT);
	if (req->op == IMAGE_STATUS) {
		req->extents[0] = (struct image_extent) {
			.count	= req->count,
			.hole	= true,
			.zero	= true,
		};
		req->nr_extents = 1;
	}
	req->done(req, 0);
}

const struct image_driver null_driver = {
	.type		= "null",
	.check		= image_check_size,
	.open		= null_open,
	.close		= null_close,
	.submit		= null_submit,
};
