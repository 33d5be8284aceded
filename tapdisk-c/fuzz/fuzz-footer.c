/* SPDX-License-Identifier: LGPL-2.1-only */
/* The input is a footer and a header, by themselves. What is accepted comes back as it went. */
#include <string.h>

#include "fuzz/fuzz.h"
#include "vhd/vhd-internal.h"

static void footer(const uint8_t *data)
{
	uint8_t in[VHD_FOOTER_BYTES], out[VHD_FOOTER_BYTES];
	struct vhd_footer a, b;
	struct error err;

	memcpy(in, data, sizeof(in));
	for (int fixed = 0; fixed < 2; fixed++) {
		memset(&a, 0, sizeof(a));
		memset(&b, 0, sizeof(b));
		if (!vhd_footer_decode(&a, in, "image", "footer", &err)) {
			vhd_footer_encode(out, &a);
			fuzz_assert(!vhd_footer_decode(&b, out, "image",
						       "footer", &err));
			fuzz_assert(!memcmp(&a, &b, sizeof(a)));
		}
		put_be32(in + 64, vhd_checksum(in, sizeof(in), 64));
	}
}

static void header(const uint8_t *data)
{
	static struct vhd_header a, b;
	uint8_t in[VHD_HEADER_BYTES], out[VHD_HEADER_BYTES];
	struct error err;

	memcpy(in, data, sizeof(in));
	for (int fixed = 0; fixed < 2; fixed++) {
		memset(&a, 0, sizeof(a));
		memset(&b, 0, sizeof(b));
		if (!vhd_header_decode(&a, in, "image", &err)) {
			vhd_header_encode(out, &a);
			fuzz_assert(!vhd_header_decode(&b, out, "image", &err));
			fuzz_assert(!strcmp(a.parent_name, b.parent_name));
			fuzz_assert(a.table_offset == b.table_offset &&
				    a.max_bat_size == b.max_bat_size &&
				    a.block_size == b.block_size);
		}
		put_be32(in + 36, vhd_checksum(in, sizeof(in), 36));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < VHD_FOOTER_BYTES + VHD_HEADER_BYTES)
		return 0;
	footer(data);
	header(data + VHD_FOOTER_BYTES);
	return 0;
}
