/* SPDX-License-Identifier: LGPL-2.1-only */
#include "jobs/disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/job.h"

struct disk {
	struct job job;
	struct job_watch watch;
	char *name;
};

struct call {
	struct image_request *req;
	bool ended;
	int err;
};

/* image_request has no room for its caller's data, and there is one at a time. */
static _Thread_local struct call current;

static void ended(struct image_request *req, int err)
{
	if (req != current.req)
		return;
	current.ended = true;
	current.err = err;
}

int image_call(struct image *image, struct image_request *req)
{
	int rc = 0;

	req->done = ended;
	current = (struct call){ .req = req };
	image->driver->submit(image, req);
	while (!current.ended && !rc)
		rc = engine_run(image->engine, -1);
	return rc ? rc : current.err;
}

bool disk_is_nbd(const char *name)
{
	return !strncmp(name, "nbd://", 6) || !strncmp(name, "nbd+unix://", 11) ||
	       !strncmp(name, "nbd:unix:", 9);
}

int disk_open(struct disk **out, const char *spec, const struct config *cfg,
	      struct error *err)
{
	const struct image_driver *driver;
	struct disk *disk = calloc(1, sizeof(*disk));
	const char *path;
	int rc;

	if (!disk)
		return error_set(err, -ENOMEM, "%s: out of memory", spec);
	disk->name = strdup(spec);
	rc = disk->name ? image_parse(spec, &driver, &path, err) :
			  error_set(err, -ENOMEM, "%s: out of memory", spec);
	if (!rc)
		rc = job_open(&disk->job, cfg, &disk->watch, err);
	if (!rc)
		rc = job_image(&disk->job, &disk->job.from, driver,
			       (struct image_open_args){
				       .path = path, .readonly = true,
			       }, err);
	if (rc)
		disk_close(disk);
	else
		*out = disk;
	return rc;
}

uint64_t disk_sectors(const struct disk *disk)
{
	return disk->job.from->info.sectors;
}

static int failed(const struct disk *disk, const char *what, uint64_t sector,
		  int rc, struct error *err)
{
	return error_set(err, rc, "%s: %s at sector %llu: %s", disk->name, what,
			 (unsigned long long)sector, strerror(-rc));
}

int disk_read(struct disk *disk, uint64_t sector, uint32_t count, uint8_t *buf,
	      struct error *err)
{
	struct image_request req = {
		.op = IMAGE_READ, .sector = sector, .count = count, .buf = buf,
	};
	int rc = image_call(disk->job.from, &req);

	return rc ? failed(disk, "reading", sector, rc, err) : 0;
}

int disk_extent(struct disk *disk, uint64_t sector, uint32_t limit,
		struct image_extent *extent, struct error *err)
{
	struct image_request req = {
		.op = IMAGE_STATUS, .sector = sector, .count = limit,
		.extents = extent, .max_extents = 1,
	};
	int rc;

	*extent = (struct image_extent){ .count = limit };
	if (!(disk->job.from->info.can & IMAGE_CAN_STATUS))
		return 0;
	rc = image_call(disk->job.from, &req);
	if (!rc && (!req.nr_extents || !extent->count))
		rc = -EIO;
	if (rc)
		return failed(disk, "asking what holds data", sector, rc, err);
	if (extent->count > limit)
		extent->count = limit;
	return 0;
}

void disk_close(struct disk *disk)
{
	if (!disk)
		return;
	job_close(&disk->job);
	free(disk->name);
	free(disk);
}
