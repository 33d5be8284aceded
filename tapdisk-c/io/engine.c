/* SPDX-License-Identifier: LGPL-2.1-only */
#include "io/engine-internal.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "common/bytes.h"
#include "common/clock.h"
#include "io/wrap.h"

#define NSEC_PER_MSEC 1000000
#define MAX_FILES (1u << 20)

static const struct engine_ops *const engines[] = {
	&uring_engine_ops,
	&posix_engine_ops,
};

/* A byte for each descriptor that the process may have; none is touched yet. */
static int open_files(struct engine *engine)
{
	struct rlimit limit;

	engine->nr_files = MAX_FILES;
	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur < MAX_FILES)
		engine->nr_files = (unsigned int)limit.rlim_cur;
	if (!engine->nr_files)
		return 0;
	engine->file = calloc(engine->nr_files, 1);
	return engine->file ? 0 : -ENOMEM;
}

int engine_open(struct engine **engine, const char *name, unsigned int depth,
		struct error *err)
{
	const struct engine_ops *ops = NULL;
	struct engine_wrap *wrap;
	struct engine *e;
	int rc;

	*engine = NULL;
	if (!depth || depth > ENGINE_MAX_DEPTH)
		return error_set(err, -EINVAL, "I/O engine %s: depth %u: must "
				 "be 1 to %u", name, depth, ENGINE_MAX_DEPTH);
	rc = wrap_open(&wrap, &name, depth, err);
	if (rc)
		return rc;
	for (size_t i = 0; i < sizeof(engines) / sizeof(engines[0]); i++)
		if (!strcmp(engines[i]->name, name))
			ops = engines[i];
	if (ops)
		rc = ops->open(&e, depth, err);
	else
		rc = error_set(err, -EINVAL, "I/O engine %s: must be uring "
			       "or posix", name);
	if (rc) {
		wrap_close(wrap);
		return rc;
	}
	e->ops = ops;
	e->depth = depth;
	list_init(&e->queued);
	list_init(&e->endless);
	list_init(&e->streams);
	list_init(&e->done);
	list_init(&e->timers);
	list_init(&e->plugs);
	wrap_attach(e, wrap);
	rc = open_files(e);
	if (!rc)
		rc = sched_open(e);
	if (rc) {
		engine_close(e);
		return error_set(err, rc, "I/O engine %s: out of memory", name);
	}
	*engine = e;
	return 0;
}

void engine_close(struct engine *engine)
{
	struct engine_wrap *wrap;

	if (!engine)
		return;
	wrap = engine->wrap;
	for (unsigned int i = 0; i < engine->nr_slots; i++)
		if (engine->slot[i].watch)
			engine_unwatch(engine, engine->slot[i].watch);
	align_close(engine);
	sched_close(engine);
	free(engine->file);
	free(engine->map);
	engine->ops->close(engine);
	wrap_close(wrap);
}

bool engine_wrapped(const struct engine *engine)
{
	return engine->wrap;
}

const char *engine_name(const struct engine *engine)
{
	return engine->ops->name;
}

unsigned int engine_inflight(const struct engine *engine)
{
	return engine->inflight;
}

uint64_t engine_now(struct engine *engine)
{
	if (!engine->now)
		engine->now = now_ns();
	return engine->now;
}

/* Requests */

void engine_complete(struct engine *engine, struct io_req *req, int err)
{
	req->result = err;
	list_add_tail(&req->link, &engine->done);
}

/* Sets req->left; -EINVAL if the request makes no sense, or is more than fits in memory. */
static int measure(struct io_req *req)
{
	uint64_t len = req->len, end;

	if (req->op != IO_PUNCH && req->op != IO_ZERO) {
		if (req->iovcnt < 0 || req->iovcnt > IOV_MAX)
			return -EINVAL;
		len = 0;
		for (int i = 0; i < req->iovcnt; i++)
			if (!add_u64(len, req->iov[i].iov_len, &len) ||
			    len != (size_t)len)
				return -EINVAL;
	}
	if (!add_u64(on_socket(req) ? 0 : req->offset, len, &end) || end > INT64_MAX)
		return -EINVAL;
	req->left = len;
	return 0;
}

