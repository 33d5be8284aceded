/* SPDX-License-Identifier: LGPL-2.1-only */
/* The VHD data path when I/O fails, a process dies or the power goes: single cases. */
#include "tests/vhd-bed.h"

#define BAT_OFFSET 1536u		/* make_image()'s */

static void begin_with(struct bed *b, const char *name, const struct spec *spec)
{
	make_image(name, spec);
	bed_init(b, name, spec->sectors);
	b->blk = spec->device;
	follow(b, 1);
	disk_open(b, 0, 0);
}

static void begin(struct bed *b, const struct spec *spec)
{
	begin_with(b, "leaf.vhd", spec);
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
	memcpy(b->flushed, b->now, (size_t)b->sectors * sizeof(*b->now));
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

/* The first write, of count sectors, has failed; the script stays. */
static void begin_failed(struct bed *b, const struct spec *spec, uint32_t count,
			 int (*script)(struct engine *, const struct io_req *, bool *))
{
	begin(b, spec);
	b->faults = true;
	b->engine.script = script;
	assert_int_equal(io(b, IMAGE_WRITE, 0, count), -EIO);
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
	begin_failed(&b, &spec, 8, bat_fails_but_is_written);
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
	begin_failed(&b, &spec, 8, bat_fails_but_is_written);
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
	begin_failed(&b, &spec, 8, bat_fails);
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
	begin_failed(&b, &spec, 1, bat_fails_but_is_written);
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

/* Zeros that were answered would give way to what the failed write has left. */
static void zeros_cover_a_block_whose_bat_write_failed(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096 };
	struct bed b;

	(void)state;
	begin_failed(&b, &spec, 8, bat_fails_but_is_written);
	b.engine.script = NULL;
	assert_int_equal(io(&b, IMAGE_ZERO, 0, 8), 0);
	disk_kill(&b);
	disk_open(&b, 0, 0);
	look(&b, false);
	end(&b);
}

static int data_fails(struct engine *e, const struct io_req *req, bool *reached)
{
	(void)e;
	(void)reached;
	return req->op == IO_WRITE && fe_len(req) == 8 * SECTOR_SIZE ? -EIO : 0;
}

/* Its metadata goes beside the data: who closes the image must wait for that. */
static void an_image_is_busy_while_metadata_is_written(void **state)
{
	struct spec spec = { .sectors = 4096 * 4, .block_size = 2u << 20 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 8), 0);
	b.faults = true;
	b.engine.script = data_fails;
	b.engine.hold = metadata_waits;
	start(&b, IMAGE_WRITE, 4096, 8);
	run(&b);
	assert_int_equal(b.busy, 0);
	assert_int_equal(b.last_err, -EIO);
	assert_true(image_busy(&b.disk->image));
	b.engine.script = NULL;
	b.engine.hold = NULL;
	settle(&b);
	assert_int_equal(io(&b, IMAGE_READ, 4096, 8), 0);
	end(&b);
}

static unsigned int nr_writes, nr_metadata;

static int counts_writes(struct engine *e, const struct io_req *req,
			 bool *reached)
{
	(void)e;
	(void)reached;
	nr_writes += req->op == IO_WRITE;
	nr_metadata += req->op == IO_WRITE && fe_len(req) == SECTOR_SIZE;
	return 0;
}

static void a_block_without_a_parent_takes_metadata_once(void **state)
{
	struct spec spec = { .sectors = 4096 * 4, .block_size = 2u << 20 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 8), 0);
	nr_writes = nr_metadata = 0;
	b.engine.script = counts_writes;
	for (unsigned int i = 1; i <= 5; i++)
		assert_int_equal(io(&b, IMAGE_WRITE, i * 64, 8), 0);
	assert_int_equal(nr_writes, 5);
	assert_int_equal(nr_metadata, 0);
	b.engine.script = NULL;
	assert_int_equal(io(&b, IMAGE_READ, 0, 256), 0);
	end(&b);
}

static void empty_base(uint64_t sectors)
{
	int fd = open(in_dir("base.raw"), O_RDWR | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)(sectors * SECTOR_SIZE)), 0);
	close(fd);
}

