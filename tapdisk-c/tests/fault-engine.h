/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * An engine for tests of the data path: it runs requests one at a time in
 * an order that the seed decides, fails them, has failed writes reach the file
 * in part, and knows what a power loss would leave behind. It stands in for
 * io/engine.c, and for pwrite(), ftruncate() and fdatasync(), so include it in
 * one test program only.
 *
 * A write takes effect (is "applied") some time before its done() is called.
 * What the medium surely holds is kept in a second file, "durable": a write
 * gets there with a sync that was queued after the write had completed. All
 * other writes may or may not survive, sector by sector.
 */
#ifndef XENBLK_FAULT_ENGINE_H
#define XENBLK_FAULT_ENGINE_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/engine.h"
#include "tests/real.h"

#define FE_SECTOR	512u
#define FE_WAITING	INT_MIN		/* io_req.result: not yet applied */

/* A write or a truncation that is not known to be durable. */
struct fe_change {
	struct list link;
	bool truncate;
	uint64_t offset;		/* truncate: the new size */
	size_t len;
	uint8_t *data;
	bool *sectors;			/* which of them were applied */
	uint64_t completed;		/* UINT64_MAX: not yet */
};

struct engine {
	struct list pending;
	unsigned int nr_pending;
	struct list timers, plugs;	/* due at any time */
	uint64_t rng;
	uint64_t clock;
	uint64_t steps;

	/* The file whose changes are followed; others are only read. */
	int fd, durable;
	dev_t dev;
	ino_t ino;
	struct list changes;
	bool dead;			/* nothing reaches the file any more */
	unsigned int die_after;		/* dead after so many synchronous calls; 0: not */

	/* Faults: one in so many of each kind fails; 0: none. */
	unsigned int fail_read, fail_write, fail_sync;
	bool full;			/* synchronous writes find no space until the file is cut */
	bool no_punch, no_zero;		/* what the file system can't do */
	/* First to look at a request: 0, or -errno. *reached: a failed write is applied all the same. */
	int (*script)(struct engine *e, const struct io_req *req, bool *reached);
	/* Requests that stay where they are for now. */
	bool (*hold)(const struct io_req *req);
	/* What a power loss leaves of the changes that may be lost; NULL: chance decides. */
	bool (*survives)(const struct fe_change *c);
};

#include "tests/engine-parts.h"

static struct engine *fe_active;

/* FAULT_TRACE in the environment: what happens, on stderr. */
static inline void fe_trace(const char *what, uint64_t offset, uint64_t len, int result)
{
	static int on = -1;

	if (on < 0)
		on = getenv("FAULT_TRACE") != NULL;
	if (on)
		fprintf(stderr, "%-9s %10llu +%-8llu %d\n", what,
			(unsigned long long)offset, (unsigned long long)len, result);
}

static inline uint64_t fe_random(struct engine *e)
{
	e->rng ^= e->rng >> 12;
	e->rng ^= e->rng << 25;
	e->rng ^= e->rng >> 27;
	return e->rng * 2685821657736338717u;
}

static inline unsigned int fe_below(struct engine *e, unsigned int n)
{
	return (unsigned int)((fe_random(e) >> 20) % n);
}

static inline bool fe_one_in(struct engine *e, unsigned int n)
{
	return n && !fe_below(e, n);
}

static inline void fe_die(const char *what)
{
	perror(what);
	abort();
}

static inline void fe_raw_write(int fd, const void *buf, size_t len, uint64_t offset)
{
	if (real_pwrite(fd, buf, len, (off_t)offset) != (ssize_t)len)
		fe_die("fault engine: pwrite");
}

static inline void fe_raw_truncate(int fd, uint64_t size)
{
	fe_trace("truncate", size, 0, 0);
	if (real_ftruncate(fd, (off_t)size))
		fe_die("fault engine: ftruncate");
}

static inline bool fe_follows(int fd)
{
	struct stat st;

	return fe_active && !fstat(fd, &st) && st.st_dev == fe_active->dev &&
	       st.st_ino == fe_active->ino;
}

