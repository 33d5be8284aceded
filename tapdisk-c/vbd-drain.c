/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Pause, unpause and close.
 *
 *   hold or stop the transports -> the image answers what it has -> a flush of
 *   our own -> close the image -> answer the verb
 *
 * Waiting is for the I/O engine only and has a limit. The flush is there so
 * that closing, which can't be waited for without stopping all else, finds
 * nothing left to write. A snapshot is a pause in which the image changes
 * under the disk, with a flush ahead of it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "vbd-internal.h"

#define NSEC_PER_MSEC 1000000ull

int vbd_check_not_draining(const struct vbd *vbd, struct error *err)
{
	static const char *const names[] = {
		[DRAIN_PAUSE] = "a pause", [DRAIN_CLOSE] = "a close",
		[DRAIN_SNAPSHOT] = "a snapshot", [DRAIN_OPEN] = "an open",
	};

	if (vbd->drain == DRAIN_NONE)
		return 0;
	return error_set(err, -EBUSY, "minor %d: %s is under way", vbd->minor,
			 names[vbd->drain]);
}

/* True if the verb can't go on; done has then been called. */
static bool refuse(struct vbd *vbd, const char *verb, server_done done,
		   void *priv)
{
	struct error err;
	int rc;

	if (!vbd->args)
		rc = error_set(&err, -ENODEV, "minor %d: no image is open; nothing to %s",
			       vbd->minor, verb);
	else
		rc = vbd_check_not_draining(vbd, &err);
	if (!rc)
		return false;
	done(priv, rc, &err);
	return true;
}

static void drain_begin(struct vbd *vbd, enum drain drain,
			unsigned int timeout_ms, server_done done, void *priv)
{
	vbd->drain = drain;
	vbd->drained = done;
	vbd->drained_priv = priv;
	vbd->drain_ms = timeout_ms;
	vbd->drain_early = false;
	vbd->flushed = !vbd->image || vbd->readonly;
	vbd->flush_old = vbd->flushing;
	vbd->flush_err = 0;
	if (timeout_ms)
		engine_timer_set(vbd->engine, &vbd->drain_timer,
				 engine_now(vbd->engine) +
				 timeout_ms * NSEC_PER_MSEC);
}

void vbd_drain_answer(struct vbd *vbd, int rc, const struct error *err)
{
	server_done done = vbd->drained;

	vbd->drained = NULL;
	if (done)
		done(vbd->drained_priv, rc, err);
}

static int stop_all(struct vbd *vbd, bool force, struct error *err)
{
	for_each_transport(t, vbd) {
		int rc = t->ops->stop(t, force, err);

		if (rc)
			return rc;
	}
	return 0;
}

/* Goes on after an error, which is returned. */
static int reset_all(struct vbd *vbd, struct error *err)
{
	struct error e;
	int rc = 0;

	for_each_transport(t, vbd) {
		int r = t->ops->reset(t, &e);

		if (r && !rc) {
			rc = r;
			*err = e;
		}
	}
	return rc;
}

void vbd_close(struct vbd *vbd, bool force, unsigned int timeout_ms,
	       server_done done, void *priv)
{
	struct error err;
	int rc;

	if (refuse(vbd, "close", done, priv))
		return;
	rc = stop_all(vbd, force, &err);
	if (rc == -EAGAIN && force)
		vbd_retry_fail(vbd);
	if (rc) {
		done(priv, rc, &err);
		return;
	}
	/* Nobody takes over a disk that is being closed. */
	if (server_keeps_files(vbd->server))
		diskfile_forget(vbd->minor, getpid());
	drain_begin(vbd, DRAIN_CLOSE, timeout_ms, done, priv);
	vbd_retry_fail(vbd);
}

void vbd_pause(struct vbd *vbd, unsigned int timeout_ms, server_done done,
	       void *priv)
{
	if (refuse(vbd, "pause", done, priv))
		return;
	if (vbd->image || vbd->first)
		vbd_hold_all(vbd);
	drain_begin(vbd, DRAIN_PAUSE, timeout_ms, done, priv);
}

