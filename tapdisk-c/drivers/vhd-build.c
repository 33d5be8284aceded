/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * How the map learns a block: piece by piece, a piece being what lies in one
 * block of every image. The bitmaps that a piece needs are read at once, then
 * each sector gets the code of the first image that holds it. Bits that writes
 * set meanwhile go into the codes directly (vhd_build_set).
 */
#include "drivers/vhd-disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/pages.h"

#define BUILDS		16u
#define BUILD_BYTES	(8u << 20)	/* of all, unless a single one needs more */
#define BITS_PER_SECTOR	(8 * SECTOR_SIZE)

enum holds { HOLDS_NOTHING, HOLDS_ALL, HOLDS_BITMAP };

/* One image's part of a piece. */
struct load {
	struct vhd_build *build;
	enum holds holds;
	int err;
	uint32_t skip;			/* bits before the piece's first */
	uint8_t *map;
	struct io_req io;
	struct iovec iov;
};

struct vhd_build {
	struct list link;		/* while free */
	struct vhd_disk *disk;
	uint32_t block, nr;		/* its sectors */
	uint32_t at, piece;		/* the piece in work */
	unsigned int loading;
	bool spoilt;			/* the codes are no longer true */
	int err;			/* a bitmap could not be read */
	uint8_t *codes;
	struct load *load;		/* one for each level */
	struct list waiting;		/* image requests */
};

static bool is_whole(const struct vhd_disk *disk, unsigned int level,
		     uint32_t block)
{
	const struct vhd_image *image = disk->map.level[level].image;

	if (level == 0 && disk->whole)
		return vhd_bit(disk->whole, block);
	return image->has_batmap && vhd_bit(image->batmap, block);
}

/* What an image holds of its block, as far as is known without its bitmap. */
static enum holds look(const struct vhd_disk *disk, unsigned int level,
		       uint64_t sector)
{
	const struct vhd_level *l = &disk->map.level[level];
	uint32_t block;

	if (l->fixed)
		return HOLDS_ALL;
	block = (uint32_t)(sector >> l->shift);
	if (vhd_bat(l->image, block) == VHD_BAT_UNUSED)
		return HOLDS_NOTHING;
	return is_whole(disk, level, block) ? HOLDS_ALL : HOLDS_BITMAP;
}

/*
 * The code of the whole block if no bitmap is needed and one holder has it
 * all; else CODE_NONE.
 */
static unsigned int quick(const struct vhd_disk *disk, uint32_t block)
{
	const struct vhd_map *map = &disk->map;
	uint64_t start = (uint64_t)block << map->shift;
	uint64_t end = start + vhd_map_sectors(disk, block);

	for (unsigned int i = 0; i < map->nr_levels; i++) {
		const struct vhd_level *l = &map->level[i];
		enum holds holds;

		if (start >= l->sectors)
			return CODE_ZEROS;
		if (end > l->sectors || (!l->fixed && l->shift < map->shift))
			return CODE_NONE;
		holds = look(disk, i, start);
		if (holds == HOLDS_BITMAP)
			return CODE_NONE;
		if (holds == HOLDS_ALL)
			return CODE_LEAF + i;
	}
	if (disk->chain->raw_fd < 0 || start >= disk->chain->raw_sectors)
		return CODE_ZEROS;
	return end <= disk->chain->raw_sectors ? CODE_RAW : CODE_NONE;
}

/* Codes what has none yet. */
static void claim(uint8_t *codes, uint32_t nr, unsigned int code)
{
	for (uint32_t i = 0; i < nr; i++)
		if (!codes[i])
			codes[i] = (uint8_t)code;
}

/* The same of the sectors whose bits are set in bits, the first one's on top. */
static void claim_word(uint8_t *codes, uint64_t bits, unsigned int code)
{
	while (bits) {
		unsigned int at = (unsigned int)__builtin_clzll(bits);
		uint64_t rest = ~(bits << at);
		unsigned int run = rest ? (unsigned int)__builtin_clzll(rest) :
					  64;

		claim(codes + at, run, code);
		if (at + run >= 64)
			break;
		bits &= UINT64_MAX >> (at + run);
	}
}

/* skip and nr are multiples of 8, but for the nr at the end of the disk. */
static void claim_bits(uint8_t *codes, uint32_t nr, const uint8_t *map,
		       uint32_t skip, unsigned int code)
{
	uint32_t i = 0;

	map += skip / 8;
	for (; nr - i >= 64; i += 64)
		claim_word(codes + i, get_be64(map + i / 8), code);
	for (; i < nr; i += 8) {
		uint64_t bits = (uint64_t)map[i / 8] << 56;

		if (nr - i < 8)
			bits &= ~(UINT64_MAX >> (nr - i));
		claim_word(codes + i, bits, code);
	}
}