/* Copies the file with its holes. */
static inline void fe_copy(int from, int to)
{
	static uint8_t buf[1 << 16];
	off_t end = lseek(from, 0, SEEK_END), at = 0;

	fe_raw_truncate(to, 0);
	fe_raw_truncate(to, (uint64_t)end);
	while ((at = lseek(from, at, SEEK_DATA)) >= 0 && at < end) {
		off_t stop = lseek(from, at, SEEK_HOLE);

		while (at < stop) {
			size_t n = sizeof(buf);
			ssize_t got;

			if ((off_t)n > stop - at)
				n = (size_t)(stop - at);
			got = pread(from, buf, n, at);
			if (got <= 0)
				fe_die("fault engine: pread");
			fe_raw_write(to, buf, (size_t)got, (uint64_t)at);
			at += got;
		}
	}
}

static inline void fe_change_apply(const struct fe_change *c, int fd,
			    const bool *chosen)
{
	if (c->truncate) {
		fe_raw_truncate(fd, c->offset);
		return;
	}
	for (size_t i = 0, n, nr = c->len / FE_SECTOR; i < nr; i += n + 1) {
		for (n = 0; i + n < nr && c->sectors[i + n] &&
		     (!chosen || chosen[i + n]); n++)
			;
		if (n)
			fe_raw_write(fd, c->data + i * FE_SECTOR, n * FE_SECTOR,
				     c->offset + i * FE_SECTOR);
	}
}

static inline void fe_change_free(struct fe_change *c)
{
	list_del(&c->link);
	free(c->data);
	free(c->sectors);
	free(c);
}

static inline struct fe_change *fe_record(struct engine *e, const void *buf,
				   size_t len, uint64_t offset, bool truncate)
{
	struct fe_change *c = calloc(1, sizeof(*c));

	if (!c)
		fe_die("fault engine");
	c->truncate = truncate;
	c->offset = offset;
	c->len = len;
	c->completed = UINT64_MAX;
	if (!truncate) {
		c->data = malloc(len);
		c->sectors = calloc(len / FE_SECTOR, sizeof(bool));
		if (!c->data || !c->sectors)
			fe_die("fault engine");
		memcpy(c->data, buf, len);
		for (size_t i = 0; i < len / FE_SECTOR; i++)
			c->sectors[i] = true;
	}
	list_add_tail(&c->link, &e->changes);
	return c;
}

/* What was complete before is on the medium from now on. */
static inline void fe_make_durable(struct engine *e, uint64_t before)
{
	list_for_each_safe(pos, tmp, &e->changes) {
		struct fe_change *c = container_of(pos, struct fe_change, link);

		if (c->completed >= before)
			continue;
		fe_change_apply(c, e->durable, NULL);
		fe_change_free(c);
	}
}

/* True if a synchronous call fails. */
static inline bool fe_fails(struct engine *e, unsigned int one_in)
{
	if (e->die_after && !--e->die_after)
		e->dead = true;
	return e->dead || fe_one_in(e, one_in);
}

/* In place of libc's, for the synchronous code that closes an image. */
ssize_t pwrite(int fd, const void *buf, size_t len, off_t offset)
{
	struct engine *e = fe_active;

	if (!fe_follows(fd))
		return real_pwrite(fd, buf, len, offset);
	if (fe_fails(e, e->fail_write)) {
		errno = EIO;
		return -1;
	}
	if (e->full) {
		errno = ENOSPC;
		return -1;
	}
	fe_record(e, buf, len, (uint64_t)offset, false)->completed = e->clock++;
	fe_raw_write(fd, buf, len, (uint64_t)offset);
	return (ssize_t)len;
}

int ftruncate(int fd, off_t size)
{
	struct engine *e = fe_active;

	if (!fe_follows(fd))
		return real_ftruncate(fd, size);
	if (fe_fails(e, e->fail_write)) {
		errno = EIO;
		return -1;
	}
	e->full = false;
	fe_record(e, NULL, 0, (uint64_t)size, true)->completed = e->clock++;
	fe_raw_truncate(fd, (uint64_t)size);
	return 0;
}

int fdatasync(int fd)
{
	struct engine *e = fe_active;

	if (!fe_follows(fd))
		return 0;
	if (fe_fails(e, e->fail_sync)) {
		errno = EIO;
		return -1;
	}
	fe_make_durable(e, e->clock++);
	return 0;
}

void engine_queue(struct engine *e, struct io_req *req)
{
	list_for_each(pos, &e->pending)
		if (pos == &req->link) {
			fputs("fault engine: a request is queued twice\n", stderr);
			abort();
		}
	req->result = FE_WAITING;
	req->transferred = (size_t)e->clock++;
	list_add_tail(&req->link, &e->pending);
	e->nr_pending++;
}

