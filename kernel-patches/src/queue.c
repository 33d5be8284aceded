// SPDX-License-Identifier: GPL-2.0-only
/*
 * The blk-mq queue of a minor, and the hidden gendisk that it has to have: what
 * the disk does not pass on (pass.c) becomes a request here, for the server or
 * for the minor's worker.
 */
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/part_stat.h>
#include <linux/version.h>

#include "blktap_internal.h"

static bool blktap_op_allowed(struct blktap *tap, struct request *rq,
			      blk_status_t *why)
{
	u32 flags = READ_ONCE(tap->params.flags);

	*why = BLK_STS_NOTSUPP;
	switch (req_op(rq)) {
	case REQ_OP_READ:
	case REQ_OP_WRITE:
		*why = BLK_STS_IOERR;
		if (WARN_ON_ONCE(blk_rq_bytes(rq) > tap->dev_max_io_bytes))
			return false;
		break;
	case REQ_OP_FLUSH:
		break;
	case REQ_OP_DISCARD:
	case REQ_OP_WRITE_ZEROES:
		break;
	default:
		return false;
	}
	/* the block layer of 6.1 only warns of writes to a read-only disk */
	*why = BLK_STS_IOERR;
	return !(flags & BLKTAP_DEV_RDONLY) || !op_is_write(req_op(rq)) ||
	       req_op(rq) == REQ_OP_FLUSH;
}

static void blktap_account_rq(struct blktap *tap, struct request *rq)
{
	struct blktap_rq *brq = blktap_rq(rq);

	/* it may come again, from the requeue list */
	if (rq->rq_flags & RQF_DONTPREP)
		return;
	rq->rq_flags |= RQF_DONTPREP;
	brq->start = jiffies;
	if (req_op(rq) == REQ_OP_FLUSH)
		return;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	bdev_start_io_acct(tap->disk->part0, req_op(rq), brq->start);
#else
	bdev_start_io_acct(tap->disk->part0, blk_rq_sectors(rq), req_op(rq),
			   brq->start);
#endif
}

void blktap_account_end(struct block_device *part, enum req_op op,
			unsigned int sectors, unsigned long start)
{
	if (op == REQ_OP_FLUSH) {
		part_stat_lock();
		part_stat_inc(part, ios[STAT_FLUSH]);
		part_stat_add(part, nsecs[STAT_FLUSH],
			      jiffies_to_nsecs(jiffies - start));
		part_stat_unlock();
		return;
	}
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	bdev_end_io_acct(part, op, sectors, start);
#else
	bdev_end_io_acct(part, op, start);
#endif
}

/* The block layer counts no requests here: the statistics are the disk's. */
static void blktap_account_rq_end(struct blktap *tap, struct request *rq)
{
	if (!(rq->rq_flags & RQF_DONTPREP))
		return;
	rq->rq_flags &= ~RQF_DONTPREP;
	blktap_account_end(tap->disk->part0, req_op(rq), blk_rq_sectors(rq),
			   blktap_rq(rq)->start);
}

void blktap_end_request(struct blktap *tap, struct request *rq, blk_status_t status)
{
	blktap_account_rq_end(tap, rq);
	blk_mq_end_request(rq, status);
}

/*
 * From a process, which may be the server. What the request's end puts last is not for
 * it to release, as from an interrupt: the last close of this very disk writes what is dirty,
 * and waits for its server.
 */
void blktap_end_request_task(struct blktap *tap, struct request *rq, blk_status_t status)
{
	local_bh_disable();
	blktap_end_request(tap, rq, status);
	local_bh_enable();
}

/* Requests come in batches: the server is woken for the whole of one. */
static void blktap_commit_rqs(struct blk_mq_hw_ctx *hctx)
{
	struct blktap *tap = hctx->queue->queuedata;

	if (!list_empty_careful(&tap->pending))
		blktap_wake(tap);
}

/*
 * Only queues: the submitter's context must not touch the server's memory, and
 * the server, which copies the data, must find it at once. Nor may it wait, as a
 * file system may.
 */
