/* SPDX-License-Identifier: LGPL-2.1-only */
#include "drivers/vhd-disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BAT_PER_SECTOR (SECTOR_SIZE / 4)

static void bitmap_write(struct vhd_bitmap *bm);
static void bat_next(struct vhd_disk *disk);

static void end_all(struct list *ops, int err)
{
	struct list *item;

	while ((item = list_pop(ops)))
		vhd_op_end(container_of(item, struct vhd_op, link), err);
}

/* A bitmap write, with its BAT write if it needed one, is over. */
static void bitmap_settle(struct vhd_bitmap *bm, int err)
{
	struct vhd_disk *disk = bm->disk;
	struct vhd_image *leaf = disk->leaf;
	struct list done;

	list_init(&done);
	list_splice(&bm->committing, &done);
	bm->writing = false;
	/* The bits stay in memory: the next write to the block tries again. */
	if (err)
		bm->dirty = true;
	else if (!bm->dirty && leaf->has_batmap &&
		 vhd_bitmap_full(bm->map, leaf->spb)) {
		vhd_bit_set(leaf->batmap, bm->block);
		disk->changed = true;
	}
	vhd_cache_pin(bm);
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
	struct vhd_disk *disk = bm->disk;

	if (err || !vhd_unpublished(disk, bm->block)) {
		bitmap_settle(bm, err);
		return;
	}
	list_add_tail(&bm->publish, &disk->bat.queue);
	bat_next(disk);
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

	if (err)
		bitmap_settle(bm, err);
	else
		bitmap_out(bm);
}

/*
 * On a block device a bit that reaches the medium before its data shows what
 * lay there before. As long as no BAT entry leads to the bitmap, the sync
 * before that entry is early enough.
 */
static void bitmap_write(struct vhd_bitmap *bm)
{
	struct vhd_image *leaf = bm->disk->leaf;

	list_splice(&bm->commit, &bm->committing);
	bm->writing = true;
	bm->dirty = false;
	bm->iov.iov_base = bm->out;
	bm->iov.iov_len = (size_t)leaf->bitmap_sectors << SECTOR_SHIFT;
	memcpy(bm->out, bm->map, bm->iov.iov_len);
	bm->io.fd = leaf->fd;
	bm->io.offset = (uint64_t)leaf->bat[bm->block] << SECTOR_SHIFT;
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

	if (!vhd_unpublished(disk, bm->block) || bm->pins > 1 || bm->writing)
		return;
	disk->place[bm->block] = leaf->bat[bm->block];
	leaf->bat[bm->block] = VHD_BAT_UNUSED;
	vhd_bit_clear(disk->unpublished, bm->block);
	vhd_cache_forget(bm);
}

void vhd_meta_commit(struct vhd_op *op)
{
	struct vhd_bitmap *bm = op->bitmap;

	list_add_tail(&op->link, &bm->commit);
	if (!bm->writing)
		bitmap_write(bm);
}

static void bat_written(struct io_req *io, int err)
{
	struct vhd_bat_writer *bat = container_of(io, struct vhd_bat_writer, io);
	struct vhd_disk *disk = container_of(bat, struct vhd_disk, bat);
	struct list *item;

	while ((item = list_pop(&bat->batch))) {
		struct vhd_bitmap *bm =
			container_of(item, struct vhd_bitmap, publish);

		if (!err) {
			vhd_bit_clear(disk->unpublished, bm->block);
			/* The pin of the unpublished block. */
			vhd_cache_unpin(bm);
		}
		bitmap_settle(bm, err);
	}
	bat->busy = false;
	bat_next(disk);
	vhd_feed_starved(disk);
}

