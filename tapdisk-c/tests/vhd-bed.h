/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A VHD on the fault engine, and what its sectors may hold. Every write has a
 * tag, larger than those before; a sector holds its number and a tag, or zeros.
 */
#ifndef XENBLK_VHD_BED_H
#define XENBLK_VHD_BED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "drivers/vhd-disk.h"
#include "tests/fault-engine.h"
#include "vhd/check.h"
#include "vhd/vhd-internal.h"

#define MAX_SLOTS	8u
#define MAX_COUNT	256u		/* sectors of a request */
#define MAX_EXTENTS	4u
#define STEPS_MAX	2000000u	/* more for one batch is a livelock */

static char dir[PATH_MAX];

static const char *in_dir(const char *name)
{
	static char path[4][PATH_MAX + 32];
	static unsigned int next;
	char *p = path[next++ % 4];

	snprintf(p, sizeof(path[0]), "%s/%s", dir, name);
	return p;
}

/* Images */

struct spec {
	uint64_t sectors;
	uint32_t block_size;
	uint32_t spare;			/* BAT entries beyond the size */
	bool batmap;
	const char *parent;		/* a name in dir, or NULL */
	bool parent_raw;
	uint64_t device;		/* bytes; 0: a file */
};

static inline void put(int fd, const void *buf, size_t len, uint64_t offset)
{
	assert_int_equal(real_pwrite(fd, buf, len, (off_t)offset), len);
}

static inline void parent_uuid(uuid_t out, const char *name)
{
	struct vhd_image *image;
	struct error err;

	if (vhd_open(&image, in_dir(name), VHD_OPEN_NOLOCK, &err))
		fail_msg("%s", err.text);
	uuid_copy(out, image->footer.uuid);
	vhd_close(image);
}

static inline void fill(uint8_t *buf, uint64_t sector, uint32_t count, uint64_t tag)
{
	for (uint32_t i = 0; i < count; i++) {
		uint64_t words[SECTOR_SIZE / 8] = { 0 };

		for (size_t j = 0; tag && j < SECTOR_SIZE / 8; j += 2) {
			words[j] = ~(sector + i);
			words[j + 1] = tag;
		}
		memcpy(buf + (size_t)i * SECTOR_SIZE, words, SECTOR_SIZE);
	}
}

/* An image as vhd_create() makes it, but of any block size. */
static inline void make_image(const char *name, const struct spec *s)
{
	uint64_t size = s->sectors * SECTOR_SIZE, at;
	uint32_t entries = (uint32_t)((size + s->block_size - 1) /
				      s->block_size) + s->spare;
	uint64_t bat = round_up_u64(4ull * entries, VHD_SECTOR);
	struct vhd_footer footer = {
		.features = 2, .version = VHD_VERSION_1_0, .data_offset = 512,
		.original_size = size, .current_size = size,
		.creator_version = VHD_TAP_VERSION(1, 3),
		.geometry = vhd_geometry(size),
		.type = s->parent ? VHD_DIFF : VHD_DYNAMIC,
	};
	struct vhd_header header = {
		.table_offset = 1536, .version = VHD_VERSION_1_0,
		.max_bat_size = entries, .block_size = s->block_size,
	};
	uint8_t sector[VHD_HEADER_BYTES];
	int fd;

	/* A test that failed may still hold the one before. */
	unlink(in_dir(name));
	fd = open(in_dir(name), O_RDWR | O_CREAT | O_EXCL, 0600);
	assert_true(fd >= 0);
	memcpy(footer.creator, s->batmap ? "tap" : "vpc ", 4);
	uuid_generate(footer.uuid);
	if (s->device) {
		static uint8_t junk[1 << 16];

		memset(junk, 0xdb, sizeof(junk));
		for (at = 0; at < s->device; at += sizeof(junk))
			put(fd, junk, sizeof(junk), at);
	}
	at = header.table_offset;
	for (uint64_t end = at + bat; at < end; at += VHD_SECTOR) {
		memset(sector, 0xff, VHD_SECTOR);
		put(fd, sector, VHD_SECTOR, at);
	}
	if (s->batmap) {
		uint32_t n = (uint32_t)((entries + 4095) / 4096) + 1;

		vhd_batmap_header_init(sector, at + VHD_SECTOR, n);
		put(fd, sector, VHD_SECTOR, at);
		memset(sector, 0, VHD_SECTOR);
		for (at += VHD_SECTOR; n; n--, at += VHD_SECTOR)
			put(fd, sector, VHD_SECTOR, at);
	}
	if (s->parent) {
		struct vhd_locator *l = &header.locator[0];
		uint8_t name_bytes[VHD_SECTOR] = { 0 };
		char relative[64];
		size_t len;

		snprintf(relative, sizeof(relative), "./%s", s->parent);
		assert_int_equal(vhd_locator_encode(name_bytes, VHD_SECTOR,
						    &len, VHD_LOC_W2RU,
						    relative), 0);
		l->code = VHD_LOC_W2RU;
		l->data_space = VHD_SECTOR;
		l->data_len = (uint32_t)len;
		l->data_offset = at;
		put(fd, name_bytes, VHD_SECTOR, at);
		at += VHD_SECTOR;
		if (!s->parent_raw)
			parent_uuid(header.parent_uuid, s->parent);
	}
	vhd_header_encode(sector, &header);
	put(fd, sector, VHD_HEADER_BYTES, 512);
	vhd_footer_encode(sector, &footer);
	put(fd, sector, VHD_SECTOR, 0);
	put(fd, sector, VHD_SECTOR, s->device ? s->device - VHD_SECTOR : at);
	close(fd);
}