static blk_status_t blktap_queue_rq(struct blk_mq_hw_ctx *hctx,
				    const struct blk_mq_queue_data *bd)
{
	struct blktap *tap = hctx->queue->queuedata;
	struct request *rq = bd->rq;
	bool direct = false, failing;
	unsigned long flags;
	blk_status_t why;

	if (!blktap_op_allowed(tap, rq, &why)) {
		blktap_account_rq_end(tap, rq);
		return why;
	}
	blk_mq_start_request(rq);
	blktap_rq(rq)->flags = rq->cmd_flags & BLKTAP_REQ_FAILED ?
			       BLKTAP_RQ_DIRECT_FAILED : 0;
	spin_lock_irqsave(&tap->rq_lock, flags);
	failing = blktap_fails(tap);
	if (!failing) {
		blktap_account_rq(tap, rq);
		direct = blktap_direct_try(tap, rq);
		if (!direct)
			list_add_tail(&blktap_rq(rq)->node, &tap->pending);
	}
	spin_unlock_irqrestore(&tap->rq_lock, flags);
	if (failing) {
		blktap_account_rq_end(tap, rq);
		return BLK_STS_IOERR;
	}
	if (direct)
		blktap_direct_kick(tap);
	if (bd->last)
		blktap_commit_rqs(hctx);
	return BLK_STS_OK;
}

/* A request waits for its server for as long as it takes. */
static enum blk_eh_timer_return blktap_timeout(struct request *rq)
{
	return BLK_EH_RESET_TIMER;
}

static const struct blk_mq_ops blktap_mq_ops = {
	.queue_rq	= blktap_queue_rq,
	.commit_rqs	= blktap_commit_rqs,
	.timeout	= blktap_timeout,
};

static void blktap_queue_free(struct gendisk *disk)
{
	struct blktap *tap = disk->private_data;

	put_device(&tap->dev);
}

static const struct block_device_operations blktap_queue_ops = {
	.owner		= THIS_MODULE,
	.free_disk	= blktap_queue_free,
};

void blktap_queue_bio(struct gendisk *queue_disk, struct bio *bio)
{
	bio_set_dev(bio, queue_disk->part0);
	submit_bio_noacct(bio);
}

static int blktap_alloc_tags(struct blktap *tap)
{
	struct blk_mq_tag_set *set = &tap->tag_set;

	memset(set, 0, sizeof(*set));
	set->ops = &blktap_mq_ops;
	set->nr_hw_queues = 1;
	set->queue_depth = tap->queue.entries;
	set->numa_node = NUMA_NO_NODE;
	set->cmd_size = struct_size_t(struct blktap_rq, bvec, tap->max_bvecs);
	/* the guest and the image's own disk schedule already */
	set->flags = BLK_MQ_F_SHOULD_MERGE | BLK_MQ_F_NO_SCHED_BY_DEFAULT;
	return blk_mq_alloc_tag_set(set);
}

static struct gendisk *blktap_alloc_queue(struct blktap *tap,
					  const struct blktap_device_params *params)
{
	struct gendisk *disk;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
	struct queue_limits lim;

	blktap_limits(tap, params, &lim);
	disk = blk_mq_alloc_disk(&tap->tag_set, &lim, tap);
	if (!IS_ERR(disk))
		disk->queue->limits.features &= ~BLK_FEAT_IO_STAT;
#else

	disk = blk_mq_alloc_disk(&tap->tag_set, tap);
	if (!IS_ERR(disk)) {
		blktap_limits(tap, params, disk->queue);
		blk_queue_flag_clear(QUEUE_FLAG_IO_STAT, disk->queue);
	}
#endif
	return disk;
}

int blktap_queue_create(struct blktap *tap, const struct blktap_device_params *params)
{
	struct gendisk *disk;
	int ret;

	tap->max_bvecs = tap->max_io_bytes / PAGE_SIZE + 1;
	ret = blktap_alloc_tags(tap);
	if (ret)
		return ret;
	disk = blktap_alloc_queue(tap, params);
	if (IS_ERR(disk)) {
		ret = PTR_ERR(disk);
		goto out_tags;
	}
	disk->flags |= GENHD_FL_HIDDEN | GENHD_FL_NO_PART;
	disk->fops = &blktap_queue_ops;
	disk->private_data = tap;
	snprintf(disk->disk_name, sizeof(disk->disk_name), "tapdev%d-queue",
		 tap->minor);
	set_capacity(disk, params->sectors);
	get_device(&tap->dev);	/* the gendisk's, until blktap_queue_free() */
	ret = device_add_disk(&tap->dev, disk, NULL);
	if (ret)
		goto out_disk;
	tap->queue_disk = disk;
	return 0;

out_disk:
	put_device(&tap->dev);
	put_disk(disk);
out_tags:
	blk_mq_free_tag_set(&tap->tag_set);
	return ret;
}

void blktap_queue_remove(struct blktap *tap)
{
	del_gendisk(tap->queue_disk);
	blk_mq_free_tag_set(&tap->tag_set);
	tap->queue_disk = NULL;
}
