// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the disk passes on, as a linear device mapper target does: a read or write
 * inside one extent of a block device goes there as it is, on its own pages and in
 * its submitter's context. No request is made of it. All else goes to the minor's
 * queue, and so does what failed.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/pagemap.h>
#include <linux/slab.h>

#include "blktap_internal.h"

#define BLKTAP_PASSES	256	/* of a minor at a time; more go by the queue */

/* One that is under way, and what its submitter had in it. */
struct blktap_pass {
	struct bio *bio;
	struct block_device *bdev;
	struct bvec_iter iter;
	bio_end_io_t *end_io;
	void *private;
	blk_opf_t opf;
	unsigned short flags;
	u8 epoch;
	struct blktap *tap;
	struct file *file;
	u64 offset;			/* in the file, bytes */
	unsigned long start;		/* jiffies */
	struct list_head node;		/* in passes or passed */
};

int blktap_pass_init(struct blktap *tap)
{
	struct blktap_pass *pool;
	unsigned int i;

	if (tap->pass_pool)
		return 0;
	pool = kvcalloc(BLKTAP_PASSES, sizeof(*pool), GFP_KERNEL);
	if (!pool)
		return -ENOMEM;
	tap->again_queue = alloc_workqueue("blktap%d-again",
					   WQ_UNBOUND | WQ_MEM_RECLAIM, 1,
					   tap->minor);
	if (!tap->again_queue) {
		kvfree(pool);
		return -ENOMEM;
	}
	spin_lock_irq(&tap->rq_lock);
	tap->pass_pool = pool;
	for (i = 0; i < BLKTAP_PASSES; i++) {
		pool[i].tap = tap;
		list_add_tail(&pool[i].node, &tap->passes);
	}
	spin_unlock_irq(&tap->rq_lock);
	return 0;
}

void blktap_pass_exit(struct blktap *tap)
{
	if (!tap->pass_pool)
		return;
	destroy_workqueue(tap->again_queue);
	tap->again_queue = NULL;
	INIT_LIST_HEAD(&tap->passes);
	kvfree(tap->pass_pool);
	tap->pass_pool = NULL;
}

/*
 * Only if the block device takes what any block device takes: the disk's own limits
 * are those of the image.
 */
bool blktap_pass_possible(struct block_device *bdev)
{
	return !((bdev_logical_block_size(bdev) - 1) & ~(SECTOR_SIZE - 1)) &&
	       !(bdev_dma_alignment(bdev) & ~(SECTOR_SIZE - 1));
}

/* In any context. Pages there have to be written before, or forgotten behind. */
static bool blktap_pass_cached(const struct file *file, u64 offset, u64 bytes)
{
	struct address_space *mapping = file->f_mapping;

	return READ_ONCE(mapping->nrpages) &&
	       filemap_range_has_page(mapping, offset, offset + bytes - 1);
}

static bool blktap_pass_fits(const struct blktap_target *target, struct bio *bio,
			     u64 offset)
{
	struct block_device *bdev = target->pass;

	if (!bdev || !blktap_still_direct(target->file) ||
	    (offset & (SECTOR_SIZE - 1)) ||
	    blktap_pass_cached(target->file, offset, bio->bi_iter.bi_size))
		return false;
	if ((bio->bi_opf & REQ_NOWAIT) && !bdev_nowait(bdev))
		return false;
	if (!op_is_write(bio_op(bio)))
		return true;
	/*
	 * Writes of a file are kept from swap by the kernel, and made durable if it
	 * is open for that.
	 */
	return blktap_may_write(target) && !bdev_read_only(bdev) &&
	       !(READ_ONCE(target->file->f_flags) & O_DSYNC) &&
	       !IS_SWAPFILE(target->file->f_mapping->host);
}

/* rq_lock is held. NULL: it goes by the queue. */
static struct blktap_pass *blktap_pass_take(struct blktap *tap, struct bio *bio)
{
	bool write = op_is_write(bio_op(bio));
	const struct blktap_target *target;
	struct blktap_place place;
	struct blktap_pass *pass;

	if (blktap_fails(tap) ||
	    (write && (READ_ONCE(tap->params.flags) & BLKTAP_DEV_RDONLY)))
		return NULL;
	if (!blktap_extent_find(tap, bio->bi_iter.bi_sector, bio_sectors(bio),
				write, &place))
		return NULL;
	target = &tap->targets[place.file];
	if (!blktap_pass_fits(target, bio, place.offset))
		return NULL;
	pass = list_first_entry_or_null(&tap->passes, struct blktap_pass, node);
	if (!pass)
		return NULL;
	list_del(&pass->node);
	pass->offset = place.offset;
	pass->file = get_file(target->file);
	pass->epoch = blktap_running_begin(tap);
	return pass;
}

/* Nothing of it runs any more. The disk may go as soon as this is done. */
static void blktap_pass_put(struct blktap_pass *pass, u64 *count)
{
	struct blktap *tap = pass->tap;
	struct file *file = pass->file;
	unsigned long flags;

	spin_lock_irqsave(&tap->rq_lock, flags);
	if (count)
		++*count;
	list_add(&pass->node, &tap->passes);
	blktap_running_end(tap, pass->epoch);
	spin_unlock_irqrestore(&tap->rq_lock, flags);
	fput(file);
}

/* The bio is its submitter's again. */
static void blktap_pass_give_back(const struct blktap_pass *pass)
{
	struct bio *bio = pass->bio;

	blktap_account_end(pass->bdev, bio_op(bio),
			   pass->iter.bi_size >> SECTOR_SHIFT, pass->start);
	bio->bi_bdev = pass->bdev;
	bio->bi_opf = pass->opf;
	bio->bi_end_io = pass->end_io;
	bio->bi_private = pass->private;
}

