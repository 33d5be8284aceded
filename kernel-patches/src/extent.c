// SPDX-License-Identifier: GPL-2.0-only
/*
 * The extents of a minor: a map from sectors to places in files, and the count
 * of I/O that runs on them.
 *
 * The tree is changed and searched under rq_lock, in which I/O on an extent is
 * counted too. So once an extent is out of the tree nobody starts I/O on it, and
 * all who did are counted.
 *
 * Running I/O is counted in two epochs. To drain, the epoch is turned, and the
 * old one empties; only then is it turned again.
 */
#include <linux/overflow.h>
#include <linux/rbtree.h>
#include <linux/slab.h>

#include "blktap_internal.h"

/* Extents that leave the tree with interrupts off at a time. */
#define BLKTAP_CUT_BATCH	64

struct blktap_node {
	struct rb_node rb;
	struct blktap_node *dead;	/* the next one that is out of the tree */
	u64 sector;
	u64 end;			/* the first sector behind it */
	u64 offset;
	u16 file;
	bool write;
};

static struct blktap_node *blktap_node(struct rb_node *rb)
{
	return rb_entry_safe(rb, struct blktap_node, rb);
}

/* The first node that ends behind a sector. */
static struct blktap_node *blktap_first(struct blktap *tap, u64 sector)
{
	struct rb_node *rb = tap->extents.rb_node;
	struct blktap_node *found = NULL, *e;

	while (rb) {
		e = blktap_node(rb);
		if (e->end > sector) {
			found = e;
			rb = rb->rb_left;
		} else {
			rb = rb->rb_right;
		}
	}
	return found;
}

bool blktap_extent_find(struct blktap *tap, u64 sector, u32 nr_sectors,
			bool write, struct blktap_place *place)
{
	const struct blktap_node *e = blktap_first(tap, sector);

	if (!e || sector < e->sector || e->end - sector < nr_sectors ||
	    (write && !e->write))
		return false;
	place->file = e->file;
	place->offset = e->offset + ((sector - e->sector) << SECTOR_SHIFT);
	return true;
}

/* False if another is there. */
static bool blktap_insert(struct blktap *tap, struct blktap_node *new)
{
	struct rb_node **link = &tap->extents.rb_node, *parent = NULL;
	struct blktap_node *e;

	while (*link) {
		parent = *link;
		e = blktap_node(parent);
		if (new->end <= e->sector)
			link = &parent->rb_left;
		else if (new->sector >= e->end)
			link = &parent->rb_right;
		else
			return false;
	}
	rb_link_node(&new->rb, parent, link);
	rb_insert_color(&new->rb, &tap->extents);
	tap->nr_extents++;
	return true;
}

static void blktap_erase(struct blktap *tap, struct blktap_node *e)
{
	rb_erase(&e->rb, &tap->extents);
	tap->nr_extents--;
}

static int blktap_extent_add(struct blktap *tap, const struct blktap_extent *from)
{
	const struct blktap_target *target;
	struct blktap_node *e;
	unsigned long flags;
	int ret;

	ret = blktap_check_extent(from, tap->params.sectors);
	if (ret)
		return ret;
	target = &tap->targets[from->file];
	if (!target->file)
		return -ENOENT;
	if ((from->flags & BLKTAP_EXTENT_WRITE) && !target->write)
		return -EBADF;
	if (tap->nr_extents >= BLKTAP_MAX_EXTENTS)
		return -ENOSPC;
	e = kmalloc(sizeof(*e), GFP_KERNEL);
	if (!e)
		return -ENOMEM;
	e->sector = from->sector;
	e->end = from->sector + from->nr_sectors;
	e->offset = from->offset;
	e->file = from->file;
	e->write = from->flags & BLKTAP_EXTENT_WRITE;
	spin_lock_irqsave(&tap->rq_lock, flags);
	ret = blktap_insert(tap, e) ? 0 : -EEXIST;
	spin_unlock_irqrestore(&tap->rq_lock, flags);
	if (ret)
		kfree(e);
	return ret;
}

int blktap_extents_add(struct blktap *tap, const struct blktap_extent *extent,
		       u32 nr, u32 *added)
{
	int ret = 0;

	*added = 0;
	if (!tap->disk || tap->state != BLKTAP_LIVE)
		return -ENODEV;
	for (; *added < nr; ++*added) {
		ret = blktap_extent_add(tap, &extent[*added]);
		if (ret)
			break;
		cond_resched();
	}
	return ret;
}

