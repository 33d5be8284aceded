// SPDX-License-Identifier: LGPL-2.1-only
/*
 * Larger tables. They must lie before all blocks, as XenServer's vhd-util wants
 * it, so blocks that are in the way move to the end first:
 *
 *   footer behind the new end ─► copies of the blocks ─► BAT entries
 *     ─► new tables, where nothing is now ─► the header's first sector
 *
 * with a sync at each arrow. The header's sector is the switch; before it the
 * old tables count, after it the new ones.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vhd/resize.h"

#define CHUNK_BYTES (1u << 20)

struct tables {
	struct vhd_image *image;
	const struct job_watch *watch;
	uint32_t capacity;		/* of the new BAT, entries */
	uint32_t map_sectors;		/* 0: no batmap */
	uint64_t start, bytes;		/* in the file */
	uint8_t *raw;			/* the bytes */
	uint8_t *map;			/* the batmap */
	uint32_t *block, *to;		/* which are in the way, and their new sectors */
	uint32_t nr;
	uint64_t data_end;		/* with all that */
};

static int sync_image(const struct vhd_image *image, struct error *err)
{
	return fdatasync(image->fd) ? vhd_fail(image->path, -errno, "sync", err) : 0;
}

int vhd_batmap_extend(struct vhd_image *image, uint32_t covered,
		      struct error *err)
{
	size_t have = (size_t)round_up_u64((image->bat_entries + 7ull) / 8,
					   VHD_SECTOR);
	uint8_t *map;

	if (have < (size_t)image->batmap_sectors * VHD_SECTOR)
		have = (size_t)image->batmap_sectors * VHD_SECTOR;
	if (have >= covered)
		return 0;
	map = calloc(1, covered);
	if (!map)
		return vhd_fail(image->path, -ENOMEM, "batmap", err);
	memcpy(map, image->batmap, have);
	free(image->batmap);
	image->batmap = map;
	return 0;
}

static bool overlap(uint64_t a, uint64_t a_end, uint64_t b, uint64_t b_end)
{
	return a < b_end && b < a_end;
}

/* The lowest place clear of all metadata, be there blocks or not. */
static int find_place(struct tables *t, struct error *err)
{
	struct vhd_extent extent[VHD_MAX_EXTENTS + VHD_NR_LOCATORS];
	const struct vhd_image *image = t->image;
	uint64_t end;
	unsigned int n;
	int rc;

	rc = vhd_collect_extents(image, extent, &n, &end, INT64_MAX, err);
	if (rc)
		return rc;
	for (unsigned int i = 0; i < VHD_NR_LOCATORS; i++) {
		const struct vhd_locator *l = &image->header.locator[i];

		if (image->footer.type == VHD_DIFF && l->code && l->data_len)
			extent[n++] = (struct vhd_extent){ l->data_offset,
				l->data_offset + vhd_locator_space(l), "" };
	}
	t->start = vhd_find_gap(extent, n, t->bytes, NULL, UINT64_MAX);
	return 0;
}

static int place_blocks(struct tables *t, struct error *err)
{
	struct vhd_image *image = t->image;
	uint64_t len = vhd_block_bytes(image);
	uint64_t end = image->data_end, at;

	if (end < t->start + t->bytes)
		end = t->start + t->bytes;
	t->block = malloc(4ull * image->bat_entries);
	t->to = malloc(4ull * image->bat_entries);
	if (!t->block || !t->to)
		return vhd_fail(image->path, -ENOMEM, "BAT", err);
	for (uint32_t i = 0; i < image->bat_entries; i++) {
		if (vhd_bat(image, i) == VHD_BAT_UNUSED)
			continue;
		at = (uint64_t)vhd_bat(image, i) * VHD_SECTOR;
		if (!overlap(at, at + len, t->start, t->start + t->bytes))
			continue;
		at = vhd_alloc_offset(image, end);
		if (at == UINT64_MAX)
			return error_set(err, -ENOSPC,
					 "%s: no room for a block that must make way for the larger BAT; extend the device by %llu bytes or more first",
					 image->path, (unsigned long long)len);
		t->block[t->nr] = i;
		t->to[t->nr++] = (uint32_t)(at / VHD_SECTOR);
		end = at + len;
	}
	if (image->is_blk && end > image->file_size - VHD_FOOTER_BYTES)
		return error_set(err, -ENOSPC,
				 "%s: no room for the larger BAT; extend the device by %llu bytes or more first",
				 image->path,
				 (unsigned long long)(end + VHD_FOOTER_BYTES -
						      image->file_size));
	t->data_end = end;
	return 0;
}

/* The bytes of BAT, batmap header and batmap. */
static int encode(struct tables *t, struct error *err)
{
	struct vhd_image *image = t->image;
	uint64_t bat = round_up_u64(4ull * t->capacity, VHD_SECTOR);
	uint64_t map = t->start + bat + VHD_SECTOR;
	size_t map_bytes = (size_t)t->map_sectors * VHD_SECTOR;
	size_t used = (size_t)((image->bat_entries + 7ull) / 8);
	uint8_t *head = NULL;
	int rc;

	t->raw = malloc((size_t)t->bytes);
	if (!t->raw)
		return vhd_fail(image->path, -ENOMEM, "BAT", err);
	memset(t->raw, 0xff, (size_t)bat);
	for (uint32_t i = 0; i < image->bat_entries; i++)
		put_be32(t->raw + 4ull * i, vhd_bat(image, i));
	if (!t->map_sectors)
		return 0;
	head = t->raw + bat;
	t->map = calloc(1, map_bytes);
	if (!t->map)
		return vhd_fail(image->path, -ENOMEM, "batmap", err);
	if (image->has_batmap) {
		memcpy(t->map, image->batmap, used);
		rc = vhd_read_at(image->fd, head, VHD_SECTOR,
				 vhd_batmap_header_offset(&image->header));
		if (rc)
			return vhd_fail(image->path, rc, "batmap header", err);
	} else {
		vhd_batmap_header_init(head, map, t->map_sectors);
	}
	/* Zeros add nothing to the sum: it holds for the old size and the new one. */
	vhd_batmap_header_move(head, map, t->map_sectors, t->map,
			       (uint32_t)map_bytes);
	memcpy(head + VHD_SECTOR, t->map, map_bytes);
	return 0;
}

