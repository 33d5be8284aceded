// SPDX-License-Identifier: GPL-2.0-only
/*
 * BLKTAP_IOC_ENTER: completions in, submissions out. All data is copied here,
 * in the server's context; blk-mq only puts requests on the pending list.
 */
#include <linux/atomic.h>
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>

#include "blktap_internal.h"

#define BLKTAP_REQUEUE_MS	10
#define BLKTAP_RESCHED_BYTES	((unsigned int)SZ_256K)

/* One for all minors, so that an id outlives neither a minor nor a server. */
static atomic64_t blktap_last_id = ATOMIC64_INIT(0);

/*
 * Two errors are words between parts of the block layer: EAGAIN that a caller
 * asked not to wait, EREMCHG that device mapper shall issue the request again.
 * From a server they are errors like others.
 */
static blk_status_t blktap_status(s32 result)
{
	if (result == -EAGAIN || result == -EREMCHG)
		return BLK_STS_IOERR;
	return errno_to_blk_status(result);
}

static void blktap_hold(struct blktap_queue *q, struct request *rq, u64 id)
{
	q->held[rq->tag] = rq;
	q->held_ids[rq->tag] = id;
	list_add_tail(&blktap_rq(rq)->node, &q->issued);
}

static void blktap_unhold(struct blktap_queue *q, struct request *rq)
{
	q->held[rq->tag] = NULL;
	q->held_ids[rq->tag] = 0;
	list_del(&blktap_rq(rq)->node);
}

void blktap_hold_issued(struct blktap *tap)
{
	struct blktap_queue *q = &tap->queue;
	struct blktap_rq *brq;

	list_for_each_entry(brq, &q->issued, node)
		tap->count.recovered++;
	memset(q->held, 0, sizeof(q->held));
	memset(q->held_ids, 0, sizeof(q->held_ids));
	spin_lock_irq(&tap->rq_lock);
	list_splice_init(&q->issued, &tap->pending);
	spin_unlock_irq(&tap->rq_lock);
}

/* The server can change the entry while it is read: each word once. */
static void blktap_snapshot(const struct blktap_cqe *from, struct blktap_cqe *to)
{
	const u64 *src = (const u64 *)from;
	u64 *dst = (u64 *)to;
	unsigned int i;

	BUILD_BUG_ON(sizeof(*to) % sizeof(u64));
	for (i = 0; i < sizeof(*to) / sizeof(u64); i++)
		dst[i] = READ_ONCE(src[i]);
}

static void blktap_fault(struct blktap *tap, const char *what)
{
	tap->count.faults++;
	dev_err_ratelimited(&tap->dev,
			    "the buffer of task %d cannot be %s: request failed\n",
			    tap->task, what);
}

/* Ends, requeues or remaps the request; -EINTR leaves everything as it was. */
static int blktap_complete(struct blktap *tap, const struct blktap_cqe *cqe)
{
	struct blktap_queue *q = &tap->queue;
	struct request *rq = q->held[cqe->tag];
	blk_status_t status = blktap_status(cqe->result);
	int ret;

	if (cqe->code == BLKTAP_CQE_REQUEUE) {
		blktap_unhold(q, rq);
		tap->count.requeued++;
		blk_mq_requeue_request(rq, false);
		blk_mq_delay_kick_requeue_list(tap->queue_disk->queue,
					       BLKTAP_REQUEUE_MS);
		return 0;
	}
	if (cqe->code == BLKTAP_CQE_REMAP) {
		blktap_unhold(q, rq);
		blktap_direct_remap(tap, rq, cqe->file, cqe->offset);
		return 0;
	}
	if (status == BLK_STS_OK && req_op(rq) == REQ_OP_READ) {
		ret = blktap_copy_from_server(tap, rq);
		if (ret == -EINTR)
			return ret;
		if (ret) {
			blktap_fault(tap, "read");
			status = BLK_STS_IOERR;
		}
	}
	blktap_unhold(q, rq);
	tap->count.completed++;
	blktap_end_request_task(tap, rq, status);
	return 0;
}

/*
 * Not after each small request: whoever waits for it would run, and ask for the
 * next before the others of its batch are ended.
 */
static void blktap_resched(unsigned int *copied, unsigned int bytes)
{
	*copied += min(bytes, BLKTAP_RESCHED_BYTES);
	if (*copied < BLKTAP_RESCHED_BYTES)
		return;
	*copied = 0;
	cond_resched();
}

static int blktap_consume(struct blktap *tap, struct blktap_enter *enter)
{
	struct blktap_queue *q = &tap->queue;
	enum blktap_refusal why;
	unsigned int bytes, copied = 0;
	struct blktap_cqe cqe;
	int left, ret = 0;

	/* pairs with the server's release: its entries come before cq_tail */
	left = blktap_ring_used(q->cq_head, smp_load_acquire(&q->ring->cq_tail),
				q->entries);
	if (left < 0) {
		dev_err_ratelimited(&tap->dev,
				    "cq_tail of task %d is beyond the ring\n",
				    tap->task);
		return left;
	}
	for (; left > 0; left--) {
		blktap_snapshot(&q->cqes[q->cq_head & (q->entries - 1)], &cqe);
		why = blktap_check_cqe(&cqe, q->held_ids, q->entries,
				       tap->features);
		if (why == BLKTAP_CQE_GOOD && cqe.code == BLKTAP_CQE_REMAP)
			why = blktap_check_remap(tap, q->held[cqe.tag], cqe.file);
		bytes = 0;
		if (why == BLKTAP_CQE_GOOD) {
			bytes = blk_rq_bytes(q->held[cqe.tag]);
			ret = blktap_complete(tap, &cqe);
			if (ret)
				break;
		} else {
			enter->refused++;
			tap->count.refused++;
			dev_err_ratelimited(&tap->dev,
					    "completion refused: %s (id %llu tag %u code %u result %d)\n",
					    blktap_refusal_text(why), cqe.id,
					    cqe.tag, cqe.code, cqe.result);
		}
		q->cq_head++;
		enter->completed++;
		blktap_resched(&copied, bytes);
	}
	/* the entries are read: the server may write there again */
	smp_store_release(&q->ring->cq_head, q->cq_head);
	return ret;
}