static void snapshot_end(struct vbd *vbd)
{
	if (vbd->snapshot)
		vbd->image->driver->snapshot_end(vbd->snapshot);
	vbd->snapshot = NULL;
	free(vbd->decision);
	vbd->decision = NULL;
	vbd->group = GROUP_NONE;
}

void vbd_snapshot(struct vbd *vbd, const char *child, const char *parent,
		  const char *decision, unsigned int timeout_ms,
		  server_done done, void *priv)
{
	struct image_open_args args = vbd_image_args(vbd, child, false);
	uint64_t start = now_ns();
	struct error err;
	int rc;

	if (refuse(vbd, "snapshot", done, priv))
		return;
	if (!vbd->image || vbd->held)
		rc = error_set(&err, -EBUSY, "minor %d: is paused; unpause it first",
			       vbd->minor);
	else if (!vbd->image->driver->snapshot_prepare)
		rc = error_set(&err, -EOPNOTSUPP, "%s: only a vhd: can have a snapshot",
			       vbd->args);
	else
		rc = vbd->image->driver->snapshot_prepare(&vbd->snapshot,
							  vbd->image, &args,
							  parent, &err);
	if (!rc && decision) {
		vbd->decision = strdup(decision);
		if (!vbd->decision)
			rc = error_set(&err, -ENOMEM, "minor %d: out of memory",
				       vbd->minor);
	}
	if (rc) {
		snapshot_end(vbd);
		done(priv, rc, &err);
		return;
	}
	vbd->stall_ns = now_ns() - start;
	drain_begin(vbd, DRAIN_SNAPSHOT, timeout_ms, done, priv);
	vbd->drain_early = true;
}

static int transports_ready(struct vbd *vbd, struct error *err)
{
	for_each_transport(t, vbd) {
		int rc = t->ops->ready ? t->ops->ready(t, err) : 0;

		if (rc)
			return rc;
	}
	return 0;
}

static void open_step(struct vbd *vbd)
{
	int rc = transports_ready(vbd, &vbd->unready);

	if (rc == -EINPROGRESS)
		return;
	if (!rc) {
		vbd->drain = DRAIN_NONE;
		if (!vbd->image && !vbd->first)
			vbd_hold_all(vbd);
		vbd_drain_answer(vbd, 0, NULL);
		return;
	}
	/* Nobody has been told of the disk. */
	stop_all(vbd, true, NULL);
	drain_begin(vbd, DRAIN_CLOSE, 0, vbd->drained, vbd->drained_priv);
	vbd_retry_fail(vbd);
}

void vbd_when_ready(struct vbd *vbd, server_done done, void *priv)
{
	vbd->unready.code = 0;
	drain_begin(vbd, DRAIN_OPEN, 0, done, priv);
	open_step(vbd);
}

/* Goes on with the image that is open. */
static int go_on(struct vbd *vbd, struct error *err)
{
	int rc = vbd_release_all(vbd, err);

	vbd->held = rc != 0;
	if (!rc)
		vbd_retry_now(vbd);
	return rc;
}

void vbd_call_off(struct vbd *vbd, int rc, const struct error *err)
{
	struct error e;

	engine_timer_cancel(vbd->engine, &vbd->drain_timer);
	vbd->drain = DRAIN_NONE;
	snapshot_end(vbd);
	/* A snapshot's first flush holds nothing, and transports that go on are not released. */
	if (vbd->drain_early)
		vbd_retry_now(vbd);
	else if (go_on(vbd, &e))
		log_error("requests wait for `tap-ctl unpause`: %s", e.text);
	vbd_drain_answer(vbd, rc, err);
}

