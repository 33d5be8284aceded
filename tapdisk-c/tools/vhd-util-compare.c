// SPDX-License-Identifier: LGPL-2.1-only
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/pages.h"
#include "jobs/disk.h"
#include "tools/vhd-util.h"
#include "vhd/vhd-internal.h"

#define CHUNK_SECTORS 2048u

/* As cmp and qemu-img compare have it. */
enum { SAME = 0, DIFFERENT = 1, TROUBLE = 2 };

struct compare {
	const char *path[2];
	bool raw, strict, json;
	struct vhd_chain *chain[2];
	struct disk *disk[2];		/* instead, of an NBD export */
	uint64_t sectors[2];
	uint8_t *buf[2];
	uint64_t offset;		/* of the first difference, bytes */
	bool different;
};

/* A raw file as a chain of its own. */
static int open_raw(struct vhd_chain **out, const char *path, uint64_t *sectors,
		    struct error *err)
{
	struct vhd_chain *chain = calloc(1, sizeof(*chain));
	struct stat st;
	uint64_t size;
	int rc;

	if (!chain)
		return error_set(err, -ENOMEM, "%s: out of memory", path);
	rc = vhd_file_open(&chain->raw_fd, path, 0, &st, &size, err);
	if (!rc && size % VHD_SECTOR)
		rc = error_set(err, -EINVAL,
			       "%s: size is %llu bytes; it must be a multiple of 512",
			       path, (unsigned long long)size);
	if (!rc) {
		chain->raw_path = strdup(path);
		chain->depth = 1;
		chain->raw_sectors = *sectors = size / VHD_SECTOR;
		if (!chain->raw_path)
			rc = error_set(err, -ENOMEM, "%s: out of memory", path);
	}
	if (rc)
		vhd_chain_close(chain);
	else
		*out = chain;
	return rc;
}

static int open_both(struct compare *c, const struct config *cfg,
		     struct error *err)
{
	int rc = 0;

	for (unsigned int i = 0; i < 2 && !rc; i++) {
		c->buf[i] = pages_alloc((size_t)CHUNK_SECTORS * VHD_SECTOR);
		if (!c->buf[i])
			return error_set(err, -ENOMEM, "%s: out of memory",
					 c->path[i]);
		if (disk_is_nbd(c->path[i])) {
			rc = disk_open(&c->disk[i], c->path[i], cfg, err);
			if (!rc)
				c->sectors[i] = disk_sectors(c->disk[i]);
			continue;
		}
		if (i && c->raw) {
			rc = open_raw(&c->chain[i], c->path[i], &c->sectors[i],
				      err);
			continue;
		}
		rc = vhd_chain_open(&c->chain[i], c->path[i], cfg, 0, err);
		if (!rc)
			c->sectors[i] = c->chain[i]->image[0]->footer.current_size /
					VHD_SECTOR;
	}
	return rc;
}

/* The run at sector, at most *n long, which gets its length. */
static int locate(const struct compare *c, unsigned int i, uint64_t sector,
		  uint32_t *n, bool *hole, struct error *err)
{
	struct image_extent extent;
	struct vhd_place place;
	int rc;

	if (c->disk[i]) {
		rc = disk_extent(c->disk[i], sector, *n, &extent, err);
		*n = extent.count;
		*hole = extent.zero;
		return rc;
	}
	rc = vhd_chain_locate(c->chain[i], sector, *n, &place, err);
	if (!rc) {
		*n = place.count;
		*hole = place.fd < 0;
	}
	return rc;
}

/* Past the end of the smaller one zeros are expected; *holes if both have nothing. */
static int locate_both(const struct compare *c, uint64_t sector, uint32_t *n,
		       bool *holes, struct error *err)
{
	int rc;

	*holes = true;
	for (unsigned int i = 0; i < 2; i++) {
		uint64_t left = sector < c->sectors[i] ?
				c->sectors[i] - sector : 0;

		bool hole = false;

		if (!left)
			continue;
		if (left < *n)
			*n = (uint32_t)left;
		rc = locate(c, i, sector, n, &hole, err);
		if (rc)
			return rc;
		*holes = *holes && hole;
	}
	return 0;
}

static int compare_chunk(struct compare *c, uint64_t sector, uint32_t n,
			 struct error *err)
{
	size_t bytes = (size_t)n * VHD_SECTOR, i = 0;
	int rc = 0;

