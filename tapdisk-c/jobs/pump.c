/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Each slot takes the next stretch of the disk, asks what of it holds data,
 * and moves one extent after the other through its buffer. So as many
 * bitmaps, reads and writes are under way as there are slots.
 */
#include "jobs/pump.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/pages.h"

#define SLOT_SECTORS	(PUMP_BYTES >> SECTOR_SHIFT)
/* Where a disk is empty stretches get longer; a slot that finds data there gives back the rest. */
#define STRETCH_MAX	(64u << 20 >> SECTOR_SHIFT)
#define MAX_EXTENTS	32u
/* Zeros that are left out: less is not worth a second write. */
#define ZERO_UNIT	(64u << 10)
#define ZERO_SECTORS	(ZERO_UNIT >> SECTOR_SHIFT)
/* To write a part of a file system's block costs more than the whole of it. */
#define UNIT_SECTORS	8u
/* How long a stop may wait to be seen while no I/O ends. */
#define LOOK_MS		200

enum state { STATE_NEXT, STATE_STATUS, STATE_READ, STATE_WRITE };

struct copy;

struct slot {
	struct image_request req;
	struct image_extent extents[MAX_EXTENTS];
	struct copy *copy;
	enum state state;
	bool submitting;		/* a done() comes from inside submit() */
	bool ended;			/* it did */
	bool empty;			/* nothing but holes in the stretch so far */
	uint64_t at, end;		/* what is left of the stretch, sectors */
	unsigned int extent;		/* in extents[]: the one at at */
	uint8_t *buf;
	uint32_t from, have;		/* bytes in buf: not yet written from, have in all */
};

struct copy {
	const struct pump *args;
	uint64_t next, sectors;
	uint32_t stretch;
	uint64_t done;
	unsigned int busy;		/* slots, and the flush */
	struct image_request flush;
	bool flushing;
	uint64_t unflushed;		/* bytes written since one began */
	uint16_t buffer;
	int rc;
	struct error *err;
	struct slot slot[PUMP_SLOTS];
};

static bool stopped(const struct copy *c)
{
	return c->args->stop && *c->args->stop;
}

static void fail(struct copy *c, const char *name, const char *what,
		 uint64_t sector, int rc)
{
	if (c->rc)
		return;
	c->rc = error_set(c->err, rc, "%s: %s at sector %llu: %s", name, what,
			  (unsigned long long)sector, strerror(-rc));
}

static void ended(struct image_request *req, int err);

static void submit(struct slot *s, struct image *image, enum image_op op,
		   uint64_t sector, uint32_t count, uint8_t *buf)
{
	s->req.op = op;
	s->req.sector = sector;
	s->req.count = count;
	s->req.buf = buf;
	s->req.buffer = buf ? s->copy->buffer : 0;
	s->req.extents = s->extents;
	s->req.max_extents = MAX_EXTENTS;
	s->req.done = ended;
	image->driver->submit(image, &s->req);
}

static void flushed(struct image_request *req, int err)
{
	struct copy *c = container_of(req, struct copy, flush);

	c->flushing = false;
	c->busy--;
	if (err && !c->rc)
		c->rc = error_set(c->err, err, "%s: flush: %s",
				  c->args->to_name, strerror(-err));
}

static void flush(struct copy *c)
{
	c->flush = (struct image_request){ .op = IMAGE_FLUSH, .done = flushed };
	c->flushing = true;
	c->busy++;
	c->unflushed = 0;
	c->args->to->driver->submit(c->args->to, &c->flush);
}

/* The next stretch; false: there is none. */
static bool take(struct slot *s)
{
	struct copy *c = s->copy;
	uint64_t left = c->sectors - c->next;

	if (!left)
		return false;
	s->at = c->next;
	s->end = c->next + (left < c->stretch ? left : c->stretch);
	c->next = s->end;
	s->empty = true;
	s->extent = s->req.nr_extents = 0;
	return true;
}

/* The slot has data at at: what is beyond is for others. */
static void give_back(struct slot *s)
{
	struct copy *c = s->copy;
	uint64_t end = round_up_u64(s->at + 1, SLOT_SECTORS);

	s->empty = false;
	c->stretch = SLOT_SECTORS;
	if (s->end <= end || c->next != s->end)
		return;
	c->next = s->end = end;
}