static void timed_out(struct io_timer *timer)
{
	struct vbd *vbd = container_of(timer, struct vbd, drain_timer);
	unsigned int stuck = vbd->inflight - vbd->nr_waiting;
	struct error err;

	if (vbd_group_waits(vbd)) {
		vbd_snapshot_settle(vbd);
		return;
	}
	if (vbd->drain == DRAIN_CLOSE) {
		error_set(&err, -ETIMEDOUT, "minor %d: %u requests did not come back from %s in %u s; it is closed when they do, see `tap-ctl list`",
			  vbd->minor, stuck, vbd->args, vbd->drain_ms / 1000);
		log_warn("%s", err.text);
		vbd_drain_answer(vbd, -ETIMEDOUT, &err);
		return;
	}
	if (stuck && !vbd->flushing)
		error_set(&err, -ETIMEDOUT, "minor %d: not done, the disk goes on: %u requests did not come back from %s in %u s; is its storage stuck?",
			  vbd->minor, stuck, vbd->args, vbd->drain_ms / 1000);
	else
		error_set(&err, -ETIMEDOUT, "minor %d: not done, the disk goes on: a flush of %s took more than %u s; try again with a longer -t",
			  vbd->minor, vbd->args, vbd->drain_ms / 1000);
	log_warn("%s", err.text);
	vbd_call_off(vbd, -ETIMEDOUT, &err);
}

/* The disk in image_open() against the one that the transports show. */
static int check_size(const struct vbd *vbd, const struct image_info *was,
		      const char *args, struct error *err)
{
	const struct image_info *info = &vbd->info;

	if (info->sectors < was->sectors)
		return error_set(err, -EINVAL, "%s: its disk has %llu bytes, that of minor %d has %llu: a disk in use can't shrink; extend the image or give another",
				 args,
				 (unsigned long long)info->sectors << SECTOR_SHIFT,
				 vbd->minor,
				 (unsigned long long)was->sectors << SECTOR_SHIFT);
	if (info->sector_size > was->sector_size)
		return error_set(err, -EINVAL, "%s: its disk has sectors of %u bytes, that of minor %d has %u; move the image to storage with the same",
				 args, info->sector_size, vbd->minor,
				 was->sector_size);
	return 0;
}

static int call_off_pause(struct vbd *vbd, struct error *err)
{
	struct error off;

	error_set(&off, -ECANCELED, "minor %d: not paused, the disk goes on: an unpause came meanwhile",
		  vbd->minor);
	vbd_call_off(vbd, -ECANCELED, &off);
	return vbd->held ? error_set(err, -EIO, "minor %d: requests wait for `tap-ctl unpause`",
				     vbd->minor) : 0;
}

/* by_itself: nobody has asked for it. */
static int unpause(struct vbd *vbd, const char *args, bool by_itself,
		   struct error *err)
{
	struct image_info info = vbd->info;
	char *copy;
	int rc;

	if (vbd->drain == DRAIN_PAUSE && vbd->image && !args)
		return call_off_pause(vbd, err);
	if (vbd->args && vbd->image && vbd->drain == DRAIN_NONE && !args &&
	    (vbd->held || vbd->nr_waiting)) {
		if (vbd->held)
			return go_on(vbd, err);
		vbd_retry_now(vbd);
		return 0;
	}
	if (!vbd->args || vbd->image || vbd->drain != DRAIN_NONE)
		return error_set(err, -EINVAL, "minor %d: is not paused",
				 vbd->minor);
	copy = strdup(args ? args : vbd->args);
	if (!copy)
		return error_set(err, -ENOMEM, "minor %d: out of memory",
				 vbd->minor);
	rc = vbd_image_open(vbd, copy, vbd->readonly, err);
	if (rc) {
		free(copy);
		return rc;
	}
	rc = check_size(vbd, &info, copy, err);
	if (!rc && by_itself)
		rc = vbd_writer_check(vbd, copy, err);
	if (!rc) {
		/* That of the device, which a smaller one does not change. */
		vbd->info.sector_size = info.sector_size;
		if (vbd->first)
			vbd_hold_all(vbd);
		for_each_transport(t, vbd)
			t->unasked = by_itself;
		rc = vbd_start_all(vbd, err);
	}
	if (rc) {
		vbd_image_close(vbd, NULL);
		vbd->info = info;
		free(copy);
		return rc;
	}
	vbd_inactive_end(vbd);
	free(vbd->args);
	vbd->args = copy;
	vbd->held = false;
	vbd_writer_sign(vbd, copy);
	vbd_note(vbd);
	log_info("unpaused minor=%d path=%s chain=%u", vbd->minor, copy,
		 vbd->info.depth);
	vbd_stats_describe(vbd);
	vbd_retry_now(vbd);
	return 0;
}

