/* SPDX-License-Identifier: LGPL-2.1-only */
/* Reads, and what holds data: both are what the map says. */
#include "drivers/vhd-disk.h"

#include <errno.h>
#include <string.h>

/*
 * The first run at the cursor: its holder, its sectors and, if a file holds it,
 * where. CODE_NONE: the request waits.
 */
static unsigned int find_run(struct vhd_disk *disk, struct image_request *req,
			     uint32_t *count, int *fd, uint64_t *offset)
{
	uint64_t sector = req->sector + req->cursor;
	unsigned int code, level;

	*count = req->count - req->cursor;
	/* Without a map: the disk is one run. */
	code = disk->map.nr ? vhd_map_find(disk, sector, count, req) :
			      CODE_LEAF;
	if (code >= CODE_LEAF && code < CODE_ZEROS) {
		level = code - CODE_LEAF;
		*fd = disk->map.level[level].fd;
		*offset = vhd_map_place(disk, level, sector, count);
	} else if (code == CODE_RAW) {
		*fd = disk->chain->raw_fd;
		*offset = sector << SECTOR_SHIFT;
	}
	return code;
}

static void read_done(struct io_req *io, int err)
{
	vhd_op_end(container_of(io, struct vhd_op, io), err);
}

enum step vhd_read_step(struct vhd_disk *disk, struct image_request *req)
{
	uint8_t *buf = req->buf + ((size_t)req->cursor << SECTOR_SHIFT);
	uint64_t offset = 0;
	struct vhd_op *op;
	unsigned int code;
	uint32_t count;
	int fd = -1;

	code = find_run(disk, req, &count, &fd, &offset);
	if (code == CODE_NONE)
		return STEP_WAIT;
	if (code == CODE_ERROR) {
		req->err = -EIO;
		return STEP_FAIL;
	}
	if (code == CODE_ZEROS) {
		memset(buf, 0, (size_t)count << SECTOR_SHIFT);
		req->cursor += count;
		return STEP_ON;
	}
	if (count == req->count && image_lend(&disk->image, req, fd, offset)) {
		req->cursor += count;
		return STEP_ON;
	}
	op = vhd_op_get(disk, req);
	if (!op)
		return STEP_WAIT;
	op->io.op = IO_READ;
	op->io.fd = fd;
	op->io.offset = offset;
	op->io.buffer = req->buffer;
	op->io.done = read_done;
	op->iov.iov_base = buf;
	op->iov.iov_len = (size_t)count << SECTOR_SHIFT;
	req->cursor += count;
	image_queue(&disk->image, &op->io);
	return STEP_ON;
}

enum step vhd_status_step(struct vhd_disk *disk, struct image_request *req)
{
	struct image_extent *last = req->nr_extents ?
				    &req->extents[req->nr_extents - 1] : NULL;
	uint64_t offset;
	unsigned int code;
	uint32_t count;
	bool hole;
	int fd;

	code = find_run(disk, req, &count, &fd, &offset);
	if (code == CODE_NONE)
		return STEP_WAIT;
	if (code == CODE_ERROR) {
		/* What was found before is an answer. */
		if (last)
			return STEP_END;
		req->err = -EIO;
		return STEP_FAIL;
	}
	hole = code == CODE_ZEROS;
	if (!last || last->hole != hole) {
		if (req->nr_extents == req->max_extents)
			return STEP_END;
		last = &req->extents[req->nr_extents++];
		*last = (struct image_extent){ .hole = hole, .zero = hole };
	}
	last->count += count;
	req->cursor += count;
	return STEP_ON;
}
