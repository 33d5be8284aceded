/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/blktap-direct.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>

#include "common/log.h"
#include "common/pages.h"

/* What is told from what has no extent, and withdrawn together. */
#define GRANULE_SHIFT	12u		/* sectors: 2 MiB */

/* Not worth one. */
#define MIN_SECTORS	8u

/* Of one, in sectors; a power of two. */
#define LONGEST		(1ull << 31)

static void moved(struct image_watcher *watcher, uint64_t sector,
		  uint64_t count);

void direct_init(struct blktap_direct *d, int minor)
{
	d->fd = -1;
	d->minor = minor;
	d->watcher.moved = moved;
	for (unsigned int i = 0; i < BLKTAP_MAX_FILES; i++)
		d->file[i] = -1;
}

void direct_on(struct blktap_direct *d, int fd)
{
	d->fd = fd;
}

void direct_off(struct blktap_direct *d)
{
	if (d->image)
		d->image->watcher = NULL;
	d->image = NULL;
	d->fd = -1;
	d->nr = 0;
	d->draining = false;
	pages_free(d->granules, d->granule_bytes);
	d->granules = NULL;
	for (unsigned int i = 0; i < BLKTAP_MAX_FILES; i++)
		d->file[i] = -1;
}

/* Goes on without. usual: as with any file of its kind. */
static void give_up(struct blktap_direct *d, const char *what, bool usual)
{
	log_msg(usual ? LOG_LEVEL_INFO : LOG_LEVEL_WARN,
		"the kernel does no I/O by itself: %s minor=%d err=%d", what,
		d->minor, errno);
	direct_rest(d);
	d->fd = -1;
}

/* How much runs on what was withdrawn by now. A withdrawal that fails leaves it to the ring's end. */
static uint32_t withdraw(struct blktap_direct *d, uint64_t sector,
			 uint64_t count)
{
	struct blktap_withdraw arg = {
		.size = sizeof(arg), .sector = sector, .nr_sectors = count,
	};

	while (ioctl(d->fd, BLKTAP_IOC_WITHDRAW, &arg) < 0)
		if (errno != EINTR) {
			log_error("WITHDRAW failed minor=%d err=%d", d->minor,
				  errno);
			return 0;
		}
	return arg.running;
}

static bool has(const struct blktap_direct *d, uint64_t granule)
{
	return d->granules[granule >> 3] & 1u << (granule & 7);
}

/* Whole granules: what is written there next needs no withdrawal. */
static void withdraw_granules(struct blktap_direct *d, uint64_t sector,
			      uint64_t count)
{
	uint64_t first = sector >> GRANULE_SHIFT;
	uint64_t last = (sector + count - 1) >> GRANULE_SHIFT;
	bool any = false;

	for (uint64_t g = first; g <= last; g++) {
		any = any || has(d, g);
		d->granules[g >> 3] &= (uint8_t)~(1u << (g & 7));
	}
	if (any)
		withdraw(d, first << GRANULE_SHIFT,
			 (last - first + 1) << GRANULE_SHIFT);
}

/* What waits to be handed over goes too: nothing tells what of it is still true. */
static void moved(struct image_watcher *watcher, uint64_t sector,
		  uint64_t count)
{
	struct blktap_direct *d =
		container_of(watcher, struct blktap_direct, watcher);

	d->nr = 0;
	withdraw_granules(d, sector, count);
}

void direct_start(struct blktap_direct *d, struct image *image)
{
	if (d->fd < 0 || !image || !image->driver->run)
		return;
	/* What the kernel has of an image before is not known to this one. */
	direct_rest(d);
	d->sectors = image->info.sectors;
	d->granule_bytes = (size_t)(d->sectors >> GRANULE_SHIFT) / 8 + 1;
	d->granules = pages_alloc(d->granule_bytes);
	if (!d->granules)
		return;
	d->image = image;
	image->watcher = &d->watcher;
}

void direct_rest(struct blktap_direct *d)
{
	struct blktap_unfile arg = { .size = sizeof(arg) };

	if (!d->image)
		return;
	d->image->watcher = NULL;
	d->image = NULL;
	d->nr = 0;
	d->draining = withdraw(d, 0, UINT64_MAX);
	for (uint32_t i = 0; i < BLKTAP_MAX_FILES; i++) {
		if (d->file[i] < 0)
			continue;
		d->file[i] = -1;
		arg.number = i;
		if (ioctl(d->fd, BLKTAP_IOC_REMOVE_FILE, &arg) < 0)
			log_error("REMOVE_FILE failed minor=%d err=%d", d->minor,
				  errno);
	}
	pages_free(d->granules, d->granule_bytes);
	d->granules = NULL;
}