/*
 * Takes what a range has of a node out of it. spare: memory for what is left
 * behind the range, if something is left on both sides; without it that is
 * forgotten. Returns memory that is free then, or NULL.
 */
static struct blktap_node *blktap_cut(struct blktap *tap, struct blktap_node *e,
				      u64 sector, u64 end,
				      struct blktap_node **spare)
{
	struct blktap_node *rest = *spare;
	u64 behind = e->offset + ((end - e->sector) << SECTOR_SHIFT);

	if (e->sector >= sector && e->end <= end) {
		blktap_erase(tap, e);
		return e;
	}
	if (e->sector >= sector) {		/* its end is left */
		e->offset = behind;
		e->sector = end;
		return NULL;
	}
	if (e->end > end && rest) {
		*rest = *e;
		rest->sector = end;
		rest->offset = behind;
		*spare = NULL;
	} else {
		rest = NULL;
	}
	e->end = sector;			/* its start is left */
	if (rest)
		blktap_insert(tap, rest);
	return NULL;
}

/* file: only its extents; or -1. Needs no memory that it can't do without. */
static void blktap_extents_cut(struct blktap *tap, u64 sector, u64 end, int file)
{
	struct blktap_node *spare, *e, *next, *freed, *dead = NULL;
	unsigned long flags;
	unsigned int n;

	/* the disk itself may have to free memory, and its next server waits */
	spare = kmalloc(sizeof(*spare), GFP_NOWAIT | __GFP_NOWARN);
	do {
		spin_lock_irqsave(&tap->rq_lock, flags);
		e = blktap_first(tap, sector);
		for (n = 0; e && e->sector < end && n < BLKTAP_CUT_BATCH; n++) {
			next = blktap_node(rb_next(&e->rb));
			freed = file < 0 || e->file == file ?
				blktap_cut(tap, e, sector, end, &spare) : NULL;
			if (freed) {
				freed->dead = dead;
				dead = freed;
			}
			e = next;
		}
		if (e)
			sector = max(sector, e->sector);
		n = e && e->sector < end;
		spin_unlock_irqrestore(&tap->rq_lock, flags);
		cond_resched();
	} while (n);
	for (; dead; dead = next) {
		next = dead->dead;
		kfree(dead);
	}
	kfree(spare);
}

/* rq_lock is held. */
static void blktap_epoch_turn(struct blktap *tap)
{
	struct blktap_epochs *ep = &tap->epochs;

	while (!ep->running[!ep->now] && ep->drained != ep->wanted) {
		WRITE_ONCE(ep->drained, ep->turned);
		if (ep->turned != ep->wanted) {
			ep->turned = ep->wanted;
			ep->now = !ep->now;
		}
	}
}

u8 blktap_running_begin(struct blktap *tap)
{
	struct blktap_epochs *ep = &tap->epochs;

	ep->running[ep->now]++;
	return ep->now;
}

void blktap_running_end(struct blktap *tap, u8 epoch)
{
	struct blktap_epochs *ep = &tap->epochs;

	if (--ep->running[epoch] || ep->drained == ep->wanted)
		return;
	blktap_epoch_turn(tap);
	if (ep->drained == ep->wanted)
		wake_up_poll(&tap->wait, EPOLLOUT);
}

bool blktap_drained(struct blktap *tap)
{
	return READ_ONCE(tap->epochs.drained) == READ_ONCE(tap->epochs.wanted);
}

int blktap_drain_wait(struct blktap *tap)
{
	return wait_event_killable(tap->wait, blktap_drained(tap)) ? -EINTR : 0;
}

/* All that runs now has to end. */
static u32 blktap_drain_begin(struct blktap *tap)
{
	struct blktap_epochs *ep = &tap->epochs;
	unsigned long flags;
	u32 running = 0;

	spin_lock_irqsave(&tap->rq_lock, flags);
	WRITE_ONCE(ep->wanted, ep->wanted + 1);
	blktap_epoch_turn(tap);
	if (ep->drained != ep->wanted)
		running = ep->running[0] + ep->running[1];
	spin_unlock_irqrestore(&tap->rq_lock, flags);
	return running;
}

u32 blktap_extents_withdraw(struct blktap *tap, u64 sector, u64 nr_sectors, int file)
{
	u64 end;

	if (check_add_overflow(sector, nr_sectors, &end))
		end = U64_MAX;
	/* a range of nothing would part the extent it lies in */
	if (nr_sectors)
		blktap_extents_cut(tap, sector, end, file);
	return blktap_drain_begin(tap);
}
