/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The VHD format ("Virtual Hard Disk Image Format Specification" 1.0,
 * Microsoft 2006, with XenServer's batmap, hidden flag and raw parents):
 *
 *   dynamic/differencing: footer copy | header | BAT | [batmap] | [locators]
 *                         | { bitmap | data } per block ... | footer
 *   fixed:                data | footer
 *
 * All integers on disk are big-endian. Only vhd/ touches those bytes. All of
 * it is synchronous; the data path of tapdisk (drivers/vhd*.c) uses the
 * decoded structures and the bitmap functions.
 */
#ifndef XENBLK_VHD_H
#define XENBLK_VHD_H

#include <stdbool.h>
#include <stdint.h>
#include <uuid/uuid.h>

#include "common/config.h"
#include "common/error.h"
#include "common/lock.h"
#include "common/watch.h"

#define VHD_SECTOR		512u
#define VHD_BAT_UNUSED		UINT32_MAX
#define VHD_MAX_CHAIN		30u
#define VHD_NR_LOCATORS		8u
/* So begin the names of files that are not whole yet, which are nobody's children. */
#define VHD_UNFINISHED		".xenblk-"
#define VHD_DEFAULT_BLOCK	(2u << 20)	/* bytes */
#define VHD_MAX_SIZE		(2040ull << 30)	/* bytes: what 32-bit sector offsets address with room for metadata */

enum vhd_type { VHD_FIXED = 2, VHD_DYNAMIC = 3, VHD_DIFF = 4 };

struct vhd_footer {
	uint32_t features;
	uint32_t version;
	uint64_t data_offset;		/* of the header, bytes; ~0 for fixed */
	uint32_t timestamp;		/* seconds since 2000-01-01 UTC */
	char creator[5];		/* 4 bytes and a NUL */
	uint32_t creator_version;
	uint32_t creator_os;
	uint64_t original_size;		/* bytes */
	uint64_t current_size;		/* bytes */
	uint32_t geometry;		/* cylinders 16, heads 8, sectors 8 */
	enum vhd_type type;
	uuid_t uuid;
	uint8_t saved;
	uint8_t hidden;			/* XenServer's: not a leaf */
};

/* footer.c: VHD_SECTOR bytes with the checksum right. */
void vhd_footer_encode(uint8_t *out, const struct vhd_footer *footer);

struct vhd_locator {
	uint32_t code;			/* VHD_LOC_* or 0 */
	uint32_t data_space;		/* as stored: bytes (XenServer) or sectors */
	uint32_t data_len;		/* bytes */
	uint64_t data_offset;		/* bytes */
};

#define VHD_LOC_W2RU 0x57327275u
#define VHD_LOC_W2KU 0x57326b75u
#define VHD_LOC_MACX 0x4d616358u

struct vhd_header {
	uint64_t table_offset;		/* BAT, bytes */
	uint32_t version;
	uint32_t max_bat_size;		/* entries */
	uint32_t block_size;		/* bytes */
	uuid_t parent_uuid;		/* null: raw parent */
	uint32_t parent_timestamp;
	char parent_name[1024];		/* UTF-8 */
	struct vhd_locator locator[VHD_NR_LOCATORS];
};

/* One image file, opened and checked. */
struct vhd_image {
	int fd;
	char *path;
	bool readonly;
	bool is_blk;			/* block device: unwritten space is not zero */
	uint64_t file_size;		/* bytes at open */
	struct vhd_footer footer;
	struct vhd_header header;	/* dynamic and differencing only, as all below */

	uint32_t spb;			/* sectors of data per block, a power of two */
	uint32_t bitmap_sectors;	/* per block, before its data */
	uint32_t bat_entries;		/* in use: ceil(current_size / block_size) */
	uint32_t *bat_not;		/* inverted, so that unused is 0: see vhd_bat() */
	bool has_batmap;
	uint64_t batmap_offset;		/* of the map itself, bytes */
	uint32_t batmap_sectors;
	uint8_t *batmap;		/* bit set: all sectors of the block are present */
	uint64_t data_end;		/* first free byte after metadata and blocks */
	/*
	 * 1 + the block that reaches past the file's end, where none of its sectors is
	 * present; 0: there is none. Not in an image that is open for writing.
	 */
	uint32_t cut_block;

	/* What was found at open, for query and check. */
	bool front_ok;			/* the footer copy at the start */
	bool tail_ok;			/* the footer at the end */
	bool batmap_ok;			/* its checksum; if not, batmap starts out empty */
	uint8_t batmap_marker;		/* XenServer's marker byte */
};

struct vhd_chain {
	unsigned int depth;		/* images in all, a raw parent included */
	unsigned int nr_vhd;
	struct vhd_image *image[VHD_MAX_CHAIN];	/* leaf first */
	int raw_fd;			/* -1 if the root is a VHD */
	char *raw_path;
	uint64_t raw_sectors;
};

enum {
	VHD_OPEN_WRITE	= 1,	/* the leaf for writing; else all read-only */
	VHD_OPEN_DIRECT	= 2,	/* O_DIRECT */
	VHD_OPEN_NOLOCK	= 4,	/* for a look at an image that is in use */
	VHD_OPEN_ALONE	= 8,	/* vhd_chain_open(): the first image, as if it had no parent */
};

/*
 * image.c: opens one file. All of footer, header, BAT checked. Writes nothing, but for
 * writing the footer copy at the start, where that at the end is newer.
 */
int vhd_open(struct vhd_image **image, const char *path, unsigned int flags,
	     struct error *err);
void vhd_close(struct vhd_image *image);

/*
 * io.c: any offset and length, through an aligned buffer where fd is O_DIRECT.
 * -ENODATA if the file ends before offset + len.
 */
int vhd_read_at(int fd, void *buf, size_t len, uint64_t offset);
/* offset and len are multiples of VHD_SECTOR. */
int vhd_write_at(int fd, const void *buf, size_t len, uint64_t offset);

/*
 * chain.c: the leaf and all its parents, each locked, each parent looked up by
 * its locators (relative before absolute), identified by UUID, inside the
 * allowed directories (the leaf's own always). -ELOOP for loops and for more
 * than VHD_MAX_CHAIN images.
 */
int vhd_chain_open(struct vhd_chain **chain, const char *path,
		   const struct config *cfg, unsigned int flags,
		   struct error *err);
/*
 * The same with VHD_OPEN_WRITE, for an image whose only known child is the one at
 * path child: what the caller writes must leave that child's disk as it is.
 */
int vhd_chain_open_parent(struct vhd_chain **chain, const char *path,
			  const char *child, const struct config *cfg,
			  unsigned int flags, struct error *err);
void vhd_chain_close(struct vhd_chain *chain);

/*
 * read.c: what a guest would read; sector + count lies inside the leaf. A chain may be
 * a raw file alone.
 */
int vhd_chain_read(const struct vhd_chain *chain, uint64_t sector,
		   uint32_t count, uint8_t *buf, struct error *err);

/*
 * children.c: -EBUSY, naming the child or the mark, if the image must not be
 * written because others have it as parent. vhd_chain_open() calls it for
 * VHD_OPEN_WRITE; the raw driver calls it too. st_path is for messages.
 */
int vhd_check_no_children(int fd, const char *path, struct error *err);
/*
 * The same but for the child at this path, whatever the marks say: -EBUSY if the
 * directory of either has another child.
 */
int vhd_check_other_children(int fd, const char *path, const char *child,
			     struct error *err);
/*
 * Takes the mark of a parent off an image, VHD or raw: -EBUSY if its directory has a child,
 * or anybody has it open. Without a mark nothing is done.
 */
int vhd_forget_children(const char *path, struct error *err);

/* image.c: what the child at this path is known by in the locks of its parent. */
int vhd_child_key(const char *path, uint64_t *key, struct error *err);

/* create.c */
struct vhd_create_args {
	const char *path;
	uint64_t size;			/* bytes; 0: the parent's. Without a parent rounded up to a block */
	bool exact;			/* the size is not rounded up: it is another disk's */
	bool fixed;
	const char *parent;		/* NULL: no parent */
	bool parent_raw;
	bool parent_served;		/* by the tapdisk that will take the image: neither locked nor marked */
	uint64_t reserve_size;		/* BAT capacity for later growth, bytes; 0: size */
};
/*
 * Never replaces an existing file: -EEXIST; a block device is written in
 * place. Durable on return. A parent is marked as one (children.c), is locked
 * meanwhile, and must lie where vhd_chain_open() of the new image would look.
 */
int vhd_create(const struct vhd_create_args *args, const struct config *cfg,
	       struct error *err);
/*
 * Gives a file of the directory dir that is complete and durable the name path there, durably,
 * unless that is taken: -EEXIST.
 */
int vhd_publish(const char *tmp, const char *path, const char *dir,
		struct error *err);

/* resize.c */
struct vhd_resize_args {
	const char *path;
	uint64_t size;		/* bytes; of a dynamic image rounded up to a block */
	bool in_place;		/* only if the BAT has room, and never smaller */
	bool drop_data;		/* smaller even if data are lost */
	const struct job_watch *watch;	/* of blocks that move; NULL: nobody does */
};
/*
 * Durable on return; whole, and of the old or the new size, at any time before.
 * What is added reads as zeros: refused if a parent is larger and has data there. Only what has no children can become smaller,
 * and no smaller than its parent.
 */
int vhd_resize(const struct vhd_resize_args *args, const struct config *cfg,
	       struct error *err);

/* parent.c */
struct vhd_parent_args {
	const char *path, *parent;
	bool raw;
	bool force;		/* another image than the chain has, or a larger one */
	bool check;		/* nothing is changed: the error that there would be */
};
/*
 * Another parent, or another name for it: one of the image's chain, known by UUID.
 * Durable on return; the chain is the old or the new one at any time before.
 */
int vhd_set_parent(const struct vhd_parent_args *args, const struct config *cfg,
		   struct error *err);

/* physical.c. Both are durable on return. */
/*
 * The footer at the end goes to where a file, or a volume that has grown or is to
 * shrink, of size bytes ends. A file gets that size; no data may lie beyond.
 */
int vhd_set_physical_size(const char *path, uint64_t size, struct error *err);
/* The error of that, once all data are gone, that there would be. */
int vhd_check_physical_size(const char *path, uint64_t size, struct error *err);
/*
 * All that the image itself holds is gone: it reads as its parent does, or zeros. Not
 * if it has children. Cut off, some of it may be gone; can be given again.
 */
int vhd_kill_data(const char *path, struct error *err);

/*
 * fill.c: all sectors into the leaf. Durable on return; can be given again, after
 * a stop too. watch: NULL, or told of blocks.
 */
int vhd_fill(const char *path, const struct config *cfg,
	     const struct job_watch *watch, struct error *err);

/* Writes batmap, both footers, truncates a file to its end, syncs. For a clean close. */
int vhd_write_trailer(struct vhd_image *image, struct error *err);
/* A fixed image's one footer, which that leaves alone, in its place. */
int vhd_write_fixed_footer(const struct vhd_image *image, struct error *err);
/*
 * The same for an image that goes on as a parent, and all of whose data is on the
 * disk: does not sync, since it is whole without.
 */
int vhd_leave(struct vhd_image *image, struct error *err);

/* absorbed.c: the image's parent, which is not written any more, has all that it holds, on the medium. */
void vhd_mark_coalesced(const struct vhd_image *image, int parent_fd);

/* bitmap.c: bit 0 is the most significant of byte 0. */
/* Length of the run of equal bits at from, at most limit - from; *set is their value. */
uint32_t vhd_bitmap_run(const uint8_t *map, uint32_t from, uint32_t limit,
			bool *set);
/* Returns true if any bit changed. */
bool vhd_bitmap_set(uint8_t *map, uint32_t from, uint32_t count);
/* Whether one is set from from to before to. */
bool vhd_bitmap_any(const uint8_t *map, uint32_t from, uint32_t to);
bool vhd_bitmap_full(const uint8_t *map, uint32_t bits);

/* Sector of the block's bitmap, or VHD_BAT_UNUSED. */
static inline uint32_t vhd_bat(const struct vhd_image *image, uint32_t block)
{
	return ~image->bat_not[block];
}

static inline void vhd_bat_set(struct vhd_image *image, uint32_t block,
			       uint32_t sector)
{
	image->bat_not[block] = ~sector;
}

/* Of a block in the file, its bitmap included. */
static inline uint64_t vhd_block_bytes(const struct vhd_image *image)
{
	return ((uint64_t)image->bitmap_sectors + image->spb) * VHD_SECTOR;
}

/* bat.c: n host-order entries to big-endian bytes and back. */
void vhd_bat_encode(uint8_t *out, const uint32_t *bat, uint32_t n);
void vhd_bat_decode(uint32_t *bat, const uint8_t *in, uint32_t n);

/*
 * Where a new block's bitmap goes so that its data is 4 KiB-aligned; bytes.
 * UINT64_MAX if the BAT can't address it or the block device has no room.
 */
uint64_t vhd_alloc_offset(const struct vhd_image *image, uint64_t data_end);

#endif
