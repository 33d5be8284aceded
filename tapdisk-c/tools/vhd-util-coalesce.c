// SPDX-License-Identifier: LGPL-2.1-only
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

#include "tools/vhd-util.h"

static int coalesce(const char *path, bool json,
		    struct vhd_util_progress *progress)
{
	struct config cfg = { 0 };
	struct error err = { 0 };
	uint64_t sectors = 0;
	int rc;

	vhd_util_progress_begin(progress);
	progress->watch.written = &sectors;
	rc = config_load(&cfg, NULL, &err);
	if (!rc)
		rc = job_coalesce(path, &cfg, &progress->watch, &err);
	config_dispose(&cfg);
	vhd_util_progress_end(progress);
	if (rc)
		return vhd_util_failed(&err);
	if (json)
		printf("{\n  \"bytes\": %" PRIu64 "\n}\n", sectors * VHD_SECTOR);
	else
		printf("Coalesced %" PRIu64 " sectors\n", sectors);
	return EXIT_OK;
}

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "progress", required_argument, NULL, 'P' },
		{ "json", no_argument, NULL, 'J' },
		{ NULL, 0, NULL, 0 },
	};
	struct vhd_util_progress progress = { .fd = -1 };
	const char *path = NULL;
	bool json = false;
	int opt;

	while ((opt = getopt_long(argc, argv, "n:o:axsph", longopts, NULL)) !=
	       -1) {
		switch (opt) {
		case 'n':
			path = optarg;
			break;
		case 'p':
		case 'P':
			if (!vhd_util_progress_option(&progress, opt))
				return EXIT_USAGE;
			break;
		case 's':	/* space that is not written is a hole anyway */
			break;
		case 'J':
			json = true;
			break;
		case 'o':
		case 'a':
		case 'x':
			fprintf(stderr,
				"vhd-util: option -%c: not supported; coalesce works on the parent alone (for a new image: copy)\n",
				opt);
			return EXIT_USAGE;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!path || optind != argc)
		return vhd_util_usage(self, 0);
	return coalesce(path, json, &progress);
}

const struct vhd_util_command vhd_util_coalesce = {
	.name = "coalesce",
	.usage = "-n NAME [-p] [--progress=FD] [-s] [--json] [-h]\n"
		 "  writes what NAME itself holds into its parent; NAME stays as it is\n"
		 "  -p  progress, on a terminal; --progress: lines \"N/100\" to this descriptor\n"
		 "  -s  accepted and not used: space that is not written is a hole anyway",
	.run = run,
};
