/* SPDX-License-Identifier: LGPL-2.1-only */
#include "fuzz/memory-engine.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "fuzz/fuzz.h"
#include "fuzz/memory-files.h"
#include "tests/engine-parts.h"

/* More for one batch is a livelock. */
#define STEPS_MAX 1000000u

void memory_engine_init(struct engine *e, uint64_t seed)
{
	memset(e, 0, sizeof(*e));
	list_init(&e->pending);
	list_init(&e->timers);
	list_init(&e->plugs);
	e->rng = seed * 0x9e3779b97f4a7c15u | 1;
}

uint64_t memory_random(struct engine *e)
{
	e->rng ^= e->rng >> 12;
	e->rng ^= e->rng << 25;
	e->rng ^= e->rng >> 27;
	return e->rng * 2685821657736338717u;
}

unsigned int memory_below(struct engine *e, unsigned int n)
{
	return (unsigned int)((memory_random(e) >> 20) % n);
}

void engine_queue(struct engine *e, struct io_req *req)
{
	list_add_tail(&req->link, &e->pending);
	e->nr_pending++;
}

void engine_file_add(struct engine *e, int fd, uint32_t block)
{
	(void)e;
	(void)fd;
	(void)block;
}

static int transfer(const struct io_req *req)
{
	uint64_t at = req->offset;

	for (int i = 0; i < req->iovcnt; i++) {
		const struct iovec *v = &req->iov[i];
		ssize_t n;

		n = req->op == IO_READ ?
			pread(req->fd, v->iov_base, v->iov_len, (off_t)at) :
			pwrite(req->fd, v->iov_base, v->iov_len, (off_t)at);
		if (n < 0)
			return -errno;
		if ((size_t)n < v->iov_len)
			return req->op == IO_READ ? -ENODATA : -ENOSPC;
		at += v->iov_len;
	}
	return 0;
}

static int perform(const struct engine *e, const struct io_req *req)
{
	switch (req->op) {
	case IO_READ:
	case IO_WRITE:
		return transfer(req);
	case IO_PUNCH:
	case IO_ZERO:
		if (req->op == IO_PUNCH ? e->no_punch : e->no_zero)
			return -EOPNOTSUPP;
		memory_punch(req->fd, req->offset, req->len);
		return 0;
	case IO_SYNC:
		return 0;
	case IO_RECV:
	case IO_SEND:
	case IO_COMMAND:
		break;
	}
	return -EOPNOTSUPP;
}

static void run_one(struct engine *e)
{
	unsigned int pick = memory_below(e, e->nr_pending);
	struct list *item = e->pending.next;
	struct io_req *req;

	while (pick--)
		item = item->next;
	req = container_of(item, struct io_req, link);
	list_del(item);
	e->nr_pending--;
	req->done(req, perform(e, req));
}

void memory_engine_run(struct engine *e)
{
	for (unsigned int steps = 0; ; steps++) {
		fuzz_assert(steps < STEPS_MAX);
		if (e->nr_pending && memory_below(e, 4)) {
			run_one(e);
		} else if (!list_empty(&e->plugs)) {
			struct io_plug *plug = container_of(list_pop(&e->plugs),
						struct io_plug, link);

			plug->armed = false;
			plug->unplug(plug);
		} else if (!list_empty(&e->timers)) {
			struct io_timer *timer =
				container_of(list_pop(&e->timers),
					     struct io_timer, link);

			timer->armed = false;
			timer->expired(timer);
		} else if (e->nr_pending) {
			run_one(e);
		} else {
			return;
		}
	}
}
