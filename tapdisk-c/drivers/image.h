/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Image drivers: how a disk's sectors are found in its image files. An image
 * here is the whole disk as opened: for a VHD the chain from leaf to root.
 */
#ifndef XENBLK_IMAGE_H
#define XENBLK_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/config.h"
#include "common/error.h"
#include "common/list.h"
#include "io/engine.h"

#define SECTOR_SHIFT 9
#define SECTOR_SIZE  512u

/* 64 KiB: more than is read ahead for a first sector. */
#define IMAGE_LOOK_SECTORS 128u

/* Alignment of every data buffer: O_DIRECT on any device needs no more. */
#define IMAGE_ALIGN  4096u

enum image_op {
	IMAGE_READ,
	IMAGE_WRITE,
	IMAGE_FLUSH,
	IMAGE_DISCARD,	/* the sectors' content is of no interest any more */
	IMAGE_ZERO,	/* the sectors read as zeros */
	IMAGE_STATUS,	/* which sectors hold data */
};

/* Of IMAGE_STATUS. Extents follow each other without gaps. */
struct image_extent {
	uint32_t count;			/* sectors */
	bool hole;			/* takes no space in any image of the chain */
	bool zero;			/* reads as zeros */
};

/*
 * A request on an image. The caller fills the first part; done() is called
 * exactly once with 0 or -errno, from engine_run() or from inside submit().
 *
 * A completed write has reached the kernel with all metadata that a reader
 * needs to find it: a killed tapdisk loses nothing. A flush that was started
 * after a write completed makes that write durable.
 */
struct image_request {
	enum image_op op;
	uint64_t sector;
	uint32_t count;			/* sectors; 0 for a flush */
	uint8_t *buf;			/* read, write: count * SECTOR_SIZE, IMAGE_ALIGN-aligned */
	uint16_t buffer;		/* of engine_buffer_add(), or 0 */
	bool lend;			/* read: instead of filling buf, lent may be set; else false */
	const uint8_t *lent;		/* NULL, or where the data is: engine_lend(), until its end */
	struct io_map *lender;		/* if lent is not NULL */
	bool keep_space;		/* zero: leave no hole */
	struct image_extent *extents;	/* status: the answer, at least the first extent */
	unsigned int max_extents;	/* status: at least 1 */
	unsigned int nr_extents;	/* status: in extents */
	void (*done)(struct image_request *req, int err);

	/* The driver's. */
	struct image *image;
	struct list link;		/* where the request waits for a resource */
	struct io_req io;		/* for requests that are one I/O */
	struct iovec iov;
	uint32_t cursor;		/* sectors handed out so far */
	uint32_t pending;		/* operations in flight */
	int err;
};

struct image_info {
	uint64_t sectors;		/* size of the disk, in 512-byte sectors */
	uint32_t sector_size;		/* logical block size that requests keep to */
	unsigned int depth;		/* images in the chain, 1 for raw */
	bool remote;			/* a file is reached over a network: an EIO may pass */
	bool remote_leaf;		/* that which is written is: so may that of a flush */
	bool local_file;		/* that which is written is a file here: a flush tells an error once */
	unsigned int can;		/* IMAGE_CAN_*: what submit() takes beside read, write, flush */
};

#define IMAGE_CAN_DISCARD	1u
#define IMAGE_CAN_ZERO		2u
#define IMAGE_CAN_STATUS	4u

/* How much of its beginning a look gives. */
static inline uint32_t image_look_sectors(const struct image_info *info)
{
	return info->sectors < IMAGE_LOOK_SECTORS ? (uint32_t)info->sectors :
						    IMAGE_LOOK_SECTORS;
}

/* Sectors whose data lies in one file, one after the other. */
struct image_run {
	uint64_t sector;
	uint64_t count;			/* sectors */
	int fd;				/* open for direct I/O */
	uint64_t offset;		/* of the first, bytes */
	bool write;			/* they may be written there, with no more to do */
};

/* Who has been told of runs. */
struct image_watcher {
	/* What run() said of these sectors is true no more. Called before a write that caused it is done. */
	void (*moved)(struct image_watcher *watcher, uint64_t sector,
		      uint64_t count);
};

struct image {
	const struct image_driver *driver;
	struct image_watcher *watcher;	/* NULL: none */
	struct engine *engine;
	struct io_stream *stream;
	struct image_info info;
	bool readonly;
};

/* All I/O of an image goes this way. */
static inline void image_queue(struct image *image, struct io_req *io)
{
	io->stream = image->stream;
	engine_queue(image->engine, io);
}

/* Answers a read in place: true if it did, and req->done() is to be called. */
static inline bool image_lend(struct image *image, struct image_request *req,
			      int fd, uint64_t offset)
{
	if (!req->lend)
		return false;
	req->lent = engine_lend(image->engine, fd, offset,
				(size_t)req->count << SECTOR_SHIFT,
				&req->lender);
	return req->lent;
}

struct image_open_args {
	struct engine *engine;
	struct io_stream *stream;	/* of the VBD; NULL: none */
	const struct config *config;
	const char *path;
	bool readonly;
	unsigned int max_requests;	/* requests in flight at once, for sizing pools */
	/* For jobs on images that nobody uses. */
	bool alone;			/* vhd, read-only: the first image, as if it had no parent */
	const char *child;		/* written although the image at this path is its child; NULL: no child */
	bool buffered;			/* I/O is the page cache's: a flush may tell of a write's error, once */
	bool any_sector;		/* raw: requests keep to 512 bytes, whatever the disk has */
};

