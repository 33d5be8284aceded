/* SPDX-License-Identifier: LGPL-2.1-only */
/* The VHD data path when I/O fails, a process dies or the power goes: single cases. */
#include "tests/vhd-bed.h"

#define BAT_OFFSET 1536u		/* make_image()'s */

static void begin(struct bed *b, const struct spec *spec)
{
	make_image("leaf.vhd", spec);
	bed_init(b, "leaf.vhd", spec->sectors);
	b->blk = spec->device;
	follow(b, 1);
	disk_open(b, 0, 0);
}

static void end(struct bed *b)
{
	if (b->disk)
		assert_int_equal(disk_close(b), 0);
	fe_close(&b->engine);
	bed_dispose(b);
}

/* All that has been written is on the medium. */
static void all_durable(struct bed *b)
{
	fe_make_durable(&b->engine, b->engine.clock);
	memcpy(b->flushed, b->now, b->sectors * sizeof(*b->now));
}

static void power_loss(struct bed *b, bool (*survives)(const struct fe_change *))
{
	disk_kill(b);
	b->engine.survives = survives;
	fe_power_loss(&b->engine);
	check_image(b, false);
	disk_open(b, 0, 0);
	look(b, true);
}

static uint64_t wanted;			/* an offset in the file, for the filters below */

static bool all_but_wanted(const struct fe_change *c)
{
	return c->truncate || c->offset != wanted;
}

static int bat_fails(struct engine *e, const struct io_req *req, bool *reached)
{
	(void)e;
	*reached = false;
	return req->op == IO_WRITE && req->offset == BAT_OFFSET ? -EIO : 0;
}

static int bat_fails_but_is_written(struct engine *e, const struct io_req *req,
				    bool *reached)
{
	int err = bat_fails(e, req, reached);

	*reached = err;
	return err;
}

static bool metadata_waits(const struct io_req *req)
{
	return req->op == IO_WRITE && req->iov->iov_len < 8 * SECTOR_SIZE;
}

static bool reads_wait(const struct io_req *req)
{
	return req->op == IO_READ;
}

static bool syncs_wait(const struct io_req *req)
{
	return req->op == IO_SYNC;
}

static void a_write_is_read_back(void **state)
{
	struct spec spec = { .sectors = 100, .block_size = 4096 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	assert_int_equal(io(&b, IMAGE_WRITE, 3, 50), 0);
	assert_int_equal(io(&b, IMAGE_READ, 0, 100), 0);
	assert_int_equal(disk_close(&b), 0);
	check_image(&b, true);
	end(&b);
}

/* Were its place given to another block, two BAT entries would name it. */
static void a_bat_write_that_fails_may_have_reached_the_file(void **state)
{
	struct spec spec = { .sectors = 8 * 300, .block_size = 4096 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	b.faults = true;
	b.engine.script = bat_fails_but_is_written;
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 8), -EIO);
	b.engine.script = NULL;
	/* In another sector of the BAT. */
	assert_int_equal(io(&b, IMAGE_WRITE, 8 * 200, 8), 0);
	assert_int_equal(disk_close(&b), 0);
	check_image(&b, false);
	disk_open(&b, 0, 0);
	look(&b, false);
	end(&b);
}

/* The file would be cut off before a block that its BAT has. */
static void the_close_keeps_blocks_whose_bat_write_failed(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	b.faults = true;
	b.engine.script = bat_fails_but_is_written;
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 8), -EIO);
	assert_int_equal(disk_close(&b), 0);
	check_image(&b, false);
	end(&b);
}

static void a_read_never_meets_another_blocks_data(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	/* Grown, so that writes of less than a block are metadata. */
	assert_int_equal(io(&b, IMAGE_WRITE, 72, 8), 0);
	b.faults = true;
	b.engine.script = bat_fails;
	b.engine.hold = metadata_waits;
	start(&b, IMAGE_WRITE, 0, 8);
	run(&b);
	start(&b, IMAGE_READ, 0, 8);
	b.engine.hold = reads_wait;
	run(&b);
	assert_int_equal(b.last_err, -EIO);
	b.engine.script = NULL;
	start(&b, IMAGE_WRITE, 40, 8);
	run(&b);
	assert_int_equal(b.last_err, 0);
	b.engine.hold = NULL;
	settle(&b);
	end(&b);
}

