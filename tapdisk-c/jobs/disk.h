/* SPDX-License-Identifier: LGPL-2.1-only */
/* One request at a time on an image, and a disk that is only read in that way. */
#ifndef XENBLK_JOB_DISK_H
#define XENBLK_JOB_DISK_H

#include "common/config.h"
#include "common/error.h"
#include "drivers/image.h"

/* Submits req and runs the engine until it is done: 0 or -errno. done is set here. */
int image_call(struct image *image, struct image_request *req);

struct disk;

/* Whether a name is that of an NBD export: nbd://, nbd+unix:// or nbd:unix: */
bool disk_is_nbd(const char *name);
/* spec as image_parse() takes it, read-only. */
int disk_open(struct disk **disk, const char *spec, const struct config *cfg,
	      struct error *err);
uint64_t disk_sectors(const struct disk *disk);
/* buf is IMAGE_ALIGN-aligned. */
int disk_read(struct disk *disk, uint64_t sector, uint32_t count, uint8_t *buf,
	      struct error *err);
/* The extent at sector, of at most limit sectors. */
int disk_extent(struct disk *disk, uint64_t sector, uint32_t limit,
		struct image_extent *extent, struct error *err);
void disk_close(struct disk *disk);

#endif
