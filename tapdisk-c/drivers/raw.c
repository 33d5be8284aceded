/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * aio: a raw image, a regular file or a block device, byte for byte.
 *
 * Discarded and zeroed sectors become holes (blocks that the device unmaps)
 * where there are such. Where there are none, a discard does nothing, and zeros
 * are written: by the kernel, or if it can't, by us.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/file.h"
#include "common/lease.h"
#include "common/lock.h"
#include "drivers/image.h"
#include "vhd/vhd.h"

/*
 * Discard and zero go in steps, one at a time for each request, so that none
 * keeps the file or the kernel's threads busy for long.
 */
#define SPACE_STEP	(256u << 20 >> SECTOR_SHIFT)	/* sectors: the kernel makes them */
#define ZERO_STEP	(IMAGE_ZEROS >> SECTOR_SHIFT)	/* sectors: we write them */

struct raw_image {
	struct image image;
	int fd;
	char *path;
	bool is_file;
	bool no_punch, no_zero;		/* the kernel has said so */
};

static struct raw_image *raw_of(struct image *image)
{
	return container_of(image, struct raw_image, image);
}

/* Size in bytes and the block size that requests must keep to. */
static int raw_geometry(struct raw_image *raw, uint64_t *size, uint32_t *block,
			struct error *err)
{
	const char *path = raw->path;
	int fd = raw->fd;
	struct stat st;
	int lbs;

	if (fstat(fd, &st) < 0)
		return error_set(err, -errno, "%s: %s", path, strerror(errno));
	if (S_ISREG(st.st_mode)) {
		raw->is_file = true;
		*size = (uint64_t)st.st_size;
		/* The guest's first read tells of other errors. */
		if (file_direct_block(fd, block) == -ENOMEM)
			return error_set(err, -ENOMEM, "%s: out of memory", path);
		return 0;
	}
	if (!S_ISBLK(st.st_mode))
		return error_set(err, -EINVAL,
				 "%s: neither a regular file nor a block device",
				 path);
	if (ioctl(fd, BLKGETSIZE64, size) < 0 || ioctl(fd, BLKSSZGET, &lbs) < 0)
		return error_set(err, -errno, "%s: cannot read its size: %s",
				 path, strerror(errno));
	*block = (uint32_t)lbs;
	return 0;
}

/* Without the lock. */
static int open_file(struct raw_image *raw, const struct image_open_args *args,
		     struct error *err)
{
	const int direct = args->buffered ? 0 : O_DIRECT;

	raw->path = strdup(args->path);
	if (!raw->path)
		return error_set(err, -ENOMEM, "%s: out of memory", args->path);
	/* Opening a FIFO must not hang. */
	raw->fd = lease_open(AT_FDCWD, args->path, direct | O_CLOEXEC |
			     (args->readonly ? O_RDONLY : O_RDWR));
	if (raw->fd == -EINVAL)
		return error_set(err, -EINVAL,
				 "%s: its file system does not take O_DIRECT; move the image to one that does",
				 args->path);
	if (raw->fd < 0)
		return error_set(err, raw->fd, "%s: %s", args->path,
				 lease_strerror(raw->fd));
	/* With it io_uring may answer EAGAIN for ever instead of waiting. */
	if (fcntl(raw->fd, F_SETFL, direct) < 0)
		return error_set(err, -errno, "%s: fcntl: %s", args->path,
				 strerror(errno));
	return 0;
}

static int lock_file(const struct raw_image *raw,
		     const struct image_open_args *args, struct error *err)
{
	uint64_t child = 0;
	int rc = 0;

	if (args->child)
		rc = vhd_child_key(args->child, &child, err);
	if (!rc)
		rc = lock_take(raw->fd, args->path,
			       args->readonly ? LOCK_READER :
			       args->child ? LOCK_COALESCE : LOCK_WRITER, child,
			       err);
	if (rc || args->readonly)
		return rc;
	return args->child ? vhd_check_other_children(raw->fd, args->path,
						      args->child, err) :
			     vhd_check_no_children(raw->fd, args->path, err);
}

static int fill_info(struct raw_image *raw, struct image_info *info,
		     struct error *err)
{
	uint64_t size;
	int rc;

