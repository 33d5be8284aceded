/* SPDX-License-Identifier: LGPL-2.1-only */
/* What an image that is accepted must keep to, and chains as they are read. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuzz/fuzz.h"
#include "vhd/check.h"
#include "vhd/vhd-internal.h"

#define READ_SECTORS	32u
#define MAX_READS	6u

void fuzz_fail(const char *file, int line, const char *cond)
{
	fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, cond);
	abort();
}

const struct config *fuzz_config(void)
{
	static struct config config;
	static bool loaded;

	if (!loaded)
		fuzz_assert(!config_load(&config, "/nonexistent", NULL));
	loaded = true;
	return &config;
}

void fuzz_check_image(const struct vhd_image *image)
{
	uint64_t sectors = (uint64_t)image->spb + image->bitmap_sectors;
	const struct vhd_header *h = &image->header;
	uint64_t tables = h->table_offset + 4ull * h->max_bat_size;

	fuzz_assert(image->footer.current_size % VHD_SECTOR == 0);
	if (image->footer.type == VHD_FIXED) {
		fuzz_assert(image->footer.current_size <= image->file_size);
		return;
	}
	fuzz_assert(image->spb && !(image->spb & (image->spb - 1)) &&
		    image->spb * VHD_SECTOR == h->block_size &&
		    (uint64_t)image->bitmap_sectors * VHD_SECTOR * 8 >= image->spb);
	fuzz_assert(image->bat_entries <= h->max_bat_size &&
		    (uint64_t)image->bat_entries * h->block_size >=
		    image->footer.current_size);
	fuzz_assert(tables <= image->file_size);
	/* A locator without a footer behind it, or a block, may be cut off. */
	fuzz_assert(!image->tail_ok || image->cut_block || image->data_end <= image->file_size);
	for (uint32_t i = 0; i < image->bat_entries; i++) {
		uint64_t at = vhd_bat(image, i);

		if (at == VHD_BAT_UNUSED)
			continue;
		fuzz_assert((at + sectors) * VHD_SECTOR <= image->data_end);
		fuzz_assert(at * VHD_SECTOR >= tables ||
			    (at + sectors) * VHD_SECTOR <= h->table_offset);
		/* Quadratic, so for small tables only. */
		for (uint32_t j = 0; j < i && image->bat_entries < 512; j++) {
			uint64_t other = vhd_bat(image, j);

			fuzz_assert(other == VHD_BAT_UNUSED ||
				    other >= at + sectors ||
				    at >= other + sectors);
		}
	}
	for (uint32_t i = 0; image->has_batmap && i < image->bat_entries; i++)
		fuzz_assert(vhd_bat(image, i) != VHD_BAT_UNUSED ||
			    !(image->batmap[i / 8] & 0x80u >> i % 8));
}

static void get(int fd, void *buf, size_t len, uint64_t offset)
{
	fuzz_assert(pread(fd, buf, len, (off_t)offset) == (ssize_t)len);
}

void fuzz_read_sector(const struct vhd_chain *chain, uint64_t sector,
		      uint8_t *buf)
{
	memset(buf, 0, VHD_SECTOR);
	for (unsigned int i = 0; i < chain->nr_vhd; i++) {
		const struct vhd_image *image = chain->image[i];
		uint64_t block, in_block, at;
		uint8_t entry[4], bits;

		if (sector >= image->footer.current_size / VHD_SECTOR)
			return;
		if (image->footer.type == VHD_FIXED) {
			get(image->fd, buf, VHD_SECTOR, sector * VHD_SECTOR);
			return;
		}
		block = sector * VHD_SECTOR / image->header.block_size;
		in_block = sector - block * (image->header.block_size / VHD_SECTOR);
		get(image->fd, entry, sizeof(entry),
		    image->header.table_offset + 4 * block);
		if (get_be32(entry) == VHD_BAT_UNUSED)
			continue;
		at = (uint64_t)get_be32(entry) * VHD_SECTOR;
		get(image->fd, &bits, 1, at + in_block / 8);
		if (!(bits & 0x80u >> in_block % 8))
			continue;
		at += round_up_u64((image->header.block_size / VHD_SECTOR + 7) / 8,
				   VHD_SECTOR);
		get(image->fd, buf, VHD_SECTOR, at + in_block * VHD_SECTOR);
		return;
	}
	if (chain->raw_fd >= 0 && sector < chain->raw_sectors)
		get(chain->raw_fd, buf, VHD_SECTOR, sector * VHD_SECTOR);
}

static void read_some(const struct vhd_chain *chain, uint64_t sector)
{
	uint64_t end = chain->image[0]->footer.current_size / VHD_SECTOR;
	static uint8_t buf[READ_SECTORS * VHD_SECTOR];
	uint8_t plain[VHD_SECTOR];
	uint32_t count = READ_SECTORS;
	struct error err;

	if (sector >= end)
		return;
	if (count > end - sector)
		count = (uint32_t)(end - sector);
	/* All that a BAT leads to has been found to lie in the file. */
	fuzz_assert(!vhd_chain_read(chain, sector, count, buf, &err));
	for (uint32_t i = 0; i < count; i += 1 + i % 3) {
		fuzz_read_sector(chain, sector + i, plain);
		fuzz_assert(!memcmp(plain, buf + i * VHD_SECTOR, VHD_SECTOR));
	}
}

void fuzz_use_chain(const struct vhd_chain *chain)
{
	const struct vhd_check_options options = { .bitmaps = true };
	const struct vhd_image *leaf = chain->image[0];
	uint64_t end = leaf->footer.current_size / VHD_SECTOR;
	struct vhd_check_result result;
	struct error err;
	unsigned int read = 0;

	fuzz_assert(chain->nr_vhd && chain->depth <= VHD_MAX_CHAIN);
	for (unsigned int i = 0; i < chain->nr_vhd; i++)
		fuzz_check_image(chain->image[i]);
	vhd_check(leaf, &options, &result, &err);
	vhd_check_result_dispose(&result);
	read_some(chain, 0);
	read_some(chain, end > READ_SECTORS ? end - READ_SECTORS : 0);
	for (unsigned int i = 0; i < chain->nr_vhd; i++) {
		const struct vhd_image *image = chain->image[i];

		if (image->footer.type == VHD_FIXED)
			continue;
		for (uint32_t b = 0; b < image->bat_entries && read < MAX_READS;
		     b++)
			if (vhd_bat(image, b) != VHD_BAT_UNUSED) {
				read_some(chain, (uint64_t)b * image->spb);
				read++;
			}
	}
}
