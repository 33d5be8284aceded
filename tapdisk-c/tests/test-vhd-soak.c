/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The VHD data path under random requests, faults, kills and power losses:
 * what docs/architecture.md says a completed write promises.
 *
 *   SOAK_SECONDS=n   how long it runs (10)
 *   SOAK_SEED=n      one round only, that one
 *   SOAK_ROUNDS=n    so many, that one and those whose seeds follow
 *   FAULT_TRACE=1    what happens, on stderr
 */
#include "tests/vhd-grants.h"

#include <time.h>

#include "common/clock.h"

static void random_request(struct bed *b, unsigned int max_busy)
{
	struct engine *e = &b->engine;
	uint32_t spb = b->disk->leaf->spb, count;
	uint64_t sector;

	if (b->busy >= max_busy)
		return;
	if (fe_one_in(e, 12)) {
		start(b, IMAGE_FLUSH, 0, 0);
		return;
	}
	count = fe_one_in(e, 3) ? 1 + fe_below(e, MAX_COUNT) :
				  1 + fe_below(e, 12);
	sector = fe_below(e, (unsigned int)b->sectors);
	/* Across a border of blocks, or the same few places again. */
	if (fe_one_in(e, 4))
		sector = sector / spb * spb - (sector >= spb ? 1 : 0);
	else if (fe_one_in(e, 3))
		sector %= 64;
	if (count > b->sectors - sector)
		count = (uint32_t)(b->sectors - sector);
	if (fe_one_in(e, 3))
		start(b, fe_one_in(e, 6) ? IMAGE_STATUS : IMAGE_READ, sector,
		      count);
	else if (!changing(b, sector, count))
		start(b, !fe_one_in(e, 4) ? IMAGE_WRITE :
			 fe_one_in(e, 4) ? IMAGE_DISCARD : IMAGE_ZERO,
		      sector, count);
}

/* grants: what the kernel has of it meanwhile, or NULL. */
static void session(struct bed *b, struct grants *grants, unsigned int requests)
{
	unsigned int max_busy = 1 + fe_below(&b->engine, MAX_SLOTS);

	while (requests) {
		if (grants && fe_one_in(&b->engine, 24))
			grants_use(grants, b);
		if (fe_below(&b->engine, 3))
			fe_step(&b->engine);
		else {
			random_request(b, max_busy);
			requests--;
		}
	}
}

static void random_shape(struct engine *dice, struct spec *spec)
{
	static const uint32_t sizes[] = { 4096, 4096, 4096, 8192, 8192, 65536,
					  65536, 65536, 65536, 1u << 20,
					  1u << 20, 2u << 20, 8u << 20 };
	uint32_t size = sizes[fe_below(dice, sizeof(sizes) / sizeof(sizes[0]))];

	spec->batmap = fe_one_in(dice, 2);
	spec->block_size = size;
	spec->sectors = (uint64_t)size / SECTOR_SIZE *
			(2 + fe_below(dice, size < 65536 ? 300 :
				      size > 65536 ? 2 : 40)) +
			fe_below(dice, 8);
}

static void make_raw(const struct spec *spec)
{
	int fd = open(in_dir("base.raw"), O_RDWR | O_CREAT | O_TRUNC, 0600);
	uint8_t sector[SECTOR_SIZE];

	assert_true(fd >= 0);
	assert_int_equal(real_ftruncate(fd, (off_t)(spec->sectors *
							SECTOR_SIZE)), 0);
	for (uint64_t i = 0; i < spec->sectors; i += 1 + i % 3) {
		fill(sector, i, 1, 1);
		put(fd, sector, SECTOR_SIZE, i * SECTOR_SIZE);
	}
	close(fd);
}

/* What a disk without writes of its own reads as. */
static void inherit(struct bed *b, const struct spec *spec,
		    const struct bed *parent)
{
	uint64_t n = 0;

	if (spec->parent_raw)
		for (uint64_t i = 0; i < b->sectors; i += 1 + i % 3)
			b->now[i].value = 1;
	if (parent) {
		n = parent->sectors < b->sectors ? parent->sectors : b->sectors;
		b->tag = parent->tag;
	}
	for (uint64_t i = 0; i < n; i++)
		b->now[i].value = parent->now[i].value;
	for (uint64_t i = 0; i < b->sectors; i++)
		b->now[i].since = b->tag;
	memcpy(b->flushed, b->now, (size_t)b->sectors * sizeof(*b->now));
}

/* A parent between, of its own size and block size, with some writes in it. */
static void make_middle(struct engine *dice, const struct spec *leaf,
			struct bed *b)
{
	struct spec spec = { .parent = leaf->parent,
			     .parent_raw = leaf->parent_raw };

	random_shape(dice, &spec);
	if (spec.parent && spec.sectors > leaf->sectors)
		spec.sectors = leaf->sectors;
	make_image("mid.vhd", &spec);
	bed_init(b, "mid.vhd", spec.sectors);
	inherit(b, &spec, NULL);
	follow(b, fe_random(dice));
	disk_open(b, 0, 0);
	session(b, NULL, 100);
	settle(b);
	/* What became of the sectors that were discarded. */
	look(b, false);
	assert_int_equal(disk_close(b), 0);
	fe_close(&b->engine);
}

