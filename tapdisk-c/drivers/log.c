/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * log:BITMAP,TYPE:PATH: the image TYPE:PATH, whose changes are noted in the
 * file BITMAP (drivers/dirty.h), for backups of what has changed. BITMAP is an
 * absolute path without a comma. Read-only, the bitmap is left alone.
 *
 * A write, zero or discard goes on to the image in the same request once its bits
 * are in the file. A flush brings the bits to the medium, then the data.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/dirty.h"
#include "drivers/image.h"

struct log_image {
	struct image image;
	struct image *inner;
	struct dirty dirty;
	unsigned int syncs;		/* of the bitmap, in flight */
};

static struct log_image *log_of(struct image *image)
{
	return container_of(image, struct log_image, image);
}

static int log_check(const char *spec, const char *path, struct error *err)
{
	const char *comma = strchr(path, ',');
	const struct image_driver *driver;
	const char *inner;
	int rc;

	if (*path != '/')
		return error_set(err, -EINVAL,
				 "%s: the path of the bitmap is not absolute; write log:BITMAP,TYPE:PATH",
				 spec);
	if (!comma)
		return error_set(err, -EINVAL,
				 "%s: no image named; write log:BITMAP,TYPE:PATH",
				 spec);
	rc = image_parse(comma + 1, &driver, &inner, err);
	return rc ? error_prefix(err, "%s", spec) : 0;
}

static int log_open(struct image **image, const struct image_open_args *args,
		    struct error *err)
{
	const char *comma = strchr(args->path, ',');
	struct image_open_args inner_args = *args;
	const struct image_driver *driver;
	struct log_image *log;
	char *bitmap;
	int rc;

	log = calloc(1, sizeof(*log));
	bitmap = strndup(args->path, (size_t)(comma - args->path));
	if (!log || !bitmap) {
		rc = error_set(err, -ENOMEM, "%s: out of memory", args->path);
		goto out;
	}
	rc = image_parse(comma + 1, &driver, &inner_args.path, err);
	if (!rc)
		rc = driver->open(&log->inner, &inner_args, err);
	if (rc)
		goto out;
	if (!args->readonly)
		rc = dirty_open(&log->dirty, bitmap,
				log->inner->info.sectors << SECTOR_SHIFT, err);
	if (rc) {
		driver->close(log->inner, NULL);
		goto out;
	}
	log->image.driver = &log_driver;
	log->image.engine = args->engine;
	log->image.stream = args->stream;
	log->image.readonly = args->readonly;
	log->image.info = log->inner->info;
	*image = &log->image;
out:
	free(bitmap);
	if (rc)
		free(log);
	return rc;
}

/* The image first: its last writes are then covered by the bits. */
static int log_close(struct image *image, struct error *err)
{
	struct log_image *log = log_of(image);
	struct error e;
	int rc, rc2 = 0;

	rc = log->inner->driver->close(log->inner, err);
	if (!image->readonly)
		rc2 = dirty_close(&log->dirty, &e);
	if (!rc && rc2) {
		rc = rc2;
		if (err)
			*err = e;
	}
	free(log);
	return rc;
}

static void forward(struct log_image *log, struct image_request *req)
{
	log->inner->driver->submit(log->inner, req);
}

static void synced(struct io_req *io, int err)
{
	struct image_request *req = container_of(io, struct image_request, io);
	struct log_image *log = log_of(req->image);

	log->syncs--;
	dirty_sync_end(&log->dirty, err);
	if (err)
		req->done(req, err);
	else
		forward(log, req);
}

/* A sync that is under way may be the one that this flush needs: it waits for its own. */
static void flush(struct log_image *log, struct image_request *req)
{
	int rc = 0;

	if (log->image.readonly || (!log->dirty.unsynced && !log->syncs)) {
		forward(log, req);
		return;
	}
	rc = dirty_sync_begin(&log->dirty);
	if (rc) {
		req->done(req, rc);
		return;
	}
	log->syncs++;
	req->image = &log->image;
	req->io.op = IO_SYNC;
	req->io.fd = log->dirty.fd;
	req->io.iovcnt = 0;
	req->io.buffer = 0;
	req->io.done = synced;
	image_queue(&log->image, &req->io);
}

static void log_submit(struct image *image, struct image_request *req)
{
	struct log_image *log = log_of(image);
	int rc = 0;

	switch (req->op) {
	case IMAGE_FLUSH:
		flush(log, req);
		return;
	case IMAGE_WRITE:
	case IMAGE_DISCARD:
	case IMAGE_ZERO:
		rc = dirty_set(&log->dirty, req->sector << SECTOR_SHIFT,
			       (uint64_t)req->count << SECTOR_SHIFT);
		break;
	case IMAGE_READ:
	case IMAGE_STATUS:
		break;
	}
	if (rc)
		req->done(req, rc);
	else
		forward(log, req);
}

static bool log_busy(const struct image *image)
{
	return image_busy(container_of_const(image, struct log_image,
					     image)->inner);
}

static const char *log_chain_path(const struct image *image, unsigned int i)
{
	const struct log_image *log =
		container_of_const(image, struct log_image, image);
	const struct image *inner = log->inner;

	return inner->driver->chain_path ?
	       inner->driver->chain_path(inner, i) : NULL;
}

const struct image_driver log_driver = {
	.type		= "log",
	.check		= log_check,
	.open		= log_open,
	.close		= log_close,
	.submit		= log_submit,
	.busy		= log_busy,
	.chain_path	= log_chain_path,
};
