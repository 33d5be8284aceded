/* SPDX-License-Identifier: LGPL-2.1-only */
/* Copies between images when I/O comes in any order, fails, is stopped or cut off. */
#include "tests/vhd-bed.h"

#include "jobs/pump.h"

#define SECTORS		8192u		/* 4 MiB */
#define PARENT_SECTORS	800u		/* of the VHDs */

static unsigned int cut_after;		/* steps until all is cut off; 0: never */

int engine_run(struct engine *e, int timeout_ms)
{
	(void)timeout_ms;
	if (cut_after && !--cut_after) {
		fe_kill(e);
		return -EIO;
	}
	return fe_step(e) ? 0 : -EDEADLK;
}

uint16_t engine_buffer_add(struct engine *e, void *base, size_t len)
{
	(void)e;
	(void)base;
	(void)len;
	return 0;
}

void engine_buffer_remove(struct engine *e, uint16_t buffer)
{
	(void)e;
	(void)buffer;
}

/* Raw images: leaf.vhd is the name of the target, base.raw the source's. */

struct raw_bed {
	struct engine engine;
	struct config cfg;
	struct image *from, *to;
	uint8_t *data;			/* of the source */
	bool *held;			/* a source's sector is no hole */
};

static struct image *open_image(struct engine *engine, const struct config *cfg,
				const struct image_driver *driver,
				struct image_open_args args)
{
	struct image *image;
	struct error err;

	args.engine = engine;
	args.config = cfg;
	args.max_requests = PUMP_SLOTS;
	if (driver->open(&image, &args, &err))
		fail_msg("%s", err.text);
	return image;
}

