// SPDX-License-Identifier: LGPL-2.1-only
#include <getopt.h>
#include <stdio.h>

#include "tools/vhd-util.h"

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "progress", required_argument, NULL, 'P' },
		{ NULL, 0, NULL, 0 },
	};
	struct vhd_util_progress progress = { .fd = -1 };
	const char *path = NULL;
	struct config cfg = { 0 };
	struct error err = { 0 };
	int opt, rc;

	while ((opt = getopt_long(argc, argv, "n:f:t:bBph", longopts,
				  NULL)) != -1) {
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
		case 'p':
		case 'P':
			if (!vhd_util_progress_option(&progress, opt))
				return EXIT_USAGE;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!path || optind != argc)
		return vhd_util_usage(self, 0);
	vhd_util_progress_begin(&progress);
	rc = config_load(&cfg, NULL, &err);
	if (!rc)
		rc = vhd_fill(path, &cfg, &progress.watch, &err);
	config_dispose(&cfg);
	vhd_util_progress_end(&progress);
	return rc ? vhd_util_failed(&err) : EXIT_OK;
}

const struct vhd_util_command vhd_util_fill = {
	.name = "fill",
	.usage = "-n NAME [-p] [--progress=FD] [-h]\n"
		 "  takes space for all blocks, and all of its chain's data into the image\n"
		 "  -p  progress, on a terminal; --progress: lines \"N/100\" to this descriptor",
	.run = run,
};
