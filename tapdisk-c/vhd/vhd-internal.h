/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * What the files of vhd/ share. Errors: -EUCLEAN for an image that breaks
 * the format, -ENOTSUP for one that is right but not supported, any other
 * -errno for a failure of the system or of the request.
 */
#ifndef XENBLK_VHD_INTERNAL_H
#define XENBLK_VHD_INTERNAL_H

#include <stddef.h>
#include <sys/stat.h>

#include "common/bytes.h"
#include "vhd/vhd.h"

#define VHD_FOOTER_BYTES	512u
#define VHD_HEADER_BYTES	1024u
#define VHD_ALIGN		4096u	/* of buffers and of block data */
#define VHD_EPOCH		946684800	/* 2000-01-01 UTC in Unix time */
#define VHD_VERSION_1_0		0x00010000u

#define VHD_MIN_BLOCK		4096u
#define VHD_MAX_BLOCK		(256u << 20)
/* Bounds memory (64 MiB) whatever a file says; 2 TiB at 128 KiB a block. */
#define VHD_MAX_BAT		(1u << 24)
/* A path of PATH_MAX characters in UTF-16 is 8 KiB. */
#define VHD_MAX_LOCATOR		65536u

/* XenServer's creator "tap\0" with its version, major 16 and minor 16 bits. */
#define VHD_TAP_VERSION(major, minor)	(((uint32_t)(major) << 16) | (minor))

/* Beside VHD_OPEN_WRITE: accept a damaged footer copy at the start, and a cut block. */
#define VHD_OPEN_REPAIR		0x10000u
/* With VHD_OPEN_REPAIR: the footer copy at the start counts. */
#define VHD_OPEN_COPY		0x20000u
/* Beside VHD_OPEN_WRITE: to add what no child sees, while those are in use. */
#define VHD_OPEN_GROW		0x40000u
_Static_assert(!(VHD_OPEN_REPAIR & VHD_OPEN_COPY) &&
	       !((VHD_OPEN_REPAIR | VHD_OPEN_COPY) & VHD_OPEN_GROW),
	       "flags are bits of their own");

/* An image's extent of metadata, in bytes. */
struct vhd_extent {
	uint64_t start, end;
	const char *what;
};

/* footer copy, header, BAT, batmap header, batmap, locators */
#define VHD_MAX_EXTENTS		(5u + VHD_NR_LOCATORS)

/*
 * Opens a regular file or a block device and nothing else, waiting at most for
 * a lease; flags are VHD_OPEN_*. Takes the image lock unless VHD_OPEN_NOLOCK. st gets
 * the file's status, size its size in bytes.
 */
int vhd_file_open(int *fd, const char *path, unsigned int flags,
		  struct stat *st, uint64_t *size, struct error *err);
/* As the parent of the child with this key (vhd_child_key()), unless that is NULL. */
int vhd_file_open_below(int *fd, const char *path, unsigned int flags,
			const uint64_t *child, struct stat *st, uint64_t *size,
			struct error *err);
bool vhd_same_file(const struct stat *a, const struct stat *b);

/*
 * trailer.c: what is written up to data_end would lie over the footer at the
 * end: another one behind it first, durable.
 */
int vhd_extend(struct vhd_image *image, uint64_t data_end, struct error *err);

/* footer.c */
/* The format's checksum: the complement of the sum of all bytes but the 4 at skip. */
uint32_t vhd_checksum(const uint8_t *p, size_t len, size_t skip);
/* where: which of the two footers, for the message. */
int vhd_footer_decode(struct vhd_footer *footer,
		      const uint8_t in[VHD_FOOTER_BYTES], const char *path,
		      const char *where, struct error *err);
/*
 * Of two good footers, whether that at the end is the same image's and so the one that
 * counts. One that leads to another header doesn't.
 */
bool vhd_tail_counts(const struct vhd_footer *front,
		     const struct vhd_footer *tail);
bool vhd_creator_is_tap(const struct vhd_footer *footer);
/* Cylinders, heads, sectors of the specification's appendix for size bytes. */
uint32_t vhd_geometry(uint64_t size);
/* Unix time to the format's; clamped to what 32 bits hold. */
uint32_t vhd_timestamp(int64_t unix_time);

/* header.c */
void vhd_header_encode(uint8_t out[VHD_HEADER_BYTES],
		       const struct vhd_header *header);
/* Checks the header by itself; vhd_open() holds it against file and footer. */
int vhd_header_decode(struct vhd_header *header,
		      const uint8_t in[VHD_HEADER_BYTES], const char *path,
		      struct error *err);
/* Changes where the BAT is in an encoded header; only its first sector. */
void vhd_header_set_table(uint8_t raw[VHD_HEADER_BYTES], uint64_t table_offset,
			  uint32_t max_bat_size);