static void advance(struct slot *s, uint32_t count)
{
	s->at += count;
	s->copy->done += count;
	while (count && s->extent < s->req.nr_extents) {
		struct image_extent *e = &s->extents[s->extent];
		uint32_t n = e->count < count ? e->count : count;

		count -= n;
		e->count -= n;
		if (!e->count)
			s->extent++;
	}
}

static bool has_data(const struct slot *s, const struct image_extent *e)
{
	return !e->hole && !(e->zero && s->copy->args->skip_zeros);
}

/*
 * How many sectors from at on are moved together, or if !*data passed over. Where
 * the target reads as zeros a run has whole units, and small holes in it.
 */
static uint32_t next_run(const struct slot *s, bool *data)
{
	const uint64_t left = s->end - s->at;
	uint64_t pos = 0, end = 0, skip;

	*data = has_data(s, &s->extents[s->extent]);
	if (!s->copy->args->skip_zeros) {
		end = s->extents[s->extent].count;
		return (uint32_t)(end < left ? end : left);
	}
	for (uint32_t i = s->extent; i < s->req.nr_extents && pos < left; i++) {
		uint32_t n = s->extents[i].count;

		if (has_data(s, &s->extents[i])) {
			end = pos + n;
		} else if (!end) {
			skip = (s->at + pos + n) / UNIT_SECTORS * UNIT_SECTORS;
			if (skip > s->at)
				return (uint32_t)(skip - s->at < left ?
						  skip - s->at : left);
		} else if (n >= ZERO_SECTORS) {
			break;
		}
		pos += n;
	}
	*data = end;
	if (end)
		pos = round_up_u64(s->at + end, UNIT_SECTORS) - s->at;
	return (uint32_t)(pos < left ? pos : left);
}

/* The next run in the buffer that must be written; false: nothing is left. */
static bool find_run(struct slot *s, uint32_t *len)
{
	bool skip = s->copy->args->skip_zeros;
	uint32_t n, at;

	*len = 0;
	for (at = s->from; at < s->have; at += n) {
		n = ZERO_UNIT - at % ZERO_UNIT;
		if (n > s->have - at)
			n = s->have - at;
		if (!skip || memcmp(s->buf + at, image_zeros, n))
			*len += n;
		else if (*len)
			break;
		else
			s->from = at + n;
	}
	return *len;
}

/* The next data of the stretch; false: the stretch is done with. */
static bool next_data(struct slot *s)
{
	struct copy *c = s->copy;

	while (s->at < s->end && s->extent < s->req.nr_extents) {
		bool data;
		uint32_t n = next_run(s, &data);

		if (data) {
			give_back(s);
			if (n > s->end - s->at)
				n = (uint32_t)(s->end - s->at);
			s->from = 0;
			s->have = n < SLOT_SECTORS ? n << SECTOR_SHIFT :
						     PUMP_BYTES;
			s->state = STATE_READ;
			submit(s, c->args->from, IMAGE_READ, s->at,
			       s->have >> SECTOR_SHIFT, s->buf);
			return true;
		}
		advance(s, n);
	}
	if (s->at == s->end)
		return false;
	s->extent = s->req.nr_extents = 0;
	s->state = STATE_STATUS;
	if (c->args->from->info.can & IMAGE_CAN_STATUS) {
		submit(s, c->args->from, IMAGE_STATUS, s->at,
		       (uint32_t)(s->end - s->at), NULL);
	} else {
		s->extents[0] = (struct image_extent){
			.count = (uint32_t)(s->end - s->at),
		};
		s->req.nr_extents = 1;
		ended(&s->req, 0);
	}
	return true;
}