/* A raw parent of zeros. */
static inline void empty_base(uint64_t sectors)
{
	int fd = open(in_dir("base.raw"), O_RDWR | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)(sectors * SECTOR_SIZE)), 0);
	close(fd);
}

/* Disks */

/* What a sector may hold: value, or a tag above since. */
struct expect {
	uint64_t value, since;
	bool held;			/* in the leaf, as far as is known */
};

struct slot {
	struct image_request req;
	struct bed *bed;
	bool busy;
	uint64_t tag;
	struct expect *then;		/* at the start, of the sectors or of all */
	struct image_extent extents[MAX_EXTENTS];
};

struct bed {
	struct engine engine;
	struct config cfg;
	const char *name;
	bool blk;
	struct vhd_disk *disk;
	uint64_t sectors, tag;
	struct expect *now, *flushed;
	uint64_t *attempt;		/* the last tag that was tried */
	uint64_t *zeroed;		/* that of the last zero or discard */
	struct slot slot[MAX_SLOTS];
	unsigned int busy;
	unsigned int nr_ops;		/* taken off the pool: kept aside */
	struct list spare_ops;
	bool faults;
	bool unchecked;			/* what is read is not held against now */
	int last_err;			/* of the request that ended last */
};

static inline void bed_init(struct bed *b, const char *name, uint64_t sectors)
{
	const size_t n = (size_t)sectors;
	struct error err;

	memset(b, 0, sizeof(*b));
	b->name = name;
	b->sectors = sectors;
	b->tag = 1;
	b->now = calloc(n, sizeof(*b->now));
	b->flushed = calloc(n, sizeof(*b->flushed));
	b->attempt = calloc(n, sizeof(*b->attempt));
	b->zeroed = calloc(n, sizeof(*b->zeroed));
	assert_true(b->now && b->flushed && b->attempt && b->zeroed);
	assert_int_equal(config_load(&b->cfg, "/nonexistent", &err), 0);
	for (unsigned int i = 0; i < MAX_SLOTS; i++) {
		b->slot[i].bed = b;
		b->slot[i].req.buf = aligned_alloc(IMAGE_ALIGN,
						   MAX_COUNT * SECTOR_SIZE);
		b->slot[i].then = calloc(n > MAX_COUNT ? n : MAX_COUNT,
					 sizeof(struct expect));
		assert_true(b->slot[i].req.buf && b->slot[i].then);
	}
}

