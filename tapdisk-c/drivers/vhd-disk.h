/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The VHD data path.
 *
 *   vhd.c       open, close, pools; each request is advanced from its cursor
 *   vhd-map.c   which image of the chain holds a sector, in one step
 *   vhd-build.c how the map learns a block
 *   vhd-read.c  reads, and what holds data (status)
 *   vhd-write.c into the leaf: present sectors, new sectors, new blocks
 *   vhd-zero.c  zeros and discards
 *   vhd-meta.c  bitmap writes
 *   vhd-bat.c   BAT writes
 *   vhd-grow.c  where new blocks go, and growth of the file
 *   vhd-cache.c the leaf's bitmaps in memory
 *   vhd-snapshot.c a new leaf on top of what is open
 *   vhd-name.c  whether the leaf's name is durable
 *   vhd-run.c   what lies in a file in one piece
 *
 * A write completes when data, bitmap and BAT entry have reached the kernel,
 * in this order:
 *
 *   data ─► bit in memory (readers see it) ─► bitmap sector
 *
 * A new block's BAT entry is "unpublished" until it is written: other entries of its
 * BAT sector go to disk without it. Its bitmap stays in the cache until then. In a
 * file the entry goes at once, on a block device after the bitmap. The file is extended in large steps, with a footer at the new end,
 * and synced, before any block is placed there: after a power loss no BAT
 * entry points past the end of the file, and what was not written reads as
 * zeros, which as a bitmap means "ask the parent". For that the file is first
 * cut to its last block, and each footer is zeroed when the next one is there.
 * On a block device the unwritten space is not zero, so there data is made
 * durable before its bits, and the bitmap before the BAT entry.
 *
 * In a file without a parent a new block has all its bits at once: what is not
 * written in it is a hole and reads as zeros, which is what was there. Later
 * writes to it need no metadata.
 */
#ifndef XENBLK_VHD_DISK_H
#define XENBLK_VHD_DISK_H

#include "drivers/image.h"
#include "vhd/vhd.h"

/*
 * How far a file is extended at a time, at first and at most: a hole, cut off at
 * close. Each step is twice the one before. Through the page cache the sync of a
 * step has to wait for all that is written, so there is one for nearly all sizes.
 */
#define VHD_GROW_BYTES	   (64ull << 20)
#define VHD_GROW_MAX_BYTES (1ull << 30)
#define VHD_GROW_BUFFERED_BYTES (64ull << 30)

/* What one request may have in flight where it need not be quick. */
#define VHD_MAX_PENDING	16u

enum bitmap_state { BITMAP_LOADING, BITMAP_VALID };

/* A leaf block's bitmap in memory. */
struct vhd_bitmap {
	struct list link;		/* in the lru if unpinned */
	struct vhd_bitmap *hash_next;
	struct vhd_disk *disk;
	uint32_t block;
	unsigned int pins;
	enum bitmap_state state;
	bool hashed;
	bool dirty;			/* map differs from what was last written */
	bool writing;			/* bitmap or BAT write in flight */
	bool exposed;			/* a BAT entry may lead to it on the medium */
	bool publishing;		/* in the queue for the BAT, or in its write in flight */
	bool settles;			/* when it is published: its bitmap is written */
	bool rewritten;			/* a write has met only bits in the file, since one was set */
	uint8_t *map;
	uint8_t *out;			/* what is being written */
	struct io_req io;
	struct iovec iov;
	struct list loading;		/* image requests that wait for the load */
	struct list commit;		/* vhd_ops whose bits await the next write */
	struct list committing;		/* vhd_ops of the write in flight */
	struct list publish;
	struct list due;		/* written at the end of the round */
};

/* One contiguous I/O of an image request. */
struct vhd_op {
	struct list link;
	struct vhd_disk *disk;
	struct image_request *req;
	struct vhd_bitmap *bitmap;	/* pinned; NULL if no bit can change */
	uint32_t first, count;		/* sectors in the block, with bitmap */
	uint64_t zero_end;		/* bytes; where zeros that are written end, 0: none are */
	struct io_req io;
	struct iovec iov;
};