/* A bitmap and a BAT sector for what came together, not for each. */
static void writes_that_come_together_share_their_metadata(void **state)
{
	struct spec spec = { .sectors = 4096 * 8, .block_size = 2u << 20,
			     .parent = "base.raw", .parent_raw = true };
	struct bed b;

	(void)state;
	empty_base(spec.sectors);
	begin(&b, &spec);
	assert_int_equal(io(&b, IMAGE_WRITE, 4096 * 7, 8), 0);
	nr_writes = nr_metadata = 0;
	b.engine.script = counts_writes;
	for (unsigned int i = 0; i < MAX_SLOTS; i++)
		start(&b, IMAGE_WRITE, i * 64, 8);
	assert_int_equal(nr_writes, 0);
	settle(&b);
	assert_in_range(nr_metadata, 2, 1 + MAX_SLOTS);
	nr_metadata = 0;
	for (unsigned int i = 0; i < 6; i++)
		start(&b, IMAGE_WRITE, 4096 * (1 + i), 8);
	settle(&b);
	assert_in_range(nr_metadata, 6 + 1, 6 + 3);
	b.engine.script = NULL;
	end(&b);
}

static unsigned int extents_of(struct bed *b, uint64_t sector, uint32_t count,
			       struct image_extent *extents)
{
	struct slot *s = start(b, IMAGE_STATUS, sector, count);

	settle(b);
	assert_int_equal(b->last_err, 0);
	memcpy(extents, s->extents, s->req.nr_extents * sizeof(*extents));
	return s->req.nr_extents;
}

static void status_tells_what_some_image_holds(void **state)
{
	/* Blocks of the parent that are smaller than the leaf's, and fewer. */
	struct spec parent = { .sectors = 8 * 20, .block_size = 4096 };
	struct spec spec = { .sectors = 128 * 3, .block_size = 65536,
			     .parent = "mid.vhd" };
	struct image_extent e[MAX_EXTENTS];
	struct bed mid, b;
	unsigned int n;

	(void)state;
	begin_with(&mid, "mid.vhd", &parent);
	assert_int_equal(io(&mid, IMAGE_WRITE, 8, 8), 0);
	assert_int_equal(io(&mid, IMAGE_WRITE, 152, 8), 0);
	assert_int_equal(disk_close(&mid), 0);
	fe_close(&mid.engine);
	begin(&b, &spec);
	b.unchecked = true;
	do
		n = extents_of(&b, 0, 384, e);
	while (n < 4);
	assert_true(e[0].zero && e[0].hole && !e[1].zero && !e[1].hole);
	assert_int_equal(e[0].count, 8);
	assert_int_equal(e[1].count, 8);
	assert_int_equal(e[2].count, 136);
	assert_int_equal(e[3].count, 8);
	b.now[8].value = mid.now[8].value;
	assert_int_equal(io(&b, IMAGE_WRITE, 16, 1), 0);
	do
		n = extents_of(&b, 0, 100, e);
	while (n < 3);
	assert_int_equal(e[1].count, 9);
	assert_int_equal(e[2].count, 100 - 17);
	bed_dispose(&mid);
	end(&b);
}

static uint64_t bitmap_at;		/* of the parent's block */

static int parents_bitmap_fails(struct engine *e, const struct io_req *req,
				bool *reached)
{
	(void)reached;
	return req->op == IO_READ && req->offset == bitmap_at &&
	       !fe_follows(req->fd) && e ? -EIO : 0;
}

static void a_bitmap_that_cannot_be_read_hides_no_more_than_it_must(void **state)
{
	struct spec parent = { .sectors = 256, .block_size = 65536,
			       .parent = "base.raw", .parent_raw = true };
	struct spec spec = { .sectors = 256, .block_size = 65536,
			     .parent = "mid.vhd" };
	struct bed mid, b;

	(void)state;
	empty_base(spec.sectors);
	begin_with(&mid, "mid.vhd", &parent);
	assert_int_equal(io(&mid, IMAGE_WRITE, 8, 8), 0);
	bitmap_at = (uint64_t)vhd_bat(mid.disk->leaf, 0) * SECTOR_SIZE;
	assert_int_equal(disk_close(&mid), 0);
	fe_close(&mid.engine);
	begin(&b, &spec);
	b.unchecked = true;
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 8), 0);
	b.faults = true;
	b.engine.script = parents_bitmap_fails;
	assert_int_equal(io(&b, IMAGE_READ, 0, 8), 0);
	assert_int_equal(io(&b, IMAGE_READ, 0, 9), -EIO);
	assert_int_equal(io(&b, IMAGE_READ, 8, 8), -EIO);
	assert_int_equal(io(&b, IMAGE_READ, 128, 8), 0);
	/* It was not for good. */
	b.engine.script = NULL;
	assert_int_equal(io(&b, IMAGE_READ, 0, 128), 0);
	bed_dispose(&mid);
	end(&b);
}