	rc = raw_geometry(raw, &size, &info->sector_size, err);
	if (rc)
		return rc;
	/* A partial last sector can't be shown; hiding it could lose data. */
	if (!size || size % info->sector_size)
		return error_set(err, -EINVAL,
				 "%s: its size, %llu bytes, is not a positive multiple of %u; resize it with truncate -s",
				 raw->path, (unsigned long long)size,
				 info->sector_size);
	info->sectors = size >> SECTOR_SHIFT;
	info->depth = 1;
	info->remote = info->remote_leaf = image_file_is_remote(raw->fd);
	info->local_file = image_file_is_local(raw->fd);
	info->can = IMAGE_CAN_DISCARD | IMAGE_CAN_ZERO | IMAGE_CAN_STATUS;
	return 0;
}

static void raw_free(struct raw_image *raw)
{
	if (raw->fd >= 0)
		close(raw->fd);
	free(raw->path);
	free(raw);
}

static int raw_open(struct image **image, const struct image_open_args *args,
		    struct error *err)
{
	struct raw_image *raw = calloc(1, sizeof(*raw));
	uint32_t block = 0;
	int rc;

	if (!raw)
		return error_set(err, -ENOMEM, "%s: out of memory", args->path);
	raw->fd = -1;
	rc = open_file(raw, args, err);
	if (!rc)
		rc = lock_file(raw, args, err);
	if (!rc)
		rc = fill_info(raw, &raw->image.info, err);
	if (rc) {
		raw_free(raw);
		return rc;
	}
	raw->image.driver = &raw_driver;
	raw->image.engine = args->engine;
	raw->image.stream = args->stream;
	raw->image.readonly = args->readonly;
	/* Requests keep to the sector size, or the engine carries them. */
	if (args->any_sector) {
		block = raw->image.info.sector_size;
		raw->image.info.sector_size = SECTOR_SIZE;
	}
	engine_file_add(args->engine, raw->fd, block);
	*image = &raw->image;
	return 0;
}

static int raw_look(struct image_info *info, const struct image_open_args *args,
		    uint8_t *first, struct error *err)
{
	struct raw_image raw = { .fd = -1 };
	int rc = open_file(&raw, args, err);

	if (!rc)
		rc = fill_info(&raw, info, err);
	if (!rc && first) {
		rc = vhd_read_at(raw.fd, first, (size_t)image_look_sectors(info)
				 << SECTOR_SHIFT, 0);
		if (rc)
			error_set(err, rc, "%s: %s", args->path, strerror(-rc));
	}
	if (raw.fd >= 0)
		close(raw.fd);
	free(raw.path);
	return rc;
}

static int raw_close(struct image *image, struct error *err)
{
	struct raw_image *raw = raw_of(image);
	int rc = 0;

	if (!image->readonly && fdatasync(raw->fd) < 0)
		rc = error_set(err, -errno, "%s: final sync: %s", raw->path,
			       strerror(errno));
	engine_file_remove(image->engine, raw->fd);
	raw_free(raw);
	return rc;
}

static void raw_done(struct io_req *io, int err)
{
	struct image_request *req = container_of(io, struct image_request, io);

	/* The file has shrunk under us: that is damage, not an end of file. */
	req->done(req, err == -ENODATA ? -EIO : err);
}

/* How the next step is done: as a hole, by the kernel, by hand. */
static enum io_op space_op(const struct raw_image *raw,
			   const struct image_request *req)
{
	if (!raw->no_punch && (req->op == IMAGE_DISCARD || !req->keep_space))
		return IO_PUNCH;
	return raw->no_zero ? IO_WRITE : IO_ZERO;
}

static void space_step(struct raw_image *raw, struct image_request *req)
{
	uint32_t left = req->count - req->cursor, max;

	if (!left || (req->op == IMAGE_DISCARD && raw->no_punch)) {
		req->done(req, 0);
		return;
	}
	req->io.op = space_op(raw, req);
	max = req->io.op == IO_WRITE ? ZERO_STEP : SPACE_STEP;
	req->io.offset = (req->sector + req->cursor) << SECTOR_SHIFT;
	req->io.len = (uint64_t)(left < max ? left : max) << SECTOR_SHIFT;
	req->io.buffer = 0;
	req->iov.iov_base = image_zeros;
	req->iov.iov_len = req->io.op == IO_WRITE ? (size_t)req->io.len : 0;
	req->io.iovcnt = req->io.op == IO_WRITE;
	image_queue(&raw->image, &req->io);
}

