// SPDX-License-Identifier: GPL-2.0-only
/* The control device: minors are made and freed here. */
#include <linux/bio.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/ktime.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/xarray.h>

#include "blktap_internal.h"

static DEFINE_XARRAY_ALLOC(blktap_minors);

/*
 * The last reference is gone: no open ring, no open disk. The module can only
 * be unloaded from here on; blktap_exit() waits until we have returned.
 */
static void blktap_dev_release(struct device *dev)
{
	struct blktap *tap = container_of(dev, struct blktap, dev);

	mutex_destroy(&tap->lock);
	kfree(tap);
	module_put(THIS_MODULE);
}

/* Grows while the machine runs, even if the module is loaded anew. */
static u64 blktap_new_id(void)
{
	static DEFINE_SPINLOCK(lock);
	static u64 last;
	u64 id;

	spin_lock(&lock);
	id = max_t(u64, last + 1, ktime_get_boottime_ns());
	last = id;
	spin_unlock(&lock);
	return id;
}

static struct blktap *blktap_new(int minor)
{
	struct blktap *tap = kzalloc(sizeof(*tap), GFP_KERNEL);

	if (!tap)
		return NULL;
	__module_get(THIS_MODULE);
	tap->minor = minor;
	tap->id = blktap_new_id();
	tap->dead_timeout = min(READ_ONCE(blktap_dead_timeout),
				BLKTAP_MAX_DEAD_TIMEOUT);
	mutex_init(&tap->lock);
	spin_lock_init(&tap->rq_lock);
	INIT_LIST_HEAD(&tap->pending);
	INIT_LIST_HEAD(&tap->queue.issued);
	INIT_LIST_HEAD(&tap->direct);
	INIT_LIST_HEAD(&tap->passes);
	INIT_LIST_HEAD(&tap->passed);
	bio_list_init(&tap->again);
	INIT_WORK(&tap->direct_work, blktap_direct_work);
	INIT_WORK(&tap->again_work, blktap_again_work);
	INIT_DELAYED_WORK(&tap->dead_work, blktap_expire_work);
	tap->extents = RB_ROOT;
	init_waitqueue_head(&tap->wait);
	device_initialize(&tap->dev);
	tap->dev.class = blktap_class;
	tap->dev.devt = MKDEV(MAJOR(blktap_devt), MINOR(blktap_devt) + minor);
	tap->dev.release = blktap_dev_release;
	tap->dev.groups = blktap_groups;
	cdev_init(&tap->cdev, &blktap_ring_fops);
	tap->cdev.owner = THIS_MODULE;
	return tap;
}

/* Takes a free minor, any for -1: reserved in the xarray, not yet found. */
static int blktap_reserve(s32 wanted, u32 *minor)
{
	int ret;

	if (wanted == -1) {
		ret = xa_alloc(&blktap_minors, minor, NULL,
			       XA_LIMIT(0, blktap_max_minors - 1), GFP_KERNEL);
		return ret == -EBUSY ? -ENOSPC : ret;
	}
	if (wanted < 0 || (u32)wanted >= blktap_max_minors)
		return -EINVAL;
	*minor = wanted;
	return xa_insert(&blktap_minors, *minor, NULL, GFP_KERNEL);
}

static int blktap_add(s32 wanted, u32 *minor)
{
	struct blktap *tap;
	int ret;

	ret = blktap_reserve(wanted, minor);
	if (ret)
		return ret;
	tap = blktap_new(*minor);
	if (!tap) {
		xa_erase(&blktap_minors, *minor);
		return -ENOMEM;
	}
	ret = dev_set_name(&tap->dev, "blktap%u", *minor);
	if (!ret)
		ret = cdev_device_add(&tap->cdev, &tap->dev);
	if (ret) {
		xa_erase(&blktap_minors, *minor);
		put_device(&tap->dev);
		return ret;
	}
	/* the entry is reserved: storing in it allocates nothing */
	xa_store(&blktap_minors, *minor, tap, GFP_KERNEL);
	return 0;
}

static struct blktap *blktap_get(s32 minor)
{
	struct blktap *tap = NULL;

	if (minor < 0)
		return NULL;
	xa_lock(&blktap_minors);
	tap = xa_load(&blktap_minors, minor);
	if (tap)
		get_device(&tap->dev);
	xa_unlock(&blktap_minors);
	return tap;
}

