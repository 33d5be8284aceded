/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Zeros and discards. Zeros are a write whose data the file system makes: a hole
 * in a file, and where it can't, or on a block device, zeros that are written.
 * BAT entries and bits stay.
 */
#include "drivers/vhd-disk.h"

#include <errno.h>

/* Of a write of zeros, at most IMAGE_ZEROS. */
#define ZERO_BYTES	(256u << 10)
/* Of an op: no other request waits long for it. */
#define ZERO_MAX	(64u << 20 >> SECTOR_SHIFT)
/* File systems make holes of whole blocks. */
#define HOLE_SECTORS	8u

static void write_zeros(struct vhd_op *op)
{
	uint64_t left = op->zero_end - op->io.offset;

	op->io.op = IO_WRITE;
	op->iov.iov_base = image_zeros;
	op->iov.iov_len = left < ZERO_BYTES ? (size_t)left : ZERO_BYTES;
	image_queue(&op->disk->image, &op->io);
}

static void zero_done(struct io_req *io, int err)
{
	struct vhd_op *op = container_of(io, struct vhd_op, io);
	struct vhd_disk *disk = op->disk;

	if (io->op == IO_WRITE) {
		uint64_t left = op->zero_end - io->offset;

		if (!err && left > ZERO_BYTES) {
			io->offset += ZERO_BYTES;
			write_zeros(op);
			return;
		}
	} else if (err == -EOPNOTSUPP) {
		if (io->op == IO_PUNCH)
			disk->no_holes = true;
		else
			disk->no_zeros = true;
		write_zeros(op);
		return;
	}
	vhd_write_placed(op, err);
}

static void discard_done(struct io_req *io, int err)
{
	struct vhd_op *op = container_of(io, struct vhd_op, io);

	if (err == -EOPNOTSUPP) {
		op->disk->no_holes = true;
		err = 0;
	}
	vhd_op_end(op, err);
}

static enum step zero(struct vhd_disk *disk, struct image_request *req,
		      uint32_t count)
{
	bool keep = req->keep_space || disk->leaf->is_blk;
	struct vhd_op *op;
	enum step step;

	op = vhd_write_op(disk, req, count, &step);
	if (!op)
		return step;
	op->io.buffer = 0;
	op->io.done = zero_done;
	op->io.len = (uint64_t)count << SECTOR_SHIFT;
	op->zero_end = op->io.offset + op->io.len;
	req->cursor += count;
	if (keep ? disk->no_zeros : disk->no_holes) {
		write_zeros(op);
		return STEP_ON;
	}
	op->io.op = keep ? IO_ZERO : IO_PUNCH;
	image_queue(&disk->image, &op->io);
	return STEP_ON;
}

/* A hole of the whole blocks in what the leaf holds; the rest is left as it is. */
static enum step discard(struct vhd_disk *disk, struct image_request *req,
			 uint32_t count)
{
	uint64_t sector = req->sector + req->cursor, offset, from, to;
	struct vhd_op *op;

	offset = vhd_map_place(disk, 0, sector, &count) >> SECTOR_SHIFT;
	from = (offset + HOLE_SECTORS - 1) & ~(uint64_t)(HOLE_SECTORS - 1);
	to = (offset + count) & ~(uint64_t)(HOLE_SECTORS - 1);
	if (disk->no_holes || disk->leaf->is_blk || from >= to) {
		req->cursor += count;
		return STEP_ON;
	}
	op = vhd_op_get(disk, req);
	if (!op)
		return STEP_WAIT;
	op->io.op = IO_PUNCH;
	op->io.fd = disk->leaf->fd;
	op->io.offset = from << SECTOR_SHIFT;
	op->io.len = (to - from) << SECTOR_SHIFT;
	op->io.buffer = 0;
	op->io.done = discard_done;
	req->cursor += count;
	image_queue(&disk->image, &op->io);
	return STEP_ON;
}

/*
 * The BAT entry of a block whose allocation failed may have reached the file all the
 * same, and lead to data of writes that failed.
 */
static bool given_up(const struct vhd_disk *disk, uint64_t sector)
{
	return disk->place[sector >> disk->map.shift];
}

enum step vhd_zero_step(struct vhd_disk *disk, struct image_request *req)
{
	uint64_t sector = req->sector + req->cursor;
	uint32_t count = req->count - req->cursor;
	unsigned int code = CODE_LEAF;

	/* A whole disk's zeros leave ops for others. */
	if (req->pending >= VHD_MAX_PENDING)
		return STEP_WAIT;
	if (count > ZERO_MAX)
		count = ZERO_MAX;
	if (disk->map.nr)
		code = vhd_map_find(disk, sector, &count, req);
	if (code == CODE_NONE)
		return STEP_WAIT;
	if (req->op == IMAGE_DISCARD ? code != CODE_LEAF :
	    code == CODE_ZEROS && !given_up(disk, sector)) {
		req->cursor += count;
		return STEP_ON;
	}
	return req->op == IMAGE_DISCARD ? discard(disk, req, count) :
					  zero(disk, req, count);
}
