/* SPDX-License-Identifier: LGPL-2.1-only */
#include "drivers/vhd-disk.h"

#include <string.h>

/* Where a run of sectors is. */
struct run {
	int fd;			/* -1: zeros */
	uint64_t offset;	/* bytes */
	uint32_t count;		/* sectors */
};

static uint32_t min_u64_u32(uint64_t a, uint32_t b)
{
	return a < b ? (uint32_t)a : b;
}

/*
 * Finds the first run at sector, at most run->count long on entry. STEP_WAIT
 * if a bitmap must be loaded first.
 */
static enum step find_run(struct vhd_disk *disk, uint64_t sector,
			  struct image_request *req, struct run *run)
{
	struct vhd_chain *chain = disk->chain;

	run->fd = -1;
	run->offset = 0;
	for (unsigned int level = 0; level < chain->nr_vhd; level++) {
		struct vhd_image *img = chain->image[level];
		uint64_t size = img->footer.current_size >> SECTOR_SHIFT;
		uint32_t block, first;
		struct vhd_bitmap *bm;
		bool set;

		if (sector >= size)
			return STEP_ON;
		run->count = min_u64_u32(size - sector, run->count);
		if (img->footer.type == VHD_FIXED) {
			run->fd = img->fd;
			run->offset = sector << SECTOR_SHIFT;
			return STEP_ON;
		}
		block = (uint32_t)(sector / img->spb);
		first = (uint32_t)(sector % img->spb);
		if (run->count > img->spb - first)
			run->count = img->spb - first;
		if (img->bat[block] == VHD_BAT_UNUSED)
			continue;
		if (!img->has_batmap || !vhd_bit(img->batmap, block)) {
			bm = vhd_cache_get(disk, level, block, req);
			if (!bm)
				return STEP_WAIT;
			run->count = vhd_bitmap_run(bm->map, first,
						    first + run->count, &set);
			vhd_cache_unpin(bm);
			if (!set)
				continue;
		}
		run->fd = img->fd;
		run->offset = ((uint64_t)img->bat[block] + img->bitmap_sectors +
			       first) << SECTOR_SHIFT;
		return STEP_ON;
	}
	if (chain->raw_fd >= 0 && sector < chain->raw_sectors) {
		run->count = min_u64_u32(chain->raw_sectors - sector,
					 run->count);
		run->fd = chain->raw_fd;
		run->offset = sector << SECTOR_SHIFT;
	}
	return STEP_ON;
}

static void read_done(struct io_req *io, int err)
{
	vhd_op_end(container_of(io, struct vhd_op, io), err);
}

enum step vhd_read_step(struct vhd_disk *disk, struct image_request *req)
{
	uint64_t sector = req->sector + req->cursor;
	struct run run = { .count = req->count - req->cursor };
	uint8_t *buf = req->buf + ((size_t)req->cursor << SECTOR_SHIFT);
	struct vhd_op *op;
	enum step step;
	size_t len;

	step = find_run(disk, sector, req, &run);
	if (step != STEP_ON)
		return step;
	len = (size_t)run.count << SECTOR_SHIFT;
	if (run.fd < 0) {
		memset(buf, 0, len);
		req->cursor += run.count;
		return STEP_ON;
	}
	op = vhd_op_get(disk, req);
	if (!op)
		return STEP_WAIT;
	op->io.op = IO_READ;
	op->io.fd = run.fd;
	op->io.offset = run.offset;
	op->io.done = read_done;
	op->iov.iov_base = buf;
	op->iov.iov_len = len;
	req->cursor += run.count;
	image_queue(&disk->image, &op->io);
	return STEP_ON;
}