void engine_file_add(struct engine *e, int fd, uint32_t block)
{
	(void)e;
	(void)block;
	/* The page cache is quicker, and the engine says what is durable. */
	fcntl(fd, F_SETFL, 0);
}

static inline void fe_unplug(struct engine *e)
{
	struct io_plug *plug = container_of(list_pop(&e->plugs),
					    struct io_plug, link);

	fe_trace("unplug", 0, 0, 0);
	plug->armed = false;
	plug->unplug(plug);
}

static inline void fe_expire(struct engine *e)
{
	struct io_timer *timer = container_of(list_pop(&e->timers),
					      struct io_timer, link);

	fe_trace("timer", 0, 0, 0);
	timer->armed = false;
	timer->expired(timer);
}

static inline int fe_read(const struct io_req *req)
{
	ssize_t got = pread(req->fd, req->iov->iov_base, req->iov->iov_len,
			    (off_t)req->offset);

	if (got < 0)
		return -errno;
	return (size_t)got == req->iov->iov_len ? 0 : -ENODATA;
}

static inline uint64_t fe_len(const struct io_req *req)
{
	uint64_t len = 0;

	if (req->op == IO_SYNC)
		return 0;
	if (req->op > IO_SYNC)
		return req->len;
	for (int i = 0; i < req->iovcnt; i++)
		len += req->iov[i].iov_len;
	return len;
}

static inline void fe_write(struct engine *e, struct io_req *req, bool all)
{
	struct fe_change *c;
	size_t len = (size_t)fe_len(req), at = 0;
	uint8_t *data;

	if (!fe_follows(req->fd))
		fe_die("fault engine: a write to another file");
	/* A hole reads as zeros, too. */
	data = calloc(1, len);
	if (!data)
		fe_die("fault engine");
	for (int i = 0; req->op == IO_WRITE && i < req->iovcnt; i++) {
		memcpy(data + at, req->iov[i].iov_base, req->iov[i].iov_len);
		at += req->iov[i].iov_len;
	}
	c = fe_record(e, data, len, req->offset, false);
	free(data);
	for (size_t i = 0; !all && i < c->len / FE_SECTOR; i++)
		c->sectors[i] = fe_one_in(e, 2);
	fe_change_apply(c, req->fd, NULL);
	req->transferred = (size_t)(uintptr_t)c;
}

static inline void fe_apply(struct engine *e, struct io_req *req)
{
	bool reached = false;
	int err = e->script ? e->script(e, req, &reached) : 0;

	switch (req->op) {
	case IO_READ:
		if (!err && fe_one_in(e, e->fail_read))
			err = -EIO;
		if (!err)
			err = fe_read(req);
		break;
	case IO_PUNCH:
	case IO_ZERO:
		if (req->op == IO_PUNCH ? e->no_punch : e->no_zero)
			err = -EOPNOTSUPP;
		/* fall through */
	case IO_WRITE:
		if (!err && fe_one_in(e, e->fail_write)) {
			err = fe_one_in(e, 2) ? -EIO : -ENOSPC;
			if (fe_one_in(e, 3))
				reached = true;
			else if (fe_one_in(e, 2)) {
				fe_write(e, req, false);
				break;
			}
		}
		req->transferred = 0;
		if (!err || reached)
			fe_write(e, req, true);
		break;
	case IO_SYNC:
		if (!err && fe_one_in(e, e->fail_sync))
			err = -EIO;
		if (!err && fe_follows(req->fd))
			fe_make_durable(e, req->transferred);
		break;
	case IO_RECV:
	case IO_SEND:
	case IO_COMMAND:
		err = -EOPNOTSUPP;
		break;
	}
	req->result = err;
}

static inline bool fe_changes(const struct io_req *req)
{
	return req->op != IO_READ && req->op != IO_SYNC;
}

static inline void fe_complete(struct engine *e, struct io_req *req)
{
	static const char *const names[] = { "read", "write", "sync", "punch",
					     "zero" };

	fe_trace(names[req->op], req->offset,
		 fe_len(req), req->result);
	list_del(&req->link);
	e->nr_pending--;
	if (fe_changes(req) && req->transferred)
		((struct fe_change *)(uintptr_t)req->transferred)->completed =
			e->clock++;
	req->done(req, req->result);
}

