/* SPDX-License-Identifier: LGPL-2.1-only */
#include "drivers/vhd-disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/file.h"

/* Of a request, before others have their turn. */
#define TURN_STEPS 512u

static void complete(struct image_request *req)
{
	req->done(req, req->err);
}

/* Those that have had their turn go on when all else has had one. */
static void turn_comes(struct io_timer *timer)
{
	struct vhd_disk *disk = container_of(timer, struct vhd_disk, turn);
	struct list ready;

	list_init(&ready);
	list_splice(&disk->later, &ready);
	vhd_wake(disk, &ready, 0);
}

static void wait_turn(struct vhd_disk *disk, struct image_request *req)
{
	list_add_tail(&req->link, &disk->later);
	if (!disk->turn.armed)
		engine_timer_set(disk->image.engine, &disk->turn, 0);
}

void vhd_advance(struct vhd_disk *disk, struct image_request *req)
{
	static enum step (*const steps[])(struct vhd_disk *disk,
					  struct image_request *req) = {
		[IMAGE_READ]	= vhd_read_step,
		[IMAGE_WRITE]	= vhd_write_step,
		[IMAGE_DISCARD]	= vhd_zero_step,
		[IMAGE_ZERO]	= vhd_zero_step,
		[IMAGE_STATUS]	= vhd_status_step,
	};
	enum step step = STEP_ON;
	unsigned int turn = TURN_STEPS;

	while (step == STEP_ON && !req->err && req->cursor < req->count) {
		if (!--turn) {
			wait_turn(disk, req);
			return;
		}
		step = steps[req->op](disk, req);
	}
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
	       (!disk->cache.nr || vhd_cache_ready(&disk->cache)))
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
	struct vhd_disk *disk = vhd_disk_of(req->image);

	/* It must not pass for an error that may pass. */
	if (disk->lost)
		err = disk->lost;
	/* In the page cache it is there, and would not be written when it is asked for again. */
	disk->lost = disk->buffered ? err : 0;
	req->done(req, err);
}

static void vhd_submit(struct image *image, struct image_request *req)
{
	struct vhd_disk *disk = vhd_disk_of(image);
	int rc;

	list_init(&req->link);
	req->cursor = 0;
	req->pending = 0;
	req->err = 0;
	req->nr_extents = 0;
	if (req->op != IMAGE_FLUSH) {
		vhd_advance(disk, req);
		return;
	}
	rc = vhd_name_sync(disk);
	if (rc) {
		req->done(req, rc);
		return;
	}
	req->image = image;
	req->io.op = IO_SYNC;
	req->io.fd = disk->leaf->fd;
	req->io.done = flush_done;
	image_queue(image, &req->io);
}

/* The chain's descriptors, leaf first; -1 past the end. */
static int chain_fd(const struct vhd_chain *chain, unsigned int i)
{
	if (i < chain->nr_vhd)
		return chain->image[i]->fd;
	return i == chain->nr_vhd ? chain->raw_fd : -1;
}

void vhd_files_add(struct vhd_disk *disk)
{
	int fd;

	for (unsigned int i = 0; (fd = chain_fd(disk->chain, i)) >= 0; i++)
		engine_file_add(disk->image.engine, fd, disk->file_block[i]);
	disk->registered = true;
}

void vhd_files_remove(struct vhd_disk *disk)
{
	int fd;

	for (unsigned int i = 0; (fd = chain_fd(disk->chain, i)) >= 0; i++)
		engine_file_remove(disk->image.engine, fd);
	disk->registered = false;
}

/* Metadata, and what a guest writes, come in sectors whatever the disk below has. */
static int probe_blocks(struct vhd_disk *disk, struct error *err)
{
	const struct vhd_chain *chain = disk->chain;
	int fd;

	/* What can't be read tells who reads it. */
	for (unsigned int i = 0; (fd = chain_fd(chain, i)) >= 0; i++)
		if (file_direct_block(fd, &disk->file_block[i]) == -ENOMEM)
			return error_set(err, -ENOMEM, "%s: out of memory",
					 chain->image[0]->path);
	return 0;
}

