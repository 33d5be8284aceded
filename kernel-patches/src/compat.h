/* SPDX-License-Identifier: GPL-2.0-only */
/* The kernel APIs that differ between Linux 6.1 and 6.12: every #if is here. */
#ifndef BLKTAP_COMPAT_H
#define BLKTAP_COMPAT_H

#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/cdev.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)
#define BLKTAP_OPEN_ARGS	struct gendisk *disk, blk_mode_t mode
#define BLKTAP_OPEN_DISK	(disk)
#define BLKTAP_OPEN_WRITES	(mode & BLK_OPEN_WRITE)
#else
#define BLKTAP_OPEN_ARGS	struct block_device *bdev, fmode_t mode
#define BLKTAP_OPEN_DISK	(bdev->bd_disk)
#define BLKTAP_OPEN_WRITES	(mode & FMODE_WRITE)
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
#define BLKTAP_DEVNODE_DEV	const struct device
#else
#define BLKTAP_DEVNODE_DEV	struct device
#endif

static inline struct class *blktap_class_create(const char *name)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	return class_create(name);
#else
	return class_create(THIS_MODULE, name);
#endif
}

static inline void blktap_vm_flags_set(struct vm_area_struct *vma,
				       unsigned long flags)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_set(vma, flags);
#else
	vma->vm_flags |= flags;
#endif
}

/*
 * A frozen file system must not be written to. The end may come in another
 * context, which lockdep has to be told.
 */
static inline void blktap_begin_write(struct kiocb *iocb)
{
	struct inode *inode = file_inode(iocb->ki_filp);

	if (S_ISREG(inode->i_mode)) {
		sb_start_write(inode->i_sb);
		__sb_writers_release(inode->i_sb, SB_FREEZE_WRITE);
	}
}

static inline void blktap_end_write(struct kiocb *iocb)
{
	struct inode *inode = file_inode(iocb->ki_filp);

	if (S_ISREG(inode->i_mode)) {
		__sb_writers_acquired(inode->i_sb, SB_FREEZE_WRITE);
		sb_end_write(inode->i_sb);
	}
}

/* What a device asks of the block layer, in bytes unless said. */
struct blktap_limits {
	unsigned int logical;
	unsigned int physical;
	unsigned int max_io;
	unsigned int io_min;		/* 0: not said */
	unsigned int io_opt;		/* 0: not said */
	unsigned int discard_granularity;
	unsigned int discard_sectors;	/* 0: no discard */
	unsigned int zeroes_sectors;	/* 0: no write zeroes */
	bool cache;
	bool fua;
};

/*
 * A gendisk with its queue, or ERR_PTR. Segments are not limited: the data is
 * copied page by page, whatever the bvecs are.
 */
static inline struct gendisk *
blktap_alloc_disk(struct blk_mq_tag_set *set, void *data,
		  const struct blktap_limits *want)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
	struct queue_limits lim = {
		.logical_block_size = want->logical,
		.physical_block_size = want->physical,
		.io_min = want->io_min,
		.io_opt = want->io_opt,
		.max_hw_sectors = want->max_io >> SECTOR_SHIFT,
		.max_segments = USHRT_MAX,
		.max_segment_size = UINT_MAX,
		.max_hw_discard_sectors = want->discard_sectors,
		.discard_granularity = want->discard_granularity,
		.max_write_zeroes_sectors = want->zeroes_sectors,
	};

	if (want->cache)
		lim.features |= BLK_FEAT_WRITE_CACHE;
	if (want->fua)
		lim.features |= BLK_FEAT_FUA;
	return blk_mq_alloc_disk(set, &lim, data);
#else
	struct gendisk *disk = blk_mq_alloc_disk(set, data);
	struct request_queue *q;

	if (IS_ERR(disk))
		return disk;
	q = disk->queue;
	blk_queue_logical_block_size(q, want->logical);
	blk_queue_physical_block_size(q, want->physical);
	if (want->io_min)
		blk_queue_io_min(q, want->io_min);
	if (want->io_opt)
		blk_queue_io_opt(q, want->io_opt);
	blk_queue_max_hw_sectors(q, want->max_io >> SECTOR_SHIFT);
	blk_queue_max_segments(q, USHRT_MAX);
	blk_queue_max_segment_size(q, UINT_MAX);
	if (want->discard_sectors) {
		q->limits.discard_granularity = want->discard_granularity;
		blk_queue_max_discard_sectors(q, want->discard_sectors);
	}
	blk_queue_max_write_zeroes_sectors(q, want->zeroes_sectors);
	blk_queue_write_cache(q, want->cache, want->fua);
	blk_queue_flag_set(QUEUE_FLAG_NONROT, q);
	return disk;
#endif
}

#endif