static inline void bed_dispose(struct bed *b)
{
	for (unsigned int i = 0; i < MAX_SLOTS; i++) {
		free(b->slot[i].req.buf);
		free(b->slot[i].then);
	}
	free(b->now);
	free(b->flushed);
	free(b->attempt);
	free(b->zeroed);
	config_dispose(&b->cfg);
}

static inline void follow(struct bed *b, uint64_t seed)
{
	fe_open(&b->engine, in_dir(b->name), seed);
}

static inline void keep(struct list *pool, struct list *aside, unsigned int nr)
{
	unsigned int have = 0;

	list_init(aside);
	list_for_each(pos, pool)
		have++;
	for (; have > nr; have--)
		list_add_tail(list_pop(pool), aside);
}

/* ops, bitmaps: how many the pools hold; 0: as they are. */
static inline void disk_open(struct bed *b, unsigned int ops, unsigned int bitmaps)
{
	struct image_open_args args = {
		.engine = &b->engine, .config = &b->cfg,
		.path = in_dir(b->name), .max_requests = MAX_SLOTS,
	};
	struct image *image;
	struct error err;

	b->engine.dead = false;
	if (vhd_driver.open(&image, &args, &err))
		fail_msg("%s", err.text);
	assert_int_equal(image->info.sectors, b->sectors);
	b->disk = vhd_disk_of(image);
	if (b->blk) {
		b->disk->leaf->is_blk = true;
		b->disk->grow.durable_end = b->disk->leaf->file_size -
					    VHD_SECTOR;
	}
	keep(&b->disk->free_ops, &b->spare_ops, ops ? ops : UINT_MAX);
	if (bitmaps)
		b->disk->cache.limit = bitmaps;
	b->nr_ops = 0;
	list_for_each(pos, &b->disk->free_ops)
		b->nr_ops++;
}

static inline uint64_t tag_of(uint64_t sector, const uint8_t *p)
{
	uint8_t want[SECTOR_SIZE] = { 0 };
	uint64_t tag;

	memcpy(&tag, p + 8, sizeof(tag));
	fill(want, sector, 1, tag);
	return memcmp(p, want, SECTOR_SIZE) ? UINT64_MAX : tag;
}

static inline void check_sector(const struct bed *b, const char *what,
				uint64_t sector, uint64_t tag,
				const struct expect *e, bool lost)
{
	/*
	 * lost: the bit of a new sector survived, its data did not. Then there
	 * are zeros, or what an earlier write to the sector left, whose own
	 * bit was lost.
	 */
	if (tag == e->value || (tag == 0 && b->zeroed[sector] > e->since) ||
	    ((tag > e->since || lost) && tag != UINT64_MAX))
		return;
	fail_msg("%s: sector %llu holds %lld; %llu or above %llu was written there",
		 what, (unsigned long long)sector, (long long)tag,
		 (unsigned long long)e->value, (unsigned long long)e->since);
}

/* What reads as zeros can have no other value, without a write meanwhile. */
static inline void check_status(const struct slot *s)
{
	const struct image_request *req = &s->req;
	uint64_t at = 0;

	assert_in_range(req->nr_extents, 1, req->max_extents);
	for (unsigned int i = 0; i < req->nr_extents; i++) {
		const struct image_extent *x = &req->extents[i];

		assert_true(x->count);
		assert_true(!i || x->zero != x[-1].zero);
		for (uint32_t j = 0; x->zero && j < x->count; j++)
			check_sector(s->bed, "status", req->sector + at + j, 0,
				     &s->then[at + j], false);
		at += x->count;
	}
	assert_true(at <= req->count);
	/* Less is an answer too, where the rest could not be read. */
	assert_true(at == req->count || s->bed->faults ||
		    req->nr_extents == req->max_extents);
}

