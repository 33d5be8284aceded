/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Requests whose image has failed for a reason that may pass wait here, as they
 * are, and are given to the image again: doing a request twice is doing it
 * once. Others go on meanwhile; there is no order among requests that are not
 * answered. The guest sees time.
 *
 * While requests lack space the file nospace.<minor> is in the run directory.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

#include "common/log.h"
#include "common/rundir.h"
#include "vbd-internal.h"

#define SECOND_NS	1000000000ull
#define NO_SPACE_S	3u

static bool is_no_space(int err)
{
	return err == -ENOSPC || err == -EDQUOT;
}

/*
 * Errors that say nothing of the data: a lack of memory, a path to the disk or
 * a server that is away. Block devices report a lost path as ENOLINK.
 */
static bool is_transient(int err)
{
	switch (-err) {
	case EAGAIN:
	case EBUSY:
	case EINTR:
	case ENOMEM:
	case ENOBUFS:
	case ESTALE:
	case ETIMEDOUT:
	case ETIME:
	case ENOLINK:
	case EPIPE:
	case ENETDOWN:
	case ENETRESET:
	case ENETUNREACH:
	case EHOSTDOWN:
	case EHOSTUNREACH:
	case ECONNABORTED:
	case ECONNREFUSED:
	case ECONNRESET:
	case ENOTCONN:
	case ESHUTDOWN:
		return true;
	default:
		return false;
	}
}

bool vbd_may_pass(const struct vbd *vbd, enum image_op op, int err)
{
	if (vbd->retry.errors == RETRY_NONE || err == -EOPNOTSUPP)
		return false;
	/*
	 * The kernel tells once of pages that it could not write, whatever the
	 * reason was. The next flush would succeed, and that would be a lie.
	 */
	if (op == IMAGE_FLUSH && vbd->info.local_file)
		return err == -EINTR || err == -EAGAIN;
	if (is_transient(err))
		return true;
	if (err != -EIO)
		return vbd->retry.errors == RETRY_ALL && !is_no_space(err);
	if (op == IMAGE_FLUSH ? vbd->info.remote_leaf : vbd->info.remote)
		return true;
	/* Nor has a local disk to write again what its cache has lost. */
	return vbd->retry.errors == RETRY_ALL && op != IMAGE_FLUSH;
}

/* The marker file */

static void mark_no_space(const struct vbd *vbd)
{
	char path[PATH_MAX], text[PATH_MAX];
	int fd = -1, n;

	if (vbd->minor < 0)
		return;
	if (!run_path(path, sizeof(path), "nospace.%d", vbd->minor))
		fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC |
			  O_NOFOLLOW, 0600);
	n = snprintf(text, sizeof(text), "pid=%d minor=%d args=%s\n", getpid(),
		     vbd->minor, vbd->args);
	if (n >= (int)sizeof(text))
		n = (int)sizeof(text) - 1;
	if (fd < 0 || write(fd, text, (size_t)n) != n)
		log_warn("the marker of a VBD without space can't be written minor=%d path=%s err=%d",
			 vbd->minor, run_dir(), errno);
	if (fd >= 0)
		close(fd);
}

void vbd_unmark_no_space(const struct vbd *vbd)
{
	char path[PATH_MAX];

	if (vbd->minor >= 0 &&
	    !run_path(path, sizeof(path), "nospace.%d", vbd->minor))
		unlink(path);
}

/* What the outage is, told once at its beginning and once at its end */

static unsigned int nr_failed(const struct vbd *vbd)
{
	return vbd->nr_failed[LACK_STORAGE] + vbd->nr_failed[LACK_SPACE];
}

static void outage_begins(struct vbd *vbd, const struct vbd_request *req,
			  int err)
{
	if (req->lack == LACK_SPACE && vbd->nr_failed[LACK_SPACE] == 1) {
		log_error("no space left for writes, which wait until there is some; make room where the image lies minor=%d path=%s err=%d",
			  vbd->minor, vbd->args, -err);
		mark_no_space(vbd);
	} else if (req->lack == LACK_STORAGE &&
		   vbd->nr_failed[LACK_STORAGE] == 1) {
		log_error("requests fail and wait to be tried again every %u s minor=%d path=%s sector=%llu err=%d",
			  vbd->retry.interval_s, vbd->minor, vbd->args,
			  (unsigned long long)req->image.sector, -err);
	}
}

static void leave(struct vbd *vbd, struct vbd_request *req)
{
	if (!--vbd->nr_failed[req->lack] && req->lack == LACK_SPACE)
		vbd_unmark_no_space(vbd);
}

static void arm(struct vbd *vbd)
{
	uint32_t wait_s = vbd->retry.interval_s;

	if (vbd->retry_timer.armed)
		return;
	if (!vbd->nr_failed[LACK_STORAGE] && wait_s < NO_SPACE_S)
		wait_s = NO_SPACE_S;
	engine_timer_set(vbd->engine, &vbd->retry_timer,
			 engine_now(vbd->engine) + wait_s * SECOND_NS);
}

static void add(struct vbd *vbd, struct vbd_request *req)
{
	list_add_tail(&req->wait, &vbd->waiting);
	vbd->nr_waiting++;
}