/* Bytes that the locator occupies by its data_space. */
uint64_t vhd_locator_space(const struct vhd_locator *locator);

/* utf16.c: out is NUL-terminated. -EILSEQ, -ENAMETOOLONG. Stops at a NUL in. */
int vhd_utf16_decode(char *out, size_t out_size, const uint8_t *in,
		     size_t in_bytes, bool big_endian);
/* *out_bytes gets the length; no NUL is added. */
int vhd_utf16_encode(uint8_t *out, size_t out_size, size_t *out_bytes,
		     const char *in, bool big_endian);

/* image.c */
/*
 * vhd_open() of the parent of the child with this key. While that child is coalesced
 * into it, it is read as it was a moment ago or is now: for what the child lacks
 * that is the same.
 */
int vhd_open_below(struct vhd_image **image, const char *path,
		   unsigned int flags, const uint64_t *child,
		   struct error *err);
/* What an opened child is known by in the locks of its parent. */
int vhd_child_key_of(const struct vhd_image *child, uint64_t *key,
		     struct error *err);
/* "PATH: WHAT: " and the text of rc, which is returned. */
int vhd_fail(const char *path, int rc, const char *what, struct error *err);
/* 0, or -ECANCELED with a message if the watch says so. */
int vhd_stopped(const char *path, const struct job_watch *watch,
		struct error *err);
/* All metadata, none of it on top of another, and where it ends. */
int vhd_collect_extents(const struct vhd_image *image,
			struct vhd_extent extent[VHD_MAX_EXTENTS],
			unsigned int *nr, uint64_t *end, uint64_t limit,
			struct error *err);
bool vhd_clear_of_blocks(const struct vhd_image *image, uint64_t at,
			 uint64_t end);
/*
 * The lowest place, right behind one of the extents, for bytes clear of them and, if
 * blocks is not NULL, of that image's blocks; best if there is none below it.
 */
uint64_t vhd_find_gap(const struct vhd_extent *extent, unsigned int nr,
		      uint64_t bytes, const struct vhd_image *blocks,
		      uint64_t best);

/* create.c: what: of the size, for the message. */
int vhd_check_size(const char *path, const char *what, uint64_t size,
		   struct error *err);

/* bat.c */
/*
 * Writes count entries from first on to the image as they are in memory, and as
 * unused past bat_entries. Writes whole sectors, and only those that change.
 */
int vhd_bat_write(struct vhd_image *image, uint32_t first, uint32_t count,
		  struct error *err);
/* Reads and checks the BAT; sets bat and data_end. */
int vhd_bat_load(struct vhd_image *image, const struct vhd_extent *extent,
		 unsigned int nr_extents, uint64_t limit, struct error *err);

/* batmap.c */
uint64_t vhd_batmap_header_offset(const struct vhd_header *header);
/* Bytes of the map that its checksum covers. */
uint32_t vhd_batmap_covered(const struct vhd_image *image);
uint32_t vhd_batmap_checksum(const uint8_t *map, uint32_t len,
			     uint32_t version);
/* Finds the batmap if there is one; a map with a bad checksum counts as empty. */
int vhd_batmap_load(struct vhd_image *image, uint64_t limit,
		    struct error *err);
/* Clears bits of blocks that the BAT or the file doesn't have. */
/* True if a bit was cleared that the file has. */
bool vhd_batmap_trim(struct vhd_image *image);
int vhd_batmap_store(struct vhd_image *image, struct error *err);
/* Whether an image of this creator has one as a rule. */
bool vhd_may_have_batmap(const struct vhd_image *image);
/* The header of the batmap as it is but for the map's place, size and checksum. */
void vhd_batmap_header_move(uint8_t head[VHD_SECTOR], uint64_t offset,
			    uint32_t sectors, const uint8_t *map,
			    uint32_t covered);
/* A new image's header sector, for an empty map of sectors at offset. */
void vhd_batmap_header_init(uint8_t out[VHD_SECTOR], uint64_t offset,
			    uint32_t sectors);

/* locator.c */
/* A path that an image gives for its parent; relative unless it starts with /. */
struct vhd_parent_name {
	char *path;
	const char *source;	/* "W2RU", "MACX", "W2KU", "parent name" */
	bool mere_name;		/* the last part of a path that means nothing here */
};
#define VHD_MAX_NAMES (4 * VHD_NR_LOCATORS + 1)
/*
 * All names for the parent in the order of trust: relative locators, absolute
 * ones, the header's name, the names at the end of absolute paths. A locator that
 * can't be read or decoded is left out.
 */
unsigned int vhd_parent_names(struct vhd_parent_name names[VHD_MAX_NAMES],
			      int fd, const struct vhd_header *header);
