// SPDX-License-Identifier: LGPL-2.1-only
#include <getopt.h>
#include <stdio.h>

#include "tools/vhd-util.h"

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "force", no_argument, NULL, 'F' },
		{ "progress", required_argument, NULL, 'P' },
		{ NULL, 0, NULL, 0 },
	};
	struct vhd_util_progress progress = { .fd = -1 };
	struct vhd_resize_args args = { .watch = &progress.watch };
	struct config cfg = { 0 };
	struct error err = { 0 };
	bool sized = false, journal = false;
	int opt, rc;

	while ((opt = getopt_long(argc, argv, "n:s:j:fph", longopts, NULL)) !=
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
		case 'p':
		case 'P':
			if (!vhd_util_progress_option(&progress, opt))
				return EXIT_USAGE;
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
	vhd_util_progress_begin(&progress);
	rc = config_load(&cfg, NULL, &err);
	if (!rc)
		rc = vhd_resize(&args, &cfg, &err);
	config_dispose(&cfg);
	vhd_util_progress_end(&progress);
	return rc ? vhd_util_failed(&err) : EXIT_OK;
}

const struct vhd_util_command vhd_util_resize = {
	.name = "resize",
	.usage = "-n NAME -s SIZE_MB [-f | [-j JOURNAL] [--force]] [-p] [--progress=FD] [-h]\n"
		 "  -f  only if the metadata has room, and only larger\n"
		 "  -j  accepted and not used: no journal is needed\n"
		 "  --force  smaller even if data beyond the new end are lost\n"
		 "  -p  progress, on a terminal; --progress: lines \"N/100\" to this descriptor",
	.run = run,
};
