// SPDX-License-Identifier: LGPL-2.1-only
#include <unistd.h>

#include "tools/vhd-util.h"

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	const char *path = NULL;
	struct config cfg = { 0 };
	struct error err = { 0 };
	int opt, rc;

	while ((opt = getopt(argc, argv, "n:h")) != -1) {
		switch (opt) {
		case 'n':
			path = optarg;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!path || optind != argc)
		return vhd_util_usage(self, 0);
	rc = config_load(&cfg, NULL, &err);
	if (!rc)
		rc = vhd_fill(path, &cfg, &err);
	config_dispose(&cfg);
	return rc ? vhd_util_failed(&err) : EXIT_OK;
}

const struct vhd_util_command vhd_util_fill = {
	.name = "fill",
	.usage = "-n NAME [-h]\n"
		 "  takes space for all blocks, and all of its chain's data into the image",
	.run = run,
};
