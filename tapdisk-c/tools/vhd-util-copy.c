// SPDX-License-Identifier: LGPL-2.1-only
/* copy and convert. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/vhd-util.h"

/* prefix: put before both names, "vhd:" or "". */
static int convert(const char *prefix, const char *from, const char *to,
		   struct vhd_util_progress *progress)
{
	struct config cfg = { 0 };
	struct error err = { 0 };
	char *source = NULL, *target = NULL;
	int rc;

	if (asprintf(&source, "%s%s", prefix, from) < 0 ||
	    asprintf(&target, "%s%s", prefix, to) < 0) {
		fprintf(stderr, "vhd-util: out of memory\n");
		exit(EXIT_FAILED);
	}
	vhd_util_progress_begin(progress);
	rc = config_load(&cfg, NULL, &err);
	if (!rc)
		rc = job_convert(source, target, &cfg, &progress->watch, &err);
	config_dispose(&cfg);
	vhd_util_progress_end(progress);
	free(source);
	free(target);
	return rc ? vhd_util_failed(&err) : EXIT_OK;
}

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "progress", required_argument, NULL, 'P' },
		{ NULL, 0, NULL, 0 },
	};
	struct vhd_util_progress progress = { .fd = -1 };
	const char *from = NULL, *to = NULL;
	int opt;

	while ((opt = getopt_long(argc, argv, "n:N:pk:Eh", longopts, NULL)) !=
	       -1) {
		switch (opt) {
		case 'n':
			from = optarg;
			break;
		case 'N':
			to = optarg;
			break;
		case 'p':
		case 'P':
			if (!vhd_util_progress_option(&progress, opt))
				return EXIT_USAGE;
			break;
		case 'k':
		case 'E':
			fprintf(stderr,
				"vhd-util: option -%c: encrypted images are not supported\n",
				opt);
			return EXIT_USAGE;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!from || !to || optind != argc)
		return vhd_util_usage(self, 0);
	return convert(self == &vhd_util_copy ? "vhd:" : "", from, to,
		       &progress);
}

const struct vhd_util_command vhd_util_copy = {
	.name = "copy",
	.usage = "-n NAME -N NEW [-p] [--progress=FD] [-h]\n"
		 "  makes a dynamic image without a parent that reads as NAME does\n"
		 "  -p  progress, on a terminal; --progress: lines \"N/100\" to this descriptor",
	.run = run,
};

const struct vhd_util_command vhd_util_convert = {
	.name = "convert",
	.usage = "-n SOURCE -N TARGET [-p] [--progress=FD] [-h]\n"
		 "  SOURCE  vhd:PATH, raw:PATH or an NBD URI\n"
		 "  TARGET  vhd:PATH or raw:PATH, a new file, or an NBD URI, whose content is replaced\n"
		 "  -p  progress, on a terminal; --progress: lines \"N/100\" to this descriptor",
	.run = run,
};