struct vhd_cache {
	struct vhd_bitmap *entries;
	unsigned int nr;
	unsigned int limit;		/* entries that may be taken: all */
	unsigned int nr_used;		/* those that ever were */
	struct vhd_bitmap **hash;	/* nr_hash buckets, a power of two */
	unsigned int nr_hash;
	struct list lru;		/* unpinned, coldest first */
	uint8_t *maps;
	size_t map_bytes;
};

/*
 * The map: for each block of the leaf what holds its sectors. A code names a
 * holder: an image of the chain (its level + 1), zeros, or a raw parent.
 */
enum vhd_code {
	CODE_NONE,			/* not known */
	CODE_LEAF,			/* level 0; the others follow */
	CODE_ZEROS = VHD_MAX_CHAIN + 1,	/* no image */
	CODE_RAW,
	CODE_ERROR,			/* a bitmap can't be read */
	CODE_BUILDING,			/* + which builder */
	CODE_MIXED = 64,		/* + which entry of mixed[] */
};

#define VHD_MAX_BUILDS	(CODE_MIXED - CODE_BUILDING)

/* A block whose sectors have more than one holder. */
struct vhd_mixed {
	uint8_t *codes;			/* one for every 1 << shift sectors */
	uint32_t block;
	uint32_t foreign;		/* codes other than CODE_LEAF */
	uint8_t shift;
	bool taken;
	bool used;			/* since the hand came by */
};

struct vhd_mixed_pool {
	unsigned int first, nr;		/* in mixed[] */
	unsigned int limit;		/* entries that may be taken: all */
	unsigned int hand;		/* who is evicted next */
	uint8_t shift;
	size_t bytes;			/* of codes */
	uint8_t *codes;
};

/* An image of the chain, as far as reads need it. */
struct vhd_level {
	const struct vhd_image *image;
	int fd;
	bool fixed;
	uint8_t shift;			/* log2 of the sectors of a block */
	uint32_t bitmap_sectors;
	uint64_t sectors;
};

struct vhd_map {
	uint16_t *unit;			/* a code for each block of the leaf */
	uint32_t nr;			/* blocks */
	uint8_t shift;			/* log2 of the sectors of a block */
	struct vhd_level level[VHD_MAX_CHAIN];
	unsigned int nr_levels;
	struct vhd_mixed *mixed;
	struct vhd_mixed_pool pool[2];	/* by 8 sectors, by one */
	struct vhd_build *builds;
	unsigned int nr_builds;
	uint8_t *build_memory;
	size_t build_bytes;
	uint32_t piece;			/* sectors that lie in one block of each level */
	struct list free_builds;
	struct list starved;		/* image requests without a builder */
};

/* Sectors of the BAT that are written together. */
#define VHD_BAT_SPAN	8u
#define VHD_BAT_WRITES	8u

struct vhd_bat_write {
	struct vhd_disk *disk;
	struct list batch;		/* vhd_bitmaps to publish */
	uint32_t span;			/* of VHD_BAT_SPAN sectors */
	bool busy;
	uint8_t *buf;
	struct io_req io;
	struct iovec iov;
};

struct vhd_bat_writer {
	struct list queue;		/* vhd_bitmaps to publish */
	struct vhd_bat_write write[VHD_BAT_WRITES];
	uint32_t *spare;		/* of the last sector in use: what is beyond the size */
	uint8_t *buf;			/* of all writes */
};

