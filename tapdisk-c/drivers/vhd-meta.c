/* SPDX-License-Identifier: LGPL-2.1-only */
#include "drivers/vhd-disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/pages.h"

static void bitmap_write(struct vhd_bitmap *bm);

static void end_all(struct list *ops, int err)
{
	struct list *item;

	while ((item = list_pop(ops)))
		vhd_op_end(container_of(item, struct vhd_op, link), err);
}

void vhd_meta_settle(struct vhd_bitmap *bm, int err)
{
	struct vhd_disk *disk = bm->disk;
	struct vhd_image *leaf = disk->leaf;
	struct list done;

	list_init(&done);
	list_splice(&bm->committing, &done);
	bm->writing = false;
	disk->metadata--;
	/*
	 * The bits stay in memory: the next write to the block tries again. The file has the old
	 * ones, or these: of a sector whose write failed a medium gives one or the other, or EIO.
	 */
	if (err) {
		bm->dirty = true;
		vhd_map_moved(disk, bm->block, 0, vhd_map_sectors(disk, bm->block));
	} else if (!bm->dirty && vhd_bitmap_full(bm->map, leaf->spb)) {
		vhd_bit_set(disk->whole, bm->block);
		disk->changed = true;
	}
	end_all(&done, err);
	if (!list_empty(&bm->commit) && !bm->writing)
		bitmap_write(bm);
	vhd_cache_unpin(bm);
	if (err)
		vhd_meta_abandon(bm);
	vhd_feed_starved(disk);
}

static void bitmap_written(struct io_req *io, int err)
{
	struct vhd_bitmap *bm = container_of(io, struct vhd_bitmap, io);

	if (err || !vhd_unpublished(bm->disk, bm->block)) {
		vhd_meta_settle(bm, err);
		return;
	}
	bm->settles = true;
	vhd_bat_publish(bm);
}

static void bitmap_out(struct vhd_bitmap *bm)
{
	bm->io.op = IO_WRITE;
	bm->io.done = bitmap_written;
	image_queue(&bm->disk->image, &bm->io);
}

static void data_synced(struct io_req *io, int err)
{
	struct vhd_bitmap *bm = container_of(io, struct vhd_bitmap, io);

	if (!err) {
		bitmap_out(bm);
		return;
	}
	bm->disk->lost = err;
	vhd_meta_settle(bm, err);
}

/*
 * On a block device a bit that reaches the medium before its data shows what
 * lay there before. As long as no BAT entry leads to the bitmap, the sync
 * before that entry is early enough.
 */
static void bitmap_write(struct vhd_bitmap *bm)
{
	struct vhd_image *leaf = bm->disk->leaf;

	list_del(&bm->due);
	list_splice(&bm->commit, &bm->committing);
	bm->writing = true;
	/* Its data may have failed, and its block be published, before it is written. */
	vhd_cache_pin(bm);
	bm->disk->metadata++;
	bm->dirty = false;
	bm->iov.iov_base = bm->out;
	bm->iov.iov_len = (size_t)leaf->bitmap_sectors << SECTOR_SHIFT;
	memcpy(bm->out, bm->map, bm->iov.iov_len);
	bm->io.fd = leaf->fd;
	bm->io.offset = (uint64_t)vhd_bat(leaf, bm->block) << SECTOR_SHIFT;
	bm->io.iov = &bm->iov;
	bm->io.iovcnt = 1;
	if (!leaf->is_blk ||
	    (vhd_unpublished(bm->disk, bm->block) && !bm->exposed)) {
		bitmap_out(bm);
		return;
	}
	bm->io.op = IO_SYNC;
	bm->io.done = data_synced;
	image_queue(&bm->disk->image, &bm->io);
}

void vhd_meta_abandon(struct vhd_bitmap *bm)
{
	struct vhd_disk *disk = bm->disk;
	struct vhd_image *leaf = disk->leaf;

	if (!vhd_unpublished(disk, bm->block) || bm->pins > 1 || bm->writing ||
	    bm->publishing)
		return;
	disk->place[bm->block] = vhd_bat(leaf, bm->block);
	disk->gave_up = true;
	vhd_bat_set(leaf, bm->block, VHD_BAT_UNUSED);
	vhd_bit_clear(disk->unpublished, bm->block);
	vhd_map_forget(disk, bm->block);
	vhd_cache_forget(bm);
}

void vhd_meta_commit(struct vhd_op *op)
{
	struct vhd_bitmap *bm = op->bitmap;
	bool set = false;

	/* What is being written has the op's bits already. */
	if (bm->writing &&
	    vhd_bitmap_run(bm->out, op->first, op->first + op->count,
			   &set) == op->count && set) {
		list_add_tail(&op->link, &bm->committing);
		return;
	}
	list_add_tail(&op->link, &bm->commit);
	if (bm->writing || !list_empty(&bm->due))
		return;
	list_add_tail(&bm->due, &bm->disk->due);
	vhd_meta_arm(bm->disk);
}

void vhd_meta_arm(struct vhd_disk *disk)
{
	engine_plug(disk->image.engine, &disk->round);
}

static void round_over(struct io_plug *plug)
{
	struct vhd_disk *disk = container_of(plug, struct vhd_disk, round);
	struct list *item;

	while ((item = list_pop(&disk->due))) {
		struct vhd_bitmap *bm = container_of(item, struct vhd_bitmap,
						     due);

		if (!bm->writing)
			bitmap_write(bm);
	}
	vhd_bat_write_queued(disk);
}

/*
 * In a file the place of a new block is zeros, which as a bitmap means "ask the
 * parent": its BAT entry may be there before all else. Where there is no parent the
 * bits may be, too: what is not written yet reads as zeros either way.
 */
void vhd_meta_begin(struct vhd_bitmap *bm)
{
	struct vhd_disk *disk = bm->disk;

	/* A place that was used before may hold what a failed write has left. */
	if (disk->leaf->is_blk || disk->place[bm->block])
		return;
	if (disk->chain->depth == 1) {
		vhd_bitmap_set(bm->map, 0, disk->leaf->spb);
		vhd_map_set(disk, bm->block, 0, disk->leaf->spb);
		bitmap_write(bm);
	}
	vhd_bat_publish(bm);
}

int vhd_meta_init(struct vhd_disk *disk, struct error *err)
{
	struct vhd_image *leaf = disk->leaf;
	size_t bits = (size_t)leaf->bat_entries / 8 + 1;

	if (disk->image.readonly || leaf->footer.type == VHD_FIXED)
		return 0;
	list_init(&disk->due);
	disk->round.unplug = round_over;
	disk->unpublished = pages_alloc(bits);
	disk->place = pages_alloc(leaf->bat_entries * sizeof(*disk->place));
	disk->whole = leaf->has_batmap ? leaf->batmap : pages_alloc(bits);
	if (!disk->unpublished || !disk->place || !disk->whole)
		return error_set(err, -ENOMEM, "%s: out of memory",
				 leaf->path);
	return vhd_bat_init(disk, err);
}

void vhd_meta_destroy(struct vhd_disk *disk)
{
	struct vhd_image *leaf = disk->leaf;
	size_t bits = leaf ? (size_t)leaf->bat_entries / 8 + 1 : 0;

	vhd_bat_destroy(disk);
	pages_free(disk->unpublished, bits);
	if (!leaf)
		return;
	pages_free(disk->place, leaf->bat_entries * sizeof(*disk->place));
	if (!leaf->has_batmap)
		pages_free(disk->whole, bits);
}
