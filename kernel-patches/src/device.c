// SPDX-License-Identifier: GPL-2.0-only
/* The gendisk of a minor. */
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/version.h>

#include "blktap_internal.h"

#define BLKTAP_ZEROES_SECTORS	(SZ_1G >> SECTOR_SHIFT)	/* in one request */
#define BLKTAP_MAX_IO_OPT	(16u << 20)	/* twice of it is read ahead */

/*
 * The bio is for the hidden gendisk when this is done, but not there yet: so the
 * disk, which its submitter has open, keeps the hidden one.
 */
static struct gendisk *blktap_queue_disk(const struct gendisk *disk)
{
	return disk->private_data;
}

static struct blktap *blktap_of_disk(const struct gendisk *disk)
{
	return blktap_queue_disk(disk)->private_data;
}

static void blktap_submit_bio(struct bio *bio)
{
	const struct gendisk *disk = bio->bi_bdev->bd_disk;

	if (!blktap_pass_try(blktap_of_disk(disk), bio))
		blktap_queue_bio(blktap_queue_disk(disk), bio);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)
static int blktap_disk_open(struct gendisk *disk, blk_mode_t mode)
{
	struct blktap *tap = blktap_of_disk(disk);
	bool write = mode & BLK_OPEN_WRITE;
#else
static int blktap_disk_open(struct block_device *bdev, fmode_t mode)
{
	struct blktap *tap = blktap_of_disk(bdev->bd_disk);
	bool write = mode & FMODE_WRITE;
#endif

	/* removal sets it under the open_mutex that is held here */
	if (READ_ONCE(tap->failing))
		return -ENXIO;
	if (write && (READ_ONCE(tap->params.flags) & BLKTAP_DEV_RDONLY))
		return -EROFS;
	return 0;
}

static void blktap_free_disk(struct gendisk *disk)
{
	put_disk(blktap_queue_disk(disk));
}

static char *blktap_disk_devnode(struct gendisk *disk, umode_t *mode)
{
	if (mode)
		*mode = 0600;
	return kasprintf(GFP_KERNEL, BLKTAP_NODE_DIR "%s", disk->disk_name);
}

static const struct block_device_operations blktap_disk_ops = {
	.owner		= THIS_MODULE,
	.submit_bio	= blktap_submit_bio,
	.open		= blktap_disk_open,
	.free_disk	= blktap_free_disk,
	.devnode	= blktap_disk_devnode,
};

/*
 * Of the disk and of its queue. Segments are not limited: the data is copied page
 * by page, whatever the bvecs are.
 */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
void blktap_limits(struct blktap *tap, const struct blktap_device_params *params,
		   struct queue_limits *lim)
{
	bool discard = params->flags & BLKTAP_DEV_DISCARD;
	bool zeroes = params->flags & BLKTAP_DEV_ZEROES;

	*lim = (struct queue_limits) {
		.features = BLK_FEAT_NOWAIT | BLK_FEAT_IO_STAT,
		.logical_block_size = params->logical_block_size,
		.physical_block_size = params->physical_block_size,
		.io_min = params->io_min,
		.io_opt = min(params->io_opt, BLKTAP_MAX_IO_OPT),
		.max_hw_sectors = tap->max_io_bytes >> SECTOR_SHIFT,
		.max_segments = USHRT_MAX,
		.max_segment_size = UINT_MAX,
		.max_hw_discard_sectors = discard ? params->discard_max : 0,
		.discard_granularity = discard ? params->discard_granularity : 0,
		.max_write_zeroes_sectors = zeroes ? BLKTAP_ZEROES_SECTORS : 0,
	};
	if (params->flags & BLKTAP_DEV_FLUSH)
		lim->features |= BLK_FEAT_WRITE_CACHE;
	if (params->flags & BLKTAP_DEV_FUA)
		lim->features |= BLK_FEAT_FUA;
}

static struct gendisk *blktap_alloc_disk(struct blktap *tap,
					 const struct blktap_device_params *params)
{
	struct queue_limits lim;

	blktap_limits(tap, params, &lim);
	return blk_alloc_disk(&lim, NUMA_NO_NODE);
}
#else
void blktap_limits(struct blktap *tap, const struct blktap_device_params *params,
		   struct request_queue *q)
{
	blk_queue_logical_block_size(q, params->logical_block_size);
	blk_queue_physical_block_size(q, params->physical_block_size);
	if (params->io_min)
		blk_queue_io_min(q, params->io_min);
	if (params->io_opt)
		blk_queue_io_opt(q, min(params->io_opt, BLKTAP_MAX_IO_OPT));
	blk_queue_max_hw_sectors(q, tap->max_io_bytes >> SECTOR_SHIFT);
	blk_queue_max_segments(q, USHRT_MAX);
	blk_queue_max_segment_size(q, UINT_MAX);
	if (params->flags & BLKTAP_DEV_DISCARD) {
		q->limits.discard_granularity = params->discard_granularity;
		blk_queue_max_discard_sectors(q, params->discard_max);
	}
	if (params->flags & BLKTAP_DEV_ZEROES)
		blk_queue_max_write_zeroes_sectors(q, BLKTAP_ZEROES_SECTORS);
	blk_queue_write_cache(q, params->flags & BLKTAP_DEV_FLUSH,
			      params->flags & BLKTAP_DEV_FUA);
	blk_queue_flag_set(QUEUE_FLAG_NONROT, q);
	blk_queue_flag_set(QUEUE_FLAG_NOWAIT, q);
	blk_queue_flag_set(QUEUE_FLAG_IO_STAT, q);
}

static struct gendisk *blktap_alloc_disk(struct blktap *tap,
					 const struct blktap_device_params *params)
{
	struct gendisk *disk = blk_alloc_disk(NUMA_NO_NODE);

	if (!disk)
		return ERR_PTR(-ENOMEM);
	blktap_limits(tap, params, disk->queue);
	return disk;
}
#endif

static struct gendisk *blktap_make_disk(struct blktap *tap,
					const struct blktap_device_params *params)
{
	struct gendisk *disk = blktap_alloc_disk(tap, params);

	if (IS_ERR(disk))
		return disk;
	/*
	 * The partitions are the guest's: dom0 must not parse what a guest
	 * wrote. And the scan would wait for the server, which is in
	 * CREATE_DEVICE.
	 */
	disk->flags |= GENHD_FL_NO_PART;
	disk->fops = &blktap_disk_ops;
	disk->private_data = tap->queue_disk;
	snprintf(disk->disk_name, sizeof(disk->disk_name), "tapdev%d", tap->minor);
	set_capacity(disk, params->sectors);
	set_disk_ro(disk, params->flags & BLKTAP_DEV_RDONLY);
	return disk;
}

int blktap_device_create(struct blktap *tap,
			 const struct blktap_device_params *params)
{
	struct gendisk *disk, *queue_disk;
	int ret;

	if (tap->disk)
		return -EEXIST;
	ret = blktap_check_params(params, tap->max_io_bytes);
	if (ret)
		return ret;
	ret = blktap_queue_create(tap, params);
	if (ret)
		return ret;
	disk = blktap_make_disk(tap, params);
	if (IS_ERR(disk)) {
		ret = PTR_ERR(disk);
		goto out_queue;
	}
	tap->params = *params;
	tap->dev_entries = tap->queue.entries;
	tap->dev_max_io_bytes = tap->max_io_bytes;
	WRITE_ONCE(tap->failing, false);
	tap->expired = false;
	tap->disk = disk;	/* its I/O, which may begin at once, is counted */
	ret = device_add_disk(&tap->dev, disk, NULL);
	if (ret)
		goto out_disk;
	blktap_set_state(tap, BLKTAP_LIVE);
	/* someone may have been quicker to read than we to go live */
	blktap_wake(tap);
	return 0;

out_disk:
	tap->disk = NULL;
	put_disk(disk);
out_queue:
	queue_disk = tap->queue_disk;
	blktap_queue_remove(tap);
	put_disk(queue_disk);
	return ret;
}

/* Takes over what may change: more sectors, another RDONLY. */
static int blktap_device_change(struct blktap *tap,
				const struct blktap_device_params *params,
				bool rdonly_may_change)
{
	u32 rdonly = params->flags & BLKTAP_DEV_RDONLY;
	int ret;

	ret = blktap_check_params(params, tap->max_io_bytes);
	if (!ret)
		ret = blktap_check_change(&tap->params, params, rdonly_may_change);
	if (ret)
		return ret;
	if ((tap->params.flags ^ rdonly) & BLKTAP_DEV_RDONLY) {
		WRITE_ONCE(tap->params.flags,
			   (tap->params.flags & ~BLKTAP_DEV_RDONLY) | rdonly);
		set_disk_ro(tap->disk, rdonly);
	}
	if (params->sectors != tap->params.sectors) {
		tap->params.sectors = params->sectors;
		set_capacity(tap->queue_disk, params->sectors);
		set_capacity_and_notify(tap->disk, params->sectors);
	}
	return 0;
}

/*
 * Without the lock: what runs is on a disk that may be stuck, and who then fails
 * requests, or frees the minor, must get there.
 */
static int blktap_drain_unlocked(struct blktap *tap)
{
	int ret;

	mutex_unlock(&tap->lock);
	ret = blktap_drain_wait(tap);
	mutex_lock(&tap->lock);
	return ret;
}

/* Whether there is something to resume; it may go while the lock is not held. */
static int blktap_resume_check(struct blktap *tap)
{
	if (!tap->disk || tap->failing)
		return -ENODEV;
	return tap->state == BLKTAP_QUIESCED ? 0 : -EINVAL;
}

int blktap_device_resume(struct blktap *tap,
			 const struct blktap_device_params *params)
{
	int ret = blktap_resume_check(tap);

	if (!ret)
		ret = blktap_device_change(tap, params, false);
	/* what the kernel still does by the last server's word */
	if (!ret && !blktap_drained(tap))
		ret = blktap_drain_unlocked(tap) ?: blktap_resume_check(tap);
	if (ret)
		return ret;
	blktap_expire_end(tap);
	blktap_set_state(tap, BLKTAP_LIVE);
	blktap_wake(tap);
	dev_info(&tap->dev, "task %d serves the device again\n", tap->task);
	return 0;
}

int blktap_device_set(struct blktap *tap,
		      const struct blktap_device_params *params)
{
	if (!tap->disk || tap->state != BLKTAP_LIVE)
		return -ENODEV;
	return blktap_device_change(tap, params, true);
}

static void blktap_set_failing(struct blktap *tap)
{
	spin_lock_irq(&tap->rq_lock);
	WRITE_ONCE(tap->failing, true);
	spin_unlock_irq(&tap->rq_lock);
}

/* After this the queue drains by itself: removal waits for no server. */
static void blktap_fail_requests(struct blktap *tap)
{
	struct blktap_rq *brq, *next;
	LIST_HEAD(failed);

	spin_lock_irq(&tap->rq_lock);
	list_splice_init(&tap->queue.issued, &failed);
	list_splice_tail_init(&tap->pending, &failed);
	spin_unlock_irq(&tap->rq_lock);
	memset(tap->queue.held, 0, sizeof(tap->queue.held));
	memset(tap->queue.held_ids, 0, sizeof(tap->queue.held_ids));
	list_for_each_entry_safe(brq, next, &failed, node) {
		list_del(&brq->node);
		blktap_end_request_task(tap, blktap_request(brq), BLK_STS_IOERR);
	}
}

/*
 * The last close of a disk writes its dirty pages with open_mutex held, so a
 * server that waited for the mutex would wait for itself: try, and say busy.
 */
static int blktap_stop_if_closed(struct blktap *tap)
{
	int ret = 0;

	if (!mutex_trylock(&tap->disk->open_mutex))
		return -EBUSY;
	if (disk_openers(tap->disk))
		ret = -EBUSY;
	else
		blktap_set_failing(tap);
	mutex_unlock(&tap->disk->open_mutex);
	return ret;
}

int blktap_device_remove(struct blktap *tap, bool although_open, bool any)
{
	struct gendisk *disk;
	int ret;

	if (!tap->disk)
		return -ENODEV;
	if (although_open) {
		blktap_set_failing(tap);
	} else {
		ret = blktap_stop_if_closed(tap);
		if (ret)
			return ret;
	}
	disk = tap->disk;
	for (;;) {
		if (any)
			blktap_set_failing(tap);	/* whichever there is by now */
		blktap_fail_requests(tap);
		blktap_extents_withdraw(tap, 0, U64_MAX, -1);
		if (blktap_drained(tap))
			break;
		/* on its pages, so nobody can end it but its disk */
		ret = blktap_drain_unlocked(tap);
		if (ret)
			return ret;
		/* another removal was faster, and there may be a new disk, even in its place */
		if (!tap->disk || (!any && (tap->disk != disk || !tap->failing)))
			return -ENODEV;
	}
	/* what was passed on in vain fails in the queue */
	flush_work(&tap->again_work);
	del_gendisk(tap->disk);
	blktap_queue_remove(tap);
	put_disk(tap->disk);	/* openers keep it; blktap_free_disk() is last */
	tap->disk = NULL;
	blktap_expire_end(tap);
	blktap_set_state(tap, BLKTAP_NEW);
	return 0;
}