static inline void ended(struct image_request *req, int err)
{
	struct slot *s = container_of(req, struct slot, req);
	struct bed *b = s->bed;

	assert_true(s->busy);
	s->busy = false;
	b->busy--;
	b->last_err = err;
	if (err) {
		assert_true(b->faults);
		return;
	}
	if (req->op == IMAGE_FLUSH) {
		for (uint64_t i = 0; i < b->sectors; i++)
			if (s->then[i].since >= b->flushed[i].since)
				b->flushed[i] = s->then[i];
		return;
	}
	if (req->op == IMAGE_STATUS) {
		check_status(s);
		return;
	}
	for (uint32_t i = 0; i < req->count; i++) {
		struct expect *now = &b->now[req->sector + i];

		if (req->op == IMAGE_WRITE)
			*now = (struct expect){ s->tag, s->tag, true };
		else if (req->op == IMAGE_ZERO)
			*now = (struct expect){ 0, s->tag, now->held };
		else if (req->op == IMAGE_READ && !b->unchecked)
			check_sector(b, "read", req->sector + i,
				     tag_of(req->sector + i,
					    req->buf + i * SECTOR_SIZE),
				     &s->then[i], false);
	}
}

static inline struct slot *start(struct bed *b, enum image_op op, uint64_t sector,
			  uint32_t count)
{
	static const char *const names[] = { "  r", "  w", "  f", "  d",
					     "  z", "  s" };
	struct slot *s = b->slot;

	while (s->busy)
		s++;
	s->busy = true;
	b->busy++;
	s->req.op = op;
	s->req.sector = sector;
	s->req.count = count;
	s->req.done = ended;
	s->req.extents = s->extents;
	s->req.max_extents = 1 + fe_below(&b->engine, MAX_EXTENTS);
	s->req.keep_space = fe_one_in(&b->engine, 2);
	fe_trace(names[op], sector, count, (int)b->tag + 1);
	if (op == IMAGE_WRITE || op == IMAGE_ZERO || op == IMAGE_DISCARD) {
		s->tag = ++b->tag;
		for (uint32_t i = 0; i < count; i++)
			b->attempt[sector + i] = s->tag;
	}
	for (uint32_t i = 0; (op == IMAGE_DISCARD || op == IMAGE_ZERO) &&
			     i < count; i++)
		b->zeroed[sector + i] = s->tag;
	if (op == IMAGE_WRITE)
		fill(s->req.buf, sector, count, s->tag);
	else if (op == IMAGE_READ)
		memset(s->req.buf, 0xa5, (size_t)count * SECTOR_SIZE);
	memcpy(s->then, b->now + sector,
	       (op == IMAGE_FLUSH ? (size_t)b->sectors : count) *
	       sizeof(*s->then));
	vhd_driver.submit(&b->disk->image, &s->req);
	return s;
}

static inline void run(struct bed *b)
{
	uint64_t limit = b->engine.steps + STEPS_MAX;

	while (fe_step(&b->engine))
		if (b->engine.steps > limit)
			fail_msg("livelock: %u requests go on for ever",
				 b->busy);
}

/* Runs all to its end, after which nothing may be held. */
static inline void settle(struct bed *b)
{
	struct vhd_disk *disk = b->disk;
	unsigned int n = 0;

	run(b);
	if (b->busy)
		fail_msg("%u requests hang", b->busy);
	list_for_each(pos, &disk->free_ops)
		n++;
	assert_int_equal(n, b->nr_ops);
	n = 0;
	list_for_each(pos, &disk->cache.lru)
		n++;
	assert_int_equal(n, disk->cache.nr_used);
	n = 0;
	list_for_each(pos, &disk->map.free_builds)
		n++;
	assert_int_equal(n, disk->map.nr_builds);
	assert_false(image_busy(&disk->image));
	assert_true(list_empty(&disk->starved));
	assert_true(list_empty(&disk->map.starved));
	assert_true(list_empty(&disk->later));
	for (uint32_t i = 0; disk->unpublished && i < disk->leaf->bat_entries;
	     i++)
		assert_false(vhd_bit(disk->unpublished, i));
}

static inline int io(struct bed *b, enum image_op op, uint64_t sector, uint32_t count)
{
	start(b, op, sector, count);
	settle(b);
	return b->last_err;
}