/* The number of a descriptor, registered if it is not yet; -1: can't be. */
static int number(struct blktap_direct *d, const struct image_run *run)
{
	struct blktap_file arg = { .size = sizeof(arg), .fd = run->fd };
	int flags = fcntl(run->fd, F_GETFL);
	unsigned int i;

	for (i = 0; i < BLKTAP_MAX_FILES && d->file[i] >= 0; i++)
		if (d->file[i] == run->fd)
			return (int)i;
	if (i == BLKTAP_MAX_FILES)
		return -1;
	arg.number = i;
	/* A leaf is written to sooner or later. */
	if ((flags & O_ACCMODE) == O_RDWR)
		arg.flags = BLKTAP_FILE_WRITE;
	if (ioctl(d->fd, BLKTAP_IOC_ADD_FILE, &arg) < 0) {
		/* Over a network, or in memory. */
		give_up(d, "ADD_FILE",
			errno == EOPNOTSUPP || !(flags & O_DIRECT));
		return -1;
	}
	d->file[i] = run->fd;
	return (int)i;
}

static bool learnt(const struct blktap_direct *d, const struct image_run *run)
{
	for (unsigned int i = 0; i < d->nr; i++)
		if (run->sector < d->batch[i].sector + d->batch[i].nr_sectors &&
		    d->batch[i].sector < run->sector + run->count)
			return true;
	return false;
}

/* An extent has 32 bits for its length: a longer run has several, each at a multiple of the longest. */
static void window(struct image_run *run, uint64_t sector)
{
	uint64_t skip = (sector - run->sector) & ~(LONGEST - 1);

	run->sector += skip;
	run->offset += skip << SECTOR_SHIFT;
	run->count -= skip;
	if (run->count > LONGEST)
		run->count = LONGEST;
}

void direct_learn(struct blktap_direct *d, uint64_t sector, uint32_t count,
		  bool write)
{
	struct image_run run;
	int file;

	if (!d->image || d->nr == DIRECT_BATCH ||
	    !d->image->driver->run(d->image, sector, &run))
		return;
	window(&run, sector);
	/* It would not have helped this one. */
	if (sector + count > run.sector + run.count || (write && !run.write) ||
	    run.count < MIN_SECTORS || learnt(d, &run))
		return;
	file = number(d, &run);
	if (file < 0)
		return;
	d->batch[d->nr++] = (struct blktap_extent) {
		.sector = run.sector,
		.offset = run.offset,
		.nr_sectors = (uint32_t)run.count,
		.file = (uint16_t)file,
		.flags = run.write ? BLKTAP_EXTENT_WRITE : 0,
	};
}

void direct_refuse(struct blktap_direct *d, uint64_t sector, uint32_t count)
{
	if (d->image && count)
		withdraw_granules(d, sector, count);
}

static void mark(struct blktap_direct *d, const struct blktap_extent *e)
{
	uint64_t last = (e->sector + e->nr_sectors - 1) >> GRANULE_SHIFT;

	for (uint64_t g = e->sector >> GRANULE_SHIFT; g <= last; g++)
		d->granules[g >> 3] |= (uint8_t)(1u << (g & 7));
}

/* The first of e can't be added: makes room for it, or says that it is to be left out. */
static bool make_room(struct blktap_direct *d, const struct blktap_extent *e,
		      int err)
{
	/* What was there was less: a shorter run, or not for writing. */
	if (err == EEXIST) {
		withdraw(d, e->sector, e->nr_sectors);
		return true;
	}
	if (err == ENOSPC) {
		withdraw(d, 0, UINT64_MAX);
		memset(d->granules, 0, d->granule_bytes);
		return true;
	}
	return err == EINTR;
}

void direct_push(struct blktap_direct *d)
{
	struct blktap_extents arg = { .size = sizeof(arg) };
	unsigned int at = 0, tries = 0;

	while (at < d->nr && d->image) {
		arg.addr = (uintptr_t)&d->batch[at];
		arg.nr = d->nr - at;
		arg.added = 0;
		if (ioctl(d->fd, BLKTAP_IOC_ADD_EXTENTS, &arg) == 0)
			errno = 0;
		for (uint32_t i = 0; i < arg.added; i++)
			mark(d, &d->batch[at + i]);
		tries = arg.added ? 0 : tries + 1;
		at += arg.added;
		if (!errno)
			break;
		if (tries > 1 || !make_room(d, &d->batch[at], errno)) {
			if (errno != EEXIST && errno != EINTR) {
				give_up(d, "ADD_EXTENTS", false);
				return;
			}
			at++;
			tries = 0;
		}
	}
	d->nr = 0;
}
