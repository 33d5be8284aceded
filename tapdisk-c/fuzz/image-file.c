/* SPDX-License-Identifier: LGPL-2.1-only */
/* From an input to an image file. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuzz/fuzz.h"
#include "vhd/check.h"
#include "vhd/vhd-internal.h"

enum {
	FOOTER_DATA_OFFSET = 16, FOOTER_CHECKSUM = 64, FOOTER_UUID = 68,
	HEADER_TABLE = 16, HEADER_ENTRIES = 28, HEADER_CHECKSUM = 36,
	HEADER_PARENT_UUID = 40, HEADER_PARENT_NAME = 64,
	BATMAP_OFFSET = 8, BATMAP_SECTORS = 16, BATMAP_VERSION = 20,
	BATMAP_CHECKSUM = 24,
};

#define READ_SECTORS 64u

static void fix_footer(uint8_t *file)
{
	put_be32(file + FOOTER_CHECKSUM,
		 vhd_checksum(file, VHD_FOOTER_BYTES, FOOTER_CHECKSUM));
}

/* The header in the file's first size bytes, or NULL. */
static uint8_t *header_of(uint8_t *file, size_t size)
{
	uint64_t at = get_be64(file + FOOTER_DATA_OFFSET);

	return at <= size && size - at >= VHD_HEADER_BYTES ? file + at : NULL;
}

static void fix_header(uint8_t *header)
{
	put_be32(header + HEADER_CHECKSUM,
		 vhd_checksum(header, VHD_HEADER_BYTES, HEADER_CHECKSUM));
}

static void fix_batmap(uint8_t *file, size_t size, const uint8_t *header)
{
	uint64_t at = get_be64(header + HEADER_TABLE), map;
	uint32_t entries = get_be32(header + HEADER_ENTRIES);
	uint64_t len;
	uint8_t *batmap;

	if (at > size)
		return;
	at += round_up_u64(4ull * entries, VHD_SECTOR);
	if (at > size || size - at < VHD_SECTOR)
		return;
	batmap = file + at;
	map = get_be64(batmap + BATMAP_OFFSET);
	len = (uint64_t)get_be32(batmap + BATMAP_SECTORS) * VHD_SECTOR;
	if (map > size || len > size - map)
		return;
	put_be32(batmap + BATMAP_CHECKSUM,
		 vhd_batmap_checksum(file + map, (uint32_t)len,
				     get_be32(batmap + BATMAP_VERSION)));
}

static void put_parent(uint8_t *header, const uint8_t *uuid, const char *name)
{
	uint8_t *p = header + HEADER_PARENT_NAME;

	memcpy(header + HEADER_PARENT_UUID, uuid, 16);
	for (; *name; name++)
		put_be16((p += 2) - 2, (uint8_t)*name);
	put_be16(p, 0);
}

int fuzz_write_child(int fd, const uint8_t *data, size_t size,
		     const uint8_t *parent_uuid, const char *parent_name)
{
	uint8_t *file, *header, flags;
	uint64_t end;
	bool ok;

	if (size < FUZZ_PREFIX + VHD_FOOTER_BYTES)
		return 0;
	flags = data[0];
	end = (get_be32(data) & 0xffffffu) % FUZZ_MAX_GAP * 4096ull;
	size -= FUZZ_PREFIX;
	end += size;
	file = malloc(size);
	fuzz_assert(file);
	memcpy(file, data + FUZZ_PREFIX, size);
	if (flags & FUZZ_FOOTER)
		fix_footer(file);
	header = header_of(file, size);
	if (header && parent_name)
		put_parent(header, parent_uuid, parent_name);
	if (header && flags & FUZZ_HEADER)
		fix_header(header);
	if (header && flags & FUZZ_BATMAP)
		fix_batmap(file, size, header);
	ok = !ftruncate(fd, 0) && !ftruncate(fd, (off_t)end) &&
	     pwrite(fd, file, size, 0) == (ssize_t)size &&
	     (!(flags & FUZZ_TAIL) ||
	      pwrite(fd, file, VHD_FOOTER_BYTES, (off_t)end) == VHD_FOOTER_BYTES);
	fuzz_assert(ok);
	free(file);
	return 1;
}

int fuzz_write_image(int fd, const uint8_t *data, size_t size, uint8_t *uuid)
{
	if (!fuzz_write_child(fd, data, size, NULL, NULL))
		return 0;
	if (uuid)
		memcpy(uuid, data + FUZZ_PREFIX + FOOTER_UUID, 16);
	return 1;
}

static void read_some(const struct vhd_chain *chain, uint64_t sector)
{
	uint64_t end = chain->image[0]->footer.current_size / VHD_SECTOR;
	static uint8_t buf[READ_SECTORS * VHD_SECTOR];
	uint32_t count = READ_SECTORS;
	struct error err;
	int rc;

	if (sector >= end)
		return;
	if (count > end - sector)
		count = (uint32_t)(end - sector);
	rc = vhd_chain_read(chain, sector, count, buf, &err);
	fuzz_assert(rc <= 0);
}

/* What the data path relies on without looking again. */
static void check_image(const struct vhd_image *image)
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
	fuzz_assert(tables <= image->file_size &&
		    (image->cut_block || image->data_end <= image->file_size));
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
		check_image(chain->image[i]);
	vhd_check(leaf, &options, &result, &err);
	vhd_check_result_dispose(&result);
	read_some(chain, 0);
	read_some(chain, end > READ_SECTORS ? end - READ_SECTORS : 0);
	for (unsigned int i = 0; i < chain->nr_vhd; i++) {
		const struct vhd_image *image = chain->image[i];

		if (image->footer.type == VHD_FIXED)
			continue;
		for (uint32_t b = 0; b < image->bat_entries && read < 8; b++)
			if (vhd_bat(image, b) != VHD_BAT_UNUSED) {
				read_some(chain, (uint64_t)b * image->spb);
				read++;
			}
	}
}
