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

#define BLKTAP_NESTED	(PF_LOCAL_THROTTLE | PF_MEMALLOC_NOIO)

/*
 * While we submit I/O: it must neither write back pages for memory nor wait for
 * fewer dirty ones. And a disk that lies on another of ours has a worker begin
 * its I/O, so that the stack does not grow with each of them.
 */
static unsigned int blktap_nest(void)
{
	unsigned int was = current->flags & BLKTAP_NESTED;

	current->flags |= BLKTAP_NESTED;
	return was;
}

static void blktap_unnest(unsigned int was)
{
	current->flags &= ~BLKTAP_NESTED | was;
}

static bool blktap_nested(void)
{
	return current->flags & PF_LOCAL_THROTTLE;
}

/*
 * The request's pages as they are, one page to an entry at most: entries of
 * foreign pages must not be merged by page number. False: more than there is
 * room for, or not as the file's direct I/O wants them.
 */
static bool blktap_gather(struct blktap *tap, struct request *rq, u32 align)
{
	struct blktap_rq *brq = blktap_rq(rq);
	struct req_iterator it;
	struct bio_vec bv;
	u32 n = 0;

	rq_for_each_segment(bv, rq, it) {
		if (n == tap->max_bvecs || (bv.bv_offset | bv.bv_len) & align)
			return false;
		brq->bvec[n++] = bv;
	}
	brq->nr_bvecs = n;
	return true;
}

/*
 * The server still has the open file, whose flags it can change. Behind the page
 * cache, or at the file's end, the data would not be where the server looks for it.
 */
static bool blktap_still_direct(const struct file *file)
{
	return (READ_ONCE(file->f_flags) & (O_DIRECT | O_APPEND)) == O_DIRECT;
}

/*
 * A bio passes the page cache by. So it must be empty, as nearly always, or the
 * file's own way is gone, which keeps it right.
 */
static bool blktap_bare(const struct blktap_target *target)
{
	return target->bdev && !READ_ONCE(target->file->f_mapping->nrpages);
}

static bool blktap_fits(struct blktap *tap, struct request *rq,
			const struct blktap_target *target, u64 offset)
{
	u32 bytes = blk_rq_bytes(rq);
	bool write = op_is_write(req_op(rq));

	if (!target->file || !blktap_still_direct(target->file) ||
	    (write && !target->write) || (offset | bytes) & target->align)
		return false;
	if (target->bdev && (offset + bytes > bdev_nr_bytes(target->bdev) ||
			     (write && bdev_read_only(target->bdev))))
		return false;
	return blktap_gather(tap, rq, target->page_align);
}

/*
 * rq_lock is held. From here on the I/O is counted, and has the file. BLKTAP_SERVER:
 * it can't be done there.
 */
static enum blktap_way blktap_take(struct blktap *tap, struct request *rq,
				   const struct blktap_place *place)
{
	const struct blktap_target *target = &tap->targets[place->file];
	struct blktap_rq *brq = blktap_rq(rq);
	bool idle;

	if (!blktap_fits(tap, rq, target, place->offset))
		return BLKTAP_SERVER;
	brq->file = get_file(target->file);
	brq->offset = place->offset;
	brq->bdev = blktap_bare(target) ? target->bdev : NULL;
	blktap_running_begin(tap, brq);
	if (brq->bdev && target->nowait && !blktap_nested()) {
		list_add_tail(&brq->node, &tap->bios);
		return BLKTAP_BIO;
	}
	idle = list_empty(&tap->direct);
	list_add_tail(&brq->node, &tap->direct);
	return idle ? BLKTAP_WORKER : BLKTAP_WORKER_KICKED;
}

enum blktap_way blktap_direct_try(struct blktap *tap, struct request *rq)
{
	struct blktap_place place;
	enum blktap_way way;

