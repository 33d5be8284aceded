// SPDX-License-Identifier: LGPL-2.1-only
/*
 * XenServer's batmap: a header sector right after the BAT, then one bit a
 * block that says that all its sectors are present. A hint only: it is
 * written at close, so a crash leaves an older map, which has fewer bits; and
 * at an open for writing that found some which are not true.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vhd/vhd-internal.h"

enum {
	OFF_MAP_OFFSET = 8, OFF_MAP_SECTORS = 16, OFF_VERSION = 20,
	OFF_CHECKSUM = 24, OFF_MARKER = 28, OFF_KEYHASH = 29,
};

#define BATMAP_1_1 0x00010001u	/* checksum over signed characters */
#define BATMAP_1_2 0x00010002u
#define BATMAP_MAX_SECTORS (2 * VHD_MAX_BAT / 8 / VHD_SECTOR)

uint64_t vhd_batmap_header_offset(const struct vhd_header *header)
{
	return header->table_offset +
	       round_up_u64(4ull * header->max_bat_size, VHD_SECTOR);
}

uint32_t vhd_batmap_covered(const struct vhd_image *image)
{
	uint64_t bytes = image->footer.current_size /
			 image->header.block_size / 8;

	/* Rounded down first, as XenServer does: the last bits may be left out. */
	bytes = round_up_u64(bytes, VHD_SECTOR);
	return bytes ? (uint32_t)bytes : VHD_SECTOR;
}

uint32_t vhd_batmap_checksum(const uint8_t *map, uint32_t len,
			     uint32_t version)
{
	uint32_t sum = 0;

	for (uint32_t i = 0; i < len; i++) {
		int value = version == BATMAP_1_1 ? (int8_t)map[i] : map[i];

		sum += (uint32_t)value;
	}
	return ~sum;
}

void vhd_batmap_header_init(uint8_t out[VHD_SECTOR], uint64_t offset,
			    uint32_t sectors)
{
	uint8_t zeros[VHD_SECTOR] = { 0 };

	memset(out, 0, VHD_SECTOR);
	memcpy(out, "tdbatmap", 8);
	put_be64(out + OFF_MAP_OFFSET, offset);
	put_be32(out + OFF_MAP_SECTORS, sectors);
	put_be32(out + OFF_VERSION, BATMAP_1_2);
	/* The sum of zeros is the same for any length. */
	put_be32(out + OFF_CHECKSUM,
		 vhd_batmap_checksum(zeros, sizeof(zeros), BATMAP_1_2));
}

void vhd_batmap_header_move(uint8_t head[VHD_SECTOR], uint64_t offset,
			    uint32_t sectors, const uint8_t *map,
			    uint32_t covered)
{
	put_be64(head + OFF_MAP_OFFSET, offset);
	put_be32(head + OFF_MAP_SECTORS, sectors);
	put_be32(head + OFF_CHECKSUM,
		 vhd_batmap_checksum(map, covered,
				     get_be32(head + OFF_VERSION)));
}

/* Only XenServer's images have one; of version 1.1 not all. */
bool vhd_may_have_batmap(const struct vhd_image *image)
{
	return vhd_creator_is_tap(&image->footer) &&
	       image->footer.creator_version >= VHD_TAP_VERSION(1, 1);
}

static bool clear_bit(struct vhd_image *image, uint32_t block)
{
	uint8_t bit = (uint8_t)(0x80u >> block % 8);
	bool was = image->batmap[block / 8] & bit;

	image->batmap[block / 8] &= (uint8_t)~bit;
	return was;
}

/* Bits for blocks that aren't there, or that the checksum leaves out, count as clear. */
static bool clear_untrue(struct vhd_image *image, uint32_t covered)
{
	bool any = false;

	for (uint32_t i = 0; i < image->bat_entries; i++)
		if (vhd_bat(image, i) == VHD_BAT_UNUSED || i / 8 >= covered)
			any |= clear_bit(image, i);
	return any;
}

int vhd_batmap_verify(struct vhd_image *image, uint32_t *unknown,
		      struct error *err)
{
	size_t bytes = (size_t)image->bitmap_sectors * VHD_SECTOR;
	uint8_t *bitmap;

	*unknown = 0;
	if (!image->has_batmap)
		return 0;
	bitmap = malloc(bytes);
	if (!bitmap)
		return error_set(err, -ENOMEM, "%s: out of memory", image->path);
	for (uint32_t i = 0; i < image->bat_entries; i++) {
		if (!(image->batmap[i / 8] & 0x80u >> i % 8))
			continue;
		/* Without its bit the block could not be read at all. */
		if (vhd_read_bitmap(image, i, bitmap))
			++*unknown;
		else if (!vhd_bitmap_full(bitmap, image->spb))
			clear_bit(image, i);
	}
	free(bitmap);
	return 0;
}

