// SPDX-License-Identifier: LGPL-2.1-only
#include <getopt.h>

#include "tools/vhd-util.h"

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "force", no_argument, NULL, 'F' },
		{ NULL, 0, NULL, 0 },
	};
	struct vhd_parent_args args = { 0 };
	struct config cfg = { 0 };
	struct error err = { 0 };
	int opt, rc;

	while ((opt = getopt_long(argc, argv, "n:p:mh", longopts, NULL)) !=
	       -1) {
		switch (opt) {
		case 'n':
			args.path = optarg;
			break;
		case 'p':
			args.parent = optarg;
			break;
		case 'm':
			args.raw = true;
			break;
		case 'F':
			args.force = true;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!args.path || !args.parent || optind != argc)
		return vhd_util_usage(self, 0);
	rc = config_load(&cfg, NULL, &err);
	if (!rc)
		rc = vhd_set_parent(&args, &cfg, &err);
	config_dispose(&cfg);
	return rc ? vhd_util_failed(&err) : EXIT_OK;
}

const struct vhd_util_command vhd_util_modify = {
	.name = "modify",
	.usage = "-n NAME -p PARENT [-m] [--force] [-h]\n"
		 "  -p  another parent, or the parent's new name\n"
		 "  -m  the parent is raw\n"
		 "  --force  though it is not known from the image's chain, or is larger",
	.run = run,
};
