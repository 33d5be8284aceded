// SPDX-License-Identifier: LGPL-2.1-only
#include <getopt.h>
#include <stdio.h>

#include "tools/vhd-util.h"

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "force", no_argument, NULL, 'F' },
		{ NULL, 0, NULL, 0 },
	};
	struct vhd_resize_args args = { 0 };
	struct config cfg = { 0 };
	struct error err = { 0 };
	bool sized = false, journal = false;
	int opt, rc;

	while ((opt = getopt_long(argc, argv, "n:s:j:fh", longopts, NULL)) !=
	       -1) {
		switch (opt) {
		case 'n':
			args.path = optarg;
			break;
		case 's':
			if (!vhd_util_megabytes(optarg, opt, &args.size))
				return EXIT_USAGE;
			sized = true;
			break;
		case 'j':	/* not needed: see the manual */
			journal = true;
			break;
		case 'f':
			args.in_place = true;
			break;
		case 'F':
			args.drop_data = true;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!args.path || !sized || optind != argc ||
	    (args.in_place && (journal || args.drop_data)))
		return vhd_util_usage(self, 0);
	rc = config_load(&cfg, NULL, &err);
	if (!rc)
		rc = vhd_resize(&args, &cfg, &err);
	config_dispose(&cfg);
	return rc ? vhd_util_failed(&err) : EXIT_OK;
}

const struct vhd_util_command vhd_util_resize = {
	.name = "resize",
	.usage = "-n NAME -s SIZE_MB [-f | [-j JOURNAL] [--force]] [-h]\n"
		 "  -f  only if the metadata has room, and only larger\n"
		 "  -j  accepted and not used: no journal is needed\n"
		 "  --force  smaller even if data beyond the new end are lost",
	.run = run,
};
