/* SPDX-License-Identifier: LGPL-2.1-only */
#include "drivers/vhd-disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void complete(struct image_request *req)
{
	req->done(req, req->err);
}

void vhd_advance(struct vhd_disk *disk, struct image_request *req)
{
	enum step step = STEP_ON;

	while (step == STEP_ON && !req->err && req->cursor < req->count)
		step = req->op == IMAGE_READ ? vhd_read_step(disk, req) :
					       vhd_write_step(disk, req);
	if (step != STEP_WAIT && !req->pending)
		complete(req);
}

struct vhd_op *vhd_op_get(struct vhd_disk *disk, struct image_request *req)
{
	struct list *item = list_pop(&disk->free_ops);
	struct vhd_op *op;

	if (!item) {
		list_add_tail(&req->link, &disk->starved);
		return NULL;
	}
	op = container_of(item, struct vhd_op, link);
	op->req = req;
	op->bitmap = NULL;
	op->io.iov = &op->iov;
	op->io.iovcnt = 1;
	req->pending++;
	return op;
}

void vhd_op_put(struct vhd_op *op)
{
	op->req->pending--;
	list_add(&op->link, &op->disk->free_ops);
}

void vhd_op_end(struct vhd_op *op, int err)
{
	struct vhd_disk *disk = op->disk;
	struct image_request *req = op->req;

	if (op->bitmap) {
		vhd_cache_unpin(op->bitmap);
		if (err)
			vhd_meta_abandon(op->bitmap);
	}
	/* A chain's file is shorter than its metadata says. */
	if (err == -ENODATA)
		err = -EIO;
	if (err && !req->err)
		req->err = err;
	vhd_op_put(op);
	if (list_empty(&req->link))
		vhd_advance(disk, req);
	vhd_feed_starved(disk);
}

void vhd_feed_starved(struct vhd_disk *disk)
{
	while (!list_empty(&disk->starved) && !list_empty(&disk->free_ops) &&
	       (!disk->cache.nr || !list_empty(&disk->cache.lru)))
		vhd_advance(disk, container_of(list_pop(&disk->starved),
					       struct image_request, link));
}

void vhd_wake(struct vhd_disk *disk, struct list *waiting, int err)
{
	struct list *item;

	while ((item = list_pop(waiting))) {
		struct image_request *req =
			container_of(item, struct image_request, link);

		if (err && !req->err)
			req->err = err;
		vhd_advance(disk, req);
	}
}

static void flush_done(struct io_req *io, int err)
{
	struct image_request *req = container_of(io, struct image_request, io);

	req->done(req, err);
}

static void vhd_submit(struct image *image, struct image_request *req)
{
	struct vhd_disk *disk = vhd_disk_of(image);

	list_init(&req->link);
	req->cursor = 0;
	req->pending = 0;
	req->err = 0;
	if (req->op != IMAGE_FLUSH) {
		vhd_advance(disk, req);
		return;
	}
	req->io.op = IO_SYNC;
	req->io.fd = disk->leaf->fd;
	req->io.done = flush_done;
	image_queue(image, &req->io);
}

static void destroy(struct vhd_disk *disk)
{
	vhd_meta_destroy(disk);
	vhd_grow_destroy(&disk->grow);
	vhd_cache_destroy(&disk->cache);
	free(disk->ops);
	if (disk->chain)
		vhd_chain_close(disk->chain);
	free(disk);
}

static bool chain_is_remote(const struct vhd_chain *chain)
{
	bool remote = chain->raw_fd >= 0 && image_file_is_remote(chain->raw_fd);

	for (unsigned int i = 0; i < chain->nr_vhd; i++)
		remote |= image_file_is_remote(chain->image[i]->fd);
	return remote;
}

static int vhd_image_open(struct image **image,
			  const struct image_open_args *args,
			  struct error *err)
{
	unsigned int nr_ops = args->max_requests * VHD_OPS_PER_REQUEST;
	struct vhd_disk *disk;
	int rc;

	disk = calloc(1, sizeof(*disk));
	if (!disk)
		return error_set(err, -ENOMEM, "%s: out of memory", args->path);
	rc = vhd_chain_open(&disk->chain, args->path, args->config,
			    VHD_OPEN_DIRECT |
			    (args->readonly ? 0 : VHD_OPEN_WRITE), err);
	if (rc) {
		disk->chain = NULL;
		goto out;
	}
	disk->leaf = disk->chain->image[0];
	disk->image.driver = &vhd_driver;
	disk->image.engine = args->engine;
	disk->image.stream = args->stream;
	disk->image.readonly = args->readonly;
	disk->image.info.sectors =
		disk->leaf->footer.current_size >> SECTOR_SHIFT;
	disk->image.info.sector_size = SECTOR_SIZE;
	disk->image.info.depth = disk->chain->depth;
	disk->image.info.remote = chain_is_remote(disk->chain);

	list_init(&disk->free_ops);
	list_init(&disk->starved);
	disk->ops = calloc(nr_ops, sizeof(*disk->ops));
	rc = disk->ops ? vhd_cache_init(disk, args->max_requests) : -ENOMEM;
	if (!rc)
		rc = vhd_grow_init(disk);
	if (rc) {
		error_set(err, rc, "%s: out of memory", args->path);
		goto out;
	}
	rc = vhd_meta_init(disk, err);
	if (rc)
		goto out;
	for (unsigned int i = 0; i < nr_ops; i++) {
		disk->ops[i].disk = disk;
		list_add_tail(&disk->ops[i].link, &disk->free_ops);
	}
	*image = &disk->image;
	return 0;
out:
	destroy(disk);
	return rc;
}

static int vhd_image_close(struct image *image, struct error *err)
{
	struct vhd_disk *disk = vhd_disk_of(image);
	int rc = 0;

	if (disk->changed)
		rc = vhd_write_trailer(disk->leaf, err);
	else if (!image->readonly && fdatasync(disk->leaf->fd) < 0)
		rc = error_set(err, -errno, "%s: final sync: %s",
			       disk->leaf->path, strerror(errno));
	destroy(disk);
	return rc;
}

static const char *vhd_chain_path(const struct image *image, unsigned int i)
{
	const struct vhd_chain *chain =
		container_of_const(image, struct vhd_disk, image)->chain;

	if (i < chain->nr_vhd)
		return chain->image[i]->path;
	return i == chain->nr_vhd ? chain->raw_path : NULL;
}

const struct image_driver vhd_driver = {
	.type		= "vhd",
	.open		= vhd_image_open,
	.close		= vhd_image_close,
	.submit		= vhd_submit,
	.chain_path	= vhd_chain_path,
};
