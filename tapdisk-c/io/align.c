/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Requests on files whose device has blocks of more than 512 bytes (4Kn). What
 * is not aligned to the block, in the file or in memory, is carried through a
 * bounce buffer in windows; a block that is written in part is read before.
 *
 *   align_queue -> waiting -> begin -+-> aligned: as it is ------------> finish
 *                                    +-> { window_read -> window_written } ... -+
 *
 * Changes of a file that meet in a block run one after the other, aligned ones
 * too, so that none is undone by what another read before. A file's waiters are
 * served in their order, and keep no other file's waiting. Of what is to become
 * zeros on a device, the parts of blocks at both ends are written.
 *
 * The kernel writes whole blocks, so a write that ends past the end of a file
 * leaves it too long by the rest of the block: it is cut back when no other
 * change is under way behind it, which makes the rest part of the file.
 */
#include "io/engine-internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"

#define OPS		80u
/* Of these, for files that have none. */
#define OPS_KEPT	16u
/* Files that wait for their own, and are passed over, at most. */
#define BLOCKED		16u
#define BOUNCE_BYTES	((size_t)ALIGN_MAX_BLOCK)

struct op {
	struct list link;		/* in free or active */
	struct engine *engine;
	struct io_req *req;		/* the caller's */
	struct io_req io;
	struct iovec iov;
	uint8_t *bounce;
	uint64_t block;
	uint64_t start, end;		/* blocks that change; equal: none */
	uint64_t pos;			/* next byte of the request */
	uint64_t window;		/* where the bounce buffer is in the file */
	size_t len, got;		/* bytes of the window; in the file, as read */
	bool cutting;			/* waits in window_written for others' end */
};

struct align {
	struct list free, active;
	struct list waiting;		/* io_req.link */
	unsigned int nr_cutting;
	uint8_t *bounce;
	struct op op[OPS];
};

int align_open(struct engine *engine)
{
	struct align *a;

	if (engine->align)
		return 0;
	a = calloc(1, sizeof(*a));
	if (!a)
		return -ENOMEM;
	/* Whole pages, that no one touches before they are used. */
	a->bounce = aligned_alloc(ALIGN_MAX_BLOCK, OPS * BOUNCE_BYTES);
	if (!a->bounce) {
		free(a);
		return -ENOMEM;
	}
	list_init(&a->free);
	list_init(&a->active);
	list_init(&a->waiting);
	for (unsigned int i = 0; i < OPS; i++) {
		a->op[i].engine = engine;
		a->op[i].bounce = a->bounce + i * BOUNCE_BYTES;
		list_add_tail(&a->op[i].link, &a->free);
	}
	engine->align = a;
	return 0;
}

void align_close(struct engine *engine)
{
	if (!engine->align)
		return;
	free(engine->align->bounce);
	free(engine->align);
}

static uint64_t block_of(const struct engine *engine, const struct io_req *req)
{
	return 1ull << (engine_file(engine, req->fd) & FILE_BLOCK_SHIFT);
}

static bool is_aligned(const struct io_req *req, uint64_t block)
{
	uint64_t bits = req->offset | req->left;

	if (req->op == IO_READ || req->op == IO_WRITE)
		for (int i = 0; i < req->iovcnt; i++)
			bits |= (uintptr_t)req->iov[i].iov_base |
				req->iov[i].iov_len;
	return !(bits & (block - 1));
}

static void begin(struct op *op);

/* The blocks that the request may change. */
static void extent(const struct io_req *req, uint64_t block, uint64_t *start,
		   uint64_t *end)
{
	*start = req->offset & ~(block - 1);
	*end = req->op == IO_READ ? *start :
	       round_up_u64(req->offset + req->left, block);
}

/* It meets one that is under way, or its file has all that it may. */
static bool has_to_wait(const struct align *a, const struct io_req *req,
			uint64_t start, uint64_t end)
{
	unsigned int active = 0, own = 0;

	list_for_each(item, &a->active) {
		const struct op *op = container_of(item, struct op, link);

		active++;
		if (op->req->fd != req->fd)
			continue;
		own++;
		if (start < op->end && op->start < end)
			return true;
	}
	return own && active >= OPS - OPS_KEPT;
}