int vbd_unpause(struct vbd *vbd, const char *args, struct error *err)
{
	return unpause(vbd, args, false, err);
}

int vbd_reopen(struct vbd *vbd, struct error *err)
{
	return unpause(vbd, NULL, true, err);
}

void vbd_reopen_later(struct vbd *vbd)
{
	vbd->reopen = true;
	vbd_stats_describe(vbd);
}

/* 0, or why what was written before may not be on the medium. */
static int unflushed(const struct vbd *vbd)
{
	return vbd->flush_err ? vbd->flush_err : vbd->lost;
}

static void drain_finish(struct vbd *vbd)
{
	enum drain drain = vbd->drain;
	struct error err;
	int rc = 0;

	engine_timer_cancel(vbd->engine, &vbd->drain_timer);
	if (vbd->image)
		rc = vbd_image_close(vbd, &err);
	/* The flush's error might have passed; the sync of the close then had to tell. */
	if (rc && vbd->flush_err && !vbd_may_pass(vbd, IMAGE_FLUSH, rc))
		vbd_lose(vbd, rc, NULL);
	if (!rc && unflushed(vbd))
		rc = error_set(&err, unflushed(vbd), "%s: the last flush failed: %s",
			       vbd->args, strerror(-unflushed(vbd)));
	if (rc && drain != DRAIN_CLOSE)
		error_append(&err, "; the disk is paused all the same: tap-ctl unpause -p %d -m %d goes on",
			     getpid(), vbd->minor);
	vbd->held = false;
	if (vbd->unready.code) {
		err = vbd->unready;
		rc = err.code;
		vbd->unready.code = 0;
	}
	if (drain == DRAIN_CLOSE) {
		struct error reset;
		int r = reset_all(vbd, &reset);

		if (r && !rc) {
			rc = r;
			err = reset;
		}
		free(vbd->args);
		free(vbd->kept_for);
		vbd->args = vbd->kept_for = NULL;
		vbd->adopted = false;
		for_each_transport(t, vbd)
			t->adopted = false;
		vbd->note.owner = 0;
		vbd_restore_dead_timeout(vbd);
	}
	vbd->reopen = false;
	vbd_inactive_end(vbd);
	vbd->drain = DRAIN_NONE;
	if (!server_leaves_all(vbd->server))
		vbd_note(vbd);
	log_info("%s minor=%d", drain == DRAIN_CLOSE ? "closed" : "paused",
		 vbd->minor);
	vbd_stats_describe(vbd);
	vbd_drain_answer(vbd, rc, &err);
}

int vbd_snapshot_taken(struct vbd *vbd, struct error *err)
{
	uint32_t sector_size = vbd->info.sector_size;
	struct error e;
	uint64_t held;
	int rc, r;

	rc = vbd->image->driver->snapshot_take(vbd->snapshot, &vbd->image, err);
	vbd->info = vbd->image->info;
	/* That of the device, which a smaller one does not change. */
	vbd->info.sector_size = sector_size;
	vbd_writer_sign(vbd, vbd->args);
	/* It is made but not durable. The image's next flush may succeed without being true. */
	if (rc && !vbd_may_pass(vbd, IMAGE_FLUSH, rc))
		vbd_lose(vbd, rc, NULL);
	vbd->drain = DRAIN_NONE;
	engine_timer_cancel(vbd->engine, &vbd->drain_timer);
	r = go_on(vbd, &e);
	if (r && !rc) {
		rc = r;
		*err = e;
	}
	held = now_ns() - vbd->hold_ns;
	if (held > vbd->stall_ns)
		vbd->stall_ns = held;
	snapshot_end(vbd);
	log_info("snapshot: requests waited at most %llu us minor=%d path=%s chain=%u",
		 (unsigned long long)vbd->stall_ns / 1000, vbd->minor,
		 vbd->args, vbd->info.depth);
	vbd_stats_describe(vbd);
	return rc;
}

