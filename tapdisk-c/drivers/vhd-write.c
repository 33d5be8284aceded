/* SPDX-License-Identifier: LGPL-2.1-only */
#include "drivers/vhd-disk.h"

/* All that a reader needs to find these sectors is already in the file. */
static bool settled(const struct vhd_disk *disk, const struct vhd_bitmap *bm,
		    uint32_t first, uint32_t count)
{
	bool set;

	return !vhd_unpublished(disk, bm->block) && !bm->dirty && !bm->writing &&
	       vhd_bitmap_run(bm->map, first, first + count, &set) == count &&
	       set;
}

static void data_done(struct io_req *io, int err)
{
	struct vhd_op *op = container_of(io, struct vhd_op, io);
	struct vhd_bitmap *bm = op->bitmap;

	if (err || !bm) {
		vhd_op_end(op, err);
		return;
	}
	if (vhd_bitmap_set(bm->map, op->first, op->count))
		bm->dirty = true;
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
	end = offset + ((uint64_t)leaf->bitmap_sectors + leaf->spb) *
	      SECTOR_SIZE;
	if (leaf->data_end < end)
		leaf->data_end = end;
	leaf->bat[block] = (uint32_t)(offset >> SECTOR_SHIFT);
	if (leaf->has_batmap)
		vhd_bit_clear(leaf->batmap, block);
	vhd_bit_set(disk->unpublished, block);
	disk->changed = true;
	return bm;
}

static void start(struct vhd_disk *disk, struct vhd_op *op, uint64_t offset,
		  uint32_t count)
{
	struct image_request *req = op->req;

	op->io.op = IO_WRITE;
	op->io.fd = disk->leaf->fd;
	op->io.offset = offset;
	op->io.done = data_done;
	op->iov.iov_base = req->buf + ((size_t)req->cursor << SECTOR_SHIFT);
	op->iov.iov_len = (size_t)count << SECTOR_SHIFT;
	req->cursor += count;
	image_queue(&disk->image, &op->io);
}

enum step vhd_write_step(struct vhd_disk *disk, struct image_request *req)
{
	struct vhd_image *leaf = disk->leaf;
	uint64_t sector = req->sector + req->cursor;
	uint32_t count = req->count - req->cursor;
	uint32_t block, first;
	struct vhd_bitmap *bm;
	struct vhd_op *op;

	op = vhd_op_get(disk, req);
	if (!op)
		return STEP_WAIT;
	if (leaf->footer.type == VHD_FIXED) {
		start(disk, op, sector << SECTOR_SHIFT, count);
		return STEP_ON;
	}
	block = (uint32_t)(sector / leaf->spb);
	first = (uint32_t)(sector % leaf->spb);
	if (count > leaf->spb - first)
		count = leaf->spb - first;

	if (leaf->bat[block] == VHD_BAT_UNUSED) {
		bm = new_block(disk, block, req);
		if (!bm) {
			vhd_op_put(op);
			return req->err ? STEP_FAIL : STEP_WAIT;
		}
		op->bitmap = bm;
	} else if (!leaf->has_batmap || !vhd_bit(leaf->batmap, block)) {
		bm = vhd_cache_get(disk, 0, block, req);
		if (!bm) {
			vhd_op_put(op);
			return STEP_WAIT;
		}
		if (settled(disk, bm, first, count))
			vhd_cache_unpin(bm);
		else
			op->bitmap = bm;
	}
	op->first = first;
	op->count = count;
	start(disk, op, ((uint64_t)leaf->bat[block] + leaf->bitmap_sectors +
			 first) << SECTOR_SHIFT, count);
	return STEP_ON;
}
