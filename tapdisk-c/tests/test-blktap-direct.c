/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Which extents the blktap driver is told, and what becomes of them when it takes
 * only some. The driver and the image are played here; the real ones are
 * tests/vm/test_blktap_direct.py's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "transport/blktap-direct.h"

#define TIB		(1ull << 31)	/* in sectors */
#define MAX_HELD	64

/* The driver */

static struct {
	struct blktap_extent held[MAX_HELD];
	unsigned int nr;
	unsigned int limit;		/* so many are taken in one call */
	unsigned int calls, withdrawals;
	bool dead;			/* the minor is being freed */
} driver;

static bool overlaps(const struct blktap_extent *a, uint64_t sector, uint64_t end)
{
	return a->sector < end && sector < a->sector + a->nr_sectors;
}

static int add(struct blktap_extents *arg)
{
	const struct blktap_extent *e = (const void *)(uintptr_t)arg->addr;

	driver.calls++;
	if (driver.dead) {
		errno = ENODEV;
		return -1;
	}
	for (arg->added = 0; arg->added < arg->nr; arg->added++, e++) {
		assert_true(e->nr_sectors && driver.nr < MAX_HELD);
		if (arg->added == driver.limit) {
			driver.dead = true;
			errno = EEXIST;
			return -1;
		}
		for (unsigned int i = 0; i < driver.nr; i++)
			if (overlaps(&driver.held[i], e->sector,
				     e->sector + e->nr_sectors)) {
				errno = EEXIST;
				return -1;
			}
		driver.held[driver.nr++] = *e;
	}
	return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	assert_int_equal(fd, 3);
	if (request == BLKTAP_IOC_ADD_EXTENTS)
		return add(arg);
	driver.withdrawals += request == BLKTAP_IOC_WITHDRAW;
	if (request == BLKTAP_IOC_WITHDRAW)
		((struct blktap_withdraw *)arg)->running = 0;
	return 0;
}

int fcntl(int fd, int cmd, ...)
{
	assert_int_equal(fd, 4);
	assert_int_equal(cmd, F_GETFL);
	return O_RDWR | O_DIRECT;
}

/* A raw image, all of which is one run. */
static bool whole(struct image *image, uint64_t sector, struct image_run *run)
{
	assert_true(sector < image->info.sectors);
	*run = (struct image_run){
		.count = image->info.sectors, .fd = 4, .write = true,
	};
	return true;
}

/* Blocks of 2 MiB, somewhere. */
static bool blocks(struct image *image, uint64_t sector, struct image_run *run)
{
	(void)image;
	*run = (struct image_run){
		.sector = sector & ~4095ull, .count = 4096, .fd = 4,
		.offset = (sector & ~4095ull) << 10, .write = true,
	};
	return true;
}

static const struct image_driver raw = { .run = whole };
static const struct image_driver vhd = { .run = blocks };
static struct image image;
static struct blktap_direct direct;

static void begin(const struct image_driver *kind, uint64_t sectors)
{
	memset(&driver, 0, sizeof(driver));
	driver.limit = MAX_HELD;
	image = (struct image){ .driver = kind };
	image.info.sectors = sectors;
	direct_init(&direct, 0);
	direct_on(&direct, 3);
	direct_start(&direct, &image);
	assert_non_null(direct.image);
}

static void learn(uint64_t sector, uint32_t count)
{
	direct_learn(&direct, sector, count, true);
	direct_push(&direct);
}

static const struct blktap_extent *extent_of(uint64_t sector)
{
	for (unsigned int i = 0; i < driver.nr; i++)
		if (overlaps(&driver.held[i], sector, sector + 1))
			return &driver.held[i];
	return NULL;
}

static void a_run_that_is_longer_than_an_extent_has_several(void **priv)
{
	static const uint64_t at[] = { 100, TIB - 8, TIB, 2 * TIB + TIB / 2, 3 * TIB - 8 };

	(void)priv;
	begin(&raw, 3 * TIB);
	for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
		const struct blktap_extent *e = extent_of(at[i]);

		/* The kernel would have served it. */
		if (e)
			continue;
		learn(at[i], 8);
		e = extent_of(at[i]);
		assert_non_null(e);
		assert_int_equal(e->offset, e->sector << 9);
	}
	assert_int_equal(driver.nr, 3);
	assert_int_equal(driver.withdrawals, 0);
	/* One request over the end of an extent is in none. */
	learn(TIB - 4, 8);
	assert_int_equal(driver.withdrawals, 0);
	assert_int_equal(driver.calls, 3);
	direct_off(&direct);
}

/* What the driver has taken is what it says this time, and not the last. */
static void a_minor_that_is_freed_meanwhile_takes_no_more(void **priv)
{
	(void)priv;
	begin(&vhd, 64 * 4096);
	driver.limit = 20;
	for (uint64_t block = 0; block < 24; block++)
		direct_learn(&direct, 4096 * block, 8, true);
	direct_push(&direct);
	assert_int_equal(driver.nr, 20);
	assert_int_equal(driver.calls, 2);
	/* It goes on without. */
	assert_null(direct.image);
	learn(0, 8);
	assert_int_equal(driver.calls, 2);
	direct_off(&direct);
}

/* What the kernel has of it is withdrawn, since nothing tells any more that it does. */
static void an_image_that_is_started_again_begins_with_nothing(void **priv)
{
	(void)priv;
	begin(&vhd, 64 * 4096);
	learn(0, 8);
	direct_start(&direct, &image);
	assert_int_equal(driver.withdrawals, 1);
	direct_off(&direct);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_run_that_is_longer_than_an_extent_has_several),
		cmocka_unit_test(an_image_that_is_started_again_begins_with_nothing),
		cmocka_unit_test(a_minor_that_is_freed_meanwhile_takes_no_more),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
