// SPDX-License-Identifier: GPL-2.0-only
/* A device whose server is gone and does not come back in time. */
#include <linux/blk-mq.h>
#include <linux/jiffies.h>
#include <linux/workqueue.h>

#include "blktap_internal.h"

/*
 * What waits for a worker may be all that memory could come from: the queue has
 * one of its own.
 */
static struct workqueue_struct *blktap_dead_queue;

int blktap_expire_init(void)
{
	blktap_dead_queue = alloc_workqueue("blktap-dead",
					    WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	return blktap_dead_queue ? 0 : -ENOMEM;
}

void blktap_expire_exit(void)
{
	destroy_workqueue(blktap_dead_queue);
}

static unsigned long blktap_expires(const struct blktap *tap)
{
	return tap->dead_since + (unsigned long)tap->dead_timeout * HZ;
}

/* All that is held; what comes from now on fails in queue_rq. */
static void blktap_expire(struct blktap *tap)
{
	struct blktap_rq *brq, *next;
	unsigned int nr = 0;
	LIST_HEAD(failed);

	spin_lock_irq(&tap->rq_lock);
	tap->expired = true;
	list_splice_init(&tap->pending, &failed);
	list_for_each_entry(brq, &failed, node)
		nr++;
	tap->count.expired += nr;
	spin_unlock_irq(&tap->rq_lock);
	dev_warn(&tap->dev, "no server: %u requests failed, and so do new ones until there is one\n",
		 nr);
	list_for_each_entry_safe(brq, next, &failed, node) {
		list_del(&brq->node);
		blktap_end_request_task(tap, blktap_request(brq), BLK_STS_IOERR);
	}
}

void blktap_expire_work(struct work_struct *work)
{
	struct blktap *tap = container_of(to_delayed_work(work), struct blktap,
					  dead_work);

	mutex_lock(&tap->lock);
	/* a server may have come, or the time have been changed, meanwhile */
	if (tap->state == BLKTAP_QUIESCED && tap->dead_timeout && !tap->expired &&
	    !delayed_work_pending(&tap->dead_work)) {
		/* no timer takes more than some weeks */
		if (time_before(jiffies, blktap_expires(tap)))
			blktap_expire_begin(tap);
		else
			blktap_expire(tap);
	}
	mutex_unlock(&tap->lock);
}

void blktap_expire_begin(struct blktap *tap)
{
	unsigned long end = blktap_expires(tap);

	if (tap->expired)
		return;
	if (tap->dead_timeout)
		mod_delayed_work(blktap_dead_queue, &tap->dead_work,
				 time_after(end, jiffies) ? end - jiffies : 0);
	else
		cancel_delayed_work(&tap->dead_work);
}

int blktap_expire_now(struct blktap *tap)
{
	if (tap->state != BLKTAP_QUIESCED)
		return -EBUSY;
	if (!tap->expired)
		blktap_expire(tap);
	return 0;
}

void blktap_expire_end(struct blktap *tap)
{
	cancel_delayed_work(&tap->dead_work);
	spin_lock_irq(&tap->rq_lock);
	tap->expired = false;
	spin_unlock_irq(&tap->rq_lock);
}
