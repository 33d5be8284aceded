// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel's own I/O for requests inside an extent: on the pages of the
 * request, at the extent's file and offset. Nothing is copied, and the server
 * hears of it only when it fails.
 */
#include <linux/bio.h>
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/sched/mm.h>
#include <linux/uio.h>

#include "blktap_internal.h"

/*
 * A frozen file system must not be written to. The end may come in another
 * context, which lockdep has to be told.
 */
static void blktap_begin_write(struct kiocb *iocb)
{
	struct inode *inode = file_inode(iocb->ki_filp);

	if (S_ISREG(inode->i_mode)) {
		sb_start_write(inode->i_sb);
		__sb_writers_release(inode->i_sb, SB_FREEZE_WRITE);
	}
}

static void blktap_end_write(struct kiocb *iocb)
{
	struct inode *inode = file_inode(iocb->ki_filp);

	if (S_ISREG(inode->i_mode)) {
		__sb_writers_acquired(inode->i_sb, SB_FREEZE_WRITE);
		sb_end_write(inode->i_sb);
	}
}

/*
 * The request's pages as they are: those of several bios are put into one table.
 * False: more than there is room for, or not as the file's direct I/O wants them.
 */
static bool blktap_gather(struct blktap *tap, struct request *rq, u32 align)
{
	bool several = rq->bio != rq->biotail;
	struct blktap_rq *brq = blktap_rq(rq);
	struct req_iterator it;
	struct bio_vec bv;
	u32 n = 0;

	rq_for_each_bvec(bv, rq, it) {
		if (n == tap->max_bvecs || (bv.bv_offset | bv.bv_len) & align)
			return false;
		if (several)
			brq->bvec[n] = bv;
		n++;
	}
	brq->nr_bvecs = n;
	return true;
}

static void blktap_iter(struct blktap_rq *brq, struct request *rq,
			unsigned int direction, struct iov_iter *iter)
{
	const struct bio *bio = rq->bio;

	if (bio != rq->biotail) {
		iov_iter_bvec(iter, direction, brq->bvec, brq->nr_bvecs,
			      blk_rq_bytes(rq));
		return;
	}
	iov_iter_bvec(iter, direction,
		      __bvec_iter_bvec(bio->bi_io_vec, bio->bi_iter),
		      brq->nr_bvecs, blk_rq_bytes(rq));
	iter->iov_offset = bio->bi_iter.bi_bvec_done;
}

/*
 * The server still has the open file, whose flags it can change. Behind the page
 * cache, or at the file's end, the data would not be where the server looks for it.
 */
bool blktap_still_direct(const struct file *file)
{
	return (READ_ONCE(file->f_flags) & (O_DIRECT | O_APPEND)) == O_DIRECT;
}

/* A disk may come to need its pages unchanged: by another table of device mapper, say. */
bool blktap_may_write(const struct blktap_target *target)
{
	return target->write && !bdev_stable_writes(target->bdev);
}

/*
 * rq_lock is held. From here on the I/O is counted, and has the file.
 */
static bool blktap_take(struct blktap *tap, struct request *rq,
			const struct blktap_place *place)
{
	const struct blktap_target *target = &tap->targets[place->file];
	struct blktap_rq *brq = blktap_rq(rq);

	if (!target->file || (op_is_write(req_op(rq)) && !blktap_may_write(target)) ||
	    (place->offset | blk_rq_bytes(rq)) & target->align ||
	    !blktap_gather(tap, rq, target->align))
		return false;
	init_sync_kiocb(&brq->iocb, target->file);
	/* what is checked is what will be used: the server may change the file's flags now */
	if ((brq->iocb.ki_flags & (IOCB_DIRECT | IOCB_APPEND)) != IOCB_DIRECT)
		return false;
	get_file(target->file);
	brq->iocb.ki_pos = place->offset;
	brq->epoch = blktap_running_begin(tap);
	list_add_tail(&brq->node, &tap->direct);
	return true;
}

/*
 * With FUA only the server knows: what leads to the place, an image's tables and
 * the file system's, has to last too.
 */
bool blktap_direct_try(struct blktap *tap, struct request *rq)
{
	struct blktap_place place;

	if ((req_op(rq) != REQ_OP_READ && req_op(rq) != REQ_OP_WRITE) ||
	    (rq->cmd_flags & (BLKTAP_REQ_FAILED | REQ_FUA)))
		return false;
	if (!blktap_extent_find(tap, blk_rq_pos(rq), blk_rq_sectors(rq),
				op_is_write(req_op(rq)), &place))
		return false;
	if (blktap_take(tap, rq, &place))
		return true;
	blktap_rq(rq)->flags |= BLKTAP_RQ_UNFIT;
	return false;
}

void blktap_direct_kick(struct blktap *tap)
{
	queue_work(tap->workqueue, &tap->direct_work);
}

/* To the server, with why the kernel could not serve it. rq_lock is held. */
static void blktap_direct_give(struct blktap *tap, struct blktap_rq *brq, u8 why)
{
	brq->flags |= why;
	list_add_tail(&brq->node, &tap->pending);
	blktap_wake(tap);
}