/* Starts what the slot does next; false: it is idle from now on. */
static bool step(struct slot *s)
{
	struct copy *c = s->copy;
	uint32_t len;

	if (stopped(c) && !c->rc)
		c->rc = error_set(c->err, -ECANCELED, "%s: stopped by a signal",
				  c->args->to_name);
	if (c->rc)
		return false;
	if (s->state == STATE_READ) {
		if (find_run(s, &len)) {
			s->state = STATE_WRITE;
			submit(s, c->args->to, IMAGE_WRITE,
			       s->at + (s->from >> SECTOR_SHIFT),
			       len >> SECTOR_SHIFT, s->buf + s->from);
			return true;
		}
		advance(s, s->have >> SECTOR_SHIFT);
	}
	for (;;) {
		if (s->at < s->end && next_data(s))
			return true;
		if (s->end && s->empty && c->stretch < STRETCH_MAX)
			c->stretch *= 2;
		if (!take(s))
			return false;
	}
}

static void run(struct slot *s)
{
	do {
		s->ended = false;
		s->submitting = true;
		if (!step(s)) {
			s->submitting = false;
			s->copy->busy--;
			return;
		}
		s->submitting = false;
	} while (s->ended);
}

static void ended(struct image_request *req, int err)
{
	struct slot *s = container_of(req, struct slot, req);
	struct copy *c = s->copy;

	switch (s->state) {
	case STATE_STATUS:
		if (!err && !req->nr_extents)
			err = -EIO;
		if (err)
			fail(c, c->args->from_name, "asking what holds data",
			     req->sector, err);
		break;
	case STATE_READ:
		if (err)
			fail(c, c->args->from_name, "reading", req->sector,
			     err);
		break;
	case STATE_WRITE:
		if (err)
			fail(c, c->args->to_name, "writing", req->sector, err);
		else if (c->args->written)
			*c->args->written += req->count;
		s->from += req->count << SECTOR_SHIFT;
		s->state = STATE_READ;
		c->unflushed += (uint64_t)req->count << SECTOR_SHIFT;
		if (c->args->flush_bytes &&
		    c->unflushed >= c->args->flush_bytes && !c->flushing &&
		    !c->rc)
			flush(c);
		break;
	case STATE_NEXT:
		break;
	}
	if (s->submitting)
		s->ended = true;
	else
		run(s);
}

static void tell(const struct copy *c)
{
	if (c->args->progress)
		c->args->progress(c->args->priv, c->done << SECTOR_SHIFT,
				  c->sectors << SECTOR_SHIFT);
}

static int wait_all(struct copy *c)
{
	int rc = 0;

	while (c->busy && !rc) {
		rc = engine_run(c->args->from->engine, LOOK_MS);
		tell(c);
	}
	return rc;
}

int pump_run(const struct pump *pump, struct error *err)
{
	struct engine *engine = pump->from->engine;
	const size_t bytes = (size_t)PUMP_SLOTS * PUMP_BYTES;
	struct copy *c;
	uint8_t *buf;
	int rc;

	if (pump->to->info.sectors < pump->from->info.sectors)
		return error_set(err, -ENOSPC,
				 "%s: has %llu sectors; %s has %llu, which don't fit",
				 pump->to_name,
				 (unsigned long long)pump->to->info.sectors,
				 pump->from_name,
				 (unsigned long long)pump->from->info.sectors);
	c = calloc(1, sizeof(*c));
	buf = pages_alloc(bytes);
	if (!c || !buf) {
		rc = error_set(err, -ENOMEM, "%s: out of memory",
			       pump->to_name);
		goto out;
	}
	c->args = pump;
	c->err = err;
	c->sectors = pump->from->info.sectors;
	c->stretch = SLOT_SECTORS;
	c->buffer = engine_buffer_add(engine, buf, bytes);
	c->busy = PUMP_SLOTS;
	for (unsigned int i = 0; i < PUMP_SLOTS; i++) {
		c->slot[i].copy = c;
		c->slot[i].buf = buf + (size_t)i * PUMP_BYTES;
		run(&c->slot[i]);
	}
	rc = wait_all(c);
	if (!rc && !c->rc) {
		flush(c);
		rc = wait_all(c);
	}
	if (rc)
		error_set(err, rc, "%s: the I/O engine: %s", pump->to_name,
			  strerror(-rc));
	else
		rc = c->rc;
	if (!rc)
		tell(c);
	if (c->buffer)
		engine_buffer_remove(engine, c->buffer);
out:
	if (buf)
		pages_free(buf, bytes);
	free(c);
	return rc;
}
