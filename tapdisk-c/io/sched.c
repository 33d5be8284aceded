/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The order in which the requests of streams go to the kernel.
 *
 *   sched_add -> stream.queued[] -> sort -> take (merges) -> engine_submit
 *
 * Each stream has a queue of reads and one of all else. A run from the front of
 * a queue, of at most RUN_MAX, is put in the order of file and offset; it is
 * served to its end before a new one is sorted, so that nothing is
 * overtaken for ever. Neighbours in it merge: what touches in the file goes as
 * one transfer, and syncs of a file as one.
 *
 * Streams take turns, by bytes (deficit round robin), and within a stream its two
 * queues do. A stream may have no more in the kernel than SHARE times what
 * is free: one whose device hangs leaves room for the others. Where others wait
 * too, large transfers count as several.
 */
#include "io/engine-internal.h"

#include <errno.h>
#include <stdlib.h>

#define RUN_MAX		256u
#define MERGES		64u		/* merged requests in flight */
#define MERGE_VECS	64
#define MERGE_BYTES	((size_t)1 << 20)
#define QUANTUM		((int64_t)128 << 10)
#define FLAT_COST	4096		/* bytes, of what transfers none */
#define SHARE		3u

struct merge {
	struct io_req req;		/* done is NULL */
	struct list parts;		/* io_req.link */
	struct list link;		/* in sched.free */
	struct iovec iov[MERGE_VECS];
};

struct entry {
	uint64_t key;
	struct io_req *req;
};

struct sched {
	struct list free;
	struct entry run[RUN_MAX];	/* while it is sorted */
	struct merge merge[MERGES];
};

int sched_open(struct engine *engine)
{
	struct sched *s = malloc(sizeof(*s));

	if (!s)
		return -ENOMEM;
	list_init(&s->free);
	for (unsigned int i = 0; i < MERGES; i++)
		list_add_tail(&s->merge[i].link, &s->free);
	engine->sched = s;
	return 0;
}

void sched_close(struct engine *engine)
{
	free(engine->sched);
}

static struct io_req *front(struct list *queue)
{
	return container_of(queue->next, struct io_req, link);
}

void sched_add(struct engine *engine, struct io_req *req)
{
	struct io_stream *stream = req->stream;
	unsigned int q = req->op != IO_READ;

	if (!stream->nr[0] && !stream->nr[1]) {
		/* As the caller zeroed it, or used up. */
		list_init(&stream->queued[0]);
		list_init(&stream->queued[1]);
		list_add_tail(&stream->link, &engine->streams);
		engine->nr_streams++;
	}
	list_add_tail(&req->link, &stream->queued[q]);
	stream->nr[q]++;
}

/*
 * File and operation, then offset in sectors. Where the file's few bits are
 * another's too, or requests share a sector, neighbours may not meet; no more.
 */
static uint64_t key_of(const struct io_req *req)
{
	return (((uint64_t)(unsigned int)req->fd << 3 | req->op) << 54) |
	       req->offset >> 9;
}

static void sort_entries(struct entry *e, unsigned int n)
{
	static const unsigned int gaps[] = { 48, 13, 4, 1 };

	for (unsigned int g = 0; g < sizeof(gaps) / sizeof(gaps[0]); g++) {
		unsigned int gap = gaps[g];

		for (unsigned int i = gap; i < n; i++) {
			struct entry x = e[i];
			unsigned int j = i;

			for (; j >= gap && e[j - gap].key > x.key; j -= gap)
				e[j] = e[j - gap];
			e[j] = x;
		}
	}
}

/* Puts a run at the front of the queue in order. */
static void sort_run(struct sched *s, struct io_stream *stream, unsigned int q)
{
	struct list *prev = &stream->queued[q], *item = prev->next;
	unsigned int n = stream->nr[q] < RUN_MAX ? stream->nr[q] : RUN_MAX;
	bool ordered = true;
	uint64_t last = 0;

	stream->sorted[q] = n;
	if (n == 1)
		return;
	for (unsigned int i = 0; i < n; i++, item = item->next) {
		struct io_req *req = container_of(item, struct io_req, link);

		s->run[i] = (struct entry){ key_of(req), req };
		ordered &= s->run[i].key >= last;
		last = s->run[i].key;
	}
	if (ordered)
		return;
	sort_entries(s->run, n);
	for (unsigned int i = 0; i < n; i++) {
		struct list *link = &s->run[i].req->link;

		prev->next = link;
		link->prev = prev;
		prev = link;
	}
	prev->next = item;
	item->prev = prev;
}

static struct io_req *pop(struct io_stream *stream, unsigned int q)
{
	stream->nr[q]--;
	stream->sorted[q]--;
	return container_of(list_pop(&stream->queued[q]), struct io_req, link);
}

/* Whether next may go along with what is as req so far. */
static bool joins(const struct io_req *req, const struct io_req *next)
{
	if (next->op != req->op || next->fd != req->fd)
		return false;
	if (req->op == IO_SYNC)
		return true;
	return (req->op == IO_READ || req->op == IO_WRITE) &&
	       next->offset == req->offset + req->left &&
	       next->left <= MERGE_BYTES - req->left &&
	       req->iovcnt + next->iovcnt <= MERGE_VECS;
}

