// SPDX-License-Identifier: LGPL-2.1-only
#include <stdio.h>
#include <unistd.h>

#include "tools/vhd-util.h"

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	const char *path = NULL;
	struct config cfg = { 0 };
	struct error err = { 0 };
	int opt, rc;

	while ((opt = getopt(argc, argv, "n:f:t:bBh")) != -1) {
		switch (opt) {
		case 'n':
			path = optarg;
			break;
		case 'b':
		case 'f':
		case 't':
		case 'B':
			fprintf(stderr,
				"vhd-util: option -%c: not supported: blocks without their data would show what the storage held before; fill without it writes all of them\n",
				opt);
			return EXIT_USAGE;
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