static void make_raw(const char *name, uint64_t sectors)
{
	int fd = open(in_dir(name), O_RDWR | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	fe_raw_truncate(fd, sectors * SECTOR_SIZE);
	close(fd);
}

static void hold(struct raw_bed *b, uint64_t sector, uint32_t count)
{
	int fd = open(in_dir("base.raw"), O_RDWR);

	for (uint64_t i = sector; i < sector + count; i++)
		b->held[i] = true;
	fill(b->data + sector * SECTOR_SIZE, sector, count, 7);
	put(fd, b->data + sector * SECTOR_SIZE, (size_t)count * SECTOR_SIZE,
	    sector * SECTOR_SIZE);
	close(fd);
}

static void raw_begin(struct raw_bed *b, uint64_t target, uint64_t seed)
{
	struct error err;

	memset(b, 0, sizeof(*b));
	cut_after = 0;
	b->data = calloc(SECTORS, SECTOR_SIZE);
	b->held = calloc(SECTORS, sizeof(bool));
	assert_true(b->data && b->held);
	make_raw("base.raw", SECTORS);
	make_raw("leaf.vhd", target);
	assert_int_equal(config_load(&b->cfg, "/nonexistent", &err), 0);
	fe_open(&b->engine, in_dir("leaf.vhd"), seed);
}

static void raw_open(struct raw_bed *b)
{
	b->from = open_image(&b->engine, &b->cfg, &raw_driver,
			     (struct image_open_args){
				     .path = in_dir("base.raw"),
				     .readonly = true,
			     });
	b->to = open_image(&b->engine, &b->cfg, &raw_driver,
			   (struct image_open_args){
				   .path = in_dir("leaf.vhd"),
			   });
}

static void raw_end(struct raw_bed *b)
{
	if (b->from) {
		assert_int_equal(b->engine.nr_pending, 0);
		raw_driver.close(b->from, NULL);
		raw_driver.close(b->to, NULL);
	}
	fe_close(&b->engine);
	config_dispose(&b->cfg);
	free(b->data);
	free(b->held);
}

static int go(struct raw_bed *b, struct pump pump, struct error *err)
{
	if (!b->from)
		raw_open(b);
	pump.from = b->from;
	pump.to = b->to;
	pump.from_name = "source";
	pump.to_name = "target";
	return pump_run(&pump, err);
}

static uint64_t blocks_of_target(void)
{
	struct stat st;

	assert_int_equal(stat(in_dir("leaf.vhd"), &st), 0);
	return (uint64_t)st.st_blocks;
}

static void check_target(const struct raw_bed *b)
{
	uint8_t *have = calloc(SECTORS, SECTOR_SIZE);
	int fd = open(in_dir("leaf.vhd"), O_RDONLY);

	assert_true(have && fd >= 0);
	assert_int_equal(pread(fd, have, SECTORS * SECTOR_SIZE, 0),
			 SECTORS * SECTOR_SIZE);
	assert_memory_equal(have, b->data, SECTORS * SECTOR_SIZE);
	close(fd);
	free(have);
}

static void what_holds_data_is_copied_and_holes_are_kept(void **state)
{
	struct pump pump = { .from = NULL };
	struct raw_bed b;

	(void)state;
	for (uint64_t seed = 1; seed <= 20; seed++) {
		raw_begin(&b, SECTORS, seed);
		for (unsigned int i = fe_below(&b.engine, 8); i; i--)
			hold(&b, 8 * fe_below(&b.engine, SECTORS / 8 - 40),
			     8 * (1 + fe_below(&b.engine, 40)));
		assert_int_equal(go(&b, pump, NULL), 0);
		check_target(&b);
		for (uint64_t i = 0; i < SECTORS; i++)
			assert_true(b.held[i] || !b.data[i * SECTOR_SIZE]);
		assert_true(blocks_of_target() <= 8 * 320);
		raw_end(&b);
	}
}

static void progress_count(void *priv, uint64_t done, uint64_t total)
{
	uint64_t *last = priv;

	assert_true(done >= *last && done <= total);
	assert_int_equal(total, SECTORS * SECTOR_SIZE);
	*last = done;
}

static void progress_only_grows_and_comes_to_all(void **state)
{
	uint64_t last = 0;
	struct pump pump = { .progress = progress_count, .priv = &last };
	struct raw_bed b;

	(void)state;
	raw_begin(&b, SECTORS, 1);
	hold(&b, 1000, 4000);
	assert_int_equal(go(&b, pump, NULL), 0);
	assert_int_equal(last, SECTORS * SECTOR_SIZE);
	raw_end(&b);
}

static void image_that_cannot_say_is_copied_whole(void **state)
{
	struct pump pump = { .skip_zeros = true };
	struct raw_bed b;

	(void)state;
	raw_begin(&b, SECTORS, 1);
	hold(&b, 1000, 400);
	raw_open(&b);
	b.from->info.can = 0;
	assert_int_equal(go(&b, pump, NULL), 0);
	check_target(&b);
	/* Zeros are left out all the same. */
	assert_true(blocks_of_target() < 1000);
	raw_end(&b);
}

static void zeros_are_written_where_there_may_be_something(void **state)
{
	struct pump pump = { .from = NULL };
	struct raw_bed b;
	int fd;

	(void)state;
	raw_begin(&b, SECTORS, 1);
	hold(&b, 0, 2000);
	memset(b.data + 8 * SECTOR_SIZE, 0, 1000 * SECTOR_SIZE);
	fd = open(in_dir("base.raw"), O_RDWR);
	put(fd, b.data, 2000 * SECTOR_SIZE, 0);
	close(fd);
	fd = open(in_dir("leaf.vhd"), O_RDWR);
	put(fd, "x", 1, 100 * SECTOR_SIZE);
	close(fd);
	assert_int_equal(go(&b, pump, NULL), 0);
	check_target(&b);
	raw_end(&b);
}

static const struct { enum io_op op; } faulty[] = {
	{ IO_READ }, { IO_WRITE }, { IO_SYNC },
};
static enum io_op fails_op;

static int one_fails(struct engine *e, const struct io_req *req, bool *reached)
{
	(void)e;
	*reached = false;
	if (req->op != fails_op)
		return 0;
	return req->op == IO_SYNC || req->offset >= 2000 * SECTOR_SIZE ? -EIO : 0;
}

static void an_error_ends_it_and_is_told_with_its_side_and_place(void **state)
{
	static const char *const text[] = {
		[IO_READ] = "source: reading at sector ",
		[IO_WRITE] = "target: writing at sector ",
		[IO_SYNC] = "target: flush: ",
	};
	struct pump pump = { .from = NULL };
	struct raw_bed b;
	struct error err;

	(void)state;
	for (uint64_t seed = 1; seed <= 30; seed++) {
		fails_op = faulty[seed % 3].op;
		raw_begin(&b, SECTORS, seed);
		hold(&b, 0, SECTORS);
		b.engine.script = one_fails;
		assert_int_equal(go(&b, pump, &err), -EIO);
		assert_ptr_equal(strstr(err.text, text[fails_op]), err.text);
		assert_non_null(strstr(err.text, strerror(EIO)));
		raw_end(&b);
	}
}

static void source_that_became_shorter_is_an_error(void **state)
{
	struct pump pump = { .from = NULL };
	struct raw_bed b;
	struct error err;

	(void)state;
	raw_begin(&b, SECTORS, 1);
	hold(&b, 0, SECTORS);
	raw_open(&b);
	assert_int_equal(truncate(in_dir("base.raw"), SECTORS * SECTOR_SIZE / 2),
			 0);
	assert_int_equal(go(&b, pump, &err), -EIO);
	assert_non_null(strstr(err.text, "source: reading"));
	raw_end(&b);
}

static void smaller_target_is_not_touched(void **state)
{
	struct pump pump = { .from = NULL };
	struct raw_bed b;
	struct error err;

	(void)state;
	raw_begin(&b, SECTORS - 8, 1);
	hold(&b, 0, SECTORS);
	assert_int_equal(go(&b, pump, &err), -ENOSPC);
	assert_non_null(strstr(err.text, "target"));
	assert_int_equal(blocks_of_target(), 0);
	raw_end(&b);
}

static volatile sig_atomic_t stop;

static int stop_at_a_write(struct engine *e, const struct io_req *req,
			   bool *reached)
{
	(void)e;
	*reached = false;
	stop |= req->op == IO_WRITE;
	return 0;
}

static void a_stop_ends_it_when_what_is_under_way_is_done(void **state)
{
	struct pump pump = { .stop = &stop };
	struct raw_bed b;

	(void)state;
	stop = 0;
	raw_begin(&b, SECTORS, 1);
	hold(&b, 0, SECTORS);
	b.engine.script = stop_at_a_write;
	assert_int_equal(go(&b, pump, NULL), -ECANCELED);
	assert_true(blocks_of_target() < SECTORS);
	raw_end(&b);
}

static unsigned int syncs, far_writes;

static int first_sync_fails(struct engine *e, const struct io_req *req,
			    bool *reached)
{
	(void)e;
	*reached = false;
	return req->op == IO_SYNC && ++syncs == 1 ? -EIO : 0;
}

/* The flushes before the last one: what they tell is not told again. */
static void a_flush_on_the_way_that_fails_is_told(void **state)
{
	struct pump pump = { .flush_bytes = 512 << 10 };
	struct raw_bed b;

	(void)state;
	for (uint64_t seed = 1; seed <= 10; seed++) {
		struct error err = { 0 };

		raw_begin(&b, SECTORS, seed);
		hold(&b, 0, SECTORS);
		syncs = 0;
		b.engine.script = first_sync_fails;
		assert_int_equal(go(&b, pump, &err), -EIO);
		assert_non_null(strstr(err.text, "target: flush"));
		raw_end(&b);
	}
	for (uint64_t seed = 1; seed <= 10; seed++) {
		raw_begin(&b, SECTORS, seed);
		hold(&b, 0, SECTORS);
		assert_int_equal(go(&b, pump, NULL), 0);
		check_target(&b);
		raw_end(&b);
	}
}

/* The growth for the whole disk fails, so that it grows in steps. */
static int second_sync_fails(struct engine *e, const struct io_req *req,
			     bool *reached)
{
	(void)e;
	*reached = false;
	if (req->op == IO_WRITE && req->offset >= 128u << 20 && !far_writes++)
		return -EFBIG;
	return req->op == IO_SYNC && ++syncs == 2 ? -EIO : 0;
}

/*
 * The kernel tells once of a write in the page cache that it could not do, here
 * when the file is extended ahead of need, for which no request waits.
 */
static void a_buffered_write_that_is_lost_is_told(void **state)
{
	struct spec spec = { .sectors = 4096 * 40, .block_size = 2u << 20 };
	struct pump pump = { .from_name = "source", .to_name = "target" };
	struct engine engine;
	struct config cfg;
	struct error err;

	(void)state;
	assert_int_equal(config_load(&cfg, "/nonexistent", &err), 0);
	for (uint64_t seed = 1; seed <= 10; seed++) {
		uint8_t data[8 * SECTOR_SIZE] = { 1 };
		int fd;

		make_raw("base.raw", spec.sectors);
		fd = open(in_dir("base.raw"), O_RDWR);
		for (uint64_t i = 0; i < spec.sectors; i += 4096)
			put(fd, data, sizeof(data), i * SECTOR_SIZE);
		close(fd);
		make_image("leaf.vhd", &spec);
		syncs = far_writes = 0;
		fe_open(&engine, in_dir("leaf.vhd"), seed);
		engine.script = second_sync_fails;
		pump.from = open_image(&engine, &cfg, &raw_driver,
				       (struct image_open_args){
					       .path = in_dir("base.raw"),
					       .readonly = true,
					       .buffered = true,
				       });
		pump.to = open_image(&engine, &cfg, &vhd_driver,
				     (struct image_open_args){
					     .path = in_dir("leaf.vhd"),
					     .buffered = true,
				     });
		assert_int_equal(pump_run(&pump, &err), -EIO);
		assert_true(far_writes);
		while (image_busy(pump.to))
			assert_int_equal(engine_run(&engine, -1), 0);
		vhd_driver.close(pump.to, NULL);
		raw_driver.close(pump.from, NULL);
		fe_close(&engine);
	}
	config_dispose(&cfg);
}

/* VHDs: leaf.vhd is the child of mid.vhd, and that of base.raw or of nothing. */

static void scribble(const char *name, unsigned int seed, unsigned int writes)
{
	struct bed b;

	bed_init(&b, name, PARENT_SECTORS);
	b.tag = 1000 * seed;
	follow(&b, seed);
	b.unchecked = true;
	disk_open(&b, 0, 0);
	while (writes--) {
		uint32_t count = 1 + fe_below(&b.engine, 30);

		io(&b, IMAGE_WRITE,
		   fe_below(&b.engine, PARENT_SECTORS - count), count);
	}
	assert_int_equal(disk_close(&b), 0);
	fe_close(&b.engine);
	bed_dispose(&b);
}

static uint8_t *content(const char *name, const struct config *cfg)
{
	uint8_t *data = malloc(PARENT_SECTORS * SECTOR_SIZE);
	struct vhd_chain *chain;
	struct error err;

	assert_non_null(data);
	if (vhd_chain_open(&chain, in_dir(name), cfg, VHD_OPEN_NOLOCK, &err) ||
	    vhd_chain_read(chain, 0, PARENT_SECTORS, data, &err))
		fail_msg("%s", err.text);
	vhd_chain_close(chain);
	return data;
}

static void assert_reads_as(const char *name, const struct config *cfg,
			    const uint8_t *want)
{
	uint8_t *have = content(name, cfg);

	assert_memory_equal(have, want, PARENT_SECTORS * SECTOR_SIZE);
	free(have);
}

/* What job_coalesce() does; cut: after so many steps all is lost. */
static int coalesce(struct engine *engine, const struct config *cfg,
		    unsigned int cut, bool power)
{
	struct pump pump = { .from_name = "child", .to_name = "parent" };
	uint64_t seed = fe_random(engine);
	int rc;

	fe_open(engine, in_dir("mid.vhd"), seed);
	pump.from = open_image(engine, cfg, &vhd_driver,
			       (struct image_open_args){
				       .path = in_dir("leaf.vhd"),
				       .readonly = true, .alone = true,
				       .buffered = true,
			       });
	pump.to = open_image(engine, cfg, &vhd_driver,
			     (struct image_open_args){
				     .path = in_dir("mid.vhd"),
				     .child = in_dir("leaf.vhd"),
				     .buffered = true,
			     });
	cut_after = cut;
	rc = pump_run(&pump, NULL);
	while (!rc && image_busy(pump.to))
		rc = engine_run(engine, -1);
	/* Within the close, too. */
	if (!rc && cut_after)
		engine->die_after = 1 + cut_after % 8;
	vhd_driver.close(pump.to, NULL);
	vhd_driver.close(pump.from, NULL);
	if (engine->dead && power)
		fe_power_loss(engine);
	seed = engine->dead;
	fe_close(engine);
	return rc ? rc : seed ? -EIO : 0;
}

static void a_coalesce_cut_off_anywhere_shows_nothing_and_goes_on(void **state)
{
	struct engine engine = { .rng = 12345 };
	unsigned int cuts = 0;
	struct config cfg;
	struct error err;

	(void)state;
	assert_int_equal(config_load(&cfg, "/nonexistent", &err), 0);
	for (unsigned int round = 1; round <= 40; round++) {
		struct spec middle = {
			.sectors = PARENT_SECTORS, .batmap = round & 1,
			.block_size = round & 2 ? 4096 : 32768,
			.parent = round & 4 ? "base.raw" : NULL,
			.parent_raw = true,
		};
		struct spec leaf = {
			.sectors = PARENT_SECTORS, .batmap = round & 8,
			.block_size = 8192, .parent = "mid.vhd",
		};
		uint8_t *want;

		make_raw("base.raw", PARENT_SECTORS);
		make_image("mid.vhd", &middle);
		scribble("mid.vhd", 2 * round, round % 5 * 4);
		make_image("leaf.vhd", &leaf);
		scribble("leaf.vhd", 2 * round + 1, 20);
		want = content("leaf.vhd", &cfg);
		engine.rng = round * 7919;
		for (unsigned int i = 0; i < 6; i++) {
			unsigned int cut = 1 + fe_below(&engine, 400);
			bool power = fe_one_in(&engine, 2);

			cuts += coalesce(&engine, &cfg, cut, power) != 0;
			assert_reads_as("leaf.vhd", &cfg, want);
			engine.rng += i + 1;
		}
		cut_after = 0;
		assert_int_equal(coalesce(&engine, &cfg, 0, false), 0);
		assert_reads_as("leaf.vhd", &cfg, want);
		assert_reads_as("mid.vhd", &cfg, want);
		free(want);
	}
	config_dispose(&cfg);
	assert_true(cuts > 80);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_holds_data_is_copied_and_holes_are_kept),
		cmocka_unit_test(progress_only_grows_and_comes_to_all),
		cmocka_unit_test(image_that_cannot_say_is_copied_whole),
		cmocka_unit_test(zeros_are_written_where_there_may_be_something),
		cmocka_unit_test(an_error_ends_it_and_is_told_with_its_side_and_place),
		cmocka_unit_test(source_that_became_shorter_is_an_error),
		cmocka_unit_test(smaller_target_is_not_touched),
		cmocka_unit_test(a_stop_ends_it_when_what_is_under_way_is_done),
		cmocka_unit_test(a_flush_on_the_way_that_fails_is_told),
		cmocka_unit_test(a_buffered_write_that_is_lost_is_told),
		cmocka_unit_test(a_coalesce_cut_off_anywhere_shows_nothing_and_goes_on),
	};

	return cmocka_run_group_tests(tests, scratch, scratch_remove);
}