static void a_large_request_lets_others_have_their_turn(void **state)
{
	struct spec spec = { .sectors = 8 * 4000, .block_size = 4096 };
	struct slot *large, *small;
	struct bed b;

	(void)state;
	begin(&b, &spec);
	for (unsigned int i = 0; i < 20; i++)
		assert_int_equal(io(&b, IMAGE_WRITE, i * 16, 8), 0);
	/* Neither all operations at once, nor all steps. */
	large = start(&b, IMAGE_ZERO, 0, (uint32_t)spec.sectors);
	assert_int_equal(b.engine.nr_pending, VHD_MAX_PENDING);
	start(&b, IMAGE_ZERO, 400, (uint32_t)spec.sectors - 400);
	assert_false(list_empty(&b.disk->later));
	assert_true(large->busy);
	small = start(&b, IMAGE_READ, 8 * 3999, 8);
	assert_false(small->busy);
	settle(&b);
	assert_int_equal(b.last_err, 0);
	end(&b);
}

/* The footer ahead of the blocks holds the space that the last one needs. */
static void a_full_file_system_can_be_closed_cleanly(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 8), 0);
	b.engine.full = true;
	assert_int_equal(disk_close(&b), 0);
	check_image(&b, true);
	disk_open(&b, 0, 0);
	look(&b, false);
	end(&b);
}

static void memory_is_bounded_whatever_the_size_of_a_block(void **state)
{
	struct spec spec = { .sectors = 3 << 19, .block_size = VHD_MAX_BLOCK };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	assert_in_range(b.disk->cache.nr * 2 * b.disk->cache.map_bytes, 1,
			16 << 20);
	for (unsigned int i = 0; i < MAX_SLOTS; i++)
		start(&b, IMAGE_WRITE, (i % 3) << 19 | i * 8, 8);
	settle(&b);
	assert_int_equal(io(&b, IMAGE_READ, 1 << 19, 64), 0);
	end(&b);
}

static int bitmaps_cant_be_read(struct engine *e, const struct io_req *req,
				bool *reached)
{
	(void)e;
	*reached = false;
	return req->op == IO_READ && fe_len(req) == SECTOR_SIZE ? -EIO : 0;
}

/* What the map learns is out of date before it has it, and its next try fails too. */
static void a_bitmap_that_stays_bad_is_an_error_and_no_endless_loop(void **state)
{
	struct spec parent = { .sectors = 128, .block_size = 4096 };
	struct spec spec = { .sectors = 128, .block_size = 65536,
			     .parent = "mid.vhd" };
	struct bed mid, b;

	(void)state;
	begin_with(&mid, "mid.vhd", &parent);
	assert_int_equal(io(&mid, IMAGE_WRITE, 8, 8), 0);
	assert_int_equal(disk_close(&mid), 0);
	fe_close(&mid.engine);
	begin(&b, &spec);
	b.faults = true;
	b.engine.script = bitmaps_cant_be_read;
	b.engine.hold = reads_wait;
	start(&b, IMAGE_READ, 8, 8);
	run(&b);
	assert_int_equal(b.busy, 1);
	vhd_map_forget(b.disk, 0);
	b.engine.hold = NULL;
	run(&b);
	assert_int_equal(b.busy, 0);
	assert_int_equal(b.last_err, -EIO);
	b.engine.script = NULL;
	b.unchecked = true;
	assert_int_equal(io(&b, IMAGE_READ, 8, 8), 0);
	end(&b);
	bed_dispose(&mid);
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
		cmocka_unit_test(zeros_cover_a_block_whose_bat_write_failed),
		cmocka_unit_test(an_image_is_busy_while_metadata_is_written),
		cmocka_unit_test(a_block_without_a_parent_takes_metadata_once),
		cmocka_unit_test(writes_that_come_together_share_their_metadata),
		cmocka_unit_test(status_tells_what_some_image_holds),
		cmocka_unit_test(a_bitmap_that_stays_bad_is_an_error_and_no_endless_loop),
		cmocka_unit_test(a_bitmap_that_cannot_be_read_hides_no_more_than_it_must),
		cmocka_unit_test(a_large_request_lets_others_have_their_turn),
		cmocka_unit_test(a_full_file_system_can_be_closed_cleanly),
		cmocka_unit_test(memory_is_bounded_whatever_the_size_of_a_block),
	};

	return cmocka_run_group_tests(tests, scratch, scratch_remove);
}