struct image_snapshot;

/*
 * A driver is one const struct, filled by a designated initialiser. What is
 * required is called without a look; what is optional may be NULL.
 */
struct image_driver {
	/* Required. The prefix in TYPE:PATH. */
	const char *type;

	/* Optional. Another name of the type. */
	const char *alias;

	/*
	 * Optional. Whether what follows "TYPE:" makes sense, before anything
	 * is opened; -EINVAL with a message that begins with spec and says what is
	 * wrong with which part of it. Without it path must be absolute.
	 */
	int (*check)(const char *spec, const char *path, struct error *err);

	/*
	 * Required. Opens and locks every file of the image, checks it, and
	 * makes all pools. Synchronous. Changes no byte of an image.
	 */
	int (*open)(struct image **image, const struct image_open_args *args,
		    struct error *err);

	/*
	 * Optional. What open() would find now, of an image that somebody else may
	 * have open and write: without its lock. depth is that of the first file, 1.
	 * first: NULL, or IMAGE_LOOK_SECTORS for what the disk has at its beginning.
	 */
	int (*look)(struct image_info *info, const struct image_open_args *args,
		    uint8_t *first, struct error *err);

	/*
	 * Required. No request is in flight, and it is not busy. Writes
	 * what a clean close leaves behind, releases files and locks. The image is gone even
	 * if an error is returned.
	 */
	int (*close)(struct image *image, struct error *err);

	/*
	 * Required. sector + count lies inside the disk, the op is one that info.can
	 * says or needs no saying, and changes nothing if the image is
	 * read-only; checked above.
	 */
	void (*submit)(struct image *image, struct image_request *req);

	/*
	 * Optional. True while I/O is in flight that no request waits for:
	 * close() only when it is false.
	 */
	bool (*busy)(const struct image *image);

	/*
	 * Optional. The run that has the sector, if that is known without I/O and
	 * a file has it. It is true until the watcher hears otherwise, or the image
	 * is closed or has a snapshot.
	 */
	bool (*run)(struct image *image, uint64_t sector, struct image_run *run);

	/*
	 * Optional, all or none: a snapshot of an image that is open,
	 * drivers/vhd-snapshot.c. args->path is the new leaf, with nothing in
	 * it, whose parent is a second name of the leaf there is, parent.
	 * prepare opens and checks and changes nothing; it may take as long as
	 * opening one file. The rest comes with no request in flight and after a
	 * flush. switch: the new leaf gets the name of the old one; after an error
	 * nothing has changed. take, after it: *image becomes the image with the new leaf;
	 * an error says that the snapshot may not survive a power loss, and no flush
	 * succeeds until it would. undo, in place of take: the old leaf has its name,
	 * the new leaf and the parent's name are gone. All end by end(), which
	 * frees what is not in use.
	 */
	int (*snapshot_prepare)(struct image_snapshot **snapshot,
				struct image *image,
				const struct image_open_args *args,
				const char *parent, struct error *err);
	int (*snapshot_switch)(struct image_snapshot *snapshot,
			       struct error *err);
	int (*snapshot_take)(struct image_snapshot *snapshot,
			     struct image **image, struct error *err);
	void (*snapshot_undo)(struct image_snapshot *snapshot);
	void (*snapshot_end)(struct image_snapshot *snapshot);

	/* Optional. Paths of the chain, leaf first; NULL past the end. */
	const char *(*chain_path)(const struct image *image, unsigned int i);
};

extern const struct image_driver raw_driver;	/* aio: or raw:PATH, a file or block device */
extern const struct image_driver vhd_driver;	/* vhd:PATH */
extern const struct image_driver nbd_driver;	/* nbd:unix:SOCKET and NBD URIs, drivers/nbd.h */
extern const struct image_driver ram_driver;	/* ram:SIZE, for tests */
extern const struct image_driver null_driver;	/* null:SIZE, for measuring */
extern const struct image_driver log_driver;	/* log:BITMAP,TYPE:PATH, drivers/log.c */

static inline bool image_busy(const struct image *image)
{
	return image->driver->busy && image->driver->busy(image);
}

/* What is written where nothing else makes zeros. Never written to, so that it takes no memory. */
#define IMAGE_ZEROS (1u << 20)		/* bytes */
extern uint8_t image_zeros[IMAGE_ZEROS];

/* Whether the file lies on a network file system; for image_info.remote. */
bool image_file_is_remote(int fd);

/* Whether it is a file of another file system; for image_info.local_file. */
bool image_file_is_local(int fd);

/*
 * The driver of "TYPE:PATH" and the path's start in spec; -EINVAL names the
 * types known, or what is wrong with the path. Opens nothing.
 */
int image_parse(const char *spec, const struct image_driver **driver,
		const char **path, struct error *err);

/*
 * The spec with an image file's path made absolute; what other drivers take is
 * theirs. -ENAMETOOLONG if it has no room.
 */
int image_absolute(const char *spec, char *to, size_t size, struct error *err);

/*
 * The check() of drivers whose path is a size: a number of bytes, or of
 * KiB, MiB, GiB, TiB with K, M, G, T behind it.
 */
int image_check_size(const char *spec, const char *text, struct error *err);
/* Of a text that passed it: sectors, positive. */
uint64_t image_size(const char *text);

#endif
