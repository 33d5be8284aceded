/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The input is locators and what they lead to:
 *
 *   number u8 | per locator: code u8, offset u8, length u8 | the file
 *
 * Codes 0 to 2 are the three that are known. Each name that comes out is written as
 * a locator of each kind, and comes back.
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz/fuzz.h"
#include "fuzz/memory-files.h"
#include "vhd/vhd-internal.h"

#define PER_LOCATOR	3u
#define NAME_BYTES	512u	/* of the header's own, at the file's start */
#define MAX_WRITTEN	2u
#define AT		4096u	/* where what is written goes */

static const uint32_t codes[] = { VHD_LOC_W2RU, VHD_LOC_W2KU, VHD_LOC_MACX };

/* ./ is put before a relative name, and Windows' separators come back as ours. */
static void same_name(const char *a, const char *b)
{
	if (!strncmp(a, "./", 2))
		a += 2;
	if (!strncmp(b, "./", 2))
		b += 2;
	fuzz_assert(!strcmp(a, b));
}

static bool has_name(const struct vhd_parent_name *names, unsigned int n,
		     const char *name)
{
	for (unsigned int i = 0; i < n; i++)
		if (!strcmp(names[i].path, name))
			return true;
	return false;
}

/* A name as vhd_relative_path() makes them. */
static void write_back(int fd, const char *name)
{
	static uint8_t out[VHD_LOCATORS_MAX];
	struct vhd_header header = { 0 };
	struct vhd_parent_name names[VHD_MAX_NAMES];
	char relative[2048];
	unsigned int n;
	size_t used;

	if (name[0] == '/' || strlen(name) + 3 > sizeof(relative))
		return;
	strcpy(relative, "./");
	strcat(relative, name);
	for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
		struct vhd_locator *l = &header.locator[0];

		if (vhd_locator_encode(out, sizeof(out), &used, codes[i],
				       relative)) {
			/* No UTF-8, or a backslash: only a URL takes that. */
			fuzz_assert(codes[i] != VHD_LOC_MACX);
			continue;
		}
		memory_file_put(0, out, used, AT);
		l->code = codes[i];
		l->data_len = (uint32_t)used;
		l->data_space = (uint32_t)round_up_u64(used, VHD_SECTOR);
		l->data_offset = AT;
		n = vhd_parent_names(names, fd, &header);
		fuzz_assert(n);
		if (codes[i] == VHD_LOC_MACX)
			fuzz_assert(has_name(names, n, relative));
		else
			same_name(names[0].path, relative);
		vhd_parent_names_free(names, n);
	}
}

/* UTF-16 in either order, to UTF-8 and back. */
static void utf16(const uint8_t *data, size_t size)
{
	char text[1024], again[1024];
	uint8_t back[2048];
	size_t len;

	for (int big = 0; big < 2; big++) {
		if (vhd_utf16_decode(text, sizeof(text), data, size, big))
			continue;
		fuzz_assert(!vhd_utf16_encode(back, sizeof(back), &len, text,
					      big));
		/* Up to a NUL, or an odd byte. */
		fuzz_assert(len <= size && !memcmp(back, data, len));
		fuzz_assert(size - len < 2 || (!data[len] && !data[len + 1]));
		fuzz_assert(!vhd_utf16_decode(again, sizeof(again), back, len,
					      big));
		fuzz_assert(!strcmp(text, again));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vhd_parent_name names[VHD_MAX_NAMES];
	static struct vhd_header header;
	unsigned int nr, n;
	bool absolute = false, mere = false;
	int fd;

	if (!size)
		return 0;
	nr = data[0] % (VHD_NR_LOCATORS + 1);
	data++;
	size--;
	if (size < nr * PER_LOCATOR)
		return 0;
	memset(&header, 0, sizeof(header));
	for (unsigned int i = 0; i < nr; i++, data += PER_LOCATOR) {
		header.locator[i].code = data[0] < 3 ? codes[data[0]] : data[0];
		header.locator[i].data_offset = data[1];
		header.locator[i].data_len = data[2];
	}
	size -= nr * PER_LOCATOR;
	/* As vhd_header_decode() does it. */
	if (vhd_utf16_decode(header.parent_name, sizeof(header.parent_name),
			     data, size < NAME_BYTES ? size : NAME_BYTES, true))
		header.parent_name[0] = '\0';
	utf16(data, size);

	memory_reset();
	memory_file_set(0, data, size, size);
	fd = memory_open(0);
	n = vhd_parent_names(names, fd, &header);
	fuzz_assert(n <= VHD_MAX_NAMES);
	for (unsigned int i = 0; i < n; i++) {
		fuzz_assert(names[i].path && names[i].path[0]);
		/* Relative before absolute, mere names last. */
		fuzz_assert(names[i].mere_name || !mere);
		mere = names[i].mere_name;
		fuzz_assert(mere || strcmp(names[i].source, "parent name"));
		if (mere) {
			fuzz_assert(!strchr(names[i].path, '/'));
			continue;
		}
		fuzz_assert(!absolute || names[i].path[0] == '/');
		absolute = names[i].path[0] == '/';
	}
	for (unsigned int i = 0; i < n && i < MAX_WRITTEN; i++)
		write_back(fd, names[i].path);
	vhd_parent_names_free(names, n);
	return 0;
}
