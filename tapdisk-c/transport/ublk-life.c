/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The device. What waits for requests to be answered, by tapdisk, is begun and
 * ends while the loop runs: START and END_RECOVERY, the settings of the queue,
 * STOP. All else the kernel does at once.
 */
#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/log.h"
#include "transport/gendisk.h"
#include "transport/ublk-internal.h"

/*
 * A killed tapdisk's device is quiesced when the kernel has taken down its
 * io_uring, or if it had all slots, when a request has been looked at by the
 * timer (io_timeout below).
 */
#define TAKE_RETRY_NS	20000000ull
#define TAKE_LIMIT_NS	20000000000ull

/*
 * Of the queue, under /sys/block/ublkbN/queue. Requests are sorted and merged
 * by tapdisk's own scheduler. The timer has only to see that a tapdisk is dead,
 * which is so after a second or two then, not thirty; it ends no request.
 */
static const struct {
	const char *name, *value;
} settings[] = {
	{ "scheduler", "none" },
	{ "io_timeout", "2000" },
};

#define NR_SETTINGS (sizeof(settings) / sizeof(settings[0]))

static void fail(struct ublk *ublk, const struct error *err)
{
	ublk->phase = UBLK_FAILED;
	ublk->failure = *err;
	log_error("%s", err->text);
}

/*
 * The kernel looks for partitions if all who serve a device may do so as
 * CAP_SYS_ADMIN: what is in it is the guest's and may be made to
 * deceive. So the slots are handed over without.
 */
static uint16_t humble_creds(struct engine *engine)
{
	struct __user_cap_header_struct head = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct was[_LINUX_CAPABILITY_U32S_3], now[2];
	uint16_t creds = 0;

	if (syscall(SYS_capget, &head, was))
		return 0;
	memcpy(now, was, sizeof(now));
	now[CAP_TO_INDEX(CAP_SYS_ADMIN)].effective &= ~CAP_TO_MASK(CAP_SYS_ADMIN);
	if (!syscall(SYS_capset, &head, now))
		creds = engine_creds_add(engine);
	if (syscall(SYS_capset, &head, was))
		log_error("cannot take back CAP_SYS_ADMIN err=%d", errno);
	return creds;
}

/* The slots are the kernel's, or are when the engine runs next. */
static void begin_serving(struct ublk *ublk, uint32_t op)
{
	struct error err;
	int rc;

	ublk->phase = UBLK_STARTING;
	rc = ublk_device_begin(&ublk->device, UBLK_CONTROL_WRITE(op),
			       (uint64_t)getpid());
	if (!rc)
		return;
	error_set(&err, rc, "minor %d: cannot start its ublk device: %s",
		  ublk->minor, strerror(-rc));
	fail(ublk, &err);
}

static int set_params(struct ublk *ublk, struct error *err)
{
	struct ublk_params params = ublk_params_of(&ublk->info, ublk->readonly);
	int rc = ublk_device_call(&ublk->device,
				  UBLK_CONTROL_WRITE(UBLK_SET_PARAMS), &params,
				  sizeof(params), 0);

	if (rc)
		return error_set(err, rc, "minor %d: ublk refuses a disk of %llu sectors with blocks of %u bytes: %s",
				 ublk->minor,
				 (unsigned long long)ublk->info.sectors,
				 ublk->info.sector_size, strerror(-rc));
	ublk->sectors = ublk->info.sectors;
	return 0;
}

static void delete(struct ublk *ublk)
{
	int rc = ublk_device_call(&ublk->device,
				  UBLK_CONTROL_READ(UBLK_DELETE_ASYNC), NULL, 0,
				  0);

	ublk->mine = false;
	if (rc && rc != -ENODEV)
		log_error("ublk: device not removed minor=%d err=%d",
			  ublk->minor, -rc);
}

