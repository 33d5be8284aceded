// SPDX-License-Identifier: LGPL-2.1-only
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/vhd-util.h"

static int set_field(const char *path, const char *field, uint8_t value,
		     struct error *err)
{
	struct vhd_image *image;
	int rc;

	rc = vhd_open(&image, path, VHD_OPEN_WRITE, err);
	if (rc)
		return rc;
	if (!strcmp(field, "hidden")) {
		image->footer.hidden = value;
	} else if (image->has_batmap) {
		image->batmap_marker = value;
	} else {
		rc = error_set(err, -ENOTSUP,
			       "%s: has no batmap, whose header holds the marker",
			       path);
		goto out;
	}
	rc = image->footer.type == VHD_FIXED ?
		vhd_write_fixed_footer(image, err) :
		vhd_write_trailer(image, err);
out:
	vhd_close(image);
	return rc;
}

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	const char *path = NULL, *field = NULL;
	struct error err = { 0 };
	bool valued = false;
	uint64_t value = 0;
	int opt, rc;

	while ((opt = getopt(argc, argv, "n:f:v:h")) != -1) {
		switch (opt) {
		case 'n':
			path = optarg;
			break;
		case 'f':
			field = optarg;
			break;
		case 'v':
			if (!vhd_util_number(optarg, opt, 255, &value))
				return EXIT_USAGE;
			valued = true;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!path || !field || !valued || optind != argc)
		return vhd_util_usage(self, 0);
	if (!strcmp(field, "children")) {
		if (value) {
			fprintf(stderr,
				"vhd-util: option -v: children can be set to 0 alone; a snapshot marks its parent\n");
			return EXIT_USAGE;
		}
		rc = vhd_forget_children(path, &err);
	} else if (!strcmp(field, "hidden") || !strcmp(field, "marker")) {
		rc = set_field(path, field, (uint8_t)value, &err);
	} else {
		fprintf(stderr,
			"vhd-util: option -f: no field '%s'; hidden, marker and children can be set\n",
			field);
		return EXIT_USAGE;
	}
	return rc ? vhd_util_failed(&err) : EXIT_OK;
}

const struct vhd_util_command vhd_util_set = {
	.name = "set",
	.usage = "-n NAME -f hidden|marker|children -v VALUE [-h]\n"
		 "  -v  0 to 255; children: 0, the image is no parent any more",
	.run = run,
};