static u8 blktap_op(struct request *rq)
{
	switch (req_op(rq)) {
	case REQ_OP_READ:
		return BLKTAP_OP_READ;
	case REQ_OP_WRITE:
		return BLKTAP_OP_WRITE;
	case REQ_OP_FLUSH:
		return BLKTAP_OP_FLUSH;
	case REQ_OP_DISCARD:
		return BLKTAP_OP_DISCARD;
	default:		/* queue_rq lets no other pass */
		return BLKTAP_OP_WRITE_ZEROES;
	}
}

static void blktap_fill_sqe(struct blktap *tap, struct request *rq, u64 id,
			    struct blktap_sqe *sqe)
{
	*sqe = (struct blktap_sqe) {
		.id = id,
		.tag = rq->tag,
		.op = blktap_op(rq),
	};
	if (sqe->op != BLKTAP_OP_FLUSH) {
		sqe->sector = blk_rq_pos(rq);
		sqe->nr_sectors = blk_rq_sectors(rq);
	}
	if (sqe->op == BLKTAP_OP_READ || sqe->op == BLKTAP_OP_WRITE)
		sqe->buf_offset = (u64)rq->tag * tap->max_io_bytes;
	if (rq->cmd_flags & REQ_FUA)
		sqe->flags |= BLKTAP_RQ_FUA;
	sqe->flags |= blktap_rq(rq)->flags;
	if (sqe->op == BLKTAP_OP_WRITE_ZEROES && (rq->cmd_flags & REQ_NOUNMAP))
		sqe->flags |= BLKTAP_RQ_NOUNMAP;
}

static struct request *blktap_take_pending(struct blktap *tap)
{
	struct blktap_rq *brq;

	spin_lock_irq(&tap->rq_lock);
	brq = list_first_entry_or_null(&tap->pending, struct blktap_rq, node);
	if (brq)
		list_del(&brq->node);
	spin_unlock_irq(&tap->rq_lock);
	return brq ? blktap_request(brq) : NULL;
}

static void blktap_put_pending(struct blktap *tap, struct request *rq)
{
	spin_lock_irq(&tap->rq_lock);
	list_add(&blktap_rq(rq)->node, &tap->pending);
	spin_unlock_irq(&tap->rq_lock);
}

/* Gives one request to the server. Ends it if its buffer is not there. */
static int blktap_issue(struct blktap *tap, struct request *rq)
{
	struct blktap_queue *q = &tap->queue;
	struct blktap_sqe sqe;
	int ret = 0;

	if (req_op(rq) == REQ_OP_WRITE)
		ret = blktap_copy_to_server(tap, rq);
	if (ret == -EINTR) {
		blktap_put_pending(tap, rq);
		return ret;
	}
	if (ret) {
		blktap_fault(tap, "written");
		blktap_end_request_task(tap, rq, BLK_STS_IOERR);
		return 0;
	}
	blktap_fill_sqe(tap, rq, atomic64_inc_return(&blktap_last_id), &sqe);
	blktap_hold(q, rq, sqe.id);
	memcpy(&q->sqes[q->sq_tail & (q->entries - 1)], &sqe, sizeof(sqe));
	WRITE_ONCE(q->sq_tail, q->sq_tail + 1);
	tap->count.submitted++;
	return 0;
}

/* used: entries of the submission ring that the server has not taken. */
static int blktap_fetch(struct blktap *tap, struct blktap_enter *enter, u32 used)
{
	struct blktap_queue *q = &tap->queue;
	unsigned int bytes, copied = 0;
	u32 first = q->sq_tail;
	struct request *rq;
	int ret = 0;

	while (used + (q->sq_tail - first) < q->entries) {
		rq = blktap_take_pending(tap);
		if (!rq)
			break;
		bytes = blk_rq_bytes(rq);
		ret = blktap_issue(tap, rq);
		if (ret)
			break;
		blktap_resched(&copied, bytes);
	}
	enter->submitted = q->sq_tail - first;
	/* the entries, and the data in the buffer, come before sq_tail */
	smp_store_release(&q->ring->sq_tail, q->sq_tail);
	return ret;
}

int blktap_enter(struct blktap *tap, struct blktap_enter *enter)
{
	struct blktap_queue *q = &tap->queue;
	int used, ret;

	/* while a removal waits for what the kernel does, nothing is the server's any more */
	if (!tap->set_up || tap->state != BLKTAP_LIVE || tap->failing)
		return -ENODEV;
	/* another process would have its own memory copied */
	if (tap->mm != current->mm)
		return -EPERM;
	/* once, before anything is done; the server has read what is before it */
	used = blktap_ring_used(smp_load_acquire(&q->ring->sq_head), q->sq_tail,
				q->entries);
	if (used < 0) {
		dev_err_ratelimited(&tap->dev,
				    "sq_head of task %d is beyond the ring\n",
				    tap->task);
		return used;
	}
	ret = blktap_consume(tap, enter);
	if (ret || enter->flags & BLKTAP_ENTER_NOFETCH)
		return ret;
	/* now is when whoever waited may ask for more: it is fetched here */
	cond_resched();
	return blktap_fetch(tap, enter, used);
}