void vhd_parent_names_free(struct vhd_parent_name *names, unsigned int n);
/* The path of one locator as stored ('/' separators), or NULL. */
char *vhd_locator_path(int fd, const struct vhd_locator *locator);
/* The bytes of a locator of this code for a relative path. */
int vhd_locator_encode(uint8_t *out, size_t out_size, size_t *out_bytes,
		       uint32_t code, const char *relative);
/* A path of 4 KiB takes at most 3 times as much in a URL, twice in UTF-16. */
#define VHD_LOCATORS_MAX (8u << 12)
/*
 * The header's locators anew, three for parent as seen from directory dir. Their
 * data go to offset in the file, sector by sector; *used gets the bytes.
 */
int vhd_locators_encode(struct vhd_header *header,
			uint8_t out[VHD_LOCATORS_MAX], uint64_t offset,
			size_t *used, const char *image, const char *dir,
			const char *parent, struct error *err);

/* path.c: malloc'ed strings. */
/* dirname with symbolic links resolved; the last component of path is kept out. */
char *vhd_dir_of_name(const char *path);
/* The directory of the file itself, all symbolic links resolved. */
char *vhd_dir_of_file(const char *path);
const char *vhd_base_name(const char *path);
/* path as seen from directory dir, "./x" or "../y/x"; dir is canonical. */
char *vhd_relative_path(const char *dir, const char *path);

/* children.c */
/* Marks an opened image as a parent, where its file system has attributes. */
int vhd_mark_parent(int fd, const char *path, struct error *err);

/* A mark that can be taken back, as no child came of it: fresh says that there was none before. */
struct vhd_mark {
	char text[48];
	bool fresh;
};

int vhd_try_mark(int fd, const char *path, struct vhd_mark *trial,
		 struct error *err);
/* Once nobody has the parent open: otherwise, or if another has marked it since, it stays. */
void vhd_take_mark_back(const char *path, const struct vhd_mark *trial);

/* read.c */
/* bitmap: bitmap_sectors * VHD_SECTOR bytes; block is allocated. */
int vhd_read_bitmap(const struct vhd_image *image, uint32_t block,
		    uint8_t *bitmap);
/* What holds a run of sectors. */
struct vhd_place {
	int fd;			/* -1: nothing, it reads as zeros */
	unsigned int level;	/* in the chain, 0 for the leaf; its depth for nothing */
	uint64_t offset;	/* in the file, bytes */
	uint32_t count;		/* sectors, at most limit; not always all there are */
};
int vhd_chain_locate(const struct vhd_chain *chain, uint64_t sector,
		     uint32_t limit, struct vhd_place *place,
		     struct error *err);

/*
 * batmap.c: clears the bits of blocks whose bitmaps say that they are not complete.
 * unknown gets the number of those whose bitmaps can't be read, which keep theirs.
 */
int vhd_batmap_verify(struct vhd_image *image, uint32_t *unknown,
		      struct error *err);

/* trailer.c: the footer copy at the start, after all that was written before. */
int vhd_write_copy(const struct vhd_image *image, struct error *err);

/* absorbed.c */
/*
 * Whether a chain may do without its images 1 to below - 1, which are left out
 * if parent becomes the leaf's: 0, or -EINVAL with the sector that would be lost.
 */
int vhd_check_absorbed(const struct vhd_chain *chain, unsigned int below,
		       const struct vhd_chain *parent, struct error *err);
/* The image's content is not what its parent has by now. */
int vhd_unmark_coalesced(int fd, const char *path, struct error *err);

/* chain.c */
/*
 * The parent of an opened differencing image: *parent for a VHD, or *raw_fd,
 * *raw_path and *raw_size. extra_dir: the leaf's directory, allowed beside the
 * configured ones. Refuses files that are in seen[] (-ELOOP).
 */
struct vhd_parent {
	struct vhd_image *vhd;	/* NULL: raw */
	int raw_fd;
	char *path;
	uint64_t raw_size;	/* bytes */
	struct stat st;
	bool is_other;		/* what was looked at last is surely not the parent */
};
int vhd_parent_open(struct vhd_parent *parent, const struct vhd_image *child,
		    const struct config *cfg, const char *extra_dir,
		    unsigned int flags, const struct stat *seen,
		    unsigned int nr_seen, struct error *err);
/* The directory beside the configured ones in which path's parents may lie, or NULL. */
char *vhd_extra_dir(const char *path);
int vhd_parent_allowed(const struct config *cfg, const char *path,
		       const struct stat *st, const char *extra_dir,
		       struct error *err);
/* vhd_chain_open() with another extra directory than path's own. */
int vhd_chain_open_in(struct vhd_chain **chain, const char *path,
		      const struct config *cfg, const char *extra_dir,
		      unsigned int flags, struct error *err);

#endif
