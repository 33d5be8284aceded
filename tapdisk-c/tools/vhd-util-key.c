// SPDX-License-Identifier: LGPL-2.1-only
#include <errno.h>
#include <unistd.h>

#include "tools/vhd-util.h"

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	const char *path = NULL;
	struct error err = { 0 };
	int opt;

	while ((opt = getopt(argc, argv, "n:k:N:sCh")) != -1) {
		switch (opt) {
		case 'n':
			path = optarg;
			break;
		case 'k':
		case 'N':
		case 's':
		case 'C':
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!path || optind != argc)
		return vhd_util_usage(self, 0);
	error_set(&err, -ENOTSUP,
		  "%s: key: encrypted images are not supported; encrypt in the guest, or what lies under the image (LUKS)",
		  path);
	return vhd_util_failed(&err);
}

const struct vhd_util_command vhd_util_key = {
	.name = "key",
	.usage = "-n NAME [-k KEYFILE] [-N NONCE] [-s] [-C] [-h]\n"
		 "  always refused: encrypted images are not supported",
	.run = run,
};
