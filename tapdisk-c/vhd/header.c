// SPDX-License-Identifier: LGPL-2.1-only
/* The 1024-byte header: "Dynamic Disk Header Format" of the VHD specification. */
#include <errno.h>
#include <string.h>

#include "vhd/vhd-internal.h"

enum {
	OFF_DATA_OFFSET = 8, OFF_TABLE_OFFSET = 16, OFF_VERSION = 24,
	OFF_MAX_BAT = 28, OFF_BLOCK_SIZE = 32, OFF_CHECKSUM = 36,
	OFF_PARENT_UUID = 40, OFF_PARENT_TIMESTAMP = 56, OFF_PARENT_NAME = 64,
	OFF_LOCATORS = 576, LOCATOR_BYTES = 24, PARENT_NAME_BYTES = 512,
};

uint64_t vhd_locator_space(const struct vhd_locator *locator)
{
	/* The specification says sectors; Virtual PC and XenServer store bytes. */
	if (locator->data_space < VHD_SECTOR)
		return (uint64_t)locator->data_space * VHD_SECTOR;
	return locator->data_space;
}

void vhd_header_encode(uint8_t out[VHD_HEADER_BYTES],
		       const struct vhd_header *header)
{
	size_t n;

	memset(out, 0, VHD_HEADER_BYTES);
	memcpy(out, "cxsparse", 8);
	put_be64(out + OFF_DATA_OFFSET, UINT64_MAX);
	put_be64(out + OFF_TABLE_OFFSET, header->table_offset);
	put_be32(out + OFF_VERSION, header->version);
	put_be32(out + OFF_MAX_BAT, header->max_bat_size);
	put_be32(out + OFF_BLOCK_SIZE, header->block_size);
	memcpy(out + OFF_PARENT_UUID, header->parent_uuid,
	       sizeof(header->parent_uuid));
	put_be32(out + OFF_PARENT_TIMESTAMP, header->parent_timestamp);
	/* A name that doesn't fit is left out: the locators count. */
	if (vhd_utf16_encode(out + OFF_PARENT_NAME, PARENT_NAME_BYTES, &n,
			     header->parent_name, true))
		memset(out + OFF_PARENT_NAME, 0, PARENT_NAME_BYTES);
	for (unsigned int i = 0; i < VHD_NR_LOCATORS; i++) {
		const struct vhd_locator *l = &header->locator[i];
		uint8_t *p = out + OFF_LOCATORS + i * LOCATOR_BYTES;

		put_be32(p, l->code);
		put_be32(p + 4, l->data_space);
		put_be32(p + 8, l->data_len);
		put_be64(p + 16, l->data_offset);
	}
	put_be32(out + OFF_CHECKSUM,
		 vhd_checksum(out, VHD_HEADER_BYTES, OFF_CHECKSUM));
}

void vhd_header_set_table(uint8_t raw[VHD_HEADER_BYTES], uint64_t table_offset,
			  uint32_t max_bat_size)
{
	put_be64(raw + OFF_TABLE_OFFSET, table_offset);
	put_be32(raw + OFF_MAX_BAT, max_bat_size);
	put_be32(raw + OFF_CHECKSUM,
		 vhd_checksum(raw, VHD_HEADER_BYTES, OFF_CHECKSUM));
}

int vhd_header_decode(struct vhd_header *h, const uint8_t in[VHD_HEADER_BYTES],
		      const char *path, struct error *err)
{
	uint32_t sum = vhd_checksum(in, VHD_HEADER_BYTES, OFF_CHECKSUM);

	memset(h, 0, sizeof(*h));
	if (memcmp(in, "cxsparse", 8))
		return error_set(err, -EUCLEAN,
				 "%s: header: cookie is not 'cxsparse'", path);
	if (get_be32(in + OFF_CHECKSUM) != sum)
		return error_set(err, -EUCLEAN,
				 "%s: header: checksum is 0x%08x, should be 0x%08x",
				 path, get_be32(in + OFF_CHECKSUM), sum);
	h->table_offset = get_be64(in + OFF_TABLE_OFFSET);
	h->version = get_be32(in + OFF_VERSION);
	h->max_bat_size = get_be32(in + OFF_MAX_BAT);
	h->block_size = get_be32(in + OFF_BLOCK_SIZE);
	memcpy(h->parent_uuid, in + OFF_PARENT_UUID, sizeof(h->parent_uuid));
	h->parent_timestamp = get_be32(in + OFF_PARENT_TIMESTAMP);
	/* Only the last resort of the search for the parent: broken is as absent. */
	if (vhd_utf16_decode(h->parent_name, sizeof(h->parent_name),
			     in + OFF_PARENT_NAME, PARENT_NAME_BYTES, true))
		h->parent_name[0] = '\0';
	for (unsigned int i = 0; i < VHD_NR_LOCATORS; i++) {
		struct vhd_locator *l = &h->locator[i];
		const uint8_t *p = in + OFF_LOCATORS + i * LOCATOR_BYTES;

		l->code = get_be32(p);
		l->data_space = get_be32(p + 4);
		l->data_len = get_be32(p + 8);
		l->data_offset = get_be64(p + 16);
	}
	if (h->version >> 16 != 1)
		return error_set(err, -ENOTSUP,
				 "%s: header: version is 0x%08x; 1.0 is supported",
				 path, h->version);
	if (h->block_size < VHD_MIN_BLOCK || h->block_size > VHD_MAX_BLOCK ||
	    h->block_size & (h->block_size - 1))
		return error_set(err, -EUCLEAN,
				 "%s: header: block size is %u bytes; it must be a power of two from 4096 to 268435456",
				 path, h->block_size);
	if (!h->max_bat_size || h->max_bat_size > VHD_MAX_BAT)
		return error_set(err, h->max_bat_size ? -ENOTSUP : -EUCLEAN,
				 "%s: header: max BAT size is %u entries; 1 to %u are supported",
				 path, h->max_bat_size, VHD_MAX_BAT);
	if (!h->table_offset || h->table_offset % VHD_SECTOR)
		return error_set(err, -EUCLEAN,
				 "%s: header: table offset is %llu; it must be a positive multiple of 512",
				 path, (unsigned long long)h->table_offset);
	return 0;
}