/* The bitmaps of the piece are there: codes its sectors. */
static void fold(struct vhd_build *b)
{
	struct vhd_disk *disk = b->disk;
	const struct vhd_map *map = &disk->map;
	uint64_t start = ((uint64_t)b->block << map->shift) + b->at;
	uint8_t *codes = b->codes + b->at;
	uint32_t nr = b->piece;
	uint64_t raw = disk->chain->raw_fd < 0 ? 0 : disk->chain->raw_sectors;

	for (unsigned int i = 0; i < map->nr_levels; i++) {
		uint64_t sectors = map->level[i].sectors;
		struct load *l = &b->load[i];

		/* A child may be larger than its parent: zeros from there on. */
		if (start + nr > sectors) {
			uint32_t in = sectors > start ?
				      (uint32_t)(sectors - start) : 0;

			claim(codes + in, nr - in, CODE_ZEROS);
			nr = in;
			if (!nr)
				return;
		}
		if (l->holds == HOLDS_ALL) {
			claim(codes, nr, CODE_LEAF + i);
			return;
		}
		if (l->holds == HOLDS_NOTHING)
			continue;
		if (l->err) {
			if (memchr(codes, CODE_NONE, nr))
				b->err = l->err;
			claim(codes, nr, CODE_ERROR);
			return;
		}
		claim_bits(codes, nr, l->map, l->skip, CODE_LEAF + i);
	}
	if (raw > start)
		claim(codes, raw - start < nr ? (uint32_t)(raw - start) : nr,
		      CODE_RAW);
	claim(codes, nr, CODE_ZEROS);
}

static void loaded(struct io_req *io, int err);

static void load(struct vhd_build *b, unsigned int level, uint64_t sector)
{
	const struct vhd_level *l = &b->disk->map.level[level];
	struct load *load = &b->load[level];
	uint32_t first = (uint32_t)sector & ((1u << l->shift) - 1);
	uint32_t block = (uint32_t)(sector >> l->shift);
	uint32_t from = first / BITS_PER_SECTOR;
	uint32_t to = (first + b->piece - 1) / BITS_PER_SECTOR + 1;
	const uint8_t *known;

	load->skip = first % BITS_PER_SECTOR;
	load->iov.iov_base = load->map;
	load->iov.iov_len = (size_t)(to - from) << SECTOR_SHIFT;
	/* Memory may be ahead of the file. */
	known = level ? NULL : vhd_cache_peek(&b->disk->cache, block);
	if (known) {
		memcpy(load->map, known + ((size_t)from << SECTOR_SHIFT),
		       load->iov.iov_len);
		return;
	}
	load->io.op = IO_READ;
	load->io.fd = l->fd;
	load->io.offset = ((uint64_t)vhd_bat(l->image, block) + from) <<
			  SECTOR_SHIFT;
	load->io.iov = &load->iov;
	load->io.iovcnt = 1;
	load->io.done = loaded;
	b->loading++;
	image_queue(&b->disk->image, &load->io);
}

/* Starts the piece's reads, as far down as they may matter. */
static void look_up(struct vhd_build *b)
{
	const struct vhd_map *map = &b->disk->map;
	uint64_t start = ((uint64_t)b->block << map->shift) + b->at;

	for (unsigned int i = 0; i < map->nr_levels; i++) {
		struct load *l = &b->load[i];

		if (start >= map->level[i].sectors)
			return;
		l->err = 0;
		l->holds = look(b->disk, i, start);
		if (l->holds == HOLDS_ALL)
			return;
		if (l->holds == HOLDS_BITMAP)
			load(b, i, start);
	}
}

/* True when all pieces are done. */
static bool go(struct vhd_build *b)
{
	while (b->at < b->nr) {
		b->piece = b->disk->map.piece;
		if (b->piece > b->nr - b->at)
			b->piece = b->nr - b->at;
		look_up(b);
		if (b->loading)
			return false;
		fold(b);
		b->at += b->piece;
	}
	return true;
}

static void finish(struct vhd_build *b)
{
	struct vhd_map *map = &b->disk->map;

	if (b->spoilt)
		map->unit[b->block] = CODE_NONE;
	else
		vhd_map_install(b->disk, b->block, b->codes);
	list_add(&b->link, &map->free_builds);
}

static bool is_being_built(const struct vhd_map *map, uint32_t block)
{
	return map->unit[block] >= CODE_BUILDING &&
	       map->unit[block] < CODE_MIXED;
}