/* The file has to be one that the server has registered, and for this. */
enum blktap_refusal blktap_check_remap(const struct blktap *tap, struct request *rq,
				       u32 file)
{
	const struct blktap_target *target = &tap->targets[file];

	if (req_op(rq) != REQ_OP_READ && req_op(rq) != REQ_OP_WRITE)
		return BLKTAP_CQE_BAD_CODE;
	if (!target->file || (op_is_write(req_op(rq)) && !target->write))
		return BLKTAP_CQE_BAD_PLACE;
	return BLKTAP_CQE_GOOD;
}

void blktap_direct_remap(struct blktap *tap, struct request *rq, u32 file,
			 u64 offset)
{
	struct blktap_place place = { .offset = offset, .file = file };
	unsigned long flags;
	bool taken;

	spin_lock_irqsave(&tap->rq_lock, flags);
	taken = blktap_take(tap, rq, &place);
	if (!taken)
		blktap_direct_give(tap, blktap_rq(rq), BLKTAP_RQ_UNFIT);
	spin_unlock_irqrestore(&tap->rq_lock, flags);
	if (taken)
		blktap_direct_kick(tap);
}

/*
 * In any context. A file system may use iocb and its file after the I/O that it has begun is
 * complete, until its read_iter() or write_iter() returns.
 */
static void blktap_direct_put(struct blktap_rq *brq)
{
	struct request *rq = blktap_request(brq);
	struct blktap *tap = rq->q->queuedata;
	struct file *file = brq->iocb.ki_filp;
	bool good, failing, write = op_is_write(req_op(rq));
	unsigned long flags;

	if (!atomic_dec_and_test(&brq->ref))
		return;
	good = brq->ret >= 0 && (unsigned long)brq->ret == blk_rq_bytes(rq);
	if (write)
		blktap_end_write(&brq->iocb);
	spin_lock_irqsave(&tap->rq_lock, flags);
	failing = blktap_fails(tap);
	if (good) {
		if (write)
			tap->count.direct_writes++;
		else
			tap->count.direct_reads++;
	} else {
		tap->count.direct_failed++;
		/* the server has its own ways to retry */
		if (!failing)
			blktap_direct_give(tap, brq, BLKTAP_RQ_DIRECT_FAILED);
	}
	blktap_running_end(tap, brq->epoch);
	spin_unlock_irqrestore(&tap->rq_lock, flags);
	fput(file);
	if (good || failing)
		blktap_end_request(tap, rq, good ? BLK_STS_OK : BLK_STS_IOERR);
}

/* In any context. */
static void blktap_direct_done(struct kiocb *iocb, long ret)
{
	struct blktap_rq *brq = container_of(iocb, struct blktap_rq, iocb);

	brq->ret = ret;
	blktap_direct_put(brq);
}

static void blktap_direct_start(struct blktap_rq *brq)
{
	struct request *rq = blktap_request(brq);
	struct file *file = brq->iocb.ki_filp;
	bool write = op_is_write(req_op(rq));
	struct iov_iter iter;
	ssize_t ret;

	atomic_set(&brq->ref, 2);
	blktap_iter(brq, rq, write ? WRITE : READ, &iter);
	brq->iocb.ki_complete = blktap_direct_done;
	brq->iocb.ki_ioprio = req_get_ioprio(rq);
	if (rq->cmd_flags & REQ_FUA)
		brq->iocb.ki_flags |= IOCB_DSYNC;
	if (write) {
		blktap_begin_write(&brq->iocb);
		ret = file->f_op->write_iter(&brq->iocb, &iter);
	} else {
		ret = file->f_op->read_iter(&brq->iocb, &iter);
	}
	if (ret != -EIOCBQUEUED)
		blktap_direct_done(&brq->iocb, ret);
	blktap_direct_put(brq);
}

/*
 * A file system may wait for memory and for other I/O, which must not need
 * this disk: so not from queue_rq, and with neither writeback nor a limit on
 * dirty pages in the way.
 */
void blktap_direct_work(struct work_struct *work)
{
	struct blktap *tap = container_of(work, struct blktap, direct_work);
	unsigned int was = current->flags & (PF_LOCAL_THROTTLE | PF_MEMALLOC_NOIO);
	struct blktap_rq *brq, *next;
	struct blk_plug plug;
	LIST_HEAD(list);

	current->flags |= PF_LOCAL_THROTTLE | PF_MEMALLOC_NOIO;
	for (;;) {
		blktap_pass_work(tap);
		spin_lock_irq(&tap->rq_lock);
		list_splice_init(&tap->direct, &list);
		spin_unlock_irq(&tap->rq_lock);
		if (list_empty(&list))
			break;
		blk_start_plug(&plug);
		list_for_each_entry_safe(brq, next, &list, node) {
			list_del(&brq->node);
			blktap_direct_start(brq);
		}
		blk_finish_plug(&plug);
		cond_resched();
	}
	current->flags &= ~(PF_LOCAL_THROTTLE | PF_MEMALLOC_NOIO) | was;
}
