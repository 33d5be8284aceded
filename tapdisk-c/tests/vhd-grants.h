/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * What the kernel does with the places that an image tells it of: it reads and writes
 * there until they are taken back (image_watcher), with no word to the image.
 */
#ifndef XENBLK_VHD_GRANTS_H
#define XENBLK_VHD_GRANTS_H

#include "tests/vhd-bed.h"

#define MAX_GRANTS	16u
#define GRANT_READ	64u	/* sectors of one at a time */

struct grants {
	struct image_watcher watcher;
	struct image_run run[MAX_GRANTS];
	unsigned int nr;
};

static inline void grants_moved(struct image_watcher *watcher, uint64_t sector,
				uint64_t count)
{
	struct grants *g = container_of(watcher, struct grants, watcher);

	for (unsigned int i = 0; i < g->nr;) {
		const struct image_run *r = &g->run[i];

		if (sector < r->sector + r->count && r->sector < sector + count)
			g->run[i] = g->run[--g->nr];
		else
			i++;
	}
}

/* Of an image that has just been opened. */
static inline void grants_begin(struct grants *g, struct bed *b)
{
	*g = (struct grants){ .watcher.moved = grants_moved };
	b->disk->image.watcher = &g->watcher;
}

static inline void grants_io(struct bed *b, const struct image_run *r, uint64_t sector,
			     uint8_t *data, bool write)
{
	struct iovec iov = { .iov_base = data, .iov_len = SECTOR_SIZE };
	struct io_req req = {
		.op = write ? IO_WRITE : IO_READ, .fd = r->fd, .iov = &iov, .iovcnt = 1,
		.offset = r->offset + (sector - r->sector) * SECTOR_SIZE,
	};

	if (!write) {
		assert_int_equal(fe_read(&req), 0);
		return;
	}
	fe_write(&b->engine, &req, true);
	((struct fe_change *)(uintptr_t)req.transferred)->completed = b->engine.clock++;
}

/* A change of these sectors is under way: the guest must not care in which order they end. */
static inline bool changing(const struct bed *b, uint64_t sector, uint32_t count)
{
	for (unsigned int i = 0; i < MAX_SLOTS; i++) {
		const struct image_request *r = &b->slot[i].req;

		if (b->slot[i].busy && r->op != IMAGE_READ &&
		    r->op != IMAGE_STATUS &&
		    r->sector < sector + count && sector < r->sector + r->count)
			return true;
	}
	return false;
}

/* All of a short one; of a long one some, mostly at an end, where it may be too long. */
static inline void grants_read(struct bed *b, const struct image_run *r)
{
	_Alignas(IMAGE_ALIGN) uint8_t data[SECTOR_SIZE];
	uint64_t first = r->sector, end = r->sector + r->count;

	if (r->count > GRANT_READ) {
		if (fe_one_in(&b->engine, 2))
			first = end - GRANT_READ;
		else if (fe_one_in(&b->engine, 2))
			first += fe_below(&b->engine, (unsigned int)(r->count - GRANT_READ));
		end = first + GRANT_READ;
	}
	for (uint64_t at = first; at < end; at++) {
		memset(data, 0xa5, sizeof(data));
		grants_io(b, r, at, data, false);
		check_sector(b, "the kernel's read", at, tag_of(at, data), &b->now[at],
			     false);
	}
}

static inline void grants_write(struct bed *b, const struct image_run *r)
{
	uint64_t first = r->sector + fe_below(&b->engine, (unsigned int)r->count);
	_Alignas(IMAGE_ALIGN) uint8_t data[SECTOR_SIZE];

	b->tag++;
	for (uint64_t at = first; at < first + 8 && at < r->sector + r->count; at++) {
		if (changing(b, at, 1))
			continue;
		fill(data, at, 1, b->tag);
		grants_io(b, r, at, data, true);
		b->now[at] = (struct expect){ b->tag, b->tag, true };
		b->attempt[at] = b->tag;
	}
}

/*
 * Asks for one place more, then reads and writes where it may, whatever is under way.
 * One that may be written must have all that makes it the sectors' place in the file already.
 */
static inline void grants_use(struct grants *g, struct bed *b)
{
	uint64_t sector = fe_below(&b->engine, (unsigned int)b->sectors);
	struct image_run run;

	if (fe_one_in(&b->engine, 2))
		sector %= 64;
	if (vhd_run(&b->disk->image, sector, &run)) {
		assert_true(run.sector <= sector && sector < run.sector + run.count);
		assert_true(run.sector + run.count <= b->sectors);
		grants_moved(&g->watcher, run.sector, run.count);
		if (g->nr == MAX_GRANTS)
			g->nr = 0;
		g->run[g->nr++] = run;
	}
	for (unsigned int i = 0; i < g->nr; i++) {
		grants_read(b, &g->run[i]);
		if (g->run[i].write)
			grants_write(b, &g->run[i]);
	}
}

#endif