	for (unsigned int k = 0; k < 2 && !rc; k++) {
		if (sector < c->sectors[k] && c->disk[k])
			rc = disk_read(c->disk[k], sector, n, c->buf[k], err);
		else if (sector < c->sectors[k])
			rc = vhd_chain_read(c->chain[k], sector, n, c->buf[k],
					    err);
		else
			memset(c->buf[k], 0, bytes);
	}
	if (rc || !memcmp(c->buf[0], c->buf[1], bytes))
		return rc;
	while (c->buf[0][i] == c->buf[1][i])
		i++;
	c->different = true;
	c->offset = sector * VHD_SECTOR + i;
	return 0;
}

static int compare(struct compare *c, struct error *err)
{
	uint64_t end = c->sectors[0] > c->sectors[1] ? c->sectors[0] :
						       c->sectors[1];
	int rc = 0;

	if (c->strict && c->sectors[0] != c->sectors[1]) {
		c->different = true;
		c->offset = (end == c->sectors[0] ? c->sectors[1] :
						    c->sectors[0]) * VHD_SECTOR;
		return 0;
	}
	for (uint64_t at = 0; at < end && !c->different && !rc;) {
		uint32_t n = end - at < UINT32_MAX ? (uint32_t)(end - at) :
						     UINT32_MAX;
		bool holes;

		rc = locate_both(c, at, &n, &holes, err);
		if (rc)
			break;
		if (!holes) {
			if (n > CHUNK_SECTORS)
				n = CHUNK_SECTORS;
			rc = compare_chunk(c, at, n, err);
		}
		at += n;
	}
	return rc;
}

static void print_result(const struct compare *c)
{
	if (c->json) {
		printf("{\n  \"identical\": %s,\n  \"offset\": ",
		       c->different ? "false" : "true");
		if (c->different)
			printf("%" PRIu64, c->offset);
		else
			printf("null");
		printf(",\n  \"sizes\": [%" PRIu64 ", %" PRIu64 "]\n}\n",
		       c->sectors[0] * VHD_SECTOR, c->sectors[1] * VHD_SECTOR);
	} else if (c->different && c->strict &&
		   c->sectors[0] != c->sectors[1]) {
		printf("Image size mismatch!\n");
	} else if (c->different) {
		printf("Content mismatch at offset %" PRIu64 "!\n", c->offset);
	} else {
		printf("Images are identical.\n");
	}
}

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "json", no_argument, NULL, 'J' },
		{ NULL, 0, NULL, 0 },
	};
	struct compare c = { 0 };
	struct config cfg = { 0 };
	struct error err = { 0 };
	int opt, rc;

	while ((opt = getopt_long(argc, argv, "n:N:msh", longopts, NULL)) !=
	       -1) {
		switch (opt) {
		case 'n':
			c.path[0] = optarg;
			break;
		case 'N':
			c.path[1] = optarg;
			break;
		case 'm':
			c.raw = true;
			break;
		case 's':
			c.strict = true;
			break;
		case 'J':
			c.json = true;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!c.path[0] || !c.path[1] || optind != argc)
		return vhd_util_usage(self, 0);
	rc = config_load(&cfg, NULL, &err);
	if (!rc)
		rc = open_both(&c, &cfg, &err);
	if (!rc)
		rc = compare(&c, &err);
	if (!rc)
		print_result(&c);
	for (unsigned int i = 0; i < 2; i++) {
		vhd_chain_close(c.chain[i]);
		disk_close(c.disk[i]);
		pages_free(c.buf[i], (size_t)CHUNK_SECTORS * VHD_SECTOR);
	}
	config_dispose(&cfg);
	if (rc) {
		vhd_util_failed(&err);
		return TROUBLE;
	}
	return c.different ? DIFFERENT : SAME;
}

const struct vhd_util_command vhd_util_compare = {
	.name = "compare",
	.usage = "-n NAME -N OTHER [-m] [-s] [--json] [-h]\n"
		 "  NAME, OTHER  images, or NBD URIs\n"
		 "  -m  the other one is raw\n"
		 "  -s  images of different sizes differ, whatever they hold\n"
		 "exit status: 0 the same, 1 different, 2 any failure",
	.run = run,
};
