/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The input is a batmap in an image of its own:
 *
 *   blocks u16 | flags u8 | the BAT's entries, a bit each | header and map
 *
 * By flag 1 the map's checksum is made right. What is accepted comes back as it
 * went, without the bits of blocks that are not there.
 */
#include <stdlib.h>
#include <string.h>

#include "common/pages.h"
#include "fuzz/fuzz.h"
#include "fuzz/memory-files.h"
#include "vhd/vhd-internal.h"

#define PREFIX		3u
#define TABLE		1536u
#define MAX_BLOCKS	16384u
#define MAP_OFFSET	8u
#define VERSION		20u
#define CHECKSUM	24u
#define RIGHT		1u

static void make_right(uint8_t *head, size_t size, uint64_t at, uint32_t covered)
{
	uint64_t map = get_be64(head + MAP_OFFSET);

	if (map < at || map - at > size || size - (map - at) < covered)
		return;
	put_be32(head + CHECKSUM, vhd_batmap_checksum(head + (map - at), covered,
						      get_be32(head + VERSION)));
}

static void use(struct vhd_image *image, uint64_t limit)
{
	uint64_t offset = image->batmap_offset;
	uint32_t sectors = image->batmap_sectors;
	uint8_t marker = image->batmap_marker;
	size_t bytes = (image->bat_entries + 7) / 8;
	uint8_t *old = malloc(bytes);
	struct error err;

	fuzz_assert(old && offset >= VHD_SECTOR);
	fuzz_assert(offset + (uint64_t)sectors * VHD_SECTOR <= limit);
	fuzz_assert(vhd_batmap_covered(image) <= sectors * VHD_SECTOR);
	vhd_batmap_trim(image);
	memcpy(old, image->batmap, bytes);
	for (uint32_t i = 0; i < image->bat_entries; i++)
		fuzz_assert(vhd_bat(image, i) != VHD_BAT_UNUSED ||
			    !(old[i / 8] & 0x80u >> i % 8));
	/* Where the map lies over its own header, vhd_open() refuses the image. */
	if (offset < vhd_batmap_header_offset(&image->header) + VHD_SECTOR &&
	    offset + vhd_batmap_covered(image) >
	    vhd_batmap_header_offset(&image->header))
		goto out;
	fuzz_assert(!vhd_batmap_store(image, &err));
	free(image->batmap);
	image->batmap = NULL;
	fuzz_assert(!vhd_batmap_load(image, limit, &err));
	fuzz_assert(image->has_batmap && image->batmap_ok &&
		    image->batmap_offset == offset &&
		    image->batmap_sectors == sectors &&
		    image->batmap_marker == marker);
	fuzz_assert(!memcmp(old, image->batmap, bytes));
out:
	free(old);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char name[] = "image";
	struct vhd_image image = { .path = name };
	size_t bits, len;
	uint64_t at, limit;
	struct error err;
	uint8_t *head, flags;

	if (size < PREFIX)
		return 0;
	image.bat_entries = get_be16(data) % MAX_BLOCKS + 1;
	flags = data[2];
	bits = (image.bat_entries + 7) / 8;
	data += PREFIX;
	size -= PREFIX;
	if (size < bits + VHD_SECTOR)
		return 0;
	image.bat_not = calloc(image.bat_entries, 4);
	len = size - bits;
	head = malloc(len);
	fuzz_assert(image.bat_not && head);
	for (uint32_t i = 0; i < image.bat_entries; i++)
		if (data[i / 8] & 0x80u >> i % 8)
			vhd_bat_set(&image, i, 1000 + i);
	memcpy(head, data + bits, len);

	memcpy(image.footer.creator, "tap", 4);
	image.footer.creator_version = VHD_TAP_VERSION(1, 3);
	image.footer.type = VHD_DYNAMIC;
	image.header.block_size = VHD_DEFAULT_BLOCK;
	image.header.max_bat_size = image.bat_entries;
	image.header.table_offset = TABLE;
	image.footer.current_size = (uint64_t)image.bat_entries *
				    image.header.block_size;
	at = vhd_batmap_header_offset(&image.header);
	if (flags & RIGHT)
		make_right(head, len, at, vhd_batmap_covered(&image));
	memory_reset();
	limit = round_up_u64(at + len, VHD_SECTOR);
	memory_file_set(0, NULL, 0, limit);
	memory_file_put(0, head, len, at);
	image.fd = memory_open(0);
	if (!vhd_batmap_load(&image, limit, &err) && image.has_batmap)
		use(&image, limit);
	free(image.batmap);
	free(image.bat_not);
	free(head);
	return 0;
}