void engine_queue(struct engine *engine, struct io_req *req)
{
	int rc = 0;

	req->transferred = 0;
	req->result = 0;
	req->left = 0;
	engine->inflight++;
	if (req->op != IO_SYNC && req->op != IO_COMMAND) {
		rc = measure(req);
		if (rc || !req->left) {
			engine_complete(engine, req, rc);
			return;
		}
	}
	if (is_endless(req))
		list_add_tail(&req->link, &engine->endless);
	else if (engine_file(engine, req->fd) & FILE_BLOCK_SHIFT)
		align_queue(engine, req);
	else
		engine_schedule(engine, req);
}

/* Entries that are done keep their place, with length 0. */
static void advance(struct io_req *req, size_t done)
{
	req->transferred += done;
	req->left -= done;
	for (int i = 0; i < req->iovcnt && done; i++) {
		struct iovec *v = &req->iov[i];
		size_t n = done < v->iov_len ? done : v->iov_len;

		v->iov_base = (char *)v->iov_base + n;
		v->iov_len -= n;
		done -= n;
	}
}

static void count_in(struct engine *engine, const struct io_req *req)
{
	engine->in_kernel++;
	if (req->stream) {
		req->stream->in_kernel++;
		req->stream->weight += sched_weight(req);
	}
}

static void count_out(struct engine *engine, const struct io_req *req)
{
	engine->in_kernel--;
	if (req->stream) {
		req->stream->in_kernel--;
		req->stream->weight -= sched_weight(req);
	}
}

static void finish_endless(struct engine *engine, struct io_req *req, int result)
{
	if (req->op == IO_COMMAND) {
		engine_complete(engine, req, result < 0 ? result : 0);
		return;
	}
	if (result == -EINTR || result == -EAGAIN) {
		list_add(&req->link, &engine->endless);
		return;
	}
	if (result < 0) {
		engine_complete(engine, req, result);
		return;
	}
	advance(req, (size_t)result);
	if (req->op == IO_RECV || !req->left)
		engine_complete(engine, req, 0);
	else
		list_add(&req->link, &engine->endless);
}

void engine_finish(struct engine *engine, struct io_req *req, int result)
{
	if (is_endless(req)) {
		finish_endless(engine, req, result);
		return;
	}
	if (engine->wrap)
		result = wrap_finish(engine, req, result);
	engine_finished(engine, req, result);
}

void engine_finished(struct engine *engine, struct io_req *req, int result)
{
	count_out(engine, req);

	if (result == -EINTR || result == -EAGAIN) {
		list_add(&req->link, &engine->queued);
		return;
	}
	/* The kernel's word for a medium that can't be read is ours for the end of a file. */
	if (result == -ENODATA)
		result = -EIO;
	if (!req->done) {
		sched_split(engine, req, result);
		return;
	}
	if (req->op == IO_PUNCH && engine->map)
		lend_punched(engine, req);
	if (req->op != IO_READ && req->op != IO_WRITE) {
		engine_complete(engine, req, result);
		return;
	}
	if (result > 0 && (size_t)result == req->left) {
		engine_complete(engine, req, 0);
		return;
	}
	/*
	 * A direct read ends off a block only at the end of the file, and
	 * can't be resumed there.
	 */
	if (result == -EINVAL && req->op == IO_READ && req->transferred % 4096)
		result = -ENODATA;
	if (!result)
		result = req->op == IO_READ ? -ENODATA : -EIO;
	if (result < 0) {
		engine_complete(engine, req, result);
		return;
	}
	advance(req, (size_t)result);
	list_add(&req->link, &engine->queued);
}

bool engine_submit(struct engine *engine, struct io_req *req)
{
	count_in(engine, req);
	if (engine->wrap ? engine->wrap->ops->submit(engine->wrap, req) :
			   engine->ops->submit(engine, req))
		return true;
	count_out(engine, req);
	list_add(&req->link, &engine->queued);
	return false;
}

