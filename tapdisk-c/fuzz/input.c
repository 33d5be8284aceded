/* SPDX-License-Identifier: LGPL-2.1-only */
/* From an input to files: see fuzz.h. */
#include <stdlib.h>
#include <string.h>

#include "fuzz/fuzz.h"
#include "fuzz/memory-files.h"
#include "vhd/vhd-internal.h"

enum {
	FOOTER_DATA_OFFSET = 16, FOOTER_CHECKSUM = 64, FOOTER_UUID = 68,
	HEADER_TABLE = 16, HEADER_ENTRIES = 28, HEADER_CHECKSUM = 36,
	HEADER_PARENT_UUID = 40, HEADER_PARENT_NAME = 64,
	BATMAP_OFFSET = 8, BATMAP_SECTORS = 16, BATMAP_VERSION = 20,
	BATMAP_CHECKSUM = 24,
};

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

/* parent: what the header is to name; NULL: it stays. */
static bool make_child(unsigned int file, const uint8_t *data, size_t size,
		       const uint8_t *parent_uuid, const char *parent)
{
	uint8_t *bytes, *header, flags;
	uint64_t end;

	if (size < FUZZ_PREFIX + VHD_FOOTER_BYTES)
		return false;
	flags = data[0];
	end = (get_be32(data) & 0xffffffu) % FUZZ_MAX_GAP * 4096ull;
	size -= FUZZ_PREFIX;
	end += size;
	bytes = malloc(size);
	fuzz_assert(bytes);
	memcpy(bytes, data + FUZZ_PREFIX, size);
	if (flags & FUZZ_FOOTER)
		fix_footer(bytes);
	header = header_of(bytes, size);
	if (header && parent)
		put_parent(header, parent_uuid, parent);
	if (header && flags & FUZZ_HEADER)
		fix_header(header);
	if (header && flags & FUZZ_BATMAP)
		fix_batmap(bytes, size, header);
	memory_file_set(file, bytes, size, end);
	if (flags & FUZZ_TAIL)
		memory_file_put(file, bytes, VHD_FOOTER_BYTES, end);
	free(bytes);
	return true;
}

bool fuzz_make_image(unsigned int file, const uint8_t *data, size_t size)
{
	return make_child(file, data, size, NULL, NULL);
}

static bool make_chain(unsigned int file, const uint8_t *data, size_t size)
{
	const size_t at_uuid = FUZZ_PREFIX + FOOTER_UUID;
	const uint8_t *rest, *uuid;
	const uint8_t raw[16] = { 0 };
	uint8_t flags;
	size_t len;

	if (size < FUZZ_PREFIX)
		return false;
	flags = data[0];
	len = get_be32(data) & 0xffffffu;
	data += FUZZ_PREFIX;
	size -= FUZZ_PREFIX;
	if (len > size)
		return false;
	rest = data + len;
	size -= len;
	if (flags & FUZZ_RAW) {
		memory_file_set(file + 1, rest, size, size);
		uuid = raw;
	} else if (flags & FUZZ_DEEPER && file + 2 < MEMORY_FILES) {
		if (size < FUZZ_PREFIX + at_uuid + sizeof(raw) ||
		    !make_chain(file + 1, rest, size))
			return false;
		uuid = rest + FUZZ_PREFIX + at_uuid;
	} else {
		if (!fuzz_make_image(file + 1, rest, size))
			return false;
		uuid = rest + at_uuid;
	}
	/* Without its directory, as a name in the header is. */
	return make_child(file, data, len, uuid, flags & FUZZ_LINK ?
			  vhd_base_name(memory_path(file + 1)) : NULL);
}

bool fuzz_make_chain(const uint8_t *data, size_t size)
{
	return make_chain(0, data, size);
}
