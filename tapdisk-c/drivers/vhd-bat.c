/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * BAT writes: all blocks that wait and whose entries lie in one span of sectors
 * go in one write. A span is in one write at a time, several spans in several.
 * Every sector of a write is true by itself, so it may be torn.
 */
#include "drivers/vhd-disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PER_SECTOR (SECTOR_SIZE / 4)
#define PER_SPAN   (PER_SECTOR * VHD_BAT_SPAN)
#define SPAN_BYTES (SECTOR_SIZE * VHD_BAT_SPAN)

static void written(struct io_req *io, int err)
{
	struct vhd_bat_write *w = container_of(io, struct vhd_bat_write, io);
	struct vhd_disk *disk = w->disk;
	struct list batch, *item;

	list_init(&batch);
	list_splice(&w->batch, &batch);
	w->busy = false;
	while ((item = list_pop(&batch))) {
		struct vhd_bitmap *bm =
			container_of(item, struct vhd_bitmap, publish);

		bm->publishing = false;
		disk->metadata--;
		/* The pin of the unpublished block goes when all is done. */
		if (!err)
			vhd_bit_clear(disk->unpublished, bm->block);
		if (bm->settles) {
			bm->settles = false;
			vhd_meta_settle(bm, err);
		} else if (err) {
			vhd_meta_abandon(bm);
		}
		if (!err)
			vhd_cache_unpin(bm);
	}
	vhd_bat_write_queued(disk);
	vhd_feed_starved(disk);
}

static void encode(struct vhd_disk *disk, struct vhd_bat_write *w,
		   uint32_t first, uint32_t nr)
{
	struct vhd_image *leaf = disk->leaf;
	uint32_t entries[PER_SPAN];

	for (uint32_t i = 0; i < nr; i++) {
		uint32_t block = first + i;

		if (block >= leaf->bat_entries)
			entries[i] = disk->bat.spare[block % PER_SECTOR];
		else
			entries[i] = vhd_unpublished(disk, block) ?
				     VHD_BAT_UNUSED : vhd_bat(leaf, block);
	}
	list_for_each(pos, &w->batch) {
		struct vhd_bitmap *bm =
			container_of(pos, struct vhd_bitmap, publish);

		entries[bm->block - first] = vhd_bat(leaf, bm->block);
		/* If the write fails, the entry may be there all the same. */
		bm->exposed = true;
	}
	vhd_bat_encode(w->buf, entries, nr);
}

/* The sectors that hold the entries of the batch, and what lies between. */
static void put(struct vhd_bat_write *w)
{
	struct vhd_disk *disk = w->disk;
	uint32_t low = UINT32_MAX, high = 0, sectors;

	list_for_each(pos, &w->batch) {
		uint32_t sector = container_of(pos, struct vhd_bitmap,
					       publish)->block / PER_SECTOR;

		if (sector < low)
			low = sector;
		if (sector > high)
			high = sector;
	}
	sectors = high - low + 1;
	encode(disk, w, low * PER_SECTOR, sectors * PER_SECTOR);
	w->iov.iov_base = w->buf;
	w->iov.iov_len = (size_t)sectors * SECTOR_SIZE;
	w->io.op = IO_WRITE;
	w->io.offset = disk->leaf->header.table_offset +
		       (uint64_t)low * SECTOR_SIZE;
	w->io.iov = &w->iov;
	w->io.iovcnt = 1;
	w->io.done = written;
	image_queue(&disk->image, &w->io);
}

static void synced(struct io_req *io, int err)
{
	struct vhd_bat_write *w = container_of(io, struct vhd_bat_write, io);

	if (!err) {
		put(w);
		return;
	}
	w->disk->lost = err;
	written(io, err);
}

/* The write that the span may go into now, or NULL. */
static struct vhd_bat_write *writer(struct vhd_bat_writer *bat, uint32_t span)
{
	struct vhd_bat_write *idle = NULL;

	for (unsigned int i = 0; i < VHD_BAT_WRITES; i++) {
		struct vhd_bat_write *w = &bat->write[i];

		if (w->busy && w->span == span)
			return NULL;
		if (!w->busy)
			idle = w;
	}
	return idle;
}

static void start(struct vhd_disk *disk, struct vhd_bat_write *w)
{
	w->busy = true;
	w->io.fd = disk->leaf->fd;
	if (!disk->leaf->is_blk) {
		put(w);
		return;
	}
	w->io.op = IO_SYNC;
	w->io.done = synced;
	image_queue(&disk->image, &w->io);
}