void vbd_retry_hold(struct vbd *vbd, struct vbd_request *req)
{
	req->failure = -EIO;
	req->gave_up = false;
	add(vbd, req);
}

bool vbd_retry(struct vbd *vbd, struct vbd_request *req, int err)
{
	bool space = is_no_space(err) && vbd->retry.no_space_waits &&
		     (req->image.op != IMAGE_FLUSH || vbd->info.remote_leaf);
	uint64_t now = engine_now(vbd->engine);
	enum vbd_lack lack;

	if (vbd->drain == DRAIN_CLOSE || req->unwanted ||
	    (!space && !vbd_may_pass(vbd, req->image.op, err)))
		return false;
	req->failure = err;
	lack = space ? LACK_SPACE : LACK_STORAGE;
	if (!req->failed_ns && !nr_failed(vbd))
		vbd->outage_ns = now;
	if (!req->failed_ns || req->lack != lack) {
		if (req->failed_ns)
			leave(vbd, req);
		req->failed_ns = now;
		req->lack = lack;
		vbd->nr_failed[lack]++;
		outage_begins(vbd, req, err);
	}
	req->gave_up = !space &&
		       now - req->failed_ns >= vbd->retry.for_s * SECOND_NS;
	if (req->gave_up && !vbd->retry.then_pause)
		return false;
	if (req->gave_up && !vbd->retry_ended) {
		vbd->retry_ended = true;
		log_error("requests failed for %u s and wait for `tap-ctl unpause` minor=%d path=%s err=%d",
			  vbd->retry.for_s, vbd->minor, vbd->args, -err);
	}
	add(vbd, req);
	if (!req->gave_up)
		arm(vbd);
	return true;
}

void vbd_retry_over(struct vbd *vbd, struct vbd_request *req, int err)
{
	leave(vbd, req);
	req->failed_ns = 0;
	if (!nr_failed(vbd)) {
		vbd->retry_ended = false;
		log_info("%s after %llu s of failing requests minor=%d path=%s",
			 err ? "gave up" : "goes on",
			 (unsigned long long)((engine_now(vbd->engine) -
					       vbd->outage_ns) / SECOND_NS),
			 vbd->minor, vbd->args);
	}
}

static void resubmit(struct vbd *vbd, bool all)
{
	struct list batch, *item;

	/* The kernel may wait for one of them before its device is made. */
	if (!vbd->image || (vbd->drain != DRAIN_NONE && vbd->drain != DRAIN_OPEN))
		return;
	list_init(&batch);
	list_splice(&vbd->waiting, &batch);
	while ((item = list_pop(&batch))) {
		struct vbd_request *req =
			container_of(item, struct vbd_request, wait);

		if (req->gave_up && !all) {
			list_add_tail(&req->wait, &vbd->waiting);
			continue;
		}
		vbd->nr_waiting--;
		if (req->unwanted) {
			vbd_finish(req, req->failure);
			continue;
		}
		/* What our own flush lost, another would not tell. */
		if (req->image.op == IMAGE_FLUSH && req->losses != vbd->losses) {
			/* That of a write tells of the write. */
			if (!req->fua)
				vbd_told(vbd, req->from);
			vbd_finish(req, -EIO);
			continue;
		}
		if (req->failed_ns) {
			vbd->stats->op[req->op].retries++;
			if (all)
				req->failed_ns = engine_now(vbd->engine);
		}
		req->gave_up = false;
		vbd_submit_image(vbd, req);
	}
}

void vbd_retry_now(struct vbd *vbd)
{
	engine_timer_cancel(vbd->engine, &vbd->retry_timer);
	vbd->retry_ended = false;
	resubmit(vbd, true);
}

void vbd_retry_fail(struct vbd *vbd)
{
	struct list *item;

	engine_timer_cancel(vbd->engine, &vbd->retry_timer);
	while ((item = list_pop(&vbd->waiting))) {
		struct vbd_request *req =
			container_of(item, struct vbd_request, wait);

		vbd->nr_waiting--;
		vbd_finish(req, req->failure);
	}
}

/*
 * A client that is back under another connection has sent its request again
 * and may have written to the same place since.
 */
void vbd_drop_unwanted(struct vbd *vbd)
{
	list_for_each_safe(pos, next, &vbd->waiting) {
		struct vbd_request *req =
			container_of(pos, struct vbd_request, wait);

		if (!req->unwanted)
			continue;
		list_del(&req->wait);
		vbd->nr_waiting--;
		vbd_finish(req, req->failure);
	}
}

static void expired(struct io_timer *timer)
{
	resubmit(container_of(timer, struct vbd, retry_timer), false);
}

void vbd_retry_init(struct vbd *vbd)
{
	vbd->retry = server_config(vbd->server)->retry;
	vbd->retry_timer.expired = expired;
	list_init(&vbd->retry_timer.link);
	list_init(&vbd->waiting);
}

void vbd_retry_destroy(struct vbd *vbd)
{
	engine_timer_cancel(vbd->engine, &vbd->retry_timer);
	if (vbd->nr_failed[LACK_SPACE])
		vbd_unmark_no_space(vbd);
}