/* In any context. The block layer has ended the bio for the block device. */
static void blktap_pass_end(struct blktap_pass *pass)
{
	struct blktap_counters *count = &pass->tap->count;
	struct bio *bio = pass->bio;
	bool write = op_is_write(bio_op(bio));

	blktap_pass_give_back(pass);
	blktap_pass_put(pass, bio->bi_status ? NULL :
			      write ? &count->direct_writes :
				      &count->direct_reads);
	/* not its end_io, which may be that of a chain and is the block layer's alone to call */
	bio_endio(bio);
}

/* What the block device has done needs no more of us, or the worker. */
static bool blktap_pass_over(const struct blktap_pass *pass)
{
	const struct bio *bio = pass->bio;

	if (bio->bi_status == BLK_STS_OK)
		return !op_is_write(bio_op(bio)) ||
		       !blktap_pass_cached(pass->file, pass->offset,
					   pass->iter.bi_size);
	/* the caller asked not to wait, and will ask again */
	return bio->bi_status == BLK_STS_AGAIN && (pass->opf & REQ_NOWAIT);
}

static void blktap_pass_done(struct bio *bio)
{
	struct blktap_pass *pass = bio->bi_private;
	struct blktap *tap = pass->tap;
	unsigned long flags;

	if (likely(blktap_pass_over(pass))) {
		blktap_pass_end(pass);
		return;
	}
	spin_lock_irqsave(&tap->rq_lock, flags);
	list_add_tail(&pass->node, &tap->passed);
	/* once it can be ended, the disk may go */
	blktap_direct_kick(tap);
	spin_unlock_irqrestore(&tap->rq_lock, flags);
}

/*
 * The bio itself goes on, so it must be ended by the block device alone: one that
 * others are chained to would wait for them, and a pause for it.
 */
static bool blktap_pass_suits(struct bio *bio)
{
	return (bio_op(bio) == REQ_OP_READ || bio_op(bio) == REQ_OP_WRITE) &&
	       !(bio->bi_opf & (REQ_PREFLUSH | REQ_FUA | REQ_INTEGRITY)) &&
	       bio_sectors(bio) && !bio_flagged(bio, BIO_CHAIN);
}

bool blktap_pass_try(struct blktap *tap, struct bio *bio)
{
	struct blktap_pass *pass;
	unsigned long flags;

	if (!READ_ONCE(tap->pass_pool) || !READ_ONCE(tap->nr_extents) ||
	    !blktap_pass_suits(bio))
		return false;
	spin_lock_irqsave(&tap->rq_lock, flags);
	pass = blktap_pass_take(tap, bio);
	spin_unlock_irqrestore(&tap->rq_lock, flags);
	if (!pass)
		return false;
	pass->bio = bio;
	pass->bdev = bio->bi_bdev;
	pass->iter = bio->bi_iter;
	pass->end_io = bio->bi_end_io;
	pass->private = bio->bi_private;
	pass->opf = bio->bi_opf;
	pass->flags = bio->bi_flags;
	pass->start = bio_start_io_acct(bio);
	bio->bi_iter.bi_sector = pass->offset >> SECTOR_SHIFT;
	bio->bi_end_io = blktap_pass_done;
	bio->bi_private = pass;
	bio_set_dev(bio, I_BDEV(pass->file->f_mapping->host));
	submit_bio_noacct(bio);
	return true;
}

/* In the worker. The pages that a write went past are old. */
static void blktap_pass_forget(const struct blktap_pass *pass)
{
	u64 last = pass->offset + pass->iter.bi_size - 1;

	invalidate_inode_pages2_range(pass->file->f_mapping,
				      pass->offset >> PAGE_SHIFT,
				      last >> PAGE_SHIFT);
}

/*
 * In the worker. To the server, as one that the kernel could not serve: by the
 * queue, which may have no tag left, so not from here.
 */
static void blktap_pass_again(struct blktap_pass *pass)
{
	struct blktap *tap = pass->tap;
	struct bio *bio = pass->bio;

	blktap_pass_give_back(pass);
	bio->bi_iter = pass->iter;
	bio->bi_flags = pass->flags;
	bio->bi_opf |= BLKTAP_REQ_FAILED | REQ_NOMERGE;
	bio->bi_opf &= ~REQ_NOWAIT;
	bio->bi_status = BLK_STS_OK;
	/* the block device may have split it; the queue may split it again */
	atomic_set(&bio->__bi_remaining, 1);
	spin_lock_irq(&tap->rq_lock);
	bio_list_add(&tap->again, bio);
	spin_unlock_irq(&tap->rq_lock);
	queue_work(tap->again_queue, &tap->again_work);
	blktap_pass_put(pass, &tap->count.direct_failed);
}

void blktap_pass_work(struct blktap *tap)
{
	struct blktap_pass *pass, *next;
	LIST_HEAD(list);

	spin_lock_irq(&tap->rq_lock);
	list_splice_init(&tap->passed, &list);
	spin_unlock_irq(&tap->rq_lock);
	list_for_each_entry_safe(pass, next, &list, node) {
		list_del(&pass->node);
		if (pass->bio->bi_status != BLK_STS_OK) {
			blktap_pass_again(pass);
			continue;
		}
		blktap_pass_forget(pass);
		blktap_pass_end(pass);
	}
}

void blktap_again_work(struct work_struct *work)
{
	struct blktap *tap = container_of(work, struct blktap, again_work);
	struct bio *bio;

	for (;;) {
		spin_lock_irq(&tap->rq_lock);
		bio = bio_list_pop(&tap->again);
		spin_unlock_irq(&tap->rq_lock);
		if (!bio)
			break;
		blktap_queue_bio(tap->queue_disk, bio);
	}
}
