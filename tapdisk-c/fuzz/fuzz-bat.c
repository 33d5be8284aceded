/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The input is a BAT in an image of its own:
 *
 *   entries in use u8 | spare ones u8 | block size, log2 above 4096, u8 |
 *   size of the file u16, of sectors | place of one more extent u16, of sectors |
 *   the BAT
 *
 * What is accepted leads to no byte outside, and none twice.
 */
#include "common/pages.h"
#include "fuzz/fuzz.h"
#include "fuzz/memory-files.h"
#include "vhd/vhd-internal.h"

#define PREFIX		7u
#define TABLE		1536u

/* Free space is free, whoever asks. */
static void find_room(const struct vhd_image *image,
		      const struct vhd_extent *extent, unsigned int nr,
		      uint64_t bytes)
{
	uint64_t best = image->data_end, at;

	at = vhd_find_gap(extent, nr, bytes, image, best);
	fuzz_assert(at <= best);
	if (at < best) {
		fuzz_assert(vhd_clear_of_blocks(image, at, at + bytes));
		for (unsigned int i = 0; i < nr; i++)
			fuzz_assert(at >= extent[i].end ||
				    at + bytes <= extent[i].start);
	}
	at = vhd_alloc_offset(image, image->data_end);
	fuzz_assert(at >= image->data_end && at % VHD_SECTOR == 0 &&
		    (at + image->bitmap_sectors * VHD_SECTOR) % VHD_ALIGN == 0);
}

/* Written back, it is what it was, but for entries that were spare. */
static void write_back(struct vhd_image *image, struct vhd_image *again,
		       const struct vhd_extent *extent, unsigned int nr,
		       uint64_t limit)
{
	uint32_t n = image->bat_entries;
	struct error err;

	fuzz_assert(!vhd_bat_write(image, 0, n, &err));
	again->fd = image->fd;
	fuzz_assert(!vhd_bat_load(again, extent, nr, limit, &err));
	for (uint32_t i = 0; i < n; i++)
		fuzz_assert(vhd_bat(again, i) == vhd_bat(image, i));
	pages_free(again->bat_not, (size_t)4 * n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char name[] = "image";
	struct vhd_image image = { .path = name }, again;
	struct vhd_extent extent[3];
	uint64_t limit, at;
	struct error err;

	if (size < PREFIX)
		return 0;
	image.bat_entries = data[0] + 1u;
	image.header.max_bat_size = image.bat_entries + data[1];
	image.header.table_offset = TABLE;
	image.header.block_size = VHD_MIN_BLOCK << data[2] % 10;
	image.spb = image.header.block_size / VHD_SECTOR;
	image.bitmap_sectors = (image.spb / 8 + VHD_SECTOR - 1) / VHD_SECTOR;
	image.footer.current_size = (uint64_t)image.bat_entries *
				    image.header.block_size;
	image.footer.type = VHD_DYNAMIC;
	limit = TABLE + round_up_u64(4ull * image.header.max_bat_size,
				     VHD_SECTOR);
	extent[0] = (struct vhd_extent){ 0, TABLE, "header" };
	extent[1] = (struct vhd_extent){ TABLE,
		TABLE + 4ull * image.header.max_bat_size, "BAT" };
	image.data_end = limit;
	limit += (uint64_t)get_be16(data + 3) * VHD_SECTOR;
	at = get_be16(data + 5) * (uint64_t)VHD_SECTOR;
	extent[2] = (struct vhd_extent){ at, at + 100, "batmap" };
	image.file_size = limit;

	memory_reset();
	size -= PREFIX;
	if (size > limit - TABLE)
		size = (size_t)(limit - TABLE);
	memory_file_set(0, NULL, 0, limit);
	memory_file_put(0, data + PREFIX, size, TABLE);
	again = image;
	image.fd = memory_open(0);
	if (!vhd_bat_load(&image, extent, 3, limit, &err)) {
		fuzz_check_image(&image);
		find_room(&image, extent, 3, 512 * (1 + at % 7));
		write_back(&image, &again, extent, 3, limit);
	}
	pages_free(image.bat_not, (size_t)4 * image.bat_entries);
	return 0;
}
