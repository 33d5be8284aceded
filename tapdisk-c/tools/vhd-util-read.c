// SPDX-License-Identifier: LGPL-2.1-only
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/vhd-util.h"
#include "vhd/dump.h"
#include "vhd/vhd-internal.h"

#define CHUNK_SECTORS 2048u

enum { SECTOR_AT, BAT_ENTRY, BITMAP, TEST_BIT, EXTENTS, TEST_BATMAP, DATA,
       READ_SECTORS, READ_BYTES, NR_WHERE };

struct request {
	const char *path;
	bool headers, bat_bits, batmap, hex, json, other;
	bool asked[NR_WHERE];
	uint64_t where[NR_WHERE];
	uint64_t count;
};

struct source {
	const struct request *q;
	struct vhd_image *image;
	struct vhd_chain *chain;	/* only for what a guest reads */
	uint8_t *bitmap;		/* of bitmap_block, if that is allocated */
	uint32_t bitmap_block;
};

static const char *conv(const struct request *q, uint64_t n)
{
	static char text[4][24];
	static unsigned int next;
	char *s = text[next++ % 4];

	snprintf(s, sizeof(text[0]),
		 q->hex && n ? "0x%" PRIx64 : "%" PRIu64, n);
	return s;
}

static bool allocated(const struct vhd_image *image, uint64_t block)
{
	return vhd_bat(image, (uint32_t)block) != VHD_BAT_UNUSED;
}

static int sector_line(struct source *s, uint64_t sector, struct error *err)
{
	const struct vhd_image *image = s->image;
	uint64_t block = sector / image->spb, first = sector % image->spb;

	(void)err;
	printf("logical sector %s: ", conv(s->q, sector));
	printf("block number: %s, sector offset: %s, ", conv(s->q, block),
	       conv(s->q, first));
	printf("file offset: %s\n", !allocated(image, block) ?
	       "not allocated" :
	       conv(s->q, ((uint64_t)vhd_bat(image, (uint32_t)block) +
			   image->bitmap_sectors + first) * VHD_SECTOR));
	return 0;
}

static int bat_line(struct source *s, uint64_t block, struct error *err)
{
	(void)err;
	printf("block: %s: offset: %s\n", conv(s->q, block),
	       allocated(s->image, block) ?
	       conv(s->q, (uint64_t)vhd_bat(s->image, (uint32_t)block) *
			  VHD_SECTOR) :
	       "not allocated");
	return 0;
}

static int load_bitmap(struct source *s, uint64_t block, struct error *err)
{
	const struct vhd_image *image = s->image;
	int rc;

	if (s->bitmap && s->bitmap_block == block)
		return 0;
	if (!s->bitmap)
		s->bitmap = malloc((size_t)image->bitmap_sectors * VHD_SECTOR);
	if (!s->bitmap)
		return error_set(err, -ENOMEM, "%s: out of memory",
				 image->path);
	rc = vhd_read_bitmap(image, (uint32_t)block, s->bitmap);
	if (rc)
		return error_set(err, rc, "%s: bitmap of block %" PRIu64 ": %s",
				 image->path, block, strerror(-rc));
	s->bitmap_block = (uint32_t)block;
	return 0;
}

static int bitmap_bytes(struct source *s, uint64_t block, struct error *err)
{
	int rc;

	if (!allocated(s->image, block)) {
		printf("block %s not allocated\n", conv(s->q, block));
		return 0;
	}
	rc = load_bitmap(s, block, err);
	if (!rc)
		fwrite(s->bitmap, VHD_SECTOR, s->image->bitmap_sectors, stdout);
	return rc;
}

static int test_bit(struct source *s, uint64_t sector, bool *set,
		    struct error *err)
{
	uint64_t block = sector / s->image->spb;
	uint32_t bit = (uint32_t)(sector % s->image->spb);
	int rc;

	*set = false;
	if (!allocated(s->image, block))
		return 0;
	rc = load_bitmap(s, block, err);
	if (!rc)
		*set = s->bitmap[bit / 8] & 0x80u >> bit % 8;
	return rc;
}

static int bit_line(struct source *s, uint64_t sector, struct error *err)
{
	bool set;
	int rc = test_bit(s, sector, &set, err);

	if (rc)
		return rc;
	printf("block %s: ", conv(s->q, sector / s->image->spb));
	printf("sec: %s: %d\n", conv(s->q, sector % s->image->spb), set);
	return 0;
}

static int batmap_line(struct source *s, uint64_t block, struct error *err)
{
	if (!s->image->has_batmap)
		return error_set(err, -EINVAL, "%s: has no batmap",
				 s->image->path);
	printf("batmap for block %s: %d\n", conv(s->q, block),
	       (s->image->batmap[block / 8] & 0x80u >> block % 8) != 0);
	return 0;
}