static void loaded(struct io_req *io, int err)
{
	struct load *l = container_of(io, struct load, io);
	struct vhd_build *b = l->build;
	struct vhd_disk *disk = b->disk;
	struct list waiting, *item;
	uint32_t block = b->block;

	/* A chain's file is shorter than its metadata says. */
	l->err = err == -ENODATA ? -EIO : err;
	if (--b->loading)
		return;
	fold(b);
	b->at += b->piece;
	if (!go(b))
		return;
	err = b->err;
	finish(b);
	list_init(&waiting);
	list_splice(&b->waiting, &waiting);
	vhd_wake(disk, &waiting, 0);
	/* Who asks again may have better luck; unless it is being learnt again already. */
	if (err && !is_being_built(&disk->map, block))
		vhd_map_forget(disk, block);
	while (!list_empty(&disk->map.free_builds) &&
	       (item = list_pop(&disk->map.starved)))
		vhd_advance(disk, container_of(item, struct image_request,
					       link));
}

bool vhd_build(struct vhd_disk *disk, uint32_t block,
	       struct image_request *req)
{
	struct vhd_map *map = &disk->map;
	struct vhd_build *b;
	unsigned int code;
	struct list *item;

	if (map->unit[block] != CODE_NONE) {
		b = &map->builds[map->unit[block] - CODE_BUILDING];
		list_add_tail(&req->link, &b->waiting);
		return false;
	}
	code = quick(disk, block);
	if (code != CODE_NONE) {
		map->unit[block] = (uint16_t)code;
		return true;
	}
	item = list_pop(&map->free_builds);
	if (!item) {
		list_add_tail(&req->link, &map->starved);
		return false;
	}
	b = container_of(item, struct vhd_build, link);
	b->block = block;
	b->nr = vhd_map_sectors(disk, block);
	b->at = 0;
	b->spoilt = false;
	b->err = 0;
	memset(b->codes, CODE_NONE, b->nr);
	map->unit[block] = (uint16_t)(CODE_BUILDING + (b - map->builds));
	if (go(b)) {
		finish(b);
		return true;
	}
	list_add_tail(&req->link, &b->waiting);
	return false;
}

void vhd_build_set(struct vhd_disk *disk, unsigned int build, uint32_t first,
		   uint32_t count)
{
	memset(disk->map.builds[build].codes + first, CODE_LEAF, count);
}

void vhd_build_spoil(struct vhd_disk *disk, unsigned int build)
{
	disk->map.builds[build].spoilt = true;
}

int vhd_build_init(struct vhd_disk *disk)
{
	struct vhd_map *map = &disk->map;
	uint32_t spb = 1u << map->shift;
	size_t bitmap, bytes;
	uint8_t *p;

	map->piece = spb;
	for (unsigned int i = 0; i < map->nr_levels; i++)
		if (!map->level[i].fixed &&
		    1u << map->level[i].shift < map->piece)
			map->piece = 1u << map->level[i].shift;
	/* It is aligned to its size: its bits lie in one sector or fill several. */
	bitmap = ((size_t)map->piece + BITS_PER_SECTOR - 1) / BITS_PER_SECTOR *
		 SECTOR_SIZE;
	bytes = bitmap * map->nr_levels +
		(((size_t)spb + SECTOR_SIZE - 1) & ~(size_t)(SECTOR_SIZE - 1));
	map->nr_builds = (unsigned int)(BUILD_BYTES / bytes);
	if (map->nr_builds > BUILDS)
		map->nr_builds = BUILDS;
	if (map->nr_builds < 2)
		map->nr_builds = 2;
	map->build_bytes = bytes * map->nr_builds;
	map->build_memory = pages_alloc(map->build_bytes);
	map->builds = calloc(map->nr_builds, sizeof(*map->builds));
	if (!map->build_memory || !map->builds)
		return -ENOMEM;
	p = map->build_memory;
	for (unsigned int i = 0; i < map->nr_builds; i++) {
		struct vhd_build *b = &map->builds[i];

		b->disk = disk;
		b->load = calloc(map->nr_levels, sizeof(*b->load));
		if (!b->load)
			return -ENOMEM;
		for (unsigned int j = 0; j < map->nr_levels; j++) {
			b->load[j].build = b;
			b->load[j].map = p;
			p += bitmap;
		}
		b->codes = p;
		p += bytes - bitmap * map->nr_levels;
		list_init(&b->waiting);
		list_add_tail(&b->link, &map->free_builds);
	}
	return 0;
}

void vhd_build_destroy(struct vhd_disk *disk)
{
	struct vhd_map *map = &disk->map;

	for (unsigned int i = 0; map->builds && i < map->nr_builds; i++)
		free(map->builds[i].load);
	free(map->builds);
	pages_free(map->build_memory, map->build_bytes);
}