/* A new device. */
static int make(struct ublk *ublk, struct error *err)
{
	const uint64_t needs = UBLK_F_USER_RECOVERY | UBLK_F_REISSUE |
			       UBLK_F_IOCTL_ENCODE;
	struct ublk_info info = {
		.nr_queues	= 1,
		.depth		= UBLK_ENTRIES,
		.max_io_bytes	= UBLK_MAX_IO_BYTES,
		.device		= (uint32_t)ublk->minor,
		.flags		= needs | UBLK_F_UPDATE_SIZE,
		.server_flags	= UBLK_TAPDISK,
	};
	int rc = ublk_device_call(&ublk->device, UBLK_CONTROL_WRITE(UBLK_ADD),
				  &info, sizeof(info), 0);

	if (rc == -EEXIST)
		return error_set(err, -EAGAIN, "minor %d: its last ublk device is still open",
				 ublk->minor);
	if (rc)
		return error_set(err, rc, "minor %d: ublk makes no device: %s",
				 ublk->minor, strerror(-rc));
	ublk->mine = true;
	ublk->features = info.flags;
	ublk->entries = UBLK_ENTRIES;
	if (~info.flags & needs)
		rc = error_set(err, -EOPNOTSUPP, "minor %d: this kernel's ublk keeps no requests for another tapdisk (features %#llx); Linux 6.9 does",
			       ublk->minor, (unsigned long long)info.flags);
	if (!rc)
		rc = set_params(ublk, err);
	if (!rc) {
		ublk->creds = humble_creds(ublk->engine);
		rc = ublk_queue_open(ublk, err);
	}
	if (rc) {
		delete(ublk);
		return rc;
	}
	begin_serving(ublk, UBLK_START);
	return 0;
}

/* Whether the image that is open now fits the device that there is. */
static int fits(struct ublk *ublk, struct ublk_params *params,
		struct error *err)
{
	int rc;

	*params = (struct ublk_params){ .len = sizeof(*params) };
	rc = ublk_device_call(&ublk->device, UBLK_CONTROL_READ(UBLK_GET_PARAMS),
			      params, sizeof(*params), 0);
	if (rc)
		return error_set(err, rc, "minor %d: ublk does not tell what its device is: %s",
				 ublk->minor, strerror(-rc));
	return ublk_params_fit(params, &ublk->info, ublk->readonly, ublk->minor,
			       err);
}

/* A dead tapdisk's device. */
static int take_over(struct ublk *ublk, const struct ublk_info *info,
		     struct error *err)
{
	struct ublk_params params;
	int rc;

	if (info->nr_queues != 1 || !info->depth || info->depth > UBLK_ENTRIES)
		return error_set(err, -ERANGE, "minor %d: its device was made for %u queues of %u requests, this tapdisk serves one of %u; open it with the version that made it",
				 ublk->minor, info->nr_queues, info->depth,
				 UBLK_ENTRIES);
	rc = fits(ublk, &params, err);
	if (rc)
		return rc;
	rc = ublk_device_call(&ublk->device,
			      UBLK_CONTROL_WRITE(UBLK_START_RECOVERY), NULL, 0,
			      0);
	if (rc == -EBUSY)
		return error_set(err, -EAGAIN, "minor %d: the kernel has not yet let go of the tapdisk that died",
				 ublk->minor);
	/* -EINVAL: a tapdisk was killed when it had just got here. */
	if (rc && rc != -EINVAL)
		return error_set(err, rc, "minor %d: cannot take over its ublk device: %s",
				 ublk->minor, strerror(-rc));
	ublk->features = info->flags;
	ublk->entries = info->depth;
	ublk->sectors = params.basic.sectors;
	rc = ublk_queue_open(ublk, err);
	if (!rc)
		begin_serving(ublk, UBLK_END_RECOVERY);
	return rc;
}

/* -EAGAIN: something is in the way that passes. */
static int begin(struct ublk *ublk, struct error *err)
{
	struct ublk_info info;
	int rc = ublk_device_info(&ublk->device, &info, err);

	if (rc == -ENODEV)
		return make(ublk, err);
	if (rc)
		return rc;
	if (info.state != UBLK_S_DEAD)
		return take_over(ublk, &info, err);
	/* Nobody has ever had requests in it, or it is on its way out. */
	delete(ublk);
	return error_set(err, -EAGAIN, "minor %d: its last ublk device is still open",
			 ublk->minor);
}

static void try_again(struct ublk *ublk)
{
	ublk->phase = UBLK_TAKING;
	engine_timer_set(ublk->engine, &ublk->timer,
			 engine_now(ublk->engine) + TAKE_RETRY_NS);
}

