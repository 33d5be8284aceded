// SPDX-License-Identifier: LGPL-2.1-only
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "tools/vhd-util.h"
#include "vhd/vhd-internal.h"

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	const char *path = NULL;
	struct vhd_image *image;
	struct error err = { 0 };
	uint32_t unknown = 0;
	bool copy = false;
	int opt, rc;

	while ((opt = getopt(argc, argv, "n:bh")) != -1) {
		switch (opt) {
		case 'n':
			path = optarg;
			break;
		case 'b':
			copy = true;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!path || optind != argc)
		return vhd_util_usage(self, 0);
	rc = vhd_open(&image, path, VHD_OPEN_WRITE | VHD_OPEN_REPAIR |
		      (copy ? VHD_OPEN_COPY : 0), &err);
	if (rc)
		return vhd_util_failed(&err);
	/* Both footers from the good one; unused space at the end is cut off. */
	if (copy && !image->front_ok)
		rc = error_set(&err, -EUCLEAN,
			       "%s: the footer copy at the start is damaged; repair without -b takes the footer at the end",
			       path);
	else
		rc = vhd_batmap_verify(image, &unknown, &err);
	if (!rc)
		rc = vhd_write_trailer(image, &err);
	if (!rc && unknown)
		fprintf(stderr, "vhd-util: %s: warning: bitmaps that can't be read: %u; the batmap says still that their blocks are complete\n",
			path, unknown);
	vhd_close(image);
	return rc ? vhd_util_failed(&err) : EXIT_OK;
}

const struct vhd_util_command vhd_util_repair = {
	.name = "repair",
	.usage = "-n NAME [-b] [-h]\n"
		 "  writes both footers anew from the one that is good, or was written last\n"
		 "  -b  from the copy at the start",
	.run = run,
};