static int data_bytes(struct source *s, uint64_t block, struct error *err)
{
	const struct vhd_image *image = s->image;
	uint8_t *buf;
	int rc;

	if (!allocated(image, block)) {
		printf("block %s not allocated\n", conv(s->q, block));
		return 0;
	}
	buf = malloc(image->header.block_size);
	if (!buf)
		return error_set(err, -ENOMEM, "%s: out of memory",
				 image->path);
	rc = vhd_read_at(image->fd, buf, image->header.block_size,
			 ((uint64_t)vhd_bat(image, (uint32_t)block) +
			  image->bitmap_sectors) * VHD_SECTOR);
	if (rc)
		error_set(err, rc, "%s: block %" PRIu64 ": %s", image->path,
			  block, strerror(-rc));
	else
		fwrite(buf, 1, image->header.block_size, stdout);
	free(buf);
	return rc;
}

static int extents(struct source *s, uint64_t from, uint64_t count,
		   struct error *err)
{
	uint64_t start = from, i;
	bool set = false, now = false;
	int rc;

	for (i = from; i < from + count; i++) {
		rc = test_bit(s, i, &now, err);
		if (rc)
			return rc;
		if (set && !now)
			printf("%s %s\n", conv(s->q, start),
			       conv(s->q, i - start));
		if (now && !set)
			start = i;
		set = now;
	}
	if (set)
		printf("%s %s\n", conv(s->q, start), conv(s->q, i - start));
	return 0;
}

static int guest_bytes(struct source *s, uint64_t from, uint64_t count,
		       struct error *err)
{
	uint8_t *buf = malloc((size_t)CHUNK_SECTORS * VHD_SECTOR);
	uint64_t size = s->image->footer.current_size / VHD_SECTOR;
	int rc = 0;

	if (!buf)
		return error_set(err, -ENOMEM, "%s: out of memory", s->q->path);
	while (count && !rc) {
		uint64_t sector = from / VHD_SECTOR, skip = from % VHD_SECTOR;
		uint64_t n = (uint64_t)CHUNK_SECTORS * VHD_SECTOR - skip;
		uint32_t sectors = CHUNK_SECTORS;

		if (sectors > size - sector)
			sectors = (uint32_t)(size - sector);
		if (n > count)
			n = count;
		rc = vhd_chain_read(s->chain, sector, sectors, buf, err);
		if (!rc)
			fwrite(buf + skip, 1, (size_t)n, stdout);
		from += n;
		count -= n;
	}
	free(buf);
	return rc;
}

static int check_range(const struct request *q, const char *what,
		       uint64_t from, uint64_t limit, struct error *err)
{
	if (from <= limit && q->count <= limit - from)
		return 0;
	return error_set(err, -ERANGE, "%s: %s %s (count %s) is past the end, %s",
			 q->path, what, conv(q, from), conv(q, q->count),
			 conv(q, limit));
}

typedef int (*line_fn)(struct source *s, uint64_t at, struct error *err);

static const struct {
	char opt;
	bool by_block;
	line_fn each;		/* NULL: the whole range at once */
} modes[NR_WHERE] = {
	[SECTOR_AT] = { 't', false, sector_line },
	[BAT_ENTRY] = { 'b', true, bat_line },
	[BITMAP] = { 'm', true, bitmap_bytes },
	[TEST_BIT] = { 'i', false, bit_line },
	[EXTENTS] = { 'e', false, NULL },
	[TEST_BATMAP] = { 'j', true, batmap_line },
	[DATA] = { 'd', true, data_bytes },
	[READ_SECTORS] = { 'r', false, NULL },
	[READ_BYTES] = { 'R', false, NULL },
};

static int run_mode(struct source *s, unsigned int mode, struct error *err)
{
	const struct request *q = s->q;
	uint64_t at = q->where[mode], sectors, unit = 1;
	int rc;

	sectors = s->image->footer.current_size / VHD_SECTOR;
	if (mode == READ_BYTES || mode == READ_SECTORS) {
		if (mode == READ_SECTORS)
			unit = VHD_SECTOR;
		rc = check_range(q, unit == 1 ? "byte" : "sector", at,
				 s->image->footer.current_size / unit, err);
		return rc ? rc : guest_bytes(s, at * unit, q->count * unit,
					     err);
	}
	if (s->image->footer.type == VHD_FIXED)
		return error_set(err, -EINVAL,
				 "%s: is fixed: it has no BAT and no bitmaps (option -%c)",
				 q->path, modes[mode].opt);
	rc = check_range(q, modes[mode].by_block ? "block" : "sector", at,
			 modes[mode].by_block ? s->image->bat_entries : sectors,
			 err);
	if (rc)
		return rc;
	if (mode == EXTENTS)
		return extents(s, at, q->count, err);
	for (uint64_t i = 0; i < q->count && !rc; i++)
		rc = modes[mode].each(s, at + i, err);
	return rc;
}

