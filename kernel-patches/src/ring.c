// SPDX-License-Identifier: GPL-2.0-only
/* The ring device of a minor: one server at a time. */
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

#include "blktap_internal.h"

static int blktap_ring_open(struct inode *inode, struct file *file)
{
	struct blktap *tap = container_of(inode->i_cdev, struct blktap, cdev);
	int ret;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	ret = mutex_lock_killable(&tap->lock);
	if (ret)
		return ret;
	if (tap->state == BLKTAP_DEAD)
		ret = -ENODEV;
	else if (tap->opened)
		ret = -EBUSY;
	if (!ret) {
		tap->opened = true;
		file->private_data = tap;
	}
	mutex_unlock(&tap->lock);
	return ret;
}

/* The lock, if the minor has not been freed meanwhile. */
static int blktap_lock(struct blktap *tap)
{
	int ret = mutex_lock_killable(&tap->lock);

	if (ret)
		return ret;
	if (tap->state != BLKTAP_DEAD)
		return 0;
	mutex_unlock(&tap->lock);
	return -ENODEV;
}

/* The server is gone. Its device, if it has one, waits for the next. */
static int blktap_ring_release(struct inode *inode, struct file *file)
{
	struct blktap *tap = file->private_data;
	struct blktap_queue *q = &tap->queue;

	mutex_lock(&tap->lock);
	if (tap->state == BLKTAP_LIVE) {
		blktap_set_state(tap, BLKTAP_QUIESCED);
		blktap_hold_issued(tap);
		dev_info(&tap->dev, "task %d is gone: requests are held\n",
			 tap->task);
		tap->dead_since = jiffies;
		blktap_expire_begin(tap);
	}
	tap->count.outlived += blktap_files_drop(tap);
	if (tap->set_up) {
		mmdrop(tap->mm);
		tap->mm = NULL;
		WRITE_ONCE(tap->task, 0);
		tap->set_up = false;
	}
	vfree(q->ring);		/* a mapping would hold the file open */
	q->ring = NULL;
	q->sq_tail = 0;
	q->cq_head = 0;
	tap->opened = false;
	mutex_unlock(&tap->lock);
	return 0;
}

static int blktap_alloc_ring(struct blktap_queue *q, u32 entries,
			     struct blktap_setup *setup)
{
	struct blktap_layout layout;
	struct blktap_ring *ring;

	blktap_ring_layout(entries, &layout);
	setup->ring_bytes = PAGE_ALIGN(layout.bytes);
	setup->sq_off = layout.sq_off;
	setup->cq_off = layout.cq_off;
	ring = vmalloc_user(setup->ring_bytes);
	if (!ring)
		return -ENOMEM;
	ring->entries = entries;
	q->sqes = (void *)ring + layout.sq_off;
	q->cqes = (void *)ring + layout.cq_off;
	q->ring_bytes = setup->ring_bytes;
	q->entries = entries;
	/* mmap() and poll() of this same open file look without the lock */
	smp_store_release(&q->ring, ring);
	return 0;
}

static int blktap_setup(struct blktap *tap, struct blktap_setup *setup,
			void __user *argp)
{
	u32 version = setup->version;
	int ret;

	setup->version = BLKTAP_ABI_VERSION;
	if (version != BLKTAP_ABI_VERSION)
		return blktap_put_arg(setup, sizeof(*setup), argp) ?: -EPROTONOSUPPORT;
	if (tap->set_up)
		return -EBUSY;
	setup->features = blktap_grant(setup->features);
	if (!setup->features)
		return -EOPNOTSUPP;
	ret = blktap_check_setup(setup, PAGE_SIZE);
	if (ret)
		return ret;
	if (!access_ok(u64_to_user_ptr(setup->buf_addr), setup->buf_len) ||
	    blktap_buffer_on_disk(setup->buf_addr, setup->buf_len))
		return -EINVAL;
	/* the tags and the largest request are those of the device */
	if (tap->disk && (setup->entries != tap->dev_entries ||
			  setup->max_io_bytes != tap->dev_max_io_bytes)) {
		setup->entries = tap->dev_entries;
		setup->max_io_bytes = tap->dev_max_io_bytes;
		return blktap_put_arg(setup, sizeof(*setup), argp) ?: -ERANGE;
	}
	/* a ring is there if an earlier SETUP failed after this point */
	if (tap->queue.ring)
		return -EINVAL;
	ret = blktap_alloc_ring(&tap->queue, setup->entries, setup);
	if (ret)
		return ret;
	ret = blktap_put_arg(setup, sizeof(*setup), argp);
	if (ret)
		return ret;
	tap->buf = u64_to_user_ptr(setup->buf_addr);
	tap->features = setup->features;
	tap->max_io_bytes = setup->max_io_bytes;
	tap->mm = current->mm;
	mmgrab(tap->mm);
	WRITE_ONCE(tap->task, task_tgid_nr(current));
	tap->set_up = true;
	return 0;
}

