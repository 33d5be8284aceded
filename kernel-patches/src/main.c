// SPDX-License-Identifier: GPL-2.0-only
/*
 * blktap: block devices served by a user-space process; see blktap.h.
 * This file: loading, unloading, parameters, arguments of ioctls.
 */
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "blktap_internal.h"

struct class *blktap_class;
dev_t blktap_devt;

unsigned int blktap_max_minors = BLKTAP_MAX_MINORS;
module_param_named(max_minors, blktap_max_minors, uint, 0444);
MODULE_PARM_DESC(max_minors, "Number of minors that can be allocated (1 to 4096, default 4096)");

unsigned int blktap_dead_timeout;
module_param_named(dead_timeout, blktap_dead_timeout, uint, 0644);
MODULE_PARM_DESC(dead_timeout,
		 "Seconds without a server after which requests fail, for new minors (default 0: never)");

int blktap_get_arg(void *arg, size_t ksize, size_t min, const void __user *from)
{
	u32 usize;
	int ret;

	if (get_user(usize, (const u32 __user *)from))
		return -EFAULT;
	if (usize < min || usize > PAGE_SIZE)
		return -EINVAL;
	ret = copy_struct_from_user(arg, ksize, from, usize);
	/* read twice: keep the one that was checked */
	*(u32 *)arg = usize;
	return ret;
}

int blktap_put_arg(const void *arg, size_t ksize, void __user *to)
{
	u32 usize = *(const u32 *)arg;

	return copy_to_user(to, arg, min_t(size_t, ksize, usize)) ? -EFAULT : 0;
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
static char *blktap_devnode(const struct device *dev, umode_t *mode)
#else
static char *blktap_devnode(struct device *dev, umode_t *mode)
#endif
{
	if (mode)
		*mode = 0600;
	return kasprintf(GFP_KERNEL, BLKTAP_NODE_DIR "%s", dev_name(dev));
}

static int __init blktap_init(void)
{
	int ret;

	if (blktap_max_minors == 0 || blktap_max_minors > BLKTAP_MAX_MINORS) {
		pr_err("blktap: parameter max_minors=%u is out of range: give 1 to %u\n",
		       blktap_max_minors, BLKTAP_MAX_MINORS);
		return -EINVAL;
	}
	ret = alloc_chrdev_region(&blktap_devt, 0, blktap_max_minors, "blktap2");
	if (ret)
		return ret;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	blktap_class = class_create("blktap2");
#else
	blktap_class = class_create(THIS_MODULE, "blktap2");
#endif
	if (IS_ERR(blktap_class)) {
		ret = PTR_ERR(blktap_class);
		goto out_region;
	}
	blktap_class->devnode = blktap_devnode;
	ret = blktap_expire_init();
	if (ret)
		goto out_class;
	ret = blktap_control_init();
	if (ret)
		goto out_expire;
	return 0;

out_expire:
	blktap_expire_exit();
out_class:
	class_destroy(blktap_class);
out_region:
	unregister_chrdev_region(blktap_devt, blktap_max_minors);
	return ret;
}

/*
 * Every minor holds a reference on the module: none is left here. The last
 * close of a disk may have dropped it from within our text, though, and may be
 * preempted there.
 */
static void __exit blktap_exit(void)
{
	synchronize_rcu_tasks();
	blktap_control_exit();
	blktap_expire_exit();
	class_destroy(blktap_class);
	unregister_chrdev_region(blktap_devt, blktap_max_minors);
}

module_init(blktap_init);
module_exit(blktap_exit);

MODULE_DESCRIPTION("Block devices served by a user-space process (tapdisk)");
MODULE_AUTHOR("xenblk developers");
MODULE_LICENSE("GPL");
