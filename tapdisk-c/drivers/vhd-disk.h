/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The VHD data path.
 *
 *   vhd.c       open, close, pools; each request is advanced from its cursor
 *   vhd-read.c  which image of the chain holds a run of sectors
 *   vhd-write.c data into the leaf: present sectors, new sectors, new blocks
 *   vhd-meta.c  bitmap and BAT writes
 *   vhd-grow.c  where new blocks go, and growth of the file
 *   vhd-cache.c bitmaps in memory
 *
 * A write completes when data, bitmap and BAT entry have reached the kernel,
 * in this order:
 *
 *   data ─► bit in memory (readers see it) ─► bitmap sector ─► BAT sector
 *
 * A new block's BAT entry is "unpublished" until its bitmap is written: other
 * entries of its BAT sector go to disk without it. Its bitmap stays in the cache until
 * then. The file is extended in large steps, with a footer at the new end,
 * and synced, before any block is placed there: after a power loss no BAT
 * entry points past the end of the file, and what was not written reads as
 * zeros, which as a bitmap means "ask the parent". For that the file is first
 * cut to its last block, and each footer is zeroed when the next one is there.
 * On a block device the unwritten space is not zero, so there data is made
 * durable before its bits, and the bitmap before the BAT entry.
 */
#ifndef XENBLK_VHD_DISK_H
#define XENBLK_VHD_DISK_H

#include "drivers/image.h"
#include "vhd/vhd.h"

/* How far a file is extended at a time: a hole, cut off at close. */
#define VHD_GROW_BYTES (64ull << 20)

enum bitmap_state { BITMAP_LOADING, BITMAP_VALID };

/* A block's bitmap in memory. */
struct vhd_bitmap {
	struct list link;		/* in the lru if unpinned */
	struct vhd_bitmap *hash_next;
	struct vhd_disk *disk;
	unsigned int level;		/* in the chain */
	uint32_t block;
	unsigned int pins;
	enum bitmap_state state;
	bool hashed;
	uint8_t *map;
	struct io_req io;
	struct iovec iov;
	struct list loading;		/* image requests that wait for the load */

	/* Leaf only. */
	uint8_t *out;			/* what is being written */
	bool dirty;			/* map differs from what was last written */
	bool writing;			/* bitmap or BAT write in flight */
	bool exposed;			/* a BAT entry may lead to it on the medium */
	struct list commit;		/* vhd_ops whose bits await the next write */
	struct list committing;		/* vhd_ops of the write in flight */
	struct list publish;		/* in the queue for the BAT */
};

/* One contiguous I/O of an image request. */
struct vhd_op {
	struct list link;
	struct vhd_disk *disk;
	struct image_request *req;
	struct vhd_bitmap *bitmap;	/* pinned; NULL if no bit can change */
	uint32_t first, count;		/* sectors in the block, with bitmap */
	struct io_req io;
	struct iovec iov;
};

struct vhd_cache {
	struct vhd_bitmap *entries;
	unsigned int nr;
	struct vhd_bitmap **hash;	/* nr_hash buckets, a power of two */
	unsigned int nr_hash;
	struct list lru;		/* unpinned, coldest first */
	uint8_t *maps;
	size_t map_bytes;
};

struct vhd_bat_writer {
	struct list queue;		/* vhd_bitmaps to publish */
	struct list batch;		/* those of the write in flight */
	uint32_t sector;		/* of the BAT, in flight */
	uint32_t *entries;		/* one sector's worth */
	uint32_t *spare;		/* of the last sector in use: what is beyond the size */
	uint8_t *buf;
	bool busy;
	struct io_req io;
	struct iovec iov;
};

struct vhd_grower {
	uint64_t durable_end;		/* blocks may be placed below this, bytes */
	uint64_t step;			/* bytes, a power of two */
	uint64_t target;		/* durable_end when the step in flight is done */
	bool cut;			/* nothing but zeros is after data_end */
	bool busy;
	struct list waiting;		/* image requests */
	uint8_t *buf;
	struct io_req io;
	struct iovec iov;
};