int vhd_batmap_load(struct vhd_image *image, uint64_t limit, struct error *err)
{
	uint8_t head[VHD_SECTOR];
	uint64_t offset, end, at = vhd_batmap_header_offset(&image->header);
	uint32_t sectors, version, covered = vhd_batmap_covered(image);
	size_t bytes;
	int rc;

	image->has_batmap = false;
	if (!vhd_may_have_batmap(image))
		return 0;
	if (at + VHD_SECTOR > limit)
		return 0;
	rc = vhd_read_at(image->fd, head, sizeof(head), at);
	if (rc)
		return error_set(err, rc, "%s: batmap header: reading: %s",
				 image->path, strerror(-rc));
	/* Absent, or lost under a block that QEMU wrote there. */
	if (memcmp(head, "tdbatmap", 8))
		return 0;
	offset = get_be64(head + OFF_MAP_OFFSET);
	sectors = get_be32(head + OFF_MAP_SECTORS);
	version = get_be32(head + OFF_VERSION);
	if (version > BATMAP_1_2)
		return error_set(err, -ENOTSUP,
				 "%s: batmap header: version is 0x%08x; 1.1 and 1.2 are supported",
				 image->path, version);
	if (head[OFF_KEYHASH] == 1)
		return error_set(err, -ENOTSUP,
				 "%s: batmap header: the image is encrypted (key hash), which is not supported",
				 image->path);
	if (!sectors || sectors > BATMAP_MAX_SECTORS ||
	    (uint64_t)sectors * VHD_SECTOR < covered)
		return error_set(err, -EUCLEAN,
				 "%s: batmap header: batmap size is %u sectors; %u or more are needed",
				 image->path, sectors, covered / VHD_SECTOR);
	if (offset < VHD_SECTOR || offset % VHD_SECTOR ||
	    !add_u64(offset, (uint64_t)sectors * VHD_SECTOR, &end) ||
	    end > limit)
		return error_set(err, -EUCLEAN,
				 "%s: batmap header: batmap offset is %llu (size %u sectors): not inside the file",
				 image->path, (unsigned long long)offset,
				 sectors);
	bytes = (size_t)sectors * VHD_SECTOR;
	if (bytes < (image->bat_entries + 7ull) / 8)
		bytes = (size_t)round_up_u64((image->bat_entries + 7ull) / 8,
					     VHD_SECTOR);
	image->batmap = calloc(1, bytes);
	if (!image->batmap)
		return error_set(err, -ENOMEM, "%s: batmap: out of memory",
				 image->path);
	rc = vhd_read_at(image->fd, image->batmap, covered, offset);
	if (rc)
		return error_set(err, rc, "%s: batmap: reading: %s",
				 image->path, strerror(-rc));
	image->batmap_ok = vhd_batmap_checksum(image->batmap, covered,
					       version) ==
			   get_be32(head + OFF_CHECKSUM);
	if (!image->batmap_ok)
		memset(image->batmap, 0, bytes);
	image->batmap_offset = offset;
	image->batmap_sectors = sectors;
	image->batmap_marker = head[OFF_MARKER];
	image->has_batmap = true;
	return 0;
}

bool vhd_batmap_trim(struct vhd_image *image)
{
	bool any;

	if (!image->has_batmap)
		return false;
	any = clear_untrue(image, vhd_batmap_covered(image));
	/* Its bitmap says that some of it is absent. */
	if (image->cut_block)
		any |= clear_bit(image, image->cut_block - 1);
	return any;
}

int vhd_batmap_store(struct vhd_image *image, struct error *err)
{
	uint64_t at = vhd_batmap_header_offset(&image->header);
	uint32_t covered = vhd_batmap_covered(image);
	uint8_t head[VHD_SECTOR];
	int rc;

	if (!image->has_batmap)
		return 0;
	/* The rest of the header is kept as it is. */
	rc = vhd_read_at(image->fd, head, sizeof(head), at);
	if (rc)
		goto fail;
	head[OFF_MARKER] = image->batmap_marker;
	put_be32(head + OFF_CHECKSUM,
		 vhd_batmap_checksum(image->batmap, covered,
			      get_be32(head + OFF_VERSION)));
	/*
	 * Torn between the two, the checksum is wrong and the map counts as
	 * empty; wrong bits can't pass, since one store only adds bits, or only
	 * takes some away.
	 */
	rc = vhd_write_at(image->fd, image->batmap, covered,
			  image->batmap_offset);
	if (rc)
		goto fail;
	rc = vhd_write_at(image->fd, head, sizeof(head), at);
	if (rc)
		goto fail;
	return 0;
fail:
	return error_set(err, rc, "%s: batmap: writing: %s", image->path,
			 strerror(-rc));
}
