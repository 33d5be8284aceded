// SPDX-License-Identifier: LGPL-2.1-only
#include <errno.h>
#include <unistd.h>

#include "tools/vhd-util.h"

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	const char *path = NULL, *journal = NULL;
	struct error err = { 0 };
	int opt;

	while ((opt = getopt(argc, argv, "n:j:h")) != -1) {
		switch (opt) {
		case 'n':
			path = optarg;
			break;
		case 'j':
			journal = optarg;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!path || !journal || optind != argc)
		return vhd_util_usage(self, 0);
	error_set(&err, -ENOTSUP,
		  "%s: nothing to revert: resize writes no journal, since the image is whole whenever it is cut off; if %s is of XenServer's vhd-util, revert it with that",
		  path, journal);
	return vhd_util_failed(&err);
}

const struct vhd_util_command vhd_util_revert = {
	.name = "revert",
	.usage = "-n NAME -j JOURNAL [-h]\n"
		 "  always refused: no command leaves anything to revert",
	.run = run,
};
