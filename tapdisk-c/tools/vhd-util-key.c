// SPDX-License-Identifier: LGPL-2.1-only
#include <errno.h>
#include <getopt.h>
#include <stdio.h>

#include "tools/vhd-util.h"

/* An image that has the hash of a key is refused by all that opens it. */
static int print_hash(const char *path, bool json, struct error *err)
{
	struct vhd_image *image;
	int rc = vhd_util_look(&image, path, err);

	if (rc)
		return rc;
	vhd_close(image);
	printf("%s\n", json ? "{\n  \"key_hash\": null\n}" : "none");
	return 0;
}

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "json", no_argument, NULL, 'J' },
		{ NULL, 0, NULL, 0 },
	};
	bool print = false, other = false, json = false;
	const char *path = NULL;
	struct error err = { 0 };
	int opt;

	while ((opt = getopt_long(argc, argv, "n:k:N:H:scCph", longopts,
				  NULL)) != -1) {
		switch (opt) {
		case 'n':
			path = optarg;
			break;
		case 'p':
			print = true;
			break;
		case 'J':
			json = true;
			break;
		case 'k':
		case 'N':
		case 'H':
		case 's':
		case 'c':
		case 'C':
			other = true;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (optind != argc || (!print && !other) || (!path && !other))
		return vhd_util_usage(self, 0);
	if (!other)
		return print_hash(path, json, &err) ? vhd_util_failed(&err) :
						      EXIT_OK;
	error_set(&err, -ENOTSUP,
		  "%s%skey: encrypted images are not supported; encrypt in the guest, or what lies under the image (LUKS)",
		  path ? path : "", path ? ": " : "");
	return vhd_util_failed(&err);
}

const struct vhd_util_command vhd_util_key = {
	.name = "key",
	.usage = "-p -n NAME [--json] [-h]\n"
		 "  -p  prints the hash of the image's key: always \"none\", since encrypted images are not supported\n"
		 "  -s, -c, -C, -k, -H, -N  of XenServer's are refused",
	.run = run,
};
