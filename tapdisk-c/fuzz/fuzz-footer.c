/* SPDX-License-Identifier: LGPL-2.1-only */
/* The input is a footer, by itself. What is accepted comes back as it went. */
#include <string.h>

#include "fuzz/fuzz.h"
#include "vhd/vhd-internal.h"

#define CHECKSUM 64u

/* A disk of no more sectors than there are. */
static void geometry(uint64_t size)
{
	uint32_t g = vhd_geometry(size), heads = g >> 8 & 0xff, spt = g & 0xff;
	uint64_t sectors = (uint64_t)(g >> 16) * heads * spt;

	fuzz_assert(heads && heads <= 16 && spt);
	fuzz_assert(sectors <= size / VHD_SECTOR);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t in[VHD_FOOTER_BYTES], out[VHD_FOOTER_BYTES];
	struct vhd_footer a, b;
	struct error err;

	if (size < VHD_FOOTER_BYTES)
		return 0;
	memcpy(in, data, sizeof(in));
	for (int fixed = 0; fixed < 2; fixed++) {
		memset(&a, 0, sizeof(a));
		memset(&b, 0, sizeof(b));
		if (!vhd_footer_decode(&a, in, "image", "footer", &err)) {
			fuzz_assert(a.current_size &&
				    a.current_size % VHD_SECTOR == 0);
			vhd_footer_encode(out, &a);
			fuzz_assert(!vhd_footer_decode(&b, out, "image",
						       "footer", &err));
			fuzz_assert(!memcmp(&a, &b, sizeof(a)));
			geometry(a.current_size);
		}
		put_be32(in + CHECKSUM, vhd_checksum(in, sizeof(in), CHECKSUM));
	}
	return 0;
}
