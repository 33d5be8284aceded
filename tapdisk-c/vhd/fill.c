// SPDX-License-Identifier: LGPL-2.1-only
/*
 * All sectors into the leaf. Some blocks at a time: their data, a sync, then what
 * makes them count, the BAT entries of new blocks and the bitmaps of old ones.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vhd/resize.h"

#define BATCH_BYTES (64u << 20)

struct fill {
	struct vhd_chain *chain;
	struct vhd_image *leaf;
	const struct job_watch *watch;
	uint8_t *data;			/* of a block */
	uint8_t *bitmap, *full;
	uint32_t *block, *place;	/* of the batch; place: sector, or unused for an old block */
	uint32_t nr, max;
	bool lost;			/* a sync failed: what was written before may not be there */
};

static int read_block(struct fill *f, uint32_t block, struct error *err)
{
	uint64_t start = (uint64_t)block * f->leaf->spb;
	uint64_t left = f->leaf->footer.current_size / VHD_SECTOR - start;
	uint32_t n = left < f->leaf->spb ? (uint32_t)left : f->leaf->spb;

	/* Of the last block only a part may be the disk's. */
	memset(f->data, 0, f->leaf->header.block_size);
	return vhd_chain_read(f->chain, start, n, f->data, err);
}

/* A new block, bitmap and data: not yet in the BAT. */
static int add_new(struct fill *f, uint32_t block, struct error *err)
{
	struct vhd_image *leaf = f->leaf;
	size_t bitmap = (size_t)leaf->bitmap_sectors * VHD_SECTOR;
	uint64_t at = vhd_alloc_offset(leaf, leaf->data_end);
	uint64_t end = at + bitmap + leaf->header.block_size;
	int rc;

	if (at == UINT64_MAX)
		return error_set(err, -ENOSPC,
				 "%s: no room for block %u; extend the device first",
				 leaf->path, block);
	rc = read_block(f, block, err);
	if (rc)
		return rc;
	rc = vhd_write_at(leaf->fd, f->full, bitmap, at);
	if (!rc)
		rc = vhd_write_at(leaf->fd, f->data, leaf->header.block_size,
				  at + bitmap);
	if (rc)
		return vhd_fail(f->leaf->path, rc, "writing a block", err);
	leaf->data_end = end;
	f->block[f->nr] = block;
	f->place[f->nr++] = (uint32_t)(at / VHD_SECTOR);
	return 0;
}

/* The sectors that an old block lacks: its bits come later. */
static int add_old(struct fill *f, uint32_t block, struct error *err)
{
	struct vhd_image *leaf = f->leaf;
	uint64_t at = ((uint64_t)vhd_bat(leaf, block) + leaf->bitmap_sectors) *
		      VHD_SECTOR;
	uint32_t n;
	bool set;
	int rc;

	rc = vhd_read_bitmap(leaf, block, f->bitmap);
	if (rc)
		return vhd_fail(f->leaf->path, rc, "bitmap", err);
	if (vhd_bitmap_full(f->bitmap, leaf->spb))
		return 0;
	rc = read_block(f, block, err);
	for (uint32_t i = 0; i < leaf->spb && !rc; i += n) {
		n = vhd_bitmap_run(f->bitmap, i, leaf->spb, &set);
		if (set)
			continue;
		rc = vhd_write_at(leaf->fd, f->data + (size_t)i * VHD_SECTOR,
				  (size_t)n * VHD_SECTOR,
				  at + (uint64_t)i * VHD_SECTOR);
		if (rc)
			vhd_fail(f->leaf->path, rc, "writing a block", err);
	}
	if (rc)
		return rc;
	f->block[f->nr] = block;
	f->place[f->nr++] = VHD_BAT_UNUSED;
	return 0;
}