static int blktap_ioc_setup(struct blktap *tap, void __user *argp)
{
	struct blktap_setup setup;
	int ret;

	ret = blktap_get_arg(&setup, sizeof(setup), BLKTAP_SETUP_SIZE_V3, argp);
	if (ret)
		return ret;
	ret = blktap_lock(tap);
	if (ret)
		return ret;
	ret = blktap_setup(tap, &setup, argp);
	mutex_unlock(&tap->lock);
	return ret;
}

static int blktap_ioc_device(struct blktap *tap, void __user *argp,
			     int (*act)(struct blktap *tap,
					const struct blktap_device_params *params))
{
	struct blktap_device_params params;
	int ret;

	ret = blktap_get_arg(&params, sizeof(params), BLKTAP_PARAMS_SIZE_V3, argp);
	if (ret)
		return ret;
	ret = blktap_lock(tap);
	if (ret)
		return ret;
	ret = tap->set_up ? act(tap, &params) : -EINVAL;
	mutex_unlock(&tap->lock);
	return ret;
}

static int blktap_ioc_remove(struct blktap *tap, void __user *argp)
{
	struct blktap_remove arg;
	int ret;

	ret = blktap_get_arg(&arg, sizeof(arg), BLKTAP_REMOVE_SIZE_V3, argp);
	if (ret)
		return ret;
	if (arg.flags & ~BLKTAP_REMOVE_FORCE)
		return -EINVAL;
	ret = blktap_lock(tap);
	if (ret)
		return ret;
	ret = blktap_device_remove(tap, arg.flags & BLKTAP_REMOVE_FORCE,
				   arg.flags & BLKTAP_REMOVE_FORCE);
	mutex_unlock(&tap->lock);
	return ret;
}

static int blktap_ioc_enter(struct blktap *tap, void __user *argp)
{
	struct blktap_enter arg;
	int ret;

	ret = blktap_get_arg(&arg, sizeof(arg), BLKTAP_ENTER_SIZE_V3, argp);
	if (ret)
		return ret;
	if (arg.queue != 0 || (arg.flags & ~BLKTAP_ENTER_NOFETCH))
		return -EINVAL;
	arg.completed = 0;
	arg.submitted = 0;
	arg.refused = 0;
	ret = blktap_lock(tap);
	if (ret)
		return ret;
	ret = blktap_enter(tap, &arg);
	mutex_unlock(&tap->lock);
	return ret ?: blktap_put_arg(&arg, sizeof(arg), argp);
}

/* The lock, if the server has files and extents. */
static int blktap_lock_remap(struct blktap *tap)
{
	int ret = blktap_lock(tap);

	if (ret)
		return ret;
	if (tap->set_up && tap->features & BLKTAP_F_REMAP)
		return 0;
	mutex_unlock(&tap->lock);
	return -EINVAL;
}

static int blktap_ioc_add_file(struct blktap *tap, void __user *argp)
{
	struct blktap_file arg;
	int ret;

	ret = blktap_get_arg(&arg, sizeof(arg), BLKTAP_FILE_SIZE_V3, argp);
	if (ret)
		return ret;
	if (arg.flags & ~BLKTAP_FILE_WRITE)
		return -EINVAL;
	ret = blktap_lock_remap(tap);
	if (ret)
		return ret;
	if (!tap->workqueue)
		tap->workqueue = alloc_workqueue("blktap%d", WQ_UNBOUND | WQ_MEM_RECLAIM,
						 1, tap->minor);
	ret = tap->workqueue ? blktap_file_add(tap, arg.fd, arg.number,
					       arg.flags & BLKTAP_FILE_WRITE) :
			       -ENOMEM;
	mutex_unlock(&tap->lock);
	return ret;
}

static int blktap_ioc_remove_file(struct blktap *tap, void __user *argp)
{
	struct blktap_unfile arg;
	int ret;

	ret = blktap_get_arg(&arg, sizeof(arg), BLKTAP_UNFILE_SIZE_V3, argp);
	if (ret)
		return ret;
	ret = blktap_lock_remap(tap);
	if (ret)
		return ret;
	ret = blktap_file_remove(tap, arg.number);
	mutex_unlock(&tap->lock);
	return ret;
}

static int blktap_ioc_add_extents(struct blktap *tap, void __user *argp)
{
	struct blktap_extent *extent;
	struct blktap_extents arg;
	int ret;

	ret = blktap_get_arg(&arg, sizeof(arg), BLKTAP_EXTENTS_SIZE_V3, argp);
	if (ret)
		return ret;
	if (arg.nr > BLKTAP_EXTENT_BATCH || arg.reserved)
		return -EINVAL;
	extent = memdup_user(u64_to_user_ptr(arg.addr),
			     (size_t)arg.nr * sizeof(*extent));
	if (IS_ERR(extent))
		return PTR_ERR(extent);
	arg.added = 0;
	ret = blktap_lock_remap(tap);
	if (!ret) {
		ret = blktap_extents_add(tap, extent, arg.nr, &arg.added);
		mutex_unlock(&tap->lock);
	}
	ret = blktap_put_arg(&arg, sizeof(arg), argp) ?: ret;
	kfree(extent);
	return ret;
}