static void space_done(struct io_req *io, int err)
{
	struct image_request *req = container_of(io, struct image_request, io);
	struct raw_image *raw = raw_of(req->image);

	if (err == -EOPNOTSUPP && io->op == IO_PUNCH)
		raw->no_punch = true;
	else if (err == -EOPNOTSUPP && io->op == IO_ZERO)
		raw->no_zero = true;
	else if (err) {
		req->done(req, err);
		return;
	} else
		req->cursor += (uint32_t)(io->len >> SECTOR_SHIFT);
	space_step(raw, req);
}

static void add_extent(struct image_request *req, uint64_t sectors, bool hole)
{
	struct image_extent *e = &req->extents[req->nr_extents++];

	e->count = (uint32_t)sectors;
	e->hole = hole;
	e->zero = hole;
}

/*
 * The file system is asked in turn for the next byte of data and the next
 * hole; what it can't or won't say is data.
 */
static void raw_status(const struct raw_image *raw, struct image_request *req)
{
	uint64_t unit = raw->image.info.sector_size >> SECTOR_SHIFT;
	uint64_t at = req->sector, end = req->sector + req->count;
	bool hole = true;

	req->nr_extents = 0;
	while (at < end && req->nr_extents < req->max_extents) {
		uint64_t next = end;
		off_t off = -1;

		errno = 0;
		if (raw->is_file)
			off = lseek(raw->fd, (off_t)(at << SECTOR_SHIFT),
				    hole ? SEEK_DATA : SEEK_HOLE);
		/* ENXIO: no data from here to the end, unless that came nearer. */
		if (off < 0 && (!hole || errno != ENXIO ||
				lseek(raw->fd, 0, SEEK_END) <
				(off_t)(end << SECTOR_SHIFT))) {
			add_extent(req, end - at, false);
			return;
		}
		/* What is a hole in part is data. */
		if (off >= 0)
			next = ((uint64_t)off + (hole ? 0 : SECTOR_SIZE - 1)) >>
			       SECTOR_SHIFT;
		next = hole ? next - next % unit : round_up_u64(next, unit);
		/* It begins with a hole, and does not end with one. */
		if (!hole && next <= at)
			next = at + unit;
		if (next > end)
			next = end;
		if (next > at) {
			add_extent(req, next - at, hole);
			at = next;
		}
		hole = !hole;
	}
}

static void raw_submit(struct image *image, struct image_request *req)
{
	req->image = image;
	req->io.fd = raw_of(image)->fd;
	req->io.done = raw_done;
	req->io.offset = req->sector << SECTOR_SHIFT;
	req->iov.iov_base = req->buf;
	req->iov.iov_len = (size_t)req->count << SECTOR_SHIFT;
	req->io.iov = &req->iov;
	req->io.iovcnt = 1;
	req->io.buffer = req->buffer;
	switch (req->op) {
	case IMAGE_READ:
		if (image_lend(image, req, req->io.fd, req->io.offset)) {
			req->done(req, 0);
			return;
		}
		req->io.op = IO_READ;
		break;
	case IMAGE_WRITE:
		req->io.op = IO_WRITE;
		break;
	case IMAGE_FLUSH:
		req->io.op = IO_SYNC;
		break;
	case IMAGE_DISCARD:
	case IMAGE_ZERO:
		req->io.done = space_done;
		req->cursor = 0;
		space_step(raw_of(image), req);
		return;
	case IMAGE_STATUS:
		raw_status(raw_of(image), req);
		req->done(req, 0);
		return;
	}
	image_queue(image, &req->io);
}

static const char *raw_chain_path(const struct image *image, unsigned int i)
{
	const struct raw_image *raw =
		container_of_const(image, struct raw_image, image);

	return i == 0 ? raw->path : NULL;
}

static bool raw_run(struct image *image, uint64_t sector, struct image_run *run)
{
	(void)sector;
	*run = (struct image_run) {
		.count = image->info.sectors,
		.fd = raw_of(image)->fd,
		.write = !image->readonly,
	};
	return true;
}

const struct image_driver raw_driver = {
	.type		= "aio",
	.alias		= "raw",
	.open		= raw_open,
	.look		= raw_look,
	.close		= raw_close,
	.submit		= raw_submit,
	.run		= raw_run,
	.chain_path	= raw_chain_path,
};