	if (req_op(rq) != REQ_OP_READ && req_op(rq) != REQ_OP_WRITE)
		return BLKTAP_SERVER;
	if (!blktap_extent_find(tap, blk_rq_pos(rq), blk_rq_sectors(rq),
				op_is_write(req_op(rq)), &place))
		return BLKTAP_SERVER;
	way = blktap_take(tap, rq, &place);
	if (way == BLKTAP_SERVER)
		blktap_rq(rq)->flags |= BLKTAP_RQ_UNFIT;
	return way;
}

void blktap_direct_kick(struct blktap *tap)
{
	queue_work(tap->workqueue, &tap->direct_work);
}

/* To the server, as one that the kernel could not serve. rq_lock is held. */
static void blktap_direct_give(struct blktap *tap, struct blktap_rq *brq)
{
	brq->flags |= BLKTAP_RQ_DIRECT_FAILED;
	list_add_tail(&brq->node, &tap->pending);
	blktap_wake(tap);
}

void blktap_direct_remap(struct blktap *tap, struct request *rq, u32 file,
			 u64 offset)
{
	struct blktap_place place = { .offset = offset, .file = file };
	unsigned long flags;
	enum blktap_way way;
	LIST_HEAD(bios);

	spin_lock_irqsave(&tap->rq_lock, flags);
	way = blktap_take(tap, rq, &place);
	if (way == BLKTAP_SERVER)
		blktap_direct_give(tap, blktap_rq(rq));
	if (way == BLKTAP_BIO)
		list_splice_init(&tap->bios, &bios);
	spin_unlock_irqrestore(&tap->rq_lock, flags);
	if (way == BLKTAP_BIO)
		blktap_bios_start(&bios);
	if (way == BLKTAP_WORKER)
		blktap_direct_kick(tap);
}

/* In any context. */
static void blktap_direct_end(struct blktap_rq *brq, bool good)
{
	struct request *rq = blktap_request(brq);
	struct blktap *tap = rq->q->queuedata;
	struct file *file = brq->file;
	unsigned long flags;
	bool failing;

	spin_lock_irqsave(&tap->rq_lock, flags);
	failing = blktap_fails(tap);
	if (good) {
		if (op_is_write(req_op(rq)))
			tap->count.direct_writes++;
		else
			tap->count.direct_reads++;
	} else {
		tap->count.direct_failed++;
		/* the server has its own ways to retry */
		if (!failing)
			blktap_direct_give(tap, brq);
	}
	blktap_running_end(tap, brq);
	spin_unlock_irqrestore(&tap->rq_lock, flags);
	fput(file);
	if (good || failing)
		blk_mq_end_request(rq, good ? BLK_STS_OK : BLK_STS_IOERR);
}

static void blktap_iocb_done(struct kiocb *iocb, long ret)
{
	struct blktap_rq *brq = container_of(iocb, struct blktap_rq, iocb);
	struct request *rq = blktap_request(brq);

	if (op_is_write(req_op(rq)))
		blktap_end_write(iocb);
	blktap_direct_end(brq, ret >= 0 && (unsigned long)ret == blk_rq_bytes(rq));
}

static void blktap_iocb_start(struct blktap_rq *brq)
{
	struct request *rq = blktap_request(brq);
	bool write = op_is_write(req_op(rq));
	struct iov_iter iter;
	ssize_t ret;

	init_sync_kiocb(&brq->iocb, brq->file);
	brq->iocb.ki_pos = brq->offset;
	iov_iter_bvec(&iter, write ? WRITE : READ, brq->bvec, brq->nr_bvecs,
		      blk_rq_bytes(rq));
	brq->iocb.ki_complete = blktap_iocb_done;
	brq->iocb.ki_ioprio = req_get_ioprio(rq);
	if (rq->cmd_flags & REQ_FUA)
		brq->iocb.ki_flags |= IOCB_DSYNC;
	if (write) {
		blktap_begin_write(&brq->iocb);
		ret = brq->file->f_op->write_iter(&brq->iocb, &iter);
	} else {
		ret = brq->file->f_op->read_iter(&brq->iocb, &iter);
	}
	if (ret != -EIOCBQUEUED)
		blktap_iocb_done(&brq->iocb, ret);
}

