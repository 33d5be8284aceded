// SPDX-License-Identifier: GPL-2.0-only
/* The files that a server has registered for the kernel's own I/O. */
#include <linux/blkdev.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>

#include "blktap_internal.h"

/* The disk under a file, or NULL: over a network pages may be sent after the completion. */
static struct block_device *blktap_bdev(struct file *file)
{
	struct inode *inode = file->f_mapping->host;

	return S_ISBLK(inode->i_mode) ? I_BDEV(inode) : inode->i_sb->s_bdev;
}

/*
 * Filling in a page of the buffer must not need a disk: it may be the one whose
 * request waits for it, and who waits for a tag of a queue can't be killed.
 */
bool blktap_buffer_on_disk(u64 addr, u64 len)
{
	VMA_ITERATOR(vmi, current->mm, addr);
	struct vm_area_struct *vma;
	bool found = false;

	mmap_read_lock(current->mm);
	for_each_vma_range(vmi, vma, addr + len)
		if (vma->vm_file && blktap_bdev(vma->vm_file))
			found = true;
	mmap_read_unlock(current->mm);
	return found;
}

static int blktap_file_check(struct blktap *tap, struct file *file, bool write)
{
	struct inode *inode = file->f_mapping->host;
	struct block_device *bdev;

	if (!S_ISREG(inode->i_mode) && !S_ISBLK(inode->i_mode))
		return -EINVAL;
	if (!(file->f_flags & O_DIRECT) || (file->f_flags & O_APPEND))
		return -EINVAL;
	if (!(file->f_mode & FMODE_READ) || (write && !(file->f_mode & FMODE_WRITE)))
		return -EBADF;
	if (!file->f_op->read_iter || (write && !file->f_op->write_iter))
		return -EINVAL;
	if (IS_SWAPFILE(inode))
		return -ETXTBSY;
	bdev = blktap_bdev(file);
	if (!bdev)
		return -EOPNOTSUPP;
	/*
	 * It has checksums, or parity, of what is written, and the pages of a
	 * request may change meanwhile: only a copy is safe.
	 */
	if (write && (bdev_stable_writes(bdev) || mapping_stable_writes(file->f_mapping)))
		return -EOPNOTSUPP;
	/* deeper loops, through another device, are the administrator's */
	if (tap->disk && bdev->bd_disk == tap->disk)
		return -EINVAL;
	return 0;
}

int blktap_file_add(struct blktap *tap, int fd, u32 number, bool write)
{
	struct blktap_target target = { .write = write };
	struct block_device *bdev;
	unsigned long flags;
	int ret;

	if (number >= BLKTAP_MAX_FILES)
		return -EINVAL;
	if (tap->targets[number].file)
		return -EEXIST;
	target.file = fget(fd);
	if (!target.file)
		return -EBADF;
	ret = blktap_file_check(tap, target.file, write);
	if (ret) {
		fput(target.file);
		return ret;
	}
	bdev = blktap_bdev(target.file);
	target.bdev = bdev;
	target.align = bdev_logical_block_size(bdev) - 1;
	if (S_ISBLK(target.file->f_mapping->host->i_mode) && blktap_pass_possible(bdev) &&
	    !blktap_pass_init(tap))
		target.pass = bdev;
	spin_lock_irqsave(&tap->rq_lock, flags);
	tap->targets[number] = target;
	spin_unlock_irqrestore(&tap->rq_lock, flags);
	return 0;
}

int blktap_file_remove(struct blktap *tap, u32 number)
{
	struct file *file;
	unsigned long flags;

	if (number >= BLKTAP_MAX_FILES || !tap->targets[number].file)
		return -ENOENT;
	blktap_extents_withdraw(tap, 0, U64_MAX, number);
	spin_lock_irqsave(&tap->rq_lock, flags);
	file = tap->targets[number].file;
	tap->targets[number] = (struct blktap_target) { };
	spin_unlock_irqrestore(&tap->rq_lock, flags);
	/* running I/O has references of its own */
	fput(file);
	return 0;
}

u32 blktap_files_drop(struct blktap *tap)
{
	u32 i, running;

	running = blktap_extents_withdraw(tap, 0, U64_MAX, -1);
	for (i = 0; i < BLKTAP_MAX_FILES; i++)
		blktap_file_remove(tap, i);
	return running;
}
