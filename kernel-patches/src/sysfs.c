// SPDX-License-Identifier: GPL-2.0-only
/*
 * /sys/class/blktap2/blktapN; see sysfs-class-blktap2. The minor's removal waits
 * for who is in here, and holds no lock then. Readers take none: they are not to
 * wait for a server.
 */
#include <linux/device.h>
#include <linux/kernel.h>
#include <linux/sysfs.h>

#include "blktap_internal.h"

static ssize_t state_show(struct device *dev, struct device_attribute *attr,
			  char *buf)
{
	static const char *const names[] = {
		[BLKTAP_NEW] = "new",
		[BLKTAP_LIVE] = "live",
		[BLKTAP_QUIESCED] = "quiesced",
		[BLKTAP_DEAD] = "dead",
	};
	struct blktap *tap = container_of(dev, struct blktap, dev);

	return sysfs_emit(buf, "%s\n", names[READ_ONCE(tap->state)]);
}
static DEVICE_ATTR_RO(state);

static ssize_t task_show(struct device *dev, struct device_attribute *attr,
			 char *buf)
{
	struct blktap *tap = container_of(dev, struct blktap, dev);

	return sysfs_emit(buf, "%d\n", READ_ONCE(tap->task));
}
static DEVICE_ATTR_RO(task);

static ssize_t extents_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	struct blktap *tap = container_of(dev, struct blktap, dev);

	return sysfs_emit(buf, "%u\n", READ_ONCE(tap->nr_extents));
}
static DEVICE_ATTR_RO(extents);

static ssize_t id_show(struct device *dev, struct device_attribute *attr,
		       char *buf)
{
	struct blktap *tap = container_of(dev, struct blktap, dev);

	return sysfs_emit(buf, "%llu\n", tap->id);
}
static DEVICE_ATTR_RO(id);

static ssize_t dead_timeout_show(struct device *dev,
				 struct device_attribute *attr, char *buf)
{
	struct blktap *tap = container_of(dev, struct blktap, dev);

	return sysfs_emit(buf, "%u\n", READ_ONCE(tap->dead_timeout));
}

static ssize_t dead_timeout_store(struct device *dev,
				  struct device_attribute *attr,
				  const char *buf, size_t count)
{
	struct blktap *tap = container_of(dev, struct blktap, dev);
	unsigned int seconds;
	int ret = kstrtouint(buf, 0, &seconds);

	if (ret)
		return ret;
	if (seconds > BLKTAP_MAX_DEAD_TIMEOUT)
		return -EINVAL;
	ret = mutex_lock_killable(&tap->lock);
	if (ret)
		return ret;
	/* who sets one where there was none means from now on */
	if (!tap->dead_timeout)
		tap->dead_since = jiffies;
	WRITE_ONCE(tap->dead_timeout, seconds);
	if (tap->state == BLKTAP_QUIESCED)
		blktap_expire_begin(tap);
	mutex_unlock(&tap->lock);
	return count;
}
static DEVICE_ATTR_RW(dead_timeout);

static ssize_t fail_store(struct device *dev, struct device_attribute *attr,
			  const char *buf, size_t count)
{
	struct blktap *tap = container_of(dev, struct blktap, dev);
	int ret;

	if (!sysfs_streq(buf, "1"))
		return -EINVAL;
	ret = mutex_lock_killable(&tap->lock);
	if (ret)
		return ret;
	ret = blktap_expire_now(tap);
	mutex_unlock(&tap->lock);
	return ret ?: count;
}
static DEVICE_ATTR_WO(fail);

static struct attribute *blktap_attrs[] = {
	&dev_attr_id.attr,
	&dev_attr_dead_timeout.attr,
	&dev_attr_fail.attr,
	&dev_attr_state.attr,
	&dev_attr_task.attr,
	&dev_attr_extents.attr,
	NULL
};

static const struct attribute_group blktap_group = {
	.attrs = blktap_attrs,
};

#define BLKTAP_COUNTER(name)						\
static ssize_t name##_show(struct device *dev,				\
			   struct device_attribute *attr, char *buf)	\
{									\
	struct blktap *tap = container_of(dev, struct blktap, dev);	\
									\
	return sysfs_emit(buf, "%llu\n", READ_ONCE(tap->count.name));	\
}

BLKTAP_COUNTER(submitted)
static DEVICE_ATTR_RO(submitted);
BLKTAP_COUNTER(completed)
static DEVICE_ATTR_RO(completed);
BLKTAP_COUNTER(refused)
static DEVICE_ATTR_RO(refused);
BLKTAP_COUNTER(faults)
static DEVICE_ATTR_RO(faults);
BLKTAP_COUNTER(requeued)
static DEVICE_ATTR_RO(requeued);
BLKTAP_COUNTER(recovered)
static DEVICE_ATTR_RO(recovered);
BLKTAP_COUNTER(outlived)
static DEVICE_ATTR_RO(outlived);
BLKTAP_COUNTER(expired)
static DEVICE_ATTR_RO(expired);
BLKTAP_COUNTER(direct_reads)
static DEVICE_ATTR_RO(direct_reads);
BLKTAP_COUNTER(direct_writes)
static DEVICE_ATTR_RO(direct_writes);
BLKTAP_COUNTER(direct_failed)
static DEVICE_ATTR_RO(direct_failed);

static struct attribute *blktap_counter_attrs[] = {
	&dev_attr_submitted.attr,
	&dev_attr_completed.attr,
	&dev_attr_refused.attr,
	&dev_attr_faults.attr,
	&dev_attr_requeued.attr,
	&dev_attr_recovered.attr,
	&dev_attr_outlived.attr,
	&dev_attr_expired.attr,
	&dev_attr_direct_reads.attr,
	&dev_attr_direct_writes.attr,
	&dev_attr_direct_failed.attr,
	NULL
};

static const struct attribute_group blktap_counter_group = {
	.name = "counters",
	.attrs = blktap_counter_attrs,
};

const struct attribute_group *blktap_groups[] = {
	&blktap_group,
	&blktap_counter_group,
	NULL
};
