/* SPDX-License-Identifier: LGPL-2.1-only */
/* The input is one image: opened, checked, shown, read. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "fuzz/fuzz.h"
#include "vhd/dump.h"
#include "vhd/vhd-internal.h"

static FILE *nowhere;
static char path[32];
static struct config config;
static int fd = -1;

static void prepare(void)
{
	if (fd >= 0)
		return;
	fd = memfd_create("image", MFD_CLOEXEC);
	nowhere = fopen("/dev/null", "we");
	fuzz_assert(fd >= 0 && nowhere);
	fuzz_assert(!config_load(&config, "/nonexistent", NULL));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vhd_parent_name names[VHD_MAX_NAMES];
	struct vhd_chain *chain;
	struct vhd_image *image;
	struct error err;

	prepare();
	if (!fuzz_write_image(fd, data, size, NULL))
		return 0;
	vhd_dump_headers(nowhere, path, false, &err);
	if (vhd_open(&image, path, 0, &err))
		return 0;
	if (image->footer.type == VHD_DIFF)
		vhd_parent_names_free(names, vhd_parent_names(names, image->fd,
							      &image->header));
	vhd_close(image);
	if (!vhd_chain_open(&chain, path, &config, 0, &err)) {
		fuzz_use_chain(chain);
		vhd_chain_close(chain);
	}
	return 0;
}