static void append(struct merge *merge, struct io_req *part)
{
	struct io_req *req = &merge->req;

	list_add_tail(&part->link, &merge->parts);
	if (req->op == IO_SYNC)
		return;
	req->left += part->left;
	if (part->buffer != req->buffer)
		req->buffer = 0;
	for (int i = 0; i < part->iovcnt; i++) {
		struct iovec *last = req->iovcnt ?
				     &merge->iov[req->iovcnt - 1] : NULL;

		if (last && (char *)last->iov_base + last->iov_len ==
			    (char *)part->iov[i].iov_base)
			last->iov_len += part->iov[i].iov_len;
		else
			merge->iov[req->iovcnt++] = part->iov[i];
	}
}

/* The next request of the queue, with those that go along with it. */
static struct io_req *take(struct sched *s, struct io_stream *stream,
			   unsigned int q)
{
	struct io_req *first = pop(stream, q);
	struct merge *merge;

	if (!stream->sorted[q] || first->left >= MERGE_BYTES ||
	    !joins(first, front(&stream->queued[q])) || list_empty(&s->free))
		return first;
	merge = container_of(list_pop(&s->free), struct merge, link);
	list_init(&merge->parts);
	merge->req = (struct io_req){
		.op	= first->op,
		.fd	= first->fd,
		.offset	= first->offset,
		.buffer	= first->buffer,
		.stream	= stream,
		.iov	= merge->iov,
	};
	append(merge, first);
	while (stream->sorted[q] &&
	       joins(&merge->req, front(&stream->queued[q]))) {
		append(merge, pop(stream, q));
		stream->merged++;
	}
	return &merge->req;
}

void sched_split(struct engine *engine, struct io_req *req, int result)
{
	struct merge *merge = container_of(req, struct merge, req);
	uint64_t left = result > 0 ? (uint64_t)result : 0;
	struct list *item, again;

	list_init(&again);
	while ((item = list_pop(&merge->parts))) {
		struct io_req *part = container_of(item, struct io_req, link);

		if (req->op == IO_SYNC) {
			/* Not again: the kernel reports a lost write once. */
			engine_complete(engine, part, result);
		} else if (part->left <= left) {
			left -= part->left;
			engine_complete(engine, part, 0);
		} else {
			/* Each alone, for a verdict of its own. */
			left = 0;
			list_add_tail(item, &again);
		}
	}
	list_splice(&engine->queued, &again);
	list_splice(&again, &engine->queued);
	list_add(&merge->link, &engine->sched->free);
}

static bool has_share(const struct engine *engine,
		      const struct io_stream *stream)
{
	unsigned int has = engine->nr_streams > 1 ? stream->weight :
						    stream->in_kernel;

	return has < SHARE * (engine->depth - engine->in_kernel);
}

/* Serves the stream until its turn is over; false: the kernel takes no more. */
static bool serve(struct engine *engine, struct io_stream *stream)
{
	while (stream->deficit > 0 && (stream->nr[0] || stream->nr[1])) {
		unsigned int q = stream->turn;
		struct io_req *req;

		if (!has_share(engine, stream))
			return true;
		if (!stream->nr[q])
			q = !q;
		if (!stream->sorted[q])
			sort_run(engine->sched, stream, q);
		req = take(engine->sched, stream, q);
		stream->deficit -= req->op == IO_READ || req->op == IO_WRITE ?
				   (int64_t)req->left : FLAT_COST;
		if (!engine_submit(engine, req))
			return false;
	}
	return true;
}

static void leave(struct engine *engine, struct io_stream *stream)
{
	list_del(&stream->link);
	engine->nr_streams--;
	stream->deficit = 0;
}

/* All that waits is one request: what follows from the rules, at once. */
static bool run_single(struct engine *engine, struct io_stream *stream)
{
	unsigned int q = !stream->nr[0];

	if (engine->nr_streams != 1 || stream->nr[0] + stream->nr[1] != 1 ||
	    !has_share(engine, stream))
		return false;
	stream->sorted[q] = 1;
	leave(engine, stream);
	engine_submit(engine, pop(stream, q));
	return true;
}

void sched_run(struct engine *engine)
{
	unsigned int without = 0;	/* streams in a row that have no share */
	bool room = true;

	if (run_single(engine, container_of(engine->streams.next,
					    struct io_stream, link)))
		return;
	while (room && without < engine->nr_streams &&
	       engine->in_kernel < engine->depth) {
		struct io_stream *stream = container_of(engine->streams.next,
							struct io_stream, link);

		if (!has_share(engine, stream)) {
			list_del(&stream->link);
			list_add_tail(&stream->link, &engine->streams);
			without++;
			continue;
		}
		without = 0;
		if (stream->deficit <= 0)
			stream->deficit += QUANTUM;
		room = serve(engine, stream);
		if (!stream->nr[0] && !stream->nr[1]) {
			leave(engine, stream);
		} else if (stream->deficit <= 0) {
			stream->turn = !stream->turn;
			list_del(&stream->link);
			list_add_tail(&stream->link, &engine->streams);
		}
	}
}