static int copy_block(const struct vhd_image *image, uint32_t from, uint32_t to,
		      uint8_t *buf)
{
	uint64_t left = vhd_block_bytes(image);
	uint64_t in = (uint64_t)from * VHD_SECTOR;
	uint64_t out = (uint64_t)to * VHD_SECTOR;

	while (left) {
		size_t n = left < CHUNK_BYTES ? (size_t)left : CHUNK_BYTES;
		int rc = vhd_read_at(image->fd, buf, n, in);

		if (!rc)
			rc = vhd_write_at(image->fd, buf, n, out);
		if (rc)
			return rc;
		in += n;
		out += n;
		left -= n;
	}
	return 0;
}

static int move_blocks(struct tables *t, struct error *err)
{
	struct vhd_image *image = t->image;
	uint8_t *buf;
	int rc = 0;

	if (!t->nr)
		return 0;
	buf = malloc(CHUNK_BYTES);
	if (!buf)
		return vhd_fail(image->path, -ENOMEM, "block", err);
	for (uint32_t i = 0; i < t->nr && !rc; i++) {
		job_tell(t->watch, i, t->nr);
		rc = vhd_stopped(image->path, t->watch, err);
		if (rc)
			break;
		rc = copy_block(image, vhd_bat(image, t->block[i]), t->to[i],
				buf);
		if (rc)
			vhd_fail(image->path, rc, "moving a block", err);
	}
	free(buf);
	if (rc)
		return rc;
	rc = sync_image(image, err);
	if (!rc)
		image->data_end = t->data_end;
	for (uint32_t i = 0; i < t->nr && !rc; i++) {
		vhd_bat_set(image, t->block[i], t->to[i]);
		rc = vhd_bat_write(image, t->block[i], 1, err);
	}
	return rc ? rc : sync_image(image, err);
}

static int write_tables(struct tables *t, struct error *err)
{
	struct vhd_image *image = t->image;
	uint8_t raw[VHD_HEADER_BYTES];
	int rc;

	rc = vhd_write_at(image->fd, t->raw, (size_t)t->bytes, t->start);
	if (rc)
		return vhd_fail(image->path, rc, "writing the BAT", err);
	rc = sync_image(image, err);
	if (rc)
		return rc;
	rc = vhd_read_at(image->fd, raw, sizeof(raw),
			 image->footer.data_offset);
	if (rc)
		return vhd_fail(image->path, rc, "header", err);
	vhd_header_set_table(raw, t->start, t->capacity);
	image->data_end = t->data_end;
	rc = vhd_write_at(image->fd, raw, VHD_SECTOR,
			  image->footer.data_offset);
	if (rc)
		return vhd_fail(image->path, rc, "writing the header", err);
	return sync_image(image, err);
}

/* In memory as on the medium now. */
static void adopt(struct tables *t)
{
	struct vhd_image *image = t->image;

	image->header.table_offset = t->start;
	image->header.max_bat_size = t->capacity;
	if (!t->map_sectors)
		return;
	free(image->batmap);
	image->batmap = t->map;
	t->map = NULL;
	image->has_batmap = true;
	image->batmap_sectors = t->map_sectors;
	image->batmap_offset = vhd_batmap_header_offset(&image->header) +
			       VHD_SECTOR;
}

int vhd_grow_tables(struct vhd_image *image, uint32_t entries,
		    const struct job_watch *watch, struct error *err)
{
	struct tables t = { .image = image, .watch = watch };
	bool begun = false;
	int rc;

	/* The rest of the last sector is there anyway. */
	t.capacity = (uint32_t)round_up_u64(entries, VHD_SECTOR / 4);
	if (t.capacity > VHD_MAX_BAT)
		t.capacity = VHD_MAX_BAT;
	t.bytes = round_up_u64(4ull * t.capacity, VHD_SECTOR);
	if (vhd_may_have_batmap(image)) {
		t.map_sectors = (t.capacity / 8 + VHD_SECTOR - 1) /
				VHD_SECTOR;
		t.bytes += (1ull + t.map_sectors) * VHD_SECTOR;
	}
	rc = find_place(&t, err);
	if (rc)
		goto out;
	rc = place_blocks(&t, err);
	if (rc)
		goto out;
	begun = true;
	rc = vhd_extend(image, t.data_end, err);
	if (rc)
		goto out;
	rc = move_blocks(&t, err);
	if (rc)
		goto out;
	rc = encode(&t, err);
	if (rc)
		goto out;
	rc = write_tables(&t, err);
	if (rc)
		goto out;
	adopt(&t);
out:
	/* As it was, but for blocks that moved: no space, most likely. */
	if (rc && begun)
		vhd_write_trailer(image, NULL);
	free(t.raw);
	free(t.map);
	free(t.block);
	free(t.to);
	return rc;
}