static void bat_write(struct vhd_disk *disk)
{
	struct vhd_bat_writer *bat = &disk->bat;
	struct vhd_image *leaf = disk->leaf;
	uint32_t base = bat->sector * BAT_PER_SECTOR;

	for (uint32_t i = 0; i < BAT_PER_SECTOR; i++) {
		uint32_t block = base + i;

		bat->entries[i] = block < leaf->bat_entries &&
				  !vhd_unpublished(disk, block) ?
				  leaf->bat[block] : VHD_BAT_UNUSED;
		if (block >= leaf->bat_entries)
			bat->entries[i] = bat->spare[i];
	}
	list_for_each(pos, &bat->batch) {
		struct vhd_bitmap *bm =
			container_of(pos, struct vhd_bitmap, publish);

		bat->entries[bm->block - base] = leaf->bat[bm->block];
		/* If the write fails, the entry may be there all the same. */
		bm->exposed = true;
	}
	vhd_bat_encode(bat->buf, bat->entries, BAT_PER_SECTOR);
	bat->iov.iov_base = bat->buf;
	bat->iov.iov_len = SECTOR_SIZE;
	bat->io.op = IO_WRITE;
	bat->io.offset = leaf->header.table_offset +
			 (uint64_t)bat->sector * SECTOR_SIZE;
	bat->io.iov = &bat->iov;
	bat->io.iovcnt = 1;
	bat->io.done = bat_written;
	image_queue(&disk->image, &bat->io);
}

static void bat_synced(struct io_req *io, int err)
{
	struct vhd_bat_writer *bat = container_of(io, struct vhd_bat_writer, io);

	if (err)
		bat_written(io, err);
	else
		bat_write(container_of(bat, struct vhd_disk, bat));
}

/* Publishes all queued blocks that share the first one's BAT sector. */
static void bat_next(struct vhd_disk *disk)
{
	struct vhd_bat_writer *bat = &disk->bat;
	struct vhd_bitmap *bm;

	if (bat->busy || list_empty(&bat->queue))
		return;
	bm = container_of(bat->queue.next, struct vhd_bitmap, publish);
	bat->sector = bm->block / BAT_PER_SECTOR;
	list_for_each_safe(pos, tmp, &bat->queue) {
		bm = container_of(pos, struct vhd_bitmap, publish);
		if (bm->block / BAT_PER_SECTOR != bat->sector)
			continue;
		list_del(pos);
		list_add_tail(pos, &bat->batch);
	}
	bat->busy = true;
	bat->io.fd = disk->leaf->fd;
	if (!disk->leaf->is_blk) {
		bat_write(disk);
		return;
	}
	bat->io.op = IO_SYNC;
	bat->io.done = bat_synced;
	image_queue(&disk->image, &bat->io);
}

/* The entries beyond the disk's size that share a sector with its last ones. */
static int read_spare(struct vhd_disk *disk, struct error *err)
{
	struct vhd_image *leaf = disk->leaf;
	struct vhd_bat_writer *bat = &disk->bat;
	uint32_t sector = leaf->bat_entries / BAT_PER_SECTOR;
	int rc;

	if (leaf->bat_entries % BAT_PER_SECTOR == 0)
		return 0;
	rc = vhd_read_at(leaf->fd, bat->buf, SECTOR_SIZE,
			 leaf->header.table_offset +
			 (uint64_t)sector * SECTOR_SIZE);
	if (rc == -ENODATA)
		rc = -EIO;
	if (rc)
		return error_set(err, rc, "%s: BAT: reading: %s", leaf->path,
				 strerror(-rc));
	vhd_bat_decode(bat->spare, bat->buf, BAT_PER_SECTOR);
	return 0;
}

int vhd_meta_init(struct vhd_disk *disk, struct error *err)
{
	struct vhd_image *leaf = disk->leaf;
	struct vhd_bat_writer *bat = &disk->bat;

	list_init(&bat->queue);
	list_init(&bat->batch);
	if (disk->image.readonly || leaf->footer.type == VHD_FIXED)
		return 0;
	disk->unpublished = calloc(1, (size_t)leaf->bat_entries / 8 + 1);
	disk->place = calloc(leaf->bat_entries, sizeof(*disk->place));
	bat->entries = calloc(BAT_PER_SECTOR, sizeof(uint32_t));
	bat->spare = calloc(BAT_PER_SECTOR, sizeof(uint32_t));
	bat->buf = aligned_alloc(IMAGE_ALIGN, IMAGE_ALIGN);
	if (!disk->unpublished || !disk->place || !bat->entries ||
	    !bat->spare || !bat->buf)
		return error_set(err, -ENOMEM, "%s: out of memory",
				 leaf->path);
	return read_spare(disk, err);
}

void vhd_meta_destroy(struct vhd_disk *disk)
{
	free(disk->unpublished);
	free(disk->place);
	free(disk->bat.entries);
	free(disk->bat.spare);
	free(disk->bat.buf);
}
