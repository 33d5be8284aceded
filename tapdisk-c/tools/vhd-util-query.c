// SPDX-License-Identifier: LGPL-2.1-only
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/vhd-util.h"
#include "vhd/vhd-internal.h"

struct query {
	const char *path;
	bool size, physical, parent, unresolved, fields, depth, fast, marker,
		allocated, json;
};

static uint64_t physical_size(const struct vhd_image *image)
{
	return image->footer.type == VHD_FIXED ? image->file_size :
						 image->data_end + VHD_SECTOR;
}

static uint32_t allocated_blocks(const struct vhd_image *image)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < image->bat_entries; i++)
		n += vhd_bat(image, i) != VHD_BAT_UNUSED;
	return n;
}

static uint64_t max_size(const struct vhd_image *image)
{
	return image->footer.type == VHD_FIXED ? image->footer.current_size :
	       (uint64_t)image->header.max_bat_size * image->header.block_size;
}

static const char *parent_of(const struct vhd_chain *chain)
{
	return chain->nr_vhd > 1 ? chain->image[1]->path : chain->raw_path;
}

/* The first locator's path as stored, or NULL. */
static char *stored_parent(const struct vhd_image *image)
{
	char *path = NULL;

	for (unsigned int i = 0; i < VHD_NR_LOCATORS && !path; i++)
		path = vhd_locator_path(image->fd, &image->header.locator[i]);
	return path;
}

/* The lines of XenServer's, which its storage manager takes apart by number. */
static void print_lines(const struct query *q, const struct vhd_image *image,
			const struct vhd_chain *chain)
{
	bool diff = image->footer.type == VHD_DIFF;
	char *stored = NULL;

	if (q->size)
		printf("%" PRIu64 "\n", image->footer.current_size >> 20);
	if (q->physical)
		printf("%" PRIu64 "\n", physical_size(image));
	if (q->parent && !diff) {
		printf("%s has no parent\n", q->path);
	} else if (q->parent) {
		if (q->unresolved)
			stored = stored_parent(image);
		if (stored)
			printf("%s\n", vhd_util_plain(stored));
		else
			printf("%s\n", chain ? vhd_util_plain(parent_of(chain)) :
					       "query failed");
	}
	if (q->fields)
		printf("hidden: %u\n", image->footer.hidden);
	if (q->marker)
		printf("marker: %u\n", image->batmap_marker);
	if (q->depth && chain)
		printf("chain depth: %u\n", chain->depth);
	else if (q->depth)
		printf("error checking chain depth\n");
	if (q->allocated)
		printf("%u\n", allocated_blocks(image));
	if (q->fast)
		printf("%" PRIu64 "\n", max_size(image) >> 20);
	free(stored);
}

static int print_json(const struct query *q, const struct vhd_image *image,
		      const struct vhd_chain *chain, struct error *err)
{
	bool fixed = image->footer.type == VHD_FIXED;
	bool diff = image->footer.type == VHD_DIFF;
	char uuid[37], parent_uuid[37], creator[5] = "";
	json_t *o;
	int rc = 0;

	uuid_unparse_lower(image->footer.uuid, uuid);
	uuid_unparse_lower(image->header.parent_uuid, parent_uuid);
	for (unsigned int i = 0; i < 4 && image->footer.creator[i]; i++)
		creator[i] = image->footer.creator[i] >= 0x20 &&
			     image->footer.creator[i] < 0x7f ?
			     image->footer.creator[i] : '?';
	o = json_pack("{s:s, s:s, s:I, s:I, s:I, s:s, s:s, s:b, s:i}",
		      "image", q->path,
		      "type", vhd_util_type(image->footer.type),
		      "virtual_size", (json_int_t)image->footer.current_size,
		      "physical_size", (json_int_t)physical_size(image),
		      "max_virtual_size", (json_int_t)max_size(image),
		      "uuid", uuid, "creator", creator,
		      "hidden", image->footer.hidden != 0,
		      "marker", image->batmap_marker);
	if (!o)
		return error_set(err, -EILSEQ,
				 "%s: its name is not UTF-8, which JSON needs",
				 q->path);
	json_object_set_new(o, "block_size", fixed ? json_null() :
			    json_integer(image->header.block_size));
	json_object_set_new(o, "allocated_blocks", fixed ? json_null() :
			    json_integer(allocated_blocks(image)));
	json_object_set_new(o, "parent_uuid",
			    diff && !uuid_is_null(image->header.parent_uuid) ?
			    json_string(parent_uuid) : json_null());
	json_object_set_new(o, "parent", chain && diff ?
			    json_string(parent_of(chain)) : json_null());
	json_object_set_new(o, "parent_raw", diff ?
			    json_boolean(uuid_is_null(image->header.parent_uuid)) :
			    json_null());
	json_object_set_new(o, "chain_depth", chain ?
			    json_integer(chain->depth) : json_null());
	if (json_dumpf(o, stdout, JSON_INDENT(2)))
		rc = error_set(err, -EIO, "standard output: can't be written");
	else
		putchar('\n');
	json_decref(o);
	return rc;
}

static int query(const struct query *q, struct error *err)
{
	struct vhd_image *image = NULL;
	struct vhd_chain *chain = NULL;
	struct config cfg = { 0 };
	struct error fault = { 0 };
	int rc;

	rc = config_load(&cfg, NULL, err);
	if (rc)
		goto out;
	rc = vhd_util_look(&image, q->path, err);
	if (rc)
		goto out;
	/* What is known of the image itself is printed if a parent is lost. */
	if ((q->parent && !q->unresolved) || q->depth || q->json)
		vhd_util_look_chain(&chain, q->path, &cfg, &fault);
	if (q->json)
		rc = print_json(q, image, chain, err);
	else
		print_lines(q, image, chain);
	if (!rc && fault.code)
		rc = error_set(err, fault.code, "%s", fault.text);
out:
	vhd_chain_close(chain);
	vhd_close(image);
	config_dispose(&cfg);
	return rc;
}

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "json", no_argument, NULL, 'J' },
		{ NULL, 0, NULL, 0 },
	};
	struct query q = { 0 };
	struct error err = { 0 };
	int opt;

	while ((opt = getopt_long(argc, argv, "n:vspfdSmauh", longopts,
				  NULL)) != -1) {
		switch (opt) {
		case 'n':
			q.path = optarg;
			break;
		case 'v':
			q.size = true;
			break;
		case 's':
			q.physical = true;
			break;
		case 'p':
			q.parent = true;
			break;
		case 'f':
			q.fields = true;
			break;
		case 'd':
			q.depth = true;
			break;
		case 'S':
			q.fast = true;
			break;
		case 'm':
			q.marker = true;
			break;
		case 'a':
			q.allocated = true;
			break;
		case 'u':
			q.unresolved = true;
			break;
		case 'J':
			q.json = true;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!q.path || optind != argc)
		return vhd_util_usage(self, 0);
	return query(&q, &err) ? vhd_util_failed(&err) : EXIT_OK;
}

const struct vhd_util_command vhd_util_query = {
	.name = "query",
	.usage = "-n NAME [-v] [-s] [-p [-u]] [-f] [-m] [-d] [-a] [-S] [--json] [-h]\n"
		 "  -v  virtual size (MB)\n"
		 "  -s  physical size (bytes)\n"
		 "  -p  parent; -u: as stored, not looked up\n"
		 "  -f  fields (hidden)\n"
		 "  -m  marker\n"
		 "  -d  chain depth\n"
		 "  -a  allocated blocks\n"
		 "  -S  size to which it can grow in place (MB)",
	.run = run,
};