static void submit_queued(struct engine *engine)
{
	while (!list_empty(&engine->endless)) {
		struct io_req *req = container_of(list_pop(&engine->endless),
						  struct io_req, link);

		if (!engine->ops->submit(engine, req)) {
			list_add(&req->link, &engine->endless);
			break;
		}
	}
	while (!list_empty(&engine->queued)) {
		if (engine->in_kernel >= engine->depth ||
		    !engine_submit(engine, container_of(list_pop(&engine->queued),
							struct io_req, link)))
			return;
	}
	if (!list_empty(&engine->streams))
		sched_run(engine);
}

/* Registered files and buffers */

void engine_file_add(struct engine *engine, int fd, uint32_t block)
{
	uint8_t flags = 0;

	if ((unsigned int)fd >= engine->nr_files)
		return;
	if (engine->ops->file_add)
		flags = engine->ops->file_add(engine, fd);
	/* What a wrap is to see is a transfer of the kernel's. */
	if (engine->wrap)
		flags &= (uint8_t)~(FILE_IN_MEMORY | FILE_TMPFS);
	/* Without memory for it, what is not aligned fails in the kernel. */
	if (block > 512 && block <= ALIGN_MAX_BLOCK && !align_open(engine))
		flags |= (uint8_t)__builtin_ctz(block);
	engine->file[fd] = flags;
	if (flags & FILE_TMPFS)
		lend_add(engine, fd);
}

void engine_file_remove(struct engine *engine, int fd)
{
	if ((unsigned int)fd >= engine->nr_files)
		return;
	engine->file[fd] = 0;
	lend_remove(engine, fd);
}

uint16_t engine_buffer_add(struct engine *engine, void *base, size_t len)
{
	return engine->ops->buffer_add && base && len ?
	       engine->ops->buffer_add(engine, base, len) : 0;
}

void engine_buffer_remove(struct engine *engine, uint16_t buffer)
{
	if (buffer && engine->ops->buffer_remove)
		engine->ops->buffer_remove(engine, buffer);
}

uint16_t engine_creds_add(struct engine *engine)
{
	return engine->ops->creds_add ? engine->ops->creds_add(engine) : 0;
}

void engine_creds_remove(struct engine *engine, uint16_t creds)
{
	if (creds && engine->ops->creds_remove)
		engine->ops->creds_remove(engine, creds);
}

/* Watches */

int engine_watch(struct engine *engine, struct io_watch *watch)
{
	unsigned int i = 0;

	if (watch->armed)
		return 0;
	while (i < engine->nr_slots && engine->slot[i].watch)
		i++;
	if (i == ENGINE_MAX_WATCHES)
		return -EMFILE;
	if (i == engine->nr_slots)
		engine->nr_slots++;
	engine->slot[i].watch = watch;
	engine->slot[i].revents = 0;
	engine->slot[i].polled = false;
	engine_unarmed(engine, i);
	watch->armed = true;
	return 0;
}

void engine_unwatch(struct engine *engine, struct io_watch *watch)
{
	unsigned int i = 0;

	if (!watch->armed)
		return;
	while (engine->slot[i].watch != watch)
		i++;
	engine->ops->unwatch(engine, i);
	engine->slot[i].watch = NULL;
	engine->slot[i].revents = 0;
	engine->slot[i].generation++;
	while (engine->nr_slots && !engine->slot[engine->nr_slots - 1].watch)
		engine->nr_slots--;
	watch->armed = false;
}

void engine_ready(struct engine *engine, unsigned int slot, short revents)
{
	engine->slot[slot].revents = revents;
	engine->ready[engine->nr_ready++] = (uint16_t)slot;
}

/* Timers */

void engine_timer_set(struct engine *engine, struct io_timer *timer,
		      uint64_t deadline_ns)
{
	struct list *after;

	engine_timer_cancel(engine, timer);
	after = engine->timers.prev;
	while (after != &engine->timers &&
	       container_of(after, struct io_timer, link)->deadline_ns >
	       deadline_ns)
		after = after->prev;
	timer->deadline_ns = deadline_ns;
	timer->armed = true;
	list_add(&timer->link, after);
}

void engine_timer_cancel(struct engine *engine, struct io_timer *timer)
{
	(void)engine;
	if (!timer->armed)
		return;
	list_del(&timer->link);
	timer->armed = false;
}

/* Plugs */

void engine_plug(struct engine *engine, struct io_plug *plug)
{
	if (plug->armed)
		return;
	list_add_tail(&plug->link, &engine->plugs);
	plug->armed = true;
}