static void taking(struct io_timer *timer)
{
	struct ublk *ublk = container_of(timer, struct ublk, timer);
	struct error err;
	int rc;

	if (ublk->phase != UBLK_TAKING) {
		ublk_go_on(ublk);
		return;
	}
	rc = begin(ublk, &err);
	/* A guest waits for what may be had in a moment. */
	if (ublk->transport.adopted &&
	    (rc == -ENOMEM || rc == -EMFILE || rc == -ENFILE || rc == -EINTR))
		rc = -EAGAIN;
	if (rc == -EAGAIN && engine_now(ublk->engine) >= ublk->deadline_ns &&
	    ublk->transport.adopted) {
		/* A guest's requests are in it, and nobody else would look again. */
		log_warn("%s; requests wait", err.text);
		ublk->deadline_ns = engine_now(ublk->engine) + TAKE_LIMIT_NS;
	}
	if (rc == -EAGAIN && engine_now(ublk->engine) < ublk->deadline_ns) {
		try_again(ublk);
		return;
	}
	if (rc == -EAGAIN)
		err.code = -EBUSY;
	if (rc)
		fail(ublk, &err);
}

/* An image that became larger while nobody had the device. */
static void grow_to_image(struct ublk *ublk)
{
	struct error err;

	ublk->transport.unasked = true;
	if (ublk_grow(ublk, &ublk->info, &err))
		log_error("%s", err.text);
}

/* One after the other; LIVE when all are made. */
static void tune(struct ublk *ublk)
{
	char path[96];

	ublk->phase = UBLK_TUNING;
	for (; ublk->tuned < NR_SETTINGS; ublk->tuned++) {
		int rc;

		snprintf(path, sizeof(path), "/sys/block/" UBLK_DISK_NAME "/queue/%s",
			 ublk->minor, settings[ublk->tuned].name);
		rc = ublk_device_begin_write(&ublk->device, path,
					     settings[ublk->tuned].value);
		if (!rc)
			return;
		log_warn("ublk: not set path=%s err=%d", path, -rc);
	}
	ublk->phase = UBLK_LIVE;
}

static void started(struct ublk *ublk, int rc)
{
	bool fresh = ublk->mine;
	char name[32];
	struct error err;

	if (rc) {
		error_set(&err, rc, "minor %d: ublk does not start its device: %s",
			  ublk->minor, strerror(-rc));
		fail(ublk, &err);
		return;
	}
	ublk->mine = true;
	snprintf(name, sizeof(name), UBLK_DISK_NAME, ublk->minor);
	rc = gendisk_publish(ublk->minor, name, &err);
	/* Who uses one that was taken over has found it already. */
	if (rc && fresh) {
		fail(ublk, &err);
		return;
	}
	if (rc)
		log_error("%s", err.text);
	if (!fresh)
		grow_to_image(ublk);
	/*
	 * Not again: a tapdisk that is killed while the queue is run empty for
	 * a setting waits for its own answers for ever. And not while nothing is
	 * answered: it would be as long until the disk is there.
	 */
	if (fresh && vbd_image(ublk->vbd))
		tune(ublk);
	else
		ublk->phase = UBLK_LIVE;
}

static void stopped(struct ublk *ublk, int rc)
{
	if (rc && rc != -ENODEV)
		log_error("ublk: device not stopped minor=%d err=%d",
			  ublk->minor, -rc);
	gendisk_unpublish(ublk->minor);
	ublk->phase = UBLK_STOPPED;
}

static void control_ready(struct io_watch *watch, short revents)
{
	struct ublk *ublk = container_of(watch, struct ublk, watch);
	int rc;

	(void)revents;
	if (!ublk_device_ended(&ublk->device, &rc))
		return;
	switch (ublk->phase) {
	case UBLK_STARTING:
		started(ublk, rc);
		break;
	case UBLK_TUNING:
		if (rc)
			log_warn("ublk: queue/%s not set minor=%d err=%d",
				 settings[ublk->tuned].name, ublk->minor, -rc);
		ublk->tuned++;
		tune(ublk);
		break;
	case UBLK_STOPPING:
		stopped(ublk, rc);
		break;
	case UBLK_NONE:
	case UBLK_TAKING:
	case UBLK_LIVE:
	case UBLK_STOPPED:
	case UBLK_FAILED:
		break;
	}
}

/* What this process had left to another one, which did not come: the slots are as they were. */
static int go_on_with(struct ublk *ublk, struct error *err)
{
	struct ublk_params params;
	struct ublk_info info;
	int rc = ublk_device_info(&ublk->device, &info, err);

	if (!rc && (info.state != UBLK_S_LIVE || info.pid != getpid()))
		rc = error_set(err, -EBUSY, "minor %d: another process has its ublk device by now",
			       ublk->minor);
	if (!rc)
		rc = fits(ublk, &params, err);
	if (rc)
		return rc;
	grow_to_image(ublk);
	ublk->held = false;
	ublk_go_on(ublk);
	return 0;
}

