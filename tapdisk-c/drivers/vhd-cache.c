/* SPDX-License-Identifier: LGPL-2.1-only */
#include "drivers/vhd-disk.h"

#include <errno.h>
#include <string.h>

#include "common/pages.h"

/* 8 GiB of disk at 2 MiB a block, while its blocks are incomplete. */
#define CACHE_MIN_ENTRIES 4096u
/* Of all bitmaps, where a block's is large; fewer than there are operations make some wait. */
#define CACHE_BYTES	  (16u << 20)

static struct vhd_bitmap **bucket(const struct vhd_cache *cache, uint32_t block)
{
	uint32_t h = block * 2654435761u;

	return &cache->hash[(h >> 7) & (cache->nr_hash - 1)];
}

static void unhash(struct vhd_cache *cache, struct vhd_bitmap *bm)
{
	struct vhd_bitmap **p = bucket(cache, bm->block);

	while (*p != bm)
		p = &(*p)->hash_next;
	*p = bm->hash_next;
	bm->hashed = false;
}

static struct vhd_bitmap *lookup(const struct vhd_cache *cache, uint32_t block)
{
	struct vhd_bitmap *bm = *bucket(cache, block);

	while (bm && bm->block != block)
		bm = bm->hash_next;
	return bm;
}

const uint8_t *vhd_cache_peek(const struct vhd_cache *cache, uint32_t block)
{
	struct vhd_bitmap *bm = cache->nr ? lookup(cache, block) : NULL;

	return bm && bm->state == BITMAP_VALID ? bm->map : NULL;
}

const uint8_t *vhd_cache_settled(const struct vhd_disk *disk, uint32_t block)
{
	const struct vhd_cache *cache = &disk->cache;
	struct vhd_bitmap *bm = cache->nr ? lookup(cache, block) : NULL;

	return bm && bm->state == BITMAP_VALID && bm->rewritten &&
	       vhd_bitmap_settled(disk, bm) ? bm->map : NULL;
}

bool vhd_cache_ready(const struct vhd_cache *cache)
{
	return cache->nr_used < cache->limit || !list_empty(&cache->lru);
}

/* An entry that was never taken; so the others' memory stays untouched. */
static struct vhd_bitmap *fresh(struct vhd_disk *disk)
{
	struct vhd_cache *cache = &disk->cache;
	struct vhd_bitmap *bm;

	if (cache->nr_used >= cache->limit)
		return NULL;
	bm = &cache->entries[cache->nr_used];
	bm->disk = disk;
	bm->map = cache->maps + 2 * cache->nr_used++ * cache->map_bytes;
	bm->out = bm->map + cache->map_bytes;
	list_init(&bm->link);
	list_init(&bm->loading);
	list_init(&bm->commit);
	list_init(&bm->committing);
	list_init(&bm->publish);
	list_init(&bm->due);
	return bm;
}

/* Takes the coldest entry for a block, pinned and hashed. */
static struct vhd_bitmap *take(struct vhd_disk *disk, uint32_t block,
			       struct image_request *req)
{
	struct vhd_cache *cache = &disk->cache;
	struct vhd_bitmap *bm = fresh(disk), **p;
	struct list *item = bm ? NULL : list_pop(&cache->lru);

	if (!bm && !item) {
		list_add_tail(&req->link, &disk->starved);
		return NULL;
	}
	if (item)
		bm = container_of(item, struct vhd_bitmap, link);
	if (bm->hashed) {
		unhash(cache, bm);
		/* Bits whose write failed are gone with it. */
		if (bm->dirty)
			vhd_map_forget(disk, bm->block);
	}
	bm->block = block;
	bm->pins = 1;
	bm->dirty = false;
	bm->writing = false;
	bm->exposed = bm->publishing = bm->settles = false;
	bm->rewritten = false;
	bm->hashed = true;
	p = bucket(cache, block);
	bm->hash_next = *p;
	*p = bm;
	return bm;
}

void vhd_cache_pin(struct vhd_bitmap *bm)
{
	if (bm->pins++ == 0)
		list_del(&bm->link);
}

