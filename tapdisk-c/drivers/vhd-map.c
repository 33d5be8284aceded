/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The chain map: a code for each block of the leaf, or, where its sectors have
 * several holders, one for every 8 sectors, or for each.
 *
 * Memory: 2 bytes for each block that was ever touched, and POOL_BYTES for
 * each of the two kinds of mixed blocks (64 and 8 GiB of disk at 2 MiB a block);
 * when that is used up, blocks not read of late are forgotten and learnt again.
 */
#include "drivers/vhd-disk.h"

#include <errno.h>
#include <string.h>

#include "common/pages.h"

#define POOL_BYTES	(16u << 20)
#define POOL_MIN	16u
#define POOL_MAX	32512u		/* two of them in 16 bits, beside the codes */

#define GROUP_SHIFT	3		/* of the coarser kind: 4 KiB */

uint32_t vhd_map_sectors(const struct vhd_disk *disk, uint32_t block)
{
	uint64_t start = (uint64_t)block << disk->map.shift;
	uint64_t left = disk->image.info.sectors - start;

	return left >> disk->map.shift ? 1u << disk->map.shift : (uint32_t)left;
}

/* Mixed blocks */

static struct vhd_mixed *mixed_of(struct vhd_map *map, uint32_t block)
{
	return &map->mixed[map->unit[block] - CODE_MIXED];
}

/* An entry for the block, whose codes are undefined; evicts another. */
static struct vhd_mixed *mixed_take(struct vhd_map *map,
				    struct vhd_mixed_pool *pool, uint32_t block)
{
	struct vhd_mixed *m;
	unsigned int i;

	for (;;) {
		i = pool->first + pool->hand;
		pool->hand = (pool->hand + 1) % pool->limit;
		m = &map->mixed[i];
		if (!m->taken || !m->used)
			break;
		m->used = false;
	}
	if (m->taken)
		map->unit[m->block] = CODE_NONE;
	m->codes = pool->codes + (size_t)(i - pool->first) * pool->bytes;
	m->shift = pool->shift;
	m->block = block;
	m->taken = m->used = true;
	map->unit[block] = (uint16_t)(CODE_MIXED + i);
	return m;
}

static void count_foreign(struct vhd_mixed *m, uint32_t nr)
{
	m->foreign = 0;
	for (uint32_t i = 0; i < nr; i++)
		m->foreign += m->codes[i] != CODE_LEAF;
}

static bool all_equal(const uint8_t *codes, uint32_t nr)
{
	return !memcmp(codes, codes + 1, nr - 1);
}

/* The codes are the same within each group of 8 sectors. */
static bool grouped(const uint8_t *codes, uint32_t nr)
{
	for (uint32_t i = 0; i < nr; i += 1u << GROUP_SHIFT) {
		uint32_t n = nr - i < 1u << GROUP_SHIFT ? nr - i :
							  1u << GROUP_SHIFT;

		if (!all_equal(codes + i, n))
			return false;
	}
	return true;
}

void vhd_map_install(struct vhd_disk *disk, uint32_t block,
		     const uint8_t *codes)
{
	uint32_t nr = vhd_map_sectors(disk, block), n = 0;
	struct vhd_map *map = &disk->map;
	struct vhd_mixed_pool *pool;
	struct vhd_mixed *m;

	if (all_equal(codes, nr)) {
		map->unit[block] = codes[0];
		return;
	}
	pool = &map->pool[!grouped(codes, nr)];
	m = mixed_take(map, pool, block);
	for (uint32_t i = 0; i < nr; i += 1u << pool->shift)
		m->codes[n++] = codes[i];
	count_foreign(m, n);
}

/* A block of which all has one code becomes mixed. */
static struct vhd_mixed *mixed_split(struct vhd_disk *disk, uint32_t block,
				     bool fine)
{
	uint32_t nr = vhd_map_sectors(disk, block);
	struct vhd_map *map = &disk->map;
	uint8_t code = (uint8_t)map->unit[block];
	struct vhd_mixed *m = mixed_take(map, &map->pool[fine], block);

	nr = (nr + (1u << m->shift) - 1) >> m->shift;
	memset(m->codes, code, nr);
	m->foreign = nr;
	return m;
}

/* From a code for 8 sectors to one for each. */
static struct vhd_mixed *mixed_refine(struct vhd_disk *disk,
				      struct vhd_mixed *coarse)
{
	uint32_t nr = vhd_map_sectors(disk, coarse->block);
	struct vhd_map *map = &disk->map;
	struct vhd_mixed *m = mixed_take(map, &map->pool[1], coarse->block);