static void soak_round(uint64_t seed)
{
	struct engine dice = { .rng = seed * 0x9e3779b97f4a7c15u | 1 };
	struct bed bed, middle, *b = &bed;
	struct spec spec = { 0 };
	struct grants grants;
	bool has_middle;
	unsigned int rate, ops, bitmaps;
	bool failed = false, quiet;

	for (int i = 0; i < 8; i++)
		fe_random(&dice);
	unlink(in_dir("leaf.vhd"));
	random_shape(&dice, &spec);
	if (fe_one_in(&dice, 2)) {
		spec.parent = "base.raw";
		spec.parent_raw = true;
		make_raw(&spec);
	}
	has_middle = fe_one_in(&dice, 2);
	if (has_middle) {
		make_middle(&dice, &spec, &middle);
		spec.parent = "mid.vhd";
		spec.parent_raw = false;
	}
	if (fe_one_in(&dice, 4))
		spec.device = round_up_u64(spec.sectors * SECTOR_SIZE * 3 +
					   (2ull << 20), 1 << 16);
	make_image("leaf.vhd", &spec);
	bed_init(b, "leaf.vhd", spec.sectors);
	b->blk = spec.device;
	inherit(b, &spec, has_middle ? &middle : NULL);
	if (has_middle)
		bed_dispose(&middle);
	follow(b, seed);

	for (int i = 0; i < 5; i++) {
		rate = fe_one_in(&dice, 2) ? 0 : 4 + fe_below(&dice, 40);
		ops = fe_one_in(&dice, 2) ? 0 : 1 + fe_below(&dice, 6);
		bitmaps = fe_one_in(&dice, 2) ? 1 + fe_below(&dice, MAX_SLOTS) :
					       0;
		disk_open(b, ops, bitmaps);
		if (fe_one_in(&dice, 2))
			b->disk->grow.step = 1u << (14 + fe_below(&dice, 6));
		if (fe_one_in(&dice, 2))
			b->disk->map.pool[0].limit =
				b->disk->map.pool[1].limit =
				1 + fe_below(&dice, 4);
		b->engine.no_punch = fe_one_in(&dice, 3);
		b->engine.no_zero = fe_one_in(&dice, 3);
		if (i)
			look(b, false);
		set_faults(b, rate);
		failed |= rate;
		grants_begin(&grants, b);
		for (unsigned int n = fe_below(&dice, 8); n; n--) {
			session(b, &grants, fe_below(&dice, 20));
			settle(b);
			grants_use(&grants, b);
		}
		session(b, &grants, 30 + fe_below(&dice, 200));
		switch (fe_below(&dice, 3)) {
		case 0:
			settle(b);
			/* Untouched, it keeps what a kill has left at its end. */
			quiet = !failed && !b->blk && b->disk->changed;
			if (disk_close(b))
				assert_true(rate);
			else
				check_image(b, quiet);
			break;
		case 1:
			disk_kill(b);
			check_image(b, false);
			break;
		case 2:
			if (fe_one_in(&dice, 2)) {
				/* In the middle of the close. */
				settle(b);
				b->engine.die_after = 1 + fe_below(&dice, 6);
				disk_close(b);
				b->engine.die_after = 0;
				fe_kill(&b->engine);
			} else {
				disk_kill(b);
			}
			fe_power_loss(&b->engine);
			check_image(b, false);
			disk_open(b, 0, 0);
			look(b, true);
			disk_kill(b);
			break;
		}
	}
	fe_close(&b->engine);
	bed_dispose(b);
}

/* Printed first: a fault may end the program. */
static void numbered_round(uint64_t seed)
{
	fprintf(stderr, "SOAK_SEED=%llu\r", (unsigned long long)seed);
	soak_round(seed);
}

static void what_is_promised_holds_whatever_happens(void **state)
{
	const char *first = getenv("SOAK_SEED"), *rounds = getenv("SOAK_ROUNDS");
	const char *s = getenv("SOAK_SECONDS");
	uint64_t seed = first ? strtoull(first, NULL, 0) : (uint64_t)time(NULL) << 20;
	uint64_t from = seed, end;

	(void)state;
	if (first) {
		end = seed + (rounds ? strtoull(rounds, NULL, 0) : 1);
		while (seed < end)
			numbered_round(seed++);
	} else {
		end = now_ns() + (uint64_t)(s ? atoi(s) : 10) * 1000000000u;
		do
			numbered_round(seed++);
		while (now_ns() < end);
	}
	print_message("%llu rounds from seed %llu\n",
		      (unsigned long long)(seed - from), (unsigned long long)from);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_promised_holds_whatever_happens),
	};

	return cmocka_run_group_tests(tests, scratch, scratch_remove);
}