/* A bitmap and data that no BAT entry leads to, as a kill may leave them. */
static void what_a_kill_left_never_passes_for_a_block(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	b.faults = true;
	b.engine.script = bat_fails;
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 8), -EIO);
	disk_kill(&b);
	all_durable(&b);
	b.engine.script = NULL;
	disk_open(&b, 0, 0);
	assert_int_equal(io(&b, IMAGE_WRITE, 43, 1), 0);
	wanted = (uint64_t)vhd_bat(b.disk->leaf, 5) * VHD_SECTOR;
	power_loss(&b, all_but_wanted);
	end(&b);
}

static void a_footer_never_passes_for_data(void **state)
{
	struct spec spec = { .sectors = 6 * 32768, .block_size = 16u << 20 };
	struct bed b;
	uint64_t first;

	(void)state;
	begin(&b, &spec);
	for (unsigned int i = 0; i < 4; i++)
		assert_int_equal(io(&b, IMAGE_WRITE, 32768 * i, 1), 0);
	wanted = VHD_GROW_BYTES;
	first = ((uint64_t)vhd_bat(b.disk->leaf, 3) +
		 b.disk->leaf->bitmap_sectors) * VHD_SECTOR;
	assert_in_range(wanted, first, first + spec.block_size - 1);
	assert_int_equal(io(&b, IMAGE_FLUSH, 0, 0), 0);
	assert_int_equal(io(&b, IMAGE_WRITE, 3 * 32768 +
			    (wanted - first) / SECTOR_SIZE, 1), 0);
	power_loss(&b, all_but_wanted);
	end(&b);
}

static void a_device_never_shows_what_lay_there_before(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096,
			     .device = 1 << 20 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 1), 0);
	assert_int_equal(io(&b, IMAGE_FLUSH, 0, 0), 0);
	assert_int_equal(io(&b, IMAGE_WRITE, 1, 1), 0);
	wanted = ((uint64_t)vhd_bat(b.disk->leaf, 0) + 2) * VHD_SECTOR;
	power_loss(&b, all_but_wanted);
	end(&b);
}

/* Its BAT entry is on the medium, though the write of it failed. */
static void a_block_tried_again_is_as_careful_as_one_in_use(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096,
			     .device = 1 << 20 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	b.faults = true;
	b.engine.script = bat_fails_but_is_written;
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 1), -EIO);
	b.engine.script = NULL;
	all_durable(&b);
	b.engine.hold = syncs_wait;
	start(&b, IMAGE_WRITE, 1, 1);
	run(&b);
	wanted = ((uint64_t)vhd_bat(b.disk->leaf, 0) + 2) * VHD_SECTOR;
	power_loss(&b, all_but_wanted);
	b.engine.hold = NULL;
	end(&b);
}

/* Of an image that was made smaller, or was made to grow. */
static void bat_entries_beyond_the_size_are_kept(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096, .spare = 2 };
	uint32_t entry = 0x12345678;
	struct bed b;
	int fd;

	(void)state;
	make_image("leaf.vhd", &spec);
	bed_init(&b, "leaf.vhd", spec.sectors);
	fd = open(in_dir("leaf.vhd"), O_RDWR);
	assert_true(fd >= 0);
	put(fd, &entry, sizeof(entry), BAT_OFFSET + 4 * 11);
	follow(&b, 1);
	disk_open(&b, 0, 0);
	assert_int_equal(io(&b, IMAGE_WRITE, 72, 8), 0);
	assert_int_equal(disk_close(&b), 0);
	entry = 0;
	assert_int_equal(pread(fd, &entry, sizeof(entry), BAT_OFFSET + 4 * 11),
			 sizeof(entry));
	assert_int_equal(entry, 0x12345678);
	close(fd);
	end(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_write_is_read_back),
		cmocka_unit_test(a_bat_write_that_fails_may_have_reached_the_file),
		cmocka_unit_test(the_close_keeps_blocks_whose_bat_write_failed),
		cmocka_unit_test(a_read_never_meets_another_blocks_data),
		cmocka_unit_test(what_a_kill_left_never_passes_for_a_block),
		cmocka_unit_test(a_footer_never_passes_for_data),
		cmocka_unit_test(a_device_never_shows_what_lay_there_before),
		cmocka_unit_test(a_block_tried_again_is_as_careful_as_one_in_use),
		cmocka_unit_test(bat_entries_beyond_the_size_are_kept),
	};

	return cmocka_run_group_tests(tests, scratch, scratch_remove);
}
