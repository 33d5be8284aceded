/* SPDX-License-Identifier: LGPL-2.1-only */
/* The input is one image: opened, checked, shown, read. */
#include <stdio.h>

#include "fuzz/fuzz.h"
#include "fuzz/memory-files.h"
#include "vhd/dump.h"
#include "vhd/vhd-internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vhd_parent_name names[VHD_MAX_NAMES];
	const char *path = memory_path(0);
	struct vhd_chain *chain;
	struct vhd_image *image;
	static FILE *nowhere;
	struct error err;

	if (!nowhere)
		nowhere = fopen("/dev/null", "we");
	fuzz_assert(nowhere);
	memory_reset();
	if (!fuzz_make_image(0, data, size))
		return 0;
	vhd_dump_headers(nowhere, path, false, &err);
	if (!vhd_open(&image, path, 0, &err)) {
		if (image->footer.type == VHD_DIFF)
			vhd_parent_names_free(names,
				vhd_parent_names(names, image->fd,
						 &image->header));
		vhd_close(image);
	}
	/* What opens by itself; as a leaf it may lack its parent. */
	if (!vhd_chain_open(&chain, path, fuzz_config(), VHD_OPEN_ALONE, &err)) {
		fuzz_use_chain(chain);
		vhd_chain_close(chain);
	}
	fuzz_assert(!memory_nr_open());
	return 0;
}