	for (uint32_t i = 0; i < nr; i++)
		m->codes[i] = coarse->codes[i >> GROUP_SHIFT];
	count_foreign(m, nr);
	coarse->taken = false;
	return m;
}

/* A border that lies within a group which is not the leaf's. */
static bool cuts_group(const struct vhd_mixed *m, uint32_t at)
{
	return at & ((1u << m->shift) - 1) &&
	       m->codes[at >> m->shift] != CODE_LEAF;
}

void vhd_map_moved(struct vhd_disk *disk, uint32_t block, uint32_t first,
		   uint32_t count)
{
	struct image_watcher *watcher = disk->image.watcher;

	if (watcher)
		watcher->moved(watcher,
			       ((uint64_t)block << disk->map.shift) + first,
			       count);
}

void vhd_map_set(struct vhd_disk *disk, uint32_t block, uint32_t first,
		 uint32_t count)
{
	struct vhd_map *map = &disk->map;
	uint16_t *unit = &map->unit[block];
	uint32_t nr = vhd_map_sectors(disk, block), end = first + count;
	struct vhd_mixed *m;

	/* Bits beyond the end of the disk are of no interest. */
	if (end > nr)
		end = nr;
	if (*unit == CODE_LEAF || first >= end)
		return;
	/* Known or not: it may have been once. */
	vhd_map_moved(disk, block, first, end - first);
	if (*unit == CODE_NONE)
		return;
	if (*unit >= CODE_BUILDING && *unit < CODE_MIXED) {
		vhd_build_set(disk, *unit - CODE_BUILDING, first, end - first);
		return;
	}
	m = *unit >= CODE_MIXED ? mixed_of(map, block) : NULL;
	if (first == 0 && end == nr) {
		if (m)
			m->taken = false;
		*unit = CODE_LEAF;
		return;
	}
	if (!m)
		m = mixed_split(disk, block, (first | (end == nr ? 0 : end)) &
				((1u << GROUP_SHIFT) - 1));
	else if (cuts_group(m, first) || (end < nr && cuts_group(m, end)))
		m = mixed_refine(disk, m);
	for (uint32_t i = first >> m->shift; i <= (end - 1) >> m->shift; i++) {
		m->foreign -= m->codes[i] != CODE_LEAF;
		m->codes[i] = CODE_LEAF;
	}
	if (!m->foreign) {
		m->taken = false;
		*unit = CODE_LEAF;
	}
}

void vhd_map_forget(struct vhd_disk *disk, uint32_t block)
{
	struct vhd_map *map = &disk->map;
	uint16_t unit = map->unit[block];

	vhd_map_moved(disk, block, 0, vhd_map_sectors(disk, block));
	if (unit >= CODE_BUILDING && unit < CODE_MIXED) {
		vhd_build_spoil(disk, unit - CODE_BUILDING);
		return;
	}
	if (unit >= CODE_MIXED)
		mixed_of(map, block)->taken = false;
	map->unit[block] = CODE_NONE;
}

/* Finding */

/* Length of the run of equal codes from sector first, at most count. */
static uint32_t mixed_run(const struct vhd_mixed *m, uint32_t first,
			  uint32_t count)
{
	uint32_t i = first >> m->shift, last = (first + count - 1) >> m->shift;
	uint8_t code = m->codes[i];

	while (i < last && m->codes[i + 1] == code)
		i++;
	return i == last ? count : ((i + 1) << m->shift) - first;
}

unsigned int vhd_map_find(struct vhd_disk *disk, uint64_t sector,
			  uint32_t *count, struct image_request *req)
{
	struct vhd_map *map = &disk->map;
	uint32_t block = (uint32_t)(sector >> map->shift);
	uint32_t first = (uint32_t)sector & ((1u << map->shift) - 1);
	uint32_t left = (1u << map->shift) - first;
	struct vhd_mixed *m;

	if (*count > left)
		*count = left;
	if ((map->unit[block] == CODE_NONE ||
	     (map->unit[block] >= CODE_BUILDING &&
	      map->unit[block] < CODE_MIXED)) && !vhd_build(disk, block, req))
		return CODE_NONE;
	if (map->unit[block] < CODE_MIXED)
		return map->unit[block];
	m = mixed_of(map, block);
	m->used = true;
	*count = mixed_run(m, first, *count);
	return m->codes[first >> m->shift];
}

