/* SPDX-License-Identifier: LGPL-2.1-only */
/* The input is a header, by itself. What is accepted comes back as it went. */
#include <string.h>

#include "fuzz/fuzz.h"
#include "vhd/vhd-internal.h"

#define CHECKSUM 36u

static void same(const struct vhd_header *a, const struct vhd_header *b)
{
	fuzz_assert(a->table_offset == b->table_offset &&
		    a->version == b->version &&
		    a->max_bat_size == b->max_bat_size &&
		    a->block_size == b->block_size &&
		    a->parent_timestamp == b->parent_timestamp);
	fuzz_assert(!uuid_compare(a->parent_uuid, b->parent_uuid) &&
		    !strcmp(a->parent_name, b->parent_name));
	for (unsigned int i = 0; i < VHD_NR_LOCATORS; i++) {
		const struct vhd_locator *x = &a->locator[i];
		const struct vhd_locator *y = &b->locator[i];

		fuzz_assert(x->code == y->code &&
			    x->data_space == y->data_space &&
			    x->data_len == y->data_len &&
			    x->data_offset == y->data_offset);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct vhd_header a, b;
	uint8_t in[VHD_HEADER_BYTES], out[VHD_HEADER_BYTES];
	struct error err;

	if (size < VHD_HEADER_BYTES)
		return 0;
	memcpy(in, data, sizeof(in));
	for (int fixed = 0; fixed < 2; fixed++) {
		if (!vhd_header_decode(&a, in, "image", &err)) {
			fuzz_assert(a.max_bat_size && a.table_offset &&
				    a.table_offset % VHD_SECTOR == 0);
			vhd_header_encode(out, &a);
			fuzz_assert(!vhd_header_decode(&b, out, "image", &err));
			same(&a, &b);
			/* A BAT moved in a header of any other content. */
			a.table_offset += VHD_SECTOR;
			a.max_bat_size = 1;
			vhd_header_set_table(in, a.table_offset, 1);
			if (a.table_offset) {
				fuzz_assert(!vhd_header_decode(&b, in, "image",
							       &err));
				same(&a, &b);
			}
			break;
		}
		put_be32(in + CHECKSUM, vhd_checksum(in, sizeof(in), CHECKSUM));
	}
	return 0;
}
