/* SPDX-License-Identifier: LGPL-2.1-only */
/* What lies in a file in one piece, as far as memory knows. */
#include "drivers/vhd-disk.h"

/* From the block's part of a run to the file it is in. */
static void fill(const struct vhd_disk *disk, unsigned int code,
		 struct image_run *run)
{
	uint32_t count = (uint32_t)run->count;
	uint64_t at = run->sector;

	if (code == CODE_RAW) {
		run->fd = disk->chain->raw_fd;
		run->offset = at << SECTOR_SHIFT;
		return;
	}
	run->fd = disk->map.level[code - CODE_LEAF].fd;
	run->offset = vhd_map_place(disk, code - CODE_LEAF, at, &count);
	run->count = count;
}

/* The leaf has all of the block, and a write there needs no metadata. */
static bool settled(const struct vhd_disk *disk, uint32_t block)
{
	return !disk->image.readonly && !vhd_unpublished(disk, block) &&
	       vhd_bat(disk->leaf, block) != VHD_BAT_UNUSED &&
	       vhd_bit(disk->whole, block);
}

/*
 * Of a block that the leaf has in part, what is around the sector, if a write there needs
 * no metadata. Where new sectors come in turn with those that were written before, each
 * would take back what the other has given: not before a write has met none that is new.
 */
static bool settled_part(const struct vhd_disk *disk, uint32_t block,
			 uint32_t at, uint32_t *first, uint32_t *count)
{
	uint32_t start = at, left;
	const uint8_t *map;
	bool set;

	if (disk->image.readonly)
		return false;
	map = vhd_cache_settled(disk, block);
	if (!map)
		return false;
	left = vhd_bitmap_run(map, at, vhd_map_sectors(disk, block), &set);
	if (!set)
		return false;
	while (start && vhd_bit(map, start - 1))
		start--;
	*first = start;
	*count = at - start + left;
	return true;
}

/* A parent's blocks may be smaller: what is left of the run from the piece that has the sector. */
static void narrow(const struct vhd_disk *disk, unsigned int code,
		   uint64_t sector, struct image_run *run)
{
	uint64_t end = run->sector + run->count, piece;
	const struct vhd_level *level;

	if (code == CODE_RAW)
		return;
	level = &disk->map.level[code - CODE_LEAF];
	if (level->fixed)
		return;
	piece = sector >> level->shift << level->shift;
	if (piece > run->sector)
		run->sector = piece;
	run->count = end - run->sector;
}

bool vhd_run(struct image *image, uint64_t sector, struct image_run *run)
{
	struct vhd_disk *disk = vhd_disk_of(image);
	uint32_t count, block, first;
	unsigned int code;

	if (disk->buffered)
		return false;
	if (!disk->map.nr) {
		*run = (struct image_run) {
			.count = image->info.sectors,
			.fd = disk->leaf->fd,
			.write = !image->readonly,
		};
		return true;
	}
	block = (uint32_t)(sector >> disk->map.shift);
	run->write = settled(disk, block);
	code = vhd_map_peek(disk, sector, &run->sector, &count);
	/* Only reads make the map. */
	if (run->write)
		code = CODE_LEAF;
	else if (settled_part(disk, block, (uint32_t)sector & (disk->leaf->spb - 1),
			      &first, &count)) {
		run->write = true;
		run->sector = ((uint64_t)block << disk->map.shift) + first;
		code = CODE_LEAF;
	}
	if (code != CODE_RAW && (code < CODE_LEAF || code >= CODE_ZEROS))
		return false;
	run->count = count;
	narrow(disk, code, sector, run);
	fill(disk, code, run);
	return true;
}