/* The first one that may begin; NULL: none. */
static struct io_req *find_ready(struct engine *engine, uint64_t *start,
				 uint64_t *end)
{
	struct align *a = engine->align;
	unsigned int nr_blocked = 0;
	int blocked[BLOCKED];

	list_for_each(item, &a->waiting) {
		struct io_req *req = container_of(item, struct io_req, link);
		bool waits = false;

		for (unsigned int i = 0; i < nr_blocked && !waits; i++)
			waits = blocked[i] == req->fd;
		if (waits)
			continue;
		extent(req, block_of(engine, req), start, end);
		if (!has_to_wait(a, req, *start, *end))
			return req;
		if (nr_blocked == BLOCKED)
			return NULL;
		blocked[nr_blocked++] = req->fd;
	}
	return NULL;
}

static void start_waiting(struct engine *engine)
{
	struct align *a = engine->align;
	uint64_t start, end;
	struct io_req *req;
	struct op *op;

	while (!list_empty(&a->free) &&
	       (req = find_ready(engine, &start, &end))) {
		list_del(&req->link);
		op = container_of(list_pop(&a->free), struct op, link);
		list_add_tail(&op->link, &a->active);
		op->req = req;
		op->block = block_of(engine, req);
		op->start = start;
		op->end = end;
		begin(op);
	}
}

void align_queue(struct engine *engine, struct io_req *req)
{
	bool aligned = is_aligned(req, block_of(engine, req));

	if (req->op == IO_SYNC || (req->op == IO_READ && aligned)) {
		engine_schedule(engine, req);
	} else {
		list_add_tail(&req->link, &engine->align->waiting);
		start_waiting(engine);
	}
}

static void cut(struct op *op);

static void finish(struct op *op, int err)
{
	struct engine *engine = op->engine;
	struct align *a = engine->align;

	list_del(&op->link);
	list_add(&op->link, &a->free);
	engine_complete(engine, op->req, err);
	for (unsigned int i = 0; i < OPS && a->nr_cutting; i++) {
		if (!a->op[i].cutting)
			continue;
		a->op[i].cutting = false;
		a->nr_cutting--;
		cut(&a->op[i]);
	}
	start_waiting(engine);
}

/* The engine calls done for it as for a caller's request. */
static void queue_io(struct op *op)
{
	op->io.fd = op->req->fd;
	op->io.stream = op->req->stream;
	op->io.transferred = 0;
	op->engine->inflight++;
	engine_schedule(op->engine, &op->io);
}

static void passed(struct io_req *io, int err)
{
	finish(container_of(io, struct op, io), err);
}

static void window_read(struct io_req *io, int err);
static void window_written(struct io_req *io, int err);

static void queue_window(struct op *op, enum io_op what,
			 void (*done)(struct io_req *, int))
{
	op->iov = (struct iovec){ op->bounce, op->len };
	op->io = (struct io_req){
		.op	= what,
		.offset	= op->window,
		.iov	= &op->iov,
		.iovcnt	= 1,
		.left	= op->len,
		.done	= done,
	};
	queue_io(op);
}

/* Where in the file the request's part of the window ends. */
static uint64_t stop(const struct op *op)
{
	uint64_t end = op->req->offset + op->req->left;

	return end < op->window + op->len ? end : op->window + op->len;
}

/* Between the request's buffers and the window, for [op->pos, to). */
static void copy(const struct op *op, uint64_t to)
{
	uint8_t *bounce = op->bounce + (op->pos - op->window);
	size_t skip = (size_t)(op->pos - op->req->offset);
	size_t left = (size_t)(to - op->pos);

	if (op->req->op != IO_READ && op->req->op != IO_WRITE) {
		memset(bounce, 0, left);
		return;
	}
	for (int i = 0; i < op->req->iovcnt && left; i++) {
		const struct iovec *v = &op->req->iov[i];
		size_t n = v->iov_len;
		uint8_t *mem = v->iov_base;

		if (skip >= n) {
			skip -= n;
			continue;
		}
		mem += skip;
		n -= skip;
		skip = 0;
		if (n > left)
			n = left;
		if (op->req->op == IO_READ)
			memcpy(mem, bounce, n);
		else
			memcpy(bounce, mem, n);
		bounce += n;
		left -= n;
	}
}