static int settle(struct fill *f, struct error *err)
{
	struct vhd_image *leaf = f->leaf;
	int rc = 0;

	if (f->nr && fdatasync(leaf->fd)) {
		f->lost = true;
		return vhd_fail(f->leaf->path, -errno, "sync", err);
	}
	for (uint32_t i = 0; i < f->nr && !rc; i++) {
		uint32_t block = f->block[i];

		if (f->place[i] == VHD_BAT_UNUSED) {
			rc = vhd_write_at(leaf->fd, f->full,
					  (size_t)leaf->bitmap_sectors *
					  VHD_SECTOR,
					  (uint64_t)vhd_bat(leaf, block) *
					  VHD_SECTOR);
			if (rc)
				vhd_fail(f->leaf->path, rc, "writing a bitmap", err);
		} else {
			vhd_bat_set(leaf, block, f->place[i]);
			rc = vhd_bat_write(leaf, block, 1, err);
		}
		if (!rc && leaf->has_batmap)
			leaf->batmap[block / 8] |= (uint8_t)(0x80u >> block % 8);
	}
	f->nr = 0;
	return rc;
}

static int fill_all(struct fill *f, struct error *err)
{
	struct vhd_image *leaf = f->leaf;
	uint64_t len = (uint64_t)leaf->bitmap_sectors * VHD_SECTOR +
		       leaf->header.block_size + VHD_ALIGN;
	uint64_t end = leaf->data_end;
	int rc;

	for (uint32_t i = 0; i < leaf->bat_entries; i++)
		if (vhd_bat(leaf, i) == VHD_BAT_UNUSED)
			end += len;
	/* What is too much is cut off at the end. */
	rc = vhd_extend(leaf, end, err);
	for (uint32_t i = 0; i < leaf->bat_entries && !rc; i++) {
		job_tell(f->watch, i, leaf->bat_entries);
		rc = vhd_stopped(leaf->path, f->watch, err);
		if (rc)
			break;
		rc = vhd_bat(leaf, i) == VHD_BAT_UNUSED ? add_new(f, i, err) :
							   add_old(f, i, err);
		if (!rc && f->nr == f->max)
			rc = settle(f, err);
	}
	if (!rc)
		rc = settle(f, err);
	return rc;
}

int vhd_fill(const char *path, const struct config *cfg,
	     const struct job_watch *watch, struct error *err)
{
	struct fill f = { .watch = watch };
	size_t bitmap;
	int rc;

	rc = vhd_chain_open(&f.chain, path, cfg, VHD_OPEN_WRITE, err);
	if (rc)
		return rc;
	f.leaf = f.chain->image[0];
	if (f.leaf->footer.type == VHD_FIXED)
		goto out;	/* all of it is there */
	bitmap = (size_t)f.leaf->bitmap_sectors * VHD_SECTOR;
	f.max = BATCH_BYTES / f.leaf->header.block_size + 1;
	f.data = malloc(f.leaf->header.block_size);
	f.bitmap = malloc(bitmap);
	f.full = calloc(1, bitmap);
	f.block = malloc(4ull * f.max);
	f.place = malloc(4ull * f.max);
	if (!f.data || !f.bitmap || !f.full || !f.block || !f.place) {
		rc = vhd_fail(f.leaf->path, -ENOMEM, "block", err);
		goto out;
	}
	vhd_bitmap_set(f.full, 0, f.leaf->spb);
	rc = fill_all(&f, err);
	/* A bit that is not set has the block's bitmap asked. */
	if (f.lost && f.leaf->has_batmap)
		memset(f.leaf->batmap, 0,
		       (size_t)f.leaf->batmap_sectors * VHD_SECTOR);
	if (!rc)
		rc = vhd_write_trailer(f.leaf, err);
	else if (!vhd_find_data_end(f.leaf, NULL))
		vhd_write_trailer(f.leaf, NULL);	/* without what was reserved */
out:
	if (!rc)
		job_tell(watch, 1, 1);
	free(f.data);
	free(f.bitmap);
	free(f.full);
	free(f.block);
	free(f.place);
	vhd_chain_close(f.chain);
	return rc;
}