void vhd_disk_free(struct vhd_disk *disk)
{
	vhd_meta_destroy(disk);
	vhd_grow_destroy(&disk->grow);
	vhd_cache_destroy(&disk->cache);
	vhd_map_destroy(disk);
	free(disk->ops);
	if (disk->registered)
		vhd_files_remove(disk);
	if (disk->chain)
		vhd_chain_close(disk->chain);
	if (disk->unsynced_dir >= 0)
		close(disk->unsynced_dir);
	free(disk);
}

static bool chain_is_remote(const struct vhd_chain *chain)
{
	bool remote = chain->raw_fd >= 0 && image_file_is_remote(chain->raw_fd);

	for (unsigned int i = 0; i < chain->nr_vhd; i++)
		remote |= image_file_is_remote(chain->image[i]->fd);
	return remote;
}

static unsigned int what_can_be_done(const struct image_open_args *args)
{
	return IMAGE_CAN_STATUS |
	       (args->readonly ? 0 : IMAGE_CAN_DISCARD | IMAGE_CAN_ZERO);
}

int vhd_disk_new(struct vhd_disk **out, struct vhd_chain *chain,
		 const struct image_open_args *args, struct error *err)
{
	unsigned int nr_ops = args->max_requests * VHD_OPS_PER_REQUEST;
	struct vhd_disk *disk;
	int rc;

	disk = calloc(1, sizeof(*disk));
	if (!disk)
		return error_set(err, -ENOMEM, "%s: out of memory", args->path);
	disk->chain = chain;
	disk->leaf = disk->chain->image[0];
	disk->unsynced_dir = -1;
	disk->buffered = args->buffered;
	disk->image.driver = &vhd_driver;
	disk->image.engine = args->engine;
	disk->image.stream = args->stream;
	disk->image.readonly = args->readonly;
	disk->image.info.sectors =
		disk->leaf->footer.current_size >> SECTOR_SHIFT;
	disk->image.info.sector_size = SECTOR_SIZE;
	disk->image.info.depth = disk->chain->depth;
	disk->image.info.remote = chain_is_remote(disk->chain);
	disk->image.info.remote_leaf = image_file_is_remote(disk->leaf->fd);
	disk->image.info.local_file = image_file_is_local(disk->leaf->fd);
	disk->image.info.can = what_can_be_done(args);

	list_init(&disk->free_ops);
	list_init(&disk->starved);
	list_init(&disk->later);
	disk->turn.expired = turn_comes;
	disk->ops = calloc(nr_ops, sizeof(*disk->ops));
	rc = disk->ops ? vhd_map_init(disk) : -ENOMEM;
	if (!rc)
		rc = vhd_cache_init(disk, args->max_requests);
	if (!rc)
		rc = vhd_grow_init(disk);
	if (rc) {
		error_set(err, rc, "%s: out of memory", args->path);
		goto out;
	}
	rc = vhd_meta_init(disk, err);
	if (!rc)
		rc = probe_blocks(disk, err);
	if (rc)
		goto out;
	for (unsigned int i = 0; i < nr_ops; i++) {
		disk->ops[i].disk = disk;
		list_add_tail(&disk->ops[i].link, &disk->free_ops);
	}
	*out = disk;
	return 0;
out:
	disk->chain = NULL;
	vhd_disk_free(disk);
	return rc;
}

static int read_first(const struct image_info *info,
		      const struct image_open_args *args, uint8_t *first,
		      struct error *err)
{
	struct vhd_chain *chain;
	int rc;

	rc = vhd_chain_open(&chain, args->path, args->config,
			    VHD_OPEN_DIRECT | VHD_OPEN_NOLOCK, err);
	if (rc)
		return rc;
	rc = vhd_chain_read(chain, 0, image_look_sectors(info), first, err);
	vhd_chain_close(chain);
	return rc;
}

