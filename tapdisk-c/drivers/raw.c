/* SPDX-License-Identifier: LGPL-2.1-only */
/* aio: a raw image, a regular file or a block device, byte for byte. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/lock.h"
#include "drivers/image.h"
#include "vhd/vhd.h"

struct raw_image {
	struct image image;
	int fd;
	char *path;
};

static struct raw_image *raw_of(struct image *image)
{
	return container_of(image, struct raw_image, image);
}

/* On a disk with sectors of 4096 bytes direct I/O takes no less. */
static int file_block(int fd, const char *path, uint32_t *block,
		      struct error *err)
{
	void *buf = aligned_alloc(IMAGE_ALIGN, IMAGE_ALIGN);
	ssize_t got;

	if (!buf)
		return error_set(err, -ENOMEM, "%s: out of memory", path);
	got = pread(fd, buf, SECTOR_SIZE, SECTOR_SIZE);
	*block = got < 0 && errno == EINVAL ? 4096 : SECTOR_SIZE;
	free(buf);
	return 0;
}

/* Size in bytes and the block size that requests must keep to. */
static int raw_geometry(int fd, const char *path, uint64_t *size,
			uint32_t *block, struct error *err)
{
	struct stat st;
	int lbs;

	if (fstat(fd, &st) < 0)
		return error_set(err, -errno, "%s: %s", path, strerror(errno));
	if (S_ISREG(st.st_mode)) {
		*size = (uint64_t)st.st_size;
		return file_block(fd, path, block, err);
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

static int raw_open(struct image **image, const struct image_open_args *args,
		    struct error *err)
{
	struct raw_image *raw;
	uint64_t size;
	int rc;

	raw = calloc(1, sizeof(*raw));
	if (!raw)
		return error_set(err, -ENOMEM, "%s: out of memory", args->path);
	raw->fd = -1;
	raw->path = strdup(args->path);
	if (!raw->path) {
		rc = error_set(err, -ENOMEM, "%s: out of memory", args->path);
		goto out;
	}
	/* O_NONBLOCK: opening a FIFO must not hang. */
	raw->fd = open(args->path, O_DIRECT | O_CLOEXEC | O_NONBLOCK |
		       (args->readonly ? O_RDONLY : O_RDWR));
	if (raw->fd < 0) {
		rc = -errno;
		if (rc == -EINVAL)
			error_set(err, rc,
				  "%s: its file system does not take O_DIRECT; move the image to one that does",
				  args->path);
		else
			error_set(err, rc, "%s: %s", args->path, strerror(-rc));
		goto out;
	}
	/* With it io_uring may answer EAGAIN for ever instead of waiting. */
	if (fcntl(raw->fd, F_SETFL, O_DIRECT) < 0) {
		rc = error_set(err, -errno, "%s: fcntl: %s", args->path,
			       strerror(errno));
		goto out;
	}
	rc = lock_take(raw->fd, args->path,
		       args->readonly ? LOCK_READER : LOCK_WRITER, err);
	if (rc)
		goto out;
	if (!args->readonly) {
		rc = vhd_check_no_children(raw->fd, args->path, err);
		if (rc)
			goto out;
	}
	rc = raw_geometry(raw->fd, args->path, &size,
			  &raw->image.info.sector_size, err);
	if (rc)
		goto out;
	/* A partial last sector can't be shown; hiding it could lose data. */
	if (!size || size % raw->image.info.sector_size) {
		rc = error_set(err, -EINVAL,
			       "%s: its size, %llu bytes, is not a positive multiple of %u; resize it with truncate -s",
			       args->path, (unsigned long long)size,
			       raw->image.info.sector_size);
		goto out;
	}
	raw->image.driver = &raw_driver;
	raw->image.engine = args->engine;
	raw->image.stream = args->stream;
	raw->image.readonly = args->readonly;
	raw->image.info.sectors = size >> SECTOR_SHIFT;
	raw->image.info.depth = 1;
	raw->image.info.remote = image_file_is_remote(raw->fd);
	*image = &raw->image;
	return 0;
out:
	if (raw->fd >= 0)
		close(raw->fd);
	free(raw->path);
	free(raw);
	return rc;
}

static int raw_close(struct image *image, struct error *err)
{
	struct raw_image *raw = raw_of(image);
	int rc = 0;

	if (!image->readonly && fdatasync(raw->fd) < 0)
		rc = error_set(err, -errno, "%s: final sync: %s", raw->path,
			       strerror(errno));
	close(raw->fd);
	free(raw->path);
	free(raw);
	return rc;
}

static void raw_done(struct io_req *io, int err)
{
	struct image_request *req = container_of(io, struct image_request, io);

	/* The file has shrunk under us: that is damage, not an end of file. */
	req->done(req, err == -ENODATA ? -EIO : err);
}

static void raw_submit(struct image *image, struct image_request *req)
{
	req->io.fd = raw_of(image)->fd;
	req->io.done = raw_done;
	req->io.offset = req->sector << SECTOR_SHIFT;
	req->iov.iov_base = req->buf;
	req->iov.iov_len = (size_t)req->count << SECTOR_SHIFT;
	req->io.iov = &req->iov;
	req->io.iovcnt = 1;
	switch (req->op) {
	case IMAGE_READ:
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
	case IMAGE_STATUS:
		req->done(req, -EOPNOTSUPP);
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

const struct image_driver raw_driver = {
	.type		= "aio",
	.open		= raw_open,
	.close		= raw_close,
	.submit		= raw_submit,
	.chain_path	= raw_chain_path,
};
