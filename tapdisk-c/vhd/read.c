// SPDX-License-Identifier: LGPL-2.1-only
/* Synchronous reads of bitmaps and of a chain's data. */
#include <errno.h>
#include <string.h>

#include "vhd/vhd-internal.h"

#define BITS (8 * VHD_SECTOR)

int vhd_read_bitmap(const struct vhd_image *image, uint32_t block,
		    uint8_t *bitmap)
{
	return vhd_read_at(image->fd, bitmap,
			   (size_t)image->bitmap_sectors * VHD_SECTOR,
			   (uint64_t)vhd_bat(image, block) * VHD_SECTOR);
}

static uint32_t min_u32(uint64_t a, uint32_t b)
{
	return a < b ? (uint32_t)a : b;
}

int vhd_chain_locate(const struct vhd_chain *chain, uint64_t sector,
		     uint32_t limit, struct vhd_place *place, struct error *err)
{
	uint32_t *count = &place->count;

	*place = (struct vhd_place){ .fd = -1, .level = chain->depth,
				     .count = limit };
	for (unsigned int i = 0; i < chain->nr_vhd; i++) {
		const struct vhd_image *image = chain->image[i];
		uint64_t size = image->footer.current_size / VHD_SECTOR;
		uint8_t bitmap[VHD_SECTOR];
		uint32_t block, first, skip;
		bool set;
		int rc;

		/* A child may be larger than its parent: zeros from there on. */
		if (sector >= size)
			return 0;
		*count = min_u32(size - sector, *count);
		if (image->footer.type == VHD_FIXED) {
			place->fd = image->fd;
			place->level = i;
			place->offset = sector * VHD_SECTOR;
			return 0;
		}
		block = (uint32_t)(sector / image->spb);
		first = (uint32_t)(sector % image->spb);
		*count = min_u32(image->spb - first, *count);
		if (vhd_bat(image, block) == VHD_BAT_UNUSED)
			continue;
		/* A run costs one sector of a bitmap, however large the block is. */
		skip = first % BITS;
		*count = min_u32(BITS - skip, *count);
		rc = vhd_read_at(image->fd, bitmap, sizeof(bitmap),
				 ((uint64_t)vhd_bat(image, block) +
				  first / BITS) * VHD_SECTOR);
		if (!rc)
			*count = vhd_bitmap_run(bitmap, skip, skip + *count,
						&set);
		if (rc)
			return error_set(err, rc, "%s: bitmap of block %u: %s",
					 image->path, block, strerror(-rc));
		if (set) {
			place->fd = image->fd;
			place->level = i;
			place->offset = ((uint64_t)vhd_bat(image, block) +
					 image->bitmap_sectors + first) *
					VHD_SECTOR;
			return 0;
		}
	}
	if (chain->raw_fd >= 0 && sector < chain->raw_sectors) {
		*count = min_u32(chain->raw_sectors - sector, *count);
		place->fd = chain->raw_fd;
		place->level = chain->nr_vhd;
		place->offset = sector * VHD_SECTOR;
	}
	return 0;
}

int vhd_chain_read(const struct vhd_chain *chain, uint64_t sector,
		   uint32_t count, uint8_t *buf, struct error *err)
{
	while (count) {
		struct vhd_place place;
		size_t bytes;
		int rc;

		rc = vhd_chain_locate(chain, sector, count, &place, err);
		if (rc)
			return rc;
		bytes = (size_t)place.count * VHD_SECTOR;
		if (place.fd < 0)
			memset(buf, 0, bytes);
		else
			rc = vhd_read_at(place.fd, buf, bytes, place.offset);
		if (rc)
			return error_set(err, rc, "%s: reading sector %llu: %s",
					 chain->nr_vhd ? chain->image[0]->path :
							 chain->raw_path,
					 (unsigned long long)sector,
					 strerror(-rc));
		buf += bytes;
		sector += place.count;
		count -= place.count;
	}
	return 0;
}