static void blktap_bio_done(struct bio *bio)
{
	struct blktap_rq *brq = container_of(bio, struct blktap_rq, bio);
	struct blktap *tap = blktap_request(brq)->q->queuedata;
	blk_status_t status = bio->bi_status;
	bool asked = bio->bi_opf & REQ_NOWAIT;
	unsigned long flags;

	bio_uninit(bio);
	/* it would have waited: the worker may */
	if (asked && (status == BLK_STS_AGAIN || status == BLK_STS_NOTSUPP)) {
		spin_lock_irqsave(&tap->rq_lock, flags);
		list_add_tail(&brq->node, &tap->direct);
		spin_unlock_irqrestore(&tap->rq_lock, flags);
		blktap_direct_kick(tap);
		return;
	}
	blktap_direct_end(brq, status == BLK_STS_OK);
}

#define BLKTAP_BIO_FLAGS	(REQ_SYNC | REQ_META | REQ_PRIO | REQ_IDLE | REQ_FUA)

static void blktap_bio_start(struct blktap_rq *brq, blk_opf_t flags)
{
	struct request *rq = blktap_request(brq);
	struct bio *bio = &brq->bio;

	flags |= rq->cmd_flags & BLKTAP_BIO_FLAGS;
	/* as direct I/O: not to be held back in favour of others */
	if (op_is_write(req_op(rq)))
		flags |= REQ_SYNC | REQ_IDLE;
	bio_init(bio, brq->bdev, brq->bvec, brq->nr_bvecs, req_op(rq) | flags);
	bio->bi_vcnt = brq->nr_bvecs;
	bio->bi_iter.bi_sector = brq->offset >> SECTOR_SHIFT;
	bio->bi_iter.bi_size = blk_rq_bytes(rq);
	bio->bi_ioprio = req_get_ioprio(rq);
	bio->bi_end_io = blktap_bio_done;
	submit_bio(bio);
}

/*
 * This is inside somebody's submit_bio(), or a flush of his plug. What we submit must not
 * wait there until he goes on: he may wait for us to free a tag. Nor may we
 * wait here for requests that he holds back: REQ_NOWAIT.
 */
void blktap_bios_start(struct list_head *list)
{
	struct bio_list *outer_bios = current->bio_list;
	struct blk_plug *outer_plug = current->plug, plug;
	unsigned int was = blktap_nest();
	struct blktap_rq *brq, *next;

	current->bio_list = NULL;
	current->plug = NULL;
	if (!list_is_singular(list))
		blk_start_plug(&plug);
	list_for_each_entry_safe(brq, next, list, node) {
		list_del(&brq->node);
		blktap_bio_start(brq, REQ_NOWAIT);
	}
	if (current->plug)
		blk_finish_plug(&plug);
	current->plug = outer_plug;
	current->bio_list = outer_bios;
	blktap_unnest(was);
}

/*
 * A file system may wait for memory and for other I/O, which must not need
 * this disk: so not from queue_rq, and with neither writeback nor a limit on
 * dirty pages in the way.
 */
void blktap_direct_work(struct work_struct *work)
{
	struct blktap *tap = container_of(work, struct blktap, direct_work);
	unsigned int was = blktap_nest();
	struct blktap_rq *brq, *next;
	struct blk_plug plug;
	LIST_HEAD(list);

	for (;;) {
		spin_lock_irq(&tap->rq_lock);
		list_splice_init(&tap->direct, &list);
		spin_unlock_irq(&tap->rq_lock);
		if (list_empty(&list))
			break;
		blk_start_plug(&plug);
		list_for_each_entry_safe(brq, next, &list, node) {
			list_del(&brq->node);
			if (brq->bdev)
				blktap_bio_start(brq, 0);
			else
				blktap_iocb_start(brq);
		}
		blk_finish_plug(&plug);
		cond_resched();
	}
	blktap_unnest(was);
}