int ublk_start(struct transport *transport, const struct image_info *info,
	       bool readonly, struct error *err)
{
	struct ublk *ublk = ublk_of(transport);
	int rc;

	ublk->info = *info;
	ublk->readonly = readonly;
	if (ublk->phase == UBLK_LIVE)
		return go_on_with(ublk, err);
	rc = ublk_device_open(&ublk->device, ublk->minor, err);
	if (rc)
		goto out;
	ublk->watch.fd = ublk->device.ring.ring_fd;
	rc = engine_watch(ublk->engine, &ublk->watch);
	if (rc) {
		error_set(err, rc, "minor %d: too many descriptors are waited for: %s",
			  ublk->minor, strerror(-rc));
		goto out;
	}
	ublk->deadline_ns = engine_now(ublk->engine) + TAKE_LIMIT_NS;
	rc = begin(ublk, err);
	if (rc == -EAGAIN) {
		try_again(ublk);
		rc = 0;
	}
out:
	if (rc)
		ublk_reset(transport, NULL);
	return rc;
}

int ublk_ready(struct transport *transport, struct error *err)
{
	struct ublk *ublk = ublk_of(transport);

	if (ublk->phase == UBLK_FAILED) {
		*err = ublk->failure;
		return err->code;
	}
	return ublk->phase == UBLK_LIVE ? 0 : -EINPROGRESS;
}

int ublk_stop(struct transport *transport, bool force, struct error *err)
{
	struct ublk *ublk = ublk_of(transport);
	int rc;

	/* Whether it is open tap-ctl finds out: it is long to look for. */
	(void)force;
	engine_timer_cancel(ublk->engine, &ublk->timer);
	/* A device with requests that could not be taken over is another one's. */
	if (!ublk->mine) {
		ublk->phase = UBLK_STOPPED;
		return 0;
	}
	rc = ublk_device_begin(&ublk->device, UBLK_CONTROL_WRITE(UBLK_STOP), 0);
	if (rc)
		return error_set(err, rc, "minor %d: ublk does not remove its device: %s",
				 ublk->minor, strerror(-rc));
	ublk->phase = UBLK_STOPPING;
	ublk_fail_waiting(ublk, -EIO);
	return 0;
}

int ublk_reset(struct transport *transport, struct error *err)
{
	struct ublk *ublk = ublk_of(transport);

	(void)err;
	engine_unwatch(ublk->engine, &ublk->watch);
	engine_timer_cancel(ublk->engine, &ublk->timer);
	engine_plug_cancel(ublk->engine, &ublk->plug);
	ublk_queue_close(ublk);
	if (ublk->mine)
		delete(ublk);
	ublk_device_close(&ublk->device);
	engine_creds_remove(ublk->engine, ublk->creds);
	ublk->creds = 0;
	ublk->tuned = 0;
	ublk->unshown = 0;
	ublk->held = false;
	ublk->gone = false;
	ublk->map_said = false;
	ublk->phase = UBLK_NONE;
	return 0;
}

int ublk_grow(struct ublk *ublk, const struct image_info *info,
	      struct error *err)
{
	int rc;

	if (info->sectors <= ublk->sectors || info->sectors == ublk->unshown)
		return 0;
	if (!(ublk->features & UBLK_F_UPDATE_SIZE)) {
		rc = error_set(err, -EOPNOTSUPP, "minor %d: the image's disk has %llu bytes, the device %llu, and this kernel's ublk can't resize a device that there is (Linux 6.16 can): give the image its old size back, or close the disk and open it again",
				 ublk->minor,
				 (unsigned long long)info->sectors << SECTOR_SHIFT,
				 (unsigned long long)ublk->sectors << SECTOR_SHIFT);
		if (!ublk->transport.unasked)
			return rc;
		log_error("%s", err->text);
		ublk->unshown = info->sectors;
		return 0;
	}
	rc = ublk_device_call(&ublk->device, UBLK_CONTROL_WRITE(UBLK_UPDATE_SIZE),
			      NULL, 0, info->sectors);
	if (rc)
		return error_set(err, rc, "minor %d: the gendisk does not take the new size: %s",
				 ublk->minor, strerror(-rc));
	ublk->sectors = info->sectors;
	return 0;
}

void ublk_life_init(struct ublk *ublk)
{
	ublk->device.control = -1;
	ublk->device.file = -1;
	list_init(&ublk->watch.link);
	ublk->watch.events = POLLIN;
	ublk->watch.ready = control_ready;
	list_init(&ublk->timer.link);
	ublk->timer.expired = taking;
}
