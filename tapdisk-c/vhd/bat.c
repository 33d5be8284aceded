// SPDX-License-Identifier: LGPL-2.1-only
/* The block allocation table: reading it, and checking where its blocks lie. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/pages.h"
#include "vhd/vhd-internal.h"

#define CHUNK_ENTRIES (16u << 10)	/* 64 KiB */

void vhd_bat_encode(uint8_t *out, const uint32_t *bat, uint32_t n)
{
	for (size_t i = 0; i < n; i++)
		put_be32(out + 4 * i, bat[i]);
}

void vhd_bat_decode(uint32_t *bat, const uint8_t *in, uint32_t n)
{
	for (size_t i = 0; i < n; i++)
		bat[i] = get_be32(in + 4 * i);
}

uint64_t vhd_alloc_offset(const struct vhd_image *image, uint64_t data_end)
{
	uint64_t bitmap = (uint64_t)image->bitmap_sectors * VHD_SECTOR;
	uint64_t offset, end;

	if (data_end > (uint64_t)VHD_BAT_UNUSED * VHD_SECTOR)
		return UINT64_MAX;
	offset = round_up_u64(data_end + bitmap, VHD_ALIGN) - bitmap;
	end = offset + bitmap + image->header.block_size;
	if (offset / VHD_SECTOR >= VHD_BAT_UNUSED)
		return UINT64_MAX;
	if (image->is_blk && end > image->file_size - VHD_SECTOR)
		return UINT64_MAX;
	return offset;
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

/* The first block whose entry is sector, for a message; other than not. */
static uint32_t block_of(const struct vhd_image *image, uint32_t sector,
			 uint32_t not)
{
	for (uint32_t i = 0; i < image->bat_entries; i++)
		if (vhd_bat(image, i) == sector && i != not)
			return i;
	return VHD_BAT_UNUSED;
}

static int check_extent(const struct vhd_image *image, const uint32_t *sorted,
			uint32_t used, uint64_t sectors,
			const struct vhd_extent *extent, struct error *err)
{
	uint32_t low = 0, high = used;
	uint64_t start;

	/* The first block that ends after the extent's start. */
	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if ((sorted[mid] + sectors) * VHD_SECTOR <= extent->start)
			low = mid + 1;
		else
			high = mid;
	}
	if (low == used)
		return 0;
	start = (uint64_t)sorted[low] * VHD_SECTOR;
	if (start >= extent->end)
		return 0;
	return error_set(err, -EUCLEAN,
			 "%s: BAT: entry %u points to sector %u, inside the %s",
			 image->path,
			 block_of(image, sorted[low], VHD_BAT_UNUSED),
			 sorted[low], extent->what);
}

/*
 * A block that ends behind the file: one that XenServer had placed, but not written
 * all of, when it was killed. Whole if no sector that it holds is missing.
 */
static int check_cut_block(struct vhd_image *image, uint32_t block,
			   uint64_t limit, struct error *err)
{
	uint64_t bytes = (uint64_t)image->bitmap_sectors * VHD_SECTOR;
	uint64_t data = (uint64_t)vhd_bat(image, block) * VHD_SECTOR + bytes;
	uint32_t there;
	uint8_t *bitmap;
	bool set;
	int rc;

	if (image->is_blk || image->tail_ok || data > limit ||
	    image->cut_block)
		goto bad;
	bitmap = malloc((size_t)bytes);
	if (!bitmap)
		return error_set(err, -ENOMEM, "%s: out of memory",
				 image->path);
	rc = vhd_read_bitmap(image, block, bitmap);
	if (rc) {
		free(bitmap);
		return error_set(err, rc, "%s: bitmap of block %u: reading: %s",
				 image->path, block, strerror(-rc));
	}
	there = (uint32_t)((limit - data) / VHD_SECTOR);
	set = vhd_bitmap_any(bitmap, there, image->spb);
	free(bitmap);
	if (set)
		goto bad;
	image->cut_block = block + 1;
	return 0;
bad:
	return error_set(err, -EUCLEAN,
			 "%s: BAT: entry %u points to sector %u; the block would end after the file's data (%llu bytes)",
			 image->path, block, vhd_bat(image, block),
			 (unsigned long long)limit);
}

/* Blocks must lie in the file, off the metadata and off one another. */
static int check_blocks(struct vhd_image *image,
			const struct vhd_extent *extent,
			unsigned int nr_extents, uint64_t limit,
			struct error *err)
{
	uint64_t sectors = (uint64_t)image->spb + image->bitmap_sectors;
	uint32_t used = 0, last = 0, *sorted = NULL;
	bool in_order = true;
	int rc = 0;

