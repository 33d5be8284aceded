/* SPDX-License-Identifier: LGPL-2.1-only */
#include "drivers/vhd-disk.h"

#include <string.h>

/* All that a reader needs to find these sectors is already in the file. */
static bool settled(const struct vhd_disk *disk, const struct vhd_bitmap *bm,
		    uint32_t first, uint32_t count)
{
	bool set;

	return vhd_bitmap_settled(disk, bm) &&
	       vhd_bitmap_run(bm->map, first, first + count, &set) == count &&
	       set;
}

void vhd_write_placed(struct vhd_op *op, int err)
{
	struct vhd_bitmap *bm = op->bitmap;

	if (err || !bm) {
		vhd_op_end(op, err);
		return;
	}
	if (vhd_bitmap_set(bm->map, op->first, op->count)) {
		bm->dirty = true;
		bm->rewritten = false;
		vhd_map_set(op->disk, bm->block, op->first, op->count);
	}
	if (settled(op->disk, bm, op->first, op->count))
		vhd_op_end(op, 0);
	else
		vhd_meta_commit(op);
}

/* Makes the block's place in memory; its bitmap is pinned for the caller. */
static struct vhd_bitmap *new_block(struct vhd_disk *disk, uint32_t block,
				    struct image_request *req)
{
	struct vhd_image *leaf = disk->leaf;
	struct vhd_bitmap *bm;
	uint64_t offset, end;

	if (!vhd_grow_place(disk, block, req, &offset))
		return NULL;
	bm = vhd_cache_new(disk, block, req);
	if (!bm)
		return NULL;
	/* Until it is published the bitmap exists nowhere else. */
	vhd_cache_pin(bm);
	bm->exposed = disk->place[block];
	end = offset + vhd_block_bytes(leaf);
	if (leaf->data_end < end)
		leaf->data_end = end;
	vhd_bat_set(leaf, block, (uint32_t)(offset >> SECTOR_SHIFT));
	vhd_bit_clear(disk->whole, block);
	vhd_bit_set(disk->unpublished, block);
	disk->changed = true;
	vhd_meta_begin(bm);
	return bm;
}

struct vhd_op *vhd_write_op(struct vhd_disk *disk, struct image_request *req,
			    uint32_t count, enum step *step)
{
	struct vhd_image *leaf = disk->leaf;
	uint64_t sector = req->sector + req->cursor;
	uint32_t block, first, place;
	struct vhd_bitmap *bm;
	struct vhd_op *op;

	*step = STEP_WAIT;
	op = vhd_op_get(disk, req);
	if (!op)
		return NULL;
	op->io.fd = leaf->fd;
	op->count = count;
	if (!disk->map.nr) {
		op->io.offset = sector << SECTOR_SHIFT;
		return op;
	}
	block = (uint32_t)(sector >> disk->map.shift);
	first = (uint32_t)sector & (leaf->spb - 1);
	place = vhd_bat(leaf, block);
	if (place == VHD_BAT_UNUSED) {
		bm = new_block(disk, block, req);
		if (!bm) {
			vhd_op_put(op);
			if (req->err)
				*step = STEP_FAIL;
			return NULL;
		}
		op->bitmap = bm;
		place = vhd_bat(leaf, block);
	} else if (!vhd_bit(disk->whole, block)) {
		bm = vhd_cache_get(disk, block, req);
		if (!bm) {
			vhd_op_put(op);
			return NULL;
		}
		if (settled(disk, bm, first, count)) {
			bm->rewritten = true;
			vhd_cache_unpin(bm);
		} else {
			op->bitmap = bm;
		}
	}
	op->first = first;
	op->io.offset = ((uint64_t)place + leaf->bitmap_sectors + first) <<
			SECTOR_SHIFT;
	return op;
}

static void data_done(struct io_req *io, int err)
{
	vhd_write_placed(container_of(io, struct vhd_op, io), err);
}

enum step vhd_write_step(struct vhd_disk *disk, struct image_request *req)
{
	uint32_t count = req->count - req->cursor;
	struct vhd_op *op;
	enum step step;

	if (disk->map.nr) {
		uint32_t spb = disk->leaf->spb;
		uint32_t left = spb - (uint32_t)((req->sector + req->cursor) &
						 (spb - 1));

		if (count > left)
			count = left;
	}
	op = vhd_write_op(disk, req, count, &step);
	if (!op)
		return step;
	op->io.op = IO_WRITE;
	op->io.buffer = req->buffer;
	op->io.done = data_done;
	op->iov.iov_base = req->buf + ((size_t)req->cursor << SECTOR_SHIFT);
	op->iov.iov_len = (size_t)count << SECTOR_SHIFT;
	req->cursor += count;
	image_queue(&disk->image, &op->io);
	return STEP_ON;
}