struct vhd_disk {
	struct image image;
	struct vhd_chain *chain;
	struct vhd_image *leaf;
	struct vhd_op *ops;
	struct list free_ops;
	struct list starved;		/* image requests without an op or bitmap */
	struct vhd_cache cache;
	uint8_t *unpublished;		/* a bit per leaf block */
	uint32_t *place;		/* sectors; of blocks that were given up, else 0 */
	struct vhd_bat_writer bat;
	struct vhd_grower grow;
	bool changed;			/* the trailer must be rewritten at close */
};

static inline struct vhd_disk *vhd_disk_of(struct image *image)
{
	return container_of(image, struct vhd_disk, image);
}

/* Operations that one request may have in flight, on the average. */
#define VHD_OPS_PER_REQUEST 4u

/* What a step on a request came to. */
enum step {
	STEP_ON,	/* the cursor moved */
	STEP_WAIT,	/* the request is on some list and will be advanced */
	STEP_FAIL,	/* req->err is set */
};

/* vhd.c */
void vhd_advance(struct vhd_disk *disk, struct image_request *req);
/* NULL: the request has been put on the starved list. */
struct vhd_op *vhd_op_get(struct vhd_disk *disk, struct image_request *req);
/* Gives back an op that was not started. */
void vhd_op_put(struct vhd_op *op);
/* The op is over: frees it and lets its request go on. */
void vhd_op_end(struct vhd_op *op, int err);
/* Advances requests that waited for an op or a bitmap, as far as these reach. */
void vhd_feed_starved(struct vhd_disk *disk);
/* Advances, or fails if err, all requests of a list. */
void vhd_wake(struct vhd_disk *disk, struct list *waiting, int err);

/* vhd-read.c */
enum step vhd_read_step(struct vhd_disk *disk, struct image_request *req);

/* vhd-write.c */
enum step vhd_write_step(struct vhd_disk *disk, struct image_request *req);

/* vhd-meta.c */
int vhd_meta_init(struct vhd_disk *disk, struct error *err);
void vhd_meta_destroy(struct vhd_disk *disk);
/*
 * An operation on the bitmap's block failed and let go of it: if nothing else
 * uses the block and it was never published, it is unallocated again. Its place
 * stays its own: reads of it may be in flight, and a BAT write that failed may
 * have reached the file.
 */
void vhd_meta_abandon(struct vhd_bitmap *bitmap);
/* The op's bits are set in its bitmap: write it, then end the op. */
void vhd_meta_commit(struct vhd_op *op);
/* vhd-grow.c */
int vhd_grow_init(struct vhd_disk *disk);
void vhd_grow_destroy(struct vhd_grower *grow);
/*
 * Where a new block goes, as a byte offset of its bitmap. False: the request
 * waits for the file to grow, or has failed (req->err).
 */
bool vhd_grow_place(struct vhd_disk *disk, uint32_t block,
		    struct image_request *req, uint64_t *offset);

/* vhd-cache.c */
int vhd_cache_init(struct vhd_disk *disk, unsigned int max_requests);
void vhd_cache_destroy(struct vhd_cache *cache);
/*
 * The block's bitmap, pinned; NULL if the request must wait, and it then is on
 * a list: for the load, or for a free entry.
 */
struct vhd_bitmap *vhd_cache_get(struct vhd_disk *disk, unsigned int level,
				 uint32_t block, struct image_request *req);
/* A new block's bitmap, all clear, pinned; NULL as above. */
struct vhd_bitmap *vhd_cache_new(struct vhd_disk *disk, uint32_t block,
				 struct image_request *req);
void vhd_cache_pin(struct vhd_bitmap *bitmap);
void vhd_cache_unpin(struct vhd_bitmap *bitmap);
/* Drops the last pin and what the entry holds. */
void vhd_cache_forget(struct vhd_bitmap *bitmap);

static inline bool vhd_bit(const uint8_t *map, uint32_t bit)
{
	return map[bit >> 3] & (0x80 >> (bit & 7));
}

static inline void vhd_bit_set(uint8_t *map, uint32_t bit)
{
	map[bit >> 3] |= (uint8_t)(0x80u >> (bit & 7));
}

static inline void vhd_bit_clear(uint8_t *map, uint32_t bit)
{
	map[bit >> 3] &= (uint8_t)~(0x80u >> (bit & 7));
}

/* The leaf block is in use, and its BAT entry is not yet in the file. */
static inline bool vhd_unpublished(const struct vhd_disk *disk, uint32_t block)
{
	return vhd_bit(disk->unpublished, block);
}

#endif