	for (uint32_t i = 0; i < image->bat_entries; i++)
		used += vhd_bat(image, i) != VHD_BAT_UNUSED;
	if (!used)
		return 0;
	sorted = malloc((size_t)used * sizeof(*sorted));
	if (!sorted)
		return error_set(err, -ENOMEM, "%s: BAT: out of memory",
				 image->path);
	used = 0;
	for (uint32_t i = 0; i < image->bat_entries; i++) {
		uint32_t sector = vhd_bat(image, i);

		if (sector == VHD_BAT_UNUSED)
			continue;
		if ((sector + sectors) * VHD_SECTOR > limit) {
			rc = check_cut_block(image, i, limit, err);
			if (rc)
				goto out;
		}
		in_order = in_order && sector >= last;
		last = sector;
		sorted[used++] = sector;
	}
	if (!in_order)
		qsort(sorted, used, sizeof(*sorted), compare);
	for (unsigned int i = 0; i < nr_extents; i++) {
		rc = check_extent(image, sorted, used, sectors, &extent[i],
				  err);
		if (rc)
			goto out;
	}
	for (uint32_t i = 1; i < used; i++) {
		if (sorted[i] - sorted[i - 1] < sectors) {
			uint32_t a = block_of(image, sorted[i - 1],
					      VHD_BAT_UNUSED);

			rc = error_set(err, -EUCLEAN,
				       "%s: BAT: entries %u (sector %u) and %u (sector %u): the blocks overlap",
				       image->path, a, sorted[i - 1],
				       block_of(image, sorted[i], a),
				       sorted[i]);
			goto out;
		}
	}
	image->data_end = round_up_u64(image->data_end, VHD_SECTOR);
	if (image->data_end < (sorted[used - 1] + sectors) * VHD_SECTOR)
		image->data_end = (sorted[used - 1] + sectors) * VHD_SECTOR;
out:
	free(sorted);
	return rc;
}

/* Entries for a size beyond the current one: what they point to stays untouched. */
static void note_spare(struct vhd_image *image, const uint32_t *bat, uint32_t n,
		       uint64_t limit)
{
	uint64_t sectors = (uint64_t)image->spb + image->bitmap_sectors, end;

	for (uint32_t i = 0; i < n; i++) {
		end = (bat[i] + sectors) * VHD_SECTOR;
		if (bat[i] != VHD_BAT_UNUSED && end <= limit &&
		    end > image->data_end)
			image->data_end = end;
	}
}

/* Leaves alone the memory of what is unused. */
static void take_used(struct vhd_image *image, uint32_t from,
		      const uint32_t *bat, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (bat[i] != VHD_BAT_UNUSED)
			vhd_bat_set(image, from + i, bat[i]);
}

int vhd_bat_load(struct vhd_image *image, const struct vhd_extent *extent,
		 unsigned int nr_extents, uint64_t limit, struct error *err)
{
	uint32_t max = image->header.max_bat_size, *bat = NULL;
	uint8_t *raw = NULL;
	int rc = 0;

	raw = malloc((size_t)4 * CHUNK_ENTRIES);
	bat = malloc((size_t)4 * CHUNK_ENTRIES);
	image->bat_not = pages_alloc((size_t)4 * image->bat_entries);
	if (!raw || !bat || !image->bat_not) {
		rc = error_set(err, -ENOMEM, "%s: BAT: out of memory",
			       image->path);
		goto out;
	}
	for (uint32_t i = 0, n; i < max; i += n) {
		uint32_t left = i < image->bat_entries ?
				image->bat_entries - i : max - i;

		n = left < CHUNK_ENTRIES ? left : CHUNK_ENTRIES;
		rc = vhd_read_at(image->fd, raw, (size_t)4 * n,
				 image->header.table_offset + 4ull * i);
		if (rc) {
			error_set(err, rc, "%s: BAT: reading: %s", image->path,
				  strerror(-rc));
			goto out;
		}
		vhd_bat_decode(bat, raw, n);
		if (i < image->bat_entries)
			take_used(image, i, bat, n);
		else
			note_spare(image, bat, n, limit);
	}
	rc = check_blocks(image, extent, nr_extents, limit, err);
out:
	free(raw);
	free(bat);
	return rc;
}

int vhd_bat_write(struct vhd_image *image, uint32_t first, uint32_t count,
		  struct error *err)
{
	const uint32_t per = VHD_SECTOR / 4;
	uint8_t raw[VHD_SECTOR], old[VHD_SECTOR];
	int rc;

	for (uint32_t end = first + count; first < end;) {
		uint32_t start = first - first % per;
		uint64_t at = image->header.table_offset + 4ull * start;

		rc = vhd_read_at(image->fd, old, sizeof(old), at);
		if (rc)
			goto fail;
		memcpy(raw, old, sizeof(raw));
		for (; first < end && first < start + per; first++)
			put_be32(raw + 4 * (first - start),
				 first < image->bat_entries ?
				 vhd_bat(image, first) : VHD_BAT_UNUSED);
		if (!memcmp(raw, old, sizeof(raw)))
			continue;
		rc = vhd_write_at(image->fd, raw, sizeof(raw), at);
		if (rc)
			goto fail;
	}
	return 0;
fail:
	return error_set(err, rc, "%s: BAT: writing: %s", image->path,
			 strerror(-rc));
}
