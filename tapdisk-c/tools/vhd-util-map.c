// SPDX-License-Identifier: LGPL-2.1-only
/* Which image holds what of a disk. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "jobs/disk.h"
#include "tools/vhd-util.h"
#include "vhd/vhd-internal.h"

#define LIMIT_SECTORS (1u << 30)

enum state { DATA, ZERO, HOLE };	/* ZERO: in an image, whose file has nothing there */

struct extent {
	uint64_t start, length;		/* bytes of the disk */
	enum state state;
	unsigned int level;
	uint64_t offset;		/* in the file */
};

struct map {
	const struct vhd_chain *chain;	/* NULL: an NBD export, which tells no file */
	struct extent last;
	bool json, any;
};

static const char *file_of(const struct map *m, const struct extent *e)
{
	return e->level < m->chain->nr_vhd ? m->chain->image[e->level]->path :
					     m->chain->raw_path;
}

static void print_json(const struct map *m, const struct extent *e)
{
	json_t *file;

	printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
	       ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s",
	       m->any ? ",\n" : "[", e->start, e->length, e->level,
	       e->state == HOLE ? "false" : "true",
	       e->state == DATA ? "false" : "true",
	       e->state == DATA ? "true" : "false");
	if (e->state != HOLE && m->chain) {
		file = json_string(file_of(m, e));
		printf(", \"offset\": %" PRIu64 ", \"file\": ", e->offset);
		json_dumpf(file ? file : json_null(), stdout, JSON_ENCODE_ANY);
		json_decref(file);
	}
	printf("}");
}

static void print_extent(struct map *m)
{
	static const char *const name[] = { "data", "zero", "hole" };
	const struct extent *e = &m->last;

	if (!e->length)
		return;
	if (m->json)
		print_json(m, e);
	else if (e->state == HOLE || !m->chain)
		printf("%" PRIu64 " %" PRIu64 " %s\n", e->start, e->length,
		       name[e->state]);
	else
		printf("%" PRIu64 " %" PRIu64 " %s %u %" PRIu64 " %s\n",
		       e->start, e->length, name[e->state], e->level,
		       e->offset, vhd_util_plain(file_of(m, e)));
	m->any = true;
}

static void add(struct map *m, const struct extent *e)
{
	struct extent *last = &m->last;

	if (last->length && last->state == e->state &&
	    last->level == e->level &&
	    (e->state == HOLE || !m->chain || last->offset + last->length == e->offset)) {
		last->length += e->length;
		return;
	}
	print_extent(m);
	*last = *e;
}

/* A run in a file, split where that has holes. */
static void add_run(struct map *m, int fd, struct extent e)
{
	uint64_t end = e.start + e.length, n;
	off_t data, hole;

	while (e.start < end) {
		n = end - e.start;
		e.state = DATA;
		data = lseek(fd, (off_t)e.offset, SEEK_DATA);
		if (data < 0 && errno == ENXIO) {
			e.state = ZERO;
		} else if (data > (off_t)e.offset) {
			e.state = ZERO;
			if ((uint64_t)data - e.offset < n)
				n = (uint64_t)data - e.offset;
		} else if (data >= 0) {
			hole = lseek(fd, (off_t)e.offset, SEEK_HOLE);
			if (hole > (off_t)e.offset &&
			    (uint64_t)hole - e.offset < n)
				n = (uint64_t)hole - e.offset;
		}
		e.length = n;
		add(m, &e);
		e.start += n;
		e.offset += n;
	}
}

static int map_export(const char *uri, bool json, struct error *err)
{
	struct map m = { .json = json };
	struct disk *disk = NULL;
	struct config cfg = { 0 };
	struct image_extent extent;
	int rc;

	rc = config_load(&cfg, NULL, err);
	if (!rc)
		rc = disk_open(&disk, uri, &cfg, err);
	for (uint64_t at = 0; !rc && at < disk_sectors(disk);
	     at += extent.count) {
		uint64_t left = disk_sectors(disk) - at;

		rc = disk_extent(disk, at, left < LIMIT_SECTORS ?
				 (uint32_t)left : LIMIT_SECTORS, &extent, err);
		if (!rc)
			add(&m, &(struct extent){
				.start = at * VHD_SECTOR,
				.length = (uint64_t)extent.count * VHD_SECTOR,
				.state = extent.hole ? HOLE :
					 extent.zero ? ZERO : DATA,
			});
	}
	if (!rc) {
		print_extent(&m);
		if (json)
			printf("]\n");
	}
	disk_close(disk);
	config_dispose(&cfg);
	return rc;
}

static int map(const char *path, bool json, struct error *err)
{
	struct map m = { .json = json };
	struct vhd_chain *chain = NULL;
	struct config cfg = { 0 };
	struct vhd_place place;
	uint64_t sectors;
	int rc;

	rc = config_load(&cfg, NULL, err);
	if (!rc)
		rc = vhd_util_look_chain(&chain, path, &cfg, err);
	if (rc)
		goto out;
	m.chain = chain;
	sectors = chain->image[0]->footer.current_size / VHD_SECTOR;
	for (uint64_t at = 0; at < sectors; at += place.count) {
		uint64_t left = sectors - at;

		rc = vhd_chain_locate(chain, at, left < LIMIT_SECTORS ?
				      (uint32_t)left : LIMIT_SECTORS, &place,
				      err);
		if (rc)
			goto out;
		struct extent e = {
			.start = at * VHD_SECTOR,
			.length = (uint64_t)place.count * VHD_SECTOR,
			.state = HOLE,
			.level = place.level,
			.offset = place.offset,
		};
		if (place.fd < 0)
			add(&m, &e);
		else
			add_run(&m, place.fd, e);
	}
	print_extent(&m);
	if (json)
		printf("]\n");
out:
	vhd_chain_close(chain);
	config_dispose(&cfg);
	return rc;
}

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "json", no_argument, NULL, 'J' },
		{ NULL, 0, NULL, 0 },
	};
	const char *path = NULL;
	struct error err = { 0 };
	bool json = false;
	int opt;

	while ((opt = getopt_long(argc, argv, "n:h", longopts, NULL)) != -1) {
		switch (opt) {
		case 'n':
			path = optarg;
			break;
		case 'J':
			json = true;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!path || optind != argc)
		return vhd_util_usage(self, 0);
	if (disk_is_nbd(path))
		return map_export(path, json, &err) ? vhd_util_failed(&err) :
						      EXIT_OK;
	return map(path, json, &err) ? vhd_util_failed(&err) : EXIT_OK;
}

const struct vhd_util_command vhd_util_map = {
	.name = "map",
	.usage = "-n NAME [--json] [-h]\n"
		 "  prints START LENGTH hole, or START LENGTH data|zero DEPTH OFFSET FILE (bytes)",
	.run = run,
};
