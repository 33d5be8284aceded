// SPDX-License-Identifier: LGPL-2.1-only
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/vhd-util.h"

static bool is_empty(const struct vhd_image *image)
{
	for (uint32_t i = 0; i < image->bat_entries; i++)
		if (vhd_bat(image, i) != VHD_BAT_UNUSED)
			return false;
	return true;
}

/*
 * Whether the image's parent reads as it does, at its size. What a longer parent
 * has behind that is hidden by the image.
 */
static bool adds_nothing(const struct vhd_chain *chain, unsigned int i)
{
	const struct vhd_image *image = chain->image[i];
	uint64_t parent = i + 1 < chain->nr_vhd ?
		chain->image[i + 1]->footer.current_size :
		chain->raw_sectors * VHD_SECTOR;

	return image->footer.type == VHD_DIFF && is_empty(image) &&
	       parent <= image->footer.current_size;
}

/*
 * As XenServer does: an empty differencing image is no use as a parent, its
 * own parent is taken instead, at the size of the one that was named.
 */
static int skip_empty(struct vhd_create_args *args,
		      const struct vhd_chain *chain, char **parent,
		      struct error *err)
{
	const char *found;
	unsigned int i = 0;

	while (i < chain->nr_vhd && adds_nothing(chain, i))
		i++;
	if (!i)
		return 0;
	args->size = chain->image[0]->footer.current_size;
	args->parent_raw = i == chain->nr_vhd;
	found = args->parent_raw ? chain->raw_path : chain->image[i]->path;
	*parent = strdup(found);
	if (!*parent)
		return error_set(err, -ENOMEM, "%s: out of memory", found);
	args->parent = *parent;
	return 0;
}

/* -l counts the images of the new chain, as query -d does. */
static int check_limit(const struct vhd_create_args *args, uint64_t limit,
		       const struct config *cfg, struct error *err)
{
	struct vhd_chain *chain;
	unsigned int depth;
	int rc;

	rc = vhd_chain_open(&chain, args->parent, cfg, 0, err);
	if (rc)
		return rc;
	depth = chain->depth;
	vhd_chain_close(chain);
	if (depth + 1 > limit)
		return error_set(err, -ENOSPC,
				 "%s: snapshot depth exceeded: current depth: %u, limit: %llu",
				 args->parent, depth,
				 (unsigned long long)limit);
	return 0;
}

static int snapshot(struct vhd_create_args *args, bool empty_check,
		    uint64_t limit, struct error *err)
{
	struct vhd_chain *chain = NULL;
	struct config cfg = { 0 };
	char *parent = NULL;
	int rc;

	rc = config_load(&cfg, NULL, err);
	if (rc)
		goto out;
	if (!args->parent_raw && empty_check) {
		rc = vhd_chain_open(&chain, args->parent, &cfg, 0, err);
		if (rc)
			goto out;
		rc = skip_empty(args, chain, &parent, err);
		vhd_chain_close(chain);
		if (rc)
			goto out;
	}
	if (limit && !args->parent_raw) {
		rc = check_limit(args, limit, &cfg, err);
		if (rc)
			goto out;
	}
	rc = vhd_create(args, &cfg, err);
out:
	free(parent);
	config_dispose(&cfg);
	return rc;
}

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	struct vhd_create_args args = { 0 };
	struct error err = { 0 };
	bool empty_check = true;
	uint64_t limit = 0;
	int opt;

	while ((opt = getopt(argc, argv, "n:p:S:l:meh")) != -1) {
		switch (opt) {
		case 'n':
			args.path = optarg;
			break;
		case 'p':
			args.parent = optarg;
			break;
		case 'S':
			if (!vhd_util_megabytes(optarg, opt,
						&args.reserve_size))
				return EXIT_USAGE;
			break;
		case 'l':
			if (!vhd_util_number(optarg, opt, UINT32_MAX, &limit))
				return EXIT_USAGE;
			break;
		case 'm':
			args.parent_raw = true;
			break;
		case 'e':
			empty_check = false;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!args.path || !args.parent || optind != argc)
		return vhd_util_usage(self, 0);
	return snapshot(&args, empty_check, limit, &err) ?
		vhd_util_failed(&err) : EXIT_OK;
}

const struct vhd_util_command vhd_util_snapshot = {
	.name = "snapshot",
	.usage = "-n NAME -p PARENT [-m] [-e] [-l LIMIT] [-S RESERVE_MB] [-h]\n"
		 "  -m  the parent is raw\n"
		 "  -e  link to the parent even if it is empty\n"
		 "  -l  refuse a chain of more images\n"
		 "  -S  room in the metadata to grow to this size later",
	.run = run,
};