static int blktap_drop(s32 minor, bool force)
{
	struct blktap *tap = blktap_get(minor);
	int ret;

	if (!tap)
		return -ENODEV;
	ret = mutex_lock_killable(&tap->lock);
	if (ret)
		goto out;
	/* each look is at what has become of it while this one waited */
	for (;;) {
		if (tap->state == BLKTAP_DEAD)
			ret = -ENODEV;
		else if (tap->opened && !force)
			ret = -EBUSY;
		else
			ret = 0;
		if (ret || !tap->disk)
			break;
		ret = blktap_device_remove(tap, true, force);
		if (ret && ret != -ENODEV)
			break;
	}
	if (!ret) {
		blktap_set_state(tap, BLKTAP_DEAD);
		/* its device is gone, and so is all I/O */
		if (tap->workqueue)
			destroy_workqueue(tap->workqueue);
		tap->workqueue = NULL;
		blktap_pass_exit(tap);
	}
	mutex_unlock(&tap->lock);
	if (ret)
		goto out;
	cancel_delayed_work_sync(&tap->dead_work);
	cdev_device_del(&tap->cdev, &tap->dev);
	/* only now may the minor, and with it the names, be taken again */
	xa_erase(&blktap_minors, minor);
	put_device(&tap->dev);
out:
	put_device(&tap->dev);
	return ret;
}

static int blktap_ioc_alloc(void __user *argp)
{
	struct blktap_alloc arg;
	u32 wanted_version, minor;
	int ret;

	ret = blktap_get_arg(&arg, sizeof(arg), BLKTAP_ALLOC_SIZE_V3, argp);
	if (ret)
		return ret;
	wanted_version = arg.version;
	arg.version = BLKTAP_ABI_VERSION;
	if (wanted_version != BLKTAP_ABI_VERSION)
		return blktap_put_arg(&arg, sizeof(arg), argp) ?: -EPROTONOSUPPORT;
	if (arg.flags)
		return -EINVAL;
	ret = blktap_add(arg.minor, &minor);
	if (ret)
		return ret;
	arg.minor = minor;
	ret = blktap_put_arg(&arg, sizeof(arg), argp);
	if (ret)
		blktap_drop(minor, false);
	return ret;
}

static int blktap_ioc_free(void __user *argp)
{
	struct blktap_free arg;
	int ret;

	ret = blktap_get_arg(&arg, sizeof(arg), BLKTAP_FREE_SIZE_V3, argp);
	if (ret)
		return ret;
	if (arg.flags & ~BLKTAP_FREE_FORCE || arg.reserved)
		return -EINVAL;
	return blktap_drop(arg.minor, arg.flags & BLKTAP_FREE_FORCE);
}

/* By number alone: the struct's size is in the struct. */
static long blktap_control_ioctl(struct file *file, unsigned int cmd,
				 unsigned long arg)
{
	void __user *argp = (void __user *)arg;

	if (_IOC_TYPE(cmd) != _IOC_TYPE(BLKTAP_IOC_ALLOC))
		return -ENOTTY;
	switch (_IOC_NR(cmd)) {
	case _IOC_NR(BLKTAP_IOC_ALLOC):
		return blktap_ioc_alloc(argp);
	case _IOC_NR(BLKTAP_IOC_FREE):
		return blktap_ioc_free(argp);
	default:
		return -ENOTTY;
	}
}

static int blktap_control_open(struct inode *inode, struct file *file)
{
	return capable(CAP_SYS_ADMIN) ? 0 : -EPERM;
}

static const struct file_operations blktap_control_fops = {
	.owner		= THIS_MODULE,
	.open		= blktap_control_open,
	.unlocked_ioctl	= blktap_control_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
	.llseek		= noop_llseek,
};

static struct miscdevice blktap_control = {
	.minor		= MISC_DYNAMIC_MINOR,
	.name		= "blktap-control",
	.nodename	= BLKTAP_NODE_DIR "control",
	.mode		= 0600,
	.fops		= &blktap_control_fops,
};

int blktap_control_init(void)
{
	return misc_register(&blktap_control);
}

void blktap_control_exit(void)
{
	misc_deregister(&blktap_control);
	xa_destroy(&blktap_minors);
}