/* One bit a block that is allocated. */
static int bat_as_bits(const struct vhd_image *image, struct error *err)
{
	size_t bytes = ((size_t)image->bat_entries + 7) / 8;
	uint8_t *map;

	if (image->footer.type == VHD_FIXED)
		return error_set(err, -EINVAL, "%s: is fixed: it has no BAT",
				 image->path);
	map = calloc(1, bytes);
	if (!map)
		return error_set(err, -ENOMEM, "%s: out of memory",
				 image->path);
	for (uint32_t i = 0; i < image->bat_entries; i++)
		if (vhd_bat(image, i) != VHD_BAT_UNUSED)
			map[i / 8] |= (uint8_t)(0x80u >> i % 8);
	fwrite(map, 1, bytes, stdout);
	free(map);
	return 0;
}

static int batmap_bytes(const struct vhd_image *image, struct error *err)
{
	if (!image->has_batmap)
		return error_set(err, -EINVAL, "%s: has no batmap",
				 image->path);
	fwrite(image->batmap, VHD_SECTOR, image->batmap_sectors, stdout);
	return 0;
}

static int read_image(const struct request *q, struct error *err)
{
	struct source s = { .q = q };
	struct config cfg = { 0 };
	int rc;

	if (q->headers && !q->json) {
		rc = vhd_dump_headers(stdout, q->path, q->hex, err);
		if (rc)
			goto out;
	}
	rc = vhd_util_look(&s.image, q->path, err);
	if (rc)
		goto out;
	if (q->json) {
		rc = vhd_util_read_json(s.image, err);
		goto out;
	}
	if (q->asked[READ_SECTORS] || q->asked[READ_BYTES]) {
		rc = config_load(&cfg, NULL, err);
		if (!rc)
			rc = vhd_util_look_chain(&s.chain, q->path, &cfg, err);
		if (rc)
			goto out;
	}
	if (q->bat_bits)
		rc = bat_as_bits(s.image, err);
	if (!rc && q->batmap)
		rc = batmap_bytes(s.image, err);
	for (unsigned int i = 0; i < NR_WHERE && !rc; i++)
		if (q->asked[i])
			rc = run_mode(&s, i, err);
out:
	free(s.bitmap);
	vhd_chain_close(s.chain);
	vhd_close(s.image);
	config_dispose(&cfg);
	return rc;
}

static bool set_mode(struct request *q, int opt, const char *text)
{
	for (unsigned int i = 0; i < NR_WHERE; i++) {
		if (modes[i].opt != opt)
			continue;
		q->asked[i] = true;
		return vhd_util_number(text, opt, INT64_MAX, &q->where[i]);
	}
	return false;
}

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "json", no_argument, NULL, 'J' },
		{ NULL, 0, NULL, 0 },
	};
	struct request q = { .count = 1 };
	struct error err = { 0 };
	int opt;

	while ((opt = getopt_long(argc, argv, "n:pt:b:Bm:i:e:aj:d:c:r:R:xCh",
				  longopts, NULL)) != -1) {
		q.other = q.other || !strchr("npxCJ", opt);
		switch (opt) {
		case 'J':
			q.json = true;
			break;
		case 'n':
			q.path = optarg;
			break;
		case 'p':
			q.headers = true;
			break;
		case 'B':
			q.bat_bits = true;
			break;
		case 'a':
			q.batmap = true;
			break;
		case 'x':
			q.hex = true;
			break;
		case 'C':	/* XenServer's cache of parents: always on here */
			break;
		case 'c':
			if (!vhd_util_number(optarg, opt, INT64_MAX, &q.count))
				return EXIT_USAGE;
			break;
		case 't':
		case 'b':
		case 'm':
		case 'i':
		case 'e':
		case 'j':
		case 'd':
		case 'r':
		case 'R':
			if (!set_mode(&q, opt, optarg))
				return EXIT_USAGE;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!q.path || optind != argc || (q.json && (q.other || !q.headers)))
		return vhd_util_usage(self, 0);
	return read_image(&q, &err) ? vhd_util_failed(&err) : EXIT_OK;
}

const struct vhd_util_command vhd_util_read = {
	.name = "read",
	.usage = "-n NAME [OPTIONS]\n"
		 "  -p       print VHD headers (--json: as JSON, and nothing else)\n"
		 "  -t SEC   translate logical sector to VHD location\n"
		 "  -b BLK   print BAT entry\n"
		 "  -B       print entire BAT as a bitmap (bytes)\n"
		 "  -m BLK   print bitmap (bytes)\n"
		 "  -i SEC   test bitmap for logical sector\n"
		 "  -e SEC   list extents of allocated logical sectors\n"
		 "  -a       print batmap (bytes)\n"
		 "  -j BLK   test batmap for block\n"
		 "  -d BLK   print data of the block as stored\n"
		 "  -r SEC   read sectors through the chain\n"
		 "  -R BYTE  read bytes through the chain\n"
		 "  -c NUM   how many of these (1)\n"
		 "  -x       numbers in hex",
	.run = run,
};