struct vhd_grower {
	uint64_t durable_end;		/* blocks may be placed below this, bytes */
	uint64_t step;			/* bytes, a power of two */
	uint64_t most;			/* all blocks have room below this, bytes */
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
	struct list later;		/* image requests that have had their turn */
	struct io_timer turn;		/* armed while later is not empty */
	unsigned int metadata;		/* bitmaps being written, and those being published */
	struct list due;		/* vhd_bitmaps */
	struct io_plug round;		/* armed while metadata waits for the end of the round */
	struct vhd_map map;
	struct vhd_cache cache;
	uint8_t *whole;			/* a bit per leaf block: all its bits are set in the file */
	uint8_t *unpublished;		/* a bit per leaf block */
	uint32_t *place;		/* sectors; of blocks that were given up, else 0 */
	bool gave_up;			/* ever: place has some */
	struct vhd_bat_writer bat;
	struct vhd_grower grow;
	bool no_holes, no_zeros;	/* the file system can't make them */
	bool registered;		/* its files, with the engine */
	uint32_t file_block[VHD_MAX_CHAIN + 1];	/* of direct I/O, bytes; leaf first, the raw parent last */
	bool buffered;			/* I/O is the page cache's */
	int lost;			/* the error of a sync other than a flush, which the kernel tells once: for the next flush; buffered: of any sync, for all */
	bool changed;			/* the trailer must be rewritten at close */
	int unsynced_dir;		/* of the leaf, whose name a power loss may take; -1: none */
	bool unmarked_parent;		/* until the name is durable */
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
	STEP_WAIT,	/* the request is on some list or has I/O in flight, and will be advanced */
	STEP_FAIL,	/* req->err is set */
	STEP_END,	/* there is no more to do */
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
/* The chain is the disk's from then on; its files are not the engine's yet. */
int vhd_disk_new(struct vhd_disk **disk, struct vhd_chain *chain,
		 const struct image_open_args *args, struct error *err);
/* With its chain. */
void vhd_disk_free(struct vhd_disk *disk);
void vhd_files_add(struct vhd_disk *disk);
void vhd_files_remove(struct vhd_disk *disk);

/* vhd-snapshot.c */
int vhd_snapshot_prepare(struct image_snapshot **snapshot, struct image *image,
			 const struct image_open_args *args,
			 const char *parent, struct error *err);
int vhd_snapshot_switch(struct image_snapshot *snapshot, struct error *err);
int vhd_snapshot_take(struct image_snapshot *snapshot, struct image **image,
		      struct error *err);
void vhd_snapshot_undo(struct image_snapshot *snapshot);
void vhd_snapshot_end(struct image_snapshot *snapshot);

/* vhd-run.c */
bool vhd_run(struct image *image, uint64_t sector, struct image_run *run);

/* vhd-name.c */
/* Of a leaf in a file, opened for writing. Waits for an fsync. */
void vhd_name_open(struct vhd_disk *disk);
/* 0 if the leaf's name is durable, or is now, which may take an fsync; else -errno. */
int vhd_name_sync(struct vhd_disk *disk);

/* vhd-map.c */
int vhd_map_init(struct vhd_disk *disk);
void vhd_map_destroy(struct vhd_disk *disk);
/* Sectors of the leaf's block: all but the last have the same. */
uint32_t vhd_map_sectors(const struct vhd_disk *disk, uint32_t block);
/*
 * What holds the sector, and *count, cut to the run that it holds too within
 * the block. CODE_NONE: the request waits until the map knows.
 */
unsigned int vhd_map_find(struct vhd_disk *disk, uint64_t sector,
			  uint32_t *count, struct image_request *req);
/*
 * Where in the image of this level the sector is, in bytes; *count is cut to
 * what follows it there.
 */
uint64_t vhd_map_place(const struct vhd_disk *disk, unsigned int level,
		       uint64_t sector, uint32_t *count);
/* The code of the sector and the run around it within the block; CODE_NONE: not known. */
unsigned int vhd_map_peek(const struct vhd_disk *disk, uint64_t sector,
			  uint64_t *first, uint32_t *count);
/* The leaf holds these sectors of its block now. */
void vhd_map_set(struct vhd_disk *disk, uint32_t block, uint32_t first,
		 uint32_t count);
/* What was said of the places of these sectors is true no more. */
void vhd_map_moved(struct vhd_disk *disk, uint32_t block, uint32_t first,
		   uint32_t count);
/* The leaf no longer holds what the map says. */
void vhd_map_forget(struct vhd_disk *disk, uint32_t block);
/* From a builder: one code for each sector of the block. */
void vhd_map_install(struct vhd_disk *disk, uint32_t block,
		     const uint8_t *codes);

/* vhd-build.c */
int vhd_build_init(struct vhd_disk *disk);
void vhd_build_destroy(struct vhd_disk *disk);
/* True if the map knows the block now; else the request waits for that. */
bool vhd_build(struct vhd_disk *disk, uint32_t block,
	       struct image_request *req);
/* While a builder is at work: as vhd_map_set() and vhd_map_forget(). */
void vhd_build_set(struct vhd_disk *disk, unsigned int build, uint32_t first,
		   uint32_t count);
void vhd_build_spoil(struct vhd_disk *disk, unsigned int build);

/* vhd-read.c */
enum step vhd_read_step(struct vhd_disk *disk, struct image_request *req);
enum step vhd_status_step(struct vhd_disk *disk, struct image_request *req);

/* vhd-write.c */
enum step vhd_write_step(struct vhd_disk *disk, struct image_request *req);
/*
 * An op for count sectors at the cursor, inside one leaf block, which is
 * allocated if it was not. NULL: see *step.
 */
struct vhd_op *vhd_write_op(struct vhd_disk *disk, struct image_request *req,
			    uint32_t count, enum step *step);
/* The op's bytes are in the file: sets its bits and ends it when they are there too. */
void vhd_write_placed(struct vhd_op *op, int err);

/* vhd-zero.c */
/* IMAGE_ZERO and IMAGE_DISCARD. */
enum step vhd_zero_step(struct vhd_disk *disk, struct image_request *req);

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
/* A new block has its place: writes what may be written before its data. */
void vhd_meta_begin(struct vhd_bitmap *bitmap);
/*
 * Metadata is queued. It is written when all that came together has been seen, so
 * that one write serves many.
 */
void vhd_meta_arm(struct vhd_disk *disk);
/* A bitmap write, with its BAT write if it needed one, is over. */
void vhd_meta_settle(struct vhd_bitmap *bitmap, int err);

/* vhd-bat.c */
int vhd_bat_init(struct vhd_disk *disk, struct error *err);
void vhd_bat_destroy(struct vhd_disk *disk);
/* Queues the block's BAT entry, if it is not; vhd_meta_settle() follows if the bitmap settles. */
void vhd_bat_publish(struct vhd_bitmap *bitmap);
void vhd_bat_write_queued(struct vhd_disk *disk);
/*
 * Takes entries out of the file, durably, that writes which failed may have put
 * there: those of blocks that have no place in memory. Nothing may be in flight.
 */
int vhd_bat_retract(struct vhd_disk *disk, struct error *err);

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
struct vhd_bitmap *vhd_cache_get(struct vhd_disk *disk, uint32_t block,
				 struct image_request *req);
/* A new block's bitmap, all clear, pinned; NULL as above. */
struct vhd_bitmap *vhd_cache_new(struct vhd_disk *disk, uint32_t block,
				 struct image_request *req);
/* The block's bits if they are in memory, or NULL. */
const uint8_t *vhd_cache_peek(const struct vhd_cache *cache, uint32_t block);
/* The same if all are in the file and rewritten, above; else NULL. */
const uint8_t *vhd_cache_settled(const struct vhd_disk *disk, uint32_t block);
/* An entry could be had. */
bool vhd_cache_ready(const struct vhd_cache *cache);
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

/* What the bitmap has in memory is in the file, and so is the way to it. */
static inline bool vhd_bitmap_settled(const struct vhd_disk *disk,
				      const struct vhd_bitmap *bm)
{
	return !vhd_unpublished(disk, bm->block) && !bm->dirty && !bm->writing;
}

#endif
