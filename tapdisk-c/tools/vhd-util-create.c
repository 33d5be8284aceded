// SPDX-License-Identifier: LGPL-2.1-only
#include <stdio.h>
#include <unistd.h>

#include "tools/vhd-util.h"

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	struct vhd_create_args args = { 0 };
	struct config cfg = { 0 };
	struct error err = { 0 };
	bool sized = false;
	int opt, rc;

	while ((opt = getopt(argc, argv, "n:s:S:rh")) != -1) {
		switch (opt) {
		case 'n':
			args.path = optarg;
			break;
		case 's':
			if (!vhd_util_megabytes(optarg, opt, &args.size))
				return EXIT_USAGE;
			sized = true;
			break;
		case 'S':
			if (!vhd_util_megabytes(optarg, opt,
						&args.reserve_size))
				return EXIT_USAGE;
			break;
		case 'r':
			args.fixed = true;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!args.path || !sized || optind != argc)
		return vhd_util_usage(self, 0);
	rc = config_load(&cfg, NULL, &err);
	if (!rc)
		rc = vhd_create(&args, &cfg, &err);
	config_dispose(&cfg);
	return rc ? vhd_util_failed(&err) : EXIT_OK;
}

const struct vhd_util_command vhd_util_create = {
	.name = "create",
	.usage = "-n NAME -s SIZE_MB [-r] [-S RESERVE_MB] [-h]\n"
		 "  -r  fixed: reserve all space (default: dynamic)\n"
		 "  -S  room in the metadata to grow to this size later",
	.run = run,
};