unsigned int vhd_map_peek(const struct vhd_disk *disk, uint64_t sector,
			  uint64_t *first, uint32_t *count)
{
	const struct vhd_map *map = &disk->map;
	uint32_t block = (uint32_t)(sector >> map->shift);
	uint32_t at = (uint32_t)(sector - ((uint64_t)block << map->shift));
	uint32_t nr = vhd_map_sectors(disk, block), i, start, end;
	const struct vhd_mixed *m;

	*first = (uint64_t)block << map->shift;
	*count = nr;
	if (map->unit[block] >= CODE_BUILDING && map->unit[block] < CODE_MIXED)
		return CODE_NONE;
	if (map->unit[block] < CODE_MIXED)
		return map->unit[block];
	m = &map->mixed[map->unit[block] - CODE_MIXED];
	i = start = at >> m->shift;
	end = (nr + (1u << m->shift) - 1) >> m->shift;
	while (start && m->codes[start - 1] == m->codes[i])
		start--;
	at = i;
	while (i + 1 < end && m->codes[i + 1] == m->codes[at])
		i++;
	*first += start << m->shift;
	*count = (i + 1 == end ? nr : (i + 1) << m->shift) - (start << m->shift);
	return m->codes[at];
}

uint64_t vhd_map_place(const struct vhd_disk *disk, unsigned int level,
		       uint64_t sector, uint32_t *count)
{
	const struct vhd_level *l = &disk->map.level[level];
	uint32_t first, left;

	if (l->fixed)
		return sector << SECTOR_SHIFT;
	first = (uint32_t)sector & ((1u << l->shift) - 1);
	left = (1u << l->shift) - first;
	if (*count > left)
		*count = left;
	return ((uint64_t)vhd_bat(l->image, (uint32_t)(sector >> l->shift)) +
		l->bitmap_sectors + first) << SECTOR_SHIFT;
}

/* Pools */

static int pool_init(struct vhd_map *map, struct vhd_mixed_pool *pool,
		     unsigned int first, uint8_t shift)
{
	uint32_t spb = 1u << map->shift;

	pool->first = first;
	pool->shift = shift;
	pool->bytes = ((size_t)spb + (1u << shift) - 1) >> shift;
	pool->nr = (unsigned int)(POOL_BYTES / pool->bytes);
	if (pool->nr > POOL_MAX)
		pool->nr = POOL_MAX;
	if (pool->nr < POOL_MIN)
		pool->nr = POOL_MIN;
	pool->limit = pool->nr;
	pool->codes = pages_alloc(pool->nr * pool->bytes);
	return pool->codes ? 0 : -ENOMEM;
}

int vhd_map_init(struct vhd_disk *disk)
{
	const struct vhd_chain *chain = disk->chain;
	struct vhd_map *map = &disk->map;

	list_init(&map->free_builds);
	list_init(&map->starved);
	map->nr_levels = chain->nr_vhd;
	for (unsigned int i = 0; i < map->nr_levels; i++) {
		const struct vhd_image *image = chain->image[i];
		struct vhd_level *l = &map->level[i];

		l->image = image;
		l->fd = image->fd;
		l->fixed = image->footer.type == VHD_FIXED;
		l->sectors = image->footer.current_size >> SECTOR_SHIFT;
		if (l->fixed)
			continue;
		l->shift = (uint8_t)__builtin_ctz(image->spb);
		l->bitmap_sectors = image->bitmap_sectors;
	}
	if (map->level[0].fixed)
		return 0;
	map->shift = map->level[0].shift;
	map->nr = disk->leaf->bat_entries;
	map->unit = pages_alloc(map->nr * sizeof(*map->unit));
	if (!map->unit ||
	    pool_init(map, &map->pool[0], 0, GROUP_SHIFT) ||
	    pool_init(map, &map->pool[1], map->pool[0].nr, 0))
		return -ENOMEM;
	map->mixed = pages_alloc((map->pool[0].nr + map->pool[1].nr) *
				 sizeof(*map->mixed));
	return map->mixed ? vhd_build_init(disk) : -ENOMEM;
}

void vhd_map_destroy(struct vhd_disk *disk)
{
	struct vhd_map *map = &disk->map;

	vhd_build_destroy(disk);
	for (unsigned int i = 0; i < 2; i++)
		pages_free(map->pool[i].codes,
			   map->pool[i].nr * map->pool[i].bytes);
	pages_free(map->mixed, (map->pool[0].nr + map->pool[1].nr) *
			       sizeof(*map->mixed));
	pages_free(map->unit, map->nr * sizeof(*map->unit));
}