static uint32_t span_of(const struct list *pos)
{
	return container_of_const(pos, struct vhd_bitmap, publish)->block /
	       PER_SPAN;
}

void vhd_bat_write_queued(struct vhd_disk *disk)
{
	struct vhd_bat_writer *bat = &disk->bat;
	struct list blocked;

	list_init(&blocked);
	while (!list_empty(&bat->queue)) {
		uint32_t span = span_of(bat->queue.next);
		struct vhd_bat_write *w = writer(bat, span);
		struct list *to = w ? &w->batch : &blocked;

		list_for_each_safe(pos, tmp, &bat->queue) {
			if (span_of(pos) != span)
				continue;
			list_del(pos);
			list_add_tail(pos, to);
		}
		if (!w)
			continue;
		w->span = span;
		start(disk, w);
	}
	list_splice(&blocked, &bat->queue);
}

void vhd_bat_publish(struct vhd_bitmap *bm)
{
	if (bm->publishing)
		return;
	bm->publishing = true;
	bm->disk->metadata++;
	list_add_tail(&bm->publish, &bm->disk->bat.queue);
	vhd_meta_arm(bm->disk);
}

/* A BAT entry may lead to one of the sector's blocks that has none in memory. */
static bool may_differ(const struct vhd_disk *disk, uint32_t first)
{
	for (uint32_t i = 0; i < PER_SECTOR && first + i < disk->leaf->bat_entries; i++)
		if (disk->place[first + i] &&
		    vhd_bat(disk->leaf, first + i) == VHD_BAT_UNUSED)
			return true;
	return false;
}

int vhd_bat_retract(struct vhd_disk *disk, struct error *err)
{
	struct vhd_bat_write *w = &disk->bat.write[0];
	struct vhd_image *leaf = disk->leaf;
	int rc = 0;

	/* Requests wait: no look at the whole BAT for nothing. */
	if (!disk->gave_up)
		return 0;
	for (uint32_t i = 0; !rc && i < leaf->bat_entries; i += PER_SECTOR) {
		if (!may_differ(disk, i))
			continue;
		encode(disk, w, i, PER_SECTOR);
		rc = vhd_write_at(leaf->fd, w->buf, SECTOR_SIZE,
				  leaf->header.table_offset + 4ull * i);
	}
	if (!rc && fdatasync(leaf->fd))
		rc = -errno;
	return rc ? error_set(err, rc, "%s: BAT: writing: %s", leaf->path,
			      strerror(-rc)) : 0;
}

/* The entries beyond the disk's size that share a sector with its last ones. */
static int read_spare(struct vhd_disk *disk, struct error *err)
{
	struct vhd_image *leaf = disk->leaf;
	struct vhd_bat_writer *bat = &disk->bat;
	uint32_t sector = leaf->bat_entries / PER_SECTOR;
	int rc;

	if (leaf->bat_entries % PER_SECTOR == 0)
		return 0;
	rc = vhd_read_at(leaf->fd, bat->buf, SECTOR_SIZE,
			 leaf->header.table_offset +
			 (uint64_t)sector * SECTOR_SIZE);
	if (rc)
		return error_set(err, rc == -ENODATA ? -EIO : rc,
				 "%s: BAT: reading: %s", leaf->path,
				 strerror(rc == -ENODATA ? EIO : -rc));
	vhd_bat_decode(bat->spare, bat->buf, PER_SECTOR);
	return 0;
}

int vhd_bat_init(struct vhd_disk *disk, struct error *err)
{
	struct vhd_bat_writer *bat = &disk->bat;

	list_init(&bat->queue);
	bat->spare = calloc(PER_SECTOR, sizeof(uint32_t));
	bat->buf = aligned_alloc(IMAGE_ALIGN, VHD_BAT_WRITES * SPAN_BYTES);
	if (!bat->spare || !bat->buf)
		return error_set(err, -ENOMEM, "%s: out of memory",
				 disk->leaf->path);
	for (unsigned int i = 0; i < VHD_BAT_WRITES; i++) {
		bat->write[i].disk = disk;
		bat->write[i].buf = bat->buf + i * SPAN_BYTES;
		list_init(&bat->write[i].batch);
	}
	return read_spare(disk, err);
}

void vhd_bat_destroy(struct vhd_disk *disk)
{
	free(disk->bat.spare);
	free(disk->bat.buf);
}