static int vhd_image_look(struct image_info *info,
			  const struct image_open_args *args, uint8_t *first,
			  struct error *err)
{
	struct vhd_image *leaf;
	int rc;

	rc = vhd_open(&leaf, args->path, VHD_OPEN_DIRECT | VHD_OPEN_NOLOCK, err);
	if (rc)
		return rc;
	*info = (struct image_info) {
		.sectors	= leaf->footer.current_size >> SECTOR_SHIFT,
		.sector_size	= SECTOR_SIZE,
		.depth		= 1,
		.remote		= image_file_is_remote(leaf->fd),
		.remote_leaf	= image_file_is_remote(leaf->fd),
		.local_file	= image_file_is_local(leaf->fd),
		.can		= what_can_be_done(args),
	};
	vhd_close(leaf);
	return first ? read_first(info, args, first, err) : 0;
}

static int vhd_image_open(struct image **image,
			  const struct image_open_args *args,
			  struct error *err)
{
	unsigned int flags = (args->buffered ? 0 : VHD_OPEN_DIRECT) |
			     (args->alone ? VHD_OPEN_ALONE : 0) |
			     (args->readonly ? 0 : VHD_OPEN_WRITE);
	struct vhd_chain *chain;
	struct vhd_disk *disk;
	int rc;

	rc = args->child ?
		vhd_chain_open_parent(&chain, args->path, args->child,
				      args->config, flags, err) :
		vhd_chain_open(&chain, args->path, args->config, flags, err);
	if (rc)
		return rc;
	rc = vhd_disk_new(&disk, chain, args, err);
	if (rc) {
		vhd_chain_close(chain);
		return rc;
	}
	if (!args->readonly && !disk->leaf->is_blk)
		vhd_name_open(disk);
	vhd_files_add(disk);
	*image = &disk->image;
	return 0;
}

/* Who was killed while the file was extended may have left it without a footer at its end. */
static bool lacks_footer(const struct vhd_disk *disk)
{
	return !disk->image.readonly && !disk->leaf->tail_ok &&
	       !disk->leaf->cut_block;
}

static int vhd_image_close(struct image *image, struct error *err)
{
	struct vhd_disk *disk = vhd_disk_of(image);
	int rc = 0;

	/* The trailer may say that blocks are complete whose bitmaps were lost. */
	if (disk->buffered && disk->lost)
		rc = error_set(err, disk->lost, "%s: a sync failed: %s",
			       disk->leaf->path, strerror(-disk->lost));
	else if (!image->readonly)
		/* No block comes back whose first write failed: it has been read without since. */
		rc = vhd_bat_retract(disk, err);
	if (rc)
		goto out;
	if (disk->changed || lacks_footer(disk))
		rc = vhd_write_trailer(disk->leaf, err);
	else if (!image->readonly && fdatasync(disk->leaf->fd) < 0)
		rc = error_set(err, -errno, "%s: final sync: %s",
			       disk->leaf->path, strerror(errno));
out:
	vhd_disk_free(disk);
	return rc;
}

/*
 * The file is extended ahead of need, and metadata of a new block goes beside data
 * whose write may fail first.
 */
static bool vhd_busy(const struct image *image)
{
	const struct vhd_disk *disk =
		container_of_const(image, struct vhd_disk, image);

	return disk->grow.busy || disk->metadata;
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
	.look		= vhd_image_look,
	.close		= vhd_image_close,
	.busy		= vhd_busy,
	.submit		= vhd_submit,
	.run		= vhd_run,
	.chain_path	= vhd_chain_path,
	.snapshot_prepare = vhd_snapshot_prepare,
	.snapshot_switch = vhd_snapshot_switch,
	.snapshot_take	= vhd_snapshot_take,
	.snapshot_undo	= vhd_snapshot_undo,
	.snapshot_end	= vhd_snapshot_end,
};