void engine_plug_cancel(struct engine *engine, struct io_plug *plug)
{
	(void)engine;
	if (!plug->armed)
		return;
	list_del(&plug->link);
	plug->armed = false;
}

static void run_plugs(struct engine *engine)
{
	struct list *item, batch;

	list_init(&batch);
	list_splice(&engine->plugs, &batch);
	while ((item = list_pop(&batch))) {
		struct io_plug *plug = container_of(item, struct io_plug, link);

		plug->armed = false;
		plug->unplug(plug);
	}
}

/* The loop */

/*
 * Each of these works on what there was when it began, so that a callback
 * which makes more of the same can't keep the loop from the rest.
 */
static unsigned int run_done(struct engine *engine)
{
	struct list *item, batch;
	unsigned int n = 0;

	list_init(&batch);
	list_splice(&engine->done, &batch);
	while ((item = list_pop(&batch))) {
		struct io_req *req = container_of(item, struct io_req, link);

		engine->inflight--;
		req->done(req, req->result);
		n++;
	}
	return n;
}

static unsigned int run_ready(struct engine *engine)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < engine->nr_ready; i++) {
		struct watch_slot *slot = &engine->slot[engine->ready[i]];
		short revents = slot->revents;

		/* 0: an earlier callback has removed the watch. */
		if (!revents)
			continue;
		slot->revents = 0;
		slot->watch->ready(slot->watch, revents);
		n++;
	}
	engine->nr_ready = 0;
	return n;
}

static unsigned int run_expired(struct engine *engine)
{
	struct list *item, batch;
	unsigned int n = 0;
	uint64_t now;

	list_init(&batch);
	if (list_empty(&engine->timers))
		return 0;
	now = now_ns();
	while (!list_empty(&engine->timers) &&
	       container_of(engine->timers.next, struct io_timer,
			    link)->deadline_ns <= now) {
		item = list_pop(&engine->timers);
		list_add_tail(item, &batch);
	}
	while ((item = list_pop(&batch))) {
		struct io_timer *timer = container_of(item, struct io_timer,
						      link);

		timer->armed = false;
		timer->expired(timer);
		n++;
	}
	return n;
}

/* How long ops->wait() may take: 0 if there is work already. */
static int64_t wait_ns(const struct engine *engine, uint64_t end_ns)
{
	uint64_t now;

	if (!list_empty(&engine->done) || !end_ns)
		return 0;
	/* The rest of what was done at once in part. */
	if (!list_empty(&engine->queued) && engine->in_kernel < engine->depth)
		return 0;
	if (!list_empty(&engine->timers)) {
		uint64_t first = container_of(engine->timers.next,
					      struct io_timer,
					      link)->deadline_ns;

		if (first < end_ns)
			end_ns = first;
	}
	if (end_ns > INT64_MAX)
		return -1;
	now = now_ns();
	return end_ns > now ? (int64_t)(end_ns - now) : 0;
}

int engine_run(struct engine *engine, int timeout_ms)
{
	uint64_t end_ns = 0;		/* 0: don't wait; UINT64_MAX: forever */
	unsigned int events;
	int64_t timeout_ns;
	int rc = 0;

	if (engine->running)
		return -EDEADLK;
	engine->running = true;
	if (timeout_ms < 0)
		end_ns = UINT64_MAX;
	else if (timeout_ms > 0)
		end_ns = now_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;

	do {
		run_plugs(engine);
		submit_queued(engine);
		timeout_ns = wait_ns(engine, end_ns);
		if (engine->wrap)
			timeout_ns = wrap_before_wait(engine, timeout_ns);
		/* What was done at once may bring more for the same call. */
		engine->put_off = !engine->put_off && !engine->wrap &&
				  !list_empty(&engine->done);
		if (!engine->put_off)
			rc = engine->ops->wait(engine, timeout_ns);
		engine->now = 0;
		events = run_done(engine);
		events += run_ready(engine);
		events += run_expired(engine);
		/* What a wait only resumed is no event. */
	} while (!rc && !events && end_ns &&
		 (end_ns == UINT64_MAX || now_ns() < end_ns));

	engine->running = false;
	return rc;
}