void vhd_cache_unpin(struct vhd_bitmap *bm)
{
	if (--bm->pins)
		return;
	if (bm->hashed)
		list_add_tail(&bm->link, &bm->disk->cache.lru);
	else
		list_add(&bm->link, &bm->disk->cache.lru);
}

void vhd_cache_forget(struct vhd_bitmap *bm)
{
	unhash(&bm->disk->cache, bm);
	vhd_cache_unpin(bm);
}

static void loaded(struct io_req *io, int err)
{
	struct vhd_bitmap *bm = container_of(io, struct vhd_bitmap, io);
	struct vhd_disk *disk = bm->disk;
	struct list waiting;

	list_init(&waiting);
	list_splice(&bm->loading, &waiting);
	bm->state = BITMAP_VALID;
	if (err)
		unhash(&disk->cache, bm);
	else if (vhd_bitmap_full(bm->map, disk->leaf->spb))
		vhd_bit_set(disk->whole, bm->block);
	vhd_wake(disk, &waiting, err == -ENODATA ? -EIO : err);
	vhd_cache_unpin(bm);
	vhd_feed_starved(disk);
}

struct vhd_bitmap *vhd_cache_get(struct vhd_disk *disk, uint32_t block,
				 struct image_request *req)
{
	struct vhd_image *leaf = disk->leaf;
	struct vhd_bitmap *bm = lookup(&disk->cache, block);

	if (bm && bm->state == BITMAP_VALID) {
		vhd_cache_pin(bm);
		return bm;
	}
	if (!bm) {
		bm = take(disk, block, req);
		if (!bm)
			return NULL;
		bm->state = BITMAP_LOADING;
		bm->iov.iov_base = bm->map;
		bm->iov.iov_len = (size_t)leaf->bitmap_sectors << SECTOR_SHIFT;
		bm->io.op = IO_READ;
		bm->io.fd = leaf->fd;
		bm->io.offset = (uint64_t)vhd_bat(leaf, block) << SECTOR_SHIFT;
		bm->io.iov = &bm->iov;
		bm->io.iovcnt = 1;
		bm->io.done = loaded;
		image_queue(&disk->image, &bm->io);
	}
	list_add_tail(&req->link, &bm->loading);
	return NULL;
}

struct vhd_bitmap *vhd_cache_new(struct vhd_disk *disk, uint32_t block,
				 struct image_request *req)
{
	struct vhd_bitmap *bm = take(disk, block, req);

	if (!bm)
		return NULL;
	memset(bm->map, 0, disk->cache.map_bytes);
	bm->state = BITMAP_VALID;
	bm->dirty = true;
	return bm;
}

int vhd_cache_init(struct vhd_disk *disk, unsigned int max_requests)
{
	struct vhd_cache *cache = &disk->cache;
	/* Each operation of a write pins one. */
	unsigned int nr = max_requests * VHD_OPS_PER_REQUEST;

	list_init(&cache->lru);
	/* Reads go by the map. */
	if (disk->image.readonly || disk->leaf->footer.type == VHD_FIXED)
		return 0;
	cache->map_bytes = (size_t)disk->leaf->bitmap_sectors << SECTOR_SHIFT;
	cache->nr = nr > CACHE_MIN_ENTRIES ? nr : CACHE_MIN_ENTRIES;
	if (cache->nr > CACHE_BYTES / (2 * cache->map_bytes))
		cache->nr = (unsigned int)(CACHE_BYTES / (2 * cache->map_bytes));
	cache->limit = cache->nr;
	for (cache->nr_hash = 1; cache->nr_hash < cache->nr;)
		cache->nr_hash <<= 1;
	cache->entries = pages_alloc(cache->nr * sizeof(*cache->entries));
	cache->hash = pages_alloc(cache->nr_hash * sizeof(struct vhd_bitmap *));
	cache->maps = pages_alloc(cache->nr * 2 * cache->map_bytes);
	if (!cache->entries || !cache->hash || !cache->maps)
		return -ENOMEM;
	return 0;
}

void vhd_cache_destroy(struct vhd_cache *cache)
{
	pages_free(cache->entries, cache->nr * sizeof(*cache->entries));
	pages_free(cache->hash, cache->nr_hash * sizeof(struct vhd_bitmap *));
	pages_free(cache->maps, cache->nr * 2 * cache->map_bytes);
}