static inline void set_faults(struct bed *b, unsigned int one_in)
{
	b->faults = one_in;
	b->engine.fail_read = b->engine.fail_write = one_in;
	b->engine.fail_sync = one_in;
}

/* The image is closed as after a kill; what is in flight happens or not. */
static inline void disk_kill(struct bed *b)
{
	fe_kill(&b->engine);
	vhd_driver.close(&b->disk->image, NULL);
	b->disk = NULL;
	b->busy = 0;
	for (unsigned int i = 0; i < MAX_SLOTS; i++)
		b->slot[i].busy = false;
}

static inline int disk_close(struct bed *b)
{
	int rc;

	settle(b);
	rc = vhd_driver.close(&b->disk->image, NULL);
	b->disk = NULL;
	if (!rc)
		memcpy(b->flushed, b->now, (size_t)b->sectors * sizeof(*b->now));
	return rc;
}

/*
 * Reads the disk and holds it against what a kill, or a power loss, must keep.
 * What is found counts from now on.
 */
static inline void look(struct bed *b, bool power)
{
	uint32_t n;

	set_faults(b, 0);
	for (uint64_t at = 0; at < b->sectors; at += n) {
		struct slot *s;

		n = b->sectors - at < MAX_COUNT ? (uint32_t)(b->sectors - at) :
						  MAX_COUNT;
		b->unchecked = true;
		s = start(b, IMAGE_READ, at, n);
		run(b);
		b->unchecked = false;
		assert_int_equal(b->busy, 0);
		for (uint32_t i = 0; i < n; i++) {
			struct expect *now = &b->now[at + i];
			struct expect *flushed = &b->flushed[at + i];
			struct expect *e = power ? flushed : now;
			uint64_t tag = tag_of(at + i, s->req.buf +
					      i * SECTOR_SIZE);

			check_sector(b, power ? "after a power loss" :
					     "after a kill", at + i, tag, e,
				     power && !e->held && !b->blk &&
				     b->attempt[at + i] > e->since);
			e->held = e->held || tag != e->value;
			e->value = tag;
			e->since = b->tag;
			if (power)
				*now = *flushed;
		}
	}
}

static inline void check_image(struct bed *b, bool quiet)
{
	struct vhd_check_options options = { .bitmaps = true };
	struct vhd_check_result result;
	struct vhd_image *image;
	struct error err;

	if (vhd_open(&image, in_dir(b->name), VHD_OPEN_NOLOCK, &err))
		fail_msg("%s", err.text);
	if (vhd_check(image, &options, &result, &err))
		fail_msg("%s", err.text);
	if (quiet && result.nr_warnings)
		fail_msg("after a clean close: %s", result.warning[0]);
	vhd_check_result_dispose(&result);
	vhd_close(image);
}

static inline int scratch(void **state)
{
	ssize_t n = readlink("/proc/self/exe", dir, sizeof(dir) - 32);

	(void)state;
	/* Beside the program: /tmp may be a tmpfs, which has no O_DIRECT on 6.1. */
	if (n <= 0)
		return -1;
	dir[n] = 0;
	strcat(dir, ".XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static inline int scratch_remove(void **state)
{
	static const char *const names[] = { "leaf.vhd", "base.raw", "mid.vhd" };

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		unlink(in_dir(names[i]));
	return rmdir(dir);
}

/* An image, open, and what it is to hold. */
static inline void begin_with(struct bed *b, const char *name, const struct spec *spec)
{
	make_image(name, spec);
	bed_init(b, name, spec->sectors);
	b->blk = spec->device;
	follow(b, 1);
	disk_open(b, 0, 0);
}

static inline void begin(struct bed *b, const struct spec *spec)
{
	begin_with(b, "leaf.vhd", spec);
}

static inline void end(struct bed *b)
{
	if (b->disk)
		assert_int_equal(disk_close(b), 0);
	fe_close(&b->engine);
	bed_dispose(b);
}

static inline bool reads_wait(const struct io_req *req)
{
	return req->op == IO_READ;
}

#endif