/* Drained and flushed. */
static void snapshot_finish(struct vbd *vbd)
{
	struct error err;
	int rc = 0;

	if (unflushed(vbd))
		rc = error_set(&err, unflushed(vbd), "%s: the flush before the snapshot failed: %s",
			       vbd->args, strerror(-unflushed(vbd)));
	if (!rc && vbd->decision) {
		vbd_group_wait(vbd, GROUP_HELD);
		return;
	}
	if (!rc)
		rc = vbd->image->driver->snapshot_switch(vbd->snapshot, &err);
	if (rc) {
		vbd_call_off(vbd, rc, &err);
		return;
	}
	rc = vbd_snapshot_taken(vbd, &err);
	vbd_drain_answer(vbd, rc, &err);
}

static void flush_done(struct image_request *req, int err)
{
	struct vbd *vbd = container_of(req, struct vbd, flush);

	vbd->flushing = false;
	vbd->flushed = !vbd->flush_old;
	vbd->flush_old = false;
	vbd->flush_err = err;
	if (err) {
		/* One of the guest's would be tried again. */
		if (!vbd_may_pass(vbd, IMAGE_FLUSH, err))
			vbd_lose(vbd, err, NULL);
		log_error("flush before the image is closed failed minor=%d path=%s err=%d",
			  vbd->minor, vbd->args, -err);
	}
}

/* True when a flush of all that was written before has been answered. */
static bool flush_image(struct vbd *vbd)
{
	if (!vbd->flushed && !vbd->flushing) {
		vbd->flushing = true;
		vbd->flush.op = IMAGE_FLUSH;
		vbd->flush.done = flush_done;
		vbd->image->driver->submit(vbd->image, &vbd->flush);
	}
	return vbd->flushed && !vbd->flushing;
}

static bool transports_busy(const struct vbd *vbd)
{
	bool busy = false;

	for_each_transport(t, vbd)
		busy |= t->ops->busy && t->ops->busy(t);
	return busy;
}

void vbd_snapshot_hold_now(struct vbd *vbd)
{
	vbd->drain_early = false;
	vbd->flushed = false;
	vbd->hold_ns = now_ns();
	vbd_hold_all(vbd);
}

void vbd_drain_step(struct vbd *vbd)
{
	if (vbd_group_waits(vbd))
		return;
	if (vbd->drain == DRAIN_OPEN) {
		open_step(vbd);
		return;
	}
	/* So that the flush that requests wait for has little to do. */
	if (vbd->drain_early) {
		if (!flush_image(vbd))
			return;
		if (vbd->decision) {
			vbd_group_wait(vbd, GROUP_READY);
			return;
		}
		vbd_snapshot_hold_now(vbd);
	}
	/* The flush is for what the image does by itself, too. */
	if (transports_busy(vbd) || vbd->inflight != vbd->nr_waiting ||
	    (vbd->image && image_busy(vbd->image)) || !flush_image(vbd))
		return;
	if (vbd->drain == DRAIN_SNAPSHOT)
		snapshot_finish(vbd);
	else
		drain_finish(vbd);
}

void vbd_drain_init(struct vbd *vbd)
{
	vbd->drain_timer.expired = timed_out;
	list_init(&vbd->drain_timer.link);
}