/* Goes on with one request; false if there is none that may. */
static inline bool fe_step(struct engine *e)
{
	unsigned int nr = 0, pick;
	struct io_req *req;

	list_for_each(pos, &e->pending)
		nr += !e->hold ||
		      !e->hold(container_of(pos, struct io_req, link));
	if (!list_empty(&e->plugs) && (!nr || fe_one_in(e, 2))) {
		e->steps++;
		fe_unplug(e);
		return true;
	}
	if (!list_empty(&e->timers) && (!nr || fe_one_in(e, 2))) {
		e->steps++;
		fe_expire(e);
		return true;
	}
	if (!nr)
		return false;
	e->steps++;
	pick = fe_below(e, nr);
	list_for_each(pos, &e->pending) {
		req = container_of(pos, struct io_req, link);
		if ((e->hold && e->hold(req)) || pick--)
			continue;
		if (req->result != FE_WAITING) {
			fe_complete(e, req);
		} else {
			fe_apply(e, req);
			if (fe_one_in(e, 2))
				fe_complete(e, req);
		}
		break;
	}
	return true;
}

/* The process dies: what was queued has happened, in part or not at all. */
static inline void fe_kill(struct engine *e)
{
	struct list *item;

	fe_trace("kill", 0, e->nr_pending, 0);
	while ((item = list_pop(&e->plugs)))
		container_of(item, struct io_plug, link)->armed = false;
	while ((item = list_pop(&e->timers)))
		container_of(item, struct io_timer, link)->armed = false;
	while ((item = list_pop(&e->pending))) {
		struct io_req *req = container_of(item, struct io_req, link);

		if (req->result == FE_WAITING && fe_changes(req) &&
		    fe_one_in(e, 2))
			fe_write(e, req, fe_one_in(e, 2));
	}
	e->nr_pending = 0;
	list_for_each(pos, &e->changes) {
		struct fe_change *c = container_of(pos, struct fe_change, link);

		if (c->completed == UINT64_MAX)
			c->completed = e->clock++;
	}
	e->dead = true;
}

/* After fe_kill(): the file becomes what the medium may hold. */
static inline void fe_power_loss(struct engine *e)
{
	unsigned int keep = fe_below(e, 5);	/* of 4; sector by sector */

	while (!list_empty(&e->changes)) {
		struct fe_change *c = container_of(e->changes.next,
						   struct fe_change, link);
		size_t nr = c->len / FE_SECTOR;
		bool *chosen = calloc(nr + 1, sizeof(bool)), any = false;
		/* Mostly a write survives or doesn't; some are torn. */
		bool whole = !fe_one_in(e, 4), kept = fe_below(e, 4) < keep;

		if (!chosen)
			fe_die("fault engine");
		if (e->survives) {
			whole = true;
			kept = e->survives(c);
		}
		for (size_t i = 0; i <= nr; i++) {
			chosen[i] = whole ? kept : fe_below(e, 4) < keep;
			any |= chosen[i];
		}
		if (c->truncate ? kept : any)
			fe_change_apply(c, e->durable, chosen);
		fe_change_free(c);
		free(chosen);
	}
	fe_copy(e->durable, e->fd);
}

/* Follows the file at path from now on, all of which is durable. */
static inline void fe_open(struct engine *e, const char *path, uint64_t seed)
{
	char name[PATH_MAX + 16];
	struct stat st;

	memset(e, 0, sizeof(*e));
	list_init(&e->pending);
	list_init(&e->timers);
	list_init(&e->plugs);
	list_init(&e->changes);
	e->rng = seed * 0x9e3779b97f4a7c15u | 1;
	e->clock = 1;
	e->fd = open(path, O_RDWR | O_CLOEXEC);
	if (e->fd < 0 || fstat(e->fd, &st))
		fe_die(path);
	e->dev = st.st_dev;
	e->ino = st.st_ino;
	snprintf(name, sizeof(name), "%s.durable", path);
	e->durable = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (e->durable < 0)
		fe_die(name);
	unlink(name);
	fe_copy(e->fd, e->durable);
	fe_active = e;
}

static inline void fe_close(struct engine *e)
{
	while (!list_empty(&e->changes))
		fe_change_free(container_of(e->changes.next, struct fe_change,
					    link));
	close(e->fd);
	close(e->durable);
	fe_active = NULL;
}

#endif