static void next_window(struct op *op);

static void middle_done(struct io_req *io, int err)
{
	struct op *op = container_of(io, struct op, io);

	op->pos += io->len;
	if (err)
		finish(op, err);
	else
		next_window(op);
}

/* The whole blocks of what is to be zero. */
static void queue_middle(struct op *op, uint64_t to)
{
	op->io = (struct io_req){
		.op	= op->req->op,
		.offset	= op->pos,
		.len	= to - op->pos,
		.left	= to - op->pos,
		.done	= middle_done,
	};
	queue_io(op);
}

static void next_window(struct op *op)
{
	uint64_t end = op->req->offset + op->req->left;

	if (op->pos == end) {
		finish(op, 0);
		return;
	}
	op->window = op->pos & ~(op->block - 1);
	if (op->req->op != IO_READ && op->req->op != IO_WRITE) {
		if (op->pos == op->window && end - op->pos >= op->block) {
			queue_middle(op, end & ~(op->block - 1));
			return;
		}
		end = op->window + op->block;
	}
	end = round_up_u64(end, op->block);
	op->len = end - op->window < BOUNCE_BYTES ?
		  (size_t)(end - op->window) : BOUNCE_BYTES;
	op->got = op->len;
	if (op->req->op == IO_WRITE && op->pos == op->window &&
	    stop(op) == op->window + op->len) {
		copy(op, stop(op));
		queue_window(op, IO_WRITE, window_written);
	} else {
		queue_window(op, IO_READ, window_read);
	}
}

static void begin(struct op *op)
{
	const struct io_req *req = op->req;
	bool aligned = is_aligned(req, op->block);
	struct stat st;

	/* A file system makes zeros by the byte. */
	if (!aligned && req->op != IO_READ && req->op != IO_WRITE)
		aligned = !fstat(req->fd, &st) && !S_ISBLK(st.st_mode);
	if (aligned) {
		op->io = *req;
		op->io.done = passed;
		queue_io(op);
		return;
	}
	op->pos = req->offset;
	next_window(op);
}

static void window_read(struct io_req *io, int err)
{
	struct op *op = container_of(io, struct op, io);
	uint64_t to = stop(op);

	if (err && err != -ENODATA) {
		finish(op, err);
		return;
	}
	if (err)
		op->got = io->transferred;
	if (op->req->op != IO_READ) {
		memset(op->bounce + op->got, 0, op->len - op->got);
		copy(op, to);
		queue_window(op, IO_WRITE, window_written);
		return;
	}
	if (op->window + op->got < to) {
		finish(op, -ENODATA);
		return;
	}
	copy(op, to);
	op->pos = to;
	next_window(op);
}

static bool others_behind(const struct op *op, uint64_t end)
{
	list_for_each(item, &op->engine->align->active) {
		struct op *other = container_of(item, struct op, link);

		if (other != op && other->req->fd == op->req->fd &&
		    other->end > end)
			return true;
	}
	return false;
}

/* Takes away what the last window of a write put behind the end of the file. */
static void cut(struct op *op)
{
	uint64_t end = op->window + op->len, size = op->window + op->got;
	struct stat st;
	int rc = 0;

	if (size < stop(op))
		size = stop(op);
	if (fstat(op->req->fd, &st) < 0) {
		rc = -errno;
	} else if (S_ISREG(st.st_mode) && (uint64_t)st.st_size == end &&
		   size < end) {
		if (others_behind(op, end)) {
			op->cutting = true;
			op->engine->align->nr_cutting++;
			return;
		}
		if (ftruncate(op->req->fd, (off_t)size) < 0)
			rc = -errno;
	}
	finish(op, rc);
}

static void window_written(struct io_req *io, int err)
{
	struct op *op = container_of(io, struct op, io);

	if (err) {
		finish(op, err);
		return;
	}
	op->pos = stop(op);
	if (op->got < op->len && op->pos == op->req->offset + op->req->left)
		cut(op);
	else
		next_window(op);
}