static int blktap_ioc_withdraw(struct blktap *tap, void __user *argp)
{
	struct blktap_withdraw arg;
	int ret;

	ret = blktap_get_arg(&arg, sizeof(arg), BLKTAP_WITHDRAW_SIZE_V3, argp);
	if (ret)
		return ret;
	if (arg.flags & ~BLKTAP_WITHDRAW_WAIT || arg.reserved)
		return -EINVAL;
	ret = blktap_lock_remap(tap);
	if (ret)
		return ret;
	arg.running = blktap_extents_withdraw(tap, arg.sector, arg.nr_sectors, -1);
	mutex_unlock(&tap->lock);
	if (arg.flags & BLKTAP_WITHDRAW_WAIT) {
		ret = blktap_drain_wait(tap);
		arg.running = 0;
	}
	return ret ?: blktap_put_arg(&arg, sizeof(arg), argp);
}

/* By number alone: the struct's size is in the struct. */
static long blktap_ring_ioctl(struct file *file, unsigned int cmd,
			      unsigned long arg)
{
	struct blktap *tap = file->private_data;
	void __user *argp = (void __user *)arg;

	if (_IOC_TYPE(cmd) != _IOC_TYPE(BLKTAP_IOC_ENTER))
		return -ENOTTY;
	switch (_IOC_NR(cmd)) {
	case _IOC_NR(BLKTAP_IOC_SETUP):
		return blktap_ioc_setup(tap, argp);
	case _IOC_NR(BLKTAP_IOC_CREATE_DEVICE):
		return blktap_ioc_device(tap, argp, blktap_device_create);
	case _IOC_NR(BLKTAP_IOC_RESUME_DEVICE):
		return blktap_ioc_device(tap, argp, blktap_device_resume);
	case _IOC_NR(BLKTAP_IOC_SET_DEVICE):
		return blktap_ioc_device(tap, argp, blktap_device_set);
	case _IOC_NR(BLKTAP_IOC_REMOVE_DEVICE):
		return blktap_ioc_remove(tap, argp);
	case _IOC_NR(BLKTAP_IOC_ENTER):
		return blktap_ioc_enter(tap, argp);
	case _IOC_NR(BLKTAP_IOC_ADD_FILE):
		return blktap_ioc_add_file(tap, argp);
	case _IOC_NR(BLKTAP_IOC_REMOVE_FILE):
		return blktap_ioc_remove_file(tap, argp);
	case _IOC_NR(BLKTAP_IOC_ADD_EXTENTS):
		return blktap_ioc_add_extents(tap, argp);
	case _IOC_NR(BLKTAP_IOC_WITHDRAW):
		return blktap_ioc_withdraw(tap, argp);
	default:
		return -ENOTTY;
	}
}

static int blktap_ring_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct blktap *tap = file->private_data;
	/* pairs with SETUP's release */
	struct blktap_ring *ring = smp_load_acquire(&tap->queue.ring);

	if (!ring || !(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	/* not in a child: only the process that did SETUP may ENTER */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_set(vma, VM_DONTCOPY | VM_DONTEXPAND);
#else
	vma->vm_flags |= VM_DONTCOPY | VM_DONTEXPAND;
#endif
	return remap_vmalloc_range(vma, ring, vma->vm_pgoff);
}

/* Reports, and changes nothing: it is called as often as epoll likes. */
static __poll_t blktap_ring_poll(struct file *file, poll_table *table)
{
	struct blktap *tap = file->private_data;
	struct blktap_queue *q = &tap->queue;
	/* pairs with SETUP's release */
	struct blktap_ring *ring = smp_load_acquire(&q->ring);
	__poll_t mask = 0;
	u32 used;

	poll_wait(file, &tap->wait, table);
	if (!ring)
		return EPOLLERR;
	if (blktap_drained(tap))
		mask |= EPOLLOUT;
	if (READ_ONCE(tap->state) != BLKTAP_LIVE ||
	    list_empty_careful(&tap->pending))
		return mask;
	used = READ_ONCE(q->sq_tail) - READ_ONCE(ring->sq_head);
	if (used < q->entries)
		mask |= EPOLLIN | EPOLLRDNORM;
	return mask;
}

const struct file_operations blktap_ring_fops = {
	.owner		= THIS_MODULE,
	.open		= blktap_ring_open,
	.release	= blktap_ring_release,
	.unlocked_ioctl	= blktap_ring_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
	.mmap		= blktap_ring_mmap,
	.poll		= blktap_ring_poll,
	.llseek		= noop_llseek,
};
