/* SPDX-License-Identifier: LGPL-2.1-only */
#include "drivers/vhd-disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Enough that requests in flight can't evict each other's bitmaps while they
 * walk the chain; more for locality.
 */
#define CACHE_MIN_ENTRIES 1024u

static struct vhd_bitmap **bucket(struct vhd_cache *cache, unsigned int level,
				  uint32_t block)
{
	uint32_t h = (block * 31u + level) * 2654435761u;

	return &cache->hash[(h >> 7) & (cache->nr_hash - 1)];
}

static void unhash(struct vhd_cache *cache, struct vhd_bitmap *bm)
{
	struct vhd_bitmap **p = bucket(cache, bm->level, bm->block);

	while (*p != bm)
		p = &(*p)->hash_next;
	*p = bm->hash_next;
	bm->hashed = false;
}

static struct vhd_bitmap *lookup(struct vhd_cache *cache, unsigned int level,
				 uint32_t block)
{
	struct vhd_bitmap *bm = *bucket(cache, level, block);

	while (bm && (bm->block != block || bm->level != level))
		bm = bm->hash_next;
	return bm;
}

/* Takes the coldest entry for a block, pinned and hashed. */
static struct vhd_bitmap *take(struct vhd_disk *disk, unsigned int level,
			       uint32_t block, struct image_request *req)
{
	struct vhd_cache *cache = &disk->cache;
	struct list *item = list_pop(&cache->lru);
	struct vhd_bitmap *bm, **p;

	if (!item) {
		list_add_tail(&req->link, &disk->starved);
		return NULL;
	}
	bm = container_of(item, struct vhd_bitmap, link);
	if (bm->hashed)
		unhash(cache, bm);
	bm->level = level;
	bm->block = block;
	bm->pins = 1;
	bm->dirty = false;
	bm->writing = false;
	bm->exposed = false;
	bm->hashed = true;
	p = bucket(cache, level, block);
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
	vhd_wake(disk, &waiting, err == -ENODATA ? -EIO : err);
	vhd_cache_unpin(bm);
	vhd_feed_starved(disk);
}

struct vhd_bitmap *vhd_cache_get(struct vhd_disk *disk, unsigned int level,
				 uint32_t block, struct image_request *req)
{
	struct vhd_image *img = disk->chain->image[level];
	struct vhd_bitmap *bm = lookup(&disk->cache, level, block);

	if (bm && bm->state == BITMAP_VALID) {
		vhd_cache_pin(bm);
		return bm;
	}
	if (!bm) {
		bm = take(disk, level, block, req);
		if (!bm)
			return NULL;
		bm->state = BITMAP_LOADING;
		bm->iov.iov_base = bm->map;
		bm->iov.iov_len = (size_t)img->bitmap_sectors << SECTOR_SHIFT;
		bm->io.op = IO_READ;
		bm->io.fd = img->fd;
		bm->io.offset = (uint64_t)img->bat[block] << SECTOR_SHIFT;
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
	struct vhd_bitmap *bm = take(disk, 0, block, req);

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
	/* A read walks the chain; an operation of a write pins one. */
	unsigned int nr = max_requests * (disk->chain->nr_vhd +
					  VHD_OPS_PER_REQUEST);
	size_t bytes;

	for (unsigned int i = 0; i < disk->chain->nr_vhd; i++) {
		struct vhd_image *img = disk->chain->image[i];
		size_t b = (size_t)img->bitmap_sectors << SECTOR_SHIFT;

		if (img->footer.type != VHD_FIXED && b > cache->map_bytes)
			cache->map_bytes = b;
	}
	list_init(&cache->lru);
	if (!cache->map_bytes)
		return 0;
	cache->nr = nr > CACHE_MIN_ENTRIES ? nr : CACHE_MIN_ENTRIES;
	for (cache->nr_hash = 1; cache->nr_hash < cache->nr;)
		cache->nr_hash <<= 1;
	cache->entries = calloc(cache->nr, sizeof(*cache->entries));
	cache->hash = calloc(cache->nr_hash, sizeof(struct vhd_bitmap *));
	/* Untouched pages cost nothing, so the size is no matter. */
	bytes = cache->nr * 2 * cache->map_bytes;
	bytes = (bytes + IMAGE_ALIGN - 1) & ~(size_t)(IMAGE_ALIGN - 1);
	cache->maps = aligned_alloc(IMAGE_ALIGN, bytes);
	if (!cache->entries || !cache->hash || !cache->maps)
		return -ENOMEM;
	for (unsigned int i = 0; i < cache->nr; i++) {
		struct vhd_bitmap *bm = &cache->entries[i];

		bm->disk = disk;
		bm->map = cache->maps + (size_t)i * cache->map_bytes;
		bm->out = bm->map + (size_t)cache->nr * cache->map_bytes;
		list_init(&bm->loading);
		list_init(&bm->commit);
		list_init(&bm->committing);
		list_init(&bm->publish);
		list_add_tail(&bm->link, &cache->lru);
	}
	return 0;
}

void vhd_cache_destroy(struct vhd_cache *cache)
{
	free(cache->entries);
	free(cache->hash);
	free(cache->maps);
}
